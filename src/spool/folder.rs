//! The spool's folder as it is found at a start: the lock, the agent's id, and every log's segments.
//!
//! A start never fails for what lies in the folder. What is not ours is left alone and told; a segment whose header is
//! damaged is set aside as `*.damaged`. What is missing in the records is found here and declared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Error,
    log::{Log, RunLog, private_dir},
    mark::{Body, Loss, Mark, Marked},
    ranges::Ranges,
    segment::{Found, OpenError, Owner, Segment},
};
use crate::event::status::Reason;

/// A folder that is ours.
#[derive(Debug)]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// The mark file in it.
    pub mark: Mark,
    /// Held as long as the agent runs.
    _lock: File,
}

/// What a start found.
#[derive(Debug)]
pub struct Opened {
    /// The folder.
    pub folder: Folder,
    /// The agent's id, made once.
    pub agent: Uuid,
    /// What the mark file said.
    pub body: Body,
    /// The place of the new run.
    pub run: u64,
    /// The logs by collector.
    pub logs: BTreeMap<Arc<str>, Log>,
    /// Losses that were found.
    pub losses: Vec<Loss>,
}

/// Opens the folder for a new run.
pub fn open(path: &Path, run_id: Uuid, boot: &str) -> Result<Opened, Error> {
    let failed = |what: &Path, source| Error::Folder { path: what.to_owned(), source };
    private_dir().recursive(true).create(path).map_err(|source| failed(path, source))?;
    let lock = lock(path)?;
    let agent = agent_id(path).map_err(|source| failed(&path.join("agent"), source))?;
    let (mark, marked) = Mark::open(&path.join("mark")).map_err(|source| failed(&path.join("mark"), source))?;
    let mut found = find(path, agent).map_err(|source| failed(path, source))?;
    let mut body = marked.body.clone().unwrap_or_default();
    let highest = |runs: &mut dyn Iterator<Item = u64>| runs.max().unwrap_or(0);
    let run = 1 + highest(&mut body.runs.iter().map(|run| run.counter))
        .max(highest(&mut marked.given.values().map(|(run, _)| *run)))
        .max(highest(&mut found.values().flatten().map(|found| found.segment.owner.run)));
    let marked_runs: BTreeSet<u64> = body.runs.iter().map(|run| run.counter).collect();
    learn_runs(&mut body, &marked, &found);
    let power = !body.boot.is_empty() && body.boot != boot && !body.stopped;
    let mut losses = Vec::new();
    let mut logs = BTreeMap::new();
    let names = body.runs.iter().flat_map(|run| run.logs.keys().cloned());
    let names: BTreeSet<String> = names.chain(found.keys().cloned()).collect();
    for name in names {
        let collector: Arc<str> = name.as_str().into();
        let segments = found.remove(&name).unwrap_or_default();
        let runs = missing(&name, &body, &marked_runs, &segments, power, &mut losses);
        let owner = Owner { agent, run_id, run, collector: Arc::clone(&collector) };
        let segments = segments.into_iter().map(|found| found.segment).collect();
        logs.insert(collector, Log::new(owner, path.join(&name), segments, runs));
    }
    Ok(Opened { folder: Folder { path: path.to_owned(), mark, _lock: lock }, agent, body, run, logs, losses })
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let failed = |source| Error::Folder { path: path.clone(), source };
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let mut file = options.open(&path).map_err(failed)?;
    if let Err(error) = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(failed(error.into()));
        }
        let mut holder = String::new();
        // Who holds it is a comfort, not a need.
        let _comfort = file.read_to_string(&mut holder);
        return Err(Error::Held { path: folder.to_owned(), holder: holder.trim().to_owned() });
    }
    let write = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    // A full disk does not keep the agent from starting.
    if let Err(error) = write {
        warn!(path = %path.display(), %error, "cannot write the process id into the lock file");
    }
    Ok(file)
}

/// Reads the agent's id from a spool folder without changing anything; `None` where there is none.
pub fn read_agent_id(folder: &Path) -> Option<Uuid> {
    fs::read_to_string(folder.join("agent")).ok()?.trim().parse().ok()
}

/// The agent's id; made, and synced, where there is none.
fn agent_id(folder: &Path) -> io::Result<Uuid> {
    if let Some(agent) = read_agent_id(folder) {
        return Ok(agent);
    }
    let (path, draft) = (folder.join("agent"), folder.join("agent.new"));
    if path.exists() {
        warn!(path = %path.display(), "holds no agent id; a new one is made, consumers will see a new agent");
    }
    let agent = Uuid::new_v4();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{agent}")?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    File::open(folder)?.sync_all()?;
    Ok(agent)
}

/// All segments of this agent by collector, sorted by run and first `seq`.
fn find(folder: &Path, agent: Uuid) -> io::Result<BTreeMap<String, Vec<Found>>> {
    let mut logs = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_log =
            !name.is_empty() && name.len() <= 60 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        // A symbolic link is no folder here: what it leads to is not ours.
        if entry.file_type()?.is_dir() && is_log {
            let found = segments(&entry.path(), &name, agent)?;
            logs.insert(name, found);
        } else if !["agent", "agent.new", "lock", "mark"].contains(&name.as_str()) {
            info!(path = %entry.path().display(), "is not the spool's and is left alone");
        }
    }
    Ok(logs)
}

fn segments(folder: &Path, collector: &str, agent: Uuid) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((run, first)) =
            Segment::parse_name(&name).filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file()))
        else {
            if !name.ends_with(".damaged") {
                info!(path = %path.display(), "is not the spool's and is left alone");
            }
            continue;
        };
        match Segment::open(&path) {
            Ok(segment) if segment.segment.owner.agent != agent => {
                warn!(path = %path.display(), agent = %segment.segment.owner.agent, "is another agent's segment and is left alone");
            }
            Ok(segment) => {
                let owner = &segment.segment.owner;
                if (owner.run, segment.segment.first, &*owner.collector) == (run, first, collector) {
                    found.push(segment);
                } else {
                    warn!(path = %path.display(), "has been renamed: its header tells another run, number or collector; it is left alone");
                }
            }
            Err(OpenError::Header { .. }) => set_aside(&path),
            Err(error) => warn!(error = %chain(&error), "a segment is left alone"),
        }
    }
    found.sort_by_key(|found| (found.segment.owner.run, found.segment.first));
    Ok(found)
}

fn set_aside(path: &Path) {
    let aside = path.with_extension("seg.damaged");
    match fs::rename(path, &aside) {
        Ok(()) => warn!(path = %aside.display(), "a segment's header is damaged; it is set aside under this name"),
        Err(error) => warn!(path = %path.display(), %error, "a segment's header is damaged, and it cannot be renamed"),
    }
}

/// Adds to the marked runs what the records and the places of `given` know beyond them.
fn learn_runs(body: &mut Body, marked: &Marked, found: &BTreeMap<String, Vec<Found>>) {
    for (name, found) in found.iter().flat_map(|(name, found)| found.iter().map(move |found| (name, found))) {
        let owner = &found.segment.owner;
        if !body.runs.iter().any(|run| run.counter == owner.run) {
            let run = super::mark::Run { counter: owner.run, id: owner.run_id, told: false, logs: BTreeMap::new() };
            body.runs.push(run);
        }
        let run = body.runs.iter_mut().filter(|run| run.counter == owner.run);
        run.for_each(|run| {
            let log = run.logs.entry(name.clone()).or_default();
            log.given = log.given.max(found.segment.last);
        });
    }
    for (name, (counter, seq)) in &marked.given {
        for run in body.runs.iter_mut().filter(|run| run.counter == *counter) {
            let log = run.logs.entry(name.clone()).or_default();
            log.given = log.given.max(*seq);
        }
    }
    body.runs.sort_by_key(|run| run.counter);
}

/// Each run of one log, with what is neither settled nor in a record declared.
fn missing(
    name: &str,
    body: &Body,
    marked: &BTreeSet<u64>,
    found: &[Found],
    power: bool,
    losses: &mut Vec<Loss>,
) -> BTreeMap<u64, RunLog> {
    let mut runs = BTreeMap::new();
    let newest = body.runs.last().map(|run| run.counter);
    for run in &body.runs {
        let Some(mark) = run.logs.get(name) else { continue };
        let settled: Ranges = mark.settled.iter().copied().collect();
        let mut log = RunLog { id: run.id, given: mark.given, settled };
        let mut known = log.settled.clone();
        let of_run = || found.iter().filter(|found| found.segment.owner.run == run.counter);
        of_run().flat_map(|found| found.held.iter()).for_each(|(first, last)| known.insert(first, last));
        let lost = power && Some(run.counter) == newest;
        // Where the mark is gone nobody knows what was acked: what has no record counts as that, unless damage took it.
        if !marked.contains(&run.counter) {
            let damaged: Ranges = of_run().flat_map(|found| found.damaged.iter()).collect();
            let gone = known.missing(1, log.given).into_iter().flat_map(|(first, last)| damaged.missing(first, last));
            for (first, last) in gone.collect::<Vec<_>>() {
                log.settled.insert(first, last);
                known.insert(first, last);
            }
        }
        for (first, last) in known.missing(1, log.given) {
            // The record was written before the number was: its segment is gone, or the record is no longer what was written.
            let there = of_run().any(|found| {
                let open = !found.segment.sealed && found.segment.last < first;
                open || found.damaged.covers(first, last)
            });
            let reason = match (lost, there) {
                (true, _) => Reason::Power,
                (false, true) => Reason::Damaged,
                (false, false) => Reason::Missing,
            };
            log.settled.insert(first, last);
            losses.push(loss(run.id, name, first, Some(last), reason));
        }
        if lost {
            // Numbers that were given out after the last sync are not known any more.
            losses.push(loss(run.id, name, log.given + 1, None, Reason::Power));
        }
        runs.insert(run.counter, log);
    }
    runs
}

fn loss(run_id: Uuid, collector: &str, first: u64, last: Option<u64>, reason: Reason) -> Loss {
    Loss { run_id, collector: collector.to_owned(), first, last, events: None, reason }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

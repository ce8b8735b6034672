//! The spool's folder as it is found at a start: the lock, the agent's id, and every log's segments.
//!
//! A start never fails for what lies in the folder. What is not ours is left alone and told; a segment whose header is
//! damaged is set aside as `*.damaged`. What is missing in the records is found here and declared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Error,
    header::Owner,
    host::{File, Host, Kind, Open},
    log::{Log, RunLog},
    mark::{Body, Loss, Mark, Marked},
    ranges::Ranges,
    segment::{DRAFT, Found, OpenError, Segment, Tail, aside},
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
    lock: Arc<dyn File>,
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
    /// Damaged segments that were set aside, the oldest first, and their bytes.
    pub aside: Vec<(PathBuf, u64)>,
}

/// Opens the folder for a new run. `known` are collectors that there may be.
pub fn open(host: &Arc<dyn Host>, path: &Path, run_id: Uuid, known: &[&str]) -> Result<Opened, Error> {
    let failed = |what: &Path, source| Error::Folder { path: what.to_owned(), source };
    host.make_folder(path).map_err(|source| failed(path, source))?;
    let lock = lock(&**host, path)?;
    let agent = agent_id(&**host, path).map_err(|source| failed(&path.join(AGENT), source))?;
    let (mark, marked) = own_mark(&**host, path, agent).map_err(|source| failed(&path.join(MARK), source))?;
    let mut aside = Vec::new();
    let mut found = find(host, path, agent, &mut aside).map_err(|source| failed(path, source))?;
    let mut body = marked.body.clone().unwrap_or_default();
    let highest = |runs: &mut dyn Iterator<Item = u64>| runs.max().unwrap_or(0);
    let run = 1 + highest(&mut body.runs.iter().map(|run| run.counter))
        .max(highest(&mut marked.places.iter().map(|place| place.run)))
        .max(highest(&mut found.values().flatten().map(|found| found.segment.owner.run)));
    let marked_runs: BTreeSet<u64> = body.runs.iter().map(|run| run.counter).collect();
    learn_runs(&mut body, &marked, &found);
    let power = !body.boot.is_empty() && body.boot != host.boot() && !body.stopped;
    if let Some(newest) = body.runs.last_mut().filter(|_| power) {
        // A log may have begun in its last second, and nothing of it have reached the disk.
        for name in known {
            newest.logs.entry((*name).to_owned()).or_default();
        }
    }
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
        logs.insert(collector, Log::new(Arc::clone(host), owner, path.join(&name), segments, runs));
    }
    Ok(Opened { folder: Folder { path: path.to_owned(), mark, lock }, agent, body, run, logs, losses, aside })
}

/// The mark, and what it says if it is this agent's.
fn own_mark(host: &dyn Host, folder: &Path, agent: Uuid) -> io::Result<(Mark, Marked)> {
    let path = folder.join(MARK);
    let (mut mark, marked) = Mark::open(host, &path)?;
    let of = marked.body.as_ref().map_or(agent, |body| body.agent);
    if of == agent {
        return Ok((mark, marked));
    }
    warn!(path = %path.display(), agent = %of, "is another agent's mark and is not believed: what waits here comes again");
    mark.clear_places()?;
    Ok((mark, Marked::default()))
}

const AGENT: &str = "agent";
const MARK: &str = "mark";
const LOCK: &str = "lock";

impl Folder {
    /// Whether it is still the folder that was opened.
    pub fn is_there(&self) -> bool {
        self.mark.is_there(&self.path.join(MARK)) && self.lock.is_named(&self.path.join(LOCK))
    }

    /// Makes anew what somebody took away of the folder, or what can no longer be synced.
    pub fn renew(&mut self, host: &dyn Host, agent: Uuid, body: &Body) -> Result<(), Error> {
        let failed = |what: &str, source| Error::Folder { path: self.path.join(what), source };
        host.make_folder(&self.path).map_err(|source| failed("", source))?;
        if !self.lock.is_named(&self.path.join(LOCK)) {
            self.lock = lock(host, &self.path)?;
        }
        let failed = |what: &str, source| Error::Folder { path: self.path.join(what), source };
        if read_text(host, &self.path.join(AGENT)).ok().and_then(|id| id.trim().parse().ok()) != Some(agent) {
            write_agent_id(host, &self.path, agent).map_err(|source| failed(AGENT, source))?;
        }
        let path = self.path.join(MARK);
        let renewed = self.mark.renew(host, &path, body).and_then(|()| host.sync_folder(&self.path));
        renewed.map_err(|source| Error::Folder { path, source })
    }
}

fn lock(host: &dyn Host, folder: &Path) -> Result<Arc<dyn File>, Error> {
    let path = folder.join(LOCK);
    let failed = |source| Error::Folder { path: path.clone(), source };
    let file = host.open(&path, Open::Any).map_err(failed)?;
    if !file.lock().map_err(failed)? {
        // Who holds it is a comfort, not a need.
        let holder = read_text(host, &path).unwrap_or_default();
        return Err(Error::Held { path: folder.to_owned(), holder: holder.trim().to_owned() });
    }
    let id = format!("{}\n", std::process::id());
    let write = file.set_len(0).and_then(|()| file.write_all_at(id.as_bytes(), 0));
    // A full disk does not keep the agent from starting.
    if let Err(error) = write {
        warn!(path = %path.display(), %error, "cannot write the process id into the lock file");
    }
    Ok(file)
}

/// The text of a small file.
fn read_text(host: &dyn Host, path: &Path) -> io::Result<String> {
    const MOST: u64 = 4096;
    let file = host.open(path, Open::Existing)?;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(MOST)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads the agent's id from a spool folder without changing anything; `None` where there is none.
pub fn read_agent_id(folder: &Path) -> Option<Uuid> {
    fs::read_to_string(folder.join("agent")).ok()?.trim().parse().ok()
}

/// The agent's id; made, and synced, where there is none.
fn agent_id(host: &dyn Host, folder: &Path) -> io::Result<Uuid> {
    let path = folder.join(AGENT);
    match read_text(host, &path).map(|text| text.trim().parse()) {
        Ok(Ok(agent)) => return Ok(agent),
        Ok(Err(_)) => {
            warn!(path = %path.display(), "holds no agent id; a new one is made, consumers will see a new agent");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A new id now would make a stranger of the agent for good.
        Err(error) => return Err(error),
    }
    let agent = Uuid::new_v4();
    write_agent_id(host, folder, agent)?;
    host.sync_folder(folder)?;
    Ok(agent)
}

fn write_agent_id(host: &dyn Host, folder: &Path, agent: Uuid) -> io::Result<()> {
    let draft = folder.join("agent.new");
    let file = host.open(&draft, Open::Any)?;
    file.set_len(0)?;
    file.write_all_at(format!("{agent}\n").as_bytes(), 0)?;
    file.sync()?;
    host.rename(&draft, &folder.join(AGENT))
}

type Aside = Vec<(PathBuf, u64)>;

/// All segments of this agent by collector, sorted by run and first `seq`.
fn find(
    host: &Arc<dyn Host>,
    folder: &Path,
    agent: Uuid,
    aside: &mut Aside,
) -> io::Result<BTreeMap<String, Vec<Found>>> {
    let mut logs = BTreeMap::new();
    for (name, kind) in host.list(folder)? {
        let path = folder.join(&name);
        let is_log =
            !name.is_empty() && name.len() <= 60 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        // A symbolic link is no folder here: what it leads to is not ours.
        if kind == Kind::Folder && is_log {
            match segments(host, &path, &name, agent, aside) {
                Ok(found) => _ = logs.insert(name, found),
                // One log's folder does not cost the others theirs.
                Err(error) => {
                    warn!(path = %path.display(), %error, "cannot look into a log's folder; it is left alone");
                }
            }
        } else if ![AGENT, "agent.new", LOCK, MARK, "mark.new"].contains(&name.as_str()) {
            info!(path = %path.display(), "is not the spool's and is left alone");
        }
    }
    aside.sort();
    Ok(logs)
}

fn segments(
    host: &Arc<dyn Host>,
    folder: &Path,
    collector: &str,
    agent: Uuid,
    asides: &mut Aside,
) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut keep_aside = |path: PathBuf| {
        let bytes = host.open(&path, Open::Existing).and_then(|file| file.len()).unwrap_or(0);
        asides.push((path, bytes));
    };
    for (name, kind) in host.list(folder)? {
        let path = folder.join(&name);
        let Some((run, first)) = Segment::parse_name(&name).filter(|_| kind == Kind::File) else {
            if name.ends_with(".seg.damaged") && kind == Kind::File {
                keep_aside(path);
            } else if name.ends_with(DRAFT) && kind == Kind::File {
                // A copy that was not finished: its original is still there.
                let _left_over = host.remove(&path);
            } else {
                info!(path = %path.display(), "is not the spool's and is left alone");
            }
            continue;
        };
        match Segment::open(host, &path) {
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
            Err(OpenError::Header { .. }) => {
                let aside = aside(&path);
                match host.rename(&path, &aside) {
                    Ok(()) => {
                        warn!(path = %aside.display(), "a segment's header is damaged; it is set aside under this name");
                        keep_aside(aside);
                    }
                    Err(error) => {
                        warn!(path = %path.display(), %error, "a segment's header is damaged, and it cannot be renamed");
                    }
                }
            }
            Err(error) => warn!(error = %chain(&error), "a segment is left alone"),
        }
    }
    found.sort_by_key(|found| (found.segment.owner.run, found.segment.first));
    Ok(found)
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
    for place in &marked.places {
        for run in body.runs.iter_mut().filter(|run| run.counter == place.run) {
            let log = run.logs.entry(place.name.clone()).or_default();
            log.given = log.given.max(place.given);
            log.settled.extend((place.settled > 0).then_some((1, place.settled)));
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
        let in_memory: Ranges = mark.memory.iter().copied().collect();
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
            for (first, last) in in_memory.within(first, last) {
                log.settled.insert(first, last);
                known.insert(first, last);
                losses.push(loss(run.id, name, first, Some(last), Reason::DiskFull));
            }
        }
        for (first, last) in known.missing(1, log.given) {
            // The record was written before the number was: its segment is gone, or the record is no longer what was written.
            let tail = of_run()
                .next_back()
                .is_some_and(|newest| newest.segment.tail == Tail::Open && newest.segment.last < first);
            let there = tail || of_run().any(|found| found.damaged.covers(first, last));
            let reason = match (power, there) {
                (true, _) => Reason::Power,
                (false, true) => Reason::Damaged,
                (false, false) => Reason::Missing,
            };
            log.settled.insert(first, last);
            losses.push(loss(run.id, name, first, Some(last), reason));
        }
        if power && Some(run.counter) == newest {
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

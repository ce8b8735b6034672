//! The spool from outside: what a folder holds, looked at without changing anything, whether an agent runs on it or is
//! long gone.
//!
//! Beside a running agent a look is never quite of one moment: what is missing between the mark and the records then says
//! nothing, and damage counts only where it stays.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use rustix::fs::{FlockOperation, OFlags, flock};
use uuid::Uuid;

use super::{
    Error,
    folder::{
        self,
        contents::{self, Opener, Remark},
        past::Past,
    },
    header::Owner,
    host::{File, Host, Kind, Machine, Open},
    log::{Log, Taken},
    mark::{Loss, Marked},
    segment::{Expected, Found, OpenError, Segment, View},
};
use crate::event::status::Reason;

/// How often damage beside a running agent is looked at again before it is believed.
const LOOKS: usize = 3;

/// What a folder holds.
#[derive(Debug)]
pub struct Outside {
    /// The agent whose spool it is.
    pub agent: Uuid,
    /// The process that runs on it, as far as the lock file tells.
    pub holder: Option<String>,
    /// Segments that can be used.
    pub segments: usize,
    /// Records in them.
    pub records: u64,
    /// By collector.
    pub logs: BTreeMap<Arc<str>, Log>,
    /// Losses that no confirmed status has told yet, those that the next run will find among them.
    pub losses: Vec<Loss>,
    /// Those of them that the next run will find; none beside a running agent.
    pub found: Vec<Loss>,
    /// Bytes in segments that are no record though records follow.
    pub holes: Vec<Hole>,
    /// Damaged segments that were set aside, and their bytes: all declared.
    pub aside: Vec<(PathBuf, u64)>,
    /// What is not used, and why.
    pub remarks: Vec<Remark>,
}

/// Bytes that are no record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hole {
    /// The segment.
    pub path: PathBuf,
    /// The first byte.
    pub from: u64,
    /// The byte behind the last one.
    pub to: u64,
}

/// Looks at a folder by footers and marks: as fast as a start.
///
/// # Errors
/// Why it cannot be looked at, or that it is no spool.
pub fn look(folder: &Path) -> Result<Outside, Error> {
    Outside::find(folder, &contents::by_footers)
}

/// Looks at a folder and reads every record. `read` hears of each segment's bytes when they were read.
///
/// # Errors
/// As [`look`].
pub fn verify(folder: &Path, read: &(dyn Fn(u64) + Sync)) -> Result<Outside, Error> {
    let look = || Outside::find(folder, &|host, paths, expected| side_by_side(host, paths, expected, read));
    let mut verified = look()?;
    for _ in 1..LOOKS {
        if verified.holder.is_none() || verified.is_whole() && verified.holes.is_empty() {
            break;
        }
        // A record that is being written, or a file that is begun or cut back, looks like damage for a moment.
        let mut again = look()?;
        again.holes.retain(|hole| verified.holes.contains(hole));
        verified = again;
    }
    Ok(verified)
}

/// Verifies two segments at a time: while the bytes of one come from the page cache, the checksums of the other are
/// computed. More than two would be felt on a database's host.
fn side_by_side(
    host: &Arc<dyn Host>,
    paths: &[PathBuf],
    expected: &Expected<'_>,
    read: &(dyn Fn(u64) + Sync),
) -> Vec<Result<Found, OpenError>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut view, mut done) = (View::reading_on(), Vec::new());
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(at) else { return done };
            done.push((at, Segment::verify(host, path, expected, &mut view)));
            read(path.symlink_metadata().map_or(0, |file| file.len()));
        }
    };
    let mut done = thread::scope(|scope| {
        // Where the system gives no thread, it takes longer.
        let other = (paths.len() > 1).then(|| thread::Builder::new().spawn_scoped(scope, work).ok()).flatten();
        let mut done = work();
        done.extend(other.into_iter().flat_map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))));
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, found)| found).collect()
}

fn holes(found: &Found) -> Vec<Hole> {
    let hole = |&(from, to): &(u64, u64)| Hole { path: found.segment.path().to_owned(), from, to };
    found.holes.iter().map(hole).collect()
}

/// Bytes of all segments in a folder, for whoever wants to say how far a [`verify`] is.
pub fn bytes(folder: &Path) -> u64 {
    let list = |path: &Path| Machine.list(path).unwrap_or_default();
    let logs = list(folder).into_iter().filter(|(_, kind)| *kind == Kind::Folder).map(|(name, _)| folder.join(name));
    let segments = logs.flat_map(|log| list(&log).into_iter().map(move |(name, _)| (log.join(&name), name)));
    let sizes = segments.filter(|(_, name)| Segment::parse_name(name).is_some());
    sizes.filter_map(|(path, _)| Some(path.symlink_metadata().ok()?.len())).sum()
}

impl Outside {
    fn find(path: &Path, open: Opener<'_>) -> Result<Self, Error> {
        let host: Arc<dyn Host> = Arc::new(Onlooker);
        let failed = |source| Error::Folder { path: path.to_owned(), source };
        // Before the agent's id: a folder that may not be read is no "no spool".
        host.list(path).map_err(failed)?;
        let agent = folder::whose(&*host, path).map_err(failed)?.ok_or_else(|| {
            let why = "it holds no agent's id (file \"agent\"), so that it is no spool";
            failed(io::Error::new(io::ErrorKind::InvalidData, why))
        })?;
        let holder = holder(path);
        let runs = marked(&*host, path, agent, &mut Vec::new()).runs();
        let contents = contents::find(&host, path, agent, &runs, open).map_err(failed)?;
        let unreadable = contents.unreadable();
        let mut remarks = contents.remarks;
        if folder::read_agent_id(path) != Some(agent) {
            let why = "is damaged or gone: everything else tells whose spool it is".to_owned();
            remarks.push(Remark { path: path.join(folder::AGENT), why, grave: true });
        }
        // After the records: what was settled meanwhile is known to be.
        let marked = marked(&*host, path, agent, &mut remarks);
        let headless = contents.headless.into_iter();
        remarks.extend(headless.map(|path| Remark { path, why: "has a damaged header".into(), grave: true }));
        let told: Vec<Loss> = marked.body.iter().flat_map(|body| body.lost.clone()).collect();
        let found = || contents.segments.values().flatten();
        let (segments, records) = (found().count(), found().map(|found| found.segment.count).sum());
        let holes = found().flat_map(holes).collect();
        let Past { run, logs, losses, .. } = Past::learn(marked, &contents.segments, &unreadable, &host.boot(), &[]);
        let mut found = contents.segments;
        let logs = logs.into_iter().map(|(name, runs)| {
            let collector: Arc<str> = name.as_str().into();
            let owner = Owner { agent, run_id: Uuid::nil(), run: run + 1, collector: Arc::clone(&collector) };
            let segments = found.remove(&name).unwrap_or_default().into_iter().map(|found| found.segment).collect();
            (collector, Log::new(Arc::clone(&host), owner, path.join(&name), segments, runs))
        });
        let logs = logs.collect();
        // A running agent's mark and records are not of one moment.
        let newly = if holder.is_some() { Vec::new() } else { losses };
        let losses = told.into_iter().chain(newly.iter().cloned()).collect();
        Ok(Self { agent, holder, segments, records, logs, losses, found: newly, holes, aside: contents.aside, remarks })
    }

    /// Whether all that was numbered is settled or can be read, as far as the mark and the records tell.
    pub fn is_whole(&self) -> bool {
        let broken = |loss: &Loss| matches!(loss.reason, Reason::Damaged | Reason::Missing);
        !self.found.iter().any(broken) && !self.remarks.iter().any(|remark| remark.grave)
    }

    /// The next message that waits, of all logs the one that was numbered first.
    pub fn messages(self) -> Messages {
        let next = self.logs.into_values().map(|mut log| (log.take_waiting(), log)).collect();
        Messages { next }
    }
}

/// All that waits in a folder, in the order in which it was numbered.
#[derive(Debug)]
pub struct Messages {
    next: Vec<(Option<Taken>, Log)>,
}

impl Messages {
    /// What was found damaged on the way, and why files could not be read.
    pub fn troubles(&self) -> impl Iterator<Item = (&[Loss], Option<&str>)> {
        self.next.iter().map(|(_, log)| (log.losses.as_slice(), log.unreadable.as_deref()))
    }
}

impl Iterator for Messages {
    type Item = Taken;

    fn next(&mut self) -> Option<Taken> {
        let waiting = self.next.iter_mut().filter(|(taken, _)| taken.is_some());
        let (taken, log) = waiting.min_by_key(|(taken, _)| taken.as_ref().map(|taken| taken.batch.time))?;
        std::mem::replace(taken, log.take_waiting())
    }
}

/// What the folder's mark says, if it is this agent's.
fn marked(host: &dyn Host, folder: &Path, agent: Uuid, remarks: &mut Vec<Remark>) -> Marked {
    let path = folder.join(folder::MARK);
    let mut nothing = |why: String| {
        let why = format!("{why}: what was confirmed is not known, and all that is here comes again");
        remarks.push(Remark { path: path.clone(), why, grave: true });
        Marked::default()
    };
    let marked = match host.open(&path, Open::Existing) {
        Ok(file) => Marked::read(&*file),
        Err(error) => return nothing(format!("cannot be read ({error})")),
    };
    match &marked.body {
        None => nothing("holds nothing that is whole".into()),
        Some(body) if body.agent != agent => nothing(format!("is another agent's ({})", body.agent)),
        Some(_) => marked,
    }
}

/// The process that runs on a folder: a shared lock for a moment, where a running agent has an exclusive one.
pub fn holder(folder: &Path) -> Option<String> {
    let path = folder.join(folder::LOCK);
    let file = std::fs::File::open(&path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    Some(std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned())
}

/// The machine for whoever only looks: nothing of it can be changed.
#[derive(Debug)]
struct Onlooker;

fn only_looking<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Host for Onlooker {
    fn open(&self, path: &Path, _how: Open) -> io::Result<Arc<dyn File>> {
        // Not waiting for whoever writes into a pipe that bears one of our names.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
        }
        Ok(Arc::new(file))
    }

    fn make_folder(&self, _path: &Path) -> io::Result<()> {
        only_looking()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, Kind)>> {
        Machine.list(path)
    }

    fn exists(&self, path: &Path) -> bool {
        Machine.exists(path)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        only_looking()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        only_looking()
    }

    fn sync_folder(&self, _path: &Path) -> io::Result<()> {
        only_looking()
    }

    fn free(&self, path: &Path) -> io::Result<u64> {
        Machine.free(path)
    }

    fn now(&self) -> Instant {
        Machine.now()
    }

    fn boot(&self) -> String {
        Machine.boot()
    }
}

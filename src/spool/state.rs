//! The spool's state behind its lock: the logs, what must be told, and what is due when. No method waits for a sync.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    Config, Draft, Told, WhenFull,
    folder::{self, Folder},
    ledger::{Ledger, TOLD_AT_ONCE},
    log::{Log, RunLog, Settled},
    mark::{Body, Loss, Run},
    ranges::Ranges,
    record,
    segment::{Owner, Segment},
};
use crate::{
    event::{
        batch::Batch,
        status::{Lost, PreviousRun, Reason, SpoolStatus, Waiting},
    },
    units::Time,
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Config,
    /// `None`: everything is in memory.
    pub(super) folder: Option<Folder>,
    pub(super) agent: Uuid,
    pub(super) run_id: Uuid,
    pub(super) run: u64,
    pub(super) boot: String,
    pub(super) stopped: bool,
    pub(super) logs: BTreeMap<Arc<str>, Log>,
    /// Runs that are not done with, the current one left out: id and whether they were told.
    pub(super) runs: BTreeMap<u64, (Uuid, bool)>,
    pub(super) lost: Ledger<Loss>,
    pub(super) previous: Ledger<u64>,
    /// Bytes that each log may keep in memory for the publisher; `None` while there is no broker.
    pub(super) live: Option<usize>,
    pub(super) seen: (u64, Instant),
    pub(super) duties: Duties,
    pub(super) trouble: Option<String>,
    pub(super) space: (Instant, u64),
    pub(super) importance: Vec<&'static str>,
}

/// When what must be done.
#[derive(Debug, Default)]
pub(super) struct Duties {
    /// The oldest message of each log that is not yet synced.
    pub(super) unsynced: BTreeMap<Arc<str>, Instant>,
    /// The mark differs from what was written since.
    pub(super) mark: Option<Instant>,
    /// The written mark differs from what was synced since.
    pub(super) mark_sync: Option<Instant>,
    /// Segments can be unlinked.
    pub(super) dead: bool,
    /// When ages were last looked at.
    pub(super) aged: Option<Instant>,
}

/// Acks are written into the mark at the latest after this: so much comes twice after a kill.
const MARK_AFTER: Duration = Duration::from_secs(1);
/// A written mark is synced at the latest after this, while something waits.
const MARK_SYNC_AFTER: Duration = Duration::from_secs(10);
/// How often the age of what waits is looked at.
const AGE_EVERY: Duration = Duration::from_secs(5);
/// What may be in memory only, all logs together, while the disk is full.
const MEMORY_BYTES: usize = 8 << 20;

/// What is due now, taken out of the state so that the disk holds nobody up.
pub(super) struct Due {
    pub(super) sync: Vec<Unsynced>,
    pub(super) mark: Option<Arc<std::fs::File>>,
    pub(super) dead: Vec<Segment>,
}

/// A log's files to be synced, each with its folder where its name is new.
pub(super) struct Unsynced {
    pub(super) collector: Arc<str>,
    pub(super) files: Vec<(Arc<std::fs::File>, Option<PathBuf>)>,
}

/// Syncs a folder's names, and its own name in the folder above.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()?;
    // The folder's own name may be new as well.
    folder.parent().map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
}

impl State {
    /// The state without a disk.
    pub(super) fn new(config: Config, importance: Vec<&'static str>, run_id: Uuid, boot: String) -> Self {
        let now = Instant::now();
        Self {
            config,
            folder: None,
            agent: Uuid::new_v4(),
            run_id,
            run: 1,
            boot,
            stopped: false,
            logs: BTreeMap::new(),
            runs: BTreeMap::new(),
            lost: Ledger::default(),
            previous: Ledger::default(),
            live: None,
            seen: (0, now),
            duties: Duties::default(),
            trouble: None,
            space: (now, u64::MAX),
            importance,
        }
    }

    /// Takes over what a start found on disk.
    pub(super) fn adopt(&mut self, opened: folder::Opened) {
        let folder::Opened { folder, agent, body, run, logs, losses } = opened;
        (self.folder, self.agent, self.run, self.logs) = (Some(folder), agent, run, logs);
        self.seen.0 = body.seen_ms;
        for loss in body.lost {
            self.lost.lose(loss);
        }
        for loss in losses {
            warn!(run = %loss.run_id, collector = loss.collector, first = loss.first, last = loss.last, reason = ?loss.reason, "messages are lost");
            self.lost.lose(loss);
        }
        for earlier in body.runs {
            let numbered = earlier.logs.values().any(|log| log.given > 0);
            self.runs.insert(earlier.counter, (earlier.id, earlier.told || !numbered));
            if !earlier.told && numbered {
                self.previous.push(earlier.counter);
            }
        }
        let waiting: u64 = self.logs.values().map(Log::messages).sum();
        if waiting > 0 {
            info!(messages = waiting, "earlier runs left messages in the spool; they follow behind what is fresh");
        }
        self.write_mark();
        let synced =
            self.folder.as_ref().map(|folder| folder.mark.file().sync_data().and_then(|()| sync_folder(&folder.path)));
        if let Some(Err(error)) = synced {
            error!(%error, "cannot sync the spool's mark");
        }
    }

    fn seen_ms(&self) -> u64 {
        self.seen.0 + u64::try_from(self.seen.1.elapsed().as_millis()).unwrap_or(0)
    }

    fn log(&mut self, collector: &str) -> &mut Log {
        let name: Arc<str> = collector.into();
        let folder = self.config.dir.join(collector);
        let (agent, run_id, run) = (self.agent, self.run_id, self.run);
        self.logs.entry(Arc::clone(&name)).or_insert_with(|| {
            let owner = Owner { agent, run_id, run, collector: name };
            let fresh = RunLog { id: run_id, given: 0, settled: Ranges::default() };
            Log::new(owner, folder, Vec::new(), BTreeMap::from([(run, fresh)]))
        })
    }

    pub(super) fn next(&mut self, collector: &str) -> u64 {
        self.log(collector).given() + 1
    }

    pub(super) fn append(&mut self, draft: Draft<'_>, seq: u64, body: Vec<u8>) {
        let batch = Batch {
            agent: self.agent,
            run_id: self.run_id,
            collector: draft.collector.into(),
            seq,
            time: Time::now(),
            events: draft.events,
            version: draft.version,
            zstd: draft.zstd,
            body,
        };
        let bytes = batch.body.len() as u64 + record::HEAD as u64;
        let (seen, segment, live) = (self.seen_ms(), self.config.segment_bytes(), self.live);
        let room = self.make_room(draft.collector, bytes);
        let memory = self.logs.values().map(Log::memory_bytes).sum::<usize>() + batch.body.len();
        let spare = live.filter(|_| memory <= MEMORY_BYTES);
        let log = self.log(draft.collector);
        match room {
            Ok(()) => {
                let written = log.append(batch, seen, segment, live, spare);
                self.disk_trouble(written.err());
            }
            // The disk was not asked: nothing is known of it.
            Err(NoRoom::Newest) => log.refuse(&batch, Reason::Evicted),
            Err(NoRoom::Disk(why)) => {
                log.keep_in_memory(batch, spare);
                self.disk_trouble(Some(why));
            }
        }
        let run = self.run;
        let given = self.folder.as_mut().map(|folder| folder.mark.give(draft.collector, run, seq));
        if let Some(Err(error)) = given {
            self.disk_trouble(Some(error));
        }
        if !self.log(draft.collector).is_settled() {
            self.duties.unsynced.entry(draft.collector.into()).or_insert_with(Instant::now);
        }
        self.after_change();
        if self.config.sync_after.is_zero() {
            self.sync_inline(draft.collector);
        }
    }

    /// `sync_after = "0s"`: a message is on disk before the publisher can have it.
    fn sync_inline(&mut self, collector: &str) {
        let log = self.log(collector);
        let folder = log.folder().to_owned();
        for (file, new) in log.open_file() {
            let synced = file.sync_data().and_then(|()| if new { sync_folder(&folder) } else { Ok(()) });
            if let Err(error) = synced {
                self.log(collector).roll();
                self.disk_trouble(Some(error));
            }
        }
        self.duties.unsynced.remove(collector);
    }

    /// Tells that the disk cannot be written, or that it can be again; each once.
    fn disk_trouble(&mut self, trouble: Option<io::Error>) {
        match trouble {
            Some(why) => {
                let text = format!("cannot write to {}: {why}", self.config.dir.display());
                if self.trouble.is_none() {
                    error!(
                        trouble = text,
                        "the agent publishes from memory; lost is what is not confirmed when the connection ends"
                    );
                }
                self.trouble = Some(text);
            }
            None if self.folder.is_some() && self.trouble.take().is_some() => {
                info!(dir = %self.config.dir.display(), "the spool can be written again");
            }
            None => {}
        }
    }

    /// Makes room for a record within `max_bytes` and `min_free`.
    fn make_room(&mut self, collector: &str, bytes: u64) -> Result<(), NoRoom> {
        if self.folder.is_none() {
            return Err(NoRoom::Disk(io::Error::other("the spool's folder cannot be used")));
        }
        // One segment less than what is allowed: what was evicted takes space until the mark is synced.
        let allowed = self.config.max_bytes - self.config.segment_bytes();
        while self.logs.values().map(Log::bytes).sum::<u64>() + bytes > allowed {
            let victim = match self.config.when_full {
                WhenFull::DropOldest => self.victim(collector),
                WhenFull::DropNewest => None,
            };
            let evicted =
                victim.and_then(|name| self.logs.get_mut(&name)).is_some_and(|log| log.evict(Reason::Evicted));
            if !evicted {
                return Err(NoRoom::Newest);
            }
            self.duties.dead = true;
        }
        if self.free() < self.config.min_free.saturating_add(bytes) {
            return Err(NoRoom::Disk(io::Error::other(format!(
                "less than spool.min_free ({}) is free",
                crate::units::size(self.config.min_free)
            ))));
        }
        Ok(())
    }

    /// Whose oldest segment goes: what no queue wants, then the least important; never more important than `collector`.
    fn victim(&self, collector: &str) -> Option<Arc<str>> {
        let rank = |name: &str| {
            let place = self.importance.iter().position(|known| *known == name);
            place.unwrap_or(self.importance.len() / 2)
        };
        let own = rank(collector);
        let waiting = || self.logs.iter().filter(|(name, log)| log.oldest().is_some() && rank(name) <= own);
        let unwanted = waiting().filter(|(_, log)| log.unwanted).min_by_key(|(name, _)| rank(name));
        let least = || waiting().min_by_key(|(name, _)| rank(name));
        unwanted.or_else(least).map(|(name, _)| Arc::clone(name))
    }

    /// Bytes free on the file system, at most a second old.
    fn free(&mut self) -> u64 {
        let now = Instant::now();
        if self.space.1 == u64::MAX || now.duration_since(self.space.0) >= Duration::from_secs(1) {
            let free = rustix::fs::statvfs(&self.config.dir)
                .map_or(u64::MAX - 1, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
            self.space = (now, free);
        }
        self.space.1
    }

    /// Books what logs found, and takes note of what became of it.
    pub(super) fn after_change(&mut self) {
        for log in self.logs.values_mut() {
            for loss in log.losses.drain(..) {
                // What is discarded as configured is told once, by who discards it.
                if loss.reason != Reason::Discarded {
                    warn!(run = %loss.run_id, collector = loss.collector, first = loss.first, last = loss.last, reason = ?loss.reason, "messages are lost");
                }
                self.lost.lose(loss);
                self.duties.mark.get_or_insert_with(Instant::now);
            }
            self.duties.dead |= !log.dead.is_empty();
        }
    }

    pub(super) fn settled(&mut self, collector: &str, settled: Option<Settled>) {
        self.after_change();
        let now = Instant::now();
        if settled != Some(Settled::Wholly) {
            self.duties.mark.get_or_insert(now);
            return;
        }
        self.duties.unsynced.remove(collector);
        // The mark first: after a kill, what is neither in the log nor settled would be taken for missing.
        if self.write_mark() {
            let cut = self.logs.get_mut(collector).map(Log::cut_back);
            if let Some(Err(error)) = cut {
                self.disk_trouble(Some(error));
            }
        }
    }

    pub(super) fn status_confirmed(&mut self, seq: u64) {
        self.lost.confirmed(seq);
        for run in self.previous.confirmed(seq) {
            if let Some((_, told)) = self.runs.get_mut(&run) {
                *told = true;
            }
        }
        self.forget_runs();
        self.duties.mark.get_or_insert_with(Instant::now);
    }

    /// Forgets runs that were told and of which nothing waits.
    fn forget_runs(&mut self) {
        let logs = &mut self.logs;
        self.runs.retain(|run, (_, told)| {
            let waits = logs.values().any(|log| log.runs.get(run).is_some_and(|log| !log.unsettled().is_empty()));
            let keep = !*told || waits;
            if !keep {
                for log in logs.values_mut() {
                    log.runs.remove(run);
                }
            }
            keep
        });
    }

    /// Writes the mark. False where that failed, or where there is no disk.
    pub(super) fn write_mark(&mut self) -> bool {
        let body = self.body();
        let Some(folder) = self.folder.as_mut() else { return false };
        let written = folder.mark.write(&body);
        self.duties.mark = None;
        self.duties.mark_sync.get_or_insert_with(Instant::now);
        let failed = written.err();
        let ok = failed.is_none();
        if !ok {
            self.disk_trouble(failed);
        }
        ok
    }

    fn body(&self) -> Body {
        let logs = |run: u64| {
            let marks = self.logs.iter().filter_map(|(name, log)| Some((name.to_string(), log.runs.get(&run)?.mark())));
            marks.filter(|(_, mark)| mark.given > 0).collect()
        };
        let earlier = self.runs.iter().map(|(&run, &(id, told))| Run { counter: run, id, told, logs: logs(run) });
        let current = Run { counter: self.run, id: self.run_id, told: false, logs: logs(self.run) };
        Body {
            boot: self.boot.clone(),
            stopped: self.stopped,
            seen_ms: self.seen_ms(),
            runs: earlier.chain([current]).collect(),
            lost: self.lost.iter().cloned().collect(),
        }
    }

    pub(super) fn status(&self) -> SpoolStatus {
        SpoolStatus {
            messages: self.logs.values().map(Log::messages).sum(),
            bytes: self.logs.values().map(Log::bytes).sum(),
            oldest_at: self.logs.values().filter_map(Log::oldest_at).min(),
            trouble: self.trouble.clone(),
        }
    }

    pub(super) fn told(&self) -> Told {
        let given = |log: &Log| Some(log.given()).filter(|given| *given > 0);
        let previous = |run: &u64| {
            let (id, _) = self.runs.get(run)?;
            let last = self.logs.iter().filter_map(|(name, log)| Some((name.to_string(), log.runs.get(run)?.given)));
            let last_seq = last.filter(|(_, given)| *given > 0).collect();
            Some(PreviousRun { run_id: id.to_string(), last_seq })
        };
        Told {
            sent: self.logs.iter().filter_map(|(name, log)| Some((name.to_string(), given(log)?))).collect(),
            spool: self.status(),
            waiting: merged(self.logs.values().flat_map(Log::waiting).collect()),
            lost: self.lost.next(TOLD_AT_ONCE).map(Lost::from).collect(),
            previous_runs: self.previous.next(usize::MAX).filter_map(previous).collect(),
        }
    }

    pub(super) fn next_duty(&self) -> Option<Instant> {
        let waits = self.logs.values().any(|log| !log.is_settled());
        let sync = self.duties.unsynced.values().min().map(|since| *since + self.config.sync_after);
        let mark = self.duties.mark.map(|since| since + MARK_AFTER);
        let mark_sync = self.duties.mark_sync.filter(|_| waits).map(|since| since + MARK_SYNC_AFTER);
        let dead = self.duties.dead.then(Instant::now);
        let aged = waits.then(|| self.duties.aged.map_or_else(Instant::now, |last| last + AGE_EVERY));
        [sync, mark, mark_sync, dead, aged].into_iter().flatten().min()
    }

    pub(super) fn due(&mut self, now: Instant) -> Due {
        if self.duties.aged.is_none_or(|last| now >= last + AGE_EVERY) {
            self.duties.aged = Some(now);
            self.age();
        }
        let sync_after = self.config.sync_after;
        let due: Vec<Arc<str>> = self
            .duties
            .unsynced
            .iter()
            .filter(|(_, since)| now >= **since + sync_after)
            .map(|(name, _)| Arc::clone(name))
            .collect();
        let mut sync = Vec::new();
        for name in due {
            self.duties.unsynced.remove(&name);
            if let Some(log) = self.logs.get_mut(&name).filter(|log| !log.is_settled()) {
                let folder = log.folder().to_owned();
                let files =
                    log.open_file().into_iter().map(|(file, new)| (file, new.then(|| folder.clone()))).collect();
                sync.push(Unsynced { collector: name, files });
            }
        }
        let dead: Vec<Segment> = self.logs.values_mut().flat_map(|log| log.dead.drain(..)).collect();
        self.duties.dead = false;
        if !dead.is_empty() || self.duties.mark.is_some_and(|since| now >= since + MARK_AFTER) {
            self.write_mark();
        }
        let waits = self.logs.values().any(|log| !log.is_settled());
        let old = self.duties.mark_sync.is_some_and(|since| now >= since + MARK_SYNC_AFTER);
        let must = !dead.is_empty() || (waits && old);
        let mark = self.folder.as_ref().filter(|_| must).map(|folder| folder.mark.file());
        if mark.is_some() {
            self.duties.mark_sync = None;
        }
        Due { sync, mark, dead }
    }

    /// Drops segments whose newest record is older than `max_age`.
    fn age(&mut self) {
        let seen = self.seen_ms();
        let max = u64::try_from(self.config.max_age.as_millis()).unwrap_or(u64::MAX);
        for log in self.logs.values_mut() {
            while log.oldest().is_some_and(|segment| segment.newest_ms.saturating_add(max) < seen)
                && log.evict(Reason::Aged)
            {}
            // So that a slow log's segment does not hold back what is long too old.
            if log.oldest().is_some_and(|segment| segment.oldest_ms.saturating_add(max / 8) < seen) {
                log.roll();
            }
        }
        self.after_change();
    }
}

/// Why there is no room for a record.
pub(super) enum NoRoom {
    /// Everything that is kept is more important, or nothing may be dropped for it.
    Newest,
    /// The disk cannot take it.
    Disk(io::Error),
}

/// At most 64 ranges: neighbours of the same run and collector with the smallest gaps become one. Never left out.
fn merged(mut ranges: Vec<Waiting>) -> Vec<Waiting> {
    const MOST: usize = 64;
    ranges.sort();
    while ranges.len() > MOST {
        let gap = |pair: &[Waiting]| match pair {
            [one, other] if (&one.run_id, &one.collector) == (&other.run_id, &other.collector) => {
                Some(other.first_seq - one.last_seq)
            }
            _ => None,
        };
        let smallest = ranges.windows(2).enumerate().filter_map(|(index, pair)| Some((gap(pair)?, index))).min();
        // More runs and collectors than ranges: none is left out.
        let Some((_, index)) = smallest else { break };
        let last_seq = ranges.remove(index + 1).last_seq;
        if let Some(range) = ranges.get_mut(index) {
            range.last_seq = last_seq;
        }
    }
    ranges
}

//! The spool's state behind its lock: the logs, and what must be told. No method waits for a sync.

mod duties;
mod room;
mod safe;
mod tell;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use tracing::{info, warn};
use uuid::Uuid;

use duties::Duties;
use room::NoRoom;
pub(super) use safe::sync_names;

use super::{
    Config, Draft,
    folder::{self, Folder},
    header::Owner,
    host::Host,
    ledger::Ledger,
    log::{Log, RunLog, Settled},
    mark::Loss,
    outlook::Outlook,
    ranges::Ranges,
    record,
    unsynced::Unsynced,
};
use crate::{
    event::{batch::Batch, status::Reason},
    units::Time,
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) host: Arc<dyn Host>,
    pub(super) config: Config,
    /// `None`: everything is in memory.
    pub(super) folder: Option<Folder>,
    pub(super) agent: Uuid,
    pub(super) run_id: Uuid,
    pub(super) run: u64,
    pub(super) boot: String,
    pub(super) stopped: bool,
    pub(super) logs: BTreeMap<Arc<str>, Log>,
    /// Whether numbers were given that the mark's places do not tell yet.
    ungiven: bool,
    /// Runs that are not done with, the current one left out: id and whether they were told.
    pub(super) runs: BTreeMap<u64, (Uuid, bool)>,
    pub(super) lost: Ledger<Loss>,
    /// Messages that were found lost in this run, by collector and reason.
    pub(super) losses: BTreeMap<(String, Reason), u64>,
    pub(super) previous: Ledger<u64>,
    /// Bytes that each log may keep in memory for the publisher; `None` while there is no broker.
    pub(super) live: Option<usize>,
    pub(super) seen: (u64, Instant),
    duties: Duties,
    pub(super) trouble: Trouble,
    pub(super) space: (Instant, u64),
    pub(super) importance: Vec<&'static str>,
    /// Damaged segments that were set aside, the oldest first, and their bytes.
    pub(super) aside: Vec<(PathBuf, u64)>,
    pub(super) outlook: Outlook,
}

/// Why messages are not as safe as they should be, if they are not.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The disk does not take what is written.
    pub(super) writing: Option<String>,
    /// What was written may not survive a power cut.
    pub(super) syncing: Option<String>,
}

/// What may be in memory only, all logs together, while the disk is full.
const MEMORY_BYTES: usize = 8 << 20;

impl State {
    /// The state without a disk.
    pub(super) fn new(host: Arc<dyn Host>, config: Config, importance: Vec<&'static str>, run_id: Uuid) -> Self {
        let (now, boot) = (host.now(), host.boot());
        Self {
            host,
            config,
            folder: None,
            agent: Uuid::new_v4(),
            run_id,
            run: 1,
            boot,
            stopped: false,
            logs: BTreeMap::new(),
            ungiven: false,
            runs: BTreeMap::new(),
            lost: Ledger::default(),
            losses: BTreeMap::new(),
            previous: Ledger::default(),
            live: None,
            seen: (0, now),
            duties: Duties::default(),
            trouble: Trouble::default(),
            space: (now, u64::MAX),
            importance,
            aside: Vec::new(),
            outlook: Outlook::default(),
        }
    }

    /// Takes over what a start found on disk.
    pub(super) fn adopt(&mut self, opened: folder::Opened) {
        let folder::Opened { folder, agent, body, run, logs, losses, aside } = opened;
        (self.folder, self.agent, self.run, self.logs, self.aside) = (Some(folder), agent, run, logs, aside);
        self.seen.0 = body.seen_ms;
        for loss in body.lost {
            self.lost.lose(loss);
        }
        for loss in losses {
            self.book(loss);
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
        let (now, sync_after) = (self.host.now(), self.config.sync_after);
        for log in self.logs.values_mut().filter(|log| !log.is_settled()) {
            log.unsynced = Unsynced::overdue(now, sync_after);
        }
        self.write_mark();
        let synced = self.folder.as_mut().map(|folder| {
            let (mark, generation) = folder.mark.to_sync();
            mark.sync()?;
            let _nobody_wrote_meanwhile = folder.mark.synced(generation);
            sync_names(&*self.host, &folder.path)?;
            // Those above may be new as well, or others' whom nobody may ask.
            for above in folder.path.ancestors().skip(2) {
                let _best_effort = self.host.sync_folder(above);
            }
            Ok(())
        });
        if let Some(Err(error)) = synced {
            self.mark_sync_failed(&error);
        }
    }

    fn seen_ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.seen.1);
        self.seen.0 + u64::try_from(passed.as_millis()).unwrap_or(0)
    }

    fn log(&mut self, name: &Arc<str>) -> &mut Log {
        let (agent, run_id, run) = (self.agent, self.run_id, self.run);
        self.logs.entry(Arc::clone(name)).or_insert_with(|| {
            let owner = Owner { agent, run_id, run, collector: Arc::clone(name) };
            let fresh = RunLog { id: run_id, given: 0, settled: Ranges::default() };
            let folder = self.config.dir.join(&**name);
            Log::new(Arc::clone(&self.host), owner, folder, Vec::new(), BTreeMap::from([(run, fresh)]))
        })
    }

    /// A collector's name as everything of its log shares it, and the number that comes next in it.
    pub(super) fn next(&self, collector: &str) -> (Arc<str>, u64) {
        let log = self.logs.get_key_value(collector);
        log.map_or_else(|| (collector.into(), 1), |(name, log)| (Arc::clone(name), log.given() + 1))
    }

    pub(super) fn append(&mut self, draft: Draft<'_>, name: &Arc<str>, seq: u64, body: Vec<u8>) {
        let batch = Batch {
            agent: self.agent,
            run_id: self.run_id,
            collector: Arc::clone(name),
            seq,
            time: Time::now(),
            events: draft.events,
            version: draft.version,
            zstd: draft.zstd,
            body,
        };
        let bytes = batch.body.len() as u64 + record::HEAD as u64;
        let now = self.host.now();
        if self.duties.is_time_to_look(now) {
            self.look_for_files(now);
        }
        let (seen, segment, live) = (self.seen_ms(now), self.config.segment_bytes(), self.live);
        let sync_after = self.config.sync_after;
        let room = self.make_room(name, bytes, now);
        let memory = self.logs.values().map(Log::memory_bytes).sum::<usize>() + batch.body.len();
        let spare = live.filter(|_| memory <= MEMORY_BYTES);
        let log = self.log(name);
        let before = log.memory_bytes();
        let disk = match room {
            Ok(()) => Some(log.append(batch, seen, segment, live, spare)),
            Err(NoRoom::Newest) => {
                log.refuse(&batch, Reason::Evicted);
                None
            }
            Err(NoRoom::Disk(why)) => {
                log.keep_in_memory(batch, spare);
                Some(Err(why))
            }
        };
        let (in_memory, refused) = (log.memory_bytes() > before, !log.losses.is_empty());
        if !log.is_settled() {
            log.unsynced.wrote(seq, now, sync_after);
        }
        // Where it was not asked, nothing is known of it.
        if let Some(written) = disk {
            self.disk_trouble(written.err());
        }
        self.after_change();
        if in_memory || refused {
            // Before its number is, so that a next run knows what became of it.
            self.write_mark();
        }
        // A message more makes the mark differ from what was synced of it.
        self.duties.mark_sync.get_or_insert((now, 0)).1 += 1;
        self.ungiven = true;
        if sync_after.is_zero() {
            self.write_given();
            self.sync_inline(name);
        }
    }

    /// Writes the last number that each log gave out, where that is not what is written already.
    pub(super) fn write_given(&mut self) {
        if !std::mem::take(&mut self.ungiven) {
            return;
        }
        let Some(folder) = self.folder.as_mut() else { return };
        let given = self.logs.iter().filter(|(_, log)| log.given() > 0);
        let written = given.map(|(name, log)| folder.mark.give(name, self.run, log.given()));
        // Each is tried.
        if let Some(error) = written.filter_map(Result::err).last() {
            self.disk_trouble(Some(error));
        }
    }

    /// Books what logs found, and takes note of what became of it.
    pub(super) fn after_change(&mut self) {
        let mut losses = Vec::new();
        for log in self.logs.values_mut() {
            losses.append(&mut log.losses);
            if !log.dead.is_empty() {
                self.duties.dead.get_or_insert_with(|| self.host.now());
            }
        }
        if !losses.is_empty() {
            self.duties.mark.get_or_insert_with(|| self.host.now());
        }
        for loss in losses {
            self.book(loss);
        }
    }

    /// Tells a loss that was found now, counts it, and keeps it until a status has told it.
    fn book(&mut self, loss: Loss) {
        // What is discarded as configured is told once, by who discards it.
        if loss.reason != Reason::Discarded {
            warn!(run = %loss.run_id, collector = loss.collector, first = loss.first, last = loss.last, reason = ?loss.reason, "messages are lost");
        }
        // Where nobody knows how far it reaches it is one at the least.
        let messages = loss.last.map_or(1, |last| last.saturating_sub(loss.first) + 1);
        *self.losses.entry((loss.collector.clone(), loss.reason)).or_default() += messages;
        self.lost.lose(loss);
    }

    pub(super) fn settled(&mut self, collector: &str, settled: Option<Settled>) {
        self.after_change();
        let now = self.host.now();
        if settled != Some(Settled::Wholly) {
            self.duties.mark.get_or_insert(now);
            return;
        }
        // The mark first: after a kill, what is neither in the log nor settled would be taken for missing.
        if self.mark_settled(collector) {
            let cut = self.logs.get_mut(collector).map(Log::cut_back);
            if let Some(Err(error)) = cut {
                self.disk_trouble(Some(error));
            }
        }
    }

    /// Writes into the mark that all of a log is settled. False where that failed, or where there is no disk.
    fn mark_settled(&mut self, collector: &str) -> bool {
        let (run, Some(log)) = (self.run, self.logs.get(collector)) else { return false };
        // Of earlier runs, and of what is lost, only the slots tell.
        let earlier = log.runs.keys().any(|counter| *counter != run);
        if earlier || self.duties.mark.is_some() {
            return self.write_mark();
        }
        let settled = log.settled_to();
        let Some(folder) = self.folder.as_mut() else { return false };
        let written = folder.mark.settle(collector, run, settled);
        if let Err(error) = written {
            self.disk_trouble(Some(error));
            return false;
        }
        true
    }

    pub(super) fn status_confirmed(&mut self, seq: u64) {
        let losses = self.lost.confirmed(seq).len();
        let runs = self.previous.confirmed(seq);
        if losses + runs.len() > 0 {
            self.duties.mark.get_or_insert_with(|| self.host.now());
        }
        for run in runs {
            if let Some((_, told)) = self.runs.get_mut(&run) {
                *told = true;
            }
        }
        self.forget_runs();
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
        let now = self.host.now();
        self.duties.mark_sync.get_or_insert((now, 0));
        // What could not be written is due again.
        self.duties.mark_failed = written.is_err();
        self.duties.mark = written.is_err().then_some(now);
        match written {
            Ok(()) => true,
            Err(error) => {
                self.disk_trouble(Some(error));
                false
            }
        }
    }
}

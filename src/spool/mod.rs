//! The spool: a log on disk for each collector, so that what has a number is delivered or declared.
//!
//! ```text
//! <spool.dir>/lock                  held while an agent runs; its process id
//!             agent                 the agent's id
//!             mark                  given, acked, lost, runs: see [`mark`]
//!             <collector>/<run counter>-<first seq>.seg    see [`segment`], [`header`], [`record`]
//!             <collector>/….seg.damaged    set aside for whoever wants to look: the first to go when space runs out
//!             *.new                 not finished; thrown away at the next start
//! ```
//!
//! Every message takes the same way: it is numbered and appended to its log; `given` is written once for all that came
//! together ([`Spool::give`]), and only then may they be published; an ack settles them. When all of a log is settled, its
//! file is cut back to its header: a healthy agent keeps nothing at rest and causes next to no writes. What is not acked
//! within `spool.sync_after` is synced.
//!
//! Order that the promise rests on: record before `given` before publishing; the mark before a cut-back; the mark synced
//! before a segment is unlinked; records synced before their footer. So a killed agent finds everything, and after a power
//! cut (another boot id) only what was younger than `spool.sync_after` can be gone, and is declared: from what the mark, at
//! most a minute old, knows to be settled or the log still holds, up to the run's end.
//!
//! What fails is got over: a file that could not be synced, or that somebody took away, is written anew to another one
//! ([`log`]'s rescue); a folder that cannot be used, or a disk that is full, leaves the agent running from memory, which it
//! says, until that has passed. All of it goes through [`host`], so that tests can put a machine there that loses power.

mod config;
pub mod folder;
pub mod header;
pub mod host;
pub mod ledger;
pub mod log;
pub mod mark;
pub mod outlook;
pub mod outside;
pub mod ranges;
pub mod record;
pub mod segment;
mod state;
#[cfg(test)]
mod tests;
pub mod unsynced;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Instant,
};

use tokio::sync::Notify;
use tracing::{error, info};
use uuid::Uuid;

pub use config::{Config, WhenFull};
pub use folder::{chain, read_agent_id};
use host::{Host, Machine};
use ledger::TOLD_AT_ONCE;
use log::Log;
pub use log::{Id, Taken};
use state::{State, sync_names};

use crate::event::{
    EncodeError,
    status::{self, Lost, PreviousRun, Reason, SpoolStatus, Waiting},
};

/// Why the spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent runs on it.
    #[error("the spool {} is held by another agent (process {holder})", path.display())]
    Held {
        /// The folder.
        path: PathBuf,
        /// Its process id, as far as the lock file tells.
        holder: String,
    },
    /// The folder cannot be used.
    #[error("cannot use {}", path.display())]
    Folder {
        /// What of it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What of the spool a status tells, at the moment when it was numbered.
#[derive(Debug)]
pub struct Told {
    /// By collector: the last `seq` given out, this status included.
    pub sent: BTreeMap<String, u64>,
    /// What the spool holds.
    pub spool: SpoolStatus,
    /// All that is numbered and neither acked nor declared.
    pub waiting: Vec<Waiting>,
    /// Losses that no confirmed status has told yet.
    pub lost: Vec<Lost>,
    /// Earlier runs that no confirmed status has told yet.
    pub previous_runs: Vec<PreviousRun>,
}

/// What somebody sees of the spool who looks from aside.
#[derive(Debug, Clone)]
pub struct Glance {
    /// Its folder.
    pub dir: PathBuf,
    /// Bytes of segments that it may hold: `spool.max_bytes`.
    pub max_bytes: u64,
    /// What it holds.
    pub status: SpoolStatus,
    /// By collector: the last `seq` that this run gave out.
    pub given: BTreeMap<String, u64>,
    /// Messages that were found lost in this run, by collector and reason. A loss whose extent nobody knows, after a power cut,
    /// counts as one message.
    pub losses: BTreeMap<(String, Reason), u64>,
}

/// What is to be numbered and kept.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// Its collector.
    pub collector: &'a str,
    /// Events in it.
    pub events: u32,
    /// Its schema version.
    pub version: u16,
    /// Whether the body is zstd.
    pub zstd: bool,
}

/// The spool of one agent, for everyone who needs it.
#[derive(Debug)]
pub struct Spool {
    /// The agent's id.
    pub agent: Uuid,
    /// This run's id: new for each start, so that a number is never given twice.
    pub run_id: Uuid,
    /// Something was numbered that the publisher may take.
    pub ready: Notify,
    /// Something is to be done by [`Spool::keep`].
    pub duty: Notify,
    /// The folder could not be used when this run began, and now it can be: by a run that begins anew.
    pub usable: Notify,
    state: Mutex<State>,
    /// What was seen last.
    seen: Mutex<Glance>,
}

impl Spool {
    /// Opens the spool for a new run. `importance` lists collectors, the least important first.
    ///
    /// A folder that cannot be used leaves the agent without a disk, which is told in [`Spool::trouble`].
    ///
    /// # Errors
    /// [`Error::Held`] where another agent runs on it.
    pub fn open(config: Config, importance: Vec<&'static str>) -> Result<Self, Error> {
        Self::open_on(Arc::new(Machine), config, importance)
    }

    /// As [`Spool::open`], on any machine.
    ///
    /// # Errors
    /// [`Error::Held`] where another agent runs on it.
    pub fn open_on(host: Arc<dyn Host>, config: Config, importance: Vec<&'static str>) -> Result<Self, Error> {
        let run_id = Uuid::now_v7();
        let (opened, trouble) = match folder::open(&host, &config.dir, run_id, &importance) {
            Ok(opened) => (Some(opened), None),
            Err(held @ Error::Held { .. }) => return Err(held),
            Err(error) => (None, Some(chain(&error))),
        };
        let mut state = State::new(host, config, importance, run_id);
        if let Some(opened) = opened {
            state.adopt(opened);
        }
        if let Some(trouble) = trouble {
            error!(%trouble, "the spool cannot be used: until it can, what is not confirmed is in memory only");
            state.trouble.writing = Some(trouble);
        }
        Ok(Self {
            agent: state.agent,
            run_id,
            ready: Notify::new(),
            duty: Notify::new(),
            usable: Notify::new(),
            seen: Mutex::new(state.glance()),
            state: Mutex::new(state),
        })
    }

    /// Numbers a message, keeps it, and lets the publisher have it. `encode` makes the body for its `seq`.
    ///
    /// # Errors
    /// What `encode` said; no number was given then.
    pub fn number(
        &self,
        draft: Draft<'_>,
        encode: impl FnOnce(u64) -> Result<Vec<u8>, EncodeError>,
    ) -> Result<u64, EncodeError> {
        let mut state = self.state();
        let (name, seq) = state.next(draft.collector);
        let body = encode(seq)?;
        state.append(draft, &name, seq, body);
        drop(state);
        self.appended();
        Ok(seq)
    }

    /// Numbers a status: as [`Spool::number`], with what it must tell at that moment.
    ///
    /// # Errors
    /// What `encode` said; no number was given then.
    pub fn number_status(
        &self,
        draft: Draft<'_>,
        encode: impl FnOnce(u64, Told) -> Result<Vec<u8>, EncodeError>,
    ) -> Result<u64, EncodeError> {
        let mut state = self.state();
        let (name, seq) = state.next(draft.collector);
        let mut told = state.told();
        told.sent.insert(draft.collector.to_owned(), seq);
        let body = encode(seq, told)?;
        state.lost.told(seq, TOLD_AT_ONCE);
        state.previous.told(seq, usize::MAX);
        state.append(draft, &name, seq, body);
        drop(state);
        self.appended();
        Ok(seq)
    }

    /// Writes down the numbers that were given since it was called last: to be called when what came together is numbered.
    /// A record that is damaged before that was no message yet; from then on it is one that is missed.
    pub fn give(&self) {
        self.state().write_given();
    }

    fn appended(&self) {
        self.ready.notify_one();
        self.duty.notify_one();
    }

    /// The broker is there: so many bytes of each log may wait in memory. `None`: it is gone, and everything comes back.
    pub fn set_live(&self, bytes: Option<usize>) {
        let mut state = self.state();
        state.live = bytes;
        if bytes.is_none() {
            state.logs.values_mut().for_each(Log::put_all_back);
        }
        state.after_change();
        drop(state);
        self.appended();
    }

    /// How many logs there are; none ever goes.
    pub fn log_count(&self) -> usize {
        self.state().logs.len()
    }

    /// Names of all logs.
    pub fn logs(&self) -> Vec<Arc<str>> {
        self.state().logs.keys().cloned().collect()
    }

    /// The last `seq` that this run gave out in a log.
    pub fn given(&self, collector: &str) -> u64 {
        self.state().logs.get(collector).map_or(0, Log::given)
    }

    /// Messages of a log that are numbered and neither acked nor declared.
    pub fn messages(&self, collector: &str) -> u64 {
        self.state().logs.get(collector).map_or(0, Log::messages)
    }

    /// What a log has for the publisher: bytes of its next fresh message, and whether something waits behind it.
    pub fn offers(&self, collector: &str) -> (Option<usize>, bool) {
        self.state().logs.get(collector).map_or((None, false), |log| (log.fresh_len(), log.has_waiting()))
    }

    /// The next message of a log that was never published.
    pub fn take_fresh(&self, collector: &str) -> Option<Taken> {
        let mut state = self.state();
        state.write_given();
        state.logs.get_mut(collector)?.take_fresh()
    }

    /// The next message of a log that came back or waited on disk.
    pub fn take_waiting(&self, collector: &str) -> Option<Taken> {
        let mut state = self.state();
        state.write_given();
        let taken = state.logs.get_mut(collector)?.take_waiting();
        state.after_change();
        drop(state);
        self.duty.notify_one();
        taken
    }

    /// The broker confirmed messages and did not return them.
    pub fn ack(&self, collector: &str, ids: impl IntoIterator<Item = Id>) {
        let mut ids = ids.into_iter().peekable();
        if ids.peek().is_none() {
            return;
        }
        let mut state = self.state();
        let mut settled = None;
        for id in ids {
            settled = state.logs.get_mut(collector).map(|log| {
                // Somebody wanted it, whatever was known before the connection was begun anew.
                log.unwanted = false;
                log.ack(id)
            });
            if collector == status::COLLECTOR && id.run == state.run {
                state.status_confirmed(id.seq);
            }
        }
        state.settled(collector, settled);
        drop(state);
        self.duty.notify_one();
    }

    /// A message could not be delivered: it is to be read again.
    pub fn put_back(&self, collector: &str, id: Id) {
        if let Some(log) = self.state().logs.get_mut(collector) {
            log.put_back(id);
        }
        self.ready.notify_one();
    }

    /// A message will not be delivered.
    pub fn lose(&self, collector: &str, id: Id, reason: Reason, events: u32) {
        let mut state = self.state();
        let settled = state.logs.get_mut(collector).map(|log| log.lose(id, reason, Some(u64::from(events))));
        state.settled(collector, settled);
        drop(state);
        self.duty.notify_one();
    }

    /// The broker has no queue for what a log holds: until an ack it is the first to go when space runs out.
    pub fn set_unwanted(&self, collector: &str) {
        if let Some(log) = self.state().logs.get_mut(collector) {
            log.unwanted = true;
        }
    }

    /// Why the agent runs from memory, if it does.
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble()
    }

    /// What the spool holds.
    pub fn status(&self) -> SpoolStatus {
        self.state().status()
    }

    /// What can be seen without waiting for anybody: where the spool is busy, as with a disk that hangs, what was seen before.
    pub fn glance(&self) -> Glance {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut state) = state {
            *seen = state.glance();
        }
        seen.clone()
    }

    /// When [`Spool::keep`] has something to do; `None` while there is nothing.
    pub fn next_duty(&self) -> Option<Instant> {
        self.state().next_duty()
    }

    /// Does what is due: syncs what is not acked, writes and syncs the mark, unlinks settled segments, declares what is too
    /// old. Blocks on the disk, but holds nothing up while it does.
    pub fn keep(&self) {
        self.try_folder();
        let (due, host) = {
            let mut state = self.state();
            let now = state.host.now();
            (state.due(now), Arc::clone(&state.host))
        };
        for (collector, unsynced) in due.sync {
            let folder = unsynced.folder.as_deref();
            let synced = unsynced.file.sync().and_then(|()| folder.map_or(Ok(()), |folder| sync_names(&*host, folder)));
            let mut state = self.state();
            match synced {
                Ok(()) => state.synced(&collector, unsynced.segment),
                Err(error) => state.sync_failed(&collector, unsynced.segment, &error),
            }
        }
        for (collector, original, copy) in due.rescue {
            let synced = copy.and_then(|copy| copy.sync().map(|()| copy));
            self.state().rescued(&collector, original, synced);
        }
        if let Some((mark, generation)) = due.mark {
            match mark.sync() {
                Ok(()) => {
                    let dead = self.state().mark_synced(generation, due.dead);
                    for segment in dead {
                        let disposed = segment.dispose();
                        self.state().disposed(&segment, disposed);
                    }
                }
                Err(error) => {
                    let mut state = self.state();
                    state.keep_dead(due.dead);
                    state.mark_sync_failed(&error);
                }
            }
        }
        self.state().see_safety();
    }

    /// Where the folder could not be used: sees whether it can be by now.
    fn try_folder(&self) {
        let (host, path) = {
            let mut state = self.state();
            if !state.try_folder() {
                return;
            }
            (Arc::clone(&state.host), state.config.dir.clone())
        };
        match folder::open(&host, &path, self.run_id, &[]) {
            Ok(_closed_again) => {
                info!(dir = %path.display(), "the spool can be used");
                self.usable.notify_one();
            }
            Err(error) => self.state().trouble.writing = Some(chain(&error)),
        }
    }

    /// An orderly end: writes and syncs all that is known.
    pub fn close(&self) {
        let mark = {
            let mut state = self.state();
            state.stopped = true;
            state.write_mark();
            state.folder.as_ref().map(|folder| folder.mark.to_sync())
        };
        if let Some(Err(error)) = mark.map(|(mark, _)| mark.sync()) {
            error!(%error, "cannot sync the spool's mark");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere does not make what is on disk wrong; every change is whole before the lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

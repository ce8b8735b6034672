//! Duties: what must be done when, and what of it is due now.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::State;
use crate::spool::{
    host::File,
    log,
    segment::{Copy, Segment},
};

/// When what must be done.
#[derive(Debug, Default)]
pub(super) struct Duties {
    /// The mark's slots differ from what was written since.
    pub(super) mark: Option<Instant>,
    /// The mark differs from what was synced since, and by how many messages.
    pub(super) mark_sync: Option<(Instant, u32)>,
    /// Since when segments could be unlinked.
    pub(super) dead: Option<Instant>,
    /// When ages and files were last looked at.
    pub(super) looked: Option<Instant>,
    /// The mark could not be written when that was last tried.
    pub(super) mark_failed: bool,
    /// The mark itself could not be synced.
    pub(super) mark_suspect: bool,
    /// When a folder that could not be used is tried again.
    pub(super) folder: Option<Instant>,
    /// Not before then are files rescued again.
    pub(super) rescue: Option<Instant>,
}

/// Acks are written into the mark at the latest after this: so much comes twice after a kill.
const MARK_AFTER: Duration = Duration::from_secs(1);
/// A written mark is synced at the latest after this, while something waits.
const MARK_SYNC_AFTER: Duration = Duration::from_secs(10);
/// And after this while nothing waits: what was confirmed since is declared after a power cut.
const MARK_SYNC_AT_REST: Duration = Duration::from_secs(60);
/// Sooner where so many messages were numbered meanwhile.
const MARK_SYNC_MESSAGES: u32 = 64;
/// How often the age of what waits, and whether all files are there, is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it takes until files are rescued again after that failed, and until an unusable folder is tried again.
pub(super) const RESCUE_AFTER: Duration = Duration::from_secs(10);

impl Duties {
    /// Whether files were not looked at for so long that somebody may have taken them away.
    pub(super) fn is_time_to_look(&self, now: Instant) -> bool {
        self.looked.is_none_or(|last| now >= last + LOOK_EVERY)
    }
}

/// What is due now, taken out of the state so that the disk holds nobody up.
pub(in crate::spool) struct Due {
    pub(in crate::spool) sync: Vec<(Arc<str>, log::ToSync)>,
    pub(in crate::spool) rescue: Vec<(Arc<str>, log::Key, io::Result<Copy>)>,
    pub(in crate::spool) mark: Option<(Arc<dyn File>, u64)>,
    pub(in crate::spool) dead: Vec<Segment>,
}

impl State {
    /// Whether something waits: for its confirm, or to be told.
    fn waits(&self) -> bool {
        let untold = self.lost.iter().next().is_some() || self.previous.iter().next().is_some();
        untold || self.logs.values().any(|log| !log.is_settled())
    }

    /// When the mark is to be synced.
    fn mark_sync_at(&self) -> Option<Instant> {
        let (since, messages) = self.duties.mark_sync?;
        let many = messages >= MARK_SYNC_MESSAGES;
        let after = match (many, self.waits()) {
            (true, _) => MARK_AFTER,
            (false, true) => MARK_SYNC_AFTER,
            (false, false) => MARK_SYNC_AT_REST,
        };
        self.folder.as_ref().filter(|_| !self.duties.mark_suspect).map(|_| since + after)
    }

    /// When segments are unlinked, for which the mark is synced: at once where that makes room or nothing waits; else all of
    /// a while together, for a broker on the same disk has syncs of its own to do.
    fn unlink_at(&self) -> Option<Instant> {
        let since = self.duties.dead.filter(|_| !self.duties.mark_suspect && !self.duties.mark_failed)?;
        let dead: u64 = self.logs.values().flat_map(|log| &log.dead).map(|segment| segment.end).sum();
        let room = self.used() + dead <= self.allowed() && self.trouble.writing.is_none();
        Some(if room && self.waits() { since + MARK_AFTER } else { since })
    }

    pub(in crate::spool) fn next_duty(&self) -> Option<Instant> {
        let now = || self.host.now();
        let unsynced = self.logs.values().filter_map(|log| log.unsynced.since()).min();
        let sync = unsynced.map(|since| since + self.config.sync_after);
        let mark = self.duties.mark.map(|since| since + MARK_AFTER);
        let look = self.waits().then(|| self.duties.looked.map_or_else(now, |last| last + LOOK_EVERY));
        let rescue = self.needs_rescue().then(|| self.duties.rescue.unwrap_or_else(now));
        let folder = self.folder.is_none().then(|| self.duties.folder.unwrap_or_else(now));
        [sync, mark, self.mark_sync_at(), self.unlink_at(), look, rescue, folder].into_iter().flatten().min()
    }

    /// Whether a folder that could not be used is to be tried again now.
    pub(in crate::spool) fn try_folder(&mut self) -> bool {
        let now = self.host.now();
        let due = self.folder.is_none() && self.duties.folder.is_some_and(|at| now >= at);
        if due || self.duties.folder.is_none() {
            self.duties.folder = Some(now + RESCUE_AFTER);
        }
        due
    }

    /// The files of logs in which something has waited for `sync_after`, all that was written to them since included.
    fn take_unsynced(&mut self, now: Instant) -> Vec<(Arc<str>, log::ToSync)> {
        let mut sync = Vec::new();
        for (name, log) in &mut self.logs {
            let due = log.unsynced.take_due(now, self.config.sync_after);
            if due.is_some_and(|last| !log.is_settled() && log.settled_to() < last) {
                sync.extend(log.to_sync().into_iter().map(|file| (Arc::clone(name), file)));
            }
        }
        sync
    }

    pub(in crate::spool) fn due(&mut self, now: Instant) -> Due {
        let mark_due = self.mark_sync_at().is_some_and(|at| now >= at);
        if mark_due || self.duties.is_time_to_look(now) {
            self.look_for_files(now);
            self.age();
        }
        self.write_given();
        let sync = self.take_unsynced(now);
        let rescue = self.begin_rescue(now);
        let unlink = self.unlink_at().is_some_and(|at| now >= at);
        let sync_mark = unlink || mark_due && !self.duties.mark_suspect;
        let mut written = true;
        if sync_mark || self.duties.mark.is_some_and(|since| now >= since + MARK_AFTER) {
            written = self.write_mark();
        }
        // A mark that cannot be written or synced does not let go of what it speaks of.
        let mark = self.folder.as_ref().filter(|_| sync_mark && written).map(|folder| folder.mark.to_sync());
        let mut dead = Vec::new();
        if mark.is_some() {
            self.duties.mark_sync = None;
            self.duties.dead = None;
            dead.extend(self.logs.values_mut().flat_map(|log| log.dead.drain(..)));
        }
        Due { sync, rescue, mark, dead }
    }
}

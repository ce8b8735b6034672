//! Room: what goes when the spool is full, when the disk is, or when something is too old.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::State;
use crate::{
    event::status::Reason,
    spool::{WhenFull, log::Log},
};

/// Why there is no room for a record.
pub(super) enum NoRoom {
    /// Everything that is kept is more important, or nothing may be dropped for it.
    Newest,
    /// The disk cannot take it.
    Disk(io::Error),
}

/// A disk that was full takes something again when it has room for a segment, or so many bytes: on a small one there may
/// never be more.
const ENOUGH: u64 = 1 << 20;

impl State {
    /// Makes room for a record within `max_bytes` and `min_free`.
    pub(super) fn make_room(&mut self, collector: &str, bytes: u64, now: Instant) -> Result<(), NoRoom> {
        if self.folder.is_none() {
            return Err(NoRoom::Disk(io::Error::other("the spool's folder cannot be used")));
        }
        while self.used() + bytes > self.allowed() {
            if self.drop_aside() {
                continue;
            }
            let victim = match self.config.when_full {
                WhenFull::DropOldest => self.victim(collector),
                WhenFull::DropNewest => None,
            };
            let evicted =
                victim.and_then(|name| self.logs.get_mut(&name)).is_some_and(|log| log.evict(Reason::Evicted));
            if !evicted {
                return Err(NoRoom::Newest);
            }
            self.duties.dead.get_or_insert(now);
        }
        // On a disk that is nearly full the trouble is over only when there is room for more than one message.
        let enough = self.config.segment_bytes().min(ENOUGH);
        let room = if self.trouble.writing.is_some() { bytes.max(enough) } else { bytes };
        while self.free(now) < self.config.min_free.saturating_add(room) {
            if !self.drop_aside() {
                return Err(NoRoom::Disk(io::Error::other(format!(
                    "less than spool.min_free ({}) is free",
                    crate::units::size(self.config.min_free)
                ))));
            }
            self.space.1 = u64::MAX;
        }
        Ok(())
    }

    /// Bytes that it may take: one segment less than configured, since what was evicted takes space until the mark is
    /// synced.
    pub(super) fn allowed(&self) -> u64 {
        self.config.max_bytes.saturating_sub(self.config.segment_bytes())
    }

    /// Bytes that the spool takes of what it may.
    pub(super) fn used(&self) -> u64 {
        self.logs.values().map(Log::bytes).chain(self.aside.iter().map(|(_, bytes)| *bytes)).sum()
    }

    /// Removes the oldest of the damaged segments that were set aside. False where there is none.
    fn drop_aside(&mut self) -> bool {
        if self.aside.is_empty() {
            return false;
        }
        let (path, _) = self.aside.remove(0);
        match self.host.remove(&path) {
            Ok(()) => info!(path = %path.display(), "a damaged segment that was set aside is removed to make room"),
            Err(error) => warn!(path = %path.display(), %error, "cannot remove a damaged segment that was set aside"),
        }
        true
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
    pub(super) fn free(&mut self, now: Instant) -> u64 {
        if self.space.1 == u64::MAX || now.duration_since(self.space.0) >= Duration::from_secs(1) {
            // Where it cannot be told, writing itself will say.
            self.space = (now, self.host.free(&self.config.dir).unwrap_or(u64::MAX - 1));
        }
        self.space.1
    }

    /// Drops segments whose newest record is older than `max_age`.
    pub(super) fn age(&mut self) {
        let seen = self.seen_ms(self.host.now());
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

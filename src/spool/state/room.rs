//! Room: what goes when the spool is full, when the disk is, or when something is too old.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

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

impl State {
    /// Makes room for a record within `max_bytes` and `min_free`.
    pub(super) fn make_room(&mut self, collector: &str, bytes: u64) -> Result<(), NoRoom> {
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

    /// Drops segments whose newest record is older than `max_age`.
    pub(super) fn age(&mut self) {
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

//! What of a log may not be on disk, and since when.
//!
//! A broker that confirms within `sync_after` spares the disk: what is settled by then need not be synced. So it is not
//! enough to know the oldest message that was written, for behind it others follow without an end. Of each log a few points
//! are kept: so far was written, and nothing of it before then.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// So many points cover `sync_after`, so that one is due with what was written in so much of it.
const POINTS: u32 = 4;

/// The points of one log, the oldest first.
#[derive(Debug, Default)]
pub struct Unsynced(VecDeque<Point>);

#[derive(Debug)]
struct Point {
    /// Nothing of it was written before then.
    since: Instant,
    /// The last `seq` of it.
    last: u64,
}

impl Unsynced {
    /// What a killed agent had no time to sync, of whatever run: it is due at once, and never settled by a `seq`.
    pub fn overdue(now: Instant, sync_after: Duration) -> Self {
        let since = now.checked_sub(sync_after).unwrap_or(now);
        Self(VecDeque::from([Point { since, last: u64::MAX }]))
    }

    /// A message was written.
    pub fn wrote(&mut self, seq: u64, now: Instant, sync_after: Duration) {
        match self.0.back_mut() {
            Some(newest) if now < newest.since + sync_after / POINTS => newest.last = newest.last.max(seq),
            _ => self.0.push_back(Point { since: now, last: seq }),
        }
    }

    /// Since when something may not be on disk.
    pub fn since(&self) -> Option<Instant> {
        self.0.front().map(|oldest| oldest.since)
    }

    /// All of it is settled, or is synced now.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Takes out what is due, and tells its last `seq`.
    pub fn take_due(&mut self, now: Instant, sync_after: Duration) -> Option<u64> {
        let due = self.0.partition_point(|point| now >= point.since + sync_after);
        self.0.drain(..due).map(|point| point.last).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC_AFTER: Duration = Duration::from_secs(1);

    #[test]
    fn nothing_is_older_than_sync_after_and_little_is_younger_when_it_is_due() {
        let mut unsynced = Unsynced::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // One each millisecond: the number is the age.
        let mut due = Vec::new();
        for ms in 1..=3000 {
            unsynced.wrote(ms, at(ms), SYNC_AFTER);
            assert!(unsynced.0.len() <= POINTS as usize + 1, "{unsynced:?}");
            due.extend(unsynced.take_due(at(ms), SYNC_AFTER).map(|last| (ms, last)));
        }
        assert_eq!(due.first(), Some(&(1001, 250)), "the first one is due when it is as old as that, not before");
        for (ms, last) in &due {
            let youngest = ms - last;
            assert!((750..=1000).contains(&youngest), "at {ms} up to {last}");
        }
        assert_eq!(due.len(), 8, "{due:?}");
    }

    #[test]
    fn what_an_earlier_run_left_is_due_at_once() {
        let now = Instant::now();
        let mut unsynced = Unsynced::overdue(now, SYNC_AFTER);
        unsynced.wrote(1, now, SYNC_AFTER);
        assert_eq!(unsynced.take_due(now, SYNC_AFTER), Some(u64::MAX));
        assert_eq!(unsynced.since(), Some(now), "what was written since is not");
    }
}

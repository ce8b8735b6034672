//! Deltas: what ran since the look before, out of counters that only the server knows the beginning of.
//!
//! An entry disappears when it is reset or evicted, and may be back, counting from 0, at the next look. What it is
//! then is never guessed upwards: a delta is at most what really ran.
//!
//! Pure.

use std::collections::HashMap;

use super::counters::Counters;
use crate::units::Time;

/// What makes an entry. On 13 nothing tells top level statements from nested ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) userid: u32,
    pub(super) dbid: u32,
    pub(super) queryid: i64,
    pub(super) toplevel: Option<bool>,
}

/// One entry but for its text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Entry {
    pub(super) counters: Counters,
    /// Since when it counts, where the server knows (17 and later).
    pub(super) since: Option<Time>,
    /// Mean, shortest, longest, standard deviation.
    pub(super) times: [Option<f64>; 4],
    /// Another one whenever anything else is another.
    pub(super) mark: i64,
}

/// What one look saw.
#[derive(Debug)]
pub(super) struct Seen {
    /// Counters of two looks may be compared only if this is the same.
    pub(super) epoch: String,
    /// The server's clock.
    pub(super) clock: Time,
    /// Whether every entry was seen.
    pub(super) complete: bool,
    /// Evictions since the epoch began.
    pub(super) dealloc: Option<u64>,
    pub(super) entries: HashMap<Key, Entry>,
    /// How many of them were not there before, or not like this.
    pub(super) changed: usize,
}

impl Seen {
    /// Whether what has changed since is likely to be so little that only that is worth asking for: what is picked out
    /// costs twice as much as what is sent with all others.
    pub(super) fn is_steady(&self) -> bool {
        self.complete && self.changed * 3 < self.entries.len()
    }
}

/// What the look before is good for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before<'a>(Option<&'a Seen>);

impl<'a> Before<'a> {
    /// Nothing, if it was of another epoch.
    pub(super) fn of(before: Option<&'a Seen>, epoch: &str) -> Self {
        Self(before.filter(|before| before.epoch == epoch))
    }

    /// Whether there is nothing to compare with.
    pub(super) fn is_baseline(self) -> bool {
        self.0.is_none()
    }

    /// How long ago it was, in milliseconds.
    pub(super) fn interval_ms(self, clock: Time) -> Option<f64> {
        self.0.map(|before| clock.0.saturating_sub(before.clock.0) as f64 / 1e3)
    }

    /// Evictions since.
    pub(super) fn dealloc(self, now: Option<u64>) -> Option<u64> {
        now?.checked_sub(self.0?.dealloc?)
    }

    /// What ran since; `None` if that cannot be known.
    pub(super) fn delta(self, key: &Key, now: &Entry) -> Option<Counters> {
        let before = self.0?;
        match before.entries.get(key) {
            // 17 and later tell it: this is another entry than before, and all that it counts is new.
            Some(entry) if entry.since.zip(now.since).is_some_and(|(before, now)| before != now) => {
                Some(now.counters.clone())
            }
            // Before, only a counter that fell tells it.
            Some(entry) => Some(now.counters.since(&entry.counters).unwrap_or_else(|| now.counters.clone())),
            // It was not there, so all of it is new; unless it was there and hidden.
            None => before.complete.then(|| now.counters.clone()),
        }
    }
}

/// A statement with its delta.
pub(super) type Ranked = (Key, Option<Counters>);

/// The `limit` entries with the most time since the look before, and the sum of what the others did since.
pub(super) fn top(
    mut entries: Vec<(Key, Option<Counters>, f64)>,
    limit: usize,
    baseline: bool,
) -> (Vec<Ranked>, Option<Counters>) {
    // Of what no delta is known comes last; among equals, who ran longest since ever.
    let time = |delta: &Option<Counters>| delta.as_ref().map_or(-1.0, |delta| delta.total_exec_time);
    entries.sort_unstable_by(|(a_key, a, a_ever), (b_key, b, b_ever)| {
        time(b).total_cmp(&time(a)).then(b_ever.total_cmp(a_ever)).then(a_key.cmp(b_key))
    });
    // A sum of nothing: 0 of all that this server counts.
    let zero = entries.iter().find_map(|(_, delta, _)| delta.as_ref()).and_then(|any| any.since(any));
    let rest = entries.split_off(limit.min(entries.len()));
    let deltas = rest.iter().filter_map(|(_, delta, _)| delta.as_ref());
    let other = (!baseline).then(|| deltas.fold(zero.unwrap_or_default(), |sum, delta| sum.plus(delta)));
    (entries.into_iter().map(|(key, delta, _)| (key, delta)).collect(), other)
}

#[cfg(test)]
mod tests;

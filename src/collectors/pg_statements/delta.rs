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
pub struct Key {
    /// The role that ran it, by its oid.
    pub userid: u32,
    /// The database, by its oid.
    pub dbid: u32,
    /// What the server calls the statement.
    pub queryid: i64,
    /// Whether it was not inside of a function; `None` on 13.
    pub toplevel: Option<bool>,
}

/// One entry but for its text. What is asked of thousands at each look lies together, and the rest elsewhere: to walk over
/// all of it costs more than to reckon with it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Another one whenever anything else is another.
    pub mark: i64,
    /// Time of all runs, in milliseconds: `total_exec_time` of what it counts.
    pub ever: f64,
    /// Everything.
    pub counted: Box<Counted>,
}

/// What an entry says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// What it counts.
    pub counters: Counters,
    /// Since when it counts, where the server knows (17 and later).
    pub since: Option<Time>,
    /// Mean, shortest, longest, standard deviation.
    pub times: [Option<f64>; 4],
}

impl Entry {
    /// An entry that says this, with this mark.
    pub fn new(counted: Counted, mark: i64) -> Self {
        Self { mark, ever: counted.counters.total_exec_time, counted: Box::new(counted) }
    }
}

/// What one look saw.
#[derive(Debug)]
pub struct Seen {
    /// Counters of two looks may be compared only if this is the same.
    pub epoch: String,
    /// The server's clock.
    pub clock: Time,
    /// Whether every entry was seen.
    pub complete: bool,
    /// Evictions since the epoch began.
    pub dealloc: Option<u64>,
    /// What was seen.
    pub entries: HashMap<Key, Entry>,
    /// How many of them were not there before, or not like this.
    pub changed: usize,
}

impl Seen {
    /// Whether what has changed since is likely to be so little that only that is worth asking for: what is picked out
    /// costs twice as much as what is sent with all others.
    pub fn is_steady(&self) -> bool {
        self.complete && self.changed * 3 < self.entries.len()
    }
}

/// What the look before is good for.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a>(Option<&'a Seen>);

impl<'a> Before<'a> {
    /// Nothing, if it was of another epoch.
    pub fn of(before: Option<&'a Seen>, epoch: &str) -> Self {
        Self(before.filter(|before| before.epoch == epoch))
    }

    /// Whether there is nothing to compare with.
    pub fn is_baseline(self) -> bool {
        self.0.is_none()
    }

    /// How long ago it was, in milliseconds.
    pub fn interval_ms(self, clock: Time) -> Option<f64> {
        self.0.map(|before| clock.0.saturating_sub(before.clock.0) as f64 / 1e3)
    }

    /// Evictions since.
    pub fn dealloc(self, now: Option<u64>) -> Option<u64> {
        now?.checked_sub(self.0?.dealloc?)
    }

    /// What ran since; `None` if that cannot be known.
    pub fn delta(self, key: &Key, now: &Entry) -> Option<Counters> {
        let before = self.0?;
        let now = &*now.counted;
        match before.entries.get(key).map(|entry| &*entry.counted) {
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

/// An entry, and whether it is known to be what it was before: then its delta is nothing, which need not be found out.
pub type Listed<'a> = (&'a Key, &'a Entry, bool);

/// An entry with its delta.
pub type Ranked<'a> = (&'a Key, &'a Entry, Option<Counters>);

/// The `limit` entries with the most time since `before`, each with its delta, and the sum of what the others did since.
pub fn top<'a>(
    entries: impl Iterator<Item = Listed<'a>>,
    before: Before<'_>,
    limit: usize,
) -> (Vec<Ranked<'a>>, Option<Counters>) {
    // Deltas are large and entries may be many: they are made again where they are needed.
    let delta = |(_, (key, entry, _)): &(f64, Listed<'a>)| before.delta(key, entry);
    // Of what no delta is known comes last; among equals, who ran longest since ever.
    let found = |key, entry| before.delta(key, entry).map_or(-1.0, |delta| delta.total_exec_time);
    let time = |(key, entry, same): Listed<'a>| if same { 0.0 } else { found(key, entry) };
    let mut ranked: Vec<(f64, Listed<'a>)> = entries.map(|listed| (time(listed), listed)).collect();
    let order = |(a, (a_key, a_entry, _)): &(f64, Listed<'a>), (b, (b_key, b_entry, _)): &(f64, Listed<'a>)| {
        b.total_cmp(a).then_with(|| b_entry.ever.total_cmp(&a_entry.ever)).then_with(|| a_key.cmp(b_key))
    };
    if limit < ranked.len() {
        ranked.select_nth_unstable_by(limit, order);
    }
    let rest = ranked.split_off(limit.min(ranked.len()));
    ranked.sort_unstable_by(order);
    // A sum of nothing: 0 of all that this server counts.
    let zero = ranked.iter().chain(&rest).find_map(delta).and_then(|any| any.since(&any));
    let deltas = rest.iter().filter(|(_, (.., same))| !same).filter_map(delta);
    let other = (!before.is_baseline()).then(|| deltas.fold(zero.unwrap_or_default(), |sum, delta| sum.plus(&delta)));
    let with_delta = |(_, (key, entry, _)): (f64, Listed<'a>)| (key, entry, before.delta(key, entry));
    (ranked.into_iter().map(with_delta).collect(), other)
}

#[cfg(test)]
mod tests;

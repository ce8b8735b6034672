//! Deltas: what ran since the look before, out of counters that only the server knows the beginning of.
//!
//! An entry disappears when it is reset or evicted, and may be back, counting from 0, at the next look. What it is
//! then is never guessed upwards: a delta is at most what really ran.
//!
//! Pure.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

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

/// For so many rows there is room from the start; more make it themselves.
const ROOM: usize = 1000;

/// The `limit` entries with the most time since `before`, each with its delta, and the sum of what the others did since.
pub fn top<'a>(
    entries: impl Iterator<Item = Listed<'a>>,
    before: Before<'_>,
    limit: usize,
) -> (Vec<Ranked<'a>>, Option<Counters>) {
    // Deltas are large and entries may be many: each is made once, and kept with those that lead so far only.
    let room = limit.min(ROOM) + 1;
    let (mut leading, mut others) = (BinaryHeap::<Candidate<'a>>::with_capacity(room), None::<Counters>);
    for (key, entry, same) in entries {
        let delta = if same { None } else { before.delta(key, entry) };
        // Of what no delta is known comes last.
        let time = delta.as_ref().map_or(if same { 0.0 } else { -1.0 }, |delta| delta.total_exec_time);
        let candidate = Candidate { time, key, entry, same, delta };
        let beaten = leading.len() >= limit && leading.peek().is_none_or(|last| candidate >= *last);
        let left_out = if beaten {
            Some(candidate)
        } else {
            leading.push(candidate);
            if leading.len() > limit { leading.pop() } else { None }
        };
        if let Some(delta) = left_out.and_then(|candidate| candidate.delta) {
            others = Some(match others {
                Some(sum) => sum.plus(&delta),
                None => delta,
            });
        }
    }
    let ranked: Vec<Ranked<'a>> = leading.into_sorted_vec().into_iter().map(|found| found.ranked(before)).collect();
    // A sum of nothing: 0 of all that this server counts.
    let zero =
        || ranked.iter().find_map(|(.., delta)| delta.as_ref()).and_then(|any| any.since(any)).unwrap_or_default();
    let other = (!before.is_baseline()).then(|| others.unwrap_or_else(zero));
    (ranked, other)
}

/// An entry that may have a row: the less, the sooner.
struct Candidate<'a> {
    /// What ran since, in milliseconds.
    time: f64,
    key: &'a Key,
    entry: &'a Entry,
    same: bool,
    delta: Option<Counters>,
}

impl<'a> Candidate<'a> {
    fn ranked(self, before: Before<'_>) -> Ranked<'a> {
        (self.key, self.entry, if self.same { before.delta(self.key, self.entry) } else { self.delta })
    }
}

impl Ord for Candidate<'_> {
    /// Among equals, who ran longest since ever.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_time = other.time.total_cmp(&self.time);
        by_time.then_with(|| other.entry.ever.total_cmp(&self.entry.ever)).then_with(|| self.key.cmp(other.key))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate<'_> {}

#[cfg(test)]
mod tests;

//! Deltas: what ran since the look before, out of counters that only the server knows the beginning of.
//!
//! An entry disappears when it is reset or evicted, and may be back, counting from 0, at the next look. What it is
//! then is never guessed upwards: a delta is at most what really ran.
//!
//! Pure.

use std::{cmp::Ordering, collections::BinaryHeap};

use super::{
    counters::Counters,
    entries::{Counted, Entries, Key},
};
use crate::units::Time;

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
    pub entries: Entries,
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
    pub fn delta(self, key: &Key, now: &Counted) -> Option<Counters> {
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

/// An entry with its delta.
pub type Ranked<'a> = (&'a Key, &'a Counted, Option<Counters>);

/// For so many rows there is room from the start; more make it themselves.
const ROOM: usize = 1000;

/// The `limit` entries with the most time since `before`, each with its delta, and the sum of what the others did since.
///
/// Of what is in `read` the delta has to be found out. What is `unchanged` but for what was `read` is known to be what it
/// was before: its delta is nothing.
pub fn top<'a>(
    read: &'a Entries,
    unchanged: Option<&'a Entries>,
    before: Before<'_>,
    limit: usize,
) -> (Vec<Ranked<'a>>, Option<Counters>) {
    let mut leading = Leading { limit, before, kept: BinaryHeap::with_capacity(limit.min(ROOM) + 1), others: None };
    for (key, counted) in read.iter() {
        let delta = before.delta(key, counted);
        // Of what no delta is known comes last.
        let time = delta.as_ref().map_or(-1.0, |delta| delta.total_exec_time);
        let ever = counted.counters.total_exec_time;
        leading.take(Candidate { time, ever, key, counted, same: false }, delta);
    }
    let unchanged = unchanged.into_iter().flat_map(|entries| (0..).zip(entries.evers()).map(move |at| (entries, at)));
    // Nearly all that there is, and nearly all of it falls behind at once.
    for (entries, (place, ever)) in unchanged {
        if leading.may_have_room_for(0.0, *ever)
            && let Some((key, counted)) = entries.at(place)
            && !read.has(key)
        {
            leading.take(Candidate { time: 0.0, ever: *ever, key, counted, same: true }, None);
        }
    }
    let Leading { kept, others, .. } = leading;
    let kept = kept.into_sorted_vec().into_iter();
    let ranked: Vec<Ranked<'a>> =
        kept.map(|kept| (kept.key, kept.counted, before.delta(kept.key, kept.counted))).collect();
    // A sum of nothing: 0 of all that this server counts.
    let zero =
        || ranked.iter().find_map(|(.., delta)| delta.as_ref()).and_then(|any| any.since(any)).unwrap_or_default();
    let other = (!before.is_baseline()).then(|| others.unwrap_or_else(zero));
    (ranked, other)
}

/// Those that lead so far, and the sum of the others. Deltas are large and entries may be many, so none is kept: it is made
/// once more for who leads.
struct Leading<'a, 'b> {
    limit: usize,
    before: Before<'b>,
    kept: BinaryHeap<Candidate<'a>>,
    others: Option<Counters>,
}

impl<'a> Leading<'a, '_> {
    /// False if one with these times is behind all that are kept, whatever its key.
    fn may_have_room_for(&self, time: f64, ever: f64) -> bool {
        let last = self.kept.peek().filter(|_| self.kept.len() >= self.limit);
        last.map_or(self.limit > 0, |last| first((time, ever), (last.time, last.ever)).is_le())
    }

    fn take(&mut self, candidate: Candidate<'a>, delta: Option<Counters>) {
        let beaten = self.kept.len() >= self.limit && self.kept.peek().is_none_or(|last| candidate >= *last);
        let left_out = if beaten {
            delta
        } else {
            self.kept.push(candidate);
            let last = if self.kept.len() > self.limit { self.kept.pop() } else { None };
            last.filter(|last| !last.same).and_then(|last| self.before.delta(last.key, last.counted))
        };
        if let Some(delta) = left_out {
            self.others = Some(match self.others.take() {
                Some(sum) => sum.plus(&delta),
                None => delta,
            });
        }
    }
}

/// An entry that may have a row: the less, the sooner.
struct Candidate<'a> {
    /// What ran since, in milliseconds.
    time: f64,
    /// What ran ever, in milliseconds.
    ever: f64,
    key: &'a Key,
    counted: &'a Counted,
    same: bool,
}

/// Who comes first: who ran longest since, and among equals, who ran longest since ever.
fn first((time, ever): (f64, f64), (other_time, other_ever): (f64, f64)) -> Ordering {
    other_time.total_cmp(&time).then_with(|| other_ever.total_cmp(&ever))
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        first((self.time, self.ever), (other.time, other.ever)).then_with(|| self.key.cmp(other.key))
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

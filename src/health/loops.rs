//! Loops: which parts are at work on something, and since when. A part that waits for work is well; one that works on a
//! single thing for longer than that can take is stuck, be it behind a disk that hangs or a mistake of ours.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A loop that works on one thing for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The part.
    pub part: &'static str,
    /// For so long by now.
    pub time: Duration,
}

/// What a loop works on: since when, and how long that may take.
#[derive(Debug, Clone, Copy)]
struct Work {
    since: Instant,
    limit: Duration,
}

/// All loops that ever worked. Each part has one name, and works on one thing at a time.
#[derive(Debug, Default)]
pub struct Loops(Mutex<BTreeMap<&'static str, Option<Work>>>);

/// A loop works until this is dropped.
#[derive(Debug)]
pub struct AtWork<'a> {
    loops: &'a Loops,
    part: &'static str,
}

impl Loops {
    /// The loop of `part` turns: it is at work until the guard goes, and well for so long as that takes `limit` at the most.
    #[must_use = "the work is over when the guard is dropped"]
    pub fn at_work(&self, part: &'static str, limit: Duration) -> AtWork<'_> {
        self.map().insert(part, Some(Work { since: Instant::now(), limit }));
        AtWork { loops: self, part }
    }

    /// Each loop, and for how long it works on what it works on: zero if it waits for work.
    pub fn busy(&self) -> Vec<(&'static str, Duration)> {
        self.map()
            .iter()
            .map(|(part, work)| (*part, work.map_or(Duration::ZERO, |work| work.since.elapsed())))
            .collect()
    }

    /// The loops that do not turn any more.
    pub fn stuck(&self) -> Vec<Stuck> {
        self.stuck_at(Instant::now())
    }

    fn stuck_at(&self, now: Instant) -> Vec<Stuck> {
        let stuck = |(part, work): (&&'static str, &Option<Work>)| {
            let work = (*work)?;
            let time = now.saturating_duration_since(work.since);
            (time > work.limit).then_some(Stuck { part, time })
        };
        self.map().iter().filter_map(stuck).collect()
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<Work>>> {
        // Whole at any moment: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.loops.map().insert(self.part, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_stuck_when_one_thing_takes_too_long_and_never_while_it_waits() {
        let (loops, limit) = (Loops::default(), Duration::from_secs(30));
        assert_eq!(loops.stuck(), []);
        let later = Instant::now() + Duration::from_secs(3600);
        let work = loops.at_work("intake", limit);
        assert_eq!(loops.stuck(), [], "it has just begun");
        let stuck = loops.stuck_at(later);
        assert_eq!((stuck.len(), stuck[0].part), (1, "intake"));
        assert!(stuck[0].time > limit);
        drop(work);
        assert_eq!(loops.stuck_at(later), [], "it waits for work");
        assert_eq!(loops.busy(), [("intake", Duration::ZERO)]);
    }
}

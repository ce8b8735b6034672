//! The ledger: what must still be told in a status: losses, and up to where earlier runs went. Pure.
//!
//! Everything is told in every status from the first one that holds it until one is confirmed. So a confirmed status
//! has told all that was first told in it or before it, and only the number of that first status need be kept.

use std::collections::VecDeque;

use super::mark::Loss;

/// Losses that one status tells at the most; the rest follows in the next one.
pub const TOLD_AT_ONCE: usize = 256;

/// Things to be told, in the order in which they came up.
#[derive(Debug)]
pub struct Ledger<T> {
    entries: VecDeque<(T, Option<u64>)>,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<T> Ledger<T> {
    /// What the next status tells: at most `most`, the oldest first.
    pub fn next(&self, most: usize) -> impl Iterator<Item = &T> {
        self.entries.iter().take(most).map(|(entry, _)| entry)
    }

    /// Status `seq` of this run was numbered and tells what [`Ledger::next`] gave.
    pub fn told(&mut self, seq: u64, most: usize) {
        for (_, first_told) in self.entries.iter_mut().take(most) {
            first_told.get_or_insert(seq);
        }
    }

    /// Status `seq` of this run was confirmed and not returned: what it told is done with.
    pub fn confirmed(&mut self, seq: u64) -> Vec<T> {
        let done =
            self.entries.iter().take_while(|(_, first_told)| first_told.is_some_and(|first| first <= seq)).count();
        self.entries.drain(..done).map(|(entry, _)| entry).collect()
    }

    /// Everything that is not yet done with.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(entry, _)| entry)
    }

    /// Takes an entry in.
    pub fn push(&mut self, entry: T) {
        self.entries.push_back((entry, None));
    }
}

impl Ledger<Loss> {
    /// Takes a loss in. One that follows the last one and has not been told yet makes that one longer.
    pub fn lose(&mut self, loss: Loss) {
        let same = |last: &Loss| {
            (last.run_id, &last.collector, last.reason) == (loss.run_id, &loss.collector, loss.reason)
                && last.last.is_some_and(|end| end + 1 == loss.first)
        };
        match self.entries.iter_mut().rev().take(8).find(|(last, told)| told.is_none() && same(last)) {
            Some((last, _)) => {
                last.last = loss.last;
                last.events = last.events.zip(loss.events).map(|(one, other)| one + other);
            }
            None => self.push(loss),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::status::Reason;

    fn loss(first: u64, last: u64) -> Loss {
        Loss {
            run_id: Uuid::nil(),
            collector: "pg_locks".into(),
            first,
            last: Some(last),
            events: Some(1),
            reason: Reason::Evicted,
        }
    }

    fn told(ledger: &Ledger<Loss>) -> Vec<(u64, Option<u64>)> {
        ledger.next(2).map(|loss| (loss.first, loss.last)).collect()
    }

    #[test]
    fn a_loss_is_told_until_a_status_that_holds_it_is_confirmed() {
        let mut ledger = Ledger::default();
        ledger.lose(loss(1, 2));
        ledger.lose(loss(3, 4));
        assert_eq!(told(&ledger), [(1, Some(4))], "neighbours are one range");
        ledger.told(1, 2);
        ledger.lose(loss(5, 5));
        assert_eq!(told(&ledger), [(1, Some(4)), (5, Some(5))], "what was told does not grow");
        ledger.told(2, 2);
        ledger.lose(loss(9, 9));
        assert_eq!(told(&ledger), [(1, Some(4)), (5, Some(5))], "only so many at once");
        ledger.told(3, 2);
        assert_eq!(ledger.confirmed(1).len(), 1, "the first status held the first only");
        assert_eq!(told(&ledger), [(5, Some(5)), (9, Some(9))]);
        ledger.told(4, 2);
        assert_eq!(ledger.confirmed(3).len(), 1);
        assert_eq!(ledger.confirmed(4).len(), 1);
        assert_eq!(told(&ledger), []);
    }
}

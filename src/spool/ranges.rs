//! Sets of sequence numbers, kept as ranges. Pure.
//!
//! What is settled of a run is nearly always one range from 1 on; two lanes and several outages make a few more.

use std::collections::BTreeMap;

/// A set of numbers as ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds `first` to `last`, both included. Does nothing where `first` is above `last`.
    pub fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        // Nearly always it is what follows the last range.
        if let Some(mut newest) = self.0.last_entry()
            && (*newest.key()..=newest.get().saturating_add(1)).contains(&first)
        {
            let end = newest.get_mut();
            *end = last.max(*end);
            return;
        }
        let (mut first, mut last) = (first, last);
        // Everything that overlaps or touches becomes part of the new range.
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            first = first.min(start);
            last = last.max(end);
            self.0.remove(&start);
        }
        self.0.insert(first, last);
    }

    /// Whether `number` is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.covers(number, number)
    }

    /// Whether all of `first` to `last` is in the set; true where `first` is above `last`.
    pub fn covers(&self, first: u64, last: u64) -> bool {
        first > last || self.0.range(..=first).next_back().is_some_and(|(_, &end)| end >= last)
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(&first, &last)| (first, last))
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// What of `first` to `last` is in the set, lowest first.
    pub fn within(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let overlap = |(start, end): (u64, u64)| (start.max(first), end.min(last));
        self.iter().map(overlap).filter(|(first, last)| first <= last).collect()
    }

    /// What of `first` to `last` is not in the set, lowest first.
    pub fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut next = first;
        // The range that `first` lies in may begin before it.
        let from = self.0.range(..=first).next_back().map_or(first, |(&start, _)| start);
        for (&start, &end) in self.0.range(from..).take_while(|(start, _)| **start <= last) {
            if start > next {
                missing.push((next, start - 1));
            }
            next = next.max(end.saturating_add(1));
        }
        if next <= last {
            missing.push((next, last));
        }
        missing
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut set = Self::default();
        for (first, last) in ranges {
            set.insert(first, last);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set(inserts in prop::collection::vec((1u64..60, 0u64..8), 0..30), from in 1u64..60, to in 1u64..70) {
            let ranges: Ranges = inserts.iter().map(|(first, more)| (*first, first + more)).collect();
            let plain: BTreeSet<u64> = inserts.iter().flat_map(|(first, more)| *first..=first + more).collect();
            prop_assert_eq!(ranges.iter().flat_map(|(first, last)| first..=last).collect::<BTreeSet<_>>(), plain.clone());
            prop_assert_eq!(ranges.count(), plain.len() as u64);
            prop_assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|((_, end), (start, _))| end + 1 < start));
            prop_assert_eq!(ranges.covers(from, to), (from..=to).all(|number| plain.contains(&number)));
            let missing: Vec<u64> = ranges.missing(from, to).into_iter().flat_map(|(first, last)| first..=last).collect();
            let within: Vec<u64> = ranges.within(from, to).into_iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(within, (from..=to).filter(|number| plain.contains(number)).collect::<Vec<_>>());
            prop_assert_eq!(missing, (from..=to).filter(|number| !plain.contains(number)).collect::<Vec<_>>());
        }
    }
}

//! Entries: what is known of each statement, laid out for what each look asks of all of them.
//!
//! Of thousands of entries a look wants the marks, and which ones ran longest. Each of these lies side by side with its
//! like and apart from all else: what lies scattered over the rest brings the rest along into the caches, at each look anew
//! (where callgrind counted two fifths of the lines that a cycle read from memory).

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
};

use super::counters::Counters;
use crate::units::Time;

/// What makes an entry. On 13 nothing tells top level statements from nested ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

impl Hash for Key {
    /// In one number: the statement's id is a hash by itself, and most of what looking for an entry takes is hashing its key.
    /// Whether it is `toplevel` is left to `==`.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let place = u64::from(self.userid) << 32 | u64::from(self.dbid);
        state.write_u64(self.queryid.cast_unsigned() ^ place);
    }
}

/// What an entry says, but for its text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// What it counts.
    pub counters: Counters,
    /// Since when it counts, where the server knows (17 and later).
    pub since: Option<Time>,
    /// Mean, shortest, longest, standard deviation.
    pub times: [Option<f64>; 4],
}

/// Entries by what makes them.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    places: HashMap<Key, usize>,
    marks: Vec<i64>,
    evers: Vec<f64>,
    all: Vec<(Key, Box<Counted>)>,
}

impl Entries {
    /// None yet, and room for so many.
    pub fn with_capacity(entries: usize) -> Self {
        Self {
            places: HashMap::with_capacity(entries),
            marks: Vec::with_capacity(entries),
            evers: Vec::with_capacity(entries),
            all: Vec::with_capacity(entries),
        }
    }

    /// Puts one in, in the place of the one with the same key. The mark is another one whenever anything
    /// that is counted is another.
    pub fn insert(&mut self, key: Key, mark: i64, counted: Counted) {
        self.put(key, mark, Box::new(counted));
    }

    /// Puts all of those in.
    pub fn extend(&mut self, others: Self) {
        others.all.into_iter().zip(others.marks).for_each(|((key, counted), mark)| self.put(key, mark, counted));
    }

    fn put(&mut self, key: Key, mark: i64, counted: Box<Counted>) {
        let ever = counted.counters.total_exec_time;
        let place = *self.places.entry(key).or_insert(self.all.len());
        if let (Some(mark_before), Some(ever_before), Some(before)) =
            (self.marks.get_mut(place), self.evers.get_mut(place), self.all.get_mut(place))
        {
            (*mark_before, *ever_before, *before) = (mark, ever, (key, counted));
        } else {
            self.marks.push(mark);
            self.evers.push(ever);
            self.all.push((key, counted));
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What one says.
    pub fn get(&self, key: &Key) -> Option<&Counted> {
        self.all.get(*self.places.get(key)?).map(|(_, counted)| &**counted)
    }

    /// The mark of one.
    pub fn mark(&self, key: &Key) -> Option<i64> {
        self.marks.get(*self.places.get(key)?).copied()
    }

    /// Whether there is such a one.
    pub fn has(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    /// Each one, in an order that stays.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Counted)> {
        self.all.iter().map(|(key, counted)| (key, &**counted))
    }

    /// The marks of all, in this order.
    pub fn marks(&self) -> &[i64] {
        &self.marks
    }

    /// Time of all runs of each one, in milliseconds, in this order: `total_exec_time` of what it counts.
    pub fn evers(&self) -> &[f64] {
        &self.evers
    }

    /// The one at a place in this order.
    pub fn at(&self, place: usize) -> Option<(&Key, &Counted)> {
        self.all.get(place).map(|(key, counted)| (key, &**counted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(queryid: i64) -> Key {
        Key { userid: 10, dbid: 5, queryid, toplevel: None }
    }

    fn ran(total_exec_time: f64) -> Counted {
        Counted { counters: Counters { total_exec_time, ..Counters::default() }, ..Counted::default() }
    }

    #[test]
    fn what_is_put_in_again_stands_in_the_place_of_what_it_was() {
        let mut entries = Entries::with_capacity(2);
        entries.insert(key(1), 11, ran(1.0));
        entries.insert(key(2), 12, ran(2.0));
        let mut others = Entries::default();
        others.insert(key(3), 13, ran(3.0));
        others.insert(key(1), 14, ran(4.0));
        entries.extend(others);
        assert_eq!((entries.len(), entries.is_empty()), (3, false));
        assert_eq!((entries.marks(), entries.evers()), (&[14, 12, 13][..], &[4.0, 2.0, 3.0][..]));
        for (place, (id, mark, ever)) in [(1, 14, 4.0), (2, 12, 2.0), (3, 13, 3.0)].into_iter().enumerate() {
            assert_eq!((entries.mark(&key(id)), entries.get(&key(id))), (Some(mark), Some(&ran(ever))));
            assert_eq!(entries.at(place), Some((&key(id), &ran(ever))));
        }
        assert_eq!(entries.iter().map(|(key, _)| key.queryid).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((entries.has(&key(4)), entries.get(&key(4)), entries.at(3)), (false, None, None));
    }
}

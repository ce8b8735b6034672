//! Rescue: records of a file that may never reach the disk go into another one.
//!
//! After a failed sync the kernel may take the file's pages for written: syncing it again would prove nothing. And a file
//! that somebody took away is gone when the agent is. In both cases everything can still be read through the open file.

use std::io;

use super::{Cursor, Key, Log, Place, Segment, key};
use crate::{event::status::Reason, spool::segment::Copy};

impl Log {
    /// A file is not trusted any more; what comes goes into a new one.
    pub fn distrust(&mut self, segment: Key) {
        if let Some(found) = self.segments.iter_mut().find(|found| key(found) == segment) {
            found.suspect = true;
        }
        if self.segments.back().is_some_and(|open| key(open) == segment) {
            self.roll();
        }
    }

    /// Looks for files that somebody took away: what of them is open is distrusted, the rest is missing. True where there
    /// are some.
    pub fn miss(&mut self) -> bool {
        let gone = |segment: &&Segment| !segment.suspect && !segment.is_there();
        let (open, closed): (Vec<_>, Vec<_>) = self.segments.iter().filter(gone).partition(|segment| segment.is_open());
        let open: Vec<Key> = open.into_iter().map(key).collect();
        let closed: Vec<(Key, u64, u64)> =
            closed.into_iter().map(|segment| (key(segment), segment.lowest, segment.last)).collect();
        for segment in &open {
            self.distrust(*segment);
        }
        for ((run, _), lowest, last) in &closed {
            self.lose_range(*run, *lowest, *last, Reason::Missing);
        }
        // One without a record holds nothing that could be copied.
        self.segments.retain(|segment| !(segment.suspect && segment.is_empty()));
        self.segments.retain(|segment| closed.iter().all(|(gone, ..)| *gone != key(segment)));
        self.count_bytes();
        !open.is_empty() || !closed.is_empty()
    }

    /// Whether a file is to be rescued.
    pub fn has_suspects(&self) -> bool {
        self.segments.iter().any(|segment| segment.suspect)
    }

    /// Copies what waits in files that are not trusted; to be synced, and then to [replace](Self::replace) them.
    pub fn copies(&self) -> Vec<(Key, io::Result<Copy>)> {
        let copy = |segment: &Segment| {
            let run = self.runs.get(&segment.owner.run);
            let waits = |seq| run.is_some_and(|run| !run.settled.contains(seq));
            self.host.make_folder(&self.folder).and_then(|()| segment.copy(waits))
        };
        self.segments.iter().filter(|segment| segment.suspect).map(|segment| (key(segment), copy(segment))).collect()
    }

    /// Puts a synced copy in the place of its original. The folder is to be synced then.
    ///
    /// # Errors
    /// Why not; everything is as before.
    pub fn replace(&mut self, original: Key, copy: Copy) -> io::Result<()> {
        let Some(index) = self.segments.iter().position(|segment| key(segment) == original) else {
            // Settled or evicted meanwhile.
            return copy.discard();
        };
        let (mut segment, places, copied) = copy.replace()?;
        let fresh = self.fresh.iter_mut().map(|(_, _, place)| place);
        let held = self.out.values_mut().chain(self.again.values_mut()).map(|held| &mut held.place);
        for place in fresh.chain(held) {
            if let Place::Disk { segment, at } = place
                && *segment == original
                && let Some(new) = places.get(at)
            {
                *at = *new;
            }
        }
        if let Some(Cursor { at, .. }) = self.cursor.as_mut().filter(|cursor| cursor.segment == original) {
            *at = places.range(*at..).next().map_or(segment.end, |(_, new)| *new);
        }
        let Some(old) = self.segments.get_mut(index) else { return Ok(()) };
        segment.damaged = old.damaged;
        let old = std::mem::replace(old, segment);
        self.count_bytes();
        // What could not be read of the original, nobody will come across in the copy.
        let mut known = self.out_of_files_reach(old.owner.run);
        copied.iter().for_each(|(first, last)| known.insert(first, last));
        for (first, last) in known.missing(old.lowest, old.last) {
            self.lose_run(old.owner.run, first, last, Reason::Damaged, None);
        }
        Ok(())
    }
}

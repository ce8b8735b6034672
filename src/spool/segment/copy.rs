//! A copy of a segment in a file of its own, that takes the original's name when it is on disk.

use std::{collections::BTreeMap, io, path::PathBuf};

use super::{Segment, Step, Unsynced, View, begin};
use crate::spool::{header::HEADER, ranges::Ranges};

/// What a copy is called until it takes its original's name.
pub const DRAFT: &str = "seg.new";

/// A segment's records in a new file that does not have its name yet.
#[derive(Debug)]
pub struct Copy {
    segment: Segment,
    places: BTreeMap<u64, u64>,
    copied: Ranges,
    draft: PathBuf,
}

impl Copy {
    /// Sees to it that it survives a power cut.
    pub fn sync(&self) -> io::Result<()> {
        self.segment.file()?.sync()
    }

    /// Gives it the original's name, and tells where records lie (from their place in the original to that in the copy)
    /// and which they are. Only after it was synced.
    pub fn replace(self) -> io::Result<(Segment, BTreeMap<u64, u64>, Ranges)> {
        self.segment.host.rename(&self.draft, self.segment.path())?;
        Ok((self.segment, self.places, self.copied))
    }

    /// Takes it away: nobody needs it any more.
    pub fn discard(self) -> io::Result<()> {
        self.segment.host.remove(&self.draft)
    }
}

impl Segment {
    /// Copies the records whose `seq` is to be kept into a file of its own beside this one, not yet synced.
    ///
    /// # Errors
    /// Why it could not be read or written.
    pub fn copy(&self, keep: impl Fn(u64) -> bool) -> io::Result<Copy> {
        let draft = self.path.with_extension(DRAFT);
        // Never the file of an earlier try: its sync may have failed.
        let _none_yet = self.host.remove(&draft);
        let file = begin(&*self.host, &draft, &self.owner, self.first)?;
        let mut segment =
            Self::over(std::sync::Arc::clone(&self.host), self.path.clone(), file, self.owner.clone(), self.first);
        let (mut places, mut copied) = (BTreeMap::new(), Ranges::default());
        let (mut at, mut after, mut view) = (HEADER, self.first.saturating_sub(1), View::reading_on());
        loop {
            match self.step(&mut view, at, after)? {
                Step::Record(head, next) => {
                    if keep(head.seq) {
                        places.insert(at, segment.append(&head, view.payload())?);
                        copied.insert(head.seq, head.seq);
                    }
                    (at, after) = (next, head.seq);
                }
                Step::Damaged(next) => at = next,
                Step::End => break,
            }
        }
        segment.last = self.last;
        segment.foot()?;
        segment.unsynced = Unsynced::Nothing;
        Ok(Copy { segment, places, copied, draft })
    }
}

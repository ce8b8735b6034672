//! Reading what waits: what came back first, then what lies behind the cursor. Damage on the way is declared.

use std::{collections::VecDeque, io, sync::Arc};

use super::{Cursor, Held, Id, Log, Place, Taken, key, start};
use crate::{
    event::{batch::Batch, status::Reason},
    spool::{
        header::{HEADER, Owner},
        record::Head,
        segment::{Segment, Step, View},
    },
    units::Time,
};

impl Log {
    /// The next message that came back or waited on disk, oldest first. Damage on the way is declared.
    pub fn take_waiting(&mut self) -> Option<Taken> {
        while let Some((id, held)) = self.again.pop_first() {
            if self.is_settled_id(id) {
                self.forget_memory(&held.place);
                continue;
            }
            match self.read(id, &held.place) {
                Ok(Some(batch)) => {
                    self.out.insert(id, held);
                    return Some(Taken { id, batch, replayed: true });
                }
                Ok(None) => _ = self.lose(id, Reason::Damaged, None),
                Err(error) => {
                    self.again.insert(id, held);
                    return self.cannot_read(&error);
                }
            }
        }
        match self.walk() {
            Ok(taken) => taken,
            Err(error) => self.cannot_read(&error),
        }
    }

    /// The disk does not answer for now: that is no loss, and it is tried again.
    fn cannot_read<T>(&mut self, error: &io::Error) -> Option<T> {
        self.unreadable = Some(error.to_string());
        None
    }

    /// Whether something came back or waits on disk.
    pub fn has_waiting(&self) -> bool {
        let held = self.fresh.len() + self.out.len();
        !self.again.is_empty() || self.messages() > held as u64
    }

    /// Reads a record again.
    fn read(&mut self, id: Id, place: &Place) -> io::Result<Option<Arc<Batch>>> {
        let (segment, at) = match place {
            Place::Memory(batch) => return Ok(Some(Arc::clone(batch))),
            Place::Disk { segment, at } => (segment, *at),
        };
        let Some(segment) = self.segments.iter_mut().find(|candidate| key(candidate) == *segment) else {
            return Ok(None);
        };
        let mut view = View::default();
        let step = segment.step(&mut view, at, id.seq.saturating_sub(1))?;
        if self.cursor.is_none_or(|cursor| cursor.segment != key(segment)) {
            segment.close();
        }
        self.unreadable = None;
        match step {
            Step::Record(head, _) if head.seq == id.seq => Ok(Some(Arc::new(batch(&segment.owner, &head, view)))),
            _ => {
                segment.damaged = true;
                Ok(None)
            }
        }
    }

    /// Moves the cursor to the next message that nobody has.
    fn walk(&mut self) -> io::Result<Option<Taken>> {
        loop {
            let Some(cursor) = self.cursor else { return Ok(None) };
            let index = self.segments.iter().position(|segment| key(segment) >= cursor.segment);
            let Some((index, segment)) = index.and_then(|index| Some((index, self.segments.get(index)?))) else {
                return Ok(None);
            };
            // Its segment may be gone by now.
            let cursor = if key(segment) == cursor.segment { cursor } else { start(segment) };
            let (run, owner) = (segment.owner.run, segment.owner.clone());
            let mut view = View::default();
            let step = segment.step(&mut view, cursor.at, cursor.after)?;
            self.unreadable = None;
            match step {
                Step::Record(head, next) => {
                    let id = Id { run, seq: head.seq };
                    self.cursor = Some(Cursor { at: next, after: head.seq, ..cursor });
                    if self.is_free(id) {
                        let place = Place::Disk { segment: cursor.segment, at: cursor.at };
                        self.out.insert(id, Held { place, time: head.time });
                        return Ok(Some(Taken { id, batch: Arc::new(batch(&owner, &head, view)), replayed: true }));
                    }
                }
                Step::Damaged(next) => {
                    let until = segment.step(&mut view, next, cursor.after)?;
                    let last = match until {
                        Step::Record(head, ..) => head.seq - 1,
                        _ => segment.last,
                    };
                    self.cursor = Some(Cursor { at: next, after: last.max(cursor.after), ..cursor });
                    let first = cursor.after.max(segment_floor(&self.segments, index)) + 1;
                    self.damaged(index, run, first, last);
                }
                Step::End => {
                    segment.close();
                    let last = segment.last;
                    let more = self.segments.get(index + 1).map(start);
                    let torn = cursor.at < segment.end && !segment.is_empty();
                    if torn {
                        self.damaged(index, run, cursor.after + 1, last);
                    }
                    match more {
                        Some(next) => self.cursor = Some(next),
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// Damage was found: what of a range waits is declared, and the file is kept for whoever wants to look at it.
    fn damaged(&mut self, index: usize, run: u64, first: u64, last: u64) {
        if let Some(segment) = self.segments.get_mut(index) {
            segment.damaged = true;
        }
        self.lose_range(run, first, last, Reason::Damaged);
    }

    /// Numbered, not settled, and in nobody's hands.
    fn is_free(&self, id: Id) -> bool {
        let fresh = self.fresh.front().is_some_and(|(first, ..)| *first <= id)
            && self.fresh.binary_search_by_key(&id, |(id, ..)| *id).is_ok();
        !fresh && !self.out.contains_key(&id) && !self.again.contains_key(&id) && !self.is_settled_id(id)
    }

    /// When the next message at the cursor was numbered. Settled ones before it may make it look older than it is.
    pub(super) fn waiting_since(&self) -> Option<Time> {
        let cursor = self.cursor?;
        let segment = self.segments.iter().find(|segment| key(segment) >= cursor.segment)?;
        let at = if key(segment) == cursor.segment { cursor.at } else { HEADER };
        segment.peek(at).ok().flatten().map(|head| head.time)
    }
}

/// Below which `seq` a segment has never had a record.
fn segment_floor(segments: &VecDeque<Segment>, index: usize) -> u64 {
    segments.get(index).map_or(0, |segment| segment.lowest.saturating_sub(1))
}

fn batch(owner: &Owner, head: &Head, view: View) -> Batch {
    Batch {
        agent: owner.agent,
        run_id: owner.run_id,
        collector: Arc::clone(&owner.collector),
        seq: head.seq,
        time: head.time,
        events: head.events,
        version: head.version,
        zstd: head.zstd,
        body: view.into_payload(),
    }
}

//! Settling: what is acked or declared, and what follows for the files.

use std::io;

use super::{Held, Id, Log, Place, Settled, key};
use crate::{
    event::status::Reason,
    spool::{header::HEADER, mark::Loss, ranges::Ranges, segment::Tail},
};

impl Log {
    /// The broker confirmed it and did not return it.
    pub fn ack(&mut self, id: Id) -> Settled {
        self.settle(id.run, id.seq, id.seq);
        self.state()
    }

    /// It will not be delivered.
    pub fn lose(&mut self, id: Id, reason: Reason, events: Option<u64>) -> Settled {
        self.lose_run(id.run, id.seq, id.seq, reason, events);
        self.state()
    }

    pub(super) fn state(&mut self) -> Settled {
        self.bury();
        if !self.is_settled() {
            return Settled::Partly;
        }
        self.unsynced.forget();
        Settled::Wholly
    }

    pub(super) fn settle(&mut self, run: u64, first: u64, last: u64) {
        if let Some(run) = self.runs.get_mut(&run) {
            run.settled.insert(first, last);
        }
        for set in [&mut self.out, &mut self.again] {
            let ids: Vec<Id> = set.range(Id { run, seq: first }..=Id { run, seq: last }).map(|(id, _)| *id).collect();
            for id in ids {
                if let Some(Held { place: Place::Memory(batch), .. }) = set.remove(&id) {
                    self.memory_bytes = self.memory_bytes.saturating_sub(batch.body.len());
                }
            }
        }
    }

    pub(super) fn forget_memory(&mut self, place: &Place) {
        if let Place::Memory(batch) = place {
            self.memory_bytes = self.memory_bytes.saturating_sub(batch.body.len());
        }
    }

    /// Declares what of a range is not settled.
    pub fn lose_range(&mut self, run: u64, first: u64, last: u64, reason: Reason) {
        let last = last.min(self.runs.get(&run).map_or(0, |log| log.given));
        for (first, last) in self.out_of_files_reach(run).missing(first, last) {
            self.lose_run(run, first, last, reason, None);
        }
    }

    /// What of a run is settled, or in memory only: what happens to a file concerns the rest.
    pub(super) fn out_of_files_reach(&self, run: u64) -> Ranges {
        let mut known = self.runs.get(&run).map(|log| log.settled.clone()).unwrap_or_default();
        self.in_memory(run).for_each(|seq| known.insert(seq, seq));
        known
    }

    pub(super) fn lose_run(&mut self, run: u64, first: u64, last: u64, reason: Reason, events: Option<u64>) {
        let Some(run_id) = self.runs.get(&run).map(|log| log.id) else { return };
        self.losses.push(Loss {
            run_id,
            collector: self.owner.collector.to_string(),
            first,
            last: Some(last),
            events,
            reason,
        });
        self.settle(run, first, last);
    }

    /// Drops the oldest segment and declares what of it waited. False where there is none.
    pub fn evict(&mut self, reason: Reason) -> bool {
        let Some(segment) = self.segments.pop_front() else { return false };
        self.count_bytes();
        let (run, lowest, last) = (segment.owner.run, segment.lowest, segment.last);
        let waiting = self.out_of_files_reach(run).missing(lowest, last);
        // Whole segments are the usual case, and then the number of events is known.
        let events = (waiting == [(lowest, last)]).then_some(segment.events);
        self.fresh.retain(|(id, batch, place)| {
            let in_file = matches!(place, Place::Disk { .. });
            let gone = in_file && id.run == run && (lowest..=last).contains(&id.seq);
            if gone {
                self.fresh_bytes -= batch.body.len();
            }
            !gone
        });
        for (first, last) in waiting {
            self.lose_run(run, first, last, reason, events);
        }
        self.dead.push(segment);
        self.bury();
        true
    }

    /// Sets settled segments aside, oldest first; the open one stays.
    pub(super) fn bury(&mut self) {
        while let Some(oldest) = self.segments.front() {
            let open = self.segments.len() == 1 && oldest.owner.run == self.owner.run && oldest.tail == Tail::Open;
            let run = self.runs.get(&oldest.owner.run);
            let settled = oldest.is_empty() || run.is_none_or(|run| run.settled.covers(oldest.lowest, oldest.last));
            if open || !settled {
                break;
            }
            self.dead.extend(self.segments.pop_front());
            self.count_bytes();
        }
    }

    /// Cuts the open segment back to its header. Only after the mark was written, and only if all is settled.
    pub fn cut_back(&mut self) -> io::Result<()> {
        let Some(open) = self.segments.back_mut().filter(|open| !open.is_empty()) else { return Ok(()) };
        open.cut_back()?;
        let key = key(open);
        if let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.segment == key) {
            cursor.at = HEADER;
        }
        Ok(())
    }
}

//! One collector's log: its segments, what of them is settled, and in whose hands the rest is.
//!
//! A message that is numbered and not settled is in exactly one of four places: `fresh` (in memory, to be published for
//! the first time), `out` (in the publisher's hands), `again` (came back, to be read again), or on disk behind the
//! `cursor`. Settled means acked or declared lost.
//!
//! The log decides nothing about time, space or the network; it is told. What it finds damaged it declares in `losses`.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    mark::{LogMark, Loss},
    ranges::Ranges,
    record::Head,
    segment::{HEADER, Owner, Segment, Step},
};
use crate::{
    event::{
        batch::Batch,
        status::{Lost, Reason, Waiting},
    },
    units::Time,
};

/// A message's place among all messages of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Counter of its run.
    pub run: u64,
    /// Its number.
    pub seq: u64,
}

/// A message for the publisher.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its place in the log.
    pub id: Id,
    /// The message.
    pub batch: Arc<Batch>,
    /// Whether it was published before or waited on disk.
    pub replayed: bool,
}

/// A segment's key: run counter and first `seq`, as in its name.
type Key = (u64, u64);

/// Where a message's record can be read again.
#[derive(Debug, Clone)]
enum Place {
    Disk {
        segment: Key,
        at: u64,
    },
    /// It could not be written.
    Memory(Arc<Batch>),
}

#[derive(Debug, Clone)]
struct Held {
    place: Place,
    time: Time,
}

/// How far one run is in this log.
#[derive(Debug, Clone)]
pub struct RunLog {
    /// The run's id.
    pub id: Uuid,
    /// The last `seq` given out.
    pub given: u64,
    /// Acked or declared.
    pub settled: Ranges,
}

impl RunLog {
    /// Numbered, and neither acked nor declared.
    pub fn unsettled(&self) -> Vec<(u64, u64)> {
        self.settled.missing(1, self.given)
    }

    /// For the mark file.
    pub fn mark(&self) -> LogMark {
        LogMark { given: self.given, settled: self.settled.iter().collect() }
    }
}

#[derive(Debug, Clone, Copy)]
struct Cursor {
    segment: Key,
    at: u64,
    after: u64,
}

/// One collector's log.
#[derive(Debug)]
pub struct Log {
    /// The current run's records of this collector.
    owner: Owner,
    folder: PathBuf,
    segments: VecDeque<Segment>,
    /// By run counter; the current run among them.
    pub runs: BTreeMap<u64, RunLog>,
    fresh: VecDeque<(Id, Arc<Batch>, Place)>,
    fresh_bytes: usize,
    memory_bytes: usize,
    out: BTreeMap<Id, Held>,
    again: BTreeMap<Id, Held>,
    cursor: Option<Cursor>,
    /// Segments that are settled and whose files may go once the mark is synced.
    pub dead: Vec<Segment>,
    /// What was found damaged since somebody last asked.
    pub losses: Vec<Loss>,
    /// No queue wants what is in it, as far as the publisher knows.
    pub unwanted: bool,
}

/// What is left to do after something was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Something else still waits.
    Partly,
    /// Nothing waits: the open segment can be cut back once the mark is written.
    Wholly,
}

impl Log {
    /// A log over the segments that were found, sorted by run and first `seq`.
    pub fn new(owner: Owner, folder: PathBuf, segments: Vec<Segment>, mut runs: BTreeMap<u64, RunLog>) -> Self {
        runs.entry(owner.run).or_insert_with(|| RunLog { id: owner.run_id, given: 0, settled: Ranges::default() });
        let cursor = segments.first().map(|segment| Cursor { segment: key(segment), at: HEADER, after: 0 });
        let mut log = Self {
            owner,
            folder,
            segments: segments.into(),
            runs,
            fresh: VecDeque::new(),
            fresh_bytes: 0,
            memory_bytes: 0,
            out: BTreeMap::new(),
            again: BTreeMap::new(),
            cursor,
            dead: Vec::new(),
            losses: Vec::new(),
            unwanted: false,
        };
        log.bury();
        log
    }

    /// The last `seq` that the current run gave out.
    pub fn given(&self) -> u64 {
        self.runs.get(&self.owner.run).map_or(0, |run| run.given)
    }

    /// Bytes of the segments, the dead ones left out.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// Bytes of messages that are in memory only.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Messages that are numbered and not settled.
    pub fn messages(&self) -> u64 {
        self.runs.values().map(|run| run.given.saturating_sub(run.settled.count())).sum()
    }

    /// Whether there is nothing to keep.
    pub fn is_settled(&self) -> bool {
        self.runs.values().all(|run| run.settled.covers(1, run.given))
    }

    /// Takes a message in: writes its record, and keeps it in memory as well if `fresh` bytes allow.
    ///
    /// # Errors
    /// Why it could not be written; the message is then [only in memory](Self::keep_in_memory).
    pub fn append(
        &mut self,
        batch: Batch,
        seen_ms: u64,
        segment_bytes: u64,
        fresh: Option<usize>,
        spare: Option<usize>,
    ) -> io::Result<()> {
        let (segment, at) = match self.write(&batch, seen_ms, segment_bytes) {
            Ok(place) => place,
            Err(error) => {
                self.keep_in_memory(batch, spare);
                return Err(error);
            }
        };
        let id = self.give(batch.seq);
        if fresh.is_some_and(|bytes| self.fresh.is_empty() || self.fresh_bytes + batch.body.len() <= bytes) {
            self.push_fresh(id, Arc::new(batch), Place::Disk { segment, at });
        }
        Ok(())
    }

    /// Gives it its number and declares it lost at once.
    pub fn refuse(&mut self, batch: &Batch, reason: Reason) {
        let id = self.give(batch.seq);
        self.lose(id, reason, Some(u64::from(batch.events)));
    }

    /// Gives it its number and keeps it in memory only: lost where there is no broker, or no memory to `spare`.
    pub fn keep_in_memory(&mut self, batch: Batch, spare: Option<usize>) {
        if spare.is_none() {
            return self.refuse(&batch, Reason::DiskFull);
        }
        let id = self.give(batch.seq);
        self.memory_bytes += batch.body.len();
        let batch = Arc::new(batch);
        let place = Place::Memory(Arc::clone(&batch));
        self.push_fresh(id, batch, place);
    }

    fn give(&mut self, seq: u64) -> Id {
        if let Some(run) = self.runs.get_mut(&self.owner.run) {
            run.given = seq;
        }
        Id { run: self.owner.run, seq }
    }

    fn push_fresh(&mut self, id: Id, batch: Arc<Batch>, place: Place) {
        // Nothing waits before it on disk: then the cursor need not look at it later.
        if let Place::Disk { segment, at } = &place {
            let next = at + super::record::HEAD as u64 + batch.body.len() as u64;
            if self.cursor.is_none_or(|cursor| (cursor.segment, cursor.at) == (*segment, *at)) {
                self.cursor = Some(Cursor { segment: *segment, at: next, after: id.seq });
            }
        }
        self.fresh_bytes += batch.body.len();
        self.fresh.push_back((id, batch, place));
    }

    fn write(&mut self, batch: &Batch, seen_ms: u64, segment_bytes: u64) -> io::Result<(Key, u64)> {
        let open = self.segments.back().filter(|open| open.owner.run == self.owner.run && !open.sealed);
        if open.is_none_or(|open| open.end >= segment_bytes && !open.is_empty()) {
            self.roll();
            private_dir().recursive(true).create(&self.folder)?;
            let segment = Segment::create(&self.folder, self.owner.clone(), batch.seq)?;
            let read = |cursor: Cursor| {
                self.segments.back().is_none_or(|open| (key(open), open.end) == (cursor.segment, cursor.at))
            };
            if self.cursor.is_none_or(read) {
                self.cursor = Some(start(&segment));
            }
            self.segments.push_back(segment);
        }
        let Some(open) = self.segments.back_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let head = Head {
            len: 0,
            seq: batch.seq,
            time: batch.time,
            seen_ms,
            events: batch.events,
            version: batch.version,
            zstd: batch.zstd,
            footer: false,
        };
        let at = open.append(&head, &batch.body)?;
        Ok((key(open), at))
    }

    /// Closes the open segment; the next message begins a new one.
    pub fn roll(&mut self) {
        if let Some(open) = self.segments.back_mut().filter(|open| !open.sealed) {
            // Without its footer it is read whole at the next start: slower, nothing worse.
            let _slower = open.seal();
        }
    }

    /// The next message that was never published, oldest first.
    pub fn take_fresh(&mut self) -> Option<Taken> {
        let (id, batch, place) = self.fresh.pop_front()?;
        self.fresh_bytes -= batch.body.len();
        self.out.insert(id, Held { place, time: batch.time });
        Some(Taken { id, batch, replayed: false })
    }

    /// Bytes of the next message that was never published.
    pub fn fresh_len(&self) -> Option<usize> {
        self.fresh.front().map(|(_, batch, _)| batch.body.len())
    }

    /// The next message that came back or waited on disk, oldest first. Damage on the way is declared.
    pub fn take_waiting(&mut self) -> Option<Taken> {
        while let Some((id, held)) = self.again.pop_first() {
            if self.is_settled_id(id) {
                self.forget_memory(&held.place);
                continue;
            }
            if let Some(batch) = self.read(id, &held.place) {
                self.out.insert(id, held);
                return Some(Taken { id, batch, replayed: true });
            }
            self.lose(id, Reason::Damaged, None);
        }
        self.walk()
    }

    /// Whether something came back or waits on disk.
    pub fn has_waiting(&self) -> bool {
        let held = self.fresh.len() + self.out.len();
        !self.again.is_empty() || self.messages() > held as u64
    }

    /// Reads a record again.
    fn read(&self, id: Id, place: &Place) -> Option<Arc<Batch>> {
        let (segment, at) = match place {
            Place::Memory(batch) => return Some(Arc::clone(batch)),
            Place::Disk { segment, at } => (segment, *at),
        };
        let segment = self.segments.iter().find(|candidate| key(candidate) == *segment)?;
        match segment.step(at, id.seq.saturating_sub(1)) {
            Ok(Step::Record(head, body, _)) if head.seq == id.seq => Some(Arc::new(batch(&segment.owner, &head, body))),
            _ => None,
        }
    }

    /// Moves the cursor to the next message that nobody has.
    fn walk(&mut self) -> Option<Taken> {
        loop {
            let cursor = self.cursor?;
            let index = self.segments.iter().position(|segment| key(segment) >= cursor.segment)?;
            let segment = self.segments.get(index)?;
            // Its segment may be gone by now.
            let cursor = if key(segment) == cursor.segment { cursor } else { start(segment) };
            let (run, owner) = (segment.owner.run, segment.owner.clone());
            match segment.step(cursor.at, cursor.after) {
                Ok(Step::Record(head, body, next)) => {
                    let id = Id { run, seq: head.seq };
                    self.cursor = Some(Cursor { at: next, after: head.seq, ..cursor });
                    if self.is_free(id) {
                        let place = Place::Disk { segment: cursor.segment, at: cursor.at };
                        self.out.insert(id, Held { place, time: head.time });
                        return Some(Taken { id, batch: Arc::new(batch(&owner, &head, body)), replayed: true });
                    }
                }
                Ok(Step::Damaged(next)) => {
                    let until = segment.step(next, cursor.after).ok();
                    let last = match until {
                        Some(Step::Record(head, ..)) => head.seq - 1,
                        _ => segment.last,
                    };
                    self.cursor = Some(Cursor { at: next, after: last.max(cursor.after), ..cursor });
                    self.lose_range(
                        run,
                        cursor.after.max(segment_floor(&self.segments, index)) + 1,
                        last,
                        Reason::Damaged,
                    );
                }
                Ok(Step::End) | Err(_) => {
                    let last = segment.last;
                    let more = self.segments.get(index + 1).map(start);
                    let torn = cursor.at < segment.end && !segment.is_empty();
                    if torn {
                        self.lose_range(run, cursor.after + 1, last, Reason::Damaged);
                    }
                    match more {
                        Some(next) => self.cursor = Some(next),
                        None => return None,
                    }
                }
            }
        }
    }

    /// Numbered, not settled, and in nobody's hands.
    fn is_free(&self, id: Id) -> bool {
        let fresh = self.fresh.front().is_some_and(|(first, ..)| *first <= id)
            && self.fresh.binary_search_by_key(&id, |(id, ..)| *id).is_ok();
        !fresh && !self.out.contains_key(&id) && !self.again.contains_key(&id) && !self.is_settled_id(id)
    }

    fn is_settled_id(&self, id: Id) -> bool {
        self.runs.get(&id.run).is_none_or(|run| run.settled.contains(id.seq))
    }

    /// The publisher could not deliver it: it is to be read again.
    pub fn put_back(&mut self, id: Id) {
        if let Some(held) = self.out.remove(&id) {
            self.again.insert(id, held);
        }
    }

    /// The connection ended: everything comes back, and what is in memory only is lost.
    pub fn put_all_back(&mut self) {
        self.again.append(&mut self.out);
        for (id, batch, place) in self.fresh.drain(..) {
            self.again.insert(id, Held { place, time: batch.time });
        }
        self.fresh_bytes = 0;
        let memory: Vec<Id> =
            self.again.iter().filter(|(_, held)| matches!(held.place, Place::Memory(_))).map(|(id, _)| *id).collect();
        for id in memory {
            if let Some(Held { place: Place::Memory(batch), .. }) = self.again.remove(&id) {
                self.memory_bytes = self.memory_bytes.saturating_sub(batch.body.len());
                self.lose(id, Reason::DiskFull, Some(u64::from(batch.events)));
            }
        }
    }

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

    fn state(&mut self) -> Settled {
        self.bury();
        if self.is_settled() { Settled::Wholly } else { Settled::Partly }
    }

    fn settle(&mut self, run: u64, first: u64, last: u64) {
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

    fn forget_memory(&mut self, place: &Place) {
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
    fn out_of_files_reach(&self, run: u64) -> Ranges {
        let mut known = self.runs.get(&run).map(|log| log.settled.clone()).unwrap_or_default();
        let fresh = self.fresh.iter().map(|(id, _, place)| (id, place));
        let held = self.out.iter().chain(&self.again).map(|(id, held)| (id, &held.place));
        for (id, place) in fresh.chain(held) {
            if id.run == run && matches!(place, Place::Memory(_)) {
                known.insert(id.seq, id.seq);
            }
        }
        known
    }

    fn lose_run(&mut self, run: u64, first: u64, last: u64, reason: Reason, events: Option<u64>) {
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

    /// The oldest segment, if something waits in it.
    pub fn oldest(&self) -> Option<&Segment> {
        self.segments.front().filter(|segment| !segment.is_empty())
    }

    /// The open segment's file if it holds records, and whether its name is new.
    pub fn open_file(&mut self) -> Vec<(Arc<std::fs::File>, bool)> {
        let files = self.segments.iter_mut().rev().take(2);
        files
            .filter(|segment| !segment.is_empty())
            .map(|segment| (segment.file(), std::mem::take(&mut segment.new)))
            .collect()
    }

    /// The folder of its segments.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Sets settled segments aside, oldest first; the open one stays.
    fn bury(&mut self) {
        while let Some(oldest) = self.segments.front() {
            let open = self.segments.len() == 1 && oldest.owner.run == self.owner.run && !oldest.sealed;
            let run = self.runs.get(&oldest.owner.run);
            let settled = oldest.is_empty() || run.is_none_or(|run| run.settled.covers(oldest.lowest, oldest.last));
            if open || !settled {
                break;
            }
            self.dead.extend(self.segments.pop_front());
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

    /// When the oldest message that waits was numbered.
    pub fn oldest_at(&self) -> Option<Time> {
        if self.is_settled() {
            return None;
        }
        let held = [self.out.values().next(), self.again.values().next()].into_iter().flatten().map(|held| held.time);
        let fresh = self.fresh.front().map(|(_, batch, _)| batch.time);
        held.chain(fresh).chain(self.waiting_since()).min()
    }

    /// When the next message at the cursor was numbered. Settled ones before it may make it look older than it is.
    fn waiting_since(&self) -> Option<Time> {
        let cursor = self.cursor?;
        let segment = self.segments.iter().find(|segment| key(segment) >= cursor.segment)?;
        let at = if key(segment) == cursor.segment { cursor.at } else { HEADER };
        segment.peek(at).ok().flatten().map(|head| head.time)
    }

    /// All that is numbered and not settled.
    pub fn waiting(&self) -> Vec<Waiting> {
        let range = |run: &RunLog, (first_seq, last_seq)| Waiting {
            run_id: run.id.to_string(),
            collector: self.owner.collector.to_string(),
            first_seq,
            last_seq,
        };
        self.runs.values().flat_map(|run| run.unsettled().into_iter().map(|bounds| range(run, bounds))).collect()
    }
}

impl From<&Loss> for Lost {
    fn from(loss: &Loss) -> Self {
        Self {
            run_id: loss.run_id.to_string(),
            collector: loss.collector.clone(),
            first_seq: loss.first,
            last_seq: loss.last,
            events: loss.events,
            reason: loss.reason,
        }
    }
}

fn key(segment: &Segment) -> Key {
    (segment.owner.run, segment.first)
}

fn start(segment: &Segment) -> Cursor {
    Cursor { segment: key(segment), at: HEADER, after: segment.first.saturating_sub(1) }
}

/// Below which `seq` a segment has never had a record.
fn segment_floor(segments: &VecDeque<Segment>, index: usize) -> u64 {
    segments.get(index).map_or(0, |segment| segment.lowest.saturating_sub(1))
}

fn batch(owner: &Owner, head: &Head, body: Vec<u8>) -> Batch {
    Batch {
        agent: owner.agent,
        run_id: owner.run_id,
        collector: Arc::clone(&owner.collector),
        seq: head.seq,
        time: head.time,
        events: head.events,
        version: head.version,
        zstd: head.zstd,
        body,
    }
}

/// Folders of the spool: for the agent's own eyes only.
pub fn private_dir() -> std::fs::DirBuilder {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

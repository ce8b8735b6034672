//! One collector's log: its segments, what of them is settled, and in whose hands the rest is.
//!
//! A message that is numbered and not settled is in exactly one of four places: `fresh` (in memory, to be published for
//! the first time), `out` (in the publisher's hands), `again` (came back, to be read again), or on disk behind the
//! `cursor`. Settled means acked or declared lost.
//!
//! The log decides nothing about time, space or the network; it is told. What it finds damaged it declares in `losses`.

mod rescue;
mod settle;
mod walk;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    header::{HEADER, Owner},
    host::{File, Host},
    mark::{LogMark, Loss},
    ranges::Ranges,
    record::Head,
    segment::{self, Segment, Tail},
    unsynced::Unsynced,
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
pub type Key = (u64, u64);

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

    /// All up to here is acked or declared.
    pub fn settled_to(&self) -> u64 {
        self.settled.iter().next().filter(|(first, _)| *first == 1).map_or(0, |(_, last)| last)
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
    host: Arc<dyn Host>,
    /// The current run's records of this collector.
    owner: Owner,
    folder: PathBuf,
    segments: VecDeque<Segment>,
    /// Bytes of all segments but the last one: there may be thousands, and they are asked for with every message.
    full_bytes: u64,
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
    /// What of it may not be on disk, and since when.
    pub unsynced: Unsynced,
    /// No queue wants what is in it, as far as the publisher knows.
    pub unwanted: bool,
    /// Why it could not be read when somebody last tried.
    pub unreadable: Option<String>,
}

/// A file of a log that is to be synced.
#[derive(Debug)]
pub struct ToSync {
    /// Its segment.
    pub segment: Key,
    /// The file.
    pub file: Arc<dyn File>,
    /// Its folder, where its name is new.
    pub folder: Option<PathBuf>,
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
    pub fn new(
        host: Arc<dyn Host>,
        owner: Owner,
        folder: PathBuf,
        segments: Vec<Segment>,
        mut runs: BTreeMap<u64, RunLog>,
    ) -> Self {
        runs.entry(owner.run).or_insert_with(|| RunLog { id: owner.run_id, given: 0, settled: Ranges::default() });
        let cursor = segments.first().map(|segment| Cursor { segment: key(segment), at: HEADER, after: 0 });
        let mut log = Self {
            host,
            owner,
            folder,
            segments: segments.into(),
            full_bytes: 0,
            runs,
            fresh: VecDeque::new(),
            fresh_bytes: 0,
            memory_bytes: 0,
            out: BTreeMap::new(),
            again: BTreeMap::new(),
            cursor,
            dead: Vec::new(),
            losses: Vec::new(),
            unsynced: Unsynced::default(),
            unwanted: false,
            unreadable: None,
        };
        log.bury();
        log.count_bytes();
        log
    }

    /// The last `seq` that the current run gave out.
    pub fn given(&self) -> u64 {
        self.runs.get(&self.owner.run).map_or(0, |run| run.given)
    }

    /// Bytes of the segments, the dead ones left out.
    pub fn bytes(&self) -> u64 {
        self.full_bytes + self.segments.back().map_or(0, |segment| segment.end)
    }

    /// To be called when segments came or went.
    fn count_bytes(&mut self) {
        let full = self.segments.len().saturating_sub(1);
        self.full_bytes = self.segments.iter().take(full).map(|segment| segment.end).sum();
    }

    /// Bytes of messages that are in memory only.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// How far a run is, for the mark file.
    pub fn mark(&self, run: u64) -> Option<LogMark> {
        let log = self.runs.get(&run)?;
        let mut memory = Ranges::default();
        if self.memory_bytes > 0 {
            self.in_memory(run).for_each(|seq| memory.insert(seq, seq));
        }
        Some(LogMark { given: log.given, settled: log.settled.iter().collect(), memory: memory.iter().collect() })
    }

    /// What of a run is in memory only.
    fn in_memory(&self, run: u64) -> impl Iterator<Item = u64> {
        let fresh = self.fresh.iter().map(|(id, _, place)| (id, place));
        let held = self.out.iter().chain(&self.again).map(|(id, held)| (id, &held.place));
        let memory = fresh.chain(held).filter(move |(id, place)| id.run == run && matches!(place, Place::Memory(_)));
        memory.map(|(id, _)| id.seq)
    }

    /// Messages that are numbered and not settled.
    pub fn messages(&self) -> u64 {
        self.runs.values().map(|run| run.given.saturating_sub(run.settled.count())).sum()
    }

    /// Whether there is nothing to keep.
    pub fn is_settled(&self) -> bool {
        self.runs.values().all(|run| run.settled.covers(1, run.given))
    }

    /// All of the current run up to here is acked or declared.
    pub fn settled_to(&self) -> u64 {
        self.runs.get(&self.owner.run).map_or(0, RunLog::settled_to)
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
        let open = self.segments.back().filter(|open| open.owner.run == self.owner.run && open.tail == Tail::Open);
        if open.is_none_or(|open| open.end >= segment_bytes && !open.is_empty()) {
            self.roll();
            self.host.make_folder(&self.folder)?;
            let segment = Segment::create(&self.host, &self.folder, self.owner.clone(), batch.seq)?;
            let read = |cursor: Cursor| {
                self.segments.back().is_none_or(|open| (key(open), open.end) == (cursor.segment, cursor.at))
            };
            if self.cursor.is_none_or(read) {
                self.cursor = Some(start(&segment));
            }
            self.segments.push_back(segment);
            self.count_bytes();
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
        self.segments.back_mut().into_iter().for_each(Segment::seal);
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

    /// The oldest segment, if something waits in it.
    pub fn oldest(&self) -> Option<&Segment> {
        self.segments.front().filter(|segment| !segment.is_empty())
    }

    /// Files with something in them that was not synced yet. They count as synced until somebody says otherwise.
    pub fn to_sync(&mut self) -> Vec<ToSync> {
        self.unsynced.forget();
        let folder = &self.folder;
        let segments = self
            .segments
            .iter_mut()
            .filter(|segment| segment.unsynced != segment::Unsynced::Nothing && !segment.is_empty());
        let unsynced = segments.filter_map(|segment| {
            // What is unsynced is open, so that this does not fail.
            let file = segment.file().ok()?;
            let was = std::mem::replace(&mut segment.unsynced, segment::Unsynced::Nothing);
            let folder = (was == segment::Unsynced::Name).then(|| folder.clone());
            Some(ToSync { segment: key(segment), file, folder })
        });
        unsynced.collect()
    }

    /// A file was synced: a full one gets its footer.
    pub fn synced(&mut self, segment: Key) {
        let full = |found: &&mut Segment| {
            key(found) == segment && (found.tail != Tail::Open || found.owner.run != self.owner.run)
        };
        if let Some(full) =
            self.segments.iter_mut().find(full).filter(|full| full.unsynced == segment::Unsynced::Nothing)
        {
            // Without its footer it is read whole at the next start: slower, nothing worse.
            let _slower = full.foot();
            full.close();
        }
    }

    /// The folder of its segments.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
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

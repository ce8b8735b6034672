//! The mark file: what the spool remembers beside its records, in one file of fixed size.
//!
//! It is filled with zeros when it is made, so that a full disk cannot stop it later. It holds
//!
//! - at offset 0, [`LOGS`] places of 128 bytes, one for each log of the current run: length of the name (1 byte), name
//!   (87), run counter (8), `given` (8): the last `seq` that was given out, written before its message is published;
//!   `settled` (8): all up to it is acked or declared, written before the log is cut back; zero (12), CRC-32C of all
//!   before (4). A place is written whole, and is all that a healthy agent writes here;
//! - behind them [`SLOTS`] slots of [`SLOT`] bytes: `PGAMARK1`, generation (8), length (4), CRC-32C over generation, length
//!   and body (4), and the body: [`Body`] as MessagePack. The valid slot of the highest generation counts.
//!
//! Of the three slots one is the last that was synced, which a power cut leaves, and one the last that was written, which a
//! kill leaves; the third is written next.
//!
//! Writing is not syncing: a killed agent loses nothing of it, a power cut what was not synced.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    host::{File, Host, Open, read_around},
    record::{field, put},
};
use crate::event::status::Reason;

/// Logs that have a place for `given`.
pub const LOGS: usize = 64;
const PLACE: usize = 128;
const NAME: usize = 87;
const SLOTS: usize = 3;
const SLOT: usize = 164 << 10;
const SLOT_HEAD: usize = 24;
const MAGIC: &[u8; 8] = b"PGAMARK1";
/// The whole file: with `agent` and `lock` beside it below the 512 KiB that are promised.
pub const SIZE: u64 = (LOGS * PLACE + SLOTS * SLOT) as u64;

/// Acked ranges of one run and log that are kept; beyond that the newest are forgotten: duplicates, never loss.
const RANGES: usize = 64;

/// What the slots hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Whose mark it is: another agent's says nothing about what is in this folder.
    #[serde(default)]
    pub agent: Uuid,
    /// `/proc/sys/kernel/random/boot_id` when it was written: another one means that what was not synced is gone.
    pub boot: String,
    /// Whether the agent stopped in order: nothing of it can be missing after a power cut.
    pub stopped: bool,
    /// Milliseconds that the agent saw pass in all its runs.
    pub seen_ms: u64,
    /// Runs that are not yet done with, the current one last.
    pub runs: Vec<Run>,
    /// Losses that no confirmed status has told yet.
    pub lost: Vec<Loss>,
}

/// One run of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its place among all runs of this spool.
    pub counter: u64,
    /// Its id.
    pub id: Uuid,
    /// Whether a confirmed status has told up to where it went.
    pub told: bool,
    /// By collector.
    pub logs: BTreeMap<String, LogMark>,
}

/// How far one log of one run is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// The last `seq` that was given out.
    pub given: u64,
    /// Acked or declared, as ranges.
    pub settled: Vec<(u64, u64)>,
    /// In memory only, as ranges, because the disk did not take it: gone when the agent is.
    #[serde(default)]
    pub memory: Vec<(u64, u64)>,
}

/// A loss as it is kept until it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The run that numbered the messages.
    pub run_id: Uuid,
    /// Their collector.
    pub collector: String,
    /// The first `seq`.
    pub first: u64,
    /// The last `seq`; `None` after a power cut: up to the run's end.
    pub last: Option<u64>,
    /// Events in them, where known.
    pub events: Option<u64>,
    /// Why.
    pub reason: Reason,
}

/// The mark file, open.
#[derive(Debug)]
pub struct Mark {
    file: Arc<dyn File>,
    /// The generation in each slot, 0 where there is none.
    slots: [u64; SLOTS],
    /// The generation that is known to be on disk.
    synced: u64,
    places: Vec<Option<Place>>,
}

/// How far one log is, as its place tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The collector.
    pub name: String,
    /// The run's place among all runs.
    pub run: u64,
    /// The last `seq` that was given out.
    pub given: u64,
    /// All up to this one is acked or declared.
    pub settled: u64,
}

/// What was in the mark file.
#[derive(Debug, Default)]
pub struct Marked {
    /// The newest valid slot; `None` where there is none.
    pub body: Option<Body>,
    /// All places.
    pub places: Vec<Place>,
}

impl Marked {
    /// What a mark file says, without changing it.
    pub fn read(file: &dyn File) -> Self {
        let (slots, places) = read(file);
        Self::of(slots, &places)
    }

    /// Ids of the runs that are not yet done with, by their counters.
    pub fn runs(&self) -> BTreeMap<u64, Uuid> {
        self.body.iter().flat_map(|body| &body.runs).map(|run| (run.counter, run.id)).collect()
    }

    fn of(slots: Slots, places: &[Option<Place>]) -> Self {
        let newest = slots.into_iter().flatten().max_by_key(|(generation, _)| *generation);
        Self { body: newest.map(|(_, body)| body), places: places.iter().flatten().cloned().collect() }
    }
}

type Slots = [Option<(u64, Body)>; SLOTS];

/// All slots and places. What cannot be read counts as damaged: duplicates, never loss.
fn read(file: &dyn File) -> (Slots, Vec<Option<Place>>) {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap_or(0)];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        read_around(file, &mut bytes, 0);
    }
    let slots = std::array::from_fn(|slot| bytes.get(slot_at(slot)..).and_then(read_slot));
    (slots, bytes.chunks_exact(PLACE).take(LOGS).map(read_place).collect())
}

impl Mark {
    /// Opens the mark file, or makes it. Making it is synced.
    pub fn open(host: &dyn Host, path: &Path) -> io::Result<(Self, Marked)> {
        let file = host.open(path, Open::Any)?;
        let size = file.len()?;
        if size < SIZE {
            fill(&*file, size)?;
            file.sync()?;
        }
        let (slots, places) = read(&*file);
        let generations = slots.each_ref().map(|slot| slot.as_ref().map_or(0, |(generation, _)| *generation));
        let synced = generations.into_iter().max().unwrap_or(0);
        let marked = Marked::of(slots, &places);
        // A killed agent left what was written, not necessarily what was synced.
        file.sync()?;
        Ok((Self { file, slots: generations, synced, places }, marked))
    }

    /// Puts a new file with the same content in the place of this one: after a failed sync, or where somebody took the
    /// file away. Synced, but for the folder.
    pub fn renew(&mut self, host: &dyn Host, path: &Path, body: &Body) -> io::Result<()> {
        let draft = path.with_extension("new");
        // Never the file of an earlier try: its sync may have failed.
        let _none_yet = host.remove(&draft);
        let mut fresh = Self {
            file: host.open(&draft, Open::New)?,
            slots: [0, 0, self.newest()],
            synced: 0,
            places: self.places.clone(),
        };
        fill(&*fresh.file, 0)?;
        for (index, place) in self.places.iter().enumerate().filter_map(|(index, place)| Some((index, place.as_ref()?)))
        {
            fresh.file.write_all_at(&encode_place(place), (index * PLACE) as u64)?;
        }
        fresh.write(body)?;
        fresh.file.sync()?;
        fresh.synced = fresh.newest();
        host.rename(&draft, path)?;
        *self = fresh;
        Ok(())
    }

    /// Forgets the places of another agent's logs.
    pub fn clear_places(&mut self) -> io::Result<()> {
        self.places.fill(None);
        self.file.write_all_at(&[0; LOGS * PLACE], 0)
    }

    /// Whether the file still has its name.
    pub fn is_there(&self, path: &Path) -> bool {
        self.file.is_named(path)
    }

    /// Writes `given` of one log, unless that is what stands there. Not synced.
    pub fn give(&mut self, collector: &str, run: u64, given: u64) -> io::Result<()> {
        self.change(collector, run, |place| place.given = given)
    }

    /// Writes up to where one log is acked or declared. Not synced.
    pub fn settle(&mut self, collector: &str, run: u64, settled: u64) -> io::Result<()> {
        self.change(collector, run, |place| place.settled = settled)
    }

    fn change(&mut self, collector: &str, run: u64, change: impl FnOnce(&mut Place)) -> io::Result<()> {
        let own = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.name == collector);
        let index = self.places.iter().position(own).or_else(|| self.places.iter().position(Option::is_none));
        let index = index.filter(|_| collector.len() <= NAME).ok_or(io::ErrorKind::StorageFull)?;
        let Some(place) = self.places.get_mut(index) else { return Ok(()) };
        let of_run = place.as_ref().filter(|place| place.run == run);
        let new = || Place { name: collector.to_owned(), run, given: 0, settled: 0 };
        let mut changed = of_run.cloned().unwrap_or_else(new);
        change(&mut changed);
        if place.as_ref() != Some(&changed) {
            self.file.write_all_at(&encode_place(&changed), (index * PLACE) as u64)?;
            *place = Some(changed);
        }
        Ok(())
    }

    fn newest(&self) -> u64 {
        self.slots.iter().copied().max().unwrap_or(0)
    }

    /// Writes the body into the slot that nobody needs. Not synced.
    pub fn write(&mut self, body: &Body) -> io::Result<()> {
        let mut ranges = RANGES;
        let bytes = loop {
            let bytes = rmp_serde::to_vec_named(&bounded(body, ranges)).map_err(io::Error::other)?;
            if bytes.len() + SLOT_HEAD <= SLOT {
                break bytes;
            }
            if ranges == 0 {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            ranges /= 2;
        };
        let newest = self.newest();
        let generation = newest + 1;
        let mut slot = vec![0; SLOT_HEAD + bytes.len()];
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        put(&mut slot, &[(0, MAGIC), (8, &generation.to_le_bytes()), (16, &len.to_le_bytes()), (SLOT_HEAD, &bytes)]);
        let crc = slot_checksum(&slot);
        put(&mut slot, &[(20, &crc.to_le_bytes())]);
        let free = |held: &u64| *held == 0 || (*held != newest && *held != self.synced);
        let index = self.slots.iter().position(free).unwrap_or(0);
        self.file.write_all_at(&slot, slot_at(index) as u64)?;
        if let Some(held) = self.slots.get_mut(index) {
            *held = generation;
        }
        Ok(())
    }

    /// The file, to sync it without holding up anything else, and what to say when that is [done](Self::synced).
    pub fn to_sync(&self) -> (Arc<dyn File>, u64) {
        (Arc::clone(&self.file), self.newest())
    }

    /// All that was written up to a generation is on disk. False where its slot was written again meanwhile.
    pub fn synced(&mut self, generation: u64) -> bool {
        let holds = self.slots.contains(&generation);
        if holds {
            self.synced = generation;
        }
        holds
    }
}

fn slot_at(index: usize) -> usize {
    LOGS * PLACE + index * SLOT
}

/// Zeros up to the file's size, not a hole: blocks that are there need no space later.
fn fill(file: &dyn File, from: u64) -> io::Result<()> {
    file.write_all_at(&vec![0; usize::try_from(SIZE - from).unwrap_or(0)], from)
}

fn encode_place(place: &Place) -> [u8; PLACE] {
    let mut bytes = [0; PLACE];
    let fields: [(usize, &[u8]); 5] = [
        (0, &[u8::try_from(place.name.len()).unwrap_or(0)]),
        (1, place.name.as_bytes()),
        (1 + NAME, &place.run.to_le_bytes()),
        (9 + NAME, &place.given.to_le_bytes()),
        (17 + NAME, &place.settled.to_le_bytes()),
    ];
    put(&mut bytes, &fields);
    let crc = crc32c::crc32c(bytes.get(..PLACE - 4).unwrap_or_default());
    put(&mut bytes, &[(PLACE - 4, &crc.to_le_bytes())]);
    bytes
}

/// The body with at most so many acked ranges a log: the lowest ones.
fn bounded(body: &Body, ranges: usize) -> Body {
    let mut body = body.clone();
    for log in body.runs.iter_mut().flat_map(|run| run.logs.values_mut()) {
        log.settled.truncate(ranges);
        log.memory.truncate(RANGES);
    }
    body
}

fn read_place(bytes: &[u8]) -> Option<Place> {
    if crc32c::crc32c(bytes.get(..PLACE - 4)?) != u32::from_le_bytes(field(bytes, PLACE - 4)) {
        return None;
    }
    let name = bytes.get(1..1 + usize::from(*bytes.first()?))?;
    let name = String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())?;
    let number = |at| u64::from_le_bytes(field(bytes, at));
    Some(Place { name, run: number(1 + NAME), given: number(9 + NAME), settled: number(17 + NAME) })
}

fn read_slot(bytes: &[u8]) -> Option<(u64, Body)> {
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    let len = u32::from_le_bytes(field(bytes, 16)) as usize;
    let slot = bytes.get(..SLOT_HEAD + len).filter(|_| len <= SLOT)?;
    if slot_checksum(slot) != u32::from_le_bytes(field(bytes, 20)) {
        return None;
    }
    Some((u64::from_le_bytes(field(bytes, 8)), rmp_serde::from_slice(slot.get(SLOT_HEAD..)?).ok()?))
}

fn slot_checksum(slot: &[u8]) -> u32 {
    let part = |range| slot.get(range).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(part(8..20)), slot.get(SLOT_HEAD..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spool::host::Machine;

    fn body(seen_ms: u64, ranges: u64) -> Body {
        let settled = (0..ranges).map(|n| (n * 3 + 1, n * 3 + 2)).collect();
        let logs = BTreeMap::from([("pg_locks".to_owned(), LogMark { given: 400, settled, memory: vec![(5, 5)] })]);
        Body { seen_ms, runs: vec![Run { counter: 1, id: Uuid::nil(), told: false, logs }], ..Body::default() }
    }

    #[test]
    fn the_newest_whole_slot_counts() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("mark");
        let (mut mark, marked) = Mark::open(&Machine, &path)?;
        assert!(marked.body.is_none() && marked.places.is_empty());
        mark.write(&body(1, 2))?;
        mark.write(&body(2, 500))?;
        mark.give("pg_locks", 1, 41)?;
        mark.settle("pg_locks", 1, 40)?;
        mark.give("pg_locks", 1, 42)?;
        mark.give("agent_status", 1, 7)?;
        let (_, marked) = Mark::open(&Machine, &path)?;
        let read = marked.body.expect("two slots were written");
        assert_eq!(read, body(2, 64), "the lowest 64 ranges are kept");
        let place = |name: &str, given, settled| Place { name: name.into(), run: 1, given, settled };
        assert_eq!(marked.places, [place("pg_locks", 42, 40), place("agent_status", 7, 0)]);
        // A torn write of the newer slot leaves the older one.
        mark.file.write_all_at(b"torn", slot_at(1) as u64 + 40)?;
        assert_eq!(Mark::open(&Machine, &path)?.1.body, Some(body(1, 2)));
        assert_eq!(std::fs::metadata(&path)?.len(), SIZE);
        const { assert!(SIZE < 512 << 10) };
        Ok(())
    }

    #[test]
    fn what_was_synced_stays_whatever_is_written_later() -> io::Result<()> {
        for later in 0..6 {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("mark");
            let (mut mark, _) = Mark::open(&Machine, &path)?;
            for round in 1..=3 {
                mark.write(&body(round, 2))?;
            }
            let (_, generation) = mark.to_sync();
            assert!(mark.synced(generation));
            for round in 4..4 + later {
                mark.write(&body(round, 2))?;
            }
            // The power goes, and nothing that was written since is whole.
            for (slot, _) in mark.slots.iter().enumerate().filter(|(_, held)| **held > generation) {
                mark.file.write_all_at(b"torn", slot_at(slot) as u64 + 40)?;
            }
            assert_eq!(Mark::open(&Machine, &path)?.1.body, Some(body(3, 2)), "{later} writes later");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096), at in 0usize..4096) {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("mark");
            let (mut mark, _) = Mark::open(&Machine, &path)?;
            mark.write(&body(1, 2))?;
            mark.file.write_all_at(&bytes, (slot_at(0) + at) as u64)?;
            let (_, marked) = Mark::open(&Machine, &path)?;
            prop_assert!(marked.body.is_none_or(|read| read == body(1, 2)));
        }
    }
}

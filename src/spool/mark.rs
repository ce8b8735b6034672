//! The mark file: what the spool remembers beside its records, in one file of fixed size.
//!
//! It is filled with zeros when it is made, so that a full disk cannot stop it later. It holds
//!
//! - at offset 0, [`LOGS`] places of 128 bytes: for each log `given`, the last `seq` that was given out. A place is
//!   written whole, before the message is published: length of the name (1 byte), name (87), run counter (8), `seq` (8),
//!   zero (20), CRC-32C of all before (4);
//! - at [`SLOT_A`] and [`SLOT_B`], two slots that are written in turn: `PGAMARK1`, generation (8), length (4), CRC-32C over
//!   generation, length and body (4), and the body: [`Body`] as MessagePack. The valid slot of the higher generation counts.
//!
//! Writing is not syncing: a killed agent loses nothing of it, a power cut what was not synced.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::field;
use crate::event::status::Reason;

/// Logs that have a place for `given`.
pub const LOGS: usize = 64;
const PLACE: usize = 128;
const NAME: usize = 87;
const SLOT_A: u64 = (LOGS * PLACE) as u64;
const SLOT_B: u64 = SLOT_A + SLOT;
const SLOT: u64 = 248 << 10;
const SLOT_HEAD: usize = 24;
const MAGIC: &[u8; 8] = b"PGAMARK1";
/// The whole file: with `agent` and `lock` beside it below the 512 KiB that are promised.
pub const SIZE: u64 = SLOT_B + SLOT;

/// Acked ranges of one run and log that are kept; beyond that the newest are forgotten: duplicates, never loss.
const RANGES: usize = 64;

/// What the slots hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
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
    file: Arc<File>,
    generation: u64,
    places: Vec<String>,
}

/// What was in the mark file.
#[derive(Debug, Default)]
pub struct Marked {
    /// The newest valid slot; `None` where there is none.
    pub body: Option<Body>,
    /// By collector: run counter and last `seq` given out.
    pub given: BTreeMap<String, (u64, u64)>,
}

impl Mark {
    /// Opens the mark file, or makes it. Making it is synced.
    pub fn open(path: &Path) -> io::Result<(Self, Marked)> {
        let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(path)?;
        let size = file.metadata()?.len();
        if size < SIZE {
            // Zeros, not a hole: blocks that are there need no space later.
            let zeros = vec![0; usize::try_from(SIZE - size).unwrap_or(0)];
            file.write_all_at(&zeros, size)?;
            file.sync_all()?;
        }
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let slots =
            [SLOT_A, SLOT_B].map(|at| read_slot(bytes.get(usize::try_from(at).unwrap_or(0)..).unwrap_or_default()));
        let newest = slots.into_iter().flatten().max_by_key(|(generation, _)| *generation);
        let (generation, body) = newest.map_or((0, None), |(generation, body)| (generation, Some(body)));
        let places: Vec<Option<(String, u64, u64)>> = bytes.chunks_exact(PLACE).take(LOGS).map(read_place).collect();
        let names =
            places.iter().map(|place| place.as_ref().map_or(String::new(), |(name, ..)| name.clone())).collect();
        let given = places.into_iter().flatten().map(|(name, run, seq)| (name, (run, seq))).collect();
        Ok((Self { file: Arc::new(file), generation, places: names }, Marked { body, given }))
    }

    /// Writes `given` of one log. Not synced.
    pub fn give(&mut self, collector: &str, run: u64, seq: u64) -> io::Result<()> {
        let place = self.places.iter().position(|name| name == collector);
        let place = place.or_else(|| self.places.iter().position(String::is_empty));
        let place = place.filter(|_| collector.len() <= NAME).ok_or(io::ErrorKind::StorageFull)?;
        if let Some(name) = self.places.get_mut(place) {
            collector.clone_into(name);
        }
        let mut bytes = [0; PLACE];
        let fields: [(usize, &[u8]); 4] = [
            (0, &[u8::try_from(collector.len()).unwrap_or(0)]),
            (1, collector.as_bytes()),
            (1 + NAME, &run.to_le_bytes()),
            (9 + NAME, &seq.to_le_bytes()),
        ];
        put(&mut bytes, &fields);
        let crc = crc32c::crc32c(bytes.get(..PLACE - 4).unwrap_or_default());
        put(&mut bytes, &[(PLACE - 4, &crc.to_le_bytes())]);
        self.file.write_all_at(&bytes, (place * PLACE) as u64)
    }

    /// Writes the body into the older slot. Not synced.
    pub fn write(&mut self, body: &Body) -> io::Result<()> {
        let mut ranges = RANGES;
        let bytes = loop {
            let bytes = rmp_serde::to_vec_named(&bounded(body, ranges)).map_err(io::Error::other)?;
            if bytes.len() + SLOT_HEAD <= usize::try_from(SLOT).unwrap_or(0) {
                break bytes;
            }
            if ranges == 0 {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            ranges /= 2;
        };
        let generation = self.generation + 1;
        let mut slot = vec![0; SLOT_HEAD + bytes.len()];
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        put(&mut slot, &[(0, MAGIC), (8, &generation.to_le_bytes()), (16, &len.to_le_bytes()), (SLOT_HEAD, &bytes)]);
        let crc = slot_checksum(&slot);
        put(&mut slot, &[(20, &crc.to_le_bytes())]);
        let at = if generation.is_multiple_of(2) { SLOT_A } else { SLOT_B };
        self.file.write_all_at(&slot, at)?;
        self.generation = generation;
        Ok(())
    }

    /// The file itself, to sync it without holding up anything else.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// The body with at most so many acked ranges a log: the lowest ones.
fn bounded(body: &Body, ranges: usize) -> Body {
    let mut body = body.clone();
    for log in body.runs.iter_mut().flat_map(|run| run.logs.values_mut()) {
        log.settled.truncate(ranges);
    }
    body
}

fn put(bytes: &mut [u8], fields: &[(usize, &[u8])]) {
    for (at, value) in fields {
        if let Some(place) = bytes.get_mut(*at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

fn read_place(bytes: &[u8]) -> Option<(String, u64, u64)> {
    if crc32c::crc32c(bytes.get(..PLACE - 4)?) != u32::from_le_bytes(field(bytes, PLACE - 4)) {
        return None;
    }
    let name = bytes.get(1..1 + usize::from(*bytes.first()?))?;
    let name = String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())?;
    Some((name, u64::from_le_bytes(field(bytes, 1 + NAME)), u64::from_le_bytes(field(bytes, 9 + NAME))))
}

fn read_slot(bytes: &[u8]) -> Option<(u64, Body)> {
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    let len = u32::from_le_bytes(field(bytes, 16)) as usize;
    let slot = bytes.get(..SLOT_HEAD + len).filter(|_| len as u64 <= SLOT)?;
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

    fn body(seen_ms: u64, ranges: u64) -> Body {
        let settled = (0..ranges).map(|n| (n * 3 + 1, n * 3 + 2)).collect();
        let logs = BTreeMap::from([("pg_locks".to_owned(), LogMark { given: 400, settled })]);
        Body { seen_ms, runs: vec![Run { counter: 1, id: Uuid::nil(), told: false, logs }], ..Body::default() }
    }

    #[test]
    fn the_newest_whole_slot_counts() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("mark");
        let (mut mark, marked) = Mark::open(&path)?;
        assert!(marked.body.is_none() && marked.given.is_empty());
        mark.write(&body(1, 2))?;
        mark.write(&body(2, 500))?;
        mark.give("pg_locks", 1, 41)?;
        mark.give("pg_locks", 1, 42)?;
        mark.give("agent_status", 1, 7)?;
        let (_, marked) = Mark::open(&path)?;
        let read = marked.body.expect("two slots were written");
        assert_eq!(read, body(2, 64), "the lowest 64 ranges are kept");
        assert_eq!(marked.given["pg_locks"], (1, 42));
        assert_eq!(marked.given["agent_status"], (1, 7));
        // A torn write of the newer slot leaves the older one.
        mark.file.write_all_at(b"torn", SLOT_A + 40)?;
        assert_eq!(Mark::open(&path)?.1.body, Some(body(1, 2)));
        assert_eq!(std::fs::metadata(&path)?.len(), SIZE);
        const { assert!(SIZE < 512 << 10) };
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096), at in 0usize..4096) {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("mark");
            let (mut mark, _) = Mark::open(&path)?;
            mark.write(&body(1, 2))?;
            mark.file.write_all_at(&bytes, SLOT_B + at as u64)?;
            let (_, marked) = Mark::open(&path)?;
            prop_assert!(marked.body.is_none_or(|read| read == body(1, 2)));
        }
    }
}

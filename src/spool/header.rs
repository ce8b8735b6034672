//! A segment's header: whose records the file holds. Pure: bytes in, an owner or a verdict out.
//!
//! Little-endian, [`HEADER`] bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `PGASPOOL` |
//! | 8 | 2 | format version, [`FORMAT`] |
//! | 10 | 6 | zero |
//! | 16 | 8 | run counter |
//! | 24 | 8 | first `seq`: no record has a lower one |
//! | 32 | 16 | agent id |
//! | 48 | 16 | run id |
//! | 64 | 60 | collector, padded with zeros |
//! | 124 | 4 | CRC-32C of all before |
//!
//! Where it is damaged, the file's name, its folder and the mark say the same, and the records' checksums, which begin with
//! the run, prove it: see [`super::segment::Expected`].

use std::sync::Arc;

use uuid::Uuid;

use super::record::field;

/// Bytes before the first record.
pub const HEADER: u64 = HEADER_LEN as u64;
/// The same as a length in memory.
pub const HEADER_LEN: usize = 128;
/// The format that is written; older ones would be read, newer ones are left alone.
pub const FORMAT: u16 = 1;
const MAGIC: &[u8; 8] = b"PGASPOOL";

/// Whose records a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The agent.
    pub agent: Uuid,
    /// The run.
    pub run_id: Uuid,
    /// The run's place among all runs of this spool.
    pub run: u64,
    /// The collector: at most 60 bytes.
    pub collector: Arc<str>,
}

impl Owner {
    /// What the checksums of this run's records begin with.
    pub fn salt(&self) -> u32 {
        crc32c::crc32c(self.run_id.as_bytes())
    }
}

/// The header of a segment whose records have no lower `seq` than `first`.
pub fn encode(owner: &Owner, first: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    let name = owner.collector.as_bytes();
    let fields: [(usize, &[u8]); 7] = [
        (0, MAGIC),
        (8, &FORMAT.to_le_bytes()),
        (16, &owner.run.to_le_bytes()),
        (24, &first.to_le_bytes()),
        (32, owner.agent.as_bytes()),
        (48, owner.run_id.as_bytes()),
        (64, name.get(..60).unwrap_or(name)),
    ];
    for (at, value) in fields {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
    let crc = checksum(&bytes);
    if let Some(place) = bytes.get_mut(124..) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

fn checksum(bytes: &[u8; HEADER_LEN]) -> u32 {
    crc32c::crc32c(bytes.get(..124).unwrap_or_default())
}

/// The same header as one of the format that this version writes.
fn as_ours(bytes: &[u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
    let mut ours = *bytes;
    if let Some(place) = ours.get_mut(8..10) {
        place.copy_from_slice(&FORMAT.to_le_bytes());
    }
    ours
}

/// Owner and first `seq`; the format where it is a newer one, `None` where the header is damaged.
pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<(Owner, u64), Option<u16>> {
    let (format, sum) = (u16::from_le_bytes(field(bytes, 8)), u32::from_le_bytes(field(bytes, 124)));
    if !bytes.starts_with(MAGIC) {
        return Err(None);
    }
    // Whole but for the format's own bytes: then these are damaged.
    if format > FORMAT && checksum(&as_ours(bytes)) != sum {
        return Err(Some(format));
    }
    if checksum(bytes) != sum {
        return Err(None);
    }
    let name: [u8; 60] = field(bytes, 64);
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    let owner = Owner {
        run: u64::from_le_bytes(field(bytes, 16)),
        agent: Uuid::from_bytes(field(bytes, 32)),
        run_id: Uuid::from_bytes(field(bytes, 48)),
        collector: String::from_utf8_lossy(name).into(),
    };
    Ok((owner, u64::from_le_bytes(field(bytes, 24))))
}

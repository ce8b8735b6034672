//! Records: how one message lies in a segment file. Pure: bytes in, a record or a verdict out.
//!
//! Little-endian, [`HEAD`] bytes and then the payload:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the payload |
//! | 4 | 4 | CRC-32C over everything but itself, begun with the segment's salt |
//! | 8 | 8 | `seq` |
//! | 16 | 8 | when it was numbered: microseconds since 1970 by the host's clock |
//! | 24 | 8 | when it was numbered: milliseconds that this agent had seen pass in all its runs |
//! | 32 | 4 | events in the message |
//! | 36 | 2 | schema version of the message |
//! | 38 | 2 | flags: 1 the payload is zstd, 2 this is a segment's footer |
//!
//! The checksum covers the length, so a damaged length never sends a reader astray; the salt is made of the run, so
//! that a block left over from another run is never taken for one of this run.

use crate::units::Time;

/// Bytes before the payload.
pub const HEAD: usize = 40;

/// Longer payloads are taken for damage: far above any message that a broker would take (128 MiB by default).
pub const MAX_PAYLOAD: u32 = 256 << 20;

const ZSTD: u16 = 1;
const FOOTER: u16 = 2;

/// Everything of a record but its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of payload.
    pub len: u32,
    /// The message's number within its run and collector. In a footer: the last one of the segment.
    pub seq: u64,
    /// When it was numbered, by the host's clock.
    pub time: Time,
    /// When it was numbered, in milliseconds that this agent had seen pass in all its runs.
    pub seen_ms: u64,
    /// Events in the message. In a footer: of all messages, as far as 32 bits count.
    pub events: u32,
    /// The message's schema version.
    pub version: u16,
    /// Whether the payload is zstd.
    pub zstd: bool,
    /// Whether this is not a message but the end of a full segment.
    pub footer: bool,
}

impl Head {
    /// Reads the fields; [`check`] says whether they can be believed.
    pub fn decode(bytes: &[u8; HEAD]) -> Self {
        let flags = u16::from_le_bytes(field(bytes, 38));
        Self {
            len: u32::from_le_bytes(field(bytes, 0)),
            seq: u64::from_le_bytes(field(bytes, 8)),
            time: Time(i64::from_le_bytes(field(bytes, 16))),
            seen_ms: u64::from_le_bytes(field(bytes, 24)),
            events: u32::from_le_bytes(field(bytes, 32)),
            version: u16::from_le_bytes(field(bytes, 36)),
            zstd: flags & ZSTD != 0,
            footer: flags & FOOTER != 0,
        }
    }

    /// Bytes of the whole record.
    pub fn record_len(&self) -> u64 {
        HEAD as u64 + u64::from(self.len)
    }
}

/// The bytes before a payload in its record. `head.len` is taken from the payload.
pub fn encode(head: &Head, payload: &[u8], salt: u32) -> [u8; HEAD] {
    let flags = if head.zstd { ZSTD } else { 0 } | if head.footer { FOOTER } else { 0 };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut out = [0; HEAD];
    let fields: [(usize, &[u8]); 7] = [
        (0, &len.to_le_bytes()),
        (8, &head.seq.to_le_bytes()),
        (16, &head.time.0.to_le_bytes()),
        (24, &head.seen_ms.to_le_bytes()),
        (32, &head.events.to_le_bytes()),
        (36, &head.version.to_le_bytes()),
        (38, &flags.to_le_bytes()),
    ];
    put(&mut out, &fields);
    let crc = crc32c::crc32c_append(checksum(&out, salt), payload);
    put(&mut out, &[(4, &crc.to_le_bytes())]);
    out
}

/// Puts fields in their places, as far as those lie within the bytes.
pub fn put(bytes: &mut [u8], fields: &[(usize, &[u8])]) {
    for (at, value) in fields {
        if let Some(place) = bytes.get_mut(*at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// Whether a record, its head and its payload, is what was written.
pub fn check(record: &[u8], salt: u32) -> bool {
    checksum(record, salt) == u32::from_le_bytes(field(record, 4))
}

/// The checksum of a record, or of its head alone, without its own field.
fn checksum(record: &[u8], salt: u32) -> u32 {
    let (before, after) = (record.get(..4), record.get(8..));
    crc32c::crc32c_append(crc32c::crc32c_append(salt, before.unwrap_or_default()), after.unwrap_or_default())
}

/// `N` bytes at a fixed offset; the callers' offsets lie within the head.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(seq: u64) -> Head {
        Head { len: 0, seq, time: Time(-5), seen_ms: 7, events: 3, version: 2, zstd: true, footer: false }
    }

    #[test]
    fn a_record_lies_as_the_table_says() {
        let bytes = [&encode(&head(0x0102_0304_0506_0708), b"payload", 9)[..], b"payload"].concat();
        assert_eq!(bytes.len(), HEAD + 7);
        assert_eq!(bytes[..4], [7, 0, 0, 0]);
        assert_eq!(bytes[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..24], (-5i64).to_le_bytes());
        assert_eq!(bytes[24..40], [7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 1, 0]);
        assert_eq!(&bytes[40..], b"payload");
        // A known answer, so that another program can check its CRC-32C (the common one, begun with the salt).
        assert_eq!(bytes[4..8], 0xa840_0cfe_u32.to_le_bytes());
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_always_found(payload in prop::collection::vec(any::<u8>(), 0..64), bit in 0usize..(HEAD + 64) * 8) {
            let mut bytes = [&encode(&head(1), &payload, 9)[..], &payload].concat();
            prop_assert!(check(&bytes, 9));
            prop_assert!(!check(&bytes, 10), "another run's record");
            let len = u32::try_from(payload.len()).unwrap();
            prop_assert_eq!(Head::decode(&field(&bytes, 0)), Head { len, ..head(1) });
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!check(&bytes, 9));
        }
    }
}

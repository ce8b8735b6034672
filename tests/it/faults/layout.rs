//! Where things lie in a spool's folder, read as its format says, without the crate: so that a test can damage just one.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// All logs of the scenes.
pub(crate) const COLLECTORS: [&str; 5] = ["pg_activity", "pg_statements", "pg_locks", "system_metrics", "agent_status"];

/// Bytes of a segment's header.
pub(crate) const HEADER: usize = 128;
/// Bytes of a record before its payload.
pub(crate) const HEAD: usize = 40;

/// A record of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Where it begins.
    pub(crate) at: usize,
    /// Its bytes, the head included.
    pub(crate) len: usize,
    pub(crate) seq: u64,
}

/// The segments of one log, oldest first.
pub(crate) fn segments(spool: &Path, collector: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(spool.join(collector)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

/// The records of a segment, in their order; what is torn at its end is left out.
pub(crate) fn records(segment: &Path) -> Vec<Record> {
    let bytes = fs::read(segment).unwrap_or_default();
    let (mut at, mut records) = (HEADER, Vec::new());
    while let Some(head) = bytes.get(at..at + HEAD) {
        let len = HEAD + u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let footer = head[38] & 2 != 0;
        if footer || at + len > bytes.len() {
            break;
        }
        records.push(Record { at, len, seq: u64::from_le_bytes(head[8..16].try_into().unwrap()) });
        at += len;
    }
    records
}

/// Whether the number of a log's last record is written to its place in the mark: the length of the name, 87 bytes for the
/// name, the run, the number. Until then an agent that is killed has given it to nobody.
pub(crate) fn is_given(spool: &Path, collector: &str) -> bool {
    let mark = fs::read(spool.join("mark")).unwrap_or_default();
    let named = |place: &&[u8]| place.get(1..=place[0].into()) == Some(collector.as_bytes());
    let place = mark.chunks_exact(128).take(64).find(named);
    let given = place.map(|place| u64::from_le_bytes(place[96..104].try_into().unwrap()));
    let last = segments(spool, collector).pop().and_then(|segment| records(&segment).pop());
    last.map(|record| record.seq) <= given
}

/// How many records the segments of one log hold.
pub(crate) fn waits(spool: &Path, collector: &str) -> usize {
    segments(spool, collector).iter().map(|segment| records(segment).len()).sum()
}

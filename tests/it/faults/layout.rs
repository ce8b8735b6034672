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

/// How many records the segments of one log hold.
pub(crate) fn waits(spool: &Path, collector: &str) -> usize {
    segments(spool, collector).iter().map(|segment| records(segment).len()).sum()
}

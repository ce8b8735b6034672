//! The `[spool]` table.

use std::{path::PathBuf, time::Duration};

use crate::settings::{Choice, Reader, Section, Size};

/// What happens when the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest segment of the least important collector goes.
    DropOldest,
    /// What comes is not taken in.
    DropNewest,
}

impl Choice for WhenFull {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("drop_oldest", Self::DropOldest), ("drop_newest", Self::DropNewest)];
}

/// The `[spool]` table.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder.
    pub dir: PathBuf,
    /// Bytes of segments, all collectors together.
    pub max_bytes: u64,
    /// Bytes that stay free on the file system.
    pub min_free: u64,
    /// What is older is declared lost; of time that the agent saw pass.
    pub max_age: Duration,
    /// A message that is not confirmed by then is synced.
    pub sync_after: Duration,
    /// What happens when it is full.
    pub when_full: WhenFull,
    /// Bytes a second at the most for what waited; `None` is unlimited.
    pub replay_rate: Option<u64>,
    /// Bytes of one segment file, as configured.
    pub segment_bytes: u64,
}

impl Config {
    /// A new segment is begun behind so many bytes: small enough that dropping one is no large part of the whole.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes.min(self.max_bytes / 8)
    }
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        const MIB: u64 = 1 << 20;
        let size = |mib: u64| Size(mib * MIB);
        Self {
            dir: reader.checked(
                "dir",
                PathBuf::from("/var/lib/postgres-agent/spool"),
                "Where what is not confirmed is kept. Made with mode 0700, files 0600. Best not on the volume of pg_wal.",
                |dir: &PathBuf| if dir.is_absolute() { Ok(()) } else { Err("an absolute path".into()) },
            ),
            max_bytes: reader
                .key_in("max_bytes", size(1024), size(1)..=size(MIB * 16), "Bytes of segments, all collectors together.")
                .0,
            min_free: reader
                .key_in("min_free", size(1024), Size(0)..=size(MIB * 16), "The agent never takes the file system below this; on a disk that has less it runs from memory.")
                .0,
            max_age: reader.key_in(
                "max_age",
                Duration::from_secs(7 * 86_400),
                Duration::from_secs(1)..=Duration::from_secs(3650 * 86_400),
                "What waited longer is dropped and declared. Of time that the agent saw pass, not of the wall clock.",
            ),
            segment_bytes: reader
                .key_in("segment_bytes", size(8), Size(64 << 10)..=size(1024), "Bytes of one segment file: what is dropped at once when the spool is full.")
                .0,
            sync_after: reader.key_in(
                "sync_after",
                Duration::from_secs(1),
                Duration::ZERO..=Duration::from_secs(3600),
                "A message not confirmed by then is on disk, synced; \"0s\" syncs each before it is published.",
            ),
            when_full: reader.key(
                "when_full",
                WhenFull::DropOldest,
                "What goes when the spool is full: drop_oldest the oldest of the least important collector, drop_newest what comes. Either is declared.",
            ),
            replay_rate: reader
                .optional_checked("replay_rate", "Bytes a second at the most for what waited in the spool. Unlimited when left out.", |rate: &Size| {
                    if rate.0 >= 1024 { Ok(()) } else { Err("at least \"1KiB\" (a second)".into()) }
                })
                .map(|rate| rate.0),
        }
    }
}

//! The counters of an entry: what they are, how they are read, and their arithmetic.

use schemars::JsonSchema;
use serde::{Serialize, ser::SerializeStruct};

use crate::postgres::{Cell, Cells, Error};

/// Something that only grows while its entry lives.
trait Counter: Sized {
    /// How much it grew; `None` if it fell, which it does not do by itself.
    fn since(self, before: Self) -> Option<Self>;
    fn plus(self, other: Self) -> Self;
}

impl Counter for u64 {
    fn since(self, before: Self) -> Option<Self> {
        self.checked_sub(before)
    }
    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl Counter for f64 {
    fn since(self, before: Self) -> Option<Self> {
        (self >= before).then_some(self - before)
    }
    fn plus(self, other: Self) -> Self {
        self + other
    }
}

/// What one version of the extension does not count, nothing is known of.
impl<T: Counter> Counter for Option<T> {
    fn since(self, before: Self) -> Option<Self> {
        match self.zip(before) {
            Some((now, before)) => now.since(before).map(Some),
            None => Some(None),
        }
    }
    fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// What an entry of pg_stat_statements counts. What the server's version does not count is nil.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
        pub struct Counters {
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl Counters {
            /// How many columns there are.
            pub(super) const COLUMNS: usize = [$(stringify!($name)),*].len();

            /// From columns in this order, the first of which is at `at`.
            pub(super) fn read(row: &impl Cells, mut at: usize) -> Result<Self, Error> {
                $(let $name = next::<$kind>(row, &mut at)?;)*
                Ok(Self { $($name),* })
            }

            /// Writes each one as a field of a struct that it is part of.
            pub(super) fn put<S: SerializeStruct>(&self, into: &mut S) -> Result<(), S::Error> {
                $(into.serialize_field(stringify!($name), &self.$name)?;)*
                Ok(())
            }

            /// How much each one grew; `None` if one fell: then the entry is another one than before.
            pub fn since(&self, before: &Self) -> Option<Self> {
                Some(Self { $($name: self.$name.since(before.$name)?),* })
            }

            /// Both together.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name.plus(other.$name)),* }
            }
        }
    };
}

fn next<T: Cell>(row: &impl Cells, at: &mut usize) -> Result<T, Error> {
    *at += 1;
    row.cell(*at - 1)
}

counters! {
    /// How often it ran.
    calls: u64,
    /// Time of all runs, in milliseconds.
    total_exec_time: f64,
    /// Rows that it returned or changed.
    rows: Option<u64>,
    /// Shared blocks (mostly of 8 KiB) found in shared buffers.
    shared_blks_hit: Option<u64>,
    /// Shared blocks read from disk or the system's cache.
    shared_blks_read: Option<u64>,
    /// Shared blocks that it wrote itself.
    shared_blks_written: Option<u64>,
    /// Blocks of temporary tables found in local buffers.
    local_blks_hit: Option<u64>,
    /// Blocks of temporary tables read.
    local_blks_read: Option<u64>,
    /// Blocks of temporary tables written.
    local_blks_written: Option<u64>,
    /// Blocks read of what did not fit into work_mem.
    temp_blks_read: Option<u64>,
    /// Blocks written of what did not fit into work_mem.
    temp_blks_written: Option<u64>,
    /// Time of reading blocks, in milliseconds; 0 without `track_io_timing`. On 17 and later the sum of shared and
    /// local blocks.
    blk_read_time: Option<f64>,
    /// Time of writing blocks, in milliseconds; 0 without `track_io_timing`. On 17 and later the sum of shared and
    /// local blocks.
    blk_write_time: Option<f64>,
    /// How often it was planned; 0 without `pg_stat_statements.track_planning`.
    plans: Option<u64>,
    /// Time of all planning, in milliseconds.
    total_plan_time: Option<f64>,
    /// WAL records that it made.
    wal_records: Option<u64>,
    /// Full page images in WAL that it made.
    wal_fpi: Option<u64>,
    /// WAL that it made, in bytes.
    wal_bytes: Option<u64>,
}

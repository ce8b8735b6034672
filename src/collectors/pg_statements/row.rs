//! Rows: a statement with what it counts and counted since, and what is told over all of them. Pure.

use schemars::JsonSchema;
use serde::{Serialize, Serializer, ser::SerializeStruct};
use smol_str::{SmolStr, ToSmolStr};

use super::{
    counters::Counters,
    entries::{Counted, Key},
    names::Names,
};
use crate::units::Time;

/// One statement as one role ran it in one database, since its entry was made.
#[derive(Debug, JsonSchema)]
pub struct Row {
    /// Id of the statement, the same as `query_id` in `pg_activity`.
    pub queryid: SmolStr,
    /// Its text, with `$n` for constants where the server normalizes it. Nil until it was fetched, which is seldom
    /// where texts are large, and where `privacy.query_text` is `off`.
    pub query: Option<SmolStr>,
    /// Since the entry was made.
    #[schemars(flatten)]
    pub counters: Counters,
    /// Mean time of a run, in milliseconds.
    pub mean_exec_time: Option<f64>,
    /// Shortest time of a run, in milliseconds.
    pub min_exec_time: Option<f64>,
    /// Longest time of a run, in milliseconds.
    pub max_exec_time: Option<f64>,
    /// Standard deviation of the times of runs, in milliseconds.
    pub stddev_exec_time: Option<f64>,
    /// Oid of the role that ran it.
    pub userid: u32,
    /// Its name; nil if it is gone.
    pub usename: Option<SmolStr>,
    /// Oid of the database that it ran in.
    pub dbid: u32,
    /// Its name; nil if it is gone.
    pub datname: Option<SmolStr>,
    /// Whether a client sent it, and not a function. Nil before version 1.9 of the extension.
    pub toplevel: Option<bool>,
    /// When the entry was made. Nil before version 1.11 of the extension.
    pub stats_since: Option<Time>,
    /// What the counters grew by since the sample before. Never more than what ran. Nil in a baseline, and where it
    /// cannot be known because the role saw less at the sample before.
    pub delta: Option<Counters>,
}

impl Serialize for Row {
    // Derived, `flatten` makes a map of unknown length of it, which is written twice.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("Row", 13 + Counters::COLUMNS)?;
        row.serialize_field("queryid", &self.queryid)?;
        row.serialize_field("query", &self.query)?;
        self.counters.put(&mut row)?;
        row.serialize_field("mean_exec_time", &self.mean_exec_time)?;
        row.serialize_field("min_exec_time", &self.min_exec_time)?;
        row.serialize_field("max_exec_time", &self.max_exec_time)?;
        row.serialize_field("stddev_exec_time", &self.stddev_exec_time)?;
        row.serialize_field("userid", &self.userid)?;
        row.serialize_field("usename", &self.usename)?;
        row.serialize_field("dbid", &self.dbid)?;
        row.serialize_field("datname", &self.datname)?;
        row.serialize_field("toplevel", &self.toplevel)?;
        row.serialize_field("stats_since", &self.stats_since)?;
        row.serialize_field("delta", &self.delta)?;
        row.end()
    }
}

/// Over all entries.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Summary {
    /// Entries, the hidden ones too.
    pub entries: u64,
    /// Sums of the deltas of the statements that the limit left out. Nil in a baseline.
    pub other: Option<Counters>,
    /// Entries that the server evicted since the sample before to make room; what they counted since then is lost. Nil
    /// in a baseline, and before version 1.9 of the extension.
    pub dealloc: Option<u64>,
    /// When all entries were last reset. Nil before version 1.9 of the extension.
    pub stats_reset: Option<Time>,
    /// Time since the sample before by the server's clock, in milliseconds. Nil in a baseline.
    pub interval_ms: Option<f64>,
    /// Whether this is the first sample of an epoch: there is nothing to compare with.
    pub baseline: bool,
    /// Whether the server measures the time of reading and writing blocks (`track_io_timing`).
    pub io_timing: bool,
    /// Whether the server measures planning (`pg_stat_statements.track_planning`).
    pub planning: bool,
}

/// Makes one of an entry.
pub(super) fn row(key: &Key, counted: &Counted, delta: Option<Counters>, names: &Names, query: Option<SmolStr>) -> Row {
    let Counted { counters, since, times } = counted;
    let [mean_exec_time, min_exec_time, max_exec_time, stddev_exec_time] = *times;
    Row {
        queryid: key.queryid.to_smolstr(),
        query,
        counters: counters.clone(),
        mean_exec_time,
        min_exec_time,
        max_exec_time,
        stddev_exec_time,
        userid: key.userid,
        usename: names.roles.get(&key.userid).cloned(),
        dbid: key.dbid,
        datname: names.databases.get(&key.dbid).cloned(),
        toplevel: key.toplevel,
        stats_since: *since,
        delta,
    }
}

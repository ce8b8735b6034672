//! Identity: which server this is, read anew on each look on the connection that the figures come from.
//!
//! A standby that was promoted, a crash and another server behind the same address are noticed by this alone.

use std::sync::Arc;

use super::{Error, value::Row};
use crate::{event::Server, units::Time};

pub(super) const SQL: &str = include_str!("identity.sql");

/// Which server this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The same on a primary and its standbys.
    pub system_identifier: String,
    /// The timeline that the server writes, or replays.
    pub timeline: u32,
    /// Such as 170004.
    pub version_num: u32,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The database of the connection.
    pub database: String,
    /// When the postmaster was started; a crash of a backend does not change it.
    pub postmaster_start: Time,
    /// When the checkpointer was started, which a crash changes; `None` if the role may not see it.
    pub checkpointer_start: Option<Time>,
    /// When the counters of the statistics system were last reset as a whole.
    pub stats_reset: Option<Time>,
    /// The role of the connection.
    pub role: String,
    /// Whether the role sees what other roles' sessions do: `pg_monitor`, `pg_read_all_stats` or a superuser.
    pub sees_all: bool,
    /// Whether a pooler stands between, which lends a backend for one transaction at a time.
    pub pooled: bool,
}

impl Identity {
    pub(super) fn read(row: &Row, pooled: bool) -> Result<Self, Error> {
        let in_recovery = row.get("in_recovery")?;
        let written = row.get::<Option<String>>("wal_timeline")?.and_then(|hex| u32::from_str_radix(&hex, 16).ok());
        let replayed = row.get::<Option<u32>>("replayed_timeline")?;
        Ok(Self {
            system_identifier: row.get::<i64>("system_identifier")?.cast_unsigned().to_string(),
            timeline: written
                .or(replayed)
                .ok_or(Error::Decode { column: "wal_timeline".into(), wanted: "a timeline" })?,
            version_num: row.get("version_num")?,
            in_recovery,
            database: row.get("database")?,
            postmaster_start: row.get("postmaster_start")?,
            checkpointer_start: row.get("checkpointer_start")?,
            stats_reset: row.get("stats_reset")?,
            role: row.get("role")?,
            sees_all: row.get("sees_all")?,
            pooled,
        })
    }

    /// The epoch of the views of the statistics system: new after a crash, since the checkpointer is new then;
    /// a role that may not see it is told by the last reset.
    pub fn stats_epoch(&self) -> String {
        match (self.checkpointer_start, self.stats_reset) {
            (Some(start), _) => self.epoch("checkpointer", start),
            (None, Some(reset)) => self.epoch("reset", reset),
            (None, None) => self.epoch("postmaster", self.postmaster_start),
        }
    }

    /// An epoch of counters that began at `since`, by the clock of `what`.
    pub fn epoch(&self, what: &str, since: Time) -> String {
        format!("{}/{what}/{since}", self.system_identifier)
    }

    /// For a message whose counters have this epoch.
    pub fn server(&self, stats_epoch: String) -> Arc<Server> {
        Arc::new(Server {
            system_identifier: self.system_identifier.clone(),
            timeline: self.timeline,
            version_num: self.version_num,
            in_recovery: self.in_recovery,
            database: self.database.clone(),
            stats_epoch,
        })
    }
}

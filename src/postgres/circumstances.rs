//! Circumstances: what the role may and how the server is set, which decides how much a look can bring.
//!
//! For `check`. Looks find out by themselves what they lack.

use super::{Error, Session};

const SQL: &str = include_str!("circumstances.sql");
const EVICTIONS: &str = include_str!("evictions.sql");

/// How a server is set, as one of its sessions sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct Circumstances {
    /// Whether the role is a superuser.
    pub superuser: bool,
    /// Connections that the role may have; -1: no limit of its own.
    pub role_limit: i64,
    /// Connections that the role has, this one included.
    pub role_connections: i64,
    /// Connections of everybody.
    pub connections: i64,
    /// Connections that ordinary roles may have, all together.
    pub connections_max: i64,
    /// Whether sessions tell what they do.
    pub track_activities: bool,
    /// Whether reads and writes of blocks are timed.
    pub track_io_timing: bool,
    /// Bytes that the server keeps of a session's statement.
    pub query_size: i64,
    /// `compute_query_id`; `None` before 14.
    pub compute_query_id: Option<String>,
    /// `pg_stat_statements.track`; `None` where it is not loaded.
    pub statements_track: Option<String>,
    /// `pg_stat_statements.max`; `None` where it is not loaded.
    pub statements_max: Option<i64>,
    /// The version of the extension in this database; `None` where it is not created.
    pub extension_version: Option<String>,
    /// The version that the server's files would make.
    pub extension_available: Option<String>,
    /// Where the extension is, quoted where it needs to be.
    pub extension_schema: Option<String>,
    /// Whether a standby has stopped to replay.
    pub replay_paused: bool,
    /// Whether this session is encrypted.
    pub tls: bool,
    /// Such as `TLSv1.3`.
    pub tls_version: Option<String>,
    /// Such as `TLS_AES_256_GCM_SHA384`.
    pub tls_cipher: Option<String>,
    /// The server's own address for this session; `None` for a socket.
    pub server_address: Option<String>,
    /// Where the session comes from; `None` for a socket.
    pub client_address: Option<String>,
    /// The port that the server itself listens on.
    pub port: i64,
    /// Folders of its sockets, separated by commas; `None` where the role may not see them.
    pub socket_directories: Option<String>,
}

impl Circumstances {
    /// What makes a standby replay again.
    pub const RESUME_REPLAY: &str = "SELECT pg_wal_replay_resume();";

    /// Reads them in one statement.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn read(session: &mut Session) -> Result<Self, Error> {
        let rows = session.query("check.circumstances", SQL, &[]).await?;
        let row = rows.first().ok_or(Error::Decode { column: "superuser".into(), wanted: "one row" })?;
        let flag = |name: &str| row.get::<Option<bool>>(name).map(|value| value.unwrap_or(false));
        Ok(Self {
            superuser: flag("superuser")?,
            role_limit: row.get("role_limit")?,
            role_connections: row.get("role_connections")?,
            connections: row.get::<Option<i64>>("connections")?.unwrap_or(0),
            connections_max: row.get("connections_max")?,
            track_activities: flag("track_activities")?,
            track_io_timing: flag("track_io_timing")?,
            query_size: row.get("query_size")?,
            compute_query_id: row.get("compute_query_id")?,
            statements_track: row.get("statements_track")?,
            statements_max: row.get("statements_max")?,
            extension_version: row.get("extension_version")?,
            extension_available: row.get("extension_available")?,
            extension_schema: row.get("extension_schema")?,
            replay_paused: flag("replay_paused")?,
            tls: flag("tls")?,
            tls_version: row.get("tls_version")?,
            tls_cipher: row.get("tls_cipher")?,
            server_address: row.get("server_address")?,
            client_address: row.get("client_address")?,
            port: row.get("port")?,
            socket_directories: row.get("socket_directories")?,
        })
    }

    /// Entries that `pg_stat_statements` holds, and how often it had to throw some away since its last reset; `None` where the
    /// extension does not tell, as before 14.
    pub async fn evictions(&self, session: &mut Session) -> Option<(i64, i64)> {
        let schema = self.extension_schema.as_ref()?;
        // A role without rights on it, or an older one: that is told elsewhere.
        let rows = session.query("check.evictions", &EVICTIONS.replace("{schema}", schema), &[]).await.ok()?;
        let row = rows.first()?;
        Some((row.get("entries").ok()?, row.get("evicted").ok()?))
    }
}

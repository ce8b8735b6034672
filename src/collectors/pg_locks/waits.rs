//! Waits: the locks that somebody waits for, read in one statement.

use super::graph::{Lock, Node};
use crate::postgres::{Error, Row, Session};

const SQL: &str = include_str!("waits.sql");

/// Reads all locks on what somebody waits for; none if nobody waits.
///
/// # Errors
/// As [`Session::query`].
pub async fn look(session: &mut Session) -> Result<Vec<Lock>, Error> {
    session.query("pg_locks.waits", SQL, &[]).await?.iter().map(lock).collect()
}

fn lock(row: &Row) -> Result<Lock, Error> {
    let node = match row.get::<Option<i32>>("pid")? {
        Some(pid) => Node::Pid(pid),
        None => Node::Prepared(row.get::<Option<String>>("gid")?.unwrap_or_default()),
    };
    Ok(Lock {
        object: row.get("object")?,
        node,
        mode: row.get("mode")?,
        granted: row.get("granted")?,
        wait_start: row.get("wait_start")?,
        blockers: row.get::<Option<Vec<i32>>>("blockers")?.unwrap_or_default(),
        locktype: row.get("locktype")?,
        relation: row.get("relation")?,
        named_here: row.get::<Option<bool>>("named_here")?.unwrap_or(false),
    })
}

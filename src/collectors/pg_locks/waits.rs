//! Waits: the locks that somebody waits for, read in one statement that takes `pg_locks` once.

use std::{collections::BTreeMap, time::Duration};

use smol_str::SmolStr;

use super::{
    graph::{Blockers, Lock, Node},
    object::Object,
};
use crate::postgres::{Error, Param, Row, Session};

const SQL: &str = include_str!("waits.sql");
pub(super) const PREPARED: &str = include_str!("prepared.sql");

/// How long the server is asked who is in whose way. 1,000 waiters in one queue take it 0.16 s of a processor (on 18).
const ASKING: Duration = Duration::from_millis(250);

/// Reads all locks on what somebody waits for; none if nobody waits.
///
/// # Errors
/// As [`Session::query`].
pub async fn look(session: &mut Session) -> Result<Vec<Lock>, Error> {
    let in_recovery = session.identity().in_recovery;
    let (mut locks, params) = (Vec::new(), [Param::Float(ASKING.as_secs_f64())]);
    session.each("pg_locks.waits", SQL, &params, &mut |row| locks.push(lock(&row, in_recovery))).await?;
    let mut locks = locks.into_iter().collect::<Result<Vec<Lock>, Error>>()?;
    if locks.iter().any(|lock| matches!(lock.node, Node::Prepared(_))) {
        let rows = session.query("pg_locks.prepared", PREPARED, &[]).await?;
        let gid = |row: &Row| Ok((row.get("transaction")?, row.get("gid")?));
        name(&mut locks, &rows.iter().map(gid).collect::<Result<_, Error>>()?);
    }
    Ok(locks)
}

/// A prepared transaction has no pid; its own lock on its xid tells which one it is.
fn name(locks: &mut [Lock], gids: &BTreeMap<u32, SmolStr>) {
    let of = |lock: &Lock| {
        let gid = gids.get(&lock.object.transactionid.filter(|_| lock.granted)?)?;
        matches!(lock.node, Node::Prepared(_)).then(|| (lock.transaction.clone(), gid.clone()))
    };
    let known: BTreeMap<SmolStr, SmolStr> = locks.iter().filter_map(of).collect();
    for lock in locks {
        if let (Node::Prepared(gid), Some(known)) = (&mut lock.node, known.get(&lock.transaction)) {
            gid.clone_from(known);
        }
    }
}

fn lock(row: &Row, in_recovery: bool) -> Result<Lock, Error> {
    let blockers = match row.get::<Option<Vec<i32>>>("blockers")? {
        // pg_blocking_pids knows backends, and the process that replays WAL is none.
        Some(told) if told.is_empty() && in_recovery => Blockers::Unknown,
        Some(told) => Blockers::Told(told),
        None => Blockers::NotAsked,
    };
    Ok(Lock {
        object: Object {
            locktype: row.get("locktype")?,
            database: row.get("database")?,
            relation: row.get("relation")?,
            page: row.get("page")?,
            tuple: row.get("tuple")?,
            virtualxid: row.get("virtualxid")?,
            transactionid: row.get("transactionid")?,
            classid: row.get("classid")?,
            objid: row.get("objid")?,
            objsubid: row.get("objsubid")?,
        },
        node: row.get::<Option<i32>>("pid")?.map_or(Node::Prepared(SmolStr::default()), Node::Pid),
        transaction: row.get("virtualtransaction")?,
        mode: row.get("mode")?,
        granted: row.get("granted")?,
        wait_start: row.get("wait_start")?,
        blockers,
    })
}

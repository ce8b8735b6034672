//! Rows: an edge of the graph with the sessions at both of its ends, and the summary of its roots.
//!
//! Pure. What the role may not see of a session is nil; that somebody waits is told all the same.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use smol_str::{SmolStr, ToSmolStr};

use super::{
    graph::{self, Edge, Graph, Lock, Node},
    object::Object,
    parties::Parties,
};
use crate::{postgres, units::Time};

/// One edge: somebody waits for somebody.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// Process id of the one who waits; a parallel worker is its leader.
    pub blocked_pid: i32,
    /// Its role.
    pub blocked_user: Option<SmolStr>,
    /// Its `application_name`.
    pub blocked_application: Option<SmolStr>,
    /// Its client's address; nil for Unix sockets.
    pub blocked_client_addr: Option<SmolStr>,
    /// The statement that waits.
    pub blocked_query: Option<SmolStr>,
    /// When that statement began.
    pub blocked_query_start: Option<Time>,
    /// Process id of the one in its way; 0 for a prepared transaction.
    pub blocking_pid: i32,
    /// Its role; of a prepared transaction, its owner.
    pub blocking_user: Option<SmolStr>,
    /// Its `application_name`.
    pub blocking_application: Option<SmolStr>,
    /// Its client's address; nil for Unix sockets.
    pub blocking_client_addr: Option<SmolStr>,
    /// Its current or last statement, which need not be the one that took the lock; of a prepared transaction, its gid.
    pub blocking_query: Option<SmolStr>,
    /// When that statement began.
    pub blocking_query_start: Option<Time>,
    /// What kind of thing is waited for: `relation`, `transactionid` (a row that somebody changes), `advisory`, …
    pub locktype: SmolStr,
    /// The lock that is asked for, such as `ShareLock`.
    pub blocked_mode: SmolStr,
    /// The lock in its way, held or itself asked for. Nil if it was gone when it was looked at.
    pub blocking_mode: Option<SmolStr>,
    /// The database of the one who waits.
    pub datname: Option<SmolStr>,
    /// The relation, with its schema; its oid where the name is of another database or cannot be read. For a row lock
    /// it is the one that the waiter's own tuple lock names.
    pub relation: Option<SmolStr>,
    /// What exactly is locked: `(page,tuple)`, a page, a transaction (xid or virtual), an advisory key (a number, or two
    /// as `(1, 2)`), catalog and object as `1262/5`. Nil for a whole relation, which `relation` names.
    pub lock_target: Option<SmolStr>,
    /// Since when it waits. Nil on PostgreSQL 13, and for a moment after a wait begins.
    pub wait_start: Option<Time>,
    /// How long it waits, in milliseconds. Where `wait_start` is nil, since it was first seen waiting: a lower bound.
    pub wait_ms: Option<f64>,
    /// Whether the blocker holds its lock; false if it only stands before in the queue (of such ones only the nearest
    /// is told). Nil if it was gone when it was looked at.
    pub blocking_granted: Option<bool>,
    /// `active`, `idle in transaction`, …; nil for a prepared transaction.
    pub blocking_state: Option<SmolStr>,
    /// When the blocker's transaction began.
    pub blocking_xact_start: Option<Time>,
    /// When the blocker's state last changed; of a prepared transaction, when it was prepared.
    pub blocking_state_change: Option<Time>,
    /// Who is at the end of this chain and waits for nobody; 0 for a prepared transaction. Empty in a cycle, and where
    /// so many wait that nobody knows for whom the blocker does.
    pub root_pids: Vec<i32>,
    /// The shortest way to a root: 1 if the blocker waits for nobody. Nil where `root_pids` is empty.
    pub depth: Option<u32>,
    /// Correlation id of the one who waits.
    pub blocked_correlation_id: Option<SmolStr>,
    /// Correlation id of the one in its way.
    pub blocking_correlation_id: Option<SmolStr>,
}

/// Over all edges, those that the limit left out too.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Summary {
    /// Who waits for a lock; parallel workers count as their leader.
    pub waiters: u64,
    /// Who is in whose way, everybody in a queue included.
    pub edges: u64,
    /// Who blocks and waits for nobody; the one that blocks most comes first, and 100 are told at the most.
    pub roots: Vec<Root>,
    /// How many more of them there are.
    pub roots_omitted: u64,
}

/// Somebody who blocks and waits for nobody.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Root {
    /// Process id; 0 for a prepared transaction.
    pub pid: i32,
    /// Name of the prepared transaction; else nil.
    pub gid: Option<SmolStr>,
    /// Its database.
    pub datname: Option<SmolStr>,
    /// Its role; of a prepared transaction, its owner.
    pub usename: Option<SmolStr>,
    /// Its `application_name`.
    pub application_name: Option<SmolStr>,
    /// Its client's address; nil for Unix sockets.
    pub client_addr: Option<SmolStr>,
    /// `active`, `idle in transaction`, …; nil for a prepared transaction.
    pub state: Option<SmolStr>,
    /// When its state last changed; of a prepared transaction, when it was prepared.
    pub state_change: Option<Time>,
    /// When its transaction began.
    pub xact_start: Option<Time>,
    /// Its current or last statement.
    pub query: Option<SmolStr>,
    /// Its correlation id.
    pub correlation_id: Option<SmolStr>,
    /// How many it blocks, directly or not.
    pub blocked: u64,
    /// How long the one among these waits that waits longest, in milliseconds.
    pub longest_wait_ms: Option<f64>,
}

/// The most roots that a summary tells: it stands in each part of an event.
pub(super) const ROOTS: usize = 100;

/// One wait: whose, in which of its transactions and statements, for what. With the next wait something of it changes.
pub(super) type Wait = (Node, SmolStr, Option<Time>, Object);

/// All that rows are made of.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) locks: &'a [Lock],
    pub(super) graph: &'a Graph,
    pub(super) parties: &'a Parties<'a>,
    pub(super) names: &'a Names,
    /// Since when each lock is waited for, or was first seen to be.
    pub(super) since: &'a [Option<Time>],
    pub(super) clock: Time,
}

impl Scene<'_> {
    pub(super) fn row(&self, edge: &Edge) -> Row {
        let (blocked, blocking) = (self.parties.get(&edge.blocked), self.parties.get(&edge.blocking));
        let lock = self.locks.get(edge.lock);
        let (wait_start, wait_ms) = self.wait(edge);
        Row {
            blocked_pid: edge.blocked.pid(),
            blocked_user: blocked.and_then(|party| party.usename.clone()),
            blocked_application: blocked.and_then(|party| party.application_name.clone()),
            blocked_client_addr: blocked.and_then(|party| party.client_addr.clone()),
            blocked_query: blocked.and_then(|party| party.query.clone()),
            blocked_query_start: blocked.and_then(|party| party.query_start),
            blocking_pid: edge.blocking.pid(),
            blocking_user: blocking.and_then(|party| party.usename.clone()),
            blocking_application: blocking.and_then(|party| party.application_name.clone()),
            blocking_client_addr: blocking.and_then(|party| party.client_addr.clone()),
            blocking_query: gid(&edge.blocking).or_else(|| blocking?.query.clone()),
            blocking_query_start: blocking.and_then(|party| party.query_start),
            locktype: lock.map(|lock| lock.object.locktype.clone()).unwrap_or_default(),
            blocked_mode: lock.map(|lock| lock.mode.clone()).unwrap_or_default(),
            blocking_mode: edge.mode.map(SmolStr::new_static),
            datname: blocked.and_then(|party| party.datname.clone()),
            relation: lock.and_then(|lock| self.relation(lock)),
            lock_target: lock.and_then(|lock| lock.object.target()),
            wait_start,
            wait_ms,
            blocking_granted: edge.granted,
            blocking_state: blocking.and_then(|party| party.state.clone()),
            blocking_xact_start: blocking.and_then(|party| party.xact_start),
            blocking_state_change: blocking.and_then(|party| party.state_change),
            root_pids: self.graph.roots_of(edge).iter().map(Node::pid).collect(),
            depth: edge.depth,
            blocked_correlation_id: blocked.and_then(|party| party.correlation_id.clone()),
            blocking_correlation_id: blocking.and_then(|party| party.correlation_id.clone()),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        // Of all who wait, how long.
        let mut waits: BTreeMap<&Node, f64> = BTreeMap::new();
        for edge in &self.graph.edges {
            let longest = waits.entry(&edge.blocked).or_default();
            *longest = longest.max(self.wait(edge).1.unwrap_or_default());
        }
        let roots = self.graph.roots.iter().take(ROOTS);
        Summary {
            waiters: self.graph.waiters.len() as u64,
            edges: self.graph.told as u64,
            roots: roots.map(|root| self.root(root, &waits)).collect(),
            roots_omitted: self.graph.roots.len().saturating_sub(ROOTS) as u64,
        }
    }

    fn root(&self, root: &graph::Root, waits: &BTreeMap<&Node, f64>) -> Root {
        let party = self.parties.get(&root.node);
        let below = self.graph.blocked_by(root).filter_map(|node| waits.get(node));
        Root {
            pid: root.node.pid(),
            gid: gid(&root.node),
            datname: party.and_then(|party| party.datname.clone()),
            usename: party.and_then(|party| party.usename.clone()),
            application_name: party.and_then(|party| party.application_name.clone()),
            client_addr: party.and_then(|party| party.client_addr.clone()),
            state: party.and_then(|party| party.state.clone()),
            state_change: party.and_then(|party| party.state_change),
            xact_start: party.and_then(|party| party.xact_start),
            query: party.and_then(|party| party.query.clone()),
            correlation_id: party.and_then(|party| party.correlation_id.clone()),
            blocked: root.blocked as u64,
            longest_wait_ms: below.copied().max_by(f64::total_cmp),
        }
    }

    /// Whether the role may not see one of the two.
    pub(super) fn hidden(&self, edge: &Edge) -> bool {
        [&edge.blocked, &edge.blocking].into_iter().any(|node| self.parties.is_hidden(node))
    }

    /// Since when an edge's lock is waited for, if the server tells, and for how many milliseconds.
    fn wait(&self, edge: &Edge) -> (Option<Time>, Option<f64>) {
        let told = self.locks.get(edge.lock).and_then(|lock| lock.wait_start);
        let start = self.since.get(edge.lock).copied().flatten();
        // A wait that began between the look at the clock and that at the locks has lasted no time at all.
        let waited = start.map(|start| self.clock.0.saturating_sub(start.0).max(0) as f64 / 1000.0);
        (told, waited)
    }

    fn relation(&self, lock: &Lock) -> Option<SmolStr> {
        named(self.locks, lock).map(|object| self.names.of(object))
    }
}

/// The name of a prepared transaction, if it is known.
fn gid(node: &Node) -> Option<SmolStr> {
    match node {
        Node::Prepared(gid) => Some(gid.clone()).filter(|gid| !gid.is_empty()),
        Node::Pid(_) => None,
    }
}

/// Of who waits, which wait it is.
pub(super) fn wait(lock: &Lock, parties: &Parties<'_>) -> Wait {
    let statement = parties.get(&lock.node).and_then(|party| party.query_start);
    (lock.node.clone(), lock.transaction.clone(), statement, lock.object.clone())
}

/// What of a lock has a relation: itself, or the row that is waited for. Who waits for a row's transaction holds a lock
/// on the row meanwhile.
pub(super) fn named<'a>(locks: &'a [Lock], lock: &'a Lock) -> Option<&'a Object> {
    let is_row = |other: &&Lock| other.node == lock.node && other.object.locktype == "tuple";
    let found = if lock.object.relation.is_some() { Some(lock) } else { locks.iter().find(is_row) };
    found.map(|lock| &lock.object)
}

/// Names of relations.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeMap<u32, SmolStr>,
    /// The database that they are of.
    here: Option<u32>,
}

impl Names {
    pub(super) fn read(rows: &[postgres::Row]) -> Self {
        let known = rows.iter().filter_map(|row| Some((row.get("oid").ok()?, row.get("name").ok()?))).collect();
        Self { known, here: rows.first().and_then(|row| row.get("here").ok()) }
    }

    /// The name of what is locked; its oid if it is of another database, or unknown.
    fn of(&self, object: &Object) -> SmolStr {
        let oid = object.relation.unwrap_or_default();
        let here = object.database == Some(0) || object.database == self.here;
        self.known.get(&oid).filter(|_| here).cloned().unwrap_or_else(|| oid.to_smolstr())
    }
}

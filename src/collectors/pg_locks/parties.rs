//! Parties: the sessions and prepared transactions that take part in a scene, read only as far as rows are made of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    graph::{Graph, Lock, Node},
    waits,
};
use crate::{
    collectors::sight::Unreadable,
    postgres::{Error, Param, Row, Session},
    units::Time,
};

const SESSIONS: &str = include_str!("sessions.sql");

/// A session, or a prepared transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct Party {
    pub(super) datname: Option<String>,
    pub(super) usename: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) client_addr: Option<String>,
    pub(super) state: Option<String>,
    pub(super) state_change: Option<Time>,
    pub(super) xact_start: Option<Time>,
    pub(super) query_start: Option<Time>,
    pub(super) query: Option<String>,
}

/// What is known of those who take part.
#[derive(Debug, Default)]
pub(super) struct Parties {
    known: BTreeMap<Node, Party>,
    /// The leader of each parallel worker.
    pub(super) leaders: BTreeMap<i32, i32>,
    hidden: BTreeSet<i32>,
    /// Who was asked for, known or gone.
    asked: BTreeSet<Node>,
    /// What could not be read.
    pub(super) unreadable: Unreadable,
    /// Why nothing could be read.
    pub(super) trouble: Option<Error>,
}

impl Parties {
    pub(super) fn get(&self, node: &Node) -> Option<&Party> {
        self.known.get(node)
    }

    /// Whether the role may not see what one does.
    pub(super) fn is_hidden(&self, node: &Node) -> bool {
        matches!(node, Node::Pid(pid) if self.hidden.contains(pid))
    }

    /// Reads those of `wanted` that were not asked for before, and says whether that can change the picture. Somebody
    /// may have locked the catalogs: then what `pg_locks` tells has to do, and `trouble` says why.
    ///
    /// # Errors
    /// As [`Session::query`], but for an answer of the server that is an error.
    pub(super) async fn look(
        &mut self,
        session: &mut Session,
        wanted: BTreeSet<Node>,
        graph: &Graph,
        locks: &[Lock],
        most_bytes: usize,
    ) -> Result<bool, Error> {
        let new: BTreeSet<Node> = wanted.difference(&self.asked).cloned().collect();
        if new.is_empty() || self.trouble.is_some() {
            return Ok(false);
        }
        let leaders = self.leaders.len();
        let all = locks.iter().map(|lock| &lock.node).chain(graph.edges.iter().map(|edge| &edge.blocking));
        let all: BTreeSet<i32> = all.map(Node::pid).collect();
        let pids: BTreeSet<i32> = new.iter().map(Node::pid).collect();
        let most_bytes = i64::from(i32::try_from(most_bytes).unwrap_or(i32::MAX));
        let (pids, all) = (Vec::from_iter(pids), Vec::from_iter(all));
        let bounds = [Param::Ints(&pids), Param::Ints(&all), Param::Int(most_bytes)];
        let mut answer = session.query("pg_locks.sessions", SESSIONS, &bounds).await;
        if let (Ok(rows), true) = (&mut answer, new.iter().any(|node| matches!(node, Node::Prepared(_)))) {
            match session.query("pg_locks.prepared", waits::PREPARED, &[]).await {
                Ok(more) => rows.extend(more),
                Err(error) => answer = Err(error),
            }
        }
        match answer {
            Ok(rows) => rows.iter().for_each(|row| self.take(row)),
            Err(error @ Error::Query { .. }) => self.trouble = Some(error),
            Err(error) => return Err(error),
        }
        self.asked.extend(new);
        let untold = locks.iter().any(|lock| !lock.granted && lock.wait_start.is_none());
        Ok(untold || self.leaders.len() != leaders)
    }

    fn take(&mut self, row: &Row) {
        let taken = if row.has("gid") { self.prepared(row) } else { self.session(row) };
        if let Err(error) = taken {
            self.unreadable.note(error);
        }
    }

    fn session(&mut self, row: &Row) -> Result<(), Error> {
        let pid: i32 = row.get("pid")?;
        self.leaders.extend(row.get::<Option<i32>>("leader_pid")?.map(|leader| (pid, leader)));
        let hidden = row.get::<Option<bool>>("hidden")?.unwrap_or(false);
        if hidden {
            self.hidden.insert(pid);
        }
        let party = Party {
            datname: row.get("datname")?,
            usename: row.get("usename")?,
            application_name: row.get("application_name")?,
            client_addr: row.get("client_addr")?,
            state: row.get("state")?,
            state_change: row.get("state_change")?,
            xact_start: row.get("xact_start")?,
            query_start: row.get("query_start")?,
            query: row.get::<Option<String>>("query")?.filter(|_| !hidden),
        };
        self.known.insert(Node::Pid(pid), party);
        Ok(())
    }

    fn prepared(&mut self, row: &Row) -> Result<(), Error> {
        let party = Party {
            datname: row.get("database")?,
            usename: row.get("owner")?,
            state_change: row.get("prepared")?,
            ..Party::default()
        };
        self.known.insert(Node::Prepared(row.get("gid")?), party);
        Ok(())
    }
}

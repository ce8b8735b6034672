//! Parties: the sessions and prepared transactions that take part in a scene, read only as far as rows are made of them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use smol_str::SmolStr;

use super::{
    graph::{Graph, Lock, Node},
    waits,
};
use crate::{
    collectors::sight::Unreadable,
    postgres::{Error, Param, Row, Session},
    text::{Correlation, Policy},
    units::Time,
};

const SESSIONS: &str = include_str!("sessions.sql");

/// A session, or a prepared transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct Party {
    pub(super) datname: Option<SmolStr>,
    pub(super) usename: Option<SmolStr>,
    pub(super) application_name: Option<SmolStr>,
    pub(super) client_addr: Option<SmolStr>,
    pub(super) state: Option<SmolStr>,
    pub(super) state_change: Option<Time>,
    pub(super) xact_start: Option<Time>,
    pub(super) query_start: Option<Time>,
    /// What may leave of it.
    pub(super) query: Option<SmolStr>,
    pub(super) correlation_id: Option<SmolStr>,
}

/// What is taken of texts.
#[derive(Debug)]
pub(super) struct Texts<'a> {
    pub(super) policy: &'a Policy,
    pub(super) query_max_chars: usize,
    pub(super) correlation: &'a Correlation,
}

/// What is known of those who take part.
#[derive(Debug)]
pub(super) struct Parties<'a> {
    texts: Texts<'a>,
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

impl<'a> Parties<'a> {
    pub(super) fn new(texts: Texts<'a>) -> Self {
        Self {
            texts,
            known: BTreeMap::new(),
            leaders: BTreeMap::new(),
            hidden: BTreeSet::new(),
            asked: BTreeSet::new(),
            unreadable: Unreadable::default(),
            trouble: None,
        }
    }

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
    ) -> Result<bool, Error> {
        let new: BTreeSet<Node> = wanted.difference(&self.asked).cloned().collect();
        if new.is_empty() || self.trouble.is_some() {
            return Ok(false);
        }
        let leaders = self.leaders.len();
        let all = locks.iter().map(|lock| &lock.node).chain(graph.edges.iter().map(|edge| &edge.blocking));
        let all: BTreeSet<i32> = all.map(Node::pid).collect();
        let pids: BTreeSet<i32> = new.iter().map(Node::pid).collect();
        // A character has four bytes at the most, and what is masked is rarely half of a text.
        let most_bytes = self.texts.query_max_chars.saturating_mul(8).max(4096);
        let most_bytes = i64::from(i32::try_from(most_bytes).unwrap_or(i32::MAX));
        let (pids, all) = (Vec::from_iter(pids), Vec::from_iter(all));
        let bounds = [Param::Ints(&pids), Param::Ints(&all), Param::Int(most_bytes)];
        let mut answered =
            session.each("pg_locks.sessions", SESSIONS, &bounds, &mut |row| self.take(&row, Self::session)).await;
        if answered.is_ok() && new.iter().any(|node| matches!(node, Node::Prepared(_))) {
            answered = session
                .each("pg_locks.prepared", waits::PREPARED, &[], &mut |row| self.take(&row, Self::prepared))
                .await;
        }
        match answered {
            Ok(()) => {}
            Err(error @ Error::Query { .. }) => self.trouble = Some(error),
            Err(error) => return Err(error),
        }
        self.asked.extend(new);
        let untold = locks.iter().any(|lock| !lock.granted && lock.wait_start.is_none());
        Ok(untold || self.leaders.len() != leaders)
    }

    fn take(&mut self, row: &Row, read: fn(&mut Self, &Row) -> Result<(), Error>) {
        if let Err(error) = read(self, row) {
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
        let clean =
            |query: Cow<'_, str>| self.texts.policy.clean(&query, self.texts.query_max_chars).map(SmolStr::from);
        let application_name: Option<SmolStr> = row.get("application_name")?;
        let party = Party {
            datname: row.get("datname")?,
            usename: row.get("usename")?,
            correlation_id: self.texts.correlation.id(application_name.as_deref()).map(SmolStr::from),
            application_name,
            client_addr: row.get("client_addr")?,
            state: row.get("state")?,
            state_change: row.get("state_change")?,
            xact_start: row.get("xact_start")?,
            query_start: row.get("query_start")?,
            query: row.text("query")?.filter(|_| !hidden).and_then(clean),
        };
        self.known.insert(Node::Pid(pid), party);
        Ok(())
    }

    fn prepared(&mut self, row: &Row) -> Result<(), Error> {
        let node = Node::Prepared(row.get("gid")?);
        let party = Party {
            state_change: row.get("prepared")?,
            usename: row.get("owner")?,
            datname: row.get("database")?,
            ..Party::default()
        };
        self.known.insert(node, party);
        Ok(())
    }
}

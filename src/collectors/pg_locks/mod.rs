//! Locks: who waits for whom, for what, since when, and who is at the end of the chain.
//!
//! The edges are the server's own (`pg_blocking_pids`), and the waiters come from `pg_locks`: a role without rights
//! sees no `wait_event_type`, and would say that nobody waits. The usual query of the wiki, which joins locks with
//! locks, is wrong: it tells readers behind a waiting writer to wait for each other.
//!
//! `graph` makes edges of lock rows and is pure; `row` puts sessions and names beside them.

pub mod graph;
mod row;
pub mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    CollectError, Collector, Context,
    sight::{self, Unreadable},
};
use crate::{
    event::Sample,
    postgres::{Error, Param, Session},
    settings::{Reader, Section},
    text::Correlation,
    units::Time,
};
use graph::{Edge, Graph, Lock, Node};
use row::{Party, Scene};
pub use row::{Root, Row, Summary};

const SESSIONS: &str = include_str!("sessions.sql");
const NAMES: &str = include_str!("names.sql");

/// Keys of its own.
#[derive(Debug, Clone)]
pub struct Config {
    limit: u64,
    query_max_chars: u64,
    correlation: Correlation,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        Self {
            limit: reader.key_in("limit", 50, 1..=100_000, "Rows at the most; those nearest to a root are kept first."),
            query_max_chars: reader.key_in(
                "query_max_chars",
                500,
                1..=1_048_576,
                "Characters of a statement at the most; behind them stands ...[truncated].",
            ),
            correlation: Correlation::peek(reader, "collectors.pg_activity.correlation_pattern"),
        }
    }
}

/// The collector.
#[derive(Debug)]
pub struct PgLocks {
    config: Config,
    /// Since when somebody is seen waiting for something, where the server does not tell (13).
    since: BTreeMap<(Node, String), Time>,
}

impl Collector for PgLocks {
    const NAME: &'static str = "pg_locks";
    const IMPORTANCE: u8 = 4;
    type Config = Config;
    type Data = Vec<Row>;
    type Summary = Summary;

    fn new(config: Config) -> Self {
        Self { config, since: BTreeMap::new() }
    }

    async fn collect(&mut self, context: &Context) -> Result<Sample<Vec<Row>, Summary>, CollectError> {
        let start = Instant::now();
        let mut session = context.postgres.session(Self::NAME).await?;
        let locks = waits::look(&mut session).await?;
        let mut unreadable = Unreadable::default();
        let parties = parties(&mut session, &locks, &mut unreadable).await?;
        let leaders = parties.values().filter_map(|party| Some((party.node.pid(), party.leader?))).collect();
        let graph = Graph::new(&locks, &leaders);
        let names = names(&mut session, &locks).await?;
        self.remember(&locks, session.clock());

        let scene = Scene {
            locks: &locks,
            graph: &graph,
            parties: &parties,
            names: &names,
            since: &self.since,
            clock: session.clock(),
            texts: &context.texts,
            correlation: &self.config.correlation,
            query_max_chars: usize::try_from(self.config.query_max_chars).unwrap_or(usize::MAX),
        };
        let limit = usize::try_from(self.config.limit).unwrap_or(usize::MAX);
        let mut edges: Vec<&Edge> = graph.edges.iter().collect();
        edges.sort_by_cached_key(|edge| importance(edge, &scene));
        let data: Vec<Row> = edges.iter().take(limit).map(|edge| scene.row(edge)).collect();
        let identity = session.identity();
        Ok(Sample {
            server: Some(identity.server(identity.stats_epoch())),
            collected_at: session.clock(),
            duration: start.elapsed(),
            omitted: (edges.len() - data.len()) as u64 + unreadable.count(),
            hidden: edges.iter().filter(|edge| scene.hidden(edge)).count() as u64,
            summary: Some(scene.summary()),
            data,
            degraded: sight::degraded(identity, &unreadable),
        })
    }
}

impl PgLocks {
    /// Keeps since when each one who waits now was seen waiting, and forgets the others.
    fn remember(&mut self, locks: &[Lock], now: Time) {
        let waiting = locks.iter().filter(|lock| !lock.granted);
        let seen = waiting.map(|lock| {
            let key = (lock.node.clone(), lock.object.clone());
            let since = self.since.get(&key).copied().unwrap_or(now);
            (key, since)
        });
        self.since = seen.collect();
    }
}

/// Those nearest to a root first, then those who wait longest.
fn importance(edge: &Edge, scene: &Scene<'_>) -> (bool, Option<u32>, std::cmp::Reverse<i64>, Node, Node) {
    let waited = scene.wait(edge).1.unwrap_or(0.0);
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds of a wait, as an order")]
    let waited = waited as i64;
    (edge.depth.is_none(), edge.depth, std::cmp::Reverse(waited), edge.blocked.clone(), edge.blocking.clone())
}

/// The sessions of everybody in the scene, prepared transactions too.
async fn parties(
    session: &mut Session,
    locks: &[Lock],
    unreadable: &mut Unreadable,
) -> Result<BTreeMap<Node, Party>, Error> {
    let mut pids = BTreeSet::new();
    let mut gids = BTreeSet::new();
    for lock in locks {
        match &lock.node {
            Node::Pid(pid) => pids.insert(*pid),
            Node::Prepared(gid) => gids.insert(gid.clone()),
        };
        pids.extend(lock.blockers.iter().copied().filter(|pid| *pid != 0));
    }
    if pids.is_empty() && gids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (pids, gids) = (Vec::from_iter(pids), Vec::from_iter(gids));
    let rows = session.query("pg_locks.sessions", SESSIONS, &[Param::Ints(&pids), Param::Texts(&gids)]).await?;
    let mut parties = BTreeMap::new();
    for row in &rows {
        match Party::read(row) {
            Ok(party) => {
                parties.insert(party.node.clone(), party);
            }
            Err(error) => unreadable.note(error),
        }
    }
    Ok(parties)
}

/// Names of relations, where they can be looked up without waiting: somebody may have locked the catalog itself.
async fn names(session: &mut Session, locks: &[Lock]) -> Result<BTreeMap<u32, String>, Error> {
    let here = locks.iter().filter(|lock| lock.named_here);
    let oids: BTreeSet<u32> = here.filter_map(|lock| lock.relation).collect();
    if oids.is_empty() {
        return Ok(BTreeMap::new());
    }
    match session.query("pg_locks.names", NAMES, &[Param::Oids(&Vec::from_iter(oids))]).await {
        Ok(rows) => Ok(rows.iter().filter_map(|row| Some((row.get("oid").ok()?, row.get("name").ok()?))).collect()),
        Err(Error::Query { .. }) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

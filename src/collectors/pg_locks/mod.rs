//! Locks: who waits for whom, for what, since when, and who is at the end of the chain.
//!
//! The edges are the server's own (`pg_blocking_pids`), and the waiters come from `pg_locks`: a role without rights
//! sees no `wait_event_type`, and would say that nobody waits. The usual query of the wiki, which joins locks with
//! locks, is wrong: it tells readers behind a waiting writer to wait for each other.
//!
//! `waits` reads the lock rows, `graph` makes edges of them and is pure; `parties` reads who takes part, and `row` puts
//! all of it together. With many waiters only those are read that have a row.

pub mod graph;
pub mod object;
mod parties;
mod row;
pub mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{CollectError, Collector, Context, sight};
use crate::{
    event::Sample,
    postgres::{Error, Param, Session},
    settings::{Reader, Section},
    text::Correlation,
    units::Time,
};
use graph::{Edge, Graph, Lock, Node};
use parties::{Parties, Texts};
use row::{Names, Scene, Wait};
pub use row::{Root, Row, Summary};

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
    /// Since when somebody is seen waiting for something, where the server does not tell: on 13 always, later for a
    /// moment.
    seen: BTreeMap<Wait, Time>,
}

impl Collector for PgLocks {
    const NAME: &'static str = "pg_locks";
    const IMPORTANCE: u8 = 4;
    type Config = Config;
    type Data = Vec<Row>;
    type Summary = Summary;

    fn new(config: Config) -> Self {
        Self { config, seen: BTreeMap::new() }
    }

    async fn collect(&mut self, context: &Context) -> Result<Sample<Vec<Row>, Summary>, CollectError> {
        let start = Instant::now();
        let mut session = context.postgres.session(Self::NAME).await?;
        let locks = waits::look(&mut session).await?;
        let limit = usize::try_from(self.config.limit).unwrap_or(usize::MAX);

        let mut parties = Parties::new(Texts {
            policy: &context.texts,
            query_max_chars: usize::try_from(self.config.query_max_chars).unwrap_or(usize::MAX),
            correlation: &self.config.correlation,
        });
        let (graph, since) = loop {
            let graph = Graph::new(&locks, &parties.leaders);
            let since = self.since(&locks, &parties, session.clock());
            let wanted = wanted(&locks, &graph, &most_important(&graph, &since, limit));
            // Once more where somebody turns out to be another one's worker.
            if !parties.look(&mut session, wanted, &graph, &locks).await? {
                break (graph, since);
            }
        };
        self.seen = untold(&locks, &parties, &since);
        let edges = most_important(&graph, &since, limit);
        let (names, unnamed) = names(&mut session, &locks, &edges).await?;
        let scene = Scene {
            locks: &locks,
            graph: &graph,
            parties: &parties,
            names: &names,
            since: &since,
            clock: session.clock(),
        };
        let data: Vec<Row> = edges.iter().map(|edge| scene.row(edge)).collect();
        let identity = session.identity();
        let reasons: Vec<String> = [
            sight::degraded(identity, &parties.unreadable),
            left_out(graph.left_out, graph.waiters.len()),
            parties.trouble.as_ref().map(|error| format!("sessions cannot be read: {error}")),
            unnamed.map(|error| format!("relations are told by their oids: {error}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        Ok(Sample {
            server: Some(identity.server(identity.stats_epoch())),
            collected_at: session.clock(),
            duration: start.elapsed(),
            omitted: (graph.edges.len() - data.len()) as u64 + parties.unreadable.count(),
            hidden: graph.edges.iter().filter(|edge| scene.hidden(edge)).count() as u64,
            summary: Some(scene.summary()),
            data,
            degraded: Some(reasons.join("; ")).filter(|reasons| !reasons.is_empty()),
        })
    }
}

impl PgLocks {
    /// Since when each lock is waited for: as the server tells, else since it was first seen.
    fn since(&self, locks: &[Lock], parties: &Parties<'_>, now: Time) -> Vec<Option<Time>> {
        let seen = |lock: &Lock| self.seen.get(&row::wait(lock, parties)).copied().unwrap_or(now);
        let since = |lock: &Lock| (!lock.granted).then(|| lock.wait_start.unwrap_or_else(|| seen(lock)));
        locks.iter().map(since).collect()
    }
}

/// Since when each one is seen waiting of whom the server does not tell it.
fn untold(locks: &[Lock], parties: &Parties<'_>, since: &[Option<Time>]) -> BTreeMap<Wait, Time> {
    let untold = locks.iter().zip(since).filter(|(lock, _)| lock.wait_start.is_none());
    untold.filter_map(|(lock, since)| Some((row::wait(lock, parties), (*since)?))).collect()
}

/// The edges that have a row: those nearest to a root first, then those who wait longest.
fn most_important<'a>(graph: &'a Graph, since: &[Option<Time>], limit: usize) -> Vec<&'a Edge> {
    let mut edges: Vec<&Edge> = graph.edges.iter().collect();
    edges.sort_unstable_by(|a, b| {
        let key = |edge: &Edge| (edge.depth.is_none(), edge.depth, since.get(edge.lock).copied().flatten());
        key(a).cmp(&key(b)).then_with(|| (&a.blocked, &a.blocking).cmp(&(&b.blocked, &b.blocking)))
    });
    edges.truncate(limit);
    edges
}

/// Whose session is to be read: of the rows, of the roots, and where only the session tells one wait from the next.
fn wanted(locks: &[Lock], graph: &Graph, edges: &[&Edge]) -> BTreeSet<Node> {
    let untold = locks.iter().filter(|lock| !lock.granted && lock.wait_start.is_none()).map(|lock| &lock.node);
    let rows = edges.iter().flat_map(|edge| [&edge.blocked, &edge.blocking]);
    let roots = graph.roots.iter().take(row::ROOTS).map(|root| &root.node);
    untold.chain(rows).chain(roots).cloned().collect()
}

/// What is missing of a scene that is too large.
fn left_out(some: usize, all: usize) -> Option<String> {
    (some > 0).then(|| {
        format!("so many wait that of {some} of {all} waiters only those are told who hold what they wait for, if any")
    })
}

/// Names of relations, where they can be looked up without waiting, else why not: somebody may have locked the catalog.
async fn names(session: &mut Session, locks: &[Lock], edges: &[&Edge]) -> Result<(Names, Option<Error>), Error> {
    let objects = edges.iter().filter_map(|edge| row::named(locks, locks.get(edge.lock)?));
    let oids: BTreeSet<u32> = objects.filter_map(|object| object.relation).collect();
    if oids.is_empty() {
        return Ok((Names::default(), None));
    }
    match session.query("pg_locks.names", NAMES, &[Param::Oids(&Vec::from_iter(oids))]).await {
        Ok(rows) => Ok((Names::read(&rows), None)),
        Err(error @ Error::Query { .. }) => Ok((Names::default(), Some(error))),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_that_is_too_large_is_told_in_a_word() {
        assert_eq!(left_out(0, 5000), None);
        let told = left_out(4000, 5000);
        assert!(told.is_some_and(|told| told.contains("of 4000 of 5000 waiters only those")));
    }
}

//! Activity: what every session is doing, who waits for whom among them, and whose request it is.
//!
//! The surprising thing: not only active sessions have a row. The holder of a lock is mostly idle in a transaction,
//! or plainly idle (an advisory lock), and it is the one that matters; so whoever blocks or is blocked has one too.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use schemars::JsonSchema;
use serde::Serialize;
use smol_str::{SmolStr, ToSmolStr};

use super::{
    CollectError, Collector, Context,
    pg_locks::{graph, waits},
    sight::{self, Unreadable},
};
use crate::{
    event::Sample,
    postgres::{self, Error, Param, Session},
    settings::{Reader, Section},
    text::{Correlation, Policy, Trace},
    units::Time,
};

const BACKENDS: &str = include_str!("backends.sql");
const BLOCKERS: &str = include_str!("blockers.sql");

/// Each question who blocks somebody stops the lock manager for a moment, so it is never asked for more: those who
/// wait longest.
const MOST_ASKED: usize = 1000;

/// Of a text's bytes at least and at the most: `track_activity_query_size` can be a megabyte, and sessions thousands.
const MOST_BYTES: (i64, i64) = (4096, 1 << 20);

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
            limit: reader.key_in("limit", 100, 1..=100_000, "Rows at the most; those who block are kept first."),
            query_max_chars: reader.key_in(
                "query_max_chars",
                10_000,
                1..=1_048_576,
                "Characters of a statement at the most; behind them stands ...[truncated].",
            ),
            correlation: Correlation::read(reader),
        }
    }
}

/// One backend: active, or blocking somebody, or blocked.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// Process id.
    pub pid: i32,
    /// The role that is logged in; nil for the server's own processes.
    pub usename: Option<SmolStr>,
    /// As the session set it; 63 bytes at the most.
    pub application_name: Option<SmolStr>,
    /// The client's address; nil for Unix sockets.
    pub client_addr: Option<SmolStr>,
    /// The client's TCP port; -1 for Unix sockets.
    pub client_port: Option<i32>,
    /// When the session began.
    pub backend_start: Option<Time>,
    /// When its transaction began; nil outside of one.
    pub xact_start: Option<Time>,
    /// When its current statement began, or its last one if it is not active.
    pub query_start: Option<Time>,
    /// When `state` last changed.
    pub state_change: Option<Time>,
    /// What kind of thing it waits for, such as `Lock` or `IO`; nil if it does not wait.
    pub wait_event_type: Option<SmolStr>,
    /// What it waits for.
    pub wait_event: Option<SmolStr>,
    /// `active`, `idle in transaction`, …; nil for the server's own processes and where the role may not see it.
    pub state: Option<SmolStr>,
    /// Its current statement, or its last one if it is not active; nil where the role may not see it, and where
    /// `privacy.query_text` is `off`.
    pub query: Option<String>,
    /// `client backend`, `parallel worker`, …
    pub backend_type: Option<SmolStr>,
    /// The first group of `correlation_pattern` in `application_name`, in lower case.
    pub correlation_id: Option<String>,
    /// The database of the session.
    pub datname: Option<SmolStr>,
    /// Of a parallel worker, the process that it works for.
    pub leader_pid: Option<i32>,
    /// Id of the statement, the same as in `pg_statements`. Nil before PostgreSQL 14, and where it is not computed.
    pub query_id: Option<SmolStr>,
    /// Its transaction id, if it has one.
    pub backend_xid: Option<SmolStr>,
    /// The oldest transaction that its snapshot needs, which holds back vacuum.
    pub backend_xmin: Option<SmolStr>,
    /// Process ids that it waits for, those that only stand before it in a queue too (for a role without rights and on a
    /// standby the nearest of them); 0 for a prepared transaction. A leader waits for whom its parallel workers wait for.
    /// `pg_locks` tells more.
    pub blocked_by: Vec<i32>,
    /// The trace id of a W3C traceparent, 32 hexadecimal digits in lower case: in `application_name`, else in a comment
    /// of the statement (`traceparent='…'`, as sqlcommenter writes it). Read whatever `privacy.query_text` is. Nil where
    /// there is none that is whole and valid, and where comments contradict each other.
    pub trace_id: Option<String>,
    /// The span id of the same traceparent, 16 hexadecimal digits.
    pub span_id: Option<String>,
    /// Whether `query` is less than the statement: cut by the server (`track_activity_query_size`) or by
    /// `query_max_chars`. Nil where that is not known.
    pub query_truncated: Option<bool>,
}

/// Over all backends, the server's own processes and hidden sessions too.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Summary {
    /// How many there are of each kind.
    pub sessions: Vec<Sessions>,
}

/// Backends that have these five in common.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Sessions {
    /// The database.
    pub datname: Option<SmolStr>,
    /// As in the rows.
    pub state: Option<SmolStr>,
    /// As in the rows.
    pub wait_event_type: Option<SmolStr>,
    /// As in the rows.
    pub wait_event: Option<SmolStr>,
    /// As in the rows.
    pub backend_type: Option<SmolStr>,
    /// How many backends.
    pub count: u64,
}

/// `datname, state, wait_event_type, wait_event, backend_type`.
type Kind = [Option<SmolStr>; 5];

/// The collector.
#[derive(Debug)]
pub struct PgActivity {
    config: Config,
}

impl Collector for PgActivity {
    const NAME: &'static str = "pg_activity";
    const IMPORTANCE: u8 = 3;
    type Config = Config;
    type Data = Vec<Row>;
    type Summary = Summary;

    fn new(config: Config) -> Self {
        Self { config }
    }

    async fn collect(&mut self, context: &Context) -> Result<Sample<Vec<Row>, Summary>, CollectError> {
        let start = Instant::now();
        let mut session = context.postgres.session(Self::NAME).await?;
        let mut seen = self.see(&mut session, &BTreeSet::new(), &context.texts).await?;
        let identity = session.identity();
        // Without rights nobody is seen to wait, and of what replays WAL the server does not say who is in its way.
        let blockers = if identity.sees_all && !identity.in_recovery {
            ask(&mut session, &seen).await?
        } else {
            graph::blockers(&waits::look(&mut session).await?, &seen.leaders)
        };
        let mut involved = involved(&blockers);
        involved.remove(&0);
        if !seen.rows.iter().map(|row| row.pid).collect::<BTreeSet<_>>().is_superset(&involved) {
            seen = self.see(&mut session, &involved, &context.texts).await?;
        }
        let Seen { rows: mut kept, sessions, hidden, unreadable, waiting, without_texts, .. } = seen;
        for row in &mut kept {
            row.blocked_by = blockers.get(&row.pid).into_iter().flatten().copied().collect();
        }
        let found = kept.len() as u64 + unreadable.count();
        keep_important(&mut kept, usize::try_from(self.config.limit).unwrap_or(usize::MAX), &blockers);
        let identity = session.identity();
        Ok(Sample {
            server: Some(identity.server(identity.stats_epoch())),
            collected_at: session.clock(),
            duration: start.elapsed(),
            omitted: found - kept.len() as u64,
            hidden,
            summary: Some(summary(sessions)),
            data: kept,
            degraded: sight::degraded(identity, &unreadable)
                .into_iter()
                .chain(without_texts.map(|why| format!("no text of a query could be read: {why}")))
                .chain(left_out(waiting.len()))
                .reduce(|one, other| format!("{one}; {other}")),
        })
    }
}

impl PgActivity {
    /// Reads all backends; those in `involved` have a row whatever they do.
    async fn see(&self, session: &mut Session, involved: &BTreeSet<i32>, texts: &Policy) -> Result<Seen, Error> {
        let pids: Vec<i32> = involved.iter().copied().collect();
        // Of up to four bytes each; masking makes texts shorter, so twice as many are enough to fill them up again.
        let bytes = i64::try_from(self.config.query_max_chars.saturating_mul(8)).unwrap_or(i64::MAX);
        let bytes = bytes.clamp(MOST_BYTES.0, MOST_BYTES.1);
        let mut seen = Seen::default();
        let note = |seen: &mut Seen, row: &postgres::Row| {
            if let Err(error) = seen.take(row, involved, &self.config, texts) {
                seen.unreadable.note(error);
            }
        };
        let params = [Param::Ints(&pids), Param::Int(bytes)];
        match session.each("pg_activity", BACKENDS, &params, &mut |row| note(&mut seen, &row)).await {
            Err(error) if error.is_encoding() => {
                seen = Seen { without_texts: Some(error.to_string()), ..Seen::default() };
                let params = [Param::Ints(&pids), Param::Int(0)];
                session.each("pg_activity", BACKENDS, &params, &mut |row| note(&mut seen, &row)).await?;
            }
            answered => answered?,
        }
        seen.waiting.sort_unstable();
        Ok(seen)
    }
}

/// Asks the server who is in the way of those who wait for a lock.
async fn ask(session: &mut Session, seen: &Seen) -> Result<BTreeMap<i32, BTreeSet<i32>>, Error> {
    let waiting: Vec<i32> = seen.waiting.iter().take(MOST_ASKED).map(|(_, pid)| *pid).collect();
    let mut blockers: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    if waiting.is_empty() {
        return Ok(blockers);
    }
    for row in &session.query("pg_activity.blockers", BLOCKERS, &[Param::Ints(&waiting)]).await? {
        let pid: i32 = row.get("pid")?;
        let leader = seen.leaders.get(&pid).copied().unwrap_or(pid);
        let others = row.get::<Option<Vec<i32>>>("blockers")?.unwrap_or_default();
        for blocked in [pid, leader] {
            // One that has its lock by now waits for nobody.
            let others: Vec<i32> = others.iter().copied().filter(|other| ![pid, leader].contains(other)).collect();
            if !others.is_empty() {
                blockers.entry(blocked).or_default().extend(others);
            }
        }
    }
    Ok(blockers)
}

/// A word on those of whom it was not asked who blocks them.
fn left_out(waiting: usize) -> Option<String> {
    let more = waiting.checked_sub(MOST_ASKED).filter(|more| *more > 0)?;
    Some(format!("{waiting} sessions wait for locks; of {more} it was not asked for whom"))
}

/// What was seen while the rows were read.
#[derive(Default)]
struct Seen {
    rows: Vec<Row>,
    /// How many there are of each kind.
    sessions: BTreeMap<Kind, u64>,
    leaders: BTreeMap<i32, i32>,
    /// Who waits for a lock, and since when its statement runs.
    waiting: Vec<(Option<Time>, i32)>,
    /// Why no text could be read.
    without_texts: Option<String>,
    hidden: u64,
    unreadable: Unreadable,
}

impl Seen {
    fn take(
        &mut self,
        row: &postgres::Row,
        involved: &BTreeSet<i32>,
        config: &Config,
        texts: &Policy,
    ) -> Result<(), Error> {
        let text = |column: &str| row.get::<Option<SmolStr>>(column);
        let (pid, leader_pid): (i32, Option<i32>) = (row.get("pid")?, row.get("leader_pid")?);
        let kind: Kind =
            [text("datname")?, text("state")?, text("wait_event_type")?, text("wait_event")?, text("backend_type")?];
        let [datname, state, wait_event_type, _, backend_type] = &kind;
        // A leader names itself. What applies a transaction of logical replication has a leader too, but locks of its own.
        if let Some(leader) = leader_pid.filter(|leader| *leader != pid)
            && backend_type.as_deref() == Some("parallel worker")
        {
            self.leaders.insert(pid, leader);
        }
        let query_start = row.get("query_start")?;
        if wait_event_type.as_deref() == Some("Lock") {
            self.waiting.push((query_start, pid));
        }
        let hidden: bool = row.get("hidden")?;
        let application_name = text("application_name")?;
        // The server's own processes are hidden too, but never have a row: they have no database and no name.
        if hidden && (datname.is_some() || application_name.as_ref().is_some_and(|name| !name.is_empty())) {
            self.hidden += 1;
        }
        let wanted = state.as_ref().is_some_and(|state| state != "idle") || involved.contains(&pid);
        let of_row = wanted.then(|| kind.clone());
        // Whether its row can be read or not.
        *self.sessions.entry(kind).or_default() += 1;
        if let Some(kind) = of_row
            && !row.get::<bool>("own")?
        {
            let found = Found { pid, leader_pid, kind, query_start, hidden, application_name };
            self.rows.push(read(row, found, config, texts)?);
        }
        Ok(())
    }
}

/// What is known of a backend before it is known whether it has a row.
struct Found {
    pid: i32,
    leader_pid: Option<i32>,
    kind: Kind,
    query_start: Option<Time>,
    hidden: bool,
    application_name: Option<SmolStr>,
}

fn read(row: &postgres::Row, found: Found, config: &Config, texts: &Policy) -> Result<Row, Error> {
    let Found { pid, leader_pid, kind, query_start, hidden, application_name } = found;
    let [datname, state, wait_event_type, wait_event, backend_type] = kind;
    let whole = row.text("query")?.filter(|_| !hidden);
    let most = usize::try_from(config.query_max_chars).unwrap_or(usize::MAX);
    let cut: Option<bool> = row.get("cut")?;
    let trace = Trace::find(application_name.as_deref(), whole.as_deref());
    let (trace_id, span_id) = trace.map(|trace| (trace.trace_id, trace.span_id)).unzip();
    let query = whole.and_then(|whole| texts.clean(&whole, most));
    let too_long = query.as_ref().is_some_and(|query| query.chars().nth(most).is_some());
    Ok(Row {
        pid,
        usename: row.get("usename")?,
        client_addr: row.get("client_addr")?,
        client_port: row.get("client_port")?,
        backend_start: row.get("backend_start")?,
        xact_start: row.get("xact_start")?,
        query_start,
        state_change: row.get("state_change")?,
        wait_event_type,
        wait_event,
        state,
        query_truncated: query.as_ref().and(if too_long { Some(true) } else { cut }),
        query,
        backend_type,
        correlation_id: config.correlation.id(application_name.as_deref()),
        application_name,
        datname,
        leader_pid,
        query_id: row.get::<Option<i64>>("query_id")?.map(|id| id.to_smolstr()),
        backend_xid: row.get("backend_xid")?,
        backend_xmin: row.get("backend_xmin")?,
        blocked_by: Vec::new(),
        trace_id,
        span_id,
    })
}

/// Everybody who blocks or is blocked.
fn involved(blockers: &BTreeMap<i32, BTreeSet<i32>>) -> BTreeSet<i32> {
    blockers.iter().flat_map(|(blocked, blocking)| blocking.iter().chain([blocked])).copied().collect()
}

/// Keeps the most important rows, and puts them in order: those that began last come first.
fn keep_important(rows: &mut Vec<Row>, limit: usize, blockers: &BTreeMap<i32, BTreeSet<i32>>) {
    if rows.len() > limit {
        let blocking: BTreeSet<i32> = blockers.values().flatten().copied().collect();
        rows.sort_by_key(|row| {
            let class = match (blocking.contains(&row.pid), blockers.contains_key(&row.pid)) {
                (true, false) => 0,
                (true, true) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            (class, row.xact_start.is_none(), row.xact_start, Reverse(row.query_start))
        });
        rows.truncate(limit);
    }
    rows.sort_by_key(|row| (Reverse(row.query_start), row.pid));
}

fn summary(sessions: BTreeMap<Kind, u64>) -> Summary {
    let one = |(kind, count): (Kind, u64)| {
        let [datname, state, wait_event_type, wait_event, backend_type] = kind;
        Sessions { datname, state, wait_event_type, wait_event, backend_type, count }
    };
    Summary { sessions: sessions.into_iter().map(one).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, xact_start: Option<i64>, query_start: Option<i64>) -> Row {
        Row {
            pid,
            xact_start: xact_start.map(Time),
            query_start: query_start.map(Time),
            usename: None,
            application_name: None,
            client_addr: None,
            client_port: None,
            backend_start: None,
            state_change: None,
            wait_event_type: None,
            wait_event: None,
            state: None,
            query: None,
            backend_type: None,
            correlation_id: None,
            datname: None,
            leader_pid: None,
            query_id: None,
            backend_xid: None,
            backend_xmin: None,
            blocked_by: Vec::new(),
            trace_id: None,
            span_id: None,
            query_truncated: None,
        }
    }

    /// Of six sessions, where 3 waits for 2 and 2 for 1.
    #[track_caller]
    fn check(limit: usize, want: &[i32]) {
        let blockers = BTreeMap::from([(2, BTreeSet::from([1])), (3, BTreeSet::from([2]))]);
        let mut rows = vec![
            row(1, None, None),
            row(2, Some(9), Some(8)),
            row(3, Some(8), Some(9)),
            row(4, Some(1), Some(5)),
            row(5, None, Some(6)),
            row(6, None, Some(7)),
        ];
        keep_important(&mut rows, limit, &blockers);
        assert_eq!(rows.iter().map(|row| row.pid).collect::<Vec<_>>(), want, "limit {limit}");
    }

    #[test]
    fn those_who_block_are_kept_first_then_the_blocked_then_the_oldest_transaction_then_the_newest_statement() {
        check(1, &[1]);
        check(2, &[2, 1]);
        check(3, &[3, 2, 1]);
        check(4, &[3, 2, 4, 1]);
        check(5, &[3, 2, 6, 4, 1]);
        check(6, &[3, 2, 6, 5, 4, 1]);
    }
}

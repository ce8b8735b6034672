//! A session: one connection for the time of one look, with a deadline on each statement.
//!
//! The surprising thing: a session that is dropped in the middle of a statement, by its own deadline or by that of
//! the look, does not go back into the pool. Its statement is cancelled on the server, and its place in the pool is
//! free again only when the server has answered: a server that hangs is not given more connections to hang on.
//!
//! A pooler between (`PgBouncer`, say) lends a backend for a transaction only, and keeps neither settings nor prepared
//! statements: there all statements of a session run in one transaction that brings the limits with it.

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_postgres::{
    RowStream,
    types::{ToSql, Type},
};

use super::{
    Error,
    identity::{self, Identity},
    pool::{self, Connection, Shared, Way},
    value::{Param, Row},
};
use crate::units::Time;

/// How long the server may take beyond `statement_timeout` to tell us that it gave up.
const GRACE: Duration = Duration::from_secs(1);

/// What a connection leads to.
const ARRIVED: &str = include_str!("arrived.sql");

/// One connection for the time of one look.
#[derive(Debug)]
pub struct Session {
    held: Held,
    identity: Identity,
    clock: Time,
}

impl Session {
    pub(super) async fn open(shared: Arc<Shared>, owner: &'static str) -> Result<Self, Error> {
        let connection = shared.connection().await?;
        let way = shared.way(&connection);
        let mut held = Held { connection: Some(connection), way, open: false, busy: false, shared, owner };
        held.arrive().await?;
        // A checkpointer lives as long as the connections to its server, so its start is asked for once.
        let start = if let Way::Direct { checkpointer_start } = held.way { checkpointer_start } else { None };
        let rows = held.query(held.usual(), "identity", identity::SQL, &[Param::Bool(start.is_none())]).await?;
        let row = rows.first().ok_or(Error::Decode { column: "identity".into(), wanted: "one row" })?;
        let mut identity = Identity::read(row, held.way == Way::Pooled)?;
        identity.checkpointer_start = identity.checkpointer_start.or(start);
        if held.way != Way::Pooled {
            held.learn(Way::Direct { checkpointer_start: identity.checkpointer_start });
        }
        Ok(Self { held, identity, clock: row.get("clock")? })
    }

    /// Which server this is, as it was when the session was opened.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server's clock when the session was opened.
    pub fn clock(&self) -> Time {
        self.clock
    }

    /// Runs one statement. `name` names it in errors and in the comment that the server's views and logs show:
    /// `/* postgres-agent:NAME */`. Parameters are `$1`, `$2`, …
    ///
    /// # Errors
    /// [`Error::Query`] if the server answers with an error, after which the session can be used again;
    /// [`Error::Deadline`] and [`Error::Lost`], after which it cannot.
    pub async fn query(&mut self, name: &'static str, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        self.held.query(self.held.usual(), name, sql, params).await
    }

    /// As [`Session::query`], each row handed to `take` as it comes: thousands of them need not be in memory at once. After
    /// an error some may have been.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn each(
        &mut self,
        name: &'static str,
        sql: &str,
        params: &[Param<'_>],
        take: &mut (dyn FnMut(Row) + Send),
    ) -> Result<(), Error> {
        self.held.each(self.held.usual(), name, sql, params, take).await
    }

    /// Runs one statement under settings of its own, such as `("statement_timeout", "30s")`, and with a deadline
    /// to go with them.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn query_under(
        &mut self,
        settings: &[(&'static str, &str)],
        deadline: Duration,
        name: &'static str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let held = &mut self.held;
        held.end("COMMIT", name).await?;
        held.begin(settings, name).await?;
        let result = held.query(deadline, name, sql, params).await;
        // After an error the transaction is over, and with it the settings.
        held.end("COMMIT", name).await?;
        result
    }
}

/// A connection that cannot go back into the pool while a statement is under way.
#[derive(Debug)]
struct Held {
    /// `None` once it must not be used any more.
    connection: Option<Connection>,
    way: Way,
    /// Whether a transaction is open.
    open: bool,
    busy: bool,
    shared: Arc<Shared>,
    /// Whose time is counted.
    owner: &'static str,
}

impl Held {
    fn usual(&self) -> Duration {
        self.shared.statement_timeout() + GRACE
    }

    /// Finds out where a new connection leads, and makes it read-only if its backend is the agent's alone.
    async fn arrive(&mut self) -> Result<(), Error> {
        if self.way != Way::Unknown {
            return Ok(());
        }
        let shared = self.shared.clone();
        let rows = self.query(self.usual(), "login", ARRIVED, &[Param::Text(shared.token())]).await?;
        let direct = rows.first().is_some_and(|row| row.get("direct").unwrap_or(false));
        if direct {
            // Not with the limits at the start of the connection: a primary would look like a standby to
            // target_session_attrs.
            self.command(self.usual(), "login", "SET default_transaction_read_only = on").await?;
        }
        self.learn(if direct { Way::Direct { checkpointer_start: None } } else { Way::Pooled });
        Ok(())
    }

    fn learn(&mut self, way: Way) {
        self.way = way;
        if let Some(connection) = &self.connection {
            self.shared.learn(connection, way);
        }
    }

    async fn begin(&mut self, settings: &[(&'static str, &str)], name: &'static str) -> Result<(), Error> {
        let mut begin = String::from("BEGIN READ ONLY");
        let limits = if self.way == Way::Pooled { self.shared.limits() } else { Vec::new() };
        let limits = limits.iter().map(|(key, value)| (*key, value.as_str()));
        for (key, value) in limits.chain(settings.iter().copied()) {
            // Writing to a String cannot fail.
            let _infallible = write!(begin, "; SET LOCAL {key} = '{}'", value.replace('\'', "''"));
        }
        self.command(self.usual(), name, &begin).await?;
        self.open = true;
        Ok(())
    }

    async fn end(&mut self, how: &str, name: &'static str) -> Result<(), Error> {
        if !std::mem::take(&mut self.open) || self.connection.is_none() {
            return Ok(());
        }
        self.command(self.usual(), name, how).await
    }

    async fn query(
        &mut self,
        deadline: Duration,
        name: &'static str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        self.each(deadline, name, sql, params, &mut |row| rows.push(row)).await?;
        Ok(rows)
    }

    async fn each(
        &mut self,
        deadline: Duration,
        name: &'static str,
        sql: &str,
        params: &[Param<'_>],
        take: &mut (dyn FnMut(Row) + Send),
    ) -> Result<(), Error> {
        if self.way == Way::Pooled && !self.open {
            self.begin(&[], name).await?;
        }
        let text = format!("/* postgres-agent:{name} */ {sql}");
        let typed: Vec<_> = params.iter().map(Param::typed).collect();
        let timer = self.start();
        let answer = match &self.connection {
            Some(connection) => timeout(deadline, ask(connection, self.way, &text, &typed, take)).await,
            None => return Err(over(name)),
        };
        drop(timer);
        let result = self.settle(deadline, name, answer);
        if result.is_err() {
            self.end("ROLLBACK", name).await?;
        }
        result
    }

    async fn command(&mut self, deadline: Duration, name: &'static str, sql: &str) -> Result<(), Error> {
        let text = format!("/* postgres-agent:{name} */ {sql}");
        let timer = self.start();
        let answer = match &self.connection {
            Some(connection) => timeout(deadline, connection.batch_execute(&text)).await,
            None => return Err(over(name)),
        };
        drop(timer);
        self.settle(deadline, name, answer)
    }

    fn start(&mut self) -> Timer {
        self.busy = true;
        Timer { shared: self.shared.clone(), owner: self.owner, start: Instant::now() }
    }

    fn settle<T>(
        &mut self,
        after: Duration,
        name: &'static str,
        answer: Result<Result<T, tokio_postgres::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Error> {
        let Ok(answer) = answer else {
            self.give_up();
            return Err(Error::Deadline { query: name, after });
        };
        let result = answer.map_err(|error| Error::of_query(name, &error));
        match &result {
            Err(Error::Lost { .. }) => self.give_up(),
            _ => self.busy = false,
        }
        result
    }

    fn give_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.shared.leave(connection);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.busy {
            self.give_up();
        } else if let Some(connection) = self.connection.take().filter(|_| self.open) {
            pool::hand_back(connection);
        }
    }
}

/// Asks, and waits for the whole answer.
async fn ask(
    connection: &Connection,
    way: Way,
    text: &str,
    params: &[(&(dyn ToSql + Sync), Type)],
    take: &mut (dyn FnMut(Row) + Send),
) -> Result<(), tokio_postgres::Error> {
    if let Way::Direct { .. } = way {
        let (values, types): (Vec<_>, Vec<_>) = params.iter().cloned().unzip();
        // Planning a look at the server's views costs as much as the look.
        let prepared = async {
            let statement = connection.prepare_typed_cached(text, &types).await?;
            take_all(connection.query_raw(&statement, values).await?, take).await
        };
        match prepared.await {
            // Told before the first row.
            Err(error) if is_stale(&error) => connection.statement_cache.clear(),
            answer => return answer,
        }
    }
    // Unnamed, in one round trip: nothing is left behind that a pooler could break.
    take_all(connection.query_typed_raw(text, params.iter().cloned()).await?, take).await
}

async fn take_all(rows: RowStream, take: &mut (dyn FnMut(Row) + Send)) -> Result<(), tokio_postgres::Error> {
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.next().await {
        take(Row::new(row?));
    }
    Ok(())
}

/// Whether a prepared statement is no longer what it was: its columns have other types, or it is gone.
fn is_stale(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| matches!(code.code(), "0A000" | "26000"))
}

fn over(query: &'static str) -> Error {
    Error::Lost { query, why: "by a statement before".into() }
}

/// Counts the time of a statement, also of one that is dropped in the middle.
struct Timer {
    shared: Arc<Shared>,
    owner: &'static str,
    start: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.spend(self.owner, self.start.elapsed());
    }
}

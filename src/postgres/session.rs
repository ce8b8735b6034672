//! A session: one connection for the time of one look, with a deadline on each statement.
//!
//! The surprising thing: a session that is dropped in the middle of a statement, by its own deadline or by that of
//! the look, does not go back into the pool. Its statement is cancelled on the server, and its place in the pool is
//! free again only when the server has answered: a server that hangs is not given more connections to hang on.

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Error,
    identity::{self, Identity},
    pool::{Connection, Shared},
    value::{Param, Row},
};
use crate::units::Time;

/// How long the server may take beyond `statement_timeout` to tell us that it gave up.
const GRACE: Duration = Duration::from_secs(1);

/// One connection for the time of one look.
#[derive(Debug)]
pub struct Session {
    held: Held,
    identity: Identity,
    clock: Time,
}

impl Session {
    pub(super) async fn open(shared: Arc<Shared>, owner: &'static str) -> Result<Self, Error> {
        let connection = Some(shared.connection().await?);
        let mut held = Held { connection, busy: false, shared, owner };
        let deadline = held.shared.statement_timeout() + GRACE;
        let rows = held.query(deadline, "identity", identity::SQL, &[]).await?;
        let row = rows.first().ok_or(Error::Decode { column: "identity".into(), wanted: "one row" })?;
        Ok(Self { held, identity: Identity::read(row)?, clock: row.get("clock")? })
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
        let deadline = self.held.shared.statement_timeout() + GRACE;
        self.held.query(deadline, name, sql, params).await
    }

    /// Runs one statement under settings of its own, such as `("statement_timeout", "30s")`, and with a deadline
    /// to go with them.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn query_under(
        &mut self,
        settings: &[(&str, &str)],
        deadline: Duration,
        name: &'static str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut begin = String::from("BEGIN READ ONLY");
        for (key, value) in settings {
            // Writing to a String cannot fail.
            let _infallible = write!(begin, "; SET LOCAL {key} = '{}'", value.replace('\'', "''"));
        }
        let usual = self.held.shared.statement_timeout() + GRACE;
        self.held.command(usual, name, &begin).await?;
        let result = self.held.query(deadline, name, sql, params).await;
        // After an error too: it ends the transaction, and with it the settings.
        if self.held.connection.is_some() {
            self.held.command(usual, name, "COMMIT").await?;
        }
        result
    }
}

/// A connection that cannot go back into the pool while a statement is under way.
#[derive(Debug)]
struct Held {
    /// `None` once it must not be used any more.
    connection: Option<Connection>,
    busy: bool,
    shared: Arc<Shared>,
    /// Whose time is counted.
    owner: &'static str,
}

impl Held {
    async fn query(
        &mut self,
        deadline: Duration,
        name: &'static str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let text = format!("/* postgres-agent:{name} */ {sql}");
        let typed: Vec<_> = params.iter().map(Param::typed).collect();
        let timer = self.start();
        let answer = match &self.connection {
            // Unnamed, in one round trip: nothing is left behind that a pooler or an upgrade could break.
            Some(connection) => timeout(deadline, connection.query_typed(&text, &typed)).await,
            None => return Err(over(name)),
        };
        drop(timer);
        let rows = self.settle(deadline, name, answer)?;
        Ok(rows.into_iter().map(Row).collect())
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
        }
    }
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

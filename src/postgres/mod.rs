//! The server that the agent sits beside: how to reach it, how to ask it, and how never to hurt it.
//!
//! [`Database`] is a handle to all of it. A collector opens a [`Session`] for one look, learns from it which server
//! this is, and runs its statements on it:
//!
//! ```no_run
//! # use postgres_agent::{collectors::Context, postgres::{Error, Param}};
//! # async fn look(context: &Context, waiters: &str, limit: i64) -> Result<(), Error> {
//! let mut session = context.postgres.session("pg_locks").await?;
//! for row in session.query("pg_locks.waiters", waiters, &[Param::Int(limit)]).await? {
//!     let pid: i32 = row.get("pid")?;
//! }
//! let server = session.identity().server(session.identity().stats_epoch());
//! # Ok(())
//! # }
//! ```
//!
//! Each statement has the server's `statement_timeout`, a deadline on our side beside it, and its name in a comment.
//! Nothing outside this folder knows the driver. What a connection string means is `conninfo`'s work, which is pure.

mod circumstances;
pub mod conninfo;
mod dial;
mod error;
mod identity;
mod pool;
mod session;
mod tls;
mod value;

use std::{ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    backoff,
    secret::SecretUrl,
    settings::{Reader, Section},
};
use conninfo::{Conninfo, Environment};
use pool::Shared;

pub use circumstances::Circumstances;
pub use dial::APPLICATION_NAME;
pub use error::Error;
pub use identity::Identity;
pub use session::Session;
pub use value::{Cell, Cells, Column, Longs, Param, Record, Row};

/// Below, no catalog could be read; above, a statement that hurts is not ended in time.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// The `[postgres]` table.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to connect, as whom and how.
    pub conninfo: Conninfo,
    /// Read at each connection; it wins over any other password.
    pub password_file: Option<PathBuf>,
    /// Connections at the most, ever.
    pub pool_size: u64,
    /// On the server, for each statement.
    pub statement_timeout: Duration,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        Self::read_in(reader, &Environment::of_process())
    }
}

impl Config {
    fn read_in(reader: &mut Reader, environment: &Environment) -> Self {
        let resolve = |url: &SecretUrl| conninfo::resolve(url.expose(), environment);
        let url: Option<SecretUrl> = reader.optional_checked(
            "url",
            "Connection URI or key=value string with libpq's meaning. Left out: the PG* variables, else the local \
             socket. application_name is always postgres-agent, and the agent's own limits win over options.",
            |url| resolve(url).map(drop),
        );
        // After a mistake nothing is started: what stands here then is only a stand-in.
        let conninfo = resolve(&url.unwrap_or_default()).unwrap_or_else(|problem| {
            reader.mistake("url", &problem);
            Conninfo::stand_in()
        });
        Self {
            conninfo,
            password_file: reader.optional(
                "password_file",
                "Read at each connection, so that a rotated secret is picked up. One trailing newline is dropped. It \
                 wins over a password in the URL.",
            ),
            pool_size: reader.key_in("pool_size", 2, 1..=32, "Connections at the most, ever."),
            statement_timeout: reader.key_in(
                "statement_timeout",
                Duration::from_secs(5),
                TIMEOUTS,
                "The longest that a statement may run on the server.",
            ),
        }
    }
}

/// The server, through at most `pool_size` connections. Cheap to clone; all clones share them.
#[derive(Debug, Clone)]
pub struct Database(Arc<Shared>);

impl Database {
    /// Connects to nothing yet: the first session does.
    ///
    /// # Errors
    /// If the pool cannot be made, which would be a mistake in this crate.
    pub fn new(config: &Config, retry: &backoff::Config) -> Result<Self, Error> {
        Ok(Self(Arc::new(Shared::new(config, retry)?)))
    }

    /// A connection for one look of `owner`, whose time on the database is counted.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::Refused`]: at once and with the last reason, until it is time to try
    /// again. [`Error::Busy`] if no connection was free in time. Others if the server cannot tell who it is.
    pub async fn session(&self, owner: &'static str) -> Result<Session, Error> {
        Session::open(self.0.clone(), owner).await
    }

    /// How long the database was busy for `owner` so far, as the agent saw it: failed and cut short looks too.
    pub fn spent(&self, owner: &str) -> Duration {
        self.0.spent(owner)
    }

    /// Why the database cannot be reached; `None` if the last dial was answered, or if there was none yet.
    pub fn away(&self) -> Option<Error> {
        self.0.away()
    }

    /// Whether the last dial ended with a login; `None` if there was none yet.
    pub fn is_reached(&self) -> Option<bool> {
        if self.away().is_some() { Some(false) } else { self.0.was_reached().then_some(true) }
    }

    /// Ends all connections, and waits for so long at the most until they are gone. Nothing can be asked afterwards.
    pub async fn close(&self, limit: Duration) {
        self.0.close(limit).await;
    }

    /// Connections that are open or being made.
    pub fn connections(&self) -> usize {
        self.0.connections()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings::{Given, Origin, Raw};

    /// All mistakes, with these settings and variables.
    #[track_caller]
    fn check(settings: &[(&str, &str)], variables: &[(&str, &str)], want: &[&str]) {
        let given = |(path, text): &(&str, &str)| {
            let origin = Origin::Variable((*path).to_owned());
            (format!("postgres.{path}"), Given { raw: Raw::Text((*text).to_owned()), origin })
        };
        let mut reader = Reader::new(settings.iter().map(given).collect::<BTreeMap<_, _>>());
        let environment = Environment {
            variables: variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            user: Some("me".into()),
            home: None,
        };
        let config = reader.table("postgres", |reader| Config::read_in(reader, &environment));
        let (mistakes, known) = reader.finish();
        let told: Vec<String> = mistakes.into_iter().map(|mistake| mistake.0).collect();
        assert_eq!(told.len(), want.len(), "{told:?}");
        assert!(told.iter().zip(want).all(|(told, want)| told.contains(want)), "{told:?}");
        let printed = format!("{told:?} {known:?} {config:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_connection_that_cannot_be_is_a_mistake_that_names_its_key_and_no_secret() {
        check(&[], &[], &[]);
        check(&[("url", "postgres://me:hunter2@h/db")], &[], &[]);
        check(&[("url", "postgres://me:hunter2%@h/db")], &[], &["postgres.url ($url)"]);
        check(&[("url", "host=h password=hunter2 sslmode=maybe")], &[], &["sslmode has to be one of"]);
        check(&[("url", "host=h password=a hunter2")], &[], &["postgres.url"]);
        check(&[], &[("PGSERVICE", "x"), ("PGPASSWORD", "hunter2")], &["there is no [x]"]);
        check(&[("pool_size", "0"), ("statement_timeout", "1d")], &[], &["pool_size", "statement_timeout"]);
    }
}

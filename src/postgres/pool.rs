//! The pool: at most `pool_size` connections, made anew where they broke, with backoff while nobody answers.
//!
//! While the database is away a look fails at once with the last reason instead of waiting for another one: only the
//! first look after each wait dials. That the database went away, and that it came back, is logged once each.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tokio_postgres::Client;

use super::{
    Config, Error,
    dial::{Dialer, Line},
};
use crate::{
    backoff::{self, Delays},
    units::Time,
};

/// A connection out of the pool.
pub(super) type Connection = Object;

/// How long a request to cancel may take.
const CANCEL: Duration = Duration::from_secs(2);

/// What a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nobody looked yet.
    Unknown,
    /// A backend of the agent's own.
    Direct {
        /// When its server's checkpointer was started, if the role saw it.
        checkpointer_start: Option<Time>,
    },
    /// A pooler, which lends a backend for one transaction at a time.
    Pooled,
}

/// What all handles of one [`Database`](super::Database) share.
pub(super) struct Shared {
    door: Arc<Door>,
    pool: Pool,
    spent: Mutex<BTreeMap<&'static str, Duration>>,
    /// Where connections lead, by when they were made.
    ways: Mutex<BTreeMap<Instant, Way>>,
}

/// The way in, and what is known of it.
struct Door {
    dialer: Dialer,
    state: Mutex<State>,
}

struct State {
    delays: Delays,
    /// Nobody dials before.
    not_before: Option<Instant>,
    /// Why the last dial failed; `None` while the database can be reached.
    away: Option<Error>,
    /// Some dial ended with a login.
    reached: bool,
    /// A connection that was made when nobody waited for it any more.
    parked: Option<Line>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("conninfo", &self.door.dialer.conninfo).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(config: &Config, retry: &backoff::Config) -> Result<Self, Error> {
        let size = usize::try_from(config.pool_size).unwrap_or(1).max(1);
        let (conninfo, file) = (config.conninfo.clone(), config.password_file.clone());
        let state = State { delays: Delays::new(retry), not_before: None, away: None, reached: false, parked: None };
        let door = Arc::new(Door {
            dialer: Dialer::new(conninfo, file, config.statement_timeout, size),
            state: Mutex::new(state),
        });
        let method = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(tokio_postgres::Config::new(), Entrance(door.clone()), method);
        let pool = Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(config.statement_timeout + Duration::from_secs(1)))
            .build()
            .map_err(|error| Error::Unreachable { at: "the pool".into(), why: error.to_string() })?;
        Ok(Self { door, pool, spent: Mutex::default(), ways: Mutex::default() })
    }

    pub(super) fn statement_timeout(&self) -> Duration {
        self.door.dialer.statement_timeout
    }

    /// What each session asks for at its start: a pooler does not pass it on.
    pub(super) fn token(&self) -> &str {
        &self.door.dialer.token
    }

    /// The limits of each session.
    pub(super) fn limits(&self) -> Vec<(&'static str, String)> {
        self.door.dialer.limits()
    }

    /// Where a connection leads, as far as it is known.
    pub(super) fn way(&self, connection: &Connection) -> Way {
        lock(&self.ways).get(&Object::metrics(connection).created).copied().unwrap_or(Way::Unknown)
    }

    /// Takes note of where a connection leads, and forgets those that must be gone by now.
    pub(super) fn learn(&self, connection: &Connection, way: Way) {
        let mut ways = lock(&self.ways);
        ways.insert(Object::metrics(connection).created, way);
        while ways.len() > 2 * self.pool.status().max_size {
            ways.pop_first();
        }
    }

    /// A connection: a used one that is free, or a new one.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        match self.pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Timeout(_)) => Err(Error::Busy(self.statement_timeout() + Duration::from_secs(1))),
            Err(error) => Err(self
                .door
                .state()
                .away
                .clone()
                .unwrap_or(Error::Unreachable { at: "the server".into(), why: error.to_string() })),
        }
    }

    /// Why the database cannot be reached; `None` if the last dial was answered or there was none yet.
    pub(super) fn away(&self) -> Option<Error> {
        self.door.state().away.clone()
    }

    /// Whether some dial ended with a login.
    pub(super) fn was_reached(&self) -> bool {
        self.door.state().reached
    }

    /// Cancels what a connection is doing and gives its place back when the server has answered.
    pub(super) fn leave(&self, connection: Connection) {
        let token = connection.cancel_token();
        let door = self.door.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let cancelled = timeout(CANCEL, door.dialer.cancel(&token)).await;
            tracing::debug!(done = matches!(cancelled, Ok(Ok(()))), "cancelled an overdue statement");
            // However long it takes: a server that hangs holds this connection anyway.
            let _answered = connection.simple_query("").await;
            drop(Object::take(connection));
        });
    }

    /// Ends all connections, and waits for so long at the most until they are gone.
    pub(super) async fn close(&self, limit: Duration) {
        self.pool.close();
        self.door.state().parked = None;
        let until = Instant::now() + limit;
        while self.pool.status().size > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Time spent on statements of one name so far.
    pub(super) fn spent(&self, name: &str) -> Duration {
        lock(&self.spent).get(name).copied().unwrap_or_default()
    }

    pub(super) fn spend(&self, name: &'static str, time: Duration) {
        *lock(&self.spent).entry(name).or_default() += time;
    }

    /// Connections that are open or being made.
    pub(super) fn connections(&self) -> usize {
        self.pool.status().size
    }
}

/// Ends a connection's transaction and gives the connection back.
pub(super) fn hand_back(connection: Connection) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        let ended = timeout(CANCEL, connection.batch_execute("/* postgres-agent:end */ COMMIT")).await;
        if !matches!(ended, Ok(Ok(()))) {
            drop(Object::take(connection));
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at any moment: a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A connection made now, unless it is too early to try again.
    async fn open(self: Arc<Self>) -> Result<Line, Error> {
        {
            let mut state = self.state();
            if let Some(line) = state.parked.take().filter(|line| !line.client.is_closed()) {
                return Ok(line);
            }
            if let (Some(error), Some(at)) = (&state.away, state.not_before)
                && Instant::now() < at
            {
                return Err(error.clone());
            }
        }
        let (give, take) = oneshot::channel();
        // A task of its own: a look that gives up does not undo what is nearly done.
        tokio::spawn(async move {
            let result = self.dialer.dial().await;
            self.note(result.as_ref().err());
            if let Err(Ok(line)) = give.send(result) {
                self.state().parked = Some(line);
            }
        });
        take.await.unwrap_or_else(|_| {
            Err(Error::Unreachable { at: "the server".into(), why: "the agent is stopping".into() })
        })
    }

    /// Takes note of how a dial ended, and says so once.
    fn note(&self, error: Option<&Error>) {
        let mut state = self.state();
        let Some(error) = error else {
            state.delays.reset();
            state.not_before = None;
            state.reached = true;
            if state.away.take().is_some() {
                tracing::info!("database reachable again");
            }
            return;
        };
        let wait = state.delays.next();
        state.not_before = Some(Instant::now() + wait);
        // With a new reason it is news.
        if state.away.replace(error.clone()).as_ref() != Some(error) {
            tracing::warn!("database unreachable: {error}; trying again until it answers");
        }
    }
}

/// deadpool's way in.
struct Entrance(Arc<Door>);

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl deadpool_postgres::Connect for Entrance {
    fn connect(&self, _: &tokio_postgres::Config) -> Connecting<'_> {
        Box::pin(async {
            match self.0.clone().open().await {
                Ok(line) => Ok((line.client, line.driver)),
                // deadpool wants an error of the driver's, which only the driver can make; the true reason
                // stands in the state, where `connection` finds it.
                Err(_) => Err(tokio_postgres::Error::__private_api_timeout()),
            }
        })
    }
}

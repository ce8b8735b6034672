//! Dialling: one connection to the first host that will do, with the agent's limits on its session.
//!
//! Which hosts are tried next and which answer ends the search is libpq's rule: a host that does not answer, is
//! starting up or is of the wrong kind is passed by; one that refuses the login, or that does not prove who it is, ends
//! the search.
//!
//! The surprising thing: an attempt that takes too long is left alone but not forgotten. It holds its place among
//! the `pool_size` connections to that host until the host lets go of it, so that a stopped server that goes on
//! never finds more connections than it was promised.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{UnixStream, lookup_host},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{CancelToken, Client, Config as Wire, SimpleQueryMessage, config};
use uuid::Uuid;

use super::{
    Error,
    conninfo::{Binding, Conninfo, Host, Place, SslMode, Target, passfile},
    error::Problem,
    tls::{Connector, Kind},
};
use crate::secret::Secret;

/// The agent's name on all its connections.
pub const APPLICATION_NAME: &str = "postgres-agent";

/// How long a host may take to let us in where `connect_timeout` says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server needs a moment to notice that a connection is closed: only then its place is free.
const LINGER: Duration = Duration::from_millis(250);

/// What is needed to dial.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) conninfo: Conninfo,
    pub(super) password_file: Option<PathBuf>,
    pub(super) statement_timeout: Duration,
    pub(super) pool_size: usize,
    /// Asked for at the start of each session, to see whether what is asked for there is in force.
    pub(super) token: String,
    /// Places at each host, by what is connected to.
    places: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// A connection that is logged in, and its driver.
pub(super) struct Line {
    pub(super) client: Client,
    /// Stands for the driver and may be aborted: the driver itself goes on until the server has been told goodbye.
    pub(super) driver: JoinHandle<()>,
}

/// Why an attempt failed.
struct Failed {
    error: Error,
    next: Next,
}

/// What may be tried after a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another address of the host, or another host.
    Address,
    /// Another host.
    Host,
    /// The same address with TLS or without it, if `sslmode` has both.
    Kind,
    /// Nothing.
    Nothing,
}

/// One thing to connect to.
#[derive(Clone)]
struct Goal {
    at: String,
    /// The path of its socket, if it has one.
    socket: Option<PathBuf>,
    wire: Wire,
    /// The same without options, which some poolers refuse.
    bare: Wire,
    connector: Connector,
    target: Target,
    /// The file that the password is from, where it was not given.
    passfile: Option<PathBuf>,
}

/// A password, and the file that it is from where that is libpq's.
type Known = (Option<Secret>, Option<PathBuf>);

impl Dialer {
    pub(super) fn new(
        conninfo: Conninfo,
        password_file: Option<PathBuf>,
        statement_timeout: Duration,
        pool_size: usize,
    ) -> Self {
        let token = Uuid::new_v4().simple().to_string();
        Self { conninfo, password_file, statement_timeout, pool_size, token, places: Mutex::default() }
    }

    /// Cancels what a connection is doing, as well protected as the connection itself.
    pub(super) async fn cancel(&self, token: &CancelToken) -> Result<(), tokio_postgres::Error> {
        let kind = match self.conninfo.tls.mode {
            SslMode::Disable | SslMode::Allow => Kind::Plain,
            SslMode::Prefer => Kind::Offered,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Kind::Demanded,
        };
        let result = token.cancel_query(self.connector(kind, true)).await;
        let sockets: Vec<PathBuf> = self.conninfo.hosts.iter().filter_map(socket_of).collect();
        if sockets.is_empty() {
            return result;
        }
        // The driver does not know the sockets that we opened ourselves. All of them may be asked: what is to be
        // cancelled has a secret that only its own server knows.
        for socket in sockets {
            if let Ok(stream) = UnixStream::connect(socket).await {
                token.cancel_query_raw(stream, self.connector(Kind::Plain, false)).await?;
            }
        }
        Ok(())
    }

    fn connector(&self, kind: Kind, named: bool) -> Connector {
        Connector::new(self.conninfo.tls.clone(), kind, named, self.conninfo.require_auth.clone())
    }

    /// Connects to the first host that will do.
    pub(super) async fn dial(&self) -> Result<Line, Error> {
        let result = match self.conninfo.target {
            Target::PreferStandby => match self.dial_for(Target::Standby).await {
                Err(failed) if failed.next == Next::Host => self.dial_for(Target::Any).await,
                result => result,
            },
            target => self.dial_for(target).await,
        };
        result.map_err(|failed| failed.error)
    }

    /// Tries all hosts; [`Next::Host`] if none of them would do.
    async fn dial_for(&self, target: Target) -> Result<Line, Failed> {
        let password_file = self.password_file.as_deref().map(read_password).transpose();
        let password_file = password_file.map_err(|error| Failed { error, next: Next::Nothing })?;
        let listed = self.conninfo.passfile.as_deref().and_then(passfile::read);
        let mut problems: Vec<Error> = Vec::new();
        let mut hosts: Vec<&Host> = self.conninfo.hosts.iter().filter(|host| self.worth_trying(host)).collect();
        self.balance(&mut hosts);
        for host in hosts {
            let known = self.password(password_file.as_ref(), listed.as_ref(), host);
            match self.dial_host(host, &known, target).await {
                Err(failed) if failed.next == Next::Host => problems.push(failed.error),
                result => return result,
            }
        }
        Err(Failed { error: told_together(problems), next: Next::Host })
    }

    /// Tries all addresses of a host.
    async fn dial_host(&self, host: &Host, known: &Known, target: Target) -> Result<Line, Failed> {
        let found = addresses(host).await;
        let mut found = found.map_err(|error| Failed { error, next: Next::Host })?;
        self.balance(&mut found);
        let mut problems = Vec::new();
        for address in found {
            match self.attempt_kinds(&self.goal(host, address, known, target)).await {
                Err(failed) if failed.next == Next::Address => problems.push(failed.error),
                result => return result,
            }
        }
        Err(Failed { error: told_together(problems), next: Next::Host })
    }

    /// Leaves the order to chance, where that is asked for.
    fn balance<T>(&self, list: &mut [T]) {
        if self.conninfo.balance {
            let chance = RandomState::new();
            for at in (1..list.len()).rev() {
                let other = chance.hash_one(at) % (at as u64 + 1);
                list.swap(at, usize::try_from(other).unwrap_or(at));
            }
        }
    }

    fn password(&self, file: Option<&Secret>, listed: Option<&Secret>, host: &Host) -> Known {
        let said = || self.conninfo.password.as_ref().map(|password| password.0.clone());
        if let Some(password) = file.cloned().or_else(said) {
            return (Some(password), None);
        }
        let (user, dbname) = (&self.conninfo.user, &self.conninfo.dbname);
        let found = listed.and_then(|listed| passfile::lookup(listed.expose(), host, dbname, user));
        let from = self.conninfo.passfile.clone().filter(|_| found.is_some());
        (found, from)
    }

    fn goal(&self, host: &Host, address: Option<IpAddr>, known: &Known, target: Target) -> Goal {
        let connector = self.connector(Kind::Plain, !matches!(host.place, Place::Address(_, None)));
        let bare = self.wire(host, known.0.as_ref(), address);
        let mut wire = bare.clone();
        wire.options(self.options());
        let passfile = known.1.clone();
        Goal { at: host.to_string(), socket: socket_of(host), wire, bare, connector, target, passfile }
    }

    /// Of the two usual sockets only those that exist are worth trying; if neither does, both are.
    fn worth_trying(&self, host: &Host) -> bool {
        let exists = |host: &Host| match &host.place {
            Place::Socket(folder) => is_abstract(folder) || Path::new(&host.to_string()).exists(),
            _ => false,
        };
        !matches!(host.place, Place::Socket(_)) || exists(host) || !self.conninfo.hosts.iter().any(exists)
    }

    /// With and without TLS, as `sslmode` has it.
    async fn attempt_kinds(&self, goal: &Goal) -> Result<Line, Failed> {
        let (first, second) = match self.conninfo.tls.mode {
            // As in libpq there is no TLS over Unix sockets.
            _ if goal.socket.is_some() => (Kind::Plain, None),
            SslMode::Disable => (Kind::Plain, None),
            SslMode::Allow => (Kind::Plain, Some(Kind::Demanded)),
            SslMode::Prefer => (Kind::Offered, Some(Kind::Plain)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Kind::Demanded, None),
        };
        let mut goal = goal.clone();
        goal.connector.kind = first;
        let failed = match self.attempt(goal.clone()).await {
            Err(failed) if failed.next == Next::Kind => failed,
            result => return result,
        };
        // Where the server has no TLS, both kinds are the same.
        match second.filter(|kind| *kind == Kind::Demanded || goal.connector.tried_tls()) {
            None => Err(failed),
            Some(kind) => {
                goal.connector.kind = kind;
                let again = self.attempt(goal).await;
                again.map_err(|again| {
                    let next = again.next;
                    let (tls, plain) = if kind == Kind::Plain { (failed, again) } else { (again, failed) };
                    Failed { error: told_of_kinds(tls.error, &plain.error), next }
                })
            }
        }
    }

    async fn attempt(&self, goal: Goal) -> Result<Line, Failed> {
        let patience = self.conninfo.connect_timeout.unwrap_or(PATIENCE);
        let at = goal.at.clone();
        let places = self.places_at(&at);
        // A task of its own: it goes on, with its place, when nobody waits for it any more.
        let attempt = tokio::spawn(async move {
            let Ok(place) = places.acquire_owned().await else { return Err(nothing_to_try(&goal.at)) };
            connect(&goal, place).await
        });
        match timeout(patience, attempt).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(nothing_to_try(&at)),
            Err(_) => {
                let why = format!("no answer within {patience:?}");
                Err(Failed { error: Error::Unreachable { at, why }, next: Next::Address })
            }
        }
    }

    fn places_at(&self, at: &str) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Semaphore::new(self.pool_size));
        places.entry(at.to_owned()).or_insert_with(make).clone()
    }

    fn wire(&self, host: &Host, password: Option<&Secret>, address: Option<IpAddr>) -> Wire {
        let mut wire = Wire::new();
        match &host.place {
            Place::Socket(folder) => {
                wire.host_path(folder);
            }
            Place::Name(name) | Place::Address(_, Some(name)) => {
                wire.host(name.clone());
            }
            Place::Address(address, None) => {
                wire.host(address.to_string());
            }
        }
        if let Some(address) = address {
            wire.hostaddr(address);
        }
        wire.port(host.port).user(&self.conninfo.user).dbname(&self.conninfo.dbname);
        wire.application_name(APPLICATION_NAME);
        // Hands the socket to our connector at once: what is asked of the server before TLS is its work.
        wire.ssl_mode(config::SslMode::Require).ssl_negotiation(config::SslNegotiation::Direct);
        if let Some(password) = password {
            wire.password(password.expose());
        }
        wire.channel_binding(match self.conninfo.channel_binding {
            Binding::Disable => config::ChannelBinding::Disable,
            Binding::Prefer => config::ChannelBinding::Prefer,
            Binding::Require => config::ChannelBinding::Require,
        });
        let keepalive = &self.conninfo.keepalive;
        // The system's own two hours are of no use to somebody who looks each minute.
        wire.connect_timeout(self.conninfo.connect_timeout.unwrap_or(PATIENCE))
            .keepalives(!keepalive.off)
            .keepalives_idle(keepalive.idle.unwrap_or(Duration::from_secs(30)))
            .keepalives_interval(keepalive.interval.unwrap_or(Duration::from_secs(10)))
            .keepalives_retries(keepalive.count.unwrap_or(3))
            .tcp_user_timeout(keepalive.user_timeout.unwrap_or(Duration::from_secs(30)));
        wire
    }

    /// The limits of each session.
    pub(super) fn limits(&self) -> Vec<(&'static str, String)> {
        let timeout = self.statement_timeout.as_millis().max(1);
        let fixed = [
            ("lock_timeout", "100"),
            ("jit", "off"),
            ("max_parallel_workers_per_gather", "0"),
            ("search_path", "pg_catalog"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO,MDY"),
            ("IntervalStyle", "postgres"),
            ("bytea_output", "hex"),
            ("row_security", "on"),
        ];
        let timeouts = [("statement_timeout", timeout), ("idle_in_transaction_session_timeout", timeout.max(1000))];
        let timeouts = timeouts.map(|(key, value)| (key, value.to_string()));
        timeouts.into_iter().chain(fixed.map(|(key, value)| (key, value.to_owned()))).collect()
    }

    /// The user's options, then the agent's limits: of two the server takes the last.
    fn options(&self) -> String {
        let said = self.conninfo.options.clone().unwrap_or_default();
        // default_transaction_read_only is set after login: here it would look like a standby to `target`.
        let limits = self.limits().into_iter().chain([("postgres_agent.session", self.token.clone())]);
        limits.fold(said, |options, (key, value)| format!("{options} -c {key}={value}"))
    }
}

fn is_abstract(folder: &Path) -> bool {
    folder.as_os_str().as_encoded_bytes().starts_with(b"@")
}

/// The path of a host's socket, if it has one: the kernel's own names begin with a zero byte.
fn socket_of(host: &Host) -> Option<PathBuf> {
    let Place::Socket(folder) = &host.place else { return None };
    let path = folder.join(format!(".s.PGSQL.{}", host.port));
    Some(if is_abstract(folder) { path.display().to_string().replacen('@', "\0", 1).into() } else { path })
}

/// The addresses of a host; a name is asked for each time.
async fn addresses(host: &Host) -> Result<Vec<Option<IpAddr>>, Error> {
    let name = match &host.place {
        Place::Name(name) => name,
        Place::Address(address, _) => return Ok(vec![Some(*address)]),
        Place::Socket(_) => return Ok(vec![None]),
    };
    let unreachable = |why: String| Error::Unreachable { at: host.to_string(), why };
    let found = timeout(PATIENCE, lookup_host((name.as_str(), host.port))).await;
    let found = found.map_err(|_| unreachable(format!("its name was not resolved within {PATIENCE:?}")))?;
    let found: Vec<SocketAddr> = found.map_err(|error| unreachable(error.to_string()))?.collect();
    if found.is_empty() {
        return Err(unreachable("its name has no address".into()));
    }
    Ok(found.into_iter().map(|address| Some(address.ip())).collect())
}

/// Reads `postgres.password_file`: one trailing newline is dropped.
fn read_password(path: &Path) -> Result<Secret, Error> {
    let unreadable = |why: &dyn std::fmt::Display| Error::Unreachable {
        at: "the server".into(),
        why: format!("postgres.password_file {}: {why}", path.display()),
    };
    let text = fs::read_to_string(path).map_err(|error| unreadable(&error))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() { Err(unreadable(&"it is empty")) } else { Ok(Secret::new(text)) }
}

async fn connect(goal: &Goal, place: OwnedSemaphorePermit) -> Result<Line, Failed> {
    let place = Arc::new(place);
    let mut connected = connect_as(&goal.wire, goal, &place).await;
    if connected.as_ref().is_err_and(refuses_options) {
        connected = connect_as(&goal.bare, goal, &place).await;
    }
    let (client, driver) = connected?;
    // deadpool aborts the task that it is given; the driver has to live on to say goodbye.
    let line = Line { client, driver: tokio::spawn(async move { driver.await.unwrap_or_default() }) };
    prepare(goal, &line.client).await?;
    Ok(line)
}

async fn connect_as(
    wire: &Wire,
    goal: &Goal,
    place: &Arc<OwnedSemaphorePermit>,
) -> Result<(Client, JoinHandle<()>), Failed> {
    let (connector, place) = (goal.connector.clone(), place.clone());
    let failed = |error: &tokio_postgres::Error| login_failed(goal, error);
    if let Some(socket) = &goal.socket {
        // The driver's own way to a socket has no place for a connector, and so none for `require_auth`.
        let socket = UnixStream::connect(socket).await.map_err(|error| {
            let error = Error::Unreachable { at: goal.at.clone(), why: error.to_string() };
            Failed { error, next: Next::Address }
        })?;
        let (client, connection) = wire.connect_raw(socket, connector).await.map_err(|error| failed(&error))?;
        return Ok((client, tokio::spawn(drive(async move { connection.await.err() }, place))));
    }
    let (client, connection) = wire.connect(connector).await.map_err(|error| failed(&error))?;
    Ok((client, tokio::spawn(drive(async move { connection.await.err() }, place))))
}

/// Whether a pooler said that it knows no options: `PgBouncer` does.
fn refuses_options(failed: &Failed) -> bool {
    matches!(&failed.error, Error::Refused { sqlstate, message, .. }
        if sqlstate == "08P01" && message.contains("unsupported startup parameter"))
}

/// Moves the connection's bytes until it is closed, and keeps its place until the server has noticed.
async fn drive(connection: impl Future<Output = Option<tokio_postgres::Error>>, place: Arc<OwnedSemaphorePermit>) {
    if let Some(error) = connection.await {
        tracing::debug!(%error, "a database connection ended");
    }
    sleep(LINGER).await;
    drop(place);
}

/// Looks whether the session is what was asked for.
async fn prepare(goal: &Goal, client: &Client) -> Result<(), Failed> {
    const LOOK: &str = "/* postgres-agent:login */ SELECT pg_catalog.pg_is_in_recovery()::text, \
                        pg_catalog.current_setting('transaction_read_only')";
    let failed = |error: &tokio_postgres::Error| login_failed(goal, error);
    if goal.target != Target::Any {
        let answer = client.simple_query(LOOK).await.map_err(|error| failed(&error))?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0) == Some("true"), row.get(1) == Some("on"))),
            _ => None,
        });
        let (in_recovery, read_only) = row.unwrap_or_default();
        let (fits, wanted) = match goal.target {
            Target::Any | Target::PreferStandby => (true, ""),
            Target::ReadWrite => (!read_only, "it is read-only, and target_session_attrs is read-write"),
            Target::ReadOnly => (read_only, "it is not read-only, and target_session_attrs is read-only"),
            Target::Primary => (!in_recovery, "it is a standby, and target_session_attrs is primary"),
            Target::Standby => (in_recovery, "it is no standby, and target_session_attrs is standby"),
        };
        if !fits {
            let error = Error::Unreachable { at: goal.at.clone(), why: wanted.into() };
            return Err(Failed { error, next: Next::Host });
        }
    }
    Ok(())
}

fn login_failed(goal: &Goal, error: &tokio_postgres::Error) -> Failed {
    let next = match (Problem::behind(error), error.code().map(tokio_postgres::error::SqlState::code)) {
        // "Starting up" and the like.
        (_, Some("57P03")) => Next::Host,
        // Whatever else the server has against us may be about TLS.
        (_, Some(_)) => Next::Kind,
        (Some(problem), None) if problem.is_tls() => Next::Kind,
        // The driver's word for a socket that did not come to be.
        (None, None) if error.to_string() == "error connecting to server" => Next::Address,
        _ => Next::Nothing,
    };
    let mut error = Error::of_login(&goal.at, error);
    if let (Error::Refused { message, sqlstate, .. }, Some(file)) = (&mut error, &goal.passfile)
        && sqlstate == "28P01"
    {
        *message = format!("{message} (the password is from {})", file.display());
    }
    Failed { error, next }
}

fn nothing_to_try(at: &str) -> Failed {
    let error = Error::Unreachable { at: at.to_owned(), why: "the agent is stopping".into() };
    Failed { error, next: Next::Nothing }
}

/// What was said with and without TLS, as one: what the server itself said counts for more, with TLS above all.
fn told_of_kinds(tls: Error, plain: &Error) -> Error {
    match (tls, plain) {
        (Error::Refused { at, message, sqlstate }, Error::Refused { message: other, .. }) if message != *other => {
            Error::Refused { at, message: format!("{message}; without TLS: {other}"), sqlstate }
        }
        (Error::Unreachable { why, .. }, Error::Refused { at, message, sqlstate }) => {
            let (at, sqlstate) = (at.clone(), sqlstate.clone());
            Error::Refused { at, message: format!("{message}; with TLS: {why}"), sqlstate }
        }
        (tls, _) => tls,
    }
}

/// Several hosts' problems as one.
fn told_together(mut problems: Vec<Error>) -> Error {
    let Some(last) = problems.pop() else {
        return Error::Unreachable { at: "the server".into(), why: "there is no host to try".into() };
    };
    if problems.is_empty() {
        return last;
    }
    let each = problems.iter().chain([&last]).map(|error| match error {
        Error::Unreachable { at, why } => (at.clone(), why.clone()),
        Error::Refused { at, message, .. } => (at.clone(), message.clone()),
        other => ("the server".into(), other.to_string()),
    });
    let (at, why): (Vec<String>, Vec<String>) = each.unzip();
    let same = why.iter().all(|other| Some(other) == why.first());
    let told = if same { why.into_iter().next().unwrap_or_default() } else { why.join(" | ") };
    Error::Unreachable { at: at.join(" | "), why: told }
}

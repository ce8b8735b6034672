//! Dialling: one connection to the first host that will do, with the agent's limits on its session.
//!
//! Which hosts are tried next and which answer ends the search is libpq's rule: a host that does not answer or is
//! starting up is passed by, one that refuses the login is not.
//!
//! The surprising thing: an attempt that takes too long is left alone but not forgotten. It holds its place among
//! the `pool_size` connections to that host until the host lets go of it, so that a stopped server that goes on
//! never finds more connections than it was promised.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{Client, Config as Wire, SimpleQueryMessage, config};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::{
    Error,
    conninfo::{Binding, Conninfo, Host, Place, SslMode, Target, passfile},
    tls,
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
    /// Whether the next host may be asked.
    next_host: bool,
    /// Whether the same host may be asked with the other kind of socket, with or without TLS.
    other_kind: bool,
}

/// One thing to connect to.
#[derive(Clone)]
struct Goal {
    at: String,
    wire: Wire,
    /// The same without options, which some poolers refuse.
    bare: Wire,
    tls: Option<MakeRustlsConnect>,
    target: Target,
}

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

    /// The connector for TLS, as it would be made now; `None` where TLS is turned off.
    pub(super) fn tls(&self) -> Result<Option<MakeRustlsConnect>, Error> {
        if self.conninfo.tls.mode == SslMode::Disable {
            return Ok(None);
        }
        tls::connector(&self.conninfo.tls).map(Some).map_err(|why| Error::Unreachable { at: self.at(), why })
    }

    /// All hosts, for messages.
    fn at(&self) -> String {
        let hosts: Vec<String> = self.conninfo.hosts.iter().map(Host::to_string).collect();
        hosts.join(", ")
    }

    /// Connects to the first host that will do.
    pub(super) async fn dial(&self) -> Result<Line, Error> {
        if self.conninfo.target == Target::PreferStandby {
            match self.dial_for(Target::Standby).await {
                Ok(line) => return Ok(line),
                Err(error @ Error::Refused { .. }) => return Err(error),
                Err(_) => return self.dial_for(Target::Any).await,
            }
        }
        self.dial_for(self.conninfo.target).await
    }

    async fn dial_for(&self, target: Target) -> Result<Line, Error> {
        let tls = self.tls()?;
        let password_file = self.password_file.as_deref().map(read_password).transpose()?;
        let passfile = self.conninfo.passfile.as_deref().and_then(passfile::read);
        let mut problems: Vec<Error> = Vec::new();
        for host in self.conninfo.hosts.iter().filter(|host| self.worth_trying(host)) {
            let (user, dbname) = (&self.conninfo.user, &self.conninfo.dbname);
            let listed = || passfile::lookup(passfile.as_ref()?.expose(), host, dbname, user);
            let said = || self.conninfo.password.as_ref().map(|password| password.0.clone());
            let password = password_file.clone().or_else(said).or_else(listed);
            for (address, place) in addresses(host).await.unwrap_or_else(|error| {
                problems.push(error);
                Vec::new()
            }) {
                let bare = self.wire(&place, host, password.as_ref(), address);
                let mut wire = bare.clone();
                wire.options(self.options());
                let goal = Goal { at: host.to_string(), wire, bare, tls: tls.clone(), target };
                match self.attempt_kinds(&goal, matches!(place, Place::Socket(_))).await {
                    Ok(line) => return Ok(line),
                    Err(failed) if failed.next_host => problems.push(failed.error),
                    Err(failed) => return Err(failed.error),
                }
            }
        }
        Err(told_together(problems))
    }

    /// Of the two usual sockets only those that exist are worth trying; if neither does, both are.
    fn worth_trying(&self, host: &Host) -> bool {
        let exists = |host: &Host| matches!(host.place, Place::Socket(_)) && Path::new(&host.to_string()).exists();
        !matches!(host.place, Place::Socket(_)) || exists(host) || !self.conninfo.hosts.iter().any(exists)
    }

    /// With and without TLS, as `sslmode` has it.
    async fn attempt_kinds(&self, goal: &Goal, socket: bool) -> Result<Line, Failed> {
        use config::SslMode::{Disable, Prefer, Require};
        let kinds: &[config::SslMode] = match self.conninfo.tls.mode {
            // As in libpq there is no TLS over Unix sockets.
            _ if socket => &[Disable],
            SslMode::Disable => &[Disable],
            SslMode::Allow => &[Disable, Require],
            SslMode::Prefer => &[Prefer, Disable],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Require],
        };
        let mut first = None;
        for kind in kinds {
            let mut goal = goal.clone();
            goal.wire.ssl_mode(*kind);
            goal.bare.ssl_mode(*kind);
            match self.attempt(goal).await {
                Ok(line) => return Ok(line),
                Err(failed) if failed.other_kind && first.is_none() => first = Some(failed),
                // What the first kind had to say is the better reason.
                Err(failed) => return Err(first.unwrap_or(failed)),
            }
        }
        Err(first.unwrap_or_else(|| nothing_to_try(&goal.at)))
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
                Err(Failed { error: Error::Unreachable { at, why }, next_host: true, other_kind: false })
            }
        }
    }

    fn places_at(&self, at: &str) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Semaphore::new(self.pool_size));
        places.entry(at.to_owned()).or_insert_with(make).clone()
    }

    fn wire(&self, place: &Place, host: &Host, password: Option<&Secret>, address: Option<IpAddr>) -> Wire {
        let mut wire = Wire::new();
        match place {
            Place::Socket(folder) => {
                wire.host_path(folder);
            }
            // The name is what the certificate is compared with.
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

/// The addresses of a host; a name is asked for each time.
async fn addresses(host: &Host) -> Result<Vec<(Option<IpAddr>, Place)>, Error> {
    let Place::Name(name) = &host.place else {
        let address = if let Place::Address(address, _) = &host.place { Some(*address) } else { None };
        return Ok(vec![(address, host.place.clone())]);
    };
    let unreachable = |why: String| Error::Unreachable { at: host.to_string(), why };
    let found = timeout(PATIENCE, lookup_host((name.as_str(), host.port))).await;
    let found = found.map_err(|_| unreachable(format!("its name was not resolved within {PATIENCE:?}")))?;
    let found: Vec<SocketAddr> = found.map_err(|error| unreachable(error.to_string()))?.collect();
    if found.is_empty() {
        return Err(unreachable("its name has no address".into()));
    }
    Ok(found.into_iter().map(|address| (Some(address.ip()), host.place.clone())).collect())
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
    let mut connected = connect_as(&goal.wire, goal.tls.as_ref(), &place).await;
    if connected.as_ref().is_err_and(refuses_options) {
        connected = connect_as(&goal.bare, goal.tls.as_ref(), &place).await;
    }
    let (client, driver) = connected.map_err(|error| login_failed(&goal.at, &error))?;
    // deadpool aborts the task that it is given; the driver has to live on to say goodbye.
    let line = Line { client, driver: tokio::spawn(async move { driver.await.unwrap_or_default() }) };
    prepare(goal, &line.client).await?;
    Ok(line)
}

async fn connect_as(
    wire: &Wire,
    tls: Option<&MakeRustlsConnect>,
    place: &Arc<OwnedSemaphorePermit>,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
    let place = place.clone();
    if let Some(tls) = tls {
        let (client, connection) = wire.connect(tls.clone()).await?;
        return Ok((client, tokio::spawn(drive(async move { connection.await.err() }, place))));
    }
    let (client, connection) = wire.connect(tokio_postgres::NoTls).await?;
    Ok((client, tokio::spawn(drive(async move { connection.await.err() }, place))))
}

/// Whether a pooler said that it knows no options: `PgBouncer` does.
fn refuses_options(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|answer| {
        answer.code().code() == "08P01" && answer.message().contains("unsupported startup parameter")
    })
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
    let failed = |error: &tokio_postgres::Error| login_failed(&goal.at, error);
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
            return Err(Failed { error, next_host: true, other_kind: false });
        }
    }
    Ok(())
}

fn login_failed(at: &str, error: &tokio_postgres::Error) -> Failed {
    let error = Error::of_login(at, error);
    let state = error.sqlstate().unwrap_or_default();
    // "Starting up" and the like are passed by; any other answer ends the search, as in libpq.
    let next_host = matches!(error, Error::Unreachable { .. }) || state == "57P03";
    let tls = matches!(&error, Error::Unreachable { why, .. } if why.contains("TLS"));
    Failed { next_host, other_kind: tls || state.starts_with("28"), error }
}

fn nothing_to_try(at: &str) -> Failed {
    let error = Error::Unreachable { at: at.to_owned(), why: "the agent is stopping".into() };
    Failed { error, next_host: false, other_kind: false }
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

//! What a connection string means, once it is understood: where to connect, as whom and how.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use crate::secret::Secret;

/// Where to connect, as whom and how: everything but what lies in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conninfo {
    /// Tried in turn; at least one.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// From the string or `PGPASSWORD`; else the password file is asked, with each host.
    pub password: Option<Password>,
    /// libpq's password file, which need not exist.
    pub passfile: Option<PathBuf>,
    /// Command line options for the server; those of the agent come behind them.
    pub options: Option<String>,
    /// For each host; `None` where nothing was said or 0.
    pub connect_timeout: Option<Duration>,
    /// What the session must be.
    pub target: Target,
    /// Whether the password exchange must be bound to the TLS session.
    pub channel_binding: Binding,
    /// TLS.
    pub tls: Tls,
    /// TCP's ways to notice that nobody is there any more.
    pub keepalive: Keepalive,
}

impl Conninfo {
    /// Stands where there is none, after a mistake in the configuration: nothing is ever connected to.
    pub(in crate::postgres) fn stand_in() -> Self {
        Self {
            hosts: Vec::new(),
            user: String::new(),
            dbname: String::new(),
            password: None,
            passfile: None,
            options: None,
            connect_timeout: None,
            target: Target::Any,
            channel_binding: Binding::Prefer,
            tls: Tls { mode: SslMode::Prefer, roots: Roots::Nowhere, cert: None, key: None },
            keepalive: Keepalive::default(),
        }
    }
}

/// A password that is compared but never shown.
#[derive(Debug, Clone)]
pub struct Password(pub Secret);

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose() == other.0.expose()
    }
}

impl Eq for Password {}

/// One of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What is connected to.
    pub place: Place,
    /// 1 to 65535; of a socket, the end of its name.
    pub port: u16,
}

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The folder of a Unix socket.
    Socket(PathBuf),
    /// A name or an address.
    Name(String),
    /// An address, and the name that its certificate and `.pgpass` have, if one was given.
    Address(IpAddr, Option<String>),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Socket(folder) => write!(f, "{}/.s.PGSQL.{}", folder.display(), self.port),
            Place::Name(name) => write!(f, "{name}:{}", self.port),
            Place::Address(address, Some(name)) => write!(f, "{name} ({address}):{}", self.port),
            Place::Address(address, None) => write!(f, "{address}:{}", self.port),
        }
    }
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if it does not go without.
    Allow,
    /// TLS if it goes.
    Prefer,
    /// TLS, verified only if there is a root certificate.
    Require,
    /// TLS with a certificate of a trusted authority.
    VerifyCa,
    /// The same, and for this host's name.
    VerifyFull,
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The host's own authorities.
    System,
    /// A file that was named.
    File(PathBuf),
    /// libpq's own place, which need not exist.
    Usual(PathBuf),
    /// There is no home folder in which it could lie.
    Nowhere,
}

/// TLS as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whether and how strictly.
    pub mode: SslMode,
    /// Whom to trust.
    pub roots: Roots,
    /// The client's certificate and whether it was named (else it need not exist).
    pub cert: Option<(PathBuf, bool)>,
    /// The client's key and whether it was named.
    pub key: Option<(PathBuf, bool)>,
}

/// libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Whatever answers.
    Any,
    /// Sessions can write.
    ReadWrite,
    /// Sessions cannot write.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery, or whatever answers if nobody is.
    PreferStandby,
}

/// libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Never.
    Disable,
    /// If it goes.
    Prefer,
    /// Always.
    Require,
}

/// TCP's ways to notice that nobody is there any more. `None` leaves it to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// `keepalives=0`.
    pub off: bool,
    /// Until the first probe.
    pub idle: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// Probes without an answer until the connection is given up.
    pub count: Option<u32>,
    /// How long what was sent may stay without an acknowledgement.
    pub user_timeout: Option<Duration>,
}

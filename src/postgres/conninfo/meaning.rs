//! What a connection string means, once it is understood: where to connect, as whom and how.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use super::methods::Methods;
use crate::secret::Secret;

/// Where to connect, as whom and how: everything but what lies in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conninfo {
    /// Tried in turn; at least one.
    pub hosts: Vec<Host>,
    /// Whether hosts, and the addresses of each, are tried in an order that chance makes anew each time.
    pub balance: bool,
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
    /// By which methods the server may ask who we are.
    pub require_auth: Methods,
    /// TLS.
    pub tls: Tls,
    /// TCP's ways to notice that nobody is there any more.
    pub keepalive: Keepalive,
}

impl Conninfo {
    /// Files with passwords, keys and certificates that a connection reads.
    pub fn files(&self) -> Vec<&PathBuf> {
        let roots = match &self.tls.roots {
            Roots::File(file) => Some(file),
            _ => None,
        };
        let tls = [&self.tls.cert, &self.tls.key, &self.tls.crl].map(Option::as_ref);
        [self.passfile.as_ref(), roots].into_iter().chain(tls).flatten().collect()
    }

    /// Stands where there is none, after a mistake in the configuration: nothing is ever connected to.
    pub(in crate::postgres) fn stand_in() -> Self {
        Self {
            hosts: Vec::new(),
            balance: false,
            user: String::new(),
            dbname: String::new(),
            password: None,
            passfile: None,
            options: None,
            connect_timeout: None,
            target: Target::Any,
            channel_binding: Binding::Prefer,
            require_auth: Methods::any(),
            tls: Tls::default(),
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
    /// The folder of a Unix socket; one that begins with `@` is a name of the kernel's and no folder.
    Socket(PathBuf),
    /// A name to look up.
    Name(String),
    /// An address, and what was given as its host: the name that its certificate and `.pgpass` have. `None` where
    /// there was only a `hostaddr`.
    Address(IpAddr, Option<String>),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Socket(folder) => write!(f, "{}/.s.PGSQL.{}", folder.display(), self.port),
            Place::Name(name) => write!(f, "{name}:{}", self.port),
            Place::Address(address, Some(name)) if name.parse() != Ok(*address) => {
                write!(f, "{name} ({address}):{}", self.port)
            }
            Place::Address(address, _) => write!(f, "{}", std::net::SocketAddr::new(*address, self.port)),
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

impl SslMode {
    /// Whether the server has to prove who it is.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Roots {
    /// The host's own authorities, or those of a file and a folder that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    System {
        /// `SSL_CERT_FILE`.
        file: Option<PathBuf>,
        /// `SSL_CERT_DIR`.
        folder: Option<PathBuf>,
    },
    /// A file: libpq's own place for it, if none was named. It need not exist unless the server has to prove itself.
    File(PathBuf),
    /// None was named, and there is no home folder in which it could lie.
    #[default]
    Nowhere,
}

/// libpq's `sslcertmode`: whether we show who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CertMode {
    /// Never.
    Disable,
    /// If the server asks and there is a certificate.
    #[default]
    Allow,
    /// The server has to ask for it.
    Require,
}

/// A version of TLS; older ones are spoken by nobody here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// TLS as it was asked for. Files that are not there count as not given where libpq says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whether and how strictly.
    pub mode: SslMode,
    /// Whether the handshake begins at once, without asking first: for servers of version 17 and later.
    pub direct: bool,
    /// Whom to trust.
    pub roots: Roots,
    /// What was revoked: a file of lists.
    pub crl: Option<PathBuf>,
    /// The same, as a folder with a file for each hash of an issuer, as `openssl rehash` makes it.
    pub crl_folder: Option<PathBuf>,
    /// The client's certificate.
    pub cert: Option<PathBuf>,
    /// The client's key.
    pub key: Option<PathBuf>,
    /// Whether the certificate is shown.
    pub cert_mode: CertMode,
    /// Whether the server is told the name that we know it by.
    pub sni: bool,
    /// The oldest and the newest version that may be spoken.
    pub versions: (TlsVersion, TlsVersion),
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            mode: SslMode::Prefer,
            direct: false,
            roots: Roots::Nowhere,
            crl: None,
            crl_folder: None,
            cert: None,
            key: None,
            cert_mode: CertMode::Allow,
            sni: true,
            versions: (TlsVersion::V12, TlsVersion::V13),
        }
    }
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

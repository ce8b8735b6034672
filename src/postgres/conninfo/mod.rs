//! Conninfo: what a connection string, `PG*` variables and defaults mean together, as libpq understands them.
//!
//! ```
//! use postgres_agent::postgres::conninfo::{Environment, SslMode, resolve};
//!
//! let environment = Environment { user: Some("me".into()), ..Environment::default() };
//! let conninfo = resolve("postgres://a,b:5433/db?sslmode=verify-full", &environment)?;
//! assert_eq!((conninfo.hosts.len(), conninfo.tls.mode), (2, SslMode::VerifyFull));
//! # Ok::<(), String>(())
//! ```
//! Texts in, [`Conninfo`] out; it opens no socket, resolves no name, and reads no file but the service file that it is
//! told to. What libpq knows and this agent does not is refused by name, never ignored: a `requirepeer` without effect
//! would be a lie about safety.
//!
//! The surprising thing: an empty value is a value. `host=` asks for the default and not for `PGHOST`, and `sslmode=`
//! is a mistake, as in libpq.

pub mod meaning;
pub mod methods;
mod parse;
pub mod passfile;
mod service;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use crate::secret::Secret;
pub use meaning::{
    Binding, CertMode, Conninfo, Host, Keepalive, Password, Place, Roots, SslMode, Target, Tls, TlsVersion,
};
pub use methods::{Method, Methods};
pub use parse::{Pairs, parse};
use service::Service;

/// Where everything about a connection stands that the connection string does not say.
#[derive(Clone, Default)]
pub struct Environment {
    /// Variables by their names; only those that begin with `PG`, `SSL_CERT_FILE` and `SSL_CERT_DIR` matter.
    pub variables: BTreeMap<String, String>,
    /// The operating system's name of the user that the agent runs as.
    pub user: Option<String>,
    /// The home folder, for `.pgpass` and `.postgresql/`.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        let matters = |key: &str| key.starts_with("PG") || key.starts_with("SSL_CERT_");
        Self {
            variables: std::env::vars_os().filter_map(text).filter(|(key, _)| matters(key)).collect(),
            user: whoami::username().ok(),
            home: std::env::home_dir(),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // PGPASSWORD is one of them.
        f.debug_struct("Environment").field("variables", &self.variables.keys()).finish_non_exhaustive()
    }
}

/// A keyword of libpq.
struct Keyword {
    name: &'static str,
    /// Its variable; empty where it has none.
    variable: &'static str,
    support: Support,
}

/// What becomes of a keyword here.
enum Support {
    /// It means what it means in libpq.
    Full,
    /// Only these values, which change nothing, are accepted.
    Only(&'static [&'static str]),
    /// The agent's own value wins whatever is said: known and harmless.
    Ours,
}

const fn keyword(name: &'static str, variable: &'static str, support: Support) -> Keyword {
    Keyword { name, variable, support }
}

/// All of libpq 18.
const KEYWORDS: &[Keyword] = &[
    keyword("service", "PGSERVICE", Support::Full),
    keyword("host", "PGHOST", Support::Full),
    keyword("hostaddr", "PGHOSTADDR", Support::Full),
    keyword("port", "PGPORT", Support::Full),
    keyword("dbname", "PGDATABASE", Support::Full),
    keyword("user", "PGUSER", Support::Full),
    keyword("password", "PGPASSWORD", Support::Full),
    keyword("passfile", "PGPASSFILE", Support::Full),
    keyword("options", "PGOPTIONS", Support::Full),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Support::Full),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Support::Full),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Support::Full),
    keyword("channel_binding", "PGCHANNELBINDING", Support::Full),
    keyword("require_auth", "PGREQUIREAUTH", Support::Full),
    keyword("sslmode", "PGSSLMODE", Support::Full),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Support::Full),
    keyword("sslrootcert", "PGSSLROOTCERT", Support::Full),
    keyword("sslcert", "PGSSLCERT", Support::Full),
    keyword("sslkey", "PGSSLKEY", Support::Full),
    keyword("sslcertmode", "PGSSLCERTMODE", Support::Full),
    keyword("sslcrl", "PGSSLCRL", Support::Full),
    keyword("sslcrldir", "PGSSLCRLDIR", Support::Full),
    keyword("sslsni", "PGSSLSNI", Support::Full),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Support::Full),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Support::Full),
    keyword("keepalives", "", Support::Full),
    keyword("keepalives_idle", "", Support::Full),
    keyword("keepalives_interval", "", Support::Full),
    keyword("keepalives_count", "", Support::Full),
    keyword("tcp_user_timeout", "", Support::Full),
    keyword("application_name", "PGAPPNAME", Support::Ours),
    keyword("fallback_application_name", "", Support::Ours),
    keyword("client_encoding", "PGCLIENTENCODING", Support::Ours),
    keyword("requirepeer", "PGREQUIREPEER", Support::Only(&[])),
    keyword("sslpassword", "", Support::Only(&[])),
    keyword("sslcompression", "PGSSLCOMPRESSION", Support::Only(&["0"])),
    keyword("sslkeylogfile", "", Support::Only(&[])),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Support::Only(&["3.0"])),
    // At the most, so the oldest will do.
    keyword("max_protocol_version", "PGMAXPROTOCOLVERSION", Support::Only(&["3.0", "3.2", "latest"])),
    keyword("gssencmode", "PGGSSENCMODE", Support::Only(&["disable", "prefer"])),
    keyword("krbsrvname", "PGKRBSRVNAME", Support::Only(&["postgres"])),
    keyword("gsslib", "PGGSSLIB", Support::Only(&["gssapi"])),
    keyword("gssdelegation", "PGGSSDELEGATION", Support::Only(&["0"])),
    keyword("replication", "", Support::Only(&["false", "off", "no", "0"])),
    keyword("scram_client_key", "", Support::Only(&[])),
    keyword("scram_server_key", "", Support::Only(&[])),
    keyword("oauth_issuer", "", Support::Only(&[])),
    keyword("oauth_client_id", "", Support::Only(&[])),
    keyword("oauth_client_secret", "", Support::Only(&[])),
    keyword("oauth_scope", "", Support::Only(&[])),
];

/// Understands a connection string, services, variables and defaults together.
///
/// # Errors
/// All that is wrong or not supported, in words that follow "must be"; nothing of what was given is repeated but
/// values of closed lists.
pub fn resolve(text: &str, environment: &Environment) -> Result<Conninfo, String> {
    let pairs = parse(text)?;
    let service = pairs.get("service").or_else(|| environment.variables.get("PGSERVICE"));
    let service = service.map(|name| service::find(name, environment)).transpose()?;
    let asked = Asked { pairs, service, environment };
    let mut wrong: Vec<String> = KEYWORDS.iter().filter_map(|keyword| asked.unsupported(keyword)).collect();
    let mut note = |problem: String| wrong.push(problem);
    let user = asked.get("user").map_or_else(|| environment.user.clone().unwrap_or_default(), str::to_owned);
    if user.is_empty() {
        note("user has to be said: there is none, or the operating system knows no name for this one".into());
    }
    let conninfo = Conninfo {
        hosts: asked.hosts().unwrap_or_else(|problem| {
            note(problem);
            Vec::new()
        }),
        balance: asked.word("load_balance_hosts", &[("disable", false), ("random", true)], false, &mut note),
        dbname: asked.filled("dbname").unwrap_or(&user).to_owned(),
        user,
        password: asked.filled("password").map(|password| Password(Secret::new(password))),
        passfile: asked.file("passfile", ".pgpass"),
        options: asked.filled("options").map(str::to_owned),
        connect_timeout: asked.connect_timeout(&mut note),
        target: asked.word("target_session_attrs", TARGETS, Target::Any, &mut note),
        channel_binding: asked.word("channel_binding", BINDINGS, Binding::Prefer, &mut note),
        require_auth: asked.get("require_auth").map_or(Ok(Methods::any()), Methods::parse).unwrap_or_else(|problem| {
            note(problem);
            Methods::any()
        }),
        tls: asked.tls(&mut note),
        keepalive: asked.keepalive(&mut note),
    };
    if wrong.is_empty() { Ok(conninfo) } else { Err(format!("a connection that can be made: {}", wrong.join("; "))) }
}

const TARGETS: &[(&str, Target)] = &[
    ("any", Target::Any),
    ("read-write", Target::ReadWrite),
    ("read-only", Target::ReadOnly),
    ("primary", Target::Primary),
    ("standby", Target::Standby),
    ("prefer-standby", Target::PreferStandby),
];

const BINDINGS: &[(&str, Binding)] =
    &[("disable", Binding::Disable), ("prefer", Binding::Prefer), ("require", Binding::Require)];

const MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

const CERT_MODES: &[(&str, CertMode)] =
    &[("disable", CertMode::Disable), ("allow", CertMode::Allow), ("require", CertMode::Require)];

/// What libpq calls them, the oldest first; `None` for those that are spoken by nobody here.
const TLS_VERSIONS: &[(&str, Option<TlsVersion>)] =
    &[("TLSv1", None), ("TLSv1.1", None), ("TLSv1.2", Some(TlsVersion::V12)), ("TLSv1.3", Some(TlsVersion::V13))];

/// What was asked for: in the string, in a service, or in variables.
struct Asked<'a> {
    pairs: Pairs,
    service: Option<Service>,
    environment: &'a Environment,
}

impl Asked<'_> {
    /// Value and where it was given; an empty value is given too.
    fn given(&self, keyword: &Keyword) -> Option<(&str, String)> {
        if let Some(value) = self.pairs.get(keyword.name) {
            return Some((value, keyword.name.to_owned()));
        }
        if let Some(found) = self.service.as_ref().and_then(|service| service.get(keyword.name)) {
            return Some(found);
        }
        let value = self.environment.variables.get(keyword.variable)?;
        Some((value, keyword.variable.to_owned()))
    }

    /// The value, if one was given.
    fn get(&self, name: &str) -> Option<&str> {
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name)?;
        self.given(keyword).map(|(value, _)| value)
    }

    /// The value, if it is more than nothing.
    fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// The name under which a value was given, for what is said about it.
    fn place(&self, name: &str) -> String {
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name);
        keyword.and_then(|keyword| self.given(keyword)).map_or_else(|| name.to_owned(), |(_, place)| place)
    }

    fn unsupported(&self, keyword: &Keyword) -> Option<String> {
        let Support::Only(allowed) = keyword.support else { return None };
        let (value, name) = self.given(keyword).filter(|(value, _)| !value.is_empty())?;
        if allowed.contains(&value) {
            return None;
        }
        let only = if allowed.is_empty() { String::new() } else { format!(", except as {}", allowed.join(", ")) };
        Some(format!("{name} is not supported{only}"))
    }

    fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], default: T, note: &mut impl FnMut(String)) -> T {
        let Some(value) = self.get(name) else { return default };
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == value) {
            return *found;
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        note(format!("{} has to be one of {}", self.place(name), words.join(", ")));
        default
    }

    fn number(&self, name: &str, note: &mut impl FnMut(String)) -> Option<i64> {
        let number = integer(self.get(name)?);
        if number.is_none() {
            note(format!("{} has to be a whole number", self.place(name)));
        }
        number.map(i64::from)
    }

    fn connect_timeout(&self, note: &mut impl FnMut(String)) -> Option<Duration> {
        let seconds = self.number("connect_timeout", note).filter(|seconds| *seconds > 0)?;
        Some(Duration::from_secs(seconds.unsigned_abs()))
    }

    fn keepalive(&self, note: &mut impl FnMut(String)) -> Keepalive {
        let off = self.number("keepalives", note) == Some(0);
        let mut positive = |name| self.number(name, note).filter(|number| *number > 0).map(i64::unsigned_abs);
        Keepalive {
            off,
            idle: positive("keepalives_idle").map(Duration::from_secs),
            interval: positive("keepalives_interval").map(Duration::from_secs),
            count: positive("keepalives_count").and_then(|count| count.try_into().ok()),
            user_timeout: positive("tcp_user_timeout").map(Duration::from_millis),
        }
    }

    /// A file that was named, or the usual one in the home folder.
    fn file(&self, keyword: &str, usual: &str) -> Option<PathBuf> {
        let home = || Some(self.environment.home.as_ref()?.join(usual));
        self.filled(keyword).map(PathBuf::from).or_else(home)
    }

    fn tls(&self, note: &mut impl FnMut(String)) -> Tls {
        let variable = |name: &str| self.environment.variables.get(name).map(PathBuf::from);
        let roots = match self.filled("sslrootcert") {
            Some("system") => Roots::System { file: variable("SSL_CERT_FILE"), folder: variable("SSL_CERT_DIR") },
            _ => self.file("sslrootcert", ".postgresql/root.crt").map_or(Roots::Nowhere, Roots::File),
        };
        let of_system = matches!(roots, Roots::System { .. });
        // From before there was an sslmode; it counts where that is said nowhere.
        let old = self.environment.variables.get("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'));
        let default = match (old, of_system) {
            (true, _) => SslMode::Require,
            (false, true) => SslMode::VerifyFull,
            (false, false) => SslMode::Prefer,
        };
        let mode = self.word("sslmode", MODES, default, note);
        if of_system && mode != SslMode::VerifyFull {
            note("sslmode has to be verify-full with sslrootcert=system, which trusts every public authority".into());
        }
        let direct = self.word("sslnegotiation", &[("postgres", false), ("direct", true)], false, note);
        if direct && !(mode.verifies() || mode == SslMode::Require) {
            note("sslmode has to be require, verify-ca or verify-full with sslnegotiation=direct".into());
        }
        if mode == SslMode::Disable && self.get("channel_binding") == Some("require") {
            note("channel_binding=require needs TLS, which sslmode=disable forbids".into());
        }
        let (crl, crl_folder) = (self.filled("sslcrl"), self.filled("sslcrldir").map(PathBuf::from));
        let own_crl = || if crl_folder.is_none() { self.file("sslcrl", ".postgresql/root.crl") } else { None };
        Tls {
            mode,
            direct,
            roots,
            crl: crl.map(PathBuf::from).or_else(own_crl),
            cert: self.file("sslcert", ".postgresql/postgresql.crt"),
            key: self.file("sslkey", ".postgresql/postgresql.key"),
            cert_mode: self.word("sslcertmode", CERT_MODES, CertMode::Allow, note),
            sni: self.get("sslsni").is_none_or(|value| value.starts_with('1')),
            versions: self.versions(note),
            crl_folder,
        }
    }

    fn versions(&self, note: &mut impl FnMut(String)) -> (TlsVersion, TlsVersion) {
        let mut place = |name: &str, usual| {
            let Some(value) = self.filled(name) else { return usual };
            let found = TLS_VERSIONS.iter().position(|(version, _)| version.eq_ignore_ascii_case(value));
            found.unwrap_or_else(|| {
                let all: Vec<&str> = TLS_VERSIONS.iter().map(|(version, _)| *version).collect();
                note(format!("{} has to be one of {}", self.place(name), all.join(", ")));
                usual
            })
        };
        // An empty lower bound is none, and so TLSv1.2 here.
        let (min, max) = (place("ssl_min_protocol_version", 2), place("ssl_max_protocol_version", 3));
        let version = |at: usize| TLS_VERSIONS.get(at).and_then(|(_, version)| *version);
        if min > max {
            note("ssl_min_protocol_version has to be at most ssl_max_protocol_version".into());
        } else if version(max).is_none() {
            let name = self.place("ssl_max_protocol_version");
            note(format!("{name} is not supported, except as TLSv1.2, TLSv1.3"));
        }
        (version(min).unwrap_or(TlsVersion::V12), version(max).unwrap_or(TlsVersion::V13))
    }

    fn hosts(&self) -> Result<Vec<Host>, String> {
        let list = |name| self.filled(name).map(|value| value.split(',').collect::<Vec<_>>()).unwrap_or_default();
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(format!("{} hosts do not go with {} addresses", names.len(), addresses.len()));
        }
        let count = names.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != count {
            return Err(format!("{} ports do not go with {count} hosts", ports.len()));
        }
        let mut hosts = Vec::new();
        for at in 0..count {
            let port = match ports.get(at).or(ports.first()).copied().unwrap_or("") {
                "" => 5432,
                port => integer(port)
                    .and_then(|port| port.try_into().ok())
                    .filter(|port| *port > 0)
                    .ok_or_else(|| format!("{} has to be from 1 to 65535", self.place("port")))?,
            };
            let said = |list: &[&str]| list.get(at).copied().filter(|text| !text.is_empty()).map(str::to_owned);
            let places = places(said(&names), said(&addresses));
            let places = places.ok_or_else(|| format!("{} has to be an IP address", self.place("hostaddr")))?;
            hosts.extend(places.into_iter().map(|place| Host { place, port }));
        }
        Ok(hosts)
    }
}

/// A whole number as C reads it: with blanks around it, and a sign.
fn integer(text: &str) -> Option<i32> {
    text.trim_matches(parse::is_blank).parse().ok()
}

/// What a host and its `hostaddr` lead to; `None` if that is no address.
fn places(name: Option<String>, address: Option<String>) -> Option<Vec<Place>> {
    Some(match (name, address) {
        (name, Some(address)) => vec![Place::Address(address.parse().ok()?, name)],
        (Some(name), None) if name.starts_with(['/', '@']) => vec![Place::Socket(name.into())],
        (Some(name), None) => match name.parse() {
            Ok(address) => vec![Place::Address(address, Some(name))],
            Err(_) => vec![Place::Name(name)],
        },
        // Debian's libpq looks in the one, everybody else's in the other.
        (None, None) => ["/var/run/postgresql", "/tmp"].map(|folder| Place::Socket(folder.into())).into(),
    })
}

#[cfg(test)]
mod tests;

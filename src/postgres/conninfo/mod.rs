//! Conninfo: what a connection string, `PG*` variables and defaults mean together, as libpq understands them.
//!
//! Pure: texts in, [`Conninfo`] out; it opens no file and no socket, and resolves no name. What libpq knows and this
//! agent does not is refused by name, never ignored: a `sslcrl` without effect would be a lie about safety.
//!
//! The surprising thing: an empty value is a value. `host=` asks for the default and not for `PGHOST`, as in libpq.

pub mod meaning;
mod parse;
pub mod passfile;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use crate::secret::Secret;
pub use meaning::{Binding, Conninfo, Host, Keepalive, Password, Place, Roots, SslMode, Target, Tls};
use parse::Pairs;

/// Where everything about a connection stands that the connection string does not say.
#[derive(Clone, Default)]
pub struct Environment {
    /// Variables by their names; only those that begin with `PG` matter.
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
        Self {
            variables: std::env::vars_os().filter_map(text).filter(|(key, _)| key.starts_with("PG")).collect(),
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

const KEYWORDS: &[Keyword] = &[
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
    keyword("channel_binding", "PGCHANNELBINDING", Support::Full),
    keyword("sslmode", "PGSSLMODE", Support::Full),
    keyword("sslrootcert", "PGSSLROOTCERT", Support::Full),
    keyword("sslcert", "PGSSLCERT", Support::Full),
    keyword("sslkey", "PGSSLKEY", Support::Full),
    keyword("keepalives", "", Support::Full),
    keyword("keepalives_idle", "", Support::Full),
    keyword("keepalives_interval", "", Support::Full),
    keyword("keepalives_count", "", Support::Full),
    keyword("tcp_user_timeout", "", Support::Full),
    keyword("application_name", "PGAPPNAME", Support::Ours),
    keyword("fallback_application_name", "", Support::Ours),
    keyword("client_encoding", "PGCLIENTENCODING", Support::Ours),
    keyword("service", "PGSERVICE", Support::Only(&[])),
    keyword("servicefile", "PGSERVICEFILE", Support::Only(&[])),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Support::Only(&["disable"])),
    keyword("require_auth", "PGREQUIREAUTH", Support::Only(&[])),
    keyword("requirepeer", "PGREQUIREPEER", Support::Only(&[])),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Support::Only(&["postgres"])),
    keyword("sslcertmode", "PGSSLCERTMODE", Support::Only(&["allow"])),
    keyword("sslpassword", "", Support::Only(&[])),
    keyword("sslcrl", "PGSSLCRL", Support::Only(&[])),
    keyword("sslcrldir", "PGSSLCRLDIR", Support::Only(&[])),
    keyword("sslsni", "PGSSLSNI", Support::Only(&["1"])),
    keyword("sslcompression", "PGSSLCOMPRESSION", Support::Only(&["0"])),
    // The lowest that rustls speaks too.
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Support::Only(&["TLSv1", "TLSv1.1", "TLSv1.2"])),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Support::Only(&["TLSv1.3"])),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Support::Only(&["3.0"])),
    keyword("max_protocol_version", "PGMAXPROTOCOLVERSION", Support::Only(&["3.0"])),
    keyword("gssencmode", "PGGSSENCMODE", Support::Only(&["disable", "prefer"])),
    keyword("krbsrvname", "PGKRBSRVNAME", Support::Only(&["postgres"])),
    keyword("gsslib", "PGGSSLIB", Support::Only(&["gssapi"])),
    keyword("gssdelegation", "PGGSSDELEGATION", Support::Only(&["0"])),
    keyword("replication", "", Support::Only(&["false", "off", "no", "0"])),
    keyword("requiressl", "PGREQUIRESSL", Support::Only(&["0"])),
];

/// Understands a connection string, variables and defaults together.
///
/// # Errors
/// All that is wrong or not supported, in words that follow "must be"; nothing of what was given is repeated but
/// values of closed lists.
pub fn resolve(text: &str, environment: &Environment) -> Result<Conninfo, String> {
    let asked = Asked { pairs: parse::parse(text)?, environment };
    let mut wrong: Vec<String> = KEYWORDS.iter().filter_map(|keyword| asked.unsupported(keyword)).collect();
    let mut note = |problem: String| wrong.push(problem);
    let user = asked.get("user").map(str::to_owned).or_else(|| environment.user.clone()).unwrap_or_default();
    if user.is_empty() {
        note("user has to be said, because the operating system knows no name for this one".into());
    }
    let conninfo = Conninfo {
        hosts: asked.hosts().unwrap_or_else(|problem| {
            note(problem);
            Vec::new()
        }),
        dbname: asked.get("dbname").unwrap_or(&user).to_owned(),
        user,
        password: asked.get("password").map(|password| Password(Secret::new(password))),
        passfile: asked.get("passfile").map(PathBuf::from).or_else(|| Some(environment.home.as_ref()?.join(".pgpass"))),
        options: asked.get("options").map(str::to_owned),
        connect_timeout: asked.connect_timeout(&mut note),
        target: asked.word("target_session_attrs", TARGETS, Target::Any, &mut note),
        channel_binding: asked.word("channel_binding", BINDINGS, Binding::Prefer, &mut note),
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

/// What was asked for, from the string or from variables.
struct Asked<'a> {
    pairs: Pairs,
    environment: &'a Environment,
}

impl Asked<'_> {
    /// Value and the name under which it was given; an empty value is given too.
    fn given(&self, keyword: &Keyword) -> Option<(&str, &'static str)> {
        let said = self.pairs.get(keyword.name).map(|value| (value.as_str(), keyword.name));
        let variable = || self.environment.variables.get(keyword.variable);
        said.or_else(|| variable().map(|value| (value.as_str(), keyword.variable)))
    }

    /// The value, if it is more than nothing.
    fn get(&self, name: &str) -> Option<&str> {
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name)?;
        self.given(keyword).map(|(value, _)| value).filter(|value| !value.is_empty())
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
        note(format!("{name} has to be one of {}", words.join(", ")));
        default
    }

    fn number(&self, name: &str, note: &mut impl FnMut(String)) -> Option<i64> {
        let number = self.get(name)?.trim().parse().ok().filter(|number: &i64| i32::try_from(*number).is_ok());
        if number.is_none() {
            note(format!("{name} has to be a whole number"));
        }
        number
    }

    fn connect_timeout(&self, note: &mut impl FnMut(String)) -> Option<Duration> {
        let seconds = self.number("connect_timeout", note).filter(|seconds| *seconds > 0)?;
        // One second is made two, as in libpq.
        Some(Duration::from_secs(seconds.unsigned_abs().max(2)))
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

    fn tls(&self, note: &mut impl FnMut(String)) -> Tls {
        let usual = |name: &str| self.environment.home.as_ref().map(|home| home.join(".postgresql").join(name));
        let file = |keyword: &str, name: &str| {
            let named = self.get(keyword).map(|path| (PathBuf::from(path), true));
            named.or_else(|| usual(name).map(|path| (path, false)))
        };
        let roots = match self.get("sslrootcert") {
            Some("system") => Roots::System,
            Some(path) => Roots::File(path.into()),
            None => usual("root.crt").map_or(Roots::Nowhere, Roots::Usual),
        };
        let default = if roots == Roots::System { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = self.word("sslmode", MODES, default, note);
        if roots == Roots::System && mode != SslMode::VerifyFull {
            note("sslmode has to be verify-full with sslrootcert=system, which trusts every public authority".into());
        }
        if mode == SslMode::Disable && self.get("channel_binding") == Some("require") {
            note("channel_binding=require needs TLS, which sslmode=disable forbids".into());
        }
        Tls { mode, roots, cert: file("sslcert", "postgresql.crt"), key: file("sslkey", "postgresql.key") }
    }

    fn hosts(&self) -> Result<Vec<Host>, String> {
        let list = |name| self.get(name).map(|value| value.split(',').map(str::trim).collect::<Vec<_>>());
        let (names, addresses) = (list("host").unwrap_or_default(), list("hostaddr").unwrap_or_default());
        let ports = list("port").unwrap_or_default();
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
                port => port.parse().ok().filter(|port| *port > 0).ok_or("port has to be from 1 to 65535")?,
            };
            let said = |list: &[&str]| list.get(at).copied().filter(|text| !text.is_empty()).map(str::to_owned);
            hosts.extend(places(said(&names), said(&addresses))?.into_iter().map(|place| Host { place, port }));
        }
        Ok(hosts)
    }
}

fn places(name: Option<String>, address: Option<String>) -> Result<Vec<Place>, String> {
    match (name, address) {
        (name, Some(address)) => {
            let address = address.parse().map_err(|_| "hostaddr has to be an IP address")?;
            Ok(vec![Place::Address(address, name)])
        }
        (Some(name), None) if name.starts_with('/') => Ok(vec![Place::Socket(name.into())]),
        (Some(name), None) if name.starts_with('@') => Err("host: abstract sockets (@…) are not supported".into()),
        (Some(name), None) => Ok(vec![name.parse().map_or(Place::Name(name), |address| Place::Address(address, None))]),
        // Debian's libpq looks in the one, everybody else's in the other.
        (None, None) => Ok(["/var/run/postgresql", "/tmp"].map(|folder| Place::Socket(folder.into())).into()),
    }
}

#[cfg(test)]
mod tests;

//! The configuration: where values come from, and the sum of all sections.
//!
//! It only composes: each section is declared beside the code that reads it. A value comes from the environment, else
//! from the file, else from the section's default, and is told with its origin. All mistakes are told at once.

mod environment;
mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    amqp, backoff, collectors, http, intake, postgres,
    secret::{Exposed, MASKED},
    settings::{Choice, Fingerprint, Known, Mistake, Origin, Reader, Section, Values},
    spool, text,
};

pub use environment::{AMQP_URL, FILE};

/// Read where neither `--config` nor [`FILE`] names a file, if it exists.
pub const DEFAULT_FILE: &str = "/etc/postgres-agent/agent.toml";

/// Far more than all keys take: what is larger was not meant.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this agent is.
    pub agent: Agent,
    /// The server that it sits beside.
    pub postgres: postgres::Config,
    /// The broker.
    pub amqp: amqp::Config,
    /// What travels together, and how.
    pub publisher: intake::Config,
    /// How long it waits before it tries again.
    pub retry: backoff::Config,
    /// Where it keeps what is not confirmed.
    pub spool: spool::Config,
    /// What it looks at.
    pub collectors: collectors::Config,
    /// What may leave the host of texts.
    pub privacy: text::Policy,
    /// The status page.
    pub http: http::Config,
    /// Its own log.
    pub log: Log,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let agent: Agent = reader.section("agent");
        let amqp: amqp::Config = reader.section("amqp");
        if let Err(must_be) = amqp.routing_key.fill(&agent.name, &agent.labels) {
            reader.table("amqp", |reader| reader.mistake("routing_key", &must_be));
        }
        Self {
            agent,
            postgres: reader.section("postgres"),
            amqp,
            publisher: reader.section("publisher"),
            retry: reader.section("retry"),
            spool: reader.section("spool"),
            collectors: reader.section("collectors"),
            privacy: reader.section("privacy"),
            http: reader.section("http"),
            log: reader.section("log"),
        }
    }
}

/// The `[agent]` table.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Shown in every message.
    pub name: String,
    /// Copied to every message.
    pub labels: BTreeMap<String, String>,
    /// How long a stop waits for what is fresh or in flight.
    pub shutdown_timeout: Duration,
}

impl Section for Agent {
    fn read(reader: &mut Reader) -> Self {
        let plain = |text: &str| !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control);
        let name = |name: &String| plain(name).then_some(()).ok_or("1 to 255 bytes without control characters".into());
        // Labels stand in every message: their size is part of each one's.
        let label = |key: &str, value: &str| {
            let fits = plain(key) && (value.is_empty() || plain(value));
            fits.then_some(()).ok_or("a name and a text of at most 255 bytes without control characters".into())
        };
        let stop = Duration::ZERO..=Duration::from_hours(1);
        let agent = Self {
            name: reader.computed("name", host_name(), "Shown in every message. The host's name if left out.", name),
            labels: reader.texts("labels", "Free pairs of texts, copied to every message.", label),
            shutdown_timeout: reader.key_in(
                "shutdown_timeout",
                Duration::from_secs(10),
                stop,
                "How long a stop waits for what is fresh or in flight. What is left stays in the spool.",
            ),
        };
        if agent.labels.len() > LABELS_MAX {
            reader.mistake("labels", &format!("at most {LABELS_MAX} labels"));
        }
        agent
    }
}

/// With 255 bytes for each name and text they take 32 KiB at the most: an eighth of a batch.
const LABELS_MAX: usize = 64;

/// The `[log]` table.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// The least important lines that are written.
    pub level: Level,
    /// How they are written.
    pub format: Format,
}

impl Section for Log {
    fn read(reader: &mut Reader) -> Self {
        Self {
            level: reader.key("level", Level::Info, "The least important lines that are logged."),
            format: reader.key("format", Format::Text, "How they are written: lines for people, or JSON objects."),
        }
    }
}

/// How important a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Somebody has to do something.
    Error,
    /// Something is not as it should be and may mend itself.
    Warn,
    /// What happens seldom and is worth knowing.
    Info,
    /// What each part does.
    Debug,
    /// Each step.
    Trace,
}

impl Choice for Level {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Choice for Format {
    const CHOICES: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// The host's own name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A configuration without a mistake, and where each value came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every key with its effective value and its origin.
    pub known: Vec<Known>,
    /// The file that was read; `None` where there is none.
    pub file: Option<PathBuf>,
    /// Files with secrets and certificates, by the keys that name them, as they were then.
    files: Vec<(&'static str, PathBuf, Option<Fingerprint>)>,
}

impl Loaded {
    /// The keys of which another configuration holds something else, be it in a secret or in a file that they name.
    pub fn changed(&self, new: &Self) -> Vec<String> {
        let values = |loaded: &Self| -> BTreeMap<String, (Option<String>, Option<Fingerprint>)> {
            let value = |known: &Known| (known.path.clone(), (known.value.clone(), known.fingerprint));
            loaded.known.iter().map(value).collect()
        };
        let (old, now) = (values(self), values(new));
        let mut changed: BTreeSet<String> =
            old.keys().chain(now.keys()).filter(|path| old.get(*path) != now.get(*path)).cloned().collect();
        let files = new.files.iter().filter(|file| !self.files.contains(file));
        changed.extend(files.map(|(key, ..)| (*key).to_owned()));
        changed.into_iter().collect()
    }

    /// Files with secrets in them that others may get at, each by the key that names it; the configuration file itself by
    /// the first key in it that holds a secret.
    pub fn exposed(&self) -> Vec<(&str, Exposed)> {
        let file = |known: &Known| match &known.origin {
            Origin::File { path, .. } => Some(path.clone()),
            _ => None,
        };
        let holds = |known: &&Known| known.secret && known.value.as_ref().is_some_and(|value| value.contains(MASKED));
        let inside = self.known.iter().filter(holds).find_map(|known| Some((known.path.as_str(), file(known)?)));
        let (postgres, amqp) = (&self.config.postgres.password_file, &self.config.amqp.password_file);
        let named = [("postgres.password_file", postgres), ("amqp.password_file", amqp)];
        let named = named.into_iter().filter_map(|(key, path)| Some((key, path.clone()?)));
        named.chain(inside).filter_map(|(key, path)| Some((key, Exposed::find(&path)?))).collect()
    }
}

/// Why nothing was started: everything that is wrong with the configuration, a line each.
#[derive(Debug, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Reads the configuration as it is now: `file` if one was named, and the environment.
///
/// # Errors
/// [`Mistakes`]: all there are.
pub fn load(file: Option<&Path>) -> Result<Loaded, Mistakes> {
    let variables: Vec<_> = env::vars_os().collect();
    let default = Some(Path::new(DEFAULT_FILE)).filter(|path| path.exists());
    load_from(file, &variables, default)
}

/// The defaults alone: what holds where neither a file nor the environment says anything.
pub fn defaults() -> Vec<Known> {
    let mut reader = Reader::default();
    Config::read(&mut reader);
    reader.finish().1
}

pub(crate) fn load_from(
    named: Option<&Path>,
    variables: &[(OsString, OsString)],
    default: Option<&Path>,
) -> Result<Loaded, Mistakes> {
    let variable = variables.iter().find(|(name, value)| name == FILE && !value.is_empty());
    let file = named.or(variable.map(|(_, value)| Path::new(value))).or(default);
    let (mut values, mut mistakes) = match file {
        Some(path) => file::parse(path, &read_file(path).map_err(|mistake| Mistakes(vec![mistake]))?),
        None => (Values::new(), Vec::new()),
    };
    mistakes.extend(environment::overlay(variables, &mut values));
    let mut reader = Reader::new(values);
    for (origin, Mistake(text)) in mistakes {
        reader.told(origin, text);
    }
    let config = Config::read(&mut reader);
    let (mistakes, known) = reader.finish();
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    let files = files(&config).into_iter().map(|(key, path)| (key, path.clone(), Fingerprint::of_file(path))).collect();
    Ok(Loaded { config, known, file: file.map(Into::into), files })
}

/// Files with secrets and certificates, by the keys that name them.
fn files(config: &Config) -> Vec<(&'static str, &PathBuf)> {
    let tls = &config.amqp.tls;
    let named = [
        ("amqp.password_file", &config.amqp.password_file),
        ("amqp.ca_file", &tls.ca),
        ("amqp.cert_file", &tls.cert),
        ("amqp.key_file", &tls.key),
        ("postgres.password_file", &config.postgres.password_file),
    ];
    let named = named.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?)));
    named.chain(config.postgres.conninfo.files().into_iter().map(|path| ("postgres.url", path))).collect()
}

fn read_file(path: &Path) -> Result<String, Mistake> {
    let wrong = |why: &str| Mistake(format!("cannot read the configuration file {}: {why}", path.display()));
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let length = read.map_err(|error| wrong(&error.to_string()))?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(wrong("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count();
        wrong(&format!("line {} is not UTF-8 text", line + 1))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).expect("written");
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let loaded = load_from(Some(&path), &variables, None);
        loaded.map_err(|mistakes| mistakes.to_string().replace(&path.display().to_string(), "f"))
    }

    /// What is wrong with a file and an environment.
    #[track_caller]
    fn check(text: &str, variables: &[(&str, &str)], want: &[&str]) {
        let mistakes = load_text(text, variables).err().unwrap_or_default();
        assert_eq!(mistakes.lines().collect::<Vec<_>>(), want, "{text}");
    }

    #[test]
    fn all_mistakes_of_all_sources_are_told_at_once_in_the_order_of_their_places() {
        check("", &[], &[]);
        check(
            "[log]\nlevel = 'loud'\nformat = json\n[agent]\nnmae = 'x'\n[agent.labels]\nenv = 3\n[http]\nlisten = ':80'",
            &[("POSTGRES_AGENT_AGENT__SHUTDOWN_TIMEOUT", "10"), ("POSTGRES_AGENT_LOG_LEVEL", "debug")],
            &[
                "log.level (f:2) is \"loud\", but must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
                "log.format (f:3) is not valid TOML: string values must be quoted, expected literal string",
                "agent.nmae (f:5) is no known key; the nearest is agent.name",
                "agent.labels.env (f:7) is 3 (put it in quotes), but must be a text",
                "http.listen (f:9) is \":80\", but must be an address and a port, such as \"127.0.0.1:9488\" or \"[::1]:9488\", or \"\" for none",
                "agent.shutdown_timeout ($POSTGRES_AGENT_AGENT__SHUTDOWN_TIMEOUT) is \"10\", but must be a duration from \
                 \"0s\" to \"1h\"",
                "log_level ($POSTGRES_AGENT_LOG_LEVEL) is no known key; the nearest is log.level \
                 ($POSTGRES_AGENT_LOG__LEVEL)",
            ],
        );
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "[agent]\nname = 'file'\nlabels = { a = 'b' }\n[log]\nlevel = 'warn'";
        let variables = [("POSTGRES_AGENT_AGENT__NAME", "own"), ("POSTGRES_AGENT_AGENT__LABELS", "{ c = 'd' }")];
        let loaded = load_text(text, &variables).expect("no mistake");
        assert_eq!(loaded.config.agent.name, "own");
        assert_eq!(loaded.config.agent.labels, BTreeMap::from([("c".into(), "d".into())]));
        assert_eq!(loaded.config.log.level, Level::Warn);
        let origin =
            |path: &str| loaded.known.iter().find(|known| known.path == path).map(|known| known.origin.clone());
        assert_eq!(origin("agent.name"), Some(Origin::Variable("POSTGRES_AGENT_AGENT__NAME".into())));
        assert_eq!(origin("log.format"), Some(Origin::Default));
        assert!(matches!(origin("log.level"), Some(Origin::File { line: 5, .. })));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_clear_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let wrong = |path: &Path| load_from(Some(path), &[], None).expect_err("a mistake").to_string();
        let absent = folder.path().join("absent.toml");
        assert_eq!(
            wrong(&absent),
            format!("cannot read the configuration file {}: No such file or directory (os error 2)", absent.display())
        );
        assert!(wrong(folder.path()).ends_with(": Is a directory (os error 21)"));
        fs::write(&absent, b"a = 1\nb = '\xff'\n").expect("written");
        assert!(wrong(&absent).ends_with(": line 2 is not UTF-8 text"));
        fs::write(&absent, "#".repeat((1 << 20) + 1)).expect("written");
        assert!(wrong(&absent).ends_with(": it is larger than 1 MiB"));
    }

    #[test]
    fn the_file_is_the_named_one_else_the_variables_else_the_default() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [one, two, three] = ["one", "two", "three"].map(|name| {
            let path = folder.path().join(name);
            fs::write(&path, format!("agent.name = '{name}'")).expect("written");
            path
        });
        let variables = [(FILE.into(), two.into_os_string())];
        let name = |named: Option<&Path>, variables: &[_], default| {
            load_from(named, variables, default).expect("no mistake").config.agent.name
        };
        assert_eq!(name(Some(&one), &variables, Some(&three)), "one");
        assert_eq!(name(None, &variables, Some(&three)), "two");
        assert_eq!(name(None, &[], Some(&three)), "three");
        assert_eq!(name(None, &[(FILE.into(), OsString::new())], None), host_name());
    }
}

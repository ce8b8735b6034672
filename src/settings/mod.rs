//! Settings: how a part of the agent declares its configuration keys.
//!
//! Each part has a `Config` beside the code that reads it and implements [`Section`]: one call on the
//! [`Reader`] for each key gives the key's name, default, range and description at once. From these calls
//! follow the parsed values, the refusal of unknown keys, `config --defaults` and `config` itself.
//!
//! Where values come from (files, environment) is `config`'s work; this module only knows names and texts.

mod fingerprint;
mod reader;
mod value;

use std::{collections::BTreeMap, fmt, path::PathBuf};

pub use fingerprint::Fingerprint;
pub use reader::Reader;

/// A part's configuration: reads its keys, one call for each.
pub trait Section: Sized {
    /// Reads all keys below the reader's current table.
    fn read(reader: &mut Reader) -> Self;
}

/// What a key can hold.
pub trait Value: Sized {
    /// Whether it may hold a secret, so that no message may quote it.
    const SECRET: bool = false;
    /// What is allowed, in words that follow "must be": `a number from 0 up`, `true or false`.
    fn allowed() -> String;
    /// The same without its own bounds, where a key brings narrower ones: `a number`.
    fn noun() -> String {
        Self::allowed()
    }
    /// From a value in the configuration file.
    ///
    /// # Errors
    /// `None` where the value is not of this kind: [`Value::allowed`] says what is.
    fn from_toml(value: &toml::Value) -> Option<Self>;
    /// From an environment variable's text.
    fn from_text(text: &str) -> Option<Self>;
    /// As TOML, on one line, for people to see: secrets masked.
    fn show(&self) -> String;
    /// As TOML, on one line: what [`Value::from_toml`] reads back, secrets and all. Only for defaults, which are none.
    fn write(&self) -> String {
        self.show()
    }
}

/// A value out of a closed list of words.
pub trait Choice: Copy + PartialEq + 'static {
    /// Every word with what it stands for.
    const CHOICES: &'static [(&'static str, Self)];
}

/// A number of bytes, written as `16MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of a configuration file.
    File {
        /// The file's path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
        }
    }
}

/// A value somebody gave, not yet understood.
#[derive(Debug, Clone)]
pub struct Given {
    /// The value itself.
    pub raw: Raw,
    /// Where it came from.
    pub origin: Origin,
}

/// A value as its source has it.
#[derive(Debug, Clone)]
pub enum Raw {
    /// From a configuration file. A table stands here too, and each of its values under a path of its own.
    Toml(toml::Value),
    /// From the environment.
    Text(String),
}

impl Raw {
    /// What tells it from another one.
    fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::Toml(value) => Fingerprint::of(value.to_string().as_bytes()),
            Self::Text(text) => Fingerprint::of(text.as_bytes()),
        }
    }
}

/// Values that somebody gave, by their whole path (`postgres.pool_size`, `agent.labels."a.b"`).
pub type Values = BTreeMap<String, Given>;

/// A key that some part declared, with its effective value.
#[derive(Debug, Clone)]
pub struct Known {
    /// The whole path, such as `postgres.pool_size`.
    pub path: String,
    /// What it means: one or more sentences.
    pub doc: &'static str,
    /// What is allowed, in words that follow "must be".
    pub allowed: String,
    /// The default as TOML; `None` where leaving it out has a meaning of its own.
    pub default: Option<String>,
    /// The effective value as TOML, secrets masked; `None` where it is left out.
    pub value: Option<String>,
    /// Where the effective value came from.
    pub origin: Origin,
    /// Whether it may hold a secret, so that no message may quote it.
    pub secret: bool,
    /// What was given, where it may hold a secret: `value` does not tell one from another.
    pub fingerprint: Option<Fingerprint>,
}

/// One thing that is wrong with the configuration, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake(pub String);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Every variable that overrides a key begins so.
pub const VARIABLES: &str = "POSTGRES_AGENT_";

/// The variable that overrides a key: `POSTGRES_AGENT_POSTGRES__POOL_SIZE` for `postgres.pool_size`.
pub fn variable(path: &str) -> String {
    format!("{VARIABLES}{}", path.replace('.', "__").to_uppercase())
}

/// A path one table further down.
pub fn join(table: &str, name: &str) -> String {
    if table.is_empty() { quoted(name) } else { format!("{table}.{}", quoted(name)) }
}

/// A name as a key of TOML: quoted where it must be.
fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare { name.to_owned() } else { name.to_owned().show() }
}

//! Settings: how a part of the agent declares its configuration keys.
//!
//! Each part has a `Config` beside the code that reads it and implements [`Section`]: one call on the
//! [`Reader`] for each key gives the key's name, default, range and description at once. From these calls
//! follow the parsed values, the refusal of unknown keys, `config --defaults` and `config` itself.
//!
//! Where values come from (files, environment) is `config`'s work; this module only knows names and texts.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, path::PathBuf, time::Duration};

use crate::units;

/// A part's configuration: reads its keys, one call for each.
pub trait Section: Sized {
    /// Reads all keys below the reader's current table.
    fn read(reader: &mut Reader) -> Self;
}

/// What a key can hold.
pub trait Value: Sized {
    /// What is allowed, in words that follow "must be": `a number`, `true or false`.
    fn allowed() -> String;
    /// From a value in the configuration file.
    ///
    /// # Errors
    /// `None` where the value is not of this kind: [`Value::allowed`] says what is.
    fn from_toml(value: &toml::Value) -> Option<Self>;
    /// From an environment variable's text.
    fn from_text(text: &str) -> Option<Self>;
    /// As TOML, for `config`: what [`Value::from_toml`] reads back; secrets masked.
    fn show(&self) -> String;
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// From a configuration file.
    Toml(toml::Value),
    /// From the environment.
    Text(String),
}

/// A key that some part declared, with its effective value.
#[derive(Debug, Clone)]
pub struct Known {
    /// The whole path, such as `postgres.pool_size`.
    pub path: String,
    /// What it means: one or more sentences.
    pub doc: &'static str,
    /// The default as TOML; `None` where leaving it out has a meaning of its own.
    pub default: Option<String>,
    /// The effective value as TOML; `None` where it is left out.
    pub value: Option<String>,
    /// Where the effective value came from.
    pub origin: Origin,
}

/// One thing that is wrong with the configuration, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake(pub String);

/// Reads keys out of what was given, and takes note of every key asked for and every mistake found.
#[derive(Debug, Default)]
pub struct Reader {
    given: BTreeMap<String, Given>,
    prefix: String,
    known: Vec<Known>,
    mistakes: Vec<Mistake>,
}

impl Reader {
    /// A reader over values by their whole path (`postgres.pool_size`).
    pub fn new(given: BTreeMap<String, Given>) -> Self {
        Self { given, ..Self::default() }
    }

    /// A key with a default. `doc` says what it means, for people.
    pub fn key<T: Value>(&mut self, name: &'static str, default: T, doc: &'static str) -> T {
        self.checked(name, default, doc, |_| Ok(()))
    }

    /// A key with a default and a range, both ends allowed.
    pub fn key_in<T: Value + PartialOrd>(
        &mut self,
        name: &'static str,
        default: T,
        range: RangeInclusive<T>,
        doc: &'static str,
    ) -> T {
        self.checked(name, default, doc, |value| {
            if range.contains(value) {
                return Ok(());
            }
            Err(format!("from {} to {}", range.start().show(), range.end().show()))
        })
    }

    /// A key with a default and a rule of its own. The rule's error follows "must be".
    pub fn checked<T: Value>(
        &mut self,
        name: &'static str,
        default: T,
        doc: &'static str,
        rule: impl Fn(&T) -> Result<(), String>,
    ) -> T {
        let shown = default.show();
        self.read(name, doc, Some(shown), rule).unwrap_or(default)
    }

    /// A key that may be left out.
    pub fn optional<T: Value>(&mut self, name: &'static str, doc: &'static str) -> Option<T> {
        self.read(name, doc, None, |_| Ok(()))
    }

    /// A key that may be left out, with a rule of its own. The rule's error follows "must be".
    pub fn optional_checked<T: Value>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        rule: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        self.read(name, doc, None, rule)
    }

    /// A value of another part, by its whole path, without declaring the key; `None` if it is not given or not such
    /// a value, which is for its own part to say.
    pub fn peek<T: Value>(&self, path: &str) -> Option<T> {
        match &self.given.get(path)?.raw {
            Raw::Toml(value) => T::from_toml(value),
            Raw::Text(text) => T::from_text(text),
        }
    }

    /// Reads a whole section from the table `name`.
    pub fn section<S: Section>(&mut self, name: &str) -> S {
        self.table(name, S::read)
    }

    /// Reads keys from the table `name`.
    pub fn table<R>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.prefix.clone();
        self.prefix = self.path(name);
        let result = read(self);
        self.prefix = outer;
        result
    }

    /// Adds a mistake about a key of the current table that no single rule could see.
    pub fn mistake(&mut self, name: &str, must_be: &str) {
        let path = self.path(name);
        let origin = self.given.get(&path).map_or(Origin::Default, |given| given.origin.clone());
        self.mistakes.push(Mistake(format!("{path} ({origin}) must be {must_be}")));
    }

    /// All mistakes, unknown keys among them, and all known keys with their effective values.
    pub fn finish(mut self) -> (Vec<Mistake>, Vec<Known>) {
        for (path, given) in &self.given {
            if !self.known.iter().any(|known| known.path == *path) {
                self.mistakes.push(Mistake(format!("{path} ({}) is no known key", given.origin)));
            }
        }
        (self.mistakes, self.known)
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    fn read<T: Value>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        default: Option<String>,
        rule: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        let path = self.path(name);
        let given = self.given.get(&path);
        let origin = given.map_or(Origin::Default, |given| given.origin.clone());
        let value = given.and_then(|given| {
            let parsed = match &given.raw {
                Raw::Toml(value) => T::from_toml(value),
                Raw::Text(text) => T::from_text(text),
            };
            let checked = parsed.ok_or_else(T::allowed).and_then(|value| rule(&value).map(|()| value));
            match checked {
                Ok(value) => Some(value),
                Err(must_be) => {
                    self.mistakes.push(Mistake(format!("{path} ({origin}) must be {must_be}")));
                    None
                }
            }
        });
        let shown = value.as_ref().map(Value::show).or_else(|| default.clone());
        self.known.push(Known { path, doc, default, value: shown, origin });
        value
    }
}

impl<T: Choice> Value for T {
    fn allowed() -> String {
        let words: Vec<String> = T::CHOICES.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("one of {}", words.join(", "))
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        T::CHOICES.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }
    fn show(&self) -> String {
        let word = T::CHOICES.iter().find(|(_, value)| value == self).map_or("", |(word, _)| word);
        format!("\"{word}\"")
    }
}

impl Value for bool {
    fn allowed() -> String {
        "true or false".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_bool()
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u64 {
    fn allowed() -> String {
        "a whole number, 0 or more".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_integer().and_then(|number| number.try_into().ok())
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for f64 {
    fn allowed() -> String {
        "a number".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_float().or_else(|| value.as_integer().map(|number| number as f64)).filter(|number| number.is_finite())
    }
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &f64| number.is_finite())
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn allowed() -> String {
        "a text".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}

impl Value for PathBuf {
    fn allowed() -> String {
        "a path".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(text).filter(|text| !text.is_empty()).map(Self::from)
    }
    fn show(&self) -> String {
        self.display().to_string().show()
    }
}

impl Value for Duration {
    fn allowed() -> String {
        "a duration such as \"250ms\", \"10s\" or \"7d\"".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        units::parse_duration(text).ok()
    }
    fn show(&self) -> String {
        units::duration(*self).show()
    }
}

impl Value for Size {
    fn allowed() -> String {
        "a size such as \"16MiB\" or \"0\"".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Option<Self> {
        units::parse_size(text).ok().map(Self)
    }
    fn show(&self) -> String {
        units::size(self.0).show()
    }
}

impl Value for Vec<String> {
    fn allowed() -> String {
        "an array of texts".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    }
    fn from_text(text: &str) -> Option<Self> {
        let table: toml::Table = format!("v = {text}").parse().ok()?;
        Self::from_toml(table.get("v")?)
    }
    fn show(&self) -> String {
        let items: Vec<String> = self.iter().map(Value::show).collect();
        format!("[{}]", items.join(", "))
    }
}

impl Value for BTreeMap<String, String> {
    fn allowed() -> String {
        "a table of texts".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        let pair = |(key, value): (&String, &toml::Value)| Some((key.clone(), value.as_str()?.to_owned()));
        value.as_table()?.iter().map(pair).collect()
    }
    fn from_text(text: &str) -> Option<Self> {
        let table: toml::Table = format!("v = {text}").parse().ok()?;
        Self::from_toml(table.get("v")?)
    }
    fn show(&self) -> String {
        let items: Vec<String> = self.iter().map(|(key, value)| format!("{} = {}", key.show(), value.show())).collect();
        if items.is_empty() { "{}".into() } else { format!("{{ {} }}", items.join(", ")) }
    }
}

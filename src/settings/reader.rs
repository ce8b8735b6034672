//! The reader: values out of what was given, and a note of every key asked for and every mistake found.
//!
//! A mistake never stops it: the default stands in, so that all mistakes are told at once.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{Known, Mistake, Origin, Raw, Section, Value, Values, join, variable};

/// Reads keys out of what was given, and takes note of every key asked for and every mistake found.
#[derive(Debug, Default)]
pub struct Reader {
    given: Values,
    prefix: String,
    known: Vec<Known>,
    mistakes: Vec<(Origin, Mistake)>,
}

impl Reader {
    /// A reader over values by their whole path (`postgres.pool_size`).
    pub fn new(given: Values) -> Self {
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
        let allowed = format!("{} from {} to {}", T::noun(), range.start().show(), range.end().show());
        let rule = |value: &T| if range.contains(value) { Ok(()) } else { Err(allowed.clone()) };
        let key = Key { name, doc, allowed: allowed.clone(), default: Some(&default), told: true };
        self.read(&key, rule).unwrap_or(default)
    }

    /// A key with a default and a rule of its own. The rule's error follows "must be".
    pub fn checked<T: Value>(
        &mut self,
        name: &'static str,
        default: T,
        doc: &'static str,
        rule: impl Fn(&T) -> Result<(), String>,
    ) -> T {
        let key = Key { name, doc, allowed: T::allowed(), default: Some(&default), told: true };
        self.read(&key, rule).unwrap_or(default)
    }

    /// A key whose default is not the same everywhere, such as the host's name, with a rule of its own.
    pub fn computed<T: Value>(
        &mut self,
        name: &'static str,
        default: T,
        doc: &'static str,
        rule: impl Fn(&T) -> Result<(), String>,
    ) -> T {
        let key = Key { name, doc, allowed: T::allowed(), default: Some(&default), told: false };
        self.read(&key, rule).unwrap_or(default)
    }

    /// A key that may be left out.
    pub fn optional<T: Value>(&mut self, name: &'static str, doc: &'static str) -> Option<T> {
        self.optional_checked(name, doc, |_| Ok(()))
    }

    /// A key that may be left out, with a rule of its own. The rule's error follows "must be".
    pub fn optional_checked<T: Value>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        rule: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        self.read(&Key { name, doc, allowed: T::allowed(), default: None, told: false }, rule)
    }

    /// A key with free names below it, a text each. The rule's error about one of them follows "must be".
    pub fn texts(
        &mut self,
        name: &'static str,
        doc: &'static str,
        rule: impl Fn(&str, &str) -> Result<(), String>,
    ) -> BTreeMap<String, String> {
        type Texts = BTreeMap<String, String>;
        let path = join(&self.prefix, name);
        let mut wrong = Vec::new();
        if let Some(Raw::Toml(toml::Value::Table(table))) = self.given.get(&path).map(|given| &given.raw) {
            // Each of its own line, so that each is told by its own name.
            for (key, value) in table {
                let path = join(&path, key);
                let verdict = value.as_str().map_or_else(|| Err(String::allowed()), |value| rule(key, value));
                if let Err(must_be) = verdict {
                    wrong.push((path, must_be, described::<String>(&Raw::Toml(value.clone()))));
                }
            }
        }
        let told = !wrong.is_empty();
        for (path, must_be, is) in wrong {
            self.refuse(&path, &is, &must_be);
        }
        let key = Key { name, doc, allowed: Texts::allowed(), default: Some(&Texts::new()), told: true };
        if told {
            self.note(&key, None, path);
            return Texts::new();
        }
        let whole = |texts: &Texts| texts.iter().try_for_each(|(key, value)| rule(key, value));
        self.read(&key, whole).unwrap_or_default()
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
        self.prefix = join(&outer, name);
        let result = read(self);
        self.prefix = outer;
        result
    }

    /// Adds a mistake about a key of the current table that no single rule could see.
    pub fn mistake(&mut self, name: &str, must_be: &str) {
        let path = join(&self.prefix, name);
        let known = self.known.iter().find(|known| known.path == path && !known.secret);
        let is = known.and_then(|known| known.value.clone());
        self.refuse(&path, &is.map(|value| format!("is {value}, but ")).unwrap_or_default(), must_be);
    }

    /// Adds a mistake that was found before anything was read, such as one against TOML itself.
    pub fn told(&mut self, origin: Origin, text: String) {
        self.mistakes.push((origin, Mistake(text)));
    }

    /// All mistakes in the order of their places, unknown keys among them, and all known keys with their effective values.
    pub fn finish(mut self) -> (Vec<Mistake>, Vec<Known>) {
        let unknown: Vec<_> = self.given.iter().filter_map(|(path, given)| self.unknown(path, given)).collect();
        self.mistakes.extend(unknown);
        self.mistakes.sort_by(|(one, _), (other, _)| one.cmp(other));
        (self.mistakes.into_iter().map(|(_, mistake)| mistake).collect(), self.known)
    }

    fn unknown(&self, path: &str, given: &super::Given) -> Option<(Origin, Mistake)> {
        let below = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
        let texts = BTreeMap::<String, String>::allowed();
        if self.known.iter().any(|known| known.path == path || (known.allowed == texts && below(&known.path, path))) {
            return None;
        }
        let origin = &given.origin;
        let told = |text: String| Some((origin.clone(), Mistake(text)));
        let table = matches!(&given.raw, Raw::Toml(toml::Value::Table(_)));
        if self.known.iter().any(|known| below(path, &known.path)) {
            // A text is not quoted: it may be meant for a key below that holds a secret.
            let is = match &given.raw {
                Raw::Text(_) | Raw::Toml(toml::Value::String(_)) => "a text".into(),
                raw @ Raw::Toml(_) => short(raw),
            };
            return (!table).then(|| told(format!("{path} ({origin}) is {is}, but must be a table of keys")))?;
        }
        // What stands below is told line by line, whether the table is unknown or should have been a value.
        if table && self.given.keys().any(|inner| below(path, inner)) {
            return None;
        }
        let nearest = nearest(path, &self.known).map_or_else(String::new, |near| match origin {
            Origin::Variable(_) => format!("; the nearest is {near} (${})", variable(near)),
            _ => format!("; the nearest is {near}"),
        });
        told(format!("{path} ({origin}) is no known key{nearest}"))
    }

    fn origin(&self, path: &str) -> Origin {
        self.given.get(path).map_or(Origin::Default, |given| given.origin.clone())
    }

    fn refuse(&mut self, path: &str, is: &str, must_be: &str) {
        let origin = self.origin(path);
        let text = format!("{path} ({origin}) {is}must be {must_be}");
        self.mistakes.push((origin, Mistake(text)));
    }

    fn read<T: Value>(&mut self, key: &Key<'_, T>, rule: impl Fn(&T) -> Result<(), String>) -> Option<T> {
        let path = join(&self.prefix, key.name);
        let value = self.given.get(&path).map(|given| {
            let parsed = match &given.raw {
                Raw::Toml(value) => T::from_toml(value),
                Raw::Text(text) => T::from_text(text),
            };
            let checked = parsed.ok_or_else(|| key.allowed.clone()).and_then(|value| rule(&value).map(|()| value));
            checked.map_err(|must_be| (described::<T>(&given.raw), must_be))
        });
        let value = value.transpose().unwrap_or_else(|(is, must_be)| {
            self.refuse(&path, &is, &must_be);
            None
        });
        self.note(key, value.as_ref(), path);
        value
    }

    fn note<T: Value>(&mut self, key: &Key<'_, T>, value: Option<&T>, path: String) {
        self.known.push(Known {
            doc: key.doc,
            allowed: key.allowed.clone(),
            default: key.default.filter(|_| key.told).map(Value::write),
            value: value.or(key.default).map(Value::show),
            origin: self.origin(&path),
            secret: T::SECRET,
            fingerprint: self.given.get(&path).filter(|_| T::SECRET).map(|given| given.raw.fingerprint()),
            path,
        });
    }
}

/// A key as its part declares it.
struct Key<'a, T> {
    name: &'static str,
    doc: &'static str,
    allowed: String,
    default: Option<&'a T>,
    /// Whether the default is the same everywhere, so that it can be told.
    told: bool,
}

/// What a wrong value is and how it may have been meant: `is "2" (leave out the quotes), but `. Empty for a secret.
fn described<T: Value>(raw: &Raw) -> String {
    let hint = match raw {
        Raw::Toml(toml::Value::String(text)) => {
            let bare: Option<toml::Table> = format!("v = {text}").parse().ok();
            bare.and_then(|table| T::from_toml(table.get("v")?)).map(|_| " (leave out the quotes)")
        }
        Raw::Toml(value) if T::from_toml(value).is_none() => {
            T::from_text(&value.to_string()).map(|_| " (put it in quotes)")
        }
        Raw::Toml(_) | Raw::Text(_) => None,
    };
    if T::SECRET { String::new() } else { format!("is {}{}, but ", short(raw), hint.unwrap_or_default()) }
}

/// A wrong value for a message: in one line, and not all of a long one.
fn short(raw: &Raw) -> String {
    match raw {
        Raw::Text(text) | Raw::Toml(toml::Value::String(text)) => {
            let short: String = text.chars().take(60).collect();
            let more = if short.len() < text.len() { "..." } else { "" };
            format!("{:?}", short + more)
        }
        Raw::Toml(toml::Value::Array(_)) => "an array".into(),
        Raw::Toml(toml::Value::Table(_)) => "a table".into(),
        Raw::Toml(other) => other.to_string(),
    }
}

/// The known key that was probably meant: one of the same name elsewhere, or else the one spelt most alike.
fn nearest<'a>(path: &str, known: &'a [Known]) -> Option<&'a str> {
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |known: &&Known| {
        let whole = strsim::normalized_damerau_levenshtein(path, &known.path);
        // A key under the wrong table, or with its table forgotten, is found by its own name.
        whole.max(0.9 * strsim::normalized_damerau_levenshtein(&leaf(path), &leaf(&known.path)) + 0.1 * whole)
    };
    let best = known.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(&best) > 0.5).then_some(best.path.as_str())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Given, Size},
        *,
    };

    /// Reads a few keys out of lines of one file; gives what is wrong with them.
    #[track_caller]
    fn check(given: &[(&str, toml::Value)], want: &[&str]) {
        let given = (1..).zip(given).map(|(line, (path, value))| {
            let origin = Origin::File { path: "f".into(), line };
            ((*path).to_owned(), Given { raw: Raw::Toml(value.clone()), origin })
        });
        let mut reader = Reader::new(given.collect());
        reader.table("postgres", |reader| {
            reader.key_in("pool_size", 2, 1..=100, "");
            reader.key("statement_timeout", std::time::Duration::from_secs(5), "");
            reader.optional::<crate::secret::SecretUrl>("url", "");
        });
        reader.table("spool", |reader| reader.key("max_bytes", Size(1 << 30), ""));
        let label = |key: &str, _: &str| if key == "bad" { Err("named otherwise".into()) } else { Ok(()) };
        reader.table("agent", |reader| reader.texts("labels", "", label));
        let got: Vec<_> = reader.finish().0.into_iter().map(|mistake| mistake.0).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn each_mistake_names_the_key_its_place_what_is_allowed_and_how_it_was_meant() {
        check(&[("postgres.pool_size", 3.into())], &[]);
        check(
            &[
                ("postgres.pool_size", "3".into()),
                ("postgres.pool_sise", 3.into()),
                ("postgres.statement_timeout", 5.into()),
                ("spool.max_bytes", 1024.into()),
                ("statement_timeout", "1s".into()),
                ("zzz", true.into()),
            ],
            &[
                "postgres.pool_size (f:1) is \"3\" (leave out the quotes), but must be a whole number from 1 to 100",
                "postgres.pool_sise (f:2) is no known key; the nearest is postgres.pool_size",
                "postgres.statement_timeout (f:3) is 5, but must be a duration such as \"250ms\", \"10s\" or \"7d\"",
                "spool.max_bytes (f:4) is 1024 (put it in quotes), but must be a size such as \"16MiB\" or \"0\"",
                "statement_timeout (f:5) is no known key; the nearest is postgres.statement_timeout",
                "zzz (f:6) is no known key",
            ],
        );
        check(
            &[("postgres.pool_size", 101.into())],
            &["postgres.pool_size (f:1) is 101, but must be a whole number from 1 to 100"],
        );
    }

    #[test]
    fn a_secret_is_never_quoted() {
        check(&[("postgres.url", 31337.into())], &["postgres.url (f:1) must be a text"]);
    }

    #[test]
    fn a_table_stands_where_a_table_belongs() {
        let table = |text: &str| toml::Value::Table(text.parse().expect("TOML"));
        check(&[("postgres", 1.into())], &["postgres (f:1) is 1, but must be a table of keys"]);
        check(&[("postgres", table("")), ("nothing", table(""))], &["nothing (f:2) is no known key"]);
        let labels = table("bad = 'x'\nenv = 3\nfine = 'y'");
        check(
            &[("agent.labels", labels), ("agent.labels.bad", "x".into()), ("agent.labels.env", 3.into())],
            &[
                "agent.labels.bad (f:2) is \"x\", but must be named otherwise",
                "agent.labels.env (f:3) is 3 (put it in quotes), but must be a text",
            ],
        );
        check(&[("agent.labels", 1.into())], &["agent.labels (f:1) is 1, but must be a table of texts"]);
    }
}

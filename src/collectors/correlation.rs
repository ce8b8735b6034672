//! Correlation ids: which request of the application a session works for, as its `application_name` says.
//!
//! The pattern is `pg_activity`'s key; `pg_locks` reads ids by the same one.

use regex::{Regex, RegexBuilder};

use crate::settings::Reader;

/// The key's name within `collectors.pg_activity`.
const KEY: &str = "correlation_pattern";

const DEFAULT: &str = "(?i)bitville-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})";

/// Finds the id in an `application_name`.
#[derive(Debug, Clone)]
pub struct Correlation(Option<Regex>);

impl Correlation {
    /// Declares the key in the reader's current table, which is that of `pg_activity`.
    pub fn read(reader: &mut Reader) -> Self {
        let doc =
            "Regular expression over application_name; its first group is the correlation id, sent in lower case.";
        let rule = |pattern: &String| compile(pattern).map(drop);
        Self(compile(&reader.checked(KEY, DEFAULT.to_owned(), doc, rule)).ok())
    }

    /// The pattern of `pg_activity`, for another collector.
    pub fn peek(reader: &Reader) -> Self {
        let pattern: Option<String> = reader.peek(&format!("collectors.pg_activity.{KEY}"));
        Self(compile(pattern.as_deref().unwrap_or(DEFAULT)).ok())
    }

    /// The id in lower case, if there is one.
    pub fn id(&self, application_name: Option<&str>) -> Option<String> {
        let found = self.0.as_ref()?.captures(application_name?)?;
        Some(found.get(1)?.as_str().to_lowercase())
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    // Large repetitions could take megabytes: a pattern over 63 bytes of text needs none.
    let regex = RegexBuilder::new(pattern).size_limit(1 << 20).build();
    let regex = regex.map_err(|_| "a regular expression (of the crate regex: no look-around, no references)")?;
    if regex.captures_len() < 2 { Err("a regular expression with a group for the id".into()) } else { Ok(regex) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(application_name: &str, want: Option<&str>) {
        let correlation = Correlation::read(&mut Reader::default());
        assert_eq!(correlation.id(Some(application_name)).as_deref(), want, "{application_name:?}");
    }

    #[test]
    fn an_id_is_found_only_when_it_is_whole_and_told_in_lower_case() {
        let id = "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d";
        check(&format!("bitville-{id}"), Some(id));
        check(&format!("web BITVILLE-{} x", id.to_uppercase()), Some(id));
        check("bitville-6f1c1f0e", None);
        check("bitville------------------------------------", None);
        check(id, None);
        check("", None);
    }

    #[test]
    fn a_pattern_needs_a_group() {
        assert!(compile("bitville-[0-9a-f]+").is_err());
        assert!(compile("(").is_err());
        assert!(compile("id=(.+)").is_ok());
    }
}

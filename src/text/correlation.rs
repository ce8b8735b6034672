//! Correlation ids: the thread from an application's request to the session that serves it.
//!
//! PostgreSQL cuts `application_name` at 63 bytes, so a pattern finds an id only when it is whole.

use regex::{Regex, RegexBuilder};

use crate::settings::Reader;

/// The key's name within `collectors.pg_activity`.
const KEY: &str = "correlation_pattern";

/// `bitville-` and a UUID, as hexadecimal digits of either case.
const PATTERN: &str = "(?i)bitville-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})";

/// How a correlation id is found in an `application_name`.
#[derive(Debug, Clone)]
pub struct Correlation(Option<Regex>);

impl Correlation {
    /// Compiles a pattern whose first group is the id.
    ///
    /// # Errors
    /// What the pattern must be, for one that is none or has no group.
    pub fn new(pattern: &str) -> Result<Self, String> {
        // Large repetitions could take megabytes: a pattern over 63 bytes of text needs none.
        let regex = RegexBuilder::new(pattern).size_limit(1 << 20).build();
        // The regex crate's errors are drawings over several lines; their last line says what is wrong.
        let why = |error: regex::Error| error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        let regex = regex.map_err(|error| format!("a regular expression with a group ({})", why(error)))?;
        if regex.captures_len() < 2 {
            return Err("a regular expression with a group, in round brackets, around the id".into());
        }
        Ok(Self(Some(regex)))
    }

    /// Declares the key in the reader's current table, which is that of `pg_activity`.
    pub fn read(reader: &mut Reader) -> Self {
        let pattern = reader.checked(
            KEY,
            PATTERN.to_owned(),
            "Regular expression over application_name; its first group is the correlation id, sent in lower case.",
            |pattern| Self::new(pattern).map(drop),
        );
        // Only a pattern that was checked comes here.
        Self::new(&pattern).unwrap_or(Self(None))
    }

    /// The pattern that another part has for its own at `path`.
    pub fn peek(reader: &Reader, path: &str) -> Self {
        let pattern: Option<String> = reader.peek(path);
        // A pattern that is wrong is a mistake already, which that part tells.
        Self::new(pattern.as_deref().unwrap_or(PATTERN)).unwrap_or(Self(None))
    }

    /// The id in lower case; `None` if there is none, or only part of one.
    pub fn id(&self, application_name: Option<&str>) -> Option<String> {
        let id = self.0.as_ref()?.captures(application_name?)?.get(1)?;
        Some(id.as_str().to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d";

    #[track_caller]
    fn check(pattern: &str, application_name: &str, want: Option<&str>) {
        let correlation = Correlation::new(pattern).expect("compiles");
        assert_eq!(correlation.id(Some(application_name)).as_deref(), want, "{application_name:?}");
    }

    #[test]
    fn a_correlation_id_is_found_only_when_it_is_whole() {
        check(PATTERN, &format!("bitville-{ID}"), Some(ID));
        check(PATTERN, &format!("web Bitville-{} 7", ID.to_uppercase()), Some(ID));
        check(PATTERN, format!("bitville-{ID}").trim_end_matches('d'), None);
        check(PATTERN, ID, None);
        check(PATTERN, "", None);
    }

    #[test]
    fn a_pattern_may_be_any_and_its_first_group_is_the_id() {
        check("req=([A-Z]+)(-x)?", "req=ABC-x", Some("abc"));
        check("(a)|b", "b", None);
    }

    #[test]
    fn a_pattern_without_a_group_is_refused() {
        for bad in ["abc", "(?:abc)", "", "(", "a{99999999}"] {
            let problem = Correlation::new(bad).expect_err(bad);
            assert!(problem.starts_with("a regular expression with a group"), "{problem}");
            assert!(!problem.contains('\n'), "{problem:?}");
        }
    }
}

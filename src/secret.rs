//! Secrets: texts that no `Debug`, `Display` or serializer prints.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::settings::Value;

/// A text that is never printed. It is wiped from memory when it is dropped.
#[derive(Clone, Default)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the text in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Reads a secret from a file; one trailing newline is dropped.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn from_file(path: &std::path::Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Ok(Self::new(text.strip_suffix('\n').unwrap_or(&text)))
    }

    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A URL or connection string as a setting: it may hold a password, so it is shown with it masked.
#[derive(Clone, Debug, Default)]
pub struct SecretUrl(Secret);

impl SecretUrl {
    /// Takes the text in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Secret::new(text))
    }

    /// The text itself, password and all.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The text with what could be a password replaced by `***`: everything between the scheme's user and
    /// the last `@` before the path, and the values of `password` and `sslpassword` wherever they stand.
    pub fn masked(&self) -> String {
        mask(self.expose())
    }
}

impl Value for SecretUrl {
    const SECRET: bool = true;
    fn allowed() -> String {
        "a text".into()
    }
    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.as_str().map(Self::new)
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(Self::new(text))
    }
    fn show(&self) -> String {
        self.masked().show()
    }
    fn write(&self) -> String {
        self.expose().to_owned().show()
    }
}

/// Masks what could be a password in a URL or a libpq connection string.
pub fn mask(text: &str) -> String {
    // A mistyped URL must not leak either: where in doubt, more is masked than need be.
    let masked = match text.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((userinfo, tail)) => {
                let user = userinfo.split(':').next().unwrap_or("");
                let password = if userinfo.contains(':') { ":***" } else { "" };
                format!("{scheme}://{user}{password}@{tail}")
            }
            None => text.to_owned(),
        },
        None => text.to_owned(),
    };
    let mut out = String::new();
    let mut rest = masked.as_str();
    while let Some(at) = rest.to_ascii_lowercase().find("password") {
        let (before, after) = rest.split_at(at + "password".len());
        out.push_str(before);
        let value = after.trim_start();
        let Some(value) = value.strip_prefix('=') else {
            rest = after;
            continue;
        };
        out.push_str("=***");
        rest = skip_value(value.trim_start());
    }
    out.push_str(rest);
    out
}

/// What follows a value: one in single quotes with backslash escapes, or one up to a space or `&`.
fn skip_value(text: &str) -> &str {
    let mut escaped = false;
    let quoted = text.strip_prefix('\'');
    let body = quoted.unwrap_or(text);
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted.is_some() => return body.get(at + 1..).unwrap_or(""),
            ' ' | '&' if quoted.is_none() => return body.get(at..).unwrap_or(""),
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(SecretUrl::new(text).masked(), want, "{text:?}");
    }

    #[test]
    fn passwords_in_urls_and_connection_strings_are_masked() {
        check("amqp://guest:hunter2@h:5672/%2f", "amqp://guest:***@h:5672/%2f");
        check("amqp://u:p@ss/w:d@h/v", "amqp://u:***@h/v");
        check("postgres://h/db?password=hunter2&sslmode=require", "postgres://h/db?password=***&sslmode=require");
        check("host=h password = 'hun\\'ter 2' user=u", "host=h password=*** user=u");
        check("host=h sslpassword=x password=", "host=h sslpassword=*** password=***");
        check("amqp://h:5672/v", "amqp://h:5672/v");
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", SecretUrl::new("amqp://u:hunter2@h")), "SecretUrl(***)");
    }
}

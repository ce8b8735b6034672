//! Secrets: texts that no `Debug`, `Display` or serializer prints.

use std::{
    fmt, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

use crate::settings::Value;

/// What stands in place of a password.
pub const MASKED: &str = "***";

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
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        let text = fs::read_to_string(path)?;
        Ok(Self::new(text.strip_suffix('\n').unwrap_or(&text)))
    }

    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASKED)
    }
}

/// A file with a secret in it that others than its owner may read or change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    path: PathBuf,
    /// Its permissions, such as `0644`.
    mode: u32,
}

impl Exposed {
    /// `None` if the file is for its owner alone, or root's and its group may read it; or if it cannot be looked at.
    pub fn find(path: &Path) -> Option<Self> {
        let what = fs::metadata(path).ok()?;
        let mode = what.permissions().mode() & 0o777;
        let allowed = if what.uid() == 0 { 0o740 } else { 0o700 };
        (mode & !allowed != 0).then(|| Self { path: path.to_owned(), mode })
    }

    /// What mends it: a command.
    pub fn mend(&self) -> String {
        let path = self.path.display().to_string();
        let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
        if plain { format!("chmod 0600 {path}") } else { format!("chmod 0600 '{}'", path.replace('\'', "'\\''")) }
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} holds a secret, and others than its owner may get at it (mode {:04o})",
            self.path.display(),
            self.mode
        )
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
    let Some((scheme, rest)) = text.split_once("://") else { return mask_pairs(text) };
    let rest = match rest.rsplit_once('@') {
        Some((userinfo, tail)) => {
            let user = userinfo.split(':').next().unwrap_or("");
            let password = if userinfo.contains(':') { ":***" } else { "" };
            format!("{user}{password}@{tail}")
        }
        None => rest.to_owned(),
    };
    let parameter = |piece: &str| match piece.split_once('=') {
        Some((name, value)) if unescaped(name).contains("password") => {
            let end = if value.ends_with(['?', '&']) { value.get(value.len() - 1..) } else { None };
            format!("{name}={MASKED}{}", end.unwrap_or(""))
        }
        _ => piece.to_owned(),
    };
    format!("{scheme}://{}", rest.split_inclusive(['?', '&']).map(parameter).collect::<String>())
}

/// In lower case, percent-decoded: libpq takes names of parameters so, too.
fn unescaped(name: &str) -> String {
    let mut pieces = name.split('%');
    let mut out = pieces.next().unwrap_or("").to_owned();
    for piece in pieces {
        let byte = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.extend(byte.map(char::from));
        out.push_str(if byte.is_some() { piece.get(2..).unwrap_or("") } else { piece });
    }
    out.to_ascii_lowercase()
}

/// Masks the values of a `key=value` string.
fn mask_pairs(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
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
        check("postgres://h/d?pass%77ord=hunter2&x=y", "postgres://h/d?pass%77ord=***&x=y");
        check("postgres://h/d?password=hunter 2&x=y", "postgres://h/d?password=***&x=y");
        check("postgres://h/d?user=a@b&PASSWORD=hunter2", "postgres://h/d?user=a@b&PASSWORD=***");
        check("postgres://h/d?sslpassword=hunter2", "postgres://h/d?sslpassword=***");
    }

    #[test]
    fn a_file_that_others_may_read_is_told_with_what_mends_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a secret");
        fs::write(&path, "x").expect("written");
        let exposed = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its owner");
            Exposed::find(&path)
        };
        assert_eq!((exposed(0o600), exposed(0o400)), (None, None));
        let group = if rustix::process::geteuid().is_root() { 0o660 } else { 0o640 };
        assert!([0o644, 0o604, 0o602, group].into_iter().all(|mode| exposed(mode).is_some()));
        let told = exposed(0o644).expect("others may read it");
        assert!(told.to_string().ends_with("(mode 0644)"), "{told}");
        assert_eq!(told.mend(), format!("chmod 0600 '{}'", path.display()));
        assert_eq!(Exposed::find(&folder.path().join("absent")), None);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", SecretUrl::new("amqp://u:hunter2@h")), "SecretUrl(***)");
    }
}

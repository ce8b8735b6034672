//! libpq's password file: `host:port:database:user:password`, the first line that fits.
//!
//! Reading it is the caller's work with [`read`], as libpq does: a file that others may read is not used at all.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use super::{Host, Place};
use crate::secret::Secret;

/// Reads a password file. `None` if there is none, if others may read it, or if it is no plain file: the last two
/// with a word of warning, as in libpq.
pub fn read(path: &Path) -> Option<Secret> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "password file is not used");
            return None;
        }
    };
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "password file is not used: it is no plain file");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "password file is not used: others may read it (chmod 0600)");
        return None;
    }
    let bytes = fs::read(path).inspect_err(|error| {
        tracing::warn!(path = %path.display(), %error, "password file is not used");
    });
    let text = Secret::new(String::from_utf8_lossy(&bytes.ok()?));
    for line in malformed(text.expose()) {
        let allowed = "a line of the password file is passed over: host:port:database:user:password is allowed";
        tracing::warn!(path = %path.display(), line, "{allowed}");
    }
    Some(text)
}

/// The lines, from 1, that can fit no connection: libpq passes them over in silence.
fn malformed(text: &str) -> impl Iterator<Item = usize> {
    let is_whole = |line: &str| {
        let mut escaped = false;
        let colons = line.chars().filter(|c| {
            let ends = *c == ':' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        colons.count() >= 4
    };
    let says = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
    (1..).zip(text.lines()).filter(move |(_, line)| says(line) && !is_whole(line)).map(|(at, _)| at)
}

/// The password for a connection, if a line fits.
pub fn lookup(file: &str, host: &Host, dbname: &str, user: &str) -> Option<Secret> {
    let name = match &host.place {
        Place::Socket(folder) if ["/var/run/postgresql", "/tmp"].iter().any(|usual| folder == Path::new(usual)) => {
            "localhost".into()
        }
        Place::Socket(folder) => folder.display().to_string(),
        Place::Name(name) | Place::Address(_, Some(name)) => name.clone(),
        Place::Address(address, None) => address.to_string(),
    };
    let port = host.port.to_string();
    let wanted = [name.as_str(), &port, dbname, user];
    let listed = file.lines().find_map(|line| password(line.trim_end_matches('\r'), &wanted));
    // A line that fits and has no password ends the search too: nobody asks for the next one.
    listed.filter(|password| !password.is_empty()).map(Secret::new)
}

/// The password of one line, if all four fields before it fit.
fn password(line: &str, wanted: &[&str]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let rest = wanted.iter().try_fold(line, |rest, want| after_field(rest, want))?;
    // It ends with the line or at a colon without a backslash; a backslash at the end stands for itself.
    let mut out = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next().filter(|c| *c != ':') {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    Some(out)
}

/// What follows a field and its colon, if the field is what is wanted, or `*`.
fn after_field<'a>(line: &'a str, want: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut chars = line.chars();
    for want in want.chars() {
        // A colon without a backslash is as good as one with it where one is wanted, as in ::1.
        let mut c = chars.next()?;
        if c == '\\' {
            c = chars.next()?;
        }
        if c != want {
            return None;
        }
    }
    chars.as_str().strip_prefix(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(file: &str, place: Place, want: Option<&str>) {
        let got = lookup(file, &Host { place, port: 5432 }, "db", "me");
        assert_eq!(got.as_ref().map(Secret::expose), want, "{file:?}");
    }

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let h = || Place::Name("h".into());
        check("h:5432:db:me:one\nh:*:*:*:two", h(), Some("one"));
        check("# h:5432:db:me:no\nother:*:*:*:no\r\n*:*:*:*:yes\r\n", h(), Some("yes"));
        check(r"h:5432:db:me:a\:b\\c:d", h(), Some(r"a:b\c"));
        check(r"\h:5432:d\b:me:x", h(), Some("x"));
        check("h:5432:db:me:\n*:*:*:*:x", h(), None);
        check("h:5432:db:me:x\\", h(), Some("x\\"));
        check("h:5433:db:me:x\nh:5432:db\nh", h(), None);
        check(r"\*:5432:db:me:x", h(), None);
    }

    #[test]
    fn a_line_that_lacks_a_field_is_told() {
        let text = "# a\n\nh:5432:db:me:x\nh:5432:db:x\n*:*:*:*:\nh:5432:db\\:me:x\n";
        assert_eq!(malformed(text).collect::<Vec<_>>(), [4, 6]);
    }

    #[test]
    fn a_usual_socket_is_localhost_and_an_address_with_a_name_is_that_name() {
        check("localhost:5432:db:me:x", Place::Socket("/var/run/postgresql".into()), Some("x"));
        check("/srv/pg:5432:db:me:x", Place::Socket("/srv/pg".into()), Some("x"));
        let address = [10, 0, 0, 1].into();
        check("h:5432:db:me:x", Place::Address(address, Some("h".into())), Some("x"));
        check("10.0.0.1:5432:db:me:x", Place::Address(address, None), Some("x"));
        let v6 = || Place::Address(std::net::Ipv6Addr::LOCALHOST.into(), None);
        check("::1:5432:db:me:x", v6(), Some("x"));
        check(r"\:\:1:5432:db:me:x", v6(), Some("x"));
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pgpass");
        fs::write(&path, "*:*:*:*:x").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(read(&path).is_none());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        assert!(read(&path).is_some());
        assert!(read(&folder.path().join("none")).is_none());
        assert!(read(folder.path()).is_none());
    }
}

//! Services: named sets of settings in `~/.pg_service.conf` and in the system's `pg_service.conf`.
//!
//! ```text
//! [mydb]
//! host=db.example
//! user=monitor
//! ```
//! What a service says stands behind the connection string and before the variables. No blanks around `=`, and the
//! first of two lines counts: both as in libpq. Lines that ask an LDAP server are refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Environment,
    parse::{is_blank, keyword},
};

/// libpq's buffer holds 1024 bytes with what ends a line and a string.
const LINE_BYTES_MAX: usize = 1022;

/// Keyword, value, and the line that it stands on.
pub(super) type Settings = Vec<(&'static str, String, usize)>;

/// What a service says.
#[derive(Debug)]
pub(super) struct Service {
    file: PathBuf,
    settings: Settings,
}

impl Service {
    /// The value of a keyword, and where it stands.
    pub(super) fn get(&self, keyword: &str) -> Option<(&str, String)> {
        let (_, value, line) = self.settings.iter().find(|(key, ..)| *key == keyword)?;
        Some((value, format!("{keyword} (service file {}, line {line})", self.file.display())))
    }
}

/// Looks a service up: in `PGSERVICEFILE` or `~/.pg_service.conf`, then in the system's file.
///
/// # Errors
/// That it is nowhere, or which line of which file is wrong and what is allowed.
pub(super) fn find(name: &str, environment: &Environment) -> Result<Service, String> {
    let named = environment.variables.get("PGSERVICEFILE").map(PathBuf::from);
    let own = environment.home.as_ref().map(|home| home.join(".pg_service.conf")).filter(|path| path.exists());
    let folder = environment.variables.get("PGSYSCONFDIR").map_or("/etc/postgresql-common", String::as_str);
    let system = Some(Path::new(folder).join("pg_service.conf")).filter(|path| path.exists());
    for file in [named.or(own), system].into_iter().flatten() {
        let unreadable = |error| format!("a service file that can be read: {}: {error}", file.display());
        let bytes = fs::read(&file).map_err(unreadable)?;
        let settings = read(&String::from_utf8_lossy(&bytes), name)
            .map_err(|(line, allowed)| format!("{allowed}: service file {}, line {line}", file.display()))?;
        if let Some(settings) = settings {
            return Ok(Service { file, settings });
        }
    }
    let looked_in = "PGSERVICEFILE or ~/.pg_service.conf, and pg_service.conf in PGSYSCONFDIR";
    Err(format!("a service that is defined: there is no [{}] in {looked_in}", name.escape_debug()))
}

/// The settings of one service; `None` if the file has no such section.
pub(super) fn read(text: &str, name: &str) -> Result<Option<Settings>, (usize, &'static str)> {
    let mut found: Option<Settings> = None;
    let section = format!("[{name}]");
    for (line, text) in (1..).zip(text.split('\n')) {
        if text.len() > LINE_BYTES_MAX {
            return Err((line, "lines of at most 1022 bytes"));
        }
        let text = text.trim_matches(is_blank);
        if text.starts_with('[') && found.is_some() {
            break;
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if text.starts_with('[') {
            found = text.starts_with(&section).then(Vec::new);
        } else if let Some(settings) = &mut found {
            let (keyword, value) = setting(text).map_err(|allowed| (line, allowed))?;
            settings.push((keyword, value.to_owned(), line));
        }
    }
    Ok(found)
}

/// One `keyword=value`; what is allowed, if it is none.
fn setting(text: &str) -> Result<(&'static str, &str), &'static str> {
    if text.starts_with("ldap") {
        return Err("a service that is written out (ldap:// lines are not supported)");
    }
    let (key, value) = text.split_once('=').ok_or("lines of the form keyword=value")?;
    match keyword(key) {
        Some("service") => Err("a service that names no other service"),
        Some(keyword) => Ok((keyword, value)),
        None => Err("known keywords, without blanks before \"=\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of the service `a`, or the line that is wrong.
    #[track_caller]
    fn check(text: &str, want: Result<Option<&[(&'static str, &str)]>, usize>) {
        let got = read(text, "a").map_err(|(line, _)| line);
        let got = got.map(|found| {
            let pairs =
                |settings: Settings| settings.into_iter().map(|(key, value, _)| (key, value)).collect::<Vec<_>>();
            found.map(pairs)
        });
        let pairs = |(key, value): &(&'static str, &str)| (*key, (*value).to_owned());
        let want = want.map(|found| found.map(|found| found.iter().map(pairs).collect::<Vec<_>>()));
        assert_eq!(got, want, "{text:?}");
    }

    #[test]
    fn a_service_is_what_stands_below_its_name() {
        check(
            "[b]\nhost=x\n# no\n [a] \n\n host=h \n#port=1\nport= 2\n[c]\nnonsense",
            Ok(Some(&[("host", "h"), ("port", " 2")])),
        );
        check("[a]x\r\nhost=h\r\nhost=i\r\n", Ok(Some(&[("host", "h"), ("host", "i")])));
        check("[ab]\nhost=h\n", Ok(None));
        check("[a]", Ok(Some(&[])));
    }

    #[test]
    fn a_line_that_is_wrong_is_named_where_it_counts() {
        check("[a]\nhost", Err(2));
        check("[a]\n\nhost =h", Err(3));
        check("[a]\nservice=b", Err(2));
        check("[a]\nldap://server/x", Err(2));
        check(&format!("# {}", "x".repeat(1021)), Err(1));
        check(&format!("# {}", "x".repeat(1020)), Ok(None));
        check("[b]\nhost", Ok(None));
    }
}

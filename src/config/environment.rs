//! The environment: variables to values by path. They win over the file.
//!
//! Pure: variables in, values and mistakes out. A variable that begins like ours and is not ours is refused, except
//! those that Kubernetes puts into every container beside a service that is named `postgres-agent`.

use std::ffi::{OsStr, OsString};

use crate::settings::{Given, Mistake, Origin, Raw, VARIABLES, Values, variable};

/// The variable that names the configuration file.
pub const FILE: &str = "POSTGRES_AGENT_CONFIG";
/// The variable that serves for `amqp.url` where nothing else says it.
pub const AMQP_URL: &str = "AMQP_URL";

/// Lays the environment over what the file said; gives what is wrong with it, by its place.
pub(super) fn overlay(variables: &[(OsString, OsString)], values: &mut Values) -> Vec<(Origin, Mistake)> {
    let mut mistakes = Vec::new();
    let mut wrong = |name: &str, text: String| mistakes.push((Origin::Variable(name.to_owned()), Mistake(text)));
    for (name, value) in variables {
        if !name.as_encoded_bytes().starts_with(VARIABLES.as_bytes()) {
            continue;
        }
        let Some(name) = name.to_str() else {
            wrong(&name.to_string_lossy(), format!("${} is no known key", name.to_string_lossy()));
            continue;
        };
        if name == FILE || is_service_link(name, value) {
            continue;
        }
        let path = path(name);
        let Some(text) = value.to_str() else {
            wrong(name, format!("{path} (${name}) must be UTF-8 text"));
            continue;
        };
        if name != variable(&path) {
            wrong(name, format!("${name} is no known key; the nearest is ${}", variable(&path)));
            continue;
        }
        put(values, &path, name, text);
    }
    let url = variables.iter().find(|(name, value)| name == AMQP_URL && !value.is_empty());
    if let Some((_, url)) = url.filter(|_| !values.contains_key("amqp.url")) {
        match url.to_str() {
            Some(url) => put(values, "amqp.url", AMQP_URL, url),
            None => wrong(AMQP_URL, format!("amqp.url (${AMQP_URL}) must be UTF-8 text")),
        }
    }
    mistakes
}

/// The path of the key that a variable overrides.
fn path(name: &str) -> String {
    name.get(VARIABLES.len()..).unwrap_or_default().to_lowercase().replace("__", ".")
}

fn put(values: &mut Values, path: &str, name: &str, text: &str) {
    // A table of the file is replaced whole, not mixed.
    let below = format!("{path}.");
    values.retain(|given, _| !given.starts_with(&below));
    let origin = Origin::Variable(name.to_owned());
    values.insert(path.to_owned(), Given { raw: Raw::Text(text.to_owned()), origin });
}

/// Whether Kubernetes made it for a service: `…_SERVICE_HOST`, `…_SERVICE_PORT_HTTP`, `…_PORT_80_TCP_ADDR`, `…_PORT`.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    // Keys of ours in a table have two underscores; those of a service never.
    if name.contains("__") {
        return false;
    }
    let protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol));
    let address = value.to_str().is_some_and(|value| value.contains("://"));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.contains("_PORT_") && protocol)
        || (name.ends_with("_PORT") && address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], values: &[&str], mistakes: &[&str]) {
        let raw = |text: &str| Raw::Toml(toml::Value::from(text));
        let origin = || Origin::File { path: "f".into(), line: 1 };
        let paths = ["agent.labels", "agent.labels.env", "postgres.url"];
        let mut got = paths.map(|path| (path.to_owned(), Given { raw: raw("file"), origin: origin() })).into();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let wrong = overlay(&variables, &mut got);
        let got = got.iter().filter_map(|(path, given)| match &given.raw {
            Raw::Text(text) => Some(format!("{path} = {text} ({})", given.origin)),
            Raw::Toml(_) => None,
        });
        assert_eq!(got.collect::<Vec<_>>(), values);
        assert_eq!(wrong.iter().map(|(_, mistake)| mistake.0.as_str()).collect::<Vec<_>>(), mistakes);
    }

    #[test]
    fn a_variable_overrides_its_key() {
        let url = "postgres.url = x ($POSTGRES_AGENT_POSTGRES__URL)";
        check(&[("POSTGRES_AGENT_POSTGRES__URL", "x"), ("PATH", "y"), ("POSTGRES_AGENT_CONFIG", "z")], &[url], &[]);
        let labels = "agent.labels = {} ($POSTGRES_AGENT_AGENT__LABELS)";
        check(&[("POSTGRES_AGENT_AGENT__LABELS", "{}")], &[labels], &[]);
    }

    #[test]
    fn amqp_url_serves_where_nothing_else_says_it() {
        check(&[("AMQP_URL", "a")], &["amqp.url = a ($AMQP_URL)"], &[]);
        check(&[("AMQP_URL", "")], &[], &[]);
        let own = "amqp.url = b ($POSTGRES_AGENT_AMQP__URL)";
        check(&[("AMQP_URL", "a"), ("POSTGRES_AGENT_AMQP__URL", "b")], &[own], &[]);
    }

    #[test]
    fn a_variable_in_small_letters_is_refused() {
        let mistake = "$POSTGRES_AGENT_postgres__url is no known key; the nearest is $POSTGRES_AGENT_POSTGRES__URL";
        check(&[("POSTGRES_AGENT_postgres__url", "x")], &[], &[mistake]);
    }

    #[test]
    fn what_kubernetes_says_of_a_service_is_not_ours() {
        let links = [
            ("POSTGRES_AGENT_SERVICE_HOST", "10.0.0.1"),
            ("POSTGRES_AGENT_SERVICE_PORT_HTTP", "9488"),
            ("POSTGRES_AGENT_PORT", "tcp://10.0.0.1:9488"),
            ("POSTGRES_AGENT_PORT_9488_TCP_ADDR", "10.0.0.1"),
        ];
        check(&links, &[], &[]);
        let ours = "http.port = tcp://x ($POSTGRES_AGENT_HTTP__PORT)";
        check(
            &[("POSTGRES_AGENT_HTTP__PORT", "tcp://x"), ("POSTGRES_AGENT_PORT", "1")],
            &[ours, "port = 1 ($POSTGRES_AGENT_PORT)"],
            &[],
        );
    }

    #[test]
    fn a_value_that_is_no_text_is_one_clear_line() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(vec![0xff]);
        let variables = [("POSTGRES_AGENT_POSTGRES__URL".into(), broken()), ("AMQP_URL".into(), broken())];
        let mistakes = overlay(&variables, &mut Values::new());
        assert_eq!(
            mistakes.iter().map(|(_, mistake)| mistake.0.as_str()).collect::<Vec<_>>(),
            [
                "postgres.url ($POSTGRES_AGENT_POSTGRES__URL) must be UTF-8 text",
                "amqp.url ($AMQP_URL) must be UTF-8 text",
            ]
        );
    }
}

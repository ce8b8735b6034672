//! `check`: everything that `run` needs, looked at with the very code that `run` uses. Nothing is changed.
//!
//! Each look gives findings; a finding that is not ok says in `mend` the exact SQL, command or line that mends it, and in
//! `mend_in` where that is to be typed. Which findings there are stands in [`table`].

mod broker;
mod database;
mod extension;
mod host;
mod login;
mod settings;
mod table;
mod words;

use std::io::{IsTerminal, stdout};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{Failure, Outcome, runtime, say};
use crate::{
    config::{Loaded, Mistakes},
    secret::Exposed,
};

/// Look at everything that run needs, change nothing, and say what mends what is missing
///
/// One finding each: configuration, PostgreSQL login, version, clock and each collector's look, broker login and
/// exchange, spool folder and space; with --probe a queue for each routing key.
///
/// Exit status: 0 if nothing failed, warnings included; 1 if something failed; 78 on a bad configuration.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object a line: id, status, cause, mend, and in mend_in where that is typed
    #[arg(long)]
    json: bool,

    /// Publish a message under each routing key, to see whether a queue is bound
    ///
    /// It is an empty map of type probe/1 that expires at once: no queue keeps it. A consumer that waits at that moment
    /// may get it; consumers ignore types they don't know.
    #[arg(long)]
    probe: bool,

    /// Only print which findings there are, as a table of Markdown
    #[arg(long, conflicts_with_all = ["json", "probe"])]
    list: bool,
}

/// How something is that `run` needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// The agent runs and brings less than it could.
    Warning,
    /// What it is for does not work.
    Failure,
}

/// What mends a finding, and where it is to be typed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mend {
    /// In psql, as a superuser, in the agent's database.
    Sql(String),
    /// In a shell, as root or with sudo, on the host that the finding is about.
    Shell(String),
    /// In the agent's configuration: a key by its whole path.
    Setting(String),
    /// Nothing can be typed: what is to be done.
    Words(String),
}

impl Mend {
    fn text(&self) -> &str {
        match self {
            Self::Sql(text) | Self::Shell(text) | Self::Setting(text) | Self::Words(text) => text,
        }
    }

    /// Where it is to be typed.
    fn place(&self) -> Option<&'static str> {
        match self {
            Self::Sql(_) => Some("psql"),
            Self::Shell(_) => Some("shell"),
            Self::Setting(_) => Some("agent.toml"),
            Self::Words(_) => None,
        }
    }

    /// A line of the configuration.
    fn setting(table: &str, key: &str, value: &str) -> Self {
        Self::Setting(format!("{table}.{key} = {value}"))
    }
}

/// What was found at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// Stable: scripts may rely on it. One of [`table`]'s.
    id: String,
    status: Status,
    /// What was seen.
    cause: String,
    /// What mends it; `None` if it is ok.
    mend: Option<Mend>,
}

impl Finding {
    fn ok(id: &str, cause: impl Into<String>) -> Self {
        Self { id: id.into(), status: Status::Ok, cause: cause.into(), mend: None }
    }

    fn warning(id: &str, cause: impl Into<String>, mend: Mend) -> Self {
        Self { status: Status::Warning, mend: Some(mend), ..Self::ok(id, cause) }
    }

    fn failure(id: &str, cause: impl Into<String>, mend: Mend) -> Self {
        Self { status: Status::Failure, mend: Some(mend), ..Self::ok(id, cause) }
    }

    /// One object: `id`, `status`, `cause`, `mend`, and in `mend_in` where it is to be typed.
    fn json(&self) -> String {
        let mend = self.mend.as_ref().map(Mend::text);
        let place = self.mend.as_ref().and_then(Mend::place);
        let all = json!({ "id": self.id, "status": self.status, "cause": self.cause, "mend": mend, "mend_in": place });
        format!("{all}\n")
    }

    /// Lines for a person.
    fn lines(&self, colours: bool) -> String {
        let (word, colour) = match self.status {
            Status::Ok => ("ok", "32"),
            Status::Warning => ("warning", "33"),
            Status::Failure => ("failure", "31"),
        };
        let paint = |text: &str, colour: &str| {
            if colours { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let mend = self.mend.as_ref().map_or_else(String::new, |mend| {
            let place = mend.place().map_or_else(String::new, |place| format!(" ({place})"));
            // Several lines stand below each other.
            let text = mend.text().replace('\n', &format!("\n{:16}", ""));
            format!("{:9}mend{place}: {}\n", "", paint(&text, "1"))
        });
        format!("{}  {:<30}  {}\n{mend}", paint(&format!("{word:<7}"), colour), self.id, self.cause)
    }
}

impl Arguments {
    pub(super) fn run(&self, loaded: Result<Loaded, Mistakes>) -> Outcome {
        if self.list {
            return say(&table::markdown());
        }
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                if self.json {
                    for mistake in &mistakes.0 {
                        let mend = Mend::Words("correct the key, or leave it out".into());
                        say(&self.line(&Finding::failure("configuration", &mistake.0, mend)))?;
                    }
                }
                return Err(mistakes.into());
            }
        };
        let file =
            loaded.file.as_ref().map_or("no file; defaults and environment".into(), |file| file.display().to_string());
        let mut counts = [0; 3];
        let mut tell = |findings: Vec<Finding>| {
            findings.iter().try_for_each(|finding| {
                counts = count(counts, finding.status);
                say(&self.line(finding))
            })
        };
        tell(vec![Finding::ok("configuration", file)])?;
        let exposed =
            |(key, exposed): (&str, Exposed)| Finding::warning(key, exposed.to_string(), Mend::Shell(exposed.mend()));
        tell(loaded.exposed().into_iter().map(exposed).collect())?;
        tell(host::look(&loaded))?;
        let runtime = runtime()?;
        let (findings, rate) = runtime.block_on(database::look(&loaded.config));
        tell(findings)?;
        tell(host::outage(&loaded.config.spool, rate).into_iter().collect())?;
        tell(runtime.block_on(broker::look(&loaded.config, self.probe)))?;
        // A server that hangs does not keep the command from ending.
        runtime.shutdown_background();
        let [ok, warnings, failures] = counts;
        if !self.json {
            say(&format!("{ok} ok, {warnings} warnings, {failures} failures\n"))?;
        }
        if failures > 0 { Err(Failure::Told) } else { Ok(()) }
    }

    fn line(&self, finding: &Finding) -> String {
        if self.json {
            return finding.json();
        }
        let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        finding.lines(colours)
    }
}

fn count([ok, warnings, failures]: [u32; 3], status: Status) -> [u32; 3] {
    match status {
        Status::Ok => [ok + 1, warnings, failures],
        Status::Warning => [ok, warnings + 1, failures],
        Status::Failure => [ok, warnings, failures + 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_what_mends_it_another() {
        assert_eq!(Finding::ok("a", "b").lines(false), format!("ok       {:<30}  b\n", "a"));
        let failure = Finding::failure("a", "b", Mend::Sql("c".into()));
        assert_eq!(failure.lines(false), format!("failure  {:<30}  b\n         mend (psql): c\n", "a"));
        assert!(failure.lines(true).starts_with("\u{1b}[31mfailure\u{1b}[0m  a "));
        let json = "{\"id\":\"a\",\"status\":\"failure\",\"cause\":\"b\",\"mend\":\"c\",\"mend_in\":\"psql\"}\n";
        assert_eq!(failure.json(), json);
    }
}

//! `check`: everything that `run` needs, looked at with the very code that `run` uses. Nothing is changed.
//!
//! Each look gives findings; a finding that is not ok says in `mend` the exact SQL, command or line that mends it.

mod broker;
mod database;
mod disk;

use std::io::{IsTerminal, stdout};

use clap::Args;
use serde::Serialize;

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
    /// Print one JSON object a line: id, status, cause, mend
    #[arg(long)]
    json: bool,

    /// Publish a message under each routing key, to see whether a queue is bound
    ///
    /// It is an empty map of type probe/1 that expires at once: no queue keeps it. A consumer that waits at that moment
    /// may get it; consumers ignore types they don't know.
    #[arg(long)]
    probe: bool,
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

/// What was found at one look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// Stable: scripts may rely on it.
    id: String,
    status: Status,
    /// What was seen.
    cause: String,
    /// The SQL, command or line that mends it; nil if it is ok.
    mend: Option<String>,
}

impl Finding {
    fn ok(id: &str, cause: impl Into<String>) -> Self {
        Self { id: id.into(), status: Status::Ok, cause: cause.into(), mend: None }
    }

    fn warning(id: &str, cause: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Warning, mend: Some(mend.into()), ..Self::ok(id, cause) }
    }

    fn failure(id: &str, cause: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Failure, mend: Some(mend.into()), ..Self::ok(id, cause) }
    }
}

impl Arguments {
    pub(super) fn run(&self, loaded: Result<Loaded, Mistakes>) -> Outcome {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                if self.json {
                    for mistake in &mistakes.0 {
                        let mend = "correct the key, or leave it out";
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
        let exposed = |(key, exposed): (&str, Exposed)| Finding::warning(key, exposed.to_string(), exposed.mend());
        tell(loaded.exposed().into_iter().map(exposed).collect())?;
        tell(disk::look(&loaded.config.spool))?;
        let runtime = runtime()?;
        tell(runtime.block_on(database::look(&loaded.config)))?;
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
            // A map of texts always has a JSON form.
            return serde_json::to_string(finding).unwrap_or_default() + "\n";
        }
        let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        people(finding, colours)
    }
}

fn count([ok, warnings, failures]: [u32; 3], status: Status) -> [u32; 3] {
    match status {
        Status::Ok => [ok + 1, warnings, failures],
        Status::Warning => [ok, warnings + 1, failures],
        Status::Failure => [ok, warnings, failures + 1],
    }
}

fn people(finding: &Finding, colours: bool) -> String {
    let (word, colour) = match finding.status {
        Status::Ok => ("ok", "32"),
        Status::Warning => ("warning", "33"),
        Status::Failure => ("failure", "31"),
    };
    let word = format!("{word:<7}");
    let word = if colours { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word };
    let mend = finding.mend.as_ref().map_or_else(String::new, |mend| format!("{:9}mend: {mend}\n", ""));
    format!("{word}  {:<26}  {}\n{mend}", finding.id, finding.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_what_mends_it_another() {
        assert_eq!(people(&Finding::ok("a", "b"), false), "ok       a                           b\n");
        let failure = Finding::failure("a", "b", "c");
        assert_eq!(people(&failure, false), "failure  a                           b\n         mend: c\n");
        assert!(people(&failure, true).starts_with("\u{1b}[31mfailure\u{1b}[0m  a "));
        let json = Arguments { json: true, probe: false }.line(&failure);
        assert_eq!(json, "{\"id\":\"a\",\"status\":\"failure\",\"cause\":\"b\",\"mend\":\"c\"}\n");
    }
}

//! The two judges of completeness, which share no code: `tap --audit` and `tests/checker.py`.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use super::{agent, rabbit::Broker};

/// `tap --audit` over a queue, which it leaves as it is, with the `agent.toml` in `folder`.
pub(crate) fn audit(folder: &Path, queue: &str) -> Output {
    let mut tap = agent::command(["tap", "--audit", "--json", "--queue", queue, "--config"]);
    tap.arg(folder.join("agent.toml")).output().unwrap()
}

/// The checker over a queue, which it leaves as it is.
pub(crate) fn check(broker: &Broker, queue: &str) -> Output {
    check_at(&broker.url(), queue)
}

pub(crate) fn check_at(url: &str, queue: &str) -> Output {
    let checker = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checker.py");
    Command::new(checker).args(["--json", "--keep", "--url", url, "--queue", queue]).output().unwrap()
}

/// Both judges end with one line of JSON.
pub(crate) fn verdict(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {}", told(output)))
}

/// The end of what a judge said.
pub(crate) fn told(output: &Output) -> String {
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

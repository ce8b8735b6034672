//! `spool`: a spool's folder from outside, beside a running agent or rescued from a dead host.

mod dump;
mod progress;
mod replay;
mod status;
mod verify;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{Failure, Outcome, people::size};
use crate::{
    config::Loaded,
    event::status::Lost,
    spool::{self, chain, outside::Outside},
};

/// Look at a spool's folder, or deliver what waits in it
///
/// status, verify and dump change nothing and may be used beside a running agent; replay needs the folder for itself.
///
/// Exit status: 0; 1 if something is damaged or not all was delivered; 75 if an agent runs on a folder that is to be
/// replayed.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folder; left out: the configuration's spool.dir
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    task: Task,
}

/// Each line is one file of this folder.
#[derive(Debug, Subcommand)]
enum Task {
    /// Tell what waits, by collector, and what could not be delivered
    ///
    /// As fast as an agent starts: full segments are believed, not read.
    Status,
    /// Read every record and tell whether all are sound
    ///
    /// A last record that was never finished is no damage. What was found damaged before, set aside and declared is told
    /// and is no failure.
    ///
    /// Exit status: 1 if something is damaged, missing, or cannot be used.
    Verify,
    /// Print the messages that wait, a message body a line, as JSON
    ///
    /// In the order in which they were numbered, as `collect` prints them.
    ///
    /// Exit status: 1 if a message could not be read.
    Dump,
    /// Deliver what waits, and declare what is lost, for an agent that is gone
    ///
    /// For a folder that was rescued from a dead host: any configuration that reaches the broker will do. It ends with an
    /// agent_status of that agent, whose event is "replayed". Stopped by Ctrl-C or SIGTERM it can be begun again and goes on
    /// where it was. A broker that is away is waited for.
    ///
    /// Exit status: 1 if not all was delivered, 75 if an agent runs on the folder.
    Replay,
}

impl Arguments {
    pub(super) fn run(self, mut loaded: Loaded) -> Outcome {
        if let Some(dir) = self.dir {
            loaded.config.spool.dir = std::path::absolute(dir)?;
        }
        let dir = &loaded.config.spool.dir;
        match self.task {
            Task::Status => status::run(dir, self.json),
            Task::Verify => verify::run(dir, self.json),
            Task::Dump => dump::run(dir),
            Task::Replay => replay::run(&loaded.config, self.json),
        }
    }
}

fn failed(error: spool::Error) -> Failure {
    match error {
        held @ spool::Error::Held { .. } => Failure::Held(held.to_string()),
        other => Failure::Failed(chain(&other)),
    }
}

/// What there is to know beside what waits: losses, what is set aside, what is not used.
fn remarks(outside: &Outside) -> String {
    let mut out = String::new();
    for loss in &outside.losses {
        let numbers = match loss.last {
            Some(last) if last == loss.first => format!("message {last}"),
            Some(last) => format!("messages {} to {last}", loss.first),
            None => format!("any message from {} on", loss.first),
        };
        let (reason, collector, run) = (Lost::from(loss).reason, &loss.collector, loss.run_id);
        let _infallible = writeln!(out, "lost, and not yet told: {collector}, {numbers} of run {run}: {reason:?}");
    }
    for (path, bytes) in &outside.aside {
        let _infallible = writeln!(out, "set aside, its losses declared: {}, {}", path.display(), size(*bytes));
    }
    for remark in &outside.remarks {
        let _infallible = writeln!(out, "{} {}", remark.path.display(), remark.why);
    }
    out
}

/// The same for programs.
fn remarks_json(outside: &Outside) -> Map<String, Value> {
    let lost: Vec<Lost> = outside.losses.iter().map(Lost::from).collect();
    let aside = outside.aside.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes }));
    let remarks = outside.remarks.iter().map(|remark| json!({ "path": remark.path, "why": remark.why }));
    Map::from_iter([
        ("lost".to_owned(), json!(lost)),
        ("set_aside".to_owned(), aside.collect()),
        ("remarks".to_owned(), remarks.collect()),
    ])
}

/// The same for programs.
fn head_json(dir: &Path, outside: &Outside) -> Map<String, Value> {
    let process = outside.holder.as_deref().and_then(|process| process.parse::<u32>().ok());
    Map::from_iter([
        ("dir".to_owned(), json!(dir)),
        ("agent_id".to_owned(), json!(outside.agent)),
        ("held".to_owned(), json!(outside.holder.is_some())),
        ("process".to_owned(), json!(process)),
    ])
}

/// Whose folder it is, and who is on it.
fn headline(dir: &Path, outside: &Outside) -> String {
    let holder = match outside.holder.as_deref() {
        Some("") => "an agent runs on it".into(),
        Some(process) => format!("an agent runs on it (process {process})"),
        None => "no agent runs on it".to_owned(),
    };
    format!("{}: agent {}, {holder}\n", dir.display(), outside.agent)
}

//! `tap`: decoded messages as a consumer sees them, and the proof that none is missing.

use std::time::Duration;

use clap::Args;

use crate::units;

/// Consume from the broker and print decoded messages
///
/// Without --queue it listens through a temporary queue of its own; while that queue stands nothing is unroutable.
/// With --queue it looks at what is there and puts it back.
///
/// Exit status: 0; with --audit 1 if a message is missing that was not declared lost, and 0 with "not provable" where
/// an agent's statuses are fewer than two.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Which messages: a topic pattern, such as "pg_locks" or "#"; may be given more than once
    ///
    /// With --audit agent_status is always read too: the proof rests on it.
    #[arg(long, value_name = "KEY", default_value = "#", conflicts_with = "queue")]
    pub binding: Vec<String>,

    /// Read from this queue instead of a temporary one
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,

    /// Take the messages away from the queue instead of putting them back
    #[arg(long, requires = "queue")]
    pub ack: bool,

    /// End after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// End after this many seconds; fractions and units such as 1.5, 90s or 5m are understood
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<Duration>,

    /// Print one JSON object a line instead of text for people
    #[arg(long)]
    pub json: bool,

    /// Prove that nothing is missing between an agent's first and last status
    ///
    /// For each agent, run and collector: first and last seq, messages, events, duplicates, gaps, declared losses and
    /// what still waits. With --queue it ends when the queue is empty.
    #[arg(long)]
    pub audit: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).or_else(|error| units::parse_duration(&format!("{text}s")).map_err(|_| error))
}

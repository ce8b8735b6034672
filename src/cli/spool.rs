//! `spool`: a spool folder seen from outside, such as one rescued from a dead host.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Look at a spool folder from outside, or publish what waits in it
///
/// Exit status: 0; 1 if something is damaged or was not delivered; 75 if a running agent holds the folder and that
/// matters.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub action: Action,

    /// The folder; left out: spool.dir of the configuration
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Print one JSON object a line instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
}

/// What is done with the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// What is waiting, by run and collector
    Status,
    /// Read every record and say which are damaged; one that was never finished is no damage
    Verify,
    /// Print the messages that are waiting as JSON lines
    Dump,
    /// Publish what is waiting, and end with a status that carries what its agent can no longer declare
    ///
    /// It can be stopped at any time and goes on where it was.
    Replay,
}

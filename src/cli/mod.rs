//! The command line: one file for each command, and what they share.
//!
//! Results go to stdout and nothing else does; the log and everything that went wrong go to stderr. A reader of
//! stdout that goes away ends a command without an error: `postgres-agent tap | head` is no failure.
//!
//! Help, completions and the man page are made from the definitions here and in the commands' own files.

mod check;
mod collect;
mod config;
pub mod logging;
mod pages;
mod people;
pub mod run;
mod schema;
mod spool;
pub mod tap;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::config::{Level, Loaded, Log, Mistakes, load};

/// Looks at one PostgreSQL server and its host and delivers what it saw to AMQP, provably complete.
///
/// The configuration is one TOML file; each key can be overridden by an environment variable: postgres.pool_size by
/// POSTGRES_AGENT_POSTGRES__POOL_SIZE. "postgres-agent config --defaults" prints a commented file to start from.
///
/// Results go to stdout, the log and errors to stderr.
#[derive(Debug, Parser)]
#[command(name = "postgres-agent", version, max_term_width = 100, after_help = STATUSES)]
pub struct Arguments {
    /// The configuration file
    ///
    /// Left out: the file that $POSTGRES_AGENT_CONFIG names, else /etc/postgres-agent/agent.toml if it exists, else
    /// the defaults and the environment alone.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const STATUSES: &str = "\
Exit status:
  0   done
  1   failed: each command says when
  2   wrong usage
  75  the spool is held by another agent
  78  bad configuration: nothing was started, and every mistake is told";

/// Each line is one file of this folder.
#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Check(check::Arguments),
    Collect(collect::Arguments),
    Tap(tap::Arguments),
    Spool(spool::Arguments),
    Schema(schema::Arguments),
    Config(config::Arguments),
    #[command(hide = true)]
    Completions(pages::Completions),
    #[command(hide = true)]
    Man(pages::Man),
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Bad configuration; nothing was started.
    #[error("the configuration is refused:\n{0}")]
    Configuration(#[from] Mistakes),
    /// Another agent holds the spool folder.
    #[error("{0}")]
    Held(String),
    /// It failed, and this is why.
    #[error("{0}")]
    Failed(String),
    /// It failed, and has said so already.
    #[error("failed")]
    Told,
    /// A result could not be written.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

/// How a command ended.
pub type Outcome = Result<(), Failure>;

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Configuration(_) => 78,
            Self::Held(_) => 75,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Failed(_) | Self::Told | Self::Output(_) => 1,
        }
    }
}

/// The program: reads the arguments, runs one command, gives its exit status.
pub fn run() -> ExitCode {
    let Err(failure) = dispatch(Arguments::parse()) else { return ExitCode::SUCCESS };
    let status = failure.status();
    if status != 0 && !matches!(failure, Failure::Told) {
        complain(&failure.to_string());
    }
    ExitCode::from(status)
}

fn dispatch(arguments: Arguments) -> Outcome {
    let load = || load(arguments.config.as_deref());
    match arguments.command {
        Command::Run(run) => {
            let loaded = load()?;
            logging::start(loaded.config.log);
            run.run(loaded, load)
        }
        Command::Check(check) => check.run(load().map(prepare)),
        Command::Collect(collect) => collect.run(&prepare(load()?)),
        Command::Tap(tap) => tap.run(&prepare(load()?)),
        Command::Spool(spool) => spool.run(prepare(load()?)),
        Command::Schema(schema) => schema.run(&prepare(load()?)),
        // These help to mend a configuration, or have nothing to do with one.
        Command::Config(config) if config.defaults => config::defaults(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
        Command::Config(_) => config::effective(&prepare(load()?)),
    }
}

/// What a command waits on: this one thread, and others for what blocks. A second one for tasks makes nothing faster
/// (measured, publishing included) and costs memory; a runtime that could have one brings its scheduler along, and that
/// libm.
///
/// # Errors
/// Why the system gives no timers and sockets.
pub fn runtime() -> Result<LocalRuntime, Failure> {
    let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    built.map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))
}

/// What every command but `run` does once its configuration stands. It tells by itself what it finds, so that the log
/// would say it twice: only what nobody expected stands there, and what somebody who looks for a cause asked for.
fn prepare(loaded: Loaded) -> Loaded {
    let level = match loaded.config.log.level {
        Level::Warn | Level::Info => Level::Error,
        asked => asked,
    };
    logging::start(Log { level, ..loaded.config.log });
    loaded
}

/// Writes a result. The only way to stdout.
///
/// # Errors
/// [`Failure::Output`], which is no failure where the reader went away.
pub fn say(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Tells a person what is wrong, on stderr.
pub fn complain(text: &str) {
    // Where stderr is gone as well there is nobody left to tell.
    let _gone = writeln!(io::stderr().lock(), "postgres-agent: {text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }
}

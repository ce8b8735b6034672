//! The log: lines on stderr, as text for people or as JSON, from the configured level up; for the journal with the priority
//! of each, and without its time. One place in the code that says too much is held down ([`limit`]).
//!
//! Some targets are held down whatever the level is: lapin logs each returned message with its body, and the broker's
//! URL with its password.

mod journal;
mod limit;

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt, Targets},
    fmt,
    layer::SubscriberExt,
    reload,
};

use crate::config::{Format, Level, Log};
pub use limit::tell_left_out;

/// Libraries and the most that they may say.
const HELD_DOWN: &[(&str, LevelFilter)] = &[
    // Logs bodies and properties, and an orderly close as an error; what matters of it, amqp/ says in our words.
    ("lapin", LevelFilter::OFF),
    // Logs the URL, its password included.
    ("amq_protocol", LevelFilter::OFF),
    // Logs each connection that it finds closed, beside the pool's own word on a server that is away.
    ("deadpool", LevelFilter::ERROR),
    // Logs each statement.
    ("tokio_postgres", LevelFilter::WARN),
];

/// Starts the log for the rest of the process. A second call changes nothing.
pub fn start(log: Log) {
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
        // It would report a stderr that is gone by printing to stderr, which panics.
        .log_internal_errors(false);
    let lines = match log.format {
        Format::Text if journal::hears() => lines.without_time().with_writer(journal::Journal).boxed(),
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    let (level, handle) = reload::Layer::new(filter(log.level));
    let subscriber = Registry::default().with(lines.with_filter(level.and(limit::Limit)));
    let _already_started = tracing::subscriber::set_global_default(subscriber);
    let _already_started = LEVEL.set(handle);
}

static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Changes the level from now on.
pub fn set_level(level: Level) {
    if let Some(handle) = LEVEL.get() {
        // It fails only where the log is gone.
        let _gone = handle.reload(filter(level));
    }
}

fn filter(level: Level) -> Targets {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let held_down = HELD_DOWN.iter().map(|(target, most)| (*target, level.min(*most)));
    Targets::new().with_default(level).with_targets(held_down)
}

#[cfg(test)]
mod tests {
    use tracing::Level as L;

    use super::*;

    #[track_caller]
    fn check(level: Level, target: &str, line: L, want: bool) {
        assert_eq!(filter(level).would_enable(target, &line), want, "{target} {line}");
    }

    #[test]
    fn libraries_that_log_secrets_are_held_down_at_every_level() {
        check(Level::Trace, "postgres_agent::amqp", L::TRACE, true);
        check(Level::Info, "postgres_agent::amqp", L::DEBUG, false);
        for target in ["lapin", "lapin::channel", "lapin::returned_messages"] {
            check(Level::Trace, target, L::WARN, false);
            check(Level::Trace, target, L::ERROR, false);
        }
        for target in ["amq_protocol", "amq_protocol_tcp", "amq_protocol_uri", "amq_protocol::frame"] {
            check(Level::Trace, target, L::ERROR, false);
        }
        check(Level::Trace, "tokio_postgres::query", L::INFO, false);
        check(Level::Error, "tokio_postgres::query", L::WARN, false);
        check(Level::Trace, "deadpool.postgres", L::WARN, false);
    }
}

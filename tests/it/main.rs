//! The integration tests: one binary, real servers. `tests/README.md` says how to run one of them.
//!
//! Each module below is one subject; `rig` is what they stand on and holds no test of the agent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what went wrong by panicking, and prints what a reader of its output wants to know"
)]

/// TLS to the broker: what is trusted, who logs in, and how each failure is told.
mod amqp_tls;
/// Each finding of `check`, broken, mended by what is printed, and gone.
mod check;
/// Exit statuses, stdout and stderr of the commands, on real servers where they look at one.
mod cli;
/// What the agent asks of the kernel, the database and the processor, counted.
mod counts;
/// What an operator copies: unit, package, definitions, container, alerts.
mod deploy;
/// Faults of the broker, the line, the disk, the folder, the limits and the process, each with two judges; and kill -9 at
/// random moments through outages.
mod faults;
/// What the agent shows at its port, and that whoever asks harms nobody.
mod http;
/// Reloads, restarts and the log of a service.
mod life;
/// One look of a collector, decoded.
mod looking;
/// Ten thousand sessions, values at the ends of their ranges, and versions to come.
mod odd_servers;
/// What every session does.
mod pg_activity;
/// Who waits for whom.
mod pg_locks;
/// Which statements took the time.
mod pg_statements;
/// Deltas of a workload whose every call is counted.
mod pg_statements_counted;
/// What a connection string means, against libpq itself.
mod postgres_libpq;
/// A pooler between.
mod postgres_pooler;
/// Connections, their limits, and servers that hang or go away.
mod postgres_session;
/// Starts and ends PostgreSQL, RabbitMQ and the agent itself.
mod rig;
/// The rig keeps its word: servers of every version, outages, and nothing left behind.
mod rig_stands;
/// The JSON Schemas and golden messages in schemas/ are those of the code.
mod schemas;
/// No secret gets out by any door, and renewed ones are used without a restart.
mod secrets;
/// The status page in a real browser.
mod status_page;
/// The host, against psutil.
mod system_metrics;
/// What may leave of a text, against the server's own scanner.
mod texts;
/// The floors, the absences and the names of the house, read from its sources.
mod tidy;
/// Messages as they are on the wire, and what a quiet start and an outage at the start look like.
mod wire;

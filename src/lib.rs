//! A sidecar that looks at one PostgreSQL server and its host and delivers what it saw to AMQP, provably complete.
//!
//! ```text
//! collectors ──events──▶ bounded channel ──▶ intake (batches, MessagePack, seq) ──▶ spool (a log per collector)
//!                                                                                     │ fresh from memory,
//!                                                                                     ▼ waiting from disk
//!    agent_status ◀── what failed, what was lost ── ack ◀── confirm ◀── publisher (window) ──▶ topic exchange
//! ```
//! Every batch takes this one way, on a quiet day and in an outage. Its `seq` is given out once and for ever; only a
//! confirm of the broker, or a loss that is declared in `agent_status`, takes it out of the spool. From what arrives a
//! consumer can prove that nothing is missing: that is what `postgres-agent tap --audit` does.
//!
//! # Floors
//! A module imports only from lower floors, never from its own or a higher one. A folder is one module. A test reads
//! this table and holds it.
//!
//! | floor | modules | what it knows |
//! |---|---|---|
//! | edge | `main`, [`cli`] | people, exit statuses, stdout; one file for each command |
//! | assembly | [`agent`] | who is wired to whom, and in which order things stop; the only place that spawns tasks |
//! | sum | [`config`] | files, environment, origins; the sections are declared beside the code that reads them |
//! | work | [`collectors`], [`intake`], [`publisher`], [`http`] | the job; no doors between its modules, only channels and handles |
//! | ground | [`postgres`], [`spool`], [`amqp`], [`batch`], [`recent`] | one outside thing each (the server, the disk, the broker), or none |
//! | words | [`event`], [`text`] | what is said: events, messages and their encoding; what may leave of a query's text |
//! | base | [`backoff`], [`health`], [`secret`], [`tls`] | waiting, the state of all parts, what is never printed, certificates |
//! | keys | [`settings`] | how a part declares its configuration |
//! | units | [`units`] | durations, sizes and times as people and the wire write them |
//!
//! # What is absent
//! - No SQL outside `collectors/*.sql` and [`postgres`]; no AMQP library outside [`amqp`], no PostgreSQL library outside
//!   [`postgres`].
//! - Nothing but [`spool`] writes to the disk.
//! - Only [`agent`] spawns tasks (and the two links, whose connections need a driver), so that none dies unseen.
//! - Every channel and queue has a bound.
//! - What decides (batches, window, delivery, eviction) has no clock, no file and no socket: tests drive it.
//! - No `unwrap`, `expect`, `panic!` or indexing outside tests, and no `unsafe` at all.
//! - Secrets have no `Display`, and their `Debug` is `***`.
//!
//! # Where to begin
//! [`event`] says what is sent, [`collectors`] what is looked at (a new one is a file, its `.sql` and a line), [`spool`]
//! how nothing is lost.

pub mod agent;
pub mod amqp;
pub mod backoff;
pub mod batch;
pub mod cli;
pub mod collectors;
pub mod config;
pub mod event;
pub mod health;
pub mod http;
pub mod intake;
pub mod postgres;
pub mod publisher;
pub mod recent;
pub mod secret;
pub mod settings;
pub mod spool;
pub mod text;
pub mod tls;
pub mod units;

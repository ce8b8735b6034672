//! A sidecar that looks at one PostgreSQL server and its host and delivers what it saw to AMQP, provably complete.

pub mod agent;
pub mod amqp;
pub mod backoff;
pub mod batch;
pub mod cli;
pub mod collectors;
pub mod config;
pub mod event;
pub mod health;
pub mod intake;
pub mod postgres;
pub mod publisher;
pub mod secret;
pub mod settings;
pub mod spool;
pub mod text;
pub mod units;

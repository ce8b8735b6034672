//! The broker: lapin as a wire, nothing more.
//!
//! TLS is made here, on our own sockets, and lapin's own stays off: nothing is trusted that the configuration does not name,
//! and nothing is ever sent in plain text where TLS was asked for.
//!
//! lapin's own recovery stays off, its timeouts do not exist, and what it says of a returned message is that *some* message
//! was returned: so every step has a time limit here, every message is known by its `message_id`, and the socket is ours, so
//! that it can be shut down under lapin whatever it waits for. Deciding what to publish and what is settled is `publisher`'s work.

mod config;
pub mod consumer;
mod dial;
mod error;
mod greeting;
mod stream;
mod uri;
mod wire;

pub use config::{Config, Files, RoutingKey, Unroutable};
pub use error::Error;
pub use stream::SPEAKS_TLS;
pub use wire::{Channel, Confirm, Confirmed, Connection, Limits, Probed, Signal, Signals};

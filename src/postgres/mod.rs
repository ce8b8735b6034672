//! The server that the agent sits beside.

use crate::settings::{Reader, Section};

/// The `[postgres]` table.
#[derive(Debug, Clone)]
pub struct Config {}

impl Section for Config {
    fn read(_reader: &mut Reader) -> Self {
        Self {}
    }
}

/// Why the server could not answer.
#[derive(Debug, thiserror::Error)]
#[error("not built yet")]
pub struct Error;

/// The server, through at most `pool_size` connections.
#[derive(Debug, Clone)]
pub struct Database {}

//! Texts: what may leave the host of a query, and the ids that are read from it before.

use crate::settings::{Reader, Section};

/// What may leave the host of texts: the `[privacy]` table.
#[derive(Debug, Clone)]
pub struct Policy {}

impl Section for Policy {
    fn read(_reader: &mut Reader) -> Self {
        Self {}
    }
}

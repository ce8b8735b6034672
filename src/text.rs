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

impl Policy {
    /// What may leave of a text, cut after `max_chars` characters.
    pub fn clean(&self, text: &str, max_chars: usize) -> Option<String> {
        let kept: String = text.chars().take(max_chars).collect();
        Some(if kept.len() < text.len() { kept + "...[truncated]" } else { kept })
    }
}

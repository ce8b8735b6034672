//! A batch: events of one collector under one number, encoded. What is stored, and what one AMQP message carries.

use std::sync::Arc;

use uuid::Uuid;

use crate::units::Time;

/// One message with its number and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The agent that numbered it.
    pub agent: Uuid,
    /// The run that numbered it.
    pub run_id: Uuid,
    /// Its collector.
    pub collector: Arc<str>,
    /// Its number within (run, collector), from 1.
    pub seq: u64,
    /// When it was numbered, by the host's clock.
    pub time: Time,
    /// Events in it.
    pub events: u32,
    /// Its schema version.
    pub version: u16,
    /// Whether the body is zstd.
    pub zstd: bool,
    /// The body.
    pub body: Vec<u8>,
}

impl Batch {
    /// `<run_id>/<collector>/<seq>`: the same for every delivery of this message, and of no other.
    pub fn message_id(&self) -> String {
        message_id(self.run_id, &self.collector, self.seq)
    }
}

/// The id of a message that is not at hand: see [`Batch::message_id`].
pub fn message_id(run_id: Uuid, collector: &str, seq: u64) -> String {
    format!("{run_id}/{collector}/{seq}")
}

//! The agent's word about itself: the body of `agent_status`.
//!
//! Half of it is filled in where it is numbered (`sent`, `spool`, `waiting`, `lost`, `previous_runs`), because it must
//! be true at that very moment: the proof of completeness rests on it. Everything else is taken from [`crate::health`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Body, EncodeError, put_map};
use crate::{
    health::{CollectorStatus, Delivery},
    units::Time,
};

/// The collector of statuses.
pub const COLLECTOR: &str = "agent_status";

/// Why this status was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// Numbered before any other message of its run.
    Started,
    /// One of the regular ones.
    Running,
    /// The last message of its run, numbered after all others.
    Stopping,
    /// Made by `spool replay` for an agent that can no longer speak.
    Replayed,
}

/// How the agent is, and what it has sent, still holds and has lost.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AgentStatus {
    /// Why this status was made.
    pub event: Occasion,
    /// Seconds since the start of this run.
    pub uptime_s: f64,
    /// Each collector by name, the disabled ones too.
    pub collectors: BTreeMap<String, CollectorStatus>,
    /// By collector: the last `seq` given out in this run when this status was numbered, this status included.
    pub sent: BTreeMap<String, u64>,
    /// What became of what was published, since the start of this run.
    pub delivery: Delivery,
    /// What the spool holds.
    pub spool: SpoolStatus,
    /// All that the spool holds, of any run, neither confirmed nor declared, when this status was numbered. Over 64 ranges are merged, never left out.
    pub waiting: Vec<Waiting>,
    /// Messages that will not come. Each is repeated until a status that holds it is confirmed and not returned; 256 at the most, the rest follows.
    pub lost: Vec<Lost>,
    /// Earlier runs and how far they had got. Each is repeated until a status that holds it is confirmed and not returned.
    pub previous_runs: Vec<PreviousRun>,
    /// Resident memory of the agent, in bytes.
    pub rss_bytes: Option<u64>,
    /// Processor time of the agent since its start, user and system, in seconds.
    pub cpu_s: Option<f64>,
}

/// What the spool holds: everything that has a `seq` and is neither confirmed nor declared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct SpoolStatus {
    /// Messages that wait, those in flight included.
    pub messages: u64,
    /// Bytes of segment files.
    pub bytes: u64,
    /// When the oldest message that waits was numbered; nil if none waits.
    pub oldest_at: Option<Time>,
    /// Why the agent keeps messages in memory only, and what mends it; nil if the disk takes them.
    pub trouble: Option<String>,
    /// Since when, by the host's clock; nil if the disk takes them.
    pub trouble_since: Option<Time>,
    /// Until `spool.max_bytes` or `spool.min_free` is reached if it goes on as in the last minutes, in seconds; nil if what waits does not grow.
    pub lasts_s: Option<f64>,
}

/// A range of messages that the spool still holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Waiting {
    /// The run that numbered them.
    pub run_id: String,
    /// Their collector.
    pub collector: String,
    /// The first `seq` of the range.
    pub first_seq: u64,
    /// The last `seq` of the range, itself included.
    pub last_seq: u64,
}

/// Why messages will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Dropped to stay within `spool.max_bytes` or `spool.min_free`.
    Evicted,
    /// Older than `spool.max_age`.
    Aged,
    /// No queue wanted it, and `amqp.unroutable` is `discard`.
    Discarded,
    /// Its record in the spool was damaged.
    Damaged,
    /// Its segment was taken away by somebody.
    Missing,
    /// Larger than the broker takes.
    TooLarge,
    /// It could not be written to the disk, and the connection ended before the confirm.
    DiskFull,
    /// The machine lost power before it was synced.
    Power,
}

/// A range of messages that will not come. Ranges may overlap; their union counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lost {
    /// The run that numbered them.
    pub run_id: String,
    /// Their collector.
    pub collector: String,
    /// The first `seq` of the range.
    pub first_seq: u64,
    /// The last `seq` of the range, itself included. Nil after a power cut: up to the end of that run.
    pub last_seq: Option<u64>,
    /// How many events were in them; nil where not known.
    pub events: Option<u64>,
    /// Why.
    pub reason: Reason,
}

/// An earlier run of this agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PreviousRun {
    /// The run.
    pub run_id: String,
    /// By collector: the last `seq` that it gave out.
    pub last_seq: BTreeMap<String, u64>,
}

impl Body for AgentStatus {
    fn put(&self, event: &mut Vec<u8>) -> Result<Option<Vec<usize>>, EncodeError> {
        put_map(self, event)
    }
}

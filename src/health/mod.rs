//! Health: what each part knows of its own state, in one place that everyone can read.
//!
//! Parts write here when something changes; `agent_status`, the status page and the commands read. Nothing here decides
//! anything.

mod delivery;
mod loops;
mod usage;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::Serialize;

use crate::units::Time;
pub use delivery::{Confirms, Delivery};
pub use loops::{AtWork, Loops, Stuck};
pub use usage::Usage;

/// How a collector is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The last look brought all there is.
    #[default]
    Ok,
    /// The last look brought less than it could: `reason` says why and what mends it.
    Degraded,
    /// The last look failed: `reason` says why.
    Failing,
    /// Turned off in the configuration.
    Disabled,
}

/// One collector's part of `agent_status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct CollectorStatus {
    /// How it is.
    pub state: State,
    /// Why it is not ok, and what mends it; nil if it is.
    pub reason: Option<String>,
    /// When it last brought a sample.
    pub last_success_at: Option<Time>,
    /// Looks since the start, failed ones included.
    pub runs: u64,
    /// Looks that failed.
    pub failures: u64,
    /// Looks that were left out because the one before took too long or the channel was full.
    pub skipped: u64,
    /// Time that the database spent on its statements since the start, in milliseconds, as the agent saw it.
    pub db_ms: f64,
}

/// The state of all parts.
#[derive(Debug)]
pub struct Health {
    /// The loops of all parts, and which of them are at work.
    pub loops: Loops,
    started: Instant,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    collectors: BTreeMap<String, CollectorStatus>,
    delivery: Delivery,
}

impl Default for Health {
    fn default() -> Self {
        Self { loops: Loops::default(), started: Instant::now(), parts: Mutex::default() }
    }
}

impl Health {
    /// Time since the start of this run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Changes one collector's state.
    pub fn collector(&self, name: &str, change: impl FnOnce(&mut CollectorStatus)) {
        change(self.parts().collectors.entry(name.to_owned()).or_default());
    }

    /// Changes the counters of delivery.
    pub fn delivery(&self, change: impl FnOnce(&mut Delivery)) {
        change(&mut self.parts().delivery);
    }

    /// All collectors and the counters of delivery, as they are now.
    pub fn snapshot(&self) -> (BTreeMap<String, CollectorStatus>, Delivery) {
        let parts = self.parts();
        (parts.collectors.clone(), parts.delivery.clone())
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        // Counters and texts are whole at any moment: a panic elsewhere does not spoil them.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

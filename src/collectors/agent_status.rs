//! The agent's word about itself, and the proof that nothing is missing.
//!
//! What was sent, waits and was lost is not filled in here but by the intake, at the moment when it numbers the status.

use std::{collections::BTreeMap, time::Duration};

use super::{CollectError, Collector, Context};
use crate::{
    event::{
        EncodeError, NoSummary, Payload, Sample,
        status::{AgentStatus, Occasion, SpoolStatus},
    },
    health::{Health, Usage},
    settings::{Reader, Section},
    units::Time,
};

/// `agent_status` has no keys of its own.
#[derive(Debug, Clone)]
pub struct Config;

impl Section for Config {
    fn read(_: &mut Reader) -> Self {
        Self
    }
}

/// The collector.
#[derive(Debug)]
pub struct Status;

impl Collector for Status {
    const NAME: &'static str = "agent_status";
    const IMPORTANCE: u8 = 5;
    const INTERVAL: Duration = Duration::from_secs(30);
    const OPTIONAL: bool = false;
    type Config = Config;
    type Data = AgentStatus;
    type Summary = NoSummary;

    fn new(Config: Config) -> Self {
        Self
    }

    async fn collect(&mut self, context: &Context) -> Result<Sample<AgentStatus, NoSummary>, CollectError> {
        Ok(take(Occasion::Running, &context.health))
    }

    fn payload(sample: Sample<AgentStatus, NoSummary>, _: usize) -> Result<Payload, EncodeError> {
        Ok(Payload::Status(Box::new(sample)))
    }
}

/// A status as far as it can be known before it is numbered.
pub fn take(event: Occasion, health: &Health) -> Sample<AgentStatus, NoSummary> {
    let (collectors, delivery) = health.snapshot();
    let Usage { rss_bytes, cpu_s } = Usage::now();
    let status = AgentStatus {
        event,
        uptime_s: health.uptime().as_secs_f64(),
        collectors,
        sent: BTreeMap::new(),
        delivery,
        spool: SpoolStatus::default(),
        waiting: Vec::new(),
        lost: Vec::new(),
        previous_runs: Vec::new(),
        rss_bytes,
        cpu_s,
    };
    Sample {
        server: None,
        collected_at: Time::now(),
        duration: Duration::ZERO,
        omitted: 0,
        hidden: 0,
        summary: None,
        data: status,
        degraded: None,
    }
}

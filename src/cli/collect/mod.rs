//! `collect`: one cycle of some collectors to stdout, without broker or spool.
//!
//! The bodies are those that `run` would send. `seq` is 1 and the run is its own, so nobody takes them for part of a
//! proof. A collector with deltas looks once and so brings a baseline.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use futures_util::{FutureExt, future::join_all};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Failure, Outcome, complain, people, runtime, say};
use crate::{
    agent::speaker,
    collectors::{self, CollectError, Context, Looked, Plan},
    config::{Config, Loaded},
    event::{
        EncodeError, Payload,
        status::{self, AgentStatus},
    },
    health::{Health, State},
    intake::Speaker,
    postgres,
    spool::{chain, read_agent_id},
    units::Time,
};

/// Take one look with some collectors and print what they bring; no broker, no spool
///
/// A collector with deltas looks once: its first sample is a baseline. Why one brings less than it could, and what
/// mends it, is told on stderr.
///
/// Exit status: 0, or 1 if a collector failed.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which collectors; left out: all that are enabled
    #[arg(value_parser = PossibleValuesParser::new(collectors::ALL.iter().map(|entry| entry.name)))]
    collectors: Vec<String>,

    /// How to print: a message body a line, or tables for people, cut to the terminal's width
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A message body a line, as JSON
    Json,
    /// Tables for people
    Table,
}

impl Arguments {
    pub(super) fn run(&self, loaded: &Loaded) -> Outcome {
        let config = &loaded.config;
        let named = |plan: &&Plan| match self.collectors.as_slice() {
            [] => plan.enabled,
            names => names.iter().any(|name| name == plan.name),
        };
        let plans: Vec<&Plan> = config.collectors.plans.iter().filter(named).collect();
        let runtime = runtime()?;
        let bodies = runtime.block_on(look(config, &plans));
        // A server that hangs does not keep the command from ending.
        runtime.shutdown_background();
        let mut failed = false;
        for body in bodies? {
            match body {
                Ok(body) => say(&self.print(&body)?)?,
                Err(reason) => {
                    complain(&reason);
                    failed = true;
                }
            }
        }
        if failed { Err(Failure::Told) } else { Ok(()) }
    }

    fn print(&self, body: &[u8]) -> Result<String, Failure> {
        let body: serde_json::Value = rmp_serde::from_slice(body)
            .map_err(|error| Failure::Failed(format!("a body has no JSON form: {error}")))?;
        Ok(match self.format {
            Format::Json => format!("{body}\n"),
            Format::Table => people::message(&body, people::width()),
        })
    }
}

/// A message's body, or why there is none.
type Body = Result<Vec<u8>, String>;

/// All looks at once, as the pool allows; the agent's own status last, because it tells of the others.
async fn look(config: &Config, plans: &[&Plan]) -> Result<Vec<Body>, Failure> {
    let postgres =
        postgres::Database::new(&config.postgres, &config.retry).map_err(|error| Failure::Failed(chain(&error)))?;
    let context = Context { postgres, texts: config.privacy.clone(), health: Arc::new(Health::default()) };
    for plan in config.collectors.plans.iter().filter(|plan| !plan.enabled) {
        context.health.collector(plan.name, |collector| collector.state = State::Disabled);
    }
    let id = read_agent_id(&config.spool.dir).map(|id| id.to_string());
    let speaker = speaker(config, id, Uuid::now_v7().to_string());
    let deadline = config.postgres.statement_timeout * 2 + Duration::from_secs(10);
    let (own, others): (Vec<_>, Vec<_>) = plans.iter().copied().partition(|plan| plan.name == status::COLLECTOR);
    let mut bodies = Vec::new();
    let mut sent = BTreeMap::new();
    for plans in [others, own] {
        let looks = join_all(plans.iter().map(|plan| one(plan, &context, deadline))).await;
        for (plan, looked) in plans.iter().zip(looks) {
            match looked {
                Ok(Some(looked)) => {
                    sent.insert(plan.name.to_owned(), 1);
                    bodies.push(body(plan, looked, &speaker, &sent).map_err(|error| chain(&error)));
                }
                Ok(None) => {}
                Err(reason) => bodies.push(Err(reason)),
            }
        }
    }
    Ok(bodies)
}

/// One look; `None` where there is nothing to look at, which is told and is no failure.
async fn one(plan: &Plan, context: &Context, deadline: Duration) -> Result<Option<Looked>, String> {
    let mut collector = plan.make();
    let started = Instant::now();
    let looking = AssertUnwindSafe(collector.look(context, usize::MAX)).catch_unwind();
    let (looked, state, reason) = match timeout(deadline, looking).await {
        Ok(Ok(Ok(looked))) => match looked.degraded.clone() {
            None => (Some(looked), State::Ok, None),
            reason => (Some(looked), State::Degraded, reason),
        },
        Ok(Ok(Err(CollectError::Absent(reason)))) => (None, State::Degraded, Some(reason)),
        Ok(Ok(Err(error))) => (None, State::Failing, Some(chain(&error))),
        Ok(Err(_)) => (None, State::Failing, Some("it panicked, which is a mistake in the agent".into())),
        Err(_) => (None, State::Failing, Some(format!("it did not finish within {} s", started.elapsed().as_secs()))),
    };
    let spent = context.postgres.spent(plan.name);
    context.health.collector(plan.name, |collector| {
        (collector.state, collector.reason) = (state, reason.clone());
        collector.runs = 1;
        collector.failures = u64::from(state == State::Failing);
        collector.last_success_at = looked.is_some().then(Time::now);
        collector.db_ms = spent.as_secs_f64() * 1e3;
    });
    let reason = reason.unwrap_or_default();
    match state {
        State::Failing => return Err(format!("{} failed: {reason}", plan.name)),
        State::Degraded => complain(&format!("{} is degraded: {reason}", plan.name)),
        State::Ok | State::Disabled => {}
    }
    Ok(looked)
}

fn body(plan: &Plan, looked: Looked, speaker: &Speaker, sent: &BTreeMap<String, u64>) -> Result<Vec<u8>, EncodeError> {
    let events = match looked.payload {
        Payload::Events(events) => events,
        Payload::Status(mut sample) => {
            sample.data = AgentStatus { sent: sent.clone(), ..sample.data };
            sample.encode(usize::MAX)?
        }
    };
    speaker.body(plan.name, plan.version, 1, looked.server.as_deref(), events)
}

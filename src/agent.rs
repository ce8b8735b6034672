//! The agent: who is wired to whom, and in which order things stop. The only place that spawns tasks.
//!
//! It stops in the direction of the data: the collectors, then the intake (everything has its number), then the publisher
//! (what is fresh is delivered as far as the time allows), then the spool is closed.

use std::{sync::Arc, time::Instant};

use tokio::{sync::watch, task::JoinSet};
use tracing::{error, info};

use crate::{
    backoff,
    batch::{
        Batcher,
        channel::{Item, Sender, channel},
    },
    collectors::{self, Context, schedule::Schedule, take_status},
    config::{self, Config},
    event::{
        Payload,
        status::{self, Occasion},
    },
    health::{Health, State},
    intake::{Intake, Speaker},
    postgres,
    publisher::{Phase, Publisher},
    spool::{self, Spool, chain},
};

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spool is held by another agent.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The connection to PostgreSQL cannot even be tried.
    #[error("cannot use the [postgres] table")]
    Postgres(#[from] postgres::Error),
    /// The routing key cannot be filled in.
    #[error("amqp.routing_key must be {0}")]
    RoutingKey(String),
    /// A part of the agent ended by itself.
    #[error("the {0} ended by itself: a mistake in the agent; what it had is in the spool")]
    Ended(&'static str),
}

/// How long one look may take: the server gives up on its own statements long before.
fn deadline(config: &Config) -> std::time::Duration {
    config.postgres.statement_timeout * 2 + std::time::Duration::from_secs(10)
}

/// Runs the agent until `stop` is true.
///
/// # Errors
/// Why it cannot run: another agent has the spool, or one of its own parts ended.
pub async fn run(config: Config, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let routing_key =
        config.amqp.routing_key.fill(&config.agent.name, &config.agent.labels).map_err(Error::RoutingKey)?;
    let health = Arc::new(Health::default());
    let database = postgres::Database::new(&config.postgres, &config.retry)?;
    let spool = Arc::new(Spool::open(config.spool.clone(), collectors::by_importance())?);
    let speaker = speaker(&config, Some(spool.agent.to_string()), spool.run_id.to_string());
    info!(version = env!("CARGO_PKG_VERSION"), agent_id = %spool.agent, run_id = %spool.run_id, "started");
    let (samples, receiver) = channel(config.publisher.channel_capacity);
    let context = Context { postgres: database, texts: config.privacy.clone(), health: Arc::clone(&health) };
    say(&samples, &health, Occasion::Started, &config).await;

    let intake = Intake::new(&config.publisher, speaker.clone(), Arc::clone(&spool), Arc::clone(&health));
    let mut intake = tokio::spawn(intake.run(receiver));
    let (phase, phases) = watch::channel(Phase::Running);
    let publisher = Publisher {
        config: config.amqp.clone(),
        routing_key,
        retry: config.retry.clone(),
        replay_rate: config.spool.replay_rate,
        spool: Arc::clone(&spool),
        health: Arc::clone(&health),
    };
    let mut publisher = tokio::spawn(publisher.run(phases));
    let mut keeper = tokio::spawn(keep(Arc::clone(&spool)));
    let max_event_bytes = Batcher::max_event_bytes(&config.publisher.batch, speaker.envelope());
    let mut looks = spawn_collectors(&config, &context, &samples, max_event_bytes, &stop);

    let ended = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        _ = &mut intake => Some("intake"),
        _ = &mut publisher => Some("publisher"),
        _ = &mut keeper => Some("spool's keeper"),
        _ = looks.join_next() => Some("collectors' schedule"),
    };
    if let Some(part) = ended {
        return Err(Error::Ended(part));
    }
    info!("stopping");
    let until = Instant::now() + config.agent.shutdown_timeout;
    while looks.join_next().await.is_some() {}
    say(&samples, &health, Occasion::Stopping, &config).await;
    drop(samples);
    ended_well("intake", intake.await);
    // Nobody may be left to hear it: then there is nothing to drain either.
    let _gone = phase.send(Phase::Draining(until));
    ended_well("publisher", publisher.await);
    keeper.abort();
    let close = Arc::clone(&spool);
    ended_well("spool", tokio::task::spawn_blocking(move || close.close()).await);
    let left = spool.status();
    info!(messages_left = left.messages, "stopped; what is left is in the spool");
    Ok(())
}

/// Who speaks in this run's messages.
pub fn speaker(config: &Config, agent_id: Option<String>, run_id: String) -> Speaker {
    Speaker {
        agent_id,
        agent_name: config.agent.name.clone(),
        host: config::host_name(),
        labels: config.agent.labels.clone(),
        run_id,
    }
}

/// Hands a status over that is not on the schedule.
async fn say(samples: &Sender, health: &Health, occasion: Occasion, config: &Config) {
    let plans = &config.collectors.plans;
    for plan in plans.iter().filter(|plan| !plan.enabled) {
        health.collector(plan.name, |collector| collector.state = State::Disabled);
    }
    let version = plans.iter().find(|plan| plan.name == status::COLLECTOR).map_or(1, |plan| plan.version);
    let payload = Payload::Status(Box::new(take_status(occasion, health)));
    let item = Item { collector: (status::COLLECTOR, version), server: None, payload, next_due: None };
    // A full channel empties within moments: the intake is all that it waits for.
    loop {
        if let Some(slot) = samples.slot() {
            return slot.send(item).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

fn spawn_collectors(
    config: &Config,
    context: &Context,
    samples: &Sender,
    max_event_bytes: usize,
    stop: &watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut looks = JoinSet::new();
    for plan in config.collectors.plans.iter().filter(|plan| plan.enabled) {
        let schedule = Schedule {
            plan: plan.clone(),
            context: context.clone(),
            samples: samples.clone(),
            max_event_bytes,
            deadline: deadline(config),
            retry: backoff::Config::clone(&config.retry),
        };
        looks.spawn(schedule.run(stop.clone()));
    }
    looks
}

/// Does the spool's duties when they are due, off the threads that others need.
async fn keep(spool: Arc<Spool>) {
    loop {
        let due = async {
            match spool.next_duty() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = spool.duty.notified() => {}
            () = due => {
                let spool = Arc::clone(&spool);
                ended_well("spool's keeper", tokio::task::spawn_blocking(move || spool.keep()).await);
            }
        }
    }
}

fn ended_well(part: &str, end: Result<(), tokio::task::JoinError>) {
    if let Err(failed) = end {
        error!(part, reason = chain(&failed), "a part of the agent failed");
    }
}

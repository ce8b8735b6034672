//! The agent: who is wired to whom, and in which order things stop. The only place that spawns tasks.
//!
//! It stops in the direction of the data: the collectors, then the intake (everything has its number), then the publisher
//! (what is fresh is delivered as far as the time allows), then the spool is closed.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{error, info, warn};

use crate::{
    batch::{
        Batcher,
        channel::{Item, Sender, channel},
    },
    collectors::{self, Context, Plan, schedule::Schedule, take_status},
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

/// A configuration that was read again while the agent runs.
#[derive(Debug)]
pub struct Reload {
    /// The new configuration.
    pub config: Config,
    /// The keys whose values differ, by their whole path.
    pub changed: Vec<String>,
}

/// Runs the agent until `stop` is true: once, or anew where the spool's folder could not be used at first and then can be.
///
/// # Errors
/// Why it cannot run: another agent has the spool, or one of its own parts ended.
pub async fn run(
    mut config: Config,
    mut stop: watch::Receiver<bool>,
    mut reloads: mpsc::Receiver<Reload>,
) -> Result<(), Error> {
    while run_once(&mut config, &mut stop, &mut reloads).await? == End::FolderUsable {}
    Ok(())
}

/// Why a run ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was asked to.
    Stopped,
    /// The spool's folder can be used by now.
    FolderUsable,
}

async fn run_once(
    config: &mut Config,
    stop: &mut watch::Receiver<bool>,
    reloads: &mut mpsc::Receiver<Reload>,
) -> Result<End, Error> {
    let routing_key = config.amqp.routing_key.fill(&config.agent.name, &config.agent.labels);
    let routing_key = routing_key.map_err(Error::RoutingKey)?;
    let health = Arc::new(Health::default());
    let database = postgres::Database::new(&config.postgres, &config.retry)?;
    let spool = Arc::new(Spool::open(config.spool.clone(), collectors::by_importance())?);
    let speaker = speaker(config, Some(spool.agent.to_string()), spool.run_id.to_string());
    info!(version = env!("CARGO_PKG_VERSION"), agent_id = %spool.agent, run_id = %spool.run_id, "started");
    let (samples, receiver) = channel(config.publisher.channel_capacity);
    let context = Context { postgres: database, texts: config.privacy.clone(), health: Arc::clone(&health) };
    let publisher = Publisher {
        config: config.amqp.clone(),
        routing_key,
        retry: config.retry.clone(),
        replay_rate: config.spool.replay_rate,
        spool: Arc::clone(&spool),
        health: Arc::clone(&health),
    };
    publisher.expect_broker();
    say(&samples, &health, Occasion::Started, config).await;

    let intake = Intake::new(&config.publisher, speaker.clone(), Arc::clone(&spool), Arc::clone(&health));
    let mut intake = tokio::spawn(intake.run(receiver));
    let (phase, phases) = watch::channel(Phase::Running);
    let mut publisher = tokio::spawn(publisher.run(phases));
    let mut keeper = tokio::spawn(keep(Arc::clone(&spool)));
    let max_event_bytes = Batcher::max_event_bytes(&config.publisher.batch, speaker.envelope());
    let mut looks = Looks::start(config, context, samples.clone(), max_event_bytes);

    let ended = loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break Ok(End::Stopped),
            () = spool.usable.notified() => break Ok(End::FolderUsable),
            _ = &mut intake => break Err("intake"),
            _ = &mut publisher => break Err("publisher"),
            _ = &mut keeper => break Err("spool's keeper"),
            () = looks.ended() => break Err("collectors' schedule"),
            Some(reload) = reloads.recv() => {
                looks.reload(&reload);
                *config = reload.config;
            }
        }
    };
    let ended = ended.map_err(Error::Ended)?;
    info!(reason = ?ended, "stopping");
    let until = Instant::now() + config.agent.shutdown_timeout;
    looks.stop().await;
    say(&samples, &health, Occasion::Stopping, config).await;
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
    Ok(ended)
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
    for plan in plans {
        health.collector(plan.name, |collector| {
            if !plan.enabled {
                collector.state = State::Disabled;
            }
        });
    }
    let version = plans.iter().find(|plan| plan.name == status::COLLECTOR).map_or(1, |plan| plan.version);
    let payload = Payload::Status(Box::new(take_status(occasion, health)));
    let item = Item { collector: (status::COLLECTOR, version), server: None, payload, next_due: None };
    samples.send(item).await;
}

/// The collectors' schedules, each with its own way to be stopped.
struct Looks {
    tasks: JoinSet<&'static str>,
    stops: BTreeMap<&'static str, watch::Sender<bool>>,
    context: Context,
    samples: Sender,
    max_event_bytes: usize,
}

impl Looks {
    fn start(config: &Config, context: Context, samples: Sender, max_event_bytes: usize) -> Self {
        let mut looks = Self { tasks: JoinSet::new(), stops: BTreeMap::new(), context, samples, max_event_bytes };
        config.collectors.plans.iter().for_each(|plan| looks.spawn(plan, config));
        looks
    }

    fn spawn(&mut self, plan: &Plan, config: &Config) {
        if !plan.enabled {
            return;
        }
        let (stop, stopped) = watch::channel(false);
        let schedule = Schedule {
            plan: plan.clone(),
            context: self.context.clone(),
            samples: self.samples.clone(),
            max_event_bytes: self.max_event_bytes,
            deadline: deadline(config),
            retry: config.retry.clone(),
        };
        let name = plan.name;
        self.stops.insert(name, stop);
        self.tasks.spawn(async move {
            schedule.run(stopped).await;
            name
        });
    }

    /// Begins those collectors anew whose keys changed, and names what only a restart can change.
    fn reload(&mut self, reload: &Reload) {
        let starts = |key: &String, table: &str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
        let texts = reload.changed.iter().any(|key| starts(key, "privacy"));
        self.context.texts = reload.config.privacy.clone();
        for plan in &reload.config.collectors.plans {
            let table = format!("collectors.{}", plan.name);
            if !texts && !reload.changed.iter().any(|key| starts(key, &table)) {
                continue;
            }
            if let Some(stop) = self.stops.remove(plan.name) {
                // A schedule that is gone already needs no word.
                let _gone = stop.send(true);
            }
            let state = if plan.enabled { State::Ok } else { State::Disabled };
            self.context.health.collector(plan.name, |collector| (collector.state, collector.reason) = (state, None));
            self.spawn(plan, &reload.config);
            info!(collector = plan.name, "begun anew with its new configuration");
        }
        let applied =
            |key: &&String| starts(key, "collectors") || starts(key, "privacy") || key.as_str() == "log.level";
        let later: Vec<&String> = reload.changed.iter().filter(|key| !applied(key)).collect();
        if !later.is_empty() {
            warn!(keys = ?later, "these keys are in force after a restart only");
        }
    }

    /// Waits until a schedule ends that nobody stopped, which none ever should.
    async fn ended(&mut self) {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(name)) if self.stops.get(name).is_none_or(|stop| !stop.is_closed()) => {}
                Some(_) => return,
                None => std::future::pending().await,
            }
        }
    }

    /// Stops all schedules and waits for them. Gone with it is their end of the channel to the intake.
    async fn stop(mut self) {
        self.stops.values().for_each(|stop| _ = stop.send(true));
        while self.tasks.join_next().await.is_some() {}
    }
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

//! The line that messages take: channel, intake, spool, publisher, and the spool's keeper.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};
use tracing::{error, info};

use super::{Error, speaker};
use crate::{
    batch::{
        Batcher,
        channel::{Item, Sender, channel},
    },
    collectors::{self, Plan, take_status},
    config::Config,
    event::{
        Payload,
        status::{self, Occasion},
    },
    health::{Health, State},
    intake::Intake,
    publisher::{Phase, Publisher},
    recent::Recent,
    spool::{Spool, chain},
};

/// A line that runs.
pub(super) struct Line {
    pub(super) spool: Arc<Spool>,
    pub(super) health: Arc<Health>,
    /// Where events go in.
    pub(super) samples: Sender,
    /// A larger event fits into no message.
    pub(super) max_event_bytes: usize,
    pub(super) tasks: Tasks,
    phase: watch::Sender<Phase>,
}

/// The tasks of a line.
pub(super) struct Tasks {
    intake: JoinHandle<()>,
    publisher: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

impl Tasks {
    /// Waits for a task that ends though nobody asked it to, and names it.
    pub(super) async fn ended(&mut self) -> &'static str {
        tokio::select! {
            _ = &mut self.intake => "intake",
            _ = &mut self.publisher => "publisher",
            _ = &mut self.keeper => "spool's keeper",
        }
    }
}

impl Line {
    /// Opens the spool and starts all tasks. `recent` is shown what is numbered.
    pub(super) fn begin(config: &Config, health: Arc<Health>, recent: Option<Arc<Recent>>) -> Result<Self, Error> {
        let spool = Arc::new(Spool::open(config.spool.clone(), collectors::by_importance())?);
        let speaker = speaker(config, Some(spool.agent.to_string()), spool.run_id.to_string());
        let (samples, receiver) = channel(config.publisher.channel_capacity);
        let max_event_bytes = Batcher::max_event_bytes(&config.publisher.batch, speaker.envelope());
        let intake = Intake::new(&config.publisher, speaker, Arc::clone(&spool), Arc::clone(&health), recent);
        let (phase, phases) = watch::channel(Phase::Running);
        let publisher = publisher(config, &spool, &health)?;
        publisher.expect_broker();
        let tasks = Tasks {
            intake: tokio::spawn(intake.run(receiver)),
            publisher: tokio::spawn(publisher.run(phases)),
            keeper: tokio::spawn(keep(Arc::clone(&spool), Arc::clone(&health))),
        };
        Ok(Self { spool, health, samples, max_event_bytes, tasks, phase })
    }

    /// Begins the publisher anew with another configuration. What is in flight has a moment to be confirmed; what is not by
    /// then is published again, as after any lost connection.
    ///
    /// # Errors
    /// The new configuration cannot be used; the old publisher goes on.
    pub(super) async fn renew_publisher(&mut self, config: &Config) -> Result<(), Error> {
        let publisher = publisher(config, &self.spool, &self.health)?;
        let _gone = self.phase.send(Phase::Draining(Instant::now() + RENEWAL));
        ended_well("publisher", (&mut self.tasks.publisher).await);
        publisher.expect_broker();
        let (phase, phases) = watch::channel(Phase::Running);
        self.tasks.publisher = tokio::spawn(publisher.run(phases));
        self.phase = phase;
        Ok(())
    }

    /// Hands a status over that is not on the schedule.
    pub(super) async fn say(&self, occasion: Occasion, plans: &[Plan]) {
        for plan in plans {
            self.health.collector(plan.name, |collector| {
                if !plan.enabled {
                    collector.state = State::Disabled;
                }
            });
        }
        let version = plans.iter().find(|plan| plan.name == status::COLLECTOR).map_or(1, |plan| plan.version);
        let payload = Payload::Status(Box::new(take_status(occasion, &self.health)));
        let item = Item { collector: (status::COLLECTOR, version), server: None, payload, next_due: None };
        self.samples.send(item).await;
    }

    /// Ends all tasks in the direction of the data; what is fresh or in flight has time until then. Nobody else may still
    /// hold [`Line::samples`].
    pub(super) async fn end(self, until: Instant) {
        let Self { spool, samples, tasks: Tasks { intake, publisher, keeper }, phase, .. } = self;
        drop(samples);
        ended_well("intake", intake.await);
        // Nobody may be left to hear it: then there is nothing to drain either.
        let _gone = phase.send(Phase::Draining(until));
        ended_well("publisher", publisher.await);
        keeper.abort();
        let close = Arc::clone(&spool);
        ended_well("spool", tokio::task::spawn_blocking(move || close.close()).await);
        info!(messages_left = spool.status().messages, "stopped; what is left is in the spool");
    }
}

/// How long what is in flight may take when the publisher is begun anew.
const RENEWAL: Duration = Duration::from_secs(2);

fn publisher(config: &Config, spool: &Arc<Spool>, health: &Arc<Health>) -> Result<Publisher, Error> {
    let routing_key = config.amqp.routing_key.fill(&config.agent.name, &config.agent.labels);
    Ok(Publisher {
        config: config.amqp.clone(),
        routing_key: routing_key.map_err(Error::RoutingKey)?,
        retry: config.retry.clone(),
        replay_rate: config.spool.replay_rate,
        spool: Arc::clone(spool),
        health: Arc::clone(health),
    })
}

/// How long the duties of one round may take: a disk that syncs slowly is no reason to call the agent stuck.
const KEEPING: Duration = Duration::from_secs(120);

/// Does the spool's duties when they are due, off the threads that others need.
async fn keep(spool: Arc<Spool>, health: Arc<Health>) {
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
                let _at_work = health.loops.at_work("spool", KEEPING);
                ended_well("spool's keeper", tokio::task::spawn_blocking(move || spool.keep()).await);
            }
        }
    }
}

fn ended_well(part: &str, end: Result<(), JoinError>) {
    if let Err(failed) = end {
        error!(part, reason = chain(&failed), "a part of the agent failed");
    }
}

//! The line that messages take: channel, intake, spool, publisher, and the spool's keeper.

use std::{sync::Arc, time::Instant};

use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};
use tracing::{error, info};

use super::{Error, speaker, vigil::keep_vigil};
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
    vigil: JoinHandle<()>,
}

impl Tasks {
    /// Waits for a task that ends though nobody asked it to, and names it.
    pub(super) async fn ended(&mut self) -> &'static str {
        tokio::select! {
            _ = &mut self.intake => "intake",
            _ = &mut self.publisher => "publisher",
            _ = &mut self.keeper => "spool's keeper",
            _ = &mut self.vigil => "vigil",
        }
    }
}

impl Line {
    /// Opens the spool and starts all tasks.
    pub(super) fn begin(config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        let routing_key = config.amqp.routing_key.fill(&config.agent.name, &config.agent.labels);
        let routing_key = routing_key.map_err(Error::RoutingKey)?;
        let spool = Arc::new(Spool::open(config.spool.clone(), collectors::by_importance())?);
        let speaker = speaker(config, Some(spool.agent.to_string()), spool.run_id.to_string());
        let (samples, receiver) = channel(config.publisher.channel_capacity);
        let publisher = Publisher {
            config: config.amqp.clone(),
            routing_key,
            retry: config.retry.clone(),
            replay_rate: config.spool.replay_rate,
            spool: Arc::clone(&spool),
            health: Arc::clone(&health),
        };
        publisher.expect_broker();
        let max_event_bytes = Batcher::max_event_bytes(&config.publisher.batch, speaker.envelope());
        let intake = Intake::new(&config.publisher, speaker, Arc::clone(&spool), Arc::clone(&health));
        let (phase, phases) = watch::channel(Phase::Running);
        let tasks = Tasks {
            intake: tokio::spawn(intake.run(receiver)),
            publisher: tokio::spawn(publisher.run(phases)),
            keeper: tokio::spawn(keep(Arc::clone(&spool))),
            vigil: tokio::spawn(keep_vigil(Arc::clone(&spool), Arc::clone(&health))),
        };
        Ok(Self { spool, health, samples, max_event_bytes, tasks, phase })
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
        let Self { spool, samples, tasks: Tasks { intake, publisher, keeper, vigil }, phase, .. } = self;
        drop(samples);
        ended_well("intake", intake.await);
        // Nobody may be left to hear it: then there is nothing to drain either.
        let _gone = phase.send(Phase::Draining(until));
        ended_well("publisher", publisher.await);
        keeper.abort();
        vigil.abort();
        let close = Arc::clone(&spool);
        ended_well("spool", tokio::task::spawn_blocking(move || close.close()).await);
        info!(messages_left = spool.status().messages, "stopped; what is left is in the spool");
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

fn ended_well(part: &str, end: Result<(), JoinError>) {
    if let Err(failed) = end {
        error!(part, reason = chain(&failed), "a part of the agent failed");
    }
}

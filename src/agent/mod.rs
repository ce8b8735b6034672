//! The agent: who is wired to whom, and in which order things stop. The only place that spawns tasks.
//!
//! It stops in the direction of the data: the collectors, then the intake (everything has its number), then the publisher
//! (what is fresh is delivered as far as the time allows), then the spool is closed.

mod line;
mod replay;
mod vigil;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    batch::channel::Sender,
    collectors::{Context, Plan, schedule::Schedule},
    config::{self, Config},
    event::status::Occasion,
    health::{Health, State},
    intake::Speaker,
    postgres, spool,
};
use line::Line;
pub use replay::{Progress, Replayed, replay};

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spool is held by another agent.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The spool's folder cannot be written, and without that nothing can be marked as delivered.
    #[error("the spool cannot be used: {0}")]
    Folder(String),
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
    let health = Arc::new(Health::default());
    let database = postgres::Database::new(&config.postgres, &config.retry)?;
    let mut line = Line::begin(config, Arc::clone(&health))?;
    info!(version = env!("CARGO_PKG_VERSION"), agent_id = %line.spool.agent, run_id = %line.spool.run_id, "started");
    line.say(Occasion::Started, &config.collectors.plans).await;
    let context = Context { postgres: database, texts: config.privacy.clone(), health };
    let mut looks = Looks::start(config, context, line.samples.clone(), line.max_event_bytes);

    let ended = loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break Ok(End::Stopped),
            () = line.spool.usable.notified() => break Ok(End::FolderUsable),
            part = line.tasks.ended() => break Err(part),
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
    line.say(Occasion::Stopping, &config.collectors.plans).await;
    line.end(until).await;
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

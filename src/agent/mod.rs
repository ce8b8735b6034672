//! The agent: who is wired to whom, and in which order things stop. The only place that spawns tasks.
//!
//! It stops in the direction of the data: the collectors, then the intake (everything has its number), then the publisher
//! (what is fresh is delivered as far as the time allows), then the spool is closed.

mod line;
mod replay;
mod supervisor;
mod vigil;
mod watch;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch as latest},
    task::JoinSet,
};
use tracing::{error, info, warn};

use crate::{
    batch::channel::Sender,
    collectors::{Context, Plan, schedule::Schedule},
    config::{self, Config},
    event::status::Occasion,
    health::{Health, State},
    http,
    intake::Speaker,
    postgres,
    recent::Recent,
    spool::{self, chain},
};
use line::Line;
pub use replay::{Progress, Replayed, replay};
use watch::Watch;

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
fn deadline(config: &Config) -> Duration {
    config.postgres.statement_timeout * 2 + Duration::from_secs(10)
}

/// A configuration that was read again while the agent runs.
#[derive(Debug)]
pub struct Reload {
    /// The new configuration.
    pub config: Config,
    /// The keys whose values differ, by their whole path.
    pub changed: Vec<String>,
}

impl Reload {
    /// Whether a key in one of these tables changed.
    fn concerns(&self, tables: &[&str]) -> bool {
        self.changed.iter().any(|key| tables.iter().any(|table| is_in(key, table)))
    }
}

/// Whether a key is this one, or in this table.
fn is_in(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Tables and keys that a reload puts in force.
const APPLIED: [&str; 6] = ["postgres", "amqp", "retry", "collectors", "privacy", "log.level"];

/// How long connections to PostgreSQL may take to end.
const CLOSING: Duration = Duration::from_secs(2);

/// Runs the agent until `stop` is true: once, or anew where the spool's folder could not be used at first and then can be.
///
/// # Errors
/// Why it cannot run: another agent has the spool, or one of its own parts ended.
pub async fn run(
    mut config: Config,
    mut stop: latest::Receiver<bool>,
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
    stop: &mut latest::Receiver<bool>,
    reloads: &mut mpsc::Receiver<Reload>,
) -> Result<End, Error> {
    let health = Arc::new(Health::default());
    let database = postgres::Database::new(&config.postgres, &config.retry)?;
    let recent = config.http.listen.map(|_| Arc::<Recent>::default());
    let mut line = Line::begin(config, Arc::clone(&health), recent.clone())?;
    info!(version = env!("CARGO_PKG_VERSION"), agent_id = %line.spool.agent, run_id = %line.spool.run_id, "started");
    line.say(Occasion::Started, &config.collectors.plans).await;
    let context = Context { postgres: database, texts: config.privacy.clone(), health };
    let (current, shown) = latest::channel(current(config, &context));
    let page = config.http.listen.zip(recent.clone()).map(|at| watch::page(at, config, &line, shown));
    let watch = Watch::begin(&line, page);
    let mut looks = Looks::start(config, context, line.samples.clone(), line.max_event_bytes);
    supervisor::ready();

    let ended = loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break Ok(End::Stopped),
            () = line.spool.usable.notified() => break Ok(End::FolderUsable),
            part = line.tasks.ended() => break Err(part),
            () = looks.ended() => break Err("collectors' schedule"),
            Some(reload) = reloads.recv() => {
                supervisor::reloading();
                looks.reload(&reload).await;
                if reload.concerns(&["amqp", "retry"]) {
                    match line.renew_publisher(&reload.config).await {
                        Ok(()) => info!("the connection to the broker is begun anew with its new configuration"),
                        Err(refused) => error!(reason = chain(&refused), "the old connection to the broker stays"),
                    }
                }
                *config = reload.config;
                // What was shown may be more than what may be shown from now on.
                if let Some(recent) = &recent {
                    recent.forget_messages();
                }
                current.send_replace(self::current(config, &looks.context));
                supervisor::ready();
            }
        }
    };
    let ended = ended.map_err(Error::Ended)?;
    info!(reason = ?ended, "stopping");
    supervisor::stopping();
    let until = Instant::now() + config.agent.shutdown_timeout;
    looks.stop().await;
    // Their end of the channel to the intake.
    drop(looks);
    line.say(Occasion::Stopping, &config.collectors.plans).await;
    line.end(until).await;
    drop(watch);
    Ok(ended)
}

/// What the status page shows and a reload may change.
fn current(config: &Config, context: &Context) -> http::Current {
    let plan = |plan: &Plan| http::Plan { name: plan.name, interval: plan.interval };
    http::Current {
        database: context.postgres.clone(),
        query_text: config.privacy.query_text,
        plans: config.collectors.plans.iter().map(plan).collect(),
        exchange: config.amqp.exchange.clone(),
    }
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
    stops: BTreeMap<&'static str, latest::Sender<bool>>,
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
        let (stop, stopped) = latest::channel(false);
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

    /// Begins those collectors anew whose keys changed, all of them with another way to the server or other texts, and names
    /// what only a restart can change.
    async fn reload(&mut self, reload: &Reload) {
        self.context.texts = reload.config.privacy.clone();
        let server = reload.concerns(&["postgres", "retry"]) && self.renew_database(&reload.config).await;
        let all = server || reload.concerns(&["privacy"]);
        for plan in &reload.config.collectors.plans {
            let table = format!("collectors.{}", plan.name);
            if !all && !reload.concerns(&[&table]) {
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
        let applied = |key: &&String| APPLIED.iter().any(|table| is_in(key, table));
        let later: Vec<&String> = reload.changed.iter().filter(|key| !applied(key)).collect();
        if !later.is_empty() {
            warn!(keys = ?later, "these keys are in force after a restart only");
        }
    }

    /// Leaves the server and gets ready for another way to it, or another server. Old connections are gone before new ones
    /// are made: there are never more than `pool_size`. False where the new way cannot be used, and the old one stays.
    async fn renew_database(&mut self, config: &Config) -> bool {
        let database = match postgres::Database::new(&config.postgres, &config.retry) {
            Ok(database) => database,
            Err(refused) => {
                error!(reason = chain(&refused), "the old connections to PostgreSQL stay");
                return false;
            }
        };
        self.stop().await;
        self.context.postgres.close(CLOSING).await;
        self.context.postgres = database;
        true
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

    /// Stops all schedules and waits for them.
    async fn stop(&mut self) {
        for stop in std::mem::take(&mut self.stops).into_values() {
            // A schedule that is gone already needs no word.
            let _gone = stop.send(true);
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

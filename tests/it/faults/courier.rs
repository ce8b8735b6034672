//! A courier: the library's spool and publisher without collectors, so that a test numbers what it likes as fast as it likes.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use postgres_agent::{
    amqp::Limits,
    backoff, collectors,
    config::{self, Config},
    health::Health,
    publisher::{Phase, Publisher},
    spool::{Draft, Spool},
};
use tokio::{sync::watch, task::JoinHandle};

use super::scene::BOUND;
use crate::rig::{Folder, wait_for_async};

/// What a courier numbers for.
pub(super) const LOGS: [&str; 3] = ["pg_locks", "pg_activity", "system_metrics"];

pub(super) struct Courier {
    folder: Folder,
    pub(super) spool: Arc<Spool>,
    pub(super) health: Arc<Health>,
    phase: watch::Sender<Phase>,
    publisher: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

/// The configuration of a courier: small pauses, and what the test adds.
pub(super) fn configured(folder: &Folder, url: &str, more: &str) -> Config {
    let file = folder.path().join("agent.toml");
    let text = format!(
        "amqp.url = '{url}'\nspool.dir = '{}'\nspool.min_free = '0'\nretry = {{ initial = '10ms', max = '100ms' }}\n{more}",
        folder.path().join("spool").display(),
    );
    fs::write(&file, text).unwrap();
    config::load(Some(&file)).unwrap().config
}

impl Courier {
    pub(super) fn start(name: &str, url: &str, more: &str) -> Self {
        Self::prepared(name, url, more, |_| {})
    }

    /// With the pauses of the defaults.
    pub(super) fn patient(name: &str, url: &str, more: &str) -> Self {
        let folder = Folder::new(name);
        let mut config = configured(&folder, url, more);
        config.retry = backoff::Config::default();
        Self::of(folder, config, |_| {})
    }

    /// With other time limits.
    pub(super) fn limited(name: &str, url: &str, more: &str, limits: Limits) -> Self {
        let folder = Folder::new(name);
        let mut config = configured(&folder, url, more);
        config.amqp.limits = limits;
        Self::of(folder, config, |_| {})
    }

    /// `prepare` fills the spool before anything is published.
    pub(super) fn prepared(name: &str, url: &str, more: &str, prepare: impl FnOnce(&Spool)) -> Self {
        let folder = Folder::new(name);
        let config = configured(&folder, url, more);
        Self::of(folder, config, prepare)
    }

    fn of(folder: Folder, config: Config, prepare: impl FnOnce(&Spool)) -> Self {
        let spool = Arc::new(Spool::open(config.spool.clone(), collectors::by_importance()).unwrap());
        prepare(&spool);
        let health = Arc::new(Health::default());
        let publisher = Publisher {
            routing_key: config.amqp.routing_key.fill("courier", &std::collections::BTreeMap::new()).unwrap(),
            config: config.amqp,
            retry: config.retry,
            replay_rate: config.spool.replay_rate,
            spool: Arc::clone(&spool),
            health: Arc::clone(&health),
        };
        let (phase, phases) = watch::channel(Phase::Running);
        let publisher = tokio::spawn(publisher.run(phases));
        let kept = Arc::clone(&spool);
        let keeper = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let kept = Arc::clone(&kept);
                tokio::task::spawn_blocking(move || kept.keep()).await.unwrap();
            }
        });
        Self { folder, spool, health, phase, publisher, keeper }
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Numbers a message of so many bytes.
    pub(super) fn number(&self, log: &str, bytes: usize) {
        number(&self.spool, log, bytes);
    }

    /// Numbers one of each log.
    pub(super) fn number_all(&self, bytes: usize) {
        for log in LOGS {
            self.number(log, bytes);
        }
    }

    pub(super) fn waiting(&self) -> u64 {
        self.spool.status().messages
    }

    /// Why messages do not get through, as a status would say it.
    pub(super) fn trouble(&self) -> String {
        self.health.snapshot().1.trouble.unwrap_or_default()
    }

    #[track_caller]
    pub(super) fn all_delivered(&self) -> impl Future<Output = ()> + use<'_> {
        self.waits_for("all is delivered", |courier| courier.waiting() == 0)
    }

    #[track_caller]
    pub(super) fn waits_for(&self, what: &str, holds: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let look = move || std::future::ready(holds(self).then_some(()));
        wait_for_async(what, BOUND, look)
    }

    /// An orderly end, and how long it took.
    pub(super) async fn end(self, within: Duration) -> Duration {
        let start = Instant::now();
        self.phase.send(Phase::Draining(start + within)).unwrap();
        let ended = tokio::time::timeout(within + Duration::from_secs(10), self.publisher).await;
        ended.expect("the publisher ends in time").unwrap();
        self.keeper.abort();
        self.spool.close();
        start.elapsed()
    }
}

/// Numbers a message of so many bytes, all of them readable.
pub(super) fn number(spool: &Spool, log: &str, bytes: usize) {
    let draft = Draft { collector: log, events: 1, version: 1, zstd: false };
    spool.number(draft, |_| Ok(vec![b'x'; bytes])).unwrap();
}

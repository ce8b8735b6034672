//! The whole agent beside real servers: what it costs at rest and under load, how fast it is there and gone.

use std::{fs, path::Path, time::Duration};

use futures_util::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, QueuePurgeOptions},
    types::FieldTable,
};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use crate::{
    cell::Memory,
    peer::Collectd,
    reference::{Load, put, run_statements, usual},
    rig::{
        Folder,
        agent::Agent,
        postgres::{Role, Server},
        rabbit, wait_for_async,
    },
};

/// A server under a load, a queue, and the agent's configuration between them.
pub(crate) struct Scene {
    pub(crate) runtime: Runtime,
    pub(crate) server: Server,
    crowd: Vec<Client>,
    folder: Folder,
    name: &'static str,
}

const VERSION: u32 = 17;
const BOUND: Duration = Duration::from_secs(60);

/// Every collector this often; as they are if `None`.
pub(crate) type Interval = Option<&'static str>;

impl Scene {
    pub(crate) fn new(settings: &str, load: &Load) -> Self {
        let name = load.name;
        let runtime = Runtime::new().unwrap();
        let server = Server::with_settings(VERSION, settings);
        let crowd = runtime.block_on(async {
            rabbit::shared().durable_queue(name, name).await;
            put(&server, load).await
        });
        Self { runtime, server, crowd, folder: Folder::new(name), name }
    }

    /// Runs all statements of the load once more.
    pub(crate) fn run_statements(&self, load: &Load) {
        self.runtime.block_on(run_statements(&self.server, load));
    }

    /// Processor time of the backends that the agent is connected to, in ms.
    pub(crate) fn backends_ms(&self) -> f64 {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'postgres-agent'";
        self.server.sql(sql).lines().map(|pid| backend_ms(pid.parse().unwrap())).sum()
    }

    /// Processor time of one cycle of the usual design's queries, in ms.
    pub(crate) fn usual_ms(&self) -> f64 {
        self.runtime.block_on(async {
            let client = self.server.session(Role::Agent, "usual").await;
            let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
            let mut before = 0.0;
            // The first time warms.
            for time in 0..2 {
                before = if time == 0 { before } else { backend_ms(pid) };
                for (_, sql) in usual(VERSION) {
                    client.simple_query(&sql).await.unwrap();
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            backend_ms(pid) - before
        })
    }

    /// As many more idle sessions.
    pub(crate) fn crowd(&mut self, more: usize) {
        let server = &self.server;
        self.crowd.extend(self.runtime.block_on(async {
            let mut crowd = Vec::new();
            for _ in 0..more {
                crowd.push(server.session(Role::Plain, "web").await);
            }
            crowd
        }));
    }

    /// Starts the agent with an empty spool and an empty queue.
    pub(crate) fn start(&self, interval: Interval) -> Agent {
        self.start_under(&[], interval)
    }

    /// Behind the beginning of a command line.
    pub(crate) fn start_under(&self, under: &[String], interval: Interval) -> Agent {
        self.empty();
        let spool = self.folder.path().join("spool");
        _ = fs::remove_dir_all(&spool);
        Agent::start_under(under, self.folder.path(), &self.config(&spool, interval))
    }

    /// Starts collectd instead, into the same queue.
    pub(crate) fn collectd(&self) -> Collectd {
        self.empty();
        Collectd::start(self.folder.path(), self.server.port(), rabbit::shared().port(), self.name)
    }

    fn empty(&self) {
        self.runtime.block_on(async {
            let (connection, channel) = rabbit::shared().channel().await;
            channel.queue_purge(self.name.into(), QueuePurgeOptions::default()).await.unwrap();
            connection.close(200, "done".into()).await.unwrap();
        });
    }

    fn config(&self, spool: &Path, interval: Interval) -> String {
        let each = ["pg_activity", "pg_statements", "pg_locks", "system_metrics", "agent_status"];
        let every = |interval| each.map(|name| format!("collectors.{name}.interval = '{interval}'\n")).concat();
        format!(
            "postgres.url = '{}'\namqp.url = '{}'\namqp.exchange = '{}'\nspool.dir = '{}'\nspool.min_free = '0'\n{}",
            self.server.url(Role::Agent),
            rabbit::shared().url(),
            self.name,
            spool.display(),
            interval.map(every).unwrap_or_default()
        )
    }

    /// From the start of the process to its first message at a consumer, in ms; and from SIGTERM to its end.
    pub(crate) fn start_and_stop(&self) -> (f64, f64) {
        self.runtime.block_on(async {
            let (_connection, channel) = rabbit::shared().channel().await;
            channel.queue_purge(self.name.into(), QueuePurgeOptions::default()).await.unwrap();
            let consume = BasicConsumeOptions { no_ack: true, ..Default::default() };
            let consumer = channel.basic_consume(self.name.into(), "first".into(), consume, FieldTable::default());
            let mut consumer = consumer.await.unwrap();
            let spool = self.folder.path().join("spool");
            _ = fs::remove_dir_all(&spool);
            let start = std::time::Instant::now();
            let agent = Agent::start(self.folder.path(), &self.config(&spool, Some("1s")));
            let first = tokio::time::timeout(BOUND, consumer.next()).await;
            first.expect("waited in vain: the first message").unwrap().unwrap();
            let first = start.elapsed().as_secs_f64() * 1e3;
            // Between two looks nothing waits.
            let settled = || async { (messages(&spool) == 0).then_some(()) };
            tokio::time::sleep(Duration::from_millis(1400)).await;
            wait_for_async("all is confirmed", BOUND, settled).await;
            let (status, took) = agent.stop(BOUND);
            assert!(status.success(), "{status}");
            (first, took.as_secs_f64() * 1e3)
        })
    }
}

fn messages(spool: &Path) -> u64 {
    postgres_agent::spool::outside::look(spool)
        .unwrap()
        .logs
        .values()
        .map(postgres_agent::spool::log::Log::messages)
        .sum()
}

/// Processor time of a process so far, in ms; its threads that are gone included. In steps of 10 ms.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) * 1000.0 / rustix::param::clock_ticks_per_second() as f64
}

/// Processor time of a backend so far, in ms.
fn backend_ms(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// Processor time in ms, and memory at the end, of a process over some time.
pub(crate) fn observe(pid: u32, time: Duration) -> (f64, Memory) {
    let before = cpu_ms(pid);
    std::thread::sleep(time);
    (cpu_ms(pid) - before, Memory::of(pid))
}

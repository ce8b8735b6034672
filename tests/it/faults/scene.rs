//! A scene: an exchange with the judges' queue, a queue of statuses for the test's own eyes, and an agent that is run
//! through one fault. It ends with both judges, and with a line of the report.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    message::BasicGetMessage,
    options::{BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;

use super::{
    evidence::Evidence,
    report::{self, Fault},
};
use crate::rig::{
    Folder,
    agent::{Agent, command},
    judges::{audit, check_at, told, verdict},
    postgres::{self, Role},
};

/// How long a scene waits for any one thing: on two busy cores everything takes its time.
pub(crate) const BOUND: Duration = Duration::from_secs(90);

/// An exchange with the judges' queue, a queue of statuses for the test's own eyes, and an agent.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) folder: Folder,
    /// The broker itself, for the test.
    pub(crate) url: String,
    /// Which row of the matrix of faults this is, for the report.
    fault: Option<Fault>,
    /// How often the fault was made.
    runs: u32,
    /// Held open for the channel.
    pub(crate) connection: Connection,
    pub(crate) channel: Channel,
}

/// A status as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) run: String,
    pub(crate) seq: u64,
    pub(crate) data: Value,
}

impl Status {
    pub(crate) fn trouble(&self, part: &str) -> &str {
        self.data[part]["trouble"].as_str().unwrap_or_default()
    }

    pub(crate) fn counts(&self, counter: &str) -> u64 {
        self.data["delivery"][counter].as_u64().unwrap()
    }

    pub(crate) fn sent(&self, collector: &str) -> u64 {
        self.data["sent"][collector].as_u64().unwrap_or(0)
    }

    /// Messages of a collector that wait.
    pub(crate) fn waiting(&self, collector: &str) -> u64 {
        let ranges = self.data["waiting"].as_array().unwrap().iter();
        let of = ranges.filter(|range| range["collector"] == collector);
        of.map(|range| 1 + range["last_seq"].as_u64().unwrap() - range["first_seq"].as_u64().unwrap()).sum()
    }

    /// Whether all that an earlier status counts as sent is settled.
    pub(crate) fn has_settled(&self, earlier: &Self) -> bool {
        self.data["waiting"].as_array().unwrap().iter().all(|range| {
            range["run_id"] == earlier.run.as_str()
                && range["first_seq"].as_u64().unwrap() > earlier.sent(range["collector"].as_str().unwrap())
        })
    }
}

impl Scene {
    /// With the judges' queue and that of the statuses bound to `keys`.
    pub(crate) async fn new(name: &'static str, url: &str, keys: &[&str]) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let scene =
            Self { name, folder: Folder::new(name), url: url.to_owned(), fault: None, runs: 1, connection, channel };
        scene.make_exchange().await;
        scene.queue(name, FieldTable::default()).await;
        scene.queue(&scene.statuses(), FieldTable::default()).await;
        for key in keys {
            scene.bind(name, key).await;
        }
        scene.bind(&scene.statuses(), "agent_status").await;
        scene
    }

    /// Counts for this row of the matrix in the report.
    pub(crate) fn of(mut self, row: u32, fault: &'static str) -> Self {
        self.fault = Some(Fault { row, name: fault });
        self
    }

    /// How often the fault is made.
    pub(crate) fn times(mut self, runs: u32) -> Self {
        self.runs = runs;
        self
    }

    pub(crate) fn statuses(&self) -> String {
        format!("{}-statuses", self.name)
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path().join("spool")
    }

    pub(crate) async fn make_exchange(&self) {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let made = self.channel.exchange_declare(self.name.into(), ExchangeKind::Topic, durable, FieldTable::default());
        made.await.unwrap();
    }

    pub(crate) async fn queue(&self, name: &str, arguments: FieldTable) {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), durable, arguments).await.unwrap();
    }

    pub(crate) async fn bind(&self, queue: &str, key: &str) {
        let bind = QueueBindOptions::default();
        let bound = self.channel.queue_bind(queue.into(), self.name.into(), key.into(), bind, FieldTable::default());
        bound.await.unwrap();
    }

    pub(crate) async fn get(&self, queue: &str) -> Option<BasicGetMessage> {
        self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()
    }

    /// Messages in the judges' queue.
    pub(crate) async fn queued(&self) -> usize {
        let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let queue = self.channel.queue_declare(self.name.into(), passive, FieldTable::default()).await.unwrap();
        queue.message_count() as usize
    }

    /// The bodies of all messages that wait in the spool, in the order in which they were numbered.
    pub(crate) fn dump(&self) -> Vec<Value> {
        let dump = command(["spool", "dump", "--dir"]).arg(self.spool()).output().unwrap();
        let bodies = String::from_utf8(dump.stdout).unwrap();
        bodies.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Puts a message behind what the judges' queue holds, as it was published.
    pub(crate) async fn hand_on(&self, message: BasicGetMessage) {
        let (properties, body) = (message.delivery.properties, message.delivery.data);
        let publish = BasicPublishOptions::default();
        let published = self.channel.basic_publish("".into(), self.name.into(), publish, &body, properties);
        published.await.unwrap();
    }

    /// The configuration: intervals of 200 to 500 ms, the broker at `url`, and what the scene adds.
    pub(crate) fn config(&self, url: &str, more: &str) -> String {
        let mut config = format!(
            "
            agent.name = '{name}'
            agent.shutdown_timeout = '5s'
            postgres.url = '{}'
            amqp.url = '{url}'
            amqp.exchange = '{name}'
            publisher.batch_max_age = '50ms'
            retry = {{ initial = '50ms', max = '500ms' }}
            ",
            postgres::shared(18).url(Role::Agent),
            name = self.name,
        );
        let intervals = [
            ("pg_activity", 300),
            ("pg_statements", 350),
            ("pg_locks", 200),
            ("system_metrics", 250),
            ("agent_status", 400),
        ];
        for (collector, interval) in intervals {
            writeln!(config, "collectors.{collector}.interval = '{interval}ms'").unwrap();
        }
        if !more.contains("spool.dir") {
            writeln!(config, "spool.dir = '{}'\nspool.min_free = '1MiB'", self.spool().display()).unwrap();
        }
        config + more
    }

    pub(crate) fn start(&self, url: &str, more: &str) -> Agent {
        Agent::start(self.path(), &self.config(url, more))
    }

    /// The next status published for the first time: replayed ones tell of the past.
    pub(crate) async fn next_status(&self) -> Option<Status> {
        while let Some(message) = self.get(&self.statuses()).await {
            let headers = message.delivery.properties.headers().clone().unwrap_or_default();
            if headers.inner().get("replayed") == Some(&AMQPValue::Boolean(true)) {
                continue;
            }
            let mut body: Value = rmp_serde::from_slice(&message.delivery.data).unwrap();
            let (run, seq) = (body["run_id"].as_str().unwrap().to_owned(), body["seq"].as_u64().unwrap());
            return Some(Status { run, seq, data: body["events"][0]["data"].take() });
        }
        None
    }

    /// Waits for a status of which `holds` is true.
    #[track_caller]
    pub(crate) fn status(&self, what: &str, holds: impl Fn(&Status) -> bool) -> impl Future<Output = Status> {
        let caller = std::panic::Location::caller();
        async move {
            let (start, mut last) = (Instant::now(), None);
            loop {
                match self.next_status().await {
                    Some(status) if holds(&status) => return status,
                    Some(status) => last = Some(status),
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
                assert!(
                    start.elapsed() < BOUND,
                    "waited in vain: {what} ({caller}); last status: {last:#?}\n{}",
                    self.log()
                );
            }
        }
    }

    /// Waits until all that was numbered by now is settled.
    #[track_caller]
    pub(crate) fn all_delivered(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            while self.next_status().await.is_some() {}
            let begin = self.status(&format!("a status ({caller})"), |_| true).await;
            self.status(&format!("all is settled ({caller})"), |status| {
                (&status.run, status.seq) > (&begin.run, begin.seq) && status.has_settled(&begin)
            })
            .await;
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("agent.log")).unwrap_or_default()
    }

    /// Lets the agent deliver everything, stops it, and asks both judges. Returns what was declared lost, by collector.
    pub(crate) async fn end(self, agent: Agent) -> BTreeMap<String, u64> {
        self.finish(agent).await.0
    }

    /// As [`Scene::end`], and all that was received, by name: the queue is empty then.
    #[track_caller]
    pub(crate) fn finish(&self, agent: Agent) -> impl Future<Output = (BTreeMap<String, u64>, Evidence)> {
        let delivered = self.all_delivered();
        async move {
            delivered.await;
            let (status, took) = tokio::task::block_in_place(|| agent.stop(Duration::from_secs(20)));
            assert!(status.success(), "a clean stop, not {status}, after {took:?}\n{}", self.log());
            let declared = self.judge();
            let evidence = Evidence::of(self).await;
            if let Some(fault) = self.fault {
                report::tell(fault, self.runs, &evidence);
            }
            (declared, evidence)
        }
    }

    pub(crate) fn judge(&self) -> BTreeMap<String, u64> {
        let (tap, checker) =
            tokio::task::block_in_place(|| (audit(self.path(), self.name), check_at(&self.url, self.name)));
        assert!(tap.status.success(), "tap --audit: {}\n{}", told(&tap), self.log());
        assert!(checker.status.success(), "checker: {}\n{}", told(&checker), self.log());
        let (tap, checker) = (verdict(&tap), verdict(&checker));
        let (sum, total) = (&tap["audit"], &checker["total"]);
        println!("{}: tap: {sum}, checker: {total}", self.name);
        assert_eq!(checker["provable"], true);
        for name in ["gaps", "waiting", "conflicts"] {
            assert_eq!(sum[name], 0, "tap: {name}\n{}", self.log());
        }
        for name in ["missing", "waiting", "conflicts", "contradictions"] {
            assert_eq!(total[name], 0, "checker: {name}\n{}", self.log());
        }
        for name in ["messages", "duplicates"] {
            assert_eq!(sum[name], total[name], "the judges differ: {name}");
        }
        let mut declared = BTreeMap::new();
        for stream in checker["agents"][0]["streams"].as_array().unwrap() {
            let ranges = stream["declared"].as_array().unwrap().iter();
            let count: u64 = ranges.map(|pair| 1 + pair[1].as_u64().unwrap() - pair[0].as_u64().unwrap()).sum();
            if count > 0 {
                *declared.entry(stream["collector"].as_str().unwrap().to_owned()).or_default() += count;
            }
        }
        assert!(!self.log().contains("returned us a message"), "the library's log lines hold bodies");
        declared
    }
}

/// Declared of nothing.
pub(crate) fn nothing() -> BTreeMap<String, u64> {
    BTreeMap::new()
}

/// The same configuration with collectors that look about ten times a second.
pub(crate) fn fast(config: &str) -> String {
    let intervals =
        [("300ms", "110ms"), ("350ms", "120ms"), ("200ms", "100ms"), ("250ms", "105ms"), ("400ms", "130ms")];
    intervals.iter().fold(config.to_owned(), |config, (slow, fast)| {
        config.replace(&format!("interval = '{slow}'"), &format!("interval = '{fast}'"))
    })
}

/// Folders with such long paths that a sample of `system_metrics` that tells of all has more than `bytes`.
pub(crate) fn many_folders(base: &Path, bytes: usize) -> (PathBuf, String) {
    let base = base.join("many");
    let name = "n".repeat(200);
    let folder = |number: usize| (0..13).fold(base.join(format!("{number}")), |path, _| path.join(&name));
    let paths: Vec<PathBuf> = (0..=bytes / 2700).map(folder).collect();
    for path in &paths {
        fs::create_dir_all(path).unwrap();
    }
    (base, format!("collectors.system_metrics.disk_paths = {paths:?}\n"))
}

pub(crate) fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

pub(crate) fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(what) if what.is_dir() => bytes_below(&entry.path()),
            Ok(what) => what.len(),
            Err(_) => 0,
        })
        .sum()
}

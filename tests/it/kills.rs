//! The fault loop: the agent is killed with -9 again and again while the broker goes away and comes back.
//!
//! Afterwards two judges that share no code, `tap --audit` and `tests/checker.py`, must find nothing missing and
//! nothing declared lost; and both must find the one message that is then taken out of a copy of the queue.
//!
//! `POSTGRES_AGENT_KILLS=100` kills more often than CI does, `POSTGRES_AGENT_SEED` repeats the moments of an
//! earlier run (what the machine does in between is its own).

use std::{
    collections::HashMap,
    fmt::Write,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lapin::{
    options::{BasicAckOptions, BasicGetOptions, QueueBindOptions},
    types::FieldTable,
};
use serde_json::Value;

use crate::{
    faults::report::{self, Fault},
    rig::{
        Folder,
        agent::Agent,
        judges::{audit, check, told, verdict},
        postgres::{self, Role},
        rabbit::Broker,
        wait_for_async,
    },
};

const EXCHANGE: &str = "kills";
/// What the judges read.
const QUEUE: &str = "kills";
/// The same messages; one of them is taken away.
const COPY: &str = "kills-copy";
/// What the test itself watches.
const STATUSES: &str = "kills-statuses";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_and_no_outage_loses_a_message_and_both_judges_see_one_that_is_taken_away() {
    let kills: u32 = number_from("POSTGRES_AGENT_KILLS").unwrap_or(20);
    let seed = number_from("POSTGRES_AGENT_SEED").unwrap_or_else(now_ms);
    println!("{kills} kills, POSTGRES_AGENT_SEED={seed}");
    let (folder, broker) = (Folder::new("kills"), Broker::private());
    for queue in [QUEUE, COPY] {
        broker.durable_queue(queue, EXCHANGE).await;
    }
    watch_statuses(&broker).await;

    let config = config(&broker, folder.path());
    let outages = tokio::task::block_in_place(|| kill_in_outages(&broker, folder.path(), &config, kills, seed));
    let begin = now_ms();
    let last = Agent::start(folder.path(), &config);
    all_of_earlier_runs_is_delivered(&broker, begin).await;
    let (status, took) = last.stop(Duration::from_secs(20));
    assert!(status.success(), "a clean stop, not {status}, after {took:?}");

    let (tap, checker) = (audit(folder.path(), QUEUE), check(&broker, QUEUE));
    assert!(tap.status.success(), "tap --audit: {}", told(&tap));
    assert!(checker.status.success(), "checker: {}", told(&checker));
    let (tap, checker) = (verdict(&tap), verdict(&checker));
    let (sum, total) = (&tap["audit"], &checker["total"]);
    println!("{outages} outages, tap: {sum}, checker: {total}");
    assert_eq!(checker["provable"], true);
    for name in ["gaps", "declared", "waiting", "conflicts"] {
        assert_eq!(sum[name], 0, "tap: {name}");
    }
    for name in ["missing", "declared", "waiting", "conflicts", "contradictions"] {
        assert_eq!(total[name], 0, "checker: {name}");
    }
    for name in ["messages", "duplicates"] {
        assert_eq!(sum[name], total[name], "the judges differ: {name}");
    }
    assert!(outages > 0 && total["messages"].as_u64().unwrap() > u64::from(kills), "too quiet to prove anything");

    report::tell_counted(Fault { row: 1, name: "kill -9, broker stopped and killed" }, kills, total);

    let taken = take_one(&broker, seed).await;
    let (tap, checker) = (audit(folder.path(), COPY), check(&broker, COPY));
    assert_eq!(tap.status.code(), Some(1), "tap --audit without {taken}: {}", told(&tap));
    assert_eq!(checker.status.code(), Some(1), "checker without {taken}: {}", told(&checker));
    assert_eq!(verdict(&tap)["audit"]["gaps"], 1);
    assert_eq!(verdict(&checker)["total"]["missing"], 1);
}

/// Kills as often as asked, and until the broker was away at least twice. Returns how often it was.
fn kill_in_outages(broker: &Broker, folder: &Path, config: &str, kills: u32, seed: u64) -> u32 {
    let (done, outages) = (AtomicBool::new(false), AtomicU32::new(0));
    let (mut dice, mut weather) = (Dice::new(seed), Dice::new(!seed));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                thread::sleep(weather.between(500, 8000));
                let end = if weather.roll(2) == 0 { Broker::kill } else { Broker::stop };
                end(broker);
                outages.fetch_add(1, Ordering::Relaxed);
                thread::sleep(weather.between(0, 4000));
                broker.start();
            }
        });
        let mut killed = 0;
        while killed < kills || outages.load(Ordering::Relaxed) < 2 {
            let mut agent = Agent::start(folder, config);
            // Some die while they still read what the one before left.
            let lives = if dice.roll(4) == 0 { dice.between(0, 150) } else { dice.between(150, 2500) };
            let until = Instant::now() + lives;
            while Instant::now() < until {
                assert!(agent.ended().is_none(), "the agent ended by itself:\n{}", agent.log());
                thread::sleep(Duration::from_millis(5));
            }
            agent.kill();
            killed += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    outages.into_inner()
}

fn config(broker: &Broker, folder: &Path) -> String {
    let mut config = format!(
        "
        agent.name = 'kills'
        postgres.url = '{}'
        amqp = {{ url = '{}', exchange = '{EXCHANGE}' }}
        publisher.batch_max_age = '50ms'
        retry = {{ initial = '50ms', max = '500ms' }}
        spool = {{ dir = '{}', min_free = '1MiB' }}
        ",
        postgres::shared(18).url(Role::Agent),
        broker.url(),
        folder.join("spool").display(),
    );
    let intervals = [
        ("pg_activity", 200),
        ("pg_statements", 500),
        ("pg_locks", 250),
        ("system_metrics", 300),
        ("agent_status", 400),
    ];
    for (collector, interval) in intervals {
        writeln!(config, "collectors.{collector}.interval = '{interval}ms'").unwrap();
    }
    config
}

/// A queue of statuses only, for the test's own eyes.
async fn watch_statuses(broker: &Broker) {
    broker.durable_queue(STATUSES, "kills-unused").await;
    let (connection, channel) = broker.channel().await;
    let bind = QueueBindOptions::default();
    let bound =
        channel.queue_bind(STATUSES.into(), EXCHANGE.into(), "agent_status".into(), bind, FieldTable::default());
    bound.await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// Waits for a status of the run begun at `begin` by which nothing of an earlier run waits any more.
async fn all_of_earlier_runs_is_delivered(broker: &Broker, begin: u64) {
    let (_connection, channel) = broker.channel().await;
    wait_for_async("all of earlier runs is delivered", Duration::from_secs(60), async || {
        let get = BasicGetOptions { no_ack: true };
        let message = channel.basic_get(STATUSES.into(), get).await.unwrap()?;
        let message: Value = rmp_serde::from_slice(&message.delivery.data).unwrap();
        let run = message["run_id"].as_str().unwrap();
        // A run's id begins with its time, 48 bits of milliseconds: dead runs' statuses still come behind what is fresh.
        let begun = u64::from_str_radix(&run.replace('-', "")[..12], 16).unwrap();
        let waiting = message["events"][0]["data"]["waiting"].as_array().unwrap();
        (begun >= begin && waiting.iter().all(|range| range["run_id"] == run)).then_some(())
    })
    .await;
}

/// Takes one message for good out of the copy: one that came once and that the proof covers.
async fn take_one(broker: &Broker, seed: u64) -> String {
    let (connection, channel) = broker.channel().await;
    let mut deliveries = Vec::new();
    while let Some(message) = channel.basic_get(COPY.into(), BasicGetOptions::default()).await.unwrap() {
        let id = message.delivery.properties.message_id().as_ref().unwrap().to_string();
        deliveries.push((id, message.delivery.delivery_tag));
    }
    let mut times: HashMap<&str, u32> = HashMap::new();
    for (id, _) in &deliveries {
        *times.entry(id).or_default() += 1;
    }
    let statuses = deliveries.iter().map(|(id, _)| id.as_str()).filter(|id| id.contains("/agent_status/"));
    // Judged is what lies between the first status and the last one.
    let (first, last) = (statuses.clone().min_by_key(age), statuses.max_by_key(age));
    let covered = |id| times[id] == 1 && Some(id) != first && Some(id) != last;
    let candidates: Vec<&(String, u64)> = deliveries.iter().filter(|(id, _)| covered(id.as_str())).collect();
    let (id, tag) = candidates[usize::try_from(seed).unwrap() % candidates.len()];
    channel.basic_ack(*tag, BasicAckOptions::default()).await.unwrap();
    // The others go back into the queue.
    connection.close(200, "done".into()).await.unwrap();
    let left = u32::try_from(deliveries.len() - 1).unwrap();
    wait_for_async("the other messages are back in the queue", Duration::from_secs(20), async || {
        (broker.ready_messages(COPY).await == left).then_some(())
    })
    .await;
    id.clone()
}

/// Run and number out of an id: runs' ids begin with their time.
fn age<'a>(id: &&'a str) -> (&'a str, u64) {
    let (run, rest) = id.split_once('/').unwrap();
    (run, rest.rsplit('/').next().unwrap().parse().unwrap())
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

pub(crate) fn number_from<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, no number")))
}

/// Repeatable chance (xorshift64).
pub(crate) struct Dice(u64);

impl Dice {
    /// Seeds that differ little roll differently from the start.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    pub(crate) fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.roll(most - least))
    }
}

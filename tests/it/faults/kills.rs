//! The fault loop: the agent is killed with -9 again and again while the broker is killed, or stopped, and comes back. The
//! judged queues are quorum queues: what they confirm is on disk.
//!
//! Afterwards two judges that share no code, `tap --audit` and `tests/checker.py`, must find nothing missing and
//! nothing declared lost; and both must find the one message that is then taken out of a copy of the queue.
//!
//! `FAULT_KILLS=450 FAULT_BROKER_KILLS=50` kills more often than CI does, `FAULT_SEED` repeats the moments of an earlier
//! run (what the machine does in between is its own).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use lapin::{
    options::{BasicAckOptions, BasicGetOptions, QueueBindOptions},
    types::FieldTable,
};
use serde_json::Value;

use super::report::{self, Fault};
use crate::rig::{
    Folder,
    agent::Agent,
    chance::{Dice, now_ms, number_from},
    judges::{audit, check, told, verdict},
    postgres::{self, Role},
    rabbit::Broker,
    wait_for_async,
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
    let kills: u32 = number_from("FAULT_KILLS").unwrap_or(20);
    let broker_kills: u32 = number_from("FAULT_BROKER_KILLS").unwrap_or(2);
    let seed = number_from("FAULT_SEED").unwrap_or_else(now_ms);
    println!("{kills} kills, {broker_kills} of the broker, FAULT_SEED={seed}");
    let (folder, broker) = (Folder::new("kills"), Broker::private());
    for queue in [QUEUE, COPY] {
        broker.quorum_queue(queue, EXCHANGE).await;
    }
    watch_statuses(&broker).await;

    let config = config(&broker, folder.path());
    let outages =
        tokio::task::block_in_place(|| kill_in_outages(&broker, folder.path(), &config, (kills, broker_kills), seed));
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

    let twice = by_run(&broker).await;
    println!(
        "figure: duplicates for each kill: median {}, p99 {}, max {}",
        at(&twice, 50),
        at(&twice, 99),
        at(&twice, 100)
    );
    // What was in flight, and a second's confirms.
    assert!(at(&twice, 100) <= 256 + 64, "{twice:?}");
    report::tell_counted(Fault { row: 1, name: "agent killed" }, kills, total);
    report::tell_counted(Fault { row: 24, name: "broker killed, quorum queue" }, broker_kills, total);

    let taken = take_one(&broker, seed).await;
    let (tap, checker) = (audit(folder.path(), COPY), check(&broker, COPY));
    assert_eq!(tap.status.code(), Some(1), "tap --audit without {taken}: {}", told(&tap));
    assert_eq!(checker.status.code(), Some(1), "checker without {taken}: {}", told(&checker));
    assert_eq!(verdict(&tap)["audit"]["gaps"], 1);
    assert_eq!(verdict(&checker)["total"]["missing"], 1);
}

/// Kills agent and broker as often as asked. Returns how often the broker was away.
fn kill_in_outages(broker: &Broker, folder: &Path, config: &str, (kills, broker_kills): (u32, u32), seed: u64) -> u32 {
    let (done, outages, broken) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let (mut dice, mut weather) = (Dice::new(seed), Dice::new(!seed));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                thread::sleep(weather.between(500, 8000));
                if weather.roll(4) == 0 {
                    broker.stop();
                } else {
                    broker.kill();
                    broken.fetch_add(1, Ordering::Relaxed);
                }
                outages.fetch_add(1, Ordering::Relaxed);
                thread::sleep(weather.between(0, 4000));
                broker.start();
            }
        });
        let mut killed = 0;
        while killed < kills || broken.load(Ordering::Relaxed) < broker_kills {
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
    wait_for_async("all of earlier runs is delivered", Duration::from_secs(120), async || {
        let get = async || channel.basic_get(STATUSES.into(), BasicGetOptions { no_ack: true }).await.unwrap();
        while let Some(message) = get().await {
            let message: Value = rmp_serde::from_slice(&message.delivery.data).unwrap();
            let run = message["run_id"].as_str().unwrap();
            // A run's id begins with its time, 48 bits of milliseconds: dead runs' statuses still come behind what is fresh.
            let begun = u64::from_str_radix(&run.replace('-', "")[..12], 16).unwrap();
            let waiting = message["events"][0]["data"]["waiting"].as_array().unwrap();
            if begun >= begin && waiting.iter().all(|range| range["run_id"] == run) {
                return Some(());
            }
        }
        None
    })
    .await;
}

/// Deliveries beyond the first of each run's messages, sorted: each run but the last ended with a kill.
async fn by_run(broker: &Broker) -> Vec<u32> {
    let (connection, channel) = broker.channel().await;
    let mut runs: BTreeMap<String, (u32, HashSet<String>)> = BTreeMap::new();
    while let Some(message) = channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
        let id = message.delivery.properties.message_id().as_ref().unwrap().to_string();
        let run = runs.entry(id.split('/').next().unwrap().to_owned()).or_default();
        run.0 += u32::from(!run.1.insert(id));
    }
    connection.close(200, "done".into()).await.unwrap();
    let mut twice: Vec<u32> = runs.into_values().map(|(twice, _)| twice).collect();
    twice.sort_unstable();
    twice
}

/// The value below which so many of a hundred lie.
fn at(sorted: &[u32], percent: usize) -> u32 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
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

//! What the agent costs its disk, and how soon it speaks with a gibibyte waiting.
//!
//! CI runs short versions. `FAULT_MINUTES=10` measures health at the default intervals for so long,
//! `FAULT_BACKLOG_MIB=1024` a restart with so much waiting.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use lapin::{
    BasicProperties, Channel,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use postgres_agent::{
    collectors, config,
    spool::{Draft, Spool},
};
use serde_json::{Value, json};

use super::scene::{BOUND, Scene, nothing, rss};
use crate::rig::{
    agent::Agent,
    chance::number_from,
    disk::{Disk, under_log},
    must,
    rabbit::{self, Broker},
    wait_for, wait_for_async,
};

/// The scene's configuration with other intervals and nothing else that hurries.
fn at_intervals(config: &str, seconds: u64) -> String {
    let hurries = |line: &&str| !line.trim().starts_with("collectors.") && !line.contains("batch_max_age");
    let calm: Vec<&str> = config.lines().filter(hurries).collect();
    let mut intervals =
        ["pg_activity", "pg_statements", "pg_locks", "system_metrics"].map(|name| (name, seconds)).to_vec();
    intervals.push(("agent_status", seconds / 2));
    let intervals: Vec<_> =
        intervals.iter().map(|(name, seconds)| format!("collectors.{name}.interval = '{seconds}s'\n")).collect();
    format!("{}\n{}", calm.join("\n"), intervals.concat())
}

/// Everything that the kernel still holds back is on the disk, so that its counters tell all.
fn write_out(disk: &Disk) {
    must(Command::new("sync").arg("--file-system").arg(disk.path()));
}

/// Persistent messages as fast as they are confirmed, and how long each confirm took.
async fn other_load(channel: Channel, queue: String) -> Vec<Duration> {
    let mut took = Vec::new();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let body = vec![7; 4096];
    loop {
        let start = Instant::now();
        let publish = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), queue.as_str().into(), publish, &body, persistent.clone()).await;
        let Ok(confirm) = sent else { return took };
        if confirm.await.is_err() {
            return took;
        }
        took.push(start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_agent_costs_its_disk_one_sync_and_64_kib_a_minute() {
    // In CI ten times as fast, and ten times the budget: half a minute stands for five.
    let full: Option<u64> = number_from("FAULT_MINUTES");
    let (minutes, seconds, interval) = full.map_or((5, 30, 6), |minutes| (minutes, minutes * 60, 60));
    let Some(disk) = Disk::ext4("health", 32 << 20) else { return };
    let broker = tokio::task::block_in_place(Broker::private);
    let scene = Scene::new("health", &broker.url(), &["#"]).await;
    let log = scene.path().join("calls");
    let Some(under) = under_log("fdatasync,fsync", &log) else { return };
    let dir = format!("spool.dir = '{}'\nspool.min_free = '1MiB'\n", disk.path().join("spool").display());
    let agent = Agent::start_under(&under, scene.path(), &at_intervals(&scene.config(&broker.url(), &dir), interval));
    scene.status("it flows", |status| status.counts("confirmed") >= 5).await;

    let mut small = FieldTable::default();
    small.insert("x-max-length".into(), AMQPValue::LongInt(10));
    scene.queue("health-load", small).await;
    let (connection, channel) = broker.channel().await;
    let load = tokio::spawn(other_load(channel, "health-load".to_owned()));
    let syncs = || fs::read_to_string(&log).unwrap().matches("sync(").count();
    write_out(&disk);
    let (before, synced) = (disk.written(), syncs());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    write_out(&disk);
    let (after, synced) = (disk.written(), syncs() - synced);
    connection.close(200, "done".into()).await.unwrap();
    let mut took = load.await.unwrap();
    took.sort();
    let bytes = after.bytes - before.bytes;
    println!(
        "figure: health: {minutes} minutes: {synced} syncs, {bytes} bytes ({} a minute), {} flushes; p99 of {} other confirms {:?}",
        bytes / minutes,
        after.flushes - before.flushes,
        took.len(),
        took.get(took.len() * 99 / 100)
    );
    assert!(synced as u64 <= minutes, "{synced} syncs in {minutes} minutes");
    assert!(bytes <= minutes * (64 << 10), "{bytes} bytes in {minutes} minutes");
    assert_eq!(scene.end(agent).await, nothing());
}

/// A folder that a killed agent left: so many mebibytes of one collector's messages.
fn leave_behind(folder: &Path, config: &str, mebibytes: usize) {
    let file = folder.join("left.toml");
    fs::write(&file, config).unwrap();
    let config = config::load(Some(&file)).unwrap().config;
    let spool = Spool::open(config.spool, collectors::by_importance()).unwrap();
    let (run, agent) = (spool.run_id.to_string(), spool.agent.to_string());
    let mut event: Value = serde_json::from_str(include_str!("../../../schemas/golden/pg_locks.json")).unwrap();
    let padding = "x".repeat(256 << 10);
    for _ in 0..mebibytes * 4 {
        let draft = Draft { collector: "pg_locks", events: 1, version: 1, zstd: false };
        let numbered = spool.number(draft, |seq| {
            event["run_id"] = json!(run);
            event["agent_id"] = json!(agent);
            event["seq"] = json!(seq);
            event["labels"] = json!({ "padding": padding });
            Ok(rmp_serde::to_vec_named(&event).unwrap())
        });
        numbered.unwrap();
    }
    // Long enough ago that all is synced, and full segments have their footers.
    wait_for("all is synced", BOUND, || {
        spool.keep();
        spool.next_duty().is_none_or(|at| at > Instant::now())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_backlog_of_any_size_a_new_agent_speaks_at_once_in_constant_memory() {
    let mebibytes: Option<usize> = number_from("FAULT_BACKLOG_MIB");
    let broker = rabbit::shared();
    let keys = ["pg_activity", "pg_statements", "system_metrics", "agent_status"];
    let scene = Scene::new("restart", &broker.url(), &keys).await;
    // The collector whose backlog it is stays silent: what comes of it is old.
    let config = scene.config(&broker.url(), "spool.max_bytes = '4GiB'\ncollectors.pg_locks.enabled = false\n");
    let config = config.replace("collectors.pg_locks.interval = '200ms'\n", "");
    tokio::task::block_in_place(|| leave_behind(scene.path(), &config, mebibytes.unwrap_or(32)));
    let mut took = Vec::new();
    for _ in 0..5 {
        while scene.next_status().await.is_some() {}
        let start = Instant::now();
        let agent = Agent::start(scene.path(), &config);
        wait_for_async("its first status", BOUND, async || scene.next_status().await).await;
        took.push((start.elapsed(), rss(agent.pid()) >> 10));
        agent.kill();
    }
    took.sort();
    println!(
        "figure: restart with {} MiB waiting: first fresh message and KiB of memory: {took:?}",
        mebibytes.unwrap_or(32)
    );
    if mebibytes.is_some() {
        // That much is no use in a queue.
        return;
    }
    scene.bind("restart", "pg_locks").await;
    let agent = Agent::start(scene.path(), &config);
    let declared: BTreeMap<String, u64> = scene.end(agent).await;
    assert_eq!(declared, nothing());
}

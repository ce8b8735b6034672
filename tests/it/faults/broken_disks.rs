//! Disks that fail to sync, to read, that are interrupted or slow: what can be saved is saved, what is lost is named, and
//! nobody waits for the disk.

use std::{collections::BTreeSet, path::PathBuf};

use jiff::SignedDuration;

use super::{
    layout::{COLLECTORS, segments, waits},
    scene::{BOUND, Scene, nothing, rss},
};
use crate::rig::{
    agent::Agent,
    disk::{Disk, Tampering, under_boot, under_strace},
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// Two seconds and more of messages wait on a disk that cannot be synced for a moment, or from then on; then the power
/// fails.
async fn a_sync_fails(name: &'static str, fault: &'static str, always: bool) {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new(name, &broker.url(), &["#"]).await.of(17, fault);
    let Some(disk) = Disk::ext4(name, 16 << 20) else { return };
    let config = |disk: &Disk| format!("spool.dir = '{}'\nspool.min_free = '0'\n", disk.path().join("spool").display());
    let Some(boot) = under_boot(scene.path(), 1) else { return };
    let agent = scene.start(&line.url(), &config(&disk));
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let Some(tampering) = Tampering::with(agent.pid(), "fdatasync:error=EIO", &[]) else { return };
    line.set(Line::Cut);
    wait_for("it tells that what waits is not safe", BOUND, || scene.log().contains("may not survive a power cut"));
    if always {
        wait_for("it tries again", BOUND, || tampering.times() > 8);
        line.set(Line::Open);
        let begin = scene.status("it is told", |status| status.trouble("spool").contains("cannot sync")).await;
        scene.status("it flows all the same", |status| status.has_settled(&begin)).await;
        line.set(Line::Cut);
    }
    tokio::task::block_in_place(|| drop(tampering));
    wait_for("what waits is safe again", BOUND, || scene.log().contains("is safe again"));
    let cut = tokio::task::block_in_place(|| disk.power_cut());
    agent.kill();
    line.set(Line::Open);
    let agent = Agent::start_under(&boot, scene.path(), &scene.config(&line.url(), &config(&cut)));
    let (_, evidence) = scene.finish(agent).await;
    assert!(evidence.reasons().is_subset(&BTreeSet::from(["power"])), "{:?}", evidence.reasons());
    // Written anew and synced, all of it was there: gone is only what came in the last second.
    let young = evidence.gone().count();
    assert!(young <= 40, "{young} are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_failed_sync_left_in_doubt_is_written_anew_and_survives_a_power_cut() {
    a_sync_fails("sync-once", "EIO on fdatasync, then a power cut", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_no_sync_succeeds_everything_flows_and_each_status_says_so() {
    a_sync_fails("sync-always", "EIO on every fdatasync", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_backlog_that_cannot_be_read_for_a_while_nothing_is_lost() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("unreadable", &broker.url(), &["#"]).await.of(18, "EIO on reading the backlog");
    let agent = scene.start(&line.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    line.set(Line::Cut);
    wait_for("a backlog", BOUND, || waits(&scene.spool(), "pg_locks") > 10);
    let files: Vec<PathBuf> = segments(&scene.spool(), "pg_locks");
    let Some(tampering) = Tampering::with(agent.pid(), "pread64:error=EIO", &files) else { return };
    line.set(Line::Open);
    let told = scene.status("it tells what it cannot read, and the others flow", |status| {
        status.trouble("spool").contains("cannot read pg_locks") && status.waiting("pg_activity") <= 2
    });
    let told = told.await;
    assert_eq!(told.data["lost"], serde_json::Value::Array(Vec::new()), "what may be read later is not lost");
    assert!(told.waiting("pg_locks") > 10);
    assert!(tampering.times() > 0);
    tokio::task::block_in_place(|| drop(tampering));
    scene.status("it can be read", |status| status.trouble("spool").is_empty()).await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_interrupted_are_made_again_and_nobody_notices() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("interrupted", &broker.url(), &["#"]).await.of(19, "EINTR on every other call");
    // Every other one, in each thread.
    let calls = "pwrite64,pread64,fdatasync,fsync,ftruncate:error=EINTR:when=1+2";
    let agent = scene.start(&line.url(), "");
    let Some(tampering) = Tampering::with(agent.pid(), calls, &[]) else { return };
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    line.set(Line::Cut);
    wait_for("a backlog", BOUND, || waits(&scene.spool(), "pg_locks") > 10);
    agent.kill();
    assert!(tampering.times() > 20, "{} calls were interrupted", tampering.times());
    tokio::task::block_in_place(|| drop(tampering));
    line.set(Line::Open);
    let mut files = vec![scene.spool().join("mark")];
    files.extend(COLLECTORS.iter().flat_map(|collector| segments(&scene.spool(), collector)));
    let Some(under) = under_strace(calls, &files) else { return };
    let agent = Agent::start_under(&under, scene.path(), &scene.config(&line.url(), ""));
    scene.status("the backlog flows", |status| status.counts("confirmed") > 40).await;
    assert!(!scene.log().contains("Interrupted"), "{}", scene.log());
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_five_seconds_to_sync_holds_up_nobody() {
    const TOO_LONG: SignedDuration = SignedDuration::from_millis(2500);
    let broker = rabbit::shared();
    // What no queue wants waits, and what waits is synced: again and again.
    let keys = ["pg_activity", "pg_statements", "system_metrics", "agent_status"];
    let scene = Scene::new("slow-sync", &broker.url(), &keys).await.of(20, "5 s for each fdatasync");
    let agent = scene.start(&broker.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 20).await;
    let memory = rss(agent.pid());
    let Some(tampering) = Tampering::with(agent.pid(), "fdatasync:delay_enter=5s", &[]) else { return };
    wait_for("it synced three times", BOUND, || tampering.times() >= 3);
    let grown = rss(agent.pid()).saturating_sub(memory);
    assert!(grown < 4 << 20, "memory grew by {grown} bytes");
    tokio::task::block_in_place(|| drop(tampering));
    scene.bind("slow-sync", "pg_locks").await;
    let (declared, evidence) = scene.finish(agent).await;
    assert_eq!(declared, nothing());
    let times: Vec<_> = evidence.statuses.values().map(|told| told.at).collect();
    let longest = times.windows(2).map(|pair| pair[1].duration_since(pair[0])).max().unwrap();
    println!("slow-sync: {} statuses, at most {longest:?} apart; memory grew by {grown} bytes", times.len());
    // They come each 400 ms; a collector that waited for the disk would be five seconds late.
    assert!(longest < TOO_LONG, "{longest:?} without a status");
}

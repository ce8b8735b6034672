//! Disks that take nothing more: the agent publishes from memory, says so, loses only what is unconfirmed when the
//! connection or the agent ends, and writes again as soon as it can.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    layout::waits,
    scene::{BOUND, Scene, many_folders, nothing},
};
use crate::rig::{
    disk::{Disk, Tampering},
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// The disk answers each write so for a while, and then is well again.
async fn a_disk_refuses(name: &'static str, fault: (u32, &'static str), inject: &str, says: &str, only_the_mark: bool) {
    let broker = rabbit::shared();
    let scene = Scene::new(name, &broker.url(), &["#"]).await.of(fault.0, fault.1);
    let agent = scene.start(&broker.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let files = if only_the_mark { vec![scene.spool().join("mark")] } else { Vec::new() };
    let Some(tampering) = Tampering::with(agent.pid(), inject, &files) else { return };
    let begin = scene.status("it tells of the disk", |status| !status.trouble("spool").is_empty()).await;
    assert!(begin.trouble("spool").contains(says), "{}", begin.trouble("spool"));
    let flows = scene.status("it flows from memory", |status| {
        status.has_settled(&begin) && status.sent("pg_locks") > begin.sent("pg_locks") + 8
    });
    let flows = flows.await;
    assert_eq!(flows.data["lost"], serde_json::Value::Array(Vec::new()), "nothing is lost while the broker is there");
    assert!(!flows.trouble("spool").is_empty(), "it is told all the while");
    assert!(tampering.times() > 10, "{} false answers", tampering.times());
    tokio::task::block_in_place(|| drop(tampering));
    scene.status("the disk is written again", |status| status.trouble("spool").is_empty()).await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_published_past_and_heals() {
    a_disk_refuses("enospc", (15, "ENOSPC on each write"), "pwrite64:error=ENOSPC", "No space left on device", false)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_quota_is_published_past_and_heals() {
    a_disk_refuses("edquot", (16, "EDQUOT on each write"), "pwrite64:error=EDQUOT", "quota exceeded", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_became_read_only_is_published_past_and_heals() {
    let calls = "pwrite64,ftruncate,fsync,fdatasync,unlink,rename,mkdir:error=EROFS";
    a_disk_refuses("erofs", (16, "EROFS on everything"), calls, "Read-only file system", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_cannot_be_written_stops_nothing_and_heals() {
    a_disk_refuses("mark-enospc", (15, "ENOSPC at the mark"), "pwrite64:error=ENOSPC", "No space left on device", true)
        .await;
}

/// Takes every name that a file system has left, and gives them back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn in_disk(disk: &Disk) -> Self {
        let folder = disk.path().join("filler");
        fs::create_dir(&folder).unwrap();
        let full = (0..10_000).find_map(|number| fs::write(folder.join(number.to_string()), "").err());
        assert_eq!(full.expect("names are few").kind(), std::io::ErrorKind::StorageFull);
        Self(folder)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_name_for_its_next_segment_a_log_goes_on_in_memory_and_loses_nothing() {
    let broker = rabbit::shared();
    let keys = ["pg_activity", "pg_statements", "pg_locks", "agent_status"];
    let scene = Scene::new("no-names", &broker.url(), &keys).await.of(15, "no name for the next segment");
    let Some(disk) = Disk::memory("no-names", 16 << 20) else { return };
    let (_, many) = many_folders(scene.path(), 100_000);
    let dir = disk.path().join("spool");
    let config = format!(
        "{many}spool.dir = '{}'\nspool.min_free = '0'\nspool.max_bytes = '8MiB'\nspool.segment_bytes = '256KiB'\n",
        dir.display()
    );
    let agent = scene.start(&broker.url(), &config);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let filler = Filler::in_disk(&disk);
    // No queue wants system_metrics: its log grows beyond its segment.
    let told = scene.status("it tells of the disk", |status| !status.trouble("spool").is_empty()).await;
    assert!(told.trouble("spool").contains("No space left on device"), "{}", told.trouble("spool"));
    drop(filler);
    let healed = scene.status("the disk is written again", |status| status.trouble("spool").is_empty()).await;
    assert_eq!(healed.data["lost"], serde_json::Value::Array(Vec::new()), "all of it fits into memory");
    scene.bind("no-names", "system_metrics").await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_memory_held_when_the_agent_was_killed_is_declared_by_the_next_one() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("full-killed", &broker.url(), &["#"]).await.of(15, "disk full and kill -9");
    let Some(disk) = Disk::memory("full-killed", 2 << 20) else { return };
    let config = format!("spool.dir = '{}'\nspool.min_free = '0'\n", disk.path().join("spool").display());
    let agent = scene.start(&line.url(), &config);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; 4 << 20]).expect_err("2 MiB take no 4");
    scene.status("it tells of the full disk", |status| !status.trouble("spool").is_empty()).await;
    scene.all_delivered().await;
    // Whatever is published from now on is confirmed to nobody.
    line.set(Line::Dead);
    tokio::time::sleep(Duration::from_secs(2)).await;
    agent.kill();
    fs::remove_file(filler).unwrap();
    drop(line);
    let agent = scene.start(&broker.url(), &config);
    let (declared, evidence) = scene.finish(agent).await;
    assert!(!declared.is_empty() && evidence.gone().count() > 5, "they were in memory only: {declared:?}");
    assert_eq!(Vec::from_iter(evidence.reasons()), ["disk_full"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_is_evicted_just_what_waited_is_declared() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("evicted-exactly", &broker.url(), &["#"]).await;
    let (_, many) = many_folders(scene.path(), 100_000);
    let config = format!("{many}spool.max_bytes = '4MiB'\nspool.segment_bytes = '1MiB'\n");
    let agent = scene.start(&line.url(), &config);
    // The segment that will be evicted begins with messages that were delivered.
    let mut begin = scene.status("it flows", |status| status.sent("system_metrics") > 3).await;
    line.set(Line::Cut);
    wait_for("something waits", BOUND, || waits(&scene.spool(), "system_metrics") > 2);
    line.set(Line::Open);
    begin = scene.status("it is settled", |status| status.has_settled(&begin) && status.seq > begin.seq + 2).await;
    line.set(Line::Cut);
    wait_for("segments are dropped", BOUND, || scene.log().matches("Evicted").count() >= 3);
    line.set(Line::Open);
    let (declared, evidence) = scene.finish(agent).await;
    assert_eq!(declared.keys().collect::<Vec<_>>(), ["system_metrics"], "{declared:?}");
    assert_eq!(Vec::from_iter(evidence.reasons()), ["evicted"]);
    let known = begin.sent("system_metrics").saturating_sub(begin.waiting("system_metrics"));
    for (_, collector, seq) in evidence.declared.keys() {
        assert!(*seq > known, "{collector}/{seq} is declared, and up to {known} all was confirmed");
    }
    // What was in flight when the line was cut may have arrived.
    let arrived = evidence.declared.len() - evidence.gone().count();
    assert!(arrived <= 3, "{arrived} of {} are declared and arrived", evidence.declared.len());
}

/// Whatever reports of a file system say: ext4 stops all writing after an error of its own.
fn abort(disk: &Path) -> bool {
    let abort = std::process::Command::new("mount").args(["-o", "remount,abort"]).arg(disk).output();
    abort.is_ok_and(|output| output.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_shuts_itself_down_costs_nothing_while_the_broker_is_there() {
    let broker = rabbit::shared();
    let scene = Scene::new("aborted", &broker.url(), &["#"]).await.of(16, "ext4 shuts itself down");
    let Some(disk) = Disk::ext4("aborted", 16 << 20) else { return };
    let config = format!("spool.dir = '{}'\nspool.min_free = '0'\n", disk.path().join("spool").display());
    let agent = scene.start(&broker.url(), &config);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    assert!(abort(disk.path()), "ext4 can be told to");
    let begin = scene.status("it tells of the disk", |status| !status.trouble("spool").is_empty()).await;
    let flows = scene.status("it flows from memory", |status| {
        status.has_settled(&begin) && status.sent("pg_locks") > begin.sent("pg_locks") + 8
    });
    assert_eq!(flows.await.data["lost"], serde_json::Value::Array(Vec::new()));
    let log = || scene.log();
    wait_for("the log says what is wrong", BOUND, || log().contains("publishes from memory"));
    assert_eq!(scene.end(agent).await, nothing());
}

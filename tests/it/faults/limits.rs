//! Limits of the system around the agent, and secrets that are not where they should be: it runs, or says clearly why not.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use super::{
    layout::{COLLECTORS, waits},
    scene::{BOUND, Scene, many_folders, nothing},
};
use crate::rig::{
    agent::Agent,
    disk::{Group, under_limit},
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// Runs through an outage of the broker and a kill under a limit, and delivers everything.
async fn runs_under(name: &'static str, limit: &'static str, under: &[String]) {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new(name, &broker.url(), &["#"]).await.of(50, limit);
    let config = scene.config(&line.url(), "");
    let agent = Agent::start_under(under, scene.path(), &config);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    line.set(Line::Cut);
    let spool = scene.spool();
    wait_for("a backlog of every log", BOUND, || COLLECTORS.iter().all(|name| waits(&spool, name) >= 3));
    agent.kill();
    line.set(Line::Open);
    let agent = Agent::start_under(under, scene.path(), &config);
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_descriptors_are_enough() {
    let Some(under) = under_limit("nofile=64") else { return };
    runs_under("nofile", "64 descriptors", &under).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_of_address_space_is_enough() {
    let Some(under) = under_limit("as=1073741824") else { return };
    runs_under("address-space", "1 GiB of address space", &under).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_of_memory_are_enough() {
    let Some(group) = Group::new("memory", "memory.limit_in_bytes", "67108864") else { return };
    runs_under("memory", "64 MiB of memory", &group.under()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_threads_are_enough() {
    let Some(group) = Group::new("pids", "pids.max", "16") else { return };
    runs_under("pids", "16 threads", &group.under()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_too_few_descriptors_it_says_so_and_the_next_one_delivers() {
    let Some(under) = under_limit("nofile=20") else { return };
    let broker = rabbit::shared();
    let scene = Scene::new("few-files", &broker.url(), &["#"]).await.of(50, "20 descriptors");
    let mut agent = Agent::start_under(&under, scene.path(), &scene.config(&broker.url(), ""));
    wait_for("it says what it has too few of", BOUND, || scene.log().contains("Too many open files"));
    assert!(agent.ended().is_none(), "{}", scene.log());
    agent.kill();
    let agent = scene.start(&broker.url(), "");
    let (_, evidence) = scene.finish(agent).await;
    // What got no file was in memory only.
    assert!(evidence.reasons().is_subset(&BTreeSet::from(["disk_full"])), "{:?}", evidence.reasons());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_grow_are_a_full_disk_and_end_nobody() {
    // Enough for the mark, and for a few records of 100 kB.
    let Some(under) = under_limit("fsize=655360") else { return };
    let broker = rabbit::shared();
    let keys = ["pg_activity", "pg_statements", "pg_locks", "agent_status"];
    let scene = Scene::new("file-size", &broker.url(), &keys).await.of(15, "RLIMIT_FSIZE");
    let (_, many) = many_folders(scene.path(), 100_000);
    let mut agent = Agent::start_under(&under, scene.path(), &scene.config(&broker.url(), &many));
    let told = scene.status("it tells of the disk", |status| !status.trouble("spool").is_empty()).await;
    assert!(told.trouble("spool").contains("File too large"), "{}", told.trouble("spool"));
    assert!(agent.ended().is_none());
    scene.bind("file-size", "system_metrics").await;
    scene.status("it is written again", |status| status.trouble("spool").is_empty()).await;
    assert_eq!(scene.end(agent).await, nothing());
}

/// Starts an agent with a secret that it cannot have, and returns what it said.
fn refused(scene: &Scene, more: &str) -> String {
    let mut agent = scene.start("amqp://guest@127.0.0.1:1", more);
    let mut status = None;
    wait_for("it ends", BOUND, || {
        status = agent.ended();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(78), "{}", scene.log());
    scene.log()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_not_there_at_the_start_is_a_bad_configuration() {
    let broker = rabbit::shared();
    let scene = Scene::new("no-secret", &broker.url(), &["#"]).await;
    let secret = scene.path().join("secret");
    let said = refused(&scene, &format!("amqp.password_file = '{}'", secret.display()));
    assert_eq!(said.lines().filter(|line| line.contains("amqp.password_file")).count(), 1, "{said}");
    assert!(said.contains(secret.to_str().unwrap()) && said.contains("No such file"), "{said}");

    // A folder, no text, and for others than root one without the right.
    fs::create_dir(&secret).unwrap();
    assert!(refused(&scene, &format!("amqp.password_file = '{}'", secret.display())).contains("Is a directory"));
    fs::remove_dir(&secret).unwrap();
    fs::write(&secret, b"hunter2\xff\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let said = refused(&scene, &format!("amqp.password_file = '{}'", secret.display()));
    assert!(said.contains("UTF-8") && !said.contains("hunter2"), "{said}");
}

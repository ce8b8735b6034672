//! Faults of the database: down, restarting, full, hanging, with locked catalogs, with texts of a megabyte. The stream goes on
//! without what cannot be looked at, says so, and heals by itself.

use std::{process::Child, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use super::scene::{BOUND, Scene, Status, nothing, rss};
use crate::rig::{
    agent::Agent,
    postgres::{Role, Server, Stop},
    rabbit, wait_for,
};

const OF_THE_DATABASE: [&str; 3] = ["pg_activity", "pg_statements", "pg_locks"];

/// An agent beside a server of its own.
async fn beside(name: &'static str, fault: (u32, &'static str), settings: &str, more: &str) -> (Scene, Server, Agent) {
    let server = tokio::task::block_in_place(|| Server::with_settings(18, settings));
    let scene = Scene::new(name, &rabbit::shared().url(), &["#"]).await.of(fault.0, fault.1);
    let own = |line: &str| line.trim().starts_with("postgres.url");
    let config = scene.config(&rabbit::shared().url(), more);
    let config: Vec<&str> = config.lines().filter(|line| !own(line)).collect();
    let url = format!("postgres.url = '{}?connect_timeout=2'\n", server.url(Role::Agent));
    let agent = Agent::start(scene.path(), &(url + &config.join("\n")));
    scene.status("all is well", |status| well(status) && status.counts("confirmed") > 5).await;
    (scene, server, agent)
}

fn state<'a>(status: &'a Status, collector: &str) -> &'a Value {
    &status.data["collectors"][collector]["state"]
}

fn well(status: &Status) -> bool {
    OF_THE_DATABASE.iter().all(|name| state(status, name) == "ok")
}

fn fails(status: &Status) -> bool {
    OF_THE_DATABASE.iter().all(|name| state(status, name) == "failing")
}

/// While the database is in trouble everything else flows, and afterwards all is as before.
async fn the_rest_flows(scene: &Scene) {
    let begin = scene.status("a status", |_| true).await;
    let flows = |status: &Status| {
        ["system_metrics", "agent_status"].iter().all(|name| status.sent(name) > begin.sent(name) + 3)
            && status.counts("confirmed") > begin.counts("confirmed") + 6
    };
    let status = scene.status("the rest flows", flows).await;
    assert_eq!(status.counts("reconnects"), 0, "the way to the broker is not concerned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_stops_and_restarts_costs_the_stream_nothing_else() {
    let (scene, server, agent) = beside("db-down", (44, "stopped, restarted, crashed"), "", "").await;
    for how in [Stop::Fast, Stop::Immediate] {
        tokio::task::block_in_place(|| server.stop(how));
        scene.status("each collector says that it fails", fails).await;
        the_rest_flows(&scene).await;
        tokio::task::block_in_place(|| server.start());
        scene.status("it heals", well).await;
    }
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_a_free_connection_is_told_and_asked_again() {
    let settings = "max_connections = 12\nsuperuser_reserved_connections = 2\n";
    let (scene, server, agent) = beside("db-full", (44, "too many connections"), settings, "").await;
    let mut sessions = Vec::new();
    // Until others have all places: the agent's own connections are ended whenever it was quicker.
    let agents =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'postgres-agent'";
    let start = std::time::Instant::now();
    loop {
        let mut config: tokio_postgres::Config = server.url(Role::Agent).parse().unwrap();
        match config.application_name("crowd").connect(tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                sessions.push(client);
            }
            Err(_) if tokio::task::block_in_place(|| server.sql(agents)) == "0" => break,
            Err(_) => {}
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: others have all places");
    }
    let full = |status: &Status| {
        OF_THE_DATABASE.iter().any(|name| status.data["collectors"][name]["reason"].to_string().contains("connection"))
    };
    scene.status("it says why", full).await;
    the_rest_flows(&scene).await;
    sessions.clear();
    scene.status("it heals", well).await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_costs_its_own_looks_only() {
    let more = "postgres.statement_timeout = '1s'\n";
    let (scene, server, agent) = beside("db-hangs", (45, "postmaster and backends stopped (SIGSTOP)"), "", more).await;
    let pids = server
        .sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
    let postmaster = std::fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let all: Vec<i32> = pids.lines().chain(postmaster.lines().take(1)).map(|pid| pid.trim().parse().unwrap()).collect();
    for pid in &all {
        Server::signal(*pid, Signal::STOP);
    }
    let stuck = |status: &Status| {
        OF_THE_DATABASE.iter().all(|name| {
            let collector = &status.data["collectors"][name];
            collector["state"] == "failing" || collector["skipped"].as_u64().unwrap() > 0
        })
    };
    scene.status("its collectors fail or skip", stuck).await;
    the_rest_flows(&scene).await;
    for pid in &all {
        Server::signal(*pid, Signal::CONT);
    }
    scene.status("it heals", well).await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_catalog_stops_nobody_but_who_needs_it() {
    let more = "postgres.statement_timeout = '1s'\n";
    let (scene, server, agent) = beside("db-locked", (45, "catalog locked"), "", more).await;
    let holder = server.session(Role::Postgres, "holder").await;
    holder.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_authid IN ACCESS EXCLUSIVE MODE").await.unwrap();
    the_rest_flows(&scene).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    scene.status("it heals", well).await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_goes_and_comes_back_is_noticed_without_a_restart() {
    let (scene, server, agent) = beside("db-extension", (47, "pg_stat_statements dropped, made, reset"), "", "").await;
    server.sql("DROP EXTENSION pg_stat_statements");
    scene.status("it is missed", |status| state(status, "pg_statements") != "ok").await;
    the_rest_flows(&scene).await;
    server.sql("CREATE EXTENSION pg_stat_statements");
    scene.status("it is back", well).await;
    server.sql("SELECT pg_stat_statements_reset()");
    the_rest_flows(&scene).await;
    scene.status("a reset costs nothing", well).await;
    assert_eq!(scene.end(agent).await, nothing());
}

/// Sessions that each run a statement of a megabyte, ended when dropped.
struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_with_texts_of_a_megabyte_and_of_any_bytes_are_bounded() {
    let settings = "max_connections = 120\ntrack_activity_query_size = 1MB\n";
    let (scene, server, agent) = beside("db-huge", (46, "60 sessions, 1 MB texts, broken bytes"), settings, "").await;
    server.sql("CREATE DATABASE raw ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let folder = scene.path().join("statement.sql");
    let mut text = b"SELECT pg_sleep(60), '".to_vec();
    text.extend((0..1_000_000u32).map(|at| if at % 50 == 0 { 0xE9 } else { b'x' }));
    text.extend(b"' AS text");
    std::fs::write(&folder, text).unwrap();
    let begin = |_| {
        server.psql(Role::Postgres, "raw").arg("-f").arg(&folder).stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let crowd = Crowd((0..60).map(begin).collect());
    wait_for("all of them run", BOUND, || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'raw' AND state = 'active'") == "60"
    });
    the_rest_flows(&scene).await;
    let status = scene.status("they are looked at", well).await;
    assert!(rss(agent.pid()) < 160 << 20, "{} bytes; {}", rss(agent.pid()), status.data["spool"]);
    drop(crowd);
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_for_long_is_asked_again_ever_more_rarely() {
    let (scene, server, agent) = beside("db-away", (44, "away for long"), "", "").await;
    tokio::task::block_in_place(|| server.stop(Stop::Fast));
    scene.status("it fails", fails).await;
    let runs = |status: &Status| status.data["collectors"]["pg_locks"]["failures"].as_u64().unwrap();
    let begin = scene.status("a status", |_| true).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    while scene.next_status().await.is_some() {}
    let end = scene.status("a later status", |_| true).await;
    // Each 200 ms it would be 30; its pauses have 500 ms at the most.
    assert!(runs(&end) - runs(&begin) < 40, "{} looks at nothing", runs(&end) - runs(&begin));
    tokio::task::block_in_place(|| server.start());
    scene.status("it heals", well).await;
    assert_eq!(scene.end(agent).await, nothing());
}

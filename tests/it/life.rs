//! The life of a service: what a reload puts in force, and reloads and restarts under load, of which no message is lost.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    faults::scene::{BOUND, Scene, fast, nothing},
    rig::{
        Folder,
        agent::Agent,
        postgres::{Role, Server, shared},
        proxy::{Line, Proxy},
        rabbit, wait_for,
    },
};

/// Writes another configuration and has it read.
fn reload(scene: &Scene, agent: &Agent, config: &str) {
    fs::write(scene.path().join("agent.toml"), config).unwrap();
    let told = || scene.log().matches("the configuration was read again").count();
    let before = told();
    agent.signal(Signal::HUP);
    wait_for("the configuration is read again", BOUND, || told() > before);
}

/// Connections of the agent's role on a server.
fn connections(server: &Server) -> String {
    server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postgres-agent' AND usename = 'agent'")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_leads_to_another_server_by_another_way_and_to_another_broker_and_loses_nothing() {
    let (broker, line) = (rabbit::shared(), Proxy::to(rabbit::shared().port()).await);
    let server = tokio::task::block_in_place(|| Server::private(17));
    let scene = Scene::new("life-elsewhere", &broker.url(), &["#"]).await;
    let agent = scene.start(&line.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let config = fs::read_to_string(scene.path().join("agent.toml")).unwrap();
    // Another server, and no longer by the line that is cut.
    let elsewhere =
        config.replace(&shared(18).url(Role::Agent), &server.url(Role::Agent)).replace(&line.url(), &broker.url());
    reload(&scene, &agent, &elsewhere);
    line.set(Line::Cut);
    let most = || connections(&server).parse::<u32>().unwrap();
    wait_for("it looks at the other server", BOUND, || most() > 0);
    let status = scene.status("a status", |_| true).await;
    scene
        .status("it flows by the other way", |later| later.counts("confirmed") > status.counts("confirmed") + 10)
        .await;
    let log = scene.log();
    assert!(log.contains("postgres.url") && log.contains("amqp.url"), "{log}");
    assert!(log.contains("the connection to the broker is begun anew"), "{log}");
    assert_eq!(log.matches(" started ").count(), 1, "{log}");
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_url_that_changed_is_used_after_a_reload() {
    let server = tokio::task::block_in_place(|| Server::private(17));
    server.sql("ALTER ROLE agent PASSWORD 'first-hunter2'");
    fs::write(server.data_dir().join("pg_hba.conf"), "host all agent all scram-sha-256\nhost all all all trust\n")
        .unwrap();
    server.sql("SELECT pg_reload_conf()");
    let scene = Scene::new("life-password", &rabbit::shared().url(), &["#"]).await;
    let with = |password: &str| {
        let url = server.url(Role::Agent).replace("agent@", &format!("agent:{password}@"));
        scene.config(&rabbit::shared().url(), "").replace(&shared(18).url(Role::Agent), &url)
    };
    let agent = Agent::start(scene.path(), &with("first-hunter2"));
    wait_for("it logs in", BOUND, || connections(&server) != "0");
    server.sql("ALTER ROLE agent PASSWORD 'second-hunter2'");
    reload(&scene, &agent, &with("second-hunter2"));
    wait_for("the changed key is named, and not what it holds", BOUND, || {
        scene.log().contains("changed=[\"postgres.url\"]")
    });
    let status = scene.status("a status", |_| true).await;
    let after = scene.status("it looks again", |later| later.sent("pg_locks") > status.sent("pg_locks") + 3).await;
    assert_eq!(after.data["collectors"]["pg_locks"]["state"], "ok");
    assert!(!scene.log().contains("hunter2"), "{}", scene.log());
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reload_cannot_change_is_named_and_a_mistake_changes_nothing() {
    let scene = Scene::new("life-mistake", &rabbit::shared().url(), &["#"]).await;
    let agent = scene.start(&rabbit::shared().url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let config = fs::read_to_string(scene.path().join("agent.toml")).unwrap();
    fs::write(scene.path().join("agent.toml"), format!("{config}nonsense.key = 1\nlog.level = 'loud'\n")).unwrap();
    agent.signal(Signal::HUP);
    wait_for("the mistake is told, and that the old one stays", BOUND, || {
        let log = scene.log();
        let line = log.lines().find(|line| line.contains("the old one stays in force")).unwrap_or_default().to_owned();
        log.contains("nonsense.key") && log.contains("log.level") && !line.is_empty()
    });
    reload(&scene, &agent, &format!("{config}publisher.batch_max_events = 7\nspool.max_bytes = '2GiB'\n"));
    wait_for("what needs a restart is named", BOUND, || {
        let log = scene.log();
        let line = log.lines().find(|line| line.contains("after a restart only")).unwrap_or_default().to_owned();
        line.contains("publisher.batch_max_events") && line.contains("spool.max_bytes")
    });
    assert_eq!(scene.end(agent).await, nothing());
}

/// The words of a log without its times and its marks: message and fields.
fn words(log: &str, json: bool) -> Vec<String> {
    let words = |line: &str| {
        if json {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let fields = line.as_object().unwrap();
            let named =
                fields.iter().filter(|(name, _)| !["timestamp", "level", "target", "message"].contains(&name.as_str()));
            let mut names: Vec<&str> = named.map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            return format!(
                "{} {} {}",
                line["level"].as_str().unwrap(),
                line["message"].as_str().unwrap(),
                names.join(" ")
            );
        }
        let (_, line) = line.trim_start().split_once(' ').unwrap();
        let (level, line) = line.trim_start().split_once(' ').unwrap();
        let (_, line) = line.split_once(": ").unwrap();
        // Fields stand behind the message: `name=value`.
        let message: Vec<&str> = line.split(' ').take_while(|word| !word.contains('=')).collect();
        let fields = line.split(' ').skip(message.len()).filter_map(|word| word.split_once('='));
        let mut names: Vec<&str> = fields
            .map(|(name, _)| name)
            .filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            .collect();
        names.sort_unstable();
        format!("{level} {} {}", message.join(" "), names.join(" "))
    };
    log.lines().map(words).collect()
}

#[test]
fn lines_for_people_and_for_machines_have_the_same_words() {
    let log = |format: &str| {
        let folder = Folder::new(format);
        let config = format!(
            "postgres.url = 'host=127.0.0.1 port=1 user=agent'\namqp.url = 'amqp://127.0.0.1:1/%2f'\nspool.dir = '{}'\n\
             spool.min_free = '0'\nlog.format = '{format}'\ncollectors.system_metrics.enabled = false\n",
            folder.path().join("spool").display()
        );
        let agent = Agent::start(folder.path(), &config);
        wait_for("both ends are missed", BOUND, || {
            agent.log().contains("no way to the broker") && agent.log().contains("database unreachable")
        });
        let path = folder.path().join("agent.log");
        assert!(agent.stop(BOUND).0.success());
        let mut words = words(&fs::read_to_string(path).unwrap(), format == "json");
        words.sort();
        words
    };
    assert_eq!(log("text"), log("json"));
}

fn rounds() -> u32 {
    std::env::var("LIFE_ROUNDS").ok().map_or(3, |rounds| rounds.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_and_restarts_under_load_lose_nothing() {
    let (broker, rounds) = (rabbit::shared(), rounds());
    let scene = Scene::new("life-load", &broker.url(), &["#"]).await;
    let config = fast(&scene.config(&broker.url(), ""));
    let mut agent = Agent::start(scene.path(), &config);
    let mut run = scene.status("it flows", |status| status.counts("confirmed") > 5).await.run;
    let start = Instant::now();
    for round in 0..rounds {
        // Each key that a reload applies has its turn.
        let with = match round % 4 {
            0 => config.clone() + "collectors.pg_activity.limit = 7\n",
            1 => config.replace(&broker.url(), &format!("{}?heartbeat={}", broker.url(), 5 + round % 7)),
            2 => config.clone() + "postgres.statement_timeout = '4s'\nprivacy.query_text = 'normalized'\n",
            _ => config.replace("max = '500ms'", "max = '400ms'") + "log.level = 'warn'\n",
        };
        reload(&scene, &agent, &with);
        scene.status("it goes on", |status| status.run == run && status.sent("pg_locks") >= 8).await;
        let stopped = tokio::task::block_in_place(|| agent.stop(Duration::from_secs(20)));
        assert!(stopped.0.success(), "{stopped:?}");
        agent = Agent::start(scene.path(), &config);
        run = scene.status("a status of the next run", |status| status.run != run).await.run;
    }
    println!("figure: {rounds} reloads and {rounds} restarts under load in {} s", start.elapsed().as_secs());
    assert_eq!(scene.end(agent).await, nothing(), "nothing is lost, and both judges find no gap");
}

//! One fault at a time between the agent and its queues: what waits, what flows on, what is told, and that it heals.
//!
//! Each scene runs the built agent against a real broker and ends with both judges: nothing is missing, and nothing is
//! declared lost but what the scene says.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    report,
    scene::{BOUND, Scene, bytes_below, many_folders, nothing, rss},
};
use crate::rig::{
    agent::Agent,
    proxy::{Line, Proxy},
    rabbit::{self, Broker},
    wait_for, wait_for_async,
};

const ALL_BUT_LOCKS: [&str; 4] = ["pg_activity", "pg_statements", "system_metrics", "agent_status"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_no_queue_wants_waits_alone_until_one_is_bound() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("unwanted", &broker.url(), &ALL_BUT_LOCKS).await.of(34, "no queue bound");
    let agent = scene.start(&line.url(), "");
    let waits = scene.status("pg_locks alone waits, and the others flow", |status| {
        status.counts("returned") >= 2 && status.waiting("pg_locks") > 10 && status.sent("pg_activity") > 8
    });
    let waits = waits.await;
    let trouble = waits.trouble("delivery");
    assert!(
        trouble.contains("pg_locks: no queue is bound to exchange \"unwanted\" for routing key \"pg_locks\""),
        "{trouble}"
    );
    for flows in ALL_BUT_LOCKS {
        assert!(!trouble.contains(&format!("{flows}:")), "{trouble}");
        assert!(waits.waiting(flows) <= 2, "{flows} waits too: {}", waits.data["waiting"]);
    }
    // The whole backlog in one window: returns and confirms come in any order then.
    for _ in 0..3 {
        let connections = line.accepted();
        line.set(Line::Cut);
        line.set(Line::Open);
        let returned = waits.counts("returned");
        wait_for("the agent is back", BOUND, || line.accepted() > connections);
        scene.status("more came back", |status| status.counts("returned") > returned + 10).await;
    }
    scene.bind("unwanted", "pg_locks").await;
    scene.status("nothing is wrong any more", |status| status.trouble("delivery").is_empty()).await;
    let (said, connections) = (scene.log().matches("are kept in the spool").count(), line.accepted() as usize);
    assert!((1..=connections).contains(&said), "said {said} times on {connections} connections");
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_queue_wants_is_discarded_and_declared_where_that_is_asked_for() {
    let broker = rabbit::shared();
    let scene = Scene::new("discarded", &broker.url(), &ALL_BUT_LOCKS).await.of(34, "no queue bound, discard");
    let agent = scene.start(&broker.url(), "amqp.unroutable = 'discard'");
    let told = scene.status("losses are told", |status| {
        status.counts("returned") >= 5 && !status.data["lost"].as_array().unwrap().is_empty()
    });
    let told = told.await;
    for lost in told.data["lost"].as_array().unwrap() {
        assert_eq!((&lost["collector"], &lost["reason"]), (&"pg_locks".into(), &"discarded".into()), "{lost}");
    }
    assert!(told.trouble("delivery").contains("pg_locks: no queue is bound"), "{:?}", told.trouble("delivery"));
    scene.bind("discarded", "pg_locks").await;
    scene.status("nothing is wrong any more", |status| status.trouble("delivery").is_empty()).await;
    assert_eq!(scene.log().matches("no queue is bound").count(), 2, "said once, and once that it is over");
    let declared = scene.end(agent).await;
    assert_eq!(declared.keys().collect::<Vec<_>>(), ["pg_locks"], "{declared:?}");
}

/// Without the binary: so many messages at once no collector makes, and it takes many for answers to overtake each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_thousands_that_only_sometimes_have_a_queue_none_is_taken_for_delivered() {
    use postgres_agent::{
        collectors, config,
        health::Health,
        publisher::{Phase, Publisher},
        spool::{Draft, Spool},
    };
    const MESSAGES: u64 = 8_000;
    let broker = rabbit::shared();
    let scene = Scene::new("thousands", &broker.url(), &[]).await;
    let folder = &scene.folder;
    let file = folder.path().join("agent.toml");
    let more = "amqp.unroutable = 'discard'\namqp.window = 2000\nspool.min_free = '0'";
    let spool = folder.path().join("spool");
    let text = format!(
        "amqp.url = '{}'\namqp.exchange = 'thousands'\nspool.dir = '{}'\n{more}",
        broker.url(),
        spool.display()
    );
    fs::write(&file, text).unwrap();
    let config = config::load(Some(&file)).unwrap().config;
    let spool = Arc::new(Spool::open(config.spool.clone(), collectors::by_importance()).unwrap());
    let health = Arc::new(Health::default());
    for _ in 0..MESSAGES {
        let draft = Draft { collector: "pg_locks", events: 1, version: 1, zstd: false };
        spool.number(draft, |seq| Ok(seq.to_le_bytes().to_vec())).unwrap();
    }
    let publisher = Publisher {
        routing_key: config.amqp.routing_key.fill("thousands", &BTreeMap::new()).unwrap(),
        config: config.amqp,
        retry: config.retry,
        replay_rate: None,
        spool: Arc::clone(&spool),
        health: Arc::clone(&health),
    };
    let (phase, phases) = watch::channel(Phase::Running);
    let running = tokio::spawn(publisher.run(phases));
    // Some are returned at once and some confirmed when they are on disk, on one channel.
    let start = Instant::now();
    let settled = || Some(health.snapshot().1).filter(|told| told.returned + told.confirmed >= MESSAGES);
    let told = loop {
        assert!(start.elapsed() < BOUND, "waited in vain: all are settled; {:?}", health.snapshot().1);
        scene.bind("thousands", "pg_locks").await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        let (queue, exchange, key) = ("thousands".into(), "thousands".into(), "pg_locks".into());
        scene.channel.queue_unbind(queue, exchange, key, FieldTable::default()).await.unwrap();
        if let Some(told) = settled() {
            break told;
        }
    };
    assert!(told.returned > 100 && told.confirmed > 100, "both happen: {told:?}");
    assert_eq!(
        u64::from(broker.ready_messages("thousands").await),
        told.confirmed,
        "in the queue, and taken for delivered"
    );
    phase.send(Phase::Draining(Instant::now())).unwrap();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_queue_refuses_comes_again_and_the_others_flow_on() {
    let broker = rabbit::shared();
    let scene = Scene::new("refused", &broker.url(), &ALL_BUT_LOCKS).await.of(36, "reject-publish");
    let mut small = FieldTable::default();
    small.insert("x-max-length".into(), AMQPValue::LongInt(3));
    small.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    scene.queue("refused-small", small).await;
    scene.bind("refused-small", "pg_locks").await;
    let agent = scene.start(&broker.url(), "");
    let waits = scene.status("pg_locks is refused, and the others flow", |status| {
        status.counts("nacked") >= 3 && status.waiting("pg_locks") > 5 && status.sent("pg_activity") > 8
    });
    let waits = waits.await;
    assert!(
        waits.trouble("delivery").contains("pg_locks: the broker refused a message"),
        "{}",
        waits.trouble("delivery")
    );
    for flows in ALL_BUT_LOCKS {
        assert!(waits.waiting(flows) <= 2, "{flows} waits too: {}", waits.data["waiting"]);
    }
    // Emptied again and again, the queue takes a little more each time.
    let (start, mut taken) = (Instant::now(), 0);
    while taken <= 12 {
        assert!(start.elapsed() < BOUND, "waited in vain: the same messages come again; {taken} came");
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(message) = scene.get("refused-small").await {
            scene.hand_on(message).await;
            taken += 1;
        }
    }
    scene.bind("refused", "pg_locks").await;
    while let Some(message) = scene.get("refused-small").await {
        scene.hand_on(message).await;
    }
    scene.channel.queue_delete("refused-small".into(), QueueDeleteOptions::default()).await.unwrap();
    scene.status("nothing is wrong any more", |status| status.trouble("delivery").is_empty()).await;
    assert_eq!(scene.end(agent).await, nothing());
}

async fn the_exchange_is_deleted(name: &'static str, declare: bool) {
    let broker = rabbit::shared();
    let scene = Scene::new(name, &broker.url(), &["#"]).await.of(38, "exchange deleted");
    let agent = scene.start(&broker.url(), &format!("amqp.declare = {declare}"));
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    scene.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
    if declare {
        wait_for_async("the agent made the exchange again", BOUND, async || {
            let (connection, channel) = broker.channel().await;
            let look = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let found = channel.exchange_declare(name.into(), ExchangeKind::Topic, look, FieldTable::default()).await;
            connection.close(200, "done".into()).await.unwrap();
            found.ok()
        })
        .await;
    } else {
        wait_for("it says what is missing", BOUND, || scene.log().contains("does not exist: declare it"));
        // Several tries later it was still said once.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.log().matches("does not exist: declare it").count(), 1, "{}", scene.log());
        scene.make_exchange().await;
    }
    scene.bind(name, "#").await;
    scene.bind(&scene.statuses(), "agent_status").await;
    scene.status("nothing is wrong any more", |status| status.trouble("delivery").is_empty()).await;
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_exchange_is_declared_again() {
    the_exchange_is_deleted("exchange-declared", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_exchange_that_is_not_the_agents_to_declare_is_waited_for() {
    the_exchange_is_deleted("exchange-expected", false).await;
}

/// Erlang on the broker's own node: one `rabbitmqctl` for several steps.
fn eval(broker: &Broker, steps: &[&str]) {
    tokio::task::block_in_place(|| broker.ctl(&["eval", &format!("{}, ok.", steps.join(", "))]));
}

const USER: &str = "rabbit_auth_backend_internal:add_user(<<\"minder\">>, <<\"first\">>, <<\"rig\">>)";
const VHOST: &str = "rabbit_vhost:add(<<\"minded\">>, <<\"rig\">>)";
const NO_VHOST: &str = "rabbit_vhost:delete(<<\"minded\">>, <<\"rig\">>)";
const RIGHTS: &str = "rabbit_auth_backend_internal:set_permissions(<<\"minder\">>, <<\"minded\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"rig\">>)";
const GUEST: &str = "rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<\"minded\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"rig\">>)";
const NO_RIGHTS: &str = "rabbit_auth_backend_internal:set_permissions(<<\"minder\">>, <<\"minded\">>, <<\".*\">>, <<\"^$\">>, <<\".*\">>, <<\"rig\">>)";
const SECOND: &str = "rabbit_auth_backend_internal:change_password(<<\"minder\">>, <<\"second\">>, <<\"rig\">>)";
/// Rights and passwords are asked for when a connection or a channel begins.
const BEGIN_ANEW: &str = "[rabbit_networking:close_connection(P, \"rig\") || [{pid, P}, {user, <<\"minder\">>}] <- rabbit_networking:connection_info_all([pid, user])]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_passwords_and_vhosts_that_go_and_come_back_are_an_outage_like_any_other() {
    let broker = rabbit::shared();
    eval(broker, &[USER, VHOST, RIGHTS, GUEST]);
    let url = format!("amqp://guest:guest@127.0.0.1:{}/minded", broker.port());
    let mut scene = Scene::new("minded", &url, &["#"]).await.of(39, "rights, password, vhost gone");
    let line = Proxy::to(broker.port()).await;
    let secret = scene.path().join("password");
    write_secret(&secret, "first");
    let login = format!("amqp://minder@127.0.0.1:{}/minded", line.port());
    let agent = scene.start(&login, &format!("amqp.password_file = '{}'", secret.display()));
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;

    eval(broker, &[NO_RIGHTS, BEGIN_ANEW]);
    wait_for("it tells that it may not write", BOUND, || scene.log().contains("403"));
    eval(broker, &[RIGHTS]);
    scene.all_delivered().await;

    eval(broker, &[SECOND, BEGIN_ANEW]);
    wait_for("it tells that its password is wrong", BOUND, || scene.log().contains("refused user"));
    write_secret(&secret, "second");
    scene.all_delivered().await;

    line.set(Line::Cut);
    let mut kept = Vec::new();
    while let Some(message) = scene.get("minded").await {
        kept.push(message);
    }
    eval(broker, &[NO_VHOST]);
    line.set(Line::Open);
    wait_for("it tells that its vhost is gone", BOUND, || scene.log().contains("530 NOT_ALLOWED"));
    eval(broker, &[VHOST, RIGHTS, GUEST]);
    // The old connection went with the vhost; what its queue held is put into the new one.
    let again = Scene::new("minded", &url, &["#"]).await;
    (scene.connection, scene.channel) = (again.connection, again.channel);
    for message in kept {
        scene.hand_on(message).await;
    }
    assert!(!scene.log().contains("second"), "a password in the log");
    assert_eq!(scene.end(agent).await, nothing());
}

fn write_secret(path: &Path, secret: &str) {
    use std::os::unix::fs::PermissionsExt;
    let draft = path.with_extension("new");
    fs::write(&draft, format!("{secret}\n")).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(draft, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_broker_finds_too_large_is_declared_and_holds_up_nobody() {
    let broker = tokio::task::block_in_place(|| Broker::with_settings("max_message_size = 65536"));
    let scene = Scene::new("large", &broker.url(), &["#"]).await.of(40, "above max_message_size");
    let (many, config) = many_folders(scene.path(), 150_000);
    let agent = scene.start(&broker.url(), &config);
    let told = scene.status("losses are told, and the others flow", |status| {
        !status.data["lost"].as_array().unwrap().is_empty() && status.sent("pg_locks") > 10
    });
    let told = told.await;
    for lost in told.data["lost"].as_array().unwrap() {
        assert_eq!((&lost["collector"], &lost["reason"]), (&"system_metrics".into(), &"too_large".into()), "{lost}");
    }
    for flows in ["pg_activity", "pg_locks", "agent_status"] {
        assert!(told.waiting(flows) <= 2, "{flows} waits too: {}", told.data["waiting"]);
    }
    fs::remove_dir_all(many).unwrap();
    let small = scene.status("a status after that", |_| true).await;
    scene.status("smaller ones flow", |status| status.sent("system_metrics") > small.sent("system_metrics") + 3).await;
    let declared = scene.end(agent).await;
    assert_eq!(declared.keys().collect::<Vec<_>>(), ["system_metrics"], "{declared:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_broker_fills_the_disk_and_not_the_memory_and_delays_no_stop() {
    let broker = tokio::task::block_in_place(Broker::private);
    let scene = Scene::new("blocked", &broker.url(), &["#"]).await.of(33, "blocked, then SIGTERM");
    let (_, config) = many_folders(scene.path(), 100_000);
    let config = config + "agent.shutdown_timeout = '3s'\n";
    let config = config.as_str();
    let own = |config: &str| scene.config(&broker.url(), config).replacen("agent.shutdown_timeout = '5s'", "", 1);
    let agent = Agent::start(scene.path(), &own(config));
    scene.status("it flows", |status| status.counts("confirmed") > 20).await;
    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]));
    wait_for("it tells that the broker takes nothing", BOUND, || scene.log().contains("takes no messages for now"));
    let (memory, disk) = (rss(agent.pid()), bytes_below(&scene.spool()));
    // 100 kB four times a second.
    wait_for("the spool grows by what memory must not", BOUND, || bytes_below(&scene.spool()) > disk + (4 << 20));
    let grown = rss(agent.pid()).saturating_sub(memory);
    assert!(grown < 3 << 20, "memory grew by {grown} bytes, the disk by {}", bytes_below(&scene.spool()) - disk);
    let (status, took) = tokio::task::block_in_place(|| agent.stop(Duration::from_secs(20)));
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_millis(3900), "stopped after {took:?}, allowed are 3 s");
    let agent = Agent::start(scene.path(), &own(config));
    wait_for("the next run is told too", BOUND, || scene.log().matches("takes no messages for now").count() == 2);
    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "0.4"]));
    wait_for("it tells that the broker is back", BOUND, || scene.log().contains("takes messages again"));
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_silent_one_way_or_both_is_found_and_left() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("silent", &broker.url(), &["#"]).await.of(27, "line silent one way, both ways");
    let agent = scene.start(&line.url(), "amqp.heartbeat = '2s'\namqp.confirm_timeout = '3s'");
    let mut figures = Vec::new();
    for fault in [Line::Dead, Line::DeafAgent, Line::DeafBroker] {
        scene.all_delivered().await;
        let (connections, start) = (line.accepted(), Instant::now());
        line.set(fault);
        wait_for("another connection", BOUND, || line.accepted() > connections);
        let took = start.elapsed();
        // Two and a half heartbeats or the confirms' time, then at most half a second's pause, and a busy machine.
        assert!(took < Duration::from_millis(7500), "{fault:?} was found after {took:?}");
        figures.push(format!("{fault:?} {took:?}"));
    }
    println!(
        "figure: found and connected anew, with a heartbeat of 2 s and a confirm_timeout of 3 s: {}",
        figures.join(", ")
    );
    report::tell_none(28, "confirms lost one way");
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_broker_keeps_its_connection_and_a_line_that_dies_meanwhile_is_found() {
    let broker = tokio::task::block_in_place(Broker::private);
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("silent-blocked", &broker.url(), &["#"]).await.of(27, "line silent, broker blocked");
    let agent = scene.start(&line.url(), "amqp.heartbeat = '2s'\namqp.confirm_timeout = '3s'");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]));
    wait_for("it tells that the broker takes nothing", BOUND, || scene.log().contains("takes no messages for now"));
    let connections = line.accepted();
    // Longer than any heartbeat or confirm would be waited for: neither side may take the other for dead.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(line.accepted(), connections, "left, though it was only blocked:\n{}", scene.log());
    let start = Instant::now();
    line.set(Line::Dead);
    wait_for("another connection", BOUND, || line.accepted() > connections);
    let took = start.elapsed();
    println!("figure: found and connected anew while blocked, with a heartbeat of 2 s: {took:?}");
    assert!(took < Duration::from_millis(7500), "found after {took:?}");
    tokio::task::block_in_place(|| broker.ctl(&["set_vm_memory_high_watermark", "0.4"]));
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_is_too_small_drops_the_least_important_and_declares_just_that() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("evicted", &broker.url(), &["#"]).await;
    let (_, config) = many_folders(scene.path(), 100_000);
    let agent = scene.start(&line.url(), &format!("{config}spool.max_bytes = '1MiB'\nspool.segment_bytes = '64KiB'"));
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    line.set(Line::Cut);
    wait_for("segments are dropped", BOUND, || scene.log().matches("Evicted").count() >= 10);
    // An evicted segment goes when the mark is synced, which takes its time on a busy disk.
    wait_for("segments and bookkeeping keep to their room", BOUND, || {
        bytes_below(&scene.spool()) <= (1 << 20) + (512 << 10)
    });
    line.set(Line::Open);
    let declared = scene.end(agent).await;
    assert_eq!(declared.keys().collect::<Vec<_>>(), ["system_metrics"], "{declared:?}");
    assert!(declared["system_metrics"] >= 10, "{declared:?}");
}

/// A small file system in memory; unmounted when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tiny"]).arg(&path).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(path))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_it_goes_on_from_memory_says_so_and_heals() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("full", &broker.url(), &["#"]).await.of(15, "tmpfs full");
    let Some(disk) = Tiny::mount(scene.path().join("tiny")) else {
        println!("left out: this process may not mount a tmpfs");
        return;
    };
    let config = format!("spool.dir = '{}'\nspool.min_free = '0'", disk.0.join("spool").display());
    let agent = scene.start(&line.url(), &config);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let filler = disk.0.join("filler");
    let full = fs::write(&filler, vec![1; 4 << 20]).expect_err("2 MiB take no 4");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let begin = scene.status("it tells of the full disk", |status| !status.trouble("spool").is_empty()).await;
    assert!(begin.trouble("spool").contains("tiny"), "{}", begin.trouble("spool"));
    let flows = scene.status("it flows from memory", |status| {
        status.has_settled(&begin) && status.sent("pg_locks") > begin.sent("pg_locks") + 8
    });
    let flows = flows.await;
    assert_eq!(flows.data["lost"], Value::Array(Vec::new()), "nothing is lost while the broker is there");
    line.set(Line::Cut);
    wait_for("messages are lost without disk and broker", BOUND, || scene.log().contains("DiskFull"));
    line.set(Line::Open);
    let told = scene.status("losses are told", |status| !status.data["lost"].as_array().unwrap().is_empty()).await;
    for lost in told.data["lost"].as_array().unwrap() {
        assert_eq!(lost["reason"], "disk_full", "{lost}");
        let (collector, first) = (lost["collector"].as_str().unwrap(), lost["first_seq"].as_u64().unwrap());
        // What was confirmed while the disk was full is not among them.
        assert!(first > begin.sent(collector), "{lost}");
    }
    fs::remove_file(filler).unwrap();
    scene.status("the disk is written again", |status| status.trouble("spool").is_empty()).await;
    let declared = scene.end(agent).await;
    assert!(!declared.is_empty());
    drop(disk);
}

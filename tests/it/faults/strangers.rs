//! Peers that are no good brokers: silent, talking nonsense, with odd limits, or gone in the midst of a frame. Each costs a
//! time limit at the most, and leaves no thread, no socket and no memory behind.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use amq_protocol::{
    frame::AMQPFrame,
    protocol::{AMQPClass, basic, channel, connection},
};
use postgres_agent::amqp::{Connection, Limits};
use tokio::net::{TcpSocket, TcpStream};

use super::{
    answers::{Took, script, tell},
    courier::{Courier, LOGS, configured},
    scene::{BOUND, Scene, rss},
};
use crate::rig::{
    Folder,
    agent::Agent,
    alone,
    chance::Dice,
    peer::{Heard, Manners, POLITE, Peer, Say, Script, encoded},
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// Takes everything.
fn takes(took: &Took) -> Script {
    let took = took.clone();
    script(move |heard| {
        let Heard::Published(published) = heard else { return Vec::new() };
        took.take(&published);
        vec![Say::Ack(published.channel, published.tag, false)]
    })
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_thousand_silent_handshakes_leave_nothing_behind() {
    if !alone("faults::strangers::a_thousand_silent_handshakes_leave_nothing_behind") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let peer = Peer::start(|_| (Manners::Silent, script(|_| Vec::new()))).await;
        let folder = Folder::new("silent");
        let mut config = configured(&folder, &peer.url(), "").amqp;
        config.limits = Limits { connect: Duration::from_millis(20), ..Limits::default() };
        let handshake = async || {
            let error = Connection::open(&config, 0).await.expect_err("nobody answers");
            assert!(error.to_string().contains("handshake"), "{error}");
        };
        // What every process has after its first few.
        for _ in 0..20 {
            handshake().await;
        }
        let now = || (count("/proc/self/task"), count("/proc/self/fd"), rss(std::process::id()));
        let before = now();
        for _ in 0..1_000 {
            handshake().await;
        }
        let mut after = now();
        wait_for("threads and descriptors are as before", BOUND, || {
            after = now();
            after.0 <= before.0 && after.1 <= before.1
        });
        println!("figure: 1,000 silent handshakes: threads, descriptors, RSS before {before:?}, after {after:?}");
        assert!(after.2 < before.2 + (16 << 20), "{} bytes more", after.2 - before.2);
        assert!(peer.accepted() >= 1_020);
        tell(29, "TCP accepts, AMQP silent", 1_000, &peer, &Took::default());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_answer_costs_the_time_limit_only() {
    // A queue of one that is full: further SYNs are dropped.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut full = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        full.push(stream);
        assert!(full.len() < 64, "a full queue drops SYNs");
    }
    let folder = Folder::new("no-syn");
    let mut config = configured(&folder, &format!("amqp://guest:guest@{address}/%2f"), "").amqp;
    config.limits = Limits { connect: Duration::from_millis(500), ..Limits::default() };
    let start = Instant::now();
    let error = Connection::open(&config, 0).await.expect_err("nobody answers");
    let took = start.elapsed();
    assert!(error.to_string().contains("connecting"), "{error}");
    assert!((Duration::from_millis(450)..Duration::from_secs(3)).contains(&took), "{took:?}");
    super::report::tell_none(30, "SYN unanswered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_broker_tunes_messages_get_through() {
    let tuned = [
        ("frame_max 4096", (2047, 4096, 60)),
        ("heartbeat 0", (2047, 131_072, 0)),
        ("no limits", (0, 0, 0)),
        ("channel_max 1", (1, 131_072, 60)),
        ("channel_max 2", (2, 131_072, 60)),
    ];
    for (name, (channels, frame, heartbeat)) in tuned {
        let took = Took::default();
        let taken = took.clone();
        let peer = Peer::start(move |_| (Manners::Broker(channels, frame, heartbeat), takes(&taken))).await;
        let courier = Courier::start("tuned", &peer.url(), "");
        for round in 0..20 {
            courier.number_all(if round == 3 { 50_000 } else { 64 });
        }
        courier.all_delivered().await;
        assert_eq!((took.count(), took.duplicates()), (20 * LOGS.len(), 0), "{name}");
        let large = peer.published().iter().filter(|one| one.body.len() == 50_000).count();
        assert_eq!(large, LOGS.len(), "{name}: whole, in many frames");
        assert_eq!(courier.health.snapshot().1.reconnects, 0, "{name}: {}", courier.trouble());
        tell(41, "frame_max 4096, channel_max 1 and 2, heartbeat 0", 1, &peer, &took);
        courier.end(Duration::from_secs(5)).await;
    }
}

/// A frame's beginning that promises so many bytes.
fn promise(bytes: u32) -> Vec<u8> {
    [&[1, 0, 0][..], &bytes.to_be_bytes(), &[0; 64]].concat()
}

/// Frames that are whole, and that nobody asked for.
fn unasked(dice: &mut Dice) -> Vec<u8> {
    let channel = u16::try_from(dice.roll(4)).unwrap();
    let close = connection::Close { reply_code: 320, reply_text: "gone".into(), class_id: 0, method_id: 0 };
    let shut = channel::Close { reply_code: 504, reply_text: "error".into(), class_id: 60, method_id: 40 };
    let ack = basic::Ack { delivery_tag: dice.roll(9), multiple: dice.roll(2) == 0 };
    let frame = match dice.roll(8) {
        0 => AMQPFrame::Heartbeat,
        1 => AMQPFrame::Body(channel, vec![7; 900]),
        2 => AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close))),
        3 => AMQPFrame::Method(channel, AMQPClass::Channel(channel::AMQPMethod::Close(shut))),
        4 => AMQPFrame::Method(channel, AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))),
        5 => AMQPFrame::Method(channel, AMQPClass::Basic(basic::AMQPMethod::Ack(ack))),
        6 => AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::OpenOk(connection::OpenOk {}))),
        _ => AMQPFrame::InvalidHeartbeat(channel),
    };
    encoded(&frame)
}

/// Bad connections before the first good one.
const BAD: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_left_behind_and_a_good_broker_then_gets_everything() {
    let took = Took::default();
    let taken = took.clone();
    let peer = Peer::start(move |connection| {
        let mut dice = Dice::new(connection as u64 + 1);
        let quick = Duration::ZERO;
        let mut random = |len: u64| (0..len).map(|_| u8::try_from(dice.roll(256)).unwrap()).collect::<Vec<u8>>();
        let bytes = |bytes| (Manners::Bytes(bytes, 1 << 16, quick), script(|_| Vec::new()));
        match connection {
            at if at >= BAD => (POLITE, takes(&taken)),
            at if at % 6 == 0 => bytes(random(500)),
            at if at % 6 == 1 => bytes(promise(u32::MAX)),
            at if at % 6 == 2 => bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            // A byte now and then: never whole, never silent.
            at if at % 6 == 3 => (Manners::Bytes(promise(400), 1, Duration::from_millis(30)), script(|_| Vec::new())),
            // A handshake as it should be, and then bytes, or frames, that make no sense.
            at if at % 6 == 4 => {
                let raw = random(300);
                (POLITE, script(move |_| vec![Say::Raw(raw.clone())]))
            }
            _ => {
                let mut dice = Dice::new(connection as u64);
                (POLITE, script(move |_| vec![Say::Raw(unasked(&mut dice))]))
            }
        }
    })
    .await;
    let before = rss(std::process::id());
    // The time limits are the product's, and a slow peer costs all of one: shorter here, as everything is.
    let limits = Limits { connect: Duration::from_millis(300), step: Duration::from_millis(300), ..Limits::default() };
    let courier = Courier::limited("nonsense", &peer.url(), "amqp.confirm_timeout = '300ms'", limits);
    let start = Instant::now();
    while peer.accepted() <= BAD {
        assert!(start.elapsed() < BOUND * 2, "waited in vain: {} bad connections are left", peer.accepted());
        courier.number_all(200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    courier.all_delivered().await;
    let grown = rss(std::process::id()).saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes more: a promise of 4 GiB is believed");
    tell(42, "garbage, huge frames, slow bytes, frames unasked", u32::try_from(BAD).unwrap(), &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_reset_in_the_midst_of_a_body_costs_no_message_and_halves_none() {
    let line = Proxy::to(rabbit::shared().port()).await;
    let scene =
        Scene::new("reset", &rabbit::shared().url(), &["#"]).await.of(26, "RST in the midst of a body").times(5);
    let agent = scene.start(&line.url(), "");
    for _ in 0..5 {
        scene.all_delivered().await;
        line.set(Line::Reset);
        scene.status("a reset, and a reconnect", |status| status.counts("reconnects") > 0).await;
        line.set(Line::Open);
    }
    assert_eq!(scene.end(agent).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_level_shows_a_body_or_a_password() {
    // Everything is returned to the agent, of whose returns the client library would log bodies, and the URL when it connects.
    let scene = Scene::new("no-secrets", &rabbit::shared().url(), &["agent_status"]).await;
    let url = rabbit::shared().url().replace("guest:guest", "guest:hunter2");
    let config = scene.config(&rabbit::shared().url(), &format!("amqp.urls = ['{url}']\nlog.level = 'trace'\n"));
    let agent = Agent::start(scene.path(), &config);
    scene.status("messages came back", |status| status.counts("returned") >= 3).await;
    scene.bind(scene.name, "#").await;
    scene.all_delivered().await;
    let log = scene.log();
    assert!(log.contains("connected to the broker") && log.contains("no queue is bound"), "{log}");
    for secret in ["hunter2", "guest:guest", "schema_version", "collected_at"] {
        assert!(!log.contains(secret), "{secret:?} is in the log");
    }
    agent.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_leaves_no_memory_behind() {
    let took = Took::default();
    let taken = Arc::new(Mutex::new(0u64));
    let counted = Arc::clone(&taken);
    let peer = Peer::start(move |_| {
        let counted = Arc::clone(&counted);
        let hear = move |heard| {
            let Heard::Published(published) = heard else { return Vec::new() };
            *counted.lock().unwrap() += 1;
            vec![Say::Ack(published.channel, published.tag, false)]
        };
        (POLITE, script(hear))
    })
    .await;
    peer.keep_nothing();
    let courier = Courier::start("lean", &peer.url(), "");
    let mut at_rest = 0;
    for round in 1..=20 {
        for _ in 0..500 {
            courier.number_all(32);
        }
        courier.all_delivered().await;
        if round == 5 {
            at_rest = rss(std::process::id());
        }
    }
    assert_eq!(*taken.lock().unwrap(), 20 * 500 * LOGS.len() as u64);
    let grown = rss(std::process::id()).saturating_sub(at_rest);
    println!("22,500 confirmed messages later: {grown} bytes more");
    assert!(grown < 24 << 20, "{grown} bytes more");
    tell(37, "everything confirmed, for long", 1, &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

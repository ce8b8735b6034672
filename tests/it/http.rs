//! What the agent shows at its port: health and readiness, metrics, and what the status page asks for; and that whoever
//! asks harms nobody.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    faults::scene::{BOUND, Scene, nothing, rss},
    rig::{
        Folder,
        agent::Agent,
        disk::Tampering,
        free_port,
        http::{Reply, get, reply, say, try_get},
        postgres::{Role, shared},
        proxy::{Line, Proxy},
        rabbit, wait_for, wait_for_some,
    },
};

fn listen(port: u16) -> String {
    format!("[http]\nlisten = '127.0.0.1:{port}'\n")
}

/// An agent with neither a database nor a broker.
fn alone(folder: &Folder, port: u16) -> Agent {
    let config = format!(
        "postgres.url = 'host=127.0.0.1 port=1 user=agent'\namqp.url = 'amqp://127.0.0.1:1/%2f'\nspool.dir = '{}'\n\
         spool.min_free = '0'\ncollectors.agent_status.interval = '200ms'\n{}",
        folder.path().join("spool").display(),
        listen(port)
    );
    Agent::start(folder.path(), &config)
}

#[track_caller]
fn becomes(what: &str, port: u16, path: &str, status: u16) -> Reply {
    wait_for_some(what, BOUND, || try_get(port, path).filter(|reply| reply.status == status))
}

/// All samples of `/metrics`, by name with labels.
fn metrics(port: u16) -> BTreeMap<String, f64> {
    let text = get(port, "/metrics").body;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.into(), value.parse().unwrap()))
        .collect()
}

/// What promtool complains of.
fn promtool(text: &str) -> String {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts: run tests/servers.sh");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        + if output.status.success() { "" } else { "failed" }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_can_be_watched_and_promtool_has_no_complaint() {
    let (broker, port) = (rabbit::shared(), free_port());
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("watched", &broker.url(), &["#"]).await;
    let more = format!("spool.max_bytes = '1MiB'\nspool.segment_bytes = '64KiB'\n{}", listen(port));
    let agent = scene.start(&line.url(), &more);
    becomes("both ends are reached", port, "/readyz", 200);
    let status = scene.status("it flows", |status| status.counts("confirmed") > 10).await;
    let text = get(port, "/metrics");
    assert!(text.head.contains("text/plain; version=0.0.4"), "{}", text.head);
    assert_eq!(promtool(&text.body), "");
    let told = metrics(port);
    let value =
        |name: &str| *told.get(&format!("postgres_agent_{name}")).unwrap_or_else(|| panic!("no {name}: {told:#?}"));
    assert!(value("confirmed_messages_total") >= status.counts("confirmed") as f64);
    assert!(value("confirm_seconds_count") >= 10.0 && value("confirm_seconds_bucket{le=\"+Inf\"}") >= 10.0);
    let good = [
        "healthy",
        "ready",
        "broker_connected",
        "database_reachable",
        "collector_state{collector=\"pg_locks\",state=\"ok\"}",
    ];
    for name in good {
        assert!((value(name) - 1.0).abs() < 1e-9, "{name}");
    }
    let none = [
        "spool_troubled",
        "delivery_troubled",
        "returned_messages_total",
        "nacked_messages_total",
        "broker_reconnects_total",
    ];
    for name in none {
        assert!(value(name).abs() < 1e-9, "{name}");
    }
    assert!(value("numbered_messages_total{collector=\"pg_locks\"}") > 0.0);
    assert!(value("collector_database_seconds_total{collector=\"pg_locks\"}") > 0.0);
    assert!((value("spool_limit_bytes") - 1_048_576.0).abs() < 1e-9);

    line.set(Line::Cut);
    wait_for("a backlog and its age are told", BOUND, || {
        let told = metrics(port);
        let value = |name: &str| told[&format!("postgres_agent_{name}")];
        value("spool_messages") > 20.0
            && value("spool_bytes") > 0.0
            && value("spool_oldest_age_seconds") > 2.0
            && value("ready") < 0.5
    });
    line.set(Line::Open);
    becomes("both ends are reached again", port, "/readyz", 200);
    wait_for("the reconnect is told", BOUND, || metrics(port)["postgres_agent_broker_reconnects_total"] > 0.5);
    let names: Vec<String> = metrics(port).into_keys().collect();
    assert!(names.len() < 250, "bounded: {}", names.len());
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_are_counted_by_reason() {
    let (broker, port) = (rabbit::shared(), free_port());
    let scene = Scene::new("losses-told", &broker.url(), &["agent_status"]).await;
    let agent = scene.start(&broker.url(), &format!("amqp.unroutable = 'discard'\n{}", listen(port)));
    let lost = "postgres_agent_lost_messages_total{collector=\"pg_locks\",reason=\"discarded\"}";
    wait_for("what no queue wants is counted", BOUND, || {
        try_get(port, "/healthz").is_some() && metrics(port).get(lost).is_some_and(|lost| *lost > 2.0)
    });
    let shown = get(port, "/status.json").json()["lost"].clone();
    assert!(shown.as_array().unwrap().iter().any(|lost| lost["reason"] == "discarded"), "{shown}");
    assert!(metrics(port)["postgres_agent_returned_messages_total"] > 2.0);
    agent.kill();
}

#[test]
fn readiness_says_which_end_is_away_and_health_does_not_mind() {
    let (folder, port) = (Folder::new("alone"), free_port());
    let agent = alone(&folder, port);
    let away = wait_for_some("both are told", BOUND, || {
        let ready = try_get(port, "/readyz")?;
        (ready.body.contains("PostgreSQL: cannot") || ready.body.matches("refused").count() == 2).then_some(ready)
    });
    assert_eq!(away.status, 503, "{away:?}");
    let reasons = away.json()["reasons"].as_array().unwrap().clone();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons[0].as_str().unwrap().starts_with("PostgreSQL: ")
            && reasons[1].as_str().unwrap().starts_with("the broker: ")
    );
    let health = get(port, "/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "{\"ok\":true,\"reasons\":[]}"));
    let shown = get(port, "/status.json").json();
    assert_eq!(
        (&shown["ready"]["ok"], &shown["broker"]["connected"], &shown["database"]["reached"]),
        (&false.into(), &false.into(), &false.into())
    );
    assert_eq!(shown["messages"][0]["collector"], "agent_status");
    let message = get(port, "/messages/agent_status.json").json();
    assert_eq!(message["events"][0]["data"]["event"], "running");
    assert_eq!(get(port, "/messages/pg_locks.json").status, 404);
    assert!(agent.stop(BOUND).0.success());
}

#[test]
fn a_stuck_loop_turns_health_red_and_back_when_it_goes_on() {
    let (folder, port) = (Folder::new("stuck"), free_port());
    let agent = alone(&folder, port);
    becomes("it runs", port, "/healthz", 200);
    let Some(tampering) = Tampering::with(agent.pid(), "pwrite64:delay_enter=45s:when=1", &[]) else { return };
    let red = wait_for_some("a write that takes 45 s is a stuck loop", Duration::from_secs(60), || {
        try_get(port, "/healthz").filter(|health| health.status == 503)
    });
    assert!(red.body.contains("\"ok\":false") && red.body.contains("has worked on one thing for"), "{red:?}");
    becomes("it goes on", port, "/healthz", 200);
    drop(tampering);
    assert!(agent.log().contains("is stuck on one thing"), "{}", agent.log());
    wait_for("it is told that it goes on", BOUND, || agent.log().contains("goes on"));
    assert!(agent.stop(BOUND).0.success());
}

#[test]
fn a_port_in_use_stops_the_page_alone_and_is_told_once_and_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (folder, port) = (Folder::new("taken"), taken.local_addr().unwrap().port());
    let agent = alone(&folder, port);
    wait_for("it is told", BOUND, || agent.log().contains("no status page, health or metrics"));
    wait_for("all else runs", BOUND, || crate::faults::layout::waits(&folder.path().join("spool"), "agent_status") > 3);
    drop(taken);
    becomes("the port is had when it is free", port, "/healthz", 200);
    assert_eq!(agent.log().matches("the port cannot be had").count(), 1, "{}", agent.log());
    assert!(agent.stop(BOUND).0.success());
}

#[test]
fn who_asks_slowly_at_length_or_nonsense_harms_nobody() {
    let (folder, port) = (Folder::new("rude"), free_port());
    let agent = alone(&folder, port);
    becomes("it runs", port, "/healthz", 200);
    let before = rss(agent.pid());
    // Tries to reach database and broker come and go.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count() + 3;
    let status = |request: &str| reply(&say(port, request.as_bytes()).unwrap()).status;
    let host = "Host: 127.0.0.1\r\n";
    assert_eq!(status("nonsense\r\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(status(&format!("POST / HTTP/1.1\r\n{host}Content-Length: 99999999\r\n\r\n")), 405);
    assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"), 421);
    assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(100_000))), 431);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(100_000))), 431);
    assert_eq!(status(&format!("GET /../../etc/passwd HTTP/1.1\r\n{host}Connection: close\r\n\r\n")), 404);

    // A client that reads /metrics one byte a second, and ten that never finish to ask.
    let open = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream
    };
    let mut slow = open();
    slow.write_all(format!("GET /metrics HTTP/1.1\r\n{host}\r\n").as_bytes()).unwrap();
    slow.read_exact(&mut [0; 1]).unwrap();
    let mut half: Vec<TcpStream> = (0..10).map(|_| open()).collect();
    for stream in &mut half {
        stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    }
    let start = Instant::now();
    assert_eq!(get(port, "/healthz").status, 200);
    assert!(start.elapsed() < Duration::from_secs(4), "others are served meanwhile");
    for stream in &mut half {
        // An answer of 408, or nothing: in any case it is closed, and not after a minute.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    slow.read_exact(&mut [0; 1]).unwrap();
    let begun = start.elapsed();
    assert!(begun < Duration::from_secs(20), "who does not ask is left: {begun:?}");
    // As many as there is room for, and more: later ones wait until earlier ones are left.
    let crowd: Vec<TcpStream> = (0..100).map(|_| open()).collect();
    becomes("a crowd that says nothing is left", port, "/healthz", 200);
    drop(crowd);
    let sockets = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    wait_for("who reads slowly is left after 30 s, too", Duration::from_secs(60), || sockets() <= descriptors);
    drop(slow);
    let grown = rss(agent.pid()).saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert!(agent.stop(BOUND).0.success());
    assert!(!agent_log(&folder).contains("panicked"));
}

fn agent_log(folder: &Folder) -> String {
    fs::read_to_string(folder.path().join("agent.log")).unwrap()
}

#[test]
fn the_service_manager_hears_that_the_agent_runs_reloads_turns_and_stops() {
    let (folder, port) = (Folder::new("manager"), free_port());
    let socket = folder.path().join("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    heard.set_read_timeout(Some(BOUND)).unwrap();
    let set = ["env".to_owned(), format!("NOTIFY_SOCKET={}", socket.display()), "WATCHDOG_USEC=2000000".to_owned()];
    let config = format!(
        "postgres.url = 'host=127.0.0.1 port=1 user=agent'\namqp.url = 'amqp://127.0.0.1:1/%2f'\nspool.dir = '{}'\n{}",
        folder.path().join("spool").display(),
        listen(port)
    );
    let agent = Agent::start_under(&set, folder.path(), &config);
    let mut told = Vec::new();
    let mut hears = |what: &str| {
        wait_for(&format!("it says {what}"), BOUND, || {
            let mut datagram = [0; 4096];
            let length = heard.recv(&mut datagram).unwrap();
            told.push(String::from_utf8_lossy(&datagram[..length]).into_owned());
            told.last().unwrap().lines().any(|line| line.starts_with(what))
        });
    };
    hears("READY=1");
    hears("WATCHDOG=1");
    hears("STATUS=");
    agent.signal(Signal::HUP);
    hears("RELOADING=1");
    hears("READY=1");
    let stopped = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| agent.stop(BOUND).0);
        hears("STOPPING=1");
        stopping.join().unwrap()
    });
    assert!(stopped.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_shown_any_more_is_gone_with_the_reload() {
    const TEXT: &str = "a text that is shown while texts are raw";
    let (broker, port) = (rabbit::shared(), free_port());
    let scene = Scene::new("less-shown", &broker.url(), &["#"]).await;
    let session = shared(18).session(Role::Postgres, "shown").await;
    let sleeping =
        tokio::spawn(async move { _ = session.simple_query(&format!("SELECT pg_sleep(600), '{TEXT}'")).await });
    let agent = scene.start(&broker.url(), &listen(port));
    let shown = || try_get(port, "/messages/pg_activity.json?rows=1000").is_some_and(|reply| reply.body.contains(TEXT));
    wait_for("the text is shown", BOUND, shown);
    let config = fs::read_to_string(scene.path().join("agent.toml")).unwrap();
    let sessions = get(port, "/status.json").json()["sessions"].as_array().unwrap().len();
    assert!(sessions > 0, "sessions are counted");
    for mode in ["normalized", "off"] {
        fs::write(scene.path().join("agent.toml"), format!("privacy.query_text = '{mode}'\n{config}")).unwrap();
        let before = scene.log().matches("was read again").count();
        agent.signal(Signal::HUP);
        wait_for("it is read again", BOUND, || scene.log().matches("was read again").count() > before);
        wait_for("the status page knows it", BOUND, || get(port, "/status.json").json()["agent"]["query_text"] == mode);
        let message = wait_for_some("a message of the new kind", BOUND, || {
            try_get(port, "/messages/pg_activity.json?rows=1000").filter(|reply| reply.status == 200)
        });
        assert!(!shown());
        let rows = message.json()["events"][0]["data"].as_array().unwrap().clone();
        assert!(rows.iter().all(|row| row["query"].is_null()), "{mode}: {rows:?}");
    }
    sleeping.abort();
    assert_eq!(scene.end(agent).await, nothing());
}

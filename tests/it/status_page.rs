//! The status page in a real browser: of an agent that is well, of one that brings less than it could, and of one that reaches
//! nobody. What is said of it comes from `tests/browser.py`.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    faults::scene::{BOUND, Scene, nothing},
    rig::{
        Folder,
        agent::Agent,
        free_port,
        http::{get, try_get},
        must,
        postgres::{Role, Server},
        proxy::Proxy,
        rabbit, wait_for,
    },
};

/// All that the browser gets before anything is opened.
const PAGE_BYTES: u64 = 60 << 10;

/// What the page is called whose pictures are kept, and how wide and in which colours it is looked at.
const LOOKS: [(u32, &str); 3] = [(1280, "light"), (1280, "dark"), (360, "light")];

/// Looks at a page of this name and asserts what holds for each: no complaints, nothing from elsewhere, contrast, keyboard,
/// nothing wider than the page.
fn look(name: &str, port: u16, width: u32, scheme: &str) -> Value {
    let folder = Folder::new("picture");
    let kept = std::env::var_os("PAGE_SHOTS").map(PathBuf::from);
    let picture = kept.as_deref().unwrap_or(folder.path()).join(format!("{name}-{width}-{scheme}.png"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser.py");
    let mut browser = Command::new("/usr/bin/python3");
    browser.args(["-B", script, &format!("http://127.0.0.1:{port}/"), &width.to_string(), scheme]).arg(&picture);
    let seen: Value = serde_json::from_str(&must(&mut browser)).unwrap();
    let empty = |what: &str| assert_eq!(seen[what], Value::Array(Vec::new()), "{name} {width} {scheme}: {what}");
    for what in ["complaints", "elsewhere", "failed", "contrast"] {
        empty(what);
    }
    assert!(seen["wide"].as_i64().unwrap() <= 0, "{name} {width}: {} pixels too wide", seen["wide"]);
    let focused = seen["focused"].as_array().unwrap();
    assert!(focused.len() >= 5, "the keyboard reaches {focused:#?}");
    assert!(focused.iter().all(|element| element["shown"] == true), "a focus that cannot be seen: {focused:#?}");
    let places: Vec<i64> = focused.iter().map(|element| element["top"].as_i64().unwrap()).collect();
    assert!(places.is_sorted(), "from top to bottom: {focused:#?}");
    println!(
        "figure: {name} {width} {scheme}: first paint after {} ms, {} bytes",
        seen["first_paint_ms"], seen["bytes"]
    );
    seen
}

#[track_caller]
fn says(seen: &Value, words: &[&str]) {
    let text = seen["text"].as_str().unwrap();
    for word in words {
        assert!(text.contains(word), "the page says {word:?}:\n{text}");
    }
}

fn listen(port: u16) -> String {
    format!("[http]\nlisten = '127.0.0.1:{port}'\n")
}

/// A session that holds a row, and two that wait in a chain, one of them with a name and a text that would be markup.
async fn blocked(server: &Server) -> Vec<tokio::task::JoinHandle<()>> {
    server.sql("CREATE TABLE orders (id int PRIMARY KEY, state text); INSERT INTO orders VALUES (1, ''), (2, '')");
    let mut sessions = Vec::new();
    let all = [
        ("bitville-6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d", "BEGIN; UPDATE orders SET state = 'paid' WHERE id = 1"),
        (
            "<b>markup</b>",
            "BEGIN; UPDATE orders SET state = 'a' WHERE id = 2; UPDATE orders SET state = '<script>alert(1)</script>' WHERE id = 1",
        ),
        ("reports", "UPDATE orders SET state = '\u{202e}turned' WHERE id = 2"),
    ];
    for (number, (name, text)) in all.into_iter().enumerate() {
        let client = server.session(Role::Postgres, name).await;
        sessions.push(tokio::spawn(async move {
            let _ends_with_the_test = client.simple_query(text).await;
            std::future::pending::<()>().await;
        }));
        let waiting = format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND {number} > 0");
        wait_for("the session waits", BOUND, || server.sql(&waiting) == number.to_string());
        wait_for("the first one holds its row", BOUND, || {
            server.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == "1"
        });
    }
    sessions
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_agent_shows_the_way_of_its_data_and_who_blocks_whom() {
    let (broker, port) = (rabbit::shared(), free_port());
    let server = tokio::task::block_in_place(|| Server::private(17));
    let sessions = blocked(&server).await;
    let scene = Scene::new("page", &broker.url(), &["#"]).await;
    let config = scene.config(&broker.url(), &format!("agent.labels = {{ env = 'test' }}\n{}", listen(port)));
    let own = format!("postgres.url = '{}'", server.url(Role::Agent));
    let shared = format!("postgres.url = '{}'", crate::rig::postgres::shared(18).url(Role::Agent));
    let agent = Agent::start(scene.path(), &config.replace(&shared, &own));
    wait_for("both ends are reached", BOUND, || try_get(port, "/readyz").is_some_and(|ready| ready.status == 200));
    let statements = || {
        server.sql("SELECT count(*) FROM orders, generate_series(1, 100000)");
        try_get(port, "/messages/pg_statements.json").is_some_and(|message| message.body.contains("generate_series"))
    };
    wait_for("a statement is told", BOUND, statements);
    let seen = tokio::task::block_in_place(|| LOOKS.map(|(width, scheme)| look("healthy", port, width, scheme)));
    for seen in &seen {
        says(
            seen,
            &[
                "Healthy",
                "5 of 5 ok",
                "confirmed",
                "env=test",
                "blocks 2",
                "<b>markup</b>",
                "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d",
            ],
        );
        says(seen, &["<script>alert(1)</script>", "orders", "idle in transaction", "calls", "agent_status"]);
    }
    let assets: u64 = [
        "/",
        "/page.css",
        "/page.js",
        "/status.json",
        "/messages/pg_locks.json?rows=50",
        "/messages/pg_statements.json?rows=10",
    ]
    .iter()
    .map(|path| get(port, path).body.len() as u64)
    .sum();
    println!("figure: page, styles, script and what it first asks for: {assets} bytes");
    assert!(assets < PAGE_BYTES, "{assets} bytes");
    cost_of_an_open_page(&agent, port);
    sessions.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(scene.end(agent).await, nothing());
}

/// What the agent's processor has to do more while a page asks each two seconds: told, and not judged on a busy machine.
fn cost_of_an_open_page(agent: &Agent, port: u16) {
    let spent = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
        let time = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("schedstat")).ok();
        let times = tasks.flatten().filter_map(time);
        times.map(|line| line.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6).sum::<f64>()
    };
    let over = |seconds: u64, ask: &dyn Fn()| {
        let (start, before) = (Instant::now(), spent());
        for second in 0..seconds {
            if second % 2 == 0 {
                ask();
            }
            std::thread::sleep(Duration::from_secs(second + 1).saturating_sub(start.elapsed()));
        }
        (spent() - before) / start.elapsed().as_secs_f64() / 10.0
    };
    let page = || {
        get(port, "/status.json");
        // At these intervals there are new ones with each look, as there are not at the usual ones.
        get(port, "/messages/pg_locks.json?rows=50");
        get(port, "/messages/pg_statements.json?rows=10");
    };
    let (without, with) = tokio::task::block_in_place(|| (over(10, &|| ()), over(10, &page)));
    println!(
        "figure: processor with samples each 200 to 400 ms: {without:.2} % of a core, with a page open {with:.2} %"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_brings_less_than_it_could_says_so_on_its_page() {
    let (broker, port) = (rabbit::shared(), free_port());
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("page-less", &broker.url(), &["pg_#", "agent_status"]).await;
    let config = scene.config(&line.url(), &listen(port)).replace("//agent@", "//plain@");
    let agent = Agent::start(scene.path(), &config);
    wait_for("it is degraded, and one queue is missing", BOUND, || {
        let Some(status) = try_get(port, "/status.json") else { return false };
        let status = status.json();
        status["broker"]["returned"].as_u64() > Some(0) && status["collectors"][0]["state"] == "degraded"
    });
    let seen = tokio::task::block_in_place(|| LOOKS.map(|(width, scheme)| look("degraded", port, width, scheme)));
    for seen in &seen {
        says(seen, &["Degraded", "GRANT pg_monitor TO \"plain\";", "no queue is bound", "degraded"]);
    }
    agent.kill();
}

#[test]
fn an_agent_that_reaches_nobody_says_so_on_its_page() {
    let (folder, port) = (Folder::new("page-alone"), free_port());
    let config = format!(
        "postgres.url = 'host=127.0.0.1 port=1 user=agent'\namqp.url = 'amqp://127.0.0.1:1/%2f'\nspool.dir = '{}'\n\
         spool.min_free = '0'\nagent.name = 'alone'\ncollectors.agent_status.interval = '200ms'\n{}",
        folder.path().join("spool").display(),
        listen(port)
    );
    let agent = Agent::start(folder.path(), &config);
    wait_for("it reaches nobody", BOUND, || {
        try_get(port, "/readyz").is_some_and(|ready| ready.status == 503 && ready.body.matches("refused").count() == 2)
    });
    for (width, scheme) in LOOKS {
        says(&look("disconnected", port, width, scheme), &["Not connected", "failing", "not connected", "refused"]);
    }
    assert!(agent.stop(BOUND).0.success());
}

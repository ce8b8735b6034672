//! What a look costs the server: processor time of the agent's own backend, beside the queries of the usual design.
//!
//! ```sh
//! cargo bench --bench database                  # all loads, PostgreSQL 17
//! cargo bench --bench database -- 13 400        # PostgreSQL 13, only loads with 400 in their name
//! ```
//! The load is 4,900 statements in pg_stat_statements, 145 sessions, and chains of sessions that wait for locks. All are
//! measured in turn, round by round, as `/proc/PID/schedstat` tells of their backends: parse, plan, execution and sending,
//! nothing of what neighbours do. Medians are told; compare only within one run.
//!
//! The usual design reads the view pg_stat_statements with its texts, ordered by what ran since ever, joins pg_locks with
//! itself, and lists what is not idle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark says what went wrong by panicking, and prints what it found"
)]

#[allow(dead_code, reason = "made for tests")]
#[path = "../tests/it/looking.rs"]
mod looking;
#[path = "../tests/it/rig/mod.rs"]
mod rig;

use std::{fmt::Write, fs, time::Duration};

use looking::Looker;
use rig::postgres::{Role, Server};
use tokio_postgres::Client;

/// Rounds of each load; the first ones warm.
const ROUNDS: usize = 11;
const WARM: usize = 2;

const SETTINGS: &str = "
max_connections = 800
shared_buffers = 256MB
pg_stat_statements.max = 5000
pg_stat_statements.track_planning = on
track_activity_query_size = 4096
autovacuum = off
";

/// What is put on the server.
struct Load {
    name: &'static str,
    /// Bytes of a statement's text.
    text: usize,
    /// Of each of five chains, how many wait: four on rows, one on a table.
    waiters: usize,
    idle: usize,
}

const LOADS: [Load; 4] = [
    Load { name: "2 KiB texts, 50 waiters", text: 2048, waiters: 10, idle: 145 },
    Load { name: "8 KiB texts, 50 waiters", text: 8192, waiters: 10, idle: 145 },
    Load { name: "2 KiB texts, 400 waiters", text: 2048, waiters: 80, idle: 145 },
    Load { name: "200 B texts, 0 waiters", text: 200, waiters: 0, idle: 145 },
];

/// The usual design's queries, as far as the server has their columns.
fn usual(version: u32) -> [(&'static str, String); 3] {
    let blk =
        if version < 17 { "blk_read_time, blk_write_time" } else { "shared_blk_read_time, shared_blk_write_time" };
    let activity = "SELECT pid, usename, application_name, client_addr, client_port, backend_start, xact_start, query_start, \
         state_change, wait_event_type, wait_event, state, query, backend_type FROM pg_stat_activity \
         WHERE state != 'idle' AND pid != pg_backend_pid() ORDER BY query_start DESC LIMIT 100";
    let statements = format!(
        "SELECT queryid, query, calls, total_exec_time, mean_exec_time, min_exec_time, max_exec_time, stddev_exec_time, \
         rows, shared_blks_hit, shared_blks_read, shared_blks_written, local_blks_hit, local_blks_read, \
         local_blks_written, temp_blks_read, temp_blks_written, {blk} FROM public.pg_stat_statements \
         ORDER BY total_exec_time DESC LIMIT 100"
    );
    let same = [
        "locktype",
        "database",
        "relation",
        "page",
        "tuple",
        "virtualxid",
        "transactionid",
        "classid",
        "objid",
        "objsubid",
    ]
    .map(|column| format!("b.{column} IS NOT DISTINCT FROM h.{column}"));
    let locks = format!(
        "SELECT b.pid, ba.usename, ba.application_name, ba.client_addr, ba.query, ba.query_start, h.pid, ha.usename, \
         ha.application_name, ha.client_addr, ha.query, ha.query_start, b.locktype, b.mode, h.mode \
         FROM pg_locks b JOIN pg_stat_activity ba ON ba.pid = b.pid \
         JOIN pg_locks h ON {} AND h.pid != b.pid JOIN pg_stat_activity ha ON ha.pid = h.pid \
         WHERE NOT b.granted ORDER BY ba.query_start LIMIT 50",
        same.join(" AND ")
    );
    [("activity", activity.into()), ("statements", statements), ("locks", locks)]
}

/// Statement number `i`: its operators make it another entry than all others.
fn statement(i: usize, bytes: usize) -> String {
    const WORDS: [&str; 10] = [
        "orders",
        "customers",
        "order_lines",
        "invoices",
        "payments",
        "shipments",
        "addresses",
        "products",
        "prices",
        "stock",
    ];
    let mut text = String::from("select 1");
    for bit in 0..13 {
        write!(text, " {} {}", if i >> bit & 1 == 1 { '+' } else { '-' }, bit + 1).unwrap();
    }
    write!(text, " as {}_{i:05}", WORDS[i % 10]).unwrap();
    let mut parts = 1;
    while text.len() < bytes {
        let number = i * 7919 + parts * 104_729;
        write!(text, ", {parts} as {}_{}_{number:09}", WORDS[(i + parts) % 10], WORDS[parts % 10]).unwrap();
        parts += 1;
    }
    text
}

/// A crowd of sessions: the statements in the book, idle ones, and chains that wait.
async fn put(server: &Server, load: &Load) -> Vec<Client> {
    let mut crowd = Vec::new();
    server.sql("CREATE TABLE t (i int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10000) i");
    server.sql("CREATE TABLE u (i int)");
    server.sql("CREATE TABLE p (i int PRIMARY KEY, v int) PARTITION BY RANGE (i)");
    for part in 0..4 {
        let bounds = format!("({}) TO ({})", part * 1000, (part + 1) * 1000);
        server.sql(&format!("CREATE TABLE p{part} PARTITION OF p FOR VALUES FROM {bounds}"));
    }
    server.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; ANALYZE");
    let book = server.session(Role::Plain, "book").await;
    for i in 0..4900 {
        book.simple_query(&statement(i, load.text)).await.unwrap();
    }
    let begin = "BEGIN; SELECT count(*) FROM p WHERE v IS NULL";
    for n in 0..load.idle {
        match n % 10 {
            8 => crowd.push(session(server, &[], Some("SELECT pg_sleep(86400)")).await),
            9 => {
                crowd.push(session(server, &[begin, &format!("UPDATE t SET v = 1 WHERE i = {}", 5000 + n)], None).await)
            }
            _ => crowd.push(session(server, &["SELECT 1"], None).await),
        }
    }
    for chain in (0..5).take_while(|_| load.waiters > 0) {
        let take = |row: usize| format!("UPDATE t SET v = v + 1 WHERE i = {row}");
        let (root, middle) = (2 * chain + 1, 2 * chain + 2);
        let (first, second, then): (_, _, String) = if chain < 4 {
            (vec![take(root)], (vec![take(middle)], take(root)), take(middle))
        } else {
            let reader = "SELECT * FROM u".to_owned();
            (
                vec![reader],
                (vec![], "LOCK TABLE u IN ACCESS EXCLUSIVE MODE".to_owned()),
                "SELECT count(*) FROM u WHERE i > 0".into(),
            )
        };
        let all = |own: &[String]| std::iter::once(begin.to_owned()).chain(own.iter().cloned()).collect::<Vec<_>>();
        let texts = all(&first);
        crowd.push(session(server, &texts.iter().map(String::as_str).collect::<Vec<_>>(), None).await);
        let texts = all(&second.0);
        crowd.push(session(server, &texts.iter().map(String::as_str).collect::<Vec<_>>(), Some(&second.1)).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        for _ in 1..load.waiters {
            crowd.push(session(server, &[begin], Some(&then)).await);
        }
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let want = (load.waiters * 5).to_string();
    rig::wait_for("all wait who shall", Duration::from_secs(60), || server.sql(waiting) == want);
    crowd
}

/// A session that ran some statements, and then one that is not waited for.
async fn session(server: &Server, run: &[&str], then: Option<&str>) -> Client {
    let client = server.session(Role::Plain, "web").await;
    for sql in run {
        client.simple_query(sql).await.unwrap();
    }
    if let Some(then) = then {
        let query = client.simple_query(then);
        // Polled once, so that it is sent; its answer never comes.
        let _pending = tokio::time::timeout(Duration::from_millis(1), query).await;
    }
    client
}

/// Processor time of a process so far, in milliseconds.
fn cpu_ms(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// A collector of the agent's with a connection of its own, and what it costs.
struct Ours {
    name: &'static str,
    looker: Looker,
    pid: i32,
}

impl Ours {
    async fn new(server: &Server, name: &'static str) -> Self {
        let before = agents(server);
        let mut looker = Looker::new(name, &[("postgres.url", &server.url(Role::Agent)), ("postgres.pool_size", "1")]);
        looker.look().await;
        let pid = *agents(server).iter().find(|pid| !before.contains(pid)).expect("a connection of the agent's");
        Self { name, looker, pid }
    }

    async fn cost(&mut self) -> f64 {
        let before = cpu_ms(self.pid);
        self.looker.look().await;
        settled(self.pid, before)
    }
}

fn agents(server: &Server) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'postgres-agent'";
    server.sql(sql).lines().map(|pid| pid.parse().unwrap()).collect()
}

/// The time since `before`, once the backend has come to rest.
fn settled(pid: i32, before: f64) -> f64 {
    std::thread::sleep(Duration::from_millis(5));
    cpu_ms(pid) - before
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

async fn measure(version: u32, load: &Load) {
    let server = Server::with_settings(version, SETTINGS);
    let crowd = put(&server, load).await;
    let theirs = server.session(Role::Agent, "usual").await;
    let pid: i32 = theirs.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let usual = usual(version);
    let mut ours = Vec::new();
    for name in ["pg_activity", "pg_statements", "pg_locks"] {
        ours.push(Ours::new(&server, name).await);
    }
    let temp = "SELECT coalesce(sum(temp_blks_written), 0) FROM pg_stat_statements(false) s \
                WHERE userid = 'agent'::regrole AND queryid NOT IN \
                (SELECT queryid FROM pg_stat_statements WHERE query LIKE '%pg_statements.texts%' OR query LIKE '%FROM public.pg_stat_statements %')";
    let mut costs = vec![Vec::new(); usual.len() + ours.len()];
    for round in 0..ROUNDS + WARM {
        for (at, (_, sql)) in usual.iter().enumerate() {
            let before = cpu_ms(pid);
            theirs.simple_query(sql).await.unwrap();
            if round >= WARM {
                costs[at].push(settled(pid, before));
            }
        }
        for (at, one) in ours.iter_mut().enumerate() {
            let cost = one.cost().await;
            if round >= WARM {
                costs[usual.len() + at].push(cost);
            }
        }
    }
    println!(
        "\nPostgreSQL {version}, {}: CPU ms of the backend a look, median of {ROUNDS} (lowest to highest)",
        load.name
    );
    let mut sums = [0.0; 2];
    let names = usual.iter().map(|(name, _)| format!("usual {name}")).chain(ours.iter().map(|one| one.name.to_owned()));
    for (at, (name, costs)) in names.zip(&costs).enumerate() {
        sums[usize::from(at >= usual.len())] += median(costs);
        let (low, high) = costs.iter().fold((f64::MAX, 0.0f64), |(low, high), cost| (low.min(*cost), high.max(*cost)));
        println!("  {name:<18} {:>8.2}  ({low:.2} to {high:.2})", median(costs));
    }
    println!("  {:<18} {:>8.2}", "usual, a cycle", sums[0]);
    println!("  {:<18} {:>8.2}  = {:.3} of the usual one", "ours, a cycle", sums[1], sums[1] / sums[0]);
    println!("  {:<18} {:>8}", "our temp blocks", server.sql(temp));
    drop(crowd);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let version = |word: &String| word.parse().ok().filter(|number| rig::postgres::VERSIONS.contains(number));
    let versions: Vec<u32> = words.iter().filter_map(version).collect();
    let parts: Vec<&String> = words.iter().filter(|word| version(word).is_none()).collect();
    for version in if versions.is_empty() { vec![17] } else { versions } {
        for load in
            LOADS.iter().filter(|load| parts.is_empty() || parts.iter().any(|part| load.name.contains(part.as_str())))
        {
            measure(version, load).await;
        }
    }
}

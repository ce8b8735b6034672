//! What a look costs the server: processor time of the agent's own backend, beside the queries of the usual design.
//!
//! ```sh
//! cargo bench --bench database                  # all loads, PostgreSQL 17
//! cargo bench --bench database -- 13 400        # PostgreSQL 13, only loads with 400 in their name
//! ```
//! The load is 4,900 statements in pg_stat_statements, 145 sessions, and chains of sessions that wait for locks. All are
//! measured in turn, round by round, as `/proc/PID/schedstat` tells of their backends: parse, plan, execution and sending,
//! nothing of what neighbours do. Medians are told; compare only within one run.

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

#[expect(dead_code, reason = "made for tests")]
#[path = "../tests/it/looking.rs"]
mod looking;
mod reference;
#[path = "../tests/it/rig/mod.rs"]
mod rig;

use std::{fs, time::Duration};

use looking::Looker;
use reference::{LOAD, Load, SETTINGS, put, usual};
use rig::postgres::{Role, Server};

/// Rounds of each load; the first ones warm.
const ROUNDS: usize = 11;
const WARM: usize = 2;

/// Processor time of a process so far, in milliseconds.
fn cpu_ms(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

const LOADS: [Load; 4] = [
    LOAD,
    Load { name: "8 KiB texts, 50 waiters", statements: 4900, text: 8192, waiters: 10, idle: 145 },
    Load { name: "2 KiB texts, 400 waiters", statements: 4900, text: 2048, waiters: 80, idle: 145 },
    Load { name: "200 B texts, 0 waiters", statements: 4900, text: 200, waiters: 0, idle: 145 },
];

/// A collector of the agent's with a connection of its own, and what it costs.
struct Ours {
    name: &'static str,
    looker: Looker,
    pid: i32,
    /// What the first look cost, with the connection.
    first: f64,
}

impl Ours {
    async fn new(server: &Server, name: &'static str, texts: &str) -> Self {
        let before = agents(server);
        let url = server.url(Role::Agent);
        let settings = [("postgres.url", &*url), ("postgres.pool_size", "1"), ("privacy.query_text", texts)];
        let mut looker = Looker::new(name, &settings);
        looker.look().await;
        let pid = *agents(server).iter().find(|pid| !before.contains(pid)).expect("a connection of the agent's");
        Self { name, looker, pid, first: cpu_ms(pid) }
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
        ours.push(Ours::new(&server, name, "raw").await);
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
    let mut firsts = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        for (at, texts) in ["off", "raw"].into_iter().enumerate() {
            firsts[at].push(Ours::new(&server, "pg_statements", texts).await.first);
        }
    }
    // When a statement among those that are sent is new, and not before a hundred times as long has passed as the last
    // fetch took, a minute at the most.
    println!("  {:<18} {:>8.2}", "a fetch of texts", median(&firsts[1]) - median(&firsts[0]));
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

//! What users of a database feel of being looked at each second: pgbench alone, beside the agent, beside the usual design.
//!
//! ```sh
//! cargo bench --bench felt -- /usr/lib/postgresql/15/bin/pgbench            # 10 rounds of 60 s each
//! cargo bench --bench felt -- /usr/lib/postgresql/15/bin/pgbench 3 10
//! ```
//! In each round all three take their turn, in another order each time; the broker stands by in all of them. Told are
//! transactions a second and latency, each round's ratio to pgbench alone, and the spread.

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

mod reference;
#[path = "../tests/it/rig/mod.rs"]
mod rig;

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reference::{LOAD, SETTINGS, put, usual};
use rig::{
    Folder,
    agent::Agent,
    must,
    postgres::{Role, Server},
    rabbit,
};

const VERSION: u32 = 17;
/// Rows of pgbench's accounts, in units of 100,000.
const SCALE: &str = "10";
const KINDS: [&str; 3] = ["alone", "agent", "usual"];

/// One run of pgbench.
#[derive(Debug, Clone, Copy)]
struct Felt {
    per_second: f64,
    latency_ms: f64,
}

fn pgbench(program: &str, server: &Server, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p"]).arg(server.port().to_string()).args(args);
    must(command.arg("postgres"))
}

fn run(program: &str, server: &Server, seconds: u64) -> Felt {
    let text = pgbench(program, server, &["-n", "-M", "prepared", "-c", "4", "-j", "1", "-T", &seconds.to_string()]);
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
        line.trim_start_matches([' ', '=']).split(' ').next().unwrap().parse().unwrap()
    };
    Felt { per_second: number("tps"), latency_ms: number("latency average") }
}

fn config(server: &Server, folder: &Folder) -> String {
    let each = ["pg_activity", "pg_statements", "pg_locks", "system_metrics", "agent_status"];
    let intervals = each.map(|name| format!("collectors.{name}.interval = '1s'\n")).concat();
    format!(
        "postgres.url = '{}'\namqp.url = '{}'\namqp.exchange = 'felt'\nspool.dir = '{}'\nspool.min_free = '0'\n{intervals}",
        server.url(Role::Agent),
        rabbit::shared().url(),
        folder.path().join("spool").display()
    )
}

/// The usual design, each second.
async fn look(server: &Server, done: Arc<AtomicBool>) {
    let client = server.session(Role::Agent, "usual").await;
    let queries = usual(VERSION);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while !done.load(Ordering::Relaxed) {
        ticks.tick().await;
        for (_, sql) in &queries {
            client.simple_query(sql).await.unwrap();
        }
    }
}

async fn turn(kind: &str, program: &str, server: &Arc<Server>, seconds: u64) -> Felt {
    // Made anew: the load's open transactions keep pgbench's dead rows, and each run would find more of them.
    pgbench(program, server, &["-i", "-q", "-s", SCALE]);
    let folder = Folder::new("felt");
    let agent = (kind == "agent").then(|| Agent::start(folder.path(), &config(server, &folder)));
    let done = Arc::new(AtomicBool::new(false));
    let usual = (kind == "usual").then(|| {
        let (server, done) = (server.clone(), done.clone());
        tokio::spawn(async move { look(&server, done).await })
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let felt = {
        let (program, server) = (program.to_owned(), server.clone());
        tokio::task::spawn_blocking(move || run(&program, &server, seconds)).await.unwrap()
    };
    done.store(true, Ordering::Relaxed);
    if let Some(usual) = usual {
        usual.await.unwrap();
    }
    drop(agent);
    felt
}

fn spread(figures: &[f64]) -> String {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    format!("{:.3} ({low:.3} to {high:.3})", sorted[sorted.len() / 2])
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [program, numbers @ ..] = words.as_slice() else { panic!("where is pgbench?") };
    let number = |at: usize, else_: u64| numbers.get(at).map_or(else_, |word| word.parse().expect("a number"));
    let (rounds, seconds) = (number(0, 10), number(1, 60));
    let server = Arc::new(Server::with_settings(VERSION, SETTINGS));
    let crowd = put(&server, &LOAD).await;
    rabbit::shared().durable_queue("felt", "felt").await;
    let mut felt: [Vec<Felt>; 3] = Default::default();
    for round in 0..rounds {
        for step in 0..KINDS.len() {
            let at = (usize::try_from(round).unwrap() + step) % KINDS.len();
            let one = turn(KINDS[at], program, &server, seconds).await;
            println!(
                "round {}: {:<6} {:>9.1} a second, {:.3} ms",
                round + 1,
                KINDS[at],
                one.per_second,
                one.latency_ms
            );
            felt[at].push(one);
        }
    }
    println!("\nPostgreSQL {VERSION}, {}, {rounds} rounds of {seconds} s: median (lowest to highest)", LOAD.name);
    for (at, kind) in KINDS.iter().enumerate() {
        let figures = |of: fn(&Felt) -> f64| felt[at].iter().map(of).collect::<Vec<_>>();
        let ratios: Vec<f64> =
            felt[at].iter().zip(&felt[0]).map(|(one, alone)| one.per_second / alone.per_second).collect();
        println!(
            "  {kind:<6} {} a second, {} ms, {} of alone",
            spread(&figures(|felt| felt.per_second)),
            spread(&figures(|felt| felt.latency_ms)),
            spread(&ratios)
        );
    }
    drop(crowd);
}

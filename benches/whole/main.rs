//! What the agent costs, and how close it is to what disk, broker and codec can give: measured side by side in one run.
//!
//! `benches/run.sh` runs it. Each figure is taken in at least seven rounds; in each round everything that is compared
//! takes its turn, in another order each time, each in a process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark says what went wrong by panicking, and prints what it found"
)]

mod agent;
mod cell;
mod chart;
mod disk;
mod growth;
#[cfg(target_arch = "x86_64")]
mod order;
mod parts;
mod peer;
mod publish;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../../tests/it/rig/mod.rs"]
mod rig;
mod rows;
mod size;
mod table;
mod words;

use std::path::Path;

use serde::Serialize;
use serde_json::json;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [cell, text] = words.as_slice()
        && cell == "cell"
    {
        return cell::Cell::run(text);
    }
    #[cfg(target_arch = "x86_64")]
    match words.as_slice() {
        [trace, list, command @ ..] if trace == "trace" => return order::trace(list, command),
        [.., order] if order == "order" => return order::order(),
        _ => {}
    }
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let rounds = value("rounds").map_or(7, |rounds| rounds.parse().expect("rounds=NUMBER"));
    let out = Path::new(value("out").unwrap_or("benches/out"));
    let named: Vec<&String> = words.iter().filter(|word| !word.contains('=')).collect();
    let all = named.is_empty();
    let wanted = |name: &str| named.iter().any(|word| *word == name);
    std::fs::create_dir_all(out).unwrap();
    let mut found = Found { rounds, machine: machine(), ..Found::default() };
    for (name, part) in parts::ALL.into_iter().filter(|(name, _)| all || wanted(name)) {
        eprintln!("{name} …");
        found.figures.extend(part(rounds));
        found.write(out);
    }
    if wanted("hour") {
        found.figures.extend(parts::hour());
    }
    if all || wanted("growth") {
        eprintln!("growth …");
        found.growth = growth::curves();
    }
    found.write(out);
    println!("{}\n{}", table::table(&found.figures), growth::table(&found.growth));
}

/// All that a run found so far.
#[derive(Default, Serialize)]
struct Found {
    machine: serde_json::Value,
    rounds: usize,
    figures: Vec<table::Figure>,
    growth: Vec<growth::Curve>,
}

impl Found {
    fn write(&self, out: &Path) {
        let write = |name: &str, text: String| std::fs::write(out.join(name), text).unwrap();
        write("results.json", serde_json::to_string_pretty(self).unwrap());
        if !self.figures.is_empty() {
            write("results.svg", chart::shares(&self.figures));
        }
        if !self.growth.is_empty() {
            write("growth.svg", chart::growth(&self.growth));
        }
    }
}

/// Where it was measured, and with what.
fn machine() -> serde_json::Value {
    let first = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned()
    };
    let says = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output();
        output
            .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    json!({
        "agent": env!("CARGO_PKG_VERSION"),
        "commit": says("git", &["rev-parse", "--short", "HEAD"]),
        "rustc": says("rustc", &["--version"]),
        "kernel": says("uname", &["--kernel-release"]),
        "processor": first("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": first("/proc/meminfo", "MemTotal"),
        "postgresql": 17,
        "rabbitmq": says("dpkg-query", &["-W", "-f", "${Version}", "rabbitmq-server"]),
    })
}

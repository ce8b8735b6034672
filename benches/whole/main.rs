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
mod parts;
mod publish;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../../tests/it/rig/mod.rs"]
mod rig;
mod rows;
mod table;
mod words;

use std::path::Path;

use serde_json::json;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [cell, text] = words.as_slice()
        && cell == "cell"
    {
        return cell::Cell::run(text);
    }
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let rounds = value("rounds").map_or(7, |rounds| rounds.parse().expect("rounds=NUMBER"));
    let out = Path::new(value("out").unwrap_or("benches/out"));
    let named: Vec<&String> = words.iter().filter(|word| !word.contains('=')).collect();
    let all = named.is_empty();
    let wanted = |name: &str| named.iter().any(|word| *word == name);
    let mut figures = Vec::new();
    for (name, part) in parts::ALL.into_iter().filter(|(name, _)| all || wanted(name)) {
        eprintln!("{name} …");
        figures.extend(part(rounds));
    }
    if wanted("hour") {
        figures.extend(parts::hour());
    }
    let curves = if all || wanted("growth") { growth::curves() } else { Vec::new() };
    println!("{}\n{}", table::table(&figures), growth::table(&curves));
    std::fs::create_dir_all(out).unwrap();
    let write = |name: &str, text: String| std::fs::write(out.join(name), text).unwrap();
    let results = json!({ "machine": machine(), "rounds": rounds, "figures": figures, "growth": curves });
    write("results.json", serde_json::to_string_pretty(&results).unwrap());
    if !figures.is_empty() {
        write("results.svg", chart::shares(&figures));
    }
    if !curves.is_empty() {
        write("growth.svg", chart::growth(&curves));
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
        "kernel": first("/proc/version", ""),
        "processor": first("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": first("/proc/meminfo", "MemTotal"),
        "postgresql": 17,
        "rabbitmq": says("dpkg-query", &["-W", "-f", "${Version}", "rabbitmq-server"]),
    })
}

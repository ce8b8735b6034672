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
mod disk;
mod parts;
mod publish;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../../tests/it/rig/mod.rs"]
mod rig;
mod table;
mod words;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [cell, text] = words.as_slice()
        && cell == "cell"
    {
        return cell::Cell::run(text);
    }
    let rounds = words.iter().find_map(|word| word.strip_prefix("rounds=")?.parse().ok()).unwrap_or(7);
    let named = || words.iter().filter(|word| !word.contains('='));
    let mut figures = Vec::new();
    for (name, part) in parts::ALL {
        if named().next().is_none() || named().any(|word| word == name) {
            eprintln!("{name} …");
            let found = part(rounds);
            println!("{}", table::table(&found));
            figures.extend(found);
        }
    }
}

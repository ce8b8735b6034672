//! `config`: what holds and why, as a file that could be read again.
//!
//! Secrets are masked in what holds; the defaults are none and are written out.

use std::fmt::Write;

use super::{Outcome, say};
use crate::{
    config::{self, Loaded},
    settings::{Known, variable},
};

/// Print the effective configuration, secrets masked, and where each value came from
///
/// Exit status: 0, or 78 where the configuration is refused.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print a commented file with every key and its default instead, to start from
    #[arg(long)]
    pub(super) defaults: bool,
}

/// Prints what holds.
pub(super) fn effective(loaded: &Loaded) -> Outcome {
    let file = match &loaded.file {
        Some(path) => path.display().to_string(),
        None => "none".into(),
    };
    let head = format!("# Effective configuration of postgres-agent {}. File: {file}\n", env!("CARGO_PKG_VERSION"));
    say(&(head + &tables(&loaded.known, value)))
}

/// Prints a file to start from.
pub(super) fn defaults() -> Outcome {
    say(&default_file())
}

fn default_file() -> String {
    let head = format!(
        "# Configuration of postgres-agent {}: every key with its default.\n\
         # Each key can be overridden by a variable: postgres.pool_size by {}.\n\
         # Durations are written \"250ms\", \"10s\", \"7d\"; sizes \"16MiB\".\n",
        env!("CARGO_PKG_VERSION"),
        variable("postgres.pool_size")
    );
    head + &tables(&config::defaults(), commented)
}

/// All keys under their tables. A table stands once, however its keys were read.
fn tables(known: &[Known], line: fn(&str, &Known) -> String) -> String {
    let mut tables: Vec<(&str, String)> = Vec::new();
    for known in known {
        let (table, name) = known.path.rsplit_once('.').unwrap_or(("", &known.path));
        let line = line(name, known);
        match tables.iter_mut().find(|(name, _)| *name == table) {
            Some((_, lines)) => lines.push_str(&line),
            None => tables.push((table, line)),
        }
    }
    let mut out = String::new();
    for (name, lines) in tables {
        // Writing to a String cannot fail.
        let _infallible = write!(out, "\n[{name}]\n{}\n", lines.trim_end());
    }
    out
}

fn value(name: &str, known: &Known) -> String {
    match &known.value {
        Some(value) => format!("{:<40} # {}\n", format!("{name} = {value}"), known.origin),
        None => format!("{:<40} # left out\n", format!("# {name}")),
    }
}

fn commented(name: &str, known: &Known) -> String {
    let about = format!("{} Must be {}.", known.doc, known.allowed);
    let about = if known.allowed.starts_with("a text") { known.doc } else { &about };
    let about = wrapped(about, 110).join("\n# ");
    // An empty line behind each key: its description belongs to it alone.
    match &known.default {
        Some(default) => format!("# {about}\n{name} = {default}\n\n"),
        None => format!("# {about}\n#{name} =\n\n"),
    }
}

/// Breaks a text into lines of at most `width` characters, longer words excepted.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::settings::Origin;

    fn load(text: &str) -> Vec<Known> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).expect("written");
        config::load_from(Some(&path), &[], None).expect("no mistake").known
    }

    #[test]
    fn the_commented_file_is_read_cleanly_and_equals_the_defaults() {
        let text = default_file();
        let pairs = |known: Vec<Known>| known.into_iter().map(|known| (known.path, known.value)).collect::<Vec<_>>();
        let read = load(&text);
        assert!(read.iter().all(|known| known.default.is_none() || known.origin != Origin::Default), "{text}");
        assert_eq!(pairs(read), pairs(config::defaults()));
        for known in config::defaults() {
            let name = known.path.rsplit('.').next().expect("a name");
            assert!(text.contains(&format!("\n{name} = ")) || text.contains(&format!("\n#{name} =\n")), "{name}");
            assert!(known.doc.ends_with('.'), "{}: its description is a sentence: {}", known.path, known.doc);
        }
    }

    #[test]
    fn the_effective_configuration_is_read_back_as_it_is() {
        let known = load("[agent]\nname = 'a\"b'\nlabels = { 'x.y' = '1', z = '2' }\n[spool]\nreplay_rate = '1MiB'\n");
        let again = load(&tables(&known, value));
        let values = |known: &[Known]| known.iter().map(|known| known.value.clone()).collect::<Vec<_>>();
        assert_eq!(values(&again), values(&known));
    }
}

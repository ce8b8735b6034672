//! What an operator copies from deploy/: each file does what it says, on real servers and under a real systemd where
//! one can be had here, by the judge of its own kind where not. deploy/README.md says which.

mod containers;
mod metrics;
mod package;
mod servers;
mod unit;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::rig::postgres::cache;

/// A file below deploy/.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A judge that tests/servers.sh fetched.
fn tool(name: &str) -> PathBuf {
    let path = cache().join("tools").join(name);
    assert!(path.exists(), "{} is missing: run tests/servers.sh", path.display());
    path
}

/// The documents of a YAML stream.
fn yaml(text: &str) -> Vec<Value> {
    const READ: &str = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let mut python = Command::new("/usr/bin/python3");
    let mut child = python.args(["-c", READ]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "no YAML: {text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

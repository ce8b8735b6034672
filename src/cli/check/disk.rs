//! The spool's folder: may the agent use it, does somebody, is there room. Only looked at.

use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::Finding;
use crate::{
    spool::{Config, outside},
    units::size,
};

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![folder(&config.dir)];
    findings.extend(held(&config.dir));
    findings.push(space(config));
    findings
}

/// The folder itself, or where it will be made.
fn standing(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|path| path.exists())
}

fn folder(dir: &Path) -> Finding {
    const ID: &str = "spool.folder";
    let shown = dir.display();
    let standing = standing(dir).unwrap_or(Path::new("/"));
    let make = format!("install -d -m 0700 -o <the agent's user> {shown}");
    if !standing.is_dir() {
        return Finding::failure(ID, format!("{} is no folder", standing.display()), "set spool.dir to a folder");
    }
    if let Err(error) = access(standing, Access::WRITE_OK | Access::EXEC_OK) {
        let cause =
            format!("{} cannot be written: {error}; what is not confirmed would be in memory only", standing.display());
        return Finding::failure(ID, cause, make);
    }
    if standing == dir { Finding::ok(ID, format!("{shown}")) } else { Finding::ok(ID, format!("{shown} will be made")) }
}

/// Whether an agent runs on it, which is as it should be.
fn held(dir: &Path) -> Option<Finding> {
    dir.join("lock").exists().then_some(())?;
    let cause = match outside::holder(dir) {
        None => "no agent runs on it".into(),
        Some(process) => format!("an agent runs on it (process {process})"),
    };
    Some(Finding::ok("spool.held", cause))
}

fn space(config: &Config) -> Finding {
    const ID: &str = "spool.space";
    let Some(standing) = standing(&config.dir) else {
        return Finding::failure(ID, "no folder above it exists", "set spool.dir to a folder that can be made");
    };
    let stat = match statvfs(standing) {
        Ok(stat) => stat,
        Err(error) => {
            let cause = format!("{}: {error}", standing.display());
            return Finding::failure(ID, cause, "set spool.dir to a folder on a local disk");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let mib = |bytes: u64| size(bytes >> 20 << 20);
    let seen = format!("{} free on the file system of {}", mib(free), standing.display());
    if free <= config.min_free {
        let cause = format!("{seen}; the agent keeps {} free and would run from memory", size(config.min_free));
        return Finding::warning(ID, cause, "make room, or set spool.min_free lower");
    }
    let usable = free - config.min_free;
    if usable < config.max_bytes {
        let cause = format!("{seen}; of spool.max_bytes = {} only {} can be used", size(config.max_bytes), mib(usable));
        return Finding::warning(ID, cause, format!("make room, or set spool.max_bytes to \"{}\"", mib(usable)));
    }
    Finding::ok(ID, seen)
}

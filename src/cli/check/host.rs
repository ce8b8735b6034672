//! The host: the spool's folder and its space, descriptors, what of `/proc` is seen, and the status page's port. Only looked
//! at.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{Access, Mode, access, statvfs},
    process::{Resource, getrlimit},
};

use super::{
    Finding, Mend,
    words::{text, user, word},
};
use crate::{
    config::{Config, Loaded},
    spool::{self, outside},
    units::{duration, size},
};

/// Descriptors that the agent takes at the most, with room for what its libraries open for a moment.
const DESCRIPTORS: u64 = 128;

pub(super) fn look(loaded: &Loaded) -> Vec<Finding> {
    let config = &loaded.config;
    let dir = &config.spool.dir;
    let mut findings = vec![folder(dir)];
    if findings.iter().all(|finding| finding.mend.is_none()) {
        findings.extend(mode(dir));
        findings.extend(file_system(dir));
    }
    let holder = dir.join("lock").exists().then(|| outside::holder(dir));
    findings.extend(holder.as_ref().map(|holder| held(holder.as_deref())));
    findings.push(space(&config.spool));
    findings.push(descriptors());
    findings.extend(seen(loaded));
    findings.extend(page(config, holder.flatten().is_some()));
    findings
}

/// The folder itself, or where it will be made.
fn standing(dir: &Path) -> &Path {
    dir.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("/"))
}

fn shown(path: &Path) -> String {
    word(&path.display().to_string())
}

fn folder(dir: &Path) -> Finding {
    const ID: &str = "spool.folder";
    let standing = standing(dir);
    let make = format!("install -d -m 0700 -o {} {}", user(), shown(dir));
    if !standing.is_dir() {
        let cause = format!("{} is no folder", standing.display());
        if !standing.is_file() {
            return Finding::failure(ID, cause, Mend::Words("set spool.dir to a folder on a disk".into()));
        }
        // What stands there is somebody's: it is kept.
        let aside = shown(&standing.with_extension("aside"));
        let mend = format!("mv {} {aside} && {make}", shown(standing));
        return Finding::failure(ID, cause, Mend::Shell(mend));
    }
    if let Err(error) = access(standing, Access::WRITE_OK | Access::EXEC_OK) {
        let cause =
            format!("{} cannot be written: {error}; what is not confirmed would be in memory only", standing.display());
        let mend = if standing == dir {
            format!("chown -R {} {} && chmod 0700 {}", user(), shown(dir), shown(dir))
        } else {
            make
        };
        return Finding::failure("spool.rights", cause, Mend::Shell(mend));
    }
    let dir = dir.display();
    if standing == Path::new(&dir.to_string()) {
        Finding::ok(ID, format!("{dir}"))
    } else {
        Finding::ok(ID, format!("{dir} will be made"))
    }
}

/// Who else may look into the folder.
fn mode(dir: &Path) -> Option<Finding> {
    const ID: &str = "spool.mode";
    let mode = dir.metadata().ok()?.permissions().mode() & 0o777;
    if Mode::from_raw_mode(mode).intersection(Mode::RWXG | Mode::RWXO).is_empty() {
        return Some(Finding::ok(ID, format!("for its owner alone (mode {mode:04o})")));
    }
    let cause = format!("others may look into {}, where texts of queries wait (mode {mode:04o})", dir.display());
    Some(Finding::warning(ID, cause, Mend::Shell(format!("chmod 0700 {}", shown(dir)))))
}

/// What kind of disk it is on.
fn file_system(dir: &Path) -> Option<Finding> {
    const ID: &str = "spool.file_system";
    let standing = standing(dir).canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // `… … … … MOUNT … - TYPE …`: the longest mount that holds the folder, and of those the last one.
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let at = left.split(' ').nth(4)?.replace("\\040", " ");
        standing.starts_with(&at).then(|| (at.len(), right.split(' ').next().unwrap_or_default().to_owned()))
    };
    let (_, kind) = mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length)?;
    let elsewhere = || {
        let usual = if dir == Path::new(USUAL) { "/var/spool/postgres-agent" } else { USUAL };
        Mend::setting("spool", "dir", &text(usual))
    };
    Some(match kind.as_str() {
        "tmpfs" | "ramfs" => {
            let cause =
                format!("{} is in memory ({kind}): what waits does not survive a restart of the host", dir.display());
            Finding::warning(ID, cause, elsewhere())
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "fuse.sshfs" => {
            let cause = format!(
                "{} is on another host ({kind}): an outage of the network is then one of the spool",
                dir.display()
            );
            Finding::warning(ID, cause, elsewhere())
        }
        _ => Finding::ok(ID, kind),
    })
}

const USUAL: &str = "/var/lib/postgres-agent/spool";

/// Whether an agent runs on it, which is as it should be.
fn held(holder: Option<&str>) -> Finding {
    let cause = match holder {
        None => "no agent runs on it".into(),
        Some(process) => format!("an agent runs on it (process {process})"),
    };
    Finding::ok("spool.held", cause)
}

/// Bytes that are free where the spool is.
fn free(config: &spool::Config) -> Option<u64> {
    statvfs(standing(&config.dir)).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// As people write it, in whole MiB where it is that much.
fn about(bytes: u64) -> String {
    size(if bytes < 1 << 20 { bytes } else { bytes >> 20 << 20 })
}

fn space(config: &spool::Config) -> Finding {
    const ID: &str = "spool.space";
    let standing = standing(&config.dir).display();
    let Some(free) = free(config) else {
        let words = "set spool.dir to a folder on a local disk";
        return Finding::failure(ID, format!("the space of {standing} cannot be told"), Mend::Words(words.into()));
    };
    let seen = format!("{} free on the file system of {standing}", about(free));
    if free <= config.min_free {
        let cause = format!("{seen}; the agent keeps {} free and would run from memory", size(config.min_free));
        let mend = Mend::setting("spool", "min_free", &text(&about(free / 2)));
        return Finding::warning(ID, cause, mend);
    }
    let usable = free - config.min_free;
    if usable < config.max_bytes {
        let cause =
            format!("{seen}; of spool.max_bytes = {} only {} can be used", size(config.max_bytes), about(usable));
        return Finding::warning(
            ID,
            cause,
            Mend::setting("spool", "max_bytes", &text(&about((usable / 10 * 9).max(1 << 20)))),
        );
    }
    Finding::ok(ID, seen)
}

/// Whether an outage as long as `spool.max_age` fits, where so many bytes come a second.
pub(super) fn outage(config: &spool::Config, rate: f64) -> Option<Finding> {
    const ID: &str = "spool.outage";
    let room = free(config)?.saturating_sub(config.min_free).min(config.max_bytes);
    if rate <= 0.0 || room == 0 {
        return None;
    }
    let lasts = Duration::try_from_secs_f64(room as f64 / rate).unwrap_or(Duration::MAX);
    let seen = format!("at {rate:.0} bytes a second as now, {} last for {}", about(room), rounded(lasts));
    if lasts >= config.max_age {
        return Some(Finding::ok(ID, seen));
    }
    let cause =
        format!("{seen}, and spool.max_age is {}: of a longer outage the oldest is lost", duration(config.max_age));
    // What comes in a second differs from look to look: a fifth is spared, so that what was mended stays so.
    Some(Finding::warning(ID, cause, Mend::setting("spool", "max_age", &text(&rounded(lasts / 5 * 4)))))
}

/// In whole hours, minutes or seconds, and no longer than it is.
fn rounded(time: Duration) -> String {
    let seconds = time.as_secs().max(1);
    let unit = match seconds {
        0..120 => 1,
        120..7_200 => 60,
        _ => 3_600,
    };
    duration(Duration::from_secs(seconds / unit * unit))
}

fn descriptors() -> Finding {
    const ID: &str = "host.descriptors";
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < DESCRIPTORS => {
            let cause = format!("{limit} open files are allowed: the agent may not get all that it needs");
            // Under systemd: LimitNOFILE.
            Finding::warning(ID, cause, Mend::Shell("ulimit -n 1024".into()))
        }
        Some(limit) => Finding::ok(ID, format!("{limit} open files are allowed")),
        None => Finding::ok(ID, "open files are not limited"),
    }
}

/// What `system_metrics` is to see of the host.
fn seen(loaded: &Loaded) -> Vec<Finding> {
    const TABLE: &str = "collectors.system_metrics";
    if value(loaded, TABLE, "enabled") != Some(toml::Value::from(true)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if let Some(toml::Value::String(proc)) = value(loaded, TABLE, "proc") {
        findings.push(match fs::read(Path::new(&proc).join("stat")) {
            Ok(_) => Finding::ok("host.proc", proc),
            Err(error) => {
                let cause = format!("{proc}/stat: {error}; the host's figures are missing");
                Finding::failure("host.proc", cause, Mend::setting(TABLE, "proc", &text("/proc")))
            }
        });
    }
    if let Some(toml::Value::Array(paths)) = value(loaded, TABLE, "disk_paths") {
        let paths: Vec<&str> = paths.iter().filter_map(toml::Value::as_str).collect();
        findings.push(if paths.is_empty() || paths.iter().any(|path| Path::new(path).exists()) {
            Finding::ok("host.disk_paths", paths.join(", "))
        } else {
            let cause = "none of the paths is there: no file system's space is told";
            Finding::warning("host.disk_paths", cause, Mend::setting(TABLE, "disk_paths", "['/']"))
        });
    }
    findings
}

/// The effective value of a key that only its own collector knows.
fn value(loaded: &Loaded, table: &str, key: &str) -> Option<toml::Value> {
    let path = format!("{table}.{key}");
    let known = loaded.known.iter().find(|known| known.path == path)?;
    format!("value = {}", known.value.as_ref()?).parse::<toml::Table>().ok()?.remove("value")
}

/// The status page's port. An agent that runs has it, as it should.
fn page(config: &Config, running: bool) -> Vec<Finding> {
    const ID: &str = "http.listen";
    let Some(at) = config.http.listen else { return vec![Finding::ok(ID, "turned off")] };
    let mut findings = Vec::new();
    if !at.ip().is_loopback() {
        let mend = Mend::setting("http", "listen", &text(&format!("127.0.0.1:{}", at.port())));
        let cause = format!("whoever reaches {at} may look at the agent, without a login");
        findings.push(Finding::warning("http.exposed", cause, mend));
    }
    findings.push(match TcpListener::bind(at) {
        Ok(_) => Finding::ok(ID, format!("{at} is free")),
        Err(_) if running => Finding::ok(ID, format!("{at} is in use, as by the agent that runs")),
        Err(error) => {
            let mend = Mend::setting("http", "listen", &text(&free_port(at).to_string()));
            Finding::warning(ID, format!("{at}: {error}; there would be no status page, health or metrics"), mend)
        }
    });
    findings
}

/// The next port that can be had on this address.
fn free_port(at: SocketAddr) -> SocketAddr {
    let ports = (at.port().saturating_add(1)..=u16::MAX).take(100);
    let mut places = ports.map(|port| SocketAddr::new(at.ip(), port));
    places.find(|place| TcpListener::bind(place).is_ok()).unwrap_or(SocketAddr::new(at.ip(), 0))
}

//! What the integration tests stand on: real servers on free loopback ports under a temporary folder.
//!
//! `postgres` and `rabbit` start servers, `pgbouncer` a pooler, `tls` makes certificates, `agent` starts the built binary,
//! `machine` boots a systemd for its unit; `proxy` is a bad line between the two, `disk` a bad disk under it, `judges` say
//! whether anything is missing; `http` asks the agent's own port, `operator` types what `check` prints; `peer` is no server but
//! a script that
//! speaks AMQP, for what no broker does on demand. A test that only reads shares a server (`shared`), one that
//! breaks things starts its own (`private`). Nothing outlives the test process, not even when it is killed with -9: that
//! is `warden`'s work.
//!
//! No test sleeps for a guess: [`wait_for`] waits for a named condition, with a bound.

#![allow(dead_code, reason = "the rig offers whole servers, not only what today's tests ask of them")]

pub(crate) mod agent;
pub(crate) mod chance;
pub(crate) mod disk;
pub(crate) mod http;
pub(crate) mod judges;
pub(crate) mod machine;
pub(crate) mod operator;
pub(crate) mod peer;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod rabbit;
pub(crate) mod tls;
pub(crate) mod warden;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Waits until `condition` holds; panics with `what` after `bound`.
#[track_caller]
pub(crate) fn wait_for(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    wait_for_some(what, bound, || condition().then_some(()));
}

/// Waits until `look` finds something and returns it; panics with `what` after `bound`.
#[track_caller]
pub(crate) fn wait_for_some<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < bound, "waited {bound:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Like [`wait_for_some`], for conditions that are asked for in async code.
#[track_caller]
pub(crate) fn wait_for_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(start.elapsed() < bound, "waited {bound:?} in vain: {what} ({caller})");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Runs a test of this binary alone, in a process of its own, so that threads, descriptors and memory are nobody else's.
/// True in that process; false in the one that started it, once it ended well. Lines with `figure:` are printed here too,
/// and lines of the report are written.
pub(crate) fn alone(test: &str) -> bool {
    const ALONE: &str = "FAULT_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    println!("{}", text.lines().filter(|line| line.contains("figure:")).collect::<Vec<_>>().join("\n"));
    false
}

/// A loopback port that nobody listens on, below the range the kernel gives to outgoing connections: a port
/// from that range could be taken by some client while its server is down for a test.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7919);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(17_000 + start.wrapping_add(step) % 15_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A temporary folder that other users may enter, removed when dropped or when the test process is gone.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pga-{}-{step}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        warden::watch_folder(&path);
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A folder inside that belongs to the user a server runs as.
    fn owned_by(&self, name: &str, user: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        if is_root() {
            let (uid, gid) = ids(user);
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        }
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn ids(user: &str) -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user));
    let line = line.unwrap_or_else(|| panic!("there is no user {user}: run tests/servers.sh"));
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

/// `program` as `user` where the tests run as root (PostgreSQL refuses root), else as who runs the tests.
fn command_as(user: &str, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--clear-groups").arg("--").arg(program);
    command
}

/// Runs to its end what must succeed, and returns what it printed.
#[track_caller]
pub(crate) fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

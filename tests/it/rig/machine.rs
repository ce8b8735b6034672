//! A Debian machine that a real systemd booted: this one's own file system below a layer that goes away, in namespaces of its own
//! (systemd-nspawn). The network is shared, so that the rig's servers are reached.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use super::{Folder, disk::can, is_root, wait_for, wait_for_some, warden};

const BOUND: Duration = Duration::from_secs(120);

/// Becomes systemd-nspawn. Nobody registers the machine: there may be no systemd outside. None of the services that are enabled
/// outside are inside: their ports are taken.
const BOOT: &str = r#"
set -e
mkdir "$0/layer"
mount -t tmpfs -o mode=755 tmpfs "$0/layer"
cd "$0/layer"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
rm -rf root/etc/systemd/system/*.wants root/usr/sbin/policy-rc.d
# Nor is what an agent may have left outside.
rm -rf root/var/lib/postgres-agent root/etc/postgres-agent
# Saves building an index of all man pages at each installation.
rm -f root/var/lib/man-db/auto-update
exec systemd-nspawn --quiet --directory="$0/layer/root" --boot --machine=postgres-agent --register=no --keep-unit --link-journal=no \
  --console=pipe --bind-ro="$1:/srv" systemd.unit=basic.target
"#;

/// What a machine stands on: namespaces of its own, and a layer over this one's file system.
const GROUND: &str = r#"
set -e
mount -t tmpfs tmpfs "$0"
cd "$0"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
"#;

/// One machine; gone when dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    nspawn: Child,
    /// Its process 1, as seen from here.
    init: u32,
    folder: Folder,
}

impl Machine {
    /// Boots and waits until its systemd answers. `shared` is /srv inside, read only. `None` where this machine lets nobody
    /// have namespaces and layers, which is told.
    pub(crate) fn boot(shared: &Path) -> Option<Self> {
        let folder = Folder::new("machine");
        let ground = folder.path().join("ground");
        fs::create_dir(&ground).unwrap();
        let mut trial = as_root("unshare");
        trial.args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--propagation=private", "bash", "-c", GROUND]);
        can("have a machine within it", trial.arg(&ground))?;
        let console = fs::File::create(folder.path().join("console")).unwrap();
        let mut nspawn = as_root("unshare");
        nspawn.args(["--mount", "--propagation=private", "bash", "-c", BOOT]).arg(folder.path()).arg(shared);
        nspawn.stdin(Stdio::null()).stdout(console.try_clone().unwrap()).stderr(console);
        let nspawn = nspawn.spawn().expect("systemd-nspawn starts: run tests/servers.sh");
        warden::watch(nspawn.id(), warden::Ends::OnKill);
        let mut machine = Self { nspawn, init: 0, folder };
        machine.init = wait_for_some("the machine has a process 1", BOUND, || {
            if let Some(status) = machine.nspawn.try_wait().unwrap() {
                panic!("the machine ended: {status}\n{}", machine.console());
            }
            first_process(machine.nspawn.id())
        });
        // It outlives a systemd-nspawn that is killed.
        warden::watch(machine.init, warden::Ends::OnKill);
        wait_for("the machine's systemd answers", BOUND, || {
            let answer = machine.run("systemctl is-active basic.target");
            String::from_utf8_lossy(&answer.stdout).trim() == "active"
        });
        Some(machine)
    }

    /// Runs a shell's command inside, as root.
    pub(crate) fn run(&self, command: &str) -> Output {
        let mut nsenter = as_root("nsenter");
        nsenter.arg(format!("--target={}", self.init));
        nsenter.args([
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--cgroup",
            "--root",
            "--wdns=/",
            "--",
            "/usr/bin/env",
            "-i",
        ]);
        nsenter.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "bash", "-c", command]);
        nsenter.stdin(Stdio::null()).output().unwrap()
    }

    /// As [`Machine::run`], for what must succeed; what it printed.
    #[track_caller]
    pub(crate) fn must(&self, command: &str) -> String {
        let output = self.run(command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command}: {}\n{out}{err}\n{}", output.status, self.journal());
        out.trim_end().to_owned()
    }

    /// What the agent's unit logged.
    pub(crate) fn journal(&self) -> String {
        let output = self.run("journalctl --no-pager -o cat -u postgres-agent");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.path().join("console")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // When process 1 of its namespace ends, everything in it does.
        let end = if self.init == 0 { self.nspawn.id() } else { self.init };
        let _ = as_root("kill").args(["-KILL", &end.to_string()]).status();
        let _ = self.nspawn.wait();
        warden::forget(self.nspawn.id());
        warden::forget(self.init);
    }
}

/// A descendant that is process 1 of a namespace.
fn first_process(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find_map(|child: u32| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let inside = numbers.split_whitespace().skip(1).last() == Some("1");
        if inside { Some(child) } else { first_process(child) }
    })
}

fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

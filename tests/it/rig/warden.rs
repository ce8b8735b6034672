//! The warden: ends what a dead test process leaves behind.
//!
//! A shell waits at the end of a pipe whose other end only this process holds. However this process ends,
//! a kill -9 included, the kernel closes the pipe; then the shell ends every server still named to it, unmounts
//! what was mounted and removes the temporary folders. Rust runs no destructor of a static, so shared servers end this way too.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
};

/// Ends by process id, each with the signal that ends its whole family; then mounts, and folders last.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
servers=' '; mounts=; folders=
while read -r word value; do
  case $word in
    QUIT|KILL) servers="$servers$word:$value " ;;
    forget) servers=$(printf %s "$servers" | sed "s/ [A-Z]*:$value / /") ;;
    mount) mounts="$value $mounts" ;;
    folder) folders="$folders $value" ;;
  esac
done
for server in $servers; do kill -"${server%:*}" "${server#*:}" 2>/dev/null; done
for server in $servers; do
  tries=0
  while kill -0 "${server#*:}" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
done
for mount in $mounts; do umount --lazy "$mount" 2>/dev/null; done
for folder in $folders; do rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }; done
"#;

/// The signal that makes a process end at once together with its children.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ends {
    /// A postmaster: the immediate stop, which takes its backends along.
    OnQuit,
    /// Everything else.
    OnKill,
}

pub(crate) fn watch(pid: u32, ends: Ends) {
    let signal = match ends {
        Ends::OnQuit => "QUIT",
        Ends::OnKill => "KILL",
    };
    tell(&format!("{signal} {pid}"));
}

/// What has ended is forgotten: its process id may soon be somebody else's.
pub(crate) fn forget(pid: u32) {
    tell(&format!("forget {pid}"));
}

pub(crate) fn watch_folder(path: &Path) {
    tell(&format!("folder {}", path.display()));
}

pub(crate) fn watch_mount(path: &Path) {
    tell(&format!("mount {}", path.display()));
}

fn tell(line: &str) {
    static WARDEN: OnceLock<Mutex<Child>> = OnceLock::new();
    let warden = WARDEN.get_or_init(|| {
        let mut warden = Command::new("/bin/sh");
        warden.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: Ctrl-C in the terminal is meant for the tests.
        Mutex::new(warden.process_group(0).spawn().unwrap())
    });
    let pipe = &mut warden.lock().unwrap().stdin;
    writeln!(pipe.as_mut().unwrap(), "{line}").expect("the warden is gone");
}

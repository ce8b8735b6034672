//! Disks that a test may fill, cut off from power, slow down or break; none of the machine's own is touched.
//!
//! [`Disk`] is a file system of its own: in memory, or ext4 on an image file, which alone can lose power. [`Tampering`]
//! makes the kernel answer a process as a broken disk would. [`under_boot`] and [`under_strace`] are the beginning of a
//! command line for [`super::agent::Agent::start_under`].
//!
//! Not every machine lets a test do such things (they take root, loop devices, ptrace). Then what makes them returns
//! `None` and has printed the name of the test and the reason: `let Some(disk) = … else { return }`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Folder, must, wait_for, wait_for_some, warden};

/// A file system of its own; unmounted when dropped or when the test process is gone.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    image: Option<PathBuf>,
    /// Removed last: what is mounted lies in it.
    folder: Folder,
}

/// What a block device has done since it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    /// Bytes written.
    pub(crate) bytes: u64,
    /// Flushes of its cache.
    pub(crate) flushes: u64,
}

impl Disk {
    /// In memory, of so many bytes and a hundred names.
    pub(crate) fn memory(name: &str, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes},nr_inodes=100");
        Self::mount(Folder::new(name), None, &["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    /// ext4 on an image file of so many bytes.
    pub(crate) fn ext4(name: &str, bytes: u64) -> Option<Self> {
        let folder = Folder::new(name);
        let image = folder.path().join("image");
        fs::File::create_new(&image).unwrap().set_len(bytes).unwrap();
        // Nothing is left to be written later by the file system itself.
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image);
        can("make an ext4", &mut make)?;
        Self::mount_image(folder, image)
    }

    fn mount_image(folder: Folder, image: PathBuf) -> Option<Self> {
        let path = image.to_str().unwrap().to_owned();
        Self::mount(folder, Some(image), &["-o", "loop", &path])
    }

    fn mount(folder: Folder, image: Option<PathBuf>, what: &[&str]) -> Option<Self> {
        let at = folder.path().join("disk");
        fs::create_dir(&at).unwrap();
        can("mount a file system", Command::new("mount").args(what).arg(&at))?;
        warden::watch_mount(&at);
        Some(Self { at, image, folder })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// What would be there if the power had failed now: the image as it is, what the kernel still holds back left out,
    /// mounted as a disk of its own.
    pub(crate) fn power_cut(&self) -> Self {
        let image = self.image.as_ref().expect("only an image can lose power");
        let folder = Folder::new("cut");
        let [copy, again] = ["image", "again"].map(|name| folder.path().join(name));
        let copy_to = |to: &Path| must(Command::new("cp").arg("--sparse=always").arg(image).arg(to));
        // Two copies that are alike show one moment: one alone may hold a later write and lack an earlier one.
        copy_to(&copy);
        wait_for("the image holds still for two copies", Duration::from_secs(20), || {
            copy_to(&again);
            let alike = Command::new("cmp").arg("-s").arg(&copy).arg(&again).status().unwrap().success();
            fs::rename(&again, &copy).unwrap();
            alike
        });
        Self::mount_image(folder, copy).expect("an image was mounted before")
    }

    /// Takes writing away, or gives it back.
    pub(crate) fn read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        must(Command::new("mount").args(["-o", option]).arg(&self.at));
    }

    /// What its block device counts; an image's only.
    pub(crate) fn written(&self) -> Written {
        let image = self.image.as_ref().expect("memory is no block device");
        let of_image = |device: &PathBuf| {
            fs::read_to_string(device.join("loop/backing_file")).is_ok_and(|file| Path::new(file.trim()) == image)
        };
        let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
        let device = devices.into_iter().find(of_image).expect("a loop device of this image");
        let stat = fs::read_to_string(device.join("stat")).unwrap();
        let field = |nth: usize| -> u64 { stat.split_whitespace().nth(nth).unwrap().parse().unwrap() };
        Written { bytes: field(6) * 512, flushes: field(15) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What somebody still has open goes when it is closed.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

/// Runs what this machine may not let us do; says so if it does not.
pub(super) fn can(what: &str, command: &mut Command) -> Option<()> {
    let reason = match command.output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    println!("left out: {test}: this machine does not let us {what}: {reason}");
    None
}

/// The beginning of a command line whose process believes that the machine was started anew: its own view of
/// `/proc/sys/kernel/random/boot_id`, nobody else's.
pub(crate) fn under_boot(folder: &Path, number: u32) -> Option<Vec<String>> {
    let file = folder.join(format!("boot-{number}"));
    fs::write(&file, format!("{number:08x}-0000-4000-8000-000000000000\n")).unwrap();
    under_file(&file, "/proc/sys/kernel/random/boot_id")
}

/// The beginning of a command line whose process has an `/etc/hosts` of its own.
pub(crate) fn under_hosts(file: &Path) -> Option<Vec<String>> {
    under_file(file, "/etc/hosts")
}

/// Whose process sees `file` in the place of another one.
fn under_file(file: &Path, place: &str) -> Option<Vec<String>> {
    let bind = format!("mount --bind \"$0\" {place} && exec \"$@\"");
    let under: Vec<String> =
        ["unshare", "--mount", "sh", "-c", &bind, file.to_str().unwrap()].map(str::to_owned).into();
    can("make a mount namespace", Command::new(&under[0]).args(&under[1..]).arg("true"))?;
    Some(under)
}

/// The beginning of a command line that makes the kernel answer falsely from the start on (see [`Tampering`]), in calls on
/// one of `files`.
pub(crate) fn under_strace(inject: &str, files: &[PathBuf]) -> Option<Vec<String>> {
    // The tracer is a process of its own, so that ours keeps its id.
    let mut under: Vec<String> = ["strace", "-D", "-f", "-q", "-o", "/dev/null"].map(str::to_owned).into();
    under.extend(calls(inject, files));
    can("trace a process", Command::new(&under[0]).args(&under[1..]).arg("true"))?;
    Some(under)
}

/// The beginning of a command line whose calls are written to `log`, descriptors with their paths.
pub(crate) fn under_log(calls: &str, log: &Path) -> Option<Vec<String>> {
    let (trace, log) = (format!("trace={calls}"), log.to_str().unwrap());
    let under = ["strace", "-D", "-f", "-q", "-y", "--seccomp-bpf", "-s", "4", "-o", log, "-e", &trace];
    let under: Vec<String> = under.map(str::to_owned).into();
    can("trace a process", Command::new(&under[0]).args(&under[1..]).arg("true"))?;
    Some(under)
}

/// The beginning of a command line whose process has a limit of the system, as `prlimit` names it: `nofile=64`.
pub(crate) fn under_limit(limit: &str) -> Option<Vec<String>> {
    let under = vec!["prlimit".to_owned(), format!("--{limit}")];
    can("limit a process", Command::new(&under[0]).args(&under[1..]).arg("true"))?;
    Some(under)
}

/// A control group (version 1) with a limit; removed when dropped, or left behind empty by a killed test.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// Of one controller, with one of its settings.
    pub(crate) fn new(controller: &str, setting: &str, value: &str) -> Option<Self> {
        let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}/pga-{}", std::process::id()));
        can("make a control group", Command::new("mkdir").arg(&path))?;
        let group = Self(path);
        fs::write(group.0.join(setting), value).unwrap();
        Some(group)
    }

    /// The beginning of a command line whose process is in the group.
    pub(crate) fn under(&self) -> Vec<String> {
        const JOIN: &str = "echo $$ >\"$0\" && exec \"$@\"";
        let processes = self.0.join("cgroup.procs");
        ["sh", "-c", JOIN, processes.to_str().unwrap()].map(str::to_owned).into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only an empty one can be removed, and a process that was killed is there a moment longer.
        wait_for("the control group is empty", Duration::from_secs(20), || fs::remove_dir(&self.0).is_ok());
    }
}

/// What strace is told of calls, and of the files that they must concern, if any.
fn calls(inject: &str, files: &[PathBuf]) -> Vec<String> {
    let names = inject.split(':').next().unwrap();
    let mut words = vec!["-e".to_owned(), format!("trace={names}"), "-e".to_owned(), format!("inject={inject}")];
    words.extend(files.iter().flat_map(|file| ["-P".to_owned(), file.to_str().unwrap().to_owned()]));
    words
}

/// A process that the kernel answers falsely, as strace's `inject` says: `fdatasync:error=EIO`,
/// `pwrite64:error=ENOSPC:when=3+`, `fdatasync:delay_enter=5s`. Ends when dropped; the process goes on.
#[derive(Debug)]
pub(crate) struct Tampering {
    strace: Child,
    log: PathBuf,
    _folder: Folder,
}

impl Tampering {
    /// With a running process; only with calls on one of `files`, if there are any.
    pub(crate) fn with(pid: u32, inject: &str, files: &[PathBuf]) -> Option<Self> {
        can("trace a process", Command::new("strace").args(["-o", "/dev/null", "true"]))?;
        let folder = Folder::new("strace");
        let log = folder.path().join("log");
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-p", &pid.to_string(), "-o"]).arg(&log).args(calls(inject, files));
        let strace = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        warden::watch(strace.id(), warden::Ends::OnKill);
        let traced = format!("TracerPid:\t{}\n", strace.id());
        wait_for("every thread is traced", Duration::from_secs(20), || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status"));
            threads.flatten().all(|thread| status(thread).is_ok_and(|status| status.contains(&traced)))
        });
        Some(Self { strace, log, _folder: folder })
    }

    /// How many calls were answered falsely so far.
    pub(crate) fn times(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.matches("(INJECTED)").count() + log.matches("(DELAYED)").count()
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // At this signal it lets go of every thread and ends.
        let _ = kill_process(Pid::from_child(&self.strace), Signal::TERM);
        let strace = &mut self.strace;
        wait_for_some("strace lets go", Duration::from_secs(20), || strace.try_wait().unwrap());
        warden::forget(self.strace.id());
    }
}

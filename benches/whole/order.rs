//! Which functions an agent runs from its start on, each second beside 100 sessions and 1,000 statements: the list
//! that `build/main.rs` hands to the linker.
//!
//! A breakpoint stands at each function, and is taken away when it is met (ptrace(2)).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    agent::Scene,
    parts::REST,
    reference::SETTINGS,
    rig::{must, wait_for},
};

const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/build/running.ld");
/// What runs within this time counts: every collector and duty has had its turn by then.
const TIME: Duration = Duration::from_secs(60);
/// `int3`: a breakpoint.
const BREAKPOINT: u8 = 0xcc;

/// Runs the agent once, and writes the list anew.
pub(crate) fn order() {
    let mut scene = Scene::new(SETTINGS, &REST);
    scene.crowd(100);
    let tracer = std::env::current_exe().unwrap().display().to_string();
    let mut agent = scene.start_under(&[tracer, "trace".into(), LIST.into()], Some("1s"));
    wait_for("the traced agent has ended", TIME * 2, || agent.ended().is_some());
}

/// Runs a command line, an agent's, and writes the list of what it ran.
#[expect(clippy::zombie_processes, reason = "whoever traces it waits for it")]
pub(crate) fn trace(list: &str, command: &[String]) {
    let functions = Functions::of(&command[0]);
    // The program itself comes only when it is watched: the shell waits to be traced.
    let shell = Command::new("sh").args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).args(command).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(shell.id()).unwrap());
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL)
        .unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(TIME);
        // How it stops does not count.
        kill(pid, Signal::SIGKILL).unwrap();
    });
    let met = functions.met(pid);
    std::fs::write(list, functions.script(&met)).unwrap();
}

/// The functions of a program.
struct Functions {
    program: PathBuf,
    /// Their sizes and names by their addresses.
    found: BTreeMap<u64, (u64, String)>,
}

impl Functions {
    fn of(program: &str) -> Self {
        let function = |line: &str| {
            let mut words = line.split(' ');
            let mut number = || u64::from_str_radix(words.next()?, 16).ok();
            let (address, size) = (number()?, number()?);
            let kind = words.next()?;
            "tTwW".contains(kind).then(|| Some((address, (size, words.next()?.to_owned())))).flatten()
        };
        let symbols = must(Command::new("nm").args(["--print-size", "--defined-only", program]));
        Self {
            program: Path::new(program).canonicalize().unwrap(),
            found: symbols.lines().filter_map(function).collect(),
        }
    }

    /// Addresses of functions in the order in which they were met, until the process ends.
    fn met(&self, agent: Pid) -> Vec<u64> {
        let (mut met, mut planted) = (Vec::new(), None);
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == agent => return met,
                WaitStatus::PtraceEvent(pid, _, event) => {
                    // The shell may be seen becoming one.
                    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
                    if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 && program == self.program {
                        planted = Some(Planted::in_process(pid, self));
                    }
                    ptrace::cont(pid, None).unwrap();
                }
                WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                    let mut registers = ptrace::getregs(pid).unwrap();
                    registers.rip -= 1;
                    let planted = planted.as_mut().expect("breakpoints");
                    // Another thread may have met it at the same time.
                    met.extend(planted.take(registers.rip));
                    ptrace::setregs(pid, registers).unwrap();
                    ptrace::cont(pid, None).unwrap();
                }
                WaitStatus::Stopped(pid, signal) => ptrace::cont(pid, Some(signal)).unwrap(),
                _ => {}
            }
        }
    }

    /// A linker script that puts them side by side, in the order in which they were met.
    fn script(&self, met: &[u64]) -> String {
        let met = met.iter().filter_map(|address| self.found.get(address)).map(|(_, name)| pattern(name));
        let mut seen = BTreeSet::new();
        let names = met.filter(|name| seen.insert(name.clone())).collect::<Vec<_>>();
        let mut script = String::from(
            "/* The functions that an agent runs, in the order in which it meets them; build/main.rs says why.\n   Made by \
             `benches/run.sh order`, which is worth a run after a change of the compiler or of much of the code: names that\n   \
             are no longer there do no harm, but what they stood for is resident with all that lies around it. */\n\
             SECTIONS\n{\n  .text.running :\n  {\n",
        );
        for name in names {
            writeln!(script, "    *(.text*.{name})").unwrap();
        }
        script + "  }\n}\nINSERT BEFORE .text;\n"
    }
}

/// Breakpoints in a process.
struct Planted {
    memory: File,
    /// Where the program begins.
    base: u64,
    /// The bytes in whose places breakpoints stand, by address in the process.
    bytes: BTreeMap<u64, u8>,
}

impl Planted {
    fn in_process(pid: Pid, functions: &Functions) -> Self {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let base = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
        let memory = File::options().read(true).write(true).open(Path::new("/proc").join(pid.to_string()).join("mem"));
        let memory = memory.unwrap();
        let plant = |address: &u64| {
            let (at, mut byte) = (base + address, [0]);
            memory.read_exact_at(&mut byte, at).unwrap();
            memory.write_all_at(&[BREAKPOINT], at).unwrap();
            (at, byte[0])
        };
        let bytes = functions.found.keys().map(plant).collect();
        Self { memory, base, bytes }
    }

    /// Takes the breakpoint away, and tells the function's address in the program unless that was done before.
    fn take(&mut self, at: u64) -> Option<u64> {
        let byte = self.bytes.remove(&at)?;
        self.memory.write_all_at(&[byte], at).unwrap();
        Some(at - self.base)
    }
}

/// A mangled name, as a linker's pattern that holds for other builds too: whatever stands for the build in the names of
/// crates (RFC 2603: `Cs`, letters and digits, `_`), and in the number behind a name of which there are several.
fn pattern(name: &str) -> String {
    let (name, several) = match name.rsplit_once('.') {
        Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => (name, ".*"),
        _ => (name, ""),
    };
    let (mut rest, mut pattern) = (name, String::new());
    while let Some(at) = rest.find("Cs") {
        let (before, build) = rest.split_at(at + "Cs".len());
        let path = build.trim_start_matches(|letter: char| letter.is_ascii_alphanumeric());
        pattern += before;
        pattern += if path.starts_with('_') { "*" } else { &build[..build.len() - path.len()] };
        rest = path;
    }
    pattern + rest + several
}

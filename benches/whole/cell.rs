//! Cells: one thing measured once, in a process of its own, so that neither memory nor threads of another are in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{disk, growth, publish, words};

/// What is to be measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Cell {
    /// Messages of one size, published with confirms.
    Publish { by: publish::By, flow: publish::Flow },
    /// Messages that wait in a spool are published.
    Replay { dir: PathBuf, flow: publish::Flow },
    /// So many messages come each second, for some seconds, whatever becomes of them.
    Offer { rate: u64, flow: publish::Flow },
    /// Records of one size, appended.
    Append { by: disk::By, append: disk::Append },
    /// Everything in a spool's folder is read once.
    Read { by: disk::By, dir: PathBuf },
    /// A spool is opened.
    Open { dir: PathBuf },
    /// 100 rows with texts of 1 KiB become one message, so many times.
    Encode { by: words::By, times: u32 },
    /// The agent's runtime with nothing to do.
    Bare,
}

/// What a cell found.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// From the first to the last one done.
    pub(crate) seconds: f64,
    /// Processor time of the process meanwhile, in seconds.
    pub(crate) cpu: f64,
    /// Memory at the end.
    pub(crate) memory: Memory,
    /// Messages that wait at the end.
    pub(crate) waiting: u64,
}

/// Resident memory of a process, in MiB.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) rss: f64,
    /// What is no file's.
    pub(crate) anonymous: f64,
    /// The most that all of it ever was.
    pub(crate) peak: f64,
}

impl Memory {
    /// Of a process, as /proc tells.
    pub(crate) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
        };
        Self { rss: mib("VmRSS"), anonymous: mib("RssAnon"), peak: mib("VmHWM") }
    }
}

/// Measures from now on.
pub(crate) struct Watch(Instant, f64);

impl Watch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), own_cpu())
    }

    pub(crate) fn stop(self) -> Measured {
        let (seconds, cpu) = (self.0.elapsed().as_secs_f64(), own_cpu() - self.1);
        Measured { seconds, cpu, memory: Memory::of(std::process::id()), waiting: 0 }
    }
}

fn own_cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// All files in a folder and below it.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

impl Cell {
    /// Measures it in a process of its own.
    pub(crate) fn measure(&self) -> Measured {
        let this = serde_json::to_string(self).unwrap();
        let output = Command::new(std::env::current_exe().unwrap()).args(["cell", &this]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{this}: {error}\n{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Measures it here.
    pub(crate) fn run(text: &str) {
        let measured = match serde_json::from_str(text).unwrap() {
            Self::Publish { by, flow } => publish::publish(by, &flow),
            Self::Replay { dir, flow } => publish::replay(&dir, &flow),
            Self::Offer { rate, flow } => publish::offer(rate, &flow),
            Self::Append { by, append } => disk::append(by, &append),
            Self::Read { by, dir } => disk::read(by, &dir),
            Self::Open { dir } => growth::open(&dir),
            Self::Encode { by, times } => words::encode(by, times),
            Self::Bare => publish::bare(),
        };
        println!("{}", serde_json::to_string(&measured).unwrap());
    }
}

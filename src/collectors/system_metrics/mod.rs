//! System metrics: the host's processors, memory, disks and network, each figure with psutil's meaning.
//!
//! Never waits for a second to measure the processors: `cpu.percent` covers the time since the sample before, and
//! only the first look waits, for a tenth of a second. A file system that hangs costs one thread and a short while.
//!
//! The surprising thing: all is read from [`Config::proc`]; only where that is `/proc` itself the crate sysinfo counts the
//! cores, because it knows no other place.

mod body;
mod cgroup;
mod disks;
mod host;
mod steady;

use std::{collections::BTreeSet, path::PathBuf, time::Duration, time::Instant};

use tokio::time::sleep;

use super::{CollectError, Collector, Context};
use crate::{
    event::{NoSummary, Sample},
    settings::{Reader, Section},
    units::Time,
};
use disks::Disks;
use host::{CpuTimes, Host};
use steady::Steady;

pub use body::{
    Cgroup, Cpu, DiskIo, DiskUsage, Memory, NetworkIo, Pressure, Stall, Stalls, Swap, SystemMetrics as Data,
};

/// What the first look waits, so that there is a time that `cpu.percent` can cover.
const FIRST: Duration = Duration::from_millis(100);

/// Keys of its own.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to tell the space of file systems.
    pub disk_paths: BTreeSet<String>,
    /// The host's `/proc`.
    pub proc: PathBuf,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let paths = ["/var/lib/postgresql", "/var/log/postgresql", "/"].map(str::to_owned).to_vec();
        let absolute = |paths: &Vec<String>| match paths.iter().find(|path| !path.starts_with('/')) {
            Some(path) => Err(format!("an array of absolute paths, and \"{path}\" is not absolute")),
            None if paths.len() > 64 => Err("an array of 64 paths at the most".into()),
            None => Ok(()),
        };
        let paths: Vec<String> = reader.checked(
            "disk_paths",
            paths,
            "Paths whose file systems' space is told. One that does not exist is left out.",
            absolute,
        );
        let proc = reader.checked(
            "proc",
            PathBuf::from("/proc"),
            "Where the host's /proc is, for an agent that runs in a container.",
            |path: &PathBuf| if path.is_absolute() { Ok(()) } else { Err("an absolute path".into()) },
        );
        Self { disk_paths: paths.into_iter().collect(), proc }
    }
}

/// The collector.
#[derive(Debug)]
pub struct SystemMetrics {
    host: Host,
    disks: Disks,
    /// The processors' times at the sample before.
    before: Option<CpuTimes>,
    disk_io: Steady<{ DiskIo::FIELDS }>,
    network_io: Steady<{ NetworkIo::FIELDS }>,
}

impl Collector for SystemMetrics {
    const NAME: &'static str = "system_metrics";
    const IMPORTANCE: u8 = 0;
    type Config = Config;
    type Data = Data;
    type Summary = NoSummary;

    fn new(config: Config) -> Self {
        Self {
            host: Host::new(config.proc),
            disks: Disks::new(config.disk_paths),
            before: None,
            disk_io: Steady::default(),
            network_io: Steady::default(),
        }
    }

    async fn collect(&mut self, _context: &Context) -> Result<Sample<Data, NoSummary>, CollectError> {
        let start = Instant::now();
        let mut failed = Failed::default();
        if self.before.is_none() {
            // A failure shows below, where it is tried again.
            self.before = self.host.cpu_times().ok();
            sleep(FIRST).await;
        }
        let collected_at = Time::now();
        let disk_usage = self.disks.usage(&mut failed).await;
        // No disk is behind these files, so that nobody has to wait for them in a thread.
        let figures = Figures::read(&self.host, &mut failed);
        let percent = figures.times.as_ref().zip(self.before.as_ref()).map(|(now, before)| now.percent(before));
        self.before = figures.times;
        let data = Data {
            cpu: figures.cpu.zip(percent).map(|(cpu, percent)| Cpu { percent, ..cpu }),
            memory: figures.memory,
            swap: figures.swap,
            disk_io: figures.disk_io.map(|devices| DiskIo::of(self.disk_io.sum(devices))),
            network_io: figures.network_io.map(|devices| NetworkIo::of(self.network_io.sum(devices))),
            disk_usage,
            cgroup: figures.cgroup,
            pressure: figures.pressure,
        };
        Ok(Sample {
            server: None,
            collected_at,
            duration: start.elapsed(),
            omitted: 0,
            hidden: 0,
            summary: None,
            data,
            degraded: failed.told(),
        })
    }
}

/// What is read in one go.
#[derive(Debug)]
struct Figures {
    times: Option<CpuTimes>,
    cpu: Option<Cpu>,
    memory: Option<Memory>,
    swap: Option<Swap>,
    disk_io: Option<steady::Devices<{ DiskIo::FIELDS }>>,
    network_io: Option<steady::Devices<{ NetworkIo::FIELDS }>>,
    cgroup: Option<Cgroup>,
    pressure: Option<Pressure>,
}

impl Figures {
    fn read(host: &Host, failed: &mut Failed) -> Self {
        let (times, count) = failed.none("cpu", host.cpu_times_and_count()).unzip();
        let memory = failed.none("memory and swap", host.memory());
        Self {
            times,
            cpu: count.and_then(|count| failed.none("cpu", host.cpu(count))),
            swap: memory.as_ref().map(|(_, swap)| swap.clone()),
            memory: memory.map(|(memory, _)| memory),
            disk_io: failed.none("disk_io", host.disk_io()),
            network_io: failed.none("network_io", host.network_io()),
            cgroup: failed.none("cgroup", cgroup::read()).flatten(),
            pressure: failed.none("pressure", host.pressure()).flatten(),
        }
    }
}

/// The parts that could not be read, and why.
#[derive(Debug, Default)]
struct Failed(Vec<String>);

impl Failed {
    fn none<T>(&mut self, part: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|why| self.0.push(format!("{part}: {why}"))).ok()
    }

    fn told(self) -> Option<String> {
        Some(self.0.join("; ")).filter(|told| !told.is_empty())
    }
}

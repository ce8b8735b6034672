//! The host's figures, out of a `/proc` that may be mounted elsewhere. Meanings are psutil's, of `_pslinux.py`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use procfs::{
    CpuInfo, CpuPressure, CpuTime, DiskStats, FromRead, FromReadSI, IoPressure, KernelStats, LoadAverage,
    LocalSystemInfo, Meminfo, MemoryPressure, PressureRecord, ProcError, net::InterfaceDeviceStatus,
};
use sysinfo::System;

use super::{
    body::{Cpu, DiskIo, Memory, NetworkIo, Pressure, Stall, Stalls, Swap},
    steady::Devices,
};

/// `/proc/diskstats` counts in sectors of this many bytes, whatever the disk's own are.
const SECTOR: u64 = 512;

/// Where the host's figures are.
#[derive(Debug, Clone)]
pub(super) struct Host {
    proc: PathBuf,
    sys: PathBuf,
    /// Whether it is our own `/proc`.
    own: bool,
    cores: Arc<Mutex<Cores>>,
}

/// How many cores there were when so many processors were online. The kernel's list of them is long, and it asks each one
/// when it is read.
#[derive(Debug, Default)]
struct Cores {
    online: u64,
    physical: Option<u64>,
}

impl Host {
    pub(super) fn new(proc: PathBuf) -> Self {
        let own = proc == Path::new("/proc");
        // A host's /proc at /host/proc has its /sys at /host/sys. If it was not brought along, block devices are
        // the same in our own.
        let beside = proc.parent().map(|parent| parent.join("sys")).filter(|sys| sys.join("block").is_dir());
        Self { proc, sys: beside.unwrap_or_else(|| "/sys".into()), own, cores: Arc::default() }
    }

    pub(super) fn cpu_times(&self) -> Result<CpuTimes, String> {
        self.cpu_times_and_count().map(|(times, _)| times)
    }

    /// Also the number of processors that are online.
    pub(super) fn cpu_times_and_count(&self) -> Result<(CpuTimes, u64), String> {
        let path = self.proc.join("stat");
        let stat = KernelStats::from_file(&path, &LocalSystemInfo).map_err(|error| told(&path, &error))?;
        Ok((CpuTimes::of(&stat.total), stat.cpu_time.len() as u64))
    }

    /// All but `percent`.
    pub(super) fn cpu(&self, count_logical: u64) -> Result<Cpu, String> {
        let load: LoadAverage = self.read("loadavg")?;
        let [load_avg_1m, load_avg_5m, load_avg_15m] = [load.one, load.five, load.fifteen].map(decimal);
        let count_physical = self.count_physical(count_logical);
        Ok(Cpu { percent: 0.0, count_physical, count_logical, load_avg_1m, load_avg_5m, load_avg_15m })
    }

    /// Different cores of different sockets.
    fn count_physical(&self, online: u64) -> Option<u64> {
        let mut known = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        if known.online != online {
            let own = || System::physical_core_count().ok().map(|count| count as u64);
            let physical = if self.own { own() } else { self.cores() }.filter(|count| *count > 0);
            *known = Cores { online, physical };
        }
        known.physical
    }

    fn cores(&self) -> Option<u64> {
        let info: CpuInfo = self.read("cpuinfo").ok()?;
        let core = |cpu| Some((info.physical_id(cpu)?, info.get_field(cpu, "core id")?));
        let cores: Option<BTreeSet<_>> = (0..info.num_cores()).map(core).collect();
        // Where no core has a name (ARM), each processor is one.
        Some(cores.map_or(info.num_cores(), |cores| cores.len()) as u64)
    }

    pub(super) fn memory(&self) -> Result<(Memory, Swap), String> {
        let info: Meminfo = self.read("meminfo")?;
        let (total, swap_total, swap_free) = (info.mem_total, info.swap_total, info.swap_free);
        if total == 0 {
            return Err(format!("{} tells no total", self.proc.join("meminfo").display()));
        }
        // In some containers the kernel's estimate is beyond all sense; psutil takes what is free then.
        let available = info.mem_available.unwrap_or(info.mem_free);
        let available = if available > total { info.mem_free.min(total) } else { available };
        let (used, swap_used) = (total - available, swap_total.saturating_sub(swap_free));
        let memory = Memory {
            total,
            available,
            used,
            percent: percent(used, total),
            buffers: info.buffers,
            cached: info.cached + info.s_reclaimable.unwrap_or(0),
        };
        let percent = percent(swap_used, swap_total);
        Ok((memory, Swap { total: swap_total, used: swap_used, free: swap_free, percent }))
    }

    /// Whole disks only: what has a folder of its own in `/sys/block`.
    pub(super) fn disk_io(&self) -> Result<Devices<{ DiskIo::FIELDS }>, String> {
        let stats: DiskStats = self.read("diskstats")?;
        let disks = stats.0.into_iter().filter(|disk| {
            let name = disk.name.replace('/', "!");
            self.sys.join("block").join(name).exists()
        });
        let counters = disks.map(|disk| {
            let (read, written) = (disk.sectors_read * SECTOR, disk.sectors_written * SECTOR);
            (disk.name, [disk.reads, disk.writes, read, written, disk.time_reading, disk.time_writing])
        });
        Ok(counters.collect())
    }

    pub(super) fn network_io(&self) -> Result<Devices<{ NetworkIo::FIELDS }>, String> {
        // Elsewhere, `net` would be a link to our own network; the host's is that of its first process.
        let host = self.proc.join("1/net/dev");
        let name = if !self.own && host.exists() { "1/net/dev" } else { "net/dev" };
        let interfaces: InterfaceDeviceStatus = self.read(name)?;
        let counters = interfaces.0.into_values().map(|one| {
            let bytes = [one.sent_bytes, one.recv_bytes, one.sent_packets, one.recv_packets];
            let [b, c, d, e] = bytes;
            (one.name, [b, c, d, e, one.recv_errs, one.sent_errs, one.recv_drop, one.sent_drop])
        });
        Ok(counters.collect())
    }

    /// `None` on a kernel without.
    pub(super) fn pressure(&self) -> Result<Option<Pressure>, String> {
        if !self.proc.join("pressure").is_dir() {
            return Ok(None);
        }
        let cpu: CpuPressure = self.read("pressure/cpu")?;
        let memory: MemoryPressure = self.read("pressure/memory")?;
        let io: IoPressure = self.read("pressure/io")?;
        Ok(Some(Pressure {
            cpu: stalls(&cpu.some, &cpu.full),
            memory: stalls(&memory.some, &memory.full),
            io: stalls(&io.some, &io.full),
        }))
    }

    fn read<T: FromRead>(&self, name: &str) -> Result<T, String> {
        let path = self.proc.join(name);
        T::from_file(&path).map_err(|error| told(&path, &error))
    }
}

fn told(path: &Path, error: &ProcError) -> String {
    // Most of these errors name the path already.
    let error = error.to_string();
    let path = path.display().to_string();
    if error.contains(&path) { error } else { format!("{path}: {error}") }
}

fn stalls(some: &PressureRecord, full: &PressureRecord) -> Stalls {
    let stall = |record: &PressureRecord| Stall {
        avg10: decimal(record.avg10),
        avg60: decimal(record.avg60),
        avg300: decimal(record.avg300),
        total_us: record.total,
    };
    Stalls { some: stall(some), full: stall(full) }
}

/// The kernel tells two decimals; as an `f32` they would come out as 0.4099999964237213.
fn decimal(number: f32) -> f64 {
    (f64::from(number) * 100.0).round() / 100.0
}

/// `part / whole`, 0 to 100, one decimal; 0 of nothing.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64 * 1000.0).round() / 10.0
}

/// The time that all processors spent since boot, in ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CpuTimes {
    /// user, nice, system, irq, softirq, steal.
    busy: [u64; 6],
    /// idle, iowait.
    idle: [u64; 2],
}

impl CpuTimes {
    fn of(time: &CpuTime) -> Self {
        // The times of guests are in user and nice already.
        let known = |time: Option<u64>| time.unwrap_or(0);
        let (irq, softirq, steal) = (known(time.irq), known(time.softirq), known(time.steal));
        Self { busy: [time.user, time.nice, time.system, irq, softirq, steal], idle: [time.idle, known(time.iowait)] }
    }

    /// Busy since `before`, 0 to 100; 0 if no time has passed. The kernel takes back some time now and then: what
    /// falls counts as nothing.
    pub(super) fn percent(&self, before: &Self) -> f64 {
        let passed = |now: &[u64], before: &[u64]| -> u64 {
            now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).sum()
        };
        let busy = passed(&self.busy, &before.busy);
        percent(busy, busy + passed(&self.idle, &before.idle))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[track_caller]
    fn check_percent(before: [u64; 8], now: [u64; 8], want: f64) {
        let [before, now] = [before, now]
            .map(|[a, b, c, d, e, f, idle, iowait]| CpuTimes { busy: [a, b, c, d, e, f], idle: [idle, iowait] });
        assert!((now.percent(&before) - want).abs() < 1e-9, "{before:?} {now:?} {}", now.percent(&before));
    }

    #[test]
    fn waiting_for_disks_is_idle_and_stolen_time_is_busy() {
        check_percent([0; 8], [1, 1, 1, 0, 0, 1, 4, 0], 50.0);
        check_percent([0; 8], [0, 0, 0, 0, 0, 0, 0, 7], 0.0);
        check_percent([5; 8], [5; 8], 0.0);
        check_percent([9, 0, 0, 0, 0, 0, 9, 9], [10, 0, 0, 0, 0, 0, 8, 11], 33.3);
    }

    /// A host as another kernel would tell it, in a folder.
    fn elsewhere() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let stat = "cpu  10 1 5 80 4 0 0 0 3 0\ncpu0 5 1 2 40 2 0 0 0 3 0\ncpu1 5 0 3 40 2 0 0 0 0 0\n\
                    ctxt 1\nbtime 1\nprocesses 1\n";
        write("proc/stat", stat);
        write("proc/loadavg", "0.41 1.25 3.10 1/100 4242\n");
        let core = |cpu: u32| format!("processor\t: {cpu}\nphysical id\t: 0\ncore id\t: 0\n\n");
        write("proc/cpuinfo", &format!("{}{}", core(0), core(1)));
        let info = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 10 kB\nCached: 200 kB\n\
                    SwapCached: 0 kB\nActive: 0 kB\nInactive: 0 kB\nSwapTotal: 8 kB\nSwapFree: 6 kB\nDirty: 0 kB\n\
                    Writeback: 0 kB\nMapped: 0 kB\nSlab: 0 kB\nSReclaimable: 30 kB\nCommitted_AS: 0 kB\n\
                    VmallocTotal: 0 kB\nVmallocUsed: 0 kB\nVmallocChunk: 0 kB\n";
        write("proc/meminfo", info);
        write("proc/diskstats", "8 0 sda 1 0 2 3 4 0 5 6 0 0 0\n8 1 sda1 1 0 2 3 4 0 5 6 0 0 0\n");
        fs::create_dir_all(root.path().join("sys/block/sda")).unwrap();
        let net = |bytes: u32| format!("a\nb\n eth0: {bytes} 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n");
        write("proc/net/dev", &net(99));
        write("proc/1/net/dev", &net(1));
        let host = Host::new(root.path().join("proc"));
        (root, host)
    }

    #[test]
    fn a_proc_elsewhere_is_the_only_source() {
        let (_root, host) = elsewhere();
        let (times, count) = host.cpu_times_and_count().unwrap();
        assert_eq!((times.busy, times.idle, count), ([10, 1, 5, 0, 0, 0], [80, 4], 2));
        let cpu = host.cpu(count).unwrap();
        assert_eq!((cpu.count_physical, cpu.count_logical), (Some(1), 2));
        assert_eq!(format!("{} {} {}", cpu.load_avg_1m, cpu.load_avg_5m, cpu.load_avg_15m), "0.41 1.25 3.1");
        let (memory, swap) = host.memory().unwrap();
        assert_eq!([memory.total, memory.available, memory.used].map(|n| n / 1024), [1000, 400, 600]);
        assert_eq!([memory.buffers, memory.cached].map(|n| n / 1024), [10, 230]);
        assert_eq!([swap.total, swap.used, swap.free].map(|n| n / 1024), [8, 2, 6]);
        assert_eq!(format!("{} {}", memory.percent, swap.percent), "60 25");
        assert_eq!(host.disk_io().unwrap(), Devices::from([("sda".into(), [1, 4, 1024, 2560, 3, 6])]));
        assert_eq!(host.network_io().unwrap(), Devices::from([("eth0".into(), [5, 1, 6, 2, 3, 7, 4, 8])]));
        assert!(host.pressure().unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_path() {
        let (root, host) = elsewhere();
        fs::remove_file(root.path().join("proc/diskstats")).unwrap();
        let why = host.disk_io().unwrap_err();
        assert!(why.contains("proc/diskstats"), "{why}");
        fs::write(root.path().join("proc/stat"), "cpu  x\n").unwrap();
        let why = host.cpu_times().unwrap_err();
        assert!(why.contains("proc/stat"), "{why}");
    }
}

//! The body of a `system_metrics` message. The doc comments are what the schema says of each field.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::event::{Body, EncodeError, put_map};

/// The host at one moment. Each part has the meaning that it has in psutil 7.2 on Linux. A part that cannot be read
/// is nil and named in `agent_status`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SystemMetrics {
    /// Processors.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap space.
    pub swap: Option<Swap>,
    /// All disks together, since boot. Whole block devices are counted and their partitions are not; a device that
    /// stands on others (dm, md, loop) counts beside them, so that what passes through it counts twice. A counter that
    /// restarts (it wrapped, or its device came back) goes on from where it was as long as the agent runs. Falls when
    /// a device goes away. Nil where there are no disks.
    pub disk_io: Option<DiskIo>,
    /// All network interfaces together, `lo` too, since boot. A counter that restarts goes on from where it was as
    /// long as the agent runs. Falls when an interface goes away.
    pub network_io: Option<NetworkIo>,
    /// The file system of each configured path; nil for one that cannot be asked or hangs. Paths that do not exist
    /// are left out.
    pub disk_usage: BTreeMap<String, Option<DiskUsage>>,
    /// The control group (version 2) that the agent runs in: what its container or service may use. Nil where there is
    /// none with limits or counters.
    pub cgroup: Option<Cgroup>,
    /// How long tasks of the host waited for a resource (pressure stall information). Nil on kernels without.
    pub pressure: Option<Pressure>,
}

impl Body for SystemMetrics {
    fn put(&self, event: &mut Vec<u8>) -> Result<Option<Vec<usize>>, EncodeError> {
        put_map(self, event)
    }
}

/// Processors.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Cpu {
    /// Busy time of all processors since the sample before (for the first one: over at least 100 ms), 0 to 100, one
    /// decimal. Waiting for disks counts as idle; time stolen by a hypervisor counts as busy, and so does that of
    /// guests.
    pub percent: f64,
    /// Physical cores; without hyper-threads. Nil where the kernel does not tell.
    pub count_physical: Option<u64>,
    /// Logical processors that are online, whatever the agent's own process may use of them.
    pub count_logical: u64,
    /// Tasks that ran, wanted to run or waited for disks, a mean over 1 minute.
    pub load_avg_1m: f64,
    /// The same over 5 minutes.
    pub load_avg_5m: f64,
    /// The same over 15 minutes.
    pub load_avg_15m: f64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Memory {
    /// Physical memory that the kernel can use, in bytes.
    pub total: u64,
    /// What new work could take without swapping, in bytes: the kernel's own estimate.
    pub available: u64,
    /// `total - available`, in bytes. (psutil before 7.2 subtracted free, buffers and cached from the total instead.)
    pub used: u64,
    /// `(total - available) / total`, 0 to 100, one decimal.
    pub percent: f64,
    /// Cache of block devices and file systems' own data, in bytes.
    pub buffers: u64,
    /// Cache of files, in bytes, with reclaimable slabs, as `free` tells it. Shared memory such as PostgreSQL's
    /// shared_buffers is in it, and cannot be dropped.
    pub cached: u64,
}

/// Swap space, in bytes.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Swap {
    /// All of it, in bytes; 0 where there is none.
    pub total: u64,
    /// `total - free`, in bytes.
    pub used: u64,
    /// Not in use, in bytes.
    pub free: u64,
    /// `used / total`, 0 to 100, one decimal; 0 where there is none.
    pub percent: f64,
}

/// Counters of disks since boot.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DiskIo {
    /// Reads that ended.
    pub read_count: u64,
    /// Writes that ended.
    pub write_count: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Time of all reads, in milliseconds; reads at the same time count each, so that it may grow faster than time.
    pub read_time_ms: u64,
    /// Time of all writes, in milliseconds, in the same way.
    pub write_time_ms: u64,
}

impl DiskIo {
    pub(super) const FIELDS: usize = 6;

    pub(super) fn of(sums: [u64; Self::FIELDS]) -> Self {
        let [read_count, write_count, read_bytes, write_bytes, read_time_ms, write_time_ms] = sums;
        Self { read_count, write_count, read_bytes, write_bytes, read_time_ms, write_time_ms }
    }
}

/// Counters of network interfaces since boot.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct NetworkIo {
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_recv: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets received.
    pub packets_recv: u64,
    /// Errors while receiving.
    pub errin: u64,
    /// Errors while sending.
    pub errout: u64,
    /// Incoming packets that were dropped.
    pub dropin: u64,
    /// Outgoing packets that were dropped.
    pub dropout: u64,
}

impl NetworkIo {
    pub(super) const FIELDS: usize = 8;

    pub(super) fn of(sums: [u64; Self::FIELDS]) -> Self {
        let [bytes_sent, bytes_recv, packets_sent, packets_recv, errin, errout, dropin, dropout] = sums;
        Self { bytes_sent, bytes_recv, packets_sent, packets_recv, errin, errout, dropin, dropout }
    }
}

/// Space of a file system, in bytes.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DiskUsage {
    /// All of it, in bytes, what is reserved for root included.
    pub total: u64,
    /// In use, in bytes. `used + free` is less than `total` by what is reserved for root.
    pub used: u64,
    /// What others than root may still take, in bytes.
    pub free: u64,
    /// `used / (used + free)`, 0 to 100, one decimal, as `df` tells it.
    pub percent: f64,
}

/// A control group's limits and what it takes of them.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Cgroup {
    /// `memory.max` in bytes; nil where there is no limit.
    pub memory_limit: Option<u64>,
    /// `memory.current` in bytes, caches included.
    pub memory_used: Option<u64>,
    /// `cpu.max` as a number of processors; nil where there is no limit.
    pub cpu_limit: Option<f64>,
    /// Processor time since the group was made, in microseconds.
    pub cpu_usage_us: Option<u64>,
    /// Periods in which the group was held back because its limit was used up.
    pub throttled_count: Option<u64>,
    /// How long it was held back, all processors together, in microseconds.
    pub throttled_us: Option<u64>,
}

/// Pressure of the host's resources.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Pressure {
    /// Waiting for a processor. `full` is 0 by definition.
    pub cpu: Stalls,
    /// Waiting for memory.
    pub memory: Stalls,
    /// Waiting for disks.
    pub io: Stalls,
}

/// Who waited for a resource.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Stalls {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that were not idle waited, at the same time.
    pub full: Stall,
}

/// How long it was so.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Stall {
    /// Percent of the last 10 seconds, 0 to 100.
    pub avg10: f64,
    /// Percent of the last 60 seconds, 0 to 100.
    pub avg60: f64,
    /// Percent of the last 300 seconds, 0 to 100.
    pub avg300: f64,
    /// Since boot, in microseconds.
    pub total_us: u64,
}

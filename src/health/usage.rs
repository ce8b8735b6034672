//! What the agent itself takes of its host.

use procfs::{FromRead, process::Stat};

/// Memory and processor time of this process; `None` where `/proc/self/stat` cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Resident memory, in bytes.
    pub rss_bytes: Option<u64>,
    /// Processor time since the start of the process, user and system, in seconds.
    pub cpu_s: Option<f64>,
}

impl Usage {
    /// As it is now.
    pub fn now() -> Self {
        let stat = Stat::from_file("/proc/self/stat").ok();
        Self {
            rss_bytes: stat.as_ref().map(|stat| stat.rss.saturating_mul(rustix::param::page_size() as u64)),
            cpu_s: stat.map(|stat| (stat.utime + stat.stime) as f64 / rustix::param::clock_ticks_per_second() as f64),
        }
    }
}

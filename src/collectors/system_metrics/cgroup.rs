//! The control group (version 2) that the agent runs in, as the kernel tells it in files.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use procfs::{FromRead, ProcessCGroups};

use super::body::Cgroup;

/// Where control groups are mounted, alone or beside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// `None` where there is no group of version 2 with anything to tell.
pub(super) fn read() -> Result<Option<Cgroup>, String> {
    let own = "/proc/self/cgroup";
    let groups = ProcessCGroups::from_file(own).map_err(|error| error.to_string())?;
    // Version 2 has the number 0.
    let Some(group) = groups.0.into_iter().find(|group| group.hierarchy == 0) else { return Ok(None) };
    let mount = MOUNTS.into_iter().find(|mount| Path::new(mount).join("cgroup.controllers").exists());
    mount.map_or(Ok(None), |mount| in_folder(&PathBuf::from(format!("{mount}{}", group.pathname))))
}

fn in_folder(folder: &Path) -> Result<Option<Cgroup>, String> {
    let text = |name: &str| match fs::read_to_string(folder.join(name)) {
        Ok(text) => Ok(Some(text)),
        // The controller is not turned on, or this is the root.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", folder.join(name).display())),
    };
    let number = |text: Option<String>| text.and_then(|text| text.trim().parse().ok());
    let stat = text("cpu.stat")?;
    let counter = |name: &str| {
        let lines = stat.as_deref().unwrap_or_default().lines();
        lines.filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name).and_then(|(_, n)| n.parse().ok())
    };
    let memory_used = number(text("memory.current")?);
    let quota = text("cpu.max")?;
    if memory_used.is_none() && quota.is_none() {
        return Ok(None);
    }
    Ok(Some(Cgroup {
        memory_limit: number(text("memory.max")?),
        memory_used,
        cpu_limit: quota.as_deref().and_then(processors),
        cpu_usage_us: counter("usage_usec"),
        throttled_count: counter("nr_throttled"),
        throttled_us: counter("throttled_usec"),
    }))
}

/// `150000 100000` is one and a half; `max 100000` is no limit.
fn processors(quota: &str) -> Option<f64> {
    let (quota, period) = quota.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    Some(quota / period).filter(|limit| limit.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], want: Option<[Option<f64>; 6]>) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let got = in_folder(folder.path()).unwrap().map(|group| {
            let number = |n: Option<u64>| n.map(|n| n as f64);
            let Cgroup { memory_limit, memory_used, cpu_limit, cpu_usage_us, throttled_count, throttled_us } = group;
            let (limit, used) = (number(memory_limit), number(memory_used));
            [limit, used, cpu_limit, number(cpu_usage_us), number(throttled_count), number(throttled_us)]
        });
        assert_eq!(got, want, "{files:?}");
    }

    #[test]
    fn a_limit_is_told_and_max_is_none() {
        let stat = ("cpu.stat", "usage_usec 7\nuser_usec 6\nnr_throttled 2\nthrottled_usec 9\n");
        check(&[("memory.max", "1024\n"), ("memory.current", "512\n"), ("cpu.max", "150000 100000\n"), stat], {
            Some([Some(1024.0), Some(512.0), Some(1.5), Some(7.0), Some(2.0), Some(9.0)])
        });
        check(&[("memory.max", "max\n"), ("memory.current", "512\n"), ("cpu.max", "max 100000\n")], {
            Some([None, Some(512.0), None, None, None, None])
        });
    }

    #[test]
    fn a_group_without_controllers_is_none() {
        check(&[("cpu.stat", "usage_usec 7\n")], None);
    }
}

//! Disk space: asked of each file system in a thread of its own, because a server of files that is away hangs.
//!
//! A path that hangs is nil until it answers; it is not asked twice at once, so a dead mount costs one thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use futures_util::future::join_all;
use rustix::{fs::statvfs, io::Errno};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{Failed, body::DiskUsage, host::percent};

/// How long a file system may take to answer.
const LONGEST: Duration = Duration::from_secs(1);

/// What a path's file system answered; `None` for a path that does not exist.
type Answer = io::Result<Option<DiskUsage>>;

/// The configured paths, each with the question that it has not answered yet.
#[derive(Debug)]
pub(super) struct Disks(BTreeMap<String, Option<JoinHandle<Answer>>>);

impl Disks {
    pub(super) fn new(paths: BTreeSet<String>) -> Self {
        Self(paths.into_iter().map(|path| (path, None)).collect())
    }

    pub(super) async fn usage(&mut self, failed: &mut Failed) -> BTreeMap<String, Option<DiskUsage>> {
        let asked = self.0.iter_mut().map(async |(path, pending)| {
            let asked = pending.get_or_insert_with(|| {
                let path = path.clone();
                spawn_blocking(move || ask(&path))
            });
            let answer = timeout(LONGEST, asked).await;
            // At once, and not when all have answered: this look may be dropped while it waits for the others.
            if answer.is_ok() {
                *pending = None;
            }
            (path.clone(), answer)
        });
        let mut usage = BTreeMap::new();
        for (path, answer) in join_all(asked).await {
            let answer = match answer {
                Err(_) => Err(format!("no answer within {LONGEST:?}")),
                Ok(answer) => answer.map_err(io::Error::other).flatten().map_err(|error| error.to_string()),
            };
            match failed.none(&format!("disk_usage of {path}"), answer) {
                Some(None) => {}
                Some(found) => drop(usage.insert(path, found)),
                None => drop(usage.insert(path, None)),
            }
        }
        usage
    }
}

fn ask(path: &str) -> Answer {
    let found = match statvfs(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        found => found?,
    };
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let (total, free) = (bytes(found.f_blocks), bytes(found.f_bavail));
    let used = total.saturating_sub(bytes(found.f_bfree));
    Ok(Some(DiskUsage { total, used, free, percent: percent(used, used.saturating_add(free)) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_that_does_not_exist_is_left_out() {
        let mut disks = Disks::new(["/", "/no/such/path"].map(str::to_owned).into());
        let mut failed = Failed::default();
        let usage = disks.usage(&mut failed).await;
        assert_eq!(usage.keys().collect::<Vec<_>>(), ["/"]);
        assert!(usage["/"].as_ref().is_some_and(|disk| disk.total >= disk.used + disk.free));
        assert_eq!(failed.told(), None);
    }

    #[tokio::test]
    async fn a_path_that_hangs_is_nil_until_it_answers_and_holds_nobody() {
        let mut disks = Disks::new(["/".to_owned()].into());
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let hung = spawn_blocking(move || {
            let _answered = hangs.recv();
            ask("/")
        });
        disks.0.insert("/".into(), Some(hung));
        for _ in 0..2 {
            let mut failed = Failed::default();
            assert!(disks.usage(&mut failed).await["/"].is_none());
            assert_eq!(failed.told().as_deref(), Some("disk_usage of /: no answer within 1s"));
            assert!(disks.0["/"].is_some(), "it is not asked twice at once");
        }
        answer.send(()).unwrap();
        assert!(disks.usage(&mut Failed::default()).await["/"].is_some());
    }
}

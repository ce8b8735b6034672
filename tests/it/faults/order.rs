//! The order of system calls that the promise rests on, read from the running agent: what no power cut on a journalling
//! file system can show, because such a one keeps the order by itself.

use std::{collections::BTreeMap, fs, path::Path};

use super::{
    layout::{segments, waits},
    scene::{BOUND, Scene, many_folders, nothing},
};
use crate::rig::{
    agent::Agent,
    disk::under_log,
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// A call that succeeded, in the order of their ends.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Created(String),
    Wrote(String),
    Synced(String),
    Removed(String),
}

/// Reads strace's log: `-f -y`, so that descriptors come with their paths.
fn calls(log: &str) -> Vec<Call> {
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let whole = if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, first.to_owned());
            continue;
        } else if let Some((_, last)) = rest.split_once(" resumed>") {
            begun.remove(thread).unwrap_or_default() + last
        } else {
            rest.to_owned()
        };
        if whole.contains(" = -1 ") {
            continue;
        }
        let path = || whole.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path.to_owned());
        let quoted = || whole.split('"').nth(1).map(str::to_owned);
        let call = match whole.split('(').next().unwrap_or_default() {
            "openat" if whole.contains("O_CREAT") => quoted().map(Call::Created),
            "pwrite64" => path().map(Call::Wrote),
            "fdatasync" | "fsync" => path().map(Call::Synced),
            "unlink" => quoted().map(Call::Removed),
            _ => None,
        };
        calls.extend(call);
    }
    calls
}

fn is_segment(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "seg")
}

/// Each new segment: its folder is synced after it was made and before it is synced a second time.
fn names_are_synced(calls: &[Call]) -> Result<usize, String> {
    let mut checked = 0;
    for (at, call) in calls.iter().enumerate() {
        let Call::Created(path) = call else { continue };
        if !is_segment(path) {
            continue;
        }
        let folder = Path::new(path).parent().unwrap().to_str().unwrap();
        let later = &calls[at..];
        let syncs: Vec<usize> = positions(later, &Call::Synced(path.clone()));
        let Some(first) = syncs.first() else { continue };
        let until = syncs.get(1).copied().unwrap_or(later.len());
        if !later[*first..until].contains(&Call::Synced(folder.to_owned())) {
            return Err(format!("{path} was synced, and its folder was not"));
        }
        checked += 1;
    }
    Ok(checked)
}

/// Before a segment is removed, the mark was written after the segment's last record, and then synced.
fn marks_come_first(calls: &[Call], mark: &str) -> Result<usize, String> {
    let (wrote, synced) = (Call::Wrote(mark.to_owned()), Call::Synced(mark.to_owned()));
    let mut removed = 0;
    for (at, call) in calls.iter().enumerate() {
        let Call::Removed(path) = call else { continue };
        if !is_segment(path) {
            continue;
        }
        let record = calls[..at].iter().rposition(|call| *call == Call::Wrote(path.clone())).unwrap_or(0);
        let since = &calls[record..at];
        let sync = since.iter().rposition(|call| *call == synced);
        if !sync.is_some_and(|sync| since[..sync].contains(&wrote)) {
            return Err(format!("{path} was removed without a mark that was synced before"));
        }
        removed += 1;
    }
    Ok(removed)
}

fn positions(calls: &[Call], wanted: &Call) -> Vec<usize> {
    calls.iter().enumerate().filter(|(_, call)| *call == wanted).map(|(at, _)| at).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_synced_with_what_they_name_and_the_mark_before_anything_is_removed() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("order", &broker.url(), &["#"]).await.of(5, "order of system calls");
    let (_, many) = many_folders(scene.path(), 60_000);
    let log = scene.path().join("calls");
    let Some(under) = under_log("openat,pwrite64,fdatasync,fsync,unlink", &log) else { return };
    let config = format!("{many}spool.max_bytes = '64MiB'\nspool.segment_bytes = '128KiB'\n");
    let agent = Agent::start_under(&under, scene.path(), &scene.config(&line.url(), &config));
    // Several rounds of segments that are made, filled, delivered and removed.
    for _ in 0..3 {
        scene.all_delivered().await;
        line.set(Line::Cut);
        wait_for("several segments", BOUND, || segments(&scene.spool(), "system_metrics").len() >= 4);
        wait_for("a backlog", BOUND, || waits(&scene.spool(), "pg_locks") >= 2);
        line.set(Line::Open);
        scene.all_delivered().await;
        wait_for("what was settled is gone", BOUND, || segments(&scene.spool(), "system_metrics").len() <= 2);
    }
    let mark = scene.spool().join("mark").to_str().unwrap().to_owned();
    assert_eq!(scene.finish(agent).await.0, nothing());
    let calls = calls(&fs::read_to_string(&log).unwrap());
    let named = names_are_synced(&calls).unwrap_or_else(|wrong| panic!("{wrong}"));
    let removed = marks_come_first(&calls, &mark);
    let removed = removed.unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("order: {named} segments synced with their names, {removed} removed behind their mark");
    assert!(named >= 6 && removed >= 6, "too quiet to prove anything: {named}, {removed}");
}

#[test]
fn a_wrong_order_is_seen() {
    let [seg, folder, mark] = ["/s/a/1.seg", "/s/a", "/s/mark"].map(str::to_owned);
    let log = "7 openat(AT_FDCWD, \"/s/a/1.seg\", O_RDWR|O_CREAT|O_EXCL, 0600) = 4</s/a/1.seg>\n\
               7 pwrite64(5</s/mark>, \"x\"..., 9, 8192 <unfinished ...>\n\
               8 fdatasync(4</s/a/1.seg>) = 0\n\
               7 <... pwrite64 resumed>) = 9\n\
               7 fdatasync(5</s/mark>) = -1 EIO (Input/output error)\n\
               7 unlink(\"/s/a/1.seg\") = 0\n";
    let told = calls(log);
    let whole =
        [Call::Created(seg.clone()), Call::Synced(seg.clone()), Call::Wrote(mark.clone()), Call::Removed(seg.clone())];
    assert_eq!(told, whole);
    assert!(names_are_synced(&told).unwrap_err().contains("its folder was not"));
    assert!(marks_come_first(&told, &mark).unwrap_err().contains("without a mark"));
    let right = [
        Call::Created(seg.clone()),
        Call::Synced(seg.clone()),
        Call::Synced(folder),
        Call::Wrote(mark.clone()),
        Call::Synced(mark.clone()),
        Call::Removed(seg.clone()),
        Call::Removed(seg),
    ];
    assert_eq!(names_are_synced(&right), Ok(1));
    assert_eq!(marks_come_first(&right[..6], &mark), Ok(1));
}

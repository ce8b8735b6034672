//! Power cuts under load: the agent goes on with what was on the disk, nothing undeclared is missing, and declared is only
//! what was too young to be there.
//!
//! A cut is a copy of the disk's image, taken while the agent is stopped at a random moment. Before it, some files are
//! written out and others are not, as a kernel may do at any time: so a later write survives that an earlier one does not.
//!
//! `FAULT_POWER_CUTS=50` cuts more often than CI does, `FAULT_SEED` repeats the moments of an earlier
//! loop.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;

use super::{
    evidence::{Evidence, Id},
    scene::{Scene, fast},
};
use crate::rig::{
    agent::Agent,
    chance::{Dice, now_ms, number_from},
    disk::{Disk, under_boot},
    proxy::{Line, Proxy},
    rabbit,
};

const SYNC_AFTER: Duration = Duration::from_millis(300);
/// How long a sync may take on a busy machine.
const SYNCED: Duration = Duration::from_secs(2);

/// What was confirmed longer ago than this is known to be, whatever the power does.
const KNOWN: Duration = Duration::from_secs(12);

/// Segments are small, so that cuts fall between a new one and its first sync, and between a settled one and its end.
const SMALL: &str =
    "spool.max_bytes = '64MiB'\nspool.segment_bytes = '64KiB'\nspool.sync_after = '300ms'\nspool.min_free = '0'\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_power_cut_loses_what_was_older_than_sync_after_and_the_rest_is_declared() {
    let cuts: u32 = number_from("FAULT_POWER_CUTS").unwrap_or(4);
    let seed = number_from("FAULT_SEED").unwrap_or_else(now_ms);
    println!("{cuts} power cuts, FAULT_SEED={seed}");
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("power", &broker.url(), &["#"]).await.of(4, "power cuts").times(cuts);
    let Some(mut disk) = Disk::ext4("power", 48 << 20) else { return };
    let mut dice = Dice::new(seed);
    let (mut moments, mut arrived) = (Vec::new(), Vec::new());
    for boot in 0..cuts {
        let Some(agent) = start(&scene, &line, &disk, boot) else { return };
        for _ in 0..3 {
            arrived.push((Timestamp::now(), scene.queued().await));
            line.set(if dice.roll(2) == 0 { Line::Cut } else { Line::Open });
            tokio::time::sleep(dice.between(50, 2000)).await;
        }
        if boot % 4 == 3 {
            arrived.push((Timestamp::now(), scene.queued().await));
            tokio::time::sleep(KNOWN + SYNCED).await;
        }
        for path in files(&disk.path().join("spool")) {
            if dice.roll(3) == 0 {
                // What is gone by now needs no writing.
                let _gone = fs::File::open(path).and_then(|file| file.sync_data());
            }
        }
        agent.signal(Signal::STOP);
        moments.push(Timestamp::now());
        disk = tokio::task::block_in_place(|| disk.power_cut());
        agent.kill();
        arrived.push((Timestamp::now(), scene.queued().await));
    }
    line.set(Line::Open);
    let agent = start(&scene, &line, &disk, cuts).unwrap();
    let (_, evidence) = scene.finish(agent).await;
    println!(
        "{cuts} cuts: {} messages, {} duplicates, {} declared, {} of them never came",
        evidence.received.len(),
        evidence.duplicates(),
        evidence.declared.len(),
        evidence.gone().count(),
    );
    assert!(evidence.reasons().is_subset(&BTreeSet::from(["power"])), "{:?}", evidence.reasons());
    few_come_twice(&evidence, &moments, &arrived);
    for id in evidence.declared.keys() {
        let safe = if evidence.received.contains_key(id) { KNOWN } else { SYNC_AFTER + SYNCED };
        is_young(id, &evidence, &moments, safe);
    }
}

/// A mark that waits for its sync does so for 10 s at the most: of what came before that, nothing comes again after a cut.
/// `arrived` tells how many messages had come by when.
fn few_come_twice(evidence: &Evidence, moments: &[Timestamp], arrived: &[(Timestamp, usize)]) {
    let by = |at: Timestamp| arrived.iter().rfind(|(when, _)| *when <= at).map_or(0, |(_, count)| *count);
    let after = |at: Timestamp| arrived.iter().find(|(when, _)| *when > at).map_or(0, |(_, count)| *count);
    let (mut seen, mut twice, mut each) = (BTreeSet::new(), Vec::new(), Vec::new());
    for id in &evidence.order {
        twice.push(!seen.insert(id));
    }
    for (index, cut) in moments.iter().enumerate() {
        let (from, to) = (after(*cut), moments.get(index + 1).map_or(twice.len(), |next| after(*next)));
        let again = twice[from..to].iter().filter(|twice| **twice).count();
        let known = cut.checked_sub(SignedDuration::try_from(KNOWN).unwrap()).unwrap();
        let confirmed = from - by(known);
        // What was in flight, and what the mark may hold back at rest.
        assert!(
            again <= confirmed + 256 + 64,
            "{again} came again after the cut at {cut}, {confirmed} in 10 s before it"
        );
        each.push(again);
    }
    each.sort_unstable();
    let at = |percent: usize| each[(each.len() * percent / 100).min(each.len() - 1)];
    println!("figure: duplicates for each power cut: median {}, p99 {}, max {}", at(50), at(99), at(100));
}

/// Nothing that was numbered longer than `safe` before the cut that ended its run is declared.
fn is_young((run, collector, seq): &Id, evidence: &Evidence, moments: &[Timestamp], safe: Duration) {
    let cut = moments.iter().find(|cut| begun(run) < **cut).expect("it is of a run that was cut off");
    let safe = cut.checked_sub(SignedDuration::try_from(safe).unwrap()).unwrap();
    let older = evidence.statuses.values().filter(|told| told.run == *run && told.at < safe);
    let older = older.filter_map(|told| told.sent.get(collector)).copied().max().unwrap_or(0);
    assert!(*seq > older, "{run}/{collector}/{seq} is declared, but {older} was given out before {safe}, cut at {cut}");
}

fn start(scene: &Scene, line: &Proxy, disk: &Disk, boot: u32) -> Option<Agent> {
    let dir = format!("spool.dir = '{}'\n", disk.path().join("spool").display());
    let config = fast(&scene.config(&line.url(), &(dir + SMALL)));
    let under = under_boot(scene.path(), boot)?;
    Some(Agent::start_under(&under, scene.path(), &config))
}

/// All files below a folder, and the folders.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths = vec![folder.to_owned()];
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() { paths.extend(files(&path)) } else { paths.push(path) }
    }
    paths
}

/// When a run began: its id begins with its time, 48 bits of milliseconds.
fn begun(run: &str) -> Timestamp {
    let ms = i64::from_str_radix(&run.replace('-', "")[..12], 16).unwrap();
    Timestamp::from_millisecond(ms).unwrap()
}

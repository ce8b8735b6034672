//! What may lie in a spool's folder when the agent starts, or happen to it while it runs: damage costs what was damaged,
//! what is not ours is left alone, and each is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    evidence::Evidence,
    layout::{HEAD, records, segments, waits},
    left::Left,
    scene::{BOUND, Scene, nothing},
};
use crate::rig::{
    agent::command,
    proxy::{Line, Proxy},
    rabbit, wait_for,
};

/// Declared, as collector, `seq` and reason.
fn declared(evidence: &Evidence) -> Vec<(&str, u64, &str)> {
    let all = evidence.declared.iter();
    all.flat_map(|((_, name, seq), why)| why.iter().map(|why| (name.as_str(), *seq, why.as_str()))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_last_record_that_is_cut_anywhere_just_that_one_is_lost() {
    let left = Left::behind("torn", (6, "torn last records"), "", 3).await;
    let mut lost = Vec::new();
    // Of the head, between head and payload, of the payload, all but a byte.
    for (collector, keep) in
        [("pg_activity", 1), ("pg_locks", HEAD), ("pg_statements", HEAD + 9), ("system_metrics", 0)]
    {
        let (segment, records) = left.newest(collector);
        let last = *records.last().unwrap();
        let keep = if keep == 0 { last.len - 1 } else { keep };
        fs::File::options().write(true).open(segment).unwrap().set_len((last.at + keep) as u64).unwrap();
        lost.push((collector, last.seq, "damaged"));
    }
    // What was begun and never finished is no message yet: the number of a whole one was never given out.
    let (segment, records) = left.newest("agent_status");
    let last = records.last().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let half = &bytes[last.at..last.at + last.len / 2];
    fs::File::options().write(true).open(segment).unwrap().write_all_at(half, bytes.len() as u64).unwrap();
    lost.sort_unstable();
    let evidence = left.goes_on().await;
    assert_eq!(declared(&evidence), lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_a_sector_and_a_block_cost_the_records_they_hit() {
    let left = Left::behind("flipped", (8, "flipped bits (7), a sector, a block"), "", 12).await;
    let mut lost = Vec::new();
    let mut damage = |collector: &'static str, at: usize, bytes: &dyn Fn(&[u8]) -> Vec<u8>, len: usize| {
        let (segment, records) = left.newest(collector);
        let whole = fs::read(&segment).unwrap();
        let until = (at + len).min(records.last().unwrap().at);
        let file = fs::File::options().write(true).open(&segment).unwrap();
        file.write_all_at(&bytes(&whole[at..until]), at as u64).unwrap();
        let hit = records.iter().filter(|record| record.at < until && record.at + record.len > at);
        lost.extend(hit.map(|record| (collector, record.seq, "damaged")));
    };
    let flip = |bytes: &[u8]| vec![bytes[0] ^ 0x10];
    let zeros = |bytes: &[u8]| vec![0; bytes.len()];
    let of = |collector, nth: usize| left.newest(collector).1[nth].at;
    damage("pg_activity", of("pg_activity", 5) + 2, &flip, 1);
    damage("pg_locks", of("pg_locks", 5) + HEAD + 7, &flip, 1);
    damage("pg_statements", 512, &zeros, 512);
    damage("system_metrics", 4096, &zeros, 4096);
    // Its header too, which its place and its records make up for.
    damage("agent_status", 0, &zeros, 512);
    lost.sort_unstable();
    assert!(lost.len() > 4, "{lost:?}");
    let evidence = left.goes_on().await;
    assert_eq!(declared(&evidence), lost);
    let aside = |name: &str| {
        left.spool().join(name).read_dir().unwrap().flatten().map(|entry| entry.file_name()).collect::<Vec<_>>()
    };
    assert!(
        aside("pg_locks").iter().any(|name| name.to_string_lossy().ends_with(".damaged")),
        "{:?}",
        aside("pg_locks")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_are_gone_or_bear_anothers_name_are_missing_and_the_rest_goes_on() {
    let many = super::scene::many_folders;
    let base = crate::rig::Folder::new("taken-many");
    let more = many(base.path(), 100_000).1 + "spool.max_bytes = '64MiB'\nspool.segment_bytes = '256KiB'\n";
    let left = Left::behind("taken", (9, "segments gone and swapped"), &more, 10).await;
    let all = segments(&left.spool(), "system_metrics");
    assert!(all.len() >= 5, "{all:?}");
    let mut lost: Vec<u64> = all[1..4].iter().flat_map(|path| records(path)).map(|record| record.seq).collect();
    fs::remove_file(&all[1]).unwrap();
    let other = all[2].with_extension("other");
    fs::rename(&all[2], &other).unwrap();
    fs::rename(&all[3], &all[2]).unwrap();
    fs::rename(&other, &all[3]).unwrap();
    let evidence = left.goes_on().await;
    lost.sort_unstable();
    let expected: Vec<_> = lost.iter().map(|seq| ("system_metrics", *seq, "missing")).collect();
    assert_eq!(declared(&evidence), expected);
    assert!(left.scene.log().contains("has been renamed"), "{}", left.scene.log());
    assert!(all[2].exists() && all[3].exists(), "what cannot be told apart is left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_is_damaged_or_gone_gives_duplicates_and_no_loss() {
    let left = Left::behind("marks", (10, "mark damaged, mark gone"), "", 3).await;
    let mark = left.spool().join("mark");
    let garbage: Vec<u8> = fs::read(&mark).unwrap().iter().map(|byte| byte ^ 0x5a).collect();
    fs::write(&mark, garbage).unwrap();
    left.run_and_die(3).await;
    fs::remove_file(&mark).unwrap();
    let evidence = left.goes_on().await;
    assert_eq!(declared(&evidence), []);
    println!("marks: {} duplicates", evidence.duplicates());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_of_an_earlier_time_loses_nothing_and_leaves_no_gap_undeclared() {
    let left = Left::behind("old-mark", (11, "mark of an earlier time"), "", 3).await;
    let mark = left.spool().join("mark");
    let old = fs::read(&mark).unwrap();
    left.run_and_die(3).await;
    // What it holds for waiting was delivered since: to the agent that is missing.
    fs::write(&mark, old).unwrap();
    let evidence = left.goes_on().await;
    assert!(evidence.reasons().is_subset(&BTreeSet::from(["missing"])), "{:?}", declared(&evidence));
    assert_eq!(evidence.gone().count(), 0, "all that there was came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_of_another_agent_says_nothing_and_is_told() {
    let stranger = Left::behind("strange-mark", (11, "a stranger's mark"), "", 3).await;
    let left = Left::behind("own-mark", (11, "another agent's mark"), "", 3).await;
    fs::copy(stranger.spool().join("mark"), left.spool().join("mark")).unwrap();
    let evidence = left.goes_on().await;
    assert_eq!(declared(&evidence), []);
    assert!(left.scene.log().contains("another agent"), "{}", left.scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_a_past_that_is_settled_come_again_and_a_strangers_do_not() {
    let stranger = Left::behind("stranger", (12, "a stranger's folder"), "", 3).await;
    let left = Left::behind("past", (12, "segments of the past, of a stranger"), "", 3).await;
    let past = left.scene.path().join("past");
    assert!(Command::new("cp").arg("-r").arg(left.spool()).arg(&past).status().unwrap().success());
    left.run_and_die(3).await;
    left.line.set(Line::Open);
    let agent = left.scene.start(&left.line.url(), "");
    left.scene.all_delivered().await;
    let (status, _) = tokio::task::block_in_place(|| agent.stop(Duration::from_secs(20)));
    assert!(status.success());
    let put = |from: &Path, collector: &str| {
        for segment in segments(from, collector) {
            let name = segment.file_name().unwrap().to_owned();
            let to = left.spool().join(collector).join(name);
            if !to.exists() {
                fs::copy(segment, to).unwrap();
            }
        }
    };
    put(&past, "pg_locks");
    put(&stranger.spool(), "pg_activity");
    let strangers: BTreeMap<PathBuf, Vec<u8>> = segments(&left.spool(), "pg_activity")
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .filter(|(_, bytes)| {
            segments(&stranger.spool(), "pg_activity").iter().any(|own| fs::read(own).unwrap() == *bytes)
        })
        .collect();
    assert!(!strangers.is_empty());
    let evidence = left.goes_on().await;
    assert_eq!(declared(&evidence), []);
    assert!(left.scene.log().contains("is another agent's segment"), "{}", left.scene.log());
    for (path, bytes) in strangers {
        assert_eq!(fs::read(&path).unwrap(), bytes, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_files_links_pipes_and_folders_are_left_alone_and_told() {
    let left = Left::behind("strange", (13, "strange files, links, pipes"), "", 2).await;
    let (spool, precious) = (left.spool(), left.scene.path().join("precious"));
    fs::write(&precious, "not ours").unwrap();
    let log = spool.join("pg_locks");
    let [file, link, pipe, folder] = [
        "notes.txt",
        "00000009-0000000000000001.seg",
        "00000009-0000000000000002.seg",
        "00000009-0000000000000003.seg",
    ]
    .map(|name| log.join(name));
    fs::write(&file, "a note").unwrap();
    symlink(&precious, &link).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::create_dir(&folder).unwrap();
    symlink(left.scene.path(), spool.join("linked")).unwrap();
    let evidence = left.goes_on().await;
    assert_eq!(declared(&evidence), []);
    assert_eq!(fs::read_to_string(precious).unwrap(), "not ours");
    for path in [&file, &link, &pipe, &folder, &spool.join("linked")] {
        assert!(path.symlink_metadata().is_ok(), "{} is gone", path.display());
        assert!(left.scene.log().contains(path.to_str().unwrap()), "{} is not told", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_of_a_newer_version_is_kept_as_it_is_and_told() {
    let left = Left::behind("newer", (14, "a newer format"), "", 3).await;
    let (segment, records) = left.newest("pg_locks");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8..10].copy_from_slice(&9_u16.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..124]);
    bytes[124..128].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    let evidence = left.goes_on().await;
    assert_eq!(fs::read(&segment).unwrap(), bytes);
    assert!(left.scene.log().contains("has format 9"), "{}", left.scene.log());
    let held: Vec<_> = records.iter().map(|record| ("pg_locks", record.seq, "missing")).collect();
    assert_eq!(declared(&evidence), held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_removed_under_a_running_agent_is_made_anew_and_loses_only_what_was_in_it() {
    let line = Proxy::to(rabbit::shared().port()).await;
    let scene = Scene::new("removed", &rabbit::shared().url(), &["#"]).await.of(21, "folder removed under the agent");
    let agent = scene.start(&line.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    fs::remove_dir_all(scene.spool()).unwrap();
    wait_for("the folder is there again", BOUND, || {
        ["agent", "lock", "mark"].iter().all(|name| scene.spool().join(name).exists())
    });
    scene.all_delivered().await;
    line.set(Line::Cut);
    wait_for("a backlog", BOUND, || waits(&scene.spool(), "pg_locks") > 5);
    // With a backlog: what an open file holds is still there, and is written anew.
    fs::remove_dir_all(scene.spool()).unwrap();
    wait_for("the backlog is there again", BOUND, || waits(&scene.spool(), "pg_locks") > 5);
    wait_for("and all the rest", BOUND, || {
        ["agent", "lock", "mark"].iter().all(|name| scene.spool().join(name).exists())
    });
    agent.kill();
    line.set(Line::Open);
    let agent = scene.start(&line.url(), "");
    let (_, evidence) = scene.finish(agent).await;
    for (_, _, why) in declared(&evidence) {
        assert_eq!(why, "missing");
    }
    println!("removed: {:?}", declared(&evidence));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_on_the_same_folder_ends_at_once_and_disturbs_nobody() {
    let broker = rabbit::shared();
    let scene = Scene::new("two", &broker.url(), &["#"]).await.of(22, "two agents");
    let agent = scene.start(&broker.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let second = command(["run", "--config"]).arg(scene.path().join("agent.toml")).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(75), "{said}");
    assert!(
        said.contains(&format!("process {}", agent.pid())) && said.contains(scene.spool().to_str().unwrap()),
        "{said}"
    );
    assert_eq!(scene.end(agent).await, nothing());
}

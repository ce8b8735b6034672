//! The spool as a whole, driven with random actions and held against a simple model.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileExt,
    path::Path,
};

use proptest::prelude::*;

use std::time::Duration;

use super::*;
use crate::event::status::Reason;

mod crashes;
mod model;
mod sim;

use model::{Key, LOGS, Model, body, config, number, open, tell};

#[derive(Debug, Clone)]
enum Step {
    Number(usize),
    Fresh(usize),
    Waiting(usize),
    Ack(usize),
    PutBack(usize),
    Live(bool),
    Keep,
    Kill,
    Stop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let log = 0..LOGS.len();
    let step = prop_oneof![
        8 => log.clone().prop_map(Step::Number),
        4 => log.clone().prop_map(Step::Fresh),
        4 => log.prop_map(Step::Waiting),
        6 => any::<usize>().prop_map(Step::Ack),
        2 => any::<usize>().prop_map(Step::PutBack),
        1 => any::<bool>().prop_map(Step::Live),
        2 => Just(Step::Keep),
        1 => Just(Step::Kill),
        1 => Just(Step::Stop),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn everything_that_was_numbered_is_delivered_through_any_kills(steps in steps()) {
        let folder = tempfile::tempdir()?;
        let mut spool = open(folder.path(), 1 << 30);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Number(log) => model.number(&spool, LOGS[log]),
                Step::Fresh(log) => _ = model.take(&spool, LOGS[log], true),
                Step::Waiting(log) => _ = model.take(&spool, LOGS[log], false),
                Step::Ack(nth) => model.settle(&spool, nth, true),
                Step::PutBack(nth) => model.settle(&spool, nth, false),
                Step::Live(live) => {
                    spool.set_live(live.then_some(300));
                    if !live {
                        model.out.clear();
                    }
                }
                Step::Keep => spool.keep(),
                Step::Kill | Step::Stop => {
                    if matches!(step, Step::Stop) {
                        spool.close();
                    }
                    // Dropping does nothing but close files: to the folder it is a kill.
                    drop(spool);
                    spool = open(folder.path(), 1 << 30);
                    model.out.clear();
                }
            }
        }
        let before: BTreeSet<Key> = model.acked.clone();
        let (_, told) = tell(&spool);
        prop_assert_eq!(Model::lost(&told), BTreeSet::new(), "nothing was lost, so nothing is declared");
        let waiting: BTreeSet<Key> = told.waiting.iter().flat_map(|range| {
            (range.first_seq..=range.last_seq).map(|seq| (range.run_id.clone(), range.collector.clone(), seq)).collect::<Vec<_>>()
        }).collect();
        prop_assert!(model.numbered.difference(&before).all(|key| waiting.contains(key)), "what is not acked is told as waiting");
        model.numbered.insert((spool.run_id.to_string(), status::COLLECTOR.to_owned(), told.sent[status::COLLECTOR]));
        model.drain(&spool);
        prop_assert_eq!(model.numbered.difference(&model.acked).count(), 0, "all is delivered");
        prop_assert_eq!(spool.status().messages, 0);
        spool.keep();
        let left: u64 = LOGS.iter().flat_map(|log| std::fs::read_dir(folder.path().join(log)).into_iter().flatten())
            .map(|file| file.expect("listed").metadata().expect("there").len()).sum();
        prop_assert!(left <= 3 * header::HEADER, "a settled spool keeps headers only, not {left} bytes");
    }

    #[test]
    fn what_does_not_fit_is_declared_and_nothing_else(numbers in prop::collection::vec(0..LOGS.len(), 50..300), kill in any::<bool>()) {
        let folder = tempfile::tempdir()?;
        let mut spool = open(folder.path(), 12_000);
        let mut model = Model::default();
        for log in numbers {
            model.number(&spool, LOGS[log]);
        }
        spool.keep();
        let bytes: u64 = LOGS.iter().flat_map(|log| std::fs::read_dir(folder.path().join(log)).into_iter().flatten())
            .map(|file| file.expect("listed").metadata().expect("there").len()).sum();
        prop_assert!(bytes <= 12_000, "{bytes} bytes of segments");
        if kill {
            drop(spool);
            spool = open(folder.path(), 12_000);
        }
        let (seq, told) = tell(&spool);
        let mut lost = Model::lost(&told);
        model.numbered.insert((spool.run_id.to_string(), status::COLLECTOR.to_owned(), seq));
        model.drain(&spool);
        // The status itself may have pushed something out.
        let (_, later) = tell(&spool);
        lost.extend(Model::lost(&later));
        prop_assert!(model.acked.is_disjoint(&lost), "what is declared is not delivered: it was dropped");
        let settled: BTreeSet<Key> = model.acked.union(&lost).cloned().collect();
        prop_assert!(settled == model.numbered, "{:?}", settled.symmetric_difference(&model.numbered));
        prop_assert!(told.lost.iter().all(|lost| lost.reason == Reason::Evicted));
    }
}

/// Fills a log with `records` messages without a broker, has them synced, and kills the agent.
fn filled(dir: &Path, records: u64) -> Uuid {
    // Whoever keeps it finds at once that it is time to.
    let config = Config { sync_after: Duration::from_nanos(1), ..config(dir, 1 << 30) };
    let spool = Spool::open(config, LOGS.to_vec()).expect("nobody holds it");
    for _ in 0..records {
        number(&spool, "pg_locks");
    }
    spool.keep();
    spool.run_id
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir.join("pg_locks")).expect("listed").map(|file| file.expect("listed").path()).collect();
    paths.sort();
    paths
}

/// What a new run delivers and declares of the log.
fn outcome(dir: &Path) -> (BTreeSet<u64>, BTreeSet<u64>, BTreeSet<Reason>) {
    let spool = open(dir, 1 << 30);
    let mut delivered = BTreeSet::new();
    while let Some(taken) = spool.take_waiting("pg_locks") {
        assert_eq!(taken.batch.body, body(taken.batch.run_id, "pg_locks", taken.batch.seq));
        assert!(taken.replayed, "it waited in the spool");
        delivered.insert(taken.batch.seq);
        spool.ack("pg_locks", [taken.id]);
    }
    let (_, told) = tell(&spool);
    let lost = Model::lost(&told).into_iter().map(|(_, _, seq)| seq).collect();
    (delivered, lost, told.lost.iter().map(|lost| lost.reason).collect())
}

#[test]
fn one_flipped_byte_anywhere_costs_one_record_at_the_most_and_is_declared() {
    let whole = tempfile::tempdir().expect("a folder");
    filled(whole.path(), 6);
    let name = segments(whole.path())[0].file_name().expect("a name").to_owned();
    let bytes = std::fs::read(segments(whole.path())[0].clone()).expect("read");
    for at in 0..bytes.len() as u64 {
        let folder = tempfile::tempdir().expect("a folder");
        for file in ["agent", "mark"] {
            std::fs::copy(whole.path().join(file), folder.path().join(file)).expect("copied");
        }
        std::fs::create_dir(folder.path().join("pg_locks")).expect("made");
        let path = folder.path().join("pg_locks").join(&name);
        std::fs::write(&path, &bytes).expect("written");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
        file.write_all_at(&[bytes[usize::try_from(at).expect("small")] ^ 0x40], at).expect("written");
        let (delivered, lost, reasons) = outcome(folder.path());
        // What the header says, its place and its records say as well.
        let hit = usize::from(at >= header::HEADER);
        assert_eq!(lost.len(), hit, "byte {at}: {lost:?} are declared");
        assert!(delivered.is_disjoint(&lost) && delivered.len() + hit == 6, "byte {at}: {delivered:?}");
        assert!(reasons.is_subset(&[Reason::Damaged].into()), "byte {at}: {reasons:?}");
    }
}

#[test]
fn a_segment_of_which_nothing_is_left_is_damaged_and_not_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 40);
    let path = segments(folder.path())[1].clone();
    let held: BTreeSet<u64> = {
        let spool = outside::look(folder.path()).expect("a spool");
        let first = |path: &Path| segment::Segment::parse_name(path.file_name()?.to_str()?).map(|(_, first)| first);
        assert_eq!(spool.records, 40);
        (first(&path).expect("named")..first(&segments(folder.path())[2]).expect("named")).collect()
    };
    let len = std::fs::metadata(&path).expect("there").len();
    std::fs::write(&path, vec![0; usize::try_from(len).expect("small")]).expect("written");
    assert!(!outside::verify(folder.path(), &|_| {}).expect("a spool").is_whole());
    let (delivered, lost, reasons) = outcome(folder.path());
    assert_eq!((&lost, reasons), (&held, [Reason::Damaged].into()));
    assert!(delivered.is_disjoint(&lost) && delivered.len() + lost.len() == 40, "{delivered:?}");
    assert!(path.with_extension("seg.damaged").exists());
}

#[test]
fn whose_spool_it_is_the_mark_tells_where_the_agents_id_is_damaged_or_gone() {
    let whole = tempfile::tempdir().expect("a folder");
    filled(whole.path(), 6);
    let id = std::fs::read(whole.path().join("agent")).expect("read");
    let damages = (0..=id.len()).map(|at| {
        let mut damaged = id.clone();
        // One byte that is another, or none at all.
        damaged.get_mut(at).map(|byte| *byte ^= 1).map(|()| damaged)
    });
    for damage in damages {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("pg_locks")).expect("made");
        let name = segments(whole.path())[0].file_name().expect("a name").to_owned();
        std::fs::copy(&segments(whole.path())[0], folder.path().join("pg_locks").join(name)).expect("copied");
        std::fs::copy(whole.path().join("mark"), folder.path().join("mark")).expect("copied");
        if let Some(damaged) = &damage {
            std::fs::write(folder.path().join("agent"), damaged).expect("written");
        }
        assert_eq!(outside::look(folder.path()).expect("a spool").logs["pg_locks"].messages(), 6, "{damage:?}");
        let (delivered, lost, _) = outcome(folder.path());
        assert_eq!((delivered.len(), lost.len()), (6, 0), "{damage:?}");
        let known = |dir: &Path| read_agent_id(dir).expect("written anew");
        assert_eq!(known(folder.path()), known(whole.path()), "{damage:?}");
    }
}

#[test]
fn a_record_that_was_never_finished_is_no_loss() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 3);
    let path = segments(folder.path())[0].clone();
    let file = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
    // The head of a fourth record: `given` was never written for it.
    std::io::Write::write_all(&mut &file, &[9, 0, 0, 0, 1, 2, 3, 4, 4, 0, 0, 0, 0]).expect("written");
    let (delivered, lost, _) = outcome(folder.path());
    assert_eq!((delivered, lost), ([1, 2, 3].into(), BTreeSet::new()));
}

#[test]
fn a_segment_that_was_taken_away_is_missing_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 40);
    let paths = segments(folder.path());
    assert!(paths.len() > 3, "several segments");
    std::fs::remove_file(&paths[1]).expect("removed");
    let first = |path: &PathBuf| segment::Segment::parse_name(path.file_name()?.to_str()?).map(|(_, first)| first);
    let gone: BTreeSet<u64> = (first(&paths[1]).expect("named")..first(&paths[2]).expect("named")).collect();
    let (delivered, lost, reasons) = outcome(folder.path());
    assert_eq!(lost, gone);
    assert_eq!(reasons, [Reason::Missing].into());
    assert_eq!(delivered, (1..=40).filter(|seq| !gone.contains(seq)).collect());
}

#[test]
fn without_its_mark_everything_there_is_comes_again_and_nothing_is_declared() {
    let folder = tempfile::tempdir().expect("a folder");
    {
        let spool = open(folder.path(), 1 << 30);
        for _ in 0..30 {
            number(&spool, "pg_locks");
        }
        for _ in 0..15 {
            let taken = spool.take_waiting("pg_locks").expect("it waits");
            spool.ack("pg_locks", [taken.id]);
        }
        spool.keep();
    }
    std::fs::write(folder.path().join("mark"), "gone").expect("written");
    let (delivered, lost, _) = outcome(folder.path());
    assert_eq!(lost, BTreeSet::new());
    assert!((16..=30).all(|seq| delivered.contains(&seq)), "{delivered:?}");
}

#[test]
fn what_is_not_the_spools_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    filled(folder.path(), 3);
    let log = folder.path().join("pg_locks");
    std::fs::write(folder.path().join("README"), "hello").expect("written");
    std::fs::write(log.join("notes.txt"), "hello").expect("written");
    std::fs::write(log.join("00000009-0000000000000001.seg"), "no header").expect("written");
    std::os::unix::fs::symlink("/etc/passwd", log.join("00000008-0000000000000001.seg")).expect("linked");
    std::fs::create_dir(log.join("00000007-0000000000000001.seg")).expect("made");
    let (delivered, lost, _) = outcome(folder.path());
    assert_eq!((delivered, lost), ([1, 2, 3].into(), BTreeSet::new()));
    for name in ["../README", "notes.txt", "00000009-0000000000000001.seg.damaged", "00000008-0000000000000001.seg"] {
        assert!(log.join(name).exists(), "{name} is still there");
    }
}

#[test]
fn a_spool_is_held_by_one_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let _first = open(folder.path(), 1 << 30);
    match Spool::open(config(folder.path(), 1 << 30), Vec::new()) {
        Err(Error::Held { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn earlier_runs_are_told_until_a_status_is_confirmed_through_any_kills() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(filled(folder.path(), 2).to_string());
    }
    let spool = open(folder.path(), 1 << 30);
    let (seq, told) = tell(&spool);
    let ids: Vec<String> = told.previous_runs.iter().map(|run| run.run_id.clone()).collect();
    assert_eq!(ids, runs, "in their order");
    assert!(told.previous_runs.iter().all(|run| run.last_seq == BTreeMap::from([("pg_locks".to_owned(), 2)])));
    assert_eq!(tell(&spool).1.previous_runs.len(), 3, "told again until confirmed");
    spool.ack(status::COLLECTOR, [Id { run: 4, seq }]);
    assert!(tell(&spool).1.previous_runs.is_empty());
    spool.close();
    drop(spool);
    let spool = open(folder.path(), 1 << 30);
    let ids: Vec<String> = tell(&spool).1.previous_runs.iter().map(|run| run.run_id.clone()).collect();
    assert_eq!(ids.len(), 1, "only the last one is new");
}

#[test]
fn without_a_usable_folder_the_agent_runs_from_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let spool = open(&file, 1 << 30);
    assert!(spool.trouble().is_some());
    spool.set_live(Some(1000));
    number(&spool, "pg_locks");
    number(&spool, "pg_locks");
    let taken = spool.take_fresh("pg_locks").expect("from memory");
    spool.ack("pg_locks", [taken.id]);
    spool.set_live(None);
    let (_, told) = tell(&spool);
    let lost: Vec<_> = told.lost.iter().map(|lost| (lost.first_seq, lost.last_seq, lost.reason)).collect();
    assert_eq!(lost, [(2, Some(2), Reason::DiskFull)], "what was not confirmed when the connection ended");
}

#[test]
fn a_power_cut_declares_what_was_not_synced_to_the_runs_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = filled(folder.path(), 2).to_string();
    // Another boot id in the mark: the machine was off in between.
    let path = folder.path().join("mark");
    let (mut mark, marked) = mark::Mark::open(&Machine, &path).expect("a mark");
    let body = mark::Body { boot: "another".into(), ..marked.body.expect("written at the start") };
    mark.write(&body).expect("written");
    let (delivered, ..) = {
        let spool = open(folder.path(), 1 << 30);
        let (_, told) = tell(&spool);
        let lost: BTreeMap<_, _> =
            told.lost.iter().map(|lost| (&*lost.collector, (&*lost.run_id, lost.first_seq, lost.last_seq))).collect();
        assert!(told.lost.iter().all(|lost| lost.reason == Reason::Power));
        // Of the others nothing is known: nothing of theirs may have been synced.
        let first = |log: &str| if log == "pg_locks" { 3 } else { 1 };
        assert_eq!(lost, LOGS.map(|log| (log, (&*run, first(log), None))).into());
        (std::iter::from_fn(|| spool.take_waiting("pg_locks")).count(), ())
    };
    assert_eq!(delivered, 2, "what is there is delivered");
}

/// The disk is full from now on, or no longer.
fn fill(spool: &Spool, full: bool) {
    let mut state = spool.state();
    state.config.min_free = if full { u64::MAX } else { 0 };
    state.space.1 = u64::MAX;
}

fn number_bytes(spool: &Spool, log: &str, bytes: usize) -> u64 {
    let draft = Draft { collector: log, events: 1, version: 1, zstd: false };
    spool.number(draft, |_| Ok(vec![0; bytes])).expect("bodies are made")
}

#[test]
fn what_is_in_memory_only_does_not_go_with_the_segment_around_it() {
    const LOG: &str = "pg_locks";
    let dir = tempfile::tempdir().expect("a folder");
    let spool = open(dir.path(), 1 << 20);
    spool.set_live(Some(1 << 20));
    for full in [false, true, false] {
        fill(&spool, full);
        number(&spool, LOG);
    }
    let evicted = spool.state().logs.get_mut(LOG).expect("it has messages").evict(Reason::Evicted);
    assert!(evicted);
    spool.state().after_change();
    let lost: Vec<_> = tell(&spool).1.lost.iter().map(|lost| (lost.first_seq, lost.last_seq)).collect();
    assert_eq!(lost, [(1, Some(1)), (3, Some(3))]);
    let taken = spool.take_fresh(LOG).expect("the one in memory");
    assert_eq!(taken.id.seq, 2);
    spool.ack(LOG, [taken.id]);
    assert_eq!(spool.state().logs[LOG].memory_bytes(), 0);
}

#[test]
fn memory_is_bounded_however_the_disk_fails_and_the_trouble_is_told_all_the_while() {
    const LOG: &str = "pg_locks";
    for broken in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        let spool = open(&dir.path().join("spool"), 1 << 30);
        spool.set_live(Some(0));
        if broken {
            // Writing itself fails: no folder can be made here.
            std::fs::write(dir.path().join("spool").join(LOG), "").expect("a file");
        } else {
            fill(&spool, true);
        }
        for _ in 0..100 {
            number_bytes(&spool, LOG, 200 << 10);
            assert!(spool.trouble().is_some(), "broken: {broken}");
        }
        let held = spool.state().logs[LOG].memory_bytes();
        assert!((7 << 20..=8 << 20).contains(&held), "{held} bytes in memory, broken: {broken}");
        let (_, told) = tell(&spool);
        let lost: u64 = told.lost.iter().map(|lost| lost.last_seq.expect("known") - lost.first_seq + 1).sum();
        assert_eq!(lost, 100 - held as u64 / (200 << 10));
        assert!(told.lost.iter().all(|lost| lost.reason == Reason::DiskFull));
    }
}

/// A spool beside a broker, on a machine that counts the calls to its disk.
fn simulated(segment_bytes: u64, max_bytes: u64) -> (sim::Sim, Spool) {
    let sim = sim::Sim::new();
    let config = Config { segment_bytes, ..config(Path::new("/var/spool"), max_bytes) };
    let spool = Spool::open_on(Arc::new(sim.clone()), config, LOGS.to_vec()).expect("nobody holds it");
    spool.set_live(Some(1 << 20));
    (sim, spool)
}

#[test]
fn a_message_costs_the_disk_no_more_calls_than_these() {
    const LOG: &str = "pg_locks";
    let (sim, spool) = simulated(1 << 20, 1 << 30);
    let cost = |work: &dyn Fn()| {
        let before = sim.calls();
        work();
        sim.calls() - before
    };
    let healthy = || {
        number(&spool, LOG);
        spool.give();
        let taken = spool.take_fresh(LOG).expect("it is there");
        spool.ack(LOG, [taken.id]);
    };
    let together = || {
        (0..64).for_each(|_| _ = number(&spool, LOG));
        spool.give();
    };
    healthy();
    assert_eq!(cost(&healthy), 4, "record, given, settled, cut back");
    let synced = || {
        sim.pass(Duration::from_secs(1));
        spool.keep();
    };
    assert_eq!(cost(&together), 64 + 1, "records, and given once for all");
    assert_eq!(cost(&synced), 1 + 2 + 2, "syncs of the new file and of two folders; the mark written and synced");
    assert_eq!(cost(&together), 64 + 1, "again");
    assert_eq!(cost(&synced), 1 + 2, "one sync for all; the mark written and synced");
}

#[test]
fn what_is_confirmed_within_sync_after_is_never_synced_though_something_always_waits() {
    const LOG: &str = "pg_locks";
    let (sim, spool) = simulated(1 << 20, 1 << 30);
    // Each is confirmed after `age`, when the one behind it waits already.
    let syncs = |age: Duration| {
        let mut waits: Option<Id> = None;
        let before = sim.syncs();
        for _ in 0..20 {
            number(&spool, LOG);
            spool.give();
            spool.ack(LOG, waits.take());
            waits = spool.take_fresh(LOG).map(|taken| taken.id);
            sim.pass(age);
            spool.keep();
        }
        spool.ack(LOG, waits);
        sim.syncs() - before
    };
    let quick = syncs(Duration::from_millis(500));
    // The mark once in ten seconds.
    assert!(quick <= 1, "{quick} syncs");
    let slow = syncs(Duration::from_millis(1500));
    assert!(slow >= 20, "{slow} syncs");
}

#[test]
fn settled_segments_are_unlinked_together_while_others_wait_and_at_once_where_that_makes_room() {
    const LOG: &str = "pg_locks";
    // How often something was synced while 100 segments of a message each were settled, in two seconds.
    let syncs = |max_bytes: u64| {
        let (sim, spool) = simulated(1, max_bytes);
        let before = sim.syncs();
        let mut waits: Option<Id> = None;
        for _ in 0..100 {
            number(&spool, LOG);
            spool.give();
            spool.ack(LOG, waits.take());
            waits = spool.take_fresh(LOG).map(|taken| taken.id);
            sim.pass(Duration::from_millis(20));
            spool.keep();
        }
        sim.syncs() - before
    };
    let roomy = syncs(1 << 30);
    assert!((1..=3).contains(&roomy), "{roomy} syncs");
    let narrow = syncs(700);
    assert!(narrow >= 10 * roomy, "{narrow} syncs beside {roomy}");
}

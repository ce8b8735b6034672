//! `spool status`, `verify`, `dump` and `replay`: a folder from outside, beside a running agent and rescued from a dead host.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    time::{Duration, Instant, SystemTime},
};

use lapin::types::FieldTable;
use postgres_agent::spool::outside;
use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    evidence::{Evidence, Id},
    layout::{COLLECTORS, HEAD, HEADER, records, waits},
    left::Left,
    report::{self, Fault},
    scene::{BOUND, Scene},
};
use crate::rig::{
    Folder,
    agent::command,
    judges::told,
    proxy::{Line, Proxy},
    rabbit, wait_for, wait_for_async,
};

/// `spool TASK --dir FOLDER --json`, ended by itself.
fn spool(task: &str, dir: &Path) -> Output {
    let output = command(["spool", task, "--json", "--dir"]).arg(dir).env("POSTGRES_AGENT_CONFIG", "").output();
    output.unwrap()
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(output)))
}

/// The ids of dumped messages, in their order.
fn dumped(output: &Output) -> Vec<Id> {
    let id = |line: &str| {
        let body: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        (text("run_id"), text("collector"), body["seq"].as_u64().unwrap())
    };
    std::str::from_utf8(&output.stdout).unwrap().lines().map(id).collect()
}

/// Every file below a folder with its bytes and its time of change.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(everything(&path));
        } else {
            let changed = entry.metadata().unwrap().modified().unwrap();
            files.insert(path.clone(), (fs::read(&path).unwrap(), changed));
        }
    }
    files
}

/// A replay of a scene's folder in a configuration of its own, as on another host.
struct Replay {
    child: Child,
}

impl Replay {
    fn begin(scene: &Scene, url: &str, more: &str) -> Self {
        let config = scene.path().join("elsewhere.toml");
        let text = format!(
            "amqp = {{ url = '{url}', exchange = '{}', window = 4, confirm_timeout = '2s' }}\n\
             retry = {{ initial = '50ms', max = '500ms' }}\n{more}",
            scene.name,
        );
        fs::write(&config, text).unwrap();
        let mut replay = command(["spool", "replay", "--json", "--dir"]);
        replay.arg(scene.spool()).arg("--config").arg(config).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: replay.spawn().unwrap() }
    }

    fn end(mut self) -> Output {
        let what = "the replay ends";
        wait_for(what, BOUND, || self.child.try_wait().unwrap().is_some());
        self.child.wait_with_output().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

/// What the judges' queue holds, once both have spoken; counts for this row.
async fn judged(scene: &Scene, fault: Fault, runs: u32) -> Evidence {
    scene.judge();
    let evidence = Evidence::of(scene).await;
    report::tell(fault, runs, &evidence);
    evidence
}

const RESCUED: Fault = Fault { row: 57, name: "folder rescued from a dead host" };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_looked_at_without_being_changed() {
    let left = Left::behind("looked-at", (57, "looked at"), "", 12).await;
    let compressed = left.scene.start(&left.line.url(), "publisher.compression = 'zstd'");
    wait_for("compressed messages wait too", BOUND, || waits(&left.spool(), "pg_locks") > 20);
    compressed.kill();
    let (dir, before) = (left.spool(), everything(&left.spool()));
    let (status, verified, dump) = (spool("status", &dir), spool("verify", &dir), spool("dump", &dir));
    for output in [&status, &verified, &dump] {
        assert!(output.status.success(), "{}", told(output));
    }
    let (status, verified, dumped) = (object(&status), object(&verified), dumped(&dump));
    let agent = fs::read_to_string(dir.join("agent")).unwrap();
    assert_eq!((status["agent_id"].as_str().unwrap(), &status["held"]), (agent.trim(), &Value::Bool(false)));
    assert_eq!(status["messages"].as_u64().unwrap(), dumped.len() as u64);
    for name in COLLECTORS {
        let of_log = dumped.iter().filter(|(_, collector, _)| collector == name).count() as u64;
        assert_eq!(status["collectors"][name]["messages"], of_log, "{name}: {status:#}");
        let ranges = status["waiting"].as_array().unwrap().iter().filter(|range| range["collector"] == name);
        let told: u64 =
            ranges.map(|range| 1 + range["last_seq"].as_u64().unwrap() - range["first_seq"].as_u64().unwrap()).sum();
        assert_eq!(told, of_log, "{name}");
    }
    let records: usize = COLLECTORS.iter().map(|name| waits(&dir, name)).sum();
    assert_eq!((&verified["sound"], &verified["records"]), (&Value::Bool(true), &Value::from(records)));
    assert_eq!((&verified["lost"], &status["lost"]), (&Value::Array(Vec::new()), &Value::Array(Vec::new())));
    assert_eq!(before, everything(&dir), "somebody who only looks changes nothing");
    let text = command(["spool", "status", "--dir"]).arg(&dir).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(agent.trim()) && text.contains("pg_locks") && text.contains("no agent runs on it"), "{text}");
    let evidence = left.goes_on().await;
    let never: Vec<&Id> = dumped.iter().filter(|id| !evidence.received.contains_key(*id)).collect();
    assert!(never.is_empty(), "dumped, and never delivered: {never:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_running_agent_all_is_sound_and_nobody_may_replay() {
    let line = Proxy::to(rabbit::shared().port()).await;
    let scene = Scene::new("beside", &rabbit::shared().url(), &["#"]).await;
    let agent = scene.start(&line.url(), "spool.segment_bytes = '64KiB'");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let mut looks = 0;
    for open in [false, true, false, true] {
        line.set(if open { Line::Open } else { Line::Cut });
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let (status, verified) = (spool("status", &scene.spool()), spool("verify", &scene.spool()));
            assert!(verified.status.success(), "{}", told(&verified));
            let status = object(&status);
            assert_eq!((&status["held"], &status["process"]), (&Value::Bool(true), &Value::from(agent.pid())));
            assert!(spool("dump", &scene.spool()).status.success());
            looks += 1;
        }
    }
    assert!(looks >= 4, "{looks} looks prove nothing");
    let refused = spool("replay", &scene.spool());
    assert_eq!(refused.status.code(), Some(75), "{}", told(&refused));
    assert!(told(&refused).contains(&format!("process {}", agent.pid())), "{}", told(&refused));
    scene.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_stopped_and_killed_goes_on_and_the_host_may_come_back() {
    let left = Left::behind("rescued", (57, "rescued"), "", 40).await;
    let (scene, dir) = (&left.scene, left.spool());
    let waited = dumped(&spool("dump", &dir));
    left.line.set(Line::Open);
    // All that waits would take half a minute: also a signal that comes late, on a busy machine, cuts it short.
    let slowly = "spool.replay_rate = '8KiB'\nagent.shutdown_timeout = '2s'";
    let before = scene.queued().await;
    for signal in [Signal::INT, Signal::KILL] {
        let replay = Replay::begin(scene, &left.line.url(), slowly);
        let some = scene.queued().await + 8;
        wait_for_async("some messages are delivered", BOUND, async || (scene.queued().await >= some).then_some(()))
            .await;
        replay.signal(signal);
        let output = replay.end();
        if signal == Signal::INT {
            let (told, ended) = (object(&output), told(&output));
            assert_eq!(output.status.code(), Some(1), "{ended}");
            assert!(told["left"].as_u64().unwrap() > 0 && told["told"] == Value::Bool(false), "{told:#}");
        }
    }
    let between = scene.queued().await - before;
    assert!((8..waited.len()).contains(&between), "{between} of {}: nothing was cut short", waited.len());
    let output = Replay::begin(scene, &left.line.url(), "").end();
    let ended = object(&output);
    assert!(output.status.success() && ended["left"] == 0 && ended["told"] == Value::Bool(true), "{}", told(&output));
    let (status, verified) = (object(&spool("status", &dir)), spool("verify", &dir));
    assert!(status["messages"] == 0 && verified.status.success(), "{status:#} {}", told(&verified));
    let evidence = judged(scene, RESCUED, 2).await;
    let never: Vec<&Id> = waited.iter().filter(|id| !evidence.received.contains_key(*id)).collect();
    assert!(never.is_empty(), "never delivered: {never:?}");
    // A stop in order delivers nothing twice; what was in flight at the kills of agent and replay may come again.
    assert!(evidence.duplicates() <= 4 + 20, "{} duplicates", evidence.duplicates());
    assert_eq!(evidence.gone().count(), 0, "declared for nothing: {:?}", evidence.declared);
    left.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_dead_agent_could_not_declare_the_replay_does() {
    let left = Left::behind("undeclared", (57, "rescued, a record damaged"), "", 12).await;
    let (scene, dir) = (&left.scene, left.spool());
    let (segment, found) = left.newest("pg_locks");
    let hit = found[found.len() / 2];
    let mut bytes = fs::read(&segment).unwrap();
    bytes[hit.at + HEAD + 3] ^= 0x10;
    fs::write(&segment, bytes).unwrap();
    let (verified, dump) = (spool("verify", &dir), spool("dump", &dir));
    assert_eq!((verified.status.code(), dump.status.code()), (Some(1), Some(1)));
    let verified = object(&verified);
    assert_eq!(verified["damaged"][0]["path"].as_str(), segment.to_str(), "{verified:#}");
    assert_eq!(verified["damaged"][0]["from"], hit.at, "{verified:#}");
    assert!(verified["lost"].as_array().unwrap().iter().any(|lost| lost["first_seq"] == hit.seq), "{verified:#}");
    assert!(!dumped(&dump).iter().any(|(_, name, seq)| name == "pg_locks" && *seq == hit.seq));
    left.line.set(Line::Open);
    let output = Replay::begin(scene, &left.line.url(), "").end();
    let ended = object(&output);
    assert_eq!(output.status.code(), Some(1), "not all was delivered: {}", told(&output));
    assert!(ended["left"] == 0 && ended["lost"] == 1 && ended["told"] == Value::Bool(true), "{ended:#}");
    let evidence = judged(scene, Fault { name: "rescued, a record damaged", ..RESCUED }, 1).await;
    let declared: Vec<_> =
        evidence.declared.iter().map(|((_, name, seq), why)| (name.as_str(), *seq, why.len())).collect();
    assert_eq!(
        (declared.as_slice(), evidence.reasons().into_iter().collect::<Vec<_>>()),
        (&[("pg_locks", hit.seq, 1)][..], vec!["damaged"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_waits_for_the_broker_and_gives_up_only_what_no_queue_wants() {
    let left = Left::behind("unwanted-replay", (57, "rescued, broker away, no queue bound"), "", 6).await;
    let scene = &left.scene;
    let unbind = |key: &'static str| {
        scene.channel.queue_unbind(scene.name.into(), scene.name.into(), key.into(), FieldTable::default())
    };
    unbind("#").await.unwrap();
    scene.bind(scene.name, "agent_status").await;
    let mut replay = Replay::begin(scene, &left.line.url(), "");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(replay.child.try_wait().unwrap().is_none(), "a broker that is away is waited for");
    left.line.set(Line::Open);
    let output = replay.end();
    let ended = object(&output);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(ended["left"].as_u64().unwrap() >= 24 && ended["told"] == Value::Bool(true), "{ended:#}");
    assert!(ended["trouble"].as_str().unwrap().contains("no queue is bound"), "{ended:#}");
    scene.bind(scene.name, "#").await;
    let output = Replay::begin(scene, &left.line.url(), "").end();
    assert!(output.status.success(), "{}", told(&output));
    let evidence = judged(scene, Fault { name: "rescued, broker away, no queue bound", ..RESCUED }, 1).await;
    assert_eq!(evidence.gone().count(), 0, "declared for nothing: {:?}", evidence.declared);
}

#[test]
fn what_is_no_spool_is_refused_in_one_line_and_nothing_is_made_of_it() {
    let folder = Folder::new("no-spool");
    let (empty, absent, file) = (folder.path().join("empty"), folder.path().join("absent"), folder.path().join("file"));
    fs::create_dir(&empty).unwrap();
    fs::write(&file, "text").unwrap();
    for task in ["status", "verify", "dump", "replay"] {
        for dir in [&empty, &absent, &file] {
            let output = spool(task, dir);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{task}: {told}");
            assert!(told.contains(dir.to_str().unwrap()), "{task}: {told}");
        }
    }
    assert!(!absent.exists() && fs::read_dir(&empty).unwrap().next().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_in_the_folder_are_looked_at_without_harm(
        segment in prop::collection::vec(any::<u8>(), 0..600),
        mark in prop::collection::vec(any::<u8>(), 0..600),
        cut in 0usize..600,
        flip in 0usize..4000,
    ) {
        let folder = Folder::new("any-bytes");
        let dir = folder.path();
        fs::create_dir(dir.join("pg_locks")).unwrap();
        fs::write(dir.join("agent"), "6f0f5a3e-0000-4000-8000-000000000001\n").unwrap();
        fs::write(dir.join("mark"), &mark).unwrap();
        fs::write(dir.join("lock"), &segment).unwrap();
        fs::write(dir.join("pg_locks/00000001-0000000000000001.seg"), &segment).unwrap();
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/outside.rs");
        let mut real = fs::read(archive).unwrap();
        real.truncate(cut);
        fs::write(dir.join("pg_locks/00000001-0000000000000009.seg"), &real).unwrap();
        let outside = outside::verify(dir, &|_| {}).unwrap();
        prop_assert!(outside.holder.is_none() && outside.records == 0);
        prop_assert!(outside.remarks.len() >= 2, "{outside:?} {flip}");
        prop_assert_eq!(outside::look(dir).unwrap().messages().count(), 0);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_folder_is_looked_at_without_harm() {
    let folder = Folder::new("flipped-outside");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spools/format-1.tar.gz");
    crate::rig::must(std::process::Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()));
    let dir =
        fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir()).unwrap();
    let whole = outside::look(&dir).unwrap().messages().count();
    assert!(whole > 10 && outside::verify(&dir, &|_| {}).unwrap().holes.is_empty());
    let files: Vec<PathBuf> = everything(&dir).into_keys().filter(|path| path.extension().is_some()).collect();
    let mut flips = 0;
    for path in files {
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(997) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, changed).unwrap();
            let found = outside::verify(&dir, &|_| {}).unwrap();
            let waiting = outside::look(&dir).unwrap().messages().count();
            assert!(waiting + 1 >= whole, "{} at {at}: {waiting} of {whole}", path.display());
            assert!(at >= HEADER || !found.is_whole(), "{} at {at}: not told", path.display());
            flips += 1;
        }
        fs::write(&path, bytes).unwrap();
    }
    assert!(flips > 60 && records(&dir.join("none")).is_empty());
}

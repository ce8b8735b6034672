//! Spool folders that earlier versions left: each is delivered whole by the code of the day.
//!
//! They lie in `tests/spools/` and are never made again: a format that was released is read for ever. `FAULT_NEW_SPOOL=2`
//! makes the folder of a new format, once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use postgres_agent::{
    collectors, config,
    spool::{Draft, Spool, Told},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    evidence::Id,
    layout::{COLLECTORS, records, segments},
    scene::{Scene, nothing},
};
use crate::rig::{Folder, must, rabbit};

/// The messages that wait in a folder, by the headers of its segments.
fn waiting(spool: &Path) -> BTreeSet<Id> {
    let mut ids = BTreeSet::new();
    for collector in COLLECTORS {
        for segment in segments(spool, collector) {
            let header = fs::read(&segment).unwrap();
            let run = Uuid::from_slice(&header[48..64]).unwrap().to_string();
            ids.extend(records(&segment).iter().map(|record| (run.clone(), collector.to_owned(), record.seq)));
        }
    }
    ids
}

/// Of every collector several messages: some acked, the others in full and in open segments.
fn make(archive: &Path) {
    let folder = Folder::new("new-spool");
    let (file, dir) = (folder.path().join("agent.toml"), folder.path().join("spool"));
    let text = format!(
        "spool = {{ dir = '{}', min_free = '0', max_bytes = '1MiB', segment_bytes = '64KiB' }}\n",
        dir.display()
    );
    fs::write(&file, text).unwrap();
    let spool = Spool::open(config::load(Some(&file)).unwrap().config.spool, collectors::by_importance()).unwrap();
    spool.set_live(Some(1 << 20));
    for round in 0..7 {
        for collector in COLLECTORS {
            let draft = Draft { collector, events: 1, version: 1, zstd: false };
            if collector == "agent_status" {
                spool.number_status(draft, |seq, told| Ok(body(&spool, collector, seq, Some(told)))).unwrap();
            } else {
                spool.number(draft, |seq| Ok(body(&spool, collector, seq, None))).unwrap();
            }
            let taken = spool.take_fresh(collector).unwrap();
            if round == 0 {
                spool.ack(collector, [taken.id]);
            }
        }
    }
    spool.close();
    drop(spool);
    must(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "-czf"])
            .arg(archive)
            .arg("-C")
            .arg(folder.path())
            .arg("spool"),
    );
}

fn body(spool: &Spool, collector: &str, seq: u64, told: Option<Told>) -> Vec<u8> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/golden/{collector}.json"));
    let mut message: Value = serde_json::from_str(&fs::read_to_string(golden).unwrap()).unwrap();
    for (key, value) in [("run_id", spool.run_id.to_string()), ("agent_id", spool.agent.to_string())] {
        message[key] = json!(value);
    }
    message["seq"] = json!(seq);
    message["labels"] = json!({ "padding": "x".repeat(20_000) });
    if let Some(told) = told {
        let data = &mut message["events"][0]["data"];
        (data["sent"], data["waiting"]) = (json!(told.sent), json!(told.waiting));
        (data["lost"], data["previous_runs"]) = (json!([]), json!([]));
    }
    rmp_serde::to_vec_named(&message).unwrap()
}

async fn is_delivered_whole(format: u32, name: &'static str) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/spools/format-{format}.tar.gz"));
    if std::env::var("FAULT_NEW_SPOOL").is_ok_and(|new| new == format.to_string()) {
        make(&archive);
    }
    let broker = rabbit::shared();
    let scene = Scene::new(name, &broker.url(), &["#"]).await.of(53, name);
    must(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(scene.path()));
    let waited = waiting(&scene.spool());
    let by_collector = waited.iter().fold(BTreeMap::new(), |mut counts, (_, collector, _)| {
        *counts.entry(collector.as_str()).or_insert(0) += 1;
        counts
    });
    assert_eq!(by_collector.len(), COLLECTORS.len(), "{by_collector:?}");
    let agent = scene.start(&broker.url(), "");
    let (declared, evidence) = scene.finish(agent).await;
    assert_eq!(declared, nothing());
    let came: BTreeSet<Id> = evidence.received.keys().cloned().collect();
    let missing: Vec<&Id> = waited.difference(&came).collect();
    println!("{name}: {by_collector:?}");
    // The first of each was acked: it need not come again.
    assert!(missing.iter().all(|(.., seq)| *seq == 1), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_format_1_is_delivered_whole() {
    is_delivered_whole(1, "spool-format-1").await;
}

//! The parts of the agent by themselves, without a server: encoding, batching, spool, delivery, redaction, deltas, locks.
//!
//! `cargo bench --bench parts`, or with a part's name behind `--`. What the whole agent costs, `benches/run.sh` tells.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark says what went wrong by panicking"
)]

use std::{
    collections::{BTreeMap, HashMap},
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postgres_agent::{
    batch::{self, Batcher},
    collectors::{
        pg_locks::{
            graph::{Blockers, Graph, Lock, Node},
            object::Object,
        },
        pg_statements::{
            counters::Counters,
            delta::{Before, Entry, Key, Seen, top},
        },
    },
    event::batch::Batch,
    publisher::delivery::{Deliveries, Lane},
    spool::{Config, Draft, Id, Spool, Taken, WhenFull, outside},
    text::{Policy, QueryText},
    units::Time,
};
use uuid::Uuid;

#[path = "whole/rows.rs"]
mod rows;

const LOG: &str = "pg_locks";
const DRAFT: Draft<'_> = Draft { collector: LOG, events: 1, version: 1, zstd: false };
const GROUP: u64 = 64;
const BYTES: usize = 1024;

fn encoding(criterion: &mut Criterion) {
    let (sample, speaker) = (rows::sample(), rows::speaker());
    criterion.bench_function("encoding/100 rows with texts of 1 KiB", |bencher| {
        bencher.iter(|| {
            let events = black_box(&sample).encode(256 << 10).unwrap();
            speaker.body("pg_statements", 1, 1, None, &events).unwrap()
        });
    });
}

fn batching(criterion: &mut Criterion) {
    let config = batch::Config { max_events: 500, max_bytes: 256 << 10, max_age: Duration::from_secs(1) };
    let now = Instant::now();
    criterion.bench_function("batcher/500 events of 400 bytes", |bencher| {
        let events = || vec![vec![7; 400]; 500];
        let add = |events: Vec<Vec<u8>>| {
            let mut batcher = Batcher::new(config.clone(), 700);
            events.into_iter().map(|event| batcher.add((LOG, 1), None, event, Some(now), now).len()).sum::<usize>()
        };
        bencher.iter_batched(events, add, BatchSize::SmallInput);
    });
}

fn open(dir: &Path, sync_after: Duration) -> Spool {
    let config = Config {
        dir: dir.to_owned(),
        max_bytes: 8 << 30,
        min_free: 0,
        max_age: Duration::from_secs(3600),
        sync_after,
        when_full: WhenFull::DropOldest,
        replay_rate: None,
        segment_bytes: 8 << 20,
    };
    Spool::open(config, vec![LOG]).expect("nobody holds it")
}

fn append(spool: &Spool, messages: u64) {
    for _ in 0..messages {
        spool.number(DRAFT, |_| Ok(vec![7; BYTES])).unwrap();
    }
}

fn appending(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spool append, 64 of 1 KiB");
    group.throughput(Throughput::Elements(GROUP));
    let kinds = [
        ("deferred", Duration::from_secs(3600)),
        ("synced together", Duration::from_nanos(1)),
        ("each synced", Duration::ZERO),
    ];
    for (name, sync_after) in kinds {
        let folder = tempfile::tempdir().unwrap();
        let spool = open(folder.path(), sync_after);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                append(&spool, GROUP);
                if sync_after == Duration::from_nanos(1) {
                    spool.keep();
                }
            });
        });
    }
    group.finish();
}

fn reading(criterion: &mut Criterion) {
    const MESSAGES: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    append(&open(folder.path(), Duration::from_secs(3600)), MESSAGES);
    let mut group = criterion.benchmark_group("spool, 20,000 of 1 KiB");
    group.throughput(Throughput::Elements(MESSAGES)).sample_size(20);
    group.bench_function("recovery", |bencher| bencher.iter(|| open(folder.path(), Duration::from_secs(3600))));
    group.bench_function("verify", |bencher| {
        bencher.iter(|| outside::verify(folder.path(), &mut |_| {}).unwrap().records);
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let spool = open(folder.path(), Duration::from_secs(3600));
            std::iter::from_fn(|| spool.take_waiting(LOG)).count()
        });
    });
    group.finish();
}

fn delivering(criterion: &mut Criterion) {
    let log: Arc<str> = LOG.into();
    let taken = |seq| {
        let (agent, run_id, body) = (Uuid::nil(), Uuid::nil(), vec![7; 64]);
        let batch = Batch {
            agent,
            run_id,
            collector: LOG.into(),
            seq,
            time: Time(0),
            events: 1,
            version: 1,
            zstd: false,
            body,
        };
        Taken { id: Id { run: 1, seq }, batch: Arc::new(batch), replayed: false }
    };
    let (window, now): (Vec<Taken>, _) = ((1..=128).map(taken).collect(), Instant::now());
    criterion.bench_function("delivery/a window of 128 sent, answered and settled", |bencher| {
        bencher.iter(|| {
            let mut deliveries = Deliveries::new(256, 16 << 20);
            for taken in &window {
                assert!(deliveries.fits(&log, 64));
                black_box(deliveries.prefers());
                deliveries.sent(&log, taken, Lane::Fresh, now);
            }
            (1..=128).for_each(|tag| deliveries.answered(&log, tag, true, None, now));
            deliveries.settle(&log).len()
        });
    });
}

fn redacting(criterion: &mut Criterion) {
    let text = "SELECT o.id, o.total FROM orders o WHERE o.customer = 'c-4711' AND o.total > 42.5 -- why\n".repeat(23);
    let mut group = criterion.benchmark_group("redaction, 2 KiB");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for (name, query_text) in [("raw", QueryText::Raw), ("normalized", QueryText::Normalized)] {
        let policy = Policy { query_text };
        group.bench_function(name, |bencher| bencher.iter(|| policy.clean(black_box(&text), 2048)));
    }
    group.finish();
}

fn deltas(criterion: &mut Criterion) {
    let entry = |calls: u64| Entry {
        counters: Counters { calls, total_exec_time: calls as f64 * 2.0, rows: Some(calls), ..Counters::default() },
        ..Entry::default()
    };
    let key = |queryid| Key { userid: 10, dbid: 5, queryid, toplevel: Some(true) };
    let entries =
        |more: u64| (0..5000).map(|id: u64| (key(id.cast_signed()), entry(id + more))).collect::<HashMap<_, _>>();
    let before =
        Seen { epoch: "one".into(), clock: Time(0), complete: true, dealloc: None, entries: entries(0), changed: 0 };
    let now = entries(3);
    criterion.bench_function("deltas/100 of 5,000 statements", |bencher| {
        bencher.iter(|| top(black_box(&now).iter(), Before::of(Some(&before), "one"), 100).0.len());
    });
}

fn locks(criterion: &mut Criterion) {
    let lock = |pid: i32, granted: bool| Lock {
        object: Object { locktype: "relation".into(), database: Some(5), relation: Some(16_384), ..Object::default() },
        node: Node::Pid(pid),
        transaction: format!("{pid}/1"),
        mode: "AccessExclusiveLock".into(),
        granted,
        wait_start: (!granted).then_some(Time(pid.into())),
        blockers: if granted { Blockers::Unknown } else { Blockers::Told((1..pid).collect()) },
    };
    let queue: Vec<Lock> = (1..=401).map(|pid| lock(pid, pid == 1)).collect();
    criterion.bench_function("lock graph/a queue of 400", |bencher| {
        bencher.iter(|| Graph::new(black_box(&queue), &BTreeMap::new()));
    });
}

criterion_group!(all, encoding, batching, appending, reading, delivering, redacting, deltas, locks);
criterion_main!(all);

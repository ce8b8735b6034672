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

mod work;

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postgres_agent::{
    collectors::pg_locks::graph::Graph,
    spool::outside,
    text::{Policy, QueryText},
};
use work::{GROUP, LOG, append, open, rows};

fn encoding(criterion: &mut Criterion) {
    let (sample, speaker) = (rows::sample(), rows::speaker());
    criterion.bench_function("encoding/100 rows with texts of 1 KiB", |bencher| {
        bencher.iter(|| {
            let events = black_box(&sample).encode(256 << 10).unwrap();
            speaker.body("pg_statements", 1, 1, None, events).unwrap()
        });
    });
}

fn batching(criterion: &mut Criterion) {
    criterion.bench_function("batcher/500 events of 400 bytes", |bencher| {
        bencher.iter_batched(work::events, work::batches, BatchSize::SmallInput);
    });
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
        bencher.iter(|| outside::verify(folder.path(), &|_| {}).unwrap().records);
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
    let window = work::window();
    criterion.bench_function("delivery/a window of 128 sent, answered and settled", |bencher| {
        bencher.iter(|| work::deliver(black_box(&window)));
    });
}

fn redacting(criterion: &mut Criterion) {
    let text = work::text();
    let mut group = criterion.benchmark_group("redaction, 2 KiB");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for (name, query_text) in [("raw", QueryText::Raw), ("normalized", QueryText::Normalized)] {
        let policy = Policy { query_text };
        group.bench_function(name, |bencher| bencher.iter(|| policy.clean(black_box(&text), 2048)));
    }
    group.finish();
}

fn deltas(criterion: &mut Criterion) {
    let (before, now) = work::statements();
    criterion.bench_function("deltas/100 of 5,000 statements", |bencher| {
        bencher.iter(|| work::rank(&before, black_box(&now)));
    });
}

fn locks(criterion: &mut Criterion) {
    let queue = work::queue();
    criterion.bench_function("lock graph/a queue of 400", |bencher| {
        bencher.iter(|| Graph::new(black_box(&queue), &BTreeMap::new()));
    });
}

criterion_group!(all, encoding, batching, appending, reading, delivering, redacting, deltas, locks);
criterion_main!(all);

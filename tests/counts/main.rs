//! What the agent's parts cost in allocations: the same on every machine, so a bound with room for a fifth tells when
//! somebody made it dearer. How long it takes, `benches/` tells.
//!
//! One test, because what is counted is the whole process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test says what went wrong by panicking, and prints what it counted"
)]

#[path = "../../benches/work/mod.rs"]
mod work;

use std::{alloc::System, collections::BTreeMap, hint::black_box, time::Duration};

use postgres_agent::{
    collectors::pg_locks::graph::Graph,
    spool::Spool,
    text::{Policy, QueryText},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use work::{BYTES, DRAFT, GROUP, LOG, rows};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What one time of a work may cost.
struct Bound {
    what: &'static str,
    allocations: usize,
    /// Bytes that are allocated: what is copied has to be put somewhere.
    bytes: usize,
}

impl Bound {
    fn holds(&self, mut work: impl FnMut()) {
        const TIMES: usize = 20;
        // The first time warms.
        work();
        let region = Region::new(ALLOCATOR);
        (0..TIMES).for_each(|_| work());
        let change = region.change();
        let allocations = (change.allocations + change.reallocations) / TIMES;
        let bytes = (change.bytes_allocated + change.bytes_reallocated.unsigned_abs()) / TIMES;
        println!("figure: counts: {}: {allocations} allocations, {bytes} bytes", self.what);
        assert!(allocations <= self.allocations, "{}: {allocations} allocations", self.what);
        assert!(bytes <= self.bytes, "{}: {bytes} bytes", self.what);
    }
}

fn published(spool: &Spool) {
    spool.number(DRAFT, |_| Ok(vec![7; BYTES])).unwrap();
    spool.give();
    let taken = spool.take_fresh(LOG).expect("it is there");
    spool.ack(LOG, [taken.id]);
}

#[test]
fn no_part_allocates_more_than_it_did() {
    let (sample, speaker) = (rows::sample(), rows::speaker());
    Bound { what: "a message of 100 rows, encoded", allocations: 10, bytes: 425_000 }.holds(|| {
        let events = black_box(&sample).encode(256 << 10).unwrap();
        black_box(speaker.body("pg_statements", 1, 1, None, events).unwrap());
    });
    Bound { what: "500 events, batched, with themselves", allocations: 613, bytes: 285_000 }
        .holds(|| assert_eq!(work::batches(work::events()), 1));

    let folder = tempfile::tempdir().unwrap();
    let spool = work::open(folder.path(), Duration::from_secs(3600));
    spool.set_live(Some(1 << 20));
    Bound { what: "a message of 1 KiB through the spool", allocations: 7, bytes: 1_600 }.holds(|| published(&spool));
    let folder = tempfile::tempdir().unwrap();
    let spool = work::open(folder.path(), Duration::from_secs(3600));
    Bound { what: "64 messages of 1 KiB to disk", allocations: 78, bytes: 79_000 }
        .holds(|| work::append(&spool, GROUP));

    let window = work::window();
    Bound { what: "128 messages sent, answered and settled", allocations: 12, bytes: 47_500 }
        .holds(|| assert_eq!(work::deliver(&window), 128));
    let text = work::text();
    for (query_text, allocations, bytes) in [(QueryText::Raw, 1, 2_500), (QueryText::Normalized, 110, 9_000)] {
        let policy = Policy { query_text };
        Bound { what: "a text of 2 KiB, redacted", allocations, bytes }
            .holds(|| _ = black_box(policy.clean(black_box(&text), 2048)));
    }
    let (before, now) = work::statements();
    Bound { what: "deltas of 5,000 statements", allocations: 3, bytes: 37_000 }
        .holds(|| assert_eq!(work::rank(&before, &now), 100));
    let queue = work::queue();
    Bound { what: "a lock graph of 400 waiters", allocations: 11_300, bytes: 15_700_000 }
        .holds(|| _ = black_box(Graph::new(&queue, &BTreeMap::new())));
}

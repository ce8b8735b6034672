//! What the agent's parts have to do, without a server: timed by `benches/parts.rs`, counted by `tests/counts`.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use postgres_agent::{
    batch::{self, Batcher},
    collectors::{
        pg_locks::{
            graph::{Blockers, Lock, Node},
            object::Object,
        },
        pg_statements::{
            counters::Counters,
            delta::{Before, Seen, top},
            entries::{Counted, Entries, Key},
        },
    },
    event::batch::Batch,
    publisher::delivery::{Deliveries, Lane},
    spool::{Config, Draft, Id, Spool, Taken, WhenFull},
    units::Time,
};
use uuid::Uuid;

#[path = "../whole/rows.rs"]
pub mod rows;

pub const LOG: &str = "pg_locks";
pub const DRAFT: Draft<'_> = Draft { collector: LOG, events: 1, version: 1, zstd: false };
/// Messages that come together.
pub const GROUP: u64 = 64;
/// Of a message.
pub const BYTES: usize = 1024;

/// 500 events of 400 bytes.
pub fn events() -> Vec<Vec<u8>> {
    vec![vec![7; 400]; 500]
}

/// Gives how many batches they make.
pub fn batches(events: Vec<Vec<u8>>) -> usize {
    let config = batch::Config { max_events: 500, max_bytes: 256 << 10, max_age: Duration::from_secs(1) };
    let mut batcher = Batcher::new(config, 700);
    let now = Instant::now();
    events.into_iter().map(|event| batcher.add((LOG, 1), None, event, Some(now), now).len()).sum()
}

pub fn open(dir: &Path, sync_after: Duration) -> Spool {
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

pub fn append(spool: &Spool, messages: u64) {
    for _ in 0..messages {
        spool.number(DRAFT, |_| Ok(vec![7; BYTES])).unwrap();
    }
    spool.give();
}

/// 128 messages, as the spool gives them out.
pub fn window() -> Vec<Taken> {
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
    (1..=128).map(taken).collect()
}

/// All of them sent, answered and settled. Gives how many.
pub fn deliver(window: &[Taken]) -> usize {
    let (log, now) = (Arc::from(LOG), Instant::now());
    let mut deliveries = Deliveries::new(256, 16 << 20);
    for taken in window {
        assert!(deliveries.fits(&log, 64));
        std::hint::black_box(deliveries.prefers());
        deliveries.sent(&log, taken, Lane::Fresh, now);
    }
    (1..=window.len() as u64).for_each(|tag| deliveries.answered(&log, tag, true, None, now));
    deliveries.settle(&log).len()
}

/// A statement of 2 KiB.
pub fn text() -> String {
    "SELECT o.id, o.total FROM orders o WHERE o.customer = 'c-4711' AND o.total > 42.5 -- why\n".repeat(23)
}

/// 5,000 statements, and what they are when each has run three times more.
pub fn statements() -> (Seen, Entries) {
    let counted = |calls: u64| {
        let counters =
            Counters { calls, total_exec_time: calls as f64 * 2.0, rows: Some(calls), ..Counters::default() };
        Counted { counters, ..Counted::default() }
    };
    let key = |queryid| Key { userid: 10, dbid: 5, queryid, toplevel: Some(true) };
    let entries = |more: u64| {
        let mut entries = Entries::with_capacity(5000);
        (0..5000).for_each(|id: u64| entries.insert(key(id.cast_signed()), 0, counted(id + more)));
        entries
    };
    let before =
        Seen { epoch: "one".into(), clock: Time(0), complete: true, dealloc: None, entries: entries(0), changed: 0 };
    (before, entries(3))
}

/// Gives how many are kept.
pub fn rank(before: &Seen, now: &Entries) -> usize {
    top(now, None, Before::of(Some(before), "one"), 100).0.len()
}

/// One who holds a table, and 400 who wait for it.
pub fn queue() -> Vec<Lock> {
    let lock = |pid: i32, granted: bool| Lock {
        object: Object { locktype: "relation".into(), database: Some(5), relation: Some(16_384), ..Object::default() },
        node: Node::Pid(pid),
        transaction: format!("{pid}/1").into(),
        mode: "AccessExclusiveLock".into(),
        granted,
        wait_start: (!granted).then_some(Time(pid.into())),
        blockers: if granted { Blockers::Unknown } else { Blockers::Told((1..pid).collect()) },
    };
    (1..=401).map(|pid| lock(pid, pid == 1)).collect()
}

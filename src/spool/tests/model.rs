//! The model: what was numbered, taken, acked, and must come or be declared.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use uuid::Uuid;

use crate::{
    event::status::{self, Lost},
    spool::{Config, Draft, Spool, Taken, Told, WhenFull},
};

pub(super) const LOGS: [&str; 3] = ["system_metrics", "pg_locks", status::COLLECTOR];

pub(super) fn config(dir: &Path, max_bytes: u64) -> Config {
    Config {
        dir: dir.to_owned(),
        max_bytes,
        min_free: 0,
        max_age: Duration::from_secs(3600),
        sync_after: Duration::from_secs(1),
        when_full: WhenFull::DropOldest,
        replay_rate: None,
        segment_bytes: 1000,
    }
}

pub(super) fn open(dir: &Path, max_bytes: u64) -> Spool {
    Spool::open(config(dir, max_bytes), LOGS.to_vec()).expect("nobody holds it")
}

pub(super) fn body(run: Uuid, log: &str, seq: u64) -> Vec<u8> {
    format!("{run}/{log}/{seq}/{}", "x".repeat(usize::try_from(seq * 7 % 90).expect("small"))).into_bytes()
}

pub(super) fn number(spool: &Spool, log: &str) -> u64 {
    let draft = Draft { collector: log, events: 1, version: 1, zstd: false };
    spool.number(draft, |seq| Ok(body(spool.run_id, log, seq))).expect("bodies are made")
}

/// What a status tells now; numbered and told as by the intake.
pub(super) fn tell(spool: &Spool) -> (u64, Told) {
    let mut told = None;
    let draft = Draft { collector: status::COLLECTOR, events: 1, version: 1, zstd: false };
    let seq = spool.number_status(draft, |seq, tell| {
        told = Some(tell);
        Ok(body(spool.run_id, status::COLLECTOR, seq))
    });
    (seq.expect("bodies are made"), told.expect("it was asked"))
}

/// A message's identity: run, log and number.
pub(super) type Key = (String, String, u64);

#[derive(Default)]
pub(super) struct Model {
    /// Whose numbering was interrupted: they may come.
    pub(super) perhaps: BTreeSet<Key>,
    pub(super) numbered: BTreeSet<Key>,
    pub(super) acked: BTreeSet<Key>,
    pub(super) out: BTreeMap<Key, Taken>,
}

impl Model {
    pub(super) fn number(&mut self, spool: &Spool, log: &str) {
        let seq = number(spool, log);
        assert!(self.numbered.insert((spool.run_id.to_string(), log.to_owned(), seq)), "no number is given twice");
    }

    pub(super) fn take(&mut self, spool: &Spool, log: &str, fresh: bool) -> bool {
        let taken = if fresh { spool.take_fresh(log) } else { spool.take_waiting(log) };
        let Some(taken) = taken else { return false };
        let key = (taken.batch.run_id.to_string(), log.to_owned(), taken.batch.seq);
        assert!(self.numbered.contains(&key) || self.perhaps.contains(&key), "{key:?} was numbered");
        assert_eq!(taken.batch.body, body(taken.batch.run_id, log, taken.batch.seq), "what went in comes out");
        assert!(self.out.insert(key, taken).is_none(), "what is out is not given out again");
        true
    }

    pub(super) fn settle(&mut self, spool: &Spool, nth: usize, ack: bool) {
        let Some(key) = self.out.keys().nth(nth % self.out.len().max(1)).cloned() else { return };
        let taken = self.out.remove(&key).expect("it is there");
        if ack {
            spool.ack(&key.1, [taken.id]);
            self.acked.insert(key);
        } else {
            spool.put_back(&key.1, taken.id);
        }
    }

    /// Delivers all there is.
    pub(super) fn drain(&mut self, spool: &Spool) {
        spool.set_live(None);
        self.out.clear();
        for log in LOGS {
            while self.take(spool, log, false) {
                self.settle(spool, 0, true);
            }
        }
    }

    pub(super) fn lost(told: &Told) -> BTreeSet<Key> {
        let keys = |lost: &Lost| {
            let last = lost.last_seq.expect("no power was cut");
            (lost.first_seq..=last).map(|seq| (lost.run_id.clone(), lost.collector.clone(), seq)).collect::<Vec<_>>()
        };
        told.lost.iter().flat_map(keys).collect()
    }
}

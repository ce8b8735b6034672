//! The batcher: which events travel together. Pure: no clock, no encoding.
//!
//! A batch holds events of one collector taken on one server. It closes when it is full, when it is old, or at once when
//! its collector's next sample is due later than that: at the usual intervals nothing waits here.

pub mod channel;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    event::Server,
    settings::{Reader, Section, Size},
};

/// The `[publisher]` keys that decide what travels together.
#[derive(Debug, Clone)]
pub struct Config {
    /// Events in a batch.
    pub max_events: usize,
    /// Bytes of a message's body, before compression.
    pub max_bytes: usize,
    /// How long an event waits for others.
    pub max_age: Duration,
}

const BYTES: RangeInclusive<Size> = Size(1 << 10)..=Size(64 << 20);

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            max_events: whole(reader.key_in("batch_max_events", 500, 1..=100_000, "Events in one message at the most.")),
            max_bytes: whole(
                reader
                    .key_in("batch_max_bytes", Size(256 << 10), BYTES, "Bytes of one message's body, before compression; one larger event is split by rows, one larger row travels alone.")
                    .0,
            ),
            max_age: reader.key_in(
                "batch_max_age",
                Duration::from_secs(1),
                Duration::ZERO..=Duration::from_secs(3600),
                "How long an event waits for others at the most; not at all when its collector's next sample is due later.",
            ),
        }
    }
}

/// Events that travel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Their collector.
    pub collector: &'static str,
    /// Its schema version.
    pub version: u32,
    /// The server that they were taken on.
    pub server: Option<Arc<Server>>,
    /// The events, encoded; at least one.
    pub events: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Open {
    batch: Closed,
    bytes: usize,
    since: Instant,
}

/// Batches that are being filled: one for each collector.
#[derive(Debug)]
pub struct Batcher {
    config: Config,
    /// Bytes that a body has beside its events.
    envelope: usize,
    open: BTreeMap<&'static str, Open>,
}

impl Batcher {
    /// Nothing is open. `envelope`: bytes that a body has beside its events.
    pub fn new(config: Config, envelope: usize) -> Self {
        Self { config, envelope, open: BTreeMap::new() }
    }

    /// Bytes that one event may have at the most, so that a body with it alone is no larger than allowed.
    pub fn max_event_bytes(config: &Config, envelope: usize) -> usize {
        config.max_bytes.saturating_sub(envelope)
    }

    /// Takes one event in and gives the batches that it closes: up to two. `next_due` is when the collector's next sample is due.
    pub fn add(
        &mut self,
        (collector, version): (&'static str, u32),
        server: Option<Arc<Server>>,
        event: Vec<u8>,
        next_due: Option<Instant>,
        now: Instant,
    ) -> Vec<Closed> {
        let mut closed = Vec::new();
        let room = Self::max_event_bytes(&self.config, self.envelope);
        let unfit = |open: &Open| open.batch.server != server || open.bytes + event.len() > room;
        if self.open.get(collector).is_some_and(unfit) {
            closed.extend(self.close(collector));
        }
        let open = self.open.entry(collector).or_insert_with(|| Open {
            batch: Closed { collector, version, server, events: Vec::new() },
            bytes: 0,
            since: now,
        });
        open.bytes += event.len();
        open.batch.events.push(event);
        let full = open.batch.events.len() >= self.config.max_events || open.bytes >= room;
        let alone = next_due.is_none_or(|due| due > open.since + self.config.max_age);
        if full || alone {
            closed.extend(self.close(collector));
        }
        closed
    }

    fn close(&mut self, collector: &str) -> Option<Closed> {
        self.open.remove(collector).map(|open| open.batch)
    }

    /// When the next batch is too old.
    pub fn next_due(&self) -> Option<Instant> {
        self.open.values().map(|open| open.since + self.config.max_age).min()
    }

    /// The batches that are too old by now.
    pub fn due(&mut self, now: Instant) -> Vec<Closed> {
        let old = |open: &Open| now >= open.since + self.config.max_age;
        let names: Vec<&str> = self.open.iter().filter(|(_, open)| old(open)).map(|(name, _)| *name).collect();
        names.into_iter().filter_map(|name| self.close(name)).collect()
    }

    /// All batches, as they are.
    pub fn flush(&mut self) -> Vec<Closed> {
        std::mem::take(&mut self.open).into_values().map(|open| open.batch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        batcher: Batcher,
        start: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let config = Config { max_events: 3, max_bytes: 120, max_age: Duration::from_secs(1) };
            Self { batcher: Batcher::new(config, 20), start: Instant::now() }
        }

        /// Adds an event of so many bytes at a time in ms, its next sample due at another; gives the closed batches' sizes.
        fn add(&mut self, bytes: usize, at: u64, due: u64, server: Option<&Arc<Server>>) -> Vec<Vec<usize>> {
            let time = |ms| self.start + Duration::from_millis(ms);
            let closed = self.batcher.add(("log", 1), server.cloned(), vec![0; bytes], Some(time(due)), time(at));
            sizes(closed)
        }
    }

    fn sizes(closed: Vec<Closed>) -> Vec<Vec<usize>> {
        closed.into_iter().map(|batch| batch.events.iter().map(Vec::len).collect()).collect()
    }

    #[test]
    fn a_batch_closes_by_count_by_bytes_and_by_age() {
        let mut rig = Rig::new();
        assert!(rig.add(10, 0, 100, None).is_empty());
        assert!(rig.add(10, 100, 200, None).is_empty());
        assert_eq!(rig.add(10, 200, 300, None), [[10, 10, 10]]);
        assert!(rig.add(60, 300, 400, None).is_empty());
        assert_eq!(rig.add(50, 400, 500, None), [[60]], "both would be too large");
        assert_eq!(rig.add(100, 500, 600, None), [vec![50], vec![100]], "one that fills it closes it");
        assert!(rig.add(10, 600, 700, None).is_empty());
        assert!(rig.batcher.due(rig.start + Duration::from_millis(1599)).is_empty());
        assert_eq!(sizes(rig.batcher.due(rig.start + Duration::from_millis(1600))), [[10]]);
        assert_eq!(rig.batcher.next_due(), None);
    }

    #[test]
    fn an_event_that_nothing_will_join_does_not_wait() {
        let mut rig = Rig::new();
        assert_eq!(rig.add(10, 0, 60_000, None), [[10]]);
        assert!(rig.add(10, 0, 900, None).is_empty());
        assert_eq!(rig.add(10, 900, 1800, None), [[10, 10]], "the batch is too old before the next one comes");
    }

    #[test]
    fn a_batch_never_mixes_two_servers() {
        let server = |timeline| {
            Arc::new(Server {
                system_identifier: "1".into(),
                timeline,
                version_num: 170_004,
                in_recovery: false,
                database: "postgres".into(),
                stats_epoch: "e".into(),
            })
        };
        let mut rig = Rig::new();
        assert!(rig.add(1, 0, 100, Some(&server(1))).is_empty());
        assert!(rig.add(2, 100, 200, Some(&server(1))).is_empty(), "the same one, read again");
        assert_eq!(rig.add(3, 200, 300, Some(&server(2))), [[1, 2]]);
        assert_eq!(sizes(rig.batcher.flush()), [[3]]);
    }
}

//! Events: what one look of a collector brought, and the message that carries some of them.
//!
//! The wire is MessagePack with string keys. Absent values are nil, never left out; UUIDs and addresses are
//! strings (the encoder is told that it is human readable, else they would be binary and contradict the schema).
//!
//! An event is encoded where it was collected, row by row, so that one that is too large can be split by rows.
//! A message is then put together from encoded events without decoding them again: the same bytes as encoding
//! a [`Message`] whole, which a test holds.

pub mod batch;
pub mod status;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use crate::units::Time;
use status::AgentStatus;

/// One message body: a batch of events of one collector, taken on one server connection.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Message<'a, E> {
    /// Name of the collector, which is also the default routing key.
    pub collector: &'a str,
    /// Grows only when a field changes meaning or goes away. New fields may come at any time.
    pub schema_version: u32,
    /// A UUID, made once and kept in the spool folder; nil in `collect` where there is no spool.
    pub agent_id: Option<&'a str>,
    /// `agent.name` of the configuration; the host's name where nothing is configured.
    pub agent_name: &'a str,
    /// Version of the agent.
    pub agent_version: &'a str,
    /// Name of the host that the agent runs on.
    pub host: &'a str,
    /// `agent.labels` of the configuration.
    pub labels: &'a BTreeMap<String, String>,
    /// A UUIDv7, new for each start of the agent.
    pub run_id: &'a str,
    /// 1, 2, 3, … without a hole within (`run_id`, `collector`).
    pub seq: u64,
    /// The server that the events were taken on. Nil before the first login and for collectors that ask the host only.
    pub server: Option<&'a Server>,
    /// At least one.
    pub events: E,
}

/// Identity of the PostgreSQL server that events were taken on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Server {
    /// `system_identifier` of `pg_control_system()`: the same on a primary and its standbys.
    pub system_identifier: String,
    /// The timeline that the server is on.
    pub timeline: u32,
    /// `server_version_num`, such as 170004.
    pub version_num: u32,
    /// Whether the server is a standby (`pg_is_in_recovery()`).
    pub in_recovery: bool,
    /// The database that the agent is connected to.
    pub database: String,
    /// Epoch of the counters in this message: they may be compared with another message's only if it is the same.
    pub stats_epoch: String,
}

/// One event: one sample of one collector.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Event<D, S> {
    /// The server's clock for `pg_*` collectors, the host's otherwise.
    pub collected_at: Time,
    /// How long the look took, in microseconds.
    pub duration_us: u64,
    /// Rows that the limit left out.
    pub omitted: u64,
    /// Rows whose content the role may not see.
    pub hidden: u64,
    /// Over all rows, the omitted ones too; nil for collectors that have none.
    pub summary: Option<S>,
    /// Which part this is, from 1, where one event was split by size; else nil.
    pub part: Option<u32>,
    /// Into how many parts the event was split by size; else nil.
    pub parts: Option<u32>,
    /// The rows, or the one map. (Last, so that rows that are encoded already can be put behind the rest.)
    pub data: D,
}

/// What a collector's `data` can be: an array of rows, or one map.
pub trait Body: Send {
    /// Puts itself behind the head of an event, in the place of the nil at its end. Of rows, tells where each one begins,
    /// and where the last one ends; one map, which is never split, tells nothing.
    ///
    /// # Errors
    /// [`EncodeError`] where a value has no MessagePack form.
    fn put(&self, event: &mut Vec<u8>) -> Result<Option<Vec<usize>>, EncodeError>;
}

/// Puts one map behind the head of an event.
///
/// # Errors
/// As [`Body::put`].
pub fn put_map<T: Serialize>(map: &T, event: &mut Vec<u8>) -> Result<Option<Vec<usize>>, EncodeError> {
    event.pop();
    encode_into(map, event).map(|()| None)
}

impl<R: Serialize + Send> Body for Vec<R> {
    fn put(&self, event: &mut Vec<u8>) -> Result<Option<Vec<usize>>, EncodeError> {
        // Rows are much like each other; what grows step by step is copied at each one.
        const MOST: usize = 1 << 20;
        open_array(event, self.len());
        let mut bounds = Vec::with_capacity(self.len() + 1);
        for row in self {
            bounds.push(event.len());
            encode_into(row, event)?;
            if let [start] = bounds.as_slice() {
                event.reserve(((event.len() - start) * self.len() * 5 / 4).min(MOST));
            }
        }
        bounds.push(event.len());
        Ok(Some(bounds))
    }
}

/// A body that cannot be made: a mistake in the agent, never in the data.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A value has no MessagePack form.
    #[error("cannot encode as MessagePack")]
    MessagePack(#[from] rmp_serde::encode::Error),
    /// The body cannot be compressed.
    #[error("cannot compress")]
    Compress(#[source] std::io::Error),
}

/// Encodes one value as the wire wants it: maps with string keys, UUIDs and addresses as strings.
///
/// # Errors
/// [`EncodeError`] where a value has no MessagePack form.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(256);
    encode_into(value, &mut out)?;
    Ok(out)
}

fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map().with_human_readable();
    Ok(value.serialize(&mut serializer)?)
}

/// Opens the array that is the last field of an encoded struct whose last field was encoded as nil.
fn open_array(out: &mut Vec<u8>, len: usize) {
    out.pop();
    // Writing to a Vec cannot fail; 2^32 rows would not fit into memory.
    let _infallible = rmp::encode::write_array_len(out, u32::try_from(len).unwrap_or(u32::MAX));
}

impl Message<'_, Nil> {
    /// Puts a message together from this head and events that are encoded already. The first one, mostly the only one, is
    /// made room in: a message has no second place in memory for that.
    ///
    /// # Errors
    /// [`EncodeError`] where a value has no MessagePack form.
    pub fn put_together(&self, events: Vec<Vec<u8>>) -> Result<Vec<u8>, EncodeError> {
        let mut head = encode(self)?;
        open_array(&mut head, events.len());
        let mut events = events.into_iter();
        let mut out = events.next().unwrap_or_default();
        out.reserve_exact(head.len() + events.as_slice().iter().map(Vec::len).sum::<usize>());
        out.splice(..0, head);
        events.for_each(|event| out.extend_from_slice(&event));
        // It may wait for long, and counts as what is in it.
        if out.capacity() > 2 * out.len() {
            out.shrink_to_fit();
        }
        Ok(out)
    }
}

/// Stands where an array of encoded values will be put.
pub type Nil = Option<()>;

/// One sample as its collector brings it home.
#[derive(Debug)]
pub struct Sample<D, S> {
    /// The server it was taken on; `None` for collectors that ask the host only.
    pub server: Option<Arc<Server>>,
    /// The server's clock for `pg_*` collectors, the host's otherwise.
    pub collected_at: Time,
    /// How long the look took.
    pub duration: Duration,
    /// Rows that the limit left out.
    pub omitted: u64,
    /// Rows whose content the role may not see.
    pub hidden: u64,
    /// Over all rows, the omitted ones too.
    pub summary: Option<S>,
    /// The rows, or the one map.
    pub data: D,
    /// Why the sample is less than it could be, and what mends it; `None` if nothing is missing.
    pub degraded: Option<String>,
}

impl<D: Body, S: Serialize> Sample<D, S> {
    /// Encodes the sample as one event, or as several parts by rows where it is larger than `max_bytes`.
    /// One larger row travels alone, and one larger map whole.
    ///
    /// # Errors
    /// [`EncodeError`] where a value has no MessagePack form.
    pub fn encode(&self, max_bytes: usize) -> Result<Vec<Vec<u8>>, EncodeError> {
        let mut whole = self.head(None)?;
        // The array's length, `part` and `parts` take up to 5 bytes each instead of the 1 of nil.
        let room = max_bytes.saturating_sub(whole.len() + 12);
        let Some(bounds) = self.data.put(&mut whole)? else { return Ok(vec![whole]) };
        let runs = runs(&bounds, room);
        if runs.len() == 1 {
            return Ok(vec![whole]);
        }
        let parts = u32::try_from(runs.len()).unwrap_or(u32::MAX);
        let event = |(part, run): (u32, &Run)| {
            let mut out = self.head(Some((part, parts)))?;
            out.reserve(12 + run.end - run.start);
            open_array(&mut out, run.rows);
            out.extend_from_slice(whole.get(run.start..run.end).unwrap_or_default());
            Ok(out)
        };
        (1..).zip(&runs).map(event).collect()
    }

    /// The event with nil for its data.
    fn head(&self, part: Option<(u32, u32)>) -> Result<Vec<u8>, EncodeError> {
        encode(&Event::<Nil, &S> {
            collected_at: self.collected_at,
            duration_us: u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX),
            omitted: self.omitted,
            hidden: self.hidden,
            summary: self.summary.as_ref(),
            part: part.map(|(part, _)| part),
            parts: part.map(|(_, parts)| parts),
            data: None,
        })
    }
}

/// The summary of a collector that has none: always nil.
#[derive(Debug, Serialize, JsonSchema)]
pub enum NoSummary {}

/// What a look brought, ready for the intake.
#[derive(Debug)]
pub enum Payload {
    /// One event, encoded, perhaps in parts.
    Events(Vec<Vec<u8>>),
    /// A status that the intake completes when it numbers it.
    Status(Box<Sample<AgentStatus, NoSummary>>),
}

/// Some rows that follow each other: how many, and where their bytes stand.
struct Run {
    rows: usize,
    start: usize,
    end: usize,
}

/// Cuts rows into runs of at most `room` bytes; a larger row stands alone. No rows are one run of none.
fn runs(bounds: &[usize], room: usize) -> Vec<Run> {
    let first = bounds.first().copied().unwrap_or(0);
    let mut runs = Vec::new();
    let mut run = Run { rows: 0, start: first, end: first };
    for &end in bounds.iter().skip(1) {
        if run.rows > 0 && end - run.start > room {
            let start = run.end;
            runs.push(std::mem::replace(&mut run, Run { rows: 0, start, end: start }));
        }
        run = Run { rows: run.rows + 1, start: run.start, end };
    }
    runs.push(run);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        n: usize,
        text: String,
    }

    fn sample(rows: &[usize]) -> Sample<Vec<Row>, BTreeMap<&'static str, u64>> {
        Sample {
            server: None,
            collected_at: Time(1),
            duration: Duration::from_millis(2),
            omitted: 3,
            hidden: 4,
            summary: Some(BTreeMap::from([("entries", 5)])),
            data: rows.iter().enumerate().map(|(n, len)| Row { n, text: "x".repeat(*len) }).collect(),
            degraded: None,
        }
    }

    /// The rows' lengths in each part, as a decoder sees them.
    #[track_caller]
    fn check(rows: &[usize], max_bytes: usize, want: &[&[usize]]) {
        let events = sample(rows).encode(max_bytes).expect("rows encode");
        let mut next = 0;
        let mut got = Vec::new();
        for (part, event) in (1..).zip(&events) {
            let event: serde_json::Value = rmp_serde::from_slice(event).expect("decodes to its end");
            let split = events.len() > 1;
            assert_eq!(event["part"], if split { part.into() } else { serde_json::Value::Null });
            assert_eq!(event["parts"], if split { events.len().into() } else { serde_json::Value::Null });
            assert_eq!((&event["omitted"], &event["summary"]["entries"]), (&3.into(), &5.into()));
            let lengths = event["data"].as_array().expect("rows").iter().map(|row| {
                assert_eq!(row["n"], next);
                next += 1;
                row["text"].as_str().expect("text").len()
            });
            got.push(lengths.collect::<Vec<_>>());
        }
        assert_eq!(got, want);
        let fits = |(event, rows): (&Vec<u8>, &Vec<usize>)| event.len() <= max_bytes || rows.len() <= 1;
        assert!(events.iter().zip(&got).all(fits), "no part is too large unless it is one row");
    }

    #[test]
    fn an_event_that_is_too_large_is_split_by_rows() {
        check(&[], 1000, &[&[]]);
        check(&[], 1, &[&[]]);
        check(&[10, 10], 1000, &[&[10, 10]]);
        check(&[100, 100, 100], 400, &[&[100, 100], &[100]]);
        check(&[5000, 1, 5000], 400, &[&[5000], &[1], &[5000]]);
    }

    #[test]
    fn a_message_put_together_is_the_same_as_one_encoded_whole() {
        let labels = BTreeMap::from([("env".to_owned(), "test".to_owned())]);
        let head = || Message {
            collector: "pg_locks",
            schema_version: 1,
            agent_id: None,
            agent_name: "a",
            agent_version: "1",
            host: "h",
            labels: &labels,
            run_id: "r",
            seq: 7,
            server: None,
            events: None,
        };
        for len in [0, 1, 15, 16, 70_000] {
            let Message { collector, agent_name, agent_version, host, run_id, .. } = head();
            let whole = encode(&Message {
                collector,
                schema_version: 1,
                agent_id: None,
                agent_name,
                agent_version,
                host,
                labels: &labels,
                run_id,
                seq: 7,
                server: None,
                events: (0..len).collect::<Vec<_>>(),
            })
            .expect("encodes");
            let events = (0..len).map(|event| encode(&event).expect("encodes")).collect();
            assert_eq!(head().put_together(events).expect("encodes"), whole, "{len} events");
        }
    }
}

//! What was numbered lately, for whoever looks at the agent: the newest message of each collector, and how many sessions
//! did what in the last quarter of an hour.
//!
//! It holds what left the host, or will, and nothing else: what `privacy.query_text` keeps back is not in it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;

use crate::units::Time;

/// The collector whose summaries say what sessions do.
const ACTIVITY: &str = "pg_activity";
/// So far back sessions are shown, in microseconds.
const SPAN_US: i64 = 15 * 60 * 1_000_000;
/// Of looks nearer to each other only the last one is kept: 180 points are more than a screen tells apart.
const STEP_US: i64 = 5 * 1_000_000;

/// One message.
#[derive(Debug, Clone)]
pub struct Newest {
    /// Its collector.
    pub collector: &'static str,
    /// Its number.
    pub seq: u64,
    /// When it was numbered, by the host's clock.
    pub numbered_at: Time,
    /// Events in it.
    pub events: usize,
    /// Its body, before compression.
    pub body: Arc<[u8]>,
}

/// How many sessions did what, at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// When, by the server's clock.
    pub at: Time,
    /// By what they did: `CPU` (active, and waiting for nothing), a wait event's type, or `idle in transaction`. Sessions
    /// that do nothing at all are left out, and so are those of the server itself.
    pub counts: BTreeMap<String, u64>,
}

/// What was numbered lately.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    newest: BTreeMap<&'static str, Newest>,
    sessions: VecDeque<Sessions>,
}

impl Recent {
    /// A message was numbered.
    pub fn note(&self, collector: &'static str, seq: u64, events: usize, body: &[u8]) {
        self.held().put(Newest { collector, seq, numbered_at: Time::now(), events, body: body.into() });
    }

    /// The newest message of each collector.
    pub fn newest(&self) -> Vec<Newest> {
        self.held().newest.values().cloned().collect()
    }

    /// The newest message of one collector.
    pub fn newest_of(&self, collector: &str) -> Option<Newest> {
        self.held().newest.get(collector).cloned()
    }

    /// What sessions did, the oldest look first: at most 180 of the last 15 minutes.
    pub fn sessions(&self) -> Vec<Sessions> {
        let held = self.held();
        let mut all = held.sessions.clone();
        if let Some(newest) = held.newest.get(ACTIVITY) {
            add(&mut all, &newest.body);
        }
        all.into()
    }

    /// Forgets all messages: less may be shown from now on.
    pub fn forget_messages(&self) {
        self.held().newest.clear();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whole at any moment: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Bodies are long, so they are read once in a step, and for who asks.
    fn put(&mut self, newest: Newest) {
        let step = |newest: &Newest| newest.numbered_at.0.div_euclid(STEP_US);
        // Batches of many looks come more rarely, and are read each.
        if let Some(before) = self.newest.get(newest.collector)
            && newest.collector == ACTIVITY
            && step(before) != step(&newest)
        {
            add(&mut self.sessions, &before.body);
        }
        self.newest.insert(newest.collector, newest);
    }
}

/// Adds the looks that a message tells of: the last one of each step.
fn add(all: &mut VecDeque<Sessions>, body: &[u8]) {
    let step = |sessions: &Sessions| sessions.at.0.div_euclid(STEP_US);
    for sessions in sessions(body) {
        let at = sessions.at.0;
        // A clock that was set back begins anew.
        all.retain(|earlier| earlier.at.0 <= at && earlier.at.0 > at - SPAN_US);
        if all.back().is_some_and(|last| step(last) == step(&sessions)) {
            all.pop_back();
        }
        all.push_back(sessions);
    }
}

/// What of a message of [`ACTIVITY`] says how many sessions did what.
#[derive(Deserialize)]
struct Message {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    collected_at: String,
    summary: Option<Summary>,
}

#[derive(Deserialize)]
struct Summary {
    sessions: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    state: Option<String>,
    wait_event_type: Option<String>,
    count: u64,
}

/// What sessions did, as a message says it. Parts of one look say it again.
fn sessions(body: &[u8]) -> Vec<Sessions> {
    let Ok(message) = rmp_serde::from_slice::<Message>(body) else { return Vec::new() };
    let read = |event: Event| {
        let at = event.collected_at.parse::<jiff::Timestamp>().ok()?;
        let mut counts = BTreeMap::new();
        for Kind { state, wait_event_type, count } in event.summary?.sessions {
            if let Some(class) = class(state.as_deref(), wait_event_type) {
                *counts.entry(class).or_default() += count;
            }
        }
        Some(Sessions { at: Time(at.as_microsecond()), counts })
    };
    message.events.into_iter().filter_map(read).collect()
}

fn class(state: Option<&str>, waits: Option<String>) -> Option<String> {
    match state? {
        // Processes that wait for work to come, such as those that send WAL.
        "active" if waits.as_deref() == Some("Activity") => None,
        "active" | "fastpath function call" => Some(waits.unwrap_or_else(|| "CPU".into())),
        state if state.starts_with("idle in transaction") => Some("idle in transaction".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(at: &str, kinds: &[(Option<&str>, Option<&str>, u64)]) -> Vec<u8> {
        let kind = |(state, waits, count): &(Option<&str>, Option<&str>, u64)| json!({ "datname": "d", "state": state, "wait_event_type": waits, "count": count });
        let kinds: Vec<_> = kinds.iter().map(kind).collect();
        let event = json!({ "collected_at": at, "summary": { "sessions": kinds }, "data": [{ "pid": 1 }] });
        rmp_serde::to_vec_named(&json!({ "collector": ACTIVITY, "events": [event] })).expect("encodes")
    }

    #[test]
    fn what_sessions_do_is_read_from_the_summary() {
        let kinds = [
            (Some("active"), None, 2),
            (Some("active"), Some("Lock"), 3),
            (Some("active"), Some("Activity"), 1),
            (Some("idle"), Some("Client"), 90),
            (Some("idle in transaction"), Some("Client"), 4),
            (Some("idle in transaction (aborted)"), Some("Client"), 1),
            (None, Some("Activity"), 5),
        ];
        let read = sessions(&message("2026-11-26T10:00:00.000001Z", &kinds));
        let want = [("CPU".into(), 2), ("Lock".into(), 3), ("idle in transaction".into(), 5)];
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].counts, BTreeMap::from(want));
        assert_eq!(sessions(b"no message"), []);
    }

    #[test]
    fn a_quarter_of_an_hour_is_kept_and_one_look_of_five_seconds() {
        let recent = Recent::default();
        let body = |second: u32| {
            message(&format!("2026-11-26T10:{:02}:{:02}.5Z", second / 60, second % 60), &[(Some("active"), None, 1)])
        };
        let note = |second: u32, body: Vec<u8>| {
            let numbered_at = Time(i64::from(second) * 1_000_000);
            let newest =
                Newest { collector: ACTIVITY, seq: u64::from(second), numbered_at, events: 1, body: body.into() };
            recent.held().put(newest);
        };
        for second in 0..20 * 60 {
            note(second, body(second));
        }
        let sessions = recent.sessions();
        assert_eq!(sessions.len(), 180);
        assert!(sessions.windows(2).all(|pair| pair[0].at.0 < pair[1].at.0));
        note(20 * 60, body(60));
        assert_eq!(
            recent.sessions().last().map(|sessions| sessions.at.to_string()),
            Some("2026-11-26T10:01:00.500000Z".into())
        );
        assert!(recent.sessions().len() <= 13, "a clock that was set back begins anew");
    }

    #[test]
    fn the_newest_message_of_each_collector_is_kept_until_it_is_forgotten() {
        let recent = Recent::default();
        recent.note("pg_locks", 1, 1, b"one");
        recent.note("pg_locks", 2, 1, b"two");
        recent.note("pg_statements", 1, 1, b"three");
        let seqs: Vec<_> = recent.newest().iter().map(|newest| (newest.collector, newest.seq)).collect();
        assert_eq!(seqs, [("pg_locks", 2), ("pg_statements", 1)]);
        assert_eq!(recent.newest_of("pg_locks").map(|newest| newest.body.to_vec()), Some(b"two".to_vec()));
        recent.forget_messages();
        assert!(recent.newest().is_empty());
    }
}

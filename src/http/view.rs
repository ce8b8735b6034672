//! What is shown: the state of all parts, gathered at the moment when somebody asks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    batch::channel::Gauge,
    event::status::Reason,
    health::{CollectorStatus, Delivery, Health, Usage},
    postgres::Database,
    recent::{Newest, Recent},
    spool::{Glance, Spool},
    text::QueryText,
    units::{self, Time},
};

/// What may change while the agent runs.
#[derive(Debug, Clone)]
pub struct Current {
    /// The server that is looked at.
    pub database: Database,
    /// What may be shown of texts.
    pub query_text: QueryText,
    /// The collectors.
    pub plans: Vec<Plan>,
    /// Where messages go.
    pub exchange: String,
}

/// One collector's schedule.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The collector.
    pub name: &'static str,
    /// How often it looks.
    pub interval: Duration,
}

/// Everything that is shown.
#[derive(Debug, Clone)]
pub struct View {
    /// `agent.name`.
    pub name: String,
    /// The host's name.
    pub host: String,
    /// `agent.labels`.
    pub labels: BTreeMap<String, String>,
    /// The state of all parts.
    pub health: Arc<Health>,
    /// What waits.
    pub spool: Arc<Spool>,
    /// What was numbered lately.
    pub recent: Arc<Recent>,
    /// The channel between collectors and intake.
    pub channel: Gauge,
    /// What may change.
    pub current: watch::Receiver<Current>,
}

/// Whether something is as it should be.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) ok: bool,
    /// Why not.
    reasons: Vec<String>,
}

impl From<Vec<String>> for Verdict {
    fn from(reasons: Vec<String>) -> Self {
        Self { ok: reasons.is_empty(), reasons }
    }
}

/// What is read of all parts in one go.
pub(super) struct Picture {
    pub(super) collectors: BTreeMap<String, CollectorStatus>,
    pub(super) delivery: Delivery,
    pub(super) usage: Usage,
    pub(super) spool: Glance,
    pub(super) current: Current,
}

impl View {
    pub(super) fn picture(&self) -> Picture {
        let (collectors, delivery) = self.health.snapshot();
        let current = self.current.borrow().clone();
        Picture { collectors, delivery, usage: Usage::now(), spool: self.spool.glance(), current }
    }

    /// Whether all loops turn. An outage of the database or the broker is no reason why not.
    pub(super) fn health(&self) -> Verdict {
        let told = |stuck: crate::health::Stuck| {
            format!(
                "{} has worked on one thing for {}",
                stuck.part,
                units::duration(Duration::from_secs(stuck.time.as_secs()))
            )
        };
        self.health.loops.stuck().into_iter().map(told).collect::<Vec<_>>().into()
    }

    /// Whether both ends are reached: a login to PostgreSQL, and an open channel to the broker.
    pub(super) fn ready(&self) -> Verdict {
        let (_, delivery) = self.health.snapshot();
        let database = self.current.borrow().database.clone();
        let database = match (database.away(), database.is_reached()) {
            (Some(error), _) => Some(format!("PostgreSQL: {error}")),
            (None, None) => Some("PostgreSQL: no login yet".into()),
            (None, Some(_)) => None,
        };
        let broker = match (&delivery.node, delivery.channels) {
            (Some(_), 1..) => None,
            (Some(node), 0) => Some(format!("the broker: connected to {node}, and no channel is open yet")),
            (None, _) => Some(format!("the broker: {}", delivery.trouble.as_deref().unwrap_or("no connection yet"))),
        };
        [database, broker].into_iter().flatten().collect::<Vec<_>>().into()
    }

    /// All that the page shows but the messages themselves.
    pub(super) fn status(&self) -> Value {
        let picture = self.picture();
        let Picture { delivery, usage, current, .. } = &picture;
        let newest = |newest: Newest| {
            json!({
                "collector": newest.collector, "seq": newest.seq, "numbered_at": newest.numbered_at,
                "bytes": newest.body.len(), "events": newest.events,
            })
        };
        let lost = |((collector, reason), messages): (&(String, Reason), &u64)| json!({ "collector": collector, "reason": reason, "messages": messages });
        let sessions = self.recent.sessions();
        json!({
            "now": Time::now(),
            "agent": {
                "name": self.name, "version": env!("CARGO_PKG_VERSION"), "id": self.spool.agent, "run_id": self.spool.run_id,
                "host": self.host, "labels": self.labels, "uptime_s": self.health.uptime().as_secs_f64(),
                "rss_bytes": usage.rss_bytes, "cpu_s": usage.cpu_s, "query_text": query_text(current.query_text),
            },
            "health": self.health(),
            "ready": self.ready(),
            "database": {
                "reached": current.database.is_reached(),
                "reason": current.database.away().map(|error| error.to_string()),
                "connections": current.database.connections(),
            },
            "collectors": current.plans.iter().map(|plan| picture.collector(plan)).collect::<Vec<_>>(),
            "channel": { "samples": self.channel.samples(), "capacity": self.channel.capacity() },
            "spool": picture.spool(),
            "broker": broker(delivery, &current.exchange),
            "lost": picture.spool.losses.iter().map(lost).collect::<Vec<_>>(),
            "sessions": sessions.into_iter().map(|look| json!({ "at": look.at, "counts": look.counts })).collect::<Vec<_>>(),
            "messages": self.recent.newest().into_iter().map(newest).collect::<Vec<_>>(),
        })
    }

    /// A collector's newest message, decoded, with so many rows of each event at the most; `None` if there is none.
    pub(super) fn message(&self, collector: &str, rows: usize) -> Option<Value> {
        let newest = self.recent.newest_of(collector)?;
        let mut message: Value = rmp_serde::from_slice(&newest.body).ok()?;
        for event in message.get_mut("events").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(data) = event.get_mut("data").and_then(Value::as_array_mut) {
                data.truncate(rows);
            }
        }
        if self.current.borrow().query_text != QueryText::Raw {
            without_texts(&mut message);
        }
        Some(message)
    }
}

impl Picture {
    fn collector(&self, plan: &Plan) -> Value {
        let status = self.collectors.get(plan.name).cloned().unwrap_or_default();
        json!({
            "name": plan.name, "state": status.state, "reason": status.reason, "interval_s": plan.interval.as_secs_f64(),
            "last_success_at": status.last_success_at, "runs": status.runs, "failures": status.failures,
            "skipped": status.skipped, "db_ms": status.db_ms, "numbered": self.numbered(plan.name),
        })
    }

    /// Messages of a collector that were given a number in this run.
    pub(super) fn numbered(&self, collector: &str) -> u64 {
        self.spool.given.get(collector).copied().unwrap_or(0)
    }

    fn spool(&self) -> Value {
        let Glance { dir, max_bytes, status, .. } = &self.spool;
        json!({
            "dir": dir.display().to_string(), "messages": status.messages, "bytes": status.bytes, "max_bytes": max_bytes,
            "oldest_at": status.oldest_at, "oldest_age_s": status.oldest_at.map(age), "lasts_s": status.lasts_s,
            "trouble": status.trouble, "trouble_since": status.trouble_since,
        })
    }
}

/// Seconds since then; none for a time to come.
pub(super) fn age(then: Time) -> f64 {
    Time::now().0.saturating_sub(then.0).max(0) as f64 / 1e6
}

fn query_text(query_text: QueryText) -> &'static str {
    match query_text {
        QueryText::Raw => "raw",
        QueryText::Normalized => "normalized",
        QueryText::Off => "off",
    }
}

fn broker(delivery: &Delivery, exchange: &str) -> Value {
    let within = |share| delivery.confirms.within(share).map(|time| time.as_secs_f64() * 1e3);
    json!({
        "connected": delivery.node.is_some(), "node": delivery.node, "exchange": exchange,
        "published": delivery.published, "confirmed": delivery.confirmed, "returned": delivery.returned,
        "nacked": delivery.nacked, "reconnects": delivery.reconnects, "trouble": delivery.trouble,
        "trouble_since": delivery.trouble_since,
        "confirm_ms": within(0.5).map(|p50| json!({ "p50": p50, "p99": within(0.99) })),
    })
}

/// Takes away all texts of queries, wherever they stand. What may leave to the broker, whose readers log in, may still be
/// more than what anybody on this host should read.
fn without_texts(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if name == "query" || name.ends_with("_query") {
                    *field = Value::Null;
                } else {
                    without_texts(field);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_texts),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_queries_are_taken_away_wherever_they_stand() {
        let mut message = json!({
            "events": [{
                "data": [{ "query": "a", "query_id": "1", "query_truncated": true, "blocked_query": "b" }],
                "summary": { "roots": [{ "blocking_query": "c", "query": "d", "pid": 1 }] },
            }],
        });
        without_texts(&mut message);
        let want = json!({
            "events": [{
                "data": [{ "query": null, "query_id": "1", "query_truncated": true, "blocked_query": null }],
                "summary": { "roots": [{ "blocking_query": null, "query": null, "pid": 1 }] },
            }],
        });
        assert_eq!(message, want);
    }
}

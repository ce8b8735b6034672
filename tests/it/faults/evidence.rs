//! What a scene's queue holds in the end, read once more and message by message: the judges count, this names.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::scene::Scene;

/// A message: run, collector and `seq`.
pub(crate) type Id = (String, String, u64);

/// A status as it came, the first time.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) run: String,
    /// When it was taken, by the host's clock.
    pub(crate) at: Timestamp,
    /// Seconds since its run began, whatever the clock does.
    pub(crate) uptime: f64,
    /// By collector: the last `seq` given out by then.
    pub(crate) sent: BTreeMap<String, u64>,
    /// Resident memory of the agent.
    pub(crate) rss: u64,
}

/// All that was received.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// How often each message came.
    pub(crate) received: BTreeMap<Id, u32>,
    /// The same in the order in which they came, each as often as it came.
    pub(crate) order: Vec<Id>,
    /// The statuses, by run and `seq`.
    pub(crate) statuses: BTreeMap<(String, u64), Told>,
    /// Declared lost, each with its reasons. What has no end goes as far as anything that is known of its run.
    pub(crate) declared: BTreeMap<Id, BTreeSet<String>>,
    /// Up to where a later run says that an earlier one went, by run and collector.
    ends: BTreeMap<(String, String), u64>,
}

impl Evidence {
    /// Empties the judges' queue.
    pub(crate) async fn of(scene: &Scene) -> Self {
        let (mut evidence, mut lost) = (Self::default(), Vec::new());
        while let Some(message) = scene.get(scene.name).await {
            let body: Value = rmp_serde::from_slice(&message.delivery.data).unwrap();
            let text = |key: &str| body[key].as_str().unwrap().to_owned();
            let (run, collector, seq) = (text("run_id"), text("collector"), body["seq"].as_u64().unwrap());
            if collector == "agent_status" {
                let (event, data) = (&body["events"][0], &body["events"][0]["data"]);
                lost.extend(data["lost"].as_array().unwrap().iter().cloned());
                for run in data["previous_runs"].as_array().unwrap() {
                    let last = run["last_seq"].as_object().unwrap().iter();
                    let of = |name: &str| (run["run_id"].as_str().unwrap().to_owned(), name.to_owned());
                    evidence.ends.extend(last.map(|(name, seq)| (of(name), seq.as_u64().unwrap())));
                }
                let sent = data["sent"].as_object().unwrap().iter();
                let sent = sent.map(|(name, seq)| (name.clone(), seq.as_u64().unwrap())).collect();
                let at = event["collected_at"].as_str().unwrap().parse().unwrap();
                let uptime = data["uptime_s"].as_f64().unwrap();
                let rss = data["rss_bytes"].as_u64().unwrap_or(0);
                evidence.statuses.insert((run.clone(), seq), Told { run: run.clone(), at, uptime, sent, rss });
            }
            evidence.order.push((run.clone(), collector.clone(), seq));
            *evidence.received.entry((run, collector, seq)).or_default() += 1;
        }
        for range in lost {
            evidence.declare(&range);
        }
        evidence
    }

    fn declare(&mut self, range: &Value) {
        let text = |key: &str| range[key].as_str().unwrap().to_owned();
        let (run, collector, reason) = (text("run_id"), text("collector"), text("reason"));
        let last = range["last_seq"].as_u64().unwrap_or_else(|| self.end(&run, &collector));
        for seq in range["first_seq"].as_u64().unwrap()..=last {
            self.declared.entry((run.clone(), collector.clone(), seq)).or_default().insert(reason.clone());
        }
    }

    /// The highest `seq` of a run and collector that anything tells of.
    fn end(&self, run: &str, collector: &str) -> u64 {
        let sent = self.statuses.values().filter(|told| told.run == run).filter_map(|told| told.sent.get(collector));
        let received = self.received.keys().filter(|(of, by, _)| of == run && by == collector).map(|(.., seq)| seq);
        let later = self.ends.get(&(run.to_owned(), collector.to_owned()));
        sent.chain(received).chain(later).copied().max().unwrap_or(0)
    }

    /// Every reason that was ever given.
    pub(crate) fn reasons(&self) -> BTreeSet<&str> {
        self.declared.values().flatten().map(String::as_str).collect()
    }

    /// Declared, and never received.
    pub(crate) fn gone(&self) -> impl Iterator<Item = &Id> {
        self.declared.keys().filter(|id| !self.received.contains_key(*id))
    }

    /// Deliveries beyond the first of each message.
    pub(crate) fn duplicates(&self) -> u32 {
        self.received.values().map(|times| times - 1).sum()
    }

    /// The longest time between two statuses of one run, where none of them is missing.
    pub(crate) fn longest_stall(&self) -> Duration {
        let pairs = self.statuses.iter().zip(self.statuses.iter().skip(1));
        let next = pairs.filter(|((one, _), (other, _))| one.0 == other.0 && one.1 + 1 == other.1);
        next.map(|((_, one), (_, other))| Duration::from_secs_f64((other.uptime - one.uptime).max(0.0)))
            .max()
            .unwrap_or_default()
    }
}

//! The audit: what of an agent's messages is missing, judged from the messages alone. Pure.
//!
//! What lies between the first and the last status that was received of an agent is judged. A number is a gap if a status
//! counts it as sent, it was not settled at the first status, and it is neither received, nor declared lost, nor still
//! waiting at the last status. Runs are ordered by what they say of each other (`previous_runs`), else by their ids,
//! which begin with a time; statuses within a run by their numbers, never by when they arrived.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use crate::spool::ranges::Ranges;

/// The parts of an `agent_status` that the proof rests on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    sent: BTreeMap<String, u64>,
    waiting: Vec<Range>,
    lost: Vec<Range>,
    previous_runs: Vec<Previous>,
}

#[derive(Debug, Clone, Deserialize)]
struct Range {
    run_id: String,
    collector: String,
    first_seq: u64,
    last_seq: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
struct Previous {
    run_id: String,
    last_seq: BTreeMap<String, u64>,
}

/// One message's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id<'a> {
    /// Its agent.
    pub agent: &'a str,
    /// Its run.
    pub run: &'a str,
    /// Its collector.
    pub collector: &'a str,
    /// Its number.
    pub seq: u64,
}

#[derive(Debug, Default)]
struct Stream {
    received: Ranges,
    messages: u64,
    events: u64,
    duplicates: u64,
    contents: HashMap<u64, u32>,
    forged: u64,
}

#[derive(Debug, Default)]
struct Agent {
    streams: BTreeMap<(String, String), Stream>,
    statuses: BTreeMap<(String, u64), Status>,
}

/// Everything that was received so far.
#[derive(Debug, Default)]
pub struct Audit {
    agents: BTreeMap<String, Agent>,
}

/// What was found of one run and collector.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The agent.
    pub agent_id: String,
    /// The run.
    pub run_id: String,
    /// The collector.
    pub collector: String,
    /// The lowest number that was received; nil if none was.
    pub first_seq: Option<u64>,
    /// The highest number that was received; nil if none was.
    pub last_seq: Option<u64>,
    /// Messages that were received, each counted once.
    pub messages: u64,
    /// Events in them.
    pub events: u64,
    /// Deliveries of messages that had been received before.
    pub duplicates: u64,
    /// Deliveries under the id of another message with other contents: never allowed.
    pub conflicts: u64,
    /// Numbers that are missing.
    pub gaps: u64,
    /// The missing numbers as ranges.
    pub missing: Vec<(u64, u64)>,
    /// Numbers within what is judged that were not received and are declared lost.
    pub declared: u64,
    /// Numbers within what is judged that were not received and still wait at the agent.
    pub waiting: u64,
}

/// What was found of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// By agent, run and collector.
    pub findings: Vec<Finding>,
    /// Agents of which fewer than two statuses were received: nothing can be proven of them.
    pub not_provable: Vec<String>,
}

impl Verdict {
    /// Whether something is missing that was not declared, or one id had two contents.
    pub fn is_broken(&self) -> bool {
        self.findings.iter().any(|finding| finding.gaps > 0 || finding.conflicts > 0)
    }

    /// Whether it is proven that all is there: `None` where the statuses are too few to say.
    pub fn is_complete(&self) -> Option<bool> {
        if self.is_broken() {
            return Some(false);
        }
        (!self.findings.is_empty() && self.not_provable.is_empty()).then_some(true)
    }
}

impl Audit {
    /// Takes note of a message. `body` is as it was before compression; `status` is there where the collector is `agent_status`.
    pub fn observe(&mut self, id: Id<'_>, events: u32, body: &[u8], status: Option<Status>) {
        let agent = self.agents.entry(id.agent.to_owned()).or_default();
        let stream = agent.streams.entry((id.run.to_owned(), id.collector.to_owned())).or_default();
        let content = crc32c::crc32c(body);
        if stream.received.contains(id.seq) {
            stream.duplicates += 1;
            stream.forged += u64::from(stream.contents.get(&id.seq) != Some(&content));
            return;
        }
        stream.received.insert(id.seq, id.seq);
        stream.contents.insert(id.seq, content);
        stream.messages += 1;
        stream.events += u64::from(events);
        if let Some(status) = status {
            agent.statuses.insert((id.run.to_owned(), id.seq), status);
        }
    }

    /// Judges what was received so far.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { findings: Vec::new(), not_provable: Vec::new() };
        for (id, agent) in &self.agents {
            if agent.statuses.len() < 2 {
                verdict.not_provable.push(id.clone());
            }
            verdict.findings.extend(agent.findings(id));
        }
        verdict
    }
}

impl Agent {
    fn findings(&self, agent_id: &str) -> Vec<Finding> {
        let judged = self.judged();
        let streams: BTreeSet<&(String, String)> = self.streams.keys().chain(judged.keys()).collect();
        let none = Stream::default();
        let finding = |key: &(String, String)| {
            let stream = self.streams.get(key).unwrap_or(&none);
            let ranges = stream.received.iter().collect::<Vec<_>>();
            let (missing, declared, waiting) =
                judged.get(key).map(|judged| judged.judge(&stream.received)).unwrap_or_default();
            Finding {
                agent_id: agent_id.to_owned(),
                run_id: key.0.clone(),
                collector: key.1.clone(),
                first_seq: ranges.first().map(|(first, _)| *first),
                last_seq: ranges.last().map(|(_, last)| *last),
                messages: stream.messages,
                events: stream.events,
                duplicates: stream.duplicates,
                conflicts: stream.forged,
                gaps: missing.iter().map(|(first, last)| last - first + 1).sum(),
                missing,
                declared,
                waiting,
            }
        };
        streams.into_iter().map(finding).collect()
    }

    /// For each run and collector, what must be accounted for.
    fn judged(&self) -> BTreeMap<(String, String), Judged> {
        let order = self.run_order();
        let place = |run: &String| order.iter().position(|known| known == run);
        let mut statuses: Vec<(&(String, u64), &Status)> = self.statuses.iter().collect();
        statuses.sort_by_key(|((run, seq), _)| (place(run), *seq));
        let (Some(((first_run, first_seq), first)), Some((_, newest))) = (statuses.first(), statuses.last()) else {
            return BTreeMap::new();
        };
        if statuses.len() < 2 {
            return BTreeMap::new();
        }
        let mut judged: BTreeMap<(String, String), Judged> = BTreeMap::new();
        let mut sent = |run: &str, last_seq: &BTreeMap<String, u64>| {
            for (collector, last) in last_seq {
                let entry = judged.entry((run.to_owned(), collector.clone())).or_default();
                entry.sent = entry.sent.max(*last);
            }
        };
        for ((run, _), status) in &statuses {
            sent(run, &status.sent);
            status.previous_runs.iter().for_each(|previous| sent(&previous.run_id, &previous.last_seq));
        }
        let settled_at_first = |run: &String, collector: &str| match place(run).cmp(&place(first_run)) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => first.sent.get(collector).copied().unwrap_or(0),
            std::cmp::Ordering::Greater => 0,
        };
        for ((run, collector), entry) in &mut judged {
            let of = |range: &&Range| (&range.run_id, &range.collector) == (run, collector);
            let ends = |range: &Range, sent: u64| (range.first_seq, range.last_seq.unwrap_or(u64::MAX).min(sent));
            let settled = settled_at_first(run, collector);
            entry.from_first = first.waiting.iter().filter(of).map(|range| ends(range, entry.sent)).collect();
            entry.from_first.extend((settled < entry.sent).then_some((settled.saturating_add(1), entry.sent)));
            // The first status itself was received; it is settled by that.
            if run == first_run && collector == crate::event::status::COLLECTOR {
                entry.from_first.push((*first_seq, *first_seq));
            }
            let lost = statuses.iter().flat_map(|(_, status)| &status.lost).filter(of);
            entry.lost = lost.map(|range| ends(range, entry.sent)).collect();
            entry.waiting = newest.waiting.iter().filter(of).map(|range| ends(range, entry.sent)).collect();
        }
        judged
    }

    /// All runs that are spoken of, in the order in which they ran.
    fn run_order(&self) -> Vec<String> {
        // Ids begin with a time, so this is right but for a clock that was set back between two runs.
        let told =
            self.statuses.values().flat_map(|status| status.previous_runs.iter().map(|previous| &previous.run_id));
        let own = self.statuses.keys().map(|(run, _)| run);
        let mut order: Vec<String> = told.chain(own).cloned().collect::<BTreeSet<_>>().into_iter().collect();
        // A run that tells of another one came after it, and it tells them in their order: that outweighs the clock.
        for _ in 0..order.len() {
            let mut moved = false;
            for ((run, _), status) in &self.statuses {
                let chain: Vec<&String> =
                    status.previous_runs.iter().map(|previous| &previous.run_id).chain([run]).collect();
                for pair in chain.windows(2) {
                    let [earlier, later] = pair else { continue };
                    let at = |wanted: &String| order.iter().position(|run| run == wanted);
                    if let (Some(before), Some(after)) = (at(earlier), at(later))
                        && before > after
                    {
                        let run = order.remove(before);
                        order.insert(after, run);
                        moved = true;
                    }
                }
            }
            if !moved {
                break;
            }
        }
        order
    }
}

/// What must be accounted for of one run and collector.
#[derive(Debug, Default)]
struct Judged {
    /// The last number that any status counts as sent.
    sent: u64,
    /// What was not settled at the first status.
    from_first: Vec<(u64, u64)>,
    lost: Ranges,
    waiting: Ranges,
}

impl Judged {
    /// What is missing, how much is declared, how much waits.
    fn judge(&self, received: &Ranges) -> (Vec<(u64, u64)>, u64, u64) {
        let due: Ranges = self.from_first.iter().copied().collect();
        let (mut missing, mut declared, mut waiting) = (Vec::new(), 0, 0);
        for (first, last) in due.iter() {
            for (first, last) in received.missing(first, last) {
                let told: Ranges = self.lost.iter().chain(self.waiting.iter()).collect();
                missing.extend(told.missing(first, last));
                let within = |set: &Ranges| {
                    last - first + 1 - set.missing(first, last).iter().map(|(a, b)| b - a + 1).sum::<u64>()
                };
                declared += within(&self.lost);
                waiting += within(&self.waiting);
            }
        }
        (missing, declared, waiting)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(value: serde_json::Value) -> Status {
        serde_json::from_value(value).expect("a status")
    }

    fn see(audit: &mut Audit, run: &str, collector: &str, seq: u64, told: Option<Status>) {
        let body = format!("{run}/{collector}/{seq}");
        audit.observe(Id { agent: "a", run, collector, seq }, 2, body.as_bytes(), told);
    }

    fn status_at(audit: &mut Audit, run: &str, seq: u64, value: serde_json::Value) {
        see(audit, run, "agent_status", seq, Some(status(value)));
    }

    #[track_caller]
    fn check(audit: &Audit, run: &str, want: &[(u64, u64)]) {
        let verdict = audit.verdict();
        let finding = verdict.findings.iter().find(|finding| (&*finding.run_id, &*finding.collector) == (run, "log"));
        assert_eq!(finding.expect("the stream is known").missing, want);
        assert_eq!(verdict.is_broken(), !want.is_empty());
    }

    #[test]
    fn what_was_sent_and_did_not_come_is_a_gap() {
        let mut audit = Audit::default();
        status_at(&mut audit, "r1", 1, json!({"sent": {"agent_status": 1}}));
        for seq in [1, 2, 4, 4] {
            see(&mut audit, "r1", "log", seq, None);
        }
        assert_eq!((audit.verdict().not_provable, audit.verdict().is_complete()), (vec!["a".to_owned()], None));
        status_at(&mut audit, "r1", 2, json!({"sent": {"agent_status": 2, "log": 4}}));
        check(&audit, "r1", &[(3, 3)]);
        assert_eq!((audit.verdict().not_provable, audit.verdict().is_complete()), (Vec::new(), Some(false)));
        let finding = audit.verdict().findings.remove(1);
        assert_eq!((finding.messages, finding.events, finding.duplicates), (3, 6, 1));
        see(&mut audit, "r1", "log", 3, None);
        check(&audit, "r1", &[]);
        assert_eq!(audit.verdict().is_complete(), Some(true));
        assert_eq!(Audit::default().verdict().is_complete(), None, "nothing was received");
    }

    #[test]
    fn declared_losses_and_what_waits_are_no_gaps() {
        let mut audit = Audit::default();
        let range = |first, last| json!({"run_id": "r1", "collector": "log", "first_seq": first, "last_seq": last, "events": null, "reason": "evicted"});
        status_at(&mut audit, "r1", 1, json!({"sent": {"agent_status": 1}}));
        status_at(&mut audit, "r1", 2, json!({"sent": {"agent_status": 2, "log": 9}, "lost": [range(1, 2)]}));
        status_at(&mut audit, "r1", 3, json!({"sent": {"agent_status": 3, "log": 9}, "waiting": [range(4, 9)]}));
        see(&mut audit, "r1", "log", 5, None);
        check(&audit, "r1", &[(3, 3)]);
        let finding = audit.verdict().findings.remove(1);
        assert_eq!((finding.declared, finding.waiting), (2, 5));
    }

    #[test]
    fn what_was_settled_before_the_first_status_is_not_judged() {
        let mut audit = Audit::default();
        let waiting = json!([{"run_id": "r1", "collector": "log", "first_seq": 7, "last_seq": 8}]);
        status_at(&mut audit, "r1", 5, json!({"sent": {"agent_status": 5, "log": 8}, "waiting": waiting}));
        status_at(&mut audit, "r1", 6, json!({"sent": {"agent_status": 6, "log": 9}}));
        see(&mut audit, "r1", "log", 9, None);
        check(&audit, "r1", &[(7, 8)]);
    }

    #[test]
    fn the_end_of_a_killed_run_is_told_by_the_next_one() {
        let mut audit = Audit::default();
        // The clock was set back: the later run has the lower id. And its status arrived first.
        let previous = json!([{"run_id": "r9", "last_seq": {"log": 3, "agent_status": 1}}]);
        status_at(&mut audit, "r1", 1, json!({"sent": {"agent_status": 1}, "previous_runs": previous}));
        status_at(&mut audit, "r9", 1, json!({"sent": {"agent_status": 1}}));
        see(&mut audit, "r9", "log", 1, None);
        check(&audit, "r9", &[(2, 3)]);
        see(&mut audit, "r9", "log", 2, None);
        see(&mut audit, "r9", "log", 3, None);
        check(&audit, "r9", &[]);
    }

    #[test]
    fn a_power_cut_is_declared_to_the_end_of_its_run() {
        let mut audit = Audit::default();
        status_at(&mut audit, "r1", 1, json!({"sent": {"agent_status": 1, "log": 0}}));
        status_at(&mut audit, "r1", 2, json!({"sent": {"agent_status": 2, "log": 9}}));
        let lost = json!([{"run_id": "r1", "collector": "log", "first_seq": 5, "last_seq": null}]);
        let previous = json!([{"run_id": "r1", "last_seq": {"log": 4, "agent_status": 2}}]);
        status_at(&mut audit, "r2", 1, json!({"sent": {"agent_status": 1}, "lost": lost, "previous_runs": previous}));
        for seq in 1..=4 {
            see(&mut audit, "r1", "log", seq, None);
        }
        check(&audit, "r1", &[]);
    }

    #[test]
    fn two_contents_under_one_id_break_the_promise() {
        let mut audit = Audit::default();
        let id = Id { agent: "a", run: "r1", collector: "log", seq: 1 };
        audit.observe(id, 1, b"one", None);
        audit.observe(id, 1, b"one", None);
        assert!(!audit.verdict().is_broken());
        audit.observe(id, 1, b"other", None);
        assert!(audit.verdict().is_broken());
    }
}

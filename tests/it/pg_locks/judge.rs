//! The judge of a scene of locks: what the server itself says (`pg_blocking_pids`, asked through another connection) beside
//! what the collector told. It shares no code with the collector; its table of conflicts is that of PostgreSQL's manual.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;
use tokio_postgres::Client;

/// A process, or a prepared transaction by its gid.
type Party = String;

/// Who waits for whom, and whether that one holds what is waited for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Truth {
    pub(super) edges: BTreeMap<(Party, Party), bool>,
    pub(super) waiters: BTreeSet<Party>,
}

/// What the collector told wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) false_edges: Vec<(Party, Party)>,
    pub(super) missed_roots: Vec<Party>,
    /// Anything else.
    pub(super) faults: Vec<String>,
}

/// Each mode with those it conflicts with: table 13.2 of the manual.
const CONFLICTS: [(&str, &str); 8] = [
    ("AccessShare", "AccessExclusive"),
    ("RowShare", "Exclusive AccessExclusive"),
    ("RowExclusive", "Share ShareRowExclusive Exclusive AccessExclusive"),
    ("ShareUpdateExclusive", "ShareUpdateExclusive Share ShareRowExclusive Exclusive AccessExclusive"),
    ("Share", "RowExclusive ShareUpdateExclusive ShareRowExclusive Exclusive AccessExclusive"),
    ("ShareRowExclusive", "RowExclusive ShareUpdateExclusive Share ShareRowExclusive Exclusive AccessExclusive"),
    ("Exclusive", "RowShare RowExclusive ShareUpdateExclusive Share ShareRowExclusive Exclusive AccessExclusive"),
    (
        "AccessExclusive",
        "AccessShare RowShare RowExclusive ShareUpdateExclusive Share ShareRowExclusive Exclusive AccessExclusive",
    ),
];

fn in_the_way(wanted: &str, held: &str) -> bool {
    let (wanted, held) = (wanted.trim_end_matches("Lock"), held.trim_end_matches("Lock"));
    let (_, with) = CONFLICTS.iter().find(|(mode, _)| *mode == wanted).unwrap();
    with.split(' ').any(|mode| mode == held)
}

/// Who is asked by `pg_blocking_pids`: each waiting process, its leader if it is a parallel worker.
const WAITING: &str = "
SELECT w.pid, CASE WHEN a.backend_type = 'parallel worker' THEN a.leader_pid ELSE w.pid END,
       pg_blocking_pids(w.pid), coalesce(a.backend_type = 'startup', false)
FROM (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted) w LEFT JOIN pg_stat_activity a ON a.pid = w.pid";

/// Every lock: on what, whose, in which mode, whether it is held, by which process. Predicate locks are no locks.
const LOCKS: &str = "
SELECT ROW(l.locktype, l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid, l.classid, l.objid,
           l.objsubid)::text,
       coalesce(CASE WHEN a.backend_type = 'parallel worker' THEN a.leader_pid END::text, l.pid::text,
                (SELECT p.gid FROM pg_locks x JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
                 WHERE x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction)),
       l.mode, l.granted, l.pid
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.mode <> 'SIReadLock'";

struct Lock {
    object: String,
    party: Party,
    mode: String,
    granted: bool,
    pid: Option<i32>,
}

/// A process that waits, and what the server says of it.
struct Waiting<'a> {
    wait: &'a Lock,
    told: Vec<i32>,
    startup: bool,
}

impl Truth {
    /// What the server says now.
    pub(super) async fn ask(control: &Client) -> Self {
        let waiting = control.query(WAITING, &[]).await.unwrap();
        let locks = control.query(LOCKS, &[]).await.unwrap();
        let locks: Vec<Lock> = locks
            .iter()
            .map(|row| Lock {
                object: row.get(0),
                party: row.get(1),
                mode: row.get(2),
                granted: row.get(3),
                pid: row.get(4),
            })
            .collect();
        let mut truth = Self::default();
        let mut groups: BTreeMap<i32, Vec<Waiting<'_>>> = BTreeMap::new();
        for row in &waiting {
            let (pid, leader, told, startup): (i32, i32, Vec<i32>, bool) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let wait = locks.iter().find(|lock| lock.pid == Some(pid) && !lock.granted);
            groups.entry(leader).or_default().extend(wait.map(|wait| Waiting { wait, told, startup }));
        }
        for (leader, group) in &groups {
            truth.wait(&leader.to_string(), group, &locks);
        }
        truth
    }

    /// A session waits, or workers of it do: what the server tells of one is told of all.
    fn wait(&mut self, blocked: &str, group: &[Waiting<'_>], locks: &[Lock]) {
        self.waiters.insert(blocked.to_owned());
        let told: Vec<i32> = group.iter().flat_map(|waiting| &waiting.told).copied().collect();
        let is_held = |lock: &&Lock| {
            let is_held_from = |wait: &Lock| lock.object == wait.object && in_the_way(&wait.mode, &lock.mode);
            lock.granted && group.iter().any(|waiting| is_held_from(waiting.wait))
        };
        let holders: BTreeSet<Party> = locks.iter().filter(is_held).map(|lock| lock.party.clone()).collect();
        let mut blocking: BTreeSet<Party> = told.iter().filter(|pid| **pid != 0).map(ToString::to_string).collect();
        let prepared: BTreeSet<Party> = holders.iter().filter(|party| party.parse::<i32>().is_err()).cloned().collect();
        // One 0 for each of them, and for each worker that waits for it.
        let zeros = told.iter().filter(|pid| **pid == 0).count();
        assert!(zeros == prepared.len() || (group.len() > 1 && zeros > prepared.len()), "{prepared:?} {told:?}");
        blocking.extend(prepared);
        if group.iter().any(|waiting| waiting.startup) {
            assert_eq!(told, [0; 0], "the server knows nothing of replay");
            blocking.extend(holders.iter().cloned());
        }
        blocking.remove(blocked);
        for blocking in blocking {
            let held = holders.contains(&blocking);
            self.edges.insert((blocked.to_owned(), blocking), held);
        }
    }

    fn blockers<'a>(&'a self, party: &'a str) -> impl Iterator<Item = &'a Party> {
        self.edges.keys().filter(move |(blocked, _)| blocked == party).map(|(_, blocking)| blocking)
    }

    /// Who blocks and waits for nobody.
    pub(super) fn roots(&self) -> BTreeSet<Party> {
        let ends = self.edges.keys().map(|(_, blocking)| blocking);
        ends.filter(|party| self.blockers(party).next().is_none()).cloned().collect()
    }

    /// How far away each one is that somebody waits for, directly or not.
    fn ahead(&self, party: &str) -> BTreeMap<Party, u64> {
        let mut far = BTreeMap::new();
        let mut queue = VecDeque::from([(party.to_owned(), 0)]);
        while let Some((at, distance)) = queue.pop_front() {
            for next in self.blockers(&at) {
                if !far.contains_key(next) {
                    far.insert(next.clone(), distance + 1);
                    queue.push_back((next.clone(), distance + 1));
                }
            }
        }
        far
    }

    fn is_soft(&self, blocked: &str, blocking: &str) -> bool {
        self.edges.get(&(blocked.to_owned(), blocking.to_owned())) == Some(&false)
    }

    /// Compares an event with the truth.
    pub(super) fn judge(&self, event: &Value) -> Verdict {
        let mut verdict = Verdict::default();
        let mut told = BTreeMap::new();
        for row in event["data"].as_array().unwrap() {
            let edge = edge(row);
            if self.edges.contains_key(&edge) {
                self.judge_row(row, &edge, &mut verdict.faults);
            } else {
                verdict.false_edges.push(edge.clone());
            }
            told.insert(edge, row["blocking_granted"] == true);
        }
        for ((blocked, blocking), _) in self.edges.iter().filter(|(edge, held)| **held && !told.contains_key(edge)) {
            verdict.faults.push(format!("{blocked} waits for {blocking}, who holds it: no row"));
        }
        for waiter in &self.waiters {
            self.judge_queue(waiter, &told, &mut verdict.faults);
        }
        let summary = &event["summary"];
        if summary["edges"] != self.edges.len() || summary["waiters"] != self.waiters.len() {
            let (edges, waiters) = (self.edges.len(), self.waiters.len());
            verdict
                .faults
                .push(format!("{edges} edges, {waiters} waiters: {} {}", summary["edges"], summary["waiters"]));
        }
        self.judge_roots(summary, &mut verdict);
        verdict
    }

    fn judge_row(&self, row: &Value, (blocked, blocking): &(Party, Party), faults: &mut Vec<String>) {
        let held = !self.is_soft(blocked, blocking);
        if row["blocking_granted"] != held {
            faults.push(format!("{blocked} waits for {blocking}, holds it: {held}, told {}", row["blocking_granted"]));
        }
        let mut ahead = self.ahead(blocking);
        // Through a cycle it may come back to itself; its own distance is none.
        ahead.insert(blocking.clone(), 0);
        let ends: BTreeMap<Party, u64> = ahead.into_iter().filter(|(end, _)| self.roots().contains(end)).collect();
        let pid = |party: &Party| party.parse::<i64>().unwrap_or(0);
        let mut want: Vec<i64> = ends.keys().map(pid).collect();
        let mut got: Vec<i64> = row["root_pids"].as_array().unwrap().iter().map(|pid| pid.as_i64().unwrap()).collect();
        want.sort_unstable();
        got.sort_unstable();
        if got != want {
            faults.push(format!("{blocked} waits for {blocking}: roots {want:?}, told {got:?}"));
        }
        let depth = ends.values().min().map(|far| far + 1);
        if row["depth"].as_u64() != depth {
            faults.push(format!("{blocked} waits for {blocking}: depth {depth:?}, told {}", row["depth"]));
        }
    }

    /// Of those who only stand before a waiter one has a row, and nobody of the others stands behind that one.
    fn judge_queue(&self, waiter: &str, told: &BTreeMap<(Party, Party), bool>, faults: &mut Vec<String>) {
        let before: BTreeSet<&Party> = self.blockers(waiter).filter(|party| self.is_soft(waiter, party)).collect();
        let rows: Vec<&Party> =
            told.iter().filter(|((blocked, _), held)| blocked == waiter && !**held).map(|((_, it), _)| it).collect();
        if rows.len() != usize::from(!before.is_empty()) {
            faults.push(format!("{waiter} stands behind {before:?}: told {rows:?}"));
        }
        for nearest in rows {
            if let Some(nearer) = before.iter().find(|other| self.is_soft(other, nearest)) {
                faults.push(format!("{waiter} stands behind {nearer}, nearer than {nearest}"));
            }
        }
    }

    fn judge_roots(&self, summary: &Value, verdict: &mut Verdict) {
        let roots = summary["roots"].as_array().unwrap();
        let name = |root: &Value| root["gid"].as_str().map_or(root["pid"].to_string(), str::to_owned);
        let told: BTreeMap<Party, &Value> = roots.iter().map(|root| (name(root), &root["blocked"])).collect();
        let want = self.roots();
        verdict.missed_roots = want.iter().filter(|root| !told.contains_key(*root)).cloned().collect();
        for (root, blocked) in &told {
            let behind = self.waiters.iter().filter(|waiter| self.ahead(waiter).contains_key(root)).count();
            if !want.contains(root) || **blocked != behind {
                verdict.faults.push(format!("root {root} holds up {behind}, told {blocked}"));
            }
        }
        let order: Vec<u64> = roots.iter().map(|root| root["blocked"].as_u64().unwrap()).collect();
        if !order.is_sorted_by(|a, b| a >= b) {
            verdict.faults.push(format!("roots are not in order: {order:?}"));
        }
    }
}

fn edge(row: &Value) -> (Party, Party) {
    let blocking = match row["blocking_pid"].as_i64().unwrap() {
        0 => row["blocking_query"].as_str().unwrap().to_owned(),
        pid => pid.to_string(),
    };
    (row["blocked_pid"].to_string(), blocking)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(blocked: i32, blocking: i32, held: bool, depth: u32) -> Value {
        json!({"blocked_pid": blocked, "blocking_pid": blocking, "blocking_granted": held, "depth": depth, "root_pids": [1]})
    }

    /// Of 3 behind 2 behind 1.
    #[track_caller]
    fn check(rows: &[Value], roots: &Value, want: &Verdict) {
        let edge = |blocked: &str, blocking: &str, held| ((blocked.to_owned(), blocking.to_owned()), held);
        let truth = Truth {
            edges: BTreeMap::from([edge("2", "1", true), edge("3", "2", false)]),
            waiters: BTreeSet::from(["2".into(), "3".into()]),
        };
        let event = json!({"data": rows, "summary": {"edges": 2, "waiters": 2, "roots": roots}});
        assert_eq!(truth.judge(&event), *want);
    }

    #[test]
    fn the_judge_sees_what_is_false_and_what_is_missing() {
        let right = [row(2, 1, true, 1), row(3, 2, false, 2)];
        let root = json!([{"pid": 1, "gid": null, "blocked": 2}]);
        let fault = |text: &str| Verdict { faults: vec![text.to_owned()], ..Verdict::default() };
        check(&right, &root, &Verdict::default());
        let wrong = Verdict { false_edges: vec![("3".into(), "1".into())], ..Verdict::default() };
        check(&[right[0].clone(), right[1].clone(), row(3, 1, true, 1)], &root, &wrong);
        check(&right, &json!([]), &Verdict { missed_roots: vec!["1".into()], ..Verdict::default() });
        check(&right[1..], &root, &fault("2 waits for 1, who holds it: no row"));
        check(&right[..1], &root, &fault("3 stands behind {\"2\"}: told []"));
        check(&[row(2, 1, true, 3), right[1].clone()], &root, &fault("2 waits for 1: depth Some(1), told 3"));
        let few = json!([{"pid": 1, "gid": null, "blocked": 1}]);
        check(&right, &few, &fault("root 1 holds up 2, told 1"));
    }
}

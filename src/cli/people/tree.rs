//! Who blocks whom, as a tree: those who wait for nobody at the top, and below each one who waits for it. Pure.
//!
//! Who waits for two stands below both. A cycle, which the server ends soon, is entered at one place and told as such.

use std::collections::BTreeSet;

use serde_json::Value;

use super::value::{cut, plain, span};

/// The lines of the tree, cut to a width.
pub(super) fn lines(edges: &[Value], width: usize) -> String {
    let waiting: BTreeSet<String> = edges.iter().map(blocked).collect();
    let mut tree = Tree { edges, width, told: BTreeSet::new(), out: String::new() };
    let mut tops: Vec<&Value> = Vec::new();
    // First the roots, then one of each cycle: whoever is not told by then.
    for edge in edges.iter().filter(|edge| !waiting.contains(&blocking(edge))) {
        if !tops.iter().any(|top| blocking(top) == blocking(edge)) {
            tops.push(edge);
        }
    }
    for top in tops {
        tree.top(top);
    }
    for edge in edges {
        if !tree.told.contains(&blocking(edge)) {
            tree.top(edge);
        }
    }
    tree.out
}

/// Prepared transactions all have pid 0: their gid tells them apart.
fn blocking(edge: &Value) -> String {
    match field(edge, "blocking_pid").as_str() {
        "0" => format!("0 {}", field(edge, "blocking_query")),
        pid => pid.to_owned(),
    }
}

fn blocked(edge: &Value) -> String {
    field(edge, "blocked_pid")
}

fn field(edge: &Value, name: &str) -> String {
    edge.get(name).map(plain).unwrap_or_default()
}

struct Tree<'a> {
    edges: &'a [Value],
    width: usize,
    told: BTreeSet<String>,
    out: String,
}

impl Tree<'_> {
    fn top(&mut self, edge: &Value) {
        let who = match field(edge, "blocking_pid").as_str() {
            "0" => format!("prepared transaction {}", field(edge, "blocking_query")),
            pid => format!(
                "{pid} {} {} ({}): {}",
                field(edge, "blocking_user"),
                field(edge, "blocking_application"),
                field(edge, "blocking_state"),
                field(edge, "blocking_query")
            ),
        };
        self.line(&who);
        let mut way = vec![blocking(edge)];
        self.below("", &mut way);
    }

    /// Everybody who waits for the last one on the way.
    fn below(&mut self, indent: &str, way: &mut Vec<String>) {
        let Some(blocker) = way.last().cloned() else { return };
        self.told.insert(blocker.clone());
        let waiters: Vec<&Value> = self.edges.iter().filter(|edge| blocking(edge) == blocker).collect();
        for (at, edge) in waiters.iter().enumerate() {
            let last = at + 1 == waiters.len();
            let own = blocked(edge);
            let again = match (way.contains(&own), self.told.contains(&own)) {
                (true, _) => " (a cycle)",
                (false, true) => " (see above)",
                (false, false) => "",
            };
            self.line(&format!("{indent}{} {}{again}", if last { "└─" } else { "├─" }, waits(edge)));
            if !again.is_empty() {
                continue;
            }
            way.push(own);
            self.below(&format!("{indent}{}", if last { "   " } else { "│  " }), way);
            way.pop();
        }
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(&cut(text, self.width));
        self.out.push('\n');
    }
}

fn waits(edge: &Value) -> String {
    let time = edge.get("wait_ms").and_then(Value::as_f64);
    let time = time.map(|ms| format!(" {}", span(ms / 1e3))).unwrap_or_default();
    let relation = match field(edge, "relation").as_str() {
        "-" | "" => String::new(),
        relation => format!(" on {relation}"),
    };
    let queue = if edge.get("blocking_granted") == Some(&Value::Bool(false)) { " behind it in the queue" } else { "" };
    format!(
        "{} {} {} waits{time} for {} ({}){relation}{queue}: {}",
        blocked(edge),
        field(edge, "blocked_user"),
        field(edge, "blocked_application"),
        field(edge, "blocked_mode"),
        field(edge, "locktype"),
        field(edge, "blocked_query"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(edges: &[(i32, i32)], want: &[&str]) {
        let edge = |(blocked, blocking): &(i32, i32)| {
            json!({"blocked_pid": blocked, "blocking_pid": blocking, "blocked_user": "u", "blocked_application": "a",
                   "blocking_user": "v", "blocking_application": "b", "blocking_state": "active",
                   "blocking_query": "q", "blocked_query": "w", "blocked_mode": "ShareLock", "locktype": "tuple",
                   "relation": null, "wait_ms": 1.0, "blocking_granted": true})
        };
        let got = lines(&edges.iter().map(edge).collect::<Vec<_>>(), 200);
        let short = got.replace(" u a waits 0.0 s for ShareLock (tuple): w", "").replace(" v b (active): q", "");
        assert_eq!(short.lines().collect::<Vec<_>>(), want, "{got}");
    }

    #[test]
    fn who_waits_stands_below_whom_it_waits_for() {
        check(&[], &[]);
        check(&[(2, 1), (3, 2), (4, 1)], &["1", "├─ 2", "│  └─ 3", "└─ 4"]);
        check(&[(2, 0)], &["prepared transaction q", "└─ 2"]);
    }

    #[test]
    fn who_waits_for_two_stands_below_both_and_is_unfolded_once() {
        check(&[(3, 1), (3, 2), (4, 3)], &["1", "└─ 3", "   └─ 4", "2", "└─ 3 (see above)"]);
    }

    #[test]
    fn a_cycle_ends() {
        check(&[(1, 2), (2, 1)], &["2", "└─ 1", "   └─ 2 (a cycle)"]);
        check(&[(1, 2), (2, 1), (3, 1)], &["2", "└─ 1", "   ├─ 2 (a cycle)", "   └─ 3"]);
    }
}

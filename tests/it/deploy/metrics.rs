//! Alerts and dashboard: their syntax, when they ring, and that every metric that they name is one of the agent's.

use std::{collections::BTreeSet, fs, process::Command};

use regex::Regex;
use serde_json::{Value, json};

use super::{file, read};
use crate::rig::{Folder, must};

#[test]
fn each_alert_rings_when_it_should_and_not_before() {
    let folder = file("prometheus");
    must(Command::new("promtool").args(["check", "rules", "alerts.yml"]).current_dir(&folder));
    must(Command::new("promtool").args(["test", "rules", "alerts_test.yml"]).current_dir(&folder));
    let (alerts, tests) = (read("prometheus/alerts.yml"), read("prometheus/alerts_test.yml"));
    for name in captures("alert: (\\w+)", &alerts) {
        assert!(tests.contains(&format!("\"{name}\"")) || tests.contains(&format!("alertname: {name}\n")), "{name}");
    }
}

#[test]
fn each_query_of_the_dashboard_is_one_and_says_what_it_shows() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboard.json")).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 30, "{}", queries.len());
    // promtool judges the syntax of rules; Grafana's variables are no syntax of Prometheus.
    let plain =
        |query: &String| query.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*");
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(at, query)| json!({"record": format!("query:{at}"), "expr": plain(query)}))
        .collect();
    let folder = Folder::new("dashboard");
    let path = folder.path().join("rules.yml");
    fs::write(&path, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    must(Command::new("promtool").args(["check", "rules", "--lint=none"]).arg(path));
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    for panel in panels {
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(place[0] + place[2] <= 24, "{}", panel["title"]);
        assert!(!panel["title"].as_str().unwrap().is_empty());
    }
}

/// What the agent tells at /metrics, as Prometheus keeps it; `unit` asks a running one.
pub(super) const METRICS: &[&str] = &[
    "build_info",
    "start_time_seconds",
    "healthy",
    "ready",
    "loop_busy_seconds",
    "resident_memory_bytes",
    "cpu_seconds_total",
    "collector_runs_total",
    "collector_failures_total",
    "collector_skips_total",
    "collector_database_seconds_total",
    "collector_last_success_timestamp_seconds",
    "collector_state",
    "collector_interval_seconds",
    "database_reachable",
    "database_connections",
    "channel_samples",
    "channel_capacity_samples",
    "numbered_messages_total",
    "spool_messages",
    "spool_bytes",
    "spool_limit_bytes",
    "spool_oldest_age_seconds",
    "spool_lasts_seconds",
    "spool_troubled",
    "broker_connected",
    "broker_reconnects_total",
    "published_messages_total",
    "confirmed_messages_total",
    "returned_messages_total",
    "nacked_messages_total",
    "confirm_seconds_bucket",
    "delivery_troubled",
    "lost_messages_total",
];

#[test]
fn each_metric_that_they_name_is_the_agents_and_none_is_left_unseen() {
    let (alerts, dashboard) = (read("prometheus/alerts.yml"), read("grafana/dashboard.json"));
    let known: BTreeSet<String> = METRICS.iter().map(|&name| name.to_owned()).collect();
    let named =
        captures(r"\bpostgres_agent_(\w+)", &format!("{alerts}{dashboard}{}", read("prometheus/alerts_test.yml")));
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), [""; 0]);
    let shown = captures(r"\bpostgres_agent_(\w+)", &dashboard);
    assert_eq!(known.difference(&shown).collect::<Vec<_>>(), [""; 0], "what the agent tells, the dashboard shows");
}

/// All queries for metrics; those of variables are Grafana's own.
fn queries(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = map.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(map.values().flat_map(queries)).collect()
        }
        Value::Array(items) => items.iter().flat_map(queries).collect(),
        _ => Vec::new(),
    }
}

fn captures(pattern: &str, text: &str) -> BTreeSet<String> {
    Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
}

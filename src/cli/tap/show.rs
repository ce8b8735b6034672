//! What `tap` prints: messages and the audit's verdict, for people or for machines.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, IsTerminal},
};

use serde_json::{Value, json};

use super::{
    super::{Failure, Outcome, complain, people, say},
    audit::Verdict,
};
use crate::amqp::consumer::Message;

/// One message.
pub(super) fn message(message: &Message, body: &Value, json: bool) -> String {
    if json {
        let properties = json!({
            "routing_key": message.routing_key,
            "message_id": message.message_id,
            "type": message.kind,
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "headers": {
                "agent_id": message.agent_id,
                "run_id": message.run_id,
                "collector": message.collector,
                "seq": message.seq,
                "events": message.events,
                "replayed": message.replayed,
            },
            "body": body,
        });
        return format!("{properties}\n");
    }
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (bold, plain) = if colours { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let replayed = if message.replayed == Some(true) { "  replayed" } else { "" };
    let server = body
        .get("server")
        .and_then(|server| server.get("version_num"))
        .map_or(String::new(), |version| if version.is_null() { String::new() } else { format!("  server {version}") });
    let mut out = format!(
        "{bold}{}{plain}  seq {}  agent {}  run {}{server}{replayed}\n",
        message.collector.as_deref().unwrap_or("-"),
        message.seq.map_or("-".into(), |seq| seq.to_string()),
        text("agent_name"),
        text("run_id"),
    );
    let width = people::width().saturating_sub(INDENT.len());
    for line in people::message(body, width).lines().filter(|line| !line.is_empty()) {
        out.extend([INDENT, line, "\n"]);
    }
    out
}

const INDENT: &str = "  ";

/// What the audit found. A gap is a failure.
pub(super) fn verdict(verdict: &Verdict, json: bool) -> Outcome {
    let total = |count: fn(&super::audit::Finding) -> u64| verdict.findings.iter().map(count).sum::<u64>();
    let (messages, duplicates) = (total(|finding| finding.messages), total(|finding| finding.duplicates));
    let (gaps, declared) = (total(|finding| finding.gaps), total(|finding| finding.declared));
    let (waiting, conflicts) = (total(|finding| finding.waiting), total(|finding| finding.conflicts));
    if json {
        for finding in &verdict.findings {
            say(&format!("{}\n", json!({ "stream": finding })))?;
        }
        let summary = json!({
            "messages": messages, "duplicates": duplicates, "gaps": gaps, "declared": declared, "waiting": waiting,
            "conflicts": conflicts, "not_provable": verdict.not_provable, "complete": verdict.is_complete(),
        });
        say(&format!("{}\n", json!({ "audit": summary })))?;
    } else {
        say(&table(verdict))?;
        if verdict.findings.is_empty() {
            say("not provable: no message of an agent was received\n")?;
        }
        for agent in &verdict.not_provable {
            say(&format!("agent {agent}: not provable, fewer than two of its statuses were received\n"))?;
        }
        say(&format!(
            "{messages} messages, {duplicates} duplicates, {gaps} gaps, {declared} declared lost, {waiting} still waiting\n"
        ))?;
    }
    if conflicts > 0 {
        complain(&format!("{conflicts} deliveries have other contents than the message whose id they bear"));
    }
    if verdict.is_broken() { Err(Failure::Told) } else { Ok(()) }
}

fn table(verdict: &Verdict) -> String {
    let mut out = String::new();
    let mut runs = BTreeSet::new();
    for finding in &verdict.findings {
        if runs.insert((&finding.agent_id, &finding.run_id)) {
            let _infallible = writeln!(out, "agent {}  run {}", finding.agent_id, finding.run_id);
            let _infallible = writeln!(
                out,
                "  {:<16} {:>8} {:>8} {:>8} {:>8} {:>10} {:>6} {:>8} {:>7}",
                "collector", "first", "last", "messages", "events", "duplicates", "gaps", "declared", "waiting"
            );
        }
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let _infallible = writeln!(
            out,
            "  {:<16} {:>8} {:>8} {:>8} {:>8} {:>10} {:>6} {:>8} {:>7}",
            finding.collector,
            number(finding.first_seq),
            number(finding.last_seq),
            finding.messages,
            finding.events,
            finding.duplicates,
            finding.gaps,
            finding.declared,
            finding.waiting
        );
        for (first, last) in finding.missing.iter().take(10) {
            let range = if first == last { first.to_string() } else { format!("{first} to {last}") };
            let _infallible = writeln!(out, "    missing: {range}");
        }
    }
    out
}

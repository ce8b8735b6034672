//! `spool status`: what waits, by collector.

use std::{fmt::Write as _, path::Path};

use serde_json::{Map, Value, json};

use super::{
    super::{people::size, say},
    Outcome, failed, head_json, headline, remarks, remarks_json,
};
use crate::{
    event::status::{SpoolStatus, Waiting},
    spool::{log::Log, outside, outside::Outside},
};

pub(super) fn run(dir: &Path, json: bool) -> Outcome {
    let outside = outside::look(dir).map_err(failed)?;
    if json { say(&format!("{}\n", object(dir, &outside))) } else { say(&text(dir, &outside)) }
}

fn of(log: &Log) -> SpoolStatus {
    SpoolStatus { messages: log.messages(), bytes: log.bytes(), oldest_at: log.oldest_at(), ..SpoolStatus::default() }
}

fn total(outside: &Outside) -> SpoolStatus {
    let logs = || outside.logs.values().map(of);
    SpoolStatus {
        messages: logs().map(|log| log.messages).sum(),
        bytes: logs().map(|log| log.bytes).sum(),
        oldest_at: logs().filter_map(|log| log.oldest_at).min(),
        ..SpoolStatus::default()
    }
}

/// The names are those of `agent_status`.
fn object(dir: &Path, outside: &Outside) -> Value {
    let brief = |status: SpoolStatus| json!({ "messages": status.messages, "bytes": status.bytes, "oldest_at": status.oldest_at });
    let collectors: Map<_, _> = outside.logs.iter().map(|(name, log)| (name.to_string(), brief(of(log)))).collect();
    let waiting: Vec<Waiting> = outside.logs.values().flat_map(Log::waiting).collect();
    let all = brief(total(outside));
    let parts =
        [("collectors", json!(collectors)), ("waiting", json!(waiting))].map(|(name, part)| (name.to_owned(), part));
    let mut object = head_json(dir, outside);
    object.extend(all.as_object().cloned().unwrap_or_default());
    object.extend(parts);
    object.extend(remarks_json(outside));
    Value::Object(object)
}

fn text(dir: &Path, outside: &Outside) -> String {
    let mut rows = vec![["collector", "waiting", "size", "oldest"].map(str::to_owned)];
    let row = |name: &str, status: &SpoolStatus| {
        let oldest = status.oldest_at.map_or_else(|| "-".to_owned(), |time| time.to_string());
        [name.to_owned(), status.messages.to_string(), size(status.bytes), oldest]
    };
    rows.extend(outside.logs.iter().map(|(name, log)| row(name, &of(log))));
    rows.push(row("all", &total(outside)));
    let mut out = headline(dir, outside);
    for [name, waiting, size, oldest] in rows {
        let _infallible = writeln!(out, "  {name:<16} {waiting:>10} {size:>12}  {oldest}");
    }
    out + &remarks(outside)
}

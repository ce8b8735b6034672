//! Messages as tables that a person likes to read: for `collect` and `tap`. Pure but for the terminal's width.

mod tree;
mod value;

use std::fmt::Write;

use serde_json::{Map, Value};

use value::{clean, cut, plain, shown};
pub(super) use value::{size, span};

/// The columns that say most, for those that have too many for a screen; of others all that are not nil.
const COLUMNS: &[(&str, &[&str])] = &[
    (
        "pg_activity",
        &["pid", "usename", "datname", "application_name", "state", "wait_event", XACT_AGE, "blocked_by", "query"],
    ),
    (
        "pg_statements",
        &["queryid", "usename", "datname", "calls", "total_exec_time", SHARE, "mean_exec_time", "rows", "query"],
    ),
];

/// How old a transaction is, in the place of when it began.
const XACT_AGE: &str = "xact_age";
/// How much of the time of all rows that are told a statement took.
const SHARE: &str = "%";

/// Where stdout is no terminal, such as a pager's pipe.
const WIDTH: usize = 160;

/// A column that is not the last one takes no more.
const CELL_MAX: usize = 36;

/// The width of the terminal behind stdout.
pub(super) fn width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(WIDTH, |(width, _)| usize::from(width.0))
}

/// A message for people.
pub(super) fn message(body: &Value, width: usize) -> String {
    let name = plain(body.get("collector").unwrap_or(&Value::Null));
    let mut out = String::new();
    for event in body.get("events").and_then(Value::as_array).into_iter().flatten() {
        out.push_str(&title(&name, event));
        match event.get("data") {
            Some(Value::Array(rows)) if name == "pg_locks" => out.push_str(&tree::lines(rows, width)),
            Some(Value::Array(rows)) => out.push_str(&table(&name, &derived(&name, rows, event), width)),
            Some(Value::Object(map)) => out.push_str(&sections(map, width)),
            _ => {}
        }
        out.push('\n');
    }
    out
}

/// Rows with what a person would have to reckon from them.
fn derived(name: &str, rows: &[Value], event: &Value) -> Vec<Value> {
    let time = |value: Option<&Value>| value?.as_str()?.parse::<jiff::Timestamp>().ok();
    let now = time(event.get("collected_at"));
    let spent = |row: &Value| row.get("total_exec_time").and_then(Value::as_f64).unwrap_or(0.0);
    let all = rows.iter().map(spent).sum::<f64>().max(f64::MIN_POSITIVE);
    let more = |row: &Value| match name {
        "pg_activity" => {
            let age = now?.duration_since(time(row.get("xact_start"))?);
            Some((XACT_AGE, Value::from(span(age.as_secs_f64()))))
        }
        "pg_statements" => Some((SHARE, Value::from(100.0 * spent(row) / all))),
        _ => None,
    };
    let with = |row: &Value| {
        let mut whole = row.clone();
        if let (Some(fields), Some((column, value))) = (whole.as_object_mut(), more(row)) {
            fields.insert(column.into(), value);
        }
        whole
    };
    rows.iter().map(with).collect()
}

fn title(name: &str, event: &Value) -> String {
    let count = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
    let rows = event.get("data").and_then(Value::as_array).map_or(String::new(), |rows| match rows.len() {
        0 => ", nothing".into(),
        1 => ", 1 row".into(),
        n => format!(", {n} rows"),
    });
    let more = |what: &str| match count(what) {
        0 => String::new(),
        n => format!(", {n} {what}"),
    };
    let at = event.get("collected_at").map(plain).unwrap_or_default();
    let duration = count("duration_us") as f64 / 1e3;
    format!("{name} at {at}{rows}{}{}, in {duration:.1} ms\n", more("omitted"), more("hidden"))
}

/// Aligned columns under their names, numbers to the right, the last one as long as there is room.
fn table(name: &str, rows: &[Value], width: usize) -> String {
    let columns = columns(name, rows);
    let cells: Vec<Vec<(String, bool)>> = rows.iter().map(|row| cells(row, &columns)).collect();
    let widest = |at: usize, column: &str| {
        let cells = cells.iter().filter_map(|row| row.get(at)).map(|(cell, _)| cell.chars().count());
        cells.max().unwrap_or(0).max(column.chars().count()).min(CELL_MAX)
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(at, column)| widest(at, column)).collect();
    let line = |cells: &[(String, bool)]| {
        let mut line = String::new();
        for (at, ((cell, right), room)) in cells.iter().zip(&widths).enumerate() {
            let last = at + 1 == cells.len();
            let cell = if last { cell.clone() } else { cut(cell, *room) };
            let gap = if at > 0 { "  " } else { "" };
            // Writing to a String cannot fail.
            let _infallible = match (last, right) {
                (true, false) => write!(line, "{gap}{cell}"),
                (_, true) => write!(line, "{gap}{cell:>room$}"),
                (false, false) => write!(line, "{gap}{cell:<room$}"),
            };
        }
        cut(line.trim_end(), width) + "\n"
    };
    if rows.is_empty() {
        return String::new();
    }
    let head: Vec<_> = columns.iter().map(|column| ((*column).to_owned(), false)).collect();
    let mut rule: Vec<_> = widths.iter().map(|width| ("-".repeat(*width), false)).collect();
    if let (Some(last), Some(column)) = (rule.last_mut(), columns.last()) {
        last.0 = "-".repeat(column.chars().count());
    }
    line(&head) + &line(&rule) + &cells.iter().map(|row| line(row)).collect::<String>()
}

fn columns<'a>(name: &str, rows: &'a [Value]) -> Vec<&'a str> {
    let chosen = COLUMNS.iter().find(|(collector, _)| *collector == name).map(|(_, columns)| *columns);
    // Not only of the first row: what was reckoned is not in each.
    let mut all: Vec<&str> = Vec::new();
    for column in rows.iter().filter_map(Value::as_object).flat_map(Map::keys) {
        if !all.contains(&column.as_str()) {
            all.push(column);
        }
    }
    let told = |column: &&str| rows.iter().any(|row| row.get(column).is_some_and(|value| !value.is_null()));
    let kept = |column: &&str| chosen.is_none_or(|chosen| chosen.contains(column));
    let mut columns: Vec<_> = all.into_iter().filter(kept).filter(told).collect();
    columns.sort_by_key(|column| chosen.and_then(|chosen| chosen.iter().position(|other| other == column)));
    columns
}

fn cells(row: &Value, columns: &[&str]) -> Vec<(String, bool)> {
    let cell = |column: &&str| {
        let value = row.get(column).unwrap_or(&Value::Null);
        (shown(column, value), value.is_number())
    };
    columns.iter().map(cell).collect()
}

/// A map by its parts: those that are maps themselves in lines of their own.
fn sections(map: &Map<String, Value>, width: usize) -> String {
    let mut out = String::new();
    let room = map.keys().map(|key| key.chars().count()).max().unwrap_or(0);
    for (key, value) in map {
        let nested = value.as_object().filter(|inner| inner.values().any(Value::is_object));
        let lines: Vec<String> = match nested {
            Some(parts) => parts.iter().map(|(name, part)| format!("{}: {}", clean(name), shown(name, part))).collect(),
            None => vec![shown(key, value)],
        };
        for (at, line) in lines.iter().enumerate() {
            let key = if at == 0 { key.as_str() } else { "" };
            out.push_str(&(cut(&format!("  {key:<room$}  {line}"), width) + "\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(collector: &str, data: &Value, width: usize, want: &[&str]) {
        let event = json!({"collected_at": "T", "duration_us": 1500, "omitted": 0, "hidden": 2, "data": data});
        let got = message(&json!({"collector": collector, "events": [event]}), width);
        assert_eq!(got.lines().collect::<Vec<_>>(), want, "{got}");
    }

    #[test]
    fn rows_are_aligned_and_cut() {
        let rows = json!([
            {"pid": 7, "other": 1, "state": null, "usename": "shop", "query": "SELECT\n  1\u{1b}[2J"},
            {"pid": 4242, "other": 2, "state": null, "usename": "a", "query": "x"},
        ]);
        check(
            "pg_activity",
            &rows,
            24,
            &[
                "pg_activity at T, 2 rows, 2 hidden, in 1.5 ms",
                "pid   usename  query",
                "----  -------  -----",
                "   7  shop     SELECT 1…",
                "4242  a        x",
                "",
            ],
        );
        check("pg_activity", &json!([]), 24, &["pg_activity at T, nothing, 2 hidden, in 1.5 ms", ""]);
    }

    #[test]
    fn what_a_person_would_have_to_reckon_is_there() {
        let rows = json!([
            {"queryid": "1", "total_exec_time": 30.0, "query": "a"},
            {"queryid": "2", "total_exec_time": 10.0, "query": "b"},
        ]);
        let want = ["queryid  total_exec_time  %     query", "-------  ---------------  ----  -----"];
        let got = table("pg_statements", &derived("pg_statements", rows.as_array().expect("rows"), &json!({})), 80);
        let lines: Vec<_> = got.lines().collect();
        assert_eq!(lines.get(..2), Some(&want[..]), "{got}");
        assert!(got.contains("30.0  75.0  a") && got.contains("10.0  25.0  b"), "{got}");
        let event = json!({"collected_at": "2026-11-26T10:01:00.000000Z"});
        let rows =
            [json!({"pid": 1, "xact_start": "2026-11-26T09:00:00.000000Z"}), json!({"pid": 2, "xact_start": null})];
        let got = table("pg_activity", &derived("pg_activity", &rows, &event), 80);
        assert_eq!(got.lines().collect::<Vec<_>>(), ["pid  xact_age", "---  --------", "  1  61 min", "  2  -"]);
    }

    #[test]
    fn a_map_is_told_by_its_parts() {
        let map = json!({
            "cpu": {"percent": 12.34, "count": 2},
            "memory": {"total": 1_610_612_736_u64, "free": null},
            "disk_usage": {"/": {"total": 2048}, "/x": {"total": 10}},
        });
        check(
            "system_metrics",
            &map,
            80,
            &[
                "system_metrics at T, 2 hidden, in 1.5 ms",
                "  cpu         percent 12.3, count 2",
                "  memory      total 1.5 GiB",
                "  disk_usage  /: total 2.0 KiB",
                "              /x: total 10 B",
                "",
            ],
        );
    }
}

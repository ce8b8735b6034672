//! Values of a message as texts for people: one line each, and cut where they must be. Pure.
//!
//! What comes from the server may hold anything: control characters never reach the terminal.

use serde_json::Value;

/// A value for people: bytes with their unit, times without their date, nil as a dash.
pub(super) fn shown(key: &str, value: &Value) -> String {
    const BYTES: &[&str] = &["total", "available", "used", "free", "buffers", "cached"];
    let bytes = BYTES.contains(&key) || key.contains("bytes");
    match value {
        Value::Null => "-".into(),
        Value::Number(number) => match number.as_u64() {
            Some(number) if bytes => size(number),
            Some(number) => number.to_string(),
            None => number.as_f64().map_or_else(|| number.to_string(), |number| format!("{number:.1}")),
        },
        Value::Array(items) => items.iter().map(|item| shown(key, item)).collect::<Vec<_>>().join(" "),
        Value::Object(map) => {
            let pairs = map.iter().filter(|(_, value)| !value.is_null());
            let pairs = pairs.map(|(key, value)| format!("{} {}", clean(key), shown(key, value)));
            pairs.collect::<Vec<_>>().join(", ")
        }
        other => plain(other),
    }
}

/// Bytes, in the largest unit that fits.
pub(in crate::cli) fn size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// A time span in seconds, in the unit that a person would take.
pub(in crate::cli) fn span(seconds: f64) -> String {
    match seconds {
        ..0.0 => "0 s".into(),
        ..10.0 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// A value as one line of text.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// One line, and nothing that a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A text cut to so many characters, the last of which then is an ellipsis.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

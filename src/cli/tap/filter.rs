//! Which rows of a message bear a correlation id. Pure.

use serde_json::Value;

/// Leaves only what bears the id: rows of data, and roots in the summary of locks. False if nothing does.
pub(super) fn keep(body: &mut Value, id: &str) -> bool {
    let mut found = false;
    for event in body.get_mut("events").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rows) = event.get_mut("data").and_then(Value::as_array_mut) {
            rows.retain(|row| bears(row, id));
            found |= !rows.is_empty();
        }
        if let Some(roots) = event.pointer_mut("/summary/roots").and_then(Value::as_array_mut) {
            roots.retain(|root| bears(root, id));
            found |= !roots.is_empty();
        }
    }
    found
}

/// Whether one of its ids is this one, whoever of those in the row bears it.
fn bears(row: &Value, id: &str) -> bool {
    let ids = row.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("correlation_id"));
    ids.into_iter().any(|(_, value)| value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(id)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_bears_the_id_is_left() {
        let one = "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d";
        let body = json!({ "events": [{
            "summary": { "waiters": 2, "roots": [{ "pid": 1, "correlation_id": one }, { "pid": 9, "correlation_id": null }] },
            "data": [
                { "blocked_pid": 2, "blocked_correlation_id": null, "blocking_correlation_id": one },
                { "blocked_pid": 3, "blocked_correlation_id": "other", "blocking_correlation_id": null },
            ],
        }] });
        let mut kept = body.clone();
        assert!(keep(&mut kept, &one.to_uppercase()));
        assert_eq!(kept["events"][0]["data"].as_array().map(Vec::len), Some(1));
        assert_eq!(
            kept["events"][0]["summary"],
            json!({ "waiters": 2, "roots": [{ "pid": 1, "correlation_id": one }] })
        );
        assert!(!keep(&mut body.clone(), "nobody's"));
    }
}

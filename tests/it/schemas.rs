//! The files in schemas/ are those of the code: the JSON Schema of each collector's message, and one golden message
//! each, as bytes and as JSON. `UPDATE=1 cargo test schemas` writes them anew.
//!
//! A schema describes JSON and the wire is MessagePack, so only bytes that were really encoded prove it.

mod golden;

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use postgres_agent::collectors;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

/// A file of schemas/ is what the code makes, or is made so where that is asked for.
#[track_caller]
fn check(name: &str, made: &[u8]) {
    let path = folder().join(name);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, made).expect("schemas/ can be written");
    }
    let kept = fs::read(&path).unwrap_or_default();
    assert!(
        kept == made,
        "schemas/{name} is not what the code makes. If the change is meant, see whether old consumers can still read it \
         (else VERSION grows), run UPDATE=1 cargo test schemas, and look at the difference.\n{}",
        first_difference(&String::from_utf8_lossy(&kept), &String::from_utf8_lossy(made))
    );
}

fn first_difference(kept: &str, made: &str) -> String {
    let mut kept = kept.lines();
    for (number, made) in (1..).zip(made.lines()) {
        let kept = kept.next().unwrap_or("(end)");
        if kept != made {
            return format!("line {number}\n  kept: {kept}\n  made: {made}");
        }
    }
    format!("behind the end of what is made: {}", kept.next().unwrap_or("nothing"))
}

fn pretty(value: &Value) -> Vec<u8> {
    (serde_json::to_string_pretty(value).expect("JSON") + "\n").into_bytes()
}

fn decoded(bytes: &[u8]) -> Value {
    rmp_serde::from_slice(bytes).expect("MessagePack with string keys")
}

/// Where a message contradicts its collector's schema, and by which keyword.
pub(crate) fn contradictions(collector: &str, message: &Value) -> Vec<String> {
    let entry = collectors::ALL.iter().find(|entry| entry.name == collector).expect("a collector");
    let schema = entry.schema().to_value();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
    let errors = validator.iter_errors(message);
    errors.map(|error| format!("{} {}", error.instance_path(), error.schema_path())).collect()
}

#[test]
fn the_schemas_are_those_of_the_code() {
    for entry in collectors::ALL {
        check(&format!("{}.json", entry.name), &pretty(&entry.schema().to_value()));
    }
}

#[test]
fn the_golden_messages_are_what_the_code_sends_and_keep_to_their_schemas() {
    for entry in collectors::ALL {
        let bytes = golden::message(entry.name);
        let message = decoded(&bytes);
        assert_eq!(contradictions(entry.name, &message), [""; 0], "{}", entry.name);
        check(&format!("golden/{}.msgpack", entry.name), &bytes);
        check(&format!("golden/{}.json", entry.name), &pretty(&message));
    }
}

#[test]
fn nothing_else_lies_in_schemas() {
    let names = collectors::ALL.iter().map(|entry| entry.name);
    let made = |name: &str| [format!("{name}.json"), format!("golden/{name}.json"), format!("golden/{name}.msgpack")];
    let want: BTreeSet<_> = names.flat_map(made).collect();
    let files = |below: &str| {
        let entries = fs::read_dir(folder().join(below)).expect("schemas/").map(|entry| entry.expect("an entry"));
        let files = entries.filter(|entry| entry.file_type().expect("a type").is_file());
        files.map(|file| format!("{below}{}", file.file_name().to_string_lossy())).collect::<BTreeSet<_>>()
    };
    let got: BTreeSet<_> = files("").into_iter().chain(files("golden/")).collect();
    assert_eq!(got, want);
}

#[test]
fn every_field_is_described() {
    fn walk(value: &Value, path: &str, bare: &mut Vec<String>) {
        if let Some(Value::Object(properties)) = value.get("properties") {
            for (name, field) in properties {
                let described = field["description"].as_str().is_some_and(|text| text.len() > 3);
                if !described {
                    bare.push(format!("{path}/{name}"));
                }
            }
        }
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, field)| walk(field, &format!("{path}/{name}"), bare));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, path, bare)),
            _ => {}
        }
    }
    let mut bare = Vec::new();
    for entry in collectors::ALL {
        walk(&entry.schema().to_value(), entry.name, &mut bare);
    }
    assert_eq!(bare, [""; 0], "fields without a doc comment");
}

#[test]
fn every_field_is_required_because_nil_is_never_left_out() {
    for entry in collectors::ALL {
        let message = decoded(&golden::message(entry.name));
        for pointer in ["", "/events/0"] {
            let fields: Vec<_> = message.pointer(pointer).expect("a map").as_object().expect("a map").keys().collect();
            for field in fields {
                let mut broken = message.clone();
                broken.pointer_mut(pointer).expect("a map").as_object_mut().expect("a map").remove(field);
                assert!(!contradictions(entry.name, &broken).is_empty(), "{} without {pointer}/{field}", entry.name);
            }
        }
    }
}

/// A golden message with one thing changed contradicts its schema at that place.
#[track_caller]
fn check_wrong(collector: &str, pointer: &str, value: Value) {
    let mut message = decoded(&golden::message(collector));
    *message.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is in the golden message")) = value;
    let got = contradictions(collector, &message);
    // A place under a choice of types is told by the choice itself; one of a map's values by its own place.
    let told = |at: &str| pointer.starts_with(at) || at.starts_with(pointer);
    assert!(got.iter().any(|line| told(line.split(' ').next().unwrap())), "{pointer}: {got:?}");
}

#[test]
fn what_is_no_message_of_ours_is_refused() {
    for entry in collectors::ALL {
        check_wrong(entry.name, "/collector", json!("other"));
        check_wrong(entry.name, "/schema_version", json!(entry.version + 1));
        check_wrong(entry.name, "/seq", json!(0));
        check_wrong(entry.name, "/seq", json!("1"));
        check_wrong(entry.name, "/run_id", Value::Null);
        check_wrong(entry.name, "/labels", json!({"env": 1}));
        check_wrong(entry.name, "/events", json!([]));
        check_wrong(entry.name, "/events/0/collected_at", json!(1_700_000_000));
        check_wrong(entry.name, "/events/0/collected_at", json!("yesterday"));
        check_wrong(entry.name, "/events/0/omitted", json!(-1));
        check_wrong(entry.name, "/events/0/data", json!(3));
    }
    check_wrong("agent_status", "/events/0/data/event", json!("resting"));
    check_wrong("agent_status", "/events/0/data/lost/0/reason", json!("unknown"));
    check_wrong("agent_status", "/events/0/data/waiting/0/first_seq", json!(1.5));
}

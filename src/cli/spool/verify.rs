//! `spool verify`: is every record sound?

use std::{fmt::Write as _, path::Path};

use serde_json::{Value, json};

use super::{
    super::{Failure, people::size, say},
    Outcome, failed, head_json, headline,
    progress::{Progress, Unit},
    remarks, remarks_json,
};
use crate::spool::outside::{self, Outside};

pub(super) fn run(dir: &Path, json: bool) -> Outcome {
    let bytes = outside::bytes(dir);
    let progress = Progress::of(bytes, Unit::Bytes);
    let verified = outside::verify(dir, &|read| progress.add(read));
    progress.clear();
    let outside = verified.map_err(failed)?;
    let sound = outside.is_whole() && outside.holes.is_empty();
    say(&if json { object(dir, &outside, bytes, sound) } else { text(dir, &outside, bytes, sound) })?;
    if sound { Ok(()) } else { Err(Failure::Told) }
}

fn text(dir: &Path, outside: &Outside, bytes: u64, sound: bool) -> String {
    let mut out = headline(dir, outside);
    for hole in &outside.holes {
        let _infallible =
            writeln!(out, "damaged: {}, bytes {} to {}", hole.path.display(), hole.from, hole.to.saturating_sub(1));
    }
    out += &remarks(outside);
    let verdict = if sound { "all sound" } else { "not all sound" };
    let _infallible =
        writeln!(out, "{} records in {} segments, {}: {verdict}", outside.records, outside.segments, size(bytes));
    out
}

fn object(dir: &Path, outside: &Outside, bytes: u64, sound: bool) -> String {
    let damaged = outside.holes.iter().map(|hole| json!({ "path": hole.path, "from": hole.from, "to": hole.to }));
    let parts = [
        ("sound", json!(sound)),
        ("segments", json!(outside.segments)),
        ("records", json!(outside.records)),
        ("bytes", json!(bytes)),
        ("damaged", damaged.collect()),
    ];
    let mut object = head_json(dir, outside);
    object.extend(parts.map(|(name, part)| (name.to_owned(), part)));
    object.extend(remarks_json(outside));
    format!("{}\n", Value::Object(object))
}

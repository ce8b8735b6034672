//! `spool dump`: the messages that wait, as JSON lines.

use std::path::Path;

use serde_json::Value;

use super::{
    super::{Failure, complain, say},
    Outcome, failed, remarks,
};
use crate::{event::batch::Batch, spool::outside};

/// A larger body, decompressed, is not read: far above any batch.
const BODY_BYTES_MAX: usize = 256 << 20;

pub(super) fn run(dir: &Path) -> Outcome {
    let outside = outside::look(dir).map_err(failed)?;
    remarks(&outside).lines().for_each(complain);
    // Beside a running agent a file may be begun, cut back or gone while it is read.
    let held = outside.holder.is_some();
    let mut whole = held || outside.is_whole();
    let mut messages = outside.messages();
    for taken in &mut messages {
        match decode(&taken.batch) {
            Ok(body) => say(&format!("{body}\n"))?,
            Err(reason) => {
                whole = false;
                complain(&format!("message {} cannot be read: {reason}", taken.batch.message_id()));
            }
        }
    }
    for (losses, unreadable) in messages.troubles().filter(|_| !held) {
        for loss in losses {
            whole = false;
            let last = loss.last.unwrap_or(loss.first);
            complain(&format!("{}, messages {} to {last} of run {}: damaged", loss.collector, loss.first, loss.run_id));
        }
        if let Some(reason) = unreadable {
            whole = false;
            complain(&format!("a segment cannot be read: {reason}"));
        }
    }
    if whole { Ok(()) } else { Err(Failure::Told) }
}

fn decode(batch: &Batch) -> Result<Value, String> {
    let unpacked = batch.zstd.then(|| zstd::bulk::decompress(&batch.body, BODY_BYTES_MAX)).transpose();
    let unpacked = unpacked.map_err(|error| format!("its body cannot be decompressed: {error}"))?;
    let body = unpacked.as_ref().unwrap_or(&batch.body);
    rmp_serde::from_slice(body).map_err(|error| format!("its body is no MessagePack: {error}"))
}

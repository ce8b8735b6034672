//! Encoding: rmp-serde alone into a buffer that is kept, and the agent's way from rows to a message's body.

use serde::{Deserialize, Serialize};

use crate::{
    cell::{Measured, Watch},
    rows,
};

/// Who encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum By {
    RmpSerde,
    Agent,
}

pub(crate) fn encode(by: By, times: u32) -> Measured {
    let (sample, speaker) = (rows::sample(), rows::speaker());
    let mut buffer = Vec::new();
    let watch = Watch::start();
    for seq in 0..u64::from(times) {
        match by {
            By::RmpSerde => {
                buffer.clear();
                let mut to = rmp_serde::Serializer::new(&mut buffer).with_struct_map().with_human_readable();
                std::hint::black_box(&sample.data).serialize(&mut to).unwrap();
            }
            By::Agent => {
                let events = std::hint::black_box(&sample).encode(256 << 10).unwrap();
                buffer = speaker.body("pg_statements", 1, seq, None, events).unwrap();
            }
        }
        std::hint::black_box(&buffer);
    }
    watch.stop()
}

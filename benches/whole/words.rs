//! Encoding: rmp-serde alone into a buffer that is kept, and the agent's way from rows to a message's body.

use std::{collections::BTreeMap, time::Duration};

use postgres_agent::{
    event::{NoSummary, Sample},
    intake::Speaker,
    units::Time,
};
use serde::{Deserialize, Serialize};

use crate::cell::{Measured, Watch};

/// Who encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum By {
    RmpSerde,
    Agent,
}

/// A row as statements have them: many numbers and a text.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    queryid: String,
    query: String,
    calls: u64,
    total_exec_time: f64,
    mean_exec_time: f64,
    min_exec_time: f64,
    max_exec_time: f64,
    stddev_exec_time: f64,
    rows: u64,
    shared_blks_hit: u64,
    shared_blks_read: u64,
    shared_blks_written: Option<u64>,
    local_blks_hit: u64,
    local_blks_read: u64,
    local_blks_written: u64,
    temp_blks_read: u64,
    temp_blks_written: u64,
    blk_read_time: f64,
    blk_write_time: f64,
    wal_bytes: Option<u64>,
}

pub(crate) fn rows() -> Vec<Row> {
    let row = |number: u64| Row {
        queryid: (number * 7_919_104_729).to_string(),
        query: "select o.id, o.total from orders o where o.customer = $1 ".repeat(18),
        calls: number * 1000,
        total_exec_time: number as f64 * 1.5,
        mean_exec_time: 0.25,
        min_exec_time: 0.125,
        max_exec_time: 4.5,
        stddev_exec_time: 0.3,
        rows: number,
        shared_blks_hit: number * 100_000,
        shared_blks_read: number,
        shared_blks_written: None,
        local_blks_hit: 0,
        local_blks_read: 0,
        local_blks_written: 0,
        temp_blks_read: number * 10,
        temp_blks_written: 0,
        blk_read_time: 0.0,
        blk_write_time: 0.0,
        wal_bytes: Some(number << 20),
    };
    (1..=100).map(row).collect()
}

pub(crate) fn encode(by: By, times: u32) -> Measured {
    let sample = Sample::<_, NoSummary> {
        server: None,
        collected_at: Time::now(),
        duration: Duration::from_millis(12),
        omitted: 0,
        hidden: 0,
        summary: None,
        data: rows(),
        degraded: None,
    };
    let speaker = Speaker {
        agent_id: Some("018f0000-0000-7000-8000-000000000000".into()),
        agent_name: "db1".into(),
        host: "db1".into(),
        labels: BTreeMap::new(),
        run_id: "018f0000-0000-7000-8000-000000000001".into(),
    };
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
                buffer = speaker.body("pg_statements", 1, seq, None, &events).unwrap();
            }
        }
        std::hint::black_box(&buffer);
    }
    watch.stop()
}

//! A sample as pg_statements brings it home, and who speaks in its message.

use std::{collections::BTreeMap, time::Duration};

use postgres_agent::{
    event::{NoSummary, Sample},
    intake::Speaker,
    units::Time,
};
use serde::Serialize;

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

fn rows() -> Vec<Row> {
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

/// 100 rows with texts of 1 KiB.
pub(crate) fn sample() -> Sample<Vec<Row>, NoSummary> {
    Sample {
        server: None,
        collected_at: Time::now(),
        duration: Duration::from_millis(12),
        omitted: 0,
        hidden: 0,
        summary: None,
        data: rows(),
        degraded: None,
    }
}

pub(crate) fn speaker() -> Speaker {
    Speaker {
        agent_id: Some("018f0000-0000-7000-8000-000000000000".into()),
        agent_name: "db1".into(),
        host: "db1".into(),
        labels: BTreeMap::new(),
        run_id: "018f0000-0000-7000-8000-000000000001".into(),
    }
}

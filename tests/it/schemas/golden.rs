//! Golden messages: one of each collector, made of the very types that are sent, with a value in every field.
//!
//! Nothing here is measured: the values are made up, and the same each time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use postgres_agent::{
    collectors::{self, pg_activity, pg_locks, pg_statements, system_metrics},
    event::{
        Body, Message, NoSummary, Sample, Server,
        status::{AgentStatus, Lost, Occasion, PreviousRun, Reason, SpoolStatus, Waiting},
    },
    health::{CollectorStatus, Delivery, State},
    units::Time,
};
use serde::Serialize;

const RUN: &str = "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";
const EARLIER_RUN: &str = "01939f00-1111-7222-8333-444455556666";
/// 2026-11-23T20:15:00.123456Z.
const NOW: Time = Time(1_795_464_900_123_456);

/// The golden message of a collector.
pub(super) fn message(collector: &str) -> Vec<u8> {
    let (server, events) = match collector {
        "agent_status" => event(None, None::<NoSummary>, status()),
        "pg_activity" => event(Some(server()), Some(activity_summary()), vec![activity()]),
        "pg_statements" => event(Some(server()), Some(statements_summary()), vec![statement()]),
        "pg_locks" => event(Some(server()), Some(locks_summary()), vec![lock()]),
        "system_metrics" => event(None, None::<NoSummary>, metrics()),
        other => panic!("{other} has no golden message yet: make one here"),
    };
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    let entry = collectors::ALL.iter().find(|entry| entry.name == collector).expect("a collector");
    let message = Message {
        collector,
        schema_version: entry.version,
        agent_id: Some("7b1c9a52-3f64-4d1e-9c58-2a6b8f0d4e13"),
        agent_name: "db1",
        agent_version: "0.1.0",
        host: "db1.example.net",
        labels: &labels,
        run_id: RUN,
        seq: 42,
        server: server.as_deref(),
        events: None,
    };
    message.put_together(events).expect("encodes")
}

type Events = (Option<Arc<Server>>, Vec<Vec<u8>>);

fn event<D: Body, S: Serialize>(server: Option<Server>, summary: Option<S>, data: D) -> Events {
    let server = server.map(Arc::new);
    let sample = Sample {
        server: server.clone(),
        collected_at: NOW,
        duration: Duration::from_micros(1234),
        omitted: 1,
        hidden: 2,
        summary,
        data,
        degraded: None,
    };
    (server, sample.encode(usize::MAX).expect("encodes"))
}

/// Counters of `n` runs.
fn counters(n: u64) -> pg_statements::Counters {
    let time = |each: f64| f64::from(u32::try_from(n).expect("small")) * each;
    pg_statements::Counters {
        calls: n,
        total_exec_time: time(2.5),
        rows: Some(n),
        shared_blks_hit: Some(4 * n),
        shared_blks_read: Some(n),
        shared_blks_written: Some(0),
        local_blks_hit: Some(0),
        local_blks_read: Some(0),
        local_blks_written: Some(0),
        temp_blks_read: Some(0),
        temp_blks_written: Some(0),
        blk_read_time: Some(time(0.5)),
        blk_write_time: Some(0.0),
        plans: Some(n),
        total_plan_time: Some(time(0.25)),
        wal_records: Some(2 * n),
        wal_fpi: Some(n),
        wal_bytes: Some(8192 * n),
    }
}

fn statement() -> pg_statements::Row {
    pg_statements::Row {
        queryid: "-6104816919212736583".into(),
        query: text("UPDATE stock SET n = n - $1 WHERE id = $2"),
        counters: counters(400),
        mean_exec_time: Some(2.5),
        min_exec_time: Some(0.5),
        max_exec_time: Some(20.0),
        stddev_exec_time: Some(1.5),
        userid: 16_384,
        usename: text("shop"),
        dbid: 16_385,
        datname: text("shop"),
        toplevel: Some(true),
        stats_since: Some(NOW),
        delta: Some(counters(40)),
    }
}

fn statements_summary() -> pg_statements::Summary {
    pg_statements::Summary {
        entries: 4,
        other: Some(counters(2)),
        dealloc: Some(0),
        stats_reset: Some(NOW),
        interval_ms: Some(60_000.0),
        baseline: false,
        io_timing: true,
        planning: true,
    }
}

fn metrics() -> system_metrics::Data {
    use system_metrics::{Cgroup, Cpu, DiskIo, DiskUsage, Memory, NetworkIo, Pressure, Stall, Stalls, Swap};
    let stalls = || Stalls {
        some: Stall { avg10: 1.5, avg60: 0.75, avg300: 0.2, total_us: 123_456 },
        full: Stall { avg10: 0.0, avg60: 0.0, avg300: 0.0, total_us: 0 },
    };
    system_metrics::Data {
        cpu: Some(Cpu {
            percent: 12.5,
            count_physical: Some(4),
            count_logical: 8,
            load_avg_1m: 0.41,
            load_avg_5m: 0.52,
            load_avg_15m: 0.6,
        }),
        memory: Some(Memory {
            total: 16_777_216_000,
            available: 12_582_912_000,
            used: 4_194_304_000,
            percent: 25.0,
            buffers: 104_857_600,
            cached: 8_388_608_000,
        }),
        swap: Some(Swap { total: 1_000_000_000, used: 250_000_000, free: 750_000_000, percent: 25.0 }),
        disk_io: Some(DiskIo {
            read_count: 1000,
            write_count: 2000,
            read_bytes: 8_192_000,
            write_bytes: 16_384_000,
            read_time_ms: 350,
            write_time_ms: 900,
        }),
        network_io: Some(NetworkIo {
            bytes_sent: 1_000_000,
            bytes_recv: 2_000_000,
            packets_sent: 1500,
            packets_recv: 1600,
            errin: 0,
            errout: 0,
            dropin: 3,
            dropout: 0,
        }),
        disk_usage: BTreeMap::from([
            (
                "/var/lib/postgresql".to_owned(),
                Some(DiskUsage { total: 100_000_000, used: 40_000_000, free: 55_000_000, percent: 42.1 }),
            ),
            ("/mnt/away".to_owned(), None),
        ]),
        cgroup: Some(Cgroup {
            memory_limit: Some(536_870_912),
            memory_used: Some(20_971_520),
            cpu_limit: Some(1.5),
            cpu_usage_us: Some(4_200_000),
            throttled_count: Some(2),
            throttled_us: Some(15_000),
        }),
        pressure: Some(Pressure { cpu: stalls(), memory: stalls(), io: stalls() }),
    }
}

fn server() -> Server {
    Server {
        system_identifier: "7434567890123456789".into(),
        timeline: 1,
        version_num: 170_004,
        in_recovery: false,
        database: "shop".into(),
        stats_epoch: "9f2b6c1d4e8a7053".into(),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the fields that it fills may be nil")]
fn text<T: From<&'static str>>(text: &'static str) -> Option<T> {
    Some(text.into())
}

const REQUEST: &str = "6f1c1f0e-8c55-4b52-9f57-0d3c1a2b4c5d";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn activity() -> pg_activity::Row {
    pg_activity::Row {
        pid: 4242,
        usename: text("shop"),
        application_name: Some(format!("bitville-{REQUEST}").into()),
        client_addr: text("10.0.0.7"),
        client_port: Some(51234),
        backend_start: Some(NOW),
        xact_start: Some(NOW),
        query_start: Some(NOW),
        state_change: Some(NOW),
        wait_event_type: text("Lock"),
        wait_event: text("transactionid"),
        state: text("active"),
        query: Some(format!("UPDATE stock SET n = n - 1 WHERE id = 7 /*traceparent='00-{TRACE}-{SPAN}-01'*/")),
        backend_type: text("client backend"),
        correlation_id: text(REQUEST),
        datname: text("shop"),
        leader_pid: None,
        query_id: text("-6104816919212736583"),
        backend_xid: text("771"),
        backend_xmin: text("770"),
        blocked_by: vec![4243, 0],
        trace_id: text(TRACE),
        span_id: text(SPAN),
        query_truncated: Some(false),
    }
}

fn activity_summary() -> pg_activity::Summary {
    pg_activity::Summary {
        sessions: vec![pg_activity::Sessions {
            datname: text("shop"),
            state: text("active"),
            wait_event_type: text("Lock"),
            wait_event: text("transactionid"),
            backend_type: text("client backend"),
            count: 1,
        }],
    }
}

fn lock() -> pg_locks::Row {
    pg_locks::Row {
        blocked_pid: 4242,
        blocked_user: text("shop"),
        blocked_application: Some(format!("bitville-{REQUEST}").into()),
        blocked_client_addr: text("10.0.0.7"),
        blocked_query: text("UPDATE stock SET n = n - 1 WHERE id = 7"),
        blocked_query_start: Some(NOW),
        blocking_pid: 4243,
        blocking_user: text("admin"),
        blocking_application: text("psql"),
        blocking_client_addr: None,
        blocking_query: text("SELECT 1"),
        blocking_query_start: Some(NOW),
        locktype: "transactionid".into(),
        blocked_mode: "ShareLock".into(),
        blocking_mode: text("ExclusiveLock"),
        datname: text("shop"),
        relation: text("public.stock"),
        lock_target: text("745"),
        wait_start: Some(NOW),
        wait_ms: Some(1500.5),
        blocking_granted: Some(true),
        blocking_state: text("idle in transaction"),
        blocking_xact_start: Some(NOW),
        blocking_state_change: Some(NOW),
        root_pids: vec![4243],
        depth: Some(1),
        blocked_correlation_id: text(REQUEST),
        blocking_correlation_id: None,
    }
}

fn locks_summary() -> pg_locks::Summary {
    pg_locks::Summary {
        waiters: 1,
        edges: 1,
        roots: vec![pg_locks::Root {
            pid: 4243,
            gid: None,
            datname: text("shop"),
            usename: text("admin"),
            application_name: text("psql"),
            client_addr: None,
            state: text("idle in transaction"),
            state_change: Some(NOW),
            xact_start: Some(NOW),
            query: text("SELECT 1"),
            correlation_id: None,
            blocked: 1,
            longest_wait_ms: Some(1500.5),
        }],
        roots_omitted: 0,
    }
}

fn status() -> AgentStatus {
    let failing = CollectorStatus {
        state: State::Failing,
        reason: Some("PostgreSQL did not answer".into()),
        last_success_at: Some(NOW),
        runs: 10,
        failures: 2,
        skipped: 1,
        db_ms: 12.5,
    };
    AgentStatus {
        event: Occasion::Running,
        uptime_s: 600.25,
        collectors: BTreeMap::from([
            ("pg_activity".into(), failing),
            ("pg_locks".into(), CollectorStatus { state: State::Disabled, ..CollectorStatus::default() }),
        ]),
        sent: BTreeMap::from([("agent_status".into(), 42), ("pg_activity".into(), 8)]),
        delivery: Delivery {
            published: 52,
            confirmed: 48,
            returned: 1,
            nacked: 1,
            reconnects: 2,
            trouble: text("connection refused"),
            trouble_since: Some(NOW),
            node: Some("broker:5672".into()),
            was_connected: true,
            channels: 5,
            confirms: postgres_agent::health::Confirms::default(),
            troubled: None,
        },
        spool: SpoolStatus {
            messages: 2,
            bytes: 4096,
            oldest_at: Some(NOW),
            trouble: text("no space left"),
            trouble_since: Some(NOW),
            lasts_s: Some(86_400.5),
        },
        waiting: vec![Waiting { run_id: RUN.into(), collector: "pg_activity".into(), first_seq: 7, last_seq: 8 }],
        lost: vec![
            Lost {
                run_id: RUN.into(),
                collector: "pg_activity".into(),
                first_seq: 1,
                last_seq: Some(2),
                events: Some(2),
                reason: Reason::Evicted,
            },
            Lost {
                run_id: EARLIER_RUN.into(),
                collector: "pg_locks".into(),
                first_seq: 90,
                last_seq: None,
                events: None,
                reason: Reason::Power,
            },
        ],
        previous_runs: vec![PreviousRun {
            run_id: EARLIER_RUN.into(),
            last_seq: BTreeMap::from([("pg_locks".into(), 99)]),
        }],
        rss_bytes: Some(16 << 20),
        cpu_s: Some(1.25),
    }
}

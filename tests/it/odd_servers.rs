//! Servers as there are none here: ten thousand sessions, values at the ends of their ranges, columns that a version to
//! come has lost or renamed.
//!
//! They are real servers whose views and functions were replaced by others.

use std::process::Command;

use serde_json::Value;

use crate::{
    looking::{Looked, Looker},
    rig::{
        must,
        postgres::{Role, Server},
    },
};

const MODS: &str = "allow_system_table_mods = on";

/// Adds sessions to those that are there: `values` makes a JSON object of `i`, from 1 to `count`.
fn add_sessions(server: &Server, count: u32, values: &str) {
    server.sql(&format!(
        "ALTER VIEW pg_catalog.pg_stat_activity RENAME TO pg_stat_activity_real;
         CREATE VIEW pg_catalog.pg_stat_activity AS
             SELECT r.* FROM pg_catalog.pg_stat_activity_real r
             UNION ALL
             SELECT s.* FROM pg_catalog.generate_series(1, {count}) i,
                 pg_catalog.jsonb_populate_record(NULL::pg_catalog.pg_stat_activity_real, {values}) s;
         GRANT SELECT ON pg_catalog.pg_stat_activity TO PUBLIC"
    ));
}

async fn activity(server: &Server) -> Looked {
    Looker::new("pg_activity", &[("postgres.url", &server.url(Role::Agent))]).look().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sessions_with_long_texts_take_bounded_memory() {
    let server = Server::with_settings(17, &format!("{MODS}\ntrack_activity_query_size = 1MB"));
    // Each tenth is active, with a text of 20 KB; one with a megabyte, of which the end is cut.
    add_sessions(
        &server,
        10_000,
        "jsonb_build_object('pid', 100000 + i, 'usename', 'web', 'datname', 'shop', 'backend_type', 'client backend',
             'state', CASE WHEN i % 10 = 0 THEN 'active' ELSE 'idle' END,
             'xact_start', now() - i * interval '1 second', 'query_start', now(),
             'query', CASE WHEN i = 10000 THEN repeat('x', 1048570)
                           WHEN i = 9990 THEN 'SELECT ''' || repeat('z', 100000) || '''' WHEN i % 10 = 0 THEN repeat('y', 20000) END)",
    );
    let looked = activity(&server).await;
    assert_eq!(looked.rows().len(), 100);
    let omitted = looked.event["omitted"].as_u64().unwrap();
    assert!((900..910).contains(&omitted), "{omitted}");
    // The oldest transactions are kept.
    let oldest = looked.row("pid", 110_000).unwrap();
    assert_eq!(oldest["query_truncated"], true);
    assert!(oldest["query"].as_str().unwrap().ends_with("x...[truncated]"));
    // Of a text that is mostly one literal little is left: less than may leave, and still not all of it was read.
    let url = server.url(Role::Agent);
    let settings = [("postgres.url", &*url), ("privacy.query_text", "normalized")];
    let normalized = Looker::new("pg_activity", &settings).look().await;
    let literal = normalized.row("pid", 109_990).unwrap();
    assert_eq!((&literal["query"], &literal["query_truncated"]), (&"SELECT $1".into(), &true.into()));
    let count = |state: &str| {
        let sessions = looked.event["summary"]["sessions"].as_array().unwrap();
        let some = sessions.iter().filter(|some| some["datname"] == "shop" && some["state"] == state);
        some.map(|some| some["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((count("active"), count("idle")), (1000, 9000));
    // What a whole process takes for it: its own memory and that of the answer.
    let script = "import resource, subprocess, sys\n\
                  subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
                  print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", script, env!("CARGO_BIN_EXE_postgres-agent"), "collect", "pg_activity"]);
    let kib: u64 = must(command.env("POSTGRES_AGENT_POSTGRES__URL", url)).trim().parse().unwrap();
    assert!(kib < 128 << 10, "{kib} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_at_the_ends_of_their_ranges_never_fail_a_look() {
    for version in [13, 18] {
        let server = Server::with_settings(version, MODS);
        add_sessions(
            &server,
            4,
            r#"jsonb_build_object('pid', 2147483640 + i, 'state', 'a state to come', 'backend_type', 'client backend',
                 'usename', E'"quo''ted"\n\x1b[31m', 'datname', E'a\tb', 'application_name', E'\x01\x02\u200b',
                 'client_addr', (ARRAY['ffff::1/128', '255.255.255.255', '::', '0.0.0.0'])[i], 'client_port', -1,
                 'backend_start', (ARRAY['infinity', '-infinity', '294276-12-31 23:59:59.999999+00', '4713-01-01 00:00:00+00 BC'])[i],
                 'xact_start', '294276-12-31 23:59:59.999999+00', 'query_start', '-infinity', 'state_change', 'infinity',
                 'backend_xid', '4294967295', 'backend_xmin', '0', 'query_id', (-9223372036854775808)::bigint,
                 'leader_pid', 2147483647, 'wait_event_type', 'Lock', 'wait_event', 'something new', 'query', '')"#,
        );
        let looked = activity(&server).await;
        assert_eq!(looked.degraded, None, "{version}");
        for pid in 2_147_483_641..=2_147_483_644 {
            let row = looked.row("pid", pid).unwrap_or_else(|| panic!("{version}: {pid} has no row"));
            assert_eq!((&row["usename"], &row["datname"]), (&"\"quo'ted\"\n\u{1b}[31m".into(), &"a\tb".into()));
            assert_eq!((&row["backend_xid"], &row["client_port"]), (&"4294967295".into(), &(-1).into()));
            assert!(row["query_start"].is_null() && row["state_change"].is_null(), "{row}");
            assert!(row["xact_start"].as_str().is_some_and(|time| time.starts_with("9999-")), "{row}");
            if version >= 14 {
                assert_eq!(row["query_id"], "-9223372036854775808");
            }
        }
        assert_eq!(looked.row("pid", 2_147_483_641).unwrap()["client_addr"], "ffff::1");
        // Nothing of it reaches a terminal as it is.
        let mut command = Command::new(env!("CARGO_BIN_EXE_postgres-agent"));
        command.args(["collect", "pg_activity", "--format", "table"]);
        let table = must(command.env("POSTGRES_AGENT_POSTGRES__URL", server.url(Role::Agent)));
        assert!(!table.contains('\u{1b}') && table.contains("a state to come"), "{table}");
    }
}

/// Puts another function in the place of `pg_stat_statements(boolean)`.
fn replace_statements(server: &Server, columns: &str, select: &str) {
    server.sql(&format!(
        "ALTER EXTENSION pg_stat_statements DROP VIEW pg_stat_statements; DROP VIEW pg_stat_statements;
         ALTER EXTENSION pg_stat_statements DROP FUNCTION pg_stat_statements(boolean);
         ALTER FUNCTION pg_stat_statements(boolean) RENAME TO real_one;
         CREATE FUNCTION pg_stat_statements(showtext boolean, {columns}) RETURNS SETOF record LANGUAGE sql
             AS 'SELECT {select} FROM public.real_one($1)';
         ALTER EXTENSION pg_stat_statements ADD FUNCTION pg_stat_statements(boolean)"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_to_come_that_lost_and_renamed_columns_is_looked_at_all_the_same() {
    let server = Server::with_settings(18, MODS);
    replace_statements(
        &server,
        "OUT userid oid, OUT dbid oid, OUT toplevel bool, OUT queryid bigint, OUT query text, OUT calls bigint,
         OUT total_exec_time float8, OUT energy float8, OUT shared_blks_hit bigint",
        "userid, dbid, toplevel, queryid, query, calls, total_exec_time, 0::float8, shared_blks_hit",
    );
    server.sql(
        "DROP VIEW pg_catalog.pg_stat_activity;
         CREATE VIEW pg_catalog.pg_stat_activity AS SELECT pid, datname, usename, application_name, state, query,
             backend_type, wait_event_type, wait_event, query_start, 1 AS temperature
             FROM pg_catalog.pg_stat_get_activity(NULL) s
             LEFT JOIN pg_catalog.pg_database d ON d.oid = s.datid LEFT JOIN pg_catalog.pg_roles u ON u.oid = s.usesysid
             CROSS JOIN LATERAL (SELECT u.rolname AS usename) n;
         GRANT SELECT ON pg_catalog.pg_stat_activity TO PUBLIC",
    );
    let mut looker = Looker::new("pg_statements", &[("postgres.url", &server.url(Role::Agent))]);
    for looked in [looker.look().await, looker.look().await] {
        assert_eq!(looked.degraded, None);
        let row = looked.rows().iter().find(|row| row["usename"] == "postgres").unwrap();
        assert!(row["calls"].is_u64() && row["shared_blks_hit"].is_u64() && row["query"].is_string(), "{row}");
        for gone in ["rows", "temp_blks_read", "blk_read_time", "plans", "wal_bytes", "mean_exec_time", "stats_since"] {
            assert_eq!(row[gone], Value::Null, "{gone}: {row}");
        }
    }
    let looked = activity(&server).await;
    assert_eq!(looked.degraded, None);
    let session = server.session(Role::Plain, "web").await;
    session.batch_execute("BEGIN").await.unwrap();
    let looked_again = activity(&server).await;
    assert_eq!(looked_again.rows().len(), looked.rows().len() + 1);
    let row = looked_again.rows().iter().find(|row| row["application_name"] == "web").unwrap();
    assert_eq!((&row["state"], &row["xact_start"]), (&"idle in transaction".into(), &Value::Null), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_at_the_ends_of_their_ranges_are_told_as_they_are() {
    let server = Server::private(17);
    replace_statements(
        &server,
        "OUT userid oid, OUT dbid oid, OUT toplevel bool, OUT queryid bigint, OUT query text, OUT calls bigint,
         OUT total_exec_time float8, OUT rows bigint, OUT wal_bytes numeric, OUT shared_blks_hit bigint",
        "userid, dbid, toplevel, queryid, query, 9223372036854775807, 1e300, 0::bigint, 18446744073709551615, \
         CASE WHEN row_number() OVER () = 1 THEN -1 ELSE 1 END",
    );
    let looked = Looker::new("pg_statements", &[("postgres.url", &server.url(Role::Agent))]).look().await;
    let entries = looked.event["summary"]["entries"].as_u64().unwrap();
    let row = &looked.rows()[0];
    assert_eq!((&row["calls"], &row["wal_bytes"]), (&9_223_372_036_854_775_807u64.into(), &u64::MAX.into()));
    // A counter below 0 is none: its row is left out, told, and fails no other.
    assert_eq!(looked.rows().len() as u64 + 1, entries);
    assert!(looked.degraded.unwrap().contains("rows could not be read"));
}

//! `pg_statements` against the server's own figures, on every version, through resets, upgrades and missing rights.

use std::time::Duration;

use postgres_agent::collectors::CollectError;
use rustix::process::Signal;
use serde_json::{Map, Value};

use crate::{
    looking::{Looked, Looker},
    rig::{
        postgres::{Role, Server, Stop, VERSIONS},
        wait_for,
    },
};

/// Statements of two shapes, which no other text is like.
const SLOW: &str = "SELECT pg_sleep(0.01) AS slow_shape";
const QUICK: &str = "SELECT count(*) AS quick_shape FROM generate_series(1, 100)";

fn looker(server: &Server, role: Role, more: &[(&str, &str)]) -> Looker {
    Looker::new("pg_statements", &[&[("postgres.url", server.url(role).as_str())], more].concat())
}

/// Runs a statement `times` over as the role `plain`.
async fn run(server: &Server, sql: &str, times: usize) {
    let session = server.session(Role::Plain, "load").await;
    for _ in 0..times {
        session.simple_query(sql).await.unwrap();
    }
}

/// The id of the statement of the role `plain` whose text holds `part`.
fn id(server: &Server, part: &str) -> String {
    let schema = server.sql("SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'pg_stat_statements'");
    let whose = "userid = 'plain'::regrole";
    server.sql(&format!("SELECT queryid FROM {schema}.pg_stat_statements WHERE {whose} AND query LIKE '%{part}%'"))
}

/// The row of the statement of the role `plain` whose text, as the server has it, holds `part`.
#[track_caller]
fn row<'a>(server: &Server, looked: &'a Looked, part: &str) -> &'a Value {
    let id = id(server, part);
    let mut rows = looked.rows().iter();
    rows.find(|row| row["usename"] == "plain" && row["queryid"] == id)
        .unwrap_or_else(|| panic!("no row of {part} ({id})"))
}

/// What a superuser's view says of a statement, under the names that the message has.
fn truth(server: &Server, queryid: &Value) -> Map<String, Value> {
    let sql = format!("SELECT to_jsonb(s) FROM pg_stat_statements s WHERE queryid = {}", queryid.as_str().unwrap());
    let mut row: Map<String, Value> = serde_json::from_str(&server.sql(&sql)).unwrap();
    for name in ["read", "write"] {
        let part = |kind: &str| row.get(&format!("{kind}_blk_{name}_time")).and_then(Value::as_f64);
        if let Some(sum) = part("shared").zip(part("local")).map(|(shared, local)| shared + local) {
            row.insert(format!("blk_{name}_time"), sum.into());
        }
    }
    row
}

#[track_caller]
fn same(name: &str, ours: &Value, want: Option<&Value>) {
    let want = want.unwrap_or(&Value::Null);
    let near = match (ours.as_f64(), want.as_f64()) {
        (Some(ours), Some(want)) => (ours - want).abs() <= want.abs() * 1e-9,
        // Ids are texts here or there.
        _ => ours.to_string().trim_matches('"') == want.to_string().trim_matches('"'),
    };
    assert!(near, "{name} is {ours}, the server says {want}");
}

const FIGURES: [&str; 22] = [
    "calls",
    "total_exec_time",
    "mean_exec_time",
    "min_exec_time",
    "max_exec_time",
    "stddev_exec_time",
    "rows",
    "shared_blks_hit",
    "shared_blks_read",
    "shared_blks_written",
    "local_blks_hit",
    "local_blks_read",
    "local_blks_written",
    "temp_blks_read",
    "temp_blks_written",
    "blk_read_time",
    "blk_write_time",
    "plans",
    "total_plan_time",
    "wal_records",
    "wal_fpi",
    "wal_bytes",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_figure_is_the_servers_own_on_every_version() {
    for version in VERSIONS {
        let settings = "track_io_timing = on\npg_stat_statements.track_planning = on\nshared_buffers = 1MB";
        let server = Server::with_settings(version, settings);
        server.sql("CREATE TABLE wide AS SELECT i, repeat('x', 1000) AS t FROM generate_series(1, 3000) i");
        server.sql("GRANT ALL ON wide TO plain");
        let sort = "SELECT count(*) FROM (SELECT t FROM wide ORDER BY t, i DESC OFFSET 0) sorted";
        let write = "UPDATE wide SET t = t || 'y' WHERE i % 7 = 1";
        let temporary = "CREATE TEMPORARY TABLE gone AS SELECT i FROM generate_series(1, 9000) i";
        run(&server, &format!("SET work_mem = '64kB'; {sort}; {write}; {temporary}"), 1).await;
        run(&server, QUICK, 3).await;
        let looked = looker(&server, Role::Agent, &[]).look().await;
        for part in ["sorted", "UPDATE wide", "TEMPORARY TABLE gone", "quick_shape"] {
            let row = row(&server, &looked, part);
            let truth = truth(&server, &row["queryid"]);
            for name in FIGURES {
                same(&format!("{version}: {part}: {name}"), &row[name], truth.get(name));
            }
            for name in ["queryid", "userid", "dbid", "toplevel"] {
                same(&format!("{version}: {part}: {name}"), &row[name], truth.get(name));
            }
            same("query", &row["query"], truth.get("query"));
            assert_eq!(row["datname"], "postgres");
            assert_eq!(row["stats_since"].is_null(), version < 17, "{version}");
            assert_eq!(row["toplevel"].is_null(), version < 14, "{version}");
            assert_eq!(row["delta"], Value::Null, "a baseline has no deltas");
        }
        assert!(row(&server, &looked, "sorted")["temp_blks_written"].as_u64().unwrap() > 0);
        assert!(row(&server, &looked, "sorted")["blk_read_time"].as_f64().unwrap() > 0.0, "{version}");
        let summary = &looked.event["summary"];
        assert_eq!((&summary["baseline"], &summary["other"]), (&Value::Bool(true), &Value::Null));
        assert_eq!((&summary["io_timing"], &summary["planning"]), (&Value::Bool(true), &Value::Bool(true)));
        assert_eq!(summary["stats_reset"].is_null(), version < 14);
        assert_eq!((&looked.event["hidden"], looked.degraded.as_deref()), (&0.into(), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_is_what_ran_since_the_sample_before_on_every_version() {
    for version in VERSIONS {
        let server = Server::private(version);
        let mut looker = looker(&server, Role::Agent, &[("collectors.pg_statements.limit", "1")]);
        run(&server, QUICK, 50).await;
        let baseline = looker.look().await;
        // Another order than since ever; and one that was not there before.
        run(&server, SLOW, 7).await;
        run(&server, QUICK, 2).await;
        let looked = looker.look().await;
        assert_eq!(looked.rows().len(), 1);
        let slow = row(&server, &looked, "slow_shape");
        let truth = truth(&server, &slow["queryid"]);
        for name in ["calls", "rows", "total_exec_time", "wal_records", "shared_blks_hit"] {
            same(&format!("{version}: {name}"), &slow["delta"][name], truth.get(name));
        }
        assert_eq!((&slow["calls"], &slow["delta"]["calls"]), (&7.into(), &7.into()), "{version}");
        let summary = &looked.event["summary"];
        // The two quick ones; and what the agent itself ran since, each of its statements once or twice.
        let other = summary["other"]["calls"].as_u64().unwrap();
        assert!((2..20).contains(&other), "{version}: {other}");
        assert!(
            summary["other"]["total_exec_time"].as_f64().unwrap() < slow["delta"]["total_exec_time"].as_f64().unwrap()
        );
        assert_eq!(summary["baseline"], false);
        assert_eq!(looked.event["omitted"].as_u64().unwrap() + 1, summary["entries"].as_u64().unwrap());
        let interval = summary["interval_ms"].as_f64().unwrap();
        assert!((70.0..20_000.0).contains(&interval), "{interval}");
        assert_eq!(summary["dealloc"], if version < 14 { Value::Null } else { 0.into() });
        assert_eq!(baseline.server.stats_epoch, looked.server.stats_epoch);
    }
}

/// What a look says that the slow one did since.
async fn calls(server: &Server, looker: &mut Looker) -> Option<u64> {
    row(server, &looker.look().await, "slow_shape")["delta"]["calls"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_never_makes_a_delta_of_more_than_what_ran_on_every_version() {
    for version in VERSIONS {
        let server = Server::private(version);
        let mut looker = looker(&server, Role::Agent, &[]);
        run(&server, SLOW, 3).await;
        assert_eq!(calls(&server, &mut looker).await, None);
        let forget =
            "SELECT pg_stat_statements_reset(0, 0, queryid) FROM pg_stat_statements WHERE query LIKE '%slow_shape'";
        server.sql(forget);
        run(&server, SLOW, 2).await;
        assert_eq!(calls(&server, &mut looker).await, Some(2), "{version}: fewer than before");
        server.sql(forget);
        run(&server, SLOW, 5).await;
        // Only from 17 on the server tells that it is another entry.
        let want = if version < 17 { 3 } else { 5 };
        assert_eq!(calls(&server, &mut looker).await, Some(want), "{version}: more than before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_ends_with_a_reset_of_all_and_not_with_a_restart() {
    for version in [14, 18] {
        let server = Server::private(version);
        let mut looker = looker(&server, Role::Agent, &[]);
        run(&server, SLOW, 3).await;
        let first = looker.look().await;
        server.stop(Stop::Fast);
        server.start();
        run(&server, SLOW, 2).await;
        let epoch = |looked: &Looked| looked.server.stats_epoch.clone();
        let restarted = healed(&mut looker).await;
        assert_eq!(epoch(&restarted), epoch(&first), "{version}: a clean restart keeps the counters");
        assert_eq!(row(&server, &restarted, "slow_shape")["delta"]["calls"], 2, "{version}");
        server.sql("SELECT pg_stat_statements_reset()");
        run(&server, SLOW, 1).await;
        let reset = looker.look().await;
        assert_ne!(epoch(&reset), epoch(&first), "{version}");
        assert_eq!(
            (&reset.event["summary"]["baseline"], &row(&server, &reset, "slow_shape")["delta"]),
            (&true.into(), &Value::Null)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_ends_an_epoch_on_13_too_where_nothing_tells_of_resets() {
    for version in [13, 18] {
        let server = Server::private(version);
        let mut looker = looker(&server, Role::Agent, &[]);
        run(&server, SLOW, 1).await;
        let first = looker.look().await;
        let victim = server.session(Role::Plain, "victim").await;
        let pid = victim.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        // These servers commit asynchronously: without it the crash would take the roles too.
        server.sql("CHECKPOINT");
        Server::signal(pid, Signal::KILL);
        wait_for("the server has recovered", Duration::from_secs(30), || {
            let ready = server.psql(Role::Postgres, "postgres").args(["-c", "SELECT 1"]).output();
            ready.is_ok_and(|ready| ready.status.success())
        });
        run(&server, SLOW, 2).await;
        let crashed = healed(&mut looker).await;
        assert_ne!(crashed.server.stats_epoch, first.server.stats_epoch, "{version}");
        assert_eq!(crashed.event["summary"]["baseline"], true, "{version}");
        assert_eq!(row(&server, &crashed, "slow_shape")["calls"], 2, "{version}: the crash took the first one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_are_told_as_the_server_counts_them() {
    let server = Server::with_settings(17, "pg_stat_statements.max = 100");
    let evicted = || server.sql("SELECT dealloc FROM pg_stat_statements_info").parse::<u64>().unwrap();
    let mut looker = looker(&server, Role::Agent, &[]);
    looker.look().await;
    let before = evicted();
    // More terms make another statement; other constants would not.
    let many: Vec<String> = (1..200).map(|terms| format!("SELECT {}", vec!["1"; terms].join(" + "))).collect();
    run(&server, &many.join("; "), 1).await;
    let after = evicted();
    let looked = looker.look().await;
    let summary = &looked.event["summary"];
    let told = summary["dealloc"].as_u64().unwrap();
    assert!(told > 0 && told >= after - before && told <= evicted() - before + 1, "{summary}");
    assert!(summary["entries"].as_u64().unwrap() <= 100, "{summary}");
}

/// The first look that succeeds.
async fn healed(looker: &mut Looker) -> Looked {
    for _ in 0..200 {
        if let Ok(looked) = looker.try_look().await {
            return looked;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no look succeeded within 20 seconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_fetched_once_and_cut_and_lose_their_secrets() {
    let server = Server::private(17);
    let mut looker = looker(&server, Role::Agent, &[("collectors.pg_statements.query_max_chars", "60")]);
    run(&server, QUICK, 1).await;
    server.sql("ALTER ROLE plain PASSWORD 'hunter2'");
    server.sql(&format!("SELECT {} AS long_one", vec!["1 + 2"; 40].join(" * ")));
    let looked = looker.look().await;
    assert!(!looked.event.to_string().contains("hunter2"));
    let long = looked.rows().iter().find_map(|row| row["query"].as_str().filter(|text| text.contains("* $"))).unwrap();
    assert!(long.ends_with("...[truncated]") && long.chars().count() == 60 + 14, "{long}");
    let fetched =
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE '%pg_statements.texts%AS query%'";
    assert_eq!(server.sql(fetched), "1");
    // The first looks bring new statements: the agent's own, and the one above. Then there are none.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        looker.look().await;
    }
    let settled: u32 = server.sql(fetched).parse().unwrap();
    for _ in 0..5 {
        assert!(looker.look().await.rows().len() > 5);
    }
    // Asking above made one more statement, whose text was fetched.
    assert!(server.sql(fetched).parse::<u32>().unwrap() <= settled + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_of_texts_never_make_the_server_write_temporary_files() {
    let server = Server::private(17);
    // 1500 statements that differ in their operators, with 8 KiB of text each.
    let operators = |i: u32| (0..11).map(|bit| if i >> bit & 1 == 0 { " + 1" } else { " - 1" }).collect::<String>();
    let padding = "x".repeat(8192);
    for batch in 0..15 {
        let some = (0..100).map(|i| format!("SELECT 1{} /* {padding} */", operators(batch * 100 + i)));
        run(&server, &some.collect::<Vec<_>>().join("; "), 1).await;
    }
    let mut looker = looker(&server, Role::Agent, &[]);
    for _ in 0..5 {
        let looked = looker.look().await;
        assert!(looked.event["summary"]["entries"].as_u64().unwrap() > 1500);
    }
    let written =
        "SELECT sum(temp_blks_written), count(*) > 5 FROM pg_stat_statements(false) WHERE userid = 'agent'::regrole";
    assert_eq!(server.sql(written), "0|t", "written by the agent's own statements");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_query_text_off_no_text_is_even_fetched() {
    let server = Server::private(16);
    run(&server, QUICK, 2).await;
    let looked = looker(&server, Role::Agent, &[("privacy.query_text", "off")]).look().await;
    assert!(looked.rows().len() > 1 && looked.rows().iter().all(|row| row["query"].is_null()));
    assert_eq!(
        server.sql("SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%pg_statements.texts%left%'"),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_role_may_not_see_is_hidden_and_never_shows_as_new() {
    for version in [14, 18] {
        let server = Server::private(version);
        server.sql("GRANT USAGE ON SCHEMA public TO plain");
        server.sql("SELECT 'of a superuser', 1 + 1 AS seen");
        run(&server, QUICK, 2).await;
        let mut looker = looker(&server, Role::Plain, &[]);
        let looked = looker.look().await;
        let entries: u64 = looked.event["summary"]["entries"].as_u64().unwrap();
        let hidden = looked.event["hidden"].as_u64().unwrap();
        assert!(hidden > 0 && hidden + looked.rows().len() as u64 == entries, "{version}: {}", looked.event);
        assert!(looked.rows().iter().all(|row| row["usename"] == "plain"));
        assert!(looked.degraded.unwrap().contains("GRANT pg_monitor TO \"plain\";"));
        server.sql("GRANT pg_monitor TO plain");
        run(&server, QUICK, 3).await;
        let looked = looker.look().await;
        assert_eq!(looked.event["hidden"], 0);
        assert_eq!(row(&server, &looked, "quick_shape")["delta"]["calls"], 3);
        let superuser = looked.rows().iter().find(|row| row["usename"] == "postgres").unwrap();
        assert_eq!(superuser["delta"], Value::Null, "{version}: its history is no interval");
        assert!(looked.event["summary"]["other"]["calls"].as_u64().unwrap() == 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extension_may_be_older_than_the_server_and_in_any_schema() {
    let server = Server::private(18);
    server.sql("DROP EXTENSION pg_stat_statements");
    server.sql("CREATE SCHEMA \"Odd \"\"one\"");
    server.sql("CREATE EXTENSION pg_stat_statements SCHEMA \"Odd \"\"one\" VERSION '1.8'");
    run(&server, QUICK, 4).await;
    let mut looker = looker(&server, Role::Agent, &[]);
    let Err(CollectError::Absent(what)) = looker.try_look().await else {
        panic!("the role has no right to the schema")
    };
    let mend = "GRANT USAGE ON SCHEMA \"Odd \"\"one\" TO \"agent\";";
    assert!(what.ends_with(mend), "{what}");
    server.sql(mend);
    // It is looked for again within a minute: another collector does so at once.
    let mut looker = self::looker(&server, Role::Agent, &[]);
    let old = looker.look().await;
    let shape = row(&server, &old, "quick_shape");
    assert_eq!((&shape["calls"], &shape["toplevel"], &shape["stats_since"]), (&4.into(), &Value::Null, &Value::Null));
    assert!(shape["wal_bytes"].is_u64() && shape["blk_read_time"].is_number());
    server.sql("ALTER EXTENSION pg_stat_statements UPDATE");
    run(&server, QUICK, 1).await;
    let new = looker.look().await;
    let shape = row(&server, &new, "quick_shape");
    assert_eq!((&shape["toplevel"], &shape["calls"]), (&true.into(), &5.into()));
    assert_eq!(new.event["summary"]["baseline"], true, "the keys have changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_moves_is_followed_and_its_deltas_go_on() {
    for version in [13, 18] {
        let server = Server::private(version);
        let mut looker = looker(&server, Role::Agent, &[]);
        run(&server, QUICK, 4).await;
        looker.look().await;
        looker.look().await;
        server.sql("CREATE SCHEMA \"other one\"; GRANT USAGE ON SCHEMA \"other one\" TO agent");
        server.sql("ALTER EXTENSION pg_stat_statements SET SCHEMA \"other one\"");
        run(&server, QUICK, 3).await;
        let looked = looker.look().await;
        assert_eq!(row(&server, &looked, "quick_shape")["delta"]["calls"], 3, "{version}");
        assert_eq!((&looked.event["summary"]["baseline"], looked.degraded), (&false.into(), None), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_is_all_that_is_asked_for_once_the_entries_are_known() {
    let server = Server::private(17);
    let mut looker = looker(&server, Role::Agent, &[]);
    run(&server, QUICK, 1).await;
    let many: Vec<String> = (1..200).map(|terms| format!("SELECT {}", vec!["1"; terms].join(" + "))).collect();
    run(&server, &many.join("; "), 1).await;
    for _ in 0..4 {
        looker.look().await;
    }
    let asked = |name: &str| {
        let sql = format!(
            "SELECT coalesce(sum(calls), 0), coalesce(sum(rows), 0) FROM pg_stat_statements \
                           WHERE userid = 'agent'::regrole AND query LIKE '/* postgres-agent:{name} */%'"
        );
        server.sql(&sql)
    };
    // Once to begin with, and never again; the others answer with one row each.
    assert!(asked("pg_statements").starts_with("1|"), "{}", asked("pg_statements"));
    assert_eq!(asked("pg_statements.changes"), "3|3");
    // Whatever is gone is missed: then all are read again, and the next look asks for changes only.
    server
        .sql("SELECT pg_stat_statements_reset(0, 0, queryid) FROM pg_stat_statements WHERE query LIKE '%quick_shape%'");
    let entries = looker.look().await.event["summary"]["entries"].as_u64().unwrap();
    assert!(asked("pg_statements").starts_with("2|"), "{}", asked("pg_statements"));
    run(&server, QUICK, 2).await;
    let looked = looker.look().await;
    assert_eq!(row(&server, &looked, "quick_shape")["delta"]["calls"], 2, "another entry than the one that was reset");
    assert!(looked.event["summary"]["entries"].as_u64().unwrap() > entries);
    assert!(asked("pg_statements").starts_with("2|"), "{}", asked("pg_statements"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_is_missing_is_told_with_what_mends_it() {
    let server = Server::private(15);
    server.sql("DROP EXTENSION pg_stat_statements");
    let what = |error: CollectError| match error {
        CollectError::Absent(what) => what,
        other => panic!("{other}"),
    };
    let told = what(looker(&server, Role::Agent, &[]).try_look().await.unwrap_err());
    assert!(told.contains("\"postgres\"; there, as a superuser: CREATE EXTENSION pg_stat_statements;"), "{told}");

    let server = Server::with_settings(16, "shared_preload_libraries = 'auto_explain'");
    let told = what(looker(&server, Role::Agent, &[]).try_look().await.unwrap_err());
    let mend = "ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pg_stat_statements';";
    assert!(told.contains(mend), "{told}");
    server.sql(mend);
    server.stop(Stop::Fast);
    server.start();
    let looked = looker(&server, Role::Agent, &[]).look().await;
    assert!(looked.event["summary"]["baseline"].as_bool().unwrap());
}

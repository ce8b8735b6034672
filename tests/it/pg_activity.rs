//! `pg_activity` against the server's own figures, on every version.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio_postgres::Client;

use crate::{
    looking::Looker,
    rig::{
        postgres::{self, Role, Server, VERSIONS},
        wait_for, wait_for_async,
    },
};

const BOUND: Duration = Duration::from_secs(20);
const ID: &str = "6F1C1F0E-8c55-4b52-9f57-0d3c1a2b4c5d";

fn looker(server: &Server, role: Role) -> Looker {
    Looker::new("pg_activity", &[("postgres.url", &server.url(role))])
}

async fn pid(session: &Client) -> i32 {
    session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

/// What a superuser sees of one session, as JSON with the agent's own names.
fn truth(server: &Server, pid: i32) -> Value {
    let sql = format!(
        "SELECT to_jsonb(a) || jsonb_build_object('backend_xid', backend_xid::text, 'backend_xmin', backend_xmin::text)
         FROM pg_stat_activity a WHERE pid = {pid}"
    );
    serde_json::from_str(&server.sql(&sql)).unwrap()
}

/// A superuser's session that stays, after the sessions of psql that ended are gone from the server's figures too.
async fn observer(server: &Server) -> Client {
    let observer = server.session(Role::Postgres, "observer").await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql'";
    wait_for_async("psql is gone", BOUND, || async {
        let count: i64 = observer.query_one(others, &[]).await.unwrap().get(0);
        (count == 0).then_some(())
    })
    .await;
    observer
}

/// Counts by `datname, state, backend_type` as a superuser sees them, who was idle when the agent looked.
async fn counts(observer: &Client) -> BTreeMap<String, u64> {
    let sql = "SELECT coalesce(datname, '-') || '/' || coalesce(CASE WHEN pid = pg_backend_pid() THEN 'idle' ELSE state END, '-')
        || '/' || coalesce(backend_type, '-'), count(*)
        FROM pg_stat_activity WHERE backend_type !~ 'autovacuum worker' GROUP BY 1";
    let rows = observer.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap())).collect()
}

fn told(summary: &Value) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for one in summary["sessions"].as_array().unwrap() {
        let part = |name: &str| one[name].as_str().unwrap_or("-").to_owned();
        if part("backend_type") != "autovacuum worker" {
            let key = format!("{}/{}/{}", part("datname"), part("state"), part("backend_type"));
            *counts.entry(key).or_default() += one["count"].as_u64().unwrap();
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_says_what_the_server_says_on_every_version() {
    for version in VERSIONS {
        let server = Server::private(version);
        let session = server.session(Role::Plain, &format!("web bitville-{ID}")).await;
        session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 'one' AS row").await.unwrap();
        let idle = server.session(Role::Plain, "idle").await;
        let (pid, idle_pid) = (pid(&session).await, pid(&idle).await);
        let observer = observer(&server).await;
        let mut looker = looker(&server, Role::Agent);
        let looked = looker.look().await;
        let want = counts(&observer).await;
        let row = looked.row("pid", pid).unwrap_or_else(|| panic!("{version}: no row in {:?}", looked.event));
        let truth = truth(&server, pid);
        let names = [
            "usename",
            "application_name",
            "client_addr",
            "client_port",
            "wait_event_type",
            "wait_event",
            "state",
            "query",
            "backend_type",
            "datname",
            "leader_pid",
            "backend_xid",
            "backend_xmin",
        ];
        for name in names {
            assert_eq!(row[name], truth[name], "{version}: {name}");
        }
        for name in ["backend_start", "xact_start", "query_start", "state_change"] {
            let server_says = truth[name].as_str().unwrap().replace("+00:00", "");
            assert_eq!(row[name].as_str().unwrap().get(..19), server_says.get(..19), "{version}: {name}");
        }
        assert_eq!(row["query_id"].as_str().is_some(), version >= 14, "{version}: {row}");
        assert_eq!(row["correlation_id"], ID.to_lowercase());
        assert_eq!((&row["query_truncated"], &row["blocked_by"]), (&Value::Bool(false), &Value::Array(vec![])));
        assert!(looked.row("pid", idle_pid).is_none(), "an idle session has no row");
        assert!(looked.rows().iter().all(|row| row["application_name"] != "postgres-agent"), "{:?}", looked.rows());
        assert_eq!((&looked.degraded, looked.event["hidden"].as_u64()), (&None, Some(0)), "{version}");

        let mut told = told(&looked.event["summary"]);
        // The agent's own session was at work while it looked, and is idle afterwards.
        let (own, after) = ("postgres/active/client backend".to_owned(), "postgres/idle/client backend".to_owned());
        assert_eq!(told.remove(&own), Some(1), "{version}: {told:?}");
        *told.entry(after).or_default() += 1;
        assert_eq!(told, want, "{version}");

        assert_eq!(looked.server.version_num / 10_000, version);
        let control = server.sql("SELECT system_identifier FROM pg_control_system()");
        assert_eq!((looked.server.system_identifier.as_str(), looked.server.timeline), (control.as_str(), 1));
        assert!(looker.context.postgres.spent("pg_activity") > Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_blocks_has_a_row_even_if_it_is_idle_and_is_kept_first() {
    let server = Server::private(17);
    let holder = server.session(Role::Plain, "holder").await;
    holder.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let waiter = server.session(Role::Plain, "waiter").await;
    let (holder_pid, waiter_pid) = (pid(&holder).await, pid(&waiter).await);
    let waiting = tokio::spawn(async move { waiter.batch_execute("SELECT pg_advisory_lock(7)").await });
    wait_for("the waiter waits", BOUND, || server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1");

    for role in [Role::Agent, Role::Plain] {
        let looked = looker(&server, role).look().await;
        let row = looked.row("pid", waiter_pid).unwrap();
        let truth = server.sql(&format!("SELECT pg_blocking_pids({waiter_pid})"));
        assert_eq!(row["blocked_by"].to_string(), truth.replace('{', "[").replace('}', "]"));
        assert_eq!(looked.row("pid", holder_pid).unwrap()["application_name"], "holder");
    }
    let settings = [("postgres.url", &*server.url(Role::Agent)), ("collectors.pg_activity.limit", "1")];
    let looked = Looker::new("pg_activity", &settings).look().await;
    assert_eq!((looked.rows().len(), &looked.rows()[0]["pid"]), (1, &Value::from(holder_pid)));
    assert_eq!(looked.event["omitted"], 1);
    holder.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_counts_what_it_cannot_see_and_says_what_mends_it() {
    for version in [13, 18] {
        let server = Server::private(version);
        let others = [server.session(Role::Postgres, "a").await, server.session(Role::Agent, "b").await];
        let observer = observer(&server).await;
        let mut looker = looker(&server, Role::Plain);
        let looked = looker.look().await;
        let all: u64 = counts(&observer).await.values().sum();
        assert_eq!(looked.event["hidden"], others.len() + 1, "{version}: {}", looked.event);
        let reason = looked.degraded.unwrap();
        assert!(reason.contains("GRANT pg_monitor TO \"plain\";"), "{reason}");
        let total: u64 = told(&looked.event["summary"]).values().sum();
        assert_eq!(total, all, "{version}: hidden ones are counted in the summary");
        assert!(!looked.event.to_string().contains("insufficient privilege"));

        server.sql("GRANT pg_monitor TO plain");
        let looked = looker.look().await;
        assert_eq!((looked.event["hidden"].as_u64(), looked.degraded), (Some(0), None), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_other_encodings_and_cut_texts_are_told_as_such() {
    let server = Server::private(16);
    server.sql("CREATE DATABASE latin1 ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'");
    let mut psql = server.psql(Role::Plain, "latin1");
    let mut child = psql
        .env("PGCLIENTENCODING", "UTF8")
        .env("PGAPPNAME", "latin1")
        .args(["-c", "SELECT 'café', pg_sleep(60)"])
        .spawn()
        .unwrap();
    wait_for("the session sleeps", BOUND, || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'latin1' AND wait_event = 'PgSleep'") == "1"
    });
    let long = server.session(Role::Plain, "long").await;
    let pid = pid(&long).await;
    long.batch_execute(&format!("BEGIN; SELECT '{}'", "x".repeat(2000))).await.unwrap();
    let settings = [("postgres.url", &*server.url(Role::Agent)), ("collectors.pg_activity.query_max_chars", "50")];
    let mut short = Looker::new("pg_activity", &settings);

    let looked = looker(&server, Role::Agent).look().await;
    let query = looked.rows().iter().find(|row| row["datname"] == "latin1").unwrap()["query"].as_str().unwrap();
    assert!(query.starts_with("SELECT 'caf\u{fffd}', pg_sleep"), "{query}");
    let row = looked.row("pid", pid).unwrap();
    assert_eq!((&row["query_truncated"], row["query"].as_str().unwrap().len()), (&Value::Bool(true), 1023));
    let looked = short.look().await;
    let row = looked.row("pid", pid).unwrap();
    let text = row["query"].as_str().unwrap();
    assert!(text.ends_with("...[truncated]") && text.starts_with("BEGIN; SELECT 'xxx"), "{text}");
    assert_eq!(row["query_truncated"], true);
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'latin1'");
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_ids_come_from_the_name_or_from_a_comment_whatever_else_may_leave() {
    let server = postgres::shared(17);
    let (named, commented) = (
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    );
    let comment = format!("/*action='x',traceparent='{}'*/", commented.replace('-', "%2D"));
    // Each session's name, what it is made to say, and whose ids it has.
    let sessions = [
        (named, format!("BEGIN; SELECT 1 {comment}"), Some(named)),
        ("trace of a comment", format!("BEGIN; SELECT 1 {comment}"), Some(commented)),
        ("trace in front", format!("{comment} BEGIN"), Some(commented)),
        ("trace of a line", format!("BEGIN -- traceparent={commented}"), Some(commented)),
        ("trace cut short", format!("BEGIN; SELECT '{}' {comment}", "x".repeat(950)), None),
        ("trace in a literal", format!("BEGIN; SELECT '{}'", comment.replace('\'', "''")), None),
        ("trace set", format!("BEGIN; SET LOCAL application_name = '{}'", &named[..50]), None),
    ];
    let mut clients = Vec::new();
    for (name, statement, want) in &sessions {
        let session = server.session(Role::Plain, name).await;
        session.batch_execute(statement).await.unwrap();
        clients.push((pid(&session).await, statement, want, session));
    }
    // What asked for the process id is the last statement now.
    for (_, statement, _, session) in &clients {
        session.batch_execute(&format!("ROLLBACK; {statement}")).await.unwrap();
    }
    for query_text in ["raw", "normalized", "off"] {
        let settings = [("postgres.url", &*server.url(Role::Agent)), ("privacy.query_text", query_text)];
        let looked = Looker::new("pg_activity", &settings).look().await;
        for (pid, statement, want, _) in &clients {
            let row = looked.row("pid", *pid).unwrap_or_else(|| panic!("{statement:?} has a row"));
            let ids: Option<Vec<&str>> = want.map(|parent| parent.split('-').collect());
            let id = |place: usize| ids.as_ref().map_or(Value::Null, |parts| Value::from(parts[place]));
            assert_eq!((&row["trace_id"], &row["span_id"]), (&id(1), &id(2)), "{query_text}: {statement:?}");
            assert_eq!(row["query"].is_null(), query_text == "off");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_cannot_be_converted_costs_the_texts_and_not_the_look() {
    let server = Server::private(17);
    for (name, encoding) in [("jp", "EUC_JP"), ("raw", "SQL_ASCII")] {
        server.sql(&format!("CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'"));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odd.sql");
    std::fs::write(&file, b"SELECT pg_sleep(60), 'caf\xe9 '").unwrap();
    let mut child = server.psql(Role::Plain, "raw").arg("-f").arg(&file).spawn().unwrap();
    wait_for("the session sleeps", BOUND, || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'raw' AND wait_event = 'PgSleep'") == "1"
    });
    let looked = Looker::new("pg_activity", &[("postgres.url", &server.url(Role::Agent).replace("/postgres", "/jp"))])
        .look()
        .await;
    let row = looked.rows().iter().find(|row| row["datname"] == "raw").unwrap();
    assert_eq!((&row["query"], &row["state"]), (&Value::Null, &"active".into()));
    let told = looked.degraded.unwrap();
    assert!(told.starts_with("no text of a query could be read: pg_activity: invalid byte sequence"), "{told}");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'raw'");
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_active_is_a_sample_too() {
    let server = postgres::shared(15);
    let looked = looker(server, Role::Agent).look().await;
    assert!(looked.event["summary"]["sessions"].as_array().is_some_and(|sessions| !sessions.is_empty()));
    assert!(looked.event["collected_at"].as_str().is_some_and(|time| time.ends_with('Z')));
}

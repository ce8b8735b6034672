//! Connections to real servers: limits, identity, and what happens when the server hangs or goes away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use postgres_agent::postgres::{Database, Error, Param};
use rustix::process::Signal;

use crate::{
    looking::{Looker, database},
    rig::{
        postgres::{self, Role, Server, Stop, VERSIONS},
        wait_for, wait_for_async,
    },
};

const BOUND: Duration = Duration::from_secs(30);

async fn text(database: &Database, sql: &str) -> Result<String, Error> {
    let mut session = database.session("test").await?;
    let rows = session.query("test", sql, &[]).await?;
    rows[0].get::<String>(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_the_agents_limits_whatever_options_say_on_every_version() {
    for version in VERSIONS {
        let server = postgres::shared(version);
        let url = format!(
            "{}?options=-c%20statement_timeout%3D0%20-c%20search_path%3Dpublic%20-c%20work_mem%3D1MB",
            server.url(Role::Agent)
        );
        let database = database(&[("postgres.url", &url)]);
        for (name, want) in [
            ("statement_timeout", "5s"),
            ("lock_timeout", "100ms"),
            ("idle_in_transaction_session_timeout", "5s"),
            ("default_transaction_read_only", "on"),
            ("search_path", "pg_catalog"),
            ("jit", "off"),
            ("max_parallel_workers_per_gather", "0"),
            ("application_name", "postgres-agent"),
            ("TimeZone", "UTC"),
            ("client_encoding", "UTF8"),
            ("work_mem", "1MB"),
        ] {
            let got = text(&database, &format!("SELECT current_setting('{name}')")).await.unwrap();
            assert_eq!(got, want, "{version}: {name}");
        }
        let error = text(&database, "CREATE TABLE public.x (i int)").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("25006"), "{error}");
        let comment = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        assert!(text(&database, comment).await.unwrap().starts_with("/* postgres-agent:test */"), "{version}");
        assert!(database.spent("test") > Duration::ZERO && database.spent("other") == Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_once_and_by_their_kind() {
    let server = postgres::shared(17);
    let database = database(&[("postgres.url", &server.url(Role::Agent)), ("postgres.statement_timeout", "300ms")]);
    let error = text(&database, "SELECT x FROM nowhere").await.unwrap_err();
    assert_eq!(error.to_string(), "test: relation \"nowhere\" does not exist (SQLSTATE 42P01)");
    assert!(error.is_missing());
    let error = text(&database, "SELECT pg_sleep(60)::text").await.unwrap_err();
    assert_eq!(error.to_string(), "test: canceling statement due to statement timeout (SQLSTATE 57014)");
    assert!(error.is_timeout());
    assert!(text(&database, "SELECT rolpassword::text FROM pg_authid").await.unwrap_err().is_denied());
    // The connection goes on after each of them.
    assert_eq!((text(&database, "SELECT 'x'").await.unwrap().as_str(), database.connections()), ("x", 1));

    let mut session = database.session("test").await.unwrap();
    let settings = [("statement_timeout", "10s"), ("work_mem", "64MB")];
    let sql = "SELECT current_setting('work_mem'), pg_sleep(0.4)::text, $1::text[]";
    let texts = ["it's".to_owned()];
    let rows = session.query_under(&settings, BOUND, "test", sql, &[Param::Texts(&texts)]).await.unwrap();
    assert_eq!(rows[0].get::<String>(0).unwrap(), "64MB");
    assert_eq!(rows[0].get::<Vec<String>>(2).unwrap(), texts);
    let rows = session.query("test", "SELECT current_setting('work_mem')", &[]).await.unwrap();
    assert_ne!(rows[0].get::<String>(0).unwrap(), "64MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_fails_at_once_and_heals() {
    let server = Server::private(18);
    let url = server.url(Role::Agent);
    let database = database(&[("postgres.url", &url), ("retry.initial", "3s"), ("retry.max", "3s")]);
    let before = database.session("test").await.unwrap().identity().stats_epoch();
    server.stop(Stop::Fast);
    wait_for_async("a dial fails", BOUND, || async {
        text(&database, "SELECT 'x'").await.err().filter(|_| database.away().is_some())
    })
    .await;
    let start = Instant::now();
    let error = text(&database, "SELECT 'x'").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2), "{error} after {:?}", start.elapsed());
    let want = format!("cannot connect to 127.0.0.1:{}: Connection refused (os error 111)", server.port());
    assert_eq!(error.to_string(), want);
    server.start();
    wait_for_async("it heals", BOUND, || async { text(&database, "SELECT 'x'").await.ok() }).await;
    assert!(database.away().is_none());
    assert_ne!(database.session("test").await.unwrap().identity().stats_epoch(), before, "the checkpointer is new");

    let wrong = looking_for(&server, "nobody_at_all").await;
    assert!(wrong.to_string().contains("refused the login: role \"nobody_at_all\" does not exist"), "{wrong}");
    assert_eq!(wrong.sqlstate(), Some("28000"));
}

async fn looking_for(server: &Server, user: &str) -> Error {
    let url = server.url(Role::Agent).replace("agent@", &format!("{user}@"));
    text(&database(&[("postgres.url", &url)]), "SELECT 'x'").await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_never_given_more_connections_than_the_pool_has() {
    let server = Arc::new(Server::private(16));
    let url = format!("{}?connect_timeout=2", server.url(Role::Agent));
    let settings = [("postgres.url", &*url), ("postgres.statement_timeout", "200ms")];
    let quick = [("postgres.pool_size", "2"), ("retry.initial", "50ms"), ("retry.max", "100ms")];
    let database = database(&[settings.as_slice(), &quick].concat());
    let observer = server.session(Role::Postgres, "observer").await;
    let most = Arc::new(AtomicI64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let watching = {
        let (most, done) = (most.clone(), done.clone());
        tokio::spawn(async move {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agent'";
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(observer.query_one(sql, &[]).await.unwrap().get(0), Ordering::Relaxed);
            }
        })
    };
    // Both connections are in use; each look keeps one for a moment.
    let looks = |count: usize| {
        let database = database.clone();
        async move {
            let look = |_| {
                let database = database.clone();
                tokio::spawn(async move { text(&database, "SELECT pg_sleep(0.05)::text || 'x'").await })
            };
            let looks: Vec<_> = (0..count).map(look).collect();
            let mut failed = 0;
            for look in looks {
                failed += usize::from(look.await.unwrap().is_err());
            }
            failed
        }
    };
    assert_eq!(looks(6).await, 0);
    let file = std::fs::read_to_string(server.data_dir().join("postmaster.pid")).unwrap();
    let postmaster: i32 = file.lines().next().unwrap().parse().unwrap();
    for round in 0..4 {
        if round % 2 == 1 {
            // Nothing is open when the server stops: it is dials that hang, and not statements.
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'agent'");
        }
        let backends = server.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'agent'");
        let stopped: Vec<i32> = backends.lines().map(|pid| pid.parse().unwrap()).chain([postmaster]).collect();
        for pid in &stopped {
            Server::signal(*pid, Signal::STOP);
        }
        let start = Instant::now();
        let mut failed = looks(4).await;
        while start.elapsed() < Duration::from_secs(6) {
            failed += looks(4).await;
        }
        assert!(failed > 0, "round {round}: a stopped server answers nobody");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        for pid in &stopped {
            Server::signal(*pid, Signal::CONT);
        }
        wait_for_async("it heals", BOUND, || async { text(&database, "SELECT 'x'").await.ok() }).await;
        wait_for_async("both connections answer", BOUND, || async { (looks(2).await == 0).then_some(()) }).await;
    }
    done.store(true, Ordering::Relaxed);
    watching.await.unwrap();
    let most = most.load(Ordering::Relaxed);
    assert!((1..=2).contains(&most), "{most} connections at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_is_dropped_is_cancelled_on_the_server() {
    let server = Server::private(15);
    let socket = format!("host={} port={} user=agent dbname=postgres", server.socket_dir().display(), server.port());
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agent' AND state = 'active'";
    for url in [server.url(Role::Agent), socket] {
        let database = database(&[("postgres.url", &url), ("postgres.statement_timeout", "600s")]);
        let look = {
            let database = database.clone();
            tokio::spawn(async move { text(&database, "SELECT pg_sleep(600)::text").await })
        };
        wait_for("the statement runs", BOUND, || server.sql(running) == "1");
        look.abort();
        wait_for("the statement is cancelled", BOUND, || server.sql(running) == "0");
        wait_for("its connection is left", BOUND, || database.connections() == 0);
        assert!(database.spent("test") > Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_noticed_on_the_same_connection() {
    for version in [13, 18] {
        let (primary, standby) = Server::with_standby(version);
        let database = database(&[("postgres.url", &standby.url(Role::Agent)), ("postgres.pool_size", "1")]);
        let before = database.session("test").await.unwrap().identity().clone();
        assert!(before.in_recovery);
        assert_eq!(before.timeline, 1);
        let on_primary = primary.sql("SELECT system_identifier FROM pg_control_system()");
        assert_eq!(before.system_identifier, on_primary);
        let pid = text(&database, "SELECT pg_backend_pid()::text").await.unwrap();
        standby.sql("SELECT pg_promote()");
        let after = database.session("test").await.unwrap().identity().clone();
        assert_eq!((after.in_recovery, after.timeline), (false, 2), "{version}");
        assert_eq!(after.stats_epoch(), before.stats_epoch(), "a promotion keeps the counters");
        assert_eq!(text(&database, "SELECT pg_backend_pid()::text").await.unwrap(), pid);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_several_hosts_and_password_files_are_used_as_libpq_does() {
    let server = Server::private(14);
    let dead = crate::rig::free_port();
    let port = server.port();
    let socket = format!("host={} port={port} user=agent dbname=postgres", server.socket_dir().display());
    let several = format!("postgres://agent@127.0.0.1:{dead},127.0.0.1:{port}/postgres");
    let primary = format!("{several}?target_session_attrs=primary");
    for url in [&socket, &several, &primary] {
        assert_eq!(text(&database(&[("postgres.url", url)]), "SELECT 'x'").await.unwrap(), "x", "{url}");
    }
    let standby = format!("{}?target_session_attrs=standby", server.url(Role::Agent));
    let error = text(&database(&[("postgres.url", &standby)]), "SELECT 'x'").await.unwrap_err();
    assert!(error.to_string().contains("it is no standby"), "{error}");

    server.sql("ALTER ROLE agent PASSWORD 'one'");
    let hba = server.data_dir().join("pg_hba.conf");
    std::fs::write(&hba, "host all agent all scram-sha-256\nhost all all all trust\nlocal all all trust\n").unwrap();
    server.sql("ALTER SYSTEM SET password_encryption = 'scram-sha-256'");
    server.sql("SELECT pg_reload_conf()");
    server.sql("ALTER ROLE agent PASSWORD 'one'");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "one\n").unwrap();
    let url = server.url(Role::Agent).replace("agent@", "agent:hunter2@");
    let database = database(&[
        ("postgres.url", &url),
        ("postgres.password_file", &file.display().to_string()),
        ("retry.initial", "10ms"),
        ("retry.max", "10ms"),
    ]);
    assert_eq!(text(&database, "SELECT 'x'").await.unwrap(), "x", "the file wins over the URL");
    server.sql("ALTER ROLE agent PASSWORD 'two'");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'agent'");
    let error = wait_for_async("the old password is refused", BOUND, || async {
        text(&database, "SELECT 'x'").await.err().filter(|error| error.sqlstate() == Some("28P01"))
    })
    .await;
    assert!(
        !error.to_string().contains("hunter2") && error.to_string().contains("password authentication failed"),
        "{error}"
    );
    std::fs::write(&file, "two\n").unwrap();
    wait_for_async("the new password is read", BOUND, || async { text(&database, "SELECT 'x'").await.ok() }).await;
}

/// The first look that fails.
async fn fails(looker: &mut Looker) -> String {
    for _ in 0..100 {
        if let Err(error) = looker.try_look().await {
            return postgres_agent::spool::chain(&error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no look failed within 5 seconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_lost_and_given_again_are_noticed_in_the_next_look() {
    for version in [13, 18] {
        let server = Server::private(version);
        let holder = server.session(Role::Plain, "holder").await;
        holder.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
        let waiter = server.session(Role::Plain, "waiter").await;
        let waiting = tokio::spawn(async move { waiter.batch_execute("SELECT pg_advisory_lock(7)").await });
        wait_for("one waits", BOUND, || server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1");
        for name in ["pg_activity", "pg_statements", "pg_locks"] {
            let mut looker = Looker::new(name, &[("postgres.url", &server.url(Role::Agent))]);
            for _ in 0..2 {
                let looked = looker.look().await;
                assert_eq!((looked.degraded, &looked.event["hidden"]), (None, &0.into()), "{version}: {name}");
            }
            server.sql("REVOKE pg_monitor FROM agent");
            let looked = looker.look().await;
            let told = looked.degraded.clone().unwrap_or_default();
            assert!(told.contains("GRANT pg_monitor TO \"agent\";"), "{version}: {name}: {told}");
            assert!(looked.event["hidden"].as_u64().is_some_and(|hidden| hidden > 0), "{version}: {}", looked.event);
            if name != "pg_statements" {
                assert!(!looked.rows().is_empty(), "{version}: {name}: who waits is told all the same");
            }
            server.sql("GRANT pg_monitor TO agent");
            let looked = looker.look().await;
            assert_eq!((looked.degraded, &looked.event["hidden"]), (None, &0.into()), "{version}: {name}");
        }
        drop(holder);
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_dropped_under_the_connection_is_told_and_heals() {
    let server = Server::private(15);
    server.sql("CREATE DATABASE shop");
    let url = server.url(Role::Agent).replace("/postgres", "/shop");
    let settings = [("postgres.url", &*url), ("retry.initial", "10ms"), ("retry.max", "50ms")];
    let mut looker = Looker::new("pg_activity", &settings);
    assert_eq!(looker.look().await.server.database, "shop");
    server.sql("DROP DATABASE shop WITH (FORCE)");
    let mut told = fails(&mut looker).await;
    while !told.contains("database \"shop\" does not exist") {
        assert!(told.contains("terminating connection") || told.contains("closed"), "{told}");
        told = fails(&mut looker).await;
    }
    server.sql("CREATE DATABASE shop");
    for _ in 0..100 {
        if looker.try_look().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no look succeeded within 5 seconds");
}

//! Through a real `PgBouncer` in transaction mode: looks are whole, limits hold, and nobody else's session is changed.

use std::time::Duration;

use postgres_agent::postgres::{Database, Error};
use serde_json::Value;

use crate::{
    looking::{Looker, database},
    rig::{
        pgbouncer::Pooler,
        postgres::{self, Role, Server},
        wait_for,
    },
};

const BOUND: Duration = Duration::from_secs(20);

/// Refuses options, as it does where nobody tells it otherwise; swallows them; and lends for a whole session.
const KINDS: [&str; 3] = [
    "pool_mode = transaction\ndefault_pool_size = 3",
    "pool_mode = transaction\ndefault_pool_size = 3\nignore_startup_parameters = options",
    "pool_mode = session\nignore_startup_parameters = options",
];

/// The value of a setting, in a look of its own.
async fn setting(database: &Database, name: &str) -> String {
    let mut session = database.session("test").await.unwrap();
    let sql = format!("SELECT pg_catalog.current_setting('{name}')");
    session.query("test", &sql, &[]).await.unwrap()[0].get(0).unwrap()
}

/// What others find set in the backends that they are lent.
async fn others(pooler: &Pooler) {
    for _ in 0..6 {
        let other = pooler.session(Role::Agent).await;
        let sql = "SELECT current_setting('statement_timeout') || current_setting('transaction_read_only')
                   || current_setting('search_path') || (SELECT count(*) FROM pg_prepared_statements)";
        let found: String = other.query_typed(sql, &[]).await.unwrap()[0].get(0);
        assert_eq!(found, "0off\"$user\", public0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_looks_go_through_a_pooler_and_say_that_it_is_there() {
    for (kind, version) in KINDS.iter().zip([13, 15, 18]) {
        let server = Server::private(version);
        let pooler = Pooler::before(&server, kind);
        let holder = server.session(Role::Plain, "holder").await;
        holder.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
        let waiter = server.session(Role::Plain, "waiter").await;
        let waiting = tokio::spawn(async move { waiter.batch_execute("SELECT pg_advisory_lock(7)").await });
        wait_for("one waits", BOUND, || server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1");
        for name in ["pg_activity", "pg_statements", "pg_locks"] {
            let mut direct = Looker::new(name, &[("postgres.url", &server.url(Role::Agent))]);
            let mut pooled = Looker::new(name, &[("postgres.url", &pooler.url(Role::Agent))]);
            // The second look is the one that asks for changes only, and each may get another backend.
            for _ in 0..3 {
                let (want, got) = (direct.look().await, pooled.look().await);
                let what = format!("{version}, {kind}: {name}: {}", got.event);
                assert!(got.degraded.as_ref().is_some_and(|why| why.contains("a pooler stands between")), "{what}");
                assert_eq!(want.server, got.server, "{what}");
                let rows = |event: &Value| event["data"].as_array().unwrap().len();
                assert!(rows(&got.event) > 0, "{what}");
                if name != "pg_statements" {
                    assert_eq!(rows(&want.event), rows(&got.event), "{what}");
                }
            }
        }
        others(&pooler).await;
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND usename = 'agent'";
        wait_for("no transaction is left open", BOUND, || server.sql(open) == "0");
        drop(holder);
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_pooler_the_limits_hold_and_end_with_the_look() {
    let server = postgres::shared(17);
    for kind in KINDS {
        let pooler = Pooler::before(server, kind);
        let settings = [("postgres.url", &*pooler.url(Role::Agent)), ("postgres.statement_timeout", "700ms")];
        let database = database(&settings);
        for (name, want) in [
            ("statement_timeout", "700ms"),
            ("lock_timeout", "100ms"),
            ("idle_in_transaction_session_timeout", "1s"),
            ("transaction_read_only", "on"),
            ("search_path", "pg_catalog"),
            ("jit", "off"),
            ("TimeZone", "UTC"),
        ] {
            assert_eq!(setting(&database, name).await, want, "{kind}: {name}");
        }
        let mut session = database.session("test").await.unwrap();
        let error = session.query("test", "SELECT pg_catalog.pg_sleep(60)::text", &[]).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("57014"), "{kind}: {error}");
        // The next statement of the look has a transaction of its own.
        let under = [("statement_timeout", "10s"), ("work_mem", "64MB")];
        let sql = "SELECT pg_catalog.current_setting('statement_timeout') || pg_catalog.current_setting('work_mem')";
        let rows = session.query_under(&under, BOUND, "test", sql, &[]).await.unwrap();
        assert_eq!(rows[0].get::<String>(0).unwrap(), "10s64MB", "{kind}");
        let rows = session.query("test", "SELECT pg_catalog.current_setting('statement_timeout')", &[]).await.unwrap();
        assert_eq!(rows[0].get::<String>(0).unwrap(), "700ms", "{kind}");
        drop(session);
        others(&pooler).await;
        assert!(database.connections() <= 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dropped_look_asked_for_ends_with_the_statement_timeout() {
    // PgBouncer forgets a request to cancel whose sender does not wait for its end, as the driver does not.
    let server = Server::private(16);
    let pooler = Pooler::before(&server, KINDS[0]);
    let settings = [("postgres.url", &*pooler.url(Role::Agent)), ("postgres.statement_timeout", "2s")];
    let database = database(&settings);
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agent' AND state = 'active'";
    // Before anything is dropped: PgBouncer 1.18 now and then ends at a request to cancel whose sender is gone.
    let refused: Result<_, Error> =
        self::database(&[("postgres.url", &pooler.url(Role::Agent).replace("agent@", "nobody@"))])
            .session("test")
            .await
            .map(drop);
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("refused the login"), "{told}");
    let look = {
        let database = database.clone();
        tokio::spawn(async move {
            let mut session = database.session("test").await?;
            session.query("test", "SELECT pg_catalog.pg_sleep(600)::text", &[]).await.map(drop)
        })
    };
    wait_for("the statement runs", BOUND, || server.sql(running) == "1");
    look.abort();
    wait_for("the statement is ended", BOUND, || server.sql(running) == "0");
    wait_for("its connection is left", BOUND, || database.connections() == 0);
}

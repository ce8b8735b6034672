//! The reference load that is put on a server, and the queries of the usual design that the agent is compared with.
//!
//! The usual design reads the view pg_stat_statements with its texts, ordered by what ran since ever, joins pg_locks with
//! itself, and lists what is not idle.

use std::{fmt::Write, time::Duration};

use tokio_postgres::Client;

use crate::rig::{
    self,
    postgres::{Role, Server},
};

/// A server's settings for the load.
pub(crate) const SETTINGS: &str = "
max_connections = 800
shared_buffers = 256MB
pg_stat_statements.max = 5000
pg_stat_statements.track_planning = on
track_activity_query_size = 4096
autovacuum = off
";

/// What is put on the server.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// Entries that it puts into pg_stat_statements.
    pub(crate) statements: usize,
    /// Bytes of a statement's text.
    pub(crate) text: usize,
    /// Of each of five chains, how many wait: four on rows, one on a table.
    pub(crate) waiters: usize,
    pub(crate) idle: usize,
}

/// The load that most is measured under.
pub(crate) const LOAD: Load =
    Load { name: "2 KiB texts, 50 waiters", statements: 4900, text: 2048, waiters: 10, idle: 145 };

/// The usual design's queries, as far as the server has their columns.
pub(crate) fn usual(version: u32) -> [(&'static str, String); 3] {
    let blk =
        if version < 17 { "blk_read_time, blk_write_time" } else { "shared_blk_read_time, shared_blk_write_time" };
    let activity = "SELECT pid, usename, application_name, client_addr, client_port, backend_start, xact_start, query_start, \
         state_change, wait_event_type, wait_event, state, query, backend_type FROM pg_stat_activity \
         WHERE state != 'idle' AND pid != pg_backend_pid() ORDER BY query_start DESC LIMIT 100";
    let statements = format!(
        "SELECT queryid, query, calls, total_exec_time, mean_exec_time, min_exec_time, max_exec_time, stddev_exec_time, \
         rows, shared_blks_hit, shared_blks_read, shared_blks_written, local_blks_hit, local_blks_read, \
         local_blks_written, temp_blks_read, temp_blks_written, {blk} FROM public.pg_stat_statements \
         ORDER BY total_exec_time DESC LIMIT 100"
    );
    let same = ["database", "relation", "page", "tuple", "virtualxid", "transactionid", "classid", "objid", "objsubid"]
        .map(|column| format!("b.{column} IS NOT DISTINCT FROM h.{column}"));
    let locks = format!(
        "SELECT b.pid, ba.usename, ba.application_name, ba.client_addr, ba.query, ba.query_start, h.pid, ha.usename, \
         ha.application_name, ha.client_addr, ha.query, ha.query_start, b.locktype, b.mode, h.mode \
         FROM pg_locks b JOIN pg_stat_activity ba ON ba.pid = b.pid \
         JOIN pg_locks h ON b.locktype = h.locktype AND {} AND h.pid != b.pid JOIN pg_stat_activity ha ON ha.pid = h.pid \
         WHERE NOT b.granted ORDER BY ba.query_start LIMIT 50",
        same.join(" AND ")
    );
    [("activity", activity.into()), ("statements", statements), ("locks", locks)]
}

/// Runs each of the load's statements once.
pub(crate) async fn run_statements(server: &Server, load: &Load) {
    let book = server.session(Role::Plain, "book").await;
    for i in 0..load.statements {
        book.simple_query(&statement(i, load.text)).await.unwrap();
    }
}

/// Statement number `i`: its operators make it another entry than all others.
fn statement(i: usize, bytes: usize) -> String {
    const WORDS: [&str; 10] = [
        "orders",
        "customers",
        "order_lines",
        "invoices",
        "payments",
        "shipments",
        "addresses",
        "products",
        "prices",
        "stock",
    ];
    let mut text = String::from("select 1");
    for bit in 0..16 {
        write!(text, " {} {}", if i >> bit & 1 == 1 { '+' } else { '-' }, bit + 1).unwrap();
    }
    write!(text, " as {}_{i:05}", WORDS[i % 10]).unwrap();
    let mut parts = 1;
    while text.len() < bytes {
        let number = i * 7919 + parts * 104_729;
        write!(text, ", {parts} as {}_{}_{number:09}", WORDS[(i + parts) % 10], WORDS[parts % 10]).unwrap();
        parts += 1;
    }
    text
}

/// A crowd of sessions: the statements in the book, idle ones, and chains that wait.
pub(crate) async fn put(server: &Server, load: &Load) -> Vec<Client> {
    let mut crowd = Vec::new();
    server.sql("CREATE TABLE t (i int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10000) i");
    server.sql("CREATE TABLE u (i int)");
    server.sql("CREATE TABLE p (i int PRIMARY KEY, v int) PARTITION BY RANGE (i)");
    for part in 0..4 {
        let bounds = format!("({}) TO ({})", part * 1000, (part + 1) * 1000);
        server.sql(&format!("CREATE TABLE p{part} PARTITION OF p FOR VALUES FROM {bounds}"));
    }
    server.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; ANALYZE");
    run_statements(server, load).await;
    let begin = "BEGIN; SELECT count(*) FROM p WHERE v IS NULL";
    for n in 0..load.idle {
        match n % 10 {
            8 => crowd.push(session(server, &[], Some("SELECT pg_sleep(86400)")).await),
            9 => {
                crowd
                    .push(session(server, &[begin, &format!("UPDATE t SET v = 1 WHERE i = {}", 5000 + n)], None).await);
            }
            _ => crowd.push(session(server, &["SELECT 1"], None).await),
        }
    }
    for chain in (0..5).take_while(|_| load.waiters > 0) {
        let take = |row: usize| format!("UPDATE t SET v = v + 1 WHERE i = {row}");
        let (root, middle) = (2 * chain + 1, 2 * chain + 2);
        let (first, second, then): (_, _, String) = if chain < 4 {
            (vec![take(root)], (vec![take(middle)], take(root)), take(middle))
        } else {
            let reader = "SELECT * FROM u".to_owned();
            (
                vec![reader],
                (vec![], "LOCK TABLE u IN ACCESS EXCLUSIVE MODE".to_owned()),
                "SELECT count(*) FROM u WHERE i > 0".into(),
            )
        };
        let all = |own: &[String]| std::iter::once(begin.to_owned()).chain(own.iter().cloned()).collect::<Vec<_>>();
        let texts = all(&first);
        crowd.push(session(server, &texts.iter().map(String::as_str).collect::<Vec<_>>(), None).await);
        let texts = all(&second.0);
        crowd.push(session(server, &texts.iter().map(String::as_str).collect::<Vec<_>>(), Some(&second.1)).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        for _ in 1..load.waiters {
            crowd.push(session(server, &[begin], Some(&then)).await);
        }
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let want = (load.waiters * 5).to_string();
    rig::wait_for("all wait who shall", Duration::from_secs(60), || server.sql(waiting) == want);
    crowd
}

/// A session that ran some statements, and then one that is not waited for.
async fn session(server: &Server, run: &[&str], then: Option<&str>) -> Client {
    let client = server.session(Role::Plain, "web").await;
    for sql in run {
        client.simple_query(sql).await.unwrap();
    }
    if let Some(then) = then {
        let query = client.simple_query(then);
        // Polled once, so that it is sent; its answer never comes.
        let _pending = tokio::time::timeout(Duration::from_millis(1), query).await;
    }
    client
}

//! Random scenes: sessions that take rows, tables, advisory keys and transactions in each other's way, on each version and
//! on a standby. What the collector tells of them is judged by the server's own word.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::judge::Truth;
use crate::{
    looking::Looker,
    rig::{
        chance::{Dice, now_ms, number_from},
        postgres::{Role, Server, VERSIONS},
        wait_for_async,
    },
};

const BOUND: Duration = Duration::from_secs(60);
const SETTINGS: &str = "deadlock_timeout = '1h'\nautovacuum = off\nmax_prepared_transactions = 30\nmax_worker_processes = 60\n\
                        max_parallel_workers = 60\nmax_parallel_workers_per_gather = 2\nmin_parallel_table_scan_size = 0\n\
                        parallel_setup_cost = 0\nparallel_tuple_cost = 0\nparallel_leader_participation = off\n";

/// Functions that take or keep locks in a parallel worker, where their session itself has none.
const PARALLEL: &str = "
CREATE TABLE big AS SELECT i FROM generate_series(1, 1000) i;
CREATE FUNCTION peek(int) RETURNS bigint PARALLEL SAFE LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM t2); END';
CREATE FUNCTION stay(int) RETURNS int PARALLEL SAFE LANGUAGE plpgsql AS
    'BEGIN PERFORM count(*) FROM t1; PERFORM pg_sleep(3600); RETURN 1; END';";

const MODES: [&str; 8] = [
    "ACCESS SHARE",
    "ROW SHARE",
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
];

/// One of those who play a scene.
struct Actor {
    client: Arc<Client>,
    pid: i32,
    /// What it does and has not done yet: it waits, or its workers stay.
    busy: Option<JoinHandle<Result<(), tokio_postgres::Error>>>,
    in_transaction: bool,
}

impl Actor {
    async fn enter(server: &Server) -> Self {
        let client = server.session(Role::Postgres, "actor").await;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        Self { client: Arc::new(client), pid, busy: None, in_transaction: false }
    }

    /// Does something, unless it has to wait for that; then that is what it does from now on.
    async fn does(&mut self, sql: &str, control: &Client) {
        let (client, text) = (self.client.clone(), sql.to_owned());
        let mut doing = tokio::spawn(async move { client.batch_execute(&text).await });
        let is_held_up = "SELECT EXISTS (
            SELECT FROM pg_stat_activity a LEFT JOIN pg_locks l ON l.pid = a.pid AND NOT l.granted
            WHERE (a.pid = $1 OR a.leader_pid = $1) AND (l.pid IS NOT NULL OR a.wait_event = 'PgSleep'))";
        let what = format!("{} does or waits: {sql}", self.pid);
        let pid = self.pid;
        let held_up = wait_for_async(&what, BOUND, || async move {
            control.query_one(is_held_up, &[&pid]).await.unwrap().get::<_, bool>(0).then_some(())
        });
        let done = tokio::select! {
            biased;
            result = &mut doing => Some(result.unwrap().is_ok()),
            () = held_up => None,
        };
        match done {
            None => self.busy = Some(doing),
            Some(true) => {}
            // Refused, such as by a check of serialization: on with the next transaction.
            Some(false) => {
                self.client.batch_execute("ROLLBACK").await.unwrap();
                self.in_transaction = false;
            }
        }
    }
}

/// A stage: a server on which scene after scene is played.
struct Stage {
    server: Server,
    control: Client,
    looker: Looker,
    dice: Dice,
    scenes: u64,
    edges: usize,
    false_edges: usize,
    missed_roots: usize,
    repeated: u64,
    busiest: Duration,
}

impl Stage {
    async fn new(server: Server, seed: u64) -> Self {
        let control = server.session(Role::Postgres, "judge").await;
        let settings = [("postgres.url", &*server.url(Role::Agent)), ("collectors.pg_locks.limit", "100000")];
        let looker = Looker::new("pg_locks", &settings);
        let dice = Dice::new(seed + u64::from(server.version()));
        Self {
            server,
            control,
            looker,
            dice,
            scenes: 0,
            edges: 0,
            false_edges: 0,
            missed_roots: 0,
            repeated: 0,
            busiest: Duration::ZERO,
        }
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.dice.roll(from.len() as u64)).unwrap()]
    }

    /// What somebody does next in its transaction.
    fn deed(&mut self) -> String {
        let (table, row, key) = (self.dice.roll(3), 1 + self.dice.roll(4), self.dice.roll(3));
        match self.dice.roll(16) {
            0..=3 => format!("UPDATE t{table} SET v = v + 1 WHERE i = {row}"),
            4 => {
                let strength = self.pick(&["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"]);
                format!("SELECT FROM t{table} WHERE i = {row} FOR {strength}")
            }
            5 => format!("INSERT INTO t{table} VALUES ({}, 0)", 100 + row),
            6 => format!("INSERT INTO t{table} VALUES ({}, 0) ON CONFLICT DO NOTHING", 100 + row),
            7..=9 => format!("LOCK TABLE t{table} IN {} MODE", self.pick(&MODES)),
            10 => format!("SELECT pg_advisory_xact_lock{}({key})", self.pick(&["", "_shared"])),
            11 => format!("SELECT pg_advisory_lock{}({key}, -1)", self.pick(&["", "_shared"])),
            12 => "SAVEPOINT s".into(),
            13 => format!("SAVEPOINT s; DELETE FROM t{table} WHERE i = {row}; ROLLBACK TO s"),
            14 => self.pick(&["SELECT sum(peek(i)) FROM big", "SELECT sum(stay(i)) FROM big"]).into(),
            _ => self
                .pick(&["TRUNCATE t0", "ALTER TABLE t1 ADD COLUMN IF NOT EXISTS w int", "SELECT count(*) FROM t2"])
                .into(),
        }
    }

    async fn step(&mut self, actor: &mut Actor, name: String) {
        if !actor.in_transaction {
            if self.dice.roll(12) == 0 {
                let table = self.dice.roll(3);
                return actor.does(&format!("CREATE INDEX CONCURRENTLY ON t{table} (v)"), &self.control).await;
            }
            let how = self.pick(&["", "", "ISOLATION LEVEL REPEATABLE READ", "ISOLATION LEVEL SERIALIZABLE"]);
            actor.client.batch_execute(&format!("BEGIN {how}")).await.unwrap();
            actor.in_transaction = true;
        }
        match self.dice.roll(12) {
            0 => {
                actor.does("COMMIT", &self.control).await;
                actor.in_transaction = false;
            }
            1 => {
                actor.does(&format!("PREPARE TRANSACTION '{name}'"), &self.control).await;
                actor.in_transaction = false;
            }
            _ => {
                let deed = self.deed();
                actor.does(&deed, &self.control).await;
            }
        }
    }

    async fn play(&mut self) {
        self.control
            .batch_execute(
                "DROP TABLE IF EXISTS t0, t1, t2;
                 CREATE TABLE t0 (i int PRIMARY KEY, v int); INSERT INTO t0 SELECT i, 0 FROM generate_series(1, 6) i;
                 CREATE TABLE t1 (i int PRIMARY KEY, v int); INSERT INTO t1 SELECT i, 0 FROM generate_series(1, 6) i;
                 CREATE TABLE t2 (i int PRIMARY KEY, v int); INSERT INTO t2 SELECT i, 0 FROM generate_series(1, 6) i",
            )
            .await
            .unwrap();
        let mut actors = Vec::new();
        for _ in 0..6 + self.dice.roll(15) {
            actors.push(Actor::enter(&self.server).await);
        }
        for turn in 0..actors.len() * 5 {
            let at = usize::try_from(self.dice.roll(actors.len() as u64)).unwrap();
            if actors[at].busy.is_none() {
                self.step(&mut actors[at], format!("scene {} turn {turn}", self.scenes)).await;
            }
        }
        self.look().await;
        self.clear().await;
    }

    /// Looks while nothing moves, and judges.
    async fn look(&mut self) {
        let start = Instant::now();
        loop {
            let truth = Truth::ask(&self.control).await;
            let look = Instant::now();
            let looked = self.looker.look().await;
            self.busiest = self.busiest.max(look.elapsed());
            if truth == Truth::ask(&self.control).await {
                let verdict = truth.judge(&looked.event);
                self.scenes += 1;
                self.edges += truth.edges.len();
                self.false_edges += verdict.false_edges.len();
                self.missed_roots += verdict.missed_roots.len();
                let told = serde_json::to_string_pretty(&looked.event).unwrap();
                let version = self.server.version();
                assert_eq!(verdict.faults, [""; 0], "{version}: {verdict:?} {truth:#?} {told}");
                assert_eq!(verdict, super::judge::Verdict::default(), "{version}: {truth:#?} {told}");
                assert_eq!(looked.degraded, None, "{version}");
                return;
            }
            self.repeated += 1;
            assert!(start.elapsed() < BOUND, "the scene does not come to rest");
        }
    }

    /// Sends everybody home.
    async fn clear(&self) {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'actor'";
        let gone = || async { self.control.query_one(end, &[]).await.unwrap().get::<_, i64>(0) == 0 };
        wait_for_async("the actors leave", BOUND, || async { gone().await.then_some(()) }).await;
        for row in self.control.query("SELECT gid FROM pg_prepared_xacts", &[]).await.unwrap() {
            self.control.batch_execute(&format!("ROLLBACK PREPARED '{}'", row.get::<_, &str>(0))).await.unwrap();
        }
    }

    fn report(&self, on: &str, seed: u64) {
        println!(
            "figure: PostgreSQL {}{on}: {} scenes, {} edges, {} false, {} missed roots; {} looks again since something \
             moved, the longest took {:?} (FAULT_SEED={seed})",
            self.server.version(),
            self.scenes,
            self.edges,
            self.false_edges,
            self.missed_roots,
            self.repeated,
            self.busiest,
        );
    }
}

fn scenes() -> (u64, u64) {
    (number_from("LOCK_SCENES").unwrap_or(4), number_from("FAULT_SEED").unwrap_or_else(now_ms))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_random_scenes_every_edge_is_the_servers_and_no_root_is_missed() {
    let (scenes, seed) = scenes();
    for version in VERSIONS {
        println!("FAULT_SEED={seed}");
        let server = Server::with_settings(version, SETTINGS);
        server.sql(PARALLEL);
        let mut stage = Stage::new(server, seed).await;
        for _ in 0..scenes {
            stage.play().await;
        }
        stage.report("", seed);
        assert!(stage.edges > 0, "nobody waited in any scene");
    }
}

/// On the primary, commits and waits until the standby has replayed that or cannot.
async fn replayed(primary: &Client, standby: &Client) {
    let flush = "SET synchronous_commit = on; INSERT INTO ping VALUES (1)";
    primary.batch_execute(flush).await.unwrap();
    let at: String = primary.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    let there = format!(
        "SELECT pg_last_wal_replay_lsn() >= '{at}'::pg_lsn OR EXISTS (
             SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE NOT l.granted AND a.backend_type = 'startup')"
    );
    wait_for_async("the standby replays or waits", BOUND, || async {
        standby.query_one(&there, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

impl Stage {
    /// Readers on a standby, and a primary whose locks replay has to take.
    async fn play_on_standby(&mut self, primary: &Server, control: &Client) {
        let mut actors = Vec::new();
        for _ in 0..4 + self.dice.roll(9) {
            let actor = Actor::enter(&self.server).await;
            actor.client.batch_execute("BEGIN").await.unwrap();
            actors.push(actor);
        }
        let writer = primary.session(Role::Postgres, "writer").await;
        writer.batch_execute("BEGIN").await.unwrap();
        for _ in 0..actors.len() * 3 {
            if self.dice.roll(6) == 0 {
                let end = self.pick(&["", "", "; COMMIT; BEGIN"]);
                let lock = format!("LOCK TABLE t{} IN ACCESS EXCLUSIVE MODE{end}", self.dice.roll(3));
                writer.batch_execute(&lock).await.unwrap();
                replayed(control, &self.control).await;
                continue;
            }
            let at = usize::try_from(self.dice.roll(actors.len() as u64)).unwrap();
            if actors[at].busy.is_none() {
                let (table, key) = (self.dice.roll(3), self.dice.roll(2));
                let deed = match self.dice.roll(4) {
                    0 => format!("SELECT pg_advisory_xact_lock{}({key})", self.pick(&["", "_shared"])),
                    1 => format!("LOCK TABLE t{table} IN {} MODE", self.pick(&MODES[..3])),
                    _ => format!("SELECT count(*) FROM t{table}"),
                };
                actors[at].does(&deed, &self.control).await;
            }
        }
        self.look().await;
        writer.batch_execute("ROLLBACK").await.unwrap();
        self.clear().await;
        let at_rest = "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted OR mode = 'AccessExclusiveLock')";
        wait_for_async("replay goes on", BOUND, || async {
            replayed(control, &self.control).await;
            self.control.query_one(at_rest, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_random_scenes_on_a_standby_replay_and_readers_are_told_as_they_are() {
    let (scenes, seed) = scenes();
    for version in VERSIONS {
        println!("FAULT_SEED={seed}");
        let (primary, standby) = Server::with_standby(version);
        primary.sql(
            "CREATE TABLE ping (i int); CREATE TABLE t0 (i int); CREATE TABLE t1 (i int); CREATE TABLE t2 (i int)",
        );
        standby.sql("ALTER SYSTEM SET max_standby_streaming_delay = -1");
        standby.sql("ALTER SYSTEM SET deadlock_timeout = '1h'");
        standby.sql("SELECT pg_reload_conf()");
        let control = primary.session(Role::Postgres, "control").await;
        let mut stage = Stage::new(standby, seed).await;
        replayed(&control, &stage.control).await;
        for _ in 0..scenes {
            stage.play_on_standby(&primary, &control).await;
        }
        stage.report(" standby", seed);
        assert!(stage.edges > 0, "nobody waited in any scene");
    }
}

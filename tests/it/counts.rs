//! What the agent asks of the kernel, the database and the processor, counted: each figure has a bound with room for a
//! quarter or more. Allocations are counted in `tests/counts`, what the disk is asked for in the spool's own tests.

use std::{fs, path::Path, process::Command, time::Duration};

use postgres_agent::{
    collectors, config,
    spool::{Draft, Spool},
};

use crate::rig::{
    Folder,
    agent::{Agent, command},
    disk::under_log,
    must,
    postgres::{Role, Server},
    rabbit, wait_for_async,
};

const BOUND: Duration = Duration::from_secs(60);
const COLLECTORS: [&str; 5] = ["pg_activity", "pg_statements", "pg_locks", "system_metrics", "agent_status"];

/// All collectors each second, into a queue and an exchange of this name.
fn each_second(server: &Server, folder: &Folder, name: &str) -> String {
    let every = COLLECTORS.map(|collector| format!("collectors.{collector}.interval = '1s'\n")).concat();
    format!(
        "postgres.url = '{}'\namqp.url = '{}'\namqp.exchange = '{name}'\nspool.dir = '{}'\nspool.min_free = '1MiB'\n{every}",
        server.url(Role::Agent),
        rabbit::shared().url(),
        folder.path().join("spool").display()
    )
}

/// Waits for so many messages more, and gives how many there are then.
async fn messages(queue: &str, more: u32) -> u32 {
    let broker = rabbit::shared();
    let before = broker.ready_messages(queue).await;
    let enough = || async { Some(broker.ready_messages(queue).await).filter(|now| *now >= before + more) };
    wait_for_async("messages in the queue", BOUND, enough).await
}

/// A message's share, in tenths.
#[track_caller]
fn within(what: &str, tenths: u64, bound: u64) {
    println!("figure: counts: {what}: {}.{}", tenths / 10, tenths % 10);
    assert!(tenths > 0, "{what}: nothing was counted");
    assert!(tenths <= bound * 10, "{what}: {}.{} where {bound} is the most", tenths / 10, tenths % 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_at_rest_costs_few_system_calls_and_a_cycle_few_statements() {
    let (name, folder) = ("counts-rest", Folder::new("counts-rest"));
    let server = tokio::task::block_in_place(|| Server::private(17));
    let log = folder.path().join("calls");
    let Some(under) = under_log("all", &log) else { return };
    rabbit::shared().durable_queue(name, name).await;
    let agent = Agent::start_under(&under, folder.path(), &each_second(&server, &folder, name));
    // The first looks read what later ones know.
    let before = messages(name, 15).await;
    let calls = || fs::read_to_string(&log).unwrap().lines().filter(|line| !line.contains(" resumed>")).count() as u64;
    let statements = || {
        let sql = "SELECT sum(calls) FROM pg_stat_statements WHERE userid = 'agent'::regrole";
        tokio::task::block_in_place(|| server.sql(sql)).parse::<u64>().unwrap()
    };
    let (called, asked) = (calls(), statements());
    let after = messages(name, 50).await;
    let (called, asked) = (calls() - called, statements() - asked);
    let count = u64::from(after - before);
    within("system calls for a message at rest", called * 10 / count, 70);
    // Of the five collectors.
    within("statements in a cycle", asked * 10 * 5 / count, 15);
    let (status, _) = tokio::task::block_in_place(|| agent.stop(BOUND));
    assert!(status.success(), "{status}");
}

/// A folder with so many messages of one collector in it, each with a body of 1 KiB.
fn leave_behind(dir: &Path, config: &str, count: u32) {
    let file = dir.join("agent.toml");
    fs::write(&file, config).unwrap();
    let config = config::load(Some(&file)).unwrap().config;
    let spool = Spool::open(config.spool, collectors::by_importance()).unwrap();
    for _ in 0..count {
        let draft = Draft { collector: "pg_locks", events: 1, version: 1, zstd: false };
        spool.number(draft, |_| Ok(vec![b'x'; 1024])).unwrap();
    }
    spool.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_under_load_costs_next_to_no_system_calls() {
    const COUNT: u32 = 5_000;
    let (name, folder) = ("counts-load", Folder::new("counts-load"));
    let log = folder.path().join("calls");
    let Some(under) = under_log("all", &log) else { return };
    rabbit::shared().durable_queue(name, name).await;
    let config = format!(
        "amqp.url = '{}'\namqp.exchange = '{name}'\nspool.dir = '{}'\nspool.min_free = '1MiB'\n",
        rabbit::shared().url(),
        folder.path().join("spool").display()
    );
    tokio::task::block_in_place(|| leave_behind(folder.path(), &config, COUNT));
    let replay = command(["spool", "replay", "--config"]);
    let mut replay_under = Command::new(&under[0]);
    replay_under.args(&under[1..]).arg(replay.get_program()).args(replay.get_args());
    tokio::task::block_in_place(|| must(replay_under.arg(folder.path().join("agent.toml"))));
    assert!(rabbit::shared().ready_messages(name).await >= COUNT);
    let log = fs::read_to_string(&log).unwrap();
    let calls = log.lines().filter(|line| !line.contains(" resumed>")).count() as u64;
    within("system calls for a message of a backlog", calls * 10 / u64::from(COUNT), 6);
}

/// Instructions of a command, as callgrind counts them.
fn instructions(folder: &Path, arguments: &[&str]) -> u64 {
    let agent = command(arguments);
    let mut counted = Command::new("valgrind");
    counted.args(["--tool=callgrind", "--error-exitcode=0"]);
    counted.arg(format!("--callgrind-out-file={}", folder.join("callgrind").display()));
    let output = counted.arg(agent.get_program()).args(agent.get_args()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    collected.unwrap_or_else(|| panic!("callgrind counted nothing: {told}")).1.trim().parse().unwrap()
}

#[test]
fn a_record_that_is_verified_costs_this_many_instructions() {
    let [few, many] = [1_000, 2_000].map(|count| {
        let folder = Folder::new("counts-instructions");
        let dir = folder.path().join("spool");
        let config = format!("amqp.url = 'amqp://localhost'\nspool.dir = '{}'\nspool.min_free = '0'\n", dir.display());
        leave_behind(folder.path(), &config, count);
        instructions(folder.path(), &["spool", "verify", "--dir", dir.to_str().unwrap()])
    });
    // What both have in common is no record's. The bound is of an unoptimized build.
    within("instructions of spool verify, a record of 1 KiB", (many - few) * 10 / 1_000, 20_000);
}

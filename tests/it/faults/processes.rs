//! Faults of the process, the clock and the network around it: killed while it recovers, stopped and continued, starved, with
//! a clock that jumps, with names that lead elsewhere, a hundred of them at once, and several at a time.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    courier::Courier,
    layout::{COLLECTORS, waits},
    left::Left,
    report,
    scene::{BOUND, Scene, nothing},
};
use crate::rig::{
    agent::Agent,
    chance::{Dice, now_ms, number_from},
    disk::{under_hosts, under_strace},
    proxy::{Line, Proxy},
    rabbit::{self, Broker},
    wait_for,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_while_it_recovers_it_finds_everything_in_the_end() {
    let left = Left::behind("recovering", (3, "kill -9 during recovery, again and again"), "", 30).await;
    let seed = number_from("FAULT_SEED").unwrap_or_else(now_ms);
    println!("FAULT_SEED={seed}");
    let mut dice = Dice::new(seed);
    let before: Vec<usize> = COLLECTORS.iter().map(|name| waits(&left.spool(), name)).collect();
    for _ in 0..25 {
        let agent = left.scene.start(&left.line.url(), "");
        tokio::time::sleep(dice.between(0, 60)).await;
        agent.kill();
    }
    for (name, before) in COLLECTORS.iter().zip(before) {
        assert!(waits(&left.spool(), name) >= before, "{name}: less than before, with the broker away");
    }
    let evidence = left.goes_on().await;
    assert_eq!(evidence.declared.len(), 0, "{:?}", evidence.declared);
}

/// By collector, the ranges of one run.
type Ranges = BTreeMap<String, Vec<(u64, u64)>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_agents_that_died_before_their_first_status_was_sent_each_later_one_tells_all() {
    let line = Proxy::to(rabbit::shared().port()).await;
    let scene =
        Scene::new("unheard", &rabbit::shared().url(), &["#"]).await.of(1, "killed before the first status").times(3);
    line.set(Line::Cut);
    let all_logs = |records: usize| {
        let spool = scene.spool();
        wait_for("a backlog of every log", BOUND, || COLLECTORS.iter().all(|name| waits(&spool, name) >= records));
    };
    for run in 1..=3 {
        let agent = scene.start(&line.url(), "");
        all_logs(3 * run);
        agent.kill();
    }
    let agent = scene.start(&line.url(), "");
    all_logs(12);
    // Nothing was delivered yet, so that the spool holds every message, and the truth of each status can be told from it.
    let (mut runs, mut statuses) = (Vec::<String>::new(), 0);
    let mut last = BTreeMap::<String, Ranges>::new();
    for mut body in scene.dump() {
        let (run, collector) = (body["run_id"].as_str().unwrap().to_owned(), body["collector"].take());
        let (collector, seq) = (collector.as_str().unwrap().to_owned(), body["seq"].as_u64().unwrap());
        if !runs.contains(&run) {
            runs.push(run.clone());
        }
        if collector == "agent_status" {
            let data = &body["events"][0]["data"];
            let previous: Vec<&str> =
                data["previous_runs"].as_array().unwrap().iter().map(|run| run["run_id"].as_str().unwrap()).collect();
            assert_eq!(previous, runs[..runs.len() - 1], "{run}/{seq}");
            for told in data["previous_runs"].as_array().unwrap() {
                let ends = told["last_seq"].as_object().unwrap().iter();
                let ends: Ranges = ends.map(|(name, seq)| (name.clone(), vec![(1, seq.as_u64().unwrap())])).collect();
                assert_eq!(ends, last[told["run_id"].as_str().unwrap()], "{run}/{seq}");
            }
            let mut waiting = BTreeMap::<String, Ranges>::new();
            for range in data["waiting"].as_array().unwrap() {
                let text = |key: &str| range[key].as_str().unwrap().to_owned();
                let of_run = waiting.entry(text("run_id")).or_default();
                let bounds = (range["first_seq"].as_u64().unwrap(), range["last_seq"].as_u64().unwrap());
                of_run.entry(text("collector")).or_default().push(bounds);
            }
            assert_eq!(waiting, last, "{run}/{seq}");
            statuses += 1;
        }
        last.entry(run).or_default().insert(collector, vec![(1, seq)]);
    }
    assert!(runs.len() == 4 && statuses >= 8, "{statuses} statuses of {} runs prove nothing", runs.len());
    line.set(Line::Open);
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_closes_its_connections_or_restarts_is_come_back_to() {
    let broker = tokio::task::block_in_place(Broker::private);
    let scene = Scene::new("restarts", &broker.url(), &["#"]).await.of(25, "connections closed (320), restart");
    let agent = scene.start(&broker.url(), "");
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    tokio::task::block_in_place(|| {
        broker.ctl(&["eval", "[rabbit_networking:close_connection(P, \"maintenance\") || P <- rabbit_networking:connections(), proplists:get_value(client_properties, rabbit_reader:info(P, [client_properties]), []) =/= []]."])
    });
    wait_for("it says that the connection was closed", BOUND, || scene.log().contains("maintenance"));
    wait_for("it comes back", BOUND, || scene.log().matches("connected to the broker").count() >= 2);
    // The test's own channel is closed as well: what follows is looked at by the judges alone.
    tokio::task::block_in_place(|| {
        broker.stop();
        std::thread::sleep(Duration::from_secs(2));
        broker.start();
    });
    wait_for("it comes back after a restart", BOUND, || scene.log().matches("connected to the broker").count() >= 3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (status, _) = tokio::task::block_in_place(|| agent.stop(Duration::from_secs(20)));
    assert!(status.success());
    assert_eq!(scene.judge(), nothing());
    report::tell_none(25, "connections closed (320), restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_continued_it_connects_anew_and_makes_up_for_nothing() {
    let broker = rabbit::shared();
    let line = Proxy::to(broker.port()).await;
    let scene = Scene::new("suspended", &broker.url(), &["#"]).await.of(49, "SIGSTOP for 12 s, SIGCONT");
    let agent = scene.start(&line.url(), "amqp.heartbeat = '2s'");
    let before = scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    agent.signal(Signal::STOP);
    // The broker gives up on it meanwhile.
    tokio::time::sleep(Duration::from_secs(12)).await;
    while scene.next_status().await.is_some() {}
    agent.signal(Signal::CONT);
    let continued = Instant::now();
    let first = scene.status("it speaks again", |_| true).await;
    assert!(continued.elapsed() < Duration::from_secs(10), "{:?}", continued.elapsed());
    // What was missed is not made up for: 12 s are 60 looks of 200 ms.
    let looks = first.data["collectors"]["pg_locks"]["runs"].as_u64().unwrap()
        - before.data["collectors"]["pg_locks"]["runs"].as_u64().unwrap();
    assert!(looks < 30, "{looks} looks at once");
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starved_of_cpu_it_keeps_its_connection_and_loses_nothing() {
    let scene = Scene::new("starved", &rabbit::shared().url(), &["#"]).await.of(51, "nice 19 beside four busy loops");
    let under: Vec<String> = ["nice", "-n", "19"].map(str::to_owned).into();
    let config = scene.config(&rabbit::shared().url(), "amqp.heartbeat = '4s'");
    let agent = Agent::start_under(&under, scene.path(), &config);
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    let mut busy: Vec<_> =
        (0..4).map(|_| Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap()).collect();
    tokio::time::sleep(Duration::from_secs(12)).await;
    while scene.next_status().await.is_some() {}
    let status = scene.status("it still speaks", |_| true).await;
    for child in &mut busy {
        let _ = child.kill();
        let _ = child.wait();
    }
    assert_eq!(status.counts("reconnects"), 0, "taken for half-open:\n{}", scene.log());
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_a_day_either_way_moves_no_timer_and_no_number() {
    // Only the wall clock of the agent: a library that is loaded before all others.
    let Some(faketime) = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"))
        .into_iter()
        .find(|path| fs::exists(path).unwrap())
    else {
        println!("left out: libfaketime is not installed");
        return;
    };
    let scene = Scene::new("clock", &rabbit::shared().url(), &["#"]).await.of(48, "wall clock +1 day, -1 day");
    let clock = scene.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    let under: Vec<String> = [
        "env",
        &format!("LD_PRELOAD={faketime}"),
        &format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ]
    .map(str::to_owned)
    .into();
    let agent = Agent::start_under(&under, scene.path(), &scene.config(&rabbit::shared().url(), ""));
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    for jump in ["+1d", "-1d"] {
        fs::write(&clock, jump).unwrap();
        let before = scene.status("a status", |_| true).await;
        let start = Instant::now();
        let after = scene.status("it goes on", |status| status.sent("pg_locks") > before.sent("pg_locks") + 10).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{jump}: {:?}", start.elapsed());
        let uptime = |status: &super::scene::Status| status.data["uptime_s"].as_f64().unwrap();
        assert!((0.0..60.0).contains(&(uptime(&after) - uptime(&before))), "{jump}");
        assert_eq!(after.counts("reconnects"), 0, "{jump}");
    }
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_elsewhere_is_looked_up_with_each_try() {
    // A hosts file of its own, in a mount namespace of its own.
    let scene = Scene::new("names", &rabbit::shared().url(), &["#"]).await.of(31, "name unknown, wrong, right");
    let hosts = scene.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let Some(under) = under_hosts(&hosts) else { return };
    let url = format!("amqp://guest:guest@broker.postgres-agent.test:{}/%2f", rabbit::shared().port());
    let agent = Agent::start_under(&under, scene.path(), &scene.config(&url, ""));
    wait_for("it says that it finds no such host", BOUND, || scene.log().contains("broker.postgres-agent.test"));
    // There, but nobody listens: the file stays the same one, so that the mount sees it.
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.9 broker.postgres-agent.test\n").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    fs::write(&hosts, "127.0.0.1 localhost broker.postgres-agent.test\n").unwrap();
    scene.status("it flows", |status| status.counts("confirmed") > 5).await;
    // The judges see no such name.
    fs::write(scene.path().join("agent.toml"), scene.config(&rabbit::shared().url(), "")).unwrap();
    assert_eq!(scene.end(agent).await, nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_agents_come_back_to_one_broker_spread_over_time() {
    const AGENTS: usize = 100;
    let broker = rabbit::shared();
    let mut lines = Vec::new();
    let mut couriers = Vec::new();
    for number in 0..AGENTS {
        let name = format!("herd-{number}");
        let line = Proxy::to(broker.port()).await;
        couriers.push(Courier::patient(&name, &line.url(), "amqp.exchange = 'herd'"));
        lines.push(line);
    }
    let until = Instant::now() + BOUND;
    while lines.iter().any(|line| line.accepted() == 0) {
        assert!(Instant::now() < until, "waited in vain: all are connected");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for line in &lines {
        line.set(Line::Cut);
    }
    // Long enough that pauses have grown.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before: Vec<u32> = lines.iter().map(Proxy::accepted).collect();
    let opened = Instant::now();
    for line in &lines {
        line.set(Line::Open);
    }
    let mut back = vec![None; AGENTS];
    while back.iter().any(Option::is_none) {
        assert!(opened.elapsed() < Duration::from_secs(20), "waited in vain: all are back");
        for (number, line) in lines.iter().enumerate() {
            if back[number].is_none() && line.accepted() > before[number] {
                back[number] = Some(opened.elapsed().as_millis());
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut seconds = [0usize; 20];
    back.iter().flatten().for_each(|ms| seconds[usize::try_from(ms / 1000).unwrap()] += 1);
    let last = seconds.iter().rposition(|count| *count > 0).unwrap() + 1;
    println!("figure: a hundred agents are back, by second: {:?}", &seconds[..last]);
    // Pauses are random from none to 8 or 10 s: no second has three times the mean, and a little chance.
    assert!(*seconds.iter().max().unwrap() <= 3 * AGENTS / last.max(5) + 10, "{seconds:?}");
    report::tell_none(54, "100 agents reconnect at once");
    for courier in couriers {
        courier.end(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_a_broker_that_is_away_and_kills_at_once_lose_nothing() {
    let rounds: u32 = number_from("FAULT_ROUNDS").unwrap_or(5);
    let seed = number_from("FAULT_SEED").unwrap_or_else(now_ms);
    println!("FAULT_SEED={seed}");
    let mut dice = Dice::new(seed);
    let line = Proxy::to(rabbit::shared().port()).await;
    let scene = Scene::new("all-at-once", &rabbit::shared().url(), &["#"])
        .await
        .of(52, "slow disk, no broker, kill -9")
        .times(rounds);
    let Some(slow) = under_strace("fdatasync:delay_enter=400000", &[]) else { return };
    for _ in 0..rounds {
        let agent = Agent::start_under(&slow, scene.path(), &scene.config(&line.url(), "spool.sync_after = '100ms'"));
        for _ in 0..3 {
            line.set(if dice.roll(2) == 0 { Line::Cut } else { Line::Open });
            tokio::time::sleep(dice.between(200, 1500)).await;
        }
        // strace goes with it: it is the agent's own process group.
        agent.kill();
    }
    line.set(Line::Open);
    let agent = scene.start(&line.url(), "");
    assert_eq!(scene.end(agent).await, nothing());
}

//! What piles up while the broker is gone, or takes nothing, or comes and goes: on disk, not in memory, and nothing is lost.
//!
//! CI runs short versions. `FAULT_PILE=36000` piles up so many messages, `FAULT_FLAPS=100` lets the line flap so often,
//! `FAULT_OUTAGE=600` keeps the broker away from ten agents for so many seconds.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lapin::{
    ExchangeKind,
    options::{BasicGetOptions, ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use postgres_agent::spool::mark::Marked;

use super::{
    answers::{Took, script, tell},
    courier::{Courier, LOGS},
    report,
    scene::{BOUND, rss},
};
use crate::rig::{
    alone,
    chance::{Dice, number_from},
    peer::{Heard, POLITE, Peer, Say, Script},
    proxy::{Line, Proxy},
    rabbit::{self, Broker},
    wait_for_async,
};

/// Memory does not grow while messages pile up: at most so much above rest.
const GROWTH: u64 = 4 << 20;

/// Takes everything, unless it is blocked, which it says.
fn takes_unless(blocked: Arc<AtomicBool>, took: Took) -> Script {
    let mut said = false;
    script(move |heard| match heard {
        Heard::Published(published) => {
            took.take(&published);
            vec![Say::Ack(published.channel, published.tag, false)]
        }
        Heard::Silence => {
            let now = blocked.load(Ordering::SeqCst);
            match std::mem::replace(&mut said, now) {
                was if was == now => Vec::new(),
                true => vec![Say::Unblocked],
                false => vec![Say::Blocked],
            }
        }
    })
}

/// In a process of its own: how much memory is it that grows?
async fn pile_up(fault: &'static str, row: u32, away: impl Fn(&Proxy, &AtomicBool, bool)) {
    let pile: usize = number_from("FAULT_PILE").unwrap_or(4_000);
    let (took, blocked) = (Took::default(), Arc::new(AtomicBool::new(false)));
    let (taken, is_blocked) = (took.clone(), Arc::clone(&blocked));
    let peer = Peer::start(move |_| (POLITE, takes_unless(Arc::clone(&is_blocked), taken.clone()))).await;
    // The memory of a peer that keeps everything would hide what the agent takes.
    peer.keep_nothing();
    let line = Proxy::to(peer.port()).await;
    let courier = Courier::start("pile", &line.url(), "spool.max_bytes = '2GiB'");
    // At rest: what a busy day leaves in the allocator is there already.
    for _ in 0..200 {
        courier.number_all(5_000);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    courier.all_delivered().await;
    let rest = rss(std::process::id());
    away(&line, &blocked, true);
    courier.waits_for("the agent notices", |courier| !courier.trouble().is_empty()).await;
    let (start, mut most) = (Instant::now(), 0);
    for number in 0..pile {
        courier.number(LOGS[number % LOGS.len()], 5_000);
        if number % 200 == 0 {
            most = most.max(rss(std::process::id()));
            tokio::task::yield_now().await;
        }
    }
    most = most.max(rss(std::process::id()));
    assert!(courier.waiting() >= pile as u64);
    let (piled, mib) = (start.elapsed(), |bytes: u64| bytes as f64 / f64::from(1 << 20));
    let grown = most.saturating_sub(rest);
    println!(
        "figure: {fault}: {pile} messages piled up in {piled:?}: RSS {:.1} MiB at rest, {:+.1} MiB",
        mib(rest),
        mib(grown)
    );
    assert!(grown <= GROWTH, "{:.1} MiB above rest", mib(grown));
    away(&line, &blocked, false);
    courier.all_delivered().await;
    assert_eq!(took.count(), 200 * LOGS.len() + pile);
    tell(row, fault, 1, &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

fn run(scene: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(scene);
}

#[test]
fn while_the_broker_is_gone_messages_pile_up_on_disk_and_not_in_memory() {
    if alone("faults::pile_up::while_the_broker_is_gone_messages_pile_up_on_disk_and_not_in_memory") {
        run(pile_up("broker gone, messages pile up", 23, |line, _, away| {
            line.set(if away { Line::Cut } else { Line::Open });
        }));
    }
}

#[test]
fn while_the_broker_is_blocked_messages_pile_up_on_disk_and_not_in_memory() {
    if alone("faults::pile_up::while_the_broker_is_blocked_messages_pile_up_on_disk_and_not_in_memory") {
        run(pile_up("connection blocked, messages pile up", 32, |_, blocked, away| {
            blocked.store(away, Ordering::SeqCst);
        }));
    }
}

/// The most ranges that the mark keeps of any run and log.
fn ranges(spool: &Path) -> usize {
    let Ok(file) = fs::File::open(spool.join("mark")) else { return 0 };
    let runs = Marked::read(&file).body.map(|body| body.runs).unwrap_or_default();
    runs.iter().flat_map(|run| run.logs.values()).map(|log| log.settled.len()).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flaps_with_a_backlog_that_is_never_drained_keep_acked_ranges_bounded_and_lose_nothing() {
    let flaps: usize = number_from("FAULT_FLAPS").unwrap_or(40);
    let took = Took::default();
    let taken = took.clone();
    let peer = Peer::start(move |connection| {
        let (taken, mut dice) = (taken.clone(), Dice::new(connection as u64 + 1));
        if connection >= flaps {
            return (POLITE, takes_unless(Arc::default(), taken));
        }
        // It takes two thirds of what comes, in no order, and is gone.
        let mut left = 20 + dice.roll(150);
        let hear = move |heard| match heard {
            Heard::Published(published) => {
                left = left.saturating_sub(1);
                if left == 0 || dice.roll(3) == 0 {
                    return Vec::new();
                }
                taken.take(&published);
                vec![Say::Ack(published.channel, published.tag, false)]
            }
            Heard::Silence if left == 0 => vec![Say::Reset],
            Heard::Silence => Vec::new(),
        };
        (POLITE, script(hear))
    })
    .await;
    let courier = Courier::start("flaps", &peer.url(), "amqp.confirm_timeout = '2s'");
    let (mut numbered, mut most) = (0, 0);
    let start = Instant::now();
    while peer.accepted() < flaps {
        assert!(
            start.elapsed() < BOUND + Duration::from_secs(2) * u32::try_from(flaps).unwrap(),
            "waited in vain: all flaps"
        );
        // Always more than there is.
        while courier.waiting() < 1_500 {
            courier.number_all(200);
            numbered += LOGS.len();
        }
        most = most.max(ranges(&courier.folder().join("spool")));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    courier.all_delivered().await;
    assert_eq!(took.count(), numbered, "lost in {flaps} flaps");
    println!(
        "figure: {flaps} flaps: {numbered} messages, {} duplicates, at most {most} acked ranges of a log",
        took.duplicates()
    );
    assert!((1..=64).contains(&most), "{most} acked ranges of a log");
    tell(23, "flaps, backlog never drained", u32::try_from(flaps).unwrap(), &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

/// A queue that gets only what is published for the first time.
async fn fresh_queue(broker: &Broker, exchange: &str) -> String {
    // What waited goes here, and is not looked at.
    broker.durable_queue(exchange, exchange).await;
    let (connection, channel) = broker.channel().await;
    let (fresh, table) = (format!("{exchange}-fresh"), FieldTable::default);
    let (own, from) = (|| fresh.as_str().into(), || exchange.into());
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(own(), ExchangeKind::Headers, durable, table()).await.unwrap();
    channel.exchange_bind(own(), from(), "#".into(), ExchangeBindOptions::default(), table()).await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(own(), durable, table()).await.unwrap();
    let mut first_time = table();
    first_time.insert("x-match".into(), AMQPValue::LongString("all".into()));
    first_time.insert("replayed".into(), AMQPValue::Boolean(false));
    channel.queue_bind(own(), own(), "".into(), QueueBindOptions::default(), first_time).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
    fresh
}

/// One agent's way to the broker that is cut for so long: how long after it is open does the first fresh message come, and
/// how much of that was the agent's pause?
async fn first_fresh(number: u32, outage: Duration, turn: Duration) -> (Duration, Duration) {
    let broker = rabbit::shared();
    let (name, line) = (format!("outage-{number}"), Proxy::to(broker.port()).await);
    let fresh = fresh_queue(broker, &name).await;
    let (_connection, channel) = broker.channel().await;
    let courier = Courier::patient(&name, &line.url(), &format!("amqp.exchange = '{name}'"));
    // A sample each second, of each collector.
    let each_second = async {
        loop {
            courier.number_all(2_000);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let watch = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        line.set(Line::Cut);
        // One after the other: it is not about ten backlogs at once that a broker is given.
        tokio::time::sleep(outage + turn * number).await;
        let get = async || channel.basic_get(fresh.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
        while get().await.is_some() {}
        let (opened, tries) = (Instant::now(), line.accepted());
        line.set(Line::Open);
        wait_for_async("a try", BOUND, async || (line.accepted() > tries).then_some(())).await;
        let paused = opened.elapsed();
        wait_for_async("a fresh message", BOUND, async || get().await.map(drop)).await;
        (opened.elapsed(), paused)
    };
    let took = tokio::select! {
        took = watch => took,
        never = each_second => never,
    };
    courier.all_delivered().await;
    courier.end(Duration::from_secs(5)).await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_the_first_fresh_message_comes_soon() {
    let outage = Duration::from_secs(number_from("FAULT_OUTAGE").unwrap_or(15));
    let turn = (outage / 10).min(Duration::from_secs(15));
    let all = futures_util::future::join_all((0..10).map(|number| first_fresh(number, outage, turn)));
    let mut took = all.await;
    took.sort();
    let median = (took[4].0 + took[5].0) / 2;
    println!(
        "figure: {outage:?} without a broker: first fresh message median {median:?}; each, and its pause: {took:?}"
    );
    // Pauses are random from none to 10 s: one of ten may be just begun.
    assert!(median <= Duration::from_secs(7) && took[9].0 <= Duration::from_secs(13), "{took:?}");
    report::tell_none(23, "ten agents without a broker, first fresh");
}

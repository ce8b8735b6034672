//! What a broker may answer to messages: returns, acks and nacks in any order, several at once, twice, or never. The peer is
//! scripted and knows what it took; nothing else may count as delivered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    courier::{Courier, LOGS, number},
    report::{self, Fault},
    scene::BOUND,
};
use crate::rig::{
    chance::Dice,
    peer::{Heard, POLITE, Peer, Published, Say, Script},
    wait_for_async,
};

/// What a peer took, and how often: acked, and not returned.
#[derive(Debug, Clone, Default)]
pub(super) struct Took(Arc<Mutex<BTreeMap<String, u32>>>);

impl Took {
    pub(super) fn take(&self, published: &Published) {
        *self.0.lock().unwrap().entry(published.message_id.clone()).or_default() += 1;
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Deliveries beyond the first of each message.
    pub(super) fn duplicates(&self) -> u32 {
        self.0.lock().unwrap().values().map(|times| times - 1).sum()
    }
}

/// Holds what was published, and answers it in any order, each as the test says.
struct Shuffle {
    dice: Dice,
    took: Took,
    held: BTreeMap<u16, Vec<(Published, bool)>>,
    /// How often each message was returned.
    returned: BTreeMap<String, u32>,
}

impl Shuffle {
    fn hear(&mut self, heard: Heard) -> Vec<Say> {
        let mut said = Vec::new();
        let flush = match heard {
            Heard::Published(published) => {
                // A return comes before the answer to its message, wherever that one stands.
                let times = self.returned.entry(published.message_id.clone()).or_default();
                let returned = *times < 2 && self.dice.roll(40) == 0;
                *times += u32::from(returned);
                if returned {
                    said.push(Say::Return(published.clone()));
                }
                self.held.entry(published.channel).or_default().push((published, returned));
                self.dice.roll(8) == 0
            }
            Heard::Silence => true,
        };
        if flush {
            for (channel, mut held) in std::mem::take(&mut self.held) {
                while !held.is_empty() {
                    let at = usize::try_from(self.dice.roll(held.len() as u64)).unwrap();
                    // All before it, or this one alone.
                    let multiple = self.dice.roll(3) == 0;
                    let (from, tag) = (if multiple { 0 } else { at }, held[at].0.tag);
                    for (published, returned) in held.drain(from..=at) {
                        if !returned {
                            self.took.take(&published);
                        }
                    }
                    said.push(Say::Ack(channel, tag, multiple));
                }
            }
        }
        said
    }
}

pub(super) fn script(hear: impl FnMut(Heard) -> Vec<Say> + Send + 'static) -> Script {
    Box::new(hear)
}

/// Counts for a row what a peer was given and took.
pub(super) fn tell(row: u32, name: &'static str, runs: u32, peer: &Peer, took: &Took) {
    let total = serde_json::json!({
        "messages": took.count(),
        "declared_and_not_received": 0,
        "duplicates": took.duplicates(),
        "declared": 0,
        "missing": 0,
        "published": peer.count(),
    });
    report::tell_counted(Fault { row, name }, runs, &total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_message_is_never_taken_for_a_delivered_one() {
    for seed in [0x5EED, 0xBEEF, 7] {
        let took = Took::default();
        let tries = took.clone();
        let peer = Peer::start(move |_| {
            let (dice, took) = (Dice::new(seed), tries.clone());
            let mut shuffle = Shuffle { dice, took, held: BTreeMap::new(), returned: BTreeMap::new() };
            (POLITE, script(move |heard| shuffle.hear(heard)))
        })
        .await;
        let courier = Courier::start("returned", &peer.url(), "amqp.window = 256");
        let each = 1_500;
        for round in 0..each {
            courier.number_all(64);
            if round % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        courier.all_delivered().await;
        let delivery = courier.health.snapshot().1;
        let all = each * LOGS.len();
        assert_eq!(took.count(), all, "taken for delivered, and never taken: seed {seed}");
        // Nothing ended, so that nothing may come twice but what came back.
        assert_eq!((took.duplicates(), delivery.reconnects), (0, 0), "seed {seed}: {delivery:?}");
        assert_eq!(delivery.confirmed, all as u64);
        assert!(delivery.returned > 20, "{} returns prove nothing", delivery.returned);
        assert_eq!(peer.count() as u64, all as u64 + delivery.returned, "published for each try once");
        tell(34, "returns among acks in any order", 1, &peer, &took);
        courier.end(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_twice_of_nothing_and_beyond_settle_nothing_else() {
    // Each is said before anything was answered, of a channel on which a handful is in flight.
    type Lie = fn(u16, u64) -> Vec<Say>;
    let lies: [(&'static str, Lie); 5] = [
        ("acked twice", |channel, tag| vec![Say::Ack(channel, tag, false), Say::Ack(channel, tag, false)]),
        ("acked and nacked", |channel, tag| vec![Say::Ack(channel, tag, false), Say::Nack(channel, tag, false)]),
        ("an ack of a tag to come", |channel, tag| vec![Say::Ack(channel, tag + 1_000, false)]),
        ("a nack of a tag to come", |channel, tag| vec![Say::Nack(channel, tag + 1_000, false)]),
        ("an ack on no channel", |_, tag| vec![Say::Ack(999, tag, false)]),
    ];
    for (name, lie) in lies {
        let took = Took::default();
        let taken = took.clone();
        let peer = Peer::start(move |connection| {
            let (taken, mut lied) = (taken.clone(), connection > 0);
            let hear = move |heard| match heard {
                Heard::Published(published) if !lied && published.tag == 3 => {
                    lied = true;
                    let said = lie(published.channel, published.tag);
                    if matches!(said[0], Say::Ack(_, tag, _) if tag == published.tag) && name != "an ack on no channel"
                    {
                        taken.take(&published);
                    }
                    said
                }
                Heard::Published(published) => {
                    taken.take(&published);
                    vec![Say::Ack(published.channel, published.tag, false)]
                }
                Heard::Silence => Vec::new(),
            };
            (POLITE, script(hear))
        })
        .await;
        let courier = Courier::start("lies", &peer.url(), "amqp.confirm_timeout = '1s'");
        for _ in 0..40 {
            courier.number("pg_locks", 64);
        }
        courier.all_delivered().await;
        assert_eq!(took.count(), 40, "{name}");
        tell(35, "acks twice, of nothing, on no channel", 1, &peer, &took);
        courier.end(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_nacked_comes_again_in_its_order_until_it_is_taken() {
    // One now and then, everything twice, everything for a while.
    for refuse in [1, 2, 6] {
        let took = Took::default();
        let taken = took.clone();
        let peer = Peer::start(move |_| {
            let (taken, mut times) = (taken.clone(), BTreeMap::<String, u32>::new());
            let hear = move |heard| {
                let Heard::Published(published) = heard else { return Vec::new() };
                let times = times.entry(published.message_id.clone()).or_default();
                *times += 1;
                let refused =
                    if refuse == 1 { published.seq().is_multiple_of(7) && *times == 1 } else { *times < refuse };
                if refused {
                    return vec![Say::Nack(published.channel, published.tag, false)];
                }
                taken.take(&published);
                vec![Say::Ack(published.channel, published.tag, false)]
            };
            (POLITE, script(hear))
        })
        .await;
        let courier = Courier::start("nacked", &peer.url(), "");
        for _ in 0..60 {
            courier.number_all(64);
        }
        courier.all_delivered().await;
        assert_eq!((took.count(), took.duplicates()), (180, 0));
        let nacked = courier.health.snapshot().1.nacked;
        assert_eq!(peer.count() as u64, 180 + nacked, "each refusal costs one more try");
        // Of what came back the lowest number goes first.
        for log in LOGS {
            let of_log: Vec<u64> = peer
                .published()
                .iter()
                .filter(|one| one.routing_key == log && one.replayed)
                .map(Published::seq)
                .collect();
            let mut firsts = Vec::new();
            for seq in of_log {
                if !firsts.contains(&seq) {
                    firsts.push(seq);
                }
            }
            assert!(firsts.is_sorted(), "{log}, {refuse}: {firsts:?}");
        }
        tell(36, "nack one, all, for a while", 1, &peer, &took);
        courier.end(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_confirms_nothing_is_left_and_what_it_was_given_comes_again() {
    let took = Took::default();
    let taken = took.clone();
    let speaks = Arc::new(AtomicBool::new(false));
    let speaking = Arc::clone(&speaks);
    let peer = Peer::start(move |_| {
        let (taken, speaks) = (taken.clone(), speaking.load(Ordering::SeqCst));
        let hear = move |heard| match heard {
            Heard::Published(published) if speaks => {
                taken.take(&published);
                vec![Say::Ack(published.channel, published.tag, false)]
            }
            // The last but one of what is in flight alone: no licence to settle those before it.
            Heard::Published(published) if published.tag == 3 => {
                taken.take(&published);
                vec![Say::Ack(published.channel, published.tag, false)]
            }
            _ => Vec::new(),
        };
        (POLITE, script(hear))
    })
    .await;
    let courier = Courier::start("mute", &peer.url(), "amqp.confirm_timeout = '500ms'\namqp.window = 8");
    for _ in 0..20 {
        courier.number_all(64);
    }
    courier.waits_for("it is told", |courier| courier.trouble().contains("no confirm within")).await;
    // From the next connection on.
    speaks.store(true, Ordering::SeqCst);
    courier.all_delivered().await;
    assert_eq!(took.count(), 60);
    let reconnects = courier.health.snapshot().1.reconnects;
    assert!(reconnects >= 1, "it was not left");
    tell(37, "confirms nothing", u32::try_from(reconnects).unwrap(), &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_log_that_is_never_confirmed_costs_the_others_nothing_on_any_connection() {
    let took = Took::default();
    let taken = took.clone();
    let quorum = Arc::new(Mutex::new(false));
    let has_quorum = Arc::clone(&quorum);
    let peer = Peer::start(move |connection| {
        let (taken, quorum, mut heard_of) = (taken.clone(), Arc::clone(&has_quorum), 0);
        let hear = move |heard| {
            let Heard::Published(published) = heard else { return Vec::new() };
            heard_of += 1;
            // The first connection ends under it, when the silence has long been noticed.
            if connection == 0 && heard_of > 400 {
                return vec![Say::Reset];
            }
            if published.routing_key == "pg_locks" && !*quorum.lock().unwrap() {
                return Vec::new();
            }
            taken.take(&published);
            vec![Say::Ack(published.channel, published.tag, false)]
        };
        (POLITE, script(hear))
    })
    .await;
    let courier = Courier::start("no-quorum", &peer.url(), "amqp.confirm_timeout = '500ms'\namqp.window = 16");
    let start = Instant::now();
    for _ in 0..60 {
        courier.number("pg_locks", 64);
    }
    let mut late = Duration::ZERO;
    while peer.accepted() < 2 || start.elapsed() < Duration::from_secs(6) {
        assert!(start.elapsed() < BOUND, "waited in vain: the first connection is reset");
        let before = took.count();
        let sent = Instant::now();
        courier.number("pg_activity", 64);
        wait_for_async("the others flow", BOUND, async || (took.count() > before).then_some(())).await;
        late = late.max(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Gently: one at a time, on the first connection after the silence was noticed, and on the next one from the start.
    let published = peer.published();
    let locks = |connection: usize| {
        published.iter().filter(move |one| one.connection == connection && one.routing_key == "pg_locks")
    };
    let (first, timeouts) = (locks(0).count(), start.elapsed().as_millis() / 500);
    assert!(first as u128 <= 8 + timeouts, "half of the window, and then one for each timeout: {first}");
    let of_second: BTreeSet<(u16, u64)> = locks(1).map(|one| (one.channel, one.tag)).collect();
    assert!(of_second.iter().all(|(_, tag)| *tag == 1), "gentleness was forgotten with the connection: {of_second:?}");
    assert_eq!(peer.accepted(), 2, "no reconnect but the one that was made");
    assert!(late < Duration::from_secs(2), "another log waited {late:?}");
    *quorum.lock().unwrap() = true;
    courier.all_delivered().await;
    // Of the others only what was in flight at the reset may have come twice.
    assert!(took.duplicates() <= 16, "{} duplicates", took.duplicates());
    tell(37, "one queue never confirms", 1, &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_messages_go_first_and_what_waits_has_half_of_the_window() {
    let took = Took::default();
    let taken = took.clone();
    let peer = Peer::start(move |_| {
        let (taken, mut held) = (taken.clone(), Vec::new());
        // A slow broker: the window is full all the time.
        let hear = move |heard| {
            if let Heard::Published(published) = heard {
                held.push(published);
                if held.len() < 16 {
                    return Vec::new();
                }
            }
            let answer = |published: Published| {
                taken.take(&published);
                Say::Ack(published.channel, published.tag, false)
            };
            held.drain(..).map(answer).collect()
        };
        (POLITE, script(hear))
    })
    .await;
    let backlog = 1_500;
    let courier = Courier::prepared("fresh-first", &peer.url(), "amqp.window = 16", |spool| {
        for log in LOGS.repeat(backlog) {
            number(spool, log, 64);
        }
    });
    courier.waits_for("the backlog begins", |_| peer.count() > 0).await;
    // All at once, so that from here on both lanes have something, however slow the machine is.
    for _ in 0..400 {
        courier.number_all(64);
    }
    let begin = peer.count();
    courier.all_delivered().await;
    let published = peer.published();
    let fresh: Vec<bool> = published.iter().skip(begin).map(|one| !one.replayed).collect();
    let last = fresh.iter().rposition(|fresh| *fresh).unwrap();
    assert!(last < fresh.len() - 100, "the backlog was drained first: {last} of {}", fresh.len());
    let share = fresh[..last].iter().filter(|fresh| !**fresh).count() as f64 / last as f64;
    let longest = fresh[..last].chunk_by(|one, other| one == other).map(<[bool]>::len).max().unwrap();
    println!("what waited had {share:.2}; the longest turn of one lane was {longest}");
    assert!((0.4..0.6).contains(&share), "what waited had {share:.2} of the window");
    assert!(longest <= 32, "one lane alone for {longest} messages");
    tell(23, "fresh first, backlog behind", 1, &peer, &took);
    courier.end(Duration::from_secs(5)).await;
}

const BODY: usize = 1024;
/// As the test's configuration says it.
const RATE: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_keeps_to_the_rate_that_was_set_and_what_is_fresh_does_not_wait_for_it() {
    let took = Took::default();
    let taken = took.clone();
    let peer = Peer::start(move |_| {
        let taken = taken.clone();
        let hear = move |heard| {
            let Heard::Published(published) = heard else { return Vec::new() };
            taken.take(&published);
            vec![Say::Ack(published.channel, published.tag, false)]
        };
        (POLITE, script(hear))
    })
    .await;
    let more = "spool.replay_rate = '64KiB'";
    let courier = Courier::prepared("rate", &peer.url(), more, |spool| {
        (0..1_000).for_each(|_| number(spool, "pg_locks", BODY));
    });
    courier.waits_for("the backlog begins", |_| peer.count() > 0).await;
    let start = Instant::now();
    let mut late = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(4) {
        let fresh = |published: Vec<Published>| published.iter().filter(|one| !one.replayed).count();
        let before = fresh(peer.published());
        let sent = Instant::now();
        courier.number("pg_activity", BODY);
        wait_for_async("a fresh one", BOUND, async || (fresh(peer.published()) > before).then_some(())).await;
        late = late.max(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    let waited = peer.published().iter().filter(|one| one.replayed).count() * BODY;
    let rate = waited as f64 / seconds;
    // A second's worth at once at the most, and not far below either.
    assert!(rate <= RATE as f64 * (1.0 + 1.0 / seconds) && rate > RATE as f64 * 0.6, "{rate:.0} bytes a second");
    assert!(late < Duration::from_millis(1_000), "a fresh message waited {late:?}");
    tell(23, "replay_rate holds", 1, &peer, &took);
    courier.end(Duration::from_millis(100)).await;
}

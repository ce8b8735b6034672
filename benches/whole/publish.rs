//! Publishing with confirms: a bare lapin, the agent's delivery without a disk, and its whole publisher with the spool.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use postgres_agent::{
    amqp, cli,
    event::batch::Batch,
    health::Health,
    publisher::{
        Phase, Publisher,
        delivery::{Deliveries, Lane},
    },
    settings::{Given, Origin, Raw, Reader, Section},
    spool::{self, Draft, Id, Spool, Taken},
    units::Time,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use crate::cell::{Measured, Watch};

/// Who publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum By {
    /// lapin alone: a queue of confirms, the oldest awaited.
    Lapin,
    /// The agent's channel and delivery core, from memory.
    Memory,
    /// The agent's publisher, behind a spool on disk that syncs after a second.
    Spool,
}

/// What is published, and where to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Flow {
    pub(crate) url: String,
    pub(crate) exchange: String,
    /// Bytes of a body.
    pub(crate) bytes: usize,
    /// How many messages.
    pub(crate) count: u64,
    /// Messages in flight.
    pub(crate) window: usize,
    /// Where the spool is.
    pub(crate) dir: PathBuf,
}

/// The log, and the routing key.
pub(crate) const LOG: &str = "pg_locks";

/// A section of the configuration with these keys.
pub(crate) fn section<S: Section>(name: &'static str, keys: &[(&str, String)]) -> S {
    let given = |(key, text): &(&str, String)| {
        let path = format!("{name}.{key}");
        let origin = Origin::Variable(path.clone());
        (path, Given { raw: Raw::Text(text.clone()), origin })
    };
    Reader::new(keys.iter().map(given).collect::<BTreeMap<_, _>>()).section(name)
}

impl Flow {
    fn amqp(&self) -> amqp::Config {
        // One log may take half of the window.
        let window = self.window * 2;
        let bytes = (window * self.bytes * 2).max(16 << 20);
        let keys = [
            ("url", self.url.clone()),
            ("exchange", self.exchange.clone()),
            ("window", window.to_string()),
            ("window_bytes", format!("{}KiB", bytes >> 10)),
        ];
        section("amqp", &keys)
    }

    fn batch(&self, seq: u64) -> Arc<Batch> {
        Arc::new(Batch {
            agent: Uuid::nil(),
            run_id: Uuid::nil(),
            collector: LOG.into(),
            seq,
            time: Time::now(),
            events: 1,
            version: 1,
            zstd: false,
            body: body(self.bytes),
        })
    }
}

/// A body that no disk and no line can make smaller.
pub(crate) fn body(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..bytes).map(next).collect()
}

pub(crate) fn publish(by: By, flow: &Flow) -> Measured {
    let runtime = cli::runtime().expect("threads");
    match by {
        By::Lapin => runtime.block_on(lapin_alone(flow)),
        By::Memory => runtime.block_on(memory(flow)),
        By::Spool => runtime.block_on(through_spool(flow)),
    }
}

/// The same message as the agent's, its headers made once.
async fn lapin_alone(flow: &Flow) -> Measured {
    // What RabbitMQ offers; said beforehand, it spares lapin a larger first buffer.
    let url = format!("{}?frame_max=131072", flow.url);
    let connection = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut headers = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    headers.insert("agent_id".into(), text(&Uuid::nil().to_string()));
    headers.insert("run_id".into(), text(&Uuid::nil().to_string()));
    headers.insert("collector".into(), text(LOG));
    headers.insert("seq".into(), AMQPValue::LongLongInt(1));
    headers.insert("events".into(), AMQPValue::LongInt(1));
    headers.insert("replayed".into(), AMQPValue::Boolean(false));
    let properties = BasicProperties::default()
        .with_content_type("application/vnd.msgpack".into())
        .with_delivery_mode(2)
        .with_app_id("postgres-agent".into())
        .with_type(format!("{LOG}/1").into())
        .with_timestamp(1)
        .with_message_id(format!("{}/{LOG}/1", Uuid::nil()).into())
        .with_headers(headers);
    let body = body(flow.bytes);
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let watch = Watch::start();
    let mut confirms = VecDeque::new();
    for _ in 0..flow.count {
        let (exchange, key) = (flow.exchange.as_str().into(), LOG.into());
        confirms.push_back(channel.basic_publish(exchange, key, options, &body, properties.clone()).await.unwrap());
        if confirms.len() == flow.window
            && let Some(oldest) = confirms.pop_front()
        {
            assert!(oldest.await.unwrap().is_ack());
        }
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
    watch.stop()
}

async fn memory(flow: &Flow) -> Measured {
    let config = flow.amqp();
    let connection = amqp::Connection::open(&config, 0).await.unwrap();
    let channel = connection.channel().await.unwrap();
    let mut deliveries = Deliveries::new(flow.window * 2, usize::MAX);
    let log: Arc<str> = LOG.into();
    let mut answers = FuturesUnordered::new();
    let mut batches = (1..=flow.count).map(|seq| flow.batch(seq)).collect::<VecDeque<_>>();
    let watch = Watch::start();
    let mut done = 0;
    while done < flow.count {
        while let Some(batch) = batches.front().filter(|batch| deliveries.fits(&log, batch.body.len())) {
            let taken = Taken { id: Id { run: 1, seq: batch.seq }, batch: Arc::clone(batch), replayed: false };
            batches.pop_front();
            let tag = deliveries.sent(&log, &taken, Lane::Fresh, Instant::now());
            let confirm = channel.publish(&flow.exchange, LOG, &taken.batch, false);
            answers.push(async move { (tag, confirm.await.unwrap()) });
        }
        let (tag, confirmed) = answers.next().await.expect("something is in flight");
        deliveries.answered(&log, tag, confirmed.ack, confirmed.returned, Instant::now());
        done += deliveries.settle(&log).len() as u64;
    }
    watch.stop()
}

/// A spool of the agent's usual kind.
pub(crate) fn spool(dir: &Path, sync_after: Duration) -> Arc<Spool> {
    let keys = [
        ("dir", dir.display().to_string()),
        ("max_bytes", "12GiB".to_owned()),
        ("min_free", "0".to_owned()),
        ("sync_after", "1s".to_owned()),
    ];
    let config = spool::Config { sync_after, ..section("spool", &keys) };
    Arc::new(Spool::open(config, vec![LOG]).unwrap())
}

pub(crate) const DRAFT: Draft<'_> = Draft { collector: LOG, events: 1, version: 1, zstd: false };

/// As the agent does it: whoever numbers, the publisher, and the keeper beside them.
async fn through_spool(flow: &Flow) -> Measured {
    let spool = spool(&flow.dir, Duration::from_secs(1));
    let publisher = Line::begin(flow, &spool);
    let body = body(flow.bytes);
    // As many as are in flight, and what the publisher takes until there are more: those that wait for it would be older
    // than sync_after before they are confirmed, and the disk would be measured.
    let most = flow.window + flow.window / 4;
    let watch = Watch::start();
    let mut numbered = 0;
    while numbered < flow.count {
        let waiting = usize::try_from(spool.messages(LOG)).unwrap();
        for _ in waiting..most.min(waiting + usize::try_from(flow.count - numbered).unwrap()) {
            spool.number(DRAFT, |_| Ok(body.clone())).unwrap();
            numbered += 1;
        }
        spool.give();
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    publisher.drained(&spool).await;
    watch.stop()
}

/// For how long messages are offered.
pub(crate) const OFFERED: Duration = Duration::from_secs(5);

pub(crate) fn offer(rate: u64, flow: &Flow) -> Measured {
    cli::runtime().expect("threads").block_on(async {
        let spool = spool(&flow.dir, Duration::from_secs(1));
        let publisher = Line::begin(flow, &spool);
        let body = body(flow.bytes);
        let (watch, start, mut numbered) = (Watch::start(), Instant::now(), 0);
        while start.elapsed() < OFFERED {
            let due = u64::try_from(start.elapsed().as_micros()).unwrap() * rate / 1_000_000;
            (numbered..due).for_each(|_| _ = spool.number(DRAFT, |_| Ok(body.clone())).unwrap());
            numbered = due;
            spool.give();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let measured = Measured { waiting: spool.messages(LOG), ..watch.stop() };
        publisher.drained(&spool).await;
        measured
    })
}

pub(crate) fn replay(dir: &Path, flow: &Flow) -> Measured {
    cli::runtime().expect("threads").block_on(async {
        let spool = spool(dir, Duration::from_secs(1));
        assert!(spool.messages(LOG) >= flow.count, "a backlog waits");
        let watch = Watch::start();
        Line::begin(flow, &spool).drained(&spool).await;
        watch.stop()
    })
}

/// The publisher and the keeper on their tasks.
struct Line(watch::Sender<Phase>, [tokio::task::JoinHandle<()>; 2]);

impl Line {
    fn begin(flow: &Flow, spool: &Arc<Spool>) -> Self {
        let (phase, phases) = watch::channel(Phase::Running);
        let config = flow.amqp();
        let publisher = Publisher {
            routing_key: config.routing_key.fill("bench", &BTreeMap::new()).unwrap(),
            config,
            retry: section("retry", &[]),
            replay_rate: None,
            spool: Arc::clone(spool),
            health: Arc::new(Health::default()),
        };
        publisher.expect_broker();
        let keeper = Arc::clone(spool);
        let keep = async move {
            loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                let spool = Arc::clone(&keeper);
                tokio::task::spawn_blocking(move || spool.keep()).await.unwrap();
            }
        };
        Self(phase, [tokio::spawn(publisher.run(phases)), tokio::spawn(keep)])
    }

    async fn drained(self, spool: &Spool) {
        let until = Instant::now() + Duration::from_secs(600);
        while spool.messages(LOG) > 0 {
            assert!(Instant::now() < until, "waited in vain: all is delivered");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let Self(_phase, tasks) = self;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The agent's runtime, asleep.
pub(crate) fn bare() -> Measured {
    cli::runtime().expect("threads").block_on(async {
        let watch = Watch::start();
        tokio::spawn(tokio::time::sleep(Duration::from_millis(500))).await.unwrap();
        watch.stop()
    })
}

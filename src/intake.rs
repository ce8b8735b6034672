//! The intake: makes messages of events. It batches them, numbers them and puts them into the spool.
//!
//! One loop: `select` waits and returns an [`Action`], `apply` does what follows. Which events travel together is
//! decided in [`crate::batch`]; what a number means, in [`crate::spool`].

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::error;

use crate::{
    batch::{
        self, Batcher, Closed,
        channel::{Item, Receiver},
    },
    event::{
        EncodeError, Message, NoSummary, Payload, Sample, Server,
        status::{self, AgentStatus, Occasion},
    },
    health::Health,
    recent::Recent,
    settings::{Choice, Reader, Section},
    spool::{Draft, Spool, Told, chain},
};

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// zstd, level 1: measured eightfold on statements; level 3 gains nothing.
    Zstd,
}

impl Choice for Compression {
    const CHOICES: &'static [(&'static str, Self)] = &[("none", Self::None), ("zstd", Self::Zstd)];
}

/// The `[publisher]` table.
#[derive(Debug, Clone)]
pub struct Config {
    /// Events between collectors and batcher.
    pub channel_capacity: usize,
    /// What travels together.
    pub batch: batch::Config,
    /// How bodies are compressed.
    pub compression: Compression,
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Self {
        let capacity = reader.key_in("channel_capacity", 1024, 1..=1_000_000, "Events between collectors and batcher, 8 MiB at the most. When it is full, collectors skip; nothing is dropped.");
        Self {
            channel_capacity: usize::try_from(capacity).unwrap_or(1024),
            batch: batch::Config::read(reader),
            compression: reader.key("compression", Compression::None, "none, or zstd: content_encoding says so."),
        }
    }
}

/// Who speaks: what is the same in all messages of a run.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// The agent's id; `None` in `collect` without a spool.
    pub agent_id: Option<String>,
    /// `agent.name`.
    pub agent_name: String,
    /// The host's name.
    pub host: String,
    /// `agent.labels`.
    pub labels: BTreeMap<String, String>,
    /// This run's id.
    pub run_id: String,
}

impl Speaker {
    /// A message's body.
    ///
    /// # Errors
    /// [`EncodeError`] where a value has no MessagePack form.
    pub fn body(
        &self,
        collector: &str,
        version: u32,
        seq: u64,
        server: Option<&Server>,
        events: Vec<Vec<u8>>,
    ) -> Result<Vec<u8>, EncodeError> {
        let head = Message {
            collector,
            schema_version: version,
            agent_id: self.agent_id.as_deref(),
            agent_name: &self.agent_name,
            agent_version: env!("CARGO_PKG_VERSION"),
            host: &self.host,
            labels: &self.labels,
            run_id: &self.run_id,
            seq,
            server,
            events: None,
        };
        head.put_together(events)
    }

    /// Bytes that a body has beside its events, at the most.
    pub fn envelope(&self) -> usize {
        // A server's part has at most this much: its database's name has 63 bytes at the most.
        const SERVER: usize = 300;
        self.body("pg_statements_and_more", 1, u64::MAX, None, Vec::new()).map_or(0, |body| body.len()) + SERVER
    }
}

/// How long a turn of the loop may take: it waits for nothing but the disk.
const TURNS: Duration = Duration::from_secs(30);

/// Everything that makes the loop turn.
enum Action {
    Item(Item),
    /// A batch is too old to wait any longer.
    Due,
    /// Every collector is gone.
    End,
}

/// The intake of one agent.
#[derive(Debug)]
pub struct Intake {
    speaker: Speaker,
    compression: Compression,
    batcher: Batcher,
    spool: Arc<Spool>,
    health: Arc<Health>,
    recent: Option<Arc<Recent>>,
}

impl Intake {
    /// An intake with nothing in it. `recent` is shown what is numbered, if anybody looks.
    pub fn new(
        config: &Config,
        speaker: Speaker,
        spool: Arc<Spool>,
        health: Arc<Health>,
        recent: Option<Arc<Recent>>,
    ) -> Self {
        let batcher = Batcher::new(config.batch.clone(), speaker.envelope());
        Self { speaker, compression: config.compression, batcher, spool, health, recent }
    }

    /// Takes items until every sender is gone; then everything has its number.
    pub async fn run(mut self, mut items: Receiver) {
        let health = Arc::clone(&self.health);
        loop {
            let action = self.select(&mut items).await;
            let _at_work = health.loops.at_work("intake", TURNS);
            match action {
                Action::Item(item) => self.take(item),
                Action::Due => self.batcher.due(Instant::now()).into_iter().for_each(|batch| self.number(batch)),
                Action::End => break,
            }
            if items.is_empty() {
                self.spool.give();
            }
        }
        self.flush();
        self.spool.give();
    }

    async fn select(&self, items: &mut Receiver) -> Action {
        let due = async {
            match self.batcher.next_due() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            item = items.next() => item.map_or(Action::End, Action::Item),
            () = due => Action::Due,
        }
    }

    fn take(&mut self, item: Item) {
        let now = Instant::now();
        match item.payload {
            Payload::Events(events) => {
                let last = events.len().saturating_sub(1);
                for (index, event) in events.into_iter().enumerate() {
                    // The parts of one event follow each other at once.
                    let next_due = if index < last { Some(now) } else { item.next_due };
                    let closed = self.batcher.add(item.collector, item.server.clone(), event, next_due, now);
                    for batch in closed {
                        self.number(batch);
                    }
                }
            }
            Payload::Status(sample) => {
                // The last status is numbered after all else.
                if sample.data.event == Occasion::Stopping {
                    self.flush();
                }
                self.number_status(item.collector, *sample);
            }
        }
    }

    fn flush(&mut self) {
        self.batcher.flush().into_iter().for_each(|batch| self.number(batch));
    }

    fn draft<'a>(&self, collector: &'a str, version: u32, events: usize) -> Draft<'a> {
        Draft {
            collector,
            events: u32::try_from(events).unwrap_or(u32::MAX),
            version: u16::try_from(version).unwrap_or(u16::MAX),
            zstd: self.compression == Compression::Zstd,
        }
    }

    fn number(&self, batch: Closed) {
        let Closed { collector, version, server, events } = batch;
        let (draft, count) = (self.draft(collector, version, events.len()), events.len());
        let numbered = self.spool.number(draft, |seq| {
            let body = self.speaker.body(collector, version, seq, server.as_deref(), events)?;
            self.show(collector, seq, count, &body);
            self.finish(body)
        });
        self.see(collector, numbered);
    }

    fn number_status(&self, (collector, version): (&'static str, u32), mut sample: Sample<AgentStatus, NoSummary>) {
        debug_assert_eq!(collector, status::COLLECTOR);
        let draft = self.draft(collector, version, 1);
        let numbered = self.spool.number_status(draft, |seq, told| {
            let Told { sent, spool, waiting, lost, previous_runs } = told;
            sample.data = AgentStatus { sent, spool, waiting, lost, previous_runs, ..sample.data };
            let events = sample.encode(usize::MAX)?;
            let count = events.len();
            let body = self.speaker.body(collector, version, seq, None, events)?;
            self.show(collector, seq, count, &body);
            self.finish(body)
        });
        self.see(collector, numbered);
    }

    fn show(&self, collector: &'static str, seq: u64, events: usize, body: &[u8]) {
        if let Some(recent) = &self.recent {
            recent.note(collector, seq, events, body);
        }
    }

    fn finish(&self, body: Vec<u8>) -> Result<Vec<u8>, EncodeError> {
        match self.compression {
            Compression::None => Ok(body),
            Compression::Zstd => zstd::bulk::compress(&body, 1).map_err(EncodeError::Compress),
        }
    }

    /// An event that cannot be encoded is a mistake in the agent: told, and never a reason to stop.
    fn see(&self, collector: &str, numbered: Result<u64, EncodeError>) {
        if let Err(error) = numbered {
            let reason = chain(&error);
            error!(collector, reason, "a sample could not be encoded and is left out");
            self.health.collector(collector, |collector| {
                collector.failures += 1;
                collector.reason = Some(reason);
            });
        }
    }
}

//! `tap`: decoded messages as a consumer sees them, and the proof that none is missing.

pub mod audit;
mod filter;
mod show;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::{Args, builder::PossibleValuesParser};
use serde_json::Value;

use super::{Failure, Outcome, complain, say};
use crate::{
    amqp::consumer::{Consumer, HELD, Message},
    collectors,
    config::{Config, Loaded},
    event::status,
    spool::chain,
    units,
};
use audit::{Audit, Id, Status};

/// Consume from the broker and print decoded messages
///
/// Without --queue it listens through a temporary queue of its own; while that queue stands nothing is unroutable.
/// With --queue it looks at what is there and puts it back. It goes on until it is stopped, or for as long or as much as was
/// asked for; what was read is summed up on stderr.
///
/// Exit status: 0; with --audit 1 if a message is missing that was not declared lost, and 0 with "not provable" where
/// an agent's statuses are fewer than two.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Which messages: a topic pattern, such as "pg_locks" or "#"; may be given more than once
    ///
    /// With --audit agent_status is always read too: the proof rests on it.
    #[arg(long, value_name = "KEY", default_value = "#", conflicts_with = "queue")]
    pub binding: Vec<String>,

    /// Only messages of this collector; may be given more than once
    #[arg(long, value_name = "NAME", conflicts_with = "audit", value_parser = PossibleValuesParser::new(collectors::ALL.iter().map(|entry| entry.name)))]
    pub collector: Vec<String>,

    /// Only messages with this correlation id, and of their rows only those that bear it
    #[arg(long, value_name = "ID", conflicts_with = "audit")]
    pub correlation_id: Option<String>,

    /// Read from this queue instead of a temporary one
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,

    /// Take the messages away from the queue instead of putting them back
    #[arg(long, requires = "queue")]
    pub ack: bool,

    /// End after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// End after this many seconds; fractions and units such as 1.5, 90s or 5m are understood
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<Duration>,

    /// Print one JSON object a line instead of text for people
    #[arg(long)]
    pub json: bool,

    /// Prove that nothing is missing between an agent's first and last status
    ///
    /// For each agent, run and collector: first and last seq, messages, events, duplicates, gaps, declared losses and
    /// what still waits. With --queue it ends when the queue is empty.
    #[arg(long)]
    pub audit: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).or_else(|error| units::parse_duration(&format!("{text}s")).map_err(|_| error))
}

/// A queue that gives nothing for so long is asked whether it is empty.
const QUIET: Duration = Duration::from_millis(500);
/// A queue that gives nothing for so many times that long, and is not empty, gives nothing more.
const STUCK: u32 = 10;
/// A larger body, decompressed, is not read: far above any batch.
const BODY_BYTES_MAX: usize = 256 << 20;

impl Arguments {
    /// Reads until the end that was asked for, or Ctrl-C.
    ///
    /// # Errors
    /// Why the broker could not be read, or that something is missing.
    pub fn run(&self, loaded: &Loaded) -> Outcome {
        super::runtime()?.block_on(self.follow(&loaded.config))
    }

    async fn follow(&self, config: &Config) -> Outcome {
        let failed = |error| Failure::Failed(chain(&error));
        let mut consumer = if let Some(queue) = &self.queue {
            Consumer::of(&config.amqp, queue, self.ack).await.map_err(failed)?
        } else {
            let consumer = Consumer::temporary(&config.amqp, &self.bindings(config)).await.map_err(failed)?;
            complain("reading through a temporary queue: while it stands nothing is unroutable");
            consumer
        };
        let mut taken = Taken::default();
        let result = self.read(&mut consumer, &mut taken).await;
        consumer.close().await;
        complain(&taken.summary());
        result?;
        let audit = taken.audit;
        if self.audit { show::verdict(&audit.verdict(), self.json) } else { Ok(()) }
    }

    /// What the temporary queue is bound with.
    fn bindings(&self, config: &Config) -> Vec<String> {
        let labelled = config.amqp.routing_key.fill(&config.agent.name, &config.agent.labels);
        let key = labelled.unwrap_or_else(|_| config.amqp.routing_key.clone());
        // Who names a binding as well knows better than the configuration how keys are made.
        let all = self.binding == ["#"];
        let mut bindings = match self.collector.as_slice() {
            named @ [_, ..] if all => named.iter().map(|name| key.of(name)).collect(),
            _ => self.binding.clone(),
        };
        if self.audit {
            bindings.push(key.of(status::COLLECTOR));
        }
        bindings
    }

    async fn read(&self, consumer: &mut Consumer, taken: &mut Taken) -> Outcome {
        let end = self.seconds.map(|seconds| Instant::now() + seconds);
        let (mut read, mut quiets) = (0, 0);
        while self.count.is_none_or(|count| read < count) {
            let quiet = Instant::now() + QUIET;
            let until = end.map_or(quiet, |end| end.min(quiet));
            let next = tokio::select! {
                next = tokio::time::timeout_at(until.into(), consumer.next()) => next,
                _ = tokio::signal::ctrl_c() => break,
            };
            match next {
                Ok(Ok(Some(message))) => {
                    quiets = 0;
                    let shown = self.take(&message, taken)?;
                    read += u64::from(shown);
                    // What was not asked for stays in the queue.
                    if self.ack && shown {
                        consumer.ack(message.tag).await.map_err(|error| Failure::Failed(chain(&error)))?;
                    }
                }
                Ok(Ok(None)) => return Err(Failure::Failed("the broker ended the consumer: the queue is gone".into())),
                Ok(Err(error)) => return Err(Failure::Failed(chain(&error))),
                Err(_) if end.is_some_and(|end| Instant::now() >= end) => break,
                Err(_) if self.audit && self.queue.is_some() => {
                    let left = consumer.ready().await.map_err(|error| Failure::Failed(chain(&error)))?;
                    quiets += 1;
                    // What is on its way to us counts as gone from the queue, and a slow broker takes its time.
                    if left == 0 && (read >= u64::from(consumer.found) || quiets >= STUCK) {
                        break;
                    }
                    if quiets >= STUCK {
                        return Err(Failure::Failed(format!(
                            "the queue holds back {left} more messages: it gives {HELD} at the most to a reader that takes none away; read a copy of it with --ack"
                        )));
                    }
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Shows one message, and takes note of it for the audit. False where it is none that was asked for.
    fn take(&self, message: &Message, taken: &mut Taken) -> Result<bool, Failure> {
        let (bytes, mut body) = match decode(message) {
            Ok(decoded) => decoded,
            Err(reason) => {
                let id = message.message_id.as_deref().unwrap_or("without an id");
                complain(&format!(
                    "message {id} (routing key {:?}) is none of an agent's: {reason}",
                    message.routing_key
                ));
                return Ok(true);
            }
        };
        if !self.is_wanted(message) {
            return Ok(false);
        }
        if let Some(id) = &self.correlation_id
            && !filter::keep(&mut body, id)
        {
            return Ok(false);
        }
        taken.count(message);
        if let (Some(agent), Some(run), Some(collector), Some(seq)) =
            (&message.agent_id, &message.run_id, &message.collector, message.seq)
        {
            taken.audit.observe(
                Id { agent, run, collector, seq },
                message.events.unwrap_or(0),
                &bytes,
                told(collector, &body),
            );
        }
        // An audit's result is what it found; messages are shown beside it only to a person who follows.
        if !self.audit {
            say(&show::message(message, &body, self.json))?;
        }
        Ok(true)
    }

    /// Whether its collector was asked for.
    fn is_wanted(&self, message: &Message) -> bool {
        self.collector.is_empty() || message.collector.as_ref().is_some_and(|name| self.collector.contains(name))
    }
}

/// What was taken so far.
#[derive(Default)]
struct Taken {
    audit: Audit,
    /// By collector: messages, events, bytes of bodies.
    counts: BTreeMap<String, (u64, u64, u64)>,
}

impl Taken {
    fn count(&mut self, message: &Message) {
        let (messages, events, bytes) = self.counts.entry(message.collector.clone().unwrap_or_default()).or_default();
        *messages += 1;
        *events += u64::from(message.events.unwrap_or(0));
        *bytes += message.body.len() as u64;
    }

    /// One line.
    fn summary(&self) -> String {
        let all = self.counts.iter().map(|(name, (messages, events, bytes))| {
            format!("{name} {messages} messages, {events} events, {} KiB", bytes.div_ceil(1024))
        });
        let all: Vec<String> = all.collect();
        if all.is_empty() { "nothing was read".into() } else { format!("read: {}", all.join("; ")) }
    }
}

fn told(collector: &str, body: &Value) -> Option<Status> {
    if collector != status::COLLECTOR {
        return None;
    }
    serde_json::from_value(body.get("events")?.get(0)?.get("data")?.clone()).ok()
}

/// A message's body as it was before compression, and decoded.
fn decode(message: &Message) -> Result<(Vec<u8>, Value), String> {
    let Some(collector) = &message.collector else { return Err("it has no header \"collector\"".into()) };
    if !message.kind.as_ref().is_some_and(|kind| kind.starts_with(&format!("{collector}/"))) {
        return Err(format!("its type {:?} is not the collector's", message.kind.as_deref().unwrap_or("")));
    }
    let bytes = match message.content_encoding.as_deref() {
        None | Some("") => message.body.clone(),
        Some("zstd") => zstd::bulk::decompress(&message.body, BODY_BYTES_MAX)
            .map_err(|error| format!("its body cannot be decompressed: {error}"))?,
        Some(other) => return Err(format!("its content_encoding is {other:?}")),
    };
    let body = rmp_serde::from_slice(&bytes).map_err(|error| format!("its body is no MessagePack map: {error}"))?;
    Ok((bytes, body))
}

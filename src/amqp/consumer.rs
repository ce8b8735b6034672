//! Consuming: how `tap` reads messages back. It settles nothing by itself; what is not acked returns to its queue.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    BasicProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::{Config, error::Error, wire::Connection};

/// A message as it came from the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// What it was routed by.
    pub routing_key: String,
    /// `message_id`.
    pub message_id: Option<String>,
    /// `type`.
    pub kind: Option<String>,
    /// `content_type`.
    pub content_type: Option<String>,
    /// `content_encoding`.
    pub content_encoding: Option<String>,
    /// Header `agent_id`.
    pub agent_id: Option<String>,
    /// Header `run_id`.
    pub run_id: Option<String>,
    /// Header `collector`.
    pub collector: Option<String>,
    /// Header `seq`.
    pub seq: Option<u64>,
    /// Header `events`.
    pub events: Option<u32>,
    /// Header `replayed`.
    pub replayed: Option<bool>,
    /// The body as it is on the wire.
    pub body: Vec<u8>,
    /// Its tag, to ack it.
    pub tag: u64,
}

/// Something that reads from the broker.
pub struct Consumer {
    connection: Connection,
    channel: lapin::Channel,
    inner: lapin::Consumer,
    queue: String,
    /// Messages that lay in the queue when it was begun to be read.
    pub found: u32,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// With acks, so many messages are on their way at once.
const PREFETCH: u16 = 1000;
/// Without, so many are held until the end. A limit that must be said: a quorum queue takes none for 2,000.
pub const HELD: u16 = u16::MAX;

impl Consumer {
    /// Reads through a temporary queue of its own, bound with these keys.
    ///
    /// # Errors
    /// Why not: above all an exchange that is not there.
    pub async fn temporary(config: &Config, bindings: &[String]) -> Result<Self, Error> {
        let connection = Connection::any(config).await?;
        if let Err(error) = connection.see_exchange(config).await {
            connection.kill();
            return Err(error);
        }
        let setup = async {
            let channel = connection.inner().create_channel().await?;
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().to_string();
            for key in bindings {
                let (queue, exchange) = (queue.as_str().into(), config.exchange.as_str().into());
                let key = key.as_str().into();
                channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()).await?;
            }
            // Nobody else reads it: nothing need be held until the end.
            let inner = consume(&channel, &queue, true).await?;
            Ok((channel, inner, queue))
        };
        let (channel, inner, queue) = connection.limited("making a temporary queue", setup).await?;
        Ok(Self { connection, channel, inner, queue, found: 0 })
    }

    /// Reads from a queue that is there. Without `acking` at most [`HELD`] messages of it come: they are held until the end.
    ///
    /// # Errors
    /// Why not: above all a queue that is not there.
    pub async fn of(config: &Config, queue: &str, acking: bool) -> Result<Self, Error> {
        let connection = Connection::any(config).await?;
        let setup = async {
            let channel = connection.inner().create_channel().await?;
            let prefetch = if acking { PREFETCH } else { HELD };
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count();
            let inner = consume(&channel, queue, false).await?;
            Ok((channel, inner, found))
        };
        let (channel, inner, found) = connection.limited("reading the queue", setup).await?;
        Ok(Self { connection, channel, inner, queue: queue.to_owned(), found })
    }

    /// The next message; `None` when the broker ended it.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        match self.inner.next().await {
            None => Ok(None),
            Some(Ok(delivery)) => Ok(Some(message(delivery))),
            Some(Err(error)) => Err(Error::from_lapin(&error)),
        }
    }

    /// Takes a message, and all before it, away from the queue.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn ack(&self, tag: u64) -> Result<(), Error> {
        let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
        self.connection.limited("taking an ack", ack).await
    }

    /// How many messages wait in the queue and are with no consumer.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn ready(&self) -> Result<u32, Error> {
        let ask = async {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let name = self.queue.as_str().into();
            Ok(self.channel.queue_declare(name, options, FieldTable::default()).await?.message_count())
        };
        self.connection.limited("counting the queue's messages", ask).await
    }

    /// Ends; what was not acked returns to its queue.
    pub async fn close(self) {
        // The channel first, so that what it held is back in its queue when this returns.
        let close = self.channel.close(200, "done".into());
        let _ended_anyway = tokio::time::timeout(Duration::from_secs(5), close).await;
        self.connection.close().await;
    }
}

async fn consume(channel: &lapin::Channel, queue: &str, no_ack: bool) -> lapin::Result<lapin::Consumer> {
    let options = BasicConsumeOptions { no_ack, ..Default::default() };
    channel.basic_consume(queue.into(), "postgres-agent-tap".into(), options, FieldTable::default()).await
}

fn message(delivery: Delivery) -> Message {
    let properties: &BasicProperties = &delivery.properties;
    let text = |text: &Option<lapin::types::ShortString>| text.as_ref().map(ToString::to_string);
    let header = |name: &str| properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    let string = |name: &str| match header(name) {
        Some(AMQPValue::LongString(text)) => Some(text.to_string()),
        Some(AMQPValue::ShortString(text)) => Some(text.to_string()),
        _ => None,
    };
    let number = |name: &str| match header(name) {
        Some(AMQPValue::LongLongInt(number)) => Some(*number),
        Some(AMQPValue::LongInt(number)) => Some(i64::from(*number)),
        _ => None,
    };
    Message {
        routing_key: delivery.routing_key.to_string(),
        message_id: text(properties.message_id()),
        kind: text(properties.kind()),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        agent_id: string("agent_id"),
        run_id: string("run_id"),
        collector: string("collector"),
        seq: number("seq").and_then(|seq| seq.try_into().ok()),
        events: number("events").and_then(|events| events.try_into().ok()),
        replayed: header("replayed").and_then(|value| match value {
            AMQPValue::Boolean(replayed) => Some(*replayed),
            _ => None,
        }),
        tag: delivery.delivery_tag,
        body: delivery.data,
    }
}

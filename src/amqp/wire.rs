//! Connections and channels that publish with confirms.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Confirmation, ConnectionProperties, ExchangeKind,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    tcp::AsyncTcpStream,
    types::{AMQPValue, FieldTable},
    uri::AMQPUri,
};
use tokio::time::timeout;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{
    Config,
    config::Node,
    dial::{Socket, Tls, dial},
    error::Error,
    greeting::{Greeting, Heard},
    stream::{SPEAKS_TLS, Stream, runtime},
};
use crate::{event::batch::Batch, tls};

/// How long a connection may take over things. lapin itself waits without end.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until TCP connects, and again until the handshakes are over.
    pub connect: Duration,
    /// For each step on a connection that stands: opening a channel, declaring the exchange.
    pub step: Duration,
    /// For an orderly close, before the socket is shut down.
    pub close: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), step: Duration::from_secs(10), close: Duration::from_secs(2) }
    }
}

/// What all messages have in common.
const CONTENT_TYPE: &str = "application/vnd.msgpack";
const APP_ID: &str = "postgres-agent";

/// A connection to the broker with its topology checked.
pub struct Connection {
    inner: lapin::Connection,
    node: String,
    limits: Limits,
    /// The same socket again, to shut it down whatever lapin waits for.
    socket: Socket,
    greeting: Greeting,
    protection: Option<&'static str>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // lapin's own Debug holds the password.
        f.debug_struct("Connection").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What the broker says about the whole connection.
#[derive(Debug)]
pub enum Signal {
    /// It takes nothing for now, and why.
    Blocked(String),
    /// It takes messages again.
    Unblocked,
    /// The connection is over.
    Lost(Error),
}

/// What became of a message that was published to see whether it finds a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// A queue is bound for its routing key.
    Bound,
    /// It came back: no queue is.
    Unbound,
    /// The broker refused it (nack): a queue is full, or has failed.
    Refused,
    /// The broker takes nothing from anybody for now, and why: an alarm.
    Blocked(String),
}

/// Signals of a connection as they come.
pub type Signals = Pin<Box<dyn futures_util::Stream<Item = Signal> + Send>>;

impl Connection {
    /// Connects to node number `attempt` in turn and sees to it that the exchange is there.
    ///
    /// # Errors
    /// Why not. Nothing is left behind: no socket, no thread.
    pub async fn open(config: &Config, attempt: usize) -> Result<Self, Error> {
        let connection = Self::login(config, attempt).await?;
        match connection.see_exchange(config).await {
            Ok(()) => Ok(connection),
            Err(error) => {
                connection.kill();
                Err(error)
            }
        }
    }

    /// Connects and logs in to the first node that lets it in.
    ///
    /// # Errors
    /// Why the last one did not.
    pub async fn any(config: &Config) -> Result<Self, Error> {
        let mut connected = Self::login(config, 0).await;
        for node in 1..config.urls.len() {
            if connected.is_ok() {
                break;
            }
            connected = Self::login(config, node).await;
        }
        connected
    }

    /// Connects and logs in to node number `attempt` in turn.
    ///
    /// # Errors
    /// Why not. Nothing is left behind: no socket, no thread.
    pub async fn login(config: &Config, attempt: usize) -> Result<Self, Error> {
        let node = config.node(attempt).map_err(Error::Config)?;
        // Before anything is connected, so that what is wrong with a file is told while the broker is away, too.
        let tls = node.tls.as_ref().map(|(name, files)| Tls::read(name, files)).transpose().map_err(Error::Config)?;
        match Self::enter(config, &node, tls.as_ref(), false).await {
            // What it has against our certificate may have got lost: asked again, and listened to.
            Err((_, true)) if tls.is_some() => Self::enter(config, &node, tls.as_ref(), true).await,
            entered => entered,
        }
        .map_err(|(error, _)| error)
    }

    /// Connects and logs in; a failure comes with whether the broker cut the login off without a word.
    async fn enter(config: &Config, node: &Node, tls: Option<&Tls>, listening: bool) -> Result<Self, (Error, bool)> {
        let (stream, socket) = dial(node, tls, listening).await.map_err(|error| (error, false))?;
        // On the way out the socket is shut down: lapin's thread waits for it for ever, and without it ends.
        let (protection, greeting) = (stream.protection(), Greeting::default());
        match timeout(node.limit, handshake(node.uri.clone(), Heard::new(stream, greeting.clone()))).await {
            Ok(Ok(inner)) => {
                Ok(Self { inner, node: node.at.clone(), limits: config.limits, socket, greeting, protection })
            }
            Ok(Err(error)) => Err((refused(node, &error), matches!(error.kind(), lapin::ErrorKind::IOError(_)))),
            Err(_) => Err((node.too_slow("the handshake"), false)),
        }
    }

    /// Declares the exchange, or sees whether it is there, on a channel of its own: a refusal closes it.
    ///
    /// # Errors
    /// The broker's refusal, with what mends it.
    pub async fn see_exchange(&self, config: &Config) -> Result<(), Error> {
        self.declare(config, !config.declare, FieldTable::default()).await.map_err(|error| match error {
            Error::Channel { code: 404, .. } => Error::Config(format!(
                "exchange {:?} does not exist: declare it as a durable topic exchange, or set amqp.declare = true",
                config.exchange
            )),
            Error::Channel { code, reason } => {
                Error::Config(format!("exchange {:?} cannot be used: {code} {reason}", config.exchange))
            }
            other => other,
        })
    }

    /// Whether there is an exchange of this name, without making one.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub async fn has_exchange(&self, config: &Config) -> Result<bool, Error> {
        match self.declare(config, true, FieldTable::default()).await {
            Ok(()) => Ok(true),
            Err(Error::Channel { code: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether an exchange that is there is a durable topic exchange: declaring it again changes nothing.
    ///
    /// # Errors
    /// The broker's refusal: with code 406 it is another kind of exchange, with 403 the right to declare it is missing.
    pub async fn is_meant(&self, config: &Config) -> Result<(), Error> {
        self.declare(config, false, FieldTable::default()).await
    }

    /// Whether the user may make an exchange that is not there, without making it: `RabbitMQ` looks at the rights first, and
    /// then refuses an argument that cannot be.
    ///
    /// # Errors
    /// The broker's refusal: with code 403 the right to declare it is missing.
    pub async fn may_declare(&self, config: &Config) -> Result<(), Error> {
        let mut arguments = FieldTable::default();
        arguments.insert("alternate-exchange".into(), AMQPValue::LongInt(0));
        match self.declare(config, false, arguments).await {
            Err(Error::Channel { code: 406, .. }) => Ok(()),
            other => other,
        }
    }

    async fn declare(&self, config: &Config, passive: bool, arguments: FieldTable) -> Result<(), Error> {
        let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
        let declare = async {
            let channel = self.inner.create_channel().await?;
            let name = config.exchange.as_str().into();
            channel.exchange_declare(name, ExchangeKind::Topic, options, arguments).await?;
            channel.close(200, "done".into()).await
        };
        self.limited("declaring the exchange", declare).await
    }

    /// Publishes a message that no queue keeps, to see whether one is bound for its routing key.
    ///
    /// An empty map of type `probe/1`: consumers ignore types they don't know. It expires at once, so that only a consumer
    /// that waits at that moment gets it.
    ///
    /// # Errors
    /// Why it could not be published: with code 404 the exchange is missing, with 403 the right to write to it.
    pub async fn probe(&self, config: &Config, routing_key: &str) -> Result<Probed, Error> {
        // MessagePack for a map without entries.
        const EMPTY: &[u8] = &[0x80];
        // A channel of its own: a refusal closes it, and what comes back on it is this message.
        let channel = self.channel().await?.inner;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_app_id(APP_ID.into())
            .with_type("probe/1".into())
            .with_expiration("0".into());
        let publish = async {
            let (exchange, routing_key) = (config.exchange.as_str().into(), routing_key.into());
            let confirm = channel.basic_publish(exchange, routing_key, options, EMPTY, properties).await?.await?;
            channel.close(200, "done".into()).await?;
            Ok(confirm)
        };
        // A broker with an alarm reads on no further: then nothing is confirmed, and the channel is not closed.
        let mut signals = self.signals();
        let confirmation = tokio::select! {
            biased;
            Some(reason) = blocked(&mut signals) => return Ok(Probed::Blocked(reason)),
            confirmation = self.limited("confirming a probe", publish) => confirmation?,
        };
        Ok(match confirmation {
            Confirmation::Ack(None) => Probed::Bound,
            Confirmation::Ack(Some(_)) => Probed::Unbound,
            Confirmation::Nack(_) | Confirmation::NotRequested => Probed::Refused,
        })
    }

    /// Opens a channel with publisher confirms.
    ///
    /// # Errors
    /// Why not.
    pub async fn channel(&self) -> Result<Channel, Error> {
        let open = async {
            let channel = self.inner.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(Channel { inner: channel, close: self.limits.close })
        };
        self.limited("opening a channel", open).await
    }

    /// What the broker says about the whole connection, from now on.
    pub fn signals(&self) -> Signals {
        let events = self.inner.events_listener().filter_map(|event| async {
            match event {
                lapin::Event::ConnectionBlocked(reason) => Some(Signal::Blocked(reason)),
                lapin::Event::ConnectionUnblocked => Some(Signal::Unblocked),
                lapin::Event::Error(error) => {
                    Some(Error::from_lapin(&error)).filter(Error::ends_connection).map(Signal::Lost)
                }
                _ => None,
            }
        });
        Box::pin(events)
    }

    /// The broker's product and version, in its own words.
    pub fn server(&self) -> Option<(String, String)> {
        self.greeting.server()
    }

    /// The version of TLS; `None` is plain text.
    pub fn protection(&self) -> Option<&'static str> {
        self.protection
    }

    /// Host and port of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The lapin connection, for consuming.
    pub(super) fn inner(&self) -> &lapin::Connection {
        &self.inner
    }

    /// Closes in order, and by force where that takes too long (a blocked broker reads nothing).
    pub async fn close(self) {
        let limit = self.limits.close;
        self.close_within(limit).await;
    }

    /// As [`Connection::close`], with less time where there is less.
    pub async fn close_within(&self, limit: Duration) {
        let close = self.inner.close(200, "goodbye".into());
        if !matches!(timeout(self.limits.close.min(limit), close).await, Ok(Ok(()))) {
            self.kill();
        }
    }

    /// Shuts the socket down: everything that waits on this connection ends.
    pub fn kill(&self) {
        self.socket.shut();
    }

    pub(super) async fn limited<T>(
        &self,
        what: &'static str,
        step: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        match timeout(self.limits.step, step).await {
            Ok(result) => result.map_err(|error| Error::from_lapin(&error)),
            Err(_) => Err(Error::Timeout { node: self.node.clone(), what, limit: self.limits.step }),
        }
    }
}

/// Why the broker takes nothing, once it says so; `None` where the connection is over.
async fn blocked(signals: &mut Signals) -> Option<String> {
    loop {
        if let Signal::Blocked(reason) = signals.next().await? {
            return Some(reason);
        }
    }
}

async fn handshake(uri: AMQPUri, stream: Heard<Stream>) -> lapin::Result<lapin::Connection> {
    let stream = Mutex::new(Some(stream.compat()));
    let properties = ConnectionProperties::default().with_connection_name("postgres-agent".into());
    let take = async move |_, _| {
        // Asked once: lapin's own retries are off.
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        stream.map(AsyncTcpStream::Plain).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected).into())
    };
    lapin::Connection::connector(uri, runtime(), take, properties).await
}

/// Why a login failed. With TLS 1.3 a broker looks at the client's certificate only then.
fn refused(node: &Node, error: &lapin::Error) -> Error {
    let at = node.at.clone();
    if let lapin::ErrorKind::IOError(error) = error.kind() {
        let plain = || Some(error.to_string()).filter(|told| told == SPEAKS_TLS);
        if let Some(reason) = tls::refusal(error).or_else(plain) {
            return Error::Tls { node: at, reason };
        }
    }
    match Error::from_lapin(error) {
        Error::Connection { reason } | Error::Channel { reason, .. } => {
            Error::Refused { node: at, user: node.user.clone(), vhost: node.uri.vhost.clone(), reason }
        }
        other => other,
    }
}

/// A channel with publisher confirms.
#[derive(Clone)]
pub struct Channel {
    inner: lapin::Channel,
    /// How long an orderly close may take.
    close: Duration,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("id", &self.inner.id()).finish_non_exhaustive()
    }
}

/// What the broker said to one message, and the id of a message that it returned meanwhile: not always the same one.
#[derive(Debug)]
pub struct Confirmed {
    /// Whether it took it.
    pub ack: bool,
    /// A message that no queue wanted.
    pub returned: Option<String>,
}

/// The broker's word on a message, when it comes.
pub type Confirm = Pin<Box<dyn Future<Output = Result<Confirmed, Error>> + Send>>;

impl Channel {
    /// Publishes a message. It has its place among this channel's messages when this returns; the confirm comes later.
    pub fn publish(&self, exchange: &str, routing_key: &str, batch: &Arc<Batch>, replayed: bool) -> Confirm {
        let (channel, properties, batch) = (self.inner.clone(), properties(batch, replayed), Arc::clone(batch));
        let (exchange, routing_key) = (exchange.into(), routing_key.into());
        let mut confirm: Confirm = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let published = channel.basic_publish(exchange, routing_key, options, &batch.body, properties).await;
            // Its frames are queued: nobody needs the body while the confirm is waited for.
            drop(batch);
            let confirm = published.map_err(|error| Error::from_lapin(&error))?;
            match confirm.await.map_err(|error| Error::from_lapin(&error))? {
                Confirmation::Ack(returned) => {
                    Ok(Confirmed { ack: true, returned: returned.as_ref().and_then(message_id) })
                }
                Confirmation::Nack(returned) => {
                    Ok(Confirmed { ack: false, returned: returned.as_ref().and_then(message_id) })
                }
                Confirmation::NotRequested => Err(Error::Connection { reason: "the channel does not confirm".into() }),
            }
        });
        // lapin gives a message its tag and queues its frames when it is first polled: so the order is the order of calls.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match pin!(&mut confirm).as_mut().poll(&mut context) {
            Poll::Ready(result) => Box::pin(std::future::ready(result)),
            Poll::Pending => confirm,
        }
    }

    /// Closes the channel, without waiting long: what is in flight on it comes back as an error.
    pub async fn close(self) {
        let _closed_or_given_up = timeout(self.close, self.inner.close(200, "begun anew".into())).await;
    }
}

fn message_id(returned: &BasicReturnMessage) -> Option<String> {
    returned.delivery.properties.message_id().as_ref().map(ToString::to_string)
}

fn properties(batch: &Batch, replayed: bool) -> BasicProperties {
    let mut headers = FieldTable::default();
    let text = |text: String| AMQPValue::LongString(text.into());
    headers.insert("agent_id".into(), text(batch.agent.to_string()));
    headers.insert("run_id".into(), text(batch.run_id.to_string()));
    headers.insert("collector".into(), text(batch.collector.to_string()));
    headers.insert("seq".into(), AMQPValue::LongLongInt(i64::try_from(batch.seq).unwrap_or(i64::MAX)));
    headers.insert("events".into(), AMQPValue::LongInt(i32::try_from(batch.events).unwrap_or(i32::MAX)));
    headers.insert("replayed".into(), AMQPValue::Boolean(replayed));
    let properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(2)
        .with_message_id(batch.message_id().into())
        .with_app_id(APP_ID.into())
        .with_type(format!("{}/{}", batch.collector, batch.version).into())
        .with_timestamp(batch.time.seconds())
        .with_headers(headers);
    if batch.zstd { properties.with_content_encoding("zstd".into()) } else { properties }
}

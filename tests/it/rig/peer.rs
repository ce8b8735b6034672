//! A scripted AMQP peer: it shakes hands like a broker, and answers what is published as its script says: any frames, in any
//! order, or bytes that are none. Beside the real broker, for what that one does not do on demand.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use amq_protocol::{
    frame::{AMQPFrame, WriteContext, gen_frame, parse_frame},
    protocol::{AMQPClass, basic, channel, confirm, connection, exchange},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

/// A message as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// Its connection, from 0.
    pub(crate) connection: usize,
    pub(crate) channel: u16,
    /// Its number on this channel, from 1.
    pub(crate) tag: u64,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) message_id: String,
    pub(crate) replayed: bool,
    pub(crate) body: Vec<u8>,
}

impl Published {
    /// The last part of its id.
    pub(crate) fn seq(&self) -> u64 {
        self.message_id.rsplit('/').next().unwrap().parse().unwrap()
    }
}

/// What a script hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Published(Published),
    /// Nothing came for a while.
    Silence,
}

/// What a script says.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    /// Channel, tag, and whether all before it are meant too.
    Ack(u16, u64, bool),
    Nack(u16, u64, bool),
    /// No queue wanted it.
    Return(Published),
    Blocked,
    Unblocked,
    /// Bytes, whatever they mean.
    Raw(Vec<u8>),
    /// The connection is over: no goodbye, and what was not read yet is thrown away (TCP RST).
    Reset,
}

/// What one connection is answered with.
pub(crate) type Script = Box<dyn FnMut(Heard) -> Vec<Say> + Send>;

/// How a connection begins.
#[derive(Debug, Clone)]
pub(crate) enum Manners {
    /// Like a broker, with these limits: channels, bytes of a frame, seconds between heartbeats. 0 is none.
    Broker(u16, u32, u16),
    /// It says nothing at all.
    Silent,
    /// It sends these bytes, so many at a time with a pause before each, and then nothing.
    Bytes(Vec<u8>, usize, Duration),
}

/// Like RabbitMQ.
pub(crate) const POLITE: Manners = Manners::Broker(2047, 131_072, 60);

/// A peer; its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    port: u16,
    published: Arc<Mutex<Vec<Published>>>,
    accepted: Arc<Mutex<usize>>,
    keeps: Arc<AtomicBool>,
    accepts: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

/// For how long nothing must come until a script hears of silence.
const SILENCE: Duration = Duration::from_millis(5);

impl Peer {
    /// Each connection, counted from 0, has its manners and its script.
    pub(crate) async fn start(mut each: impl FnMut(usize) -> (Manners, Script) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (published, accepted) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let keeps = Arc::new(AtomicBool::new(true));
        let keeping = Arc::clone(&keeps);
        let (seen, count) = (Arc::clone(&published), Arc::clone(&accepted));
        let accepts = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let number = *count.lock().unwrap();
                *count.lock().unwrap() += 1;
                let (manners, script) = each(number);
                let (seen, keeps) = (Arc::clone(&seen), Arc::clone(&keeping));
                // However it ends: the other side went away.
                connections.spawn(async move { _ = meet(stream, manners, Talk { number, script, seen, keeps }).await });
            }
        });
        Self { port, published, accepted, keeps, accepts }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:hunter2@127.0.0.1:{}/%2f", self.port)
    }

    /// All that was published, in the order in which it came.
    pub(crate) fn published(&self) -> Vec<Published> {
        self.published.lock().unwrap().clone()
    }

    /// How many messages were published.
    pub(crate) fn count(&self) -> usize {
        self.published.lock().unwrap().len()
    }

    /// From now on what was published is known to the script only.
    pub(crate) fn keep_nothing(&self) {
        self.keeps.store(false, Ordering::Relaxed);
    }

    /// How many connections were accepted.
    pub(crate) fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap()
    }
}

async fn meet(mut stream: TcpStream, manners: Manners, talk: Talk) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match manners {
        Manners::Broker(channels, frame, heartbeat) => talk.shake_hands(stream, (channels, frame, heartbeat)).await,
        Manners::Silent => read_on(&mut stream).await,
        Manners::Bytes(bytes, piece, pause) => {
            for piece in bytes.chunks(piece) {
                tokio::time::sleep(pause).await;
                stream.write_all(piece).await?;
            }
            read_on(&mut stream).await
        }
    }
}

async fn read_on(stream: &mut TcpStream) -> io::Result<()> {
    while stream.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}

/// A connection's frames, both ways.
struct Frames {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Frames {
    /// The next frame; `None` where nothing came for a while.
    async fn next(&mut self) -> io::Result<Option<AMQPFrame>> {
        loop {
            if let Ok((rest, frame)) = parse_frame(self.read.as_slice()) {
                let used = self.read.len() - rest.len();
                self.read.drain(..used);
                return Ok(Some(frame));
            }
            match timeout(SILENCE, self.stream.read_buf(&mut self.read)).await {
                Err(_) => return Ok(None),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => _ = read?,
            }
        }
    }

    async fn send(&mut self, frames: impl IntoIterator<Item = AMQPFrame>) -> io::Result<()> {
        let mut bytes = Vec::new();
        frames.into_iter().for_each(|frame| bytes.extend(encoded(&frame)));
        self.stream.write_all(&bytes).await
    }
}

/// A frame as bytes.
pub(crate) fn encoded(frame: &AMQPFrame) -> Vec<u8> {
    gen_frame(frame)(WriteContext::from(Vec::new())).unwrap().into_inner().0
}

/// One connection.
struct Talk {
    number: usize,
    script: Script,
    seen: Arc<Mutex<Vec<Published>>>,
    keeps: Arc<AtomicBool>,
}

impl Talk {
    async fn shake_hands(self, stream: TcpStream, tuned: (u16, u32, u16)) -> io::Result<()> {
        use connection::{AMQPMethod, Start, Tune};
        let mut frames = Frames { stream, read: Vec::new() };
        let say = |method| [AMQPFrame::Method(0, AMQPClass::Connection(method))];
        let start = Start {
            version_major: 0,
            version_minor: 9,
            server_properties: capable(),
            mechanisms: "PLAIN".into(),
            locales: "en_US".into(),
        };
        let (channel_max, frame_max, heartbeat) = tuned;
        let mut greeting = Some(AMQPMethod::Start(start));
        loop {
            match frames.next().await? {
                Some(AMQPFrame::ProtocolHeader(_)) => frames.send(greeting.take().into_iter().flat_map(say)).await?,
                Some(AMQPFrame::Method(0, AMQPClass::Connection(AMQPMethod::StartOk(_)))) => {
                    frames.send(say(AMQPMethod::Tune(Tune { channel_max, frame_max, heartbeat }))).await?;
                }
                Some(AMQPFrame::Method(0, AMQPClass::Connection(AMQPMethod::Open(_)))) => {
                    frames.send(say(AMQPMethod::OpenOk(connection::OpenOk {}))).await?;
                    return self.serve(frames).await;
                }
                _ => {}
            }
        }
    }

    async fn serve(mut self, mut frames: Frames) -> io::Result<()> {
        let (mut tags, mut open) = (BTreeMap::new(), BTreeMap::<u16, Published>::new());
        let mut silences = 0;
        loop {
            let Some(frame) = frames.next().await? else {
                silences += 1;
                if silences % 100 == 0 {
                    frames.send([AMQPFrame::Heartbeat]).await?;
                }
                let said = (self.script)(Heard::Silence);
                say(&mut frames, said).await?;
                continue;
            };
            match frame {
                AMQPFrame::Method(channel, AMQPClass::Basic(basic::AMQPMethod::Publish(publish))) => {
                    let tag = tags.entry(channel).or_insert(0);
                    *tag += 1;
                    let published = Published {
                        connection: self.number,
                        channel,
                        tag: *tag,
                        exchange: publish.exchange.to_string(),
                        routing_key: publish.routing_key.to_string(),
                        message_id: String::new(),
                        replayed: false,
                        body: Vec::new(),
                    };
                    open.insert(channel, published);
                }
                AMQPFrame::Header(channel, header) => {
                    let Some(published) = open.get_mut(&channel) else { continue };
                    published.message_id = header.properties.message_id().clone().unwrap().to_string();
                    let headers = header.properties.headers().clone().unwrap_or_default();
                    let replayed = headers.inner().get("replayed");
                    published.replayed = replayed == Some(&amq_protocol::types::AMQPValue::Boolean(true));
                    published.body.reserve(usize::try_from(header.body_size).unwrap());
                    if header.body_size == 0 {
                        self.whole(&mut frames, open.remove(&channel).unwrap()).await?;
                    }
                }
                AMQPFrame::Body(channel, bytes) => {
                    let Some(published) = open.get_mut(&channel) else { continue };
                    published.body.extend_from_slice(&bytes);
                    if published.body.len() == published.body.capacity() {
                        self.whole(&mut frames, open.remove(&channel).unwrap()).await?;
                    }
                }
                AMQPFrame::Method(channel, class) => {
                    if matches!(class, AMQPClass::Channel(channel::AMQPMethod::Close(_))) {
                        tags.remove(&channel);
                    }
                    frames.send(reply(&class).map(|class| AMQPFrame::Method(channel, class))).await?;
                }
                _ => {}
            }
        }
    }

    async fn whole(&mut self, frames: &mut Frames, published: Published) -> io::Result<()> {
        if self.keeps.load(Ordering::Relaxed) {
            self.seen.lock().unwrap().push(published.clone());
        }
        let said = (self.script)(Heard::Published(published));
        say(frames, said).await
    }
}

/// That a client may ask for confirms and hear of a block.
fn capable() -> amq_protocol::types::FieldTable {
    use amq_protocol::types::{AMQPValue, FieldTable};
    let mut capabilities = FieldTable::default();
    for name in ["publisher_confirms", "basic.nack", "connection.blocked", "consumer_cancel_notify"] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    properties
}

/// What a broker says to a method that asks for an answer.
fn reply(class: &AMQPClass) -> Option<AMQPClass> {
    Some(match class {
        AMQPClass::Channel(channel::AMQPMethod::Open(_)) => {
            AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))
        }
        AMQPClass::Channel(channel::AMQPMethod::Close(_)) => {
            AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))
        }
        AMQPClass::Connection(connection::AMQPMethod::Close(_)) => {
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(connection::CloseOk {}))
        }
        AMQPClass::Exchange(exchange::AMQPMethod::Declare(_)) => {
            AMQPClass::Exchange(exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {}))
        }
        AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) => {
            AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {}))
        }
        _ => return None,
    })
}

async fn say(frames: &mut Frames, said: Vec<Say>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let method = |channel, method| encoded(&AMQPFrame::Method(channel, method));
    for said in said {
        match said {
            Say::Ack(channel, delivery_tag, multiple) => {
                let ack = basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple });
                bytes.extend(method(channel, AMQPClass::Basic(ack)));
            }
            Say::Nack(channel, delivery_tag, multiple) => {
                let nack = basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, requeue: false });
                bytes.extend(method(channel, AMQPClass::Basic(nack)));
            }
            Say::Return(published) => bytes.extend(returned(published)),
            Say::Blocked => {
                let blocked = connection::AMQPMethod::Blocked(connection::Blocked { reason: "low on memory".into() });
                bytes.extend(method(0, AMQPClass::Connection(blocked)));
            }
            Say::Unblocked => {
                let unblocked = connection::AMQPMethod::Unblocked(connection::Unblocked {});
                bytes.extend(method(0, AMQPClass::Connection(unblocked)));
            }
            Say::Raw(raw) => bytes.extend(raw),
            Say::Reset => {
                frames.stream.write_all(&bytes).await?;
                frames.stream.set_zero_linger()?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }
    frames.stream.write_all(&bytes).await
}

/// The frames of a return: as RabbitMQ's, with the message's id and its body.
fn returned(published: Published) -> Vec<u8> {
    let channel = published.channel;
    let returned = basic::Return {
        reply_code: 312,
        reply_text: "NO_ROUTE".into(),
        exchange: published.exchange.into(),
        routing_key: published.routing_key.into(),
    };
    let header = amq_protocol::frame::AMQPContentHeader {
        class_id: 60,
        body_size: published.body.len() as u64,
        properties: basic::AMQPProperties::default().with_message_id(published.message_id.into()),
    };
    let mut bytes = encoded(&AMQPFrame::Method(channel, AMQPClass::Basic(basic::AMQPMethod::Return(returned))));
    bytes.extend(encoded(&AMQPFrame::Header(channel, header)));
    // Far below the smallest limit of a frame that a test asks for.
    for piece in published.body.chunks(2048) {
        bytes.extend(encoded(&AMQPFrame::Body(channel, piece.to_vec())));
    }
    bytes
}

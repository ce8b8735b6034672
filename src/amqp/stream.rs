//! The socket under lapin, with or without TLS: made here, so that it can be shut down whatever lapin waits for.
//!
//! lapin asks a runtime for its sockets, and knows TLS only as features of its own, whose certificates and time limits are
//! not ours. [`Sockets`] is that runtime's half: tokio, but for the kind of socket.

use std::{
    future::{Future, ready},
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use rustls::ProtocolVersion;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tokio_util::compat::Compat;

use super::greeting::Heard;

/// A connected socket. With TLS its handshake is over.
#[derive(Debug)]
pub(super) enum Stream {
    /// And whether nothing was read from it yet.
    Plain(TcpStream, bool),
    /// Large: on the heap.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where an unencrypted connection gets an answer in TLS: what its records of alerts begin with. No frame of AMQP does.
const TLS_ALERT: u8 = 0x15;

/// What is told of a port that answers plain text with TLS.
pub const SPEAKS_TLS: &str = "speaks TLS on this port: write amqps";

impl Stream {
    /// What protects it from those who listen on the way.
    pub(super) fn protection(&self) -> Option<&'static str> {
        match self {
            Self::Plain(..) => None,
            Self::Tls(stream) => Some(match stream.get_ref().1.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
                _ => "TLS",
            }),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match self.get_mut() {
            Self::Plain(stream, fresh) => {
                let result = Pin::new(stream).poll_read(context, buffer);
                let first = std::mem::replace(fresh, *fresh && result.is_pending());
                match buffer.filled().get(before..) {
                    Some([TLS_ALERT, 3, ..]) if first => Poll::Ready(Err(io::Error::other(SPEAKS_TLS))),
                    _ => result,
                }
            }
            Self::Tls(stream) => match Pin::new(stream).poll_read(context, buffer) {
                // Closed without TLS's goodbye. AMQP has one of its own, so nothing can be cut short unnoticed.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                result => result,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// tokio, whose sockets are ours.
#[derive(Debug, Clone)]
pub(super) struct Sockets(Tokio);

/// What lapin runs on.
pub(super) fn runtime() -> Runtime<RuntimeParts<Tokio, Sockets>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Sockets(Tokio::current())))
}

impl Reactor for Sockets {
    type TcpStream = Compat<Heard<Stream>>;
    type Sleep = tokio::time::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl futures_util::AsyncRead + futures_util::AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        // It gets the one that is handed to it, and never connects by itself.
        ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

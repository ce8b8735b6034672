//! The bytes of one connection, with or without TLS, watched while the login lasts.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};
use tokio_rustls::client::TlsStream as Encrypted;

use super::{certificate::Read, watch::Watch};

/// What the driver reads and writes.
pub(in crate::postgres) struct Stream<S> {
    line: Line<S>,
    watch: Watch,
}

/// The way that bytes go.
pub(super) enum Line<S> {
    Plain(S),
    Tls(Box<Encrypted<S>>),
}

impl<S> Stream<S> {
    pub(super) fn new(line: Line<S>, watch: Watch) -> Self {
        Self { line, watch }
    }
}

/// Calls a method of whichever line there is.
macro_rules! on_line {
    ($stream:expr, $method:ident $(, $argument:expr)*) => {
        match &mut $stream.get_mut().line {
            Line::Plain(line) => Pin::new(line).$method($($argument),*),
            Line::Tls(line) => Pin::new(line.as_mut()).$method($($argument),*),
        }
    };
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(on_line!(self.as_mut(), poll_read, cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        // With an error the driver never sees what was read, and so cannot answer it.
        Poll::Ready(self.get_mut().watch.see(fresh).map_err(io::Error::other))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_line!(self, poll_write, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_line!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_line!(self, poll_shutdown, cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let Line::Tls(line) = &self.line else { return ChannelBinding::none() };
        let certificate = line.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let hash = certificate.and_then(Read::new).and_then(|read| read.end_point());
        hash.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

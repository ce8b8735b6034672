//! What the broker says first: its product and version. The library reads it and keeps it to itself, so it is heard on the
//! way to it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use lapin::{
    protocol::{AMQPClass, connection::AMQPMethod, parse_class},
    types::AMQPValue,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than any broker says of itself; what is longer is not listened to.
const BYTES_MAX: usize = 16 << 10;
/// Type, channel and size of a frame.
const HEAD: usize = 7;
/// A name or a version that is longer is cut.
const TEXT_MAX: usize = 64;

/// The first frame of a connection, as far as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<Mutex<Vec<u8>>>);

impl Greeting {
    fn hear(&self, bytes: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = whole(&heard).unwrap_or(BYTES_MAX).min(BYTES_MAX).saturating_sub(heard.len());
        heard.extend(bytes.iter().take(missing));
    }

    /// The broker's product and version, in its own words.
    pub(super) fn server(&self) -> Option<(String, String)> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let body = heard.get(HEAD..whole(&heard)?)?;
        let AMQPClass::Connection(AMQPMethod::Start(start)) = parse_class(body).ok()?.1 else { return None };
        let text = |name: &str| match start.server_properties.inner().get(name)? {
            AMQPValue::LongString(text) => {
                let text = text.to_string();
                Some(text.chars().filter(|letter| !letter.is_control()).take(TEXT_MAX).collect())
            }
            _ => None,
        };
        Some((text("product")?, text("version")?))
    }
}

/// Bytes of the first frame without its last one, which says nothing; `None` while its head is not there.
fn whole(heard: &[u8]) -> Option<usize> {
    let size = u32::from_be_bytes(heard.get(3..HEAD)?.try_into().ok()?);
    usize::try_from(size).ok()?.checked_add(HEAD)
}

/// A stream whose first frame is heard.
#[derive(Debug)]
pub(super) struct Heard<S> {
    stream: S,
    greeting: Greeting,
}

impl<S> Heard<S> {
    pub(super) fn new(stream: S, greeting: Greeting) -> Self {
        Self { stream, greeting }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let own = self.get_mut();
        let result = Pin::new(&mut own.stream).poll_read(context, buffer);
        own.greeting.hear(buffer.filled().get(before..).unwrap_or_default());
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::{
        frame::{AMQPFrame, WriteContext, gen_frame},
        protocol::connection::Start,
        types::FieldTable,
    };

    use super::*;

    fn start(properties: &[(&str, &str)]) -> Vec<u8> {
        let mut server_properties = FieldTable::default();
        for (name, value) in properties {
            server_properties.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        let start = Start {
            version_major: 0,
            version_minor: 9,
            server_properties,
            mechanisms: "PLAIN".into(),
            locales: "en_US".into(),
        };
        let frame = AMQPFrame::Method(0, AMQPClass::Connection(AMQPMethod::Start(start)));
        gen_frame(&frame)(WriteContext::from(Vec::new())).expect("a frame").into_inner().0
    }

    #[track_caller]
    fn check(bytes: &[u8], piece: usize, want: Option<(&str, &str)>) {
        let greeting = Greeting::default();
        bytes.chunks(piece).for_each(|bytes| greeting.hear(bytes));
        let got = greeting.server();
        assert_eq!(got.as_ref().map(|(product, version)| (product.as_str(), version.as_str())), want);
        assert!(greeting.0.lock().expect("not poisoned").len() <= BYTES_MAX);
    }

    #[test]
    fn a_broker_says_what_it_is_before_all_else() {
        let greeting = start(&[("product", "Rabbit\nMQ"), ("version", "3.10.8")]);
        let want = Some(("RabbitMQ", "3.10.8"));
        check(&greeting, greeting.len(), want);
        check(&greeting, 1, want);
        check(&[greeting.clone(), vec![1; 100]].concat(), 40, want);
        check(&greeting[..greeting.len() / 2], 9, None);
        check(&start(&[("product", "x")]), 1000, None);
        check(&vec![0xff; 40_000], 1000, None);
        check(b"", 1, None);
    }
}

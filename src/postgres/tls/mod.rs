//! How a connection is protected: the question for TLS, the handshake, and the watch over the login.
//!
//! The driver knows less of this than libpq does, so it is told to hand over each fresh socket at once (what it calls
//! direct negotiation), and everything up to the first message of the protocol is done here. What is trusted and who we
//! are is read from files at each handshake, so that renewed certificates are picked up, and only there: as in libpq, a
//! broken certificate does no harm to a connection that has no TLS.

mod certificate;
mod stream;
mod verify;
mod watch;

use std::{
    convert::Infallible,
    fs,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    ClientConfig, SignatureScheme, SupportedProtocolVersion,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::ServerName,
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;

use super::{
    conninfo::{CertMode, Methods, Tls, TlsVersion},
    error::Problem,
};
use crate::tls;
use certificate::Read;
use stream::Line;
pub(super) use stream::Stream;
use verify::Verifier;
use watch::Watch;

/// `SSLRequest` of the protocol.
const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The protocol's name inside TLS, for servers of version 17 and later.
const ALPN: &[u8] = b"postgresql";

/// How much protection one attempt has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// None.
    Plain,
    /// TLS if the server has it.
    Offered,
    /// TLS or nothing.
    Demanded,
}

/// Protects connections of one kind to one host.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    wanted: Tls,
    pub(super) kind: Kind,
    /// Whether what is connected to is a name or address that a certificate can be for: a `hostaddr` is none.
    named: bool,
    host: Option<String>,
    methods: Methods,
    /// Whether the server did more than to say that it has no TLS.
    tried: Arc<AtomicBool>,
}

impl Connector {
    pub(super) fn new(wanted: Tls, kind: Kind, named: bool, methods: Methods) -> Self {
        Self { wanted, kind, named, host: None, methods, tried: Arc::default() }
    }

    /// Whether a connection without TLS would be another one than the last: the server did more than to decline.
    pub(super) fn tried_tls(&self) -> bool {
        self.tried.load(Ordering::Relaxed)
    }

    async fn protect<S: AsyncRead + AsyncWrite + Unpin>(self, mut socket: S) -> Result<Stream<S>, Problem> {
        let shown = Arc::new(AtomicBool::new(false));
        let certificate = (self.wanted.cert_mode == CertMode::Require).then(|| shown.clone());
        let watch = Watch::new(self.methods.clone(), certificate);
        let direct = self.kind == Kind::Demanded && self.wanted.direct;
        if self.kind == Kind::Plain || !(direct || self.ask(&mut socket).await?) {
            return Ok(Stream::new(Line::Plain(socket), watch));
        }
        self.tried.store(true, Ordering::Relaxed);
        let host = self.host.as_deref();
        let config = config(&self.wanted, host, shown)?;
        // Without a name for it the server is told none: an address never is.
        let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let name = host.and_then(|host| ServerName::try_from(host.to_owned()).ok()).unwrap_or(nobody);
        let encrypted = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        let encrypted = encrypted.map_err(|error| Problem::of_handshake(&error))?;
        if direct && encrypted.get_ref().1.alpn_protocol().is_none() {
            let why = "it speaks TLS, and does not say that it is PostgreSQL (sslnegotiation=direct needs 17 or later)";
            return Err(Problem::Handshake(why.into()));
        }
        Ok(Stream::new(Line::Tls(Box::new(encrypted)), watch))
    }

    /// Asks for TLS: whether it is there.
    async fn ask(&self, socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<bool, Problem> {
        let closed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Problem::Closed("it closed the connection when asked for TLS".into()),
            _ => Problem::Closed(error.to_string()),
        };
        socket.write_all(&REQUEST).await.map_err(closed)?;
        let mut answer = [0];
        socket.read_exact(&mut answer).await.map_err(closed)?;
        match answer {
            [b'S'] => Ok(true),
            [b'N'] if self.kind == Kind::Offered => Ok(false),
            [b'N'] => Err(Problem::Refused),
            // Such as one without a process to spare. What it says cannot be trusted yet, so it is not shown.
            [b'E'] => {
                self.tried.store(true, Ordering::Relaxed);
                Err(Problem::Handshake("it answered the question for TLS with an error".into()))
            }
            [other] => Err(Problem::Stranger(format!("{:?} when asked for TLS", char::from(other)))),
        }
    }
}

fn config(wanted: &Tls, host: Option<&str>, shown: Arc<AtomicBool>) -> Result<ClientConfig, Problem> {
    const BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    let provider = tls::provider();
    let verifier = Arc::new(Verifier::new(wanted, host, &provider)?);
    let versions = match wanted.versions {
        (TlsVersion::V12, TlsVersion::V12) => BOTH.get(1..),
        (TlsVersion::V13, _) => BOTH.get(..1),
        (TlsVersion::V12, TlsVersion::V13) => BOTH.get(..),
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions.unwrap_or_default())
        .map_err(|error| Problem::Handshake(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let identity = identity(wanted, &provider)?.map(Arc::new);
    let mut config = builder.with_client_cert_resolver(Arc::new(Shown { identity, shown }));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = wanted.sni;
    Ok(config)
}

/// The client's own certificate and key. As in libpq a certificate that is not there is none, and nothing to complain
/// about: it is the server that may want one.
fn identity(wanted: &Tls, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, Problem> {
    let Some(cert) = wanted.cert.as_ref().filter(|_| wanted.cert_mode != CertMode::Disable) else { return Ok(None) };
    if !cert.exists() {
        return Ok(None);
    }
    let Some(key) = &wanted.key else { return Err(Problem::File("sslcert is given and sslkey is not".into())) };
    if fs::metadata(key).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Problem::File(format!("client key {}: it is no plain file", key.display())));
    }
    let identity = tls::identity(cert, key, provider).map_err(Problem::File)?;
    // The library does not look at it where it cannot read it: one of version 1 may be good all the same.
    let read = identity.cert.first().and_then(Read::new);
    let read = read.ok_or_else(|| Problem::File(format!("client certificate {}: it is none", cert.display())))?;
    if identity.key.public_key().is_some_and(|public| !read.has_key(&public)) {
        return Err(Problem::File(format!("client key {}: it is not the key of the certificate", key.display())));
    }
    Ok(Some(identity))
}

/// Shows our certificate to who asks, whoever they trust, and takes note of it.
#[derive(Debug)]
struct Shown {
    identity: Option<Arc<CertifiedKey>>,
    shown: Arc<AtomicBool>,
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.shown.store(self.identity.is_some(), Ordering::Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

type Protecting<S> = Pin<Box<dyn Future<Output = Result<Stream<S>, Problem>> + Send>>;

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Stream<S>;
    type TlsConnect = Self;
    type Error = Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self, Infallible> {
        Ok(Self { host: self.named.then(|| host.to_owned()), ..self.clone() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connector {
    type Stream = Stream<S>;
    type Error = Problem;
    type Future = Protecting<S>;

    fn connect(self, socket: S) -> Self::Future {
        Box::pin(self.protect(socket))
    }
}

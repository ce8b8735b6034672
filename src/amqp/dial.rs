//! Dialling: TCP to one node and, with `amqps`, TLS on it. Nothing is sent before TLS stands, and nothing falls back.
//!
//! What is wrong with a certificate is told in one line; each step has the node's time limit.

use std::{
    io,
    net::{Shutdown, TcpStream as StdTcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{pki_types::ServerName, sign::SingleCertAndKey};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Files, config::Node, error::Error, stream::Stream};
use crate::tls;

/// How long a broker may take to say what it has against our certificate.
const OBJECTIONS: Duration = Duration::from_secs(1);

/// The same socket as another's, to shut it down whatever that waits for: at the latest when this is dropped.
#[derive(Debug)]
pub(super) struct Socket(StdTcpStream);

impl Socket {
    pub(super) fn shut(&self) {
        let _already_closed = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Whom to trust, who we are, and what the broker's certificate has to be for.
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads the files as they are now, so that renewed ones are picked up.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn read(name: &str, files: &Files) -> Result<Self, String> {
        let provider = tls::provider();
        let roots = match &files.ca {
            Some(path) => tls::roots(path)?,
            None => {
                tls::host_roots().map_err(|error| format!("{error}: name the broker's authority in amqp.ca_file"))?
            }
        };
        let builder = tls::client(&provider)?.with_root_certificates(roots);
        let config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let identity = tls::identity(cert, key, &provider)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
            _ => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| "no certificate can be for the host in amqp.url: name one by server_name_indication")?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Shakes hands. `listening` waits for objections to our certificate: with TLS 1.3 they come when the client believes
    /// to be in, and where it has sent something by then, a reset can overtake them.
    async fn shake_hands(
        &self,
        node: &Node,
        stream: TcpStream,
        listening: bool,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let broken = |error: &io::Error| {
            let reason = tls::refusal(error).unwrap_or_else(|| match error.kind() {
                io::ErrorKind::UnexpectedEof => "closed the connection within the TLS handshake".into(),
                _ => format!("broke the TLS handshake off: {error}"),
            });
            Error::Tls { node: node.at.clone(), reason }
        };
        let connected = timeout(node.limit, self.connector.connect(self.name.clone(), stream)).await;
        let mut stream = connected.map_err(|_| node.too_slow("the TLS handshake"))?.map_err(|error| broken(&error))?;
        if listening {
            // A broker says nothing else before it is spoken to.
            if let Ok(heard) = timeout(OBJECTIONS, stream.read(&mut [0])).await {
                return Err(broken(&heard.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())));
            }
        }
        Ok(stream)
    }
}

/// Connects to a node, and keeps its socket.
///
/// # Errors
/// Why not. The socket is closed then.
pub(super) async fn dial(node: &Node, tls: Option<&Tls>, listening: bool) -> Result<(Stream, Socket), Error> {
    let connect = |source| Error::Connect { node: node.at.clone(), source };
    let stream = timeout(node.limit, TcpStream::connect((node.host.as_str(), node.port)));
    let stream = stream.await.map_err(|_| node.too_slow("connecting"))?.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let stream = stream.into_std().map_err(connect)?;
    let socket = Socket(stream.try_clone().map_err(connect)?);
    let stream = TcpStream::from_std(stream).map_err(connect)?;
    let stream = match tls {
        Some(tls) => Stream::Tls(Box::new(tls.shake_hands(node, stream, listening).await?)),
        None => Stream::Plain(stream, true),
    };
    Ok((stream, socket))
}

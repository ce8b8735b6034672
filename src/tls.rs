//! TLS for both links: one provider of cryptography, one policy of protocols, and certificates and keys from PEM files.
//!
//! Nothing is kept: a file is read each time it is asked for, so that a renewed certificate is picked up at the next
//! connection. Whom to trust for what is the links' own affair; this only knows files and the host.

use std::{
    fmt, fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, ConfigBuilder, Error, InconsistentKeys, PeerIncompatible,
    RootCertStore, WantsVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

/// The one provider of cryptography: ring.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Where each client's configuration begins: TLS 1.2 and 1.3, nothing older.
///
/// # Errors
/// If the provider can do none of them, which would be a mistake in this crate.
pub fn client(provider: &Arc<CryptoProvider>) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider));
    builder.with_safe_default_protocol_versions().map_err(|error| format!("TLS: {error}"))
}

/// All certificates of a PEM file; `what` is what an error calls them.
///
/// # Errors
/// The file and why it cannot be used; one without a certificate is an error too.
pub fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let broken = |error: &dyn fmt::Display| format!("{what} {}: {error}", path.display());
    let text = fs::read(path).map_err(|error| broken(&error))?;
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        found.push(certificate.map_err(|error| {
            let begins = |line: &[u8]| line.starts_with(b"-----BEGIN CERTIFICATE");
            let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| begins(line));
            let line = lines.map(|(at, _)| at + 1).nth(found.len()).unwrap_or(1);
            broken(&format!("a PEM file with CERTIFICATEs is allowed: {error}, in the section of line {line}"))
        })?);
    }
    if found.is_empty() {
        Err(broken(&"a PEM file with CERTIFICATEs is allowed, and there is none in it"))
    } else {
        Ok(found)
    }
}

/// The authorities of a PEM file.
///
/// # Errors
/// The file and why it cannot be used.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, "root certificate")? {
        store.add(certificate).map_err(|error| format!("root certificate {}: {error}", path.display()))?;
    }
    Ok(store)
}

/// The authorities that the host trusts, as `SSL_CERT_FILE` and `SSL_CERT_DIR` or its system say.
///
/// # Errors
/// If it trusts none.
pub fn host_roots() -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 { Err("the host has no trusted certificates".into()) } else { Ok(store) }
}

/// A client's own certificate, with what stands between it and its authority, and its key.
///
/// # Errors
/// The file and why it cannot be used: above all a key that others may read, or that is another certificate's.
pub fn identity(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let certificates = certificates(cert, "client certificate")?;
    let broken = |error: &dyn fmt::Display| format!("client key {}: {error}", key.display());
    let metadata = fs::metadata(key).map_err(|error| broken(&error))?;
    // libpq lets root's keys be read by a group (0640); nobody else's.
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.permissions().mode() & forbidden != 0 {
        return Err(broken(&"others may read it (chmod 0600)"));
    }
    let text = fs::read(key).map_err(|error| broken(&error))?;
    let pem = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let locked = text.windows(9).any(|bytes| bytes == b"ENCRYPTED");
        let locked = if locked { "it has a passphrase, which nobody here could give; " } else { "" };
        broken(&format!("{locked}a PEM file with one PRIVATE KEY is allowed ({error})"))
    })?;
    let loaded = provider.key_provider.load_private_key(pem).map_err(|error| broken(&error))?;
    let identity = CertifiedKey::new(certificates, loaded);
    // Other errors say that rustls cannot read the certificate, such as one of version 1, which openssl still makes:
    // it is the server that has to.
    match identity.keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(broken(&"it is not the key of the client certificate"))
        }
        _ => Ok(identity),
    }
}

/// What a server's certificate, or a server, was refused for, and what a server refused ours for: in words that follow
/// "the server", in one line. `None` if it was not TLS that failed.
pub fn refusal(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?;
    // rustls may stand in an error of its own within the error of the socket.
    let error = inner.downcast_ref::<Error>().or_else(|| inner.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref());
    error.map(told)
}

fn told(error: &Error) -> String {
    use AlertDescription as Alert;
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidMessage(_) => "answered with something that is no TLS".into(),
        Error::AlertReceived(Alert::ProtocolVersion)
        | Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "has neither TLS 1.2 nor 1.3".into(),
        Error::AlertReceived(Alert::CertificateRequired | Alert::NoCertificate) => {
            "demands a client certificate".into()
        }
        Error::AlertReceived(Alert::UnknownCA) => "does not know the authority of the client certificate".into(),
        Error::AlertReceived(Alert::CertificateExpired) => "finds the client certificate expired".into(),
        Error::AlertReceived(Alert::CertificateRevoked) => "finds the client certificate revoked".into(),
        Error::AlertReceived(Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnsupportedCertificate) => {
            "does not accept the client certificate".into()
        }
        Error::AlertReceived(Alert::HandshakeFailure) => {
            "broke the handshake off: it demands a client certificate, or no cipher is common".into()
        }
        Error::AlertReceived(Alert::UnrecognisedName) => "does not know the name it was asked for".into(),
        Error::AlertReceived(alert) => format!("broke TLS off: {alert:?}"),
        other => format!("cannot be spoken to by TLS: {other}"),
    }
}

fn certificate(error: &CertificateError) -> String {
    let at = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).ok();
        let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        time.map(|time| format!(" ({time})")).unwrap_or_default()
    };
    match error {
        CertificateError::Expired => "has a certificate that is expired".into(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("has a certificate that is expired{}", at(not_after))
        }
        CertificateError::NotValidYet => "has a certificate that is not valid yet".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("has a certificate that is not valid yet{}: is this host's clock right?", at(not_before))
        }
        CertificateError::UnknownIssuer => "has a certificate of an authority that is not trusted here".into(),
        CertificateError::BadSignature => "has a certificate that its authority did not sign".into(),
        CertificateError::Revoked => "has a certificate that is revoked".into(),
        CertificateError::NotValidForName => "has a certificate for another name".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            let names = if names.is_empty() { "no name at all".into() } else { names.join(", ") };
            format!("has a certificate for {names}, not for {}", expected.to_str())
        }
        other => format!("has a certificate that cannot be used: {other}"),
    }
}

/// `db.test` of `DnsName("db.test")`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::*;

    #[track_caller]
    fn check(error: Error, want: &str) {
        let got = refusal(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(got.as_deref(), Some(want));
    }

    #[test]
    fn what_was_refused_is_told_in_one_line() {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000));
        let certificate = Error::InvalidCertificate;
        check(
            certificate(CertificateError::ExpiredContext { time, not_after: time }),
            "has a certificate that is expired (2023-11-14T22:13:20Z)",
        );
        let names = |presented: &[&str]| CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("mq.test").expect("a name"),
            presented: presented.iter().map(|name| (*name).to_owned()).collect(),
        };
        check(
            certificate(names(&["DnsName(\"db.test\")", "IpAddress(127.0.0.1)"])),
            "has a certificate for db.test, 127.0.0.1, not for mq.test",
        );
        check(certificate(names(&[])), "has a certificate for no name at all, not for mq.test");
        check(Error::AlertReceived(AlertDescription::ProtocolVersion), "has neither TLS 1.2 nor 1.3");
        assert_eq!(refusal(&io::Error::other("something else")), None);
    }
}

//! TLS for both links: one provider of cryptography, one policy of protocols, and certificates and keys from PEM files.
//!
//! Nothing is kept: a file is read each time it is asked for, so that a renewed certificate is picked up at the next
//! connection. Whom to trust for what is the links' own affair; this only knows files and the host.

use std::{
    fmt, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, ConfigBuilder, InconsistentKeys, RootCertStore, WantsVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
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
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(broken(&"it is not the key of the client certificate"))
        }
        _ => Ok(identity),
    }
}

//! TLS for both links: one provider of cryptography, one policy of protocols, and certificates and keys from PEM files.
//!
//! Nothing is kept: a file is read each time it is asked for, so that a renewed certificate is picked up at the next
//! connection. Whom to trust for what is the links' own affair; this only knows files and the host.

use std::{fmt, fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

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
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| broken(&error))?.collect();
    let found = found.map_err(|error| broken(&error))?;
    if found.is_empty() { Err(broken(&"no certificate in it")) } else { Ok(found) }
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
    let mode = fs::metadata(key).map_err(|error| broken(&error))?.permissions().mode();
    // libpq lets root's keys be read by a group (0640); nobody else's.
    if mode & 0o037 != 0 {
        return Err(broken(&"others may read it (chmod 0600)"));
    }
    let pem = PrivateKeyDer::from_pem_file(key).map_err(|error| broken(&error))?;
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

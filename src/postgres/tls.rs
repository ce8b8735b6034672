//! TLS with libpq's meaning of `sslmode`: whom to trust and what of a certificate to look at.
//!
//! rustls knows only one way, the strict one. libpq's `require` takes any certificate unless there is a root
//! certificate, and `verify-ca` looks at the chain and not at the name: [`Verifier`] does these.

use std::{fmt, fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::{Roots, SslMode, Tls};

/// Makes the connector. Certificates are read here, at each dial, so that renewed ones are picked up.
///
/// # Errors
/// Which file cannot be used, and why.
pub(super) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = match roots(tls)? {
        Some(roots) => {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(builder.build().map_err(|error| format!("no usable root certificate: {error}"))?)
        }
        None => None,
    };
    let name = tls.mode == SslMode::VerifyFull;
    let verifier = Arc::new(Verifier { chain, name, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity(tls, &provider)? {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

/// Whom to trust; `None` where libpq would trust everybody.
fn roots(tls: &Tls) -> Result<Option<RootCertStore>, String> {
    let strict = matches!(tls.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let path = match &tls.roots {
        Roots::System => return system_roots().map(Some),
        Roots::File(path) | Roots::Usual(path) => path,
        Roots::Nowhere if strict => {
            return Err("sslmode=verify-* needs sslrootcert: there is no home folder to find root.crt in".into());
        }
        Roots::Nowhere => return Ok(None),
    };
    // A root certificate that is there is looked at in every mode, one that is not only where it must be: as libpq.
    if !path.exists() && !strict {
        return Ok(None);
    }
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, "root certificate")? {
        store.add(certificate).map_err(|error| format!("root certificate {}: {error}", path.display()))?;
    }
    Ok(Some(store))
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 { Err("sslrootcert=system: the host has no trusted certificates".into()) } else { Ok(store) }
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let broken = |error: &dyn fmt::Display| format!("{what} {}: {error}", path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| broken(&error))?.collect();
    let found = found.map_err(|error| broken(&error))?;
    if found.is_empty() { Err(broken(&"no certificate in it")) } else { Ok(found) }
}

/// The client's own certificate and key, if there are any.
fn identity(tls: &Tls, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, String> {
    let Some((cert, named)) = &tls.cert else { return Ok(None) };
    if !named && !cert.exists() {
        return Ok(None);
    }
    let certificates = certificates(cert, "client certificate")?;
    let Some((key, _)) = &tls.key else { return Err("sslcert is given and sslkey is not".into()) };
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
        _ => Ok(Some(identity)),
    }
}

/// Looks at as much of a certificate as `sslmode` asks for.
#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate will do.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Whether the name must be right too.
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, when the chain is found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

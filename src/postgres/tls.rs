//! TLS with libpq's meaning of `sslmode`: whom to trust and what of a certificate to look at.
//!
//! rustls knows only one way, the strict one. libpq's `require` takes any certificate unless there is a root
//! certificate, and `verify-ca` looks at the chain and not at the name: [`Verifier`] does these.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::{Roots, SslMode, Tls};
use crate::tls;

/// Makes the connector. Certificates are read here, at each dial, so that renewed ones are picked up.
///
/// # Errors
/// Which file cannot be used, and why.
pub(super) fn connector(meaning: &Tls) -> Result<MakeRustlsConnect, String> {
    let provider = tls::provider();
    let chain = match roots(meaning)? {
        Some(roots) => {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(builder.build().map_err(|error| format!("no usable root certificate: {error}"))?)
        }
        None => None,
    };
    let name = meaning.mode == SslMode::VerifyFull;
    let verifier = Arc::new(Verifier { chain, name, provider: provider.clone() });
    let builder = tls::client(&provider)?.dangerous().with_custom_certificate_verifier(verifier);
    let config = match identity(meaning, &provider)? {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

/// Whom to trust; `None` where libpq would trust everybody.
fn roots(meaning: &Tls) -> Result<Option<RootCertStore>, String> {
    let strict = matches!(meaning.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let path = match &meaning.roots {
        Roots::System => {
            return tls::host_roots().map(Some).map_err(|error| format!("sslrootcert=system: {error}"));
        }
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
    tls::roots(path).map(Some)
}

/// The client's own certificate and key, if there are any.
fn identity(meaning: &Tls, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, String> {
    let Some((cert, named)) = &meaning.cert else { return Ok(None) };
    if !named && !cert.exists() {
        return Ok(None);
    }
    let Some((key, _)) = &meaning.key else { return Err("sslcert is given and sslkey is not".into()) };
    tls::identity(cert, key, provider).map(Some)
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

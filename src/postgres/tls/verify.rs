//! Whom to trust: rustls knows only one way, the strict one. libpq's `require` takes any certificate unless there is a
//! root certificate, and `verify-ca` looks at the chain and not at the name.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime, pem::PemObject},
};

use super::certificate::Read;
use crate::{
    postgres::{
        conninfo::{Roots, SslMode, Tls},
        error::Problem,
    },
    tls,
};

/// Looks at as much of a certificate as was asked for.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None`: any certificate will do.
    chain: Option<Chain>,
    /// The name or address that it has to be for, where that matters.
    host: Option<String>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Chain {
    library: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
    /// Whether there are lists of what was revoked.
    revocation: bool,
}

impl Verifier {
    /// Reads what is trusted and what was revoked. `host` is what the server was asked for by, if by anything.
    pub(super) fn new(wanted: &Tls, host: Option<&str>, provider: &Arc<CryptoProvider>) -> Result<Self, Problem> {
        let host = match host {
            _ if wanted.mode != SslMode::VerifyFull => None,
            Some(host) => Some(host.to_owned()),
            None => {
                let why = "sslmode=verify-full needs the name that the certificate is for: give host beside hostaddr";
                return Err(Problem::File(why.into()));
            }
        };
        let chain = match roots(wanted)? {
            Some(roots) => Some(Chain::new(roots, wanted, provider)?),
            None => None,
        };
        Ok(Self { chain, host, provider: provider.clone() })
    }
}

impl Chain {
    fn new(roots: Vec<CertificateDer<'static>>, wanted: &Tls, provider: &Arc<CryptoProvider>) -> Result<Self, Problem> {
        let unusable = |error: &dyn std::fmt::Display| Problem::File(format!("root certificates: {error}"));
        let mut store = RootCertStore::empty();
        let now = UnixTime::now();
        let mut expired = None;
        for root in &roots {
            // The library takes an authority for good whenever it was made; libpq's does not.
            match Read::new(root).map_or(Ok(()), |read| read.check_time(now)) {
                Ok(()) => store.add(root.clone()).map_err(|error| unusable(&error))?,
                Err(problem) => expired = Some(problem),
            }
        }
        if let Some(problem) = expired.filter(|_| store.is_empty()) {
            return Err(Problem::Handshake(format!("the root certificate {}", problem.of_certificate())));
        }
        let lists = match wanted.roots {
            Roots::File(_) => revoked(wanted)?,
            // As in libpq, where the host's own authorities come without lists.
            Roots::System { .. } | Roots::Nowhere => None,
        };
        let revocation = lists.is_some();
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        let builder = builder.with_crls(lists.unwrap_or_default()).enforce_revocation_expiration();
        let library = builder.build().map_err(|error| Problem::File(format!("sslrootcert or sslcrl: {error}")))?;
        Ok(Self { library, roots, revocation })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<(), rustls::Error> {
        // Of the library's questions only that for the name needs one, and that comes last: it is asked elsewhere.
        let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        match self.library.verify_server_cert(leaf, between, &nobody, &[], now) {
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            // It does not look at certificates of version 1, nor at those that are authorities themselves.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if !self.revocation => {
                let read = Read::new(leaf).ok_or(CertificateError::BadEncoding)?;
                read.check_issuer(&self.roots, provider.signature_verification_algorithms.all, now).map_err(told)
            }
            Err(error) => Err(error),
        }
    }
}

/// A problem as the library wants it.
fn told(problem: Problem) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(problem))).into()
}

/// Whom to trust; `None` where libpq would trust everybody.
fn roots(wanted: &Tls) -> Result<Option<Vec<CertificateDer<'static>>>, Problem> {
    let path = match &wanted.roots {
        Roots::System { file, folder } => {
            let found = if file.is_some() || folder.is_some() {
                rustls_native_certs::load_certs_from_paths(file.as_deref(), folder.as_deref())
            } else {
                rustls_native_certs::load_native_certs()
            };
            let why = "sslrootcert=system: the host has no trusted certificates";
            return if found.certs.is_empty() { Err(Problem::File(why.into())) } else { Ok(Some(found.certs)) };
        }
        Roots::File(path) => path,
        Roots::Nowhere if wanted.mode.verifies() => {
            let why = "sslmode=verify-* needs sslrootcert: there is no home folder to find root.crt in";
            return Err(Problem::File(why.into()));
        }
        Roots::Nowhere => return Ok(None),
    };
    // A root certificate that is there is looked at in every mode, one that is not only where it must be: as libpq.
    if !path.exists() && !wanted.mode.verifies() {
        return Ok(None);
    }
    tls::certificates(path, "root certificate").map(Some).map_err(Problem::File)
}

/// Lists of what was revoked; `None` where nobody has to look.
fn revoked(wanted: &Tls) -> Result<Option<Vec<CertificateRevocationListDer<'static>>>, Problem> {
    let file = wanted.crl.as_deref().filter(|path| path.exists());
    let mut paths: Vec<_> = file.map(Path::to_path_buf).into_iter().collect();
    if let Some(folder) = &wanted.crl_folder {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        paths.extend(entries.map(|entry| entry.path()).filter(|path| is_hashed(path)));
    } else if file.is_none() {
        // As in libpq, a file that is not there is no reason to stay away; but who named it wants to know.
        if let Some(path) = wanted.crl.as_ref().filter(|path| !path.ends_with(".postgresql/root.crl")) {
            tracing::warn!(path = %path.display(), "sslcrl is not there: revoked certificates are not noticed");
        }
        return Ok(None);
    }
    let mut lists = Vec::new();
    for path in paths {
        let broken = |error: &dyn std::fmt::Display| Problem::File(format!("sslcrl {}: {error}", path.display()));
        let found = CertificateRevocationListDer::pem_file_iter(&path).map_err(|error| broken(&error))?;
        let before = lists.len();
        for list in found {
            lists.push(list.map_err(|error| broken(&error))?);
        }
        if lists.len() == before {
            return Err(broken(&"no certificate revocation list (X509 CRL) in it"));
        }
    }
    if lists.is_empty() {
        return Err(Problem::Handshake("sslcrldir has no list of what its authority revoked".into()));
    }
    Ok(Some(lists))
}

/// Whether a file has a name such as `5c36b8b8.r0`, which `openssl rehash` gives to lists.
fn is_hashed(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".r"));
    name.is_some_and(|(hash, number)| {
        hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) && number.parse::<u32>().is_ok()
    })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(chain) = &self.chain {
            chain.check(end_entity, intermediates, now, &self.provider)?;
        }
        if let Some(host) = &self.host {
            Read::new(end_entity).ok_or(CertificateError::BadEncoding)?.check_name(host).map_err(told)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let strict = verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms);
        self.or_of_version_1(strict, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let strict = verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms);
        self.or_of_version_1(strict, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Verifier {
    /// Where the library cannot read a certificate (it knows version 3 only), its key is looked at by ourselves.
    fn or_of_version_1(
        &self,
        strict: Result<HandshakeSignatureValid, rustls::Error>,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) = &strict else { return strict };
        let schemes = self.provider.signature_verification_algorithms.mapping;
        let known = schemes.iter().find(|(scheme, _)| *scheme == dss.scheme).map(|(_, algorithms)| *algorithms);
        let read = Read::new(cert).ok_or(CertificateError::BadEncoding)?;
        if known.is_some_and(|algorithms| read.has_signed(message, dss.signature(), algorithms)) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

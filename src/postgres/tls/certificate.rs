//! A certificate read by ourselves, for what the TLS library does not tell or does not accept.
//!
//! That is: the names it is for, under libpq's rules (which look at the common name where there is nothing better);
//! certificates of version 1 and self-signed ones that are their own authority, which openssl makes by default and
//! the library refuses; and the hash that binds a password exchange to the session.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::{
    Certificate,
    der::{
        Decode, Encode,
        oid::db::{rfc4519, rfc5280, rfc5912},
    },
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, SubjectAltName, name::GeneralName},
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
};

use crate::postgres::error::{Problem, time_of};

/// A certificate that could be read.
pub(super) struct Read<'a> {
    der: &'a [u8],
    parsed: Certificate,
}

impl<'a> Read<'a> {
    /// `None` if it is no certificate.
    pub(super) fn new(der: &'a CertificateDer<'_>) -> Option<Self> {
        Some(Self { der, parsed: Certificate::from_der(der).ok()? })
    }

    /// Whether it is for this host, by name or by address.
    pub(super) fn check_name(&self, host: &str) -> Result<(), Problem> {
        let names = match self.parsed.tbs_certificate.get::<SubjectAltName>() {
            Ok(names) => names.map(|(_, SubjectAltName(names))| names).unwrap_or_default(),
            Err(_) => return Err(Problem::Certificate("has names that cannot be read".into())),
        };
        let address: Option<IpAddr> = host.parse().ok();
        let mut seen = Vec::new();
        // A name of the same kind in the list makes the common name count for nothing.
        let mut better = false;
        for name in &names {
            let (matches, told) = match name {
                GeneralName::DnsName(name) => {
                    better |= address.is_none();
                    (name_fits(name.as_str(), host), name.to_string())
                }
                GeneralName::IpAddress(bytes) => {
                    better |= address.is_some();
                    let Some(listed) = ip_address(bytes.as_bytes()) else { continue };
                    (Some(listed) == address, listed.to_string())
                }
                _ => continue,
            };
            if matches {
                return Ok(());
            }
            seen.push(told);
        }
        if !better && let Some(name) = self.subject_name() {
            if name_fits(&name, host) {
                return Ok(());
            }
            seen.push(name);
        }
        let seen = if seen.is_empty() { "nobody by name".into() } else { seen.join(", ") };
        Err(Problem::Certificate(format!("is for {seen}, not for host {host}")))
    }

    /// The subject's first common name.
    fn subject_name(&self) -> Option<String> {
        let mut parts = self.parsed.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
        let name = parts.find(|part| part.oid == rfc4519::CN)?;
        String::from_utf8(name.value.value().to_vec()).ok()
    }

    /// Whether it is good at this time.
    pub(super) fn check_time(&self, now: UnixTime) -> Result<(), Problem> {
        let validity = &self.parsed.tbs_certificate.validity;
        let [from, to] = [validity.not_before, validity.not_after].map(|time| time.to_unix_duration().as_secs());
        check_time(now.as_secs(), from, to)
    }

    /// Whether one of these authorities stands behind it, for certificates that the library will not look at: there
    /// is nothing between the two.
    pub(super) fn check_issuer(
        &self,
        roots: &[CertificateDer<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), Problem> {
        self.check_time(now)?;
        self.check_purpose()?;
        let own = &self.parsed.tbs_certificate;
        if own.issuer == own.subject {
            // Its own authority: good if it is known as one.
            let known = roots.iter().any(|root| root.as_ref() == self.der);
            let stranger = || Problem::Certificate("is self-signed and not among the root certificates".into());
            return if known { Ok(()) } else { Err(stranger()) };
        }
        let signed = |root: &Read<'_>| {
            let message = own.to_der().ok();
            let signature = self.parsed.signature.as_bytes();
            let algorithm = &self.parsed.signature_algorithm;
            let key = &root.parsed.tbs_certificate.subject_public_key_info;
            message.zip(signature).is_some_and(|(message, signature)| {
                algorithms
                    .iter()
                    .filter(|known| is(algorithm, known.signature_alg_id().as_ref()))
                    .any(|known| verify(*known, key, &message, signature))
            })
        };
        let mut issuers = roots
            .iter()
            .filter_map(Read::new)
            .filter(|root| root.parsed.tbs_certificate.subject == own.issuer && root.is_authority() && signed(root));
        match issuers.next() {
            Some(root) => root.check_time(now),
            None => Err(Problem::Certificate("is of no authority among the root certificates".into())),
        }
    }

    /// One of version 1 cannot say so and counts, if it signed itself.
    fn is_authority(&self) -> bool {
        let own = &self.parsed.tbs_certificate;
        match own.get::<BasicConstraints>() {
            Ok(Some((_, constraints))) => constraints.ca,
            _ => own.extensions.is_none() && own.issuer == own.subject,
        }
    }

    /// Whether it may prove a server, and says nothing critical that is not understood here.
    fn check_purpose(&self) -> Result<(), Problem> {
        const UNDERSTOOD: [x509_cert::der::asn1::ObjectIdentifier; 4] = [
            rfc5280::ID_CE_BASIC_CONSTRAINTS,
            rfc5280::ID_CE_KEY_USAGE,
            rfc5280::ID_CE_EXT_KEY_USAGE,
            rfc5280::ID_CE_SUBJECT_ALT_NAME,
        ];
        let own = &self.parsed.tbs_certificate;
        let mut extensions = own.extensions.iter().flatten();
        if extensions.any(|extension| extension.critical && !UNDERSTOOD.contains(&extension.extn_id)) {
            return Err(Problem::Certificate("has a critical extension that is not understood".into()));
        }
        let server = [rfc5280::ID_KP_SERVER_AUTH, rfc5280::ANY_EXTENDED_KEY_USAGE];
        match own.get::<ExtendedKeyUsage>() {
            Ok(None) => Ok(()),
            Ok(Some((_, usage))) if usage.0.iter().any(|purpose| server.contains(purpose)) => Ok(()),
            _ => Err(Problem::Certificate("is not for servers".into())),
        }
    }

    /// Whether its key made this signature.
    pub(super) fn has_signed(
        &self,
        message: &[u8],
        signature: &[u8],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let key = &self.parsed.tbs_certificate.subject_public_key_info;
        algorithms.iter().any(|algorithm| verify(*algorithm, key, message, signature))
    }

    /// Whether its key is this one.
    pub(super) fn has_key(&self, key: &[u8]) -> bool {
        self.parsed.tbs_certificate.subject_public_key_info.to_der().is_ok_and(|own| own == key)
    }

    /// The hash of `tls-server-end-point` (RFC 5929); `None` for signatures without a hash of their own.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        Some(match self.parsed.signature_algorithm.oid {
            rfc5912::SHA_1_WITH_RSA_ENCRYPTION | rfc5912::SHA_256_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_256 => {
                Sha256::digest(self.der).to_vec()
            }
            rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => Sha384::digest(self.der).to_vec(),
            rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => Sha512::digest(self.der).to_vec(),
            _ => return None,
        })
    }
}

/// Whether a certificate is good at this time; all three in seconds since 1970.
pub(super) fn check_time(now: u64, from: u64, to: u64) -> Result<(), Problem> {
    if now < from {
        return Err(Problem::Certificate(format!("is not valid before {}", time_of(from))));
    }
    if now > to { Err(Problem::Certificate(format!("has expired at {}", time_of(to)))) } else { Ok(()) }
}

/// Whether a name in a certificate is this host's: the same, or one that begins with `*.` in place of one label.
fn name_fits(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(tail) = name.strip_prefix('*').filter(|tail| tail.len() > 1 && tail.starts_with('.')) else {
        return false;
    };
    let label = host.len().checked_sub(tail.len()).and_then(|at| host.split_at_checked(at));
    label.is_some_and(|(label, rest)| !label.is_empty() && !label.contains('.') && rest.eq_ignore_ascii_case(tail))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Whether an algorithm's identifier is this one, which is written without its outermost header.
fn is(identifier: &AlgorithmIdentifierOwned, known: &[u8]) -> bool {
    // Less than 128 bytes, so that header has two.
    identifier.to_der().is_ok_and(|der| der.get(2..) == Some(known))
}

fn verify(
    algorithm: &dyn SignatureVerificationAlgorithm,
    key: &SubjectPublicKeyInfoOwned,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let bits = key.subject_public_key.as_bytes();
    is(&key.algorithm, algorithm.public_key_alg_id().as_ref())
        && bits.is_some_and(|bits| algorithm.verify_signature(bits, message, signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_whole_label_on_the_left() {
        for (name, host, want) in [
            ("db.test", "DB.test", true),
            ("*.test", "db.test", true),
            ("*.TEST", "db.test", true),
            ("*.test", "a.db.test", false),
            ("*.test", "test", false),
            ("*.test", ".test", false),
            ("d*.test", "db.test", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("db.test", "db", false),
        ] {
            assert_eq!(name_fits(name, host), want, "{name} {host}");
        }
    }

    #[test]
    fn a_time_outside_of_a_certificates_is_told() {
        let told = |now| check_time(now, 100, 200).map_err(|problem| problem.to_string());
        assert_eq!(told(150), Ok(()));
        assert!(told(99).is_err_and(|told| told.ends_with("is not valid before 1970-01-01T00:01:40.000000Z")));
        assert!(told(201).is_err_and(|told| told.ends_with("has expired at 1970-01-01T00:03:20.000000Z")));
    }
}

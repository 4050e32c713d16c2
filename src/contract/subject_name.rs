//! Whose certificate an endpoint may show, where the name that it is asked for does not decide: anybody's, or one
//! with another name.
//!
//! Invariant: a certificate with one of the names counts only if an authority vouches for it, too.
//!
//! Source: RFC 5280 section 4.2.1.6, and the field `subjectAltNames` of a BackendTLSPolicy
//! (<https://gateway-api.sigs.k8s.io/reference/spec/#subjectaltname>).

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::contract::certificate::algorithms;

/// A name that a certificate may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectName {
    /// A host. One that begins with `*.` is any with one label in that place.
    Host(String),
    /// A URI, such as a SPIFFE ID. It is compared as it is written.
    Uri(String),
}

impl SubjectName {
    /// Whether one of these names of a certificate, in the order `hosts` and `uris`, is this one.
    fn is_among<'a>(
        &self,
        mut hosts: impl Iterator<Item = &'a str>,
        mut uris: impl Iterator<Item = &'a str>,
    ) -> bool {
        match self {
            Self::Host(wanted) => hosts.any(|it| is_host(it, wanted)),
            Self::Uri(wanted) => uris.any(|it| it == wanted),
        }
    }
}

/// Whether a host of a certificate is the one that is wanted. Each may stand for any with one more label
/// (RFC 6125 section 6.4.3).
fn is_host(has: &str, wanted: &str) -> bool {
    let is_one_more = |wide: &str, narrow: &str| {
        let suffix = wide.strip_prefix('*').filter(|it| it.starts_with('.'));
        let label = suffix.and_then(|suffix| {
            let at = narrow.len().checked_sub(suffix.len())?;
            let end = narrow.get(at..)?;
            end.eq_ignore_ascii_case(suffix).then(|| narrow.get(..at))?
        });
        label.is_some_and(|it| !it.is_empty() && !it.contains(['.', '*']))
    };
    has.eq_ignore_ascii_case(wanted) || is_one_more(has, wanted) || is_one_more(wanted, has)
}

/// Whose certificates are taken. The key of each must be the endpoint's.
#[derive(Debug)]
pub(super) enum Whom {
    /// Everybody's.
    Anybody,
    /// Those that one of the authorities vouches for and that have one of the names.
    Named(RootCertStore, Vec<SubjectName>),
}

impl ServerCertVerifier for Whom {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Self::Named(authorities, names) = self else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            authorities,
            intermediates,
            now,
            algorithms().all,
        )?;
        let shown = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let mut names = names.iter();
        match names.any(|it| it.is_among(shown.valid_dns_names(), shown.valid_uri_names())) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_host_stands_for_one_more_label_at_most() {
        for (has, wanted, expected) in [
            ("a.example", "A.example", true),
            ("*.example", "a.example", true),
            ("a.example", "*.example", true),
            ("*.example", "*.example", true),
            ("*.example", "b.a.example", false),
            ("b.a.example", "*.example", false),
            ("*.example", ".example", false),
            ("*.example", "example", false),
            ("a.example", "b.example", false),
            ("*", "example", false),
        ] {
            assert_eq!(is_host(has, wanted), expected, "{has} {wanted}");
        }
    }

    #[test]
    fn a_certificate_counts_by_its_name_and_its_authority() {
        let key = || KeyPair::generate().unwrap();
        let authority = || {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = key();
            let certificate = params.self_signed(&key).unwrap();
            (certificate.der().clone(), Issuer::new(params, key))
        };
        let ((root, issuer), (_, stranger)) = (authority(), authority());
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        let uri = "spiffe://a.example/id";
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let verify = |issuer: &Issuer<'_, KeyPair>, names: &[SubjectName]| {
            let shown = params.signed_by(&key(), issuer).unwrap();
            let verifier = Whom::Named(roots.clone(), names.to_vec());
            let asked = ServerName::try_from("other.example").unwrap();
            verifier
                .verify_server_cert(shown.der(), &[], &asked, &[], UnixTime::now())
                .is_ok()
        };
        let host = |it: &str| SubjectName::Host(it.to_owned());
        let id = |it: &str| SubjectName::Uri(it.to_owned());
        assert!(verify(&issuer, &[host("a.example")]));
        assert!(verify(&issuer, &[id(uri)]));
        assert!(verify(&issuer, &[id("spiffe://b/id"), host("a.example")]));
        assert!(!verify(&issuer, &[host("other.example")]));
        assert!(!verify(&issuer, &[id("spiffe://a.example/ID")]));
        assert!(!verify(&issuer, &[host(uri), id("a.example")]));
        assert!(!verify(&issuer, &[]));
        assert!(!verify(&stranger, &[host("a.example"), id(uri)]));
    }
}

//! Certificates with their keys, and which one a client gets.
//!
//! Invariants: a certificate without its own key cannot be made. What is shown of one never holds
//! the key. A `Choice` never changes: a new certificate makes a new one.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use jiff::civil::DateTime;
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::contract::by_name::ByName;

/// The only provider of this program. It has the key exchange X25519MLKEM768.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// The kinds of signatures that are verified.
pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// A certificate with its chain and its key.
pub struct Certificate {
    signs: Arc<CertifiedKey>,
    /// The names that it is for, in lower case.
    names: Vec<String>,
    /// From when and to when it is valid.
    validity: (SystemTime, SystemTime),
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// Reads a chain and a key, both PEM. The certificate that is shown to clients comes first.
    ///
    /// # Errors
    /// What is missing, wrong or does not fit, in a few words.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        if are_swapped(chain, key) {
            let what = "the private key is in the place of the certificate, and the certificate in that of the \
                        key; expected them the other way round";
            return Err(what.to_owned());
        }
        let chain = chain_of(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            _ if key.windows(9).any(|it| it == b"ENCRYPTED") => {
                "the private key is encrypted, expected one without a passphrase".to_owned()
            }
            rustls::pki_types::pem::Error::NoItemsFound => {
                "the key's file holds no private key, expected PEM with a PRIVATE KEY".to_owned()
            }
            _ => "the private key is not valid, expected PEM with a PRIVATE KEY".to_owned(),
        })?;
        let broken = "the certificate is not valid, expected X.509 (version 3)";
        let end_entity = webpki::EndEntityCert::try_from(&chain[0]).map_err(|_| broken)?;
        let names = end_entity
            .valid_dns_names()
            .map(str::to_ascii_lowercase)
            .collect();
        let validity = validity(&chain[0]).ok_or(broken)?;
        let signs = CertifiedKey::from_der(chain, key.clone_key(), &provider());
        let signs = signs.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                "the private key does not belong to the certificate, expected the one that does"
                    .to_owned()
            }
            _ => "the private key is of a kind that is not known, expected RSA, ECDSA or Ed25519"
                .to_owned(),
        })?;
        Ok(Self {
            signs: Arc::new(signs),
            names,
            validity,
            key,
        })
    }

    /// The names that it is for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Why clients would refuse it at this time, if they would.
    pub fn is_doubtful(&self, now: SystemTime) -> Option<String> {
        let (from, to) = self.validity;
        let at = |time: SystemTime| {
            jiff::Timestamp::try_from(time).map_or_else(|_| "?".to_owned(), |it| it.to_string())
        };
        if now >= to {
            Some(format!("the certificate expired at {}", at(to)))
        } else if now < from {
            Some(format!("the certificate is valid from {} on", at(from)))
        } else {
            None
        }
    }

    /// The bytes of its key. They must never be shown, logged or written.
    pub(super) fn secret(&self) -> &[u8] {
        self.key.secret_der()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Whether the key is where the certificate belongs, and the other way round.
pub fn are_swapped(chain: &[u8], key: &[u8]) -> bool {
    let has = |pem: &[u8], what: &str| pem.windows(what.len()).any(|it| it == what.as_bytes());
    let is_key = |pem| has(pem, "PRIVATE KEY-----") && !has(pem, "BEGIN CERTIFICATE-----");
    is_key(chain) && has(key, "BEGIN CERTIFICATE-----") && !has(key, "PRIVATE KEY-----")
}

/// Reads certificates from PEM; at least one.
///
/// # Errors
/// There is none, or one is broken.
pub(super) fn chain_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = read.map_err(|_| "the certificate is not valid, expected PEM".to_owned())?;
    match chain.is_empty() {
        true => Err("no certificate found, expected PEM with a CERTIFICATE".to_owned()),
        false => Ok(chain),
    }
}

/// The authorities in a PEM text.
///
/// # Errors
/// What is wrong with the text, in a few words.
pub(crate) fn roots_of(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in chain_of(pem)? {
        let broken = |_| "a certificate in it is not valid, expected X.509 (version 3)";
        roots.add(authority).map_err(broken)?;
    }
    Ok(roots)
}

/// Which certificate a client gets, by the name that it asks for (SNI): the one for exactly that
/// name, else one for `*.` and the name without its first label, else the first of all.
#[derive(Debug, Default)]
pub(super) struct Choice {
    by_name: ByName<Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Choice {
    /// Of two certificates for one name, the first counts.
    pub(super) fn of(certificates: &[Arc<Certificate>]) -> Self {
        let mut by_name = ByName::default();
        for certificate in certificates {
            for name in &certificate.names {
                by_name.add(name, certificate.signs.clone());
            }
        }
        let default = certificates.first().map(|it| it.signs.clone());
        Self { by_name, default }
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let named = name.and_then(|name| self.by_name.find(name));
        named.or(self.default.as_ref()).cloned()
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

/// From when and to when a certificate is valid (RFC 5280 section 4.1). `webpki` reads it for
/// verifying only.
fn validity(der: &[u8]) -> Option<(SystemTime, SystemTime)> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(der)?;
    let (_, mut fields, _) = element(certificate)?;
    let mut sequences = 0;
    loop {
        let (tag, content, rest) = element(fields)?;
        fields = rest;
        match tag {
            VERSION => {}
            SEQUENCE => sequences += 1,
            _ => {}
        }
        // After the algorithm and the issuer.
        if tag == SEQUENCE && sequences == 3 {
            let (from_tag, from, rest) = element(content)?;
            let (to_tag, to, _) = element(rest)?;
            return Some((time(from_tag, from)?, time(to_tag, to)?));
        }
    }
}

/// The first element of DER: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
            (bytes.iter().fold(0, add), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    const UTC_TIME: u8 = 0x17;
    let text = std::str::from_utf8(text).ok()?;
    let text = match tag {
        // RFC 5280 section 4.1.2.5.1.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        _ => text.to_owned(),
    };
    let read = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    let seconds = read.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let since = u64::try_from(seconds.as_second()).unwrap_or(0);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> Arc<Certificate> {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = made.signing_key.serialize_pem();
        Arc::new(Certificate::read(made.cert.pem().as_bytes(), key.as_bytes()).unwrap())
    }

    #[test]
    fn an_exact_name_comes_before_a_wildcard_of_one_label_and_that_before_the_first() {
        let all = [
            made(&["first.example"]),
            made(&["*.shop.example", "shop.example"]),
            made(&["a.shop.example", "*.shop.example"]),
        ];
        let choice = Choice::of(&all);
        for (name, expected) in [
            (Some("first.example"), 0),
            (Some("shop.example"), 1),
            (Some("A.Shop.Example"), 2),
            (Some("b.shop.example"), 1),
            (Some("x.b.shop.example"), 0),
            (Some("example"), 0),
            (Some("*.shop.example"), 1),
            (None, 0),
        ] {
            let found = choice.find(name).unwrap();
            assert!(Arc::ptr_eq(&found, &all[expected].signs), "{name:?}");
        }
        assert!(Choice::default().find(Some("first.example")).is_none());
    }

    #[test]
    fn what_does_not_fit_is_named_and_the_key_is_never_shown() {
        let pair = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            (made.cert.pem(), made.signing_key.serialize_pem())
        };
        let (certificate, key) = pair(&["a.example"]);
        let (_, other) = pair(&["a.example"]);
        let read = |certificate: &str, key: &str| {
            Certificate::read(certificate.as_bytes(), key.as_bytes())
                .map(|it| format!("{it:?}"))
                .map_err(|error| error.split(',').next().unwrap().to_owned())
        };
        let shown = read(&certificate, &key).unwrap();
        assert_eq!(shown, r#"Certificate { names: ["a.example"], .. }"#);
        for (certificate, key, expected) in [
            (
                &certificate,
                &other,
                "the private key does not belong to the certificate",
            ),
            (
                &certificate,
                &certificate,
                "the key's file holds no private key",
            ),
            (
                &certificate,
                &key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
                "the private key is encrypted",
            ),
            (&key, &key, "no certificate found"),
            (&String::new(), &key, "no certificate found"),
            (
                &key,
                &certificate,
                "the private key is in the place of the certificate",
            ),
        ] {
            assert_eq!(read(certificate, key).unwrap_err(), expected);
        }
        let cut = &certificate[..certificate.len() / 2];
        assert!(read(cut, &key).is_err());
    }

    #[test]
    fn a_certificate_is_doubtful_before_and_after_its_time() {
        for (from, to) in [(2020, 2040), (1950, 2049), (2050, 2051)] {
            let mut wanted = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            wanted.not_before = rcgen::date_time_ymd(from, 1, 1);
            wanted.not_after = rcgen::date_time_ymd(to, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let signed = wanted.self_signed(&key).unwrap();
            let found = Certificate::read(signed.pem().as_bytes(), key.serialize_pem().as_bytes());
            let found = found.unwrap();
            let year = |year: i64| {
                let seconds = (year - 1970) * 31_556_952;
                SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64)
            };
            let doubt = |at| found.is_doubtful(year(i64::from(at)));
            assert_eq!(doubt(from + 1), None, "{from} {to}");
            assert!(
                doubt(to + 1)
                    .unwrap()
                    .contains(&format!("expired at {to}-01-01"))
            );
            if from > 1970 {
                assert!(doubt(from - 1).unwrap().contains("is valid from"));
            }
        }
    }
}

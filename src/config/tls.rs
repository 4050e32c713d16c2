//! A listener's TLS: its checks, and how its files are read.
//!
//! Invariant: the files could be read and fit together when the configuration was checked. Later
//! changes of the files are seen in `control/certificates.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::fault::Fault;
use crate::config::{raw, value};
use crate::contract::certificate::{Certificate, are_swapped};
use crate::contract::name::ObjectName;
use crate::contract::termination::Clients;

/// How a listener speaks TLS with its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Files with certificates. The first is for clients that ask for no name or an unknown one.
    pub certificates: Vec<Pair>,
    /// Secrets with certificates, which come after those of files.
    pub secrets: Vec<ObjectName>,
    /// TLS 1.2 is refused.
    pub only_tls13: bool,
    /// What is asked of clients.
    pub clients: ClientCertificates,
}

/// The files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// What is asked of clients' certificates, with the file of the authorities (PEM).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientCertificates {
    /// Nothing.
    None,
    /// A client may have one.
    Optional(PathBuf),
    /// Each client must have one.
    Required(PathBuf),
}

impl Pair {
    /// Reads both files.
    ///
    /// # Errors
    /// The file that cannot be read, and why.
    pub fn load(&self) -> Result<(Vec<u8>, Vec<u8>), String> {
        Ok((file(&self.certificate)?, file(&self.key)?))
    }

    /// Makes a certificate of what [`Self::load`] has read.
    ///
    /// # Errors
    /// The files, and what is wrong.
    pub fn parse(&self, (chain, key): &(Vec<u8>, Vec<u8>)) -> Result<Arc<Certificate>, String> {
        if are_swapped(chain, key) {
            return Err(format!(
                "{} holds the private key, and {} the certificate; expected them the other way round",
                shown(&self.certificate),
                shown(&self.key)
            ));
        }
        let read = Certificate::read(chain, key);
        let named = |what| {
            format!(
                "{} and {}: {what}",
                shown(&self.certificate),
                shown(&self.key)
            )
        };
        read.map(Arc::new).map_err(named)
    }
}

impl ClientCertificates {
    /// Reads the file of the authorities.
    ///
    /// # Errors
    /// The file, and what is wrong.
    pub fn read(&self) -> Result<Clients, String> {
        let (path, clients) = match self {
            Self::None => return Ok(Clients::Any),
            Self::Optional(path) => (path, Clients::Known(file(path)?)),
            Self::Required(path) => (path, Clients::Certified(file(path)?)),
        };
        let checked = clients.check();
        checked.map_err(|what| format!("{}: {what}", shown(path)))?;
        Ok(clients)
    }
}

fn file(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error| {
        let why = value::plain(&error);
        format!(
            "{} cannot be read ({why}), expected a file with PEM",
            shown(path)
        )
    };
    std::fs::read(path).map_err(failed)
}

fn shown(path: &Path) -> String {
    format!("{path:?}")
}

impl raw::Tls {
    /// `me` is the path of the field. Relative paths count from `folder`.
    pub(super) fn check(self, me: &str, folder: &Path) -> Result<Tls, Fault> {
        let place = |text: &str| folder.join(text).components().collect::<PathBuf>();
        let mut certificates = Vec::new();
        for (index, pair) in self
            .certificates
            .unwrap_or_default()
            .into_iter()
            .enumerate()
        {
            let pair = Pair {
                certificate: place(&pair.certificate),
                key: place(&pair.key),
            };
            let me = format!("{me}.certificates[{index}]");
            let parsed = pair.load().and_then(|read| pair.parse(&read));
            parsed.map_err(|what| Fault::new(me, what))?;
            certificates.push(pair);
        }
        let mut secrets = Vec::new();
        for (index, text) in self.secrets.unwrap_or_default().iter().enumerate() {
            let secret = value::secret(text);
            secrets
                .push(secret.map_err(|what| Fault::new(format!("{me}.secrets[{index}]"), what))?);
        }
        if certificates.is_empty() && secrets.is_empty() {
            let what = "no certificate is named, expected certificates or secrets";
            return Err(Fault::new(me, what));
        }
        let only_tls13 = match self.min_version.as_deref() {
            None | Some("1.2") => false,
            Some("1.3") => true,
            Some(other) => {
                let what = format!("{other:?} is not known, expected '1.2' or '1.3'");
                return Err(Fault::new(format!("{me}.minVersion"), what));
            }
        };
        let authorities = self.client_ca.as_deref().map(place);
        let wanted = self.client_certificates.as_deref();
        let clients = match (wanted, authorities) {
            (Some("none"), _) | (None, None) => ClientCertificates::None,
            (Some("optional"), Some(path)) => ClientCertificates::Optional(path),
            (Some("required") | None, Some(path)) => ClientCertificates::Required(path),
            (Some(word @ ("optional" | "required")), None) => {
                let what = format!(
                    "missing, but clientCertificates is {word}; expected a file with the authorities (PEM)"
                );
                return Err(Fault::new(format!("{me}.clientCa"), what));
            }
            (Some(other), _) => {
                let what = format!("{other:?} is not known, expected none, optional or required");
                return Err(Fault::new(format!("{me}.clientCertificates"), what));
            }
        };
        let read = clients.read();
        read.map_err(|what| Fault::new(format!("{me}.clientCa"), what))?;
        Ok(Tls {
            certificates,
            secrets,
            only_tls13,
            clients,
        })
    }
}

//! How the proxy speaks TLS with the endpoints of a Service.
//!
//! Invariant: an endpoint is verified unless the Service says `insecure`. What cannot be read, or lacks
//! its authorities, refuses every endpoint: nothing goes to one in the clear that was to be encrypted.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, WantsVerifier};

use crate::contract::certificate::{provider, roots_of};
use crate::contract::subject_name::{SubjectName, Whom};

/// How the proxy speaks TLS with endpoints.
#[derive(Debug)]
pub struct Backend {
    /// No other of this process has it. Connections are marked with it.
    pub id: u64,
    /// What it was made of. Two of one text are the same.
    text: String,
    /// An error: why every endpoint is refused.
    config: Result<Arc<ClientConfig>, String>,
    /// The name that is asked for and verified. `None`: no name is asked for.
    hostname: Option<ServerName<'static>>,
    /// Endpoints are not verified.
    pub insecure: bool,
    /// Nobody has told of its authorities yet. Requests wait.
    pub waits: bool,
}

impl Backend {
    /// Verifies endpoints by these authorities (PEM) and this name.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn verified(text: &str, authorities: &str, hostname: &str) -> Result<Self, String> {
        let roots = roots_of(authorities.as_bytes()).map_err(|what| format!("ca: {what}"))?;
        let config = builder()?.with_root_certificates(roots);
        Ok(Self {
            config: Ok(Arc::new(config.with_no_client_auth())),
            hostname: Some(name(hostname)?),
            ..Self::unreadable(text)
        })
    }

    /// Verifies nothing.
    ///
    /// # Errors
    /// The name is none.
    pub fn insecure(text: &str, hostname: Option<&str>) -> Result<Self, String> {
        let config = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Whom::Anybody));
        Ok(Self {
            config: Ok(Arc::new(config.with_no_client_auth())),
            hostname: hostname.map(name).transpose()?,
            insecure: true,
            ..Self::unreadable(text)
        })
    }

    /// Refuses every endpoint, because its authorities are missing. `None`: nobody has told of them yet.
    ///
    /// # Errors
    /// The name is none.
    pub fn unverifiable(text: &str, hostname: &str, why: Option<&str>) -> Result<Self, String> {
        let why_not = why.unwrap_or("its authorities are not known yet");
        Ok(Self {
            config: Err(why_not.to_owned()),
            hostname: Some(name(hostname)?),
            waits: why.is_none(),
            ..Self::unreadable(text)
        })
    }

    /// Verifies endpoints by these authorities (PEM). `hostname` is the name that is asked for; the
    /// certificate must have one of `names`.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn with_names(
        text: &str,
        authorities: &str,
        hostname: &str,
        names: Vec<SubjectName>,
    ) -> Result<Self, String> {
        let roots = roots_of(authorities.as_bytes()).map_err(|what| format!("ca: {what}"))?;
        let verifier = Arc::new(Whom::Named(roots, names));
        let config = builder()?.dangerous();
        let config = config.with_custom_certificate_verifier(verifier);
        Ok(Self {
            config: Ok(Arc::new(config.with_no_client_auth())),
            hostname: Some(name(hostname)?),
            ..Self::unreadable(text)
        })
    }

    /// Refuses every endpoint, because nobody has told yet whom endpoints must be.
    pub fn waiting(text: &str) -> Self {
        Self {
            waits: true,
            ..Self::refusing(text, "it is not known yet whom the endpoints must be")
        }
    }

    /// Refuses every endpoint, for this reason.
    pub fn refusing(text: &str, why: &str) -> Self {
        Self {
            config: Err(why.to_owned()),
            ..Self::unreadable(text)
        }
    }

    /// Refuses every endpoint.
    pub fn unreadable(text: &str) -> Self {
        Self {
            id: next_id(),
            text: text.to_owned(),
            config: Err("the annotation of the Service cannot be read".to_owned()),
            hostname: None,
            insecure: false,
            waits: false,
        }
    }

    /// A connection to the endpoint at this address. `http2`: the endpoint is to agree on HTTP/2 (ALPN).
    ///
    /// # Errors
    /// Every endpoint is refused.
    pub fn session(&self, endpoint: IpAddr, http2: bool) -> Result<ClientConnection, String> {
        let config = self.config.clone()?;
        let address = ServerName::IpAddress(endpoint.to_canonical().into());
        let name = self.hostname.clone().unwrap_or(address);
        let alpn = if http2 {
            vec![b"h2".to_vec()]
        } else {
            Vec::new()
        };
        let session = ClientConnection::new_with_alpn(config, name, alpn);
        session.map_err(|error| error.to_string())
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions();
    builder.map_err(|error| error.to_string())
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn name(hostname: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(hostname.to_owned());
    name.map_err(|_| {
        format!("hostname: {hostname:?} is no name, expected one such as shop.example")
    })
}

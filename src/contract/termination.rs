//! How a listener speaks TLS with its clients.
//!
//! Invariant: what is in force is replaced as a whole. A connection keeps what it began with.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use crate::contract::certificate::{Certificate, Choice, provider, roots_of};
use crate::contract::policy::Protocol;
use crate::contract::tickets::Tickets;

/// The protocols that are offered to a client, the one that is preferred first (ALPN).
pub fn alpn(protocol: Protocol) -> &'static [&'static [u8]] {
    match protocol {
        Protocol::Auto | Protocol::Http | Protocol::Http2 => &[b"h2", b"http/1.1"],
        Protocol::Tcp | Protocol::Udp => &[],
    }
}

/// What a listener asks of its clients' certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// Nothing: none is asked for.
    Any,
    /// A client may have one. If it has, it must be one of these authorities' (PEM).
    Known(Vec<u8>),
    /// Each client must have one of these authorities' (PEM).
    Certified(Vec<u8>),
}

/// What a listener's TLS is made of.
#[derive(Debug)]
pub struct Terms<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// The first is for clients that ask for no name or an unknown one.
    pub certificates: Vec<Arc<Certificate>>,
    /// TLS 1.2 is refused.
    pub only_tls13: bool,
    /// What is asked of clients.
    pub clients: Clients,
}

/// A listener's TLS as it is now. At first, nothing is in force.
#[derive(Debug, Default)]
pub struct Termination(ArcSwapOption<Served>);

/// What is in force.
#[derive(Debug)]
struct Served {
    /// Offers protocols.
    web: Arc<ServerConfig>,
    /// Offers none.
    tcp: Arc<ServerConfig>,
}

impl Termination {
    /// What a connection of this protocol begins with. `None`: nothing is in force yet.
    pub fn now(&self, protocol: Protocol) -> Option<Arc<ServerConfig>> {
        let current = self.0.load();
        let served = current.as_ref()?;
        Some(match alpn(protocol) {
            [] => served.tcp.clone(),
            _ => served.web.clone(),
        })
    }

    /// Puts this in force for new connections. Without a certificate, each is refused.
    ///
    /// # Errors
    /// What is wrong with the authorities of clients. Nothing has changed then.
    pub fn put(&self, terms: Terms<'_>) -> Result<(), String> {
        let versions: &[&SupportedProtocolVersion] = match terms.only_tls13 {
            true => &[&version::TLS13],
            false => &[&version::TLS13, &version::TLS12],
        };
        let mut tcp = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(terms.clients.verifier()?)
            .with_cert_resolver(Arc::new(Choice::of(&terms.certificates)));
        // New keys with each change: nobody gets past new authorities by an old ticket.
        let own = Ticketer::new().map_err(|error| error.to_string())?;
        if let Some(first) = terms.certificates.first() {
            let bound_to = terms.clients.bind(terms.listener);
            let tickets = Tickets::new(first.secret(), bound_to, own);
            tcp.ticketer = Arc::new(tickets);
        }
        let mut web = tcp.clone();
        web.alpn_protocols = alpn(Protocol::Http).iter().map(|it| it.to_vec()).collect();
        let (web, tcp) = (Arc::new(web), Arc::new(tcp));
        self.0.store(Some(Arc::new(Served { web, tcp })));
        Ok(())
    }
}

impl Clients {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let pem = match self {
            Self::Any => return Ok(Arc::new(NoClientAuth)),
            Self::Known(pem) | Self::Certified(pem) => pem,
        };
        let roots = Arc::new(roots_of(pem)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let verifier = match self {
            Self::Certified(_) => verifier,
            _ => verifier.allow_unauthenticated(),
        };
        verifier.build().map_err(|error| error.to_string())
    }

    /// Whether authorities can be read from this.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        self.verifier().map(|_| ())
    }

    /// What a ticket of this listener is bound to.
    fn bind(&self, listener: &str) -> Vec<u8> {
        let (word, pem) = match self {
            Self::Any => ("any", &[][..]),
            Self::Known(pem) => ("known", &pem[..]),
            Self::Certified(pem) => ("certified", &pem[..]),
        };
        [listener.as_bytes(), b"\0", word.as_bytes(), b"\0", pem].concat()
    }
}

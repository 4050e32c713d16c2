//! How one Service port is served: its protocol, its timeouts and what may be retried.
//!
//! Only types are here. Reading them from a file or from annotations is in `config`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contract::backend::Backend;

/// The policy of one Service: its annotations, and the configuration where an annotation is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How long a request or connection waits for a usable endpoint. Zero: no wait.
    pub hold_timeout: Duration,
    /// How long a drain may take where no grace period is known.
    pub drain_timeout: Duration,
    /// Tries of one request in all. Losses on leaving endpoints do not count (contract 3.7).
    pub attempts: u32,
    /// When POST and PATCH may be sent twice.
    pub non_idempotent: NonIdempotent,
    /// Whether the proxy connects to an endpoint once before it publishes the endpoint (contract
    /// 1.8).
    pub join_check: bool,
    /// Whether the endpoints see their clients' addresses, where that is possible.
    pub keeps_source: bool,
    /// Whether a request is sent again that its application has answered with 503 or, in gRPC, with
    /// UNAVAILABLE.
    pub retries_unavailable: bool,
    /// How the proxy speaks TLS with the endpoints. `None`: what comes is passed on as it is.
    pub backend: Option<Arc<Backend>>,
}

impl Policy {
    /// The policy of a port whose endpoints are spoken to in the clear.
    pub fn without_backend(self) -> Self {
        let backend = None;
        Self { backend, ..self }
    }
}

/// Which endpoints the clients of a Service may reach, as the Service's `spec` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// `sessionAffinity: ClientIP`: how long a client is sent to the same endpoint.
    pub affinity: Option<Duration>,
    /// `externalTrafficPolicy: Local`: clients from outside reach endpoints on this node only.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`: clients of the cluster IP reach endpoints on this node only.
    pub internal_local: bool,
    /// Whether `trafficDistribution` or the annotation `service.kubernetes.io/topology-mode` asks for
    /// near endpoints. Which ones these are, the hints of the slices say.
    pub prefers_near: bool,
    /// `healthCheckNodePort`: where load balancers ask for the endpoints on this node.
    pub health_check: Option<u16>,
}

/// Which of a Service's two traffic policies counts for a listener's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `externalTrafficPolicy`: nodePorts.
    External,
    /// `internalTrafficPolicy`: cluster IPs.
    Internal,
    /// Neither: a client inside the cluster has connected to an external address.
    Inside,
}

impl Traffic {
    /// Whether clients of this scope reach endpoints on this node only. A listener without a scope
    /// reaches all endpoints.
    pub fn is_local(&self, scope: Option<Scope>) -> bool {
        match scope {
            Some(Scope::External) => self.external_local,
            Some(Scope::Internal) => self.internal_local,
            Some(Scope::Inside) | None => false,
        }
    }

    /// Whether one of the two policies is Local.
    pub fn has_local(&self) -> bool {
        self.external_local || self.internal_local
    }
}

/// The transport of a Service port. A Service may have one number twice, once for each.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A reference to a Service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortRef {
    /// By the port's name.
    Name(String),
    /// By the Service port's number.
    Number(u16),
}

/// The protocol that a Service port is served with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// The client's first bytes decide between HTTP and TCP (contract 4.5).
    Auto,
    /// HTTP only, of either version. Anything else is refused. Endpoints speak HTTP/1.
    Http,
    /// The same, but endpoints speak HTTP/2 without TLS (h2c).
    Http2,
    /// Bytes are forwarded as they are.
    Tcp,
    /// Datagrams are forwarded. The others are protocols over TCP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

impl Protocol {
    /// What carries the protocol.
    pub fn transport(self) -> Transport {
        match self {
            Self::Udp => Transport::Udp,
            Self::Auto | Self::Http | Self::Http2 | Self::Tcp => Transport::Tcp,
        }
    }
}

/// When POST and PATCH may be sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonIdempotent {
    /// Never.
    Never,
    /// If the request has an `Idempotency-Key` field.
    IdempotencyKey,
    /// Always.
    Always,
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

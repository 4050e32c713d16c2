//! The routing table and its single writer: events in, one published [`Snapshot`] out, then `begin_drain` for each leaver.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::config::{NonIdempotent, PortRef, Protocol};
use crate::discovery::ObjectName;
use crate::endpoint::Endpoint;
use crate::metrics::ServiceMetrics;

/// One port of one Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub service: ObjectName,
    /// The Service port's number.
    pub port: u16,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// Everything that a pick reads; replaced whole.
#[derive(Default)]
pub struct Snapshot {
    pub generation: u64,
    pub ports: HashMap<PortKey, Arc<Port>>,
}

/// One service port as published.
pub struct Port {
    pub key: PortKey,
    pub name: Option<String>,
    pub node_port: Option<u16>,
    pub protocol: Protocol,
    pub policy: Policy,
    /// Ready, connected to once, not terminating: what a pick chooses from (ejected ones it passes over).
    pub usable: Box<[Arc<Endpoint>]>,
    /// Serving and terminating, in force only while `usable` is empty (KEP-1669).
    pub last_resort: Box<[Arc<Endpoint>]>,
    /// Every endpoint that still exists for this port, for the admin page: also joining, out and draining ones.
    pub all: Box<[Arc<Endpoint>]>,
    pub metrics: Arc<ServiceMetrics>,
}

/// Configuration with the Service's annotations over it.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub hold_timeout: std::time::Duration,
    pub drain_timeout: std::time::Duration,
    pub attempts: u32,
    pub non_idempotent: NonIdempotent,
    pub join_check: bool,
}

impl Snapshot {
    /// Resolves a listener's port reference.
    pub fn port(&self, service: &ObjectName, port: &PortRef) -> Option<&Arc<Port>> {
        match port {
            PortRef::Number(port) => self.ports.get(&PortKey { service: service.clone(), port: *port }),
            PortRef::Name(name) => {
                self.ports.values().find(|p| p.key.service == *service && p.name.as_deref() == Some(name))
            }
        }
    }
}

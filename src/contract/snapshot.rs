//! What the routing side publishes and the data plane reads: every service port with its usable endpoints.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::Endpoint;
use crate::contract::endpoint_list::EndpointList;
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{Policy, PortRef, Protocol};

/// Everything that a pick reads; replaced whole.
#[derive(Default)]
pub struct Snapshot {
    pub generation: u64,
    pub ports: HashMap<Arc<PortKey>, Arc<Port>>,
}

/// One service port as published.
pub struct Port {
    pub key: PortKey,
    pub name: Option<String>,
    pub node_port: Option<u16>,
    pub protocol: Protocol,
    /// Where its endpoints listen, to know servers that speak first.
    pub target_port: Option<u16>,
    pub policy: Policy,
    /// Ready, connected to once, not terminating: what a pick chooses from (ejected ones it passes over).
    pub usable: EndpointList,
    /// Serving and terminating, in force only while `usable` is empty (KEP-1669).
    pub last_resort: EndpointList,
    /// Every endpoint that still exists for this port, for the admin page: also joining, out and draining ones.
    pub all: EndpointList,
    /// Its Service carries Ebbtide's label, or did until [`HAND_BACK`] ago: its nodePort is to be bound.
    pub claimed: bool,
    /// Its Service is no longer ours: clients are asked to come again, to whom it belongs now.
    pub handing_back: bool,
    pub hold: Arc<Hold>,
    pub metrics: Arc<ServiceMetrics>,
}

impl Snapshot {
    /// TCP connections and exchanges on all endpoints; the other client connections are idle, or held.
    pub fn in_flight(&self) -> u64 {
        self.ports
            .values()
            .flat_map(|port| port.all.iter())
            .map(|endpoint| endpoint.leases())
            .sum()
    }

    /// Resolves a listener's port reference.
    pub fn port(&self, service: &ObjectName, port: &PortRef) -> Option<&Arc<Port>> {
        match port {
            PortRef::Number(port) => self.ports.get(&PortKey {
                service: service.clone(),
                port: *port,
            }),
            PortRef::Name(name) => self
                .ports
                .values()
                .find(|p| p.key.service == *service && p.name.as_deref() == Some(name)),
        }
    }

    /// How many pods of a Service were let into rotation since this moment (in milliseconds, see
    /// [`crate::contract::clock::millis`]); `None` while none is usable. Where there is no such Service (any more), none has come.
    pub fn pods_come(&self, service: &ObjectName, since_ms: u32) -> Option<u32> {
        let mut ports = self
            .ports
            .values()
            .filter(|port| port.key.service == *service)
            .peekable();
        if ports.peek().is_none() {
            return Some(0);
        }
        let usable: Vec<&Arc<Endpoint>> = ports.flat_map(|port| port.usable.iter()).collect();
        let come = usable
            .iter()
            .filter(|endpoint| endpoint.joined().0 >= since_ms);
        // A pod is an endpoint of every port.
        let pods: HashSet<_> = come.map(|e| (e.pod.as_ref(), e.address.ip())).collect();
        (!usable.is_empty()).then_some(u32::try_from(pods.len()).unwrap_or(u32::MAX))
    }
}

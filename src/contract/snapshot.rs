//! What the routing side publishes and the data plane reads: every Service port with its usable
//! endpoints.
//!
//! Invariant: a snapshot never changes after it is published. A change publishes a new snapshot,
//! which shares what did not change. How a snapshot is built is in `routing/table.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::Endpoint;
use crate::contract::endpoint_list::EndpointList;
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{Policy, PortRef, Protocol};

/// Everything that a pick reads. A change replaces the whole snapshot.
#[derive(Default)]
pub struct Snapshot {
    /// Counts the snapshots. It grows with each publish.
    pub generation: u64,
    /// Every Service port that is served.
    pub ports: HashMap<Arc<PortKey>, Arc<Port>>,
}

/// One Service port as published.
pub struct Port {
    /// The Service and the port's number.
    pub key: PortKey,
    /// The port's name in the Service.
    pub name: Option<String>,
    /// The port's `nodePort`.
    pub node_port: Option<u16>,
    /// The protocol of the Service port. A listener can override it.
    pub protocol: Protocol,
    /// The port on which the endpoints listen, where the Service gives a number. Some port numbers
    /// mean a protocol in which the server speaks first.
    pub target_port: Option<u16>,
    /// Timeouts and retry rules of this port.
    pub policy: Policy,
    /// Endpoints that are ready, were connected to once and do not terminate. A pick chooses from
    /// these and skips ejected endpoints.
    pub usable: EndpointList,
    /// Endpoints that terminate and still serve. A pick uses them only while `usable` is empty
    /// (KEP-1669, contract 1.9).
    pub last_resort: EndpointList,
    /// Every endpoint of this port that still exists, for the admin page. This includes endpoints
    /// that join, are out of rotation or drain.
    pub all: EndpointList,
    /// Whether the Service carries Ebbtide's label, or did so until 10 s ago. The nodePort is bound
    /// then (contract 2.9).
    pub claimed: bool,
    /// Whether the Service is no longer ours, neither by claim nor by a listener. Clients are asked
    /// to connect again, and reach what serves the Service now.
    pub handing_back: bool,
    /// The queue of held requests and connections.
    pub hold: Arc<Hold>,
    /// The metrics of this port.
    pub metrics: Arc<ServiceMetrics>,
}

impl Snapshot {
    /// Leases on all endpoints: TCP connections, exchanges and connects under way. All other client
    /// connections are idle or held.
    pub fn in_flight(&self) -> u64 {
        self.ports
            .values()
            .flat_map(|port| port.all.iter())
            .map(|endpoint| endpoint.leases())
            .sum()
    }

    /// The port that a listener refers to; `None` if the Service or the port does not exist.
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

    /// How many pods of a Service have joined the rotation since `since_ms` (milliseconds, see
    /// [`crate::contract::clock::millis`]). `None` while no endpoint of the Service is usable, and
    /// 0 if the Service does not exist.
    pub fn pods_come(&self, service: &ObjectName, since_ms: u64) -> Option<u32> {
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
        // A pod has an endpoint for each port of the Service.
        let pods: HashSet<_> = come.map(|e| (e.pod.as_ref(), e.address.ip())).collect();
        (!usable.is_empty()).then_some(u32::try_from(pods.len()).unwrap_or(u32::MAX))
    }
}

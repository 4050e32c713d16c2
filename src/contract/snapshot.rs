//! What the routing side publishes and the data plane reads: every Service port with its usable
//! endpoints.
//!
//! Invariant: a [`Port`] never changes after it is published. A change publishes a new one in the
//! same [`Place`], which shares what did not change, and touches no other port. Only the control
//! thread publishes. How a port is built is in `routing/port.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use rustc_hash::FxBuildHasher;

use crate::contract::address::ServiceAddress;
use crate::contract::affinity::Affinity;
use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::Endpoint;
use crate::contract::endpoint_list::EndpointList;
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{Policy, PortRef, Protocol, Scope, Traffic, Transport};

/// Every Service port that is served, as it is now.
pub struct Published {
    /// The places of each Service's ports, by number. A change of a Service's set of ports copies
    /// one of these maps, and all other changes copy none.
    services: Box<[ArcSwap<Services>]>,
    /// How many Services there are.
    count: AtomicUsize,
    generation: AtomicU64,
}

type Services = HashMap<Arc<ObjectName>, Arc<[Arc<Place>]>>;

/// Where one Service port is published.
pub struct Place {
    number: u16,
    transport: Transport,
    /// `None` once the port is no longer served. Then the place is never used again.
    port: ArcSwapOption<Port>,
}

/// A copy of all published ports. Ports that were published while it was made may be of different
/// moments.
#[derive(Default)]
pub struct Snapshot {
    /// See [`Published::generation`].
    pub generation: u64,
    /// Every Service port that is served.
    pub ports: BTreeMap<PortKey, Arc<Port>>,
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
    /// The addresses of the Service, beside its nodePorts.
    pub addresses: Arc<[ServiceAddress]>,
    /// Whether there is anybody to wait for.
    pub presence: Presence,
    /// `loadBalancerSourceRanges`: who may connect to the load balancer's addresses. Empty: everybody.
    pub source_ranges: Arc<[IpNet]>,
    /// Where each client was sent last, if the Service has session affinity.
    pub affinity: Option<Affinity>,
    /// The Service's own rules about which endpoints a client may reach.
    pub traffic: Traffic,
    /// The endpoints on this node, if a traffic policy asks for them.
    pub local: Option<Box<Local>>,
    /// Those of `usable` that topology hints give to this node, or to its zone. `None`: no hint
    /// counts.
    pub near: Option<Box<EndpointList>>,
}

/// The endpoints of a port that are on this node.
#[derive(Debug, Clone)]
pub struct Local {
    /// See [`Port::usable`].
    pub usable: EndpointList,
    /// Those that terminate and still serve. A pick uses them while `usable` is empty, even if
    /// endpoints of other nodes are usable (KEP-1669).
    pub last_resort: EndpointList,
    /// See [`Port::presence`].
    pub presence: Presence,
}

/// Whether a port has, or had, an endpoint that serves or is about to (contract 1.15): a gap is
/// held, and absence is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has not had one since it was first seen, then.
    Never(Instant),
    /// It has one.
    Now,
    /// It had one until then.
    Until(Instant),
}

impl Port {
    /// When clients of this scope are refused, unless an endpoint comes before; `None`: they are not
    /// refused.
    pub fn refused_from(&self, scope: Option<Scope>) -> Option<Instant> {
        let presence = match self.local_for(scope) {
            Some(local) => local.presence,
            None => self.presence,
        };
        match presence {
            // A claim is seen before the endpoints: kube-proxy's clients come over meanwhile.
            Presence::Never(since) => Some(since + self.policy.hold_timeout.min(FIRST_LOOK)),
            Presence::Now => None,
            Presence::Until(since) => Some(since + self.policy.hold_timeout),
        }
    }

    /// Whether a client of this scope is refused now. Configured listeners, which have no scope, refuse
    /// nobody.
    pub fn refuses(&self, scope: Option<Scope>) -> bool {
        let from = scope.and_then(|scope| self.refused_from(Some(scope)));
        from.is_some_and(|from| from <= Instant::now())
    }

    /// When a listener of this scope is closed: nobody is left whom it could serve. Clients inside the
    /// cluster come to one for external clients, too.
    pub fn closed_from(&self, scope: Option<Scope>) -> Option<Instant> {
        match scope {
            Some(Scope::External) => self.refused_from(Some(Scope::Inside)),
            other => self.refused_from(other),
        }
    }

    /// The endpoints that clients of this scope may reach: the usable ones, then the last resort.
    pub fn endpoints(&self, scope: Option<Scope>) -> [&EndpointList; 2] {
        match self.local_for(scope) {
            Some(local) => [&local.usable, &local.last_resort],
            None => [&self.usable, &self.last_resort],
        }
    }

    /// Those of the usable endpoints that clients of this scope get first, if topology hints choose
    /// some. As for kube-proxy, hints mean nothing to a policy that is Local. The clients of a
    /// configured listener have no scope, and share all endpoints.
    pub fn near(&self, scope: Option<Scope>) -> Option<&EndpointList> {
        let counts = scope.is_some() && !self.traffic.is_local(scope);
        self.near.as_deref().filter(|_| counts)
    }

    /// How many endpoints share the clients of this scope now.
    pub fn width(&self, scope: Option<Scope>) -> usize {
        let [usable, _] = self.endpoints(scope);
        self.near(scope).unwrap_or(usable).len()
    }

    /// The endpoints on this node, if clients of this scope may reach no others.
    fn local_for(&self, scope: Option<Scope>) -> Option<&Local> {
        let local = self.local.as_deref();
        local.filter(|_| self.traffic.is_local(scope))
    }
}

impl Default for Published {
    fn default() -> Self {
        Self {
            services: (0..MAPS).map(|_| ArcSwap::default()).collect(),
            count: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
        }
    }
}

/// What everybody may read.
impl Published {
    /// Counts the changes. It grows before the first port of a change is published.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether there is more than one Service.
    pub fn is_shared(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 1
    }

    /// A copy of all ports. The cost grows with their number.
    pub fn load(&self) -> Snapshot {
        let generation = self.generation();
        let maps: Vec<_> = self.services.iter().map(ArcSwap::load).collect();
        let places = maps.iter().flat_map(|services| services.values());
        let ports = places.flat_map(|places| places.iter().filter_map(|place| place.port()));
        Snapshot {
            generation,
            ports: ports.map(|port| (port.key.clone(), port)).collect(),
        }
    }

    /// Shows each port, in no order. Unlike [`Published::load`] it keeps no copy.
    pub fn each_port(&self, mut show: impl FnMut(&Port)) {
        for map in &self.services {
            let services = map.load();
            let places = services.values().flat_map(|places| places.iter());
            places
                .filter_map(|it| it.port())
                .for_each(|port| show(&port));
        }
    }

    /// The place of the port that a listener refers to; `None` if the Service or the port does not
    /// exist. A UDP port is not found over TCP.
    pub fn place(
        &self,
        service: &ObjectName,
        port: &PortRef,
        transport: Transport,
    ) -> Option<Arc<Place>> {
        let services = self.map(service).load();
        let places = services.get(service)?.iter();
        let mut places = places.filter(|place| place.transport == transport);
        let found = match port {
            PortRef::Number(number) => places.find(|place| place.number == *number),
            PortRef::Name(name) => {
                let is_named = |port: &Port| port.name.as_deref() == Some(name);
                places.find(|place| place.port().is_some_and(|port| is_named(&port)))
            }
        };
        found.cloned()
    }

    /// The port that a listener refers to, as it is now.
    pub fn port(
        &self,
        service: &ObjectName,
        port: &PortRef,
        transport: Transport,
    ) -> Option<Arc<Port>> {
        self.place(service, port, transport)?.port()
    }

    /// The ports of a Service, by number.
    pub fn ports_of(&self, service: &ObjectName) -> Vec<Arc<Port>> {
        let services = self.map(service).load();
        let places = services.get(service).into_iter().flat_map(|it| it.iter());
        places.filter_map(|place| place.port()).collect()
    }

    /// How many pods of a Service have joined the rotation since `since_ms` (milliseconds, see
    /// [`crate::contract::clock::millis`]). `None` while no endpoint of the Service is usable, and
    /// 0 if the Service does not exist.
    pub fn pods_come(&self, service: &ObjectName, since_ms: u64) -> Option<u32> {
        let ports = self.ports_of(service);
        if ports.is_empty() {
            return Some(0);
        }
        let usable: Vec<&Arc<Endpoint>> =
            ports.iter().flat_map(|port| port.usable.iter()).collect();
        let come = usable
            .iter()
            .filter(|endpoint| endpoint.joined().0 >= since_ms);
        // A pod has an endpoint for each port of the Service.
        let pods: HashSet<_> = come.map(|e| (e.pod.as_ref(), e.address.ip())).collect();
        (!usable.is_empty()).then_some(u32::try_from(pods.len()).unwrap_or(u32::MAX))
    }

    fn map(&self, service: &ObjectName) -> &ArcSwap<Services> {
        &self.services[FxBuildHasher.hash_one(service) as usize % MAPS]
    }
}

/// What only the control thread may do.
impl Published {
    /// Counts a change, before its first port is published. Returns the count.
    pub fn begin(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Replaces the places of a Service's ports, which are sorted by number.
    pub fn set_places(&self, service: &Arc<ObjectName>, places: Vec<Arc<Place>>) {
        let map = self.map(service);
        let mut services = Services::clone(&map.load());
        let before = services.len();
        match places.is_empty() {
            true => _ = services.remove(service),
            false => _ = services.insert(service.clone(), places.into()),
        }
        let count = self.count.load(Ordering::Relaxed) + services.len() - before;
        self.count.store(count, Ordering::Relaxed);
        map.store(Arc::new(services));
    }
}

impl Place {
    /// A place for a port with this number. Readers find it after [`Published::set_places`].
    pub fn new(port: Arc<Port>) -> Arc<Self> {
        Arc::new(Self {
            number: port.key.port,
            transport: port.key.transport,
            port: ArcSwapOption::new(Some(port)),
        })
    }

    /// Publishes the port, or ends this place.
    pub fn publish(&self, port: Option<Arc<Port>>) {
        self.port.store(port);
    }

    /// The port as it is now; `None` if it is no longer served.
    pub fn port(&self) -> Option<Arc<Port>> {
        self.port.load_full()
    }

    /// Whether this port is the one that is published here now.
    pub fn has(&self, port: &Arc<Port>) -> bool {
        let now = self.port.load();
        now.as_ref().is_some_and(|now| Arc::ptr_eq(now, port))
    }
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
}

/// How long the endpoints of a port that has just been seen may take to be read.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// So many that each map has few Services: about 20 at 5,000 Services.
const MAPS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::policy::NonIdempotent;

    fn port(number: u16, name: &str) -> Arc<Port> {
        Arc::new(Port {
            key: shop().port(number),
            name: Some(name.into()),
            node_port: None,
            protocol: Protocol::Auto,
            target_port: None,
            policy: Policy {
                hold_timeout: Duration::ZERO,
                drain_timeout: Duration::ZERO,
                attempts: 1,
                non_idempotent: NonIdempotent::Never,
                join_check: true,
                keeps_source: true,
                retries_unavailable: false,
                backend: None,
            },
            usable: EndpointList::default(),
            last_resort: EndpointList::default(),
            all: EndpointList::default(),
            claimed: true,
            handing_back: false,
            hold: Arc::default(),
            metrics: Arc::default(),
            addresses: Arc::default(),
            presence: Presence::Now,
            source_ranges: Arc::default(),
            affinity: None,
            traffic: Traffic::default(),
            local: None,
            near: None,
        })
    }

    fn shop() -> ObjectName {
        ObjectName::new("web", "shop")
    }

    #[test]
    fn a_port_is_found_by_number_and_by_its_name_of_now() {
        let published = Published::default();
        let places = [Place::new(port(80, "http")), Place::new(port(81, "admin"))];
        published.set_places(&Arc::new(shop()), places.to_vec());
        let number_of = |reference| {
            let port = published.port(&shop(), &reference, Transport::Tcp);
            port.map(|it| it.key.port)
        };
        let name = |name: &str| PortRef::Name(name.into());
        assert_eq!(number_of(PortRef::Number(81)), Some(81));
        assert_eq!(number_of(PortRef::Number(82)), None);
        assert_eq!(number_of(name("http")), Some(80));
        places[0].publish(Some(port(80, "old")));
        places[1].publish(Some(port(81, "http")));
        assert_eq!(number_of(name("http")), Some(81));
        assert_eq!(number_of(name("admin")), None);
        let other = ObjectName::new("web", "other");
        assert!(
            published
                .port(&other, &PortRef::Number(80), Transport::Tcp)
                .is_none()
        );
    }

    #[test]
    fn a_holder_of_a_port_notices_each_change_of_it_and_no_other() {
        let published = Published::default();
        let places = [Place::new(port(80, "http")), Place::new(port(81, "admin"))];
        let service = Arc::new(shop());
        published.set_places(&service, places.to_vec());
        let held = published
            .place(&shop(), &PortRef::Number(80), Transport::Tcp)
            .unwrap();
        let seen = held.port().unwrap();
        places[1].publish(Some(port(81, "admin")));
        places[1].publish(None);
        published.set_places(&service, vec![places[0].clone()]);
        assert!(held.has(&seen), "another port has changed and is gone");
        assert_eq!(published.load().ports.len(), 1);
        let next = port(80, "http");
        places[0].publish(Some(next.clone()));
        assert!(!held.has(&seen) && held.has(&next));
        places[0].publish(None);
        assert!(!held.has(&next), "the port is gone");
        published.set_places(&service, Vec::new());
        assert!(published.load().ports.is_empty());
    }

    #[test]
    fn a_second_service_shares_the_proxy_until_it_ends() {
        let published = Published::default();
        let set = |name: &str, places: Vec<Arc<Place>>| {
            published.set_places(&Arc::new(ObjectName::new("web", name)), places);
            published.is_shared()
        };
        let places = || vec![Place::new(port(80, "http")), Place::new(port(81, "admin"))];
        assert!(!set("a", places()), "two ports of one Service");
        assert!(set("b", places()));
        assert!(set("b", places()), "again");
        assert!(!set("a", Vec::new()));
        assert!(!set("none", Vec::new()));
    }
}

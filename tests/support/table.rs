//! The routing table, driven by hand: a `World` with synthetic changes, no sockets, and a clock
//! that only the test moves. [`Rig`] does the control loop's work and checks the contract after
//! each step. `discovery::routing` and `hostile::faults` share it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::config::settings::{Config, Discovery, Node};
use ebbtide::contract::endpoint::{Endpoint, EndpointId, Notice};
use ebbtide::contract::endpoint_list::EndpointList;
use ebbtide::contract::name::{ObjectName, PodRef, PortKey};
use ebbtide::contract::policy::Transport;
use ebbtide::contract::snapshot::{Port, Published};
use ebbtide::discovery::object::{
    Change, Deletion, Hint, Hints, Object, PodObject, ServiceObject, ServicePortObject,
    SliceEndpoint, SliceObject,
};
use ebbtide::observe::metrics::Metrics;
use ebbtide::routing::change::Chores;
use ebbtide::routing::drains;
use ebbtide::routing::table::RoutingTable;
use ebbtide::routing::world::merged::Fate;
use ebbtide::routing::world::objects::{Touched, World};
use tokio::sync::mpsc;

pub const SECOND: Duration = Duration::from_secs(1);
pub const DRAIN_TIMEOUT: u64 = 4;
pub const GRACE: Duration = Duration::from_secs(2);

/// The table with its surroundings in the program: the world, the drain log, and the control loop's
/// work.
pub struct Rig {
    pub world: World,
    pub table: RoutingTable,
    pub snapshot: Arc<Published>,
    pub drains: Arc<drains::Log>,
    #[allow(dead_code)] // Not every program reads it.
    pub metrics: Arc<Metrics>,
    /// What the workers were told to look at.
    pub left: Vec<EndpointId>,
    pub notices: mpsc::UnboundedReceiver<Notice>,
    pub now: Instant,
    /// Endpoints that the control loop connects to before they may join (`joining`), and ejected
    /// endpoints that it tries until they answer again (`readmitting`).
    pub joining: BTreeMap<EndpointId, Arc<Endpoint>>,
    pub readmitting: BTreeMap<EndpointId, Arc<Endpoint>>,
    pub deadlines: BTreeSet<(Instant, EndpointId)>,
    /// Every endpoint that the table has ever held. The sets below record what must stay true of
    /// them.
    pub known: BTreeMap<EndpointId, Arc<Endpoint>>,
    pub connected: BTreeSet<EndpointId>,
    pub drained: BTreeSet<EndpointId>,
    pub began: BTreeSet<EndpointId>,
    pub first_deadline: HashMap<EndpointId, Instant>,
}

pub fn name(name: &str) -> ObjectName {
    ObjectName::new("web", name)
}

pub fn service(name: &str) -> ServiceObject {
    let port = |number| ServicePortObject {
        name: None,
        port: number,
        node_port: None,
        target_port: None,
        app_protocol: None,
        transport: Transport::Tcp,
    };
    ServiceObject {
        name: self::name(name),
        uid: None,
        claimed: true,
        external_name: false,
        headless: false,
        ports: vec![port(80)],
        ipv6_first: false,
        annotations: BTreeMap::from([(
            "ebbtide.dev/drain-timeout".into(),
            format!("{DRAIN_TIMEOUT}s"),
        )]),
        unserved: Vec::new(),
        addresses: Vec::new(),
        source_ranges: Vec::new(),
        traffic: Default::default(),
    }
}

pub fn slice(name: &str, service: &str, endpoints: &[SliceEndpoint]) -> SliceObject {
    SliceObject {
        name: self::name(name),
        service: Some(service.to_owned()),
        ipv6: endpoints.iter().any(|e| e.address.is_ipv6()),
        fqdn: false,
        created: 0,
        generation: 0,
        ports: vec![(String::new(), 8080)],
        endpoints: endpoints.to_vec(),
        udp_ports: Vec::new(),
    }
}

/// A ready endpoint. `pod` is the name of its pod, and `uid-{pod}` is the pod's UID.
pub fn ready(last: u8, pod: Option<&str>) -> SliceEndpoint {
    SliceEndpoint {
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
        pod: pod.map(|pod| {
            Arc::new(PodRef {
                name: pod.to_owned(),
                uid: format!("uid-{pod}"),
            })
        }),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        hints: Default::default(),
    }
}

pub fn pod(name: &str, deleted: bool) -> PodObject {
    PodObject {
        name: self::name(name),
        uid: format!("uid-{name}"),
        template_hash: None,
        deletion: deleted.then_some(Deletion {
            grace: Some(GRACE),
            remaining: None,
            age: None,
        }),
        spec_grace: Some(GRACE),
    }
}

pub fn apply(object: impl Into<Thing>) -> Change {
    Change::Apply(object.into().0)
}

pub struct Thing(Object);

impl From<ServiceObject> for Thing {
    fn from(object: ServiceObject) -> Self {
        Self(Object::Service(object))
    }
}

impl From<SliceObject> for Thing {
    fn from(object: SliceObject) -> Self {
        Self(Object::EndpointSlice(object))
    }
}

impl From<PodObject> for Thing {
    fn from(object: PodObject) -> Self {
        Self(Object::Pod(object))
    }
}

impl Rig {
    pub fn new(world: World) -> Self {
        let config = Arc::new(Config {
            node: Node {
                name: Some("here".into()),
                zone: None,
            },
            ..Config::new(Discovery::Static { to: Vec::new() })
        });
        let snapshot = Arc::<Published>::default();
        let drains = Arc::new(drains::Log::default());
        let metrics = Metrics::new().unwrap();
        let (notices_in, notices) = mpsc::unbounded_channel();
        let table = RoutingTable::new(
            config,
            snapshot.clone(),
            drains.clone(),
            metrics.clone(),
            notices_in,
        );
        Self {
            world,
            table,
            snapshot,
            drains,
            metrics,
            left: Vec::new(),
            notices,
            now: Instant::now(),
            joining: BTreeMap::new(),
            readmitting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            known: BTreeMap::new(),
            connected: BTreeSet::new(),
            drained: BTreeSet::new(),
            began: BTreeSet::new(),
            first_deadline: HashMap::new(),
        }
    }

    pub fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut touched = Touched::default();
        for change in changes {
            self.world.apply(change, self.now, &mut touched);
        }
        self.apply(&touched);
    }

    pub fn apply(&mut self, touched: &Touched) {
        let chores = self.table.apply(&self.world, touched, self.now);
        self.start_chores(chores);
    }

    pub fn start_chores(&mut self, chores: Chores) {
        self.left.extend(chores.left);
        for endpoint in chores.join {
            self.known.insert(endpoint.id, endpoint.clone());
            let before = self.joining.insert(endpoint.id, endpoint);
            assert!(
                before.is_none(),
                "an endpoint is probed twice at the same time"
            );
        }
        for endpoint in chores.deadlines {
            self.deadlines
                .insert((endpoint.drain_deadline().unwrap(), endpoint.id));
        }
        for port in self.snapshot.load().ports.values() {
            for endpoint in port.all.iter() {
                self.known.insert(endpoint.id, endpoint.clone());
            }
        }
    }

    /// The result of the join check of one endpoint, as `control/probes.rs` reports it: the endpoint
    /// joins, or it is no longer wanted.
    pub fn probe(&mut self, id: EndpointId, answers: bool) {
        let Some(endpoint) = self.joining.get(&id) else {
            return;
        };
        let conditions = endpoint.conditions();
        let wanted = conditions.ready || conditions.serving && conditions.terminating;
        let given_up = endpoint.is_draining() || !wanted;
        if given_up || answers {
            self.joining.remove(&id);
            if !given_up {
                self.connected.insert(id);
            }
            let chores = self.table.probed(&[(id, !given_up)]);
            self.start_chores(chores);
        }
    }

    pub fn try_again(&mut self, id: EndpointId, answers: bool) {
        let Some(endpoint) = self.readmitting.get(&id) else {
            return;
        };
        if !endpoint.is_ejected() || !endpoint.is_open() {
            self.readmitting.remove(&id);
        } else if answers {
            endpoint.readmit();
            self.readmitting.remove(&id);
            let chores = self.table.answering_changed(&self.world, &[id], self.now);
            self.start_chores(chores);
        }
    }

    /// Lets time pass, and enforces the deadlines that are reached.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= self.now
        {
            self.deadlines.pop_first();
            let endpoint = self.known[&id].clone();
            let chores = self.table.expire(&endpoint);
            self.start_chores(chores);
            assert!(endpoint.force().is_cancelled());
        }
    }

    pub fn take_notices(&mut self) {
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Drained(endpoint) => {
                    assert_eq!(
                        endpoint.leases(),
                        0,
                        "drained was reported while a lease was held"
                    );
                    assert!(
                        self.drained.insert(endpoint.id),
                        "drained was reported twice"
                    );
                    let is_logged = self.drains.end(endpoint.id, None).is_some();
                    assert!(
                        is_logged || !endpoint.was_used() && self.has_drained_before(&endpoint),
                        "a drain was not logged"
                    );
                    self.known.insert(endpoint.id, endpoint.clone());
                    let chores = self.table.drained(&[endpoint]);
                    self.start_chores(chores);
                }
                Notice::Left(_) => panic!("there are no workers here"),
                Notice::Ejected(endpoint) => {
                    let chores =
                        self.table
                            .answering_changed(&self.world, &[endpoint.id], self.now);
                    self.start_chores(chores);
                    self.readmitting.insert(endpoint.id, endpoint);
                }
            }
        }
    }

    /// Whether an earlier endpoint of the same pod and address has its receipt.
    fn has_drained_before(&self, endpoint: &Endpoint) -> bool {
        let mut earlier = self.known.range(..endpoint.id).map(|(_, other)| other);
        earlier.any(|other| {
            (&other.pod, other.address) == (&endpoint.pod, endpoint.address) && other.is_draining()
        })
    }

    pub fn port_of(&self, service: &str) -> Option<Arc<Port>> {
        self.snapshot
            .load()
            .ports
            .get(&name(service).port(80))
            .cloned()
    }

    /// The invariants that hold after every step.
    pub fn check(&mut self) {
        // A deadline may already have passed when the table learns of it.
        self.pass(Duration::ZERO);
        self.take_notices();
        let ports = self.snapshot.load().ports.clone();
        let mut open = BTreeSet::new();
        for port in ports.values() {
            self.check_port(port, &mut open);
        }
        let mut running = 0;
        for endpoint in self.known.values() {
            let id = endpoint.id;
            let lease = endpoint.enter();
            assert_eq!(
                lease.is_some(),
                open.contains(&id),
                "{id:?} grants a lease and should not, or the reverse"
            );
            if endpoint.is_draining() {
                self.began.insert(id);
            }
            assert!(
                !self.began.contains(&id) || endpoint.is_draining(),
                "{id:?} came back from its drain"
            );
            running += usize::from(endpoint.is_draining() && !self.drained.contains(&id));
            assert_eq!(
                self.drained.contains(&id),
                endpoint.is_draining() && endpoint.leases() == 0,
                "{id:?} drained"
            );
            if let Some(deadline) = endpoint.drain_deadline() {
                let first = self.first_deadline.entry(id).or_insert(deadline);
                assert!(deadline <= *first, "{id:?} got a later deadline");
                *first = deadline;
            }
            if endpoint.is_ejected() && endpoint.is_open() {
                let probed = self.readmitting.contains_key(&id) || self.joining.contains_key(&id);
                assert!(probed, "{id:?} is ejected and no probe tries it");
            }
        }
        assert_eq!(self.drains.running(), running, "each drain is logged once");
        // Applying the same world again changes nothing.
        let before = self.ids();
        let services = self.world.service_names().cloned().collect();
        self.apply(&Touched {
            services,
            ..Touched::default()
        });
        assert!(self.notices.try_recv().is_err(), "a drain without a cause");
        assert_eq!(self.ids(), before, "the same world made another table");
    }

    fn check_port(&self, port: &Port, open: &mut BTreeSet<EndpointId>) {
        let merged = self.world.merge(&port.key.service).unwrap();
        let endpoints = &merged
            .ports
            .iter()
            .find(|p| p.port.port == port.key.port)
            .unwrap()
            .endpoints;
        let uid = |e: &Endpoint| e.pod.as_ref().map(|pod| pod.uid.clone());
        let listed = |e: &Endpoint| {
            endpoints.iter().find(|m| {
                m.address == e.address && m.pod.as_ref().map(|pod| pod.uid.clone()) == uid(e)
            })
        };
        for endpoint in port.usable.iter() {
            let id = endpoint.id;
            let conditions = listed(endpoint)
                .expect("a usable endpoint is listed")
                .conditions;
            assert!(
                conditions.ready && !conditions.terminating,
                "{id:?} is usable: {conditions:?}"
            );
            assert!(
                self.connected.contains(&id),
                "{id:?} is usable, but it was never connected to"
            );
            open.insert(id);
        }
        let none_answers = port.usable.iter().all(|endpoint| endpoint.is_ejected());
        assert!(
            none_answers || port.last_resort.is_empty(),
            "a last resort beside usable endpoints that answer"
        );
        for endpoint in port.last_resort.iter() {
            let id = endpoint.id;
            let conditions = listed(endpoint)
                .expect("a last resort is listed")
                .conditions;
            assert!(
                conditions.serving && conditions.terminating,
                "{id:?} is the last resort: {conditions:?}"
            );
            assert!(
                self.connected.contains(&id),
                "{id:?} is the last resort, but it was never connected to"
            );
            assert!(
                endpoint.drain_deadline().is_none_or(|at| at > self.now),
                "{id:?} is past its deadline"
            );
            open.insert(id);
        }
        if let Some(local) = &port.local {
            assert!(port.traffic.has_local());
            let answers = |e: &&Arc<Endpoint>| !e.is_ejected();
            let all = local.usable.iter().chain(local.last_resort.iter());
            for endpoint in all {
                assert!(listed(endpoint).unwrap().local, "{:?}", endpoint.id);
            }
            let usable = port.usable.iter().filter(|e| listed(e).unwrap().local);
            assert_eq!(usable.count(), local.usable.len(), "all usable ones here");
            let answering = local.usable.iter().find(answers).is_some();
            assert!(!answering || local.last_resort.is_empty());
            for endpoint in local.last_resort.iter() {
                let conditions = listed(endpoint).unwrap().conditions;
                assert!(conditions.serving && conditions.terminating);
                assert!(self.connected.contains(&endpoint.id));
                open.insert(endpoint.id);
            }
        }
        let hints: Vec<_> = port
            .usable
            .iter()
            .map(|e| (e.id, listed(e).unwrap().hints))
            .collect();
        let near = port.near.iter().flat_map(|near| near.iter());
        let near: BTreeSet<_> = near.map(|endpoint| endpoint.id).collect();
        assert_eq!(near, near_by(&hints), "{hints:?}");
        // No endpoint is missing: each one that should serve does, or its join check runs.
        for merged in endpoints {
            let none_here = |port: &Port| {
                let local = port.local.as_ref();
                merged.local && local.is_some_and(|local| local.usable.is_empty())
            };
            let last = (port.usable.is_empty() || none_here(port))
                && merged.conditions.serving
                && merged.conditions.terminating;
            if (merged.conditions.terminating || !merged.conditions.ready) && !last {
                continue;
            }
            let is_it = |e: &&Arc<Endpoint>| {
                listed(e) == Some(merged) && merged.address == e.address && !e.is_draining()
            };
            match port.all.iter().find(is_it) {
                Some(e) if !open.contains(&e.id) => {
                    assert!(
                        self.joining.contains_key(&e.id),
                        "{:?} waits for a probe that does not run",
                        e.id
                    );
                }
                Some(_) => {}
                None => {
                    let over = |e: &Arc<Endpoint>| {
                        e.address == merged.address
                            && e.drain_deadline().is_some_and(|at| at <= self.now)
                    };
                    let has_drained = |e: &Arc<Endpoint>| {
                        (e.address, &e.pod) == (merged.address, &merged.pod) && e.is_draining()
                    };
                    let is_gone = matches!(merged.fate, Fate::Deleted { .. })
                        && self.known.values().any(has_drained);
                    let is_over = is_gone
                        || merged.fate.deadline().is_some_and(|at| at <= self.now)
                        || self.known.values().any(over);
                    assert!(last && is_over, "{merged:?} is missing");
                }
            }
        }
    }

    pub fn ids(&self) -> BTreeMap<PortKey, [Vec<EndpointId>; 3]> {
        let ids = |endpoints: &EndpointList| {
            let mut ids: Vec<_> = endpoints.iter().map(|e| e.id).collect();
            ids.sort_unstable();
            ids
        };
        let ports = &self.snapshot.load().ports;
        ports
            .iter()
            .map(|(key, p)| {
                (
                    PortKey::clone(key),
                    [ids(&p.usable), ids(&p.last_resort), ids(&p.all)],
                )
            })
            .collect()
    }
}

/// kube-proxy's rule: the endpoints that hints choose among the usable ones. Empty if none counts, or if
/// all are chosen.
fn near_by(usable: &[(EndpointId, Hints)]) -> BTreeSet<EndpointId> {
    for which in [|it: &Hints| it.node, |it: &Hints| it.zone] {
        let here = usable.iter().filter(|(_, it)| which(it) == Hint::Here);
        let here: BTreeSet<_> = here.map(|(id, _)| *id).collect();
        let all_have = usable.iter().all(|(_, it)| which(it) != Hint::None);
        if all_have && !here.is_empty() {
            return if here.len() < usable.len() {
                here
            } else {
                BTreeSet::new()
            };
        }
    }
    BTreeSet::new()
}

pub fn last_byte(address: SocketAddr) -> u8 {
    last(address.ip())
}

pub fn last(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    }
}

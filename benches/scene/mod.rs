//! A routing table with one Service of many endpoints, in slices of a hundred, as Kubernetes writes
//! them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use ebbtide::config::settings::{Config, Discovery};
use ebbtide::contract::endpoint::Notice;
use ebbtide::contract::name::{ObjectName, PodRef};
use ebbtide::contract::policy::{PortRef, Transport};
use ebbtide::contract::snapshot::{Place, Port, Published};
use ebbtide::discovery::object::{
    Change, Object, ServiceObject, ServicePortObject, SliceEndpoint, SliceObject,
};
use ebbtide::observe::metrics::Metrics;
use ebbtide::routing::drains;
use ebbtide::routing::table::RoutingTable;
use ebbtide::routing::world::objects::{Touched, World};
use tokio::sync::mpsc;

/// The table with all that feeds it.
#[allow(dead_code)] // Each bench uses other fields.
pub struct Scene {
    /// The objects of discovery.
    pub world: World,
    /// The table that publishes `snapshot`.
    pub table: RoutingTable,
    /// What workers load.
    pub snapshot: Arc<Published>,
    /// What endpoints report to the table's owner. It is kept so that the endpoints can send.
    #[allow(dead_code)] // Only one of the benches reads it.
    pub notices: mpsc::UnboundedReceiver<Notice>,
}

impl Scene {
    /// A scene with this many endpoints, all usable.
    pub fn of(endpoints: usize) -> Self {
        let config = Arc::new(Config::new(Discovery::Static { to: Vec::new() }));
        let snapshot = Arc::<Published>::default();
        let (notices_in, notices) = mpsc::unbounded_channel();
        let metrics = Metrics::new().unwrap();
        let table = RoutingTable::new(
            config,
            snapshot.clone(),
            Arc::<drains::Log>::default(),
            metrics,
            notices_in,
        );
        let mut scene = Self {
            world: World::default(),
            table,
            snapshot,
            notices,
        };
        let port = ServicePortObject {
            name: None,
            port: 80,
            node_port: None,
            target_port: None,
            app_protocol: None,
            transport: Transport::Tcp,
        };
        let service = ServiceObject {
            name: ObjectName::new("web", "shop"),
            uid: None,
            claimed: true,
            external_name: false,
            headless: false,
            ports: vec![port],
            ipv6_first: false,
            annotations: BTreeMap::from([("ebbtide.dev/join-check".into(), "off".into())]),
            unserved: Vec::new(),
            addresses: Vec::new(),
            source_ranges: Vec::new(),
            traffic: Default::default(),
        };
        let mut changes = vec![Change::Apply(Object::Service(service))];
        for first in (0..endpoints).step_by(SLICE) {
            changes.push(slice(first, SLICE.min(endpoints - first), false));
        }
        scene.apply(changes);
        assert_eq!(scene.port().usable.len(), endpoints);
        scene
    }

    /// Applies changes and publishes, as the control loop does.
    pub fn apply(&mut self, changes: Vec<Change>) {
        let (mut touched, now) = (Touched::default(), Instant::now());
        for change in changes {
            self.world.apply(change, now, &mut touched);
        }
        self.table.apply(&self.world, &touched, now);
    }

    /// Where the Service port is published.
    #[allow(dead_code)] // Only one of the benches reads it.
    pub fn place(&self) -> Arc<Place> {
        let port = PortRef::Number(80);
        self.snapshot
            .place(&ObjectName::new("web", "shop"), &port, Transport::Tcp)
            .unwrap()
    }

    /// The Service port as it is published.
    pub fn port(&self) -> Arc<Port> {
        self.snapshot.load().ports.values().next().unwrap().clone()
    }
}

/// A slice of `count` endpoints that begins with the endpoint `first`. `out`: the first one is not
/// ready.
pub fn slice(first: usize, count: usize, out: bool) -> Change {
    let endpoint = |n: usize| SliceEndpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n as u32)),
        pod: Some(Arc::new(PodRef {
            name: format!("shop-7d4b9c6f5-{n:05}"),
            uid: format!("0b7f6a3e-0f5c-4a53-9f0a-0000000{n:05}"),
        })),
        ready: !(out && n == first),
        serving: !(out && n == first),
        terminating: false,
        local: false,
        hints: Default::default(),
    };
    Change::Apply(Object::EndpointSlice(SliceObject {
        name: ObjectName::new("web", format!("shop-{first:05}")),
        service: Some("shop".into()),
        ipv6: false,
        fqdn: false,
        created: 0,
        generation: 0,
        ports: vec![(String::new(), 8080)],
        udp_ports: Vec::new(),
        endpoints: (first..first + count).map(endpoint).collect(),
    }))
}

/// Endpoints in a slice.
pub const SLICE: usize = 100;

//! A listener as every worker knows it: where it is bound and what its clients are served by.
//!
//! Invariant: what a [`ListenerSpec`] says never changes. A listener whose configuration changes is
//! closed, and another one with another [`ListenerId`] is opened.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ipnet::IpNet;

use crate::contract::action::Routes;
use crate::contract::by_name::ByName;
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol, Scope, Transport};
use crate::contract::termination::Termination;

/// Names one listener of this process. A number is never given to another listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u64);

/// A listener as every worker knows it.
#[derive(Debug)]
pub struct ListenerSpec {
    /// Its identity in this process.
    pub id: ListenerId,
    /// Its name in the configuration, or one made from its Service, port and address.
    pub name: String,
    /// The address it is bound to. The port is never 0.
    pub address: SocketAddr,
    /// What its clients are served by.
    pub serves: Serves,
    /// The protocol of this listener. `None`: that of the Service port.
    pub protocol: Option<Protocol>,
    /// Whether every client begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Whether CONNECT requests are served.
    pub allow_connect: bool,
    /// How clients' TLS ends here. `None`: it does not.
    pub tls: Option<Arc<Termination>>,
    /// Clients of TLS that ask for one of these names are passed on to another Service. Each has a
    /// listener of its own here, which is not bound.
    pub by_name: ByName<Arc<ListenerSpec>>,
    /// Who may connect. Empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// How many sockets it was bound with: one for each worker, or a single one.
    pub sockets: usize,
    /// The accept loops of this listener that have not ended: at first one for each socket. At 0,
    /// every connection that the kernel had accepted is counted in a worker's load.
    pub accepting: AtomicUsize,
    /// Which traffic policy of the Service counts here. `None`: every endpoint may be reached.
    pub scope: Option<Scope>,
}

impl ListenerSpec {
    /// A listener of one Service port that is not bound: clients are led to it in other ways.
    pub fn unbound(
        id: ListenerId,
        name: &str,
        address: SocketAddr,
        service: &ObjectName,
        port: &PortRef,
    ) -> Self {
        Self {
            id,
            name: name.to_owned(),
            address,
            serves: Serves::Port {
                service: service.clone(),
                port: port.clone(),
            },
            protocol: None,
            proxy_protocol: false,
            allow_connect: false,
            tls: None,
            by_name: ByName::default(),
            source_ranges: Vec::new(),
            sockets: 0,
            accepting: AtomicUsize::new(0),
            scope: None,
        }
    }

    /// Whether a client of this address may connect.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.source_ranges.is_empty() || self.source_ranges.iter().any(|it| it.contains(&client))
    }
}

impl ListenerSpec {
    /// What its clients speak over. A UDP listener always names its protocol.
    pub fn transport(&self) -> Transport {
        self.protocol.map_or(Transport::Tcp, Protocol::transport)
    }
}

/// What finds its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// Each request, by its host, its path and more.
    Request,
    /// Each connection of TLS, by the name that it asks for. It is passed on as it is.
    Name,
    /// Each connection or session: the default of the routes has it.
    Connection,
}

/// What a listener's clients are served by.
#[derive(Debug)]
pub enum Serves {
    /// One port of one Service serves every connection and every request.
    Port {
        /// The Service.
        service: ObjectName,
        /// The port, as the configuration names it.
        port: PortRef,
    },
    /// Each connection belongs to the Service address that its client connected to: the kernel has
    /// led it here (`contract/address.rs`).
    Addresses,
    /// Routes lead to Service ports (`contract/route.rs`).
    Routes {
        /// The routes.
        table: Arc<Routes>,
        /// What finds its route.
        by: FoundBy,
    },
    /// Load balancers ask here whether this node has a ready endpoint of the Service.
    HealthCheck {
        /// The Service.
        service: ObjectName,
    },
}

//! The addresses of Services (cluster IPs and the like): the shared listeners to which the kernel
//! leads their clients, and what it is told about each address.
//!
//! Invariant: an address leads to a shared listener only while that is bound, and its connections
//! find their listener in the map before the first can come.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::settings::{Addresses as Settings, ListenerConfig};
use crate::contract::address::AddressMap;
use crate::contract::listener::{ListenerSpec, Serves};
use crate::contract::policy::Transport;
use crate::control::net_link::Outbox;
use crate::control::sockets::Sockets;
use crate::net::rules;
use crate::proxy::shared::Shared;

/// The shared listeners, and the way to the kernel.
pub struct Addresses {
    settings: Settings,
    outbox: Arc<Outbox>,
    map: Arc<AddressMap>,
    bound: Vec<Arc<ListenerSpec>>,
}

impl Addresses {
    /// Nothing is bound yet.
    pub fn new(settings: Settings, outbox: Arc<Outbox>, map: Arc<AddressMap>) -> Self {
        Self {
            settings,
            outbox,
            map,
            bound: Vec::new(),
        }
    }

    /// The way to the kernel.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.outbox.clone()
    }

    /// Serves an address. Binds the shared listener of its family, if it is not bound yet.
    ///
    /// # Errors
    /// The node has no address of this family, or the shared listener cannot be bound.
    pub(super) fn bind(
        &mut self,
        config: &ListenerConfig,
        single: bool,
        sockets: &mut Sockets,
        shared: &Shared,
    ) -> io::Result<Arc<ListenerSpec>> {
        let node = self.node(config.address.ip())?;
        if config.transport() == Transport::Udp {
            // A datagram does not tell which address it was sent to first, so each has a port.
            let address = SocketAddr::new(node, 0);
            let own = ListenerConfig {
                address,
                ..config.clone()
            };
            let spec = sockets.bind(&own, config.serves(shared), single, shared)?;
            let rule = rule_of((Transport::Udp, config.address));
            self.outbox.set(rule, Some(spec.address));
            return Ok(spec);
        }
        let to = SocketAddr::new(node, self.settings.port);
        if !self.bound.iter().any(|spec| spec.address == to) {
            let name = format!("addresses@{node}");
            let own = ListenerConfig {
                name,
                address: to,
                ..config.clone()
            };
            let spec = sockets
                .bind(&own, Serves::Addresses, false, shared)
                .map_err(|error| {
                    let what = format!("{to}, which all addresses share, cannot be bound: {error}");
                    io::Error::new(error.kind(), what)
                })?;
            tracing::info!(address = %to, "listening for the addresses of Services");
            self.bound.push(spec);
        }
        let (id, name, address) = (sockets.next_id(), &config.name, config.address);
        let spec = Arc::new(ListenerSpec {
            source_ranges: config.source_ranges.clone(),
            scope: config.scope,
            serves: config.serves(shared),
            protocol: config.protocol,
            tls: sockets.terminate(config),
            ..ListenerSpec::unbound(id, name, address, &config.service, &config.port)
        });
        self.map.set(config.address, Some(spec.clone()));
        let rule = rule_of((Transport::Tcp, config.address));
        self.outbox.set(rule, Some(to));
        Ok(spec)
    }

    /// Refuses connections to an address: it leads to a port on which nobody listens.
    pub(super) fn refuse(&self, at: (Transport, SocketAddr)) {
        if let Ok(node) = self.node(at.1.ip()) {
            let closed = SocketAddr::new(node, CLOSED_PORT);
            self.outbox.set(rule_of(at), Some(closed));
        }
    }

    /// Lets go of an address. Its open connections go on.
    pub(super) fn release(&self, at: (Transport, SocketAddr)) {
        self.outbox.set(rule_of(at), None);
        if at.0 == Transport::Tcp {
            self.map.set(at.1, None);
        }
    }

    /// A UDP nodePort is bound, or is no longer wanted. Its rule leads to itself: it ends the kernel's
    /// flows of the time before, which lead elsewhere.
    pub(super) fn note_node_port(&self, at: SocketAddr, is_bound: bool) {
        let bound_here = |node: &&IpAddr| {
            let is_any = at.ip().is_unspecified() && at.is_ipv4() == node.is_ipv4();
            is_any || at.ip() == **node
        };
        for node in self.settings.nodes.iter().filter(bound_here) {
            let at = SocketAddr::new(*node, at.port());
            let rule = rule_of((Transport::Udp, at));
            self.outbox.set(rule, is_bound.then_some(at));
        }
    }

    /// Tells the kernel's side from now on: every address has been tried once.
    pub(super) fn open(&self) {
        self.outbox.open();
    }

    /// Closes the shared listeners. The kernel's side is let go first, so that a process that
    /// replaces this one serves the addresses.
    pub(super) fn close(&mut self, sockets: &mut Sockets, shared: &Shared) {
        self.outbox.close();
        for spec in self.bound.drain(..) {
            sockets.close(spec, shared);
        }
    }

    fn node(&self, of: IpAddr) -> io::Result<IpAddr> {
        let mut nodes = self.settings.nodes.iter();
        let found = nodes.find(|node| node.is_ipv4() == of.is_ipv4());
        found.copied().ok_or_else(|| {
            let family = if of.is_ipv4() { "IPv4" } else { "IPv6" };
            io::Error::other(format!(
                "this node has no {family} address in services.nodeAddresses"
            ))
        })
    }
}

/// The rule of an address. The rooms of both words do not see each other.
fn rule_of((transport, address): (Transport, SocketAddr)) -> (rules::Transport, SocketAddr) {
    let transport = match transport {
        Transport::Tcp => rules::Transport::Tcp,
        Transport::Udp => rules::Transport::Udp,
    };
    (transport, address)
}

/// Discard (RFC 863). No program of today listens on it, and if one does, `check` says so.
const CLOSED_PORT: u16 = 9;

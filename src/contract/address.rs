//! The addresses of Services that the node's kernel leads to one shared port of the proxy: which
//! listener a connection to each belongs to.
//!
//! Invariant: only the control thread writes. A reader takes no lock.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::contract::listener::ListenerSpec;

/// An address of a Service, beside its nodePorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Where it comes from.
    pub kind: AddressKind,
}

/// Where an address of a Service comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AddressKind {
    /// `spec.clusterIPs`.
    Cluster,
    /// `spec.externalIPs`.
    External,
    /// `status.loadBalancer.ingress`, where `ipMode` is not `Proxy`.
    LoadBalancer,
    /// `gateway.addresses` of the configuration: it is a Gateway's.
    Gateway,
}

impl AddressKind {
    /// The field of the Service.
    pub fn field(self) -> &'static str {
        match self {
            Self::Cluster => "spec.clusterIP",
            Self::External => "spec.externalIPs",
            Self::LoadBalancer => "status.loadBalancer.ingress",
            Self::Gateway => "gateway.addresses",
        }
    }
}

/// The listener of each address.
pub struct AddressMap(Box<[ArcSwap<Map>]>);

type Map = HashMap<SocketAddr, Arc<ListenerSpec>, FxBuildHasher>;

impl Default for AddressMap {
    fn default() -> Self {
        Self((0..MAPS).map(|_| ArcSwap::default()).collect())
    }
}

impl AddressMap {
    /// The listener of an address; `None` if the proxy does not serve it.
    pub fn get(&self, address: &SocketAddr) -> Option<Arc<ListenerSpec>> {
        self.map(address).load().get(address).cloned()
    }

    /// Sets the listener of an address, or removes it. Copies about one in 256 of all entries.
    /// Only the control thread may call it.
    pub fn set(&self, address: SocketAddr, listener: Option<Arc<ListenerSpec>>) {
        let place = self.map(&address);
        let mut map = Map::clone(&place.load());
        match listener {
            Some(listener) => _ = map.insert(address, listener),
            None => _ = map.remove(&address),
        }
        place.store(Arc::new(map));
    }

    fn map(&self, address: &SocketAddr) -> &ArcSwap<Map> {
        &self.0[FxBuildHasher.hash_one(address) as usize % MAPS]
    }
}

/// So many that a change copies few entries: about 80 at 10,000 Services of two ports.
const MAPS: usize = 256;

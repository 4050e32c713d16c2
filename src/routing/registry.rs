//! Where each endpoint belongs: its Service port, its place in that port's list, and which Services
//! have endpoints of a pod. It also creates endpoints and gives them their ids.
//!
//! Invariant: an endpoint is registered from its creation until its drain is over. An id is never
//! used again. The endpoints themselves are kept by their ports.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::contract::endpoint::{Endpoint, EndpointId, Notice};
use crate::contract::endpoint_list::EndpointList;
use crate::contract::name::{ObjectName, PortKey};
use crate::routing::world::merged::MergedEndpoint;
use crate::routing::world::pod_uid::PodUid;

/// Address and pod UID. They identify an entry of a port. An address that returns after its
/// termination has the same identity and another [`EndpointId`] (contract 1.7).
pub(super) type Identity = (SocketAddr, Option<PodUid>);

/// Where an endpoint belongs.
pub(super) struct Home {
    /// Its Service port.
    pub(super) key: Arc<PortKey>,
    pub(super) endpoint: Arc<Endpoint>,
    /// Its place in the port's list of all endpoints.
    pub(super) place: usize,
}

/// The endpoints of a pod. Most pods have one.
enum Ids {
    One(EndpointId),
    Some(Vec<EndpointId>),
}

/// All endpoints that exist, by id and by pod.
pub(super) struct Registry {
    homes: HashMap<EndpointId, Home>,
    /// For each pod UID, its endpoints. A pod is in few Services, so a list costs less than a set.
    by_pod: HashMap<PodUid, Ids>,
    next_id: u64,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Registry {
    /// An empty registry. The endpoints that it creates report to `notices`.
    pub(super) fn new(notices: mpsc::UnboundedSender<Notice>) -> Self {
        Self {
            homes: HashMap::new(),
            by_pod: HashMap::new(),
            next_id: 0,
            notices,
        }
    }

    /// Creates an endpoint that is out of rotation, and adds it to the port's list `all`.
    pub(super) fn create(
        &mut self,
        key: &Arc<PortKey>,
        merged: &MergedEndpoint,
        all: &mut EndpointList,
    ) -> Arc<Endpoint> {
        self.next_id += 1;
        let endpoint = Endpoint::new(
            EndpointId(self.next_id),
            merged.address,
            merged.pod.clone(),
            merged.template_hash.clone(),
            self.notices.clone(),
        );
        let home = Home {
            key: key.clone(),
            endpoint: endpoint.clone(),
            place: all.push(endpoint.clone()),
        };
        self.homes.insert(endpoint.id, home);
        if let Some(pod) = merged.pod.as_ref().filter(|pod| !pod.uid.is_empty()) {
            let ids = self.by_pod.entry(PodUid(pod.clone()));
            ids.and_modify(|ids| ids.add(endpoint.id))
                .or_insert(Ids::One(endpoint.id));
        }
        endpoint
    }

    /// Where an endpoint belongs; `None` once it is forgotten.
    pub(super) fn home(&self, id: EndpointId) -> Option<&Home> {
        self.homes.get(&id)
    }

    /// Forgets an endpoint, and returns where it belonged. The caller removes it from its port's
    /// list.
    pub(super) fn forget(&mut self, endpoint: &Endpoint) -> Option<Home> {
        let home = self.homes.remove(&endpoint.id)?;
        if let Some(pod) = &endpoint.pod
            && let Some(ids) = self.by_pod.get_mut(pod.uid.as_str())
        {
            ids.remove(endpoint.id);
            if ids.all().is_empty() {
                self.by_pod.remove(pod.uid.as_str());
            }
        }
        Some(home)
    }

    /// Notes an endpoint's new place in its port's list.
    pub(super) fn moved(&mut self, id: EndpointId, place: usize) {
        if let Some(home) = self.homes.get_mut(&id) {
            home.place = place;
        }
    }

    /// The Services that have endpoints of the pod with this UID, one of them perhaps more than once.
    pub(super) fn services_of(&self, uid: &str) -> impl Iterator<Item = &ObjectName> {
        let homes = self.endpoints_of(uid).filter_map(|id| self.home(id));
        homes.map(|home| &home.key.service)
    }

    /// The endpoints of the pod with this UID.
    pub(super) fn endpoints_of(&self, uid: &str) -> impl Iterator<Item = EndpointId> {
        let ids = self.by_pod.get(uid).map(Ids::all);
        ids.unwrap_or_default().iter().copied()
    }

    /// Whether no endpoint is registered.
    pub(super) fn is_empty(&self) -> bool {
        self.homes.is_empty() && self.by_pod.is_empty()
    }
}

impl Ids {
    fn all(&self) -> &[EndpointId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Some(ids) => ids,
        }
    }

    fn add(&mut self, id: EndpointId) {
        *self = Self::Some([self.all(), &[id]].concat());
    }

    fn remove(&mut self, id: EndpointId) {
        let mut ids = self.all().to_vec();
        ids.retain(|it| *it != id);
        *self = match ids[..] {
            [id] => Self::One(id),
            _ => Self::Some(ids),
        };
    }
}

/// The identity of a merged endpoint.
pub(super) fn identity(merged: &MergedEndpoint) -> Identity {
    (merged.address, merged.pod.clone().map(PodUid))
}

/// The identity of an endpoint.
pub(super) fn identity_of(endpoint: &Endpoint) -> Identity {
    (endpoint.address, endpoint.pod.clone().map(PodUid))
}

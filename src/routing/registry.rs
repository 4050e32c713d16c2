//! Which endpoint lives where: its service port, its place there, and the Services that have endpoints of a pod.
//!
//! Invariant: an endpoint is registered from its creation until its last lease is gone.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::contract::endpoint::{Endpoint, EndpointId, Notice};
use crate::contract::endpoint_list::EndpointList;
use crate::contract::name::{ObjectName, PortKey};
use crate::routing::world::merged::MergedEndpoint;

/// Address and pod UID. Together with the [`EndpointId`] they identify one endpoint.
pub(super) type Identity = (SocketAddr, Option<String>);

/// Where a living endpoint belongs.
pub(super) struct Home {
    pub(super) key: PortKey,
    pub(super) identity: Identity,
    /// Its place in the port's list of all endpoints.
    pub(super) place: usize,
}

pub(super) struct Registry {
    homes: HashMap<EndpointId, Home>,
    /// Per pod UID: the Services that have endpoints of this pod, with their number.
    by_pod: HashMap<String, BTreeMap<ObjectName, usize>>,
    next_id: u64,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Registry {
    pub(super) fn new(notices: mpsc::UnboundedSender<Notice>) -> Self {
        Self {
            homes: HashMap::new(),
            by_pod: HashMap::new(),
            next_id: 0,
            notices,
        }
    }

    /// Makes an endpoint, out of rotation, and appends it to the port's list `all`.
    pub(super) fn create(
        &mut self,
        key: &PortKey,
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
            identity: identity(merged),
            place: all.push(endpoint.clone()),
        };
        self.homes.insert(endpoint.id, home);
        if let Some(pod) = &merged.pod {
            let services = self.by_pod.entry(pod.uid.clone()).or_default();
            *services.entry(key.service.clone()).or_default() += 1;
        }
        endpoint
    }

    pub(super) fn home(&self, id: EndpointId) -> Option<&Home> {
        self.homes.get(&id)
    }

    /// Forgets an endpoint, and returns where it lived. The caller takes it out of its port's list.
    pub(super) fn forget(&mut self, endpoint: &Endpoint) -> Option<Home> {
        let home = self.homes.remove(&endpoint.id)?;
        if let Some(pod) = &endpoint.pod
            && let Some(services) = self.by_pod.get_mut(&pod.uid)
        {
            if let Some(count) = services.get_mut(&home.key.service) {
                *count -= 1;
                if *count == 0 {
                    services.remove(&home.key.service);
                }
            }
            if services.is_empty() {
                self.by_pod.remove(&pod.uid);
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

    /// The Services that have endpoints of the pod with this UID.
    pub(super) fn services_of(&self, uid: &str) -> impl Iterator<Item = &ObjectName> {
        self.by_pod.get(uid).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.homes.is_empty() && self.by_pod.is_empty()
    }
}

pub(super) fn identity(merged: &MergedEndpoint) -> Identity {
    let uid = merged.pod.as_ref().map(|pod| pod.uid.clone());
    (merged.address, uid)
}

pub(super) fn identity_of(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.pod.as_ref().map(|pod| pod.uid.clone());
    (endpoint.address, uid)
}

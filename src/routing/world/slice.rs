//! One EndpointSlice as the source gave it, and its difference from the version before.
//!
//! Invariant: the endpoints of a slice are sorted by address. What a slice's endpoints mean for a
//! port is in `merge.rs`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::contract::name::{ObjectName, PodRef};
use crate::discovery::object::{SliceEndpoint, SliceObject};
use crate::routing::world::pods::Slot;

/// A slice, with what is remembered from its arrival.
#[derive(Debug)]
pub(super) struct Slice {
    /// The slice. Its endpoints are sorted by address.
    pub(super) object: SliceObject,
    /// For each endpoint, the slot of its pod in `Pods`; `None` where the slice gives no UID. The
    /// slots stay valid while this slice is in the world, because a pod that a slice names is not
    /// forgotten.
    pub(super) slots: Vec<Option<Slot>>,
    /// When each endpoint that terminates, and whose pod has no UID, was first shown terminating.
    pub(super) terminating_since: HashMap<IpAddr, Instant>,
    /// What the slice has that is refused.
    pub(super) warnings: Vec<String>,
}

/// How the endpoints of a slice differ from those of its version before. Both are sorted by
/// address.
pub(super) struct Differences {
    /// For each endpoint now, its place before, if the same endpoint was there.
    pub(super) kept: Vec<Option<usize>>,
    /// The places before of endpoints that are gone or have changed.
    pub(super) gone: Vec<usize>,
}

impl Differences {
    /// Compares two versions of a slice.
    pub(super) fn between(before: &[SliceEndpoint], now: &[SliceEndpoint]) -> Self {
        let (mut kept, mut gone) = (Vec::with_capacity(now.len()), Vec::new());
        let mut old = before.iter().enumerate().peekable();
        for endpoint in now {
            while let Some((place, _)) = old.next_if(|(_, old)| old.address < endpoint.address) {
                gone.push(place);
            }
            kept.push(
                old.next_if(|(_, old)| *old == endpoint)
                    .map(|(place, _)| place),
            );
        }
        gone.extend(old.map(|(place, _)| place));
        Self { kept, gone }
    }

    /// The endpoints that are new or have changed, as they are now.
    pub(super) fn come<'a>(
        &self,
        now: &'a [SliceEndpoint],
    ) -> impl Iterator<Item = &'a SliceEndpoint> {
        now.iter()
            .zip(&self.kept)
            .filter(|(_, kept)| kept.is_none())
            .map(|(endpoint, _)| endpoint)
    }

    /// The endpoints that are gone or have changed, as they were before.
    pub(super) fn gone<'a>(
        &self,
        before: &'a [SliceEndpoint],
    ) -> impl Iterator<Item = &'a SliceEndpoint> {
        self.gone.iter().filter_map(|place| before.get(*place))
    }

    /// The addresses at which a merge may differ; `None` if there are more than [`SOME`].
    pub(super) fn addresses(
        &self,
        before: &[SliceEndpoint],
        now: &[SliceEndpoint],
    ) -> Option<BTreeSet<IpAddr>> {
        let (mut changed, mut pods) = (BTreeSet::new(), HashSet::new());
        for endpoint in self.gone(before).chain(self.come(now)) {
            changed.insert(endpoint.address);
            pods.extend(endpoint.pod.as_deref().map(id));
        }
        // The end of a pod changes every endpoint that names the pod.
        let named = |e: &&SliceEndpoint| e.pod.as_deref().is_some_and(|pod| pods.contains(id(pod)));
        changed.extend(now.iter().filter(named).map(|e| e.address));
        (changed.len() <= SOME).then_some(changed)
    }
}

/// Identifies a pod within its namespace: by UID, or by name where the slice gives no UID.
fn id(pod: &PodRef) -> &str {
    if pod.uid.is_empty() {
        &pod.name
    } else {
        &pod.uid
    }
}

impl Slice {
    /// The places of the endpoints at this address.
    pub(super) fn places_of(&self, address: IpAddr) -> impl Iterator<Item = usize> {
        let endpoints = &self.object.endpoints;
        let from = endpoints.partition_point(|e| e.address < address);
        from..from
            + endpoints
                .iter()
                .skip(from)
                .take_while(|e| e.address == address)
                .count()
    }
}

impl SliceObject {
    /// What a merge depends on in this slice, apart from its endpoints. If it has changed, any
    /// endpoint may differ.
    pub(super) fn frame(&self) -> impl PartialEq {
        (
            self.service.as_ref(),
            self.ipv6,
            self.fqdn,
            self.created,
            &self.ports,
            &self.udp_ports,
        )
    }

    /// The Service of the slice; `None` if the slice belongs to no Service.
    pub(super) fn service_name(&self) -> Option<ObjectName> {
        Some(ObjectName::new(
            &self.name.namespace,
            self.service.as_ref()?,
        ))
    }

    /// Sorts slices by age: the newer slice has the greater key.
    pub(super) fn newness(&self) -> (i64, i64, &str) {
        (self.created, self.generation, &self.name.name)
    }
}

/// How many changed addresses are examined one by one. With more, the whole Service is merged
/// again.
const SOME: usize = 128;

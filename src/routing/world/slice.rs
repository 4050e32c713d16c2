//! One slice as it came, and how it differs from what it was.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::contract::name::{ObjectName, PodRef};
use crate::discovery::object::{SliceEndpoint, SliceObject};

/// A slice with what its arrival told.
#[derive(Debug)]
pub(super) struct Slice {
    /// Its endpoints by address.
    pub(super) object: SliceObject,
    /// Of each endpoint, its pod's slot in [`Pods`]; none where the slice gives no UID. Valid as long as this slice is.
    pub(super) slots: Vec<Option<usize>>,
    /// When endpoints whose pod has no UID were first shown terminating.
    pub(super) terminating_since: HashMap<IpAddr, Instant>,
    pub(super) warnings: Vec<String>,
}

/// How a slice's endpoints differ from those it had before, both by address.
pub(super) struct Differences {
    /// Of each endpoint that is there now, its place before, if it was there as it is.
    pub(super) kept: Vec<Option<usize>>,
    /// The places of those that are there no longer, or not as they were.
    pub(super) gone: Vec<usize>,
}

impl Differences {
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

    pub(super) fn come<'a>(
        &self,
        now: &'a [SliceEndpoint],
    ) -> impl Iterator<Item = &'a SliceEndpoint> {
        now.iter()
            .zip(&self.kept)
            .filter(|(_, kept)| kept.is_none())
            .map(|(endpoint, _)| endpoint)
    }

    pub(super) fn gone<'a>(
        &self,
        before: &'a [SliceEndpoint],
    ) -> impl Iterator<Item = &'a SliceEndpoint> {
        self.gone.iter().filter_map(|place| before.get(*place))
    }

    /// Where they differ; `None` if that is at very many.
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
        // A pod's end shows wherever it is named.
        let named = |e: &&SliceEndpoint| e.pod.as_deref().is_some_and(|pod| pods.contains(id(pod)));
        changed.extend(now.iter().filter(named).map(|e| e.address));
        (changed.len() <= SOME).then_some(changed)
    }
}

/// What tells a slice's pods apart.
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
    /// All but its endpoints, as far as it matters to them.
    pub(super) fn frame(&self) -> impl PartialEq {
        (
            self.service.as_ref(),
            self.ipv6,
            self.fqdn,
            self.created,
            &self.ports,
        )
    }

    pub(super) fn service_name(&self) -> Option<ObjectName> {
        Some(ObjectName::new(
            &self.name.namespace,
            self.service.as_ref()?,
        ))
    }

    pub(super) fn newness(&self) -> (i64, i64, &str) {
        (self.created, self.generation, &self.name.name)
    }
}

/// More changed addresses than this are not looked at one by one.
const SOME: usize = 128;

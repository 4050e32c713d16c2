//! The merge of one Service: its slices and pods in, its ports' endpoints out.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::contract::endpoint::Conditions;
use crate::contract::name::{ObjectName, PodRef};
use crate::contract::reason::Trigger;
use crate::discovery::object::{ServicePortObject, SliceEndpoint};
use crate::routing::world::merged::{Fate, MergedEndpoint, MergedPort, MergedService};
use crate::routing::world::objects::World;
use crate::routing::world::pods::{MARGIN, Pod};
use crate::routing::world::slice::Slice;

/// The one of several endpoints at one address, newest first, that is in force: of a pod's own doubles the newest;
/// between pods (the address has passed on) the ready one, then the one that is not going away, then the newest.
fn settle(doubles: &[MergedEndpoint]) -> Option<MergedEndpoint> {
    let is_newest_of_its_pod =
        |(i, e): &(usize, &MergedEndpoint)| doubles.iter().take(*i).all(|newer| newer.pod != e.pod);
    let claims = doubles.iter().enumerate().filter(is_newest_of_its_pod);
    let rank = |c: Conditions| (c.ready && !c.terminating, !c.terminating);
    claims
        .max_by_key(|(i, e)| (rank(e.conditions), Reverse(*i)))
        .map(|(_, e)| e.clone())
}

/// Orders IPv4 addresses as [`SocketAddr`] does, faster.
fn v4_key(address: SocketAddr) -> u64 {
    let SocketAddr::V4(v4) = address else {
        return u64::MAX;
    };
    u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port())
}

impl World {
    /// The Service as its slices and pods make it; `None` when there is no such Service. An ExternalName one has no
    /// ports. Costs O(its endpoints).
    pub fn merge(&self, service: &ObjectName) -> Option<MergedService> {
        let object = self.services.get(service)?.clone();
        if object.external_name {
            let warnings = vec![format!(
                "Service {service} is of type ExternalName: refused, it has no endpoints"
            )];
            return Some(MergedService {
                object,
                ports: Vec::new(),
                warnings,
            });
        }
        let slices: Vec<&Slice> = self.slices_of(service).collect();
        let ports = object
            .ports
            .iter()
            .map(|port| self.merge_port(&slices, port, object.ipv6_first))
            .collect();
        let mut warnings: Vec<String> = slices
            .iter()
            .flat_map(|s| s.warnings.iter().cloned())
            .collect();
        warnings.extend(self.returned_pods(service));
        Some(MergedService {
            object,
            ports,
            warnings,
        })
    }

    /// The endpoints of a port at these addresses only, as [`World::merge`] has them; `None` if they are ambiguous. Each of
    /// the Service's slices is searched.
    pub fn merge_some(
        &self,
        service: &ObjectName,
        port: &ServicePortObject,
        addresses: &BTreeSet<IpAddr>,
    ) -> Option<Vec<MergedEndpoint>> {
        let (mut endpoints, mut families) = (Vec::new(), [false; 2]);
        for slice in self.slices_of(service) {
            families[usize::from(slice.object.ipv6)] = true;
            let places = addresses
                .iter()
                .flat_map(|address| slice.places_of(*address));
            endpoints.extend(self.endpoints_of(slice, port, places));
        }
        endpoints.sort_by_key(|e| e.address);
        let doubles = endpoints
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.address.ip() == b.address.ip()));
        (!doubles && families != [true; 2]).then_some(endpoints)
    }

    fn merge_port(
        &self,
        slices: &[&Slice],
        port: &ServicePortObject,
        ipv6_first: bool,
    ) -> MergedPort {
        let mut endpoints =
            Vec::with_capacity(slices.iter().map(|s| s.object.endpoints.len()).sum());
        let mut newest_first: Vec<&Slice> =
            slices.iter().copied().filter(|s| !s.object.fqdn).collect();
        newest_first.sort_unstable_by_key(|s| Reverse(s.object.newness()));
        for slice in newest_first {
            endpoints.extend(self.endpoints_of(slice, port, 0..slice.object.endpoints.len()));
        }
        // Stable, so the newest stays first among those of one address. The keys are sorted, each endpoint moves once.
        match endpoints.iter().all(|e| e.address.is_ipv4()) {
            true => endpoints.sort_by_cached_key(|e| v4_key(e.address)),
            false => endpoints.sort_by_cached_key(|e| e.address),
        }
        let mut ambiguous = endpoints
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.address.ip() == b.address.ip()));
        if ambiguous {
            endpoints = endpoints
                .chunk_by(|a, b| a.address == b.address)
                .filter_map(settle)
                .collect();
        }
        if slices.iter().any(|s| s.object.ipv6) && slices.iter().any(|s| !s.object.ipv6) {
            ambiguous = true;
            let is_first = |e: &MergedEndpoint| e.address.is_ipv6() == ipv6_first;
            let counted: HashSet<Arc<PodRef>> = endpoints
                .iter()
                .filter(|e| is_first(e))
                .filter_map(|e| e.pod.clone())
                .collect();
            endpoints
                .retain(|e| is_first(e) || e.pod.as_ref().is_none_or(|pod| !counted.contains(pod)));
        }
        MergedPort {
            port: port.clone(),
            endpoints,
            ambiguous,
        }
    }

    /// Those of a slice's endpoints that are at these places, for a port.
    fn endpoints_of(
        &self,
        slice: &Slice,
        port: &ServicePortObject,
        places: impl Iterator<Item = usize>,
    ) -> Vec<MergedEndpoint> {
        let name = port.name.as_deref().unwrap_or("");
        let number = slice
            .object
            .ports
            .iter()
            .find(|(own, _)| own == name)
            .filter(|_| !slice.object.fqdn);
        let Some((_, number)) = number else {
            return Vec::new();
        };
        let endpoints = places.filter_map(|place| {
            let (endpoint, slot) = (slice.object.endpoints.get(place)?, slice.slots.get(place)?);
            self.refusal(endpoint.address)
                .is_none()
                .then(|| self.merge_endpoint(slice, endpoint, *slot, *number))
        });
        endpoints.collect()
    }

    fn merge_endpoint(
        &self,
        slice: &Slice,
        e: &SliceEndpoint,
        slot: Option<usize>,
        port: u16,
    ) -> MergedEndpoint {
        let (uid, known) = match (&e.pod, slot) {
            (Some(pod), Some(slot)) => (pod.uid.as_str(), self.pods.at(slot)),
            (Some(pod), None) => {
                let uid = self
                    .uids
                    .get(&slice.object.name.namespace)
                    .and_then(|names| names.get(&pod.name));
                (
                    uid.map_or("", String::as_str),
                    uid.and_then(|uid| self.pods.get(uid)),
                )
            }
            (None, _) => ("", None),
        };
        let mut fate = if e.pod.is_some() {
            self.fate_of(known)
        } else {
            Fate::NoPod
        };
        // A pod without a UID in the slice has no one-way memory there: it terminates while the slice says so.
        if fate == Fate::Alive && e.terminating {
            let since = slice.terminating_since.get(&e.address).copied();
            let grace = known.and_then(|pod| pod.grace);
            let deadline = since
                .zip(grace)
                .and_then(|(since, grace)| since.checked_add(grace)?.checked_add(MARGIN));
            fate = Fate::Terminating {
                deadline,
                trigger: Trigger::SliceTerminating,
            };
        }
        let pod = e.pod.as_ref().map(|pod| match slot {
            Some(_) => pod.clone(),
            None => Arc::new(PodRef {
                name: pod.name.clone(),
                uid: uid.to_owned(),
            }),
        });
        MergedEndpoint {
            address: SocketAddr::new(e.address, port),
            pod,
            template_hash: known.and_then(|pod| pod.template_hash.clone()),
            conditions: Conditions {
                ready: e.ready,
                serving: e.serving,
                terminating: e.terminating || known.is_some_and(Pod::has_ended),
            },
            fate,
        }
    }
}

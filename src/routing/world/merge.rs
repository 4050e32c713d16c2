//! The merge of one Service: its slices and pods in, the endpoints of its ports out.
//!
//! Invariant: the merge is pure. It depends on the objects in the world and on nothing else, and a
//! merge at some addresses is equal to that part of a whole merge. Which pods have ended is decided
//! in `apply_pod.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::contract::endpoint::Conditions;
use crate::contract::name::{ObjectName, PodRef};
use crate::contract::reason::Trigger;
use crate::discovery::object::{ServicePortObject, SliceEndpoint};
use crate::routing::world::merged::{Fate, MergedEndpoint, MergedPort, MergedService};
use crate::routing::world::objects::{World, uid_of};
use crate::routing::world::pods::{MARGIN, Pod, Slot};
use crate::routing::world::slice::Slice;

/// Returns the entry that is in force at one address (contract 2.6). `entries` are all entries at
/// the address, newest first. Of the entries of one pod, only the newest counts. If entries of
/// several pods are left, the address has passed from pod to pod. Then an entry that is ready and
/// does not terminate is chosen, or else an entry that does not terminate, or else the newest.
fn choose_claim(entries: &[MergedEndpoint]) -> Option<MergedEndpoint> {
    let is_newest_of_its_pod =
        |(i, e): &(usize, &MergedEndpoint)| entries.iter().take(*i).all(|newer| newer.pod != e.pod);
    let claims = entries.iter().enumerate().filter(is_newest_of_its_pod);
    let rank = |c: Conditions| (c.ready && !c.terminating, !c.terminating);
    claims
        .max_by_key(|(i, e)| (rank(e.conditions), Reverse(*i)))
        .map(|(_, e)| e.clone())
}

/// A sort key that orders IPv4 addresses as [`SocketAddr`] does, but faster.
fn v4_key(address: SocketAddr) -> u64 {
    let SocketAddr::V4(v4) = address else {
        return u64::MAX;
    };
    u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port())
}

impl World {
    /// The Service with the endpoints that its slices and pods give it. `None` if the Service does
    /// not exist. A Service of type ExternalName gets no ports and a warning. The cost grows with
    /// the number of its endpoints.
    pub fn merge(&self, service: &ObjectName) -> Option<MergedService> {
        let object = self.service(service)?.clone();
        if object.external_name {
            let warnings = vec![format!(
                "Service {service}: type ExternalName is refused, because it has no endpoints; use \
                 another type"
            )];
            return Some(MergedService {
                object,
                authorities: None,
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
        let (authorities, lacking) = self.authorities_of(&object);
        warnings.extend(lacking);
        Some(MergedService {
            object,
            authorities,
            ports,
            warnings,
        })
    }

    /// Only the endpoints of a port at these addresses, as [`World::merge`] returns them. `None` if
    /// two endpoints share an address, or if the Service has slices of both families: then an
    /// endpoint at another address may differ too. Each slice of the Service is searched.
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
        let shares_address = endpoints
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.address.ip() == b.address.ip()));
        (!shares_address && families != [true; 2]).then_some(endpoints)
    }

    /// The endpoints of one port.
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
        // The sort is stable, so the newest entry of an address stays first. Only the keys are
        // sorted, and each endpoint moves once.
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
                .filter_map(choose_claim)
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

    /// The endpoints of a slice at these places, for one port. Refused addresses are left out.
    /// Empty if the slice does not have the port.
    fn endpoints_of(
        &self,
        slice: &Slice,
        port: &ServicePortObject,
        places: impl Iterator<Item = usize>,
    ) -> Vec<MergedEndpoint> {
        let name = port.name.as_deref().unwrap_or("");
        let number = slice
            .object
            .ports_over(port.transport)
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

    /// One endpoint, with what is known about its pod. `slot` is the pod's slot in the world.
    fn merge_endpoint(
        &self,
        slice: &Slice,
        e: &SliceEndpoint,
        slot: Option<Slot>,
        port: u16,
    ) -> MergedEndpoint {
        let (uid, known) = match (&e.pod, slot) {
            (Some(pod), Some(slot)) => (pod.uid.as_str(), self.pods.at(slot)),
            (Some(pod), None) => {
                let uid = uid_of(&self.uids, &slice.object.name.namespace, &pod.name);
                (
                    uid.unwrap_or_default(),
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
        // If the slice gives no UID, nothing remembers that the slice showed the pod terminating.
        // So the pod terminates only while the slice says so.
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
            local: e.local,
            hints: e.hints,
        }
    }
}

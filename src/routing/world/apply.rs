//! How an event changes the world: Services, slices, and lists that replace all objects of a kind.
//! Pod objects are in `apply_pod.rs`.
//!
//! Invariant: after each event the indexes agree with the slices, and the event's `Touched` names
//! everything that a merge may now show differently.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::name::ObjectName;
use crate::discovery::object::{
    Change, ClassObject, IngressObject, Kind, Object, ServiceObject, SliceEndpoint, SliceObject,
};
use crate::routing::world::objects::{Touched, World, uid_of};
use crate::routing::world::pods::Pod;
use crate::routing::world::slice::{Differences, Slice};

impl World {
    /// Takes in one change, and notes in `touched` what it may have altered. `received` is when the
    /// event arrived, by the monotonic clock.
    pub fn apply(&mut self, change: Change, received: Instant, touched: &mut Touched) {
        match change {
            Change::Apply(Object::Service(service)) => self.apply_service(service, touched),
            Change::Apply(Object::EndpointSlice(slice)) => {
                self.apply_slice(slice, received, touched)
            }
            Change::Apply(Object::Pod(pod)) => self.apply_pod(pod, received, touched),
            Change::Apply(Object::Ingress(ingress)) => self.apply_ingress(*ingress, touched),
            Change::Apply(Object::Gateway(object)) => {
                let key = (object.kind, object.name.clone());
                if self.gateways.get(&key) != Some(&object) {
                    touched.gateways.insert(key.clone());
                    self.gateways.insert(key, object);
                }
            }
            Change::Remove(Kind::Gateway(kind), name) => {
                if let Some((key, _)) = self.gateways.remove_entry(&(kind, name)) {
                    touched.gateways.insert(key);
                }
            }
            Change::Remove(Kind::Ingress, name) => {
                touched.routes |= self.ingresses.remove(&name).is_some();
                touched.ingresses.insert(name);
            }
            Change::Apply(Object::IngressClass(class)) => self.apply_class(class, touched),
            Change::Remove(Kind::IngressClass, name) => {
                let is_gone = self.classes.remove(&name).is_some();
                self.touch_ingresses(is_gone, touched);
            }
            Change::Remove(Kind::Service, name) => self.remove_service(name, touched),
            Change::Remove(Kind::EndpointSlice, name) => {
                self.remove_slice(&name, received, touched)
            }
            Change::Remove(Kind::Pod, name) => self.remove_pod(&name, received, touched),
            Change::Forget { namespace } => self.forget_pods(&namespace, touched),
            Change::Replace {
                kind,
                namespace,
                objects,
            } => {
                let listed: HashSet<&ObjectName> = objects.iter().map(Object::name).collect();
                let in_scope =
                    |name: &ObjectName| namespace.as_ref().is_none_or(|it| *it == name.namespace);
                let missing: Vec<ObjectName> = self
                    .names(kind)
                    .into_iter()
                    .filter(|name| in_scope(name) && !listed.contains(name))
                    .collect();
                for name in missing {
                    self.apply(Change::Remove(kind, name), received, touched);
                }
                for object in objects {
                    self.apply(Change::Apply(object), received, touched);
                }
            }
        }
    }

    /// The names of all objects of a kind.
    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().map(|it| (**it).clone()).collect(),
            Kind::Ingress => self.ingresses.keys().cloned().collect(),
            Kind::Gateway(kind) => {
                let of_kind = self.gateways.keys().filter(|(it, _)| *it == kind);
                of_kind.map(|(_, name)| name.clone()).collect()
            }
            Kind::IngressClass => self.classes.keys().cloned().collect(),
            Kind::Pod => self
                .pods
                .iter()
                .filter(|pod| pod.is_live())
                .map(Pod::name)
                .collect(),
        }
    }

    fn apply_service(&mut self, service: ServiceObject, touched: &mut Touched) {
        if self.service(&service.name) != Some(&service) {
            touched.services.insert(service.name.clone());
            self.services
                .insert(service.name.clone(), Box::new(service));
        }
    }

    fn apply_ingress(&mut self, ingress: IngressObject, touched: &mut Touched) {
        let before = self.ingresses.get_mut(&ingress.name);
        let is_new = before.as_ref().is_none_or(|before| **before != ingress);
        // A status that was written is no new rule.
        let is_same = before.is_some_and(|before| {
            before.published.clone_from(&ingress.published);
            *before == ingress
        });
        touched.routes |= !is_same;
        if is_new {
            touched.ingresses.insert(ingress.name.clone());
            self.ingresses.insert(ingress.name.clone(), ingress);
        }
    }

    fn apply_class(&mut self, class: ClassObject, touched: &mut Touched) {
        let before = self.classes.insert(class.name.clone(), class.clone());
        self.touch_ingresses(before != Some(class), touched);
    }

    /// Notes that other Ingress objects may be ours.
    fn touch_ingresses(&self, differs: bool, touched: &mut Touched) {
        if differs {
            touched.routes = true;
            touched.ingresses.extend(self.ingresses.keys().cloned());
        }
    }

    fn remove_service(&mut self, name: ObjectName, touched: &mut Touched) {
        if self.services.remove(&name).is_some() {
            touched.services.insert(name);
        }
    }

    fn apply_slice(&mut self, mut object: SliceObject, received: Instant, touched: &mut Touched) {
        // The sort is stable: the first of two endpoints with one address stays first.
        object.endpoints.sort_by_key(|e| e.address);
        if self
            .slices
            .get(&object.name)
            .is_some_and(|old| old.object == object)
        {
            return;
        }
        let (name, old) = match self.slices.remove_entry(&object.name) {
            Some((name, old)) => (name, Some(old)),
            None => (Arc::new(object.name.clone()), None),
        };
        let before = old.as_ref().map_or(&[][..], |old| &old.object.endpoints);
        let differences = Differences::between(before, &object.endpoints);
        // New endpoints are added before old ones are removed, so that a pod that both versions of
        // the slice name is never without a slice.
        self.name_pods(
            &name,
            differences.come(&object.endpoints),
            received,
            touched,
        );
        self.release_pods(&name, differences.gone(before), received, touched);
        let warnings = self.slice_warnings(&object);
        let some = old
            .as_ref()
            .filter(|old| old.warnings == warnings && self.returned.is_empty());
        let some = some.filter(|old| old.object.frame() == object.frame());
        let some = some.and_then(|_| differences.addresses(before, &object.endpoints));
        let service = object.service_name();
        if let Some(service) = service.clone() {
            let slices = self.by_service.entry(service.clone()).or_default();
            if let Err(place) = slices.binary_search(&name) {
                slices.reserve_exact(1);
                slices.insert(place, name.clone());
            }
            match some {
                Some(addresses) => touched.endpoints(service, addresses),
                None => _ = touched.services.insert(service),
            }
        }
        if let Some(left) = old.as_ref().and_then(|old| old.object.service_name())
            && Some(&left) != service.as_ref()
        {
            self.unindex(&left, &name);
            touched.services.insert(left);
        }
        let of_old = |place: usize| old.as_ref().and_then(|old| *old.slots.get(place)?);
        let mut slots = Vec::with_capacity(object.endpoints.len());
        for (endpoint, kept) in object.endpoints.iter_mut().zip(&differences.kept) {
            let pod = endpoint.pod.as_ref().filter(|pod| !pod.uid.is_empty());
            let slot = match kept {
                Some(place) => of_old(*place),
                None => pod.and_then(|pod| self.pods.slots.get(pod.uid.as_str()).copied()),
            };
            // Slices that name the same pod share one copy of its name and UID.
            let known = slot.and_then(|slot| self.pods.at(slot));
            if let Some(known) = known.filter(|known| Some(&known.pod) == pod) {
                endpoint.pod = Some(known.pod.clone());
            }
            slots.push(slot);
        }
        let mut terminating_since = HashMap::new();
        for (endpoint, slot) in object
            .endpoints
            .iter()
            .zip(&slots)
            .filter(|(e, _)| e.terminating)
        {
            match (&endpoint.pod, slot) {
                (Some(pod), Some(slot)) => {
                    self.slice_terminates(&pod.uid, *slot, received, touched)
                }
                (Some(_), None) => {
                    let since = old
                        .as_ref()
                        .and_then(|old| old.terminating_since.get(&endpoint.address));
                    terminating_since.insert(endpoint.address, since.copied().unwrap_or(received));
                }
                (None, _) => {}
            }
        }
        let slice = Box::new(Slice {
            object,
            slots,
            terminating_since,
            warnings,
        });
        self.slices.insert(name, slice);
    }

    fn remove_slice(&mut self, name: &ObjectName, received: Instant, touched: &mut Touched) {
        let Some(old) = self.slices.remove(name) else {
            return;
        };
        self.release_pods(name, old.object.endpoints.iter(), received, touched);
        if let Some(service) = old.object.service_name() {
            self.unindex(&service, name);
            touched.services.insert(service);
        }
    }

    /// Removes a slice from the index of its Service.
    fn unindex(&mut self, service: &ObjectName, slice: &ObjectName) {
        if let Some(names) = self.by_service.get_mut(service) {
            names.retain(|name| **name != *slice);
            if names.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    /// Notes that these endpoints of a slice name their pods.
    fn name_pods<'a>(
        &mut self,
        slice: &Arc<ObjectName>,
        endpoints: impl Iterator<Item = &'a SliceEndpoint>,
        received: Instant,
        touched: &mut Touched,
    ) {
        for endpoint in endpoints {
            let Some(pod) = &endpoint.pod else {
                continue;
            };
            if self.here.add(&slice.namespace, endpoint) {
                touched.here.insert(endpoint.address);
            }
            if pod.uid.is_empty() {
                let name = ObjectName::new(&slice.namespace, &pod.name);
                self.naming.entry(name).or_default().add(slice);
                continue;
            }
            let slot = self.pods.slot_or_insert(&slice.namespace, pod, received);
            if let Some(pod) = self.pods.at_mut(slot) {
                pod.named.add(slice);
            }
        }
    }

    /// Notes that these endpoints of a slice no longer name their pods. A pod that no slice names
    /// any more is remembered from `received` on.
    fn release_pods<'a>(
        &mut self,
        slice: &ObjectName,
        endpoints: impl Iterator<Item = &'a SliceEndpoint>,
        received: Instant,
        touched: &mut Touched,
    ) {
        for endpoint in endpoints {
            let Some(pod) = &endpoint.pod else {
                continue;
            };
            if self.here.remove(&slice.namespace, endpoint) {
                touched.here.insert(endpoint.address);
            }
            if !pod.uid.is_empty() {
                if let Some(known) = self.pods.get_mut(&pod.uid)
                    && known.named.remove(slice)
                {
                    known.released = received;
                }
                continue;
            }
            let name = ObjectName::new(&slice.namespace, &pod.name);
            let naming = self.naming.get_mut(&name);
            if naming.is_some_and(|naming| naming.remove(slice)) {
                self.naming.remove(&name);
                let uid = uid_of(&self.uids, &name.namespace, &name.name);
                if let Some(pod) = uid.and_then(|uid| self.pods.get_mut(uid)) {
                    pod.released = received;
                }
            }
        }
    }

    /// What the slice has that is refused.
    fn slice_warnings(&self, slice: &SliceObject) -> Vec<String> {
        let name = &slice.name;
        if slice.fqdn {
            return vec![format!(
                "EndpointSlice {name}: addressType FQDN is refused; list the IP addresses instead"
            )];
        }
        let mut refused: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for endpoint in &slice.endpoints {
            if let Some(why) = self.refusal(endpoint.address) {
                refused.entry(why).or_default().insert(endpoint.address);
            }
        }
        let list = |all: &BTreeSet<IpAddr>| {
            all.iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        refused
            .iter()
            .map(|(why, addresses)| {
                format!(
                    "EndpointSlice {name}: {why} addresses are dropped: {}",
                    list(addresses)
                )
            })
            .collect()
    }
}

//! The pure merge: Services, EndpointSlices and Pods in, the endpoints of each service port out.
//!
//! Every object is kept as the source gave it and the merge is computed from all of them, so that its result does not
//! depend on the order in which the events of different objects came (the property test at the end). Two things are
//! one-way: a pod UID that terminates or ends never returns, and a drain deadline only moves forward in time's
//! direction to us. No clock is read here and nothing is published: [`crate::routing::table`] does that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::name::ObjectName;
use crate::contract::reason::Trigger;
use crate::discovery::object::{
    Change, Kind, Object, PodObject, ServiceObject, SliceEndpoint, SliceObject,
};
use crate::routing::world::merged::Fate;
use crate::routing::world::pods::{Pod, PodKey, Pods};
use crate::routing::world::slice::{Differences, Slice};

/// All objects that the source has told of, and the pods that are known to have ended. The default is the world of
/// a `files` source.
#[derive(Debug, Default)]
pub struct World {
    /// The source is an API server: loopback endpoints are refused, and every pod is watched.
    pub(super) api_server: bool,
    pub(super) services: HashMap<ObjectName, ServiceObject>,
    pub(super) slices: HashMap<ObjectName, Slice>,
    /// Service to the names of its slices.
    pub(super) by_service: HashMap<ObjectName, BTreeSet<String>>,
    /// Pod to the slices that name it, with the number of endpoints that do.
    pub(super) naming: HashMap<PodKey, BTreeMap<ObjectName, usize>>,
    pub(super) pods: Pods,
    /// UIDs shown alive after their deletion: manifests put back unchanged.
    pub(super) returned: BTreeSet<String>,
    /// Namespace and pod name to the UID that bears it, or bore it last.
    pub(super) uids: HashMap<String, HashMap<String, String>>,
}

/// What a batch of changes may have altered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose merge may differ now.
    pub services: BTreeSet<ObjectName>,
    /// Services, besides those, of which only the endpoints at these addresses may.
    pub addresses: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    /// Pod UIDs whose [`Fate`] may differ now (endpoints that no slice names any more may hang on them).
    pub pods: BTreeSet<String>,
}

impl World {
    /// The world of an API server: loopback endpoints are refused, and a pod that is not (yet) in the store is alive,
    /// since the pod watch will tell.
    pub fn for_api_server() -> Self {
        Self {
            api_server: true,
            ..Self::default()
        }
    }

    /// Takes one change in. `received` is when the event arrived, on the monotonic clock.
    pub fn apply(&mut self, change: Change, received: Instant, touched: &mut Touched) {
        match change {
            Change::Apply(Object::Service(service)) => self.apply_service(service, touched),
            Change::Apply(Object::EndpointSlice(slice)) => {
                self.apply_slice(slice, received, touched)
            }
            Change::Apply(Object::Pod(pod)) => self.apply_pod(pod, received, touched),
            Change::Remove(Kind::Service, name) => self.remove_service(name, touched),
            Change::Remove(Kind::EndpointSlice, name) => {
                self.remove_slice(&name, received, touched)
            }
            Change::Remove(Kind::Pod, name) => self.remove_pod(&name, received, touched),
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

    /// Every Service that exists.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// What is known of the pod with this UID: once it has been forgotten, no pod is known.
    pub fn fate(&self, uid: &str) -> Fate {
        self.pods
            .get(uid)
            .map_or(Fate::NoPod, |pod| self.fate_of(Some(pod)))
    }

    /// When the deletion of the pod with this UID was asked for, by the source's clock.
    pub fn deletion_asked(&self, uid: &str) -> Option<Instant> {
        self.pods.get(uid)?.asked
    }

    /// The Service as the source gave it.
    pub fn service(&self, name: &ObjectName) -> Option<&ServiceObject> {
        self.services.get(name)
    }

    /// Forgets UIDs that no slice has named for ten minutes, unless the store holds them: those that have ended, and those
    /// that a slice named and the pod watch never told of (it was broken for as long as they lived).
    pub fn sweep(&mut self, now: Instant) -> Touched {
        let Self {
            pods,
            uids,
            naming,
            returned,
            ..
        } = self;
        let mut touched = Touched::default();
        pods.retain(|uid, pod| {
            if pod.is_live() || now.saturating_duration_since(pod.released) < MEMORY {
                return true;
            }
            let latest = uid_of(uids, &pod.name) == Some(uid);
            let named = naming.contains_key(&PodKey::Uid(uid.to_owned()))
                || latest && naming.contains_key(&PodKey::Name(pod.name.clone()));
            if !named {
                touched.pods.insert(uid.to_owned());
                returned.remove(uid);
                if let Some(names) = uids.get_mut(&pod.name.namespace).filter(|_| latest) {
                    names.remove(&pod.name.name);
                }
            }
            named
        });
        uids.retain(|_, names| !names.is_empty());
        touched
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Pod => self
                .pods
                .list
                .iter()
                .flatten()
                .filter(|pod| pod.is_live())
                .map(|pod| pod.name.clone())
                .collect(),
        }
    }

    pub(super) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        let names = self.by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(&ObjectName::new(&service.namespace, name)))
    }
}

/// Services and slices.
impl World {
    fn apply_service(&mut self, service: ServiceObject, touched: &mut Touched) {
        if self.services.get(&service.name) != Some(&service) {
            touched.services.insert(service.name.clone());
            self.services.insert(service.name.clone(), service);
        }
    }

    fn remove_service(&mut self, name: ObjectName, touched: &mut Touched) {
        if self.services.remove(&name).is_some() {
            touched.services.insert(name);
        }
    }

    fn apply_slice(&mut self, mut object: SliceObject, received: Instant, touched: &mut Touched) {
        // Of the doubles of an address the first stays the first.
        object.endpoints.sort_by_key(|e| e.address);
        let name = object.name.clone();
        if self
            .slices
            .get(&name)
            .is_some_and(|old| old.object == object)
        {
            return;
        }
        let old = self.slices.remove(&name);
        let before = old.as_ref().map_or(&[][..], |old| &old.object.endpoints);
        let differences = Differences::between(before, &object.endpoints);
        // The new endpoints are entered before the old ones go, so that a pod named by both is never without a slice.
        self.name_pods(&name, differences.come(&object.endpoints));
        self.release_pods(&name, differences.gone(before), received);
        let warnings = self.slice_warnings(&object);
        let some = old
            .as_ref()
            .filter(|old| old.warnings == warnings && self.returned.is_empty());
        let some = some.filter(|old| old.object.frame() == object.frame());
        let some = some.and_then(|_| differences.addresses(before, &object.endpoints));
        let service = object.service_name();
        if let Some(service) = service.clone() {
            self.by_service
                .entry(service.clone())
                .or_default()
                .insert(name.name.clone());
            match some {
                Some(addresses) => touched.endpoints(service, addresses),
                None => _ = touched.services.insert(service),
            }
        }
        if let Some(left) = old.as_ref().and_then(|old| old.object.service_name())
            && Some(&left) != service.as_ref()
        {
            self.unindex(&left, &name.name);
            touched.services.insert(left);
        }
        let of_old = |place: usize| old.as_ref().and_then(|old| *old.slots.get(place)?);
        let mut slots = Vec::with_capacity(object.endpoints.len());
        for (endpoint, kept) in object.endpoints.iter().zip(&differences.kept) {
            let pod = endpoint.pod.as_ref().filter(|pod| !pod.uid.is_empty());
            slots.push(match kept {
                Some(place) => of_old(*place),
                None => pod.map(|pod| {
                    self.pods
                        .enter(&pod.uid, &name.namespace, &pod.name, received)
                }),
            });
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
        self.slices.insert(
            name,
            Slice {
                object,
                slots,
                terminating_since,
                warnings,
            },
        );
    }

    fn remove_slice(&mut self, name: &ObjectName, received: Instant, touched: &mut Touched) {
        let Some(old) = self.slices.remove(name) else {
            return;
        };
        self.release_pods(name, old.object.endpoints.iter(), received);
        if let Some(service) = old.object.service_name() {
            self.unindex(&service, &name.name);
            touched.services.insert(service);
        }
    }

    fn unindex(&mut self, service: &ObjectName, slice: &str) {
        if let Some(names) = self.by_service.get_mut(service) {
            names.remove(slice);
            if names.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    fn name_pods<'a>(
        &mut self,
        slice: &ObjectName,
        endpoints: impl Iterator<Item = &'a SliceEndpoint>,
    ) {
        for pod in endpoints.filter_map(|e| e.pod.as_ref()) {
            let naming = self
                .naming
                .entry(PodKey::of(pod, &slice.namespace))
                .or_default();
            match naming.get_mut(slice) {
                Some(count) => *count += 1,
                None => _ = naming.insert(slice.clone(), 1),
            }
        }
    }

    fn release_pods<'a>(
        &mut self,
        slice: &ObjectName,
        endpoints: impl Iterator<Item = &'a SliceEndpoint>,
        received: Instant,
    ) {
        for pod in endpoints.filter_map(|e| e.pod.as_ref()) {
            let key = PodKey::of(pod, &slice.namespace);
            let Some(naming) = self.naming.get_mut(&key) else {
                continue;
            };
            if let Some(count) = naming.get_mut(slice) {
                *count -= 1;
                if *count == 0 {
                    naming.remove(slice);
                }
            }
            if naming.is_empty() {
                self.naming.remove(&key);
                let uid = match &key {
                    PodKey::Uid(uid) => Some(uid.as_str()),
                    PodKey::Name(name) => uid_of(&self.uids, name),
                };
                if let Some(pod) = uid.and_then(|uid| self.pods.get_mut(uid)) {
                    pod.released = received;
                }
            }
        }
    }

    fn slice_warnings(&self, slice: &SliceObject) -> Vec<String> {
        let name = &slice.name;
        if slice.fqdn {
            return vec![format!(
                "EndpointSlice {name}: addressType FQDN is refused, list the IP addresses instead"
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

    /// Why an address can be no endpoint, as the API's own validation has it (`ValidateNonSpecialIP`), save that
    /// `files` may name loopback ones.
    pub(super) fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        match address {
            _ if link_local => Some("link-local"),
            _ if address.is_unspecified() => Some("unspecified"),
            _ if address.is_multicast() => Some("multicast"),
            _ if self.api_server && address.is_loopback() => Some("loopback"),
            _ => None,
        }
    }
}

/// Pods.
impl World {
    fn apply_pod(&mut self, object: PodObject, received: Instant, touched: &mut Touched) {
        let name = &object.name;
        let uid = if object.uid.is_empty() {
            self.incarnation(&object)
        } else {
            object.uid.clone()
        };
        let latest = uid_of(&self.uids, name).map(str::to_owned);
        if self.pods.get(&uid).is_some_and(|pod| pod.gone) {
            // A UID ends once. Shown again it is an echo, or a manifest put back, which the user must hear of.
            if latest.as_deref() == Some(&uid) && self.returned.insert(uid.clone()) {
                self.touch_services_of(&uid, touched);
            }
            return;
        }
        if latest.as_deref() != Some(&uid) {
            if let Some(old) = latest {
                self.end_pod(&old, received, touched);
            }
            self.uids
                .entry(name.namespace.clone())
                .or_default()
                .insert(name.name.clone(), uid.clone());
            touched
                .services
                .extend(self.services_naming(&PodKey::Name(name.clone())));
        }
        let slot = self.pods.enter(&uid, &name.namespace, &name.name, received);
        let Some(pod) = self.pods.at_mut(slot) else {
            return;
        };
        let before = pod.view();
        pod.name = name.clone();
        pod.held = true;
        pod.template_hash = object.template_hash.map(Arc::from);
        pod.grace = object.spec_grace.or(pod.grace);
        let returned = pod.deletion_seen && object.deletion.is_none();
        if let Some(deletion) = object.deletion {
            pod.deletion_seen = true;
            pod.asked = pod
                .asked
                .or(deletion.age.and_then(|age| received.checked_sub(age)));
            pod.trigger.get_or_insert(Trigger::PodDeleted);
            // The deletion may have asked for another grace than the spec.
            pod.grace = deletion.grace.or(pod.grace);
            let left = deletion.remaining.or(pod.grace);
            pod.shorten(received, left);
        }
        if let Some(since) = pod.slice_terminating {
            pod.shorten(since, pod.grace);
        }
        let changed = pod.view() != before;
        if self.mark_returned(&uid, returned) {
            self.touch_services_of(&uid, touched);
        } else if changed {
            self.touch_pod(&uid, touched);
        }
    }

    fn remove_pod(&mut self, name: &ObjectName, received: Instant, touched: &mut Touched) {
        if let Some(uid) = uid_of(&self.uids, name).map(str::to_owned) {
            self.end_pod(&uid, received, touched);
        }
    }

    fn end_pod(&mut self, uid: &str, received: Instant, touched: &mut Touched) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        if pod.is_live() {
            pod.gone = true;
            pod.released = received;
            pod.trigger.get_or_insert(Trigger::Removed);
            pod.shorten(received, pod.grace);
        } else if !self.returned.contains(uid) {
            return;
        }
        if self.mark_returned(uid, false) {
            self.touch_services_of(uid, touched);
        }
        self.touch_pod(uid, touched);
    }

    /// Answers whether that is news.
    fn mark_returned(&mut self, uid: &str, returned: bool) -> bool {
        if returned {
            self.returned.insert(uid.to_owned())
        } else {
            self.returned.remove(uid)
        }
    }

    fn slice_terminates(
        &mut self,
        uid: &str,
        slot: usize,
        received: Instant,
        touched: &mut Touched,
    ) {
        let Some(pod) = self
            .pods
            .at_mut(slot)
            .filter(|pod| pod.slice_terminating.is_none())
        else {
            return;
        };
        pod.slice_terminating = Some(received);
        pod.trigger.get_or_insert(Trigger::SliceTerminating);
        pod.shorten(received, pod.grace);
        self.touch_pod(uid, touched);
    }

    /// The UID for a Pod manifest without one: the pod that bears the name, unless that one has ended or the manifest
    /// takes its deletion back, which makes it another pod.
    fn incarnation(&self, object: &PodObject) -> String {
        let latest = uid_of(&self.uids, &object.name)
            .filter(|uid| uid.starts_with(&format!("{}#", object.name)));
        let same = |pod: &Pod| !pod.gone && (!pod.deletion_seen || object.deletion.is_some());
        match latest {
            Some(latest) if self.pods.get(latest).is_some_and(same) => latest.to_owned(),
            _ => (1u64..)
                .map(|n| format!("{}#{n}", object.name))
                .find(|uid| !self.pods.slots.contains_key(uid))
                .unwrap_or_default(),
        }
    }

    fn touch_pod(&self, uid: &str, touched: &mut Touched) {
        touched.pods.insert(uid.to_owned());
        for key in self.keys_of(uid) {
            for slice in self
                .naming
                .get(&key)
                .into_iter()
                .flatten()
                .filter_map(|(name, _)| self.slices.get(name))
            {
                let of_it = |e: &&SliceEndpoint| e.pod.as_ref().is_some_and(|pod| key.names(pod));
                if let Some(service) = slice.object.service_name() {
                    touched.endpoints(
                        service,
                        slice
                            .object
                            .endpoints
                            .iter()
                            .filter(of_it)
                            .map(|e| e.address),
                    );
                }
            }
        }
    }

    /// What is said of the services themselves has changed with this pod.
    fn touch_services_of(&self, uid: &str, touched: &mut Touched) {
        touched.pods.insert(uid.to_owned());
        for key in self.keys_of(uid) {
            touched.services.extend(self.services_naming(&key));
        }
    }

    /// How slices may name the pod with this UID.
    fn keys_of(&self, uid: &str) -> impl Iterator<Item = PodKey> + use<> {
        let latest = self
            .pods
            .get(uid)
            .filter(|pod| uid_of(&self.uids, &pod.name) == Some(uid));
        let by_name = latest.map(|pod| PodKey::Name(pod.name.clone()));
        std::iter::once(PodKey::Uid(uid.to_owned())).chain(by_name)
    }

    fn services_naming<'a>(&'a self, key: &PodKey) -> impl Iterator<Item = ObjectName> + use<'a> {
        let slices = self.naming.get(key).into_iter().flatten();
        slices.filter_map(|(name, _)| self.slices.get(name)?.object.service_name())
    }

    pub(super) fn fate_of(&self, pod: Option<&Pod>) -> Fate {
        match pod {
            Some(pod) if pod.gone => Fate::Deleted {
                deadline: pod.deadline,
            },
            Some(Pod {
                held,
                trigger: Some(trigger),
                deadline,
                ..
            }) if *held || self.api_server => Fate::Terminating {
                deadline: *deadline,
                trigger: *trigger,
            },
            Some(pod) if pod.held => Fate::Alive,
            _ if self.api_server => Fate::Alive,
            _ => Fate::NoPod,
        }
    }

    pub(super) fn returned_pods(&self, service: &ObjectName) -> impl Iterator<Item = String> {
        let named = move |(uid, pod): &(&String, &Pod)| {
            self.services_naming(&PodKey::Uid(uid.to_string()))
                .any(|s| s == *service)
                || self
                    .services_naming(&PodKey::Name(pod.name.clone()))
                    .any(|s| s == *service)
        };
        self.returned.iter().filter_map(|uid| Some((uid, self.pods.get(uid)?))).filter(named).map(|(uid, pod)| {
            format!("Pod {} is shown again after its deletion: UID {uid} has ended, give it another", pod.name)
        })
    }
}

/// The merge of one port.
impl Touched {
    fn endpoints(&mut self, service: ObjectName, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.entry(service).or_default().extend(addresses);
    }
}

fn uid_of<'a>(
    uids: &'a HashMap<String, HashMap<String, String>>,
    name: &ObjectName,
) -> Option<&'a str> {
    Some(uids.get(&name.namespace)?.get(&name.name)?.as_str())
}

/// How long a UID is remembered after the last slice that named it, where the store does not hold it.
pub(super) const MEMORY: Duration = Duration::from_secs(600);

//! The pure merge: Services, EndpointSlices and Pods in, the endpoints of each service port out.
//!
//! Every object is kept as the source gave it and the merge is computed from all of them, so that its result does not
//! depend on the order in which the events of different objects came (the property test at the end). Two things are
//! one-way: a pod UID that terminates or ends never returns, and a drain deadline only moves forward in time's
//! direction to us. No clock is read here and nothing is published: [`crate::routing`] does that.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Change, Kind, Object, ObjectName, PodObject, PodRef, ServiceObject, ServicePortObject, SliceEndpoint, SliceObject,
};
use crate::endpoint::Conditions;

/// All objects that the source has told of, and the pods that are known to have ended. The default is the world of
/// a `files` source.
#[derive(Debug, Default)]
pub struct World {
    /// The source is an API server: loopback endpoints are refused, and every pod is watched.
    api_server: bool,
    services: HashMap<ObjectName, ServiceObject>,
    slices: HashMap<ObjectName, Slice>,
    /// Service to the names of its slices.
    by_service: HashMap<ObjectName, BTreeSet<String>>,
    /// Pod to the slices that name it, with the number of endpoints that do.
    naming: HashMap<PodKey, BTreeMap<ObjectName, usize>>,
    pods: Pods,
    /// UIDs shown alive after their deletion: manifests put back unchanged.
    returned: BTreeSet<String>,
    /// Namespace and pod name to the UID that bears it, or bore it last.
    uids: HashMap<String, HashMap<String, String>>,
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

/// One Service, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedService {
    pub object: ServiceObject,
    pub ports: Vec<MergedPort>,
    /// Human-readable, stable order: FQDN slices refused, link-local addresses dropped, …
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MergedPort {
    pub port: ServicePortObject,
    /// Ordered by (address, pod UID); no (address, pod) twice.
    pub endpoints: Vec<MergedEndpoint>,
    /// Several slices claim an address, or there are two families: one endpoint's change may show at another's address.
    pub entangled: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MergedEndpoint {
    pub address: SocketAddr,
    pub pod: Option<Arc<PodRef>>,
    pub template_hash: Option<Arc<str>>,
    /// `terminating` is the slice's own or the pod's (deletionTimestamp, or its UID is known to have ended).
    pub conditions: Conditions,
    pub fate: Fate,
}

/// What is known of a pod's end.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// No pod is known: `files` without Pod manifests, or an endpoint without a Pod as targetRef.
    NoPod,
    /// Alive as far as is known.
    Alive,
    /// Going away. The deadline is the pod's own (event's arrival + grace + 3 s; only ever shortened); `None` while its
    /// grace is not known.
    Terminating { deadline: Option<Instant>, trigger: Trigger },
    /// The object is gone.
    Deleted { deadline: Option<Instant> },
}

impl Fate {
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::NoPod | Self::Alive => None,
            Self::Terminating { deadline, .. } | Self::Deleted { deadline } => *deadline,
        }
    }
}

/// Which signal came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    PodDeleted,
    SliceTerminating,
    Removed,
}

impl Trigger {
    pub const ALL: [Self; 3] = [Self::PodDeleted, Self::SliceTerminating, Self::Removed];

    /// Metric label, log field and the admin API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodDeleted => "podDeleted",
            Self::SliceTerminating => "sliceTerminating",
            Self::Removed => "removed",
        }
    }
}

/// A slice with what its arrival told.
#[derive(Debug)]
struct Slice {
    /// Its endpoints by address.
    object: SliceObject,
    /// Of each endpoint, its pod's slot in [`Pods`]; none where the slice gives no UID. Valid as long as this slice is.
    slots: Vec<Option<usize>>,
    /// When endpoints whose pod has no UID were first shown terminating.
    terminating_since: HashMap<IpAddr, Instant>,
    warnings: Vec<String>,
}

/// Every UID that is held, named or remembered. A merge reaches a pod by its slot: looking up 10,000 UIDs by their text
/// is twice the work of all the rest.
#[derive(Debug, Default)]
struct Pods {
    slots: HashMap<String, usize>,
    list: Vec<Option<Pod>>,
    free: Vec<usize>,
}

/// One pod UID: the store's entry and its one-way memory.
#[derive(Debug)]
struct Pod {
    name: ObjectName,
    /// The store holds, or once held, its object.
    held: bool,
    /// The object went after having been held.
    gone: bool,
    /// A slice called it terminating, first at this time.
    slice_terminating: Option<Instant>,
    /// The pod's own deletionTimestamp has been seen.
    deletion_seen: bool,
    /// When the deletion was asked for, by the source's clock.
    asked: Option<Instant>,
    trigger: Option<Trigger>,
    deadline: Option<Instant>,
    grace: Option<Duration>,
    template_hash: Option<Arc<str>>,
    /// When a slice or the store last let go of it.
    released: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum PodKey {
    Uid(String),
    Name(ObjectName),
}

impl World {
    /// The world of an API server: loopback endpoints are refused, and a pod that is not (yet) in the store is alive,
    /// since the pod watch will tell.
    pub fn for_api_server() -> Self {
        Self { api_server: true, ..Self::default() }
    }

    /// Takes one change in. `received` is when the event arrived, on the monotonic clock.
    pub fn apply(&mut self, change: Change, received: Instant, touched: &mut Touched) {
        match change {
            Change::Apply(Object::Service(service)) => self.apply_service(service, touched),
            Change::Apply(Object::EndpointSlice(slice)) => self.apply_slice(slice, received, touched),
            Change::Apply(Object::Pod(pod)) => self.apply_pod(pod, received, touched),
            Change::Remove(Kind::Service, name) => self.remove_service(name, touched),
            Change::Remove(Kind::EndpointSlice, name) => self.remove_slice(&name, received, touched),
            Change::Remove(Kind::Pod, name) => self.remove_pod(&name, received, touched),
            Change::Replace { kind, namespace, objects } => {
                let listed: HashSet<&ObjectName> = objects.iter().map(Object::name).collect();
                let in_scope = |name: &ObjectName| namespace.as_ref().is_none_or(|it| *it == name.namespace);
                let missing: Vec<ObjectName> =
                    self.names(kind).into_iter().filter(|name| in_scope(name) && !listed.contains(name)).collect();
                for name in missing {
                    self.apply(Change::Remove(kind, name), received, touched);
                }
                for object in objects {
                    self.apply(Change::Apply(object), received, touched);
                }
            }
        }
    }

    /// The Service as its slices and pods make it; `None` when there is no such Service. An ExternalName one has no
    /// ports. Costs O(its endpoints).
    pub fn merge(&self, service: &ObjectName) -> Option<MergedService> {
        let object = self.services.get(service)?.clone();
        if object.external_name {
            let warnings = vec![format!("Service {service} is of type ExternalName: refused, it has no endpoints")];
            return Some(MergedService { object, ports: Vec::new(), warnings });
        }
        let slices: Vec<&Slice> = self.slices_of(service).collect();
        let ports = object.ports.iter().map(|port| self.merge_port(&slices, port, object.ipv6_first)).collect();
        let mut warnings: Vec<String> = slices.iter().flat_map(|s| s.warnings.iter().cloned()).collect();
        warnings.extend(self.returned_pods(service));
        Some(MergedService { object, ports, warnings })
    }

    /// The endpoints of a port at these addresses only, as [`World::merge`] has them; `None` if they are entangled. Each of
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
            let places = addresses.iter().flat_map(|address| slice.places_of(*address));
            endpoints.extend(self.endpoints_of(slice, port, places));
        }
        endpoints.sort_by_key(|e| e.address);
        let doubles = endpoints.windows(2).any(|pair| matches!(pair, [a, b] if a.address.ip() == b.address.ip()));
        (!doubles && families != [true; 2]).then_some(endpoints)
    }

    /// Every Service that exists.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// What is known of the pod with this UID: once it has been forgotten, no pod is known.
    pub fn fate(&self, uid: &str) -> Fate {
        self.pods.get(uid).map_or(Fate::NoPod, |pod| self.fate_of(Some(pod)))
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
        let Self { pods, uids, naming, returned, .. } = self;
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
            Kind::Pod => {
                self.pods.list.iter().flatten().filter(|pod| pod.is_live()).map(|pod| pod.name.clone()).collect()
            }
        }
    }

    fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
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
        if self.slices.get(&name).is_some_and(|old| old.object == object) {
            return;
        }
        let old = self.slices.remove(&name);
        let before = old.as_ref().map_or(&[][..], |old| &old.object.endpoints);
        let differences = Differences::between(before, &object.endpoints);
        // The new endpoints are entered before the old ones go, so that a pod named by both is never without a slice.
        self.name_pods(&name, differences.come(&object.endpoints));
        self.release_pods(&name, differences.gone(before), received);
        let warnings = self.slice_warnings(&object);
        let some = old.as_ref().filter(|old| old.warnings == warnings && self.returned.is_empty());
        let some = some.filter(|old| old.object.frame() == object.frame());
        let some = some.and_then(|_| differences.addresses(before, &object.endpoints));
        let service = object.service_name();
        if let Some(service) = service.clone() {
            self.by_service.entry(service.clone()).or_default().insert(name.name.clone());
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
                None => pod.map(|pod| self.pods.enter(&pod.uid, &name.namespace, &pod.name, received)),
            });
        }
        let mut terminating_since = HashMap::new();
        for (endpoint, slot) in object.endpoints.iter().zip(&slots).filter(|(e, _)| e.terminating) {
            match (&endpoint.pod, slot) {
                (Some(pod), Some(slot)) => self.slice_terminates(&pod.uid, *slot, received, touched),
                (Some(_), None) => {
                    let since = old.as_ref().and_then(|old| old.terminating_since.get(&endpoint.address));
                    terminating_since.insert(endpoint.address, since.copied().unwrap_or(received));
                }
                (None, _) => {}
            }
        }
        self.slices.insert(name, Slice { object, slots, terminating_since, warnings });
    }

    fn remove_slice(&mut self, name: &ObjectName, received: Instant, touched: &mut Touched) {
        let Some(old) = self.slices.remove(name) else { return };
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

    fn name_pods<'a>(&mut self, slice: &ObjectName, endpoints: impl Iterator<Item = &'a SliceEndpoint>) {
        for pod in endpoints.filter_map(|e| e.pod.as_ref()) {
            let naming = self.naming.entry(PodKey::of(pod, &slice.namespace)).or_default();
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
            let Some(naming) = self.naming.get_mut(&key) else { continue };
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
            return vec![format!("EndpointSlice {name}: addressType FQDN is refused, list the IP addresses instead")];
        }
        let mut refused: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for endpoint in &slice.endpoints {
            if let Some(why) = self.refusal(endpoint.address) {
                refused.entry(why).or_default().insert(endpoint.address);
            }
        }
        let list = |all: &BTreeSet<IpAddr>| all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        refused
            .iter()
            .map(|(why, addresses)| format!("EndpointSlice {name}: {why} addresses are dropped: {}", list(addresses)))
            .collect()
    }

    /// Why an address can be no endpoint, as the API's own validation has it (`ValidateNonSpecialIP`), save that
    /// `files` may name loopback ones.
    fn refusal(&self, address: IpAddr) -> Option<&'static str> {
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
        let uid = if object.uid.is_empty() { self.incarnation(&object) } else { object.uid.clone() };
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
            self.uids.entry(name.namespace.clone()).or_default().insert(name.name.clone(), uid.clone());
            touched.services.extend(self.services_naming(&PodKey::Name(name.clone())));
        }
        let slot = self.pods.enter(&uid, &name.namespace, &name.name, received);
        let Some(pod) = self.pods.at_mut(slot) else { return };
        let before = pod.view();
        pod.name = name.clone();
        pod.held = true;
        pod.template_hash = object.template_hash.map(Arc::from);
        pod.grace = object.spec_grace.or(pod.grace);
        let returned = pod.deletion_seen && object.deletion.is_none();
        if let Some(deletion) = object.deletion {
            pod.deletion_seen = true;
            pod.asked = pod.asked.or(deletion.age.and_then(|age| received.checked_sub(age)));
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
        let Some(pod) = self.pods.get_mut(uid) else { return };
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
        if returned { self.returned.insert(uid.to_owned()) } else { self.returned.remove(uid) }
    }

    fn slice_terminates(&mut self, uid: &str, slot: usize, received: Instant, touched: &mut Touched) {
        let Some(pod) = self.pods.at_mut(slot).filter(|pod| pod.slice_terminating.is_none()) else { return };
        pod.slice_terminating = Some(received);
        pod.trigger.get_or_insert(Trigger::SliceTerminating);
        pod.shorten(received, pod.grace);
        self.touch_pod(uid, touched);
    }

    /// The UID for a Pod manifest without one: the pod that bears the name, unless that one has ended or the manifest
    /// takes its deletion back, which makes it another pod.
    fn incarnation(&self, object: &PodObject) -> String {
        let latest = uid_of(&self.uids, &object.name).filter(|uid| uid.starts_with(&format!("{}#", object.name)));
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
            for slice in self.naming.get(&key).into_iter().flatten().filter_map(|(name, _)| self.slices.get(name)) {
                let of_it = |e: &&SliceEndpoint| e.pod.as_ref().is_some_and(|pod| key.names(pod));
                if let Some(service) = slice.object.service_name() {
                    touched.endpoints(service, slice.object.endpoints.iter().filter(of_it).map(|e| e.address));
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
        let latest = self.pods.get(uid).filter(|pod| uid_of(&self.uids, &pod.name) == Some(uid));
        let by_name = latest.map(|pod| PodKey::Name(pod.name.clone()));
        std::iter::once(PodKey::Uid(uid.to_owned())).chain(by_name)
    }

    fn services_naming<'a>(&'a self, key: &PodKey) -> impl Iterator<Item = ObjectName> + use<'a> {
        let slices = self.naming.get(key).into_iter().flatten();
        slices.filter_map(|(name, _)| self.slices.get(name)?.object.service_name())
    }

    fn fate_of(&self, pod: Option<&Pod>) -> Fate {
        match pod {
            Some(pod) if pod.gone => Fate::Deleted { deadline: pod.deadline },
            Some(Pod { held, trigger: Some(trigger), deadline, .. }) if *held || self.api_server => {
                Fate::Terminating { deadline: *deadline, trigger: *trigger }
            }
            Some(pod) if pod.held => Fate::Alive,
            _ if self.api_server => Fate::Alive,
            _ => Fate::NoPod,
        }
    }

    fn returned_pods(&self, service: &ObjectName) -> impl Iterator<Item = String> {
        let named = move |(uid, pod): &(&String, &Pod)| {
            self.services_naming(&PodKey::Uid(uid.to_string())).any(|s| s == *service)
                || self.services_naming(&PodKey::Name(pod.name.clone())).any(|s| s == *service)
        };
        self.returned.iter().filter_map(|uid| Some((uid, self.pods.get(uid)?))).filter(named).map(|(uid, pod)| {
            format!("Pod {} is shown again after its deletion: UID {uid} has ended, give it another", pod.name)
        })
    }
}

/// The merge of one port.
impl World {
    fn merge_port(&self, slices: &[&Slice], port: &ServicePortObject, ipv6_first: bool) -> MergedPort {
        let mut endpoints = Vec::with_capacity(slices.iter().map(|s| s.object.endpoints.len()).sum());
        let mut newest_first: Vec<&Slice> = slices.iter().copied().filter(|s| !s.object.fqdn).collect();
        newest_first.sort_unstable_by_key(|s| Reverse(s.object.newness()));
        for slice in newest_first {
            endpoints.extend(self.endpoints_of(slice, port, 0..slice.object.endpoints.len()));
        }
        // Stable, so the newest stays first among those of one address. The keys are sorted, each endpoint moves once.
        match endpoints.iter().all(|e| e.address.is_ipv4()) {
            true => endpoints.sort_by_cached_key(|e| v4_key(e.address)),
            false => endpoints.sort_by_cached_key(|e| e.address),
        }
        let mut entangled = endpoints.windows(2).any(|pair| matches!(pair, [a, b] if a.address.ip() == b.address.ip()));
        if entangled {
            endpoints = endpoints.chunk_by(|a, b| a.address == b.address).filter_map(settle).collect();
        }
        if slices.iter().any(|s| s.object.ipv6) && slices.iter().any(|s| !s.object.ipv6) {
            entangled = true;
            let is_first = |e: &MergedEndpoint| e.address.is_ipv6() == ipv6_first;
            let counted: HashSet<Arc<PodRef>> =
                endpoints.iter().filter(|e| is_first(e)).filter_map(|e| e.pod.clone()).collect();
            endpoints.retain(|e| is_first(e) || e.pod.as_ref().is_none_or(|pod| !counted.contains(pod)));
        }
        MergedPort { port: port.clone(), endpoints, entangled }
    }

    /// Those of a slice's endpoints that are at these places, for a port.
    fn endpoints_of(
        &self,
        slice: &Slice,
        port: &ServicePortObject,
        places: impl Iterator<Item = usize>,
    ) -> Vec<MergedEndpoint> {
        let name = port.name.as_deref().unwrap_or("");
        let number = slice.object.ports.iter().find(|(own, _)| own == name).filter(|_| !slice.object.fqdn);
        let Some((_, number)) = number else { return Vec::new() };
        let endpoints = places.filter_map(|place| {
            let (endpoint, slot) = (slice.object.endpoints.get(place)?, slice.slots.get(place)?);
            self.refusal(endpoint.address).is_none().then(|| self.merge_endpoint(slice, endpoint, *slot, *number))
        });
        endpoints.collect()
    }

    fn merge_endpoint(&self, slice: &Slice, e: &SliceEndpoint, slot: Option<usize>, port: u16) -> MergedEndpoint {
        let (uid, known) = match (&e.pod, slot) {
            (Some(pod), Some(slot)) => (pod.uid.as_str(), self.pods.at(slot)),
            (Some(pod), None) => {
                let uid = self.uids.get(&slice.object.name.namespace).and_then(|names| names.get(&pod.name));
                (uid.map_or("", String::as_str), uid.and_then(|uid| self.pods.get(uid)))
            }
            (None, _) => ("", None),
        };
        let mut fate = if e.pod.is_some() { self.fate_of(known) } else { Fate::NoPod };
        // A pod without a UID in the slice has no one-way memory there: it terminates while the slice says so.
        if fate == Fate::Alive && e.terminating {
            let since = slice.terminating_since.get(&e.address).copied();
            let grace = known.and_then(|pod| pod.grace);
            let deadline = since.zip(grace).and_then(|(since, grace)| since.checked_add(grace)?.checked_add(MARGIN));
            fate = Fate::Terminating { deadline, trigger: Trigger::SliceTerminating };
        }
        let pod = e.pod.as_ref().map(|pod| match slot {
            Some(_) => pod.clone(),
            None => Arc::new(PodRef { name: pod.name.clone(), uid: uid.to_owned() }),
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

impl Touched {
    fn endpoints(&mut self, service: ObjectName, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.entry(service).or_default().extend(addresses);
    }
}

/// How a slice's endpoints differ from those it had before, both by address.
struct Differences {
    /// Of each endpoint that is there now, its place before, if it was there as it is.
    kept: Vec<Option<usize>>,
    /// The places of those that are there no longer, or not as they were.
    gone: Vec<usize>,
}

impl Differences {
    fn between(before: &[SliceEndpoint], now: &[SliceEndpoint]) -> Self {
        let (mut kept, mut gone) = (Vec::with_capacity(now.len()), Vec::new());
        let mut old = before.iter().enumerate().peekable();
        for endpoint in now {
            while let Some((place, _)) = old.next_if(|(_, old)| old.address < endpoint.address) {
                gone.push(place);
            }
            kept.push(old.next_if(|(_, old)| *old == endpoint).map(|(place, _)| place));
        }
        gone.extend(old.map(|(place, _)| place));
        Self { kept, gone }
    }

    fn come<'a>(&self, now: &'a [SliceEndpoint]) -> impl Iterator<Item = &'a SliceEndpoint> {
        now.iter().zip(&self.kept).filter(|(_, kept)| kept.is_none()).map(|(endpoint, _)| endpoint)
    }

    fn gone<'a>(&self, before: &'a [SliceEndpoint]) -> impl Iterator<Item = &'a SliceEndpoint> {
        self.gone.iter().filter_map(|place| before.get(*place))
    }

    /// Where they differ; `None` if that is at very many.
    fn addresses(&self, before: &[SliceEndpoint], now: &[SliceEndpoint]) -> Option<BTreeSet<IpAddr>> {
        let id = |pod: &'_ Arc<PodRef>| if pod.uid.is_empty() { pod.name.clone() } else { pod.uid.clone() };
        let (mut changed, mut pods) = (BTreeSet::new(), HashSet::new());
        for endpoint in self.gone(before).chain(self.come(now)) {
            changed.insert(endpoint.address);
            pods.extend(endpoint.pod.as_ref().map(id));
        }
        // A pod's end shows wherever it is named.
        let named = |pod: &Arc<PodRef>| pods.contains(if pod.uid.is_empty() { &pod.name } else { &pod.uid });
        changed.extend(now.iter().filter(|e| e.pod.as_ref().is_some_and(named)).map(|e| e.address));
        (changed.len() <= SOME).then_some(changed)
    }
}

/// The one of several endpoints at one address, newest first, that is in force: of a pod's own doubles the newest;
/// between pods (the address has passed on) the ready one, then the one that is not going away, then the newest.
fn settle(doubles: &[MergedEndpoint]) -> Option<MergedEndpoint> {
    let is_newest_of_its_pod =
        |(i, e): &(usize, &MergedEndpoint)| doubles.iter().take(*i).all(|newer| newer.pod != e.pod);
    let claims = doubles.iter().enumerate().filter(is_newest_of_its_pod);
    let rank = |c: Conditions| (c.ready && !c.terminating, !c.terminating);
    claims.max_by_key(|(i, e)| (rank(e.conditions), Reverse(*i))).map(|(_, e)| e.clone())
}

/// Orders IPv4 addresses as [`SocketAddr`] does, faster.
fn v4_key(address: SocketAddr) -> u64 {
    let SocketAddr::V4(v4) = address else { return u64::MAX };
    u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port())
}

impl Pods {
    fn get(&self, uid: &str) -> Option<&Pod> {
        self.at(*self.slots.get(uid)?)
    }

    fn get_mut(&mut self, uid: &str) -> Option<&mut Pod> {
        self.at_mut(*self.slots.get(uid)?)
    }

    fn at(&self, slot: usize) -> Option<&Pod> {
        self.list.get(slot)?.as_ref()
    }

    fn at_mut(&mut self, slot: usize) -> Option<&mut Pod> {
        self.list.get_mut(slot)?.as_mut()
    }

    /// The slot of this UID, made where there is none.
    fn enter(&mut self, uid: &str, namespace: &str, name: &str, now: Instant) -> usize {
        if let Some(slot) = self.slots.get(uid) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or(self.list.len());
        let pod = Some(Pod::new(ObjectName::new(namespace, name), now));
        match self.list.get_mut(slot) {
            Some(place) => *place = pod,
            None => self.list.push(pod),
        }
        self.slots.insert(uid.to_owned(), slot);
        slot
    }

    fn retain(&mut self, mut keep: impl FnMut(&str, &Pod) -> bool) {
        self.slots.retain(|uid, slot| {
            let Some(place) = self.list.get_mut(*slot) else { return false };
            if place.as_ref().is_some_and(|pod| keep(uid, pod)) {
                return true;
            }
            *place = None;
            self.free.push(*slot);
            false
        });
    }
}

impl Pod {
    fn new(name: ObjectName, now: Instant) -> Self {
        Self {
            name,
            held: false,
            gone: false,
            slice_terminating: None,
            deletion_seen: false,
            asked: None,
            trigger: None,
            deadline: None,
            grace: None,
            template_hash: None,
            released: now,
        }
    }

    fn has_ended(&self) -> bool {
        self.gone || self.trigger.is_some()
    }

    fn is_live(&self) -> bool {
        self.held && !self.gone
    }

    /// Sets the deadline to `left` after `from` and the margin, or shortens it to that.
    fn shorten(&mut self, from: Instant, left: Option<Duration>) {
        let Some(to) = left.and_then(|left| from.checked_add(left)?.checked_add(MARGIN)) else { return };
        if self.deadline.is_none_or(|deadline| to < deadline) {
            self.deadline = Some(to);
        }
    }

    /// What a merge or a fate shows of it.
    fn view(&self) -> impl PartialEq + use<> {
        (self.held, self.trigger, self.deadline, self.grace, self.template_hash.clone())
    }
}

impl PodKey {
    fn of(pod: &PodRef, namespace: &str) -> Self {
        match pod.uid.as_str() {
            "" => Self::Name(ObjectName::new(namespace, &pod.name)),
            uid => Self::Uid(uid.to_owned()),
        }
    }

    /// Whether a slice that names a pod so may mean this one (in its namespace).
    fn names(&self, pod: &PodRef) -> bool {
        match self {
            Self::Uid(uid) => pod.uid == *uid,
            Self::Name(name) => pod.uid.is_empty() && pod.name == name.name,
        }
    }
}

impl Slice {
    /// The places of the endpoints at this address.
    fn places_of(&self, address: IpAddr) -> impl Iterator<Item = usize> {
        let endpoints = &self.object.endpoints;
        let from = endpoints.partition_point(|e| e.address < address);
        from..from + endpoints.iter().skip(from).take_while(|e| e.address == address).count()
    }
}

impl SliceObject {
    /// All but its endpoints, as far as it matters to them.
    fn frame(&self) -> impl PartialEq {
        (self.service.as_ref(), self.ipv6, self.fqdn, self.created, &self.ports)
    }

    fn service_name(&self) -> Option<ObjectName> {
        Some(ObjectName::new(&self.name.namespace, self.service.as_ref()?))
    }

    fn newness(&self) -> (i64, i64, &str) {
        (self.created, self.generation, &self.name.name)
    }
}

fn uid_of<'a>(uids: &'a HashMap<String, HashMap<String, String>>, name: &ObjectName) -> Option<&'a str> {
    Some(uids.get(&name.namespace)?.get(&name.name)?.as_str())
}

/// After a pod's grace has passed, what is left of its connections gets this long.
const MARGIN: Duration = Duration::from_secs(3);

/// More changed addresses than this are not looked at one by one.
const SOME: usize = 128;

/// How long a UID is remembered after the last slice that named it, where the store does not hold it.
const MEMORY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::Deletion;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(name: &str) -> ObjectName {
        ObjectName::new("web", name)
    }

    fn service(ports: &[(Option<&str>, u16)]) -> ServiceObject {
        let port = |&(name, port): &(Option<&str>, u16)| ServicePortObject {
            name: name.map(str::to_owned),
            port,
            node_port: None,
            target_port: None,
            app_protocol: None,
        };
        ServiceObject {
            name: name("app"),
            uid: None,
            claimed: true,
            external_name: false,
            ports: ports.iter().map(port).collect(),
            ipv6_first: false,
            annotations: BTreeMap::new(),
            unserved: Vec::new(),
        }
    }

    fn slice(slice: &str, endpoints: Vec<SliceEndpoint>) -> SliceObject {
        SliceObject {
            name: name(slice),
            service: Some("app".into()),
            ipv6: endpoints.first().is_some_and(|e| e.address.is_ipv6()),
            fqdn: false,
            created: 0,
            generation: 0,
            ports: vec![(String::new(), 8080)],
            endpoints,
        }
    }

    /// A ready endpoint; `pod` is `name`, `name/uid` or empty for none.
    fn endpoint(address: &str, pod: &str) -> SliceEndpoint {
        let (name, uid) = pod.split_once('/').unwrap_or((pod, ""));
        SliceEndpoint {
            address: address.parse().unwrap(),
            pod: (!name.is_empty()).then(|| Arc::new(PodRef { name: name.into(), uid: uid.into() })),
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    fn terminating(address: &str, pod: &str) -> SliceEndpoint {
        SliceEndpoint { ready: false, terminating: true, ..endpoint(address, pod) }
    }

    fn not_ready(address: &str, pod: &str) -> SliceEndpoint {
        SliceEndpoint { ready: false, serving: false, ..endpoint(address, pod) }
    }

    fn pod(pod: &str, uid: &str) -> PodObject {
        PodObject { name: name(pod), uid: uid.into(), template_hash: None, deletion: None, spec_grace: None }
    }

    fn deleted(of: &str, uid: &str, grace: Option<u64>) -> PodObject {
        let deletion = Deletion { grace: grace.map(Duration::from_secs), remaining: None, age: None };
        PodObject { deletion: Some(deletion), ..pod(of, uid) }
    }

    fn graceful(of: &str, uid: &str, grace: u64) -> PodObject {
        PodObject { spec_grace: Some(Duration::from_secs(grace)), ..pod(of, uid) }
    }

    impl World {
        fn tell(&mut self, object: impl Into<Object>, at: Instant) -> Touched {
            let mut touched = Touched::default();
            self.apply(Change::Apply(object.into()), at, &mut touched);
            touched
        }

        fn remove(&mut self, kind: Kind, of: &str, at: Instant) -> Touched {
            let mut touched = Touched::default();
            self.apply(Change::Remove(kind, name(of)), at, &mut touched);
            touched
        }

        fn endpoints(&self) -> Vec<MergedEndpoint> {
            self.merge(&name("app")).unwrap().ports.remove(0).endpoints
        }

        fn addresses(&self) -> Vec<String> {
            self.endpoints().iter().map(|e| e.address.to_string()).collect()
        }

        fn only(&self) -> MergedEndpoint {
            let mut all = self.endpoints();
            assert_eq!(all.len(), 1, "{all:?}");
            all.remove(0)
        }
    }

    impl From<ServiceObject> for Object {
        fn from(service: ServiceObject) -> Self {
            Self::Service(service)
        }
    }

    impl From<SliceObject> for Object {
        fn from(slice: SliceObject) -> Self {
            Self::EndpointSlice(slice)
        }
    }

    impl From<PodObject> for Object {
        fn from(pod: PodObject) -> Self {
            Self::Pod(pod)
        }
    }

    fn world() -> (World, Instant) {
        let (mut world, now) = (World::default(), Instant::now());
        world.tell(service(&[(None, 80)]), now);
        (world, now)
    }

    #[test]
    fn an_endpoint_that_moves_between_slices_is_never_lost_in_either_order() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        world.tell(slice("b", vec![endpoint("10.0.0.1", "p/1")]), now);
        assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
        world.tell(slice("a", vec![]), now);
        assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
        world.remove(Kind::EndpointSlice, "b", now);
        assert!(world.addresses().is_empty());
    }

    #[test]
    fn a_named_port_is_resolved_in_each_slice() {
        let (mut world, now) = world();
        world.tell(service(&[(Some("http"), 80), (Some("admin"), 81)]), now);
        let ports = |list: &[(&str, u16)]| list.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect::<Vec<_>>();
        let one =
            SliceObject { ports: ports(&[("http", 8080), ("admin", 9)]), ..slice("a", vec![endpoint("10.0.0.1", "")]) };
        let two = SliceObject { ports: ports(&[("http", 8081)]), ..slice("b", vec![endpoint("10.0.0.2", "")]) };
        world.tell(one, now);
        world.tell(two, now);
        let merged = world.merge(&name("app")).unwrap();
        let of = |port: usize| merged.ports[port].endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>();
        assert_eq!(of(0), ["10.0.0.1:8080", "10.0.0.2:8081"]);
        assert_eq!(of(1), ["10.0.0.1:9"]);
    }

    #[test]
    fn one_address_twice_for_one_pod_is_the_newer_slice_s() {
        let (mut world, now) = world();
        let at = |created, generation, e| SliceObject { created, generation, ..slice("z", vec![e]) };
        let newer = |s: SliceObject, n: &str| SliceObject { name: name(n), ..s };
        world.tell(newer(at(2, 1, not_ready("10.0.0.1", "p/1")), "b"), now);
        world.tell(newer(at(1, 9, endpoint("10.0.0.1", "p/1")), "c"), now);
        assert!(!world.only().conditions.ready, "created counts first");
        world.tell(newer(at(2, 2, endpoint("10.0.0.1", "p/1")), "a"), now);
        assert!(world.only().conditions.ready, "then the generation");
        world.tell(newer(at(2, 2, not_ready("10.0.0.1", "p/1")), "d"), now);
        assert!(!world.only().conditions.ready, "then the name");
    }

    #[test]
    fn one_address_of_two_pods_is_the_ready_one_s_even_in_the_older_slice() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "new/2")]), now);
        world.tell(slice("b", vec![not_ready("10.0.0.1", "old/1")]), now);
        assert_eq!(world.only().pod.unwrap().uid, "2");
        // Shown ready by a slice that is behind: the pod watch knows better.
        world.tell(slice("b", vec![endpoint("10.0.0.1", "old/1")]), now);
        assert_eq!(world.only().pod.unwrap().uid, "1", "both ready: the newer slice");
        world.tell(pod("old", "1"), now);
        world.remove(Kind::Pod, "old", now);
        assert_eq!(world.only().pod.unwrap().uid, "2");
    }

    #[test]
    fn a_pod_of_both_families_counts_once_by_the_service_s_first() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1"), endpoint("10.0.0.2", "q/2")]), now);
        world.tell(slice("b", vec![endpoint("fd00::1", "p/1"), endpoint("fd00::9", "")]), now);
        assert_eq!(world.addresses(), ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::9]:8080"]);
        world.tell(ServiceObject { ipv6_first: true, ..service(&[(None, 80)]) }, now);
        assert_eq!(world.addresses(), ["10.0.0.2:8080", "[fd00::1]:8080", "[fd00::9]:8080"]);
    }

    #[test]
    fn what_can_be_no_endpoint_is_dropped_with_a_warning() {
        let (mut world, now) = world();
        let special = ["169.254.1.1", "127.0.0.1", "10.0.0.1", "0.0.0.0"].map(|a| endpoint(a, ""));
        world.tell(slice("a", special.to_vec()), now);
        world.tell(SliceObject { fqdn: true, ..slice("f", vec![]) }, now);
        assert_eq!(world.addresses(), ["10.0.0.1:8080", "127.0.0.1:8080"]);
        assert_eq!(
            world.merge(&name("app")).unwrap().warnings,
            [
                "EndpointSlice web/a: link-local addresses are dropped: 169.254.1.1",
                "EndpointSlice web/a: unspecified addresses are dropped: 0.0.0.0",
                "EndpointSlice web/f: addressType FQDN is refused, list the IP addresses instead",
            ]
        );
        let mut world = World::for_api_server();
        world.tell(service(&[(None, 80)]), now);
        world.tell(slice("a", special.to_vec()), now);
        assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
    }

    #[test]
    fn an_external_name_is_refused_and_an_unknown_service_waits() {
        let (mut world, now) = world();
        world.tell(ServiceObject { external_name: true, ..service(&[(None, 80)]) }, now);
        let merged = world.merge(&name("app")).unwrap();
        assert!(merged.ports.is_empty() && merged.warnings[0].contains("ExternalName"));
        world.remove(Kind::Service, "app", now);
        let touched = world.tell(slice("a", vec![endpoint("10.0.0.1", "")]), now);
        assert!(touched.services.contains(&name("app")) && world.merge(&name("app")).is_none());
        world.tell(service(&[(None, 80)]), now);
        assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
    }

    #[test]
    fn a_slice_that_changes_its_service_touches_both_and_leaves_the_first() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "")]), now);
        let moved = SliceObject { service: Some("other".into()), ..slice("a", vec![endpoint("10.0.0.1", "")]) };
        let touched = world.tell(moved.clone(), now);
        assert_eq!(touched.services, BTreeSet::from([name("app"), name("other")]));
        assert!(world.addresses().is_empty());
        assert_eq!(world.tell(moved, now), Touched::default(), "an echo touches nothing");
    }

    #[test]
    fn a_pod_absent_from_the_store_is_deleted_only_if_it_was_once_held() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        world.remove(Kind::Pod, "p", now);
        assert_eq!(world.only().fate, Fate::NoPod);
        let mut server = World::for_api_server();
        assert_eq!(server.fate("1"), Fate::NoPod);
        server.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        assert_eq!(server.fate("1"), Fate::Alive, "the pod watch will tell");
        world.tell(pod("p", "1"), now);
        assert_eq!(world.only().fate, Fate::Alive);
        let touched = world.remove(Kind::Pod, "p", now);
        assert_eq!(touched.pods, BTreeSet::from(["1".to_owned()]));
        assert!(touched.addresses.contains_key(&name("app")));
        assert_eq!(world.only().fate, Fate::Deleted { deadline: None });
        assert!(world.only().conditions.terminating);
    }

    #[test]
    fn the_deadline_is_the_first_event_s_plus_grace_plus_3s_and_only_shrinks() {
        let (mut world, now) = world();
        let deadline = |world: &World| match world.fate("1") {
            Fate::Terminating { deadline, .. } | Fate::Deleted { deadline } => deadline.map(|d| (d - now).as_secs()),
            fate => panic!("{fate:?}"),
        };
        world.tell(deleted("p", "1", Some(30)), now);
        assert_eq!(deadline(&world), Some(33));
        world.tell(deleted("p", "1", Some(30)), now + SECOND);
        assert_eq!(deadline(&world), Some(33), "an echo");
        world.tell(deleted("p", "1", Some(5)), now + SECOND);
        assert_eq!(deadline(&world), Some(9), "kubectl delete --grace-period=5");
        world.remove(Kind::Pod, "p", now + SECOND * 2);
        assert_eq!(deadline(&world), Some(9), "the object's removal");
        assert!(matches!(world.fate("1"), Fate::Deleted { .. }));
    }

    #[test]
    fn a_deadline_from_a_list_counts_from_what_remains() {
        let (mut world, now) = world();
        let deletion = Deletion { grace: Some(SECOND * 30), remaining: Some(SECOND * 12), age: Some(SECOND * 18) };
        world.tell(PodObject { deletion: Some(deletion), ..pod("p", "1") }, now);
        let deadline = Some(now + SECOND * 15);
        assert_eq!(world.fate("1"), Fate::Terminating { deadline, trigger: Trigger::PodDeleted });
    }

    #[test]
    fn a_terminating_slice_uses_the_pod_s_own_grace_also_when_it_comes_later() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![terminating("10.0.0.1", "p/1")]), now);
        assert_eq!(world.only().fate, Fate::NoPod);
        assert!(world.only().conditions.terminating);
        world.tell(graceful("p", "1", 7), now + SECOND);
        let fate = Fate::Terminating { deadline: Some(now + SECOND * 10), trigger: Trigger::SliceTerminating };
        assert_eq!(world.only().fate, fate);
        world.tell(deleted("p", "1", Some(60)), now + SECOND);
        assert_eq!(world.only().fate, fate, "the first signal stays the trigger, the deadline is not moved back");
    }

    #[test]
    fn termination_is_one_way() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![terminating("10.0.0.1", "p/1")]), now);
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        assert!(world.only().conditions.terminating, "a slice that takes it back");
        world.tell(deleted("q", "2", Some(1)), now);
        world.tell(pod("q", "2"), now);
        assert!(matches!(world.fate("2"), Fate::Terminating { .. }), "a pod that takes it back");
        world.remove(Kind::Pod, "q", now);
        world.tell(pod("q", "2"), now);
        assert!(matches!(world.fate("2"), Fate::Deleted { .. }), "a pod put back with its UID");
    }

    #[test]
    fn a_pod_put_back_with_its_uid_is_a_warning_until_it_goes_again() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        world.tell(pod("p", "1"), now);
        world.remove(Kind::Pod, "p", now);
        assert!(world.merge(&name("app")).unwrap().warnings.is_empty());
        assert!(world.tell(pod("p", "1"), now).services.contains(&name("app")));
        let warnings = world.merge(&name("app")).unwrap().warnings;
        assert_eq!(warnings, ["Pod web/p is shown again after its deletion: UID 1 has ended, give it another"]);
        assert!(world.remove(Kind::Pod, "p", now).services.contains(&name("app")));
        assert!(world.merge(&name("app")).unwrap().warnings.is_empty());
    }

    #[test]
    fn an_endpoint_without_a_pod_terminates_while_its_slice_says_so() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![terminating("10.0.0.1", "")]), now);
        assert!(world.only().conditions.terminating);
        world.tell(slice("a", vec![endpoint("10.0.0.1", "")]), now);
        assert!(!world.only().conditions.terminating);
        assert_eq!(world.only().fate, Fate::NoPod);
    }

    #[test]
    fn a_pod_replaced_under_its_name_is_deleted() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1"), endpoint("10.0.0.2", "p/2")]), now);
        world.tell(pod("p", "1"), now);
        let touched = world.tell(pod("p", "2"), now);
        assert_eq!(touched.pods, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
        assert!(matches!(world.fate("1"), Fate::Deleted { .. }));
        assert_eq!(world.fate("2"), Fate::Alive);
    }

    #[test]
    fn a_reference_without_uid_is_resolved_by_name() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p")]), now);
        assert_eq!(world.only().pod.unwrap().uid, "");
        let touched = world.tell(pod("p", "1"), now);
        assert!(touched.services.contains(&name("app")));
        assert_eq!((world.only().pod.unwrap().uid.as_str(), world.only().fate), ("1", Fate::Alive));
        world.remove(Kind::Pod, "p", now);
        assert!(matches!(world.only().fate, Fate::Deleted { .. }));
        world.tell(graceful("p", "2", 4), now);
        world.tell(slice("a", vec![terminating("10.0.0.1", "p")]), now + SECOND);
        let fate = Fate::Terminating { deadline: Some(now + SECOND * 8), trigger: Trigger::SliceTerminating };
        assert_eq!((world.only().pod.unwrap().uid.as_str(), world.only().fate), ("2", fate));
    }

    #[test]
    fn pods_without_uid_are_told_apart_by_their_ends() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p")]), now);
        let uid = |world: &World| world.only().pod.unwrap().uid.clone();
        world.tell(pod("p", ""), now);
        let first = uid(&world);
        world.tell(deleted("p", "", Some(1)), now);
        assert_eq!(uid(&world), first);
        assert!(matches!(world.only().fate, Fate::Terminating { .. }));
        world.tell(pod("p", ""), now);
        assert_ne!(uid(&world), first, "its deletion taken back makes it another pod");
        assert_eq!(world.only().fate, Fate::Alive);
        world.remove(Kind::Pod, "p", now);
        world.tell(pod("p", ""), now);
        assert_eq!(world.only().fate, Fate::Alive, "so does its removal");
        assert!(matches!(world.fate(&first), Fate::Deleted { .. }));
    }

    #[test]
    fn a_relist_swaps_one_kind_whole() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        world.tell(slice("b", vec![endpoint("10.0.0.2", "q/2")]), now);
        world.tell(pod("p", "1"), now);
        world.tell(pod("q", "2"), now);
        let mut touched = Touched::default();
        let slices = vec![slice("b", vec![endpoint("10.0.0.2", "q/2")]).into()];
        world.apply(Change::Replace { kind: Kind::EndpointSlice, namespace: None, objects: slices }, now, &mut touched);
        assert_eq!(world.addresses(), ["10.0.0.2:8080"]);
        assert!(touched.pods.is_empty());
        world.apply(
            Change::Replace { kind: Kind::Pod, namespace: None, objects: vec![pod("p", "1").into()] },
            now,
            &mut touched,
        );
        assert_eq!(touched.pods, BTreeSet::from(["2".to_owned()]));
        assert!(matches!(world.fate("2"), Fate::Deleted { .. }));
        assert_eq!(world.fate("1"), Fate::Alive);
    }

    #[test]
    fn an_ended_uid_is_remembered_until_10_minutes_after_its_last_slice() {
        let (mut world, now) = world();
        world.tell(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
        world.tell(pod("p", "1"), now);
        world.remove(Kind::Pod, "p", now);
        world.sweep(now + SECOND * 10_000);
        assert!(matches!(world.fate("1"), Fate::Deleted { .. }), "still named");
        world.remove(Kind::EndpointSlice, "a", now + SECOND * 10_000);
        world.sweep(now + SECOND * 10_599);
        assert!(matches!(world.fate("1"), Fate::Deleted { .. }), "not yet");
        world.sweep(now + SECOND * 10_600);
        assert_eq!(world.fate("1"), Fate::NoPod);
        assert!(
            world.pods.slots.is_empty()
                && world.uids.is_empty()
                && world.naming.is_empty()
                && world.by_service.is_empty()
        );
    }

    /// Ignores what depends on the order by its nature: the instants, and which signal was first.
    fn timeless(mut merged: MergedService) -> MergedService {
        let zero = *EPOCH;
        for endpoint in merged.ports.iter_mut().flat_map(|p| &mut p.endpoints) {
            if let Fate::Terminating { deadline, trigger } = &mut endpoint.fate {
                (*deadline, *trigger) = (deadline.map(|_| zero), Trigger::Removed);
            } else if let Fate::Deleted { deadline } = &mut endpoint.fate {
                *deadline = deadline.map(|_| zero);
            }
        }
        merged
    }

    static EPOCH: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
        let address =
            (0..4u8, any::<bool>()).prop_map(|(n, v6)| if v6 { format!("fd00::{n}") } else { format!("10.0.0.{n}") });
        let pod = prop_oneof![
            Just(String::new()),
            (0..3u8).prop_map(|n| format!("p{n}")),
            (0..3u8, 0..3u8).prop_map(|(n, u)| format!("p{n}/{n}{u}"))
        ];
        (address, pod, any::<bool>(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
            |(a, pod, ready, serving, terminating)| SliceEndpoint { ready, serving, terminating, ..endpoint(&a, &pod) },
        )
    }

    /// The events of each object, in the order in which its source tells them; `None` is a removal.
    fn any_history() -> impl Strategy<Value = Vec<Vec<Change>>> {
        let one_slice = |n: usize| {
            let version = (prop::collection::vec(any_endpoint(), 0..4), 0..2i64, 0..2i64, prop::bool::weighted(0.2));
            let slice_name = format!("s{n}");
            prop::collection::vec(prop::option::weighted(0.85, version), 0..4).prop_map(move |versions| {
                let change = |v: Option<(Vec<SliceEndpoint>, i64, i64, bool)>| match v {
                    None => Change::Remove(Kind::EndpointSlice, name(&slice_name)),
                    Some((endpoints, created, generation, other)) => {
                        let service = Some(if other { "other" } else { "app" }.to_owned());
                        Change::Apply(
                            SliceObject { created, generation, service, ..slice(&slice_name, endpoints) }.into(),
                        )
                    }
                };
                versions.into_iter().map(change).collect::<Vec<_>>()
            })
        };
        /// UID, deletion with its grace, grace of the spec.
        type Version = (Option<u8>, Option<Option<u64>>, Option<u64>);
        let one_pod = |n: usize| {
            let version =
                (prop::option::of(0..3u8), prop::option::of(prop::option::of(1..9u64)), prop::option::of(1..9u64));
            prop::collection::vec(prop::option::weighted(0.8, version), 0..5).prop_map(move |versions| {
                let pod_name = format!("p{n}");
                let change = |v: Option<Version>| match v {
                    None => Change::Remove(Kind::Pod, name(&pod_name)),
                    Some((uid, deletion, grace)) => {
                        let uid = uid.map_or(String::new(), |u| format!("{n}{u}"));
                        let grace = grace.map(Duration::from_secs);
                        let of = match deletion {
                            Some(g) => deleted(&pod_name, &uid, g),
                            None => pod(&pod_name, &uid),
                        };
                        Change::Apply(PodObject { spec_grace: grace, ..of }.into())
                    }
                };
                versions.into_iter().map(change).collect::<Vec<_>>()
            })
        };
        let services = any::<bool>().prop_map(|ipv6_first| {
            let first = service(&[(None, 80)]);
            let second = ServiceObject { ipv6_first, ..first.clone() };
            vec![Change::Apply(first.into()), Change::Remove(Kind::Service, name("app")), Change::Apply(second.into())]
        });
        let slices: Vec<_> = (0..3).map(one_slice).collect();
        let pods: Vec<_> = (0..3).map(one_pod).collect();
        (services, slices, pods).prop_map(|(services, slices, pods)| {
            std::iter::once(services).chain(slices).chain(pods).collect::<Vec<_>>()
        })
    }

    fn nothing() -> MergedService {
        MergedService { object: service(&[]), ports: Vec::new(), warnings: Vec::new() }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any order that keeps each object's own, with any event told twice, ends in the same table.
        #[test]
        fn order_and_repetition_do_not_matter(
            history in any_history(),
            picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 40),
            api_server in any::<bool>(),
        ) {
            let now = *EPOCH;
            let fresh = || World { api_server, ..World::default() };
            let mut touched = Touched::default();
            let mut canonical = fresh();
            for change in history.iter().flatten() {
                canonical.apply(change.clone(), now, &mut touched);
            }
            let mut shuffled = fresh();
            let mut queues: Vec<_> = history.iter().map(|events| events.iter()).collect();
            let picks = picks.iter().cycle();
            let mut at = now;
            let mut seen: Option<MergedService> = None;
            for (index, twice) in picks {
                queues.retain(|queue| queue.len() > 0);
                if queues.is_empty() {
                    break;
                }
                let queue = index.index(queues.len());
                let change = queues[queue].next().unwrap();
                for _ in 0..=usize::from(*twice) {
                    at += SECOND;
                    let mut touched = Touched::default();
                    shuffled.apply(change.clone(), at, &mut touched);
                    let merged = shuffled.merge(&name("app"));
                    // What is not called touched has not changed.
                    if !touched.services.contains(&name("app")) {
                        let some = touched.addresses.get(&name("app")).cloned().unwrap_or_default();
                        let both = (merged.clone().unwrap_or_else(nothing), seen.unwrap_or_else(nothing));
                        prop_assert!(both.0.warnings == both.1.warnings && both.0.object == both.1.object);
                        for (now, before) in both.0.ports.iter().zip(&both.1.ports) {
                            let found = shuffled.merge_some(&name("app"), &now.port, &some);
                            let Some(found) = found.filter(|_| !before.entangled) else { continue };
                            let (here, elsewhere): (Vec<_>, Vec<_>) =
                                now.endpoints.iter().cloned().partition(|e| some.contains(&e.address.ip()));
                            let as_before = before.endpoints.iter().filter(|e| !some.contains(&e.address.ip()));
                            prop_assert_eq!(found, here);
                            prop_assert!(elsewhere.iter().eq(as_before), "{:?}: {:?}", change, some);
                            prop_assert!(!now.entangled);
                        }
                    }
                    seen = merged;
                }
            }
            prop_assert_eq!(
                canonical.merge(&name("app")).map(timeless),
                shuffled.merge(&name("app")).map(timeless)
            );
        }
    }
}

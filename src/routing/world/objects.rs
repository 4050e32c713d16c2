//! The world: every object that the source reports, the indexes over them, and what is known about
//! the end of each pod.
//!
//! Invariant: each object is kept as the source gave it, and a merge is computed from all of them.
//! So its result does not depend on the order in which the events of different objects arrive (the
//! property test in `tests.rs`). Two facts are kept beside the objects and never taken back: a pod
//! UID that terminates or ends never returns, and a drain deadline only becomes earlier. How an
//! event changes the world is in `apply.rs` and `apply_pod.rs`, the merge itself in `merge.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::authorities::Holder;
use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
use crate::discovery::gateway::{GatewayKind, GatewayObject};
use crate::discovery::object::{ClassObject, IngressObject, ServiceObject, SliceEndpoint};
use crate::routing::world::here::Here;
use crate::routing::world::merged::Fate;
use crate::routing::world::pod_uid::PodName;
use crate::routing::world::pods::{Counts, Pod, PodKey, Pods};
use crate::routing::world::slice::Slice;

/// All objects that the source has reported, and the pods that are known to have ended. The default
/// is the world of a `files` source.
#[derive(Debug, Default)]
pub struct World {
    /// Whether the source is an API server. Then loopback endpoints are refused, and every pod is
    /// watched.
    pub(super) api_server: bool,
    /// Boxed, as the slices: a map that grows has room for twice as many.
    pub(super) services: HashMap<ObjectName, Box<ServiceObject>>,
    pub(super) ingresses: BTreeMap<ObjectName, IngressObject>,
    pub(super) gateways: BTreeMap<(GatewayKind, ObjectName), Arc<GatewayObject>>,
    pub(super) classes: BTreeMap<ObjectName, ClassObject>,
    pub(super) slices: HashMap<Arc<ObjectName>, Box<Slice>>,
    /// For each Service, the names of its slices, sorted.
    pub(super) by_service: HashMap<ObjectName, Vec<Arc<ObjectName>>>,
    /// For each pod that slices name without a UID, these slices. The others are named in their pods.
    pub(super) naming: HashMap<ObjectName, Counts>,
    pub(super) pods: Pods,
    /// What is known of objects with authorities.
    pub(super) authorities: BTreeMap<Holder, Known>,
    /// The pods of this node that slices name.
    pub(super) here: Here,
    /// UIDs that the source shows alive after their deletion, because a manifest was put back
    /// unchanged.
    pub(super) returned: BTreeSet<String>,
    pub(super) uids: Uids,
}

/// For each namespace and pod name, the UID that has the name or had it last.
pub(super) type Uids = HashMap<String, HashSet<PodName>>;

/// What is known of an object with authorities.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The last good authorities, PEM.
    pub(super) good: Option<Arc<str>>,
    /// What is wrong with the object now.
    pub(super) bad: Option<String>,
}

/// What a batch of changes may have altered. It may name more than that, never less.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose merge may differ now.
    pub services: BTreeSet<ObjectName>,
    /// Further Services of which only the endpoints at these addresses may differ.
    pub addresses: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    /// Pod UIDs whose [`Fate`] may differ now. This also affects their endpoints that no slice
    /// lists any more.
    pub pods: BTreeSet<String>,
    /// The rules of Ingress objects may differ.
    pub routes: bool,
    /// Objects of the Gateway API that may differ.
    pub gateways: BTreeSet<(GatewayKind, ObjectName)>,
    /// Addresses of this node at which a pod has come or gone.
    pub here: BTreeSet<IpAddr>,
    /// Ingress objects of which something may differ, also what their status says.
    pub ingresses: BTreeSet<ObjectName>,
}

impl World {
    /// The world of an API server. Loopback endpoints are refused. A pod that a slice names counts
    /// as alive while the store does not have it, because the pod watch reports its end.
    pub fn for_api_server() -> Self {
        Self {
            api_server: true,
            ..Self::default()
        }
    }

    /// Every Service that exists.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// What is known about the end of the pod with this UID. [`Fate::NoPod`] if the world does not
    /// know the UID, or has forgotten it.
    pub fn fate(&self, uid: &str) -> Fate {
        self.pods
            .get(uid)
            .map_or(Fate::NoPod, |pod| self.fate_of(Some(pod)))
    }

    /// When the deletion of the pod with this UID was requested, by the source's clock; `None` if
    /// that is not known.
    pub fn deletion_asked(&self, uid: &str) -> Option<Instant> {
        self.pods.get(uid)?.end().asked
    }

    /// The pod of this node that has an address; of several, the one that a slice named last.
    pub fn pod_here(&self, address: IpAddr) -> Option<(ObjectName, &str)> {
        self.here.pod(address)
    }

    /// Whether a slice says that a pod of this node listens on a TCP port of this address.
    pub fn listens_here(&self, address: IpAddr, port: u16) -> bool {
        let Some((pod, uid)) = self.here.pod(address) else {
            return false;
        };
        let keys = [PodKey::Uid(uid.to_owned()), PodKey::Name(pod)];
        let mut slices = keys.iter().flat_map(|key| self.slices_naming(key));
        slices.any(|slice| slice.object.ports.iter().any(|(_, number)| *number == port))
    }

    /// The name of the pod with this UID, if it is known.
    pub fn pod_name(&self, uid: &str) -> Option<ObjectName> {
        Some(self.pods.get(uid)?.name())
    }

    /// The names of the ports over one transport in the slices of a Service. The empty name is a port
    /// without a name.
    pub fn slice_ports(&self, service: &ObjectName, transport: Transport) -> BTreeSet<&str> {
        let slices = self.slices_of(service);
        let ports = slices.flat_map(|slice| slice.object.ports_over(transport));
        ports.map(|(name, _)| name.as_str()).collect()
    }

    /// The Service as the source gave it.
    pub fn service(&self, name: &ObjectName) -> Option<&ServiceObject> {
        self.services.get(name).map(|service| &**service)
    }

    /// Every object of the Gateway API.
    pub fn gateways(&self) -> &BTreeMap<(GatewayKind, ObjectName), Arc<GatewayObject>> {
        &self.gateways
    }

    /// Every Ingress that exists.
    pub fn ingresses(&self) -> impl Iterator<Item = &IngressObject> {
        self.ingresses.values()
    }

    /// The Ingress as the source gave it.
    pub fn ingress(&self, name: &ObjectName) -> Option<&IngressObject> {
        self.ingresses.get(name)
    }

    /// Every IngressClass that exists.
    pub fn classes(&self) -> impl Iterator<Item = &ClassObject> {
        self.classes.values()
    }

    /// Forgets UIDs that no slice has named for ten minutes and whose Pod object the store does not
    /// hold (contract 2.3). These are pods that have ended, and pods that a slice named and the pod
    /// watch never reported, because it was broken for as long as they lived.
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
            let latest = uid_of(uids, pod.namespace(), &pod.pod.name) == Some(uid);
            let named = !pod.named.is_empty() || latest && naming.contains_key(&pod.name());
            if !named {
                touched.pods.insert(uid.to_owned());
                returned.remove(uid);
                if let Some(names) = uids.get_mut(pod.namespace()).filter(|_| latest) {
                    names.remove(pod.pod.name.as_str());
                }
            }
            named
        });
        uids.retain(|_, names| !names.is_empty());
        touched
    }

    /// The slices of a Service, in the order of their names.
    pub(super) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        let names = self.by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name).map(|slice| &**slice))
    }

    /// What is known about the end of a pod. `pod` is its entry; `None` if there is none.
    pub(super) fn fate_of(&self, pod: Option<&Pod>) -> Fate {
        match pod {
            Some(pod) if pod.gone => Fate::Deleted {
                deadline: pod.end().deadline,
            },
            Some(
                pod @ Pod {
                    held,
                    trigger: Some(trigger),
                    ..
                },
            ) if *held || self.api_server => Fate::Terminating {
                deadline: pod.end().deadline,
                trigger: *trigger,
            },
            Some(pod) if pod.held => Fate::Alive,
            _ if self.api_server => Fate::Alive,
            _ => Fate::NoPod,
        }
    }

    /// A warning for each pod of this Service that the source shows again after its deletion.
    pub(super) fn returned_pods(&self, service: &ObjectName) -> impl Iterator<Item = String> {
        let named = move |(uid, pod): &(&String, &Pod)| {
            self.services_naming(&PodKey::Uid(uid.to_string()))
                .any(|s| s == *service)
                || self
                    .services_naming(&PodKey::Name(pod.name()))
                    .any(|s| s == *service)
        };
        let pods = self.returned.iter();
        let pods = pods.filter_map(|uid| Some((uid, self.pods.get(uid)?)));
        pods.filter(named).map(|(uid, pod)| {
            format!(
                "Pod {} is shown again after its deletion: metadata.uid {uid} has ended, give the \
                 Pod another one",
                pod.name()
            )
        })
    }

    /// Why an address cannot be an endpoint; `None` if it can. The rule is the API server's own
    /// (`ValidateNonSpecialIP`), except that `files` may name loopback addresses (contract 2.5).
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

/// What a change of a pod touches.
impl World {
    /// Notes that the fate of this pod changed, and with it the endpoints that name the pod.
    pub(super) fn touch_pod(&self, uid: &str, touched: &mut Touched) {
        touched.pods.insert(uid.to_owned());
        for key in self.keys_of(uid) {
            for slice in self.slices_naming(&key) {
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

    /// Notes that the fate of this pod changed, and with it the warnings about its Services.
    pub(super) fn touch_services_of(&self, uid: &str, touched: &mut Touched) {
        touched.pods.insert(uid.to_owned());
        for key in self.keys_of(uid) {
            touched.services.extend(self.services_naming(&key));
        }
    }

    /// The keys by which slices may name the pod with this UID: the UID, and the name if this UID
    /// has the name or had it last.
    fn keys_of(&self, uid: &str) -> impl Iterator<Item = PodKey> + use<> {
        let latest = self
            .pods
            .get(uid)
            .filter(|pod| uid_of(&self.uids, pod.namespace(), &pod.pod.name) == Some(uid));
        let by_name = latest.map(|pod| PodKey::Name(pod.name()));
        std::iter::once(PodKey::Uid(uid.to_owned())).chain(by_name)
    }

    /// The Services with a slice that names the pod by this key.
    pub(super) fn services_naming<'a>(
        &'a self,
        key: &PodKey,
    ) -> impl Iterator<Item = ObjectName> + use<'a> {
        let slices = self.slices_naming(key);
        slices.filter_map(|slice| slice.object.service_name())
    }

    /// The slices that name the pod by this key.
    fn slices_naming<'a>(&'a self, key: &PodKey) -> impl Iterator<Item = &'a Slice> + use<'a> {
        let names = match key {
            PodKey::Uid(uid) => self.pods.get(uid).map(|pod| &pod.named),
            PodKey::Name(name) => self.naming.get(name),
        };
        let names = names.into_iter().flat_map(Counts::slices);
        names.filter_map(|name| self.slices.get(name).map(|slice| &**slice))
    }
}

impl Touched {
    /// Notes that the endpoints of a Service at these addresses may differ.
    pub(super) fn endpoints(
        &mut self,
        service: ObjectName,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) {
        self.addresses.entry(service).or_default().extend(addresses);
    }
}

/// The UID that has a pod name or had it last.
pub(super) fn uid_of<'a>(uids: &'a Uids, namespace: &str, name: &str) -> Option<&'a str> {
    Some(&uids.get(namespace)?.get(name)?.0.uid)
}

/// How long a UID is remembered after the last slice stopped naming it and its Pod object was
/// removed.
pub(super) const MEMORY: Duration = Duration::from_secs(600);

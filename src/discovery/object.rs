//! The few kinds of objects that routing needs, and the changes of them that a source sends.
//!
//! Invariant: the API's defaults and nil rules are applied before an object is made, so no reader
//! of these types applies them again. How objects are read is in `manifest.rs`, and how they are
//! merged is in `routing/world`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::settings::Config;
use crate::contract::address::ServiceAddress;
use crate::contract::name::{ObjectName, PodRef};
use crate::contract::policy::{PortRef, Traffic, Transport};
use crate::contract::route::Rule;
use crate::discovery::gateway::{GatewayKind, GatewayObject};

/// One change of the source's objects.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The object was added or has changed.
    Apply(Object),
    /// The object is gone.
    Remove(Kind, ObjectName),
    /// A relist: all objects of one kind, in one namespace or in all. They replace what was known
    /// in one step.
    Replace {
        /// The kind of the objects.
        kind: Kind,
        /// The namespace; `None`: all namespaces.
        namespace: Option<String>,
        /// All objects that there are now.
        objects: Vec<Object>,
    },
    /// The source no longer watches the pods of a namespace. They have not ended.
    Forget {
        /// The namespace.
        namespace: String,
    },
}

/// The kinds of objects that routing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A v1 Service.
    Service,
    /// A discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// A v1 Pod.
    Pod,
    /// A networking.k8s.io/v1 Ingress.
    Ingress,
    /// A networking.k8s.io/v1 IngressClass. It has no namespace.
    IngressClass,
    /// An object of the Gateway API, or one that it asks about.
    Gateway(GatewayKind),
}

impl Kind {
    /// All of them. The order of changes that misleads a reader of single changes the least: a pod before
    /// the slices that name it, and Services before the routes to them. Removals have the reverse order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        let own = [
            Self::Pod,
            Self::Service,
            Self::EndpointSlice,
            Self::IngressClass,
            Self::Ingress,
        ];
        own.into_iter()
            .chain(GatewayKind::ALL.into_iter().map(Self::Gateway))
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A Service.
    Service(ServiceObject),
    /// An EndpointSlice.
    EndpointSlice(SliceObject),
    /// A Pod.
    Pod(PodObject),
    /// An Ingress.
    Ingress(Box<IngressObject>),
    /// An IngressClass.
    IngressClass(ClassObject),
    /// An object of the Gateway API.
    Gateway(Arc<GatewayObject>),
}

impl Object {
    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
            Self::Ingress(_) => Kind::Ingress,
            Self::IngressClass(_) => Kind::IngressClass,
            Self::Gateway(object) => Kind::Gateway(object.kind),
        }
    }

    /// The object's namespace and name.
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Service(service) => &service.name,
            Self::EndpointSlice(slice) => &slice.name,
            Self::Pod(pod) => &pod.name,
            Self::Ingress(ingress) => &ingress.name,
            Self::IngressClass(class) => &class.name,
            Self::Gateway(object) => &object.name,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Ingress => "Ingress",
            Self::IngressClass => "IngressClass",
            Self::Gateway(kind) => kind.names().0,
        })
    }
}

/// The parts of a v1 Service that routing needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceObject {
    /// Namespace and name of the Service.
    pub name: ObjectName,
    /// `metadata.uid`. Another UID under the same name is another Service.
    pub uid: Option<String>,
    /// Whether this proxy serves it without a listener that names it (contract 2.9).
    pub claimed: bool,
    /// Whether the type is ExternalName. Such a Service is refused.
    pub external_name: bool,
    /// Whether it is headless (`clusterIP: None`): its clients connect to its pods themselves.
    #[serde(default)]
    pub headless: bool,
    /// The TCP and UDP ports. The other ports are in `unserved`.
    pub ports: Vec<ServicePortObject>,
    /// Whether IPv6 comes first: by the first of `spec.ipFamilies`, else by the family of
    /// `clusterIP`, else no.
    pub ipv6_first: bool,
    /// The `ebbtide.dev/*` annotations as written.
    pub annotations: BTreeMap<String, String>,
    /// Each field that kube-proxy serves and Ebbtide does not, so that a claim takes it away, for example
    /// `spec.ports[0].protocol: SCTP`.
    pub unserved: Vec<String>,
    /// Its addresses, beside its nodePorts.
    #[serde(default)]
    pub addresses: Vec<ServiceAddress>,
    /// `spec.loadBalancerSourceRanges`: who may connect to the addresses of its load balancer.
    #[serde(default)]
    pub source_ranges: Vec<IpNet>,
    /// Which endpoints its clients may reach.
    #[serde(default)]
    pub traffic: Traffic,
}

impl ServiceObject {
    /// A warning for each field that is not served.
    pub fn lost(&self, config: &Config) -> impl Iterator<Item = String> {
        let has_addresses = config.addresses.is_some();
        let cure = match config.claim.all {
            true => "",
            false => {
                ", and the claim keeps kube-proxy from serving it; if it is in use, claim a second Service \
                 with the same selector instead"
            }
        };
        let addresses = self.addresses.iter();
        let addresses = addresses.map(|it| format!("{}: {}", it.kind.field(), it.ip));
        let ranges = self.source_ranges.iter();
        let ranges = ranges.map(|it| format!("spec.loadBalancerSourceRanges: {it}"));
        let addresses = addresses.chain(ranges).filter(move |_| !has_addresses);
        let fields = self.unserved.iter().cloned().chain(addresses);
        let fields = fields.filter(|_| self.claimed);
        fields.map(move |field| format!("{field} is not served{cure}"))
    }
}

/// One TCP or UDP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortObject {
    /// The port's name. A Service with one port may leave it out.
    pub name: Option<String>,
    /// The port's number.
    pub port: u16,
    /// The port on each node, if there is one.
    pub node_port: Option<u16>,
    /// `targetPort`, if it is a number. It is used only to recognise servers that speak first.
    pub target_port: Option<u16>,
    /// `appProtocol` as written.
    pub app_protocol: Option<String>,
    /// `protocol`.
    pub transport: Transport,
}

/// A discovery.k8s.io/v1 EndpointSlice. The API's nil rules are already applied to its conditions
/// (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceObject {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service's name, from the label `kubernetes.io/service-name`. A slice without the label
    /// belongs to no Service.
    pub service: Option<String>,
    /// Whether `addressType` is IPv6.
    pub ipv6: bool,
    /// Whether `addressType` is FQDN. Such a slice is refused.
    pub fqdn: bool,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 if absent. It decides which of two
    /// slices is newer.
    pub created: i64,
    /// `metadata.generation`. It decides if the creation times are equal.
    pub generation: i64,
    /// The TCP ports that have a number, as name (may be empty) and number.
    pub ports: Vec<(String, u16)>,
    /// The endpoints in the slice's order.
    pub endpoints: Vec<SliceEndpoint>,
    /// The UDP ports that have a number, as `ports` has the TCP ports.
    pub udp_ports: Vec<(String, u16)>,
}

impl SliceObject {
    /// The ports of one transport, as name (may be empty) and number.
    pub fn ports_over(&self, transport: Transport) -> &[(String, u16)] {
        match transport {
            Transport::Tcp => &self.ports,
            Transport::Udp => &self.udp_ports,
        }
    }
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// `addresses[0]`. Other addresses are not used.
    pub address: IpAddr,
    /// `targetRef`, if it names a Pod.
    #[serde(serialize_with = "write_pod", deserialize_with = "read_pod")]
    pub pod: Option<Arc<PodRef>>,
    /// The condition `ready`; true if absent.
    pub ready: bool,
    /// The condition `serving`; true if absent, or if `ready` is.
    pub serving: bool,
    /// The condition `terminating`; false if absent.
    pub terminating: bool,
    /// Whether `nodeName` is the name of this node.
    #[serde(default)]
    pub local: bool,
    /// Where its clients are to be.
    #[serde(default)]
    pub hints: Hints,
}

/// `hints`: where the clients of an endpoint are to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// `forNodes`.
    pub node: Hint,
    /// `forZones`.
    pub zone: Hint,
}

/// Whether a list of nodes or zones names this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Hint {
    /// There is no list, or an empty one.
    #[default]
    None,
    /// It names others only.
    Elsewhere,
    /// It names this one.
    Here,
}

fn write_pod<S: Serializer>(pod: &Option<Arc<PodRef>>, to: S) -> Result<S::Ok, S::Error> {
    pod.as_deref().serialize(to)
}

fn read_pod<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<PodRef>>, D::Error> {
    Ok(Option::<PodRef>::deserialize(from)?.map(Arc::new))
}

/// The metadata of a Pod, and its grace period if the source shows the `spec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodObject {
    /// Namespace and name of the pod.
    pub name: ObjectName,
    /// `metadata.uid`; empty if absent.
    pub uid: String,
    /// The label `pod-template-hash`: pods with the same value are of one generation.
    pub template_hash: Option<String>,
    /// The pod's deletion; `None` while nobody has deleted the pod.
    pub deletion: Option<Deletion>,
    /// `spec.terminationGracePeriodSeconds`, if the source shows it.
    pub spec_grace: Option<Duration>,
}

/// A pod's `metadata.deletionTimestamp` and `deletionGracePeriodSeconds`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// `deletionGracePeriodSeconds`.
    pub grace: Option<Duration>,
    /// The time left until `deletionTimestamp` by the source's clock. It is known only if the
    /// object came by a list or relist, or late. A deadline then counts from it, and not from the
    /// event's arrival.
    pub remaining: Option<Duration>,
    /// How long ago the deletion was requested, by the source's clock, to the second. Known only
    /// from an API server.
    pub age: Option<Duration>,
}

/// A networking.k8s.io/v1 Ingress
/// (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/ingress-v1/>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressObject {
    /// Namespace and name of the Ingress.
    pub name: ObjectName,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `spec.ingressClassName`, else the annotation `kubernetes.io/ingress.class`.
    pub class: Option<String>,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 if absent. The rules of the oldest Ingress
    /// come first.
    pub created: i64,
    /// The rules, each with the Service port that serves its requests.
    pub rules: Vec<(Rule, BackendRef)>,
    /// `spec.defaultBackend`.
    pub default: Option<BackendRef>,
    /// The Secrets with its certificates.
    pub secrets: Vec<ObjectName>,
    /// The hosts of `spec.tls`. Empty text: an entry without hosts.
    #[serde(default)]
    pub tls_hosts: Vec<String>,
    /// The annotations of ingress-nginx, without the prefix of their names.
    #[serde(default)]
    pub nginx: BTreeMap<String, String>,
    /// Each field that asks for what is not served.
    pub unserved: Vec<String>,
    /// What its status says. A saved table does not have it.
    #[serde(skip)]
    pub published: Published,
}

impl IngressObject {
    /// Whether it has TLS for a host.
    pub fn has_tls(&self, host: Option<&str>) -> bool {
        let parent = || host?.split_once('.').map(|(_, parent)| parent);
        self.tls_hosts.iter().any(|it| {
            let wildcard = it.strip_prefix("*.");
            it.is_empty() || host == Some(it) || wildcard.is_some() && wildcard == parent()
        })
    }

    /// Every Service port that it names.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        let rules = self.rules.iter().map(|(_, to)| to);
        rules.chain(&self.default)
    }
}

/// `status.loadBalancer.ingress` of an Ingress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// IP addresses and names of hosts.
    pub addresses: Vec<String>,
    /// Who wrote them, by `metadata.managedFields`.
    pub managers: Vec<String>,
}

/// A networking.k8s.io/v1 IngressClass
/// (<https://kubernetes.io/docs/concepts/services-networking/ingress/#ingress-class>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassObject {
    /// The name, without a namespace.
    pub name: ObjectName,
    /// `spec.controller`.
    pub controller: String,
    /// Whether Ingress objects without a class are of this one: the annotation
    /// `ingressclass.kubernetes.io/is-default-class`.
    pub is_default: bool,
}

/// A Service port that serves the requests of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendRef {
    /// The Service.
    pub service: ObjectName,
    /// Which of its ports.
    pub port: PortRef,
}

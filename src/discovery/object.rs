//! Where the truth about endpoints comes from: sources of events, and the pure merge of slices that all of them feed.
//!
//! A source ([`files`], [`kubernetes`]) turns what it reads into [`Change`]s of the few object kinds below and sends
//! them as [`Message`]s. [`objects::World`] holds the objects and merges them; it knows nothing of files or watches.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::name::{ObjectName, PodRef};

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Apply(Object),
    Remove(Kind, ObjectName),
    /// A relist: the whole truth about one kind, in one namespace or (`None`) all of them, swapped in at once.
    Replace {
        kind: Kind,
        namespace: Option<String>,
        objects: Vec<Object>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Service(ServiceObject),
    EndpointSlice(SliceObject),
    Pod(PodObject),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
        }
    }

    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Service(service) => &service.name,
            Self::EndpointSlice(slice) => &slice.name,
            Self::Pod(pod) => &pod.name,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
        })
    }
}

/// The parts of a v1 Service that routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceObject {
    pub name: ObjectName,
    pub uid: Option<String>,
    /// Label `service.kubernetes.io/service-proxy-name: ebbtide`.
    pub claimed: bool,
    pub external_name: bool,
    /// TCP ports only; the others are in `unserved`.
    pub ports: Vec<ServicePortObject>,
    /// First of `spec.ipFamilies`, else that of `clusterIP`, else IPv4.
    pub ipv6_first: bool,
    /// `ebbtide.dev/*` annotations, as written.
    pub annotations: BTreeMap<String, String>,
    /// Each field that a claim takes from kube-proxy and Ebbtide does not serve, e.g. `spec.sessionAffinity: ClientIP`.
    pub unserved: Vec<String>,
}

impl ServiceObject {
    /// What to say of each in `unserved`.
    pub fn lost(&self) -> impl Iterator<Item = String> {
        self.unserved.iter().map(|field| {
            format!(
                "{field} is not served, and its claim keeps kube-proxy from it too; where it is in use, claim a second \
                 Service with the same selector instead"
            )
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePortObject {
    pub name: Option<String>,
    pub port: u16,
    pub node_port: Option<u16>,
    /// `targetPort` where it is a number; only used to know servers that speak first.
    pub target_port: Option<u16>,
    pub app_protocol: Option<String>,
}

/// A discovery.k8s.io/v1 EndpointSlice; conditions with the API's nil rules already applied
/// (<https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceObject {
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`; a slice without it belongs to nobody.
    pub service: Option<String>,
    pub ipv6: bool,
    /// `addressType: FQDN`: refused.
    pub fqdn: bool,
    /// `metadata.creationTimestamp` in seconds, to tell the newer of two slices; 0 when absent.
    pub created: i64,
    /// `metadata.generation`, second criterion.
    pub generation: i64,
    /// TCP ports with a number: (name or "", number).
    pub ports: Vec<(String, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `targetRef`, where it is a Pod.
    pub pod: Option<Arc<PodRef>>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// The metadata of a Pod (and, from `files`, its grace period from `spec`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodObject {
    pub name: ObjectName,
    pub uid: String,
    /// Label `pod-template-hash`.
    pub template_hash: Option<String>,
    pub deletion: Option<Deletion>,
    /// `spec.terminationGracePeriodSeconds`, where the source shows it.
    pub spec_grace: Option<Duration>,
}

/// `metadata.deletionTimestamp` and `deletionGracePeriodSeconds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    pub grace: Option<Duration>,
    /// Time left until `deletionTimestamp` by the source's own clock, known only where the object came by a (re)list,
    /// or late: a deadline then counts from it instead of from the event's arrival.
    pub remaining: Option<Duration>,
    /// How long ago, by the source's clock, the deletion was asked for; to the second. Known only from an API server.
    pub age: Option<Duration>,
}

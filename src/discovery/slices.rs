//! The pure merge: Services, EndpointSlices and Pods in, the endpoints of each service port out (being written).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use super::{Change, ObjectName, PodRef, ServiceObject, ServicePortObject};
use crate::endpoint::Conditions;

/// All objects that the source has told of, and the pods that are known to have ended.
#[derive(Debug, Default)]
pub struct World {}

/// What a batch of changes may have altered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose merge may differ now.
    pub services: BTreeSet<ObjectName>,
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
}

#[derive(Debug, Clone, PartialEq)]
pub struct MergedEndpoint {
    pub address: SocketAddr,
    pub pod: Option<PodRef>,
    pub template_hash: Option<String>,
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

impl World {
    /// Takes one change in. `received` is when the event arrived, on the monotonic clock.
    pub fn apply(&mut self, _change: Change, _received: Instant, _touched: &mut Touched) {}

    /// The Service as its slices and pods make it; `None` when there is no such Service.
    pub fn merge(&self, _service: &ObjectName) -> Option<MergedService> {
        None
    }

    /// What is known of the pod with this UID.
    pub fn fate(&self, _uid: &str) -> Fate {
        Fate::NoPod
    }

    /// Forgets ended UIDs that no slice has named for ten minutes.
    pub fn sweep(&mut self, _now: Instant) {}
}

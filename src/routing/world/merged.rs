//! What a merge returns: a Service with its ports, their endpoints, and what is known about the end
//! of each endpoint's pod. These are plain values; how they are computed is in `merge.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::authorities::FoundAuthorities;
use crate::contract::endpoint::Conditions;
use crate::contract::name::PodRef;
use crate::contract::reason::Trigger;
use crate::discovery::object::{Hints, ServiceObject, ServicePortObject};

/// One Service, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedService {
    /// The Service as the source gave it.
    pub object: ServiceObject,
    /// What is known of the authorities that it takes from another object.
    pub authorities: Option<FoundAuthorities>,
    /// Its TCP and UDP ports, in the order of the Service.
    pub ports: Vec<MergedPort>,
    /// Texts for people, in a stable order: slices of type FQDN that are refused, addresses that
    /// are dropped, pods that return after their deletion.
    pub warnings: Vec<String>,
}

/// One port of a Service, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedPort {
    /// The port as the Service gives it.
    pub port: ServicePortObject,
    /// Its endpoints, sorted by address. No pair of address and port is in it twice.
    pub endpoints: Vec<MergedEndpoint>,
    /// Whether several endpoints claim one IP address, or the Service has slices of both address
    /// families. Then a change of one endpoint may also change an endpoint at another address.
    pub ambiguous: bool,
}

/// One endpoint of a port, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedEndpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// The pod, where the slice names one.
    pub pod: Option<Arc<PodRef>>,
    /// The pod's label `pod-template-hash`, where the Pod object is known and has it.
    pub template_hash: Option<Arc<str>>,
    /// The conditions of the slice. `terminating` is also true if the pod terminates or has ended.
    pub conditions: Conditions,
    /// What is known about the end of the pod.
    pub fate: Fate,
    /// Whether it is on this node.
    pub local: bool,
    /// Where its clients are to be.
    pub hints: Hints,
}

/// What is known about the end of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// No pod is known: `files` without Pod manifests, or an endpoint whose `targetRef` is no Pod.
    NoPod,
    /// No sign of an end is known.
    Alive,
    /// The pod terminates.
    Terminating {
        /// The pod's own drain deadline (contract 1.4): the arrival of the event plus the grace
        /// period plus 3 s, or earlier. It is only shortened. `None` while the grace period is not
        /// known.
        deadline: Option<Instant>,
        /// The first signal of the termination.
        trigger: Trigger,
    },
    /// The Pod object is gone.
    Deleted {
        /// The pod's own drain deadline; `None` if the grace period is not known.
        deadline: Option<Instant>,
    },
}

impl Fate {
    /// The pod's own drain deadline, where one is known.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::NoPod | Self::Alive => None,
            Self::Terminating { deadline, .. } | Self::Deleted { deadline } => *deadline,
        }
    }
}

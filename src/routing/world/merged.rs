//! What a merge answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::endpoint::Conditions;
use crate::contract::name::PodRef;
use crate::contract::reason::Trigger;
use crate::discovery::object::{ServiceObject, ServicePortObject};

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
    pub ambiguous: bool,
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
    Terminating {
        deadline: Option<Instant>,
        trigger: Trigger,
    },
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

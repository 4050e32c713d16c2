//! The Service ports to which the routes of one source lead: a listener that is not bound for each.
//!
//! Invariant: a Service port keeps its listener for as long as a route leads to it, so what a worker
//! knows of it stays, too. How a policy has TLS spoken with its endpoints changes in the listener.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::backend::Backend;
use crate::contract::listener::{ListenerId, ListenerSpec, Target};
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::discovery::object::BackendRef;

/// What a target is of. Another protocol is another target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    /// The Service port.
    pub to: BackendRef,
    /// What its routes speak. `None`: as the Service says.
    pub protocol: Option<Protocol>,
    /// Whether BackendTLSPolicies count for its routes.
    pub has_policies: bool,
}

/// Service ports to which routes lead.
#[derive(Debug)]
pub struct Targets {
    all: BTreeMap<Of, Target>,
    /// The number of the last one.
    last: u64,
}

impl Targets {
    /// Those of Ingress objects. None yet.
    pub fn of_ingress() -> Self {
        Self::after(1 << 62)
    }

    /// Those of Gateways. None yet.
    pub fn of_gateways() -> Self {
        Self::after(3 << 61)
    }

    /// The numbers of listeners that are bound are all lower.
    fn after(last: u64) -> Self {
        let all = BTreeMap::new();
        Self { all, last }
    }

    /// From now on it is these, each with how a policy has TLS spoken. Returns the Services of those that
    /// nothing leads to any more.
    pub fn become_those<'a>(
        &mut self,
        all: impl Iterator<Item = (Of, Option<&'a Arc<Backend>>)>,
    ) -> Vec<ObjectName> {
        let mut before = std::mem::take(&mut self.all);
        for (of, backend) in all {
            if let Entry::Vacant(place) = self.all.entry(of) {
                let known = before.remove(place.key());
                let target = known.unwrap_or_else(|| {
                    self.last += 1;
                    target(self.last, place.key())
                });
                let is_same = target.listener.backend.load().as_ref() == backend;
                if !is_same {
                    target.listener.backend.store(backend.cloned());
                }
                place.insert(target);
            }
        }
        before.into_keys().map(|it| it.to.service).collect()
    }

    /// The target of a Service port.
    pub fn get(&self, of: &Of) -> Option<&Target> {
        self.all.get(of)
    }

    /// All of their Services.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.all.keys().map(|it| &it.to.service)
    }
}

fn target(number: u64, of: &Of) -> Target {
    let (id, nowhere) = (ListenerId(number), (Ipv4Addr::UNSPECIFIED, 0).into());
    let (service, port) = (&of.to.service, &of.to.port);
    let listener = ListenerSpec {
        protocol: of.protocol,
        ..ListenerSpec::unbound(id, "route", nowhere, service, port)
    };
    Target {
        listener: Arc::new(listener),
        since: Instant::now(),
        filters: None,
    }
}

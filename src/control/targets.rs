//! The Service ports to which the routes of one source lead: a listener that is not bound for each.
//!
//! Invariant: a Service port keeps its listener for as long as a route leads to it, so what a worker
//! knows of it stays, too.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::listener::{ListenerId, ListenerSpec, Target};
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::discovery::object::BackendRef;

/// Service ports, by what their routes speak: another protocol is another target.
#[derive(Debug)]
pub struct Targets {
    all: BTreeMap<(BackendRef, Option<Protocol>), Target>,
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

    /// From now on it is these. Returns the Services of those that nothing leads to any more.
    pub fn become_those<'a>(
        &mut self,
        backends: impl Iterator<Item = (&'a BackendRef, Option<Protocol>)>,
    ) -> Vec<ObjectName> {
        let mut before = std::mem::take(&mut self.all);
        for (backend, protocol) in backends {
            if let Entry::Vacant(place) = self.all.entry((backend.clone(), protocol)) {
                let known = before.remove(place.key());
                place.insert(known.unwrap_or_else(|| {
                    self.last += 1;
                    target(self.last, backend, protocol)
                }));
            }
        }
        let gone = before.into_keys().map(|(backend, _)| backend.service);
        gone.collect()
    }

    /// The target of a Service port.
    pub fn get(&self, backend: &BackendRef, protocol: Option<Protocol>) -> Option<&Target> {
        self.all.get(&(backend.clone(), protocol))
    }

    /// All of their Services.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.all.keys().map(|(backend, _)| &backend.service)
    }
}

fn target(number: u64, backend: &BackendRef, protocol: Option<Protocol>) -> Target {
    let (id, nowhere) = (ListenerId(number), (Ipv4Addr::UNSPECIFIED, 0).into());
    let (service, port) = (&backend.service, &backend.port);
    let listener = ListenerSpec {
        protocol,
        ..ListenerSpec::unbound(id, "route", nowhere, service, port)
    };
    Target {
        listener: Arc::new(listener),
        since: Instant::now(),
        filters: None,
    }
}

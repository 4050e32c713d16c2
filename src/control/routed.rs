//! What the rules of Ingress objects lead to: a listener that is not bound for each Service port.
//!
//! Invariant: a Service port keeps its listener for as long as a rule leads to it, so what a worker knows of
//! it stays, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::action::{Action, Target};
use crate::contract::listener::{ListenerId, ListenerSpec};
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::contract::route::RouteTable;
use crate::discovery::object::BackendRef;
use crate::proxy::shared::Shared;
use crate::routing::routes::Routes;

/// The Service ports to which rules lead.
#[derive(Default)]
pub struct Routed {
    targets: BTreeMap<BackendRef, Target>,
    /// Services to which no rule leads any more, until nothing is in flight on them.
    parting: BTreeSet<ObjectName>,
    /// When these are looked at.
    next_look: Option<Instant>,
    /// The Secrets that Ingress objects name, in the order in which they count.
    secrets: Vec<ObjectName>,
    /// The number of the last target.
    last: u64,
}

impl Routed {
    /// Puts rules in force. Returns whether the Secrets differ.
    pub(super) fn take(&mut self, routes: &Routes<'_>, shared: &Shared) -> bool {
        let mut before = std::mem::take(&mut self.targets);
        for backend in routes.backends() {
            let known = before.remove(backend);
            let target = known.unwrap_or_else(|| self.target(backend));
            self.targets.insert(backend.clone(), target);
        }
        if !before.is_empty() {
            // A worker that has just read the old rules has begun its request by then.
            self.next_look = Some(Instant::now() + LOOK);
        }
        self.parting
            .extend(before.into_keys().map(|backend| backend.service));
        let of = |backend: &BackendRef| {
            let target = self.targets.get(backend)?.clone();
            Some(Arc::new(Action::serve("".into(), target)))
        };
        let mut table = RouteTable::default();
        for (rule, backend) in &routes.rules {
            if let Some(target) = of(backend) {
                table.add(rule, target);
            }
        }
        table.default = routes.default.and_then(of);
        let owner = ObjectName::new("", "ingress");
        let doors = shared.routes_of(&owner, &PortRef::Number(0));
        doors.store(Arc::new(table));
        let secrets = routes.secrets.iter().copied().cloned().collect();
        std::mem::replace(&mut self.secrets, secrets) != self.secrets
    }

    /// Forgets Services to which no rule leads and on which nothing is in flight, as `is_in_use` says.
    pub(super) fn part(&mut self, is_in_use: impl Fn(&ObjectName) -> bool) {
        self.parting.retain(|service| is_in_use(service));
        let waits = !self.parting.is_empty();
        self.next_look = waits.then(|| Instant::now() + LOOK);
    }

    /// When Services to which no rule leads are to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// All of their Services.
    pub(super) fn services(&self) -> impl Iterator<Item = &ObjectName> {
        let targets = self.targets.keys().map(|backend| &backend.service);
        targets.chain(&self.parting)
    }

    /// The Secrets that Ingress objects name, in the order in which they count.
    pub(super) fn secrets(&self) -> &[ObjectName] {
        &self.secrets
    }

    fn target(&mut self, backend: &BackendRef) -> Target {
        self.last += 1;
        let (id, nowhere) = (
            ListenerId(FIRST + self.last),
            (Ipv4Addr::UNSPECIFIED, 0).into(),
        );
        let (service, port) = (&backend.service, &backend.port);
        let listener = ListenerSpec::unbound(id, "ingress", nowhere, service, port);
        Target {
            listener: Arc::new(listener),
            since: Instant::now(),
            filters: None,
        }
    }
}

/// The time between two looks at Services to which no rule leads.
const LOOK: Duration = Duration::from_secs(1);
/// The numbers of listeners that are bound are all lower.
const FIRST: u64 = 1 << 62;

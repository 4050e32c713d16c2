//! What routes lead to: a listener that is not bound for each Service port, and tables of actions.
//!
//! Invariant: a change of routes closes no listener that is still wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::authorities::Holder;
use crate::contract::filters::Filters;
use crate::contract::listener::{Action, Backends};
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};
use crate::contract::route::RouteTable;
use crate::control::certificates::RoutesOf;
use crate::control::pace::Pace;
use crate::control::planner::{InForce, Leading, Made, leading};
use crate::control::targets::{Of, Targets};
use crate::control::wanted::Doors;
use crate::discovery::object::BackendRef;
use crate::proxy::shared::Shared;
use crate::routing::routes::{Route, Routes};

/// The Service ports to which routes lead, and the listeners of Gateways.
pub struct Routed {
    /// Those of Ingress objects.
    ingress: Targets,
    /// The names of the Ingress objects that lead to each Service.
    leading: Leading,
    /// When the rules of Ingress objects are put in force.
    pub(super) pace: Pace,
    /// What Gateways and their routes come to.
    plan: Arc<InForce>,
    /// Services to which no rule leads any more, until nothing is in flight on them.
    parting: BTreeSet<ObjectName>,
    /// When these are looked at.
    next_look: Option<Instant>,
    /// The Secrets that listeners with routes have, in the order in which they count.
    secrets: BTreeMap<RoutesOf, Vec<ObjectName>>,
}

impl Default for Routed {
    fn default() -> Self {
        Self {
            ingress: Targets::of_ingress(),
            leading: Leading::new(),
            pace: Pace::default(),
            plan: Arc::default(),
            parting: BTreeSet::new(),
            next_look: None,
            secrets: BTreeMap::new(),
        }
    }
}

impl Routed {
    /// Puts the rules of Ingress objects in force. Returns whether the Secrets differ.
    pub(super) fn take(&mut self, routes: &Routes<'_>, shared: &Shared) -> bool {
        let backends = routes.backends().into_iter();
        let backends = backends.map(|(to, protocol)| (of_ingress(to, protocol), None));
        let gone = self.ingress.become_those(backends);
        self.note_gone(gone);
        self.leading = leading(routes.rules.iter().chain(&routes.default).map(|route| {
            let backends = route.backends.iter().filter(|(weight, _)| *weight > 0);
            let services = backends.map(|(_, it)| &it.service);
            (route_name(route), services)
        }));
        let [mut http, mut https] = [RouteTable::default(), RouteTable::default()];
        for route in &routes.rules {
            let action = ingress_action(&self.ingress, route);
            http.add(&route.rule, or_redirect(&action, route));
            https.add(&route.rule, action);
        }
        if let Some(route) = &routes.default {
            let action = ingress_action(&self.ingress, route);
            http.default = Some(or_redirect(&action, route));
            https.default = Some(action);
        }
        let owner = ObjectName::new("", "ingress");
        for (name, table) in [("http", http), ("https", https)] {
            let port = PortRef::Name(name.to_owned());
            shared.routes_of(&owner, &port).store(Arc::new(table));
        }
        let secrets: Vec<_> = routes.secrets.iter().copied().cloned().collect();
        let door = (owner, PortRef::Name("https".to_owned()));
        let before = self.secrets.insert(door, secrets.clone());
        before != Some(secrets)
    }

    /// Puts a plan of Gateways in force. Returns what has listeners that may differ now, and whether the
    /// Secrets do.
    pub(super) fn take_plan(
        &mut self,
        made: Made,
        shared: &Shared,
    ) -> (BTreeSet<ObjectName>, bool) {
        self.note_gone(made.gone);
        let before = std::mem::replace(&mut self.plan, made.plan);
        let plan = &self.plan;
        for ((owner, port), table) in &plan.tables {
            shared.routes_of(owner, port).store(table.clone());
        }
        shared.forget_routes(|of| is_gateway(of) && !plan.secrets.contains_key(of));
        let secrets_differ = plan.secrets != before.secrets;
        if secrets_differ {
            self.secrets.retain(|owner, _| !is_gateway(owner));
            self.secrets.extend(plan.secrets.clone());
        }
        let differ = |owner: &&ObjectName| plan.doors.get(*owner) != before.doors.get(*owner);
        let owners: BTreeSet<_> = plan.doors.keys().chain(before.doors.keys()).collect();
        let owners = owners.into_iter().filter(differ).cloned().collect();
        (owners, secrets_differ)
    }

    /// The plan of Gateways that is in force.
    pub(super) fn plan(&self) -> Arc<InForce> {
        self.plan.clone()
    }

    /// Nothing leads to these any more: no route, or no listener of the configuration.
    pub(super) fn note_gone(&mut self, gone: Vec<ObjectName>) {
        if !gone.is_empty() {
            // A worker that has just read the old rules has begun its request by then.
            self.next_look = Some(Instant::now() + LOOK);
            self.parting.extend(gone);
        }
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
        let targets = self.ingress.services().chain(&self.plan.services);
        targets.chain(&self.parting)
    }

    /// The routes that lead to a Service, by name: the first [`MOST_NAMED`] of them.
    pub(super) fn routes_to(&self, service: &ObjectName) -> Vec<Arc<str>> {
        let of_both = [&self.leading, &self.plan.leading];
        let of_service = of_both.into_iter().filter_map(|it| it.get(service));
        of_service.flatten().take(MOST_NAMED).cloned().collect()
    }

    /// The listeners of Gateways.
    pub(super) fn doors(&self) -> &Doors {
        &self.plan.doors
    }

    /// Secrets that Gateways name, also those that do not exist.
    pub(super) fn secrets_of_gateways(&self) -> &BTreeSet<ObjectName> {
        &self.plan.secret_names
    }

    /// The objects with authorities that policies of the Gateway API name, also those that do not exist.
    pub(super) fn holders_of_policies(&self) -> &BTreeSet<Holder> {
        &self.plan.holders
    }

    /// The Secrets that listeners with routes have, in the order in which they count.
    pub(super) fn secrets(&self) -> &BTreeMap<RoutesOf, Vec<ObjectName>> {
        &self.secrets
    }
}

fn is_gateway((owner, _): &RoutesOf) -> bool {
    owner.name.starts_with("gateway")
}

fn route_name(route: &Route<'_>) -> Arc<str> {
    format!("Ingress {}", route.of).into()
}

/// Policies of the Gateway API count for no Ingress.
fn of_ingress(to: &BackendRef, protocol: Option<Protocol>) -> Of {
    Of {
        to: to.clone(),
        protocol,
        has_policies: false,
    }
}

/// What becomes of the requests of a rule of an Ingress.
fn ingress_action(targets: &Targets, route: &Route<'_>) -> Arc<Action> {
    let backends = route.backends.iter().map(|(weight, to)| {
        (
            *weight,
            targets.get(&of_ingress(to, route.protocol)).cloned(),
        )
    });
    Arc::new(Action {
        route: route_name(route),
        backends: Backends::new(backends.collect()),
        filters: filters(&route.filters),
        ends_tls: false,
    })
}

/// The same for requests without TLS: a redirect, if the rule wants TLS.
fn or_redirect(action: &Arc<Action>, route: &Route<'_>) -> Arc<Action> {
    if !route.wants_tls {
        return action.clone();
    }
    Arc::new(Action {
        route: action.route.clone(),
        // A proxy before this one may have ended TLS.
        backends: Backends::new(action.backends.all.clone()),
        filters: filters(&Filters {
            wants_tls: true,
            ..route.filters.clone()
        }),
        ends_tls: false,
    })
}

fn filters(all: &Filters) -> Option<Box<Filters>> {
    (*all != Filters::default()).then(|| Box::new(all.clone()))
}

/// How many routes a receipt names.
const MOST_NAMED: usize = 20;
/// The time between two looks at Services to which no rule leads.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_the_names_of_the_routes_that_lead_to_it_up_to_a_bound() {
        let [shop, cart, idle] = ["shop", "cart", "idle"].map(|it| ObjectName::new("web", it));
        let ingress: Arc<str> = "Ingress web/shop".into();
        let rules = [vec![&shop], vec![&cart, &shop], vec![&shop]];
        let rules = rules.map(|services| (ingress.clone(), services.into_iter()));
        let many = (0..MOST_NAMED).map(|n| {
            let route: Arc<str> = format!("HTTPRoute web/{n:02}").into();
            (route, [&shop].into_iter())
        });
        let routed = Routed {
            leading: leading(rules.into_iter()),
            plan: Arc::new(InForce {
                leading: leading(many),
                ..InForce::default()
            }),
            ..Routed::default()
        };
        assert_eq!(routed.routes_to(&cart), vec![ingress.clone()]);
        let named = routed.routes_to(&shop);
        assert_eq!((&named[0], &*named[1]), (&ingress, "HTTPRoute web/00"));
        assert_eq!(named.len(), MOST_NAMED);
        assert!(routed.routes_to(&idle).is_empty());
    }
}

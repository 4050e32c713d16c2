//! What routes lead to: a listener that is not bound for each Service port, and tables of actions.
//!
//! Invariant: a Service port keeps its listener for as long as a route leads to it, so what a worker knows
//! of it stays, too. A change of routes closes no listener that is still wanted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::settings::{Config, ListenerConfig};
use crate::config::tls::{ClientCertificates, Tls};
use crate::contract::address::AddressKind;
use crate::contract::filters::{Filters, Redirect};
use crate::contract::listener::{Action, Backends, FoundBy, ListenerId, ListenerSpec, Target};
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};
use crate::contract::route::RouteTable;
use crate::control::certificates::RoutesOf;
use crate::control::wanted::{Doors, Origin};
use crate::discovery::object::BackendRef;
use crate::proxy::shared::Shared;
use crate::routing::gateway::doors::{Door, Enters};
use crate::routing::gateway::plan::Plan;
use crate::routing::gateway::rules::Planned;
use crate::routing::routes::{Route, Routes};

/// The Service ports to which routes lead, and the listeners of Gateways.
#[derive(Default)]
pub struct Routed {
    /// Those of Ingress objects.
    ingress: Targets,
    /// Those of Gateways.
    gateways: Targets,
    doors: Doors,
    /// Services to which no rule leads any more, until nothing is in flight on them.
    parting: BTreeSet<ObjectName>,
    /// When these are looked at.
    next_look: Option<Instant>,
    /// The Secrets that listeners with routes have, in the order in which they count.
    secrets: BTreeMap<RoutesOf, Vec<ObjectName>>,
    /// The Ingress objects, and the Gateway API's routes, that lead to each Service.
    leading: [Leading; 2],
    /// The number of the last target.
    last: u64,
}

/// The Service ports to which routes of one source lead. What speaks another protocol is another target.
type Targets = BTreeMap<(BackendRef, Option<Protocol>), Target>;

/// The names of the routes that lead to each Service.
type Leading = BTreeMap<ObjectName, BTreeSet<Arc<str>>>;

impl Routed {
    /// Puts the rules of Ingress objects in force. Returns whether the Secrets differ.
    pub(super) fn take(&mut self, routes: &Routes<'_>, shared: &Shared) -> bool {
        let before = std::mem::take(&mut self.ingress);
        self.ingress = self.targets(before, routes.backends().into_iter());
        self.leading[0] = leading(routes.rules.iter().chain(&routes.default).map(|route| {
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

    /// Puts the plan of Gateways in force. Returns what has listeners that may differ now, and whether the
    /// Secrets do.
    pub(super) fn take_plan(
        &mut self,
        plan: &Plan,
        config: &Config,
        shared: &Shared,
    ) -> (BTreeSet<ObjectName>, bool) {
        let before = std::mem::take(&mut self.gateways);
        self.gateways = self.targets(before, plan.backends());
        let doors = plan.doors.values();
        let planned = doors.flat_map(|it| it.rules.iter().map(|(_, it)| it).chain(&it.default));
        self.leading[1] = leading(planned.map(|planned| {
            let backends = planned.backends.iter().filter(|(weight, _)| *weight > 0);
            let backends = backends.filter_map(|(_, it)| it.as_ref());
            (planned.route.clone(), backends.map(|it| &it.to.service))
        }));
        let is_gateway = |(owner, _): &RoutesOf| owner.name.starts_with("gateway");
        let secrets_before = self.secrets.clone();
        self.secrets.retain(|owner, _| !is_gateway(owner));
        let (mut doors, mut kept) = (Doors::new(), BTreeSet::new());
        for ((owner, number, _), door) in &plan.doors {
            let port = port_of(*number, door.enters);
            let table = self.table(door);
            shared.routes_of(owner, &port).store(Arc::new(table));
            let of_door = (owner.clone(), port);
            self.secrets.insert(of_door.clone(), door.secrets.clone());
            let listeners = doors.entry(owner.clone()).or_default();
            listeners.extend(listeners_of(&of_door, *number, door, config));
            kept.insert(of_door);
        }
        shared.forget_routes(|of| is_gateway(of) && !kept.contains(of));
        let differ = |owner: &&ObjectName| doors.get(*owner) != self.doors.get(*owner);
        let owners: BTreeSet<_> = doors.keys().chain(self.doors.keys()).collect();
        let owners = owners.into_iter().filter(differ).cloned().collect();
        self.doors = doors;
        (owners, self.secrets != secrets_before)
    }

    /// The targets of these Service ports. Those that nothing leads to any more part.
    fn targets<'a>(
        &mut self,
        mut before: Targets,
        backends: impl Iterator<Item = (&'a BackendRef, Option<Protocol>)>,
    ) -> Targets {
        let mut targets = Targets::new();
        for (backend, protocol) in backends {
            let key = (backend.clone(), protocol);
            if let Entry::Vacant(place) = targets.entry(key) {
                let known = before.remove(place.key());
                place.insert(known.unwrap_or_else(|| self.target(backend, protocol)));
            }
        }
        if !before.is_empty() {
            // A worker that has just read the old rules has begun its request by then.
            self.next_look = Some(Instant::now() + LOOK);
        }
        let gone = before.into_keys().map(|(backend, _)| backend.service);
        self.parting.extend(gone);
        targets
    }

    fn table(&self, door: &Door) -> RouteTable<Arc<Action>> {
        let mut table = RouteTable::default();
        table.deep = true;
        for host in &door.hosts {
            table.claim(host);
        }
        for (rule, planned) in &door.rules {
            table.add(rule, self.action(planned));
        }
        table.default = door.default.as_ref().map(|it| self.action(it));
        table
    }

    fn action(&self, planned: &Arc<Planned>) -> Arc<Action> {
        let backends = planned.backends.iter().map(|(weight, backend)| {
            let target = backend.as_ref().and_then(|backend| {
                let found = self.gateways.get(&(backend.to.clone(), backend.protocol))?;
                Some(Target {
                    filters: backend.filters.clone(),
                    ..found.clone()
                })
            });
            (*weight, target)
        });
        Arc::new(Action {
            route: planned.route.clone(),
            backends: Backends::new(backends.collect()),
            filters: planned.filters.clone().map(Box::new),
        })
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
        let targets = self.ingress.keys().chain(self.gateways.keys());
        targets
            .map(|(backend, _)| &backend.service)
            .chain(&self.parting)
    }

    /// The routes that lead to a Service, by name: the first [`MOST_NAMED`] of them.
    pub(super) fn routes_to(&self, service: &ObjectName) -> Vec<Arc<str>> {
        let of_service = self.leading.iter().filter_map(|it| it.get(service));
        of_service.flatten().take(MOST_NAMED).cloned().collect()
    }

    /// The listeners of Gateways.
    pub(super) fn doors(&self) -> &Doors {
        &self.doors
    }

    /// The Secrets that listeners with routes have, in the order in which they count.
    pub(super) fn secrets(&self) -> &BTreeMap<RoutesOf, Vec<ObjectName>> {
        &self.secrets
    }

    fn target(&mut self, backend: &BackendRef, protocol: Option<Protocol>) -> Target {
        self.last += 1;
        let (id, nowhere) = (
            ListenerId(FIRST + self.last),
            (Ipv4Addr::UNSPECIFIED, 0).into(),
        );
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
}

fn leading<'a, S>(routes: impl Iterator<Item = (Arc<str>, S)>) -> Leading
where
    S: Iterator<Item = &'a ObjectName>,
{
    let mut leading = Leading::new();
    for (route, services) in routes {
        for service in services {
            match leading.get_mut(service) {
                Some(routes) => routes.insert(route.clone()),
                None => leading
                    .entry(service.clone())
                    .or_default()
                    .insert(route.clone()),
            };
        }
    }
    leading
}

fn route_name(route: &Route<'_>) -> Arc<str> {
    format!("Ingress {}", route.of).into()
}

/// What becomes of the requests of a rule of an Ingress.
fn ingress_action(targets: &Targets, route: &Route<'_>) -> Arc<Action> {
    let backends = route.backends.iter().map(|(weight, backend)| {
        let key = ((*backend).clone(), route.protocol);
        (*weight, targets.get(&key).cloned())
    });
    Arc::new(Action {
        route: route_name(route),
        backends: Backends::new(backends.collect()),
        filters: filters(&route.filters),
    })
}

/// The same without TLS: a redirect, if the rule wants TLS.
fn or_redirect(action: &Arc<Action>, route: &Route<'_>) -> Arc<Action> {
    if !route.wants_tls {
        return action.clone();
    }
    let redirect = Redirect {
        scheme: Some("https".to_owned()),
        status: 308,
        ..Redirect::default()
    };
    Arc::new(Action {
        route: action.route.clone(),
        backends: Backends::default(),
        filters: filters(&Filters {
            redirect: Some(redirect),
            source_ranges: route.filters.source_ranges.clone(),
            ..Filters::default()
        }),
    })
}

fn filters(all: &Filters) -> Option<Box<Filters>> {
    (*all != Filters::default()).then(|| Box::new(all.clone()))
}

/// Ports of TCP and UDP have numbers of their own.
fn port_of(number: u16, enters: Enters) -> PortRef {
    match enters {
        Enters::Udp => PortRef::Name(format!("{number}/udp")),
        _ => PortRef::Number(number),
    }
}

/// The listeners of a door: one at each of its addresses.
fn listeners_of(
    (owner, port): &RoutesOf,
    number: u16,
    door: &Door,
    config: &Config,
) -> Vec<(Origin, ListenerConfig)> {
    let origin = match door.of_pool && config.addresses.is_some() {
        true => Origin::Address(AddressKind::Gateway),
        false => Origin::Configured,
    };
    let tls = (door.enters == Enters::Https).then(|| Tls {
        certificates: Vec::new(),
        secrets: Vec::new(),
        only_tls13: false,
        clients: ClientCertificates::None,
    });
    let by = match door.enters {
        Enters::Http | Enters::Https => FoundBy::Request,
        Enters::Tls => FoundBy::Name,
        Enters::Tcp | Enters::Udp => FoundBy::Connection,
    };
    let at = |ip| ListenerConfig {
        name: format!("{owner}:{number}@{ip}"),
        address: SocketAddr::new(ip, number),
        service: owner.clone(),
        port: port.clone(),
        protocol: Some(door.enters.protocol()),
        proxy_protocol: false,
        allow_connect: false,
        tls: tls.clone(),
        sni: Vec::new(),
        source_ranges: Vec::new(),
        scope: None,
        health_check: false,
        routes: Some(by),
    };
    door.addresses.iter().map(|ip| (origin, at(*ip))).collect()
}

/// How many routes a receipt names.
const MOST_NAMED: usize = 20;
/// The time between two looks at Services to which no rule leads.
const LOOK: Duration = Duration::from_secs(1);
/// The numbers of listeners that are bound are all lower.
const FIRST: u64 = 1 << 62;

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
            leading: [leading(rules.into_iter()), leading(many)],
            ..Routed::default()
        };
        assert_eq!(routed.routes_to(&cart), vec![ingress.clone()]);
        let named = routed.routes_to(&shop);
        assert_eq!((&named[0], &*named[1]), (&ingress, "HTTPRoute web/00"));
        assert_eq!(named.len(), MOST_NAMED);
        assert!(routed.routes_to(&idle).is_empty());
    }
}

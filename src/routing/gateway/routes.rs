//! Which routes lead the clients of which listeners on.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#parentreference>.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::value;
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::discovery::gateway::{GatewayKind, GatewayObject, Spec};
use crate::discovery::object::BackendRef;
use crate::discovery::route_spec::{ParentRef, RouteSpec};
use crate::routing::gateway::conditions::Says;
use crate::routing::gateway::doors::{Doors, Enters, Ours, door_of};
use crate::routing::gateway::facts::Facts;
use crate::routing::gateway::grants::GROUP;
use crate::routing::gateway::hosts::{common, covers};
use crate::routing::gateway::policies::Policies;
use crate::routing::gateway::rules::{self, Planned, PlannedBackend, Rules};
use crate::routing::gateway::statuses::{Parent, Statuses};

/// Leads clients on by all routes, the oldest first.
pub fn lead<'a>(
    doors: &mut Doors,
    ours: &mut [Ours<'a>],
    statuses: &mut Statuses<'_>,
    policies: &mut Policies<'_>,
    facts: &Facts<'a>,
) {
    let mut routes: Vec<(&GatewayObject, &RouteSpec)> = facts
        .objects
        .values()
        .filter_map(|object| match &object.spec {
            Spec::Route(spec) => Some((&**object, spec)),
            _ => None,
        })
        .collect();
    routes.sort_by_key(|(object, _)| (object.created, &object.name, object.kind));
    for (route, spec) in routes {
        let mut made: Option<Made<'_>> = None;
        let mut parents = Vec::new();
        // A listener counts a route once, however many of its references name it.
        let mut counted = BTreeSet::new();
        for reference in &spec.parent_refs {
            let Some(place) = parent(route, reference, ours) else {
                continue;
            };
            let made = &*made.get_or_insert_with(|| Made::of(route, spec, policies, facts));
            let accepted = attach(
                doors,
                &mut ours[place],
                place,
                made,
                reference,
                &mut counted,
                facts,
            );
            if accepted.is_ok() && made.meets_policies(&ours[place]) {
                for (to, port) in made.services() {
                    policies.reach(to, port, place, facts);
                }
            }
            parents.push(Parent {
                reference,
                accepted,
                resolved: made.resolved.clone(),
            });
        }
        statuses.route(route, &parents, facts);
    }
}

/// The Gateway of ours that a reference names.
fn parent(route: &GatewayObject, to: &ParentRef, ours: &[Ours<'_>]) -> Option<usize> {
    let is = |found: &Option<String>, wanted: &str| found.as_deref().is_none_or(|it| it == wanted);
    if !is(&to.kind, "Gateway") || !is(&to.group, GROUP) {
        return None;
    }
    let namespace = to.namespace.as_ref().unwrap_or(&route.name.namespace);
    let mut all = ours.iter();
    all.position(|it| it.object.name.namespace == *namespace && it.object.name.name == to.name)
}

/// A route, and what does not depend on who leads to it.
struct Made<'a> {
    route: &'a GatewayObject,
    spec: &'a RouteSpec,
    name: Arc<str>,
    /// What serves each rule.
    backends: Vec<Vec<(u32, Option<PlannedBackend>)>>,
    /// Whether all that it asks for is supported.
    supported: Says,
    /// Whether all that it names can be served.
    resolved: Says,
}

impl<'a> Made<'a> {
    fn of(
        route: &'a GatewayObject,
        spec: &'a RouteSpec,
        policies: &Policies<'_>,
        facts: &Facts<'_>,
    ) -> Self {
        let (mut supported, mut resolved) = (Ok(()), Ok(()));
        let protocol = rules::protocol(route.kind);
        let has_policies = has_policies(route.kind);
        let backends = spec.rules.iter().map(|rule| {
            let each = rule.backend_refs.iter().map(|it| {
                let served = rules::backend(route, it, facts)
                    .map_err(|why| resolved = resolved.clone().and(Err(why)))
                    .ok();
                let filters = rules::filters(&it.filters, None)
                    .map_err(|why| supported = Err(why))
                    .ok()
                    .flatten();
                let filters = filters.map(Arc::new);
                let planned = served.map(|to| PlannedBackend {
                    backend: it
                        .port
                        .filter(|_| has_policies)
                        .and_then(|port| policies.backend(&to.service, port, facts)),
                    to,
                    protocol,
                    filters,
                    has_policies,
                });
                (it.weight.unwrap_or(1), planned)
            });
            each.collect()
        });
        let backends = backends.collect();
        let mut made = Self {
            route,
            spec,
            name: format!("{} {}", route.kind.names().0, route.name).into(),
            backends,
            supported,
            resolved,
        };
        if let Some(host) = spec.hostnames.iter().find(|it| !value::host(it)) {
            let what = format!("hostname {host:?} is no name such as shop.example or *.example");
            made.supported = Err(("UnsupportedValue", what));
        }
        if made.supported.is_ok() {
            let mut all = (0..spec.rules.len()).map(|i| made.rules(i, None, false).map(drop));
            made.supported = all.find(Result::is_err).unwrap_or(Ok(()));
        }
        made
    }

    fn rules(
        &self,
        i: usize,
        host: Option<&String>,
        ends_tls: bool,
    ) -> Result<Rules, (&'static str, String)> {
        let mut backends = self.backends[i].clone();
        if self.route.kind == GatewayKind::TlsRoute && !ends_tls {
            for (_, backend) in &mut backends {
                *backend = backend.take().map(PlannedBackend::passed_on);
            }
        }
        rules::rules(self.route.kind, host, &self.spec.rules[i], |filters| {
            Planned {
                route: self.name.clone(),
                backends: backends.clone(),
                filters,
                ends_tls,
            }
        })
    }

    /// Whether policies count for the clients of this Gateway.
    fn meets_policies(&self, gateway: &Ours<'_>) -> bool {
        let passes_on = self.route.kind == GatewayKind::TlsRoute;
        let ends_tls = || gateway.listeners.iter().any(|it| it.ends_tls());
        has_policies(self.route.kind) && (!passes_on || ends_tls())
    }

    /// Every Service port that serves something.
    fn services(&self) -> impl Iterator<Item = (&ObjectName, u16)> {
        let backends = self.backends.iter().flatten();
        backends.filter_map(|(_, it)| match it.as_ref()?.to {
            BackendRef {
                ref service,
                port: PortRef::Number(port),
            } => Some((service, port)),
            _ => None,
        })
    }
}

/// Whether BackendTLSPolicies count for routes of a kind: where Ebbtide ends a client's TLS, or there is none
/// and the client speaks HTTP.
fn has_policies(kind: GatewayKind) -> bool {
    matches!(
        kind,
        GatewayKind::HttpRoute | GatewayKind::GrpcRoute | GatewayKind::TlsRoute
    )
}

/// Leads the clients of a Gateway's listeners on by a route, where the listeners allow it.
fn attach(
    doors: &mut Doors,
    gateway: &mut Ours<'_>,
    place: usize,
    made: &Made<'_>,
    to: &ParentRef,
    counted: &mut BTreeSet<(usize, usize)>,
    facts: &Facts<'_>,
) -> Says {
    made.supported.clone()?;
    let route = made.route;
    let is_named = |it: &&usize| {
        let listener = gateway.listeners[**it].spec;
        to.section_name
            .as_ref()
            .is_none_or(|name| *name == listener.name)
            && to.port.is_none_or(|port| port == listener.port)
    };
    let all: Vec<usize> = (0..gateway.listeners.len()).collect();
    let named: Vec<usize> = all.iter().filter(is_named).copied().collect();
    if named.is_empty() {
        let what = "the Gateway has no such listener".to_owned();
        return Err(("NoMatchingParent", what));
    }
    let allowed = named.into_iter().filter(|&i| {
        gateway.listeners[i].allows(gateway.object, route.kind, &route.name.namespace, facts)
    });
    let allowed: Vec<usize> = allowed.collect();
    if allowed.is_empty() {
        let what = "no listener allows routes of this kind and namespace".to_owned();
        return Err(("NotAllowedByListeners", what));
    }
    let mut is_attached = false;
    for i in allowed {
        let found = &gateway.listeners[i];
        let enters = matches!(route.kind, GatewayKind::TcpRoute | GatewayKind::UdpRoute);
        let hosts = match enters {
            true => vec![None],
            false => common(found.spec.hostname.as_deref(), &made.spec.hostnames),
        };
        if hosts.is_empty() {
            continue;
        }
        is_attached = true;
        if let Some(door) = doors.get_mut(&door_of(gateway.object, found, facts))
            && found.is_open()
        {
            match door.enters {
                Enters::Tcp | Enters::Udp => {
                    let first = (0..made.spec.rules.len()).next();
                    let first =
                        first.and_then(|i| made.rules(i, None, false).ok()?.into_iter().next());
                    door.default = door.default.take().or(first.map(|(_, planned)| planned));
                }
                _ => {
                    let own = found.spec.hostname.as_deref().map(str::to_ascii_lowercase);
                    let own = own.filter(|it| !it.is_empty());
                    // Hosts of a listener that is more exact are not this one's.
                    let is_ours = |host: &&Option<String>| {
                        let mut others = door.hosts.iter().filter(|it| Some(*it) != own.as_ref());
                        host.as_ref().is_none_or(|host| {
                            !others.any(|it| {
                                let is_narrower = own.as_ref().is_none_or(|own| covers(own, it));
                                is_narrower && covers(it, host)
                            })
                        })
                    };
                    for host in hosts.iter().filter(is_ours) {
                        for rule in 0..made.spec.rules.len() {
                            let rules = made
                                .rules(rule, host.as_ref(), found.ends_tls())
                                .unwrap_or_default();
                            door.rules.extend(rules);
                        }
                    }
                }
            }
        }
        if counted.insert((place, i)) {
            gateway.listeners[i].attached += 1;
        }
    }
    match is_attached {
        true => Ok(()),
        false => Err((
            "NoMatchingListenerHostname",
            "no listener has one of its hosts".to_owned(),
        )),
    }
}

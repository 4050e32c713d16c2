//! All that the Gateway API's objects come to: where clients come in, what becomes of their requests, and
//! what is said of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::contract::name::ObjectName;
use crate::discovery::gateway::{GatewayKind, GatewayObject, GatewaySpec, Spec};
use crate::routing::gateway::addresses::{self, Given};
use crate::routing::gateway::doors::{Door, Doors, Enters, Ours, door_of};
use crate::routing::gateway::facts::Facts;
use crate::routing::gateway::listeners::{Found, note_conflicts};
use crate::routing::gateway::policies::Policies;
use crate::routing::gateway::routes;
use crate::routing::gateway::rules::PlannedBackend;
use crate::routing::gateway::statuses::Statuses;

/// All that the objects come to.
#[derive(Debug, Default)]
pub struct Plan {
    /// Where clients come in.
    pub doors: Doors,
    /// The statuses of objects that do not say what they should.
    pub statuses: BTreeMap<(GatewayKind, ObjectName), Value>,
    /// BackendTLSPolicies that count for no route.
    pub idle_policies: Vec<ObjectName>,
}

impl Plan {
    /// Makes a plan.
    pub fn of(facts: &Facts<'_>) -> Self {
        let objects = || facts.objects.values().map(|it| &**it);
        let mut statuses = Statuses::new(&facts.now);
        let mut classes = BTreeSet::new();
        for object in objects() {
            if let Spec::Class(class) = &object.spec
                && class.controller_name == facts.settings.controller
            {
                classes.insert(&*object.name.name);
                statuses.class(object);
            }
        }
        let mut gateways: Vec<(&GatewayObject, &GatewaySpec)> = objects()
            .filter_map(|object| match &object.spec {
                Spec::Gateway(spec) => Some((object, spec)),
                _ => None,
            })
            .filter(|(_, spec)| classes.contains(spec.gateway_class_name.as_str()))
            .collect();
        gateways.sort_by_key(|(object, _)| (object.created, &object.name));
        let shares = facts.settings.addresses.is_empty();
        let given = match shares {
            false => addresses::give(gateways.iter().copied(), &facts.settings.addresses),
            true => gateways.iter().map(|(_, spec)| shared(spec)).collect(),
        };
        let mut ours: Vec<Ours<'_>> = gateways
            .into_iter()
            .zip(given)
            .map(|((object, spec), given)| {
                let listeners = spec.listeners.iter();
                let mut listeners: Vec<_> =
                    listeners.map(|it| Found::of(object, it, facts)).collect();
                note_conflicts(&mut listeners);
                Ours {
                    object,
                    spec,
                    given,
                    listeners,
                }
            })
            .collect();
        let mut plan = Self::default();
        plan.open(&mut ours, facts);
        let mut policies = Policies::of(facts);
        routes::lead(
            &mut plan.doors,
            &mut ours,
            &mut statuses,
            &mut policies,
            facts,
        );
        for gateway in &ours {
            statuses.gateway(gateway, facts);
        }
        for said in policies.said(facts) {
            statuses.policy(&said, &ours, facts);
            if said.ancestors.is_empty() {
                plan.idle_policies.push(said.object.name.clone());
            }
        }
        plan.statuses = statuses.differ;
        plan
    }

    /// Every Service port that serves something, and how.
    pub fn backends(&self) -> impl Iterator<Item = &PlannedBackend> {
        let doors = self.doors.values();
        let planned = doors.flat_map(|door| {
            let rules = door.rules.iter().map(|(_, planned)| planned);
            rules.chain(&door.default)
        });
        let backends = planned.flat_map(|it| it.backends.iter());
        backends.filter_map(|(_, it)| it.as_ref())
    }

    /// Opens the doors of listeners that are served.
    fn open(&mut self, ours: &mut [Ours<'_>], facts: &Facts<'_>) {
        for gateway in ours {
            let Some(addresses) = addresses_of(gateway, facts) else {
                continue;
            };
            for found in gateway.listeners.iter_mut().filter(|it| it.is_open()) {
                let enters = Enters::of(&found.spec.protocol);
                let door = self
                    .doors
                    .entry(door_of(gateway.object, found, facts))
                    .or_insert(Door {
                        enters,
                        addresses: addresses.clone(),
                        of_pool: !facts.settings.addresses.is_empty(),
                        secrets: Vec::new(),
                        rules: Vec::new(),
                        default: None,
                        hosts: BTreeSet::new(),
                        has_rest: false,
                    });
                // Of Gateways that share addresses, the oldest decides what a port speaks.
                if door.enters != enters {
                    found.yield_port(door.enters.protocol_name());
                    continue;
                }
                match found.spec.hostname.as_ref().filter(|it| !it.is_empty()) {
                    Some(host) => _ = door.hosts.insert(host.to_ascii_lowercase()),
                    None => door.has_rest = true,
                }
                for secret in &found.secrets {
                    if !door.secrets.contains(secret) {
                        door.secrets.push(secret.clone());
                    }
                }
            }
        }
    }
}

fn addresses_of(gateway: &Ours<'_>, facts: &Facts<'_>) -> Option<Vec<IpAddr>> {
    match facts.settings.addresses.is_empty() {
        true => gateway
            .given
            .programmed
            .is_ok()
            .then(|| vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]),
        false => Some(vec![gateway.given.address?]),
    }
}

/// Gateways that share the node's addresses can ask for none.
fn shared(spec: &GatewaySpec) -> Given {
    let asks = spec.addresses.iter().find_map(|it| it.value.as_deref());
    let programmed = match asks {
        None => Ok(()),
        Some(it) => Err((
            "AddressNotUsable",
            format!("{it} is not in gateway.addresses, which names none"),
        )),
    };
    Given {
        address: None,
        accepted: Ok(()),
        programmed,
    }
}

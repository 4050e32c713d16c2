//! All that the Gateway API's objects come to: where clients come in, what becomes of their requests, and
//! what is said of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde_json::Value;

use crate::config::settings;
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::contract::route::Rule;
use crate::discovery::gateway::{GatewayKind, GatewayObject, GatewaySpec, Spec};
use crate::discovery::object::BackendRef;
use crate::routing::gateway::addresses::{self, Given};
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::listeners::{Found, note_conflicts};
use crate::routing::gateway::routes;
use crate::routing::gateway::rules::Planned;
use crate::routing::gateway::statuses::Statuses;

/// All objects of the Gateway API.
pub type Objects = BTreeMap<(GatewayKind, ObjectName), Arc<GatewayObject>>;

/// What is known of another object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It is there, and can be used.
    Is(()),
    /// It may be there: it has not been read yet.
    Unknown,
    /// It is not there, or cannot be used, for this reason.
    Missing(String),
}

/// What a plan is made of.
pub struct Facts<'a> {
    /// Which Gateways are ours, and their addresses.
    pub settings: &'a settings::Gateway,
    /// The addresses of this node, for Gateways that share them.
    pub node: &'a [IpAddr],
    /// All objects.
    pub objects: &'a Objects,
    /// Who may refer to objects of other namespaces.
    pub grants: Grants<'a>,
    /// What is known of a port of a Service. The last argument: whether it is one of UDP.
    pub service: &'a dyn Fn(&ObjectName, u16, bool) -> Known,
    /// What is known of a Secret with a certificate.
    pub secret: &'a dyn Fn(&ObjectName) -> Known,
    /// The time, as the API writes it.
    pub now: String,
}

/// All that the objects come to.
#[derive(Debug, Default)]
pub struct Plan {
    /// Where clients come in.
    pub doors: BTreeMap<(ObjectName, u16, bool), Door>,
    /// The statuses of objects that do not say what they should.
    pub statuses: BTreeMap<(GatewayKind, ObjectName), Value>,
}

/// A port where clients come in.
#[derive(Debug)]
pub struct Door {
    /// How they are served.
    pub enters: Enters,
    /// The addresses with this port.
    pub addresses: Vec<IpAddr>,
    /// Whether the addresses are Ebbtide's to give, and not the node's own.
    pub of_pool: bool,
    /// The Secrets with certificates, in the order in which they count.
    pub secrets: Vec<ObjectName>,
    /// The rules, in the order in which they count.
    pub rules: Vec<(Rule, Arc<Planned>)>,
    /// What gets every connection or session.
    pub default: Option<Arc<Planned>>,
    /// Hosts that belong to a listener: what it has no rule for goes to no other.
    pub hosts: BTreeSet<String>,
}

/// How clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enters {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// TLS, which is passed on.
    Tls,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Enters {
    fn of(protocol: &str) -> Self {
        match protocol {
            "HTTPS" => Self::Https,
            "TLS" => Self::Tls,
            "TCP" => Self::Tcp,
            "UDP" => Self::Udp,
            _ => Self::Http,
        }
    }

    /// What its listener speaks.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http | Self::Https => Protocol::Http,
            Self::Tls | Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
        }
    }
}

/// A Gateway of ours, and what is found out about it.
#[derive(Debug)]
pub struct Ours<'a> {
    /// The object.
    pub object: &'a GatewayObject,
    /// What it asks for.
    pub spec: &'a GatewaySpec,
    /// Its address.
    pub given: Given,
    /// Its listeners.
    pub listeners: Vec<Found<'a>>,
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
        plan.open(&ours, facts);
        routes::lead(&mut plan, &mut ours, &mut statuses, facts);
        for gateway in &ours {
            statuses.gateway(gateway, facts);
        }
        plan.statuses = statuses.differ;
        plan
    }

    /// Every Service port that serves something, and what its endpoints speak.
    pub fn backends(&self) -> impl Iterator<Item = (&BackendRef, Option<Protocol>)> {
        let doors = self.doors.values();
        let planned = doors.flat_map(|door| {
            let rules = door.rules.iter().map(|(_, planned)| planned);
            rules.chain(&door.default)
        });
        let backends = planned.flat_map(|it| it.backends.iter());
        backends.filter_map(|(_, it)| it.as_ref().map(|it| (&it.to, it.protocol)))
    }

    /// Opens the doors of listeners that are served.
    fn open(&mut self, ours: &[Ours<'_>], facts: &Facts<'_>) {
        for gateway in ours {
            for found in gateway.listeners.iter().filter(|it| it.is_served()) {
                let Some(addresses) = addresses_of(gateway, facts) else {
                    continue;
                };
                let enters = Enters::of(&found.spec.protocol);
                let door = self
                    .doors
                    .entry(door_of(gateway, found, facts))
                    .or_insert(Door {
                        enters,
                        addresses,
                        of_pool: !facts.settings.addresses.is_empty(),
                        secrets: Vec::new(),
                        rules: Vec::new(),
                        default: None,
                        hosts: BTreeSet::new(),
                    });
                // Of Gateways that share addresses, the oldest decides what a port speaks.
                if door.enters != enters {
                    continue;
                }
                let host = found.spec.hostname.iter().filter(|it| !it.is_empty());
                door.hosts.extend(host.map(|it| it.to_ascii_lowercase()));
                for secret in &found.secrets {
                    if !door.secrets.contains(secret) {
                        door.secrets.push(secret.clone());
                    }
                }
            }
        }
    }
}

/// The door of a listener.
pub fn door_of(
    gateway: &Ours<'_>,
    found: &Found<'_>,
    facts: &Facts<'_>,
) -> (ObjectName, u16, bool) {
    let owner = match facts.settings.addresses.is_empty() {
        true => ObjectName::new("", "gateway"),
        false => {
            let name = &gateway.object.name;
            ObjectName::new(&*name.namespace, format!("gateway/{}", name.name))
        }
    };
    (owner, found.spec.port, found.spec.protocol == "UDP")
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

//! Plans of the Gateway API's objects, made on a thread of their own: a drain never waits for one.
//!
//! Invariant: the planner knows nothing that it was not told, and is told each thing once. So what it is
//! told costs what has changed, and a plan costs the control thread what it changes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::cluster::status::Wanted;
use crate::config::settings::{self, Config, ListenerConfig};
use crate::config::tls::{ClientCertificates, Tls};
use crate::contract::address::AddressKind;
use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::listener::{Action, Backends, FoundBy, Target};
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::contract::route::RouteTable;
use crate::control::certificates::RoutesOf;
use crate::control::targets::{Of, Targets};
use crate::control::wanted::{Doors, Origin};
use crate::discovery::files::NOWHERE;
use crate::discovery::gateway::{GatewayKind, GatewayObject};
use crate::routing::gateway::doors::{Door, Enters};
use crate::routing::gateway::facts::{Facts, Known, Objects, Ports, known_port, port_name};
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::plan::Plan;
use crate::routing::gateway::rules::{Planned, PlannedBackend};
use crate::routing::gateway::statuses;

/// What the planner has not been told yet.
#[derive(Debug, Default)]
pub struct News {
    /// Objects of the Gateway API; `None`: it is gone.
    pub objects: BTreeMap<(GatewayKind, ObjectName), Option<Arc<GatewayObject>>>,
    /// Services that routes name.
    pub services: BTreeMap<ObjectName, Told>,
    /// Secrets, and why one gives no certificate.
    pub secrets: BTreeMap<ObjectName, Result<(), String>>,
    /// Objects with authorities; `None`: nobody looks at it any more.
    pub authorities: BTreeMap<Holder, Option<FoundAuthorities>>,
    /// A Secret of which nothing is known does not exist, and neither does an object with authorities.
    pub knows_all_secrets: bool,
}

/// What is known of a Service; `None`: it may be there, and has not been read.
pub type Told = Option<Ports>;

/// The names of the routes that lead to each Service.
pub type Leading = BTreeMap<ObjectName, BTreeSet<Arc<str>>>;

/// What a plan comes to.
#[derive(Debug, Default)]
pub struct InForce {
    /// What becomes of requests, by what a listener belongs to.
    pub tables: Vec<(RoutesOf, Arc<RouteTable<Arc<Action>>>)>,
    /// The listeners.
    pub doors: Doors,
    /// Their Secrets, in the order in which they count.
    pub secrets: BTreeMap<RoutesOf, Vec<ObjectName>>,
    /// Services to which routes lead.
    pub leading: Leading,
    /// All Services that routes name, also those that do not exist.
    pub services: BTreeSet<ObjectName>,
    /// Secrets that Gateways name, also those that do not exist.
    pub secret_names: BTreeSet<ObjectName>,
    /// Objects with authorities that policies name, also those that do not exist.
    pub holders: BTreeSet<Holder>,
    /// The statuses of objects that do not say what they should, by [`Wanted::resource`].
    pub statuses: BTreeMap<(GatewayKind, ObjectName), Wanted>,
    /// What is not served, where nobody writes statuses.
    pub faults: BTreeSet<String>,
}

/// A plan, and how it differs from the one before.
#[derive(Debug)]
pub struct Made {
    /// The plan.
    pub plan: Arc<InForce>,
    /// Services that are named first, or are named no more.
    pub differ: Vec<ObjectName>,
    /// Services to which rules lead no more.
    pub gone: Vec<ObjectName>,
    /// When it was begun, and how long it took.
    pub began: Instant,
    /// See `began`.
    pub took: Duration,
}

/// Makes plans.
#[derive(Debug)]
pub struct Planner {
    settings: settings::Gateway,
    /// The addresses of this node, for Gateways that share them.
    node: Vec<IpAddr>,
    /// Whether addresses are Ebbtide's to give.
    has_pool: bool,
    /// Whether somebody writes statuses.
    writes: bool,
    objects: Objects,
    known: News,
    targets: Targets,
    /// The newest plan, and older ones that a worker or the control loop may still read. What is large is
    /// freed on the planner's thread.
    plans: Vec<Arc<InForce>>,
}

impl Planner {
    /// Knows nothing yet. `writes`: somebody writes statuses.
    pub fn new(config: &Config, writes: bool) -> Option<Self> {
        let addresses = config.addresses.as_ref();
        Some(Self {
            settings: config.gateway.clone()?,
            node: addresses.map(|it| it.nodes.clone()).unwrap_or_default(),
            has_pool: addresses.is_some(),
            writes,
            objects: Objects::new(),
            known: News::default(),
            targets: Targets::of_gateways(),
            plans: Vec::new(),
        })
    }

    /// Makes plans on a thread of its own from now on: one for each news.
    ///
    /// # Errors
    /// The kernel's; then nothing has begun.
    pub fn start(mut self, made: mpsc::UnboundedSender<Made>) -> std::io::Result<Sender<News>> {
        let (sender, news) = channel();
        let run = move || {
            while let Some(news) = self.next(&news) {
                if made.send(self.plan(news)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("planner".into());
        thread.spawn(run).map(|_| sender)
    }

    /// Waits for news, and frees plans that nobody reads any more.
    fn next(&mut self, news: &Receiver<News>) -> Option<News> {
        loop {
            let last = self.plans.len().saturating_sub(1);
            let mut at = 0..self.plans.len();
            // The last is the one in force, or soon will be.
            self.plans
                .retain(|plan| at.next() == Some(last) || !is_unread(plan));
            match self.plans.len() {
                0 | 1 => return news.recv().ok(),
                _ => match news.recv_timeout(SWEEP) {
                    Ok(news) => return Some(news),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return None,
                },
            }
        }
    }

    /// Takes in what is new, and makes a plan.
    pub fn plan(&mut self, news: News) -> Made {
        let began = Instant::now();
        for (key, object) in news.objects {
            match object {
                Some(object) => _ = self.objects.insert(key, object),
                None => _ = self.objects.remove(&key),
            }
        }
        self.known.services.extend(news.services);
        self.known.secrets.extend(news.secrets);
        self.known.authorities.extend(news.authorities);
        self.known.authorities.retain(|_, found| found.is_some());
        self.known.knows_all_secrets |= news.knows_all_secrets;
        let named = Named::default();
        let plan = self.plan_of(&named);
        let backends = plan.backends();
        let backends = backends.map(|it| (of(it), it.backend.as_ref()));
        let gone = self.targets.become_those(backends);
        let mut made = self.in_force(&plan);
        made.services = named.services.into_inner();
        made.secret_names = named.secrets.into_inner();
        made.holders = named.holders.into_inner();
        // The control thread forgets these Services, too, when it takes this plan in.
        (self.known.services).retain(|name, _| made.services.contains(name));
        let nothing = BTreeSet::new();
        let before = self.plans.last().map_or(&nothing, |it| &it.services);
        let differ = made.services.symmetric_difference(before);
        let differ = differ.cloned().collect();
        let made = Arc::new(made);
        self.plans.push(made.clone());
        Made {
            plan: made,
            differ,
            gone,
            began,
            took: began.elapsed(),
        }
    }

    fn plan_of(&self, named: &Named) -> Plan {
        let service = |name: &ObjectName, port: u16, is_udp: bool| {
            let mut services = named.services.borrow_mut();
            if !services.contains(name) {
                services.insert(name.clone());
            }
            match self.known.services.get(name) {
                Some(Some(ports)) => known_port(ports, name, port, is_udp),
                _ => Known::Unknown,
            }
        };
        let secret = |name: &ObjectName| {
            named.secrets.borrow_mut().insert(name.clone());
            match self.known.secrets.get(name) {
                Some(Ok(())) => Known::Is(()),
                Some(Err(why)) => Known::Missing(why.clone()),
                None if self.known.knows_all_secrets => Known::Missing("it does not exist".into()),
                None => Known::Unknown,
            }
        };
        let authorities = |holder: &Holder| {
            named.holders.borrow_mut().insert(holder.clone());
            match self.known.authorities.get(holder) {
                Some(found) => found.clone(),
                None => (self.known.knows_all_secrets).then(|| Err(NOWHERE.to_owned())),
            }
        };
        Plan::of(&Facts {
            settings: &self.settings,
            node: &self.node,
            objects: &self.objects,
            grants: Grants::of(self.objects.values().map(|it| &**it)),
            service: &service,
            port_name: &|name, port| {
                let ports = self.known.services.get(name)?.as_ref()?;
                port_name(ports, port)
            },
            secret: &secret,
            authorities: &authorities,
            now: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        })
    }

    /// What the workers, the listeners and the statuses get of a plan.
    fn in_force(&self, plan: &Plan) -> InForce {
        let planned = plan.doors.values();
        let planned = planned.flat_map(|it| it.rules.iter().map(|(_, it)| it).chain(&it.default));
        let mut made = InForce {
            leading: leading(planned.map(|planned| {
                let backends = planned.backends.iter().filter(|(weight, _)| *weight > 0);
                let backends = backends.filter_map(|(_, it)| it.as_ref());
                (planned.route.clone(), backends.map(|it| &it.to.service))
            })),
            ..InForce::default()
        };
        for ((owner, number, _), door) in &plan.doors {
            let of_door = (owner.clone(), port_of(*number, door.enters));
            let listeners = made.doors.entry(owner.clone()).or_default();
            listeners.extend(listeners_of(&of_door, *number, door, self.has_pool));
            made.secrets.insert(of_door.clone(), door.secrets.clone());
            made.tables.push((of_door, Arc::new(self.table(door))));
        }
        for (key, status) in &plan.statuses {
            let Some(object) = self.objects.get(key) else {
                continue;
            };
            if self.writes {
                let wanted = Wanted {
                    resource: key.0.resource(),
                    name: key.1.clone(),
                    status: status.clone(),
                    now: object.status.clone(),
                    version: object.version.clone(),
                };
                made.statuses.insert(key.clone(), wanted);
            } else {
                let (kind, name) = (key.0.names().0, &key.1);
                let texts = statuses::faults(status).into_iter();
                let texts = texts.map(|text| format!("{kind} {name}: {text}"));
                made.faults.extend(texts);
            }
        }
        made
    }

    fn table(&self, door: &Door) -> RouteTable<Arc<Action>> {
        let mut table = RouteTable::default();
        table.deep = true;
        table.rest_is_owned = door.has_rest;
        for host in &door.hosts {
            table.claim(host);
        }
        for (rule, planned) in &door.rules {
            table.add(rule, self.action(planned));
        }
        table.default = door.default.as_ref().map(|it| self.action(it));
        table
    }

    fn action(&self, planned: &Planned) -> Arc<Action> {
        let backends = planned.backends.iter().map(|(weight, backend)| {
            let target = backend.as_ref().and_then(|backend| {
                let found = self.targets.get(&of(backend))?;
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
            ends_tls: planned.ends_tls,
        })
    }
}

/// What a plan names.
#[derive(Default)]
struct Named {
    services: RefCell<BTreeSet<ObjectName>>,
    secrets: RefCell<BTreeSet<ObjectName>>,
    holders: RefCell<BTreeSet<Holder>>,
}

fn of(it: &PlannedBackend) -> Of {
    Of {
        to: it.to.clone(),
        protocol: it.protocol,
        has_policies: it.has_policies,
    }
}

/// Whether neither the control loop nor a worker can reach a plan any more.
fn is_unread(plan: &Arc<InForce>) -> bool {
    let tables = plan.tables.iter();
    Arc::strong_count(plan) == 1 && tables.map(|(_, it)| Arc::strong_count(it)).all(|n| n == 1)
}

/// The routes that lead to each Service. `routes`: each with its Services.
pub fn leading<'a, S>(routes: impl Iterator<Item = (Arc<str>, S)>) -> Leading
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
    has_pool: bool,
) -> Vec<(Origin, ListenerConfig)> {
    let origin = match door.of_pool && has_pool {
        true => Origin::Address(AddressKind::Gateway),
        false => Origin::Configured,
    };
    // Where TLS is only passed on, there is no certificate.
    let ends_tls = match door.enters {
        Enters::Https => true,
        Enters::Tls => !door.secrets.is_empty(),
        Enters::Http | Enters::Tcp | Enters::Udp => false,
    };
    let tls = ends_tls.then(|| Tls {
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
        name: format!("{owner}:{port}@{ip}"),
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

/// How often the planner looks whether old plans can be freed.
const SWEEP: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;

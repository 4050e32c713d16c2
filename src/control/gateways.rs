//! The Gateway API in force: when its objects are planned again, and what a plan changes.
//!
//! Invariant: many changes that come together cost one plan, and a plan costs the control loop at most a
//! part of its time. Statuses are written by somebody else (`cluster/status.rs`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::cluster::status::Wanted;
use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
use crate::control::event_loop::Control;
use crate::discovery::gateway::GatewayKind;
use crate::routing::change::Chores;
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::plan::{Facts, Known, Plan};
use crate::routing::world::objects::{Touched, World};

/// What the last plan was made of, beside the objects of the Gateway API.
#[derive(Default)]
pub struct Gateways {
    /// When the objects are planned again.
    due: Option<Instant>,
    /// When they were planned last, and how long that took.
    last: Option<(Instant, Duration)>,
    /// Services that routes name: since when, and their ports at the last plan.
    services: BTreeMap<ObjectName, (Instant, Ports)>,
    /// Secrets that Gateways name.
    secrets: BTreeSet<ObjectName>,
    /// What is known of Secrets. `Err`: why one gives no certificate.
    certificates: BTreeMap<ObjectName, Result<(), String>>,
    /// A Secret of which nothing is known does not exist.
    knows_all_secrets: bool,
    /// Objects of which something else is to be said than what they say.
    differ: BTreeSet<(GatewayKind, ObjectName)>,
}

/// The ports of a Service; `None`: there is no such Service.
type Ports = Option<Vec<(u16, Transport)>>;

impl Gateways {
    /// Plans soon. Plans that take long are made less often.
    pub(super) fn note(&mut self) {
        let now = Instant::now();
        let at = self.last.map_or(now, |(at, took)| {
            let pause = PAUSE.max(took * SHARE);
            now.max(at + pause)
        });
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When the objects are planned again.
    pub(super) fn next_plan(&self) -> Option<Instant> {
        self.due
    }

    /// Takes in what is known of a Secret.
    pub(super) fn secret(&mut self, name: &ObjectName, found: Result<(), String>) {
        if self.certificates.get(name) != Some(&found) {
            self.certificates.insert(name.clone(), found);
            if self.secrets.contains(name) {
                self.note();
            }
        }
    }

    /// From here on, a Secret of which nothing is known does not exist.
    pub(super) fn all_secrets_are_known(&mut self) {
        self.knows_all_secrets = true;
    }

    /// Takes in which Services may have changed.
    pub(super) fn touched(&mut self, services: &BTreeSet<ObjectName>, world: &World) {
        let mut named = services
            .iter()
            .filter_map(|name| Some((name, self.services.get(name)?)));
        if named.any(|(name, (_, ports))| ports_of(world, name) != *ports) {
            self.note();
        }
    }

    /// All Services that routes name, also those that do not exist.
    pub(super) fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// All Secrets that Gateways name, also those that do not exist.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &ObjectName> {
        self.secrets.iter()
    }
}

impl Control {
    /// Plans again, and puts the plan in force.
    pub(super) fn plan(&mut self) -> Chores {
        self.gateways.due = None;
        let Some(settings) = self.config.gateway.clone() else {
            return Chores::default();
        };
        if !self.health.is_synced() {
            return Chores::default();
        }
        let (began, before) = (Instant::now(), self.named());
        let (named, secrets) = (RefCell::default(), RefCell::default());
        let plan = {
            let (world, known) = (&self.world, &self.gateways);
            let service = |name: &ObjectName, port: u16, is_udp: bool| {
                let mut named: std::cell::RefMut<'_, BTreeMap<_, _>> = named.borrow_mut();
                let (since, ports) = named.entry(name.clone()).or_insert_with(|| {
                    let since = known.services.get(name).map_or(began, |(since, _)| *since);
                    (since, ports_of(world, name))
                });
                let may_come = self.in_use_is_watched() && began < *since + FIRST_LOOK;
                known_port(ports, name, port, is_udp, may_come)
            };
            let secret = |name: &ObjectName| {
                let mut secrets: std::cell::RefMut<'_, BTreeSet<_>> = secrets.borrow_mut();
                secrets.insert(name.clone());
                match known.certificates.get(name) {
                    Some(Ok(())) => Known::Is(()),
                    Some(Err(why)) => Known::Missing(why.clone()),
                    None if known.knows_all_secrets => Known::Missing("it does not exist".into()),
                    None => Known::Unknown,
                }
            };
            let node = self
                .config
                .addresses
                .as_ref()
                .map_or(&[][..], |it| &it.nodes);
            Plan::of(&Facts {
                settings: &settings,
                node,
                objects: world.gateways(),
                grants: Grants::of(world.gateways().values().map(|it| &**it)),
                service: &service,
                secret: &secret,
                now: jiff::Timestamp::now()
                    .strftime("%Y-%m-%dT%H:%M:%SZ")
                    .to_string(),
            })
        };
        self.gateways.services = named.into_inner();
        self.gateways.secrets = secrets.into_inner();
        self.say(&plan);
        let (owners, secrets_differ) = self.routed.take_plan(&plan, &self.config, &self.shared);
        if secrets_differ {
            self.certificates.of_routes(self.routed.secrets().clone());
        }
        let touched = Touched {
            services: self.name_services(&before, true),
            ..Touched::default()
        };
        let mut chores = self.table.apply(&self.world, &touched, Instant::now());
        chores.listeners.extend(owners);
        // A Service that has not been read by then does not exist.
        let mut unread = self.gateways.services.values();
        if unread.any(|(since, ports)| ports.is_none() && began < *since + FIRST_LOOK) {
            self.gateways.due = Some(began + FIRST_LOOK + PAUSE);
        }
        self.gateways.last = Some((began, began.elapsed()));
        chores
    }

    /// Tells the writer what is to be said of objects.
    fn say(&mut self, plan: &Plan) {
        let objects = self.world.gateways();
        let before = std::mem::take(&mut self.gateways.differ);
        for (kind, name) in before {
            if !plan.statuses.contains_key(&(kind, name.clone())) {
                self.statuses.forget(&kind.resource(), &name);
            }
        }
        for (key, status) in &plan.statuses {
            if let Some(object) = objects.get(key) {
                self.statuses.want(Wanted {
                    resource: key.0.resource(),
                    name: key.1.clone(),
                    status: status.clone(),
                    now: object.status.clone(),
                    version: object.version.clone(),
                });
            }
        }
        self.gateways.differ = plan.statuses.keys().cloned().collect();
    }

    /// Whether a Service that is named is read some time later.
    fn in_use_is_watched(&self) -> bool {
        matches!(
            self.config.discovery,
            crate::config::settings::Discovery::Kubernetes(_)
        )
    }
}

fn ports_of(world: &World, name: &ObjectName) -> Ports {
    let service = world.service(name).filter(|it| !it.external_name)?;
    let ports = service.ports.iter();
    Some(ports.map(|it| (it.port, it.transport)).collect())
}

fn known_port(ports: &Ports, name: &ObjectName, port: u16, is_udp: bool, may_come: bool) -> Known {
    let transport = if is_udp {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    match ports {
        None if may_come => Known::Unknown,
        None => Known::Missing(format!("there is no Service {name}")),
        Some(ports) if ports.contains(&(port, transport)) => Known::Is(()),
        Some(_) => Known::Missing(format!("Service {name} has no {transport} port {port}")),
    }
}

/// The least time from one plan to the next.
const PAUSE: Duration = Duration::from_millis(100);
/// Plans take at most one in this many parts of the control loop's time.
const SHARE: u32 = 10;
/// How long a Service that was just named may take to be read.
const FIRST_LOOK: Duration = Duration::from_secs(2);

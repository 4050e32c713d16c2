//! When the Gateway API's objects are planned again (`planning.rs`).
//!
//! Invariant: many changes that come together cost one plan, and plans cost the control loop at most a
//! part of its time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
use crate::discovery::gateway::GatewayKind;
use crate::routing::gateway::facts::Known;
use crate::routing::world::objects::World;

/// What the last plan was made of, beside the objects of the Gateway API.
#[derive(Default)]
pub struct Gateways {
    /// When the objects are planned again.
    pub(super) due: Option<Instant>,
    /// When they were planned last, and how long that took.
    pub(super) last: Option<(Instant, Duration)>,
    /// Services that routes name: since when, and their ports at the last plan.
    pub(super) services: BTreeMap<ObjectName, (Instant, Ports)>,
    /// Secrets that Gateways name.
    pub(super) secrets: BTreeSet<ObjectName>,
    /// What is known of Secrets. `Err`: why one gives no certificate.
    pub(super) certificates: BTreeMap<ObjectName, Result<(), String>>,
    /// A Secret of which nothing is known does not exist.
    pub(super) knows_all_secrets: bool,
    /// Objects of which something else is to be said than what they say.
    pub(super) differ: BTreeSet<(GatewayKind, ObjectName)>,
    /// What is not served, where nobody writes statuses.
    pub(super) faults: BTreeSet<String>,
}

/// The ports of a Service; `None`: there is no such Service.
pub type Ports = Option<Vec<(u16, Transport)>>;

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

/// The ports of a Service, as far as a route can name them.
pub fn ports_of(world: &World, name: &ObjectName) -> Ports {
    let service = world.service(name).filter(|it| !it.external_name)?;
    let ports = service.ports.iter();
    Some(ports.map(|it| (it.port, it.transport)).collect())
}

/// What is known of one of these ports. `may_come`: a Service that has not been read may be there.
pub fn known_port(
    ports: &Ports,
    name: &ObjectName,
    port: u16,
    is_udp: bool,
    may_come: bool,
) -> Known {
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
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// Plans take at most one in this many parts of the control loop's time.
const SHARE: u32 = 10;
/// How long a Service that was just named may take to be read.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(2);

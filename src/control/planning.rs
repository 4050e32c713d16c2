//! A plan of the Gateway API's objects, made and put in force.
//!
//! Invariant: statuses are written by somebody else (`cluster/status.rs`), and never waited for.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::cluster::status::Wanted;
use crate::config::settings::Discovery;
use crate::contract::name::ObjectName;
use crate::control::event_loop::Control;
use crate::control::gateways::{FIRST_LOOK, PAUSE, known_port, ports_of};
use crate::routing::change::Chores;
use crate::routing::gateway::facts::{Facts, Known};
use crate::routing::gateway::grants::Grants;
use crate::routing::gateway::plan::Plan;
use crate::routing::gateway::statuses;
use crate::routing::world::objects::Touched;

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
                let mut named: RefMut<'_, BTreeMap<_, _>> = named.borrow_mut();
                let (since, ports) = named.entry(name.clone()).or_insert_with(|| {
                    let since = known.services.get(name).map_or(began, |(since, _)| *since);
                    (since, ports_of(world, name))
                });
                let may_come = self.in_use_is_watched() && began < *since + FIRST_LOOK;
                known_port(ports, name, port, is_udp, may_come)
            };
            let secret = |name: &ObjectName| {
                let mut secrets: RefMut<'_, BTreeSet<_>> = secrets.borrow_mut();
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
        if !self.in_use_is_watched() {
            self.log_faults(plan);
        }
    }

    /// Where objects have no status, the log has what is not served.
    fn log_faults(&mut self, plan: &Plan) {
        let mut faults = BTreeSet::new();
        for ((kind, name), status) in &plan.statuses {
            let kind = kind.names().0;
            let texts = statuses::faults(status).into_iter();
            faults.extend(texts.map(|text| format!("{kind} {name}: {text}")));
        }
        for fault in faults.difference(&self.gateways.faults) {
            tracing::warn!(fault, "a part of the Gateway API's objects is not served");
        }
        self.gateways.faults = faults;
    }

    /// Whether a Service that is named is read some time later.
    fn in_use_is_watched(&self) -> bool {
        matches!(self.config.discovery, Discovery::Kubernetes(_))
    }
}

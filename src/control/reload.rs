//! What changes which Services are ours, beside their claims: a new configuration, and new routes.
//!
//! Invariant: a Service is served before a route leads to it, as far as it is known, and for as long
//! after the last route as something is in flight on it. So a change of routes ends no connection.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::config::settings::Config;
use crate::contract::name::ObjectName;
use crate::control::event_loop::Control;
use crate::discovery::source::InUse;
use crate::proxy::shared::WorkerCommand;
use crate::routing::change::Chores;
use crate::routing::classes::Classes;
use crate::routing::routes::Routes;
use crate::routing::world::objects::Touched;

/// The fields that differ and that a reload does not change.
fn fixed(old: &Config, new: &Config) -> impl Iterator<Item = &'static str> {
    let connections = |it: &Config| it.limits.connections;
    let fields = [
        ("discovery", old.discovery != new.discovery),
        (
            "services",
            (&old.addresses, &old.claim) != (&new.addresses, &new.claim),
        ),
        ("ingress", old.ingress != new.ingress),
        ("gateway", old.gateway != new.gateway),
        ("gate", old.gate != new.gate),
        ("admin", old.admin != new.admin),
        ("workers", old.workers != new.workers),
        ("limits.connections", connections(old) != connections(new)),
        ("accessLog", old.access_log != new.access_log),
        ("metrics", old.per_service != new.per_service),
    ];
    fields
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
}

impl Control {
    /// Takes in a new configuration. Fields that need a restart are named in the log, unless their new
    /// value is the one in force.
    pub(super) fn reload(&mut self, config: Config) -> Chores {
        let config = Arc::new(config);
        let old = std::mem::replace(&mut self.config, config.clone());
        let waiting: BTreeSet<&str> = fixed(&self.started, &config).collect();
        for field in fixed(&old, &config).filter(|field| waiting.contains(field)) {
            tracing::warn!(field, "takes effect only at a restart");
        }
        for warning in config.warnings() {
            tracing::warn!(warning, "the configuration has a doubtful field");
        }
        self.shared.note_inside(&config.inside, None);
        self.table.set_config(config.clone());
        // Clients are asking by the old listeners until the new ones are bound.
        let named = config.named_services();
        let gone = old.named_services().into_iter();
        self.routed
            .note_gone(gone.filter(|it| !named.contains(it)).collect());
        self.reroute();
        self.table.set_named(self.named());
        self.report_use();
        self.shared
            .post_all(|| WorkerCommand::Config(config.clone()));
        let touched = Touched {
            services: self.world.service_names().cloned().collect(),
            ..Touched::default()
        };
        let chores = self.table.apply(&self.world, &touched, Instant::now());
        self.rebind_all();
        tracing::info!("the new configuration is in force");
        chores
    }

    /// Tells the source what the table uses now, so that it gives up what is no longer used.
    pub(super) fn report_use(&self) {
        let mut holders = self.world.holders();
        holders.extend(self.routed.holders_of_policies().iter().cloned());
        self.in_use.send_replace(InUse {
            named: self.named(),
            routed: self.table.service_names().cloned().collect(),
            secrets: self.secrets(),
            holders,
        });
    }

    /// Tells the source of objects with authorities that it does not know of, if one of these Services
    /// names one.
    pub(super) fn report_holders(&self, services: &BTreeSet<ObjectName>) {
        let mut named = services.iter().filter_map(|it| self.world.holder_of(it));
        if named.any(|it| !self.in_use.borrow().holders.contains(&it)) {
            self.report_use();
        }
    }

    /// Puts the rules of the Ingress objects in force, if they have changed and the last time is long
    /// enough ago. Returns as [`Self::reroute`].
    pub(super) fn reroute_if_due(&mut self) -> BTreeSet<ObjectName> {
        match self.routed.pace.due() {
            Some(at) if at <= Instant::now() => self.reroute(),
            _ => BTreeSet::new(),
        }
    }

    /// Puts the rules of the Ingress objects in force. Returns the Services that the table has to take in
    /// or may give up.
    pub(super) fn reroute(&mut self) -> BTreeSet<ObjectName> {
        self.routed.pace.begin();
        let Some(ingress) = &self.config.ingress else {
            return BTreeSet::new();
        };
        let (began, before) = (Instant::now(), self.named());
        let classes = Classes::of(ingress, self.world.classes());
        let routes = Routes::of(ingress, &classes, self.world.ingresses());
        let secrets_differ = self.routed.take(&routes, &self.shared);
        if secrets_differ {
            self.certificates.of_routes(self.routed.secrets().clone());
        }
        let differ = self.name_services(&before, secrets_differ);
        self.routed.pace.took(began, began.elapsed());
        differ
    }

    /// Tells what the statuses of these Ingress objects are to be, once all are known.
    pub(super) fn publish(&self, names: &BTreeSet<ObjectName>) {
        if let Some(ingress) = &self.config.ingress
            && self.health.is_synced()
        {
            let classes = Classes::of(ingress, self.world.classes());
            self.publisher.publish(&self.world, &classes, names);
        }
    }

    /// Says what of Ingress objects is not served.
    pub(super) fn say_what_is_unserved(&mut self) {
        let ingress = self.config.ingress.as_ref();
        let classes = ingress.map(|it| Classes::of(it, self.world.classes()));
        let classes = classes.unwrap_or_default();
        let nginx = ingress.is_some_and(|it| it.nginx_keys);
        let (world, events, now) = (&self.world, &self.events, Instant::now());
        let is_elected = self.election.is_elected();
        self.unserved
            .look(world, (&classes, nginx), events, is_elected, now);
    }

    /// Tells what the statuses of all Ingress objects are to be.
    pub(super) fn publish_all(&self) {
        let all = self.world.ingresses().map(|it| it.name.clone());
        self.publish(&all.collect());
    }

    /// Gives up Services that no route leads to and nothing is in flight on.
    pub(super) fn part_from_routes(&mut self) -> Chores {
        let before = self.named();
        let snapshot = &self.snapshot;
        self.routed.part(|service| {
            let ports = snapshot.ports_of(service);
            let mut endpoints = ports.iter().flat_map(|port| port.all.iter());
            endpoints.any(|endpoint| endpoint.leases() > 0)
        });
        let services = self.name_services(&before, false);
        self.take_in(services)
    }

    /// Brings the table up to date with these Services, which are ours now or no more.
    pub(super) fn take_in(&mut self, services: BTreeSet<ObjectName>) -> Chores {
        let touched = Touched {
            services,
            ..Touched::default()
        };
        self.table.apply(&self.world, &touched, Instant::now())
    }

    /// Tells everybody which Services are ours without a claim, if that or the Secrets differ. Returns the
    /// Services that do.
    pub(super) fn name_services(
        &mut self,
        before: &BTreeSet<ObjectName>,
        secrets_differ: bool,
    ) -> BTreeSet<ObjectName> {
        let named = self.named();
        let differ: BTreeSet<_> = named.symmetric_difference(before).cloned().collect();
        if !differ.is_empty() || secrets_differ {
            self.table.set_named(named);
            self.report_use();
        }
        differ
    }

    /// The Services that are ours without a claim.
    pub(super) fn named(&self) -> BTreeSet<ObjectName> {
        let mut named = self.config.named_services();
        named.extend(self.routed.services().cloned());
        named
    }

    fn secrets(&self) -> BTreeSet<ObjectName> {
        let mut secrets = self.config.named_secrets();
        secrets.extend(self.routed.secrets().values().flatten().cloned());
        secrets.extend(self.routed.secrets_of_gateways().iter().cloned());
        secrets
    }
}

//! The routing table and its single writer: merged services in, one published [`Snapshot`] out, then `begin_drain`.
//!
//! **A terminating endpoint leaves rotation in `RoutingTable::settle`**: the snapshot without it is published first,
//! then every leaver is drained, and when that has returned nothing more is dispatched to it. The table belongs to the
//! control thread; it neither connects (see [`crate::control::event_loop`]) nor waits.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use crate::config::settings::Config;
use crate::contract::endpoint::{Endpoint, EndpointId, Notice};
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::snapshot::Snapshot;
use crate::observe::metrics::Metrics;
use crate::routing::change::{Change, Chores, Leaver};
use crate::routing::drains;
use crate::routing::entry::Entry;
use crate::routing::port::PortEntry;
use crate::routing::registry::{Home, Registry};
use crate::routing::service::{Claim, ServiceEntry};
use crate::routing::world::merged::MergedService;
use crate::routing::world::objects::{Touched, World};

/// The single writer. Every method that alters what may be dispatched to ends in `RoutingTable::settle`.
pub struct RoutingTable {
    config: Arc<Config>,
    /// Services that configured listeners name. Besides them, only claimed Services are routed.
    named: BTreeSet<ObjectName>,
    services: BTreeMap<ObjectName, ServiceEntry>,
    /// Services whose claim was taken off, and when.
    released: BTreeMap<ObjectName, Instant>,
    registry: Registry,
    generation: u64,
    snapshot: Arc<ArcSwap<Snapshot>>,
    published: watch::Sender<u64>,
    drains: Arc<drains::Log>,
    metrics: Arc<Metrics>,
}

impl RoutingTable {
    /// An empty table. Endpoints report to `notices`.
    pub fn new(
        config: Arc<Config>,
        snapshot: Arc<ArcSwap<Snapshot>>,
        drains: Arc<drains::Log>,
        metrics: Arc<Metrics>,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Self {
        let mut table = Self {
            config: config.clone(),
            named: BTreeSet::new(),
            services: BTreeMap::new(),
            released: BTreeMap::new(),
            registry: Registry::new(notices),
            generation: 0,
            snapshot,
            published: watch::Sender::new(0),
            drains,
            metrics,
        };
        table.set_config(config);
        table
    }

    /// Counts the snapshots that were published. Held clients wait for the next one; workers then look for endpoints
    /// that left.
    pub fn generations(&self) -> watch::Sender<u64> {
        self.published.clone()
    }

    /// Takes a new configuration. Its effect shows at the next [`RoutingTable::apply`] of each Service.
    pub fn set_config(&mut self, config: Arc<Config>) {
        self.named = config.listeners.iter().map(|l| l.service.clone()).collect();
        self.config = config;
    }

    /// Takes in the merge of every touched Service, publishes, then drains the leavers. When this has returned, nothing
    /// more is dispatched to an endpoint that the change ended.
    pub fn apply(&mut self, world: &World, touched: &Touched, received: Instant) -> Chores {
        let mut change = Change::new(received);
        let mut changed = touched.addresses.clone();
        // A pod's change also affects its endpoints that no slice lists any more.
        for uid in &touched.pods {
            for service in self.registry.services_of(uid) {
                changed.entry(service.clone()).or_default();
            }
        }
        for name in &touched.services {
            changed.remove(name);
            self.reconcile(world, name, &mut change);
        }
        for (name, addresses) in &changed {
            let known = !self.released.contains_key(name)
                && self.services.get_mut(name).is_some_and(|service| {
                    service.reconcile_some(addresses, (world, &mut self.registry), &mut change)
                });
            if !known {
                self.reconcile(world, name, &mut change);
            }
            debug_assert!(
                self.services
                    .get(name)
                    .is_none_or(|it| it.is_as_merged(world)),
                "{name}: {addresses:?}"
            );
        }
        let services = touched.services.iter().chain(changed.keys());
        self.settle(&services.cloned().collect::<Vec<_>>(), change)
    }

    /// Takes in the results of join probes. An endpoint that accepted a connection may serve. For the others the probe
    /// gave up, since nothing may be dispatched to them now.
    pub fn probed(&mut self, results: &[(EndpointId, bool)]) -> Chores {
        let mut change = Change::new(Instant::now());
        let mut services = BTreeSet::new();
        for (id, connected) in results {
            let key = self.alter(*id, |entry| {
                entry.probing = false;
                entry.joined |= *connected;
                if *connected {
                    entry.endpoint.readmit();
                }
                entry.probe(&mut change);
            });
            services.extend(key.filter(|_| *connected).map(|key| key.service));
        }
        self.settle(&services.into_iter().collect::<Vec<_>>(), change)
    }

    /// Alters an endpoint's entry, where it has one, and returns its service port.
    fn alter(&mut self, id: EndpointId, change: impl FnOnce(&mut Entry)) -> Option<PortKey> {
        let Home { key, identity, .. } = self.registry.home(id)?;
        let port = self
            .services
            .get_mut(&key.service)?
            .ports
            .get_mut(&key.port)?;
        port.entries
            .get(identity)
            .filter(|entry| entry.endpoint.id == id)?;
        port.alter(identity, change);
        Some(key.clone())
    }

    /// The queue of clients that wait for this endpoint's service port.
    pub fn hold(&self, id: EndpointId) -> Option<&Arc<Hold>> {
        let key = &self.registry.home(id)?.key;
        Some(&self.services.get(&key.service)?.ports.get(&key.port)?.hold)
    }

    /// Endpoints were ejected, or accept connections again. The last resort may be another endpoint now, even a drained
    /// one, and held clients may try.
    pub fn answering_changed(&mut self, world: &World, ids: &[EndpointId], now: Instant) -> Chores {
        let homes = ids.iter().filter_map(|id| self.registry.home(*id));
        let touched = Touched {
            addresses: homes
                .map(|home| (home.key.service.clone(), BTreeSet::new()))
                .collect(),
            ..Touched::default()
        };
        self.apply(world, &touched, now)
    }

    /// A drain deadline has passed: the endpoint is out, and what is in flight is replayed or cut.
    pub fn expire(&mut self, endpoint: &Arc<Endpoint>) {
        if let Some(key) = self.alter(endpoint.id, |entry| entry.expired = true) {
            self.settle(&[key.service], Change::new(Instant::now()));
        }
        endpoint.force.cancel();
    }

    /// The last leases of these endpoints are gone: the table forgets them.
    pub fn drained(&mut self, endpoints: &[Arc<Endpoint>]) {
        let ids: HashSet<EndpointId> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        let mut ports = BTreeSet::new();
        for endpoint in endpoints {
            let Some(Home { key, place, .. }) = self.registry.forget(endpoint) else {
                continue;
            };
            let port = self.port_entry(&key);
            if let Some(moved) = port.and_then(|port| port.all.swap_remove(place)) {
                self.registry.moved(moved.id, place);
            }
            ports.insert(key);
        }
        let mut services = Vec::new();
        for key in ports {
            if let Some(port) = self.port_entry(&key) {
                port.leaving.retain(|e| !ids.contains(&e.id));
            }
            services.push(key.service);
        }
        services.dedup();
        self.settle(&services, Change::new(Instant::now()));
    }

    fn port_entry(&mut self, key: &PortKey) -> Option<&mut PortEntry> {
        self.services
            .get_mut(&key.service)?
            .ports
            .get_mut(&key.port)
    }

    /// Whether nothing is remembered of any endpoint. For tests.
    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty() && self.services.is_empty() && self.released.is_empty()
    }

    /// When to let go of the next Service whose claim was taken off.
    pub fn next_hand_back(&self) -> Option<Instant> {
        let is_claimed = |name: &ObjectName| {
            self.services
                .get(name)
                .is_some_and(ServiceEntry::is_claimed)
        };
        let listening = self.released.iter().filter(|(name, _)| is_claimed(name));
        listening.map(|(_, at)| *at + HAND_BACK).min()
    }

    /// Lets go of Services whose claim was taken off: of their nodePorts once kube-proxy has had its time, of the rest
    /// once the last client is gone.
    pub fn hand_back(&mut self, world: &World, now: Instant) -> Chores {
        if self.released.is_empty() {
            return Chores::default();
        }
        let touched = Touched {
            services: self.released.keys().cloned().collect(),
            ..Touched::default()
        };
        self.apply(world, &touched, now)
    }

    /// Since when a Service is no longer claimed.
    fn released(
        &mut self,
        name: &ObjectName,
        claimed: bool,
        was_claimed: bool,
        now: Instant,
    ) -> Option<Instant> {
        if claimed {
            self.released.remove(name);
        } else if was_claimed {
            self.released.entry(name.clone()).or_insert(now);
        }
        self.released.get(name).copied()
    }

    /// Brings one Service up to its merge.
    fn reconcile(&mut self, world: &World, name: &ObjectName, change: &mut Change) {
        let merged = world.merge(name);
        let claimed = merged.as_ref().is_some_and(|m| m.object.claimed);
        let ours = claimed || merged.is_some() && self.named.contains(name);
        if !ours && !self.services.contains_key(name) {
            return;
        }
        let mut service = self
            .services
            .remove(name)
            .unwrap_or_else(|| ServiceEntry::new(name));
        let released = self.released(name, claimed, service.is_claimed(), change.received);
        let listening = claimed || released.is_some_and(|at| change.received < at + HAND_BACK);
        let stays = ours || listening || released.is_some() && service.has_clients();
        let merged = merged.filter(|_| stays);
        match &merged {
            None => _ = self.released.remove(name),
            Some(MergedService { object, .. }) if object.uid != service.uid => {
                service.replace(object.uid.clone(), change);
            }
            Some(_) => {}
        }
        let claim = Claim { ours, listening };
        let place = (world, &mut self.registry);
        service.reconcile(merged, claim, &self.config, &self.metrics, place, change);
        self.services.insert(name.clone(), service);
    }

    /// Publishes these Services as their entries stand, then drains the leavers. The order is contract 1.2's: a worker
    /// that has seen the new snapshot cannot pick a leaver, and a worker that still holds the old one gets no lease.
    fn settle(&mut self, services: &[ObjectName], mut change: Change) -> Chores {
        for name in services {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            for (number, port) in &mut service.ports {
                let key = PortKey {
                    service: name.clone(),
                    port: *number,
                };
                port.rebuild(&key, &mut change);
            }
        }
        let Change {
            received,
            leavers,
            outs,
            chores,
        } = change;
        for leaver in &leavers {
            if let Some(port) = self.port_entry(&leaver.key) {
                port.leaving.push(leaver.endpoint.clone());
            }
        }
        self.publish(services);
        for endpoint in outs {
            endpoint.set_out(true);
        }
        let any = !leavers.is_empty();
        for Leaver {
            endpoint,
            key,
            trigger,
        } in leavers
        {
            if let Some(metrics) = self.port_entry(&key).map(|port| port.metrics.clone()) {
                self.drains
                    .begin(endpoint.clone(), key, trigger, received, metrics);
            }
            endpoint.begin_drain();
        }
        if any {
            self.metrics
                .drain_reaction
                .observe(received.elapsed().as_secs_f64());
        }
        self.published.send_replace(self.generation);
        chores
    }

    fn publish(&mut self, services: &[ObjectName]) {
        self.generation += 1;
        let mut next = Snapshot {
            generation: self.generation,
            ports: self.snapshot.load().ports.clone(),
        };
        for name in services {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            for (number, port) in &mut service.ports {
                let key = PortKey {
                    service: name.clone(),
                    port: *number,
                };
                match port.assemble(&key) {
                    Some(published) => match next.ports.get_mut(&key) {
                        Some(before) => *before = published,
                        None => _ = next.ports.insert(Arc::new(key), published),
                    },
                    None => {
                        next.ports.remove(&key);
                    }
                }
            }
            service.ports.retain(|number, port| {
                let keep =
                    port.spec.is_some() || !port.entries.is_empty() || !port.leaving.is_empty();
                if !keep {
                    self.metrics.forget(&PortKey {
                        service: name.clone(),
                        port: *number,
                    });
                }
                keep
            });
            if service.ports.is_empty() {
                self.services.remove(name);
            }
        }
        self.snapshot.store(Arc::new(next));
    }
}

/// How long a nodePort stays bound once its Service is kube-proxy's again, whose rules then take precedence: it writes them
/// within a second as a rule, and later where there are many.
pub const HAND_BACK: Duration = Duration::from_secs(10);

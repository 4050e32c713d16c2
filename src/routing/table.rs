//! The routing table and its single writer: it takes in merged Services, publishes their ports, and
//! then begins the drains of the endpoints that leave.
//!
//! **A terminating endpoint leaves rotation in [`RoutingTable::apply`], which ends in
//! `RoutingTable::settle`.** `settle` publishes the ports without the endpoint first and begins
//! the drain second (contract 1.2). After `apply` has returned, nothing more is dispatched to the
//! endpoint.
//!
//! The table belongs to the control thread. It neither connects nor waits; see
//! [`crate::control::event_loop`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::config::settings::Config;
use crate::contract::endpoint::{Endpoint, EndpointId, Notice};
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::snapshot::Published;
use crate::observe::metrics::Metrics;
use crate::routing::change::{Change, Chores, Leaver};
use crate::routing::drains;
use crate::routing::entry::Entry;
use crate::routing::port::PortEntry;
use crate::routing::registry::{Home, Registry, identity_of};
use crate::routing::service::{Claim, ServiceEntry};
use crate::routing::world::merged::MergedService;
use crate::routing::world::objects::{Touched, World};

/// The single writer of what is published. Every method that changes which endpoints may get a dispatch
/// ends in `RoutingTable::settle`.
pub struct RoutingTable {
    config: Arc<Config>,
    /// Services that configured listeners name. All other Services are routed only while they are
    /// claimed or handed back.
    named: BTreeSet<ObjectName>,
    pub(super) services: BTreeMap<ObjectName, ServiceEntry>,
    /// Services whose claim was removed, and when.
    released: BTreeMap<ObjectName, Instant>,
    pub(super) registry: Registry,
    /// When each suspension ends.
    pub(super) suspended: BTreeSet<(Instant, EndpointId)>,
    published: Arc<Published>,
    generations: watch::Sender<u64>,
    drains: Arc<drains::Log>,
    metrics: Arc<Metrics>,
}

impl RoutingTable {
    /// An empty table. Its endpoints report to `notices`.
    pub fn new(
        config: Arc<Config>,
        published: Arc<Published>,
        drains: Arc<drains::Log>,
        metrics: Arc<Metrics>,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Self {
        Self {
            named: config.named_services(),
            config,
            services: BTreeMap::new(),
            released: BTreeMap::new(),
            registry: Registry::new(notices),
            suspended: BTreeSet::new(),
            published,
            generations: watch::Sender::new(0),
            drains,
            metrics,
        }
    }

    /// The number of the last change whose drains have begun; see [`Published::generation`].
    pub fn generations(&self) -> watch::Sender<u64> {
        self.generations.clone()
    }

    /// Takes a new configuration. It takes effect for each Service at its next
    /// [`RoutingTable::apply`].
    pub fn set_config(&mut self, config: Arc<Config>) {
        self.config = config;
    }

    /// Takes in which Services are served though nobody claims them. It takes effect for each at its next
    /// [`RoutingTable::apply`].
    pub fn set_named(&mut self, named: BTreeSet<ObjectName>) {
        self.named = named;
    }

    /// Takes in the merge of every touched Service, publishes, and then drains the endpoints that
    /// leave. After this has returned, nothing more is dispatched to those endpoints.
    ///
    /// `received` is when the event arrived, by the monotonic clock. Drain deadlines count from it.
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
        if touched.services.is_empty() && changed.is_empty() {
            // The event changes nothing here: no snapshot, no wake-up of the workers.
            return change.chores;
        }
        let services = touched.services.iter().chain(changed.keys());
        self.settle(&services.cloned().collect::<Vec<_>>(), change)
    }

    /// Takes in the results of join probes: `true` if the endpoint accepted a connection. Then it
    /// may serve. `false` means that the probe gave up, because nothing may be dispatched to the
    /// endpoint now.
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

    /// Changes an endpoint's entry and returns its Service port; `None` if there is no such entry.
    pub(super) fn alter(
        &mut self,
        id: EndpointId,
        change: impl FnOnce(&mut Entry),
    ) -> Option<PortKey> {
        let Home { key, endpoint, .. } = self.registry.home(id)?;
        let identity = identity_of(endpoint);
        let port = self
            .services
            .get_mut(&key.service)?
            .ports
            .get_mut(&key.id())?;
        port.entries
            .get(&identity)
            .filter(|entry| entry.endpoint.id == id)?;
        port.alter(&identity, change);
        Some(PortKey::clone(key))
    }

    /// The service port of an endpoint, and the clients that wait for it.
    pub fn place(&self, id: EndpointId) -> Option<(&PortKey, &Arc<Hold>)> {
        let key = &self.registry.home(id)?.key;
        let port = self.services.get(&key.service)?.ports.get(&key.id())?;
        Some((key, &port.hold))
    }

    /// Takes in that endpoints were ejected, or accept connections again. So another endpoint, even
    /// a drained one, may become the last resort (contract 1.9), and held clients may try again.
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

    /// Acts on a drain deadline that has passed: the endpoint leaves rotation, and what is in
    /// flight on it is replayed or cut (contract 1.4).
    pub fn expire(&mut self, endpoint: &Arc<Endpoint>) -> Chores {
        let key = self.alter(endpoint.id, |entry| entry.expired = true);
        let chores = match key {
            Some(key) => self.settle(&[key.service], Change::new(Instant::now())),
            None => Chores::default(),
        };
        endpoint.force().cancel();
        chores
    }

    /// Forgets endpoints whose drain is over: their last leases are gone.
    pub fn drained(&mut self, endpoints: &[Arc<Endpoint>]) -> Chores {
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
            services.push(key.service.clone());
        }
        services.dedup();
        self.settle(&services, Change::new(Instant::now()))
    }

    fn port_entry(&mut self, key: &PortKey) -> Option<&mut PortEntry> {
        self.services
            .get_mut(&key.service)?
            .ports
            .get_mut(&key.id())
            .map(|port| &mut **port)
    }

    /// The Services that it routes to, or whose endpoints still exist.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// Whether the table remembers no endpoint and no Service. For tests.
    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty() && self.services.is_empty() && self.released.is_empty()
    }

    /// When the next Service whose claim was removed loses its nodePorts.
    pub fn next_hand_back(&self) -> Option<Instant> {
        let is_claimed = |name: &ObjectName| {
            self.services
                .get(name)
                .is_some_and(ServiceEntry::is_claimed)
        };
        let listening = self.released.iter().filter(|(name, _)| is_claimed(name));
        listening.map(|(_, at)| *at + HAND_BACK).min()
    }

    /// Hands back Services whose claim was removed: their nodePorts after [`HAND_BACK`], and the
    /// rest when the last client is gone (contract 2.9).
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

    /// Forgets clients whose session affinity has expired.
    pub fn forget_clients(&self, now: Instant) {
        let ports = self.services.values().flat_map(|it| it.ports.values());
        let sticky = ports.filter_map(|port| port.affinity.as_ref());
        sticky.for_each(|affinity| affinity.forget_expired(now));
    }

    /// Notes whether a Service is claimed. Returns when its claim was removed, if it was.
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

    /// Brings a whole Service up to its merge.
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
                service.replace(object.uid.clone(), world, change);
            }
            Some(_) => {}
        }
        let claim = Claim { ours, listening };
        let place = (world, &mut self.registry);
        service.reconcile(merged, claim, &self.config, &self.metrics, place, change);
        self.services.insert(name.clone(), service);
    }

    /// Publishes these Services as their entries are now, and then begins the drains. The order is
    /// that of contract 1.2: a worker with the new ports cannot pick a leaving endpoint, and a
    /// worker with an old port gets no lease on it.
    pub(super) fn settle(&mut self, services: &[ObjectName], mut change: Change) -> Chores {
        let mut holds = Vec::with_capacity(services.len());
        for name in services {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            holds.push(service.hold.clone());
            for (key, port) in service.keyed_ports() {
                port.rebuild(&key, &mut change);
            }
        }
        let Change {
            received,
            leavers,
            outs,
            mut chores,
        } = change;
        for leaver in &leavers {
            if let Some(port) = self.port_entry(&leaver.key) {
                port.leaving.push(leaver.endpoint.clone());
            }
        }
        let generation = self.published.begin();
        let forgotten = self.publish(services, &mut chores.listeners);
        for endpoint in outs {
            endpoint.set_out(true);
            chores.left.push(endpoint.id);
        }
        for Leaver {
            endpoint,
            recalled,
            key,
            trigger,
        } in leavers
        {
            // A pod's drain counts once. One that came back as last resort and got nothing has its
            // receipt already.
            let counts = !recalled || endpoint.was_used();
            if counts && let Some(metrics) = self.port_entry(&key).map(|it| it.metrics.clone()) {
                self.drains
                    .begin(endpoint.clone(), key, trigger, received, metrics);
            }
            endpoint.begin_drain();
            if counts {
                let reaction = received.elapsed().as_secs_f64();
                self.metrics.drain_reaction.observe(reaction);
            }
            chores.left.push(endpoint.id);
        }
        holds.iter().for_each(|hold| hold.wake());
        self.generations.send_replace(generation);
        // Nothing waits for this, so it comes last.
        forgotten.iter().for_each(|key| self.metrics.forget(key));
        chores
    }

    /// Publishes the ports of these Services. Forgets ports and Services that have nothing left, and
    /// returns those ports. Adds to `listeners` the Services that came to refuse or to serve.
    fn publish(
        &mut self,
        services: &[ObjectName],
        listeners: &mut BTreeSet<ObjectName>,
    ) -> Vec<PortKey> {
        let mut forgotten = Vec::new();
        for name in services {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            let mut places_differ = false;
            for (key, port) in service.keyed_ports() {
                if port.note_presence() {
                    listeners.insert(key.service.clone());
                }
                places_differ |= port.publish(&key);
            }
            if places_differ {
                let places = service.ports.values().filter_map(|port| port.place.clone());
                self.published
                    .set_places(&Arc::new(name.clone()), places.collect());
            }
            service.ports.retain(|(number, transport), port| {
                let keep =
                    port.spec.is_some() || !port.entries.is_empty() || !port.leaving.is_empty();
                if !keep {
                    forgotten.push(name.port_over(*transport, *number));
                }
                keep
            });
            if service.ports.is_empty() {
                self.services.remove(name);
            }
        }
        forgotten
    }
}

/// How long a nodePort stays bound after its Service's claim was removed. kube-proxy then writes
/// its rules, which take precedence: usually within a second, and later if there are many rules.
pub const HAND_BACK: Duration = Duration::from_secs(10);

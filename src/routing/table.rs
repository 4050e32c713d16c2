//! The routing table and its single writer: merged services in, one published [`Snapshot`] out, then `begin_drain`.
//!
//! **A terminating endpoint leaves rotation in `RoutingTable::settle`**: the snapshot without it is published first,
//! then every leaver is drained, and when that has returned nothing more is dispatched to it. The table belongs to the
//! control thread; it neither connects (see [`crate::control::event_loop`]) nor waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use crate::config::settings::Config;
use crate::contract::endpoint::{Conditions, Endpoint, EndpointId, Notice};
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{Policy, Protocol};
use crate::contract::reason::Trigger;
use crate::contract::snapshot::Snapshot;
use crate::observe::metrics::Metrics;
use crate::routing::chores::Chores;
use crate::routing::drains;
use crate::routing::port::{Entry, Leaver, News, PortEntry, Spec, apply_fate, shorten};
use crate::routing::registry::{Home, Identity, identity};
use crate::routing::world::merged::{Fate, MergedEndpoint, MergedPort, MergedService};
use crate::routing::world::objects::{Touched, World};

/// The single writer. Every method that alters what may be dispatched to ends in `RoutingTable::settle`.
pub struct RoutingTable {
    config: Arc<Config>,
    /// Services that explicit listeners name; besides them only claimed ones are routed.
    named: BTreeSet<ObjectName>,
    services: BTreeMap<ObjectName, ServiceEntry>,
    /// Services whose claim was taken off, and when.
    released: BTreeMap<ObjectName, Instant>,
    homes: HashMap<EndpointId, Home>,
    /// Services that have, or had, an endpoint of this pod, with how many.
    by_pod: HashMap<String, BTreeMap<ObjectName, usize>>,
    next_id: u64,
    generation: u64,
    snapshot: Arc<ArcSwap<Snapshot>>,
    published: watch::Sender<u64>,
    drains: Arc<drains::Log>,
    metrics: Arc<Metrics>,
    notices: mpsc::UnboundedSender<Notice>,
}

#[derive(Default)]
struct ServiceEntry {
    uid: Option<String>,
    ports: BTreeMap<u16, PortEntry>,
    hold: Arc<Hold>,
    warnings: Vec<String>,
}

impl RoutingTable {
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
            homes: HashMap::new(),
            by_pod: HashMap::new(),
            next_id: 0,
            generation: 0,
            snapshot,
            published: watch::Sender::new(0),
            drains,
            metrics,
            notices,
        };
        table.set_config(config);
        table
    }

    /// Moves with every publish and every endpoint that answers again: what holds wait for, what workers sweep by.
    pub fn generations(&self) -> watch::Sender<u64> {
        self.published.clone()
    }

    /// A new configuration; what it alters shows at the next [`RoutingTable::apply`] of each service.
    pub fn set_config(&mut self, config: Arc<Config>) {
        self.named = config.listeners.iter().map(|l| l.service.clone()).collect();
        self.config = config;
    }

    /// Takes the merge of every touched service in, publishes, then drains the leavers. When it has returned, nothing
    /// more is dispatched to an endpoint that the change ended.
    pub fn apply(&mut self, world: &World, touched: &Touched, received: Instant) -> Chores {
        let mut changed = touched.addresses.clone();
        // Endpoints that no slice names any more hang on their pods.
        for uid in &touched.pods {
            for service in self.by_pod.get(uid).into_iter().flat_map(BTreeMap::keys) {
                changed.entry(service.clone()).or_default();
            }
        }
        let mut chores = Chores::default();
        let mut leavers = Vec::new();
        for name in &touched.services {
            changed.remove(name);
            self.reconcile(world, name, received, &mut leavers, &mut chores);
        }
        for (name, addresses) in &changed {
            if !self.reconcile_some(world, name, addresses, received, &mut leavers, &mut chores) {
                self.reconcile(world, name, received, &mut leavers, &mut chores);
            }
            debug_assert!(self.is_as_merged(world, name), "{name}: {addresses:?}");
        }
        let services: Vec<ObjectName> = touched
            .services
            .iter()
            .chain(changed.keys())
            .cloned()
            .collect();
        self.settle(&services, leavers, received);
        chores
    }

    /// What the control side has found out: endpoints that were connected to may serve, the others were given up since
    /// they are not to be dispatched to just now.
    pub fn probed(&mut self, results: &[(EndpointId, bool)]) -> Chores {
        let mut chores = Chores::default();
        let mut services = BTreeSet::new();
        for (id, connected) in results {
            let key = self.alter(*id, |entry| {
                entry.probing = false;
                entry.joined |= *connected;
                if *connected {
                    entry.endpoint.readmit();
                }
                entry.probe(&mut chores);
            });
            services.extend(key.filter(|_| *connected).map(|key| key.service));
        }
        self.settle(
            &services.into_iter().collect::<Vec<_>>(),
            Vec::new(),
            Instant::now(),
        );
        chores
    }

    /// Alters the entry of an endpoint that has one, and tells whose it is.
    fn alter(&mut self, id: EndpointId, change: impl FnOnce(&mut Entry)) -> Option<PortKey> {
        let Home { key, identity, .. } = self.homes.get(&id)?;
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

    /// The queue of those who wait for this endpoint's service port.
    pub fn hold(&self, id: EndpointId) -> Option<&Arc<Hold>> {
        let key = &self.homes.get(&id)?.key;
        Some(&self.services.get(&key.service)?.ports.get(&key.port)?.hold)
    }

    /// Endpoints have been ejected, or connected to again: who is the last resort may be another now, be it one that had
    /// drained already, and whoever is held may try.
    pub fn answering_changed(&mut self, world: &World, ids: &[EndpointId], now: Instant) -> Chores {
        let homes = ids.iter().filter_map(|id| self.homes.get(id));
        let addresses = homes
            .map(|home| (home.key.service.clone(), BTreeSet::new()))
            .collect();
        self.apply(
            world,
            &Touched {
                addresses,
                ..Touched::default()
            },
            now,
        )
    }

    /// A drain deadline has passed: out, whatever it still is, and what is in flight is replayed or cut.
    pub fn expire(&mut self, endpoint: &Arc<Endpoint>) {
        if let Some(key) = self.alter(endpoint.id, |entry| entry.expired = true) {
            self.settle(&[key.service], Vec::new(), Instant::now());
        }
        endpoint.force.cancel();
    }

    /// The last lease of these is gone: they are forgotten.
    pub fn drained(&mut self, endpoints: &[Arc<Endpoint>]) {
        let ids: HashSet<EndpointId> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        let mut ports = BTreeSet::new();
        for endpoint in endpoints {
            let Some(Home { key, place, .. }) = self.homes.remove(&endpoint.id) else {
                continue;
            };
            if let Some(uid) = endpoint.pod.as_ref().map(|pod| &pod.uid)
                && let Some(services) = self.by_pod.get_mut(uid)
            {
                if let Some(count) = services.get_mut(&key.service) {
                    *count -= 1;
                    if *count == 0 {
                        services.remove(&key.service);
                    }
                }
                if services.is_empty() {
                    self.by_pod.remove(uid);
                }
            }
            let moved = self
                .port_entry(&key)
                .and_then(|port| port.all.swap_remove(place));
            if let Some(home) = moved.and_then(|moved| self.homes.get_mut(&moved.id)) {
                home.place = place;
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
        self.settle(&services, Vec::new(), Instant::now());
    }

    fn port_entry(&mut self, key: &PortKey) -> Option<&mut PortEntry> {
        self.services
            .get_mut(&key.service)?
            .ports
            .get_mut(&key.port)
    }

    /// Whether nothing is remembered of any endpoint; for tests.
    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
            && self.by_pod.is_empty()
            && self.services.is_empty()
            && self.released.is_empty()
    }

    /// When the next Service whose claim was taken off is to be let go of.
    pub fn next_hand_back(&self) -> Option<Instant> {
        let listening = |name: &ObjectName| {
            self.services
                .get(name)
                .is_some_and(ServiceEntry::is_claimed)
        };
        self.released
            .iter()
            .filter(|(name, _)| listening(name))
            .map(|(_, at)| *at + HAND_BACK)
            .min()
    }

    /// Lets go of Services whose claim was taken off: of their nodePorts once kube-proxy has had its time, of the rest
    /// once the last client is gone.
    pub fn hand_back(&mut self, world: &World, now: Instant) -> Chores {
        let touched = Touched {
            services: self.released.keys().cloned().collect(),
            ..Touched::default()
        };
        if touched.services.is_empty() {
            Chores::default()
        } else {
            self.apply(world, &touched, now)
        }
    }

    /// Since when a Service is claimed no longer.
    fn released(
        &mut self,
        name: &ObjectName,
        claimed: bool,
        old: &ServiceEntry,
        now: Instant,
    ) -> Option<Instant> {
        if claimed {
            self.released.remove(name);
        } else if old.is_claimed() {
            self.released.entry(name.clone()).or_insert(now);
        }
        self.released.get(name).copied()
    }

    /// Brings one service's entries up to what its merge says.
    fn reconcile(
        &mut self,
        world: &World,
        name: &ObjectName,
        received: Instant,
        leavers: &mut Vec<Leaver>,
        chores: &mut Chores,
    ) {
        let merged = world.merge(name);
        let claimed = merged.as_ref().is_some_and(|m| m.object.claimed);
        let ours = claimed || merged.is_some() && self.named.contains(name);
        if !ours && !self.services.contains_key(name) {
            return;
        }
        let mut service = self.services.remove(name).unwrap_or_default();
        let released = self.released(name, claimed, &service, received);
        let listening = claimed || released.is_some_and(|at| received < at + HAND_BACK);
        let merged =
            merged.filter(|_| ours || listening || released.is_some() && service.has_clients());
        if merged.is_none() {
            self.released.remove(name);
        }
        let uid = merged.as_ref().and_then(|m| m.object.uid.clone());
        if merged.is_some() && service.uid != uid {
            // Another Service under the old name: nothing of the old one's may serve the new one.
            for (number, port) in &mut service.ports {
                let key = PortKey {
                    service: name.clone(),
                    port: *number,
                };
                for identity in port.entries.keys().cloned().collect::<Vec<_>>() {
                    let Some(Entry { endpoint, .. }) = port.remove(&identity) else {
                        continue;
                    };
                    shorten(&endpoint, received + port.policy.drain_timeout, chores);
                    leavers.push(Leaver {
                        endpoint,
                        key: key.clone(),
                        trigger: Trigger::Removed,
                    });
                }
                port.merged.clear();
                port.ended.clear();
            }
            service.uid = uid;
        }
        let mut warnings = Vec::new();
        let mut ports: BTreeMap<u16, MergedPort> = BTreeMap::new();
        if let Some(MergedService {
            object,
            ports: merged,
            warnings: found,
        }) = merged
        {
            warnings = found;
            warnings.extend(object.lost());
            let (policy, found) = Policy::for_service(&self.config, &object.annotations);
            warnings.extend(found);
            for port in merged {
                let target = port
                    .port
                    .target_port
                    .or_else(|| port.endpoints.first().map(|e| e.address.port()));
                let app = port.port.app_protocol.as_deref();
                let (protocol, found) = Protocol::of_service(&object.annotations, app, target);
                warnings.extend(found);
                let key = PortKey {
                    service: name.clone(),
                    port: port.port.port,
                };
                let metrics = &self.metrics;
                let entry = service.ports.entry(key.port).or_insert_with(|| {
                    PortEntry::new(policy.clone(), service.hold.clone(), metrics.service(&key))
                });
                entry.policy = policy.clone();
                entry.spec = Some(Spec {
                    port: port.port.clone(),
                    protocol,
                    target,
                    claimed: listening,
                    handing_back: !ours,
                });
                ports.insert(key.port, port);
            }
        }
        for (number, port) in &mut service.ports {
            let key = PortKey {
                service: name.clone(),
                port: *number,
            };
            let listed = ports.remove(number);
            if listed.is_none() {
                port.spec = None;
            }
            port.ambiguous = listed.as_ref().is_some_and(|port| port.ambiguous);
            let endpoints = listed.map(|port| port.endpoints).unwrap_or_default();
            let news = News::between(&port.merged, &endpoints);
            port.merged = endpoints;
            self.reconcile_port(world, &key, port, news, received, leavers, chores);
        }
        if warnings != service.warnings {
            let news = warnings
                .iter()
                .filter(|warning| !service.warnings.contains(warning));
            chores
                .warnings
                .extend(news.map(|warning| (name.clone(), warning.clone())));
            service.warnings = warnings;
        }
        self.services.insert(name.clone(), service);
    }

    /// The same where only the endpoints at these addresses may have changed; `false`, and nothing done, if one cannot go by
    /// that.
    fn reconcile_some(
        &mut self,
        world: &World,
        name: &ObjectName,
        addresses: &BTreeSet<IpAddr>,
        received: Instant,
        leavers: &mut Vec<Leaver>,
        chores: &mut Chores,
    ) -> bool {
        if self.released.contains_key(name) {
            return false;
        }
        let Some(mut service) = self.services.remove(name) else {
            return false;
        };
        let found: Option<Vec<_>> = service
            .ports
            .values()
            .map(|port| port.merge_some(world, name, addresses))
            .collect();
        let known = found.is_some();
        for ((number, port), found) in service.ports.iter_mut().zip(found.into_iter().flatten()) {
            let key = PortKey {
                service: name.clone(),
                port: *number,
            };
            let news = port.patch(addresses, &found);
            self.reconcile_port(world, &key, port, news, received, leavers, chores);
        }
        self.services.insert(name.clone(), service);
        known
    }

    /// What [`RoutingTable::reconcile_some`] promises.
    fn is_as_merged(&self, world: &World, name: &ObjectName) -> bool {
        let merged = world
            .merge(name)
            .map(|merged| merged.ports)
            .unwrap_or_default();
        let ports = self
            .services
            .get(name)
            .into_iter()
            .flat_map(|service| &service.ports);
        ports
            .filter(|(_, port)| port.spec.is_some())
            .all(|(number, port)| {
                let whole = merged.iter().find(|whole| whole.port.port == *number);
                whole.is_some_and(|whole| {
                    whole.endpoints == port.merged && whole.ambiguous == port.ambiguous
                })
            })
    }

    #[allow(clippy::too_many_arguments)] // One step of `reconcile`, split off only for its length.
    fn reconcile_port(
        &mut self,
        world: &World,
        key: &PortKey,
        port: &mut PortEntry,
        news: News,
        received: Instant,
        leavers: &mut Vec<Leaver>,
        chores: &mut Chores,
    ) {
        let News { mut changed, gone } = news;
        let going: HashSet<Identity> = changed
            .iter()
            .filter(|m| m.conditions.terminating)
            .map(identity)
            .collect();
        for merged in &gone {
            let identity = identity(merged);
            if !going.contains(&identity) {
                port.ended.remove(&identity);
            }
            port.alter(&identity, |entry| entry.listed = false);
        }
        changed.sort_by_key(|merged| merged.conditions.terminating);
        for merged in &changed {
            let identity = identity(merged);
            let terminating = merged.conditions.terminating;
            if !terminating
                && port
                    .entries
                    .get(&identity)
                    .is_some_and(|entry| entry.terminating.is_some())
                && let Some(Entry {
                    endpoint,
                    terminating: Some(trigger),
                    ..
                }) = port.remove(&identity)
            {
                // Termination is one-way, for a UID the merge sees to that: without one, the same address anew is another
                // generation.
                leavers.push(Leaver {
                    endpoint,
                    key: key.clone(),
                    trigger,
                });
            }
            if !terminating && !port.entries.contains_key(&identity) {
                self.enter(key, &identity, merged, port);
            }
            port.update(&identity, merged, received, chores);
        }
        if !port.serves() {
            // Then even one that terminates is needed, be it one that has drained already; but not past its deadline: else
            // each event would drain it once more.
            let going: Vec<_> = port
                .merged
                .iter()
                .filter(|m| m.conditions.terminating)
                .cloned()
                .collect();
            for merged in going {
                let identity = identity(&merged);
                let before = port.ended.get(&identity).copied().flatten();
                let over = before
                    .into_iter()
                    .chain(merged.fate.deadline())
                    .any(|deadline| deadline <= received);
                if port.entries.contains_key(&identity) || !merged.conditions.serving || over {
                    continue;
                }
                port.ended.remove(&identity);
                let endpoint = self.enter(key, &identity, &merged, port);
                if let Some(deadline) = before {
                    shorten(&endpoint, deadline, chores);
                }
                port.update(&identity, &merged, received, chores);
            }
        }
        for identity in port.unlisted.iter().cloned().collect::<Vec<_>>() {
            // One without a UID cannot be told of once no slice names it.
            let uid = identity.1.as_deref().filter(|uid| !uid.is_empty());
            let fate = uid.map_or(Fate::NoPod, |uid| world.fate(uid));
            let nothing = |c| Conditions {
                ready: false,
                serving: false,
                ..c
            };
            port.alter(&identity, |entry| {
                entry.set_conditions(nothing(entry.conditions))
            });
            let Some(entry) = port.entries.get(&identity) else {
                continue;
            };
            let (endpoint, terminating) = (entry.endpoint.clone(), entry.terminating);
            apply_fate(&endpoint, &fate, received, &port.policy, chores);
            let trigger = match (&fate, terminating) {
                (_, Some(trigger)) => trigger,
                // Gone from the slices while its pod lives: out, reversibly.
                (Fate::Alive, None) => continue,
                (Fate::NoPod, None) => {
                    shorten(&endpoint, received + port.policy.drain_timeout, chores);
                    Trigger::Removed
                }
                (Fate::Terminating { trigger, .. }, None) => *trigger,
                (Fate::Deleted { .. }, None) => Trigger::PodDeleted,
            };
            port.remove(&identity);
            leavers.push(Leaver {
                endpoint,
                key: key.clone(),
                trigger,
            });
        }
        for endpoint in &port.leaving {
            if let Some(pod) = &endpoint.pod {
                let fate = world.fate(&pod.uid);
                apply_fate(endpoint, &fate, received, &port.policy, chores);
                if fate == Fate::NoPod && endpoint.drain_deadline().is_none() {
                    // Nobody will tell any more what its grace was.
                    shorten(endpoint, received + port.policy.drain_timeout, chores);
                }
            }
        }
    }

    /// A new endpoint of the port, out of rotation.
    fn enter(
        &mut self,
        key: &PortKey,
        identity: &Identity,
        merged: &MergedEndpoint,
        port: &mut PortEntry,
    ) -> Arc<Endpoint> {
        self.next_id += 1;
        let endpoint = Endpoint::new(
            EndpointId(self.next_id),
            merged.address,
            merged.pod.clone(),
            merged.template_hash.clone(),
            self.notices.clone(),
        );
        let place = port.all.push(endpoint.clone());
        self.homes.insert(
            endpoint.id,
            Home {
                key: key.clone(),
                identity: identity.clone(),
                place,
            },
        );
        if let Some(pod) = &merged.pod {
            *self
                .by_pod
                .entry(pod.uid.clone())
                .or_default()
                .entry(key.service.clone())
                .or_default() += 1;
        }
        let entry = Entry {
            endpoint: endpoint.clone(),
            conditions: Conditions::default(),
            place: None,
            out: true,
            joined: !port.policy.join_check,
            probing: false,
            listed: true,
            terminating: None,
            expired: false,
        };
        port.entries.insert(identity.clone(), entry);
        endpoint
    }

    /// Publishes these services as their entries stand, then drains the leavers. The order is the drain contract's
    /// (design, section 1, line 2): no worker that has seen the new snapshot can pick a leaver, and none that still holds
    /// the old one gets a lease.
    fn settle(&mut self, services: &[ObjectName], mut leavers: Vec<Leaver>, received: Instant) {
        let mut outs = Vec::new();
        for name in services {
            let Some(service) = self.services.get_mut(name) else {
                continue;
            };
            for (number, port) in &mut service.ports {
                let key = PortKey {
                    service: name.clone(),
                    port: *number,
                };
                port.rebuild(&key, &mut leavers, &mut outs);
            }
        }
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

impl ServiceEntry {
    fn is_claimed(&self) -> bool {
        self.ports
            .values()
            .any(|port| port.spec.as_ref().is_some_and(|spec| spec.claimed))
    }

    fn has_clients(&self) -> bool {
        self.ports
            .values()
            .any(|port| port.metrics.connections_active.get() > 0)
    }
}

/// How long a nodePort stays bound once its Service is kube-proxy's again, whose rules then take precedence: it writes them
/// within a second as a rule, and later where there are many.
pub const HAND_BACK: Duration = Duration::from_secs(10);

//! One Service as the table keeps it: its ports, its claim, and the warnings about it.
//!
//! Invariant: a change that looks only at some addresses ends in the same entries as a whole merge.
//! When a Service is served or handed back is decided in `routing/table.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::settings::Config;
use crate::contract::address::ServiceAddress;
use crate::contract::affinity::Affinity;
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{Policy, Protocol, Transport};
use crate::contract::reason::Trigger;
use crate::observe::metrics::Metrics;
use crate::routing::change::Change;
use crate::routing::port::{PortEntry, Spec};
use crate::routing::reconcile::News;
use crate::routing::registry::Registry;
use crate::routing::world::merged::{MergedPort, MergedService};
use crate::routing::world::objects::World;

/// A Service with its ports.
pub(super) struct ServiceEntry {
    name: ObjectName,
    /// The UID of the Service object, where the source gives one.
    pub(super) uid: Option<String>,
    /// Its ports by number and transport. A port that the Service no longer has stays until its endpoints are
    /// gone. Boxed, because a map allocates room for eleven at once, and most Services have one.
    pub(super) ports: BTreeMap<PortId, Box<PortEntry>>,
    /// The queue of held clients, shared by all ports.
    pub(super) hold: Arc<Hold>,
    /// The warnings that were reported and still hold.
    warnings: Vec<String>,
}

/// Identifies a port within its Service.
pub(super) type PortId = (u16, Transport);

/// Whether Ebbtide or kube-proxy serves a Service (contract 2.9).
#[derive(Clone, Copy)]
pub(super) struct Claim {
    /// Whether Ebbtide serves it: it is claimed, or a configured listener names it.
    pub(super) ours: bool,
    /// Whether Ebbtide binds its nodePorts.
    pub(super) listening: bool,
}

impl ServiceEntry {
    /// A Service without ports.
    pub(super) fn new(name: &ObjectName) -> Self {
        Self {
            name: name.clone(),
            uid: None,
            ports: BTreeMap::new(),
            hold: Arc::default(),
            warnings: Vec::new(),
        }
    }

    /// Whether Ebbtide binds the nodePorts of this Service.
    pub(super) fn is_claimed(&self) -> bool {
        let claimed = |port: &PortEntry| port.spec.as_ref().is_some_and(|spec| spec.claimed);
        self.ports.values().any(|port| claimed(port))
    }

    /// Whether a client is connected to one of the ports.
    pub(super) fn has_clients(&self) -> bool {
        let active = |port: &PortEntry| port.metrics.connections_active.get() > 0;
        self.ports.values().any(|port| active(port))
    }

    /// All ports with their keys, by number.
    pub(super) fn keyed_ports(&mut self) -> impl Iterator<Item = (PortKey, &mut PortEntry)> {
        let name = &self.name;
        let ports = self.ports.iter_mut();
        ports.map(move |((number, transport), port)| {
            (name.port_over(*transport, *number), &mut **port)
        })
    }

    /// Drains all endpoints, because another Service has taken this name. Nothing of the old Service
    /// may serve the new one (contract 2.8). Their pods may live, so only a pod's own end sets a
    /// deadline, and the drain timeout only where no pod is known (contract 1.7).
    pub(super) fn replace(&mut self, uid: Option<String>, world: &World, change: &mut Change) {
        for (key, port) in self.keyed_ports() {
            for identity in port.entries.identities().collect::<Vec<_>>() {
                let Some(entry) = port.remove(&identity) else {
                    continue;
                };
                port.apply_known_fate(&entry.endpoint, world, change);
                let trigger = entry.terminating.unwrap_or(Trigger::Removed);
                change.leaves(entry.leaver(&key, trigger));
            }
            port.merged.clear();
            port.ended.clear();
        }
        self.uid = uid;
    }

    /// Brings every port up to the merge. `merged` is `None` if the Service does not exist or
    /// Ebbtide does not serve it.
    pub(super) fn reconcile(
        &mut self,
        merged: Option<MergedService>,
        claim: Claim,
        config: &Config,
        metrics: &Metrics,
        (world, registry): (&World, &mut Registry),
        change: &mut Change,
    ) {
        let (mut ports, warnings) = match merged {
            Some(merged) => self.take_specs(merged, claim, config, metrics),
            None => Default::default(),
        };
        for (key, port) in self.keyed_ports() {
            let listed = ports.remove(&key.id());
            if listed.is_none() {
                port.spec = None;
            }
            port.ambiguous = listed.as_ref().is_some_and(|port| port.ambiguous);
            let endpoints = listed.map(|port| port.endpoints).unwrap_or_default();
            let news = News::between(&port.merged, &endpoints);
            port.merged = endpoints;
            port.reconcile(&key, news, world, registry, change);
        }
        self.warn(warnings, change);
        change.chores.listeners.insert(self.name.clone());
    }

    /// Stores what the Service says about its ports. Returns the merged ports by number, and the
    /// warnings.
    fn take_specs(
        &mut self,
        merged: MergedService,
        claim: Claim,
        config: &Config,
        metrics: &Metrics,
    ) -> (BTreeMap<PortId, MergedPort>, Vec<String>) {
        let MergedService {
            object,
            authorities,
            ports: merged,
            mut warnings,
        } = merged;
        warnings.extend(object.lost(config));
        let addresses: Arc<[ServiceAddress]> = object.addresses.as_slice().into();
        let source_ranges: Arc<[IpNet]> = object.source_ranges.as_slice().into();
        let (policy, found) =
            Policy::for_service(config, &object.annotations, authorities.as_ref());
        warnings.extend(found);
        let mut traffic = object.traffic.clone();
        warnings.extend(config.without_node(&traffic));
        if config.node.name.is_none() {
            (traffic.external_local, traffic.internal_local) = (false, false);
        }
        let mut ports = BTreeMap::new();
        for port in merged {
            let first = port.endpoints.first().map(|e| e.address.port());
            let target = port.port.target_port.or(first);
            let app = port.port.app_protocol.as_deref();
            let transport = port.port.transport;
            let (protocol, found) =
                Protocol::of_service(&object.annotations, app, target, transport);
            warnings.extend(found);
            let policy = match Policy::has_backend(&object.annotations, app) {
                true => policy.clone(),
                false => policy.clone().without_backend(),
            };
            let key = self.name.port_over(transport, port.port.port);
            let hold = &self.hold;
            let entry = self.ports.entry(key.id()).or_insert_with(|| {
                Box::new(PortEntry::new(
                    key.clone(),
                    policy.clone(),
                    hold.clone(),
                    metrics.service(&key),
                ))
            });
            entry.policy = policy.clone();
            entry.traffic = traffic.clone();
            entry.affinity = match (traffic.affinity, entry.affinity.take()) {
                (Some(timeout), Some(known)) => Some(known.with_timeout(timeout)),
                (timeout, _) => timeout.map(Affinity::new),
            };
            entry.spec = Some(Spec {
                port: port.port.clone(),
                protocol,
                target,
                claimed: claim.listening,
                handing_back: !claim.ours,
                addresses: addresses.clone(),
                source_ranges: source_ranges.clone(),
            });
            ports.insert(key.id(), port);
        }
        (ports, warnings)
    }

    /// Brings only the endpoints at these addresses up to the merge. Returns `false` and changes
    /// nothing if the addresses alone do not determine the Service's new state.
    pub(super) fn reconcile_some(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        (world, registry): (&World, &mut Registry),
        change: &mut Change,
    ) -> bool {
        let ports = self.ports.values().map(|port| &**port);
        let merge = |port: &PortEntry| port.merge_some(world, &self.name, addresses);
        let Some(found) = ports.map(merge).collect::<Option<Vec<_>>>() else {
            return false;
        };
        for ((key, port), found) in self.keyed_ports().zip(found) {
            let news = port.patch(addresses, &found);
            port.reconcile(&key, news, world, registry, change);
        }
        true
    }

    /// Whether the last merge of each port is equal to a whole merge, as [`Self::reconcile_some`]
    /// promises.
    pub(super) fn is_as_merged(&self, world: &World) -> bool {
        let merged = world.merge(&self.name);
        let merged = merged.map(|merged| merged.ports).unwrap_or_default();
        let mut listed = self.ports.iter().filter(|(_, port)| port.spec.is_some());
        listed.all(|(id, port)| {
            let whole = merged
                .iter()
                .find(|whole| (whole.port.port, whole.port.transport) == *id);
            whole.is_some_and(|whole| {
                whole.endpoints == port.merged && whole.ambiguous == port.ambiguous
            })
        })
    }

    /// Reports those of the warnings that are new, and remembers them all.
    fn warn(&mut self, warnings: Vec<String>, change: &mut Change) {
        if warnings == self.warnings {
            return;
        }
        let new = warnings.iter().filter(|it| !self.warnings.contains(it));
        let new = new.map(|warning| (self.name.clone(), warning.clone()));
        change.chores.warnings.extend(new);
        self.warnings = warnings;
    }
}

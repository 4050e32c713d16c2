//! One Service port with its entries: which of its endpoints are usable, out of rotation, the last
//! resort, or leaving for good.
//!
//! Invariant: outside this file, an entry is changed only by `PortEntry::alter`. So the lists
//! beside the entries stay equal to them, and a rebuild looks only at entries that were altered.
//! How a merge becomes changes of entries is in `routing/reconcile.rs`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use crate::contract::address::ServiceAddress;
use crate::contract::affinity::Affinity;
use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::Endpoint;
use crate::contract::endpoint_list::EndpointList;
use crate::contract::hold::Hold;
use crate::contract::name::PortKey;
use crate::contract::policy::{Policy, Protocol, Traffic};
use crate::contract::snapshot::{Local, Place, Port, Presence};
use crate::discovery::object::ServicePortObject;
use crate::routing::change::Change;
use crate::routing::entries::Entries;
use crate::routing::entry::Entry;
use crate::routing::near::{Moved, Near};
use crate::routing::registry::{Identity, identity, identity_of};
use crate::routing::world::merged::MergedEndpoint;

/// One Service port as the table keeps it.
pub(super) struct PortEntry {
    pub(super) key: Arc<PortKey>,
    /// Where the port is published, while it is.
    pub(super) place: Option<Arc<Place>>,
    /// What the Service says about the port. `None` if the Service or the port is gone: nothing is
    /// published, and connections go on.
    pub(super) spec: Option<Spec>,
    pub(super) policy: Policy,
    pub(super) hold: Arc<Hold>,
    pub(super) metrics: Arc<ServiceMetrics>,
    /// See [`Port::affinity`].
    pub(super) affinity: Option<Affinity>,
    /// See [`Port::traffic`].
    pub(super) traffic: Traffic,
    /// The endpoints of the last merge, sorted by address. Only differences from it are examined.
    pub(super) merged: Vec<MergedEndpoint>,
    /// Whether the last merge was ambiguous; see `MergedPort::ambiguous`.
    pub(super) ambiguous: bool,
    /// The endpoints that do not leave. An endpoint whose drain begins loses its entry.
    pub(super) entries: Entries,
    /// The endpoints whose entries are usable; see [`Port::usable`].
    pub(super) usable: EndpointList,
    /// The usable endpoints by their topology hints.
    pub(super) near: Near,
    /// Entries that no slice lists now.
    pub(super) unlisted: BTreeSet<Identity>,
    /// Entries that were altered since the last rebuild.
    pub(super) altered: BTreeSet<Identity>,
    /// Entries on this node.
    pub(super) local: BTreeSet<Identity>,
    /// What served at the last rebuild; see [`PortEntry::serving`].
    pub(super) served: Serving,
    /// Endpoints whose drain has begun and is not over.
    pub(super) leaving: Vec<Arc<Endpoint>>,
    /// Endpoints whose drain has begun, and which a slice still lists as terminating. The value is
    /// the drain deadline. It outlives the endpoint, which may return as the last resort (contract
    /// 1.9).
    pub(super) ended: HashMap<Identity, Option<Instant>>,
    /// Every endpoint that still exists; see [`Port::all`].
    pub(super) all: EndpointList,
    /// As it was published last: any endpoint, and any on this node.
    pub(super) presence: [Presence; 2],
}

/// Whether an endpoint serves, so that no terminating one has to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Serving {
    any: bool,
    /// One on this node. True if no traffic policy asks for that.
    here: bool,
}

impl Serving {
    /// Whether each terminating endpoint can leave.
    pub(super) fn all(self) -> bool {
        self.any && self.here
    }

    /// Whether another endpoint serves the clients of one that is on this node or not.
    pub(super) fn instead_of(self, local: bool) -> bool {
        self.any && (self.here || !local)
    }
}

/// What the Service says about one of its ports.
pub(super) struct Spec {
    pub(super) port: ServicePortObject,
    pub(super) protocol: Protocol,
    /// The port on which the endpoints listen; see [`Port::target_port`].
    pub(super) target: Option<u16>,
    /// See [`Port::claimed`].
    pub(super) claimed: bool,
    /// See [`Port::handing_back`].
    pub(super) handing_back: bool,
    /// See [`Port::addresses`].
    pub(super) addresses: Arc<[ServiceAddress]>,
    /// See [`Port::source_ranges`].
    pub(super) source_ranges: Arc<[IpNet]>,
}

impl PortEntry {
    /// A port without a spec and without endpoints.
    pub(super) fn new(
        key: PortKey,
        policy: Policy,
        hold: Arc<Hold>,
        metrics: Arc<ServiceMetrics>,
    ) -> Self {
        Self {
            key: Arc::new(key),
            place: None,
            spec: None,
            policy,
            hold,
            metrics,
            affinity: None,
            traffic: Traffic::default(),
            merged: Vec::new(),
            ambiguous: false,
            entries: Entries::default(),
            usable: EndpointList::default(),
            near: Near::default(),
            unlisted: BTreeSet::new(),
            altered: BTreeSet::new(),
            local: BTreeSet::new(),
            served: Serving::default(),
            leaving: Vec::new(),
            ended: HashMap::new(),
            all: EndpointList::default(),
            presence: [Presence::Never(Instant::now()); 2],
        }
    }

    /// Whether an endpoint is usable and not ejected: any, and any on this node.
    pub(super) fn serving(&self) -> Serving {
        let serves = |endpoint: &Arc<Endpoint>| !endpoint.is_ejected();
        let usable = |entry: &&Entry| entry.is_usable();
        let mut local = self.local_entries().filter(usable);
        Serving {
            any: self.usable.iter().any(serves),
            here: !self.traffic.has_local() || local.any(|entry| serves(&entry.endpoint)),
        }
    }

    fn local_entries(&self) -> impl Iterator<Item = &Entry> {
        let local = self.local.iter();
        local.filter_map(|identity| self.entries.get(identity))
    }

    /// Changes an entry, if there is one, and keeps the lists equal to the entries.
    pub(super) fn alter(&mut self, identity: &Identity, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(identity) else {
            return;
        };
        change(entry);
        match entry.listed {
            true => _ = self.unlisted.remove(identity),
            false => _ = self.unlisted.insert(identity.clone()),
        }
        match entry.local {
            true => _ = self.local.insert(identity.clone()),
            false => _ = self.local.remove(identity),
        }
        let usable = entry.is_usable();
        let moved = self.near.note(&entry.endpoint, &mut entry.hinted, usable);
        match (entry.place, usable) {
            (None, true) => {
                entry.place = Some(self.usable.push(entry.endpoint.clone()) as u32);
            }
            (Some(place), false) => {
                entry.place = None;
                self.vacate(place);
            }
            _ => {}
        }
        self.take_moved(moved);
        self.altered.insert(identity.clone());
    }

    /// Removes an entry, also from the lists. `all` still has its endpoint until the drain is over.
    pub(super) fn remove(&mut self, identity: &Identity) -> Option<Entry> {
        let mut entry = self.entries.remove(identity)?;
        let moved = self.near.note(&entry.endpoint, &mut entry.hinted, false);
        self.take_moved(moved);
        self.unlisted.remove(identity);
        self.local.remove(identity);
        self.altered.remove(identity);
        if let Some(place) = entry.place {
            self.vacate(place);
        }
        Some(entry)
    }

    /// Removes a place in `usable`, and notes the new place of the endpoint that moves there.
    fn vacate(&mut self, place: u32) {
        if let Some(moved) = self.usable.swap_remove(place as usize)
            && let Some(entry) = self.entries.get_mut(&identity_of(&moved))
        {
            entry.place = Some(place);
        }
    }

    /// Notes the new places of endpoints in the lists of hinted ones.
    fn take_moved(&mut self, moved: [Option<Moved>; 2]) {
        for moved in moved.into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(&identity_of(&moved.endpoint)) {
                entry.hinted.take(&moved);
            }
        }
    }

    /// Decides for the altered entries which are in rotation, which are out of it, and which leave
    /// for good.
    pub(super) fn rebuild(&mut self, key: &PortKey, change: &mut Change) {
        let serves = self.serving();
        let altered = std::mem::take(&mut self.altered);
        // If an endpoint serves now and one served at the last rebuild, no entry depends on the
        // others, so the altered entries suffice. Otherwise each entry depends on the others.
        let looked_at = if serves.all() && self.served.all() {
            altered
        } else {
            self.entries.identities().collect()
        };
        self.served = serves;
        for identity in looked_at {
            let Some(entry) = self.entries.get_mut(&identity) else {
                continue;
            };
            let serves = serves.instead_of(entry.local);
            let stands = entry.stands(serves);
            match entry.terminating {
                Some(trigger) if !stands && (serves || !entry.may_join()) => {
                    let Some(entry) = self.remove(&identity) else {
                        continue;
                    };
                    if entry.listed {
                        let deadline = entry.endpoint.drain_deadline();
                        self.ended.insert(identity, deadline);
                    }
                    change.leaves(entry.leaver(key, trigger));
                }
                _ if entry.out != stands => {}
                _ if entry.out => {
                    entry.out = false;
                    entry.endpoint.set_out(false);
                }
                _ => {
                    entry.out = true;
                    change.outs.push(entry.endpoint.clone());
                }
            }
        }
        debug_assert!(self.is_in_order(serves), "{key}");
    }

    /// Whether the lists are equal to the entries, and a rebuild left each entry as it must be.
    fn is_in_order(&self, serves: Serving) -> bool {
        let usable = self
            .entries
            .iter()
            .filter(|entry| entry.is_usable())
            .count();
        let going: HashSet<_> = self
            .merged
            .iter()
            .filter(|m| m.conditions.terminating)
            .map(identity)
            .collect();
        usable == self.usable.len()
            && self.ended.keys().all(|identity| going.contains(identity))
            && self.unlisted.iter().eq(self
                .entries
                .iter()
                .filter(|e| !e.listed)
                .map(|e| identity_of(&e.endpoint))
                .collect::<BTreeSet<_>>()
                .iter())
            && self.entries.iter().all(|entry| {
                let place = entry.place.map(|place| self.usable[place as usize].id);
                place == entry.is_usable().then_some(entry.endpoint.id)
                    && entry.out != entry.stands(serves.instead_of(entry.local))
                    && (entry.terminating.is_none() || !serves.instead_of(entry.local))
                    && entry.local == self.local.contains(&identity_of(&entry.endpoint))
            })
    }

    /// Brings the presence up to date. Returns whether it has changed.
    pub(super) fn note_presence(&mut self) -> bool {
        // It serves, or is about to: it is ready, and a probe is on its way.
        let present = |entry: &Entry| {
            let joins = entry.listed && entry.conditions.ready && entry.terminating.is_none();
            let comes = entry.terminating.is_some() && entry.may_join();
            joins || comes || entry.is_usable() || entry.is_last_resort()
        };
        let any = !self.usable.is_empty() || self.entries.iter().any(present);
        let here = self.local_entries().any(present);
        let before = self.presence;
        for (presence, is_present) in self.presence.iter_mut().zip([any, here]) {
            *presence = match (is_present, *presence) {
                (true, _) => Presence::Now,
                (false, Presence::Now) => Presence::Until(Instant::now()),
                (false, before) => before,
            };
        }
        self.presence != before
    }

    /// Publishes the port as it is now. Returns whether the Service has another set of places then.
    pub(super) fn publish(&mut self, key: &PortKey) -> bool {
        match (self.place.take(), self.assemble(key)) {
            (None, None) => false,
            (None, Some(port)) => {
                self.place = Some(Place::new(port));
                true
            }
            (Some(place), port) => {
                let ends = port.is_none();
                place.publish(port);
                self.place = (!ends).then_some(place);
                ends
            }
        }
    }

    fn assemble_local(&self) -> Local {
        let which = |chosen: fn(&Entry) -> bool| {
            let chosen = self.local_entries().filter(|entry| chosen(entry));
            chosen.map(|entry| entry.endpoint.clone()).collect()
        };
        Local {
            usable: which(Entry::is_usable),
            last_resort: match self.served.here {
                true => EndpointList::default(),
                false => which(Entry::is_last_resort),
            },
            presence: self.presence[1],
        }
    }

    /// The port to publish; `None` if the Service or the port is gone.
    fn assemble(&self, key: &PortKey) -> Option<Arc<Port>> {
        let Spec {
            port,
            protocol,
            target,
            claimed,
            handing_back,
            addresses,
            source_ranges,
        } = self.spec.as_ref()?;
        let resorts = self.entries.iter().filter(|entry| entry.is_last_resort());
        let last_resort = if self.served.any {
            EndpointList::default()
        } else {
            resorts.map(|e| e.endpoint.clone()).collect()
        };
        Some(Arc::new(Port {
            key: key.clone(),
            name: port.name.clone(),
            node_port: port.node_port,
            claimed: *claimed,
            handing_back: *handing_back,
            protocol: *protocol,
            target_port: *target,
            policy: self.policy.clone(),
            usable: self.usable.clone(),
            last_resort,
            all: self.all.clone(),
            hold: self.hold.clone(),
            metrics: self.metrics.clone(),
            addresses: addresses.clone(),
            presence: self.presence[0],
            source_ranges: source_ranges.clone(),
            affinity: self.affinity.clone(),
            traffic: self.traffic.clone(),
            local: self
                .traffic
                .has_local()
                .then(|| Box::new(self.assemble_local())),
            near: self.near.chosen(self.usable.len()).cloned().map(Box::new),
        }))
    }
}

//! One port of a Service as its entries stand: which of its endpoints are usable, out, the last resort, or leave.
//!
//! Invariant: an entry is changed by [`PortEntry::alter`] alone, so that the lists kept beside the entries follow it and a
//! rebuild need look only at what was altered.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Instant;

use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::Endpoint;
use crate::contract::endpoint_list::EndpointList;
use crate::contract::hold::Hold;
use crate::contract::name::PortKey;
use crate::contract::policy::{Policy, Protocol};
use crate::contract::snapshot::Port;
use crate::discovery::object::ServicePortObject;
use crate::routing::change::Change;
use crate::routing::entry::Entry;
use crate::routing::registry::{Identity, identity, identity_of};
use crate::routing::world::merged::MergedEndpoint;

pub(super) struct PortEntry {
    /// `None` when the Service or its port is gone: nothing is published, connections live on.
    pub(super) spec: Option<Spec>,
    pub(super) policy: Policy,
    pub(super) hold: Arc<Hold>,
    pub(super) metrics: Arc<ServiceMetrics>,
    /// What was merged last, by address: only what differs from it is looked at again.
    pub(super) merged: Vec<MergedEndpoint>,
    /// See [`MergedPort::ambiguous`].
    pub(super) ambiguous: bool,
    pub(super) entries: Entries,
    /// See [`Port::usable`]: the entries that [`Entry::is_usable`].
    pub(super) usable: EndpointList,
    /// Entries that no slice names right now.
    pub(super) unlisted: BTreeSet<Identity>,
    /// Entries that were altered since the last rebuild.
    pub(super) altered: BTreeSet<Identity>,
    /// Whether any served at the last rebuild.
    pub(super) served: bool,
    /// Drain begun, leases left.
    pub(super) leaving: Vec<Arc<Endpoint>>,
    /// Drained, and still shown terminating by a slice; with the drain deadline, which outlives the endpoint.
    pub(super) ended: HashMap<Identity, Option<Instant>>,
    /// See [`Port::all`].
    pub(super) all: EndpointList,
}

/// What the Service says of one of its ports.
pub(super) struct Spec {
    pub(super) port: ServicePortObject,
    pub(super) protocol: Protocol,
    pub(super) target: Option<u16>,
    pub(super) claimed: bool,
    pub(super) handing_back: bool,
}

/// Without a random key: the same events make the same table in the same order, so that a seeded test can be run again. What
/// is hashed comes from the source of truth, not from clients.
type Entries = HashMap<Identity, Entry, BuildHasherDefault<DefaultHasher>>;

impl PortEntry {
    pub(super) fn new(policy: Policy, hold: Arc<Hold>, metrics: Arc<ServiceMetrics>) -> Self {
        Self {
            spec: None,
            policy,
            hold,
            metrics,
            merged: Vec::new(),
            ambiguous: false,
            entries: Entries::default(),
            usable: EndpointList::default(),
            unlisted: BTreeSet::new(),
            altered: BTreeSet::new(),
            served: false,
            leaving: Vec::new(),
            ended: HashMap::new(),
            all: EndpointList::default(),
        }
    }

    /// Whether any is usable and answers, as far as is known.
    pub(super) fn serves(&self) -> bool {
        self.usable.iter().any(|endpoint| !endpoint.is_ejected())
    }

    /// The one way to change an entry: the lists that are kept of entries follow.
    pub(super) fn alter(&mut self, identity: &Identity, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(identity) else {
            return;
        };
        change(entry);
        match entry.listed {
            true => _ = self.unlisted.remove(identity),
            false => _ = self.unlisted.insert(identity.clone()),
        }
        match (entry.place, entry.is_usable()) {
            (None, true) => entry.place = Some(self.usable.push(entry.endpoint.clone())),
            (Some(place), false) => {
                entry.place = None;
                self.vacate(place);
            }
            _ => {}
        }
        self.altered.insert(identity.clone());
    }

    pub(super) fn remove(&mut self, identity: &Identity) -> Option<Entry> {
        let entry = self.entries.remove(identity)?;
        self.unlisted.remove(identity);
        self.altered.remove(identity);
        if let Some(place) = entry.place {
            self.vacate(place);
        }
        Some(entry)
    }

    fn vacate(&mut self, place: usize) {
        if let Some(moved) = self.usable.swap_remove(place)
            && let Some(entry) = self.entries.get_mut(&identity_of(&moved))
        {
            entry.place = Some(place);
        }
    }

    /// Sorts the entries into those that stay, those that are out, and those that leave for good.
    pub(super) fn rebuild(&mut self, key: &PortKey, change: &mut Change) {
        let serves = self.serves();
        let altered = std::mem::take(&mut self.altered);
        // Where some serve, each entry goes by itself; otherwise what becomes of it depends on the others.
        let looked_at = if serves && self.served {
            altered
        } else {
            self.entries.keys().cloned().collect()
        };
        self.served = serves;
        for identity in looked_at {
            let Some(entry) = self.entries.get_mut(&identity) else {
                continue;
            };
            let stands = entry.stands(serves);
            match entry.terminating {
                Some(trigger) if !stands && (serves || !entry.may_join()) => {
                    let Some(Entry {
                        endpoint, listed, ..
                    }) = self.remove(&identity)
                    else {
                        continue;
                    };
                    if listed {
                        self.ended.insert(identity, endpoint.drain_deadline());
                    }
                    change.leaves(endpoint, key, trigger);
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

    /// What the lists of entries and a rebuild of some of them promise.
    fn is_in_order(&self, serves: bool) -> bool {
        let usable = self
            .entries
            .values()
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
                .filter(|(_, e)| !e.listed)
                .map(|(i, _)| i)
                .collect::<BTreeSet<_>>())
            && self.entries.iter().all(|(identity, entry)| {
                let place = entry.place.map(|place| self.usable[place].id);
                place == entry.is_usable().then_some(entry.endpoint.id)
                    && identity_of(&entry.endpoint) == *identity
                    && entry.out != entry.stands(serves)
                    && (entry.terminating.is_none() || !serves)
            })
    }

    pub(super) fn assemble(&self, key: &PortKey) -> Option<Arc<Port>> {
        let Spec {
            port,
            protocol,
            target,
            claimed,
            handing_back,
        } = self.spec.as_ref()?;
        let resorts = self.entries.values().filter(|entry| entry.is_last_resort());
        let last_resort = if self.served {
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
        }))
    }
}

//! One port of a Service as its entries stand: which of its endpoints are usable, out, the last resort, or leave.
//!
//! Invariant: an entry is changed by [`PortEntry::alter`] alone, so that the lists kept beside the entries follow it and a
//! rebuild need look only at what was altered.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::{Conditions, Endpoint};
use crate::contract::endpoint_list::EndpointList;
use crate::contract::hold::Hold;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::{Policy, Protocol};
use crate::contract::reason::Trigger;
use crate::contract::snapshot::Port;
use crate::discovery::object::ServicePortObject;
use crate::routing::chores::Chores;
use crate::routing::registry::{Identity, identity, identity_of};
use crate::routing::world::merged::{Fate, MergedEndpoint};
use crate::routing::world::objects::World;

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

pub(super) struct Entry {
    pub(super) endpoint: Arc<Endpoint>,
    /// The endpoint's own, kept here too: whoever looks at every entry need not follow each pointer.
    pub(super) conditions: Conditions,
    /// In [`PortEntry::usable`].
    pub(super) place: Option<usize>,
    /// Whether the endpoint has been told so.
    pub(super) out: bool,
    /// Connected to once by this proxy.
    pub(super) joined: bool,
    /// The control side is about to find that out.
    pub(super) probing: bool,
    /// Named by a slice right now.
    pub(super) listed: bool,
    /// Set once, never unset.
    pub(super) terminating: Option<Trigger>,
    /// Its drain deadline has passed: not even a last resort.
    pub(super) expired: bool,
}

/// An endpoint to be drained once the snapshot without it is out.
pub(super) struct Leaver {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) key: PortKey,
    pub(super) trigger: Trigger,
}

impl Entry {
    fn is_usable(&self) -> bool {
        self.listed && self.joined && self.terminating.is_none() && self.conditions.ready
    }

    pub(super) fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
        self.endpoint.set_conditions(conditions);
    }

    /// Has it connected to, if that is due. One that is not ready is left alone.
    pub(super) fn probe(&mut self, chores: &mut Chores) {
        let wanted =
            self.conditions.ready || (self.conditions.terminating && self.conditions.serving);
        if wanted && self.listed && !self.joined && !self.probing {
            self.probing = true;
            chores.join.push(self.endpoint.clone());
        }
    }

    /// In rotation, or the last resort.
    fn stands(&self, any_serves: bool) -> bool {
        self.is_usable() || self.is_last_resort() && !any_serves
    }

    /// Not connected to yet: it may still become the last resort.
    fn may_join(&self) -> bool {
        self.listed && !self.joined && !self.expired && self.conditions.serving
    }

    /// Serving and terminating (KEP-1669).
    fn is_last_resort(&self) -> bool {
        self.listed
            && self.joined
            && self.terminating.is_some()
            && !self.expired
            && self.conditions.serving
    }
}

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

    /// Brings an entry up to what was merged of it.
    pub(super) fn update(
        &mut self,
        identity: &Identity,
        merged: &MergedEndpoint,
        received: Instant,
        chores: &mut Chores,
    ) {
        let (join_check, drain_timeout) = (self.policy.join_check, self.policy.drain_timeout);
        self.alter(identity, |entry| {
            entry.listed = true;
            entry.joined |= !join_check;
            entry.set_conditions(merged.conditions);
            if entry.endpoint.is_ejected() && entry.out && entry.joined {
                // Its probe ended when it left the rotation: prove it anew.
                entry.joined = false;
            }
            entry.probe(chores);
            if merged.conditions.terminating && entry.terminating.is_none() {
                entry.terminating = Some(match &merged.fate {
                    Fate::Terminating { trigger, .. } => *trigger,
                    Fate::Deleted { .. } => Trigger::PodDeleted,
                    Fate::NoPod | Fate::Alive => Trigger::SliceTerminating,
                });
                if merged.fate == Fate::NoPod {
                    shorten(&entry.endpoint, received + drain_timeout, chores);
                }
            }
        });
        if let Some(entry) = self.entries.get(identity) {
            apply_fate(
                &entry.endpoint,
                &merged.fate,
                received,
                &self.policy,
                chores,
            );
        }
    }

    /// What the world has at these addresses; `None` if that alone does not tell what became of the port.
    pub(super) fn merge_some(
        &self,
        world: &World,
        service: &ObjectName,
        addresses: &BTreeSet<IpAddr>,
    ) -> Option<Vec<MergedEndpoint>> {
        let Some(spec) = &self.spec else {
            return Some(Vec::new());
        };
        let found = world
            .merge_some(service, &spec.port, addresses)
            .filter(|_| !self.ambiguous)?;
        // The first endpoint may stand for where all of them listen.
        let other = self
            .merged
            .iter()
            .find(|e| !addresses.contains(&e.address.ip()));
        let first = other
            .into_iter()
            .chain(found.first())
            .min_by_key(|e| e.address)
            .map(|e| e.address.port());
        (spec.port.target_port.is_some() || spec.target == first).then_some(found)
    }

    /// Puts what was found at these addresses into what was merged last.
    pub(super) fn patch(&mut self, addresses: &BTreeSet<IpAddr>, found: &[MergedEndpoint]) -> News {
        let at = |all: &[MergedEndpoint], ip: IpAddr| {
            let from = all.partition_point(|e| e.address.ip() < ip);
            from..from
                + all[from..]
                    .iter()
                    .take_while(|e| e.address.ip() == ip)
                    .count()
        };
        let mut news = News::default();
        for ip in addresses {
            let now = &found[at(found, *ip)];
            let before: Vec<_> = self
                .merged
                .splice(at(&self.merged, *ip), now.iter().cloned())
                .collect();
            news.append(News::between(&before, now));
        }
        news
    }

    /// Sorts the entries into those that stay, those that are out, and those that leave for good.
    pub(super) fn rebuild(
        &mut self,
        key: &PortKey,
        leavers: &mut Vec<Leaver>,
        outs: &mut Vec<Arc<Endpoint>>,
    ) {
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
                    leavers.push(Leaver {
                        endpoint,
                        key: key.clone(),
                        trigger,
                    });
                }
                _ if entry.out != stands => {}
                _ if entry.out => {
                    entry.out = false;
                    entry.endpoint.set_out(false);
                }
                _ => {
                    entry.out = true;
                    outs.push(entry.endpoint.clone());
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

/// What differs between two merges of a port.
#[derive(Default)]
pub(super) struct News {
    /// New or other than before.
    pub(super) changed: Vec<MergedEndpoint>,
    /// No longer there, or only as another.
    pub(super) gone: Vec<MergedEndpoint>,
}

impl News {
    /// Both ordered by address.
    pub(super) fn between(before: &[MergedEndpoint], now: &[MergedEndpoint]) -> Self {
        let mut news = Self::default();
        let mut before = before.iter().peekable();
        for merged in now {
            while let Some(left) = before.next_if(|old| old.address < merged.address) {
                news.gone.push(left.clone());
            }
            let same_address = before.next_if(|old| old.address == merged.address);
            if same_address != Some(merged) {
                news.changed.push(merged.clone());
                news.gone.extend(same_address.cloned());
            }
        }
        news.gone.extend(before.cloned());
        news
    }

    pub(super) fn append(&mut self, mut more: Self) {
        self.changed.append(&mut more.changed);
        self.gone.append(&mut more.gone);
    }
}

/// Brings what is known of the pod's end to the endpoint: a deadline, silence that is suspect.
pub(super) fn apply_fate(
    endpoint: &Arc<Endpoint>,
    fate: &Fate,
    received: Instant,
    policy: &Policy,
    chores: &mut Chores,
) {
    match fate {
        Fate::NoPod | Fate::Alive | Fate::Terminating { deadline: None, .. } => {}
        Fate::Terminating {
            deadline: Some(deadline),
            ..
        } => shorten(endpoint, *deadline, chores),
        Fate::Deleted { deadline } => {
            endpoint.set_pod_gone();
            if endpoint.drain_deadline().is_none() || deadline.is_some() {
                shorten(
                    endpoint,
                    deadline.unwrap_or(received + policy.drain_timeout),
                    chores,
                );
            }
        }
    }
}

pub(super) fn shorten(endpoint: &Arc<Endpoint>, deadline: Instant, chores: &mut Chores) {
    if endpoint.shorten_deadline(deadline) {
        chores.deadlines.push(endpoint.clone());
    }
}

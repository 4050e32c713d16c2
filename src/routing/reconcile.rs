//! Brings the entries of one Service port up to its merge: endpoints join, change and leave.
//!
//! Invariant: termination is final, removal is not (contract 1.7). A deadline is only shortened
//! (contract 1.4). This file decides which endpoints leave. It neither publishes nor drains:
//! `RoutingTable::settle` does both.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::contract::endpoint::{Conditions, Endpoint};
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::Policy;
use crate::contract::reason::Trigger;
use crate::routing::change::Change;
use crate::routing::entry::Entry;
use crate::routing::near::Hinted;
use crate::routing::port::{PortEntry, Serving};
use crate::routing::registry::{Identity, Registry, identity};
use crate::routing::world::merged::{Fate, MergedEndpoint};
use crate::routing::world::objects::World;
use crate::routing::world::pod_uid::PodUid;

impl PortEntry {
    /// Brings the entries up to the port's merge. `news` is the difference from the last merge.
    pub(super) fn reconcile(
        &mut self,
        key: &PortKey,
        news: News,
        world: &World,
        registry: &mut Registry,
        change: &mut Change,
    ) {
        let News { mut changed, gone } = news;
        self.unlist(&gone, &changed);
        changed.sort_by_key(|merged| merged.conditions.terminating);
        for merged in &changed {
            self.take_in(key, merged, registry, change);
        }
        let serves = self.serving();
        if !serves.all() {
            self.recall_terminating(serves, registry, change);
        }
        self.judge_unlisted(key, world, change);
        self.judge_leaving(world, change);
    }

    /// Marks endpoints that no slice lists any more.
    fn unlist(&mut self, gone: &[MergedEndpoint], changed: &[MergedEndpoint]) {
        let going: HashSet<Identity> = changed
            .iter()
            .filter(|merged| merged.conditions.terminating)
            .map(identity)
            .collect();
        for merged in gone {
            let identity = identity(merged);
            if !going.contains(&identity) {
                self.ended.remove(&identity);
            }
            self.alter(&identity, |entry| entry.set_listed(false));
        }
    }

    /// Takes in an endpoint that is new or differs from the last merge.
    fn take_in(
        &mut self,
        key: &PortKey,
        merged: &MergedEndpoint,
        registry: &mut Registry,
        change: &mut Change,
    ) {
        let identity = identity(merged);
        if !merged.conditions.terminating {
            let terminates = |entry: &Entry| entry.terminating.is_some();
            if self.entries.get(&identity).is_some_and(terminates)
                && let Some(entry) = self.remove(&identity)
                && let Some(trigger) = entry.terminating
            {
                // Termination is one-way. The merge enforces that for a pod with a UID. Without a
                // UID, an address that comes back is another generation, so the old one leaves.
                change.leaves(entry.leaver(key, trigger));
            }
            if !self.entries.contains(&identity) {
                self.add(merged, registry);
            }
        }
        self.update(&identity, merged, change);
    }

    /// Nothing is usable, here or anywhere, so bring back terminating endpoints, even drained ones. Skip those that are
    /// over: their deadline has passed, or they have drained and their pod is gone. Each event would
    /// drain them again.
    fn recall_terminating(
        &mut self,
        serves: Serving,
        registry: &mut Registry,
        change: &mut Change,
    ) {
        let terminating = |merged: &&MergedEndpoint| {
            merged.conditions.terminating && !serves.instead_of(merged.local)
        };
        let terminating: Vec<_> = self.merged.iter().filter(terminating).cloned().collect();
        for merged in terminating {
            let identity = identity(&merged);
            let before = self.ended.get(&identity).copied().flatten();
            let mut deadlines = before.into_iter().chain(merged.fate.deadline());
            let has_drained = self.ended.contains_key(&identity);
            let is_gone = has_drained && matches!(merged.fate, Fate::Deleted { .. });
            let is_over = is_gone || deadlines.any(|deadline| deadline <= change.received);
            if self.entries.contains(&identity) || !merged.conditions.serving || is_over {
                continue;
            }
            self.ended.remove(&identity);
            let endpoint = self.add(&merged, registry);
            self.alter(&identity, |entry| entry.recalled = has_drained);
            if let Some(deadline) = before {
                change.shorten(&endpoint, deadline);
            }
            self.update(&identity, &merged, change);
        }
    }

    /// Decides about endpoints that no slice lists. An endpoint leaves, or it stays out of rotation
    /// while its pod lives (contract 1.7).
    fn judge_unlisted(&mut self, key: &PortKey, world: &World, change: &mut Change) {
        for identity in self.unlisted.iter().cloned().collect::<Vec<_>>() {
            // Without a UID, nothing is known about a pod once no slice names it.
            let uid = identity.1.as_ref().map(PodUid::as_str);
            let uid = uid.filter(|uid| !uid.is_empty());
            let fate = uid.map_or(Fate::NoPod, |uid| world.fate(uid));
            let out = |conditions| Conditions {
                ready: false,
                serving: false,
                ..conditions
            };
            self.alter(&identity, |entry| {
                entry.set_conditions(out(entry.conditions))
            });
            let Some(entry) = self.entries.get(&identity) else {
                continue;
            };
            let (endpoint, terminating) = (entry.endpoint.clone(), entry.terminating);
            apply_fate(&endpoint, &fate, &self.policy, change);
            let trigger = match (&fate, terminating) {
                (_, Some(trigger)) => trigger,
                // The pod lives: the endpoint may return.
                (Fate::Alive, None) => continue,
                (Fate::NoPod, None) => {
                    change.shorten(&endpoint, change.received + self.policy.drain_timeout);
                    Trigger::Removed
                }
                (Fate::Terminating { trigger, .. }, None) => *trigger,
                (Fate::Deleted { .. }, None) => Trigger::PodDeleted,
            };
            if let Some(entry) = self.remove(&identity) {
                change.leaves(entry.leaver(key, trigger));
            }
        }
    }

    /// Shortens the deadlines of endpoints that drain already, where there is news about their
    /// pods.
    fn judge_leaving(&self, world: &World, change: &mut Change) {
        for endpoint in &self.leaving {
            self.apply_known_fate(endpoint, world, change);
        }
    }

    /// Sets or shortens the deadline of an endpoint whose drain begins or has begun, by what is
    /// known about its pod.
    pub(super) fn apply_known_fate(
        &self,
        endpoint: &Arc<Endpoint>,
        world: &World,
        change: &mut Change,
    ) {
        let uid = endpoint.pod.as_ref().map(|pod| pod.uid.as_str());
        let uid = uid.filter(|uid| !uid.is_empty());
        let fate = uid.map_or(Fate::NoPod, |uid| world.fate(uid));
        apply_fate(endpoint, &fate, &self.policy, change);
        if fate == Fate::NoPod && endpoint.drain_deadline().is_none() {
            // No pod is known, or it is forgotten, so its grace period will never be known.
            change.shorten(endpoint, change.received + self.policy.drain_timeout);
        }
    }

    /// Adds a new endpoint to the port, out of rotation.
    fn add(&mut self, merged: &MergedEndpoint, registry: &mut Registry) -> Arc<Endpoint> {
        let endpoint = registry.create(&self.key, merged, &mut self.all);
        let entry = Entry {
            endpoint: endpoint.clone(),
            conditions: Conditions::default(),
            place: None,
            hinted: Hinted::new(merged.hints),
            out: true,
            joined: !self.policy.join_check,
            probing: false,
            listed: true,
            terminating: None,
            recalled: false,
            suspended: None,
            expired: false,
            local: merged.local,
        };
        self.entries.insert(entry);
        endpoint
    }

    /// Brings an entry up to its merged endpoint.
    pub(super) fn update(
        &mut self,
        identity: &Identity,
        merged: &MergedEndpoint,
        change: &mut Change,
    ) {
        let (join_check, drain_timeout) = (self.policy.join_check, self.policy.drain_timeout);
        self.alter(identity, |entry| {
            entry.set_listed(true);
            entry.joined |= !join_check;
            if merged.conditions.ready && !entry.conditions.ready {
                // Its container was restarted: it is ready again.
                entry.suspended = None;
            }
            entry.set_conditions(merged.conditions);
            entry.local = merged.local;
            entry.hinted.hints = merged.hints;
            if entry.endpoint.is_ejected() && entry.out && entry.joined {
                // The probe of an ejected endpoint ends when the endpoint goes out of rotation, so
                // the endpoint has to pass the join check again.
                entry.joined = false;
            }
            entry.probe(change);
            if merged.conditions.terminating && entry.terminating.is_none() {
                entry.terminating = Some(match &merged.fate {
                    Fate::Terminating { trigger, .. } => *trigger,
                    Fate::Deleted { .. } => Trigger::PodDeleted,
                    Fate::NoPod | Fate::Alive => Trigger::SliceTerminating,
                });
                if merged.fate == Fate::NoPod {
                    change.shorten(&entry.endpoint, change.received + drain_timeout);
                }
            }
        });
        if let Some(entry) = self.entries.get(identity) {
            apply_fate(&entry.endpoint, &merged.fate, &self.policy, change);
        }
    }

    /// The merged endpoints at these addresses. `None` if the addresses alone do not determine the
    /// port's new state.
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
        // Without a numeric `targetPort`, the port's target is the port of its first endpoint. A
        // new target needs a whole merge.
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

    /// Replaces the endpoints at these addresses in the last merge, and returns the difference.
    /// Both lists are sorted by address.
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
}

/// The difference between two merges of a port.
#[derive(Default)]
pub(super) struct News {
    /// Endpoints that are new or differ from before.
    pub(super) changed: Vec<MergedEndpoint>,
    /// Endpoints that are no longer there, or that `changed` replaces, as they were before.
    pub(super) gone: Vec<MergedEndpoint>,
}

impl News {
    /// Compares two merges. Both are sorted by address, and no address is in one of them twice.
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

    /// Adds the difference at further addresses.
    pub(super) fn append(&mut self, mut more: Self) {
        self.changed.append(&mut more.changed);
        self.gone.append(&mut more.gone);
    }
}

/// Applies what is known about the pod's end to the endpoint: the deadline, and for a deleted pod
/// the shorter limit on silent connections (contract 2.4).
fn apply_fate(endpoint: &Arc<Endpoint>, fate: &Fate, policy: &Policy, change: &mut Change) {
    match fate {
        Fate::NoPod | Fate::Alive | Fate::Terminating { deadline: None, .. } => {}
        Fate::Terminating {
            deadline: Some(deadline),
            ..
        } => change.shorten(endpoint, *deadline),
        Fate::Deleted { deadline } => {
            if endpoint.set_pod_gone() {
                change.chores.left.push(endpoint.id);
            }
            if endpoint.drain_deadline().is_none() || deadline.is_some() {
                let fallback = change.received + policy.drain_timeout;
                change.shorten(endpoint, deadline.unwrap_or(fallback));
            }
        }
    }
}

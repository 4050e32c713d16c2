//! What arrives from the watches of the API server, made into changes of objects.
//!
//! Invariant: a list takes effect as a whole, and an object is gone when nothing shows it any more.
//! The slices of a namespace wait for its first pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::FutureExt;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, GetParams};
use kube::runtime::watcher;

use crate::cluster::api::{Pauses, objects};
use crate::config::settings::{Claim, PodWatch};
use crate::contract::name::ObjectName;
use crate::discovery::manifest;
use crate::discovery::object::{Change, Kind, Object, ServiceObject};
use crate::discovery::scope::{AllPods, Key, Of};
use crate::discovery::watches::{State, WatchEvent, Watched, Watches};
use crate::discovery::watching::is_refused;

impl Watches {
    pub(super) fn take(
        &mut self,
        event: WatchEvent,
        changes: &mut Vec<Change>,
        errors: &impl Fn(&'static str),
    ) {
        let WatchEvent { key, number, what } = event;
        let Some(state) = self
            .states
            .get_mut(&key)
            .filter(|state| state.number == number)
        else {
            return;
        };
        match what {
            Watched::Init => {
                state.listing.clear();
                state.unreadable.clear();
            }
            Watched::Listed(Ok(object)) if !state.selector.takes(key.of, &object) => {}
            Watched::Listed(Ok(object)) => {
                self.note(&key, &object);
                if let Some(state) = self.states.get_mut(&key) {
                    state.listing.push(object);
                }
            }
            Watched::Listed(Err(it)) => {
                it.report(&key, errors);
                if self.held.is_shown(key.kind, &it.name) {
                    state.unreadable.push(it.name);
                }
            }
            Watched::Done => {
                state.listed = true;
                state.in_order(&key);
                // Others may wait for this list.
                let is_awaited = key.kind == Kind::Service || key.of == Of::Unlabelled;
                self.is_stale |= is_awaited || self.pods_wait;
                let objects = std::mem::take(&mut state.listing);
                let unreadable = std::mem::take(&mut state.unreadable);
                self.take_list(&key, objects, unreadable, changes);
            }
            Watched::Applied(Ok(object)) if !state.selector.takes(key.of, &object) => {
                let name = object.name().clone();
                let gone = self.held.hide(&key, &name);
                self.hide(&key, name, gone, changes);
            }
            Watched::Applied(Ok(object)) => {
                self.note(&key, &object);
                self.held.show(&key, object.name());
                self.show(&key, object, changes);
            }
            Watched::Applied(Err(it)) => it.report(&key, errors),
            Watched::Deleted(name) => {
                let gone = self.held.hide(&key, &name);
                self.hide(&key, name, gone, changes);
            }
            Watched::Failed(error) => {
                let is_listed = state.listed;
                // What was there once is not given up because of an answer that may be wrong.
                if is_unknown_kind(&key, &error) && self.held.is_empty(&key) {
                    state.stream.abort();
                    let again = Instant::now() + UNINSTALLED.mul_f64(0.5 + fastrand::f64());
                    self.uninstalled.insert(key.clone(), again);
                    let what = Watched::Done;
                    return self.take(WatchEvent { key, number, what }, changes, errors);
                }
                state.fail(&key, &error, errors);
                self.is_stale |= self.pods_wait;
                let all_pods = key.kind == Kind::Pod && key.namespace.is_none();
                if all_pods && !is_listed && self.all_pods == AllPods::Needed && is_refused(&error)
                {
                    tracing::info!(
                        "may not watch the pods of all namespaces at once; each is watched alone"
                    );
                    self.all_pods = AllPods::Refused;
                    self.is_stale = true;
                }
            }
        }
    }

    /// Notes a claim, so that the watches that it needs begin before the list is complete.
    pub(super) fn note(&mut self, key: &Key, object: &Object) {
        if let (Object::Service(service), Of::Claimed) = (object, key.of)
            && service.claimed
        {
            self.is_stale |= self.claimed.insert(service.name.clone());
            self.ever_claimed = true;
            self.let_go.remove(&service.name);
            let is_server = |ip: &mut IpAddr| service.addresses.iter().any(|it| it.ip == *ip);
            if let Some(server) = self.server.take_if(is_server) {
                tracing::warn!(
                    service = %service.name,
                    %server,
                    "this proxy reaches the API server by an address that it serves itself, and cannot start \
                     again alone; set KUBERNETES_SERVICE_HOST to the API server's own address"
                );
            }
        }
    }

    /// Takes in a whole list. Of the objects in it that cannot be read, the last state stays.
    pub(super) fn take_list(
        &mut self,
        key: &Key,
        objects: Vec<Object>,
        unreadable: Vec<ObjectName>,
        changes: &mut Vec<Change>,
    ) {
        let names = objects.iter().map(|object| object.name().clone());
        let names: BTreeSet<ObjectName> = names.chain(unreadable).collect();
        if key.kind == Kind::Service && key.of == Of::Claimed {
            // Also those that only an earlier, incomplete list has shown.
            let unclaimed =
                |name: &&ObjectName| key.covers(&name.namespace) && !names.contains(*name);
            let unclaimed: Vec<ObjectName> =
                self.claimed.iter().filter(unclaimed).cloned().collect();
            self.held.replace(key, names);
            for name in unclaimed {
                self.hide(key, name, true, changes);
            }
        } else {
            for name in self.held.replace(key, names) {
                self.hide(key, name, true, changes);
            }
        }
        for object in objects {
            self.show(key, object, changes);
        }
        if key.kind == Kind::Pod {
            if key.namespace.is_none() && self.all_pods == AllPods::Needed {
                self.all_pods = AllPods::Listed;
                self.is_stale = true;
            }
            let listed: Vec<String> = self
                .kept_back
                .keys()
                .filter(|it| key.covers(it))
                .cloned()
                .collect();
            for namespace in listed {
                self.release(&namespace, changes);
            }
        }
    }

    /// Takes in an object that a watch shows.
    pub(super) fn show(&mut self, key: &Key, object: Object, changes: &mut Vec<Change>) {
        match &object {
            // Of a named Service, the watch by its name tells.
            Object::Service(service) => {
                let is_named = self.in_use.named.contains(&service.name);
                if is_named == (key.of == Of::Apart) {
                    self.sought.remove(&service.name);
                    changes.push(Change::Apply(object));
                }
            }
            Object::EndpointSlice(slice) => {
                self.leaving.remove(&slice.name);
                let namespace = &slice.name.namespace;
                if self.pods_are_known(namespace) {
                    changes.push(Change::Apply(object));
                } else {
                    let kept_back = self.kept_back.entry(namespace.clone()).or_default();
                    kept_back.insert(slice.name.clone(), object);
                }
            }
            Object::Pod(_) | Object::Ingress(_) | Object::IngressClass(_) | Object::Gateway(_) => {
                changes.push(Change::Apply(object))
            }
        }
    }

    /// Takes in that a watch no longer shows an object. `gone`: nothing shows it.
    pub(super) fn hide(
        &mut self,
        key: &Key,
        name: ObjectName,
        gone: bool,
        changes: &mut Vec<Change>,
    ) {
        match (key.kind, key.of) {
            (Kind::Service, Of::Claimed) => {
                if !self.claimed.remove(&name) {
                    return;
                }
                self.is_stale = true;
                // It was deleted, or has lost its label. The second must not cut its clients.
                if !self.in_use.named.contains(&name) {
                    self.doubtful.insert(name.clone());
                    self.ask(name);
                }
            }
            (Kind::Service, _) => {
                self.sought.remove(&name);
                if self.in_use.named.contains(&name) {
                    changes.push(Change::Remove(key.kind, name));
                }
            }
            (_, _) if !gone => {}
            (Kind::EndpointSlice, Of::Apart) => self.remove_slice(name, changes),
            // It was deleted, or its label has changed and the other watch will show it.
            (Kind::EndpointSlice, _) => {
                let until = Instant::now() + RELABELLED;
                self.leaving.entry(name).or_insert(until);
            }
            (Kind::Pod | Kind::Ingress | Kind::IngressClass | Kind::Gateway(_), _) => {
                changes.push(Change::Remove(key.kind, name))
            }
        }
    }

    fn remove_slice(&mut self, name: ObjectName, changes: &mut Vec<Change>) {
        if let Some(kept_back) = self.kept_back.get_mut(&name.namespace) {
            kept_back.remove(&name);
        }
        changes.push(Change::Remove(Kind::EndpointSlice, name));
    }

    /// Removes the slices that no watch has shown again in time.
    pub(super) fn remove_left(&mut self, now: Instant, changes: &mut Vec<Change>) {
        let over = self.leaving.extract_if(.., |_, until| *until <= now);
        let over: Vec<ObjectName> = over.map(|(name, _)| name).collect();
        for name in over {
            self.remove_slice(name, changes);
        }
    }

    /// Asks again for kinds that were not installed.
    pub(super) fn ask_for_uninstalled(&mut self, now: Instant) {
        let due = self.uninstalled.extract_if(.., |_, at| *at <= now);
        let due: Vec<Key> = due.map(|(key, _)| key).collect();
        for key in due {
            if let Some(state) = self.states.get(&key) {
                let selector = state.selector.clone();
                self.start(key, selector);
            }
        }
    }

    /// Asks whether a Service exists.
    fn ask(&mut self, name: ObjectName) {
        let found = find(self.client.clone(), name, self.reader.claim.clone());
        self.asked.push(found.boxed());
    }

    /// Looks for a Service that is named from now on. The watch of its namespace may have shown it before,
    /// when nobody wanted it. Whatever the watch shows meanwhile is newer.
    pub(super) fn seek(&mut self, name: ObjectName) {
        let key = Key {
            kind: Kind::Service,
            namespace: Some(name.namespace.clone()),
            of: Of::Apart,
        };
        if self.states.contains_key(&key) && self.sought.insert(name.clone()) {
            self.ask(name);
        }
    }

    /// Takes in whether a Service that is no longer claimed still exists.
    pub(super) fn take_found(
        &mut self,
        name: &ObjectName,
        found: Option<ServiceObject>,
        changes: &mut Vec<Change>,
    ) {
        if self.sought.remove(name)
            && self.in_use.named.contains(name)
            && let Some(found) = found
        {
            changes.push(Change::Apply(Object::Service(found)));
            return;
        }
        self.doubtful.remove(name);
        self.is_stale = true;
        if self.claimed.contains(name) || self.in_use.named.contains(name) {
            return;
        }
        match found {
            // Another API server may not have seen the end of the claim yet.
            Some(found) => {
                self.let_go.insert(name.clone(), 0);
                let object = ServiceObject {
                    claimed: false,
                    ..found
                };
                changes.push(Change::Apply(Object::Service(object)));
            }
            None => changes.push(Change::Remove(Kind::Service, name.clone())),
        }
    }

    /// Whether slices of this namespace need not wait for its pods.
    pub(super) fn pods_are_known(&self, namespace: &str) -> bool {
        let watched = |(key, state): (&Key, &State)| {
            key.kind == Kind::Pod && key.covers(namespace) && state.listed
        };
        self.settings.pods == PodWatch::None
            || self.namespaces.get(namespace).is_some_and(|it| it.released)
            || self.states.iter().any(watched)
    }

    /// Sends the slices of a namespace that were kept back.
    pub(super) fn release(&mut self, namespace: &str, changes: &mut Vec<Change>) {
        if let Some(state) = self.namespaces.get_mut(namespace) {
            state.released = true;
        }
        let slices = self.kept_back.remove(namespace).unwrap_or_default();
        changes.extend(slices.into_values().map(Change::Apply));
    }

    /// Uses the slices of namespaces whose pods are not listed in time. What is lost is only the earlier
    /// signal of a pod's end.
    pub(super) fn release_late(&mut self, now: Instant, changes: &mut Vec<Change>) {
        let late: Vec<String> = self.late(now).cloned().collect();
        for namespace in late {
            tracing::warn!(
                namespace,
                "the pods are not listed yet; until then, drains begin when a slice shows them"
            );
            self.release(&namespace, changes);
        }
    }

    pub(super) fn late(&self, now: Instant) -> impl Iterator<Item = &String> {
        let late = move |namespace: &&String| {
            let since = self.namespaces.get(*namespace).map(|it| it.since);
            since.is_some_and(|since| since + self.settings.pods_patience <= now)
        };
        self.kept_back.keys().filter(late)
    }

    /// Notes that the API server has answered a watch well, so that the watch is in order.
    pub(super) fn answered(&mut self, name: &str) {
        for (key, state) in self
            .states
            .iter_mut()
            .filter(|(_, state)| state.name == name)
        {
            state.in_order(key);
        }
    }
}

/// How long it takes on average until a kind that is not installed is asked for again. Each node asks.
const UNINSTALLED: Duration = Duration::from_secs(60);

/// Whether the API server has no such kind, as is usual for those of the Gateway API.
fn is_unknown_kind(key: &Key, error: &watcher::Error) -> bool {
    let is_404 =
        |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            matches!(key.kind, Kind::Gateway(_)) && is_404(error)
        }
        _ => false,
    }
}

/// A slice that gets or loses the label of the claim is with one watch of two. What one reports may
/// come this much later than what the other reports.
const RELABELLED: Duration = Duration::from_secs(1);

/// Whether a Service exists, from the API server's cache. Tries until there is an answer. A refusal
/// counts as no.
async fn find(
    client: Client,
    name: ObjectName,
    claim: Claim,
) -> (ObjectName, Option<ServiceObject>) {
    let api: Api<Service> = objects(&client, Some(&name.namespace));
    let cached = GetParams {
        resource_version: Some("0".to_owned()),
    };
    let mut pauses = Pauses::default();
    loop {
        match api.get_with(&name.name, &cached).await {
            Ok(found) => return (name, manifest::service(&found, &claim).ok()),
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                return (name, None);
            }
            Err(_) => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
        }
    }
}

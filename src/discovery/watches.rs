//! The watches of the API server: which there are, how they are started and ended.
//!
//! Invariant: the watches are those that `scope.rs` wants. What is no longer used is given up, but
//! only after [`UNUSED`] reports of the table: the connections of a Service outlive its claim, and
//! the proxy must know what becomes of their pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{AbortHandle, FuturesUnordered, ReadyChunks, SelectAll, Stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, PartialObjectMeta};
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};

use crate::cluster::api::{Clock, Pauses, objects, watch_name};
use crate::config::settings;
use crate::contract::name::ObjectName;
use crate::discovery::gateway;
use crate::discovery::held::Held;
use crate::discovery::ingress::{class, ingress};
use crate::discovery::invalid::Invalid;
use crate::discovery::manifest::{self, Reader};
use crate::discovery::object::{Change, Kind, Object, PodObject, ServiceObject};
use crate::discovery::scope::{self, AllPods, Facts, Key, MANY_NAMESPACES, Of, Selector};
use crate::discovery::source::{InUse, Problem, Standing};
use crate::discovery::watching::{Streaming, cure, endless, is_gone};
use crate::text::chain;

pub(super) struct Watches {
    pub(super) client: Client,
    pub(super) clock: Arc<Clock>,
    pub(super) started: Instant,
    pub(super) settings: settings::Kubernetes,
    pub(super) reader: Reader,
    /// The address of the API server, until a warning about it.
    pub(super) server: Option<IpAddr>,
    pub(super) streaming: Arc<Streaming>,
    pub(super) streams: ReadyChunks<SelectAll<Pin<Box<dyn Stream<Item = WatchEvent> + Send>>>>,
    /// Services that the watch of claimed ones no longer shows: do they still exist?
    pub(super) asked: FuturesUnordered<BoxFuture<'static, (ObjectName, Option<ServiceObject>)>>,
    /// The names of these Services.
    pub(super) doubtful: BTreeSet<ObjectName>,
    /// Services that are named since the watch of their namespace was listed.
    pub(super) sought: BTreeSet<ObjectName>,
    pub(super) states: BTreeMap<Key, State>,
    /// Counts the watches that were started.
    pub(super) number: u64,
    pub(super) held: Held,
    pub(super) claimed: BTreeSet<ObjectName>,
    /// The watch of claimed slices is never ended: it costs little, and the slices of a Service
    /// whose claim has just ended must not be lost.
    pub(super) ever_claimed: bool,
    /// Services that are no longer claimed, and how often the table was reported without them.
    pub(super) let_go: BTreeMap<ObjectName, u8>,
    pub(super) in_use: InUse,
    /// The namespaces whose pods are needed.
    pub(super) namespaces: BTreeMap<String, Namespace>,
    /// The slices of namespaces whose first pods are not known yet.
    pub(super) kept_back: BTreeMap<String, BTreeMap<ObjectName, Object>>,
    /// Slices that one watch no longer shows and another may show soon, and until when that is waited
    /// for.
    pub(super) leaving: BTreeMap<ObjectName, Instant>,
    pub(super) all_pods: AllPods,
    /// Watches of kinds that the API server does not have, and when they are tried again.
    pub(super) uninstalled: BTreeMap<Key, Instant>,
    /// Whether something has changed that decides which watches are wanted.
    pub(super) is_stale: bool,
    /// Whether a first list of pods waits for those of slices.
    pub(super) pods_wait: bool,
    /// The problems as they were sent last.
    pub(super) problems: Vec<Problem>,
    pub(super) synced: bool,
    /// When the saved table was in order, while it is in force somewhere.
    pub(super) saved_at: Option<SystemTime>,
    /// No watch begins before this.
    pub(super) begins: Instant,
    /// The configured namespaces that do not exist.
    pub(super) absent: BTreeSet<String>,
    /// As it was sent last.
    pub(super) standing: Standing,
}

/// A namespace with a Service of ours.
pub(super) struct Namespace {
    pub(super) since: Instant,
    /// Whether its slices no longer wait for its pods.
    pub(super) released: bool,
    /// How often the table was reported without a Service of the namespace, since there is none of
    /// ours.
    pub(super) unused: u8,
}

pub(super) struct State {
    /// Distinguishes this watch from an earlier one with the same key.
    pub(super) number: u64,
    /// The name of the watch's requests.
    pub(super) name: String,
    pub(super) selector: Selector,
    /// The objects of a list that is not complete yet.
    pub(super) listing: Vec<Object>,
    /// Known objects of that list that cannot be read.
    pub(super) unreadable: Vec<ObjectName>,
    pub(super) listed: bool,
    pub(super) failing: Option<Problem>,
    pub(super) stream: AbortHandle,
}

/// An event of one watch.
pub(super) struct WatchEvent {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) what: Watched,
}

pub(super) enum Watched {
    Init,
    Listed(Result<Object, Unreadable>),
    Done,
    Applied(Result<Object, Unreadable>),
    Deleted(ObjectName),
    Failed(watcher::Error),
}

/// An object that breaks the API's rules.
pub(super) struct Unreadable {
    pub(super) name: ObjectName,
    pub(super) error: Invalid,
}

/// Starts and ends watches.
impl Watches {
    /// Brings the watches up to what is wanted.
    pub(super) fn adjust(&mut self, changes: &mut Vec<Change>) {
        let now = Instant::now();
        let pods_are_due = self.pods_wait && now >= self.pods_begin();
        if !(self.is_stale || pods_are_due) || now < self.begins {
            return;
        }
        (self.is_stale, self.pods_wait) = (false, false);
        let since = if self.synced {
            Instant::now()
        } else {
            self.started
        };
        for namespace in self.namespaces_of_ours() {
            let new = Namespace {
                since,
                released: false,
                unused: 0,
            };
            self.namespaces.entry(namespace).or_insert(new).unused = 0;
        }
        let many = self.namespaces.len() > MANY_NAMESPACES && self.settings.namespaces.is_empty();
        if many && self.all_pods == AllPods::Unneeded {
            self.all_pods = AllPods::Needed;
        }
        let wanted = scope::wanted(&Facts {
            allowed: &self.settings.namespaces,
            claim: &self.reader.claim,
            named: &self.in_use.named,
            claimed: self.ever_claimed,
            apart: self.let_go.keys().chain(&self.in_use.named).collect(),
            unlabelled: self.unlabelled(),
            ingress: self.reader.ingress,
            gateway: self.reader.gateway,
            in_use: self.namespaces.keys().map(String::as_str).collect(),
            pods: &self.settings.pods,
            all_pods: self.all_pods,
        });
        let ended: Vec<Key> = self
            .states
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .cloned()
            .collect();
        for key in ended {
            self.end(&key, changes);
        }
        for (key, selector) in wanted {
            let before = self.states.get(&key);
            if before.is_some_and(|state| state.selector == selector) {
                continue;
            }
            match self.may_begin(&key) {
                true => self.start(key, selector),
                false => self.pods_wait |= key.kind == Kind::Pod,
            }
        }
    }

    /// Whether a watch may begin, or begin again, now. The watch of slices without the label follows
    /// the claims, which may be many at once: it waits until a list of Services, and its own last
    /// one, is whole. The first lists of pods wait for those of slices. Pods are many: listed beside the
    /// slices, they would delay these by many seconds.
    fn may_begin(&self, key: &Key) -> bool {
        if key.kind == Kind::Pod {
            return self.synced || self.slices_have_come() || Instant::now() >= self.pods_begin();
        }
        if key.of != Of::Unlabelled {
            return true;
        }
        let services = Key {
            kind: Kind::Service,
            of: Of::Claimed,
            ..key.clone()
        };
        let is_listed = |state: &State| state.listed;
        match self.states.get(key) {
            Some(state) => is_listed(state) || state.failing.is_some(),
            None => self.states.get(&services).is_some_and(is_listed),
        }
    }

    fn slices_have_come(&self) -> bool {
        let mut slices = self
            .states
            .iter()
            .filter(|(key, _)| key.kind == Kind::EndpointSlice);
        slices.all(|(_, state)| state.listed || state.failing.is_some())
    }

    /// When lists of pods begin at the latest.
    pub(super) fn pods_begin(&self) -> Instant {
        self.started + self.settings.pods_patience
    }

    /// Whether there is a watch. From then on there is always one.
    pub(super) fn have_begun(&self) -> bool {
        !self.states.is_empty()
    }

    /// The namespaces of the Services that are ours now.
    pub(super) fn namespaces_of_ours(&self) -> BTreeSet<String> {
        let ours = self
            .claimed
            .iter()
            .chain(&self.in_use.named)
            .chain(self.let_go.keys());
        let allowed = &self.settings.namespaces;
        let ours = ours.map(|service| service.namespace.clone());
        ours.filter(|it| allowed.is_empty() || allowed.contains(it))
            .collect()
    }

    /// The Services of which slices without the label of the claim are watched. All slices of named
    /// ones are.
    fn unlabelled(&self) -> BTreeSet<&ObjectName> {
        let services = self.claimed.iter().chain(&self.doubtful);
        let services = services.chain(self.let_go.keys());
        services
            .filter(|it| !self.in_use.named.contains(*it))
            .collect()
    }

    pub(super) fn start(&mut self, key: Key, selector: Selector) {
        let (client, namespace) = (self.client.clone(), key.namespace.clone());
        let namespace = namespace.as_deref();
        match key.kind {
            Kind::Service => {
                let (api, claim) = (objects(&client, namespace), self.reader.claim.clone());
                self.add(api, key, selector, move |it: &Service, _, _| {
                    Ok(Object::Service(manifest::service(it, &claim)?))
                })
            }
            Kind::EndpointSlice => {
                let (api, node) = (objects(&client, namespace), self.reader.node.clone());
                self.add(api, key, selector, move |it: &EndpointSlice, _, _| {
                    Ok(Object::EndpointSlice(manifest::slice(it, &node)?))
                })
            }
            Kind::Pod => {
                let api = objects(&client, namespace);
                let read = |it: &PartialObjectMeta<Pod>, now, listed| {
                    Ok(Object::Pod(pod(it, now, listed)?))
                };
                self.add(api, key, selector, read)
            }
            Kind::Ingress => {
                let api = objects(&client, namespace);
                self.add(api, key, selector, |it: &Ingress, _, _| {
                    Ok(Object::Ingress(Box::new(ingress(it)?)))
                })
            }
            Kind::IngressClass => {
                let api = Api::all(client);
                self.add(api, key, selector, |it: &IngressClass, _, _| {
                    Ok(Object::IngressClass(class(it)?))
                })
            }
            Kind::Gateway(kind) => {
                let resource = kind.resource();
                let api: Api<DynamicObject> = match namespace {
                    Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                    None => Api::all_with(client, &resource),
                };
                self.add(api, key, selector, move |it: &DynamicObject, _, _| {
                    let object = gateway::read(kind, &it.metadata, &it.data)?;
                    Ok(Object::Gateway(Arc::new(object)))
                })
            }
        }
    }

    /// Adds a watch. `read` gets the API server's time and whether the object comes from a list.
    pub(super) fn add<K>(
        &mut self,
        api: Api<K>,
        key: Key,
        selector: Selector,
        read: impl Fn(&K, SystemTime, bool) -> Result<Object, Invalid> + Send + 'static,
    ) where
        K: Resource + Clone + std::fmt::Debug + Send + 'static,
        K: serde::de::DeserializeOwned,
    {
        self.number += 1;
        let (number, clock) = (self.number, self.clock.clone());
        let (labels, fields) = (selector.labels.as_deref(), selector.fields.as_deref());
        let name = watch_name(api.resource_url(), labels, fields);
        let silence = self.settings.silence;
        let events = endless(api, selector.clone(), self.streaming.clone(), silence);
        let of = key.clone();
        let read = move |it: &K, listed| {
            let name = name_of(it.meta());
            read(it, clock.now(), listed).map_err(|error| Unreadable { name, error })
        };
        let events = StreamBackoff::new(events, Pauses::default()).map(move |event| {
            let what = match event {
                Ok(Event::Init) => Watched::Init,
                Ok(Event::InitApply(it)) => Watched::Listed(read(&it, true)),
                Ok(Event::InitDone) => Watched::Done,
                Ok(Event::Apply(it)) => Watched::Applied(read(&it, false)),
                Ok(Event::Delete(it)) => Watched::Deleted(name_of(it.meta())),
                Err(error) => Watched::Failed(error),
            };
            WatchEvent {
                key: of.clone(),
                number,
                what,
            }
        });
        let (events, stream) = futures::stream::abortable(events);
        self.streams.get_mut().push(Box::pin(events));
        let before = self.states.insert(
            key,
            State {
                number,
                name,
                selector,
                listing: Vec::new(),
                unreadable: Vec::new(),
                listed: false,
                failing: None,
                stream,
            },
        );
        if let Some(before) = before {
            before.stream.abort();
        }
    }

    /// Ends a watch. The objects that nothing shows any more are gone for the table, except pods:
    /// they are forgotten with their namespace.
    pub(super) fn end(&mut self, key: &Key, changes: &mut Vec<Change>) {
        if let Some(state) = self.states.remove(key) {
            state.stream.abort();
        }
        let gone = self.held.end(key);
        if let (Kind::Pod, Some(namespace)) = (key.kind, &key.namespace)
            && !self.namespaces.contains_key(namespace)
        {
            let namespace = namespace.clone();
            changes.push(Change::Forget { namespace });
            return;
        }
        changes.extend(gone.into_iter().map(|name| Change::Remove(key.kind, name)));
    }

    /// Takes in what the table uses now. What it has not used for two reports is given up: the first
    /// report may be older than the end of the use.
    pub(super) fn take_use(&mut self, in_use: InUse, changes: &mut Vec<Change>) {
        self.is_stale = true;
        let before = std::mem::replace(&mut self.in_use, in_use);
        let (old, now) = (&before.named, &self.in_use.named);
        let left: Vec<ObjectName> = old.difference(now).cloned().collect();
        let new: Vec<ObjectName> = now.difference(old).cloned().collect();
        for name in left {
            self.sought.remove(&name);
            // From now on, the watch of claimed Services speaks for this one.
            match self.claimed.contains(&name) {
                true => self.list_again(&name),
                false => _ = self.let_go.entry(name).or_default(),
            }
        }
        for name in new {
            self.seek(name);
        }
        let InUse { named, routed, .. } = &self.in_use;
        self.let_go.retain(|name, unused| {
            *unused = if routed.contains(name) {
                0
            } else {
                *unused + 1
            };
            if *unused >= UNUSED && !named.contains(name) {
                changes.push(Change::Remove(Kind::Service, name.clone()));
            }
            *unused < UNUSED
        });
        let ours = self.namespaces_of_ours();
        let routed: BTreeSet<&str> = self
            .in_use
            .routed
            .iter()
            .map(|it| it.namespace.as_str())
            .collect();
        self.namespaces.retain(|name, namespace| {
            let used = ours.contains(name) || routed.contains(name.as_str());
            namespace.unused = if used { 0 } else { namespace.unused + 1 };
            namespace.unused < UNUSED
        });
        // Slices with the label of a Service that is not ours.
        self.kept_back
            .retain(|name, _| self.namespaces.contains_key(name));
    }

    /// Takes in the zone of this node. Slices that were read without it are read again.
    pub(super) fn take_zone(&mut self, zone: &str) {
        if self.reader.node.zone.as_deref() == Some(zone) {
            return;
        }
        self.reader.node.zone = Some(zone.to_owned());
        let slices = self.states.iter();
        let slices = slices.filter(|(key, _)| key.kind == Kind::EndpointSlice);
        let slices: Vec<(Key, Selector)> = slices
            .map(|(key, state)| (key.clone(), state.selector.clone()))
            .collect();
        for (key, selector) in slices {
            self.start(key, selector);
        }
    }

    /// Lists the claimed Services again in the watch that sees this one.
    pub(super) fn list_again(&mut self, name: &ObjectName) {
        let watch = |key: &&Key| {
            key.kind == Kind::Service && key.of == Of::Claimed && key.covers(&name.namespace)
        };
        if let Some(key) = self.states.keys().find(watch).cloned()
            && let Some(state) = self.states.get(&key)
        {
            let selector = state.selector.clone();
            self.start(key, selector);
        }
    }
}

impl State {
    /// Notes that the watch works.
    pub(super) fn in_order(&mut self, key: &Key) {
        if let Some(problem) = self.failing.take() {
            let after = problem.since.elapsed().unwrap_or_default();
            tracing::info!(watch = %key.subject(), after_s = after.as_secs(), "the API server answers again");
        }
    }

    pub(super) fn fail(
        &mut self,
        key: &Key,
        error: &watcher::Error,
        errors: &impl Fn(&'static str),
    ) {
        // The watch is too far behind to be resumed. A list follows, and until then the last table
        // is as good as before.
        if is_gone(error) {
            errors("gone");
            tracing::info!(watch = %key.subject(), "the API server no longer has this watch's position; listing again");
            return;
        }
        let (kind, text) = match error {
            watcher::Error::InitialListFailed(error) => ("list", cure(error)),
            watcher::Error::WatchStartFailed(error) => {
                (if self.listed { "watch" } else { "list" }, cure(error))
            }
            watcher::Error::WatchError(status) => ("watch", status.message.clone()),
            watcher::Error::WatchFailed(error) => ("watch", chain(error)),
            watcher::Error::NoResourceVersion => ("list", error.to_string()),
        };
        errors(kind);
        if self.failing.is_none() {
            tracing::warn!(watch = %key.subject(), error = text, "the API server does not answer; the last table stays in force");
        }
        let since = self
            .failing
            .as_ref()
            .map_or_else(SystemTime::now, |problem| problem.since);
        self.failing = Some(Problem::new(
            &format!("the API server's {}", key.subject()),
            &text,
            since,
        ));
    }
}

impl Unreadable {
    /// The object is skipped, and its last state stays in force.
    pub(super) fn report(&self, key: &Key, errors: &impl Fn(&'static str)) {
        errors("object");
        tracing::warn!(watch = %key.subject(), error = %self.error, "an object cannot be read; it is skipped");
    }
}

fn name_of(metadata: &ObjectMeta) -> ObjectName {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectName::new(part(&metadata.namespace), part(&metadata.name))
}

/// Reads a pod. The deadline of a live event counts from the event's arrival. If the event is late
/// (the watch was resumed after a break), the deadline counts by the API server's clock, as for a
/// list.
fn pod(it: &PartialObjectMeta<Pod>, now: SystemTime, listed: bool) -> Result<PodObject, Invalid> {
    let mut pod = manifest::pod(&it.metadata, None, Some(now))?;
    if let Some(deletion) = &mut pod.deletion
        && !listed
        && deletion.age.is_none_or(|age| age < LATE)
    {
        deletion.remaining = None;
    }
    Ok(pod)
}

/// What this many reports of the table do not name is given up.
const UNUSED: u8 = 2;
/// An event is late if its deletion was requested longer ago than this. Both times of the
/// difference have a resolution of a second, so each is off by up to one.
const LATE: Duration = Duration::from_secs(3);

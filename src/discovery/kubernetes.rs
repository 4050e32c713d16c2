//! The API server as the source of truth (contract 2.1, 2.3 and 2.7).
//!
//! Services are watched in every configured namespace. EndpointSlices and the metadata of Pods are
//! watched in each namespace that has, or once had, a Service of ours: one that is claimed by label
//! or named by a listener.
//!
//! Invariant: a list takes effect as a whole. The objects of a list are kept back until the list is
//! complete. Then they replace the objects of the list before it. The first slices of a namespace
//! wait for its first pods, so that a pod that already terminates is not taken for one that stays.
//! A watch that fails leaves its last state in force, and is a [`Problem`] until the API server
//! answers it again. It is resumed from its position, or after a 410 from a new list.
//!
//! Nothing is merged here, and no resource version is read.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use futures::stream::{ReadyChunks, SelectAll, Stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PartialObjectMeta};
use kube::core::NamespaceResourceScope;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use tokio::sync::{mpsc, watch};

use crate::cluster::api::{Clock, Pauses, objects};
use crate::contract::name::ObjectName;
use crate::discovery::manifest::{self, Invalid};
use crate::discovery::object::{Change, Kind, Object, PodObject};
use crate::discovery::source::{Message, Problem};
use crate::discovery::watching::{cure, endless, is_gone};
use crate::text::chain;

/// The namespaces to watch.
pub struct Wanted {
    /// The configured namespaces. Empty: all.
    pub namespaces: Vec<String>,
    /// The namespaces of the Services that listeners name. They can change.
    pub named: watch::Receiver<BTreeSet<String>>,
}

/// Sends the objects that exist, then [`Message::Synced`], then every change, until `out` is
/// closed.
///
/// `answered` receives the paths of watches that the API server has answered well. `errors` counts
/// by kind: `list`, `watch`, `gone`, `object`. Cancellation-safe: a new call begins with a list.
pub async fn run(
    client: Client,
    clock: Arc<Clock>,
    mut answered: mpsc::UnboundedReceiver<String>,
    mut wanted: Wanted,
    out: mpsc::Sender<Message>,
    errors: impl Fn(&'static str),
) {
    let mut watches = Watches {
        client,
        clock,
        streams: SelectAll::new().ready_chunks(CHUNK),
        states: BTreeMap::new(),
        allowed: wanted.namespaces.clone(),
        problems: Vec::new(),
        synced: false,
    };
    if wanted.namespaces.is_empty() {
        watches.watch_services(None);
    }
    for namespace in &wanted.namespaces {
        watches.watch_services(Some(namespace));
    }
    loop {
        let named: Vec<String> = wanted.named.borrow_and_update().iter().cloned().collect();
        named
            .iter()
            .for_each(|namespace| watches.take_up(namespace));
        let messages = tokio::select! {
            () = out.closed() => return,
            Ok(()) = wanted.named.changed() => continue,
            Some(events) = watches.streams.next() => watches.take(events, Instant::now(), &errors),
            Some(path) = answered.recv() => watches.answered(&path).into_iter().collect(),
        };
        for message in messages {
            if out.send(message).await.is_err() {
                return;
            }
        }
    }
}

struct Watches {
    client: Client,
    clock: Arc<Clock>,
    streams: ReadyChunks<SelectAll<Pin<Box<dyn Stream<Item = WatchEvent> + Send>>>>,
    states: BTreeMap<Key, State>,
    /// The configured namespaces. Empty: all.
    allowed: Vec<String>,
    /// The problems as they were sent last.
    problems: Vec<Problem>,
    synced: bool,
}

/// One watch. The problems are listed in the order of these keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    /// `None`: all namespaces.
    namespace: Option<String>,
}

struct State {
    /// The path of the watch's requests.
    path: String,
    /// The objects of a list that is not complete yet.
    listing: Vec<Object>,
    listed: bool,
    /// The slices as they are now, while they wait for the first list of their namespace's pods.
    waiting: Option<BTreeMap<ObjectName, Object>>,
    failing: Option<Problem>,
}

/// An event of one watch.
struct WatchEvent {
    key: Key,
    what: Watched,
}

enum Watched {
    Init,
    Listed(Result<Object, Invalid>),
    Done,
    Applied(Result<Object, Invalid>),
    Deleted(ObjectName),
    Failed(watcher::Error),
}

impl Watches {
    fn watch_services(&mut self, namespace: Option<&str>) {
        self.add(Kind::Service, namespace, |it: &Service, _, _| {
            manifest::service(it).map(Object::Service)
        });
    }

    /// Watches a namespace that has a Service of ours, from now on. It is not given up when the
    /// Service is no longer ours: the Service's connections go on, and the proxy must know what
    /// becomes of their pods.
    fn take_up(&mut self, namespace: &str) {
        let is_allowed = self.allowed.is_empty() || self.allowed.iter().any(|it| it == namespace);
        if !is_allowed
            || self
                .states
                .contains_key(&Key::new(Kind::Pod, Some(namespace)))
        {
            return;
        }
        self.add(
            Kind::Pod,
            Some(namespace),
            |it: &PartialObjectMeta<Pod>, now, listed| pod(it, now, listed).map(Object::Pod),
        );
        self.add(
            Kind::EndpointSlice,
            Some(namespace),
            |it: &EndpointSlice, _, _| manifest::slice(it).map(Object::EndpointSlice),
        );
    }

    /// Adds a watch. `read` gets the API server's time and whether the object comes from a list.
    fn add<K>(
        &mut self,
        kind: Kind,
        namespace: Option<&str>,
        read: impl Fn(&K, SystemTime, bool) -> Result<Object, Invalid> + Send + 'static,
    ) where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Send
            + 'static,
        K: serde::de::DeserializeOwned,
    {
        let api: Api<K> = objects(&self.client, namespace);
        let key = Key::new(kind, namespace);
        let state = State {
            path: api.resource_url().to_owned(),
            listing: Vec::new(),
            listed: false,
            waiting: None,
            failing: None,
        };
        self.states.insert(key.clone(), state);
        let clock = self.clock.clone();
        let events = StreamBackoff::new(endless(api), Pauses::default()).map(move |event| {
            let what = match event {
                Ok(Event::Init) => Watched::Init,
                Ok(Event::InitApply(it)) => Watched::Listed(read(&it, clock.now(), true)),
                Ok(Event::InitDone) => Watched::Done,
                Ok(Event::Apply(it)) => Watched::Applied(read(&it, clock.now(), false)),
                Ok(Event::Delete(it)) => {
                    let metadata = it.meta();
                    let part = |text: &Option<String>| text.clone().unwrap_or_default();
                    Watched::Deleted(ObjectName::new(
                        part(&metadata.namespace),
                        part(&metadata.name),
                    ))
                }
                Err(error) => Watched::Failed(error),
            };
            WatchEvent {
                key: key.clone(),
                what,
            }
        });
        self.streams.get_mut().push(Box::pin(events));
    }

    /// Makes one batch of what arrived together.
    fn take(
        &mut self,
        events: Vec<WatchEvent>,
        received: Instant,
        errors: &impl Fn(&'static str),
    ) -> Vec<Message> {
        let mut changes = Vec::new();
        for WatchEvent { key, what } in events {
            self.take_one(key, what, &mut changes, errors);
        }
        let mut messages = Vec::new();
        if !changes.is_empty() {
            messages.push(Message::Changes { received, changes });
        }
        if !self.synced
            && self
                .states
                .values()
                .all(|state| state.listed && state.waiting.is_none())
        {
            self.synced = true;
            messages.push(Message::Synced);
        }
        messages.extend(self.changed_problems());
        messages
    }

    fn take_one(
        &mut self,
        key: Key,
        what: Watched,
        changes: &mut Vec<Change>,
        errors: &impl Fn(&'static str),
    ) {
        let Some(state) = self.states.get_mut(&key) else {
            return;
        };
        let change = match what {
            Watched::Init => return state.listing.clear(),
            Watched::Listed(object) => {
                return state.listing.extend(well_formed(object, &key, errors));
            }
            Watched::Done => {
                state.listed = true;
                let objects = std::mem::take(&mut state.listing);
                Change::Replace {
                    kind: key.kind,
                    namespace: key.namespace.clone(),
                    objects,
                }
            }
            Watched::Applied(object) => match well_formed(object, &key, errors) {
                Some(object) => Change::Apply(object),
                None => return,
            },
            Watched::Deleted(name) => Change::Remove(key.kind, name),
            Watched::Failed(error) => return state.fail(&key, &error, errors),
        };
        let ours: BTreeSet<String> = claimed_namespaces(&change);
        ours.iter().for_each(|namespace| self.take_up(namespace));
        match key.kind {
            Kind::Service => changes.push(change),
            Kind::Pod => {
                changes.push(change);
                let slices = Key {
                    kind: Kind::EndpointSlice,
                    ..key
                };
                let waiting = self
                    .states
                    .get_mut(&slices)
                    .and_then(|slices| slices.waiting.take());
                changes.extend(waiting.map(|objects| Change::Replace {
                    kind: slices.kind,
                    namespace: slices.namespace,
                    objects: objects.into_values().collect(),
                }));
            }
            Kind::EndpointSlice => {
                let pods = Key {
                    kind: Kind::Pod,
                    ..key.clone()
                };
                let pods_listed = self.states.get(&pods).is_some_and(|pods| pods.listed);
                match self.states.get_mut(&key) {
                    Some(state) if !pods_listed => state.keep_back(change),
                    _ => changes.push(change),
                }
            }
        }
    }

    /// Notes that the API server has answered a watch well, so that the watch is in order.
    fn answered(&mut self, path: &str) -> Option<Message> {
        for (key, state) in self
            .states
            .iter_mut()
            .filter(|(_, state)| state.path == path)
        {
            if let Some(problem) = state.failing.take() {
                let after = problem.since.elapsed().unwrap_or_default();
                tracing::info!(watch = %key.subject(), after_s = after.as_secs(), "the API server answers again");
            }
        }
        self.changed_problems()
    }

    fn changed_problems(&mut self) -> Option<Message> {
        let problems: Vec<Problem> = self
            .states
            .values()
            .filter_map(|state| state.failing.clone())
            .collect();
        (problems != self.problems).then(|| {
            self.problems.clone_from(&problems);
            Message::Problems(problems)
        })
    }
}

impl Key {
    fn new(kind: Kind, namespace: Option<&str>) -> Self {
        Self {
            kind,
            namespace: namespace.map(str::to_owned),
        }
    }

    fn subject(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}s in namespace {namespace}", self.kind),
            None => format!("{}s", self.kind),
        }
    }
}

impl State {
    /// Applies a change to the slices that wait. Pods may be refused for days, so only the current
    /// state is kept.
    fn keep_back(&mut self, change: Change) {
        let waiting = self.waiting.get_or_insert_default();
        match change {
            Change::Apply(object) => _ = waiting.insert(object.name().clone(), object),
            Change::Remove(_, name) => _ = waiting.remove(&name),
            Change::Replace { objects, .. } => {
                *waiting = objects
                    .into_iter()
                    .map(|object| (object.name().clone(), object))
                    .collect();
            }
        }
    }

    fn fail(&mut self, key: &Key, error: &watcher::Error, errors: &impl Fn(&'static str)) {
        // The watch is too far behind to be resumed. A list follows, and until then the last table
        // is as good as before.
        if is_gone(error) {
            errors("gone");
            tracing::info!(watch = %key.subject(), "the API server no longer has this watch's position; listing again");
            return;
        }
        let (kind, text) = match error {
            watcher::Error::InitialListFailed(error) => ("list", cure(error)),
            watcher::Error::WatchStartFailed(error) => ("watch", cure(error)),
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

/// Skips an object that breaks the API's rules. The last state of the object stays in force.
fn well_formed(
    object: Result<Object, Invalid>,
    key: &Key,
    errors: &impl Fn(&'static str),
) -> Option<Object> {
    object
        .inspect_err(|error| {
            errors("object");
            tracing::warn!(watch = %key.subject(), %error, "an object cannot be read; it is skipped");
        })
        .ok()
}

fn claimed_namespaces(change: &Change) -> BTreeSet<String> {
    let claimed = |object: &Object| match object {
        Object::Service(service) if service.claimed => Some(service.name.namespace.clone()),
        _ => None,
    };
    match change {
        Change::Apply(object) => claimed(object).into_iter().collect(),
        Change::Replace { objects, .. } => objects.iter().filter_map(claimed).collect(),
        Change::Remove(..) => BTreeSet::new(),
    }
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

/// The largest number of events in one batch.
const CHUNK: usize = 256;
/// An event is late if its deletion was requested longer ago than this. Both times of the
/// difference have a resolution of a second, so each is off by up to one.
const LATE: Duration = Duration::from_secs(3);

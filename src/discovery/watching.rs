//! One watch of the API server: how it goes on after an error, and what its user can do about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, Stream};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};

use crate::discovery::scope::Selector;
use crate::text::chain;

/// How the objects that exist are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initial {
    /// As the first events of the watch (WatchList): the API server sends them from its cache, one
    /// by one.
    Stream,
    /// By a list from the API server's cache. The cache may be older than the last change, as it is
    /// for kube-proxy: the watch that follows brings what is missing.
    Cached,
    /// By a consistent list: this process has seen objects, and must not see an older state of
    /// another API server after them.
    Consistent,
}

/// Whether the API server streams lists. It is asked once.
#[derive(Debug, Default)]
pub(super) struct Streaming(AtomicBool);

/// What a watch shows of each object, by name. A list counts when it is whole.
pub(super) struct Shown<T> {
    now: BTreeMap<Option<String>, T>,
    listed: BTreeMap<Option<String>, T>,
}

impl<T> Default for Shown<T> {
    fn default() -> Self {
        Self {
            now: BTreeMap::new(),
            listed: BTreeMap::new(),
        }
    }
}

impl<T> Shown<T> {
    /// Takes an event in; `of` is what counts of an object. Returns whether what is shown may have
    /// changed: within a list it has not.
    pub(super) fn take<K: Resource>(&mut self, event: Event<K>, of: impl Fn(&K) -> T) -> bool {
        let name = |object: &K| object.meta().name.clone();
        let is_within_a_list = matches!(event, Event::Init | Event::InitApply(_));
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => _ = self.listed.insert(name(&object), of(&object)),
            Event::InitDone => self.now = std::mem::take(&mut self.listed),
            Event::Apply(object) => _ = self.now.insert(name(&object), of(&object)),
            Event::Delete(object) => _ = self.now.remove(&name(&object)),
        }
        !is_within_a_list
    }

    /// What is shown now.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.now.values()
    }
}

/// The events of a watch. After an error that it cannot be resumed from, the events of a new watch.
/// A streamed list that is silent for `silence`, or for [`STREAM`], is given up for a plain one.
pub(super) fn endless<K>(
    api: Api<K>,
    selector: Selector,
    refused: Arc<Streaming>,
    silence: Duration,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let begin = move |initial: Initial| {
        let config = watcher::Config {
            label_selector: selector.labels.clone(),
            field_selector: selector.fields.clone(),
            ..watcher::Config::default()
        };
        let config = match initial {
            Initial::Stream => config.streaming_lists(),
            // From its cache the API server sends all objects at once.
            Initial::Cached => watcher::Config {
                page_size: None,
                ..config.any_semantic()
            },
            Initial::Consistent => config,
        };
        watcher(api.clone(), config).boxed()
    };
    let initial = match refused.0.load(Ordering::Relaxed) {
        true => Initial::Cached,
        false => Initial::Stream,
    };
    let first = (begin(initial), initial, false);
    stream::unfold(first, move |(mut watch, mut initial, mut listed)| {
        let (begin, refused) = (begin.clone(), refused.clone());
        async move {
            loop {
                let event = if initial == Initial::Stream && !listed {
                    match tokio::time::timeout(silence.min(STREAM), watch.next()).await {
                        Ok(event) => Some(event?),
                        Err(_) => None,
                    }
                } else {
                    Some(watch.next().await?)
                };
                let unable = event.as_ref().is_none_or(|event| {
                    initial == Initial::Stream
                        && !listed
                        && event.as_ref().is_err_and(is_unknown_option)
                });
                if unable {
                    refused.0.store(true, Ordering::Relaxed);
                    initial = Initial::Cached;
                    watch = begin(initial);
                    continue;
                }
                let event = event?;
                if event.as_ref().is_err_and(is_lost) {
                    initial = match listed {
                        true => Initial::Consistent,
                        false => initial,
                    };
                    watch = begin(initial);
                }
                listed |= matches!(event, Ok(Event::InitDone));
                return Some((event, (watch, initial, listed)));
            }
        }
    })
}

/// Whether the API server refuses `sendInitialEvents`, as it does while its feature WatchList is
/// off. An older one does not know the option, and never sends the end of the list.
fn is_unknown_option(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422)
    )
}

/// Whether only a new list can show the current state. The library would repeat a request for a
/// version that is gone, and would skip an event that it cannot read, which may have been the end
/// of a pod.
pub(super) fn is_lost(error: &watcher::Error) -> bool {
    let unreadable = |error: &kube::Error| !matches!(error, kube::Error::ReadEvents(_));
    match error {
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => true,
        watcher::Error::WatchFailed(error) => unreadable(error),
        watcher::Error::WatchStartFailed(_) | watcher::Error::InitialListFailed(_) => {
            is_gone(error)
        }
    }
}

pub(super) fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// Whether the API server refuses the right to list or watch.
pub(super) fn is_refused(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}

pub(super) fn cure(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!(
                "{}; grant list and watch as deploy/kustomize/base/rbac.yaml does",
                status.message
            )
        }
        kube::Error::Api(status) if status.code == 401 => {
            format!(
                "{}; the credentials of discovery.kubernetes are not accepted",
                status.message
            )
        }
        other => chain(other),
    }
}

/// The longest pause in a streamed list. After it, a list is asked for instead.
const STREAM: Duration = Duration::from_secs(20);

//! One watch of the API server: how it goes on after an error, and what its user can do about it.

use futures::StreamExt;
use futures::stream::{self, Stream};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};

use crate::text::chain;

/// The events of a watch. After an error that it cannot be resumed from, the events of a new watch.
pub(super) fn endless<K>(api: Api<K>) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let begin = |api: &Api<K>| watcher(api.clone(), watcher::Config::default()).boxed();
    let first = begin(&api);
    stream::unfold((api, first), move |(api, mut watch)| async move {
        let event = watch.next().await?;
        if event.as_ref().is_err_and(is_lost) {
            watch = begin(&api);
        }
        Some((event, (api, watch)))
    })
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

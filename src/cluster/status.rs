//! Writes the `status` of objects: of Ingress objects, and of any other kind with a subresource
//! `status`. The control loop tells the wanted status to [`Statuses`], as often as it likes:
//!
//! ```ignore
//! statuses.want(Wanted { resource, name, status, now, version });
//! statuses.forget(&resource, &name); // The object is gone, or no longer ours.
//! ```
//!
//! `want` is for each object of ours, each time that the object or what its status says has changed,
//! also where `now` is as it should be: that takes back what was wanted before.
//!
//! Invariants: neither call ever waits. Of an object only the newest wish is kept, and an object that
//! is as wished costs no request. Only the elected instance writes (`leader.rs`). The others keep the
//! newest wishes, so they can go on at once. A wish that another undoes again and again is written
//! less and less often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::error::Elapsed;

use crate::cluster::api::said;
use crate::cluster::leader::REQUEST;
use crate::contract::name::ObjectName;
use crate::text::one_line;

/// What the status of an object is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The kind of the object.
    pub resource: ApiResource,
    /// The object. An empty namespace: the kind has none.
    pub name: ObjectName,
    /// A merge patch of its `status` (RFC 7396): what it does not name stays, null takes away, and a list
    /// is replaced as a whole.
    pub status: Value,
    /// `status` as it was read last; null if there is none.
    pub now: Value,
    /// The object's `metadata.resourceVersion` as it was read with `now`. If the object has changed since
    /// then, nothing is written, and the next wish counts. `None`: written whatever has changed, for
    /// statuses that nobody else writes.
    pub version: Option<String>,
}

/// Where wishes are told. The default is that of a process without an API server, and forgets them all.
#[derive(Debug, Clone, Default)]
pub struct Statuses(Option<Arc<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    changed: Notify,
}

impl Statuses {
    /// Keeps wishes for [`run`].
    pub fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    /// Tells what the status of an object is to be, in place of what was told before. Never waits.
    pub fn want(&self, wanted: Wanted) {
        if let Some(shared) = &self.0 {
            shared.lock().want(wanted, Instant::now());
            shared.changed.notify_one();
        }
    }

    /// Takes back what was told of an object. Never waits.
    pub fn forget(&self, resource: &ApiResource, name: &ObjectName) {
        if let Some(shared) = &self.0 {
            shared.lock().forget(&(path_of(resource), name.clone()));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes statuses while `elected` is true, one after the other, until its sender is gone. `manager` is
/// the name in `metadata.managedFields`. `errors` counts failures by kind: `status`. Cancellation may
/// lose the answer to one write, and so writes it once more.
pub async fn run(
    client: Client,
    statuses: Statuses,
    manager: String,
    mut elected: watch::Receiver<bool>,
    errors: impl Fn(&'static str),
) {
    let Some(shared) = statuses.0 else {
        return;
    };
    let parameters = PatchParams {
        field_manager: Some(manager),
        ..PatchParams::default()
    };
    loop {
        if !*elected.borrow_and_update() {
            if elected.changed().await.is_err() {
                return;
            }
            continue;
        }
        let due = shared
            .lock()
            .due
            .first()
            .map(|(at, key)| (*at, key.clone()));
        let now = Instant::now();
        let Some((_, key)) = due.clone().filter(|(at, _)| *at <= now) else {
            let at = due.map_or(now, |(at, _)| at);
            tokio::select! {
                () = shared.changed.notified() => {}
                () = tokio::time::sleep_until(at.into()), if at > now => {}
                changed = elected.changed() => if changed.is_err() {
                    return;
                },
            }
            continue;
        };
        let Some(wanted) = shared.lock().take(&key) else {
            continue;
        };
        let written = tokio::time::timeout(REQUEST, write(&client, &parameters, &wanted)).await;
        if let Some(error) = shared.lock().settle(&key, &wanted, written, Instant::now()) {
            errors("status");
            let kind = &wanted.resource.kind;
            tracing::warn!(kind, name = %wanted.name, error, "cannot write a status");
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn write(client: &Client, parameters: &PatchParams, wanted: &Wanted) -> kube::Result<()> {
    let Wanted {
        resource,
        name,
        status,
        version,
        ..
    } = wanted;
    let api: Api<DynamicObject> = match name.namespace.as_str() {
        "" => Api::all_with(client.clone(), resource),
        namespace => Api::namespaced_with(client.clone(), namespace, resource),
    };
    let mut patch = json!({"status": status});
    if let Some(version) = version {
        patch["metadata"] = json!({"resourceVersion": version});
    }
    api.patch_status(&name.name, parameters, &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// A kind, by its group and plural, and a name.
type Key = (String, ObjectName);

fn path_of(resource: &ApiResource) -> String {
    format!("{}/{}", resource.group, resource.plural)
}

/// The newest wish of each object.
#[derive(Debug, Default)]
struct Wishes {
    objects: BTreeMap<Key, Wish>,
    /// The wishes that are to be written, by their times.
    due: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Wish {
    wanted: Wanted,
    /// Its time in `due`. `None`: the object is as wished, or is being written.
    due: Option<Instant>,
    /// What was tried last, and before which time not again.
    tried: Option<(Value, Instant)>,
    /// The pause after the next try.
    pause: Duration,
}

impl Wishes {
    fn want(&mut self, wanted: Wanted, now: Instant) {
        let key = (path_of(&wanted.resource), wanted.name.clone());
        let differs = changes(&wanted.now, &wanted.status);
        if !differs && !self.objects.contains_key(&key) {
            return;
        }
        let wish = self.objects.entry(key.clone()).or_insert_with(|| Wish {
            wanted: wanted.clone(),
            due: None,
            tried: None,
            pause: FIRST_PAUSE,
        });
        if let Some(before) = wish.due.take() {
            self.due.remove(&(before, key.clone()));
        }
        // What is new does not pay for the failures of the old.
        if wish
            .tried
            .as_ref()
            .is_some_and(|(tried, _)| *tried != wanted.status)
        {
            (wish.tried, wish.pause) = (None, FIRST_PAUSE);
        }
        wish.wanted = wanted;
        if differs {
            let at = wish
                .tried
                .as_ref()
                .map_or(now, |(_, not_before)| now.max(*not_before));
            wish.due = Some(at);
            self.due.insert((at, key));
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(Wish { due: Some(at), .. }) = self.objects.remove(key) {
            self.due.remove(&(at, key.clone()));
        }
    }

    /// Takes a wish to write it.
    fn take(&mut self, key: &Key) -> Option<Wanted> {
        let wish = self.objects.get_mut(key)?;
        let at = wish.due.take()?;
        self.due.remove(&(at, key.clone()));
        Some(wish.wanted.clone())
    }

    /// Notes what has become of a write. Returns what is wrong, if that is new. What was written and is
    /// undone by another is written again, but later each time.
    fn settle(
        &mut self,
        key: &Key,
        wanted: &Wanted,
        written: Result<kube::Result<()>, Elapsed>,
        now: Instant,
    ) -> Option<String> {
        let error = match written {
            Ok(Ok(())) => {
                self.tried(key, wanted, now);
                return None;
            }
            Ok(Err(Error::Api(status))) if status.code == 404 => {
                self.forget(key);
                return None;
            }
            // The object has changed. The watch shows how.
            Ok(Err(Error::Api(status))) if status.code == 409 => None,
            Ok(Err(Error::Api(status))) if status.code == 403 => Some(format!(
                "{}; grant patch of {}/status as deploy/kustomize/ingress does",
                one_line(&status.message),
                wanted.resource.plural
            )),
            Ok(Err(error)) => Some(said(&error)),
            Err(_) => Some("the API server does not answer".to_owned()),
        };
        let is_first = self.failed(key, wanted, now);
        error.filter(|_| is_first)
    }

    /// Notes that a wish could not be written. It is tried again unless a newer one has come. Returns
    /// whether this is its first failure.
    fn failed(&mut self, key: &Key, failed: &Wanted, now: Instant) -> bool {
        let Some((at, is_first)) = self.tried(key, failed, now) else {
            return false;
        };
        if let Some(wish) = self.objects.get_mut(key)
            && wish.due.is_none()
            && changes(&wish.wanted.now, &wish.wanted.status)
        {
            wish.due = Some(at);
            self.due.insert((at, key.clone()));
        }
        is_first
    }

    /// Notes a try. Returns before which time there is no other, and whether it was the first one.
    fn tried(&mut self, key: &Key, tried: &Wanted, now: Instant) -> Option<(Instant, bool)> {
        let wish = self.objects.get_mut(key)?;
        if wish.wanted.status != tried.status {
            return None;
        }
        let (not_before, is_first) = (now + wish.pause, wish.tried.is_none());
        wish.tried = Some((tried.status.clone(), not_before));
        wish.pause = (wish.pause * 2).min(LONGEST_PAUSE);
        // It may have been told again while it was written.
        if let Some(before) = wish.due.filter(|at| *at < not_before) {
            self.due.remove(&(before, key.clone()));
            wish.due = Some(not_before);
            self.due.insert((not_before, key.clone()));
        }
        Some((not_before, is_first))
    }
}

/// Whether a merge patch would change a value (RFC 7396).
fn changes(value: &Value, patch: &Value) -> bool {
    match (value, patch) {
        (Value::Object(value), Value::Object(patch)) => {
            patch
                .iter()
                .any(|(name, patch)| match (value.get(name), patch) {
                    (None, Value::Null) => false,
                    (None, patch) => changes(&Value::Null, patch),
                    (Some(_), Value::Null) => true,
                    (Some(value), patch) => changes(value, patch),
                })
        }
        // Nothing, and an object of nothing, are the same to the API.
        (Value::Null, Value::Object(patch)) => {
            patch.values().any(|patch| changes(&Value::Null, patch))
        }
        (value, patch) => value != patch,
    }
}

/// The least time between two writes.
const EVERY: Duration = Duration::from_millis(20);
/// The first pause between two writes of the same wish. The watch shows a write well before its end.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one. The pauses double up to it.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str, status: Value, now: Value) -> Wanted {
        let resource = ApiResource {
            group: "networking.k8s.io".into(),
            version: "v1".into(),
            api_version: "networking.k8s.io/v1".into(),
            kind: "Ingress".into(),
            plural: "ingresses".into(),
        };
        let name = ObjectName::new("web", name);
        Wanted {
            resource,
            name,
            status,
            now,
            version: None,
        }
    }

    fn key(name: &str) -> Key {
        (
            "networking.k8s.io/ingresses".into(),
            ObjectName::new("web", name),
        )
    }

    #[test]
    fn an_object_that_is_as_wished_is_not_written() {
        let (mut wishes, now) = (Wishes::default(), Instant::now());
        let status = || json!({"a": [1]});
        wishes.want(wanted("a", status(), json!({"a": [1], "b": 2})), now);
        assert!(wishes.due.is_empty() && wishes.objects.is_empty());
        wishes.want(wanted("a", status(), json!({"a": [2]})), now);
        assert_eq!(wishes.due.len(), 1);
        wishes.want(wanted("a", status(), status()), now);
        assert!(wishes.due.is_empty());
        wishes.want(wanted("a", status(), Value::Null), now);
        wishes.forget(&key("a"));
        assert!(wishes.due.is_empty() && wishes.objects.is_empty());
    }

    #[test]
    fn of_an_object_only_the_newest_wish_is_kept() {
        let (mut wishes, now) = (Wishes::default(), Instant::now());
        for n in 0..100 {
            wishes.want(wanted("a", json!({"a": n}), Value::Null), now);
        }
        assert_eq!(wishes.due.len(), 1);
        let taken = wishes.take(&key("a")).unwrap();
        assert_eq!(taken.status, json!({"a": 99}));
        // A newer one comes while it is written.
        wishes.want(wanted("a", json!({"a": 100}), Value::Null), now);
        wishes.settle(&key("a"), &taken, Ok(Ok(())), now);
        assert_eq!(wishes.due.first().unwrap().0, now, "it does not wait");
        assert_eq!(wishes.take(&key("a")).unwrap().status, json!({"a": 100}));
    }

    #[test]
    fn what_another_undoes_is_written_less_and_less_often() {
        let (mut wishes, mut now) = (Wishes::default(), Instant::now());
        let mut last = Duration::ZERO;
        for n in 0..10 {
            wishes.want(wanted("a", json!({"a": 1}), json!({"a": 2})), now);
            let (at, _) = wishes.due.first().unwrap().clone();
            let waited = at - now;
            assert!(
                waited == last * 2 || n < 2 || waited == LONGEST_PAUSE,
                "{waited:?}"
            );
            (now, last) = (at, waited);
            let taken = wishes.take(&key("a")).unwrap();
            wishes.settle(&key("a"), &taken, Ok(Ok(())), now);
            wishes.want(wanted("a", json!({"a": 1}), json!({"a": 1})), now);
            assert!(wishes.due.is_empty());
        }
        assert_eq!(last, LONGEST_PAUSE);
        wishes.want(wanted("a", json!({"a": 3}), json!({"a": 2})), now);
        assert_eq!(
            wishes.due.first().unwrap().0,
            now,
            "another wish does not wait"
        );
    }

    #[test]
    fn a_failure_is_tried_again_and_told_once() {
        let (mut wishes, now) = (Wishes::default(), Instant::now());
        wishes.want(wanted("a", json!({"a": 1}), Value::Null), now);
        let taken = wishes.take(&key("a")).unwrap();
        assert!(wishes.failed(&key("a"), &taken, now));
        assert_eq!(wishes.due.first().unwrap().0, now + FIRST_PAUSE);
        // It is told again, as each change of the object does.
        wishes.want(wanted("a", json!({"a": 1}), Value::Null), now);
        assert_eq!(wishes.due.first().unwrap().0, now + FIRST_PAUSE);
        let taken = wishes.take(&key("a")).unwrap();
        assert!(!wishes.failed(&key("a"), &taken, now));
        wishes.forget(&key("a"));
        assert!(!wishes.failed(&key("a"), &taken, now));
        assert!(wishes.objects.is_empty());
    }

    #[test]
    fn a_patch_changes_what_rfc_7396_says() {
        for (value, patch, expected) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1}), false),
            (json!({"a": 1}), json!({"a": null}), true),
            (json!({}), json!({"a": null}), false),
            (json!({"a": [1, 2]}), json!({"a": [1]}), true),
            (json!({"a": {"b": 1}}), json!({"a": {"c": null}}), false),
            (json!({"a": {"b": 1}}), json!({"a": {"c": 1}}), true),
            (json!(null), json!({"a": {"b": null}}), false),
            (json!(null), json!({"a": {"b": []}}), true),
            (json!({"a": 1}), json!({"a": {}}), true),
        ] {
            assert_eq!(changes(&value, &patch), expected, "{value} {patch}");
        }
    }
}

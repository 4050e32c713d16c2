//! The pods that slices name and the store holds, with what is one-way about them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::name::{ObjectName, PodRef};
use crate::contract::reason::Trigger;

/// Every UID that is held, named or remembered. A merge reaches a pod by its slot: looking up 10,000 UIDs by their text
/// is twice the work of all the rest.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) slots: HashMap<String, usize>,
    pub(super) list: Vec<Option<Pod>>,
    pub(super) free: Vec<usize>,
}

/// One pod UID: the store's entry and its one-way memory.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) name: ObjectName,
    /// The store holds, or once held, its object.
    pub(super) held: bool,
    /// The object went after having been held.
    pub(super) gone: bool,
    /// A slice called it terminating, first at this time.
    pub(super) slice_terminating: Option<Instant>,
    /// The pod's own deletionTimestamp has been seen.
    pub(super) deletion_seen: bool,
    /// When the deletion was asked for, by the source's clock.
    pub(super) asked: Option<Instant>,
    pub(super) trigger: Option<Trigger>,
    pub(super) deadline: Option<Instant>,
    pub(super) grace: Option<Duration>,
    pub(super) template_hash: Option<Arc<str>>,
    /// When a slice or the store last let go of it.
    pub(super) released: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PodKey {
    Uid(String),
    Name(ObjectName),
}

impl Pods {
    pub(super) fn get(&self, uid: &str) -> Option<&Pod> {
        self.at(*self.slots.get(uid)?)
    }

    pub(super) fn get_mut(&mut self, uid: &str) -> Option<&mut Pod> {
        self.at_mut(*self.slots.get(uid)?)
    }

    pub(super) fn at(&self, slot: usize) -> Option<&Pod> {
        self.list.get(slot)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: usize) -> Option<&mut Pod> {
        self.list.get_mut(slot)?.as_mut()
    }

    /// The slot of this UID, made where there is none.
    pub(super) fn enter(&mut self, uid: &str, namespace: &str, name: &str, now: Instant) -> usize {
        if let Some(slot) = self.slots.get(uid) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or(self.list.len());
        let pod = Some(Pod::new(ObjectName::new(namespace, name), now));
        match self.list.get_mut(slot) {
            Some(place) => *place = pod,
            None => self.list.push(pod),
        }
        self.slots.insert(uid.to_owned(), slot);
        slot
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str, &Pod) -> bool) {
        self.slots.retain(|uid, slot| {
            let Some(place) = self.list.get_mut(*slot) else {
                return false;
            };
            if place.as_ref().is_some_and(|pod| keep(uid, pod)) {
                return true;
            }
            *place = None;
            self.free.push(*slot);
            false
        });
    }
}

impl Pod {
    pub(super) fn new(name: ObjectName, now: Instant) -> Self {
        Self {
            name,
            held: false,
            gone: false,
            slice_terminating: None,
            deletion_seen: false,
            asked: None,
            trigger: None,
            deadline: None,
            grace: None,
            template_hash: None,
            released: now,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.gone || self.trigger.is_some()
    }

    pub(super) fn is_live(&self) -> bool {
        self.held && !self.gone
    }

    /// Sets the deadline to `left` after `from` and the margin, or shortens it to that.
    pub(super) fn shorten(&mut self, from: Instant, left: Option<Duration>) {
        let Some(to) = left.and_then(|left| from.checked_add(left)?.checked_add(MARGIN)) else {
            return;
        };
        if self.deadline.is_none_or(|deadline| to < deadline) {
            self.deadline = Some(to);
        }
    }

    /// What a merge or a fate shows of it.
    pub(super) fn view(&self) -> impl PartialEq + use<> {
        (
            self.held,
            self.trigger,
            self.deadline,
            self.grace,
            self.template_hash.clone(),
        )
    }
}

impl PodKey {
    pub(super) fn of(pod: &PodRef, namespace: &str) -> Self {
        match pod.uid.as_str() {
            "" => Self::Name(ObjectName::new(namespace, &pod.name)),
            uid => Self::Uid(uid.to_owned()),
        }
    }

    /// Whether a slice that names a pod so may mean this one (in its namespace).
    pub(super) fn names(&self, pod: &PodRef) -> bool {
        match self {
            Self::Uid(uid) => pod.uid == *uid,
            Self::Name(name) => pod.uid.is_empty() && pod.name == name.name,
        }
    }
}

/// After a pod's grace has passed, what is left of its connections gets this long.
pub(super) const MARGIN: Duration = Duration::from_secs(3);

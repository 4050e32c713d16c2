//! The pods that slices name and that the store holds, with what is remembered about them.
//!
//! Invariant: what a pod's entry says about its end is never taken back, and its deadline only
//! becomes earlier. An entry keeps its slot for as long as it exists. When an entry is forgotten is
//! decided by `World::sweep`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::name::{ObjectName, PodRef};
use crate::contract::reason::Trigger;

/// Every UID that the store holds, a slice names, or the world remembers. A merge reaches a pod by
/// its slot, because to look up 10,000 UIDs by their text takes twice as long as all the rest.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// For each UID, its slot in `list`.
    pub(super) slots: HashMap<String, usize>,
    /// The entries by slot.
    pub(super) list: Vec<Option<Pod>>,
    /// Slots without an entry.
    pub(super) free: Vec<usize>,
}

/// What is known about one pod UID, from the store and from slices.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) name: ObjectName,
    /// Whether the store holds its object, or once held it.
    pub(super) held: bool,
    /// Whether the store held the object, and the object is gone.
    pub(super) gone: bool,
    /// When a slice first showed the pod terminating.
    pub(super) slice_terminating: Option<Instant>,
    /// Whether the Pod object had a `deletionTimestamp`.
    pub(super) deletion_seen: bool,
    /// When the deletion was requested, by the source's clock.
    pub(super) asked: Option<Instant>,
    /// The first signal of the pod's end.
    pub(super) trigger: Option<Trigger>,
    /// The pod's drain deadline (contract 1.4).
    pub(super) deadline: Option<Instant>,
    /// The grace period: that of the deletion, else that of the spec.
    pub(super) grace: Option<Duration>,
    /// The label `pod-template-hash`.
    pub(super) template_hash: Option<Arc<str>>,
    /// When the last slice stopped naming the pod, or when its object was removed. Before that,
    /// when the entry was made.
    pub(super) released: Instant,
}

/// Names with counts. Few slices name a pod, so a list costs less than a map.
pub(super) type Counts = Vec<(ObjectName, usize)>;

/// How a slice names a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PodKey {
    /// By the pod's UID.
    Uid(String),
    /// By the pod's name, where the slice gives no UID.
    Name(ObjectName),
}

impl Pods {
    /// The entry of a UID.
    pub(super) fn get(&self, uid: &str) -> Option<&Pod> {
        self.at(*self.slots.get(uid)?)
    }

    /// The entry of a UID, to change it.
    pub(super) fn get_mut(&mut self, uid: &str) -> Option<&mut Pod> {
        self.at_mut(*self.slots.get(uid)?)
    }

    /// The entry in a slot.
    pub(super) fn at(&self, slot: usize) -> Option<&Pod> {
        self.list.get(slot)?.as_ref()
    }

    /// The entry in a slot, to change it.
    pub(super) fn at_mut(&mut self, slot: usize) -> Option<&mut Pod> {
        self.list.get_mut(slot)?.as_mut()
    }

    /// The slot of a UID. Makes an entry if there is none.
    pub(super) fn slot_or_insert(
        &mut self,
        uid: &str,
        namespace: &str,
        name: &str,
        now: Instant,
    ) -> usize {
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

    /// Forgets the entries for which `keep` returns `false`, and frees their slots.
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
    /// A pod of which only the name is known.
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

    /// Whether the pod terminates or has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.gone || self.trigger.is_some()
    }

    /// Whether the store holds the pod's object now.
    pub(super) fn is_live(&self) -> bool {
        self.held && !self.gone
    }

    /// Sets the deadline to `from` plus `left` plus the margin of 3 s, or shortens it to that. A
    /// later deadline is ignored. No effect without `left`.
    pub(super) fn shorten(&mut self, from: Instant, left: Option<Duration>) {
        let Some(to) = left.and_then(|left| from.checked_add(left)?.checked_add(MARGIN)) else {
            return;
        };
        if self.deadline.is_none_or(|deadline| to < deadline) {
            self.deadline = Some(to);
        }
    }

    /// The fields that a merge or a fate shows. If they are equal, so are those.
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
    /// The key by which a slice in this namespace names the pod.
    pub(super) fn of(pod: &PodRef, namespace: &str) -> Self {
        match pod.uid.as_str() {
            "" => Self::Name(ObjectName::new(namespace, &pod.name)),
            uid => Self::Uid(uid.to_owned()),
        }
    }

    /// Whether `pod`, as a slice in the pod's namespace gives it, has this key.
    pub(super) fn names(&self, pod: &PodRef) -> bool {
        match self {
            Self::Uid(uid) => pod.uid == *uid,
            Self::Name(name) => pod.uid.is_empty() && pod.name == name.name,
        }
    }
}

/// How long a pod's connections may last after its grace period has passed (contract 1.4).
pub(super) const MARGIN: Duration = Duration::from_secs(3);

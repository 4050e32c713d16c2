//! The pods that slices name and that the store holds, with what is remembered about them.
//!
//! Invariant: what a pod's entry says about its end is never taken back, and its deadline only
//! becomes earlier. An entry keeps its slot for as long as it exists. When an entry is forgotten is
//! decided by `World::sweep`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::name::{ObjectName, PodRef};
use crate::contract::reason::Trigger;
use crate::routing::world::pod_uid::PodUid;

/// Every UID that the store holds, a slice names, or the world remembers. A merge reaches a pod by
/// its slot, because to look up 10,000 UIDs by their text takes twice as long as all the rest.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// For each UID, its slot in `list`.
    pub(super) slots: HashMap<PodUid, Slot>,
    /// The entries by slot. Boxed, because a list that grows has room for twice as many.
    list: Vec<Option<Box<Pod>>>,
    /// Slots without an entry.
    free: Vec<Slot>,
    /// The namespaces and template hashes of all pods: each is kept once.
    texts: HashSet<Arc<str>>,
}

/// The place of a pod's entry.
pub(super) type Slot = u32;

/// What is known about one pod UID, from the store and from slices.
#[derive(Debug)]
pub(super) struct Pod {
    namespace: Arc<str>,
    /// Its name and UID, as the slices that name it have them.
    pub(super) pod: Arc<PodRef>,
    /// The slices that name it by its UID.
    pub(super) named: Counts,
    /// Whether the store holds its object, or once held it.
    pub(super) held: bool,
    /// Whether the store held the object, and the object is gone.
    pub(super) gone: bool,
    /// Whether the Pod object had a `deletionTimestamp`.
    pub(super) deletion_seen: bool,
    /// The first signal of the pod's end.
    pub(super) trigger: Option<Trigger>,
    /// The moments of its end. Most pods have none yet.
    end: Option<Box<End>>,
    /// The grace period: that of the deletion, else that of the spec.
    pub(super) grace: Option<Duration>,
    /// The label `pod-template-hash`.
    pub(super) template_hash: Option<Arc<str>>,
    /// When the last slice stopped naming the pod, or when its object was removed. Before that,
    /// when the entry was made.
    pub(super) released: Instant,
}

/// The moments of a pod's end, as far as they are known.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct End {
    /// When a slice first showed the pod terminating.
    pub(super) slice_terminating: Option<Instant>,
    /// When the deletion was requested, by the source's clock.
    pub(super) asked: Option<Instant>,
    /// The pod's drain deadline (contract 1.4).
    pub(super) deadline: Option<Instant>,
}

/// The slices that name a pod, and how many endpoints of each do. Few slices name a pod, so a list costs
/// less than a map.
#[derive(Debug, Default)]
pub(super) struct Counts(Vec<(Arc<ObjectName>, u32)>);

/// How a slice names a pod.
#[derive(Debug, Clone)]
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
    pub(super) fn at(&self, slot: Slot) -> Option<&Pod> {
        self.list.get(slot as usize)?.as_deref()
    }

    /// The entry in a slot, to change it.
    pub(super) fn at_mut(&mut self, slot: Slot) -> Option<&mut Pod> {
        self.list.get_mut(slot as usize)?.as_deref_mut()
    }

    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.list.iter().flatten().map(|pod| &**pod)
    }

    /// All entries, to change them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pod> {
        self.list.iter_mut().flatten().map(|pod| &mut **pod)
    }

    /// The one copy of a text that many pods have.
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    /// The slot of a UID. Makes an entry if there is none.
    pub(super) fn slot_or_insert(
        &mut self,
        namespace: &str,
        pod: &Arc<PodRef>,
        now: Instant,
    ) -> Slot {
        if let Some(slot) = self.slots.get(pod.uid.as_str()) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or(self.list.len() as Slot);
        let new = Pod::new(self.text(namespace), pod.clone(), now);
        let new = Some(Box::new(new));
        match self.list.get_mut(slot as usize) {
            Some(place) => *place = new,
            None => self.list.push(new),
        }
        self.slots.insert(PodUid(pod.clone()), slot);
        slot
    }

    /// Forgets the entries for which `keep` returns `false`, and frees their slots.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str, &Pod) -> bool) {
        self.slots.retain(|uid, slot| {
            let Some(place) = self.list.get_mut(*slot as usize) else {
                return false;
            };
            if place.as_ref().is_some_and(|pod| keep(uid.as_str(), pod)) {
                return true;
            }
            *place = None;
            self.free.push(*slot);
            false
        });
        self.texts.retain(|text| Arc::strong_count(text) > 1);
    }
}

impl Pod {
    /// A pod of which only the name is known.
    fn new(namespace: Arc<str>, pod: Arc<PodRef>, now: Instant) -> Self {
        Self {
            namespace,
            pod,
            named: Counts::default(),
            held: false,
            gone: false,
            deletion_seen: false,
            trigger: None,
            end: None,
            grace: None,
            template_hash: None,
            released: now,
        }
    }

    /// Its namespace and name.
    pub(super) fn name(&self) -> ObjectName {
        ObjectName::new(&*self.namespace, &self.pod.name)
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Takes in what the store calls it.
    pub(super) fn rename(&mut self, namespace: Arc<str>, pod: Arc<PodRef>) {
        (self.namespace, self.pod) = (namespace, pod);
    }

    /// The moments of its end.
    pub(super) fn end(&self) -> End {
        self.end.as_deref().copied().unwrap_or_default()
    }

    /// The moments of its end, to change them.
    pub(super) fn end_mut(&mut self) -> &mut End {
        self.end.get_or_insert_default()
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
        let end = self.end_mut();
        if end.deadline.is_none_or(|deadline| to < deadline) {
            end.deadline = Some(to);
        }
    }

    /// The fields that a merge or a fate shows. If they are equal, so are those.
    pub(super) fn view(&self) -> impl PartialEq + use<> {
        (
            self.held,
            self.trigger,
            self.end().deadline,
            self.grace,
            self.template_hash.clone(),
        )
    }
}

impl Counts {
    /// Notes one more endpoint of a slice.
    pub(super) fn add(&mut self, slice: &Arc<ObjectName>) {
        match self.0.iter_mut().find(|(name, _)| name == slice) {
            Some((_, count)) => *count += 1,
            None => {
                self.0.reserve_exact(1);
                self.0.push((slice.clone(), 1));
            }
        }
    }

    /// Notes one endpoint of a slice less. Returns whether no slice is left.
    pub(super) fn remove(&mut self, slice: &ObjectName) -> bool {
        if let Some(place) = self.0.iter().position(|(name, _)| **name == *slice) {
            self.0[place].1 -= 1;
            if self.0[place].1 == 0 {
                self.0.swap_remove(place);
            }
        }
        self.is_empty()
    }

    /// The names of the slices.
    pub(super) fn slices(&self) -> impl Iterator<Item = &ObjectName> {
        self.0.iter().map(|(name, _)| &**name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PodKey {
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

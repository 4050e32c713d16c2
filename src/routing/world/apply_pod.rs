//! How Pod objects change the world: deletions, removals, returns, and pods without a UID.
//!
//! Invariant: a UID ends once. A pod that is shown again after its end changes nothing but a
//! warning, and a later event only shortens the deadline (contract 1.4 and 1.7).

use std::sync::Arc;
use std::time::Instant;

use crate::contract::name::{ObjectName, PodRef};
use crate::contract::reason::Trigger;
use crate::discovery::object::PodObject;
use crate::routing::world::objects::{Touched, World, uid_of};
use crate::routing::world::pod_uid::PodName;
use crate::routing::world::pods::{Pod, PodKey, Slot};

impl World {
    /// Takes in a Pod object. `received` is when its event arrived.
    pub(super) fn apply_pod(
        &mut self,
        object: PodObject,
        received: Instant,
        touched: &mut Touched,
    ) {
        let name = &object.name;
        let uid = if object.uid.is_empty() {
            self.incarnation(&object)
        } else {
            object.uid.clone()
        };
        let latest = uid_of(&self.uids, &name.namespace, &name.name).map(str::to_owned);
        if self.pods.get(&uid).is_some_and(|pod| pod.gone) {
            // A UID ends once. If it is shown again, the event is a late repetition, or a manifest
            // was put back. The user needs a warning about the second.
            if latest.as_deref() == Some(&uid) && self.returned.insert(uid.clone()) {
                self.touch_services_of(&uid, touched);
            }
            return;
        }
        let known = self.pods.get(&uid).filter(|pod| pod.pod.name == name.name);
        let named = known.map(|pod| pod.pod.clone()).unwrap_or_else(|| {
            let (name, uid) = (name.name.clone(), uid.clone());
            Arc::new(PodRef { name, uid })
        });
        if latest.as_deref() != Some(&uid) {
            if let Some(old) = latest {
                self.end_pod(&old, received, touched);
            }
            let names = self.uids.entry(name.namespace.clone()).or_default();
            names.replace(PodName(named.clone()));
            touched
                .services
                .extend(self.services_naming(&PodKey::Name(name.clone())));
        }
        let slot = self.pods.slot_or_insert(&name.namespace, &named, received);
        let namespace = self.pods.text(&name.namespace);
        let hash = object.template_hash.map(|it| self.pods.text(&it));
        let Some(pod) = self.pods.at_mut(slot) else {
            return;
        };
        let before = pod.view();
        pod.rename(namespace, named);
        pod.held = true;
        pod.template_hash = hash;
        pod.grace = object.spec_grace.or(pod.grace);
        let returned = pod.deletion_seen && object.deletion.is_none();
        if let Some(deletion) = object.deletion {
            pod.deletion_seen = true;
            let asked = deletion.age.and_then(|age| received.checked_sub(age));
            let end = pod.end_mut();
            end.asked = end.asked.or(asked);
            pod.trigger.get_or_insert(Trigger::PodDeleted);
            // The deletion may set another grace period than the spec.
            pod.grace = deletion.grace.or(pod.grace);
            let left = deletion.remaining.or(pod.grace);
            pod.shorten(received, left);
        }
        if let Some(since) = pod.end().slice_terminating {
            pod.shorten(since, pod.grace);
        }
        let changed = pod.view() != before;
        if self.mark_returned(&uid, returned) {
            self.touch_services_of(&uid, touched);
        } else if changed {
            self.touch_pod(&uid, touched);
        }
    }

    /// Takes in that a Pod object is gone.
    pub(super) fn remove_pod(
        &mut self,
        name: &ObjectName,
        received: Instant,
        touched: &mut Touched,
    ) {
        if let Some(uid) = uid_of(&self.uids, &name.namespace, &name.name).map(str::to_owned) {
            self.end_pod(&uid, received, touched);
        }
    }

    /// Takes in that the pods of a namespace are no longer watched. They have not ended. What a slice
    /// still names, and what has ended, is remembered as before.
    pub(super) fn forget_pods(&mut self, namespace: &str, touched: &mut Touched) {
        let mut released = Vec::new();
        for pod in self.pods.iter_mut() {
            if pod.namespace() == namespace && pod.is_live() {
                pod.held = false;
                released.push(pod.pod.clone());
            }
        }
        for pod in released {
            if let Some(uid) = uid_of(&self.uids, namespace, &pod.name).map(str::to_owned) {
                self.touch_pod(&uid, touched);
            }
        }
    }

    /// Ends a pod whose object is gone, or whose name has passed to another UID.
    fn end_pod(&mut self, uid: &str, received: Instant, touched: &mut Touched) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        if pod.is_live() {
            pod.gone = true;
            pod.released = received;
            pod.trigger.get_or_insert(Trigger::Removed);
            pod.shorten(received, pod.grace);
        } else if !self.returned.contains(uid) {
            return;
        }
        if self.mark_returned(uid, false) {
            self.touch_services_of(uid, touched);
        }
        self.touch_pod(uid, touched);
    }

    /// Notes whether a pod has returned after its deletion. Returns whether that changed.
    fn mark_returned(&mut self, uid: &str, returned: bool) -> bool {
        if returned {
            self.returned.insert(uid.to_owned())
        } else {
            self.returned.remove(uid)
        }
    }

    /// Takes in that a slice shows a pod terminating. Only the first time counts.
    pub(super) fn slice_terminates(
        &mut self,
        uid: &str,
        slot: Slot,
        received: Instant,
        touched: &mut Touched,
    ) {
        let Some(pod) = self
            .pods
            .at_mut(slot)
            .filter(|pod| pod.end().slice_terminating.is_none())
        else {
            return;
        };
        pod.end_mut().slice_terminating = Some(received);
        pod.trigger.get_or_insert(Trigger::SliceTerminating);
        pod.shorten(received, pod.grace);
        self.touch_pod(uid, touched);
    }

    /// A UID for a Pod manifest without one. It is the UID of the pod that has the name, except if
    /// that pod has ended or the manifest takes its deletion back. Then the manifest is another
    /// pod.
    fn incarnation(&self, object: &PodObject) -> String {
        let latest = uid_of(&self.uids, &object.name.namespace, &object.name.name)
            .filter(|uid| uid.starts_with(&format!("{}#", object.name)));
        let same = |pod: &Pod| !pod.gone && (!pod.deletion_seen || object.deletion.is_some());
        match latest {
            Some(latest) if self.pods.get(latest).is_some_and(same) => latest.to_owned(),
            _ => (1u64..)
                .map(|n| format!("{}#{n}", object.name))
                .find(|uid| !self.pods.slots.contains_key(uid.as_str()))
                .unwrap_or_default(),
        }
    }
}

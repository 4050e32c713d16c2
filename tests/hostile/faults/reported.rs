//! What was reported to the proxy, recorded apart from the code under test. It states only what
//! every reading of the events agrees on: what must serve, what may serve, and what has ended. It
//! does not know the true state, which is in `truth.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ebbtide::contract::name::ObjectName;
use ebbtide::discovery::object::{Change, Kind, Object, SliceEndpoint, SliceObject};

#[derive(Default)]
pub struct Reported {
    slices: BTreeMap<ObjectName, SliceObject>,
    /// Pods in the store: the UID by name.
    pods: BTreeMap<ObjectName, String>,
    /// UIDs that end or have ended, and since when that is known. An entry is never removed.
    pub ended: BTreeMap<String, Instant>,
    gone: BTreeSet<String>,
    /// UIDs whose object was reported, and when first.
    pub held: BTreeMap<String, Instant>,
}

/// An endpoint as slices name it: address and UID.
pub type Named = (u8, String);

impl Reported {
    pub fn record(&mut self, change: &Change, now: Instant) {
        match change {
            Change::Apply(
                Object::Service(_)
                | Object::Ingress(_)
                | Object::IngressClass(_)
                | Object::Gateway(_),
            )
            | Change::Remove(
                Kind::Service | Kind::Ingress | Kind::IngressClass | Kind::Gateway(_),
                _,
            ) => {}
            Change::Apply(Object::EndpointSlice(slice)) => {
                for endpoint in slice.endpoints.iter().filter(|e| e.terminating) {
                    self.end(&uid(endpoint), now);
                }
                self.slices.insert(slice.name.clone(), slice.clone());
            }
            Change::Apply(Object::Pod(pod)) => {
                // A pod that is gone does not come back: this event is a repetition.
                if self.gone.contains(&pod.uid) {
                    return;
                }
                if let Some(old) = self.pods.insert(pod.name.clone(), pod.uid.clone())
                    && old != pod.uid
                {
                    self.go(&old, now);
                }
                self.held.entry(pod.uid.clone()).or_insert(now);
                if pod.deletion.is_some() {
                    self.end(&pod.uid, now);
                }
            }
            Change::Remove(Kind::EndpointSlice, name) => _ = self.slices.remove(name),
            Change::Remove(Kind::Pod, name) => {
                if let Some(uid) = self.pods.remove(name) {
                    self.go(&uid, now);
                }
            }
            Change::Forget { namespace } => panic!("nothing forgets namespace {namespace}"),
            Change::Replace { kind, objects, .. } => {
                let named: BTreeSet<&ObjectName> = objects.iter().map(Object::name).collect();
                let known: Vec<ObjectName> = match kind {
                    Kind::Service | Kind::Ingress | Kind::IngressClass | Kind::Gateway(_) => {
                        Vec::new()
                    }
                    Kind::EndpointSlice => self.slices.keys().cloned().collect(),
                    Kind::Pod => self.pods.keys().cloned().collect(),
                };
                for name in known.into_iter().filter(|name| !named.contains(name)) {
                    self.record(&Change::Remove(*kind, name), now);
                }
                for object in objects {
                    self.record(&Change::Apply(object.clone()), now);
                }
            }
        }
    }

    fn go(&mut self, uid: &str, now: Instant) {
        self.gone.insert(uid.to_owned());
        self.end(uid, now);
    }

    fn end(&mut self, uid: &str, now: Instant) {
        self.ended.entry(uid.to_owned()).or_insert(now);
    }

    fn listings(&self) -> impl Iterator<Item = (Named, &SliceEndpoint)> {
        let endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
        endpoints.map(|endpoint| {
            (
                (crate::support::table::last(endpoint.address), uid(endpoint)),
                endpoint,
            )
        })
    }

    pub fn is_listed(&self, named: &Named) -> bool {
        self.listings().any(|(it, _)| it == *named)
    }

    /// Some slice lists the endpoint as ready, and no signal has ended it.
    pub fn may_serve(&self, named: &Named) -> bool {
        let ready = |e: &SliceEndpoint| e.ready && !e.terminating;
        !self.ended.contains_key(&named.1)
            && self.listings().any(|(it, e)| it == *named && ready(e))
    }

    /// Some slice lists the endpoint as serving while it ends.
    pub fn may_be_last_resort(&self, named: &Named) -> bool {
        let ends = self.ended.contains_key(&named.1);
        self.listings()
            .any(|(it, e)| it == *named && e.serving && (e.terminating || ends))
    }

    /// Every slice that names the endpoint lists it as ready, no signal has ended it, and no slice
    /// names another pod at its address.
    pub fn must_serve(&self) -> BTreeSet<Named> {
        let mut certain: BTreeSet<Named> = self
            .listings()
            .map(|(it, _)| it)
            .filter(|it| self.may_serve(it))
            .collect();
        for (it, endpoint) in self.listings() {
            certain.retain(|named| {
                let same = *named == it;
                !(same && (!endpoint.ready || endpoint.terminating)) && (same || named.0 != it.0)
            });
        }
        certain
    }
}

fn uid(endpoint: &SliceEndpoint) -> String {
    endpoint
        .pod
        .as_ref()
        .map(|pod| pod.uid.clone())
        .unwrap_or_default()
}

//! The world as it truly is: pods that live and die, and the slices that a controller writes of them. Every change is
//! an event; what becomes of events on their way is `run.rs`'s.

use std::sync::Arc;
use std::time::Instant;

use ebbtide::contract::name::PodRef;
use ebbtide::discovery::object::{
    Change, Deletion, Kind, Object, PodObject, SliceEndpoint, SliceObject,
};

use crate::support::table::{GRACE, name, pod, ready, service, slice};

pub const SLICES: [&str; 3] = ["s0", "s1", "s2"];

#[derive(Debug, Clone)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    /// Last byte.
    pub address: u8,
    slice: usize,
    pub ready: bool,
    /// Its process accepts connections.
    pub listens: bool,
    pub deleted: Option<Instant>,
    /// Its object is gone.
    pub gone: bool,
    /// The selector fits it.
    pub listed: bool,
}

#[derive(Default)]
pub struct Truth {
    pub pods: Vec<Pod>,
    generations: [i64; SLICES.len()],
    /// Slices that do not exist just now.
    pub absent: [bool; SLICES.len()],
}

impl Pod {
    /// What a proxy that knows everything would dispatch to.
    pub fn serves(&self) -> bool {
        self.ready && self.listens && self.listed && self.deleted.is_none() && !self.gone
    }

    fn object(&self, now: Instant, relist: bool) -> PodObject {
        let mut object = PodObject {
            uid: self.uid.clone(),
            ..pod(&self.name, false)
        };
        // The generation of a rollout; so that a replay has strangers to prefer.
        object.template_hash = Some(
            if self.address.is_multiple_of(2) {
                "even"
            } else {
                "odd"
            }
            .into(),
        );
        object.deletion = self.deleted.map(|at| Deletion {
            grace: Some(GRACE),
            remaining: relist.then(|| (at + GRACE).saturating_duration_since(now)),
            age: None,
        });
        object
    }

    fn endpoint(&self) -> SliceEndpoint {
        let terminating = self.deleted.is_some();
        SliceEndpoint {
            pod: Some(Arc::new(PodRef {
                name: self.name.clone(),
                uid: self.uid.clone(),
            })),
            ready: self.ready && !terminating,
            serving: self.ready,
            terminating,
            ..ready(self.address, None)
        }
    }
}

impl Truth {
    /// A pod that starts: not ready, at an address of its own or at one that a dead pod had.
    pub fn create(&mut self, name: String, address: u8, slice: usize) -> usize {
        let uid = format!("uid-{}-{name}", self.pods.len());
        let (ready, listens) = (false, true);
        self.pods.push(Pod {
            name,
            uid,
            address,
            slice,
            ready,
            listens,
            deleted: None,
            gone: false,
            listed: true,
        });
        self.pods.len() - 1
    }

    /// Who accepts connections there.
    pub fn listener(&self, address: u8) -> Option<usize> {
        self.pods
            .iter()
            .position(|pod| pod.address == address && pod.listens)
    }

    /// Moves a pod to another slice, as the controller does when it packs them.
    pub fn move_pod(&mut self, index: usize) -> [usize; 2] {
        let old = self.pods[index].slice;
        self.pods[index].slice = (old + 1) % SLICES.len();
        [old, self.pods[index].slice]
    }

    pub fn slice_of(&self, index: usize) -> usize {
        self.pods[index].slice
    }

    pub fn tell_pod(&self, index: usize, now: Instant) -> Change {
        let pod = &self.pods[index];
        if pod.gone {
            Change::Remove(Kind::Pod, name(&pod.name))
        } else {
            Change::Apply(Object::Pod(pod.object(now, false)))
        }
    }

    pub fn tell_slice(&mut self, index: usize) -> Change {
        match self.slice(index) {
            Some(slice) => Change::Apply(Object::EndpointSlice(slice)),
            None => Change::Remove(Kind::EndpointSlice, name(SLICES[index])),
        }
    }

    fn slice(&mut self, index: usize) -> Option<SliceObject> {
        if self.absent[index] {
            return None;
        }
        self.generations[index] += 1;
        let listed = self
            .pods
            .iter()
            .filter(|pod| pod.slice == index && pod.listed && !pod.gone);
        let endpoints: Vec<_> = listed.map(Pod::endpoint).collect();
        let generation = self.generations[index];
        Some(SliceObject {
            generation,
            ..slice(SLICES[index], "app", &endpoints)
        })
    }

    /// The whole truth about one kind.
    pub fn list(&mut self, kind: Kind, now: Instant) -> Change {
        let objects = match kind {
            Kind::Service => vec![Object::Service(service("app"))],
            Kind::Pod => {
                let living = self.pods.iter().filter(|pod| !pod.gone);
                living
                    .map(|pod| Object::Pod(pod.object(now, true)))
                    .collect()
            }
            Kind::EndpointSlice => (0..SLICES.len())
                .filter_map(|n| self.slice(n))
                .map(Object::EndpointSlice)
                .collect(),
        };
        Change::Replace {
            kind,
            namespace: None,
            objects,
        }
    }

    /// The last word on every object, one by one.
    pub fn post_all(&mut self, now: Instant) -> Vec<Change> {
        let mut last = Vec::new();
        for index in 0..self.pods.len() {
            let pod = &self.pods[index];
            let reborn = self.pods[index + 1..]
                .iter()
                .any(|other| other.name == pod.name);
            if !reborn {
                last.push(self.tell_pod(index, now));
            }
        }
        last.extend((0..SLICES.len()).map(|n| self.tell_slice(n)));
        last
    }
}

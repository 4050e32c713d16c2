//! The true state: pods that start and end, and the slices that a controller writes for them. Every
//! change is an event that describes the truth at that moment. Here no event is lost, late or
//! repeated: `run.rs` decides what happens to it on its way.

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
    /// The last byte of the address.
    pub address: u8,
    slice: usize,
    pub ready: bool,
    /// The pod's process accepts connections.
    pub listens: bool,
    pub deleted: Option<Instant>,
    /// The Pod object is removed.
    pub gone: bool,
    /// The Service's selector matches the pod.
    pub listed: bool,
}

#[derive(Default)]
pub struct Truth {
    pub pods: Vec<Pod>,
    generations: [i64; SLICES.len()],
    /// Slices that do not exist at the moment.
    pub absent: [bool; SLICES.len()],
}

impl Pod {
    /// Whether a proxy that knew everything would dispatch to the pod.
    pub fn serves(&self) -> bool {
        self.ready && self.listens && self.listed && self.deleted.is_none() && !self.gone
    }

    fn object(&self, now: Instant, relist: bool) -> PodObject {
        let mut object = PodObject {
            uid: self.uid.clone(),
            ..pod(&self.name, false)
        };
        // The generation of a rollout, so that a replay has another generation to prefer.
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
            local: false,
            hints: Default::default(),
            ..ready(self.address, None)
        }
    }
}

impl Truth {
    /// A pod that starts: not ready, at a new address or at that of a dead pod.
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

    /// The pod that accepts connections at this address.
    pub fn listener(&self, address: u8) -> Option<usize> {
        self.pods
            .iter()
            .position(|pod| pod.address == address && pod.listens)
    }

    /// Moves a pod to another slice, as the controller does when it repacks slices.
    pub fn move_pod(&mut self, index: usize) -> [usize; 2] {
        let old = self.pods[index].slice;
        self.pods[index].slice = (old + 1) % SLICES.len();
        [old, self.pods[index].slice]
    }

    pub fn slice_of(&self, index: usize) -> usize {
        self.pods[index].slice
    }

    pub fn report_pod(&self, index: usize, now: Instant) -> Change {
        let pod = &self.pods[index];
        if pod.gone {
            Change::Remove(Kind::Pod, name(&pod.name))
        } else {
            Change::Apply(Object::Pod(pod.object(now, false)))
        }
    }

    pub fn report_slice(&mut self, index: usize) -> Change {
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

    /// The complete true state of one kind.
    pub fn list(&mut self, kind: Kind, now: Instant) -> Change {
        let objects = match kind {
            Kind::Service => vec![Object::Service(service("app"))],
            Kind::Ingress | Kind::IngressClass | Kind::Gateway(_) => Vec::new(),
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

    /// The last state of every object, one event each.
    pub fn post_all(&mut self, now: Instant) -> Vec<Change> {
        let mut last = Vec::new();
        for index in 0..self.pods.len() {
            let pod = &self.pods[index];
            let reborn = self.pods[index + 1..]
                .iter()
                .any(|other| other.name == pod.name);
            if !reborn {
                last.push(self.report_pod(index, now));
            }
        }
        last.extend((0..SLICES.len()).map(|n| self.report_slice(n)));
        last
    }
}

//! The pods of this node by their addresses, as slices name them.
//!
//! Invariant: a pod is here for as long as a slice names it, also after its end. The kubelet may ask
//! the gate for it until then.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::contract::name::{ObjectName, PodRef};
use crate::discovery::object::SliceEndpoint;

/// The pods of this node.
#[derive(Debug, Default)]
pub(super) struct Here(HashMap<IpAddr, Vec<Place>>);

/// A pod at an address. Several slices may name it, and a pod that is over may have the address, too.
#[derive(Debug)]
struct Place {
    namespace: String,
    pod: Arc<PodRef>,
    /// How many endpoints of slices say so.
    count: usize,
}

impl Here {
    /// Notes an endpoint of a slice. Returns whether its address is new.
    pub(super) fn add(&mut self, namespace: &str, endpoint: &SliceEndpoint) -> bool {
        let Some(pod) = endpoint.pod.as_ref().filter(|_| endpoint.local) else {
            return false;
        };
        let places = self.0.entry(endpoint.address).or_default();
        let is_new = places.is_empty();
        match places.iter_mut().find(|it| it.is(namespace, pod)) {
            Some(place) => place.count += 1,
            None => {
                places.reserve_exact(1);
                places.push(Place {
                    namespace: namespace.to_owned(),
                    pod: pod.clone(),
                    count: 1,
                });
            }
        }
        is_new
    }

    /// Forgets an endpoint of a slice. Returns whether no pod has its address any more.
    pub(super) fn remove(&mut self, namespace: &str, endpoint: &SliceEndpoint) -> bool {
        let Some(pod) = endpoint.pod.as_ref().filter(|_| endpoint.local) else {
            return false;
        };
        let Some(places) = self.0.get_mut(&endpoint.address) else {
            return false;
        };
        if let Some(at) = places.iter().position(|it| it.is(namespace, pod)) {
            places[at].count -= 1;
            if places[at].count == 0 {
                places.remove(at);
            }
        }
        let is_gone = places.is_empty();
        if is_gone {
            self.0.remove(&endpoint.address);
        }
        is_gone
    }

    /// The pod that came last to an address, with its UID.
    pub(super) fn pod(&self, address: IpAddr) -> Option<(ObjectName, &str)> {
        let place = self.0.get(&address)?.last()?;
        let name = ObjectName::new(&place.namespace, &place.pod.name);
        Some((name, &place.pod.uid))
    }
}

impl Place {
    fn is(&self, namespace: &str, pod: &PodRef) -> bool {
        self.namespace == namespace && *self.pod == *pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(pod: &str, local: bool) -> SliceEndpoint {
        SliceEndpoint {
            address: [10, 0, 0, 1].into(),
            pod: Some(Arc::new(PodRef {
                name: pod.into(),
                uid: format!("uid-{pod}"),
            })),
            ready: true,
            serving: true,
            terminating: false,
            local,
            hints: Default::default(),
        }
    }

    #[test]
    fn a_pod_is_here_until_the_last_slice_has_forgotten_it_and_the_latest_answers() {
        let (mut here, at) = (Here::default(), IpAddr::from([10, 0, 0, 1]));
        assert!(!here.add("web", &endpoint("elsewhere", false)));
        assert!(here.pod(at).is_none());
        assert!(here.add("web", &endpoint("a", true)));
        assert!(!here.add("web", &endpoint("a", true)));
        assert!(
            !here.add("web", &endpoint("b", true)),
            "the address passed on"
        );
        assert_eq!(here.pod(at).unwrap().1, "uid-b");
        assert!(!here.remove("web", &endpoint("b", true)));
        assert!(!here.remove("web", &endpoint("a", true)));
        assert_eq!(here.pod(at).unwrap().0, ObjectName::new("web", "a"));
        assert!(here.remove("web", &endpoint("a", true)));
        assert!(here.0.is_empty());
        assert!(!here.remove("web", &endpoint("a", true)));
    }
}

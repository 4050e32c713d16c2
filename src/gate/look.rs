//! Who still has a pod, of all instances: for `ebbtide wait`. A look changes nothing.
//!
//! Invariant: at most `AT_ONCE` instances are asked at a time, and each has a second.

use std::net::SocketAddr;
use std::rc::Rc;

use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};

use crate::contract::name::ObjectName;
use crate::contract::snapshot::Published;
use crate::gate::link::Link;
use crate::gate::log::{Has, Holder};
use crate::gate::message::LEAVING;
use crate::gate::peers::Peers;

/// A question of the admin pages.
pub struct Look {
    /// The pod.
    pub pod: ObjectName,
    /// Every instance, this one first.
    pub answer: oneshot::Sender<Vec<Holder>>,
}

/// The way of the admin pages to the gate.
pub type Looks = mpsc::Sender<Look>;

/// What this instance has of a pod.
pub fn own(snapshot: &Published, pod: &ObjectName) -> Has {
    let snapshot = snapshot.load();
    let ports = snapshot.ports.values();
    let ports = ports.filter(|port| port.key.service.namespace == pod.namespace);
    let endpoints = ports.flat_map(|port| port.all.iter());
    let its = endpoints.filter(|it| it.pod.as_ref().is_some_and(|it| it.name == pod.name));
    Has::of(its)
}

/// Asks every instance.
pub(super) async fn all(snapshot: &Published, peers: Rc<Peers>, pod: &ObjectName) -> Vec<Holder> {
    let this = Holder {
        peer: None,
        has: Some(own(snapshot, pod)),
    };
    let path = format!("{LEAVING}/{}/{}", pod.namespace, pod.name);
    let (path, key) = (path.as_str(), peers.key());
    let key = key.as_deref();
    let asked = peers
        .addresses()
        .into_iter()
        .map(async |peer: SocketAddr| Holder {
            peer: Some(peer),
            has: Link::new(peer).look(path, key).await.ok(),
        });
    let found = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
    let mut holders: Vec<_> = found.collect().await;
    holders.sort_by_key(|it| it.peer);
    holders.insert(0, this);
    holders
}

/// Instances that are asked at a time.
const AT_ONCE: usize = 64;

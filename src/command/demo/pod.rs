//! One pod of a fleet: a sample-app process and what the manifests say about it.

use std::net::SocketAddr;

use tokio::process::Child;

/// One process and what the manifests say about it. The fleet writes the manifests, so change the
/// conditions through [`Fleet::update`](crate::command::demo::fleet::Fleet::update).
#[derive(Debug)]
pub struct Pod {
    /// The pod's identity within its fleet.
    pub id: PodId,
    /// The name of its Pod object.
    pub name: String,
    /// The UID of its Pod object.
    pub uid: String,
    /// The version that its responses carry.
    pub version: String,
    /// Where its process listens.
    pub address: SocketAddr,
    /// Whether a slice lists the pod. False while a selector does not match it, for example.
    pub listed: bool,
    /// The endpoint's `ready` condition.
    pub ready: bool,
    /// The endpoint's `serving` condition.
    pub serving: bool,
    /// The endpoint's `terminating` condition.
    pub terminating: bool,
    /// When the pod was deleted; none before that.
    pub(super) deleted_at: Option<jiff::Timestamp>,
    pub(super) process: Child,
}

/// The identity of a pod, unique within its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub(super) u32);

/// A random (version 4) UUID, as the API server gives one to each object.
pub(super) fn uid() -> String {
    let n = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{n:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts
        .map(|part| hex.get(part).unwrap_or_default().to_owned())
        .join("-")
}

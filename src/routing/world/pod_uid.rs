//! The UID and the name of a pod as keys of a map, without a copy of their texts.
//!
//! Invariant: a key is equal to its text and has the hash of it, so a map is asked by the text alone.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::contract::name::PodRef;

/// The UID of a pod.
#[derive(Debug, Clone)]
pub(in crate::routing) struct PodUid(pub(in crate::routing) Arc<PodRef>);

/// The name of a pod in its namespace.
#[derive(Debug, Clone)]
pub(super) struct PodName(pub(super) Arc<PodRef>);

impl PodUid {
    pub(in crate::routing) fn as_str(&self) -> &str {
        &self.0.uid
    }
}

impl Borrow<str> for PodUid {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for PodUid {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for PodUid {}

impl Hash for PodUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialOrd for PodUid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PodUid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Borrow<str> for PodName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl PartialEq for PodName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for PodName {}

impl Hash for PodName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

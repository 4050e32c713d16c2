//! The entries of one Service port, by the identity of their endpoints.
//!
//! Invariant: the identity of an entry is kept once, in its endpoint, and never changes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use hashbrown::HashTable;

use crate::contract::endpoint::Endpoint;
use crate::routing::entry::Entry;
use crate::routing::registry::{Identity, identity_of};
use crate::routing::world::pod_uid::PodUid;

/// The hash has no random key. So the same events build the same table in the same order, and a
/// seeded test can be run again. That is safe because the keys come from the source of truth, not
/// from clients.
#[derive(Default)]
pub(super) struct Entries(HashTable<Entry>);

impl Entries {
    pub(super) fn get(&self, identity: &Identity) -> Option<&Entry> {
        self.0.find(hash(parts(identity)), is(identity))
    }

    pub(super) fn get_mut(&mut self, identity: &Identity) -> Option<&mut Entry> {
        self.0.find_mut(hash(parts(identity)), is(identity))
    }

    pub(super) fn contains(&self, identity: &Identity) -> bool {
        self.get(identity).is_some()
    }

    /// Adds an entry. There must be none with its identity.
    pub(super) fn insert(&mut self, entry: Entry) {
        let hash_of = |entry: &Entry| hash(parts_of(&entry.endpoint));
        self.0.insert_unique(hash_of(&entry), entry, hash_of);
    }

    pub(super) fn remove(&mut self, identity: &Identity) -> Option<Entry> {
        let found = self.0.find_entry(hash(parts(identity)), is(identity));
        found.ok().map(|found| found.remove().0)
    }

    /// All entries, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    /// The identities of all entries.
    pub(super) fn identities(&self) -> impl Iterator<Item = Identity> {
        self.iter().map(|entry| identity_of(&entry.endpoint))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An address and a UID.
type Parts<'a> = (SocketAddr, Option<&'a str>);

fn parts((address, uid): &Identity) -> Parts<'_> {
    (*address, uid.as_ref().map(PodUid::as_str))
}

fn parts_of(endpoint: &Endpoint) -> Parts<'_> {
    let uid = endpoint.pod.as_ref().map(|pod| pod.uid.as_str());
    (endpoint.address, uid)
}

fn is(identity: &Identity) -> impl Fn(&Entry) -> bool {
    move |entry| parts_of(&entry.endpoint) == parts(identity)
}

fn hash(parts: Parts<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

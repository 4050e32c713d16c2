//! One endpoint of a Service port as the table keeps it: its conditions, and what decides whether
//! it is usable, the last resort or out of rotation.
//!
//! Invariant: `terminating` and `expired` are set once and never unset (contract 1.7). The lists
//! that depend on an entry are in `routing/port.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::contract::endpoint::{Conditions, Endpoint};
use crate::contract::name::PortKey;
use crate::contract::reason::Trigger;
use crate::routing::change::{Change, Leaver};
use crate::routing::near::Hinted;

/// An endpoint with what the table knows about it.
pub(super) struct Entry {
    pub(super) endpoint: Arc<Endpoint>,
    /// A copy of the endpoint's own conditions, so that a scan of all entries follows no pointers.
    pub(super) conditions: Conditions,
    /// Its place in `PortEntry::usable`, if it is there.
    pub(super) place: Option<u32>,
    /// Its hints, and its places in `PortEntry::near`.
    pub(super) hinted: Hinted,
    /// Whether the last rebuild took the endpoint out of rotation. A new endpoint is out.
    pub(super) out: bool,
    /// Whether this proxy has connected to the endpoint once, or need not (contract 1.8).
    pub(super) joined: bool,
    /// Whether a join probe runs.
    pub(super) probing: bool,
    /// Whether a slice lists the endpoint now.
    pub(super) listed: bool,
    /// The first signal of its termination.
    pub(super) terminating: Option<Trigger>,
    /// Whether its pod has drained before under another endpoint. This endpoint was made because no
    /// other served.
    pub(super) recalled: bool,
    /// Until when it gets nothing because somebody says that its pod leaves, while the source has not said
    /// so.
    pub(super) suspended: Option<Instant>,
    /// Whether its drain deadline has passed. Then it is not even a last resort.
    pub(super) expired: bool,
    /// Whether the endpoint is on this node.
    pub(super) local: bool,
}

impl Entry {
    /// Whether the endpoint is ready, listed and joined, does not terminate and is not suspended. It may
    /// still be ejected.
    pub(super) fn is_usable(&self) -> bool {
        self.suspended.is_none() && self.is_ready()
    }

    fn is_ready(&self) -> bool {
        self.listed && self.joined && self.terminating.is_none() && self.conditions.ready
    }

    /// Stores whether a slice lists the endpoint, here and in the endpoint.
    pub(super) fn set_listed(&mut self, listed: bool) {
        self.listed = listed;
        self.endpoint.set_removed(!listed);
    }

    /// Stores the conditions here and in the endpoint.
    pub(super) fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
        self.endpoint.set_conditions(conditions);
    }

    /// Requests a join probe, unless the endpoint has joined, is probed already or is in no slice.
    /// An endpoint that is not ready gets no probe, except one that terminates and still serves.
    pub(super) fn probe(&mut self, change: &mut Change) {
        let wanted =
            self.conditions.ready || (self.conditions.terminating && self.conditions.serving);
        if wanted && self.listed && !self.joined && !self.probing {
            self.probing = true;
            change.chores.join.push(self.endpoint.clone());
        }
    }

    /// The endpoint as it leaves for good.
    pub(super) fn leaver(self, key: &PortKey, trigger: Trigger) -> Leaver {
        Leaver {
            endpoint: self.endpoint,
            recalled: self.recalled,
            key: key.clone(),
            trigger,
        }
    }

    /// Whether the endpoint belongs in rotation: it is usable, or it is a last resort and no
    /// endpoint serves.
    pub(super) fn stands(&self, any_serves: bool) -> bool {
        self.is_usable() || self.is_last_resort() && !any_serves
    }

    /// Whether the endpoint may still become the last resort: it serves, but no probe has reached
    /// it yet.
    pub(super) fn may_join(&self) -> bool {
        self.listed && !self.joined && !self.expired && self.conditions.serving
    }

    /// Whether the endpoint terminates and still serves (KEP-1669, contract 1.9), or is suspended.
    pub(super) fn is_last_resort(&self) -> bool {
        let is_suspended = self.suspended.is_some() && self.is_ready() && !self.expired;
        is_suspended || self.is_terminating_resort()
    }

    fn is_terminating_resort(&self) -> bool {
        self.listed
            && self.joined
            && self.terminating.is_some()
            && !self.expired
            && self.conditions.serving
    }
}

//! One endpoint of a port, as the routing side knows it.

use std::sync::Arc;

use crate::contract::endpoint::{Conditions, Endpoint};
use crate::contract::reason::Trigger;
use crate::routing::change::Change;

pub(super) struct Entry {
    pub(super) endpoint: Arc<Endpoint>,
    /// The endpoint's own, kept here too: whoever looks at every entry need not follow each pointer.
    pub(super) conditions: Conditions,
    /// In [`PortEntry::usable`].
    pub(super) place: Option<usize>,
    /// Whether the endpoint has been told so.
    pub(super) out: bool,
    /// Connected to once by this proxy.
    pub(super) joined: bool,
    /// The control side is about to find that out.
    pub(super) probing: bool,
    /// Named by a slice right now.
    pub(super) listed: bool,
    /// Set once, never unset.
    pub(super) terminating: Option<Trigger>,
    /// Its drain deadline has passed: not even a last resort.
    pub(super) expired: bool,
}

impl Entry {
    pub(super) fn is_usable(&self) -> bool {
        self.listed && self.joined && self.terminating.is_none() && self.conditions.ready
    }

    pub(super) fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
        self.endpoint.set_conditions(conditions);
    }

    /// Has it connected to, if that is due. One that is not ready is left alone.
    pub(super) fn probe(&mut self, change: &mut Change) {
        let wanted =
            self.conditions.ready || (self.conditions.terminating && self.conditions.serving);
        if wanted && self.listed && !self.joined && !self.probing {
            self.probing = true;
            change.chores.join.push(self.endpoint.clone());
        }
    }

    /// In rotation, or the last resort.
    pub(super) fn stands(&self, any_serves: bool) -> bool {
        self.is_usable() || self.is_last_resort() && !any_serves
    }

    /// Not connected to yet: it may still become the last resort.
    pub(super) fn may_join(&self) -> bool {
        self.listed && !self.joined && !self.expired && self.conditions.serving
    }

    /// Serving and terminating (KEP-1669).
    pub(super) fn is_last_resort(&self) -> bool {
        self.listed
            && self.joined
            && self.terminating.is_some()
            && !self.expired
            && self.conditions.serving
    }
}

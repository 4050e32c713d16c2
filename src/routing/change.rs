//! One change of the table while it is collected: the endpoints that it takes out of rotation, and
//! the work that it leaves to the control loop.
//!
//! Invariant: a change that is being collected publishes nothing and drains nothing. Only drain
//! deadlines are set immediately. `RoutingTable::settle` publishes the snapshot, and then begins
//! the drains.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::reason::Trigger;

/// What one event, or one batch of events, changes. `RoutingTable::settle` puts it into force.
pub(super) struct Change {
    /// When the event arrived, by the monotonic clock. Drain deadlines count from here (contract
    /// 1.4).
    pub(super) received: Instant,
    /// Endpoints to drain once the snapshot without them is published.
    pub(super) leavers: Vec<Leaver>,
    /// Endpoints to take out of rotation once the snapshot without them is published. They may
    /// return.
    pub(super) outs: Vec<Arc<Endpoint>>,
    /// The work that the change leaves to the control loop.
    pub(super) chores: Chores,
}

/// An endpoint to drain, its Service port, and the signal that ends it.
pub(super) struct Leaver {
    pub(super) endpoint: Arc<Endpoint>,
    /// Its pod has drained before under another endpoint.
    pub(super) recalled: bool,
    pub(super) key: PortKey,
    pub(super) trigger: Trigger,
}

/// What the control loop has to do after a change.
#[derive(Debug, Default)]
pub struct Chores {
    /// Endpoints to connect to before they may be published.
    pub join: Vec<Arc<Endpoint>>,
    /// Endpoints that left rotation, or whose pod is gone. The workers have to look at what they
    /// keep for these.
    pub left: Vec<EndpointId>,
    /// Endpoints whose drain deadline was set or shortened.
    pub deadlines: Vec<Arc<Endpoint>>,
    /// New warnings, with the Service that each is about.
    pub warnings: Vec<(ObjectName, String)>,
    /// Services that appeared or disappeared, or whose ports or claim changed. Their wanted listeners
    /// may differ.
    pub listeners: BTreeSet<ObjectName>,
}

impl Change {
    /// An empty change for an event that arrived at `received`.
    pub(super) fn new(received: Instant) -> Self {
        Self {
            received,
            leavers: Vec::new(),
            outs: Vec::new(),
            chores: Chores::default(),
        }
    }

    /// Notes an endpoint to drain.
    pub(super) fn leaves(&mut self, leaver: Leaver) {
        self.leavers.push(leaver);
    }

    /// Sets the endpoint's drain deadline, or shortens it. Ignores a later deadline.
    pub(super) fn shorten(&mut self, endpoint: &Arc<Endpoint>, deadline: Instant) {
        if endpoint.shorten_deadline(deadline) {
            self.chores.deadlines.push(endpoint.clone());
        }
    }
}

impl Chores {
    /// Adds the chores of another change.
    pub fn append(&mut self, mut more: Self) {
        self.join.append(&mut more.join);
        self.left.append(&mut more.left);
        self.deadlines.append(&mut more.deadlines);
        self.warnings.append(&mut more.warnings);
        self.listeners.append(&mut more.listeners);
    }
}

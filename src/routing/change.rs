//! One change of the table, as it is collected: what it takes out of rotation, and what the control loop does afterwards.

use std::sync::Arc;
use std::time::Instant;

use crate::contract::endpoint::Endpoint;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::reason::Trigger;

/// Collects what one event (or one batch of them) changes. `RoutingTable::settle` puts it into force.
pub(super) struct Change {
    /// When the event arrived, on the monotonic clock: drain deadlines count from here.
    pub(super) received: Instant,
    /// Endpoints to drain once the snapshot without them is published.
    pub(super) leavers: Vec<Leaver>,
    /// Endpoints that are out, reversibly, once the snapshot without them is published.
    pub(super) outs: Vec<Arc<Endpoint>>,
    pub(super) chores: Chores,
}

/// An endpoint to drain.
pub(super) struct Leaver {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) key: PortKey,
    pub(super) trigger: Trigger,
}

/// What the control loop has to do after a change.
#[derive(Debug, Default)]
pub struct Chores {
    /// Endpoints to connect to before they may be published.
    pub join: Vec<Arc<Endpoint>>,
    /// Endpoints whose drain deadline was set or shortened.
    pub deadlines: Vec<Arc<Endpoint>>,
    /// New warnings, with the Service that each is about.
    pub warnings: Vec<(ObjectName, String)>,
    /// A Service came, went, or changed its ports or its claim: the listeners that are wanted may differ.
    pub listeners: bool,
}

impl Change {
    pub(super) fn new(received: Instant) -> Self {
        Self {
            received,
            leavers: Vec::new(),
            outs: Vec::new(),
            chores: Chores::default(),
        }
    }

    pub(super) fn leaves(&mut self, endpoint: Arc<Endpoint>, key: &PortKey, trigger: Trigger) {
        self.leavers.push(Leaver {
            endpoint,
            key: key.clone(),
            trigger,
        });
    }

    /// Sets the endpoint's drain deadline, or shortens it.
    pub(super) fn shorten(&mut self, endpoint: &Arc<Endpoint>, deadline: Instant) {
        if endpoint.shorten_deadline(deadline) {
            self.chores.deadlines.push(endpoint.clone());
        }
    }
}

impl Chores {
    pub fn append(&mut self, mut more: Self) {
        self.join.append(&mut more.join);
        self.deadlines.append(&mut more.deadlines);
        self.warnings.append(&mut more.warnings);
        self.listeners |= more.listeners;
    }
}

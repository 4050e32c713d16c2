//! What the control loop has to do after a change of the table.

use std::sync::Arc;

use crate::contract::endpoint::Endpoint;
use crate::contract::name::ObjectName;

/// What the control loop has to do after a change.
#[derive(Debug, Default)]
pub struct Chores {
    /// Endpoints to connect to before they may be published.
    pub join: Vec<Arc<Endpoint>>,
    /// Endpoints whose drain deadline was set or shortened.
    pub deadlines: Vec<Arc<Endpoint>>,
    pub warnings: Vec<(ObjectName, String)>,
}

impl Chores {
    pub fn append(&mut self, mut more: Self) {
        self.join.append(&mut more.join);
        self.deadlines.append(&mut more.deadlines);
        self.warnings.append(&mut more.warnings);
    }
}

//! A plan of the Gateway API's objects, put in force.
//!
//! Invariant: statuses are written by somebody else (`cluster/status.rs`), and never waited for.

use std::collections::BTreeSet;

use crate::control::event_loop::Control;
use crate::control::planner::{InForce, Made};
use crate::routing::change::Chores;

impl Control {
    /// Plans what the source had at the start, before this instance says that it is ready.
    pub(super) fn plan_first(&mut self) -> Chores {
        let mut chores = Chores::default();
        self.gateways.note();
        // The first names Services, the second has seen them.
        while let Some(made) = self.gateways.plan_now(&self.world) {
            chores.append(self.put_in_force(made));
        }
        self.gateways.move_away();
        chores
    }

    /// Puts a plan in force.
    pub(super) fn put_in_force(&mut self, made: Made) -> Chores {
        self.gateways.take(&made, &self.world);
        let before = (!made.differ.is_empty() || !made.gone.is_empty()).then(|| self.named());
        let old = self.routed.plan();
        let (owners, secrets_differ) = self.routed.take_plan(made, &self.shared);
        let plan = self.routed.plan();
        let is_told =
            secrets_differ || plan.secret_names != old.secret_names || plan.holders != old.holders;
        self.say(&old, &plan);
        if secrets_differ {
            self.certificates.of_routes(self.routed.secrets().clone());
        }
        let mut services = BTreeSet::new();
        if let Some(before) = before {
            services = self.name_services(&before, true);
        } else if is_told {
            self.report_use();
        }
        let mut chores = self.take_in(services);
        chores.listeners.extend(owners);
        chores
    }

    /// Tells the writer what is to be said of objects, and the log where nobody writes.
    fn say(&self, before: &InForce, plan: &InForce) {
        for (key, wanted) in &before.statuses {
            if !plan.statuses.contains_key(key) {
                self.statuses.forget(&wanted.resource, &wanted.name);
            }
        }
        for wanted in plan.statuses.values() {
            self.statuses.want(wanted.clone());
        }
        for fault in plan.faults.difference(&before.faults) {
            tracing::warn!(fault, "a part of the Gateway API's objects is not served");
        }
    }
}

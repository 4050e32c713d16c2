//! The plan of a phase: how long the load runs, and when which process is replaced.

use std::time::Duration;

/// The schedule of a phase.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// How long the load runs.
    pub(crate) load: Duration,
    /// Whether the load runs until it is stopped. `load` is a year then.
    pub(crate) endless: bool,
    /// The time before the first update, and after the last one.
    pub(crate) lead: Duration,
    /// The time from one replacement to the next. Between two updates it passes twice.
    pub(crate) step: Duration,
    /// The number of updates; `usize::MAX` if it is not known.
    pub(crate) updates: usize,
}

impl Plan {
    /// As many updates as fit, with steps longer than the delay of the late balancer. A short load
    /// gets one update with shorter steps.
    pub(crate) fn new(load: Duration) -> Self {
        let lead = (load / 8).min(Duration::from_secs(1));
        let length = STEP * (REPLICAS + 1);
        let updates = ((load - 2 * lead + STEP).as_secs_f64() / length.as_secs_f64()) as usize;
        let step = STEP.min((load - 2 * lead) / REPLICAS);
        Self {
            load,
            endless: false,
            lead,
            step,
            updates: updates.max(1),
        }
    }

    /// A plan for updates whose length is not known.
    pub(crate) fn of_unknown_updates(load: Duration) -> Self {
        Self {
            updates: usize::MAX,
            ..Self::new(load)
        }
    }

    /// This plan, or with `stay` one without an end.
    pub(crate) fn or_endless(&self, stay: bool) -> Self {
        match stay {
            true => Self {
                load: ENDLESS,
                endless: true,
                updates: usize::MAX,
                ..self.clone()
            },
            false => self.clone(),
        }
    }
}

/// The processes of the demo's fleet.
pub(crate) const REPLICAS: u32 = 3;
/// How late the balancer of the first phase learns of a change.
pub(crate) const LATE: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(1500);
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_fits_into_the_load_with_steps_longer_than_the_late_balancer_is_late() {
        for (seconds, updates) in [(2, 1), (5, 1), (8, 1), (13, 2), (20, 3), (60, 9)] {
            let plan = Plan::new(Duration::from_secs(seconds));
            assert_eq!(plan.updates, updates, "{seconds} s");
            let steps = (REPLICAS + 1) * plan.updates as u32 - 1;
            assert!(
                plan.lead + plan.step * steps <= plan.load - plan.lead,
                "{seconds} s: {plan:?}"
            );
            assert!(plan.step > LATE || seconds < 6, "{seconds} s: {plan:?}");
        }
    }
}

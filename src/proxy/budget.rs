//! The budgets that bound what is done twice: replays that no leaving endpoint explains (contract
//! 3.7), and second connects beside one that is not answered (contract 3.1).
//!
//! Invariant: an application that loses every request gets at most a share of its recent requests
//! again, and a small floor. One that accepts slowly gets as little more than its share of connects.

use std::cell::Cell;

use crate::config::settings::Retry;

/// The budgets of one worker for one service port.
#[derive(Debug, Default)]
pub struct Budget {
    replays: Share,
    hedges: Share,
}

/// A share of what was done recently, plus a floor for each second. "Recent" is about ten seconds.
#[derive(Debug, Default)]
struct Share {
    done: Cell<f64>,
    again: Cell<f64>,
}

impl Budget {
    /// Counts one request, whose share is added to the budget of replays.
    pub fn count_request(&self) {
        self.replays.count();
    }

    /// Takes one replay out of the budget. Returns `false` if none is left. The floor is for the
    /// whole process, so each of the `workers` has its part of it.
    pub fn spend(&self, retry: &Retry, workers: usize) -> bool {
        let floor = f64::from(retry.budget_floor) / workers as f64;
        self.replays.spend(retry.budget_percent.into(), floor)
    }

    /// Counts one connect that a client needs.
    pub fn count_connect(&self) {
        self.hedges.count();
    }

    /// Takes one connect out of the budget that races with an unanswered one. A full accept queue
    /// leaves connects unanswered, too, and more of them make it no shorter.
    pub fn hedge(&self) -> bool {
        self.hedges.spend(HEDGE_PERCENT, HEDGE_FLOOR)
    }

    /// Forgets a part of all counts. Must be called once a second.
    pub fn fade(&self) {
        self.replays.fade();
        self.hedges.fade();
    }
}

impl Share {
    fn count(&self) {
        self.done.set(self.done.get() + 1.0);
    }

    /// `floor` is for a second.
    fn spend(&self, percent: f64, floor: f64) -> bool {
        let again = self.again.get() + 1.0;
        let fits = again <= self.done.get() * percent / 100.0 + floor * WINDOW_S;
        if fits {
            self.again.set(again);
        }
        fits
    }

    fn fade(&self) {
        for count in [&self.done, &self.again] {
            count.set(count.get() * (1.0 - 1.0 / WINDOW_S));
        }
    }
}

/// A count that loses a tenth each second remembers about ten seconds.
const WINDOW_S: f64 = 10.0;
/// How many of a hundred connects may race with a second one.
const HEDGE_PERCENT: f64 = 10.0;
/// How many more may in each second, for each worker: where connects are few, a black hole must not
/// stall them.
const HEDGE_FLOOR: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::policy::NonIdempotent;

    fn spend_all(budget: &Budget, retry: &Retry) -> u32 {
        (0..)
            .take_while(|_| budget.spend(retry, WINDOW_S as usize))
            .count() as u32
    }

    #[test]
    fn the_budget_is_a_share_of_recent_requests_and_a_floor() {
        let retry = Retry {
            attempts: 3,
            budget_percent: 20,
            budget_floor: 10,
            non_idempotent: NonIdempotent::Never,
        };
        let budget = Budget::default();
        assert_eq!(spend_all(&budget, &retry), 10);
        (0..100).for_each(|_| budget.count_request());
        assert_eq!(spend_all(&budget, &retry), 20);
        (0..200).for_each(|_| budget.fade());
        // The counts fade, but they do not reach 0. So what is left of the old replays may keep the
        // tenth replay from fitting.
        assert!(
            (9..=10).contains(&spend_all(&budget, &retry)),
            "requests and replays of long ago count no more"
        );
        let none = Retry {
            budget_percent: 0,
            budget_floor: 0,
            ..retry
        };
        assert_eq!(spend_all(&Budget::default(), &none), 0);
    }

    #[test]
    fn a_tenth_of_the_connects_may_race_and_a_floor() {
        let budget = Budget::default();
        let hedges = |budget: &Budget| (0..).take_while(|_| budget.hedge()).count();
        assert_eq!(hedges(&budget), 100);
        (0..1_000).for_each(|_| budget.count_connect());
        assert_eq!(hedges(&budget), 100);
        let retry = Retry {
            attempts: 3,
            budget_percent: 0,
            budget_floor: 0,
            non_idempotent: NonIdempotent::Never,
        };
        assert_eq!(spend_all(&budget, &retry), 0, "replays have another budget");
    }
}

//! The budget that bounds the replays which no leaving endpoint explains (contract 3.7).
//!
//! Invariant: an application that loses every request gets at most a share of its recent requests
//! again, and a small floor.

use std::cell::Cell;

use crate::config::settings::Retry;

/// The budget of one worker for one service port: a share of the recent requests, plus a floor for
/// each second. "Recent" is about ten seconds.
#[derive(Debug, Default)]
pub struct Budget {
    requests: Cell<f64>,
    replays: Cell<f64>,
}

impl Budget {
    /// Counts one request, whose share is added to the budget.
    pub fn count_request(&self) {
        self.requests.set(self.requests.get() + 1.0);
    }

    /// Takes one replay out of the budget. Returns `false` if none is left. The floor is for the
    /// whole process, so each of the `workers` has its part of it.
    pub fn spend(&self, retry: &Retry, workers: usize) -> bool {
        let replays = self.replays.get() + 1.0;
        let floor = f64::from(retry.budget_floor) * WINDOW_S / workers as f64;
        let allowed = self.requests.get() * f64::from(retry.budget_percent) / 100.0 + floor;
        let fits = replays <= allowed;
        if fits {
            self.replays.set(replays);
        }
        fits
    }

    /// Forgets a part of both counts. Must be called once a second.
    pub fn fade(&self) {
        for count in [&self.requests, &self.replays] {
            count.set(count.get() * (1.0 - 1.0 / WINDOW_S));
        }
    }
}

/// A count that loses a tenth each second remembers about ten seconds.
const WINDOW_S: f64 = 10.0;

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
}

//! When a request may be sent twice (design, section 3; RFC 9110 section 9.2.2), and the budget that bounds it.

use std::cell::Cell;

use crate::config::Retry;
use crate::contract::policy::NonIdempotent;
use crate::wire::message::{Method, Request};

/// Whether a request that may have run may be sent again.
pub fn is_repeatable(request: &Request, policy: NonIdempotent) -> bool {
    let opted_in = match policy {
        NonIdempotent::Never => false,
        NonIdempotent::IdempotencyKey => request.idempotency_key,
        NonIdempotent::Always => true,
    };
    // A conditional PUT or DELETE that ran has changed what its condition asks.
    let changes_condition = matches!(request.method, Method::Put | Method::Delete) && request.conditional;
    opted_in || (request.method.is_idempotent() && !changes_condition)
}

/// Bounds the replays that no leaving endpoint explains, per worker and service port: a share of recent requests plus a
/// floor a second. "Recent" is about ten seconds.
#[derive(Debug, Default)]
pub struct Budget {
    requests: Cell<f64>,
    replays: Cell<f64>,
}

impl Budget {
    pub fn count_request(&self) {
        self.requests.set(self.requests.get() + 1.0);
    }

    /// Takes one replay out of the budget, if there is one left.
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

    /// To be called once a second.
    pub fn fade(&self) {
        for count in [&self.requests, &self.replays] {
            count.set(count.get() * (1.0 - 1.0 / WINDOW_S));
        }
    }
}

/// A count that fades by this part each second remembers about as many seconds.
const WINDOW_S: f64 = 10.0;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Framing, Version};

    fn request(method: Method, conditional: bool, idempotency_key: bool) -> Request {
        Request {
            method,
            version: Version::H11,
            framing: Framing::None,
            keep_alive: true,
            upgrade: false,
            expect_continue: false,
            conditional,
            idempotency_key,
            consumed: 0,
        }
    }

    #[test]
    fn idempotent_methods_are_repeatable_and_no_others() {
        for method in [Method::Get, Method::Head, Method::Options, Method::Trace, Method::Put, Method::Delete] {
            assert!(is_repeatable(&request(method, false, false), NonIdempotent::Never), "{method:?}");
        }
        for method in [Method::Post, Method::Patch, Method::Connect, Method::Other] {
            assert!(!is_repeatable(&request(method, false, false), NonIdempotent::Never), "{method:?}");
            assert!(!is_repeatable(&request(method, false, true), NonIdempotent::Never), "{method:?}");
        }
    }

    /// RFC 9110 section 13.1: the attempt that was lost may have changed what the condition asks.
    #[test]
    fn a_conditional_change_is_not_repeatable_a_conditional_read_is() {
        for (method, repeatable) in
            [(Method::Put, false), (Method::Delete, false), (Method::Get, true), (Method::Head, true)]
        {
            assert_eq!(is_repeatable(&request(method, true, false), NonIdempotent::Never), repeatable, "{method:?}");
        }
    }

    #[test]
    fn a_service_may_opt_in() {
        for (method, conditional) in [(Method::Post, false), (Method::Patch, false), (Method::Put, true)] {
            let (bare, keyed) = (request(method, conditional, false), request(method, conditional, true));
            assert!(!is_repeatable(&bare, NonIdempotent::IdempotencyKey));
            assert!(is_repeatable(&keyed, NonIdempotent::IdempotencyKey));
            assert!(is_repeatable(&bare, NonIdempotent::Always));
        }
    }

    fn spend_all(budget: &Budget, retry: &Retry) -> u32 {
        (0..).take_while(|_| budget.spend(retry, WINDOW_S as usize)).count() as u32
    }

    #[test]
    fn the_budget_is_a_share_of_recent_requests_and_a_floor() {
        let retry = Retry { attempts: 3, budget_percent: 20, budget_floor: 10, non_idempotent: NonIdempotent::Never };
        let budget = Budget::default();
        assert_eq!(spend_all(&budget, &retry), 10);
        (0..100).for_each(|_| budget.count_request());
        assert_eq!(spend_all(&budget, &retry), 20);
        (0..200).for_each(|_| budget.fade());
        // A trace of what was spent stays, and keeps a whole replay from fitting.
        assert!((9..=10).contains(&spend_all(&budget, &retry)), "what is long past counts neither way");
        let none = Retry { budget_percent: 0, budget_floor: 0, ..retry };
        assert_eq!(spend_all(&Budget::default(), &none), 0);
    }
}

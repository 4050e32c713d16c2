//! When a request may be sent twice (design, section 3; RFC 9110 section 9.2.2), and the budget that bounds it.

use std::cell::Cell;

use crate::config::{NonIdempotent, Retry};
use crate::http::head::{Method, Request};

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

//! One service port's metrics, resolved once, so that the data plane looks nothing up.

use prometheus::{Histogram, IntCounter, IntGauge};

use crate::contract::reason::{CloseReason, Outcome, RetryReason, Trigger};

/// One service port's metrics, resolved.
pub struct ServiceMetrics {
    /// By class: index 0 is `1xx` … 4 is `5xx`.
    pub requests: [IntCounter; 5],
    pub request_duration: Histogram,
    pub connections_http: IntCounter,
    pub connections_tcp: IntCounter,
    pub connections_active: IntGauge,
    pub closes: [IntCounter; CloseReason::ALL.len()],
    /// (ok, failed) by [`RetryReason`].
    pub retries: [(IntCounter, IntCounter); 3],
    pub failures: IntCounter,
    pub held_released: IntCounter,
    pub held_expired: IntCounter,
    pub held_refused: IntCounter,
    pub held_left: IntCounter,
    pub held_now: IntGauge,
    /// By [`ENDPOINT_STATES`]; set by the admin pages when they are asked.
    pub endpoints: [IntGauge; 4],
    /// By [`Trigger`], then [`Outcome`].
    pub drains: [[IntCounter; 2]; 3],
    pub drain_duration: Histogram,
    pub deletion_lag: Histogram,
    pub upstream_active: IntGauge,
    pub upstream_idle: IntGauge,
}

impl ServiceMetrics {
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].inc();
    }

    pub fn retried(&self, reason: RetryReason, ok: bool) {
        let (done, failed) = &self.retries[reason as usize];
        if ok { done.inc() } else { failed.inc() }
    }

    /// Connections that ended for this reason until now.
    pub fn closed_so_far(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize].get()
    }

    /// Lost requests that were tried again, whatever came of it, until now.
    pub fn replayed_so_far(&self) -> u64 {
        let (done, failed) = &self.retries[RetryReason::Replay as usize];
        done.get() + failed.get()
    }

    /// Requests and connections that had to wait until now, those that still do included.
    pub fn held_so_far(&self) -> u64 {
        let ended = [
            &self.held_released,
            &self.held_expired,
            &self.held_refused,
            &self.held_left,
        ];
        ended.iter().map(|counter| counter.get()).sum::<u64>()
            + self.held_now.get().max(0).cast_unsigned()
    }

    pub fn answered(&self, status: u16) {
        self.requests[usize::from((status / 100).clamp(1, 5)) - 1].inc();
    }

    pub fn drained(&self, trigger: Trigger, outcome: Outcome) {
        self.drains[trigger as usize][outcome as usize].inc();
    }
}

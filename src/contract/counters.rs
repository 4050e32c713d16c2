//! The metrics of one Service port. Each metric is resolved from its labels once, so that the data
//! plane looks nothing up.
//!
//! Invariant: the arrays are indexed by the enums of [`crate::contract::reason`], in their order.
//! The families, their names and their labels are in `observe/metrics.rs`.

use prometheus::{Histogram, IntCounter, IntGauge};

use crate::contract::reason::{CloseReason, Outcome, RetryReason, Trigger};

/// The metrics of one Service port, each resolved from its labels.
pub struct ServiceMetrics {
    /// Responses to clients by class of status code: index 0 is `1xx`, index 4 is `5xx`.
    pub requests: [IntCounter; 5],
    /// Seconds from the end of a request's head to the last byte of its response.
    pub request_duration: Histogram,
    /// Client connections that turned out to speak HTTP.
    pub connections_http: IntCounter,
    /// Client connections that were served as TCP.
    pub connections_tcp: IntCounter,
    /// Client connections that are open now.
    pub connections_active: IntGauge,
    /// Client connections that ended, by [`CloseReason`].
    pub closes: [IntCounter; CloseReason::ALL.len()],
    /// Retries that succeeded and retries that failed, by [`RetryReason`].
    pub retries: [(IntCounter, IntCounter); 3],
    /// Requests that Ebbtide had to fail: its own 502, 503 and 504, and responses that it cut.
    pub failures: IntCounter,
    /// Holds that ended because an endpoint became usable.
    pub held_released: IntCounter,
    /// Holds that ended because the hold time was over.
    pub held_expired: IntCounter,
    /// Requests and connections that were refused because the queue was full.
    pub held_refused: IntCounter,
    /// Holds that ended because the client left.
    pub held_left: IntCounter,
    /// Requests and connections that are held now.
    pub held_now: IntGauge,
    /// Endpoints by state, in the order of
    /// [`ENDPOINT_STATES`](crate::observe::metrics::ENDPOINT_STATES). The admin pages set this
    /// gauge for each scrape.
    pub endpoints: [IntGauge; 4],
    /// Finished drains by [`Trigger`], then by [`Outcome`].
    pub drains: [[IntCounter; 2]; 3],
    /// Seconds from the beginning of a drain to the end of its last lease.
    pub drain_duration: Histogram,
    /// Seconds from a pod's deletion, by the source's clock, to the last dispatch to the pod.
    pub deletion_lag: Histogram,
    /// Connections to endpoints that carry a request or a TCP connection now.
    pub upstream_active: IntGauge,
    /// Idle pooled connections to endpoints.
    pub upstream_idle: IntGauge,
}

impl ServiceMetrics {
    /// Counts a client connection that ended.
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].inc();
    }

    /// Counts a retry. `ok` says whether it succeeded.
    pub fn retried(&self, reason: RetryReason, ok: bool) {
        let (done, failed) = &self.retries[reason as usize];
        if ok { done.inc() } else { failed.inc() }
    }

    /// Client connections that have ended for this reason so far.
    pub fn closed_so_far(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize].get()
    }

    /// Lost requests that have been sent again so far, whether the replay succeeded or not.
    pub fn replayed_so_far(&self) -> u64 {
        let (done, failed) = &self.retries[RetryReason::Replay as usize];
        done.get() + failed.get()
    }

    /// Requests and connections that have been held so far, including those that are held now.
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

    /// Counts a response to a client. A status below 100 counts as `1xx`, one above 599 as `5xx`.
    pub fn answered(&self, status: u16) {
        self.requests[usize::from((status / 100).clamp(1, 5)) - 1].inc();
    }

    /// Counts a drain that has ended.
    pub fn drained(&self, trigger: Trigger, outcome: Outcome) {
        self.drains[trigger as usize][outcome as usize].inc();
    }
}

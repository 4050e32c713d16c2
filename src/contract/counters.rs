//! The metrics of one Service port, as plain atomics, so that the data plane looks nothing up and
//! the metrics of a port without traffic cost little.
//!
//! Invariant: the arrays are indexed by the enums of [`crate::contract::reason`], in their order.
//! The families, their names and their labels are in `observe/families.rs`.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};

use crate::contract::reason::{CloseReason, DropReason, GrpcClass, Outcome, RetryReason, Trigger};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number that grows and shrinks.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// How many observations fell below each of some bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One bucket for each bound, and one for what is above all of them.
    buckets: [Counter; MAX_BOUNDS + 1],
    nanos: Counter,
}

/// The metrics of one Service port.
#[derive(Debug)]
pub struct ServiceMetrics {
    /// Responses to clients by class of status code: index 0 is `1xx`, index 4 is `5xx`.
    pub requests: [Counter; 5],
    /// Responses of gRPC by [`GrpcClass`].
    pub grpc: [Counter; GrpcClass::ALL.len()],
    /// Seconds from the end of a request's head to the last byte of its response.
    pub request_duration: Histogram,
    /// Client connections that turned out to speak HTTP.
    pub connections_http: Counter,
    /// Client connections that were served as TCP.
    pub connections_tcp: Counter,
    /// TLS handshakes that succeeded: those with a signature, and those that resumed a session.
    pub handshakes: [Counter; 2],
    /// Client connections that are open now.
    pub connections_active: Gauge,
    /// Client connections that ended, by [`CloseReason`].
    pub closes: [Counter; CloseReason::ALL.len()],
    /// Retries that succeeded and retries that failed, by [`RetryReason`].
    pub retries: [(Counter, Counter); 3],
    /// Requests that Ebbtide had to fail: its own 502, 503 and 504, and responses that it cut.
    pub failures: Counter,
    /// Holds that ended because an endpoint became usable.
    pub held_released: Counter,
    /// Holds that ended because the hold time was over.
    pub held_expired: Counter,
    /// Requests and connections that were refused because the queue was full.
    pub held_refused: Counter,
    /// Holds that ended because the client left.
    pub held_left: Counter,
    /// Requests and connections that are held now.
    pub held_now: Gauge,
    /// Endpoints by state, in the order of
    /// [`ENDPOINT_STATES`](crate::observe::families::ENDPOINT_STATES). The admin pages set this gauge
    /// for each scrape.
    pub endpoints: [Gauge; 4],
    /// See [`ServiceMetrics::drains`].
    drains: OnceLock<Box<Drains>>,
    /// Connections to endpoints that carry a request or a TCP connection now.
    pub upstream_active: Gauge,
    /// Idle pooled connections to endpoints.
    pub upstream_idle: Gauge,
    /// Datagrams that were passed on: to endpoints, and to clients.
    pub datagrams: [Counter; 2],
    /// Datagrams that were dropped, by [`DropReason`].
    pub datagrams_dropped: [Counter; DropReason::ALL.len()],
    /// Datagrams that an endpoint refused, and that went to another one.
    pub datagrams_moved: Counter,
    /// UDP sessions that are open now.
    pub udp_sessions: Gauge,
    /// UDP sessions that went on at another endpoint.
    pub udp_sessions_moved: Counter,
    /// Connections to endpoints from the node's address, where the client's was to be kept.
    pub source_lost: Counter,
    /// UDP sessions that ended for a new one, because there was no place.
    pub udp_evicted: Counter,
}

/// The drains of one Service port.
#[derive(Debug)]
pub struct Drains {
    /// Finished drains by [`Trigger`], then by [`Outcome`].
    pub ended: [[Counter; Outcome::ALL.len()]; Trigger::ALL.len()],
    /// Seconds from the beginning of a drain to the end of its last lease.
    pub duration: Histogram,
    /// Seconds from a pod's deletion, by the source's clock, to the last dispatch to the pod.
    pub deletion_lag: Histogram,
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Replaces the number.
    pub fn set(&self, now: i64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            buckets: Default::default(),
            nanos: Counter::default(),
        }
    }

    /// Adds an observation in seconds.
    pub fn observe(&self, seconds: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].inc();
        let nanos = (seconds * 1e9) as u64;
        self.nanos.0.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Each bound in seconds, the last one infinite, with the number of observations up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(&self.buckets).scan(0, |sum, (bound, bucket)| {
            *sum += bucket.get();
            Some((bound, *sum))
        })
    }

    /// The sum of all observations in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.nanos.get()
    }
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        Self {
            requests: Default::default(),
            request_duration: Histogram::new(REQUEST),
            connections_http: Counter::default(),
            connections_tcp: Counter::default(),
            grpc: Default::default(),
            handshakes: Default::default(),
            connections_active: Gauge::default(),
            closes: Default::default(),
            retries: Default::default(),
            failures: Counter::default(),
            held_released: Counter::default(),
            held_expired: Counter::default(),
            held_refused: Counter::default(),
            held_left: Counter::default(),
            held_now: Gauge::default(),
            endpoints: Default::default(),
            drains: OnceLock::new(),
            upstream_active: Gauge::default(),
            upstream_idle: Gauge::default(),
            datagrams: Default::default(),
            datagrams_dropped: Default::default(),
            datagrams_moved: Counter::default(),
            udp_sessions: Gauge::default(),
            udp_sessions_moved: Counter::default(),
            source_lost: Counter::default(),
            udp_evicted: Counter::default(),
        }
    }
}

impl Default for Drains {
    fn default() -> Self {
        Self {
            ended: Default::default(),
            duration: Histogram::new(DRAIN),
            deletion_lag: Histogram::new(LAG),
        }
    }
}

impl ServiceMetrics {
    /// Its drains so far. They are kept apart, because most ports of a cluster never have one.
    pub fn drains(&self) -> &Drains {
        self.drains.get().map_or(&NO_DRAINS, |drains| drains)
    }

    /// Whether the port has had a client or a request. Only then its metrics are shown.
    pub fn is_used(&self) -> bool {
        let datagrams = self.datagrams.iter().chain(&self.datagrams_dropped);
        let mut counts = self.requests.iter().chain(&self.closes).chain(datagrams);
        let connections = [&self.connections_http, &self.connections_tcp];
        self.connections_active.get() != 0
            || connections.iter().any(|count| count.get() > 0)
            || counts.any(|count| count.get() > 0)
    }

    /// Counts a client connection that ended.
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].inc();
    }

    /// Counts a datagram that was dropped.
    pub fn dropped(&self, reason: DropReason) {
        self.datagrams_dropped[reason as usize].inc();
    }

    /// Datagrams that have been dropped for this reason so far.
    pub fn dropped_so_far(&self, reason: DropReason) -> u64 {
        self.datagrams_dropped[reason as usize].get()
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

    /// Counts a drain that has ended. Returns where its times are counted.
    pub fn drained(&self, trigger: Trigger, outcome: Outcome) -> &Drains {
        let drains = self.drains.get_or_init(Box::default);
        drains.ended[trigger as usize][outcome as usize].inc();
        drains
    }
}

/// The drains of a port that has had none.
static NO_DRAINS: LazyLock<Drains> = LazyLock::new(Drains::default);

/// The largest number of bounds of a histogram.
const MAX_BOUNDS: usize = 15;
/// Bucket bounds in seconds. A `deletionTimestamp` has a resolution of one second. The steps are
/// fine below one second (for a source with a better clock) and around it, and end where the
/// propagation delays of other proxies end.
const LAG: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0,
];
/// Bucket bounds in seconds.
const REQUEST: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Bucket bounds in seconds: from an idle endpoint to a grace period of an hour.
const DRAIN: &[f64] = &[
    0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_counts_in_each_bucket_that_includes_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for seconds in [0.5, 1.0, 1.5, 9.0] {
            histogram.observe(seconds);
        }
        let counts: Vec<_> = histogram.cumulative().collect();
        assert_eq!(counts, [(1.0, 2), (2.0, 3), (f64::INFINITY, 4)]);
        assert_eq!(histogram.nanos(), 12_000_000_000);
    }
}

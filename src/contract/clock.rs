//! The process's own clock: time since the process began, in integers small enough for an atomic.
//!
//! All users share one start, so their values can be compared. Wall-clock time is not kept here.

use std::sync::LazyLock;
use std::time::Instant;

/// Milliseconds from the start of the process to `now`.
///
/// The value wraps after 49 days. Two users subtract with wrapping, and are right across the wrap:
/// the heartbeat of the control loop ([`crate::observe::health`]), and the preference of a pick
/// against a new endpoint ([`is_newer_than`](crate::contract::endpoint::Endpoint::is_newer_than)).
///
/// These users are wrong when they compare a value from before the wrap with one from after it:
/// - the age of a latency average: it does not fade until the next sample;
/// - the join stamp as a sort key: a replay may prefer an endpoint that joined earlier, and a
///   rollout's report may count too few or too many pods;
/// - the dispatch stamp: one observation of the deletion lag is 0 or about 49 days;
/// - the stamp of the last replay: a drain receipt may count replays from long before the drain.
///
/// None of them decides whether a request may be dispatched.
pub fn millis(now: Instant) -> u32 {
    now.saturating_duration_since(*START).as_millis() as u32
}

/// Microseconds from the start of the process to `now`. The value does not wrap.
pub fn micros(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_micros() as u64
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

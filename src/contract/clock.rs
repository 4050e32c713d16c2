//! The process's own clock: time since the process began, in integers small enough for an atomic.
//!
//! All users share one start, so their values can be compared. Wall-clock time is not kept here.

use std::sync::LazyLock;
use std::time::Instant;

/// Milliseconds from the start of the process to `now`.
///
/// The value wraps after 49 days. Only comparisons across the wrap are wrong then: the age of a
/// latency average, the order in which endpoints joined, and the count of pods in a rollout.
pub fn millis(now: Instant) -> u32 {
    now.saturating_duration_since(*START).as_millis() as u32
}

/// Microseconds from the start of the process to `now`. The value does not wrap.
pub fn micros(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_micros() as u64
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

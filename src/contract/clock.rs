//! The process's own clock: milliseconds since the process began, small enough for an atomic.

use std::sync::LazyLock;
use std::time::Instant;

/// Milliseconds from the start of the process to `now`; wraps after 49 days, which costs one latency sample.
pub fn millis(now: Instant) -> u32 {
    now.saturating_duration_since(*START).as_millis() as u32
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

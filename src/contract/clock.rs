//! The process's own clock: time since the process began, in integers small enough for an atomic.
//!
//! All users share one start, so their values can be compared. Wall-clock time is not kept here.

use std::sync::LazyLock;
use std::time::Instant;

/// Milliseconds from the start of the process to `now`. The value does not wrap, so two values
/// compare as the moments do. A word with less room keeps the lower bits, and then only
/// differences have a meaning (see [`Latency`](crate::contract::latency::Latency)).
pub fn millis(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_millis() as u64
}

/// Microseconds from the start of the process to `now`. The value does not wrap.
pub fn micros(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_micros() as u64
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_keep_their_order_after_the_days_that_32_bits_of_milliseconds_last() {
        // No moment is before the start, and the start is when somebody first asks.
        let now = *START;
        let wrap = Duration::from_millis(1 << 32);
        let at = |at: Duration| millis(now + at);
        let second = Duration::from_secs(1);
        assert_eq!(at(wrap + second) - at(wrap - second), 2_000);
        assert_eq!(at(4 * wrap) - at(Duration::ZERO), 4 << 32);
    }
}

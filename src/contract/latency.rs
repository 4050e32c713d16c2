//! A moving average of an endpoint's response times, in one atomic word.
//!
//! Invariant: no reader waits and no writer retries. Two writers at the same moment lose one of the
//! two samples, and nothing else. `proxy/balancer.rs` decides how a pick uses the average.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A moving average of response times in one word. The upper 32 bits are the average in
/// microseconds. The lower 32 bits are the time of the last sample: the lower half of
/// [`millis`](crate::contract::clock::millis). They wrap after 49 days, so ages are differences that
/// wrap. The average of an endpoint without a sample for 49 days can look younger than it is.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    /// The average in microseconds; `None` before the first sample. The average fades with the age
    /// of its last sample, so that a slow endpoint is tried again.
    pub fn micros(&self, now_ms: u64) -> Option<u64> {
        let word = self.0.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let age = (now_ms as u32).wrapping_sub(word as u32);
        // Another worker's sample may be a little later than `now_ms`.
        let age = if age > u32::MAX - AHEAD_MS { 0 } else { age };
        Some((word >> 32) >> (age / FADE_MS).min(31))
    }

    /// Adds a sample with the weight of an eighth.
    pub fn record(&self, sample: Duration, now_ms: u64) {
        let sample = (sample.as_micros().min(u128::from(u32::MAX)) as u64).max(1);
        let average = match self.micros(now_ms) {
            Some(old) => (old * 7 + sample) / 8,
            None => sample,
        };
        self.0.store(
            average.max(1) << 32 | u64::from(now_ms as u32),
            Ordering::Relaxed,
        );
    }
}

/// An average halves in this time without a new sample, in milliseconds.
const FADE_MS: u32 = 5_000;
/// A sample may be this much later than the reader's time, in milliseconds.
const AHEAD_MS: u32 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    const FADE: u64 = FADE_MS as u64;

    /// 32 bits of milliseconds last for 49.7 days.
    #[test]
    fn an_average_fades_across_the_wrap_as_at_any_time() {
        for wraps in 0..3 {
            for before in [0, 1, 2_500, FADE] {
                let sampled = (wraps << 32) + (1 << 32) - before;
                let latency = Latency::default();
                latency.record(Duration::from_micros(8_000), sampled);
                for (later, expected) in [(0, 8_000), (FADE - 1, 8_000), (FADE, 4_000)] {
                    assert_eq!(latency.micros(sampled + later), Some(expected));
                }
                assert_eq!(latency.micros(sampled - 2), Some(8_000));
                assert_eq!(latency.micros(sampled + (1 << 31)), Some(0));
                latency.record(Duration::from_micros(16_000), sampled + 1);
                assert_eq!(latency.micros(sampled + 1), Some(9_000));
            }
        }
    }

    #[test]
    fn latency_follows_by_an_eighth_and_fades() {
        let latency = Latency::default();
        assert_eq!(latency.micros(1), None);
        latency.record(Duration::from_micros(8_000), 1);
        assert_eq!(latency.micros(1), Some(8_000));
        latency.record(Duration::from_micros(16_000), 2);
        assert_eq!(latency.micros(2), Some(9_000));
        assert_eq!(latency.micros(2 + FADE), Some(4_500));
        assert_eq!(latency.micros(2 + 40 * FADE), Some(0));
        latency.record(Duration::MAX, 3);
        assert!(
            latency.micros(3) > Some(500_000_000),
            "a sample that is too long is bounded and does not wrap"
        );
        assert_eq!(
            latency.micros(1),
            latency.micros(3),
            "a time before the sample does not change the average"
        );
    }
}

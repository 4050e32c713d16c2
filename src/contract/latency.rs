//! A moving average of an endpoint's response times, in one atomic word.
//!
//! Invariant: no reader waits and no writer retries. Two writers at the same moment lose one of the
//! two samples, and nothing else. `proxy/balancer.rs` decides how a pick uses the average.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A moving average of response times in one word. The upper 32 bits are the average in
/// microseconds. The lower 32 bits are the time of the last sample, by
/// [`millis`](crate::contract::clock::millis).
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    /// The average in microseconds; `None` before the first sample. The average fades with the age
    /// of its last sample, so that a slow endpoint is tried again.
    pub fn micros(&self, now_ms: u32) -> Option<u64> {
        let word = self.0.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let age = now_ms.saturating_sub(word as u32) / FADE_MS;
        Some((word >> 32) >> age.min(31))
    }

    /// Adds a sample with the weight of an eighth.
    pub fn record(&self, sample: Duration, now_ms: u32) {
        let sample = (sample.as_micros().min(u128::from(u32::MAX)) as u64).max(1);
        let average = match self.micros(now_ms) {
            Some(old) => (old * 7 + sample) / 8,
            None => sample,
        };
        self.0
            .store(average.max(1) << 32 | u64::from(now_ms), Ordering::Relaxed);
    }
}

/// An average halves in this time without a new sample, in milliseconds.
const FADE_MS: u32 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_follows_by_an_eighth_and_fades() {
        let latency = Latency::default();
        assert_eq!(latency.micros(1), None);
        latency.record(Duration::from_micros(8_000), 1);
        assert_eq!(latency.micros(1), Some(8_000));
        latency.record(Duration::from_micros(16_000), 2);
        assert_eq!(latency.micros(2), Some(9_000));
        assert_eq!(latency.micros(2 + FADE_MS), Some(4_500));
        assert_eq!(latency.micros(2 + 40 * FADE_MS), Some(0));
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

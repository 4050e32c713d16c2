//! Requests and connections that wait while nothing is usable: a bounded counter, the generation `watch`, and a pace.
//!
//! Invariant: never more than `limits.held` wait per service port, and everyone who leaves, however, frees its place.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// The waiting room of one service port, shared by all workers.
#[derive(Debug, Default)]
pub struct Hold {
    waiting: AtomicUsize,
    /// When the next one may go, in microseconds since [`START`].
    next: AtomicU64,
}

/// A place in the waiting room; dropping it frees the place.
#[derive(Debug)]
pub struct Place(Arc<Hold>);

impl Hold {
    /// A place, or `None` when all are taken.
    pub fn enter(self: &Arc<Self>, places: usize) -> Option<Place> {
        self.waiting
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                (n < places).then_some(n + 1)
            })
            .is_ok()
            .then(|| Place(self.clone()))
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// When this one may be let go, if `usable` endpoints share the rush: each gets one a millisecond.
    pub fn turn(&self, usable: usize, now: Instant) -> Instant {
        let now_us = now.saturating_duration_since(*START).as_micros() as u64;
        let step = PACE_US / usable.clamp(1, PACE_US as usize) as u64;
        // Turns taken in vain must not keep the next rush waiting: never further ahead than those who wait need.
        let furthest = now_us + self.waiting() as u64 * step;
        let clamp = |next: u64| next.clamp(now_us, furthest);
        let turn = self
            .next
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |next| {
                Some(clamp(next) + step)
            })
            .map_or(now_us, clamp);
        now + Duration::from_micros(turn - now_us)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const PACE_US: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_freed() {
        let hold = Arc::new(Hold::default());
        let first = hold.enter(2).unwrap();
        let _second = hold.enter(2).unwrap();
        assert!(hold.enter(2).is_none());
        drop(first);
        assert_eq!(hold.waiting(), 1);
        assert!(hold.enter(2).is_some());
    }

    #[test]
    fn one_endpoint_gets_one_a_millisecond_and_two_get_two() {
        for (usable, last) in [(1, 99), (2, 49)] {
            let hold = Arc::new(Hold::default());
            let _places: Vec<_> = (0..100).map(|_| hold.enter(100).unwrap()).collect();
            let now = *START + Duration::from_secs(1);
            let turns: Vec<_> = (0..100).map(|_| hold.turn(usable, now) - now).collect();
            assert_eq!(turns[0], Duration::ZERO);
            assert_eq!(turns[99].as_millis(), last);
        }
    }
}

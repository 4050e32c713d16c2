//! Requests and connections that are held while no endpoint is usable (contract 1.9): a bounded
//! counter, a pace for their release, and what wakes them when their Service changes.
//!
//! Invariant: at most `limits.held` requests and connections wait for one Service, over all its
//! ports and all workers. A request that stops waiting for any reason frees its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::contract::clock::micros;

/// The queue of one Service, shared by all its ports and by all workers.
#[derive(Debug, Default)]
pub struct Hold {
    waiting: AtomicUsize,
    /// How many others wait for their turn without a place.
    moving: AtomicUsize,
    /// When the next held request may be sent, in microseconds since the process began.
    next: AtomicU64,
    /// Wakes all tasks that wait for a change of the Service.
    changed: Arc<Notify>,
}

/// A place in the queue. Its drop frees the place.
#[derive(Debug)]
pub struct Place(Arc<Hold>);

/// Counts a client that waits for a turn and has a connect under way: it needs no place in the queue.
#[derive(Debug)]
pub struct Moving(Arc<Hold>);

impl Hold {
    /// Takes a place, or returns `None` if all `places` are taken.
    pub fn take_place(self: &Arc<Self>, places: usize) -> Option<Place> {
        let before = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                (n < places).then_some(n + 1)
            })
            .ok()?;
        if before == 0 {
            // Probes of this Service hurry from now on.
            self.wake();
        }
        Some(Place(self.clone()))
    }

    /// How many requests and connections are held now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Wakes everybody who waits for a change of the Service, or for its first held client.
    pub fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Completes at the first [`Hold::wake`] after this call, also if it is polled only later.
    pub fn changes(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    /// Counts a client that moves from an ejected endpoint to another one.
    pub fn move_on(self: &Arc<Self>) -> Moving {
        self.moving.fetch_add(1, Ordering::AcqRel);
        Moving(self.clone())
    }

    /// When a request that is held or moves on may be sent. `usable` endpoints share the release, and
    /// each of them gets one request a millisecond.
    pub fn turn(&self, usable: usize, now: Instant) -> Instant {
        let now_us = micros(now);
        let step = PACE_US / usable.clamp(1, PACE_US as usize) as u64;
        // A request that takes a turn and leaves must not delay later ones. So the next turn is
        // never further ahead than the requests that wait now need.
        let waiting = self.waiting() + self.moving.load(Ordering::Relaxed);
        let furthest = now_us + waiting as u64 * step;
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

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.moving.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Microseconds between two requests to one endpoint.
const PACE_US: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_freed() {
        let hold = Arc::new(Hold::default());
        let first = hold.take_place(2).unwrap();
        let _second = hold.take_place(2).unwrap();
        assert!(hold.take_place(2).is_none());
        drop(first);
        assert_eq!(hold.waiting(), 1);
        assert!(hold.take_place(2).is_some());
    }

    #[test]
    fn one_endpoint_gets_one_a_millisecond_and_two_get_two() {
        for (usable, last) in [(1, 99), (2, 49)] {
            let hold = Arc::new(Hold::default());
            let _places: Vec<_> = (0..100).map(|_| hold.take_place(100).unwrap()).collect();
            let now = Instant::now() + Duration::from_secs(1);
            let turns: Vec<_> = (0..100).map(|_| hold.turn(usable, now) - now).collect();
            assert_eq!(turns[0], Duration::ZERO);
            assert_eq!(turns[99].as_millis(), last);
        }
    }

    #[test]
    fn who_moves_on_takes_turns_with_the_held() {
        let hold = Arc::new(Hold::default());
        let _place = hold.take_place(1).unwrap();
        let moving: Vec<_> = (0..9).map(|_| hold.move_on()).collect();
        let now = Instant::now() + Duration::from_secs(1);
        let turns: Vec<_> = (0..10).map(|_| hold.turn(1, now) - now).collect();
        assert_eq!(turns[9].as_millis(), 9);
        drop(moving);
        assert!(
            hold.turn(1, now) - now <= Duration::from_millis(1),
            "nobody waits for them"
        );
    }
}

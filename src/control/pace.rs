//! The pace of work that is done again after changes, such as a plan of all routes.
//!
//! Invariant: it takes at most a part of a processor's time, and what changes in the meantime is made in
//! one go.

use std::time::{Duration, Instant};

/// When something is made next.
#[derive(Debug, Default)]
pub struct Pace {
    due: Option<Instant>,
    last: Option<(Instant, Duration)>,
    least: Duration,
}

impl Pace {
    /// The time from one beginning to the next is at least `least`.
    pub fn of(least: Duration) -> Self {
        Self {
            least,
            ..Self::default()
        }
    }

    /// Something has changed. What takes long is made less often.
    pub fn note(&mut self, now: Instant) {
        let at = self
            .last
            .map_or(now, |(at, took)| now.max(at + self.least.max(took * SHARE)));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When it is to be made; `None`: nothing has changed.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It is being made with all that has changed by now.
    pub fn begin(&mut self) {
        self.due = None;
    }

    /// When that was begun, and how long it took.
    pub fn took(&mut self, began: Instant, took: Duration) {
        self.last = Some((began, took));
        if self.due.is_some() {
            self.due = None;
            self.note(Instant::now());
        }
    }
}

/// One in this many parts of a processor's time.
const SHARE: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_made_less_often() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut pace = Pace::of(ms(100));
        assert_eq!(pace.due(), None);
        pace.note(now);
        assert_eq!(pace.due(), Some(now));
        pace.begin();
        pace.took(now, ms(1));
        assert_eq!(pace.due(), None);
        pace.note(now + ms(5));
        assert_eq!(pace.due(), Some(now + ms(100)));
        // More changes do not put it off.
        pace.note(now + ms(50));
        assert_eq!(pace.due(), Some(now + ms(100)));
        pace.begin();
        pace.took(now + ms(100), ms(50));
        pace.note(now + ms(150));
        assert_eq!(pace.due(), Some(now + ms(600)));
        // Long after the last, a change is taken in at once.
        pace.begin();
        pace.note(now + ms(900));
        assert_eq!(pace.due(), Some(now + ms(900)));
    }
}

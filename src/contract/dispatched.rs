//! How often something was dispatched to an endpoint, counted by each worker for itself.
//!
//! Invariant: a worker adds only to its own counter, so no two workers write the same word. The
//! lock is taken when a worker meets the endpoint for the first time, and by the one reader that
//! samples once a second; never for a request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::contract::counters::Counter;

/// The counters of one endpoint. Most endpoints of a cluster get nothing on a node, and pay two words.
#[derive(Debug, Default)]
pub struct Dispatched(Mutex<Option<Box<Inner>>>);

#[derive(Debug, Default)]
struct Inner {
    /// By the worker's index. Each worker makes its own, so that they do not share a cache line.
    workers: Vec<Option<Arc<Counter>>>,
    taken: u64,
}

impl Dispatched {
    /// The counter of this worker. Each call returns the same one.
    pub fn of_worker(&self, index: usize) -> Arc<Counter> {
        let mut inner = self.lock();
        let inner = inner.get_or_insert_default();
        if inner.workers.len() <= index {
            inner.workers.resize(index + 1, None);
        }
        inner.workers[index].get_or_insert_default().clone()
    }

    /// How much was dispatched since the last call. For one reader only.
    pub fn take(&self) -> u64 {
        let mut inner = self.lock();
        let Some(inner) = &mut *inner else {
            return 0;
        };
        let sum: u64 = inner.workers.iter().flatten().map(|it| it.get()).sum();
        sum - std::mem::replace(&mut inner.taken, sum)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Inner>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_workers_dispatched_is_taken_once() {
        let dispatched = Dispatched::default();
        let (two, zero) = (dispatched.of_worker(2), dispatched.of_worker(0));
        [&two, &two, &zero].iter().for_each(|it| it.inc());
        assert_eq!((dispatched.take(), dispatched.take()), (3, 0));
        assert_eq!(Dispatched::default().take(), 0);
        assert!(size_of::<Dispatched>() <= 16);
        dispatched.of_worker(2).inc();
        assert_eq!(
            dispatched.take(),
            1,
            "the counter outlives the worker's part"
        );
    }
}

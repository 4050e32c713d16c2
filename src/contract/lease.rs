//! The one word that decides whether an endpoint may be used: two flags and a count of leases in an `AtomicU64`.
//!
//! Invariant: once [`Word::begin_drain`] has returned, no lease is granted, and *drained* is reported exactly once, by
//! whoever sees the count at zero with DRAINING set. The file stands apart from `endpoint.rs` so that `tests/loom.rs`
//! can compile these very lines against loom's atomics (`super::sync`).

use super::sync::{AtomicU64, Ordering};

/// One-way: the endpoint leaves and never comes back.
const DRAINING: u64 = 1 << 63;
/// Reversible: gone from the slices, or not ready. Set at birth; an endpoint is let in once it has been connected to.
const OUT: u64 = 1 << 62;
const COUNT: u64 = OUT - 1;

/// What a transition found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// The caller is the one to report that the last lease of a draining endpoint is gone.
    Report,
    /// Not drained, or somebody else reports it.
    No,
}

/// State of an endpoint; see the module's invariant.
#[derive(Debug)]
pub struct Word(AtomicU64);

impl Word {
    /// An endpoint that is out: nothing may be dispatched to it yet.
    pub fn new_out() -> Self {
        Self(AtomicU64::new(OUT))
    }

    /// Takes a lease, unless the endpoint drains or is out. A compare-and-swap, so that a failed try leaves no trace
    /// for another thread to trip over (a `fetch_add` that backs out would report *drained* several times). Whoever is
    /// refused by a leaver sees the snapshot that was published before it was drained: hence the acquiring loads.
    #[must_use]
    pub fn enter(&self) -> bool {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if word & (DRAINING | OUT) != 0 {
                return false;
            }
            match self
                .0
                .compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Gives a lease back.
    pub fn leave(&self) -> Drained {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        if before & DRAINING != 0 && before & COUNT == 1 {
            Drained::Report
        } else {
            Drained::No
        }
    }

    /// Ends dispatch for good. Idempotent: only the first call may answer [`Drained::Report`].
    pub fn begin_drain(&self) -> Drained {
        let before = self.0.fetch_or(DRAINING, Ordering::AcqRel);
        if before & DRAINING == 0 && before & COUNT == 0 {
            Drained::Report
        } else {
            Drained::No
        }
    }

    /// Takes the endpoint out of rotation or lets it back in. Without effect on one that drains.
    pub fn set_out(&self, out: bool) {
        if out {
            self.0.fetch_or(OUT, Ordering::AcqRel);
        } else if self.0.load(Ordering::Relaxed) & OUT != 0 {
            // Asked of every endpoint at every change, and nearly always so already.
            self.0.fetch_and(!OUT, Ordering::AcqRel);
        }
    }

    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::Acquire) & DRAINING != 0
    }

    /// Neither draining nor out.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) & (DRAINING | OUT) == 0
    }

    pub fn leases(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & COUNT
    }
}

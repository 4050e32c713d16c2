//! The word that decides whether an endpoint may be used: two flags and a count of leases in one
//! `AtomicU64` (contract 1.1).
//!
//! Invariant: after [`Word::begin_drain`] has returned, no lease is granted. *Drained* is reported
//! exactly once, by the thread that sees the count at zero with DRAINING set.
//!
//! The file is separate from `endpoint.rs`, so that `tests/loom.rs` can compile it against loom's
//! atomics (`super::sync`).

use super::sync::{AtomicU64, Ordering};

/// The endpoint leaves and never comes back. Never cleared.
const DRAINING: u64 = 1 << 63;
/// The endpoint is out of rotation: no slice lists it, or it is not ready. Can be cleared. Set at
/// first, until the proxy has connected to the endpoint once.
const OUT: u64 = 1 << 62;
/// The bits that count the leases.
const COUNT: u64 = OUT - 1;

/// Whether a transition has to report that the endpoint is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// The caller has to report that the last lease of a draining endpoint is gone.
    Report,
    /// The endpoint is not drained, or another thread reports it.
    No,
}

/// State of an endpoint. See the module's invariant.
#[derive(Debug)]
pub struct Word(AtomicU64);

impl Word {
    /// The state of a new endpoint: out of rotation, without a lease.
    pub fn new_out() -> Self {
        Self(AtomicU64::new(OUT))
    }

    /// Takes a lease, unless the endpoint drains or is out of rotation. Returns whether it took
    /// one.
    ///
    /// This is a compare-and-swap, so that a failed attempt leaves no trace. A `fetch_add` that
    /// backs out could report *drained* several times. The loads acquire: a thread that is refused
    /// by a draining endpoint also sees the snapshot that was published before the drain.
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

    /// Takes a lease for what was dispatched before, by another process: also of an endpoint that drains
    /// or is out of rotation. Not if it has drained already, since that is reported only once.
    #[must_use]
    pub fn adopt(&self) -> bool {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if word & DRAINING != 0 && word & COUNT == 0 {
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

    /// Returns a lease.
    pub fn leave(&self) -> Drained {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        if before & DRAINING != 0 && before & COUNT == 1 {
            Drained::Report
        } else {
            Drained::No
        }
    }

    /// Ends dispatch for good. Idempotent: only the first call can return [`Drained::Report`].
    pub fn begin_drain(&self) -> Drained {
        let before = self.0.fetch_or(DRAINING, Ordering::AcqRel);
        if before & DRAINING == 0 && before & COUNT == 0 {
            Drained::Report
        } else {
            Drained::No
        }
    }

    /// Takes the endpoint out of rotation or lets it back in. No effect on an endpoint that drains.
    pub fn set_out(&self, out: bool) {
        if out {
            self.0.fetch_or(OUT, Ordering::AcqRel);
        } else if self.0.load(Ordering::Relaxed) & OUT != 0 {
            // Each change calls this for every endpoint, and OUT is nearly always clear already.
            // The load saves the write.
            self.0.fetch_and(!OUT, Ordering::AcqRel);
        }
    }

    /// Whether a drain has begun. It stays true.
    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::Acquire) & DRAINING != 0
    }

    /// Whether the endpoint neither drains nor is out of rotation.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) & (DRAINING | OUT) == 0
    }

    /// Leases that are held now.
    pub fn leases(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & COUNT
    }
}

//! When events have settled: what is to be done at the next pass, and when that is. Pure but for the clock.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// What is to be done at the next pass, and when that is.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// To be read.
    pub(super) ready: BTreeSet<OsString>,
    /// Between a write and its close: not to be read.
    pub(super) writing: HashSet<OsString>,
    /// Gone since; believed after [`REMOVAL`] of quiet.
    pub(super) removals: BTreeMap<OsString, Instant>,
    pub(super) swapped: bool,
    pub(super) folder: bool,
    pub(super) overflow: bool,
    /// Arrival of the first and the last event of the batch.
    pub(super) first: Option<Instant>,
    pub(super) last: Option<Instant>,
}

impl Pending {
    pub(super) fn reads_again(&mut self, name: OsString) {
        self.ready.insert(name);
        self.first.get_or_insert_with(Instant::now);
        self.last = Some(Instant::now());
    }

    pub(super) fn removes(&mut self, name: OsString, at: Instant) {
        self.removals.insert(name, at);
        self.first.get_or_insert(at);
    }

    /// When the next pass is due; `None` while there is nothing to do.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.ready.is_empty() && !self.swapped && !self.folder && !self.overflow {
            return self.removals_due();
        }
        let settled = self
            .last
            .map(|at| at + SETTLE)
            .zip(self.first.map(|at| at + SETTLE_AT_MOST));
        Some(settled.map_or_else(Instant::now, |(settled, at_most)| settled.min(at_most)))
    }

    /// Removals wait for each other: a folder's removal begins with that of its files.
    fn removals_due(&self) -> Option<Instant> {
        let quiet = *self.removals.values().max()? + REMOVAL;
        let at_most = *self.removals.values().min()? + REMOVAL_AT_MOST;
        Some(quiet.min(at_most))
    }

    pub(super) fn due_removals(&mut self) -> BTreeSet<OsString> {
        if self.removals_due().is_none_or(|due| Instant::now() < due) {
            return BTreeSet::new();
        }
        std::mem::take(&mut self.removals).into_keys().collect()
    }
}

/// A batch is complete when this long has passed without another event …
pub(super) const SETTLE: Duration = Duration::from_millis(3);

/// … or this long since its first.
pub(super) const SETTLE_AT_MOST: Duration = Duration::from_millis(15);

/// How long a file must be gone: editors remove and write anew, and removing a folder begins with its files.
pub(super) const REMOVAL: Duration = Duration::from_millis(20);

pub(super) const REMOVAL_AT_MOST: Duration = Duration::from_millis(100);

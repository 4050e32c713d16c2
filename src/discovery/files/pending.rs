//! The work of the next pass over the folder, and the time when that pass is due.
//!
//! Invariant: a file between a write and its close is not read. Nothing here does input or output;
//! only the clock is read.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// The work of the next pass.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Files to read.
    pub(super) ready: BTreeSet<OsString>,
    /// Files between a write and its close. They are not read.
    pub(super) writing: HashSet<OsString>,
    /// Files that are gone, and since when. A removal is believed after [`REMOVAL`] of quiet.
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

    /// When the removals are due. They wait for each other, because the removal of a folder begins
    /// with its files.
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

/// A batch is complete when no event has come for this long.
pub(super) const SETTLE: Duration = Duration::from_millis(3);

/// A batch is complete this long after its first event, even if more events come.
pub(super) const SETTLE_AT_MOST: Duration = Duration::from_millis(15);

/// A file must be gone this long, because editors remove a file and write it again, and the removal
/// of a folder begins with its files.
pub(super) const REMOVAL: Duration = Duration::from_millis(20);

/// The removals of a batch are believed this long after the first, even if more files go.
pub(super) const REMOVAL_AT_MOST: Duration = Duration::from_millis(100);

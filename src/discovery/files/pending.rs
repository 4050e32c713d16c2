//! When events have settled: what is to be done at the next pass, and when that is. Pure but for the clock and one look at
//! whether a new name is a link.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::discovery::files::event::{Event, What};
use crate::discovery::files::folder::Folder;

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
    pub(super) fn take(&mut self, event: Event, folder: &Folder) {
        match event.what {
            What::Writing(name) => {
                self.ready.remove(&name);
                self.removals.remove(&name);
                self.writing.insert(name);
                return;
            }
            What::Closed(name) => {
                self.writing.remove(&name);
                self.removals.remove(&name);
                self.ready.insert(name);
            }
            What::Created(name) => {
                self.removals.remove(&name);
                // Links are never closed; a regular file will be.
                let metadata = fs::symlink_metadata(folder.path.join(&name));
                if !metadata.is_ok_and(|it| it.is_symlink() || it.nlink() > 1) {
                    return;
                }
                self.ready.insert(name);
            }
            What::Gone(name) => {
                self.writing.remove(&name);
                self.ready.remove(&name);
                self.removes(name, event.at);
            }
            What::Touched(name) => {
                let is_broken = folder.files.get(&name).is_some_and(|file| file.error.is_some());
                if !is_broken || self.writing.contains(&name) {
                    return;
                }
                self.ready.insert(name);
            }
            What::Swapped => self.swapped = true,
            What::Folder => self.folder = true,
            What::Overflow => self.overflow = true,
        }
        self.first.get_or_insert(event.at);
        self.last = Some(event.at);
    }

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
        let settled = self.last.map(|at| at + SETTLE).zip(self.first.map(|at| at + SETTLE_AT_MOST));
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
const SETTLE: Duration = Duration::from_millis(3);

/// … or this long since its first.
const SETTLE_AT_MOST: Duration = Duration::from_millis(15);

/// How long a file must be gone: editors remove and write anew, and removing a folder begins with its files.
const REMOVAL: Duration = Duration::from_millis(20);

const REMOVAL_AT_MOST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn told(events: &[(u64, What)]) -> (Pending, Instant) {
        let (mut pending, start) = (Pending::default(), Instant::now());
        for (at, what) in events {
            let what = match what {
                What::Closed(name) => What::Closed(name.clone()),
                What::Writing(name) => What::Writing(name.clone()),
                What::Gone(name) => What::Gone(name.clone()),
                _ => What::Swapped,
            };
            let event = Event { what, at: start + Duration::from_millis(*at) };
            pending.take(event, &Folder::new(Path::new("/nowhere")));
        }
        (pending, start)
    }

    fn due_ms(events: &[(u64, What)]) -> Option<u128> {
        let (pending, start) = told(events);
        pending.due().map(|due| (due - start).as_millis())
    }

    #[test]
    fn a_batch_settles_but_not_for_ever() {
        let closed = |name: &str| What::Closed(name.into());
        assert_eq!(due_ms(&[]), None);
        assert_eq!(due_ms(&[(0, closed("a")), (2, closed("b"))]), Some(5));
        let stream: Vec<_> = (0..20).map(|at| (at * 2, closed("a"))).collect();
        assert_eq!(due_ms(&stream), Some(15));
    }

    #[test]
    fn a_file_written_again_after_its_close_waits_for_the_next() {
        let (closed, writing) = (|| What::Closed("a".into()), || What::Writing("a".into()));
        assert_eq!(due_ms(&[(0, closed()), (1, writing())]), None);
        assert_eq!(due_ms(&[(0, closed()), (1, writing()), (9, closed())]), Some(12));
    }

    #[test]
    fn a_removal_is_believed_after_20_ms_of_quiet_unless_the_file_returns() {
        let gone = |name: &str| What::Gone(name.into());
        assert_eq!(due_ms(&[(0, gone("a"))]), Some(20));
        assert_eq!(due_ms(&[(0, gone("a")), (15, gone("b"))]), Some(35), "a folder's removal begins with its files");
        let slow: Vec<_> = (0..20).map(|n| (n * 15, gone(&n.to_string()))).collect();
        assert_eq!(due_ms(&slow), Some(100));
        assert_eq!(due_ms(&[(0, gone("a")), (9, What::Closed("a".into()))]), Some(12));
        let (pending, _) = told(&[(0, gone("a")), (9, What::Writing("a".into()))]);
        assert_eq!((pending.due(), pending.removals.len()), (None, 0));
    }
}

//! What the kernel tells of a folder, reduced to what matters.

use std::ffi::OsString;
use std::time::Instant;

/// What inotify told.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) what: What,
    pub(super) at: Instant,
}

#[derive(Debug, PartialEq)]
pub(super) enum What {
    /// Closed by its writer, or renamed into place.
    Closed(OsString),
    /// Written to, not closed yet.
    Writing(OsString),
    Created(OsString),
    Gone(OsString),
    /// Its metadata changed, which may have made it readable.
    Touched(OsString),
    /// A ConfigMap's `..data` was replaced.
    Swapped,
    /// The folder itself came, went, or became another.
    Folder,
    /// Events were lost.
    Overflow,
}

//! The kernel's events of a folder, reduced to what the source needs. How events become reads is in
//! `folder.rs` and `pending.rs`.

use std::ffi::OsString;
use std::time::Instant;

/// An event of inotify and its arrival.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) what: Seen,
    pub(super) at: Instant,
}

#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    /// The writer closed the file, or the file was renamed into place.
    Closed(OsString),
    /// The file was written to and is not closed yet.
    Writing(OsString),
    Created(OsString),
    Gone(OsString),
    /// The file's metadata changed, so it may be readable now.
    Touched(OsString),
    /// A ConfigMap's `..data` was replaced.
    Swapped,
    /// The folder itself was created, removed or replaced.
    Folder,
    /// The kernel lost events.
    Overflow,
}

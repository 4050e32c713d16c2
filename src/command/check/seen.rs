//! What `check` read from a source: its objects, its problems and warnings about both.

use std::time::SystemTime;

use crate::discovery::object::Object;
use crate::discovery::source::Problem;

/// The contents of a source, read once.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The lines that name the source. Empty if the source could not be read at all; then there is
    /// nothing to show.
    pub(super) heading: String,
    pub(super) objects: Vec<Object>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<Problem>,
}

impl Seen {
    pub(super) fn problem(&mut self, subject: &str, error: String) {
        self.problems
            .push(Problem::new(subject, &error, SystemTime::now()));
    }
}

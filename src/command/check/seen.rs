//! What `check` saw of a source.

use crate::discovery::object::Object;
use crate::discovery::source::Problem;

/// What a source told.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Where it was found; empty where it could not be asked at all, and there is nothing to show.
    pub(super) heading: String,
    pub(super) objects: Vec<Object>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<Problem>,
}

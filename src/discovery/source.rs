//! The messages that a source sends to the control loop.
//!
//! Invariant: the control loop applies one [`Message::Changes`] as a whole before it publishes
//! anything.

use std::time::{Instant, SystemTime};

use crate::discovery::object::Change;
use crate::text::one_line;

/// A message from a source to the control loop.
#[derive(Debug)]
pub enum Message {
    /// Changes that arrived together. They are applied as a whole before anything is published.
    Changes {
        /// When the first of the changes arrived.
        received: Instant,
        /// The changes in the order in which they are applied.
        changes: Vec<Change>,
    },
    /// The first complete list has been sent. An empty list counts.
    Synced,
    /// The whole list of the source's problems as it is now. It is empty when the source is in
    /// order again.
    Problems(Vec<Problem>),
}

/// Something that a source cannot read. The last good state stays in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, folder or watch that has the problem.
    pub subject: String,
    /// One line: what is wrong, where, and how to correct it.
    pub error: String,
    /// When the problem was first seen.
    pub since: SystemTime,
}

impl Problem {
    /// Makes a problem. Control characters become spaces, because names of files and messages of
    /// servers may contain anything.
    pub fn new(subject: &str, error: &str, since: SystemTime) -> Self {
        Self {
            subject: one_line(subject),
            error: one_line(error),
            since,
        }
    }
}

//! What a source tells the control loop.

use std::time::{Instant, SystemTime};

use crate::discovery::object::Change;
use crate::text::one_line;

/// What a source tells the control loop. One `Changes` is applied whole before anything is published.
#[derive(Debug)]
pub enum Message {
    Changes {
        received: Instant,
        changes: Vec<Change>,
    },
    /// The first complete list has been sent; an empty one counts.
    Synced,
    /// The source's problems as they stand now (the whole list; empty when all is well again).
    Problems(Vec<Problem>),
}

/// Something that a source could not read; the last good state stays in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, folder or API that is broken.
    pub subject: String,
    /// One line: what is wrong, where, and the cure.
    pub error: String,
    pub since: SystemTime,
}

impl Problem {
    /// Names of files and words of servers may hold anything.
    pub fn new(subject: &str, error: &str, since: SystemTime) -> Self {
        Self {
            subject: one_line(subject),
            error: one_line(error),
            since,
        }
    }
}

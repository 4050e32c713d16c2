//! Faults of a configuration: the file, the line, the field and what was expected.
//!
//! Invariant: the text of a fault is one line. How the process exits is in `main.rs`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::expected::Lacks;
use crate::config::places::{Aim, Places};
use crate::text::one_line;

/// A fault of a configuration file: one line that names the file, the field's path and what was
/// expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {}{}{what}", .file.display(), .line.map(|l| format!(":{l}")).unwrap_or_default(), .path, if .path.is_empty() { "" } else { ": " })]
pub struct Error {
    /// The configuration file.
    pub file: PathBuf,
    /// The line, counted from 1. `None` if the whole file is at fault or a field is absent.
    pub line: Option<u64>,
    /// The path of the field, for example `listeners[0].address`. Empty if the whole document is at
    /// fault.
    pub path: String,
    /// What is wrong and what was expected.
    pub what: String,
}

/// Why a command refused to start (exit code 2). Nothing has been started or made.
#[derive(Debug, thiserror::Error)]
#[error("{subject}: {what}")]
pub struct Refused {
    subject: &'static str,
    what: String,
}

impl Refused {
    /// `subject` is the field, flag or command. `what` says what is wrong and how to correct it.
    pub fn new(subject: &'static str, what: impl Into<String>) -> Self {
        Self {
            subject,
            what: what.into(),
        }
    }
}

/// A fault before its file and line are known.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: String,
    /// Line and column, where the parser gives them, and which field at that place is meant.
    pub(super) at: Option<((u64, u64), Aim)>,
    pub(super) what: String,
    pub(super) lacks: Lacks,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            at: None,
            what: what.into(),
            lacks: Lacks::Nothing,
        }
    }

    /// Adds the file and what is missing. The parser gives a place and no path; the checks give a
    /// path and no place. `schema` is made only for what a fault lacks.
    pub(super) fn placed(self, file: &Path, text: &str, schema: fn() -> Value) -> Error {
        let places = Places::of(text);
        let (line, path) = match self.at {
            Some((at, aim @ Aim::Absent(_))) => {
                let path = places.path_at(at, aim);
                (places.line_of(&path), path)
            }
            Some((at, aim)) => (Some(at.0), places.path_at(at, aim)),
            None => (places.line_of(&self.path), self.path),
        };
        Error {
            file: file.to_owned(),
            line,
            what: one_line(&(self.what + &self.lacks.of(&path, schema))),
            path: one_line(&path),
        }
    }
}

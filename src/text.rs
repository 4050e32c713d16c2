//! Text from outside (files, servers, clients), made fit to print.

use std::time::SystemTime;

use jiff::{Timestamp, Unit};

/// A moment as RFC 3339 shows it, to the millisecond. A clock beyond the year 9999 shows as its end.
pub fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at)
        .and_then(|at| at.round(Unit::Millisecond))
        .unwrap_or(Timestamp::MAX)
}

/// An error with its causes, in one line: the cause is often the only part that says something.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    one_line(&text)
}

/// Text of a manifest, a file's name or a server's answer, as one line that steers no terminal.
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

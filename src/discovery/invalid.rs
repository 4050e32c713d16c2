//! Values that the API server would refuse, wherever a field is read.

use std::time::Duration;

/// A field with a value that the API server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// The path of the field in its object.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// A port from 1 to 65535.
pub(super) fn port_number(number: i32, field: impl FnOnce() -> String) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Invalid {
            field: field(),
            message: format!("expected a port from 1 to 65535, found {number}"),
        }),
    }
}

/// A number of seconds; none for a negative one.
pub(super) fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.try_into().unwrap_or(0))
}

//! How one Service port is served: its protocol, its timeouts and what may be retried.

use std::fmt;
use std::time::Duration;

/// Configuration with the Service's annotations over it.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub hold_timeout: Duration,
    pub drain_timeout: Duration,
    pub attempts: u32,
    pub non_idempotent: NonIdempotent,
    pub join_check: bool,
}

/// A Service port by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortRef {
    Name(String),
    Number(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Auto,
    Http,
    Tcp,
}

/// When POST and PATCH may be sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonIdempotent {
    Never,
    IdempotencyKey,
    Always,
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

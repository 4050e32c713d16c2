//! Closed sets of reasons. Each is both a log field and a metric label.

/// Which signal came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    PodDeleted,
    SliceTerminating,
    Removed,
}

impl Trigger {
    pub const ALL: [Self; 3] = [Self::PodDeleted, Self::SliceTerminating, Self::Removed];

    /// Metric label, log field and the admin API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodDeleted => "podDeleted",
            Self::SliceTerminating => "sliceTerminating",
            Self::Removed => "removed",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Drained,
    Forced,
}

impl Outcome {
    pub const ALL: [Self; 2] = [Self::Drained, Self::Forced];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Forced => "forced",
        }
    }
}

/// Why a client connection ended: log field and metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client ended it, at a boundary.
    ClientClosed,
    /// The client reset it or went away in the middle of something.
    ClientReset,
    /// Idle, or its head incomplete, for too long.
    ClientTimeout,
    /// The upstream ended it, properly.
    UpstreamClosed,
    /// The upstream reset it or failed in the middle of something.
    UpstreamReset,
    /// HTTP keep-alive ended by what was agreed (`Connection: close`, HTTP/1.0).
    Completed,
    /// What the client sent was refused (4xx, then close).
    BadRequest,
    /// Nothing to dispatch to within the hold time.
    NoEndpoint,
    /// Cut at an endpoint's drain deadline.
    DrainDeadline,
    /// This process shuts down.
    Shutdown,
    /// The listener's PROXY header was missing or wrong.
    BadProxyHeader,
}

impl CloseReason {
    pub const ALL: [Self; 11] = [
        Self::ClientClosed,
        Self::ClientReset,
        Self::ClientTimeout,
        Self::UpstreamClosed,
        Self::UpstreamReset,
        Self::Completed,
        Self::BadRequest,
        Self::NoEndpoint,
        Self::DrainDeadline,
        Self::Shutdown,
        Self::BadProxyHeader,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ClientReset => "client_reset",
            Self::ClientTimeout => "client_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamReset => "upstream_reset",
            Self::Completed => "completed",
            Self::BadRequest => "bad_request",
            Self::NoEndpoint => "no_endpoint",
            Self::DrainDeadline => "drain_deadline",
            Self::Shutdown => "shutdown",
            Self::BadProxyHeader => "bad_proxy_header",
        }
    }
}

/// Why something was tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// Connect failed, nothing written.
    Connect,
    /// A reused connection turned out to be closed.
    Stale,
    /// Written, then lost.
    Replay,
}

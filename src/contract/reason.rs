//! Closed sets of reasons. Each reason is both a log field and a metric label.
//!
//! Invariant: the order of the variants is the order of the metric arrays in
//! [`crate::contract::counters`]. A reason is never made from a string.

/// The signal that began a drain. Of several signals, the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The Pod has a `deletionTimestamp`, or the Pod object is gone.
    PodDeleted,
    /// A slice says `terminating: true`.
    SliceTerminating,
    /// No slice lists the endpoint any more, and its pod is not known.
    Removed,
}

impl Trigger {
    /// All triggers, in the order of the metric arrays.
    pub const ALL: [Self; 3] = [Self::PodDeleted, Self::SliceTerminating, Self::Removed];

    /// The word in metric labels, log fields and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodDeleted => "podDeleted",
            Self::SliceTerminating => "sliceTerminating",
            Self::Removed => "removed",
        }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All connections and requests ended before the deadline.
    Drained,
    /// Something was cut at the drain deadline.
    Forced,
}

impl Outcome {
    /// All outcomes, in the order of the metric arrays.
    pub const ALL: [Self; 2] = [Self::Drained, Self::Forced];

    /// The word in metric labels, log fields and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Forced => "forced",
        }
    }
}

/// What a `grpc-status` says of who failed, as OpenTelemetry's conventions for servers have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcClass {
    /// 0.
    Ok,
    /// The caller: such as CANCELLED, NOT_FOUND or UNAUTHENTICATED.
    Client,
    /// The application: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, and
    /// what is no status.
    Server,
}

impl GrpcClass {
    /// All classes, in the order of the metric arrays.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Client, Self::Server];

    /// The class of a status.
    pub fn of(status: u8) -> Self {
        match status {
            0 => Self::Ok,
            1 | 3 | 5..=11 | 16 => Self::Client,
            _ => Self::Server,
        }
    }

    /// The value of the label `class`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Why a client connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client ended it at a boundary between messages.
    ClientClosed,
    /// The client reset it, or left in the middle of a message.
    ClientReset,
    /// The client was idle, or its head incomplete, or a TCP connection without a byte, for too long.
    ClientTimeout,
    /// The endpoint ended it properly.
    UpstreamClosed,
    /// The endpoint reset it, or failed in the middle of a message.
    UpstreamReset,
    /// HTTP keep-alive ended as agreed (`Connection: close`, HTTP/1.0).
    Completed,
    /// The client's request was refused (4xx, then close).
    BadRequest,
    /// No endpoint was usable within the hold time.
    NoEndpoint,
    /// It was cut at an endpoint's drain deadline.
    DrainDeadline,
    /// This process shuts down.
    Shutdown,
    /// The listener requires a PROXY header, and it was missing or wrong.
    BadProxyHeader,
    /// The listener ends TLS, and the handshake failed.
    BadHandshake,
    /// It has passed to the process that replaces this one. The client's connection goes on.
    HandedOver,
}

impl CloseReason {
    /// All reasons, in the order of the metric arrays.
    pub const ALL: [Self; 13] = [
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
        Self::BadHandshake,
        Self::HandedOver,
    ];

    /// The word in metric labels and in the access log.
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
            Self::BadHandshake => "bad_handshake",
            Self::HandedOver => "handed_over",
        }
    }
}

/// Why a datagram of a client, or an answer, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// No endpoint was usable within the hold time.
    NoEndpoint,
    /// The datagrams that are held for the client, or for the Service, are as many as are allowed.
    HeldFull,
    /// There was no place for another session.
    NoSession,
    /// The kernel did not take it: its buffer was full, or the datagram was too long.
    NotSent,
}

impl DropReason {
    /// All reasons, in the order of the metric arrays.
    pub const ALL: [Self; 4] = [
        Self::NoEndpoint,
        Self::HeldFull,
        Self::NoSession,
        Self::NotSent,
    ];

    /// The word in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::HeldFull => "held_full",
            Self::NoSession => "no_session",
            Self::NotSent => "not_sent",
        }
    }
}

/// Why a connect or a request was tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// The connect failed, and nothing was written.
    Connect,
    /// A reused connection turned out to be closed.
    Stale,
    /// The request was written, and then its endpoint was lost.
    Replay,
}

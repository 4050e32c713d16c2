//! The words of HTTP: method, version, framing, limits, and what a parsed head says.

/// Bounds of a head: bytes up to and with its empty line, and field lines (at most [`MAX_HEADERS`]).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub head_size: usize,
    pub headers: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    H10,
    H11,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Get,
    Head,
    Options,
    Trace,
    Put,
    Delete,
    Post,
    Patch,
    Connect,
    Other,
}

impl Method {
    pub(super) fn new(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "POST" => Self::Post,
            "PATCH" => Self::Patch,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// RFC 9110 section 9.2.2. A method that we do not know is not.
    pub fn is_idempotent(self) -> bool {
        matches!(
            self,
            Self::Get | Self::Head | Self::Options | Self::Trace | Self::Put | Self::Delete
        )
    }
}

/// How long a body is (RFC 9112 section 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    None,
    /// Bytes.
    Counted(u64),
    Chunked,
    /// Responses only.
    UntilClose,
}

/// A message that is refused. After it the connection cannot be used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reject {
    /// What to answer: 400, 431, 501 or 505 for a client's fault, 502 for an upstream's.
    pub status: u16,
    /// For `x-ebbtide-reason`: one of a closed set of snake_case words.
    pub reason: &'static str,
}

impl Reject {
    pub(super) const fn bad(reason: &'static str) -> Self {
        Self {
            status: 400,
            reason,
        }
    }

    pub(super) fn of_upstream(self) -> Self {
        Self {
            status: 502,
            ..self
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub method: Method,
    pub version: Version,
    /// Forwarded as it is: a chunked body is emitted with [`Emit::Chunked`].
    pub framing: Framing,
    /// What the client asked for.
    pub keep_alive: bool,
    /// Forwarded as a request to upgrade. Never with a body, which would have to be read before the protocol changes.
    pub upgrade: bool,
    pub expect_continue: bool,
    /// `If-Match`, `If-None-Match` or `If-Unmodified-Since` is forwarded.
    pub conditional: bool,
    /// `Idempotency-Key` is forwarded.
    pub idempotency_key: bool,
    /// Bytes of the input that the head took.
    pub consumed: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    pub status: u16,
    pub version: Version,
    /// How the upstream ends the body; by method and status first: HEAD, 1xx, 204, 304 and a tunnel have none.
    pub framing: Framing,
    /// How the body goes to the client, as the head that was written says.
    pub emit: Emit,
    /// The upstream connection may be used again after the body.
    pub keep_alive: bool,
    /// The client's connection ends after this response, because nothing else can end its body.
    pub client_close: bool,
    /// A tunnel follows: an answered upgrade (the caller knows whether it was asked for) or a CONNECT that succeeded.
    pub upgrade: bool,
    /// Bytes of the input that the head took.
    pub consumed: usize,
}

/// How a body is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    /// The payload alone: counted, ended by close, or decoded for a 1.0 client (who gets no trailers).
    Identity,
    /// Canonical chunks, then the validated trailers.
    Chunked,
}

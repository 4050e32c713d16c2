//! The terms of HTTP/1: method, version, framing, limits, and what a parsed head says. Only types
//! are here. The parsers are in `head.rs`, `fields.rs` and `body.rs`.

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head, including its empty line.
    pub head_size: usize,
    /// Field lines of a head, at most [`MAX_HEADERS`](crate::wire::fields::MAX_HEADERS). The
    /// configuration refuses a larger value.
    pub headers: usize,
}

/// The HTTP version of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0.
    H10,
    /// HTTP/1.1.
    H11,
}

/// The request methods that the retry and framing rules tell apart. Names are case-sensitive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// `GET`.
    Get,
    /// `HEAD`. Its response has no body.
    Head,
    /// `OPTIONS`.
    Options,
    /// `TRACE`.
    Trace,
    /// `PUT`.
    Put,
    /// `DELETE`.
    Delete,
    /// `POST`.
    Post,
    /// `PATCH`.
    Patch,
    /// `CONNECT`. A 2xx response makes the connection a tunnel.
    Connect,
    /// Any other method. It is never replayed.
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

    /// Whether the method is idempotent (RFC 9110 section 9.2.2). An unknown method is not.
    pub fn is_idempotent(self) -> bool {
        matches!(
            self,
            Self::Get | Self::Head | Self::Options | Self::Trace | Self::Put | Self::Delete
        )
    }
}

/// How the end of a body is found (RFC 9112 section 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is no body.
    None,
    /// The body has this many bytes.
    Counted(u64),
    /// The body is chunked.
    Chunked,
    /// The end of the connection ends the body. Responses only.
    UntilClose,
}

/// Why a message is refused. Its connection cannot be used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reject {
    /// The status of the response: 400, 414, 431, 501 or 505 for a client's fault, 502 for an
    /// endpoint's.
    pub status: u16,
    /// The value of `x-ebbtide-reason`: one of a closed set of snake_case words.
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

/// What the proxy needs to know of a request head that it forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The request's method.
    pub method: Method,
    /// The client's HTTP version.
    pub version: Version,
    /// How the body ends. It is forwarded with the same framing: a chunked body is written with
    /// [`Emit::Chunked`].
    pub framing: Framing,
    /// Whether the client wants to keep its connection open.
    pub keep_alive: bool,
    /// Whether the request is forwarded as a request to upgrade. This never has a body, because the
    /// body would have to be read before the protocol changes.
    pub upgrade: bool,
    /// Whether `Expect: 100-continue` is forwarded.
    pub expect_continue: bool,
    /// Whether `If-Match`, `If-None-Match` or `If-Unmodified-Since` is forwarded. A change with
    /// such a condition is not replayed (contract 3.3).
    pub conditional: bool,
    /// Whether `Idempotency-Key` is forwarded.
    pub idempotency_key: bool,
    /// Whether the forwarded credentials authenticate the connection, and not this request alone
    /// (contract 1.13).
    pub binds: bool,
    /// Bytes of the input that the head took.
    pub consumed: usize,
}

/// What the proxy needs to know of a response head that it forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The endpoint's HTTP version.
    pub version: Version,
    /// How the body that the endpoint sends ends. Method and status decide first: HEAD, 1xx, 204,
    /// 304 and a tunnel have no body.
    pub framing: Framing,
    /// How the body is written to the client, as the head for the client says.
    pub emit: Emit,
    /// Whether the connection to the endpoint may be used again after the body.
    pub keep_alive: bool,
    /// Whether the client's connection ends after this response, because nothing else can end its
    /// body.
    pub client_close: bool,
    /// Whether a tunnel follows: after a 101, or after a CONNECT that succeeded. The caller knows
    /// whether the client asked for an upgrade.
    pub upgrade: bool,
    /// The `grpc-status`, where the response is one of gRPC without a message.
    pub grpc_status: Option<u8>,
    /// Whether the endpoint offers to authenticate the connection, or goes on to do so (contract
    /// 1.13).
    pub binds: bool,
    /// Bytes of the input that the head took.
    pub consumed: usize,
}

/// How a body is written to its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    /// The payload alone. Its length is known, or the end of the connection ends it, or it is
    /// decoded for an HTTP/1.0 client, which gets no trailers.
    Identity,
    /// Canonical chunks, then the validated trailers.
    Chunked,
}

impl Response {
    /// Whether the application says that it cannot serve the request now.
    pub fn is_unavailable(&self) -> bool {
        self.status == 503 || self.grpc_status == Some(UNAVAILABLE)
    }
}

/// The `grpc-status` of that name.
const UNAVAILABLE: u8 = 14;

//! The state of a request and its response while they are forwarded: `Exchange` over all attempts,
//! and `Attempt` for one of them.
//!
//! Invariant: state of the request, and of what the client has received, is in `Exchange` and
//! outlives a lost attempt. All other state is in `Attempt`, and each attempt begins with a new
//! one. In both, fields are grouped by the direction that writes them.
//!
//! Leaves out the retry policy ([`crate::proxy::http::attempts`]) and the transfer of bytes
//! ([`crate::proxy::http::transfer`]).

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::time::Sleep;

use crate::config::settings::Config;
use crate::contract::endpoint::Lease;
use crate::contract::reason::CloseReason;
use crate::net::pipe::{Lent, SPLICE_MIN};
use crate::net::turns::Turn;
use crate::proxy::client::Client;
use crate::proxy::http::bound::{Bound, Tie};
use crate::proxy::http::route::Way;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::{Routed, Worker};
use crate::wire::body::BodyDecoder;
use crate::wire::buffer::{BUFFER_MAX, SCRATCH};
use crate::wire::message::{self, Emit, Framing, Method, Reject, Request, Response};

/// What becomes of the client's connection after an exchange.
pub enum End {
    /// The next request may come.
    KeepAlive,
    /// Close.
    Close(CloseReason),
    /// Close, but let the client finish sending first.
    Linger(CloseReason),
    /// Close in the middle of a response, so that the client does not take what it got for complete.
    Cut {
        /// What ended it.
        reason: CloseReason,
        /// The response's framing tells that something is missing, so a close is enough. Otherwise
        /// it must be a reset.
        framed: bool,
    },
    /// Client and endpoint are joined byte for byte.
    Tunnel {
        /// The right to the endpoint.
        lease: Lease,
        /// The connection to the endpoint.
        upstream: Box<Upstream>,
        /// Bytes from the endpoint that the client has not received yet.
        down: Vec<u8>,
    },
}

/// One request and its response, over all attempts.
pub(super) struct Exchange<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) client: &'a mut Client,
    /// The connection that belongs to the client, between its requests.
    pub(super) bound: &'a mut Option<Box<Bound>>,
    pub(super) config: Rc<Config>,
    pub(super) limits: message::Limits,
    /// The service port, as of the newest attempt.
    pub(super) port: Rc<Routed>,
    pub(super) request: Request,
    /// What its route asks for, if a route has led it here and asks for something.
    pub(super) way: Option<Box<Way>>,
    pub(super) upload: Upload,
    pub(super) reply: Reply,
    /// When the client last sent or took something.
    pub(super) client_moved: Instant,
    /// When the whole response had been written.
    pub(super) ended: Option<Instant>,
    /// For the access log, where there is one.
    pub(super) logged: Option<Box<Logged>>,
}

/// The request: what was received of it and can be sent.
pub(super) struct Upload {
    /// The canonical head, then the body as it is forwarded: all of it while `whole`, else what is
    /// still to be written.
    pub(super) sent: Vec<u8>,
    pub(super) head_len: usize,
    /// Every byte received so far is still in `sent`.
    pub(super) whole: bool,
    /// The body is kept for as long as it fits: the request may run twice, or an endpoint may say that it
    /// has not begun it.
    pub(super) keeps: bool,
    /// The request may run twice, see [`crate::proxy::http::replay::is_repeatable`].
    pub(super) repeatable: bool,
    /// The most payload that may come in chunks.
    pub(super) most: u64,
    pub(super) body: BodyDecoder,
}

/// The response: what the client has received, and what it is still to receive.
pub(super) struct Reply {
    /// What is still to be written, the first `interim` bytes of it 1xx heads.
    pub(super) bytes: Vec<u8>,
    /// How many of `bytes` are written.
    pub(super) written: usize,
    pub(super) interim: usize,
    /// A byte of the final response has reached the client.
    pub(super) passed: bool,
    /// The client has received `100 Continue`, or will.
    pub(super) continued: bool,
    /// The response's framing shows the client where it ends.
    pub(super) framed: bool,
    /// The final head that was passed on says that the connection ends.
    pub(super) told_close: bool,
    /// How many 1xx responses came.
    pub(super) interims: u32,
    pub(super) bytes_out: u64,
    /// 0 until there is a final response.
    pub(super) status: u16,
    /// The endpoint's `grpc-status`.
    pub(super) grpc_status: Option<u8>,
}

/// What the access log needs of a request. It is a copy, because the head is gone when a long body
/// has been passed on.
pub(super) struct Logged {
    pub(super) request_line: Vec<u8>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) attempts: u32,
    pub(super) reason: Option<&'static str>,
}

/// One attempt: a connection to an endpoint, and what went over it.
pub(super) struct Attempt {
    pub(super) upstream: Upstream,
    /// The connection has carried another request before.
    pub(super) reused: bool,
    /// Why it belongs to this client, if it does.
    pub(super) tie: Option<Tie>,
    pub(super) began: Instant,
    /// The connection may not be used again: bytes beyond the response, an end, or a write error.
    pub(super) spent: bool,
    /// Whether readiness of the client's socket still says something new.
    pub(super) watch_client: bool,
    /// When to ask next whether a client is still there that has sent more than is read.
    pub(super) look: Option<Pin<Box<Sleep>>>,
    pub(super) up: Up,
    pub(super) down: Down,
}

/// One attempt's direction from the client to the endpoint.
#[derive(Default)]
pub(super) struct Up {
    /// How many bytes of [`Upload::sent`] are written.
    pub(super) written: usize,
    /// A byte of the request was written.
    pub(super) wrote: bool,
    /// All is written, or the endpoint takes no more.
    pub(super) over: bool,
    /// A write failed. It has taken the socket's error, so a read would now report an end where
    /// there was a reset. Or the endpoint has vanished.
    pub(super) failed: bool,
    /// The client's end was passed on.
    pub(super) ended: bool,
    pub(super) flow: Flow,
    /// For a long body.
    pub(super) lent: Option<Lent>,
}

/// One attempt's direction from the endpoint to the client.
pub(super) struct Down {
    /// The beginning of a head, or a tunnel's first bytes.
    pub(super) inbuf: Vec<u8>,
    /// The answer is the client's, whatever its status.
    pub(super) is_settled: bool,
    /// The final response's head.
    pub(super) response: Option<Response>,
    /// The endpoint has sent an interim response: it had the request.
    pub(super) had_interim: bool,
    pub(super) body: BodyDecoder,
    pub(super) emit: Emit,
    pub(super) flow: Flow,
    /// Until when a short response is withheld, so that it can still be replayed.
    pub(super) withhold: Option<Pin<Box<Sleep>>>,
    /// For a long body.
    pub(super) lent: Option<Lent>,
}

/// How much came in one direction, and the turn for more.
#[derive(Default)]
pub(super) struct Flow {
    /// The last read or pipe's fill took all it could, or much: there is more behind it.
    pub(super) full: bool,
    /// The last fill was small: what comes next is copied, until a read is full.
    pub(super) small: bool,
    pub(super) turn: Turn,
}

/// Why an attempt did not end in a whole answer.
pub(super) enum Lost {
    /// The connection to the endpoint ended or broke.
    Upstream {
        /// It was cut at the drain deadline, or at the end of the shutdown's grace.
        forced: bool,
        /// It was a reused connection that ended before anything of a response came.
        stale: bool,
    },
    /// The application says that it cannot serve the request now, and the Service says that another
    /// endpoint may be asked then.
    Unavailable,
    /// The answer has a status for which the route asks another endpoint. It is still to be read.
    Status,
    /// The attempt has taken longer than the route allows.
    Late,
    /// What the endpoint sent cannot be forwarded.
    BadResponse(Reject),
    /// What the client sent cannot be forwarded.
    BadBody(Reject),
    /// The client is gone, or too slow.
    Client(CloseReason),
    /// The request's own deadline has passed.
    Deadline,
}

impl Exchange<'_> {
    /// Whether the client's connection ends with a response that begins now. Three reasons: one
    /// side wants it, too much of the body would have to be read in vain, or a body that waits for
    /// `100 Continue` may never come (RFC 9110 section 10.1.1). The response's head announces the
    /// end (RFC 9112 section 9.6), so it is decided here and not when the body turns out too long.
    pub(super) fn is_last(&self) -> bool {
        let upload = &self.upload;
        let begun = !upload.whole || upload.sent.len() > upload.head_len || upload.body.is_done();
        let held_back = self.request.expect_continue && !self.reply.continued && !begun;
        let unread_body = !upload.body.is_done()
            && upload.body.remaining().map_or_else(
                || !rest_has_come(&upload.body, &self.client.unread, &self.config),
                |left| left > self.config.limits.replay_body as u64,
            );
        let passes = self.bound.is_none() && !self.request.binds && self.client.can_pass();
        let closing = self.worker.shared.closing.load(Ordering::Relaxed)
            && !(passes && self.worker.has_heir());
        let leaving = self.port.handing_back || closing;
        !self.request.keep_alive || leaving || held_back || unread_body
    }

    pub(super) fn is_tunnel(&self, response: &Response) -> bool {
        response.status == 101
            || (self.request.method == Method::Connect && (200..300).contains(&response.status))
    }

    /// How many bytes a read may take. It bounds what the exchange holds, even if the client or the
    /// endpoint takes nothing: about `SCRATCH` bytes. A read beyond that takes at most
    /// `ROOM_LEAST`.
    pub(super) fn room(&self, attempt: &Attempt) -> usize {
        let bodies = self.upload.body.held() + attempt.down.body.held();
        let held = self.client.unread.len()
            + self.upload.sent.len()
            + self.reply.bytes.len()
            + attempt.down.inbuf.len()
            + bodies;
        SCRATCH.saturating_sub(held).max(ROOM_LEAST)
    }
}

/// Whether a chunked body ends in what was read from the client, within the replay buffer. Nothing else
/// says how much of it is left.
pub(super) fn rest_has_come(body: &BodyDecoder, unread: &[u8], config: &Config) -> bool {
    let mut body = body.clone();
    let mut input = &unread[..unread.len().min(config.limits.replay_body)];
    let mut waste = Vec::new();
    while !body.is_done() {
        match body.decode(input, Emit::Identity, &mut waste) {
            Ok(n) if n > 0 => input = &input[n..],
            _ => return false,
        }
    }
    true
}

impl Upload {
    /// There will be no replay: gives up what was written, and a large buffer with it.
    pub(super) fn stop_keeping(&mut self, up: &mut Up) {
        self.whole = false;
        self.sent.drain(..up.written);
        up.written = 0;
        if self.sent.capacity() > BUFFER_MAX {
            self.sent.shrink_to_fit();
        }
    }
}

impl Reply {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            written: 0,
            interim: 0,
            passed: false,
            continued: false,
            framed: false,
            told_close: false,
            interims: 0,
            bytes_out: 0,
            status: 0,
            grpc_status: None,
        }
    }
}

impl Attempt {
    pub(super) fn new(upstream: Upstream, tie: Option<Tie>, limits: &message::Limits) -> Self {
        Self {
            reused: upstream.reused,
            upstream,
            tie,
            began: Instant::now(),
            spent: false,
            watch_client: true,
            look: None,
            up: Up::default(),
            down: Down {
                inbuf: Vec::new(),
                is_settled: false,
                response: None,
                had_interim: false,
                body: BodyDecoder::new(Framing::None, limits, 502),
                emit: Emit::Identity,
                flow: Flow::default(),
                withhold: None,
                lent: None,
            },
        }
    }
}

impl Flow {
    /// A read took this much of its room.
    pub(super) fn took(&mut self, read: usize, room: usize) {
        self.full = read == room;
        self.small &= !self.full;
    }

    /// A pipe's fill was this large.
    pub(super) fn filled(&mut self, n: usize) {
        self.full = n >= SPLICE_MIN;
        self.small = !self.full;
    }
}

/// How many bytes one read may take of a body whose remaining length is not known.
pub(super) fn decoded_at_once(body: &BodyDecoder) -> usize {
    if body.has_tiny_chunks() {
        TINY_CHUNKS
    } else {
        DECODED
    }
}

/// Whether enough of a counted body is left for splice, which moves it uncopied.
pub(super) fn is_long(body: &BodyDecoder, emit: Emit) -> bool {
    emit == Emit::Identity && body.remaining().is_some_and(|left| left >= SCRATCH as u64)
}

/// The least room of a read in bytes, even if the exchange already holds `SCRATCH` bytes or more.
pub(super) const ROOM_LEAST: usize = 4 << 10;
/// The most bytes of a chunked body that one read takes and decodes. A receiver that reads nothing
/// costs this much memory.
const DECODED: usize = 32 << 10;
/// The same for a body that consists of little but chunk lines.
const TINY_CHUNKS: usize = 4 << 10;

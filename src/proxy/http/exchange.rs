//! One request and its response: dispatched, forwarded both ways at once, and replayed where that is allowed.
//!
//! Invariants: nothing is replayed once a byte of a final response has reached the client; a request that may not be
//! repeated is written to one connection only; an answer is complete or visibly cut. The rules are in
//! [`crate::proxy::http::replay`], the way to a connection in [`crate::proxy::dispatch`].

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use tokio::time::Sleep;

use crate::config::settings::Config;
use crate::contract::endpoint::Lease;
use crate::contract::reason::CloseReason;
use crate::net::pipe::{Lent, SPLICE_MIN};
use crate::net::turns::Turn;
use crate::proxy::client::Client;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::{Routed, Worker};
use crate::wire::body::BodyDecoder;
use crate::wire::message;
use crate::wire::message::{Emit, Framing, Reject, Request, Response};

/// What becomes of the client's connection.
pub enum End {
    KeepAlive,
    Close(CloseReason),
    /// Close, but let the client finish sending first.
    Linger(CloseReason),
    /// Close by reset: the client must not take what it got for complete.
    Cut(CloseReason),
    Tunnel {
        lease: Lease,
        upstream: Box<Upstream>,
        down: Vec<u8>,
    },
}

/// What stays the same over all attempts.
pub(super) struct Exchange<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) client: &'a mut Client,
    pub(super) config: Rc<Config>,
    pub(super) limits: message::Limits,
    pub(super) port: Rc<Routed>,
    pub(super) request: Request,
    /// The canonical head, then the body as it is forwarded: all of it while `whole`, else what is still to be written.
    pub(super) sent: Vec<u8>,
    pub(super) head_len: usize,
    pub(super) written: usize,
    pub(super) whole: bool,
    pub(super) repeatable: bool,
    pub(super) body: BodyDecoder,
    pub(super) up: Flow,
    /// To the client: what is still to be written, the first `interim` bytes of it 1xx heads.
    pub(super) reply: Vec<u8>,
    pub(super) replied: usize,
    pub(super) interim: usize,
    /// A byte of the final response has reached the client.
    pub(super) passed: bool,
    pub(super) continued: bool,
    /// The final head that was passed on says that the connection ends.
    pub(super) told_close: bool,
    pub(super) interims: u32,
    pub(super) client_moved: Instant,
    pub(super) watch_client: bool,
    pub(super) bytes_out: u64,
    pub(super) status: u16,
    /// When the whole response had been written.
    pub(super) ended: Option<Instant>,
    /// For the access log, where there is one.
    pub(super) logged: Option<Box<Logged>>,
}

/// How much came one way, and the turn for more.
#[derive(Default)]
pub(super) struct Flow {
    /// The last read or pipe's fill took all it could, or much: more stands behind it.
    pub(super) full: bool,
    /// The last fill was small: what comes next is copied, until a read is full.
    pub(super) small: bool,
    pub(super) turn: Turn,
}

/// What the access log needs of a request, copied since the head is gone when a long body has been passed on.
pub(super) struct Logged {
    pub(super) request_line: Vec<u8>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) attempts: u32,
    pub(super) reason: Option<&'static str>,
}

/// What is new with every attempt.
pub(super) struct Attempt {
    pub(super) upstream: Upstream,
    pub(super) reused: bool,
    pub(super) began: Instant,
    pub(super) wrote: bool,
    pub(super) upload_over: bool,
    pub(super) inbuf: Vec<u8>,
    pub(super) response: Option<Response>,
    /// It has sent an interim response: it had the request.
    pub(super) heard: bool,
    pub(super) body: BodyDecoder,
    pub(super) down: Flow,
    pub(super) emit: Emit,
    pub(super) withhold: Option<Pin<Box<Sleep>>>,
    /// When to ask next whether a client is still there that has sent more than is read.
    pub(super) look: Option<Pin<Box<Sleep>>>,
    /// It may not be used again: bytes beyond the response, or an end.
    pub(super) spent: bool,
    /// For a long body to the endpoint, and for one to the client.
    pub(super) lent_up: Option<Lent>,
    pub(super) lent_down: Option<Lent>,
}

/// Why an attempt did not end in a whole answer.
pub(super) enum Lost {
    /// The connection ended, broke or was cut at the drain deadline.
    Upstream {
        forced: bool,
        stale: bool,
    },
    /// What the endpoint sent cannot be forwarded.
    BadResponse(Reject),
    BadBody(Reject),
    Client(CloseReason),
    Deadline,
}

impl Flow {
    pub(super) fn took(&mut self, read: usize, room: usize) {
        self.full = read == room;
        self.small &= !self.full;
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.full = n >= SPLICE_MIN;
        self.small = !self.full;
    }
}

impl Attempt {
    pub(super) fn new(upstream: Upstream, limits: &message::Limits) -> Self {
        Self {
            reused: upstream.reused,
            upstream,
            began: Instant::now(),
            wrote: false,
            upload_over: false,
            inbuf: Vec::new(),
            response: None,
            heard: false,
            body: BodyDecoder::new(Framing::None, limits, 502),
            down: Flow::default(),
            emit: Emit::Identity,
            withhold: None,
            look: None,
            spent: false,
            lent_up: None,
            lent_down: None,
        }
    }
}

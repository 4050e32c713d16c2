//! What is known of a connection to an endpoint that carries streams.
//!
//! Invariant: the connection lives while somebody holds its [`h2::client::SendRequest`]: the list of
//! open connections, or a stream. So a connection that is taken from the list gets no new stream, and
//! ends with its last one.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;

use crate::proxy::h2::flow::Bodies;
use crate::proxy::h2::limits::STREAMS;
use crate::proxy::silence::Slot;

/// A connection to an endpoint that carries streams.
#[derive(Debug)]
pub struct Carrier {
    pub(super) send: SendRequest<Bytes>,
    /// The client whose address the endpoint sees. `None`: it is anybody's.
    pub(super) source: Option<IpAddr>,
    /// The endpoint sees that address.
    pub(super) is_named: bool,
    /// How TLS is spoken on it, see [`Stream::mark`](crate::net::stream::Stream::mark).
    pub(super) backend: Option<u64>,
    /// Its place among the sockets to the endpoint.
    pub(super) slot: Slot,
    pub(super) bodies: Bodies,
    streams: Cell<u32>,
    /// It has carried a stream before.
    pub(super) used: Cell<bool>,
    /// When its last stream ended.
    idle_since: Cell<Instant>,
}

impl Carrier {
    pub(super) fn new(
        send: SendRequest<Bytes>,
        source: Option<IpAddr>,
        is_named: bool,
        backend: Option<u64>,
        slot: Slot,
    ) -> Rc<Self> {
        Rc::new(Self {
            send,
            source,
            is_named,
            backend,
            slot,
            bodies: Bodies::default(),
            streams: Cell::new(0),
            used: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
        })
    }

    /// Whether it can carry streams at all: the endpoint has not said GOAWAY, and the connection has
    /// not ended, as far as is known.
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // A handle without a stream of its own waits for nothing.
        matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Whether the endpoint takes one more stream now.
    pub(super) fn has_room(&self) -> bool {
        let most = self.send.current_max_send_streams();
        (self.streams.get() as usize) < most.min(STREAMS as usize)
    }

    /// When its last stream ended, if it has none now.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then_some(self.idle_since.get())
    }
}

/// One stream of a carrier.
#[derive(Debug)]
pub(super) struct Carried(pub(super) Rc<Carrier>);

impl Carried {
    pub(super) fn new(carrier: Rc<Carrier>) -> Self {
        carrier.streams.set(carrier.streams.get() + 1);
        carrier.used.set(true);
        Self(carrier)
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

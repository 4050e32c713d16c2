//! The client's side of a session: its connection, and what was read from it and not yet consumed.
//!
//! Invariant: `unread` holds little more than the largest head that the configuration allows.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::config::settings::Config;
use crate::contract::listener::ListenerSpec;
use crate::contract::policy::{Protocol, Scope};
use crate::net::stream::Stream;
use crate::proxy::balancer::Origin;
use crate::proxy::worker::Worker;
use crate::wire::buffer::{SCRATCH, append};

/// The client's side of a session.
pub struct Client {
    /// The connection.
    pub stream: Stream,
    /// Bytes that were read and not yet consumed.
    pub unread: Vec<u8>,
    /// The address of the client: the connection's peer, or the one that a trusted PROXY header
    /// names. From here on, all trust in the client is judged by this address.
    pub peer: SocketAddr,
    /// The address of the connection's peer. It decides only who may send a PROXY header.
    pub neighbour: IpAddr,
    /// The listener that accepted the connection.
    pub door: Arc<ListenerSpec>,
    /// The listener that serves the request: `door`, or the one to which a name or a route has led.
    pub listener: Arc<ListenerSpec>,
    /// Which traffic policy counts for this client.
    pub scope: Option<Scope>,
    /// The client has had no answer yet, or only one that could not be forwarded. Its work takes
    /// turns with that of other such clients.
    pub unanswered: Rc<Cell<bool>>,
    /// What it has spoken so far.
    pub spoken: Spoken,
    /// The process that replaces this one does not want it.
    pub stays: bool,
}

/// What a client of HTTP has spoken so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// It has had no request.
    Nothing,
    /// HTTP/1.
    Http1,
    /// HTTP/2, after it was offered (ALPN), or on a port that is said to be one of HTTP.
    Http2,
    /// HTTP/2, on a port whose protocol is not known: the client knows that its endpoints speak it.
    Http2Unasked,
}

impl Client {
    /// Where its requests come from.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            client: self.peer.ip(),
            scope: self.scope,
        }
    }

    /// Whether it is a stream of HTTP/2, and not a connection.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self.spoken, Spoken::Http2 | Spoken::Http2Unasked)
    }

    /// Whether the connection passes to the process that replaces this one, if there is one.
    pub(super) fn can_pass(&self) -> bool {
        !self.stays && self.stream.plain().is_some()
    }

    /// Whether its requests go to endpoints as HTTP/2. Where nothing else says what the endpoints speak,
    /// the client knows it.
    pub(super) fn wants_http2(&self, port: Protocol) -> bool {
        match self.listener.protocol.unwrap_or(port) {
            Protocol::Auto if port == Protocol::Http => false,
            Protocol::Auto => port == Protocol::Http2 || self.spoken == Spoken::Http2Unasked,
            listener => listener == Protocol::Http2 || port == Protocol::Http2,
        }
    }

    /// Reads once, into `unread`. If nothing was added, the client has ended its direction.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<std::io::Result<()>> {
        let mut scratch = worker.scratch.borrow_mut();
        let room = self.room(&worker.config());
        let read = ready!(self.stream.poll_read(cx, &mut scratch[..room]))?;
        append(&mut self.unread, read);
        Poll::Ready(Ok(()))
    }

    /// How much a read into `unread` may take.
    pub(super) fn room(&self, config: &Config) -> usize {
        (config.limits.head_size + 1)
            .saturating_sub(self.unread.len())
            .clamp(ROOM_LEAST, SCRATCH)
    }

    /// Reads once and keeps nothing. Returns how much that was; 0: the client has ended its
    /// direction.
    pub(super) fn poll_waste(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<std::io::Result<usize>> {
        let mut scratch = worker.scratch.borrow_mut();
        self.stream.poll_waste(cx, &mut scratch[..])
    }
}

/// The least room of a read in bytes, even if `unread` is as long as the largest head.
const ROOM_LEAST: usize = 512;

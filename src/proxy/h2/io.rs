//! A connection as the `h2` crate reads and writes it.
//!
//! The crate writes each DATA frame by itself. Here frames wait until the connection's task has nothing
//! left to do, so that the answers of many streams leave in one system call.
//!
//! Invariant: the task that drives the connection calls `Wire::poll_send` after each poll of it, so
//! nothing waits longer than that.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::stream::Stream;
use crate::net::turns::{Queue, Turn};
use crate::proxy::upstream::Upstream;
use crate::wire::buffer::{append, empty};

/// The crate's side of a connection.
pub(super) struct Io(Rc<Wire>);

/// The other side: who drives the connection sends what the crate has written.
pub(super) struct Wire(RefCell<State>);

struct State {
    peer: Peer,
    /// What was read before it was known to be HTTP/2.
    unread: Vec<u8>,
    /// What is written and not yet sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    pace: Option<Pace>,
}

/// A client that sends without a pause takes turns with others like it. A read costs more than its
/// bytes: they may be a thousand frames.
struct Pace {
    queue: Rc<Queue>,
    turn: Turn,
    /// What was read since the client paused, or since the last turn.
    read: usize,
}

enum Peer {
    Client(Stream),
    Endpoint(Upstream),
}

/// A connection of a client that has sent `unread` already. If it sends without a pause, it takes turns
/// of `queue`.
pub(super) fn of_client(stream: Stream, unread: Vec<u8>, queue: Rc<Queue>) -> (Io, Rc<Wire>) {
    let pace = Pace {
        queue,
        turn: Turn::default(),
        read: 0,
    };
    new(Peer::Client(stream), unread, Some(pace))
}

/// A connection to an endpoint.
pub(super) fn of_endpoint(upstream: Upstream) -> (Io, Rc<Wire>) {
    new(Peer::Endpoint(upstream), Vec::new(), None)
}

fn new(peer: Peer, unread: Vec<u8>, pace: Option<Pace>) -> (Io, Rc<Wire>) {
    let wire = Rc::new(Wire(RefCell::new(State {
        peer,
        unread,
        out: Vec::new(),
        sent: 0,
        pace,
    })));
    (Io(wire.clone()), wire)
}

impl Wire {
    /// Sends what is written, as far as the peer takes it. Wakes the task when the peer takes more. A
    /// failure shows with the crate's next write.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) {
        let _ = self.0.borrow_mut().poll_send(cx);
    }
}

impl State {
    fn stream(&mut self) -> &mut Stream {
        match &mut self.peer {
            Peer::Client(stream) => stream,
            Peer::Endpoint(upstream) => &mut upstream.stream,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(self.poll_write_with(cx, &[]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        empty(&mut self.out);
        self.sent = 0;
        self.stream().poll_flush(cx)
    }

    /// Writes once: what waits, and `parts` behind it.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Peer::Endpoint(upstream) = &self.peer {
            // So that an endpoint that has vanished is noticed.
            upstream.is_sending();
        }
        let waiting = &self.out[self.sent..];
        let mut all = [IoSlice::new(&[]); 3];
        let sources = [IoSlice::new(waiting)]
            .into_iter()
            .chain(parts.iter().copied());
        for (slot, part) in all.iter_mut().zip(sources.filter(|it| !it.is_empty())) {
            *slot = part;
        }
        match &mut self.peer {
            Peer::Client(stream) => stream.poll_write_vectored(cx, &all),
            Peer::Endpoint(upstream) => upstream.stream.poll_write_vectored(cx, &all),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let more: usize = parts.iter().map(|part| part.len()).sum();
        let waiting = self.out.len() - self.sent;
        if waiting + more <= TOGETHER {
            if self.out.len() + more > 2 * TOGETHER {
                // The peer takes a little at a time.
                self.out.drain(..self.sent);
                self.sent = 0;
            }
            for part in parts {
                append(&mut self.out, part);
            }
            return Poll::Ready(Ok(more));
        }
        let n = ready!(self.poll_write_with(cx, &parts[..parts.len().min(2)]))?;
        self.sent += n.min(waiting);
        if self.sent < self.out.len() {
            // Nothing of `parts` has gone.
            return self.poll_write(cx, parts);
        }
        self.out.clear();
        self.sent = 0;
        match n - waiting {
            0 => self.poll_write(cx, parts),
            taken => Poll::Ready(Ok(taken)),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.0.0.borrow_mut();
        if !state.unread.is_empty() {
            let n = state.unread.len().min(buf.remaining());
            buf.put_slice(&state.unread[..n]);
            state.unread.drain(..n);
            if state.unread.is_empty() {
                state.unread = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(pace) = &mut state.pace
            && pace.read >= AT_ONCE
        {
            ready!(pace.turn.poll(&pace.queue, cx));
            pace.read = 0;
        }
        let polled = state.stream().poll_read(cx, buf.initialize_unfilled());
        let read = polled.map_ok(|read| read.len());
        if let Some(pace) = &mut state.pace {
            match &read {
                Poll::Ready(read) => pace.read += read.as_ref().unwrap_or(&0),
                Poll::Pending => pace.read = 0,
            }
        }
        buf.advance(ready!(read)?);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.0.borrow_mut().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.0.borrow_mut().poll_write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits is sent by [`Wire::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.0.borrow_mut();
        ready!(state.poll_send(cx))?;
        state.stream().poll_shutdown(cx)
    }
}

/// Bytes that wait for each other, at most. More go out at once, uncopied.
const TOGETHER: usize = 24 << 10;
/// What is read of a client in one turn.
const AT_ONCE: usize = 16 << 10;

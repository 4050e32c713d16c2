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
    frames: Frames,
    /// The cost of what was read since the peer paused, or since the last turn.
    cost: usize,
    /// The same since [`Wire::has_read_much`] was true.
    in_all: usize,
    /// The most that is read at once. Small frames cost more than their bytes.
    room: usize,
}

/// A peer that sends without a pause leaves the worker to others now and then.
enum Peer {
    /// It takes turns with others like it.
    Client(Stream, Rc<Queue>, Turn),
    Endpoint(Upstream),
}

/// A connection of a client that has sent `unread` already. If it sends without a pause, it takes turns
/// of `queue`.
pub(super) fn of_client(stream: Stream, unread: Vec<u8>, queue: Rc<Queue>) -> (Io, Rc<Wire>) {
    let frames = Frames::after(PREFACE);
    new(Peer::Client(stream, queue, Turn::default()), unread, frames)
}

/// A connection to an endpoint.
pub(super) fn of_endpoint(upstream: Upstream) -> (Io, Rc<Wire>) {
    new(Peer::Endpoint(upstream), Vec::new(), Frames::after(0))
}

fn new(peer: Peer, unread: Vec<u8>, frames: Frames) -> (Io, Rc<Wire>) {
    let wire = Rc::new(Wire(RefCell::new(State {
        peer,
        unread,
        out: Vec::new(),
        sent: 0,
        frames,
        cost: 0,
        in_all: 0,
        room: AT_ONCE,
    })));
    (Io(wire.clone()), wire)
}

impl Wire {
    /// Sends what is written, as far as the peer takes it. Wakes the task when the peer takes more. A
    /// failure shows with the crate's next write.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) {
        let _ = self.0.borrow_mut().poll_send(cx);
    }

    /// Whether so much was read since this was last true that it may be many frames.
    pub(super) fn has_read_much(&self) -> bool {
        let state = &mut *self.0.borrow_mut();
        let much = state.in_all >= AT_ONCE;
        if much {
            state.in_all = 0;
        }
        much
    }
}

impl State {
    fn stream(&mut self) -> &mut Stream {
        match &mut self.peer {
            Peer::Client(stream, ..) => stream,
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
            Peer::Client(stream, ..) => stream.poll_write_vectored(cx, &all),
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
            state.frames.count(&state.unread[..n]);
            state.unread.drain(..n);
            if state.unread.is_empty() {
                state.unread = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        if state.cost >= AT_ONCE {
            match &mut state.peer {
                Peer::Client(_, queue, turn) => ready!(turn.poll(queue, cx)),
                Peer::Endpoint(_) => {
                    state.cost = 0;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            state.cost = 0;
        }
        let room = state.room.min(buf.remaining());
        let polled = state
            .stream()
            .poll_read(cx, buf.initialize_unfilled_to(room));
        if polled.is_pending() {
            (state.cost, state.room) = (0, AT_ONCE);
        }
        let read = ready!(polled)?;
        let n = read.len();
        let cost = n + A_FRAME * state.frames.count(read);
        state.cost += cost;
        state.in_all += cost;
        state.room = (AT_ONCE * n / cost.max(1)).max(1);
        buf.advance(n);
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

/// Finds where frames begin (RFC 9113 section 4.1).
struct Frames {
    /// Bytes before the next frame.
    skip: usize,
    /// What has come of the next frame's length, which is three bytes.
    length: usize,
    come: u8,
}

impl Frames {
    fn after(skip: usize) -> Self {
        Self {
            skip,
            length: 0,
            come: 0,
        }
    }

    /// Takes what comes next. Returns how many frames begin in it.
    fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut found = 0;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            let Some((byte, rest)) = bytes[skipped..].split_first() else {
                return found;
            };
            bytes = rest;
            self.length = self.length << 8 | usize::from(*byte);
            self.come += 1;
            if self.come == 3 {
                // Six more bytes of the frame's header.
                *self = Self::after(6 + self.length);
                found += 1;
            }
        }
    }
}

/// Bytes that wait for each other, at most. More go out at once, uncopied.
const TOGETHER: usize = 24 << 10;
/// The cost of what is read of a peer in one turn, in bytes.
const AT_ONCE: usize = 16 << 10;
/// What a frame costs beside its bytes.
const A_FRAME: usize = 128;
/// What a client sends before its first frame (RFC 9113 section 3.4).
const PREFACE: usize = 24;

//! A connection as the `h2` crate reads and writes it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::stream::Stream;
use crate::net::turns::{Queue, Turn};
use crate::proxy::upstream::Upstream;

/// A connection that carries streams.
pub(super) struct Io {
    peer: Peer,
    /// What was read before it was known to be HTTP/2.
    unread: Vec<u8>,
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

impl Io {
    pub(super) fn of_client(stream: Stream, unread: Vec<u8>, queue: Rc<Queue>) -> Self {
        let pace = Pace {
            queue,
            turn: Turn::default(),
            read: 0,
        };
        Self {
            peer: Peer::Client(stream),
            unread,
            pace: Some(pace),
        }
    }

    pub(super) fn of_endpoint(upstream: Upstream) -> Self {
        Self {
            peer: Peer::Endpoint(upstream),
            unread: Vec::new(),
            pace: None,
        }
    }

    fn stream(&mut self) -> &mut Stream {
        match &mut self.peer {
            Peer::Client(stream) => stream,
            Peer::Endpoint(upstream) => &mut upstream.stream,
        }
    }

    /// Must be called for each write, so that an endpoint that has vanished is noticed.
    fn is_sending(&self) {
        if let Peer::Endpoint(upstream) = &self.peer {
            upstream.is_sending();
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let n = self.unread.len().min(buf.remaining());
            buf.put_slice(&self.unread[..n]);
            self.unread.drain(..n);
            if self.unread.is_empty() {
                self.unread = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        if let Some(pace) = &mut self.pace
            && pace.read >= AT_ONCE
        {
            ready!(pace.turn.poll(&pace.queue, cx));
            pace.read = 0;
        }
        let polled = self.stream().poll_read(cx, buf.initialize_unfilled());
        let read = polled.map_ok(|read| read.len());
        if let Some(pace) = &mut self.pace {
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_sending();
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_sending();
        self.stream().poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is kept back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

/// What is read of a client in one turn.
const AT_ONCE: usize = 16 << 10;

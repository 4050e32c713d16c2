//! The request to the endpoint, polled as far as it goes.
//!
//! Invariant: the body is kept for a replay while it fits the replay buffer, and it is never waited
//! for (contract 3.2). All that is held stays within about one read's worth.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use crate::contract::reason::CloseReason;
use crate::net::pipe::Broken;
use crate::net::turns::poll_turn;
use crate::proxy::http::exchange::{Attempt, Exchange, Lost, ROOM_LEAST, decoded_at_once, is_long};
use crate::wire::buffer::{SCRATCH, append, empty};
use crate::wire::message::{Emit, Framing, Reject};

impl Exchange<'_> {
    /// Writes head and body to the endpoint. Ready when all is written, or when the endpoint takes
    /// no more; even then its response may be there.
    pub(super) fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        let emit = if self.request.framing == Framing::Chunked {
            Emit::Chunked
        } else {
            Emit::Identity
        };
        if attempt.up.flow.full && attempt.up.written < self.upload.sent.len() {
            ready!(self.poll_turn_up(cx, attempt, true));
        }
        loop {
            while attempt.up.written < self.upload.sent.len() {
                match ready!(
                    attempt
                        .upstream
                        .stream
                        .poll_write(cx, &self.upload.sent[attempt.up.written..])
                ) {
                    Ok(n) if n > 0 => {
                        attempt.up.written += n;
                        attempt.up.wrote = true;
                    }
                    _ => {
                        attempt.spent = true;
                        attempt.up.failed = true;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            if ready!(attempt.upstream.stream.poll_flush(cx)).is_err() {
                attempt.spent = true;
                attempt.up.failed = true;
                return Poll::Ready(Ok(()));
            }
            if !self.upload.whole {
                empty(&mut self.upload.sent);
                attempt.up.written = 0;
            }
            if attempt.up.lent.is_none() {
                if self.upload.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
                if !self.client.unread.is_empty() {
                    self.begin_body(attempt);
                    let n = self
                        .upload
                        .body
                        .decode(&self.client.unread, emit, &mut self.upload.sent)
                        .map_err(Lost::BadBody)?;
                    self.bound_length()?;
                    self.client.unread.drain(..n);
                    if self.client.unread.is_empty() {
                        self.client.unread = Vec::new();
                    }
                    self.bound_kept(attempt);
                    continue;
                }
                ready!(self.client.stream.poll_read_ready(cx))
                    .map_err(|_| Lost::Client(CloseReason::ClientReset))?;
            }
            let long =
                !self.upload.whole && !attempt.up.flow.small && is_long(&self.upload.body, emit);
            if self.upload.body.has_tiny_chunks() {
                ready!(attempt.up.flow.turn.poll(&self.worker.tiny_chunks, cx));
            } else if long || attempt.up.flow.full || attempt.up.lent.is_some() {
                ready!(self.poll_turn_up(cx, attempt, attempt.up.lent.is_some()));
            }
            if long && attempt.up.lent.is_none() {
                let (source, sink) = (&self.client.stream, &attempt.upstream.stream);
                attempt.up.lent = self.worker.pipes.lend(source, sink);
            }
            if attempt.up.lent.is_some() {
                if !ready!(self.poll_upload_lent(cx, attempt))? {
                    attempt.spent = true;
                    attempt.up.failed = true;
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let mut scratch = self.worker.scratch.borrow_mut();
            // A read takes at most `ROOM_LEAST` bytes beyond the end of the body: they belong to
            // the next request and stay in memory. Of a body that is kept for a replay, a read
            // takes at most one byte more than may be kept: that byte shows that the body is too
            // long.
            let left = self
                .upload
                .body
                .remaining()
                .map_or(decoded_at_once(&self.upload.body), |left| {
                    usize::try_from(left).unwrap_or(SCRATCH)
                });
            let most = match self.upload.whole && self.upload.keeps {
                true => (self.config.limits.replay_body + 1)
                    .saturating_sub(self.upload.sent.len() - self.upload.head_len)
                    .max(1),
                false => self.room(attempt),
            };
            let room = most.min(left.saturating_add(ROOM_LEAST)).min(SCRATCH);
            let read = ready!(self.client.stream.poll_read(cx, &mut scratch[..room]));
            let Some(read) = read.ok().filter(|read| !read.is_empty()) else {
                return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
            };
            attempt.up.flow.took(read.len(), room);
            self.client_moved = Instant::now();
            self.begin_body(attempt);
            let taken = if !self.upload.whole && emit == Emit::Identity {
                let taken = self.upload.body.pass(read.len());
                let n = match attempt.upstream.stream.poll_write(cx, &read[..taken]) {
                    Poll::Ready(Ok(n)) => n,
                    Poll::Ready(Err(_)) => {
                        attempt.up.failed = true;
                        0
                    }
                    Poll::Pending => 0,
                };
                append(&mut self.upload.sent, &read[n..taken]);
                taken
            } else {
                self.upload
                    .body
                    .decode(read, emit, &mut self.upload.sent)
                    .map_err(Lost::BadBody)?
            };
            self.bound_length()?;
            append(&mut self.client.unread, &read[taken..]);
            drop(scratch);
            self.bound_kept(attempt);
        }
    }

    fn poll_turn_up(&self, cx: &mut Context<'_>, attempt: &mut Attempt, blocked: bool) -> Poll<()> {
        poll_turn(
            &self.worker.bulk,
            &mut attempt.up.flow.turn,
            cx,
            blocked,
            &self.client.stream,
            &attempt.upstream.stream,
        )
    }

    /// A byte of the body is there, and all before it is written. From here on, a request that can
    /// not be sent again is not kept.
    fn begin_body(&mut self, attempt: &mut Attempt) {
        if self.upload.whole && !self.upload.keeps {
            self.upload.stop_keeping(&mut attempt.up);
        }
    }

    /// Moves one pipe's fill of a long body. Returns whether the endpoint has taken it.
    fn poll_upload_lent(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<bool, Lost>> {
        let Some(lent) = &mut attempt.up.lent else {
            return Poll::Ready(Ok(true));
        };
        let left = self.upload.body.remaining().unwrap_or(0);
        let moved = lent.poll_move(cx, &self.client.stream, &attempt.upstream.stream, left);
        // What is in the pipe has left the client, even if the endpoint never takes it.
        let taken = lent.take_taken();
        if taken > 0 {
            self.upload.body.pass(taken);
            self.client_moved = Instant::now();
        }
        match moved {
            Poll::Ready(Ok(0) | Err(Broken::Source(_))) => {
                Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)))
            }
            Poll::Ready(Ok(n)) => {
                attempt.up.lent = None;
                attempt.up.flow.filled(n);
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Err(Broken::Sink(_))) => Poll::Ready(Ok(false)),
            Poll::Pending => {
                if lent.is_empty() {
                    attempt.up.lent = None;
                }
                Poll::Pending
            }
        }
    }

    /// A chunked body may be longer than its route allows. The length of another one was known.
    fn bound_length(&self) -> Result<(), Lost> {
        match self.upload.most < self.upload.body.payload() {
            true => Err(Lost::BadBody(TOO_LARGE)),
            false => Ok(()),
        }
    }

    /// A body that exceeds the replay buffer is only passed on from here.
    fn bound_kept(&mut self, attempt: &mut Attempt) {
        if self.upload.whole
            && self.upload.sent.len() - self.upload.head_len > self.config.limits.replay_body
        {
            self.upload.stop_keeping(&mut attempt.up);
        }
    }
}

/// A body that is longer than its route allows.
pub(super) const TOO_LARGE: Reject = Reject {
    status: 413,
    reason: "body_too_large",
};

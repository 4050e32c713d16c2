//! Both directions of an attempt, polled as far as they go: the request to the endpoint, its response to the client.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::contract::clock::millis;
use crate::contract::reason::CloseReason;
use crate::net::pipe::Broken;
use crate::net::socket::{LOOK, Peer};
use crate::net::turns::poll_turn;
use crate::proxy::http::exchange::{Attempt, Exchange, Lost};
use crate::wire::body::BodyDecoder;
use crate::wire::buffer::{BUFFER_MAX, SCRATCH, append, empty};
use crate::wire::head;
use crate::wire::message::{Emit, Framing, Reject, Version};

impl Exchange<'_> {
    /// Both directions as far as they go. Ready when the whole response has been written to the client.
    pub(super) fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        if !attempt.upload_over {
            match self.poll_upload(cx, attempt) {
                Poll::Ready(Ok(())) => attempt.upload_over = true,
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => {}
            }
        }
        if attempt.down.full && self.replied < self.reply.len() && attempt.withhold.is_none() {
            ready!(self.poll_turn_down(cx, attempt, true));
        }
        loop {
            if let Some(withhold) = &mut attempt.withhold
                && (attempt.body.is_done() || withhold.as_mut().poll(cx).is_ready())
            {
                attempt.withhold = None;
            }
            if attempt.withhold.is_none() {
                ready!(self.poll_flush(cx))?;
                if attempt.response.is_some() && attempt.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
            }
            match self.poll_receive(cx, attempt) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => break,
            }
        }
        if self.watch_client
            && attempt.upload_over
            && self.client.stream.poll_read_ready(cx).is_ready()
        {
            // Something came while we wait: more requests, a half-close, or the end of it all.
            match self.client.stream.peer() {
                Peer::Gone => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
                Peer::Open | Peer::HalfClosed => self.watch_client = false,
            }
        }
        if !self.watch_client {
            // Readiness tells no more: what came stays unread. Whether the client is still there is asked from time to time.
            let look = attempt
                .look
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            while look.as_mut().poll(cx).is_ready() {
                if self.client.stream.peer() == Peer::Gone {
                    return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
                }
                look.as_mut().reset((Instant::now() + LOOK).into());
            }
        }
        Poll::Pending
    }

    /// Head and body to the endpoint; the body is kept for a replay while it fits. Ready when all is written, or when the
    /// endpoint takes no more (its response may be there all the same).
    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        let emit = if self.request.framing == Framing::Chunked {
            Emit::Chunked
        } else {
            Emit::Identity
        };
        if self.up.full && self.written < self.sent.len() {
            ready!(self.poll_turn_up(cx, attempt, true));
        }
        loop {
            while self.written < self.sent.len() {
                match ready!(
                    attempt
                        .upstream
                        .stream
                        .poll_write(cx, &self.sent[self.written..])
                ) {
                    Ok(n) if n > 0 => {
                        self.written += n;
                        attempt.wrote = true;
                    }
                    _ => {
                        attempt.spent = true;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            if !self.whole {
                empty(&mut self.sent);
                self.written = 0;
            }
            if attempt.lent_up.is_none() {
                if self.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
                if !self.client.unread.is_empty() {
                    self.begin_body();
                    let n = self
                        .body
                        .decode(&self.client.unread, emit, &mut self.sent)
                        .map_err(Lost::BadBody)?;
                    self.client.unread.drain(..n);
                    if self.client.unread.is_empty() {
                        self.client.unread = Vec::new();
                    }
                    self.bound_kept();
                    continue;
                }
                ready!(self.client.stream.poll_read_ready(cx))
                    .map_err(|_| Lost::Client(CloseReason::ClientReset))?;
            }
            let long = !self.whole && !self.up.small && is_long(&self.body, emit);
            if self.body.has_tiny_chunks() {
                ready!(self.up.turn.poll(&self.worker.tiny_chunks, cx));
            } else if long || self.up.full || attempt.lent_up.is_some() {
                ready!(self.poll_turn_up(cx, attempt, attempt.lent_up.is_some()));
            }
            if long && attempt.lent_up.is_none() {
                let (source, sink) = (&self.client.stream, &attempt.upstream.stream);
                attempt.lent_up = self.worker.pipes.lend(source, sink);
            }
            if attempt.lent_up.is_some() {
                if !ready!(self.poll_upload_lent(cx, attempt))? {
                    attempt.spent = true;
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let mut scratch = self.worker.scratch.borrow_mut();
            // Little beyond the body's end; of what is kept, no more than shows that it is too much.
            let left = self
                .body
                .remaining()
                .map_or(decoded_at_once(&self.body), |left| {
                    usize::try_from(left).unwrap_or(SCRATCH)
                });
            let most = match self.whole && self.repeatable {
                true => (self.config.limits.replay_body + 1)
                    .saturating_sub(self.sent.len() - self.head_len)
                    .max(1),
                false => self.room(attempt),
            };
            let room = most.min(left.saturating_add(ROOM_LEAST)).min(SCRATCH);
            let read = ready!(self.client.stream.poll_read(cx, &mut scratch[..room]));
            let Some(read) = read.ok().filter(|read| !read.is_empty()) else {
                return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
            };
            self.up.took(read.len(), room);
            self.client_moved = Instant::now();
            self.begin_body();
            let taken = if !self.whole && emit == Emit::Identity {
                let taken = self.body.pass(read.len());
                let n = match attempt.upstream.stream.poll_write(cx, &read[..taken]) {
                    Poll::Ready(Ok(n)) => n,
                    // The next turn of the loop meets the error again.
                    Poll::Ready(Err(_)) | Poll::Pending => 0,
                };
                append(&mut self.sent, &read[n..taken]);
                taken
            } else {
                self.body
                    .decode(read, emit, &mut self.sent)
                    .map_err(Lost::BadBody)?
            };
            append(&mut self.client.unread, &read[taken..]);
            drop(scratch);
            self.bound_kept();
        }
    }

    fn poll_turn_up(&mut self, cx: &mut Context<'_>, attempt: &Attempt, blocked: bool) -> Poll<()> {
        poll_turn(
            &self.worker.bulk,
            &mut self.up.turn,
            cx,
            blocked,
            &self.client.stream,
            &attempt.upstream.stream,
        )
    }

    fn poll_turn_down(
        &self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
        blocked: bool,
    ) -> Poll<()> {
        poll_turn(
            &self.worker.bulk,
            &mut attempt.down.turn,
            cx,
            blocked,
            &attempt.upstream.stream,
            &self.client.stream,
        )
    }

    /// A byte of the body is there, and all before it is written: what may not be sent twice is not kept from here on.
    fn begin_body(&mut self) {
        if self.whole && !self.repeatable {
            self.stop_keeping();
        }
    }

    /// One pipe's fill of a long body to the endpoint, and whether that has taken it.
    fn poll_upload_lent(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<bool, Lost>> {
        let Some(lent) = &mut attempt.lent_up else {
            return Poll::Ready(Ok(true));
        };
        let left = self.body.remaining().unwrap_or(0);
        let moved = lent.poll_move(cx, &self.client.stream, &attempt.upstream.stream, left);
        // What is in the pipe has left the client, whatever becomes of it.
        let taken = lent.take_taken();
        if taken > 0 {
            self.body.pass(taken);
            self.client_moved = Instant::now();
        }
        match moved {
            Poll::Ready(Ok(0) | Err(Broken::Source(_))) => {
                Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)))
            }
            Poll::Ready(Ok(n)) => {
                attempt.lent_up = None;
                self.up.filled(n);
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Err(Broken::Sink(_))) => Poll::Ready(Ok(false)),
            Poll::Pending => {
                if lent.is_empty() {
                    attempt.lent_up = None;
                }
                Poll::Pending
            }
        }
    }

    /// Past the replay buffer's bound the body is only passed on.
    fn bound_kept(&mut self) {
        if self.whole && self.sent.len() - self.head_len > self.config.limits.replay_body {
            self.stop_keeping();
        }
    }

    /// There will be no replay: what has been written is given up, and a large buffer with it.
    fn stop_keeping(&mut self) {
        self.whole = false;
        self.sent.drain(..self.written);
        self.written = 0;
        if self.sent.capacity() > BUFFER_MAX {
            self.sent.shrink_to_fit();
        }
    }

    /// For a read: all that is held stays within one read's worth, or goes little beyond it, whoever does not take it.
    fn room(&self, attempt: &Attempt) -> usize {
        let bodies = self.body.held() + attempt.body.held();
        let held = self.client.unread.len()
            + self.sent.len()
            + self.reply.len()
            + attempt.inbuf.len()
            + bodies;
        SCRATCH.saturating_sub(held).max(ROOM_LEAST)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        while self.replied < self.reply.len() {
            let n = ready!(
                self.client
                    .stream
                    .poll_write(cx, &self.reply[self.replied..])
            );
            match n {
                Ok(n) if n > 0 => {
                    self.replied += n;
                    self.passed |= self.replied > self.interim;
                    self.bytes_out += n as u64;
                    // A client that is still sending is watched for silence both ways.
                    if self.replied < self.reply.len() || !self.body.is_done() {
                        self.client_moved = Instant::now();
                    }
                }
                _ => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
            }
        }
        empty(&mut self.reply);
        (self.replied, self.interim) = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// One read of the endpoint's side, taken in.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        let begun = attempt.response.is_some();
        let long = begun
            && attempt.withhold.is_none()
            && !attempt.down.small
            && is_long(&attempt.body, attempt.emit);
        if attempt.body.has_tiny_chunks() {
            ready!(attempt.upstream.stream.poll_read_ready(cx))
                .map_err(|_| self.broken(attempt))?;
            ready!(attempt.down.turn.poll(&self.worker.tiny_chunks, cx));
        } else if long || attempt.down.full || attempt.lent_down.is_some() {
            let blocked = attempt.lent_down.is_some();
            ready!(self.poll_turn_down(cx, attempt, blocked));
        }
        if long && attempt.lent_down.is_none() {
            let (source, sink) = (&attempt.upstream.stream, &self.client.stream);
            attempt.lent_down = self.worker.pipes.lend(source, sink);
        }
        if let Some(lent) = &mut attempt.lent_down {
            let left = attempt.body.remaining().unwrap_or(0);
            return match lent.poll_move(cx, &attempt.upstream.stream, &self.client.stream, left) {
                Poll::Ready(Ok(n)) => {
                    attempt.body.pass(n);
                    self.bytes_out += n as u64;
                    self.client_moved = Instant::now();
                    attempt.lent_down = None;
                    attempt.down.filled(n);
                    if n == 0 {
                        Poll::Ready(Err(self.broken(attempt)))
                    } else {
                        Poll::Ready(Ok(()))
                    }
                }
                Poll::Ready(Err(Broken::Sink(_))) => {
                    Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)))
                }
                Poll::Ready(Err(Broken::Source(_))) => Poll::Ready(Err(self.broken(attempt))),
                Poll::Pending => {
                    if lent.is_empty() {
                        attempt.lent_down = None;
                    }
                    Poll::Pending
                }
            };
        }
        if self.whole && self.passed {
            self.stop_keeping();
        }
        let decoded = attempt.response.is_some() && attempt.body.remaining().is_none();
        let room = self.room(attempt).min(if decoded {
            decoded_at_once(&attempt.body)
        } else {
            SCRATCH
        });
        let mut scratch = self.worker.scratch.borrow_mut();
        let Ok(read) = ready!(attempt.upstream.stream.poll_read(cx, &mut scratch[..room])) else {
            return Poll::Ready(Err(self.broken(attempt)));
        };
        attempt.down.took(read.len(), room);
        if read.is_empty() {
            attempt.spent = true;
            let whole = attempt.response.is_some()
                && attempt.body.eof(attempt.emit, &mut self.reply).is_ok();
            return Poll::Ready(if whole {
                Ok(())
            } else {
                Err(self.broken(attempt))
            });
        }
        let copy_free = attempt.response.is_some()
            && attempt.emit == Emit::Identity
            && attempt.body.remaining().is_some()
            && attempt.withhold.is_none();
        if copy_free {
            let taken = attempt.body.pass(read.len());
            attempt.spent |= taken < read.len();
            match self.client.stream.poll_write(cx, &read[..taken]) {
                Poll::Ready(Ok(n)) => {
                    self.passed |= n > 0;
                    self.bytes_out += n as u64;
                    self.client_moved = Instant::now();
                    append(&mut self.reply, &read[n..taken]);
                }
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
                }
                Poll::Pending => append(&mut self.reply, &read[..taken]),
            }
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.take_in(attempt, read))
    }

    /// The end of the upstream connection before the end of its response.
    fn broken(&self, attempt: &Attempt) -> Lost {
        let untouched = attempt.response.is_none() && attempt.inbuf.is_empty() && !attempt.heard;
        Lost::Upstream {
            forced: false,
            stale: attempt.reused && untouched,
        }
    }

    /// Bytes of a response: heads, then body into `reply`.
    fn take_in(&mut self, attempt: &mut Attempt, read: &[u8]) -> Result<(), Lost> {
        if attempt.response.is_some() {
            return self.take_body(attempt, read);
        }
        if attempt.inbuf.is_empty() {
            let taken = self.take_heads(attempt, read)?;
            return match attempt.response {
                Some(_) => self.take_body(attempt, &read[taken..]),
                None => {
                    append(&mut attempt.inbuf, &read[taken..]);
                    Ok(())
                }
            };
        }
        let mut inbuf = std::mem::take(&mut attempt.inbuf);
        append(&mut inbuf, read);
        let taken = self.take_heads(attempt, &inbuf)?;
        if attempt.response.is_some() {
            return self.take_body(attempt, &inbuf[taken..]);
        }
        inbuf.drain(..taken);
        attempt.inbuf = inbuf;
        Ok(())
    }

    /// Interim heads and the final one, as far as they are there; answers the bytes taken.
    fn take_heads(&mut self, attempt: &mut Attempt, input: &[u8]) -> Result<usize, Lost> {
        let mut taken = 0;
        loop {
            let close = self.is_last();
            let before = self.reply.len();
            let parsed = head::parse_response(
                &input[taken..],
                &self.limits,
                self.request.method,
                self.request.version,
                close,
                &mut self.reply,
            );
            let response = match parsed.map_err(Lost::BadResponse)? {
                Some(response) => response,
                None => return Ok(taken),
            };
            taken += response.consumed;
            let tunnel = response.status == 101 && self.request.upgrade;
            if response.status == 101 && !tunnel {
                return Err(Lost::BadResponse(Reject {
                    status: 502,
                    reason: "unsolicited_upgrade",
                }));
            }
            if response.status < 200 && !tunnel {
                attempt.heard = true;
                self.interims += 1;
                if self.interims > INTERIMS {
                    return Err(Lost::BadResponse(Reject {
                        status: 502,
                        reason: "too_many_interim_responses",
                    }));
                }
                let known = self.request.version == Version::H10
                    || (response.status == 100 && self.continued);
                self.continued |= response.status == 100;
                if known {
                    self.reply.truncate(before);
                } else {
                    self.interim = self.reply.len();
                }
                continue;
            }
            if response.status == 408 && attempt.reused && !response.keep_alive && !self.passed {
                // The server's idle timeout spoke, not the application.
                if self.repeatable {
                    return Err(Lost::Upstream {
                        forced: false,
                        stale: true,
                    });
                }
            }
            attempt.body = BodyDecoder::new(response.framing, &self.limits, 502);
            attempt.emit = response.emit;
            self.told_close = close || response.client_close;
            self.status = response.status;
            let endpoint = &attempt.upstream.local.endpoint;
            let now = Instant::now();
            endpoint.latency().record(now - attempt.began, millis(now));
            attempt.response = Some(response);
            return Ok(taken);
        }
    }

    fn take_body(&mut self, attempt: &mut Attempt, input: &[u8]) -> Result<(), Lost> {
        let Some(response) = &attempt.response else {
            return Ok(());
        };
        if self.is_tunnel(response) {
            append(&mut attempt.inbuf, input);
            return Ok(());
        }
        let taken = attempt
            .body
            .decode(input, attempt.emit, &mut self.reply)
            .map_err(Lost::BadResponse)?;
        attempt.spent |= taken < input.len();
        let small = matches!(response.framing, Framing::Counted(n) if n <= WITHHOLD_MAX);
        if small && !attempt.body.is_done() && !self.passed && attempt.withhold.is_none() {
            attempt.withhold = Some(Box::pin(tokio::time::sleep(WITHHOLD)));
        }
        Ok(())
    }
}

/// Bytes to read of a body that is neither counted nor ended.
fn decoded_at_once(body: &BodyDecoder) -> usize {
    if body.has_tiny_chunks() {
        TINY_CHUNKS
    } else {
        DECODED
    }
}

/// Whether enough of a counted body is left for splice, which moves it uncopied.
fn is_long(body: &BodyDecoder, emit: Emit) -> bool {
    emit == Emit::Identity && body.remaining().is_some_and(|left| left >= SCRATCH as u64)
}

/// A counted response up to this size is withheld until complete, for at most [`WITHHOLD`].
const WITHHOLD_MAX: u64 = 16 << 10;
const WITHHOLD: Duration = Duration::from_millis(5);
/// A read is never smaller, whatever is held.
const ROOM_LEAST: usize = 4 << 10;
/// Bytes that are decoded at once, which is what a client that does not read them costs.
const DECODED: usize = 32 << 10;
/// Of bodies that consist of little else than chunk lines.
const TINY_CHUNKS: usize = 4 << 10;
/// 1xx responses of one exchange.
const INTERIMS: u32 = 32;

//! The endpoint's response to the client, polled as far as it goes.
//!
//! Invariant: nothing is written to the client that is not canonical, and a response that cannot be
//! forwarded is found before its first byte is written, or is cut visibly (contract 1.6, 4.3).

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::contract::clock::millis;
use crate::contract::reason::CloseReason;
use crate::net::pipe::Broken;
use crate::net::turns::poll_turn;
use crate::proxy::http::exchange::{Attempt, Exchange, Lost, decoded_at_once, is_long};
use crate::wire::body::BodyDecoder;
use crate::wire::buffer::{SCRATCH, append, empty};
use crate::wire::head;
use crate::wire::message::{Emit, Framing, Reject, Response, Version};

impl Exchange<'_> {
    pub(super) fn poll_turn_down(
        &self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
        blocked: bool,
    ) -> Poll<()> {
        poll_turn(
            &self.worker.bulk,
            &mut attempt.down.flow.turn,
            cx,
            blocked,
            &attempt.upstream.stream,
            &self.client.stream,
        )
    }

    /// Writes to the client what there is of the reply.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        while self.reply.written < self.reply.bytes.len() {
            let n = ready!(
                self.client
                    .stream
                    .poll_write(cx, &self.reply.bytes[self.reply.written..])
            );
            match n {
                Ok(n) if n > 0 => {
                    self.reply.written += n;
                    self.reply.passed |= self.reply.written > self.reply.interim;
                    self.reply.bytes_out += n as u64;
                    // The end of most responses needs no clock: the time matters only while the
                    // client must still take or send something.
                    if self.reply.written < self.reply.bytes.len() || !self.upload.body.is_done() {
                        self.client_moved = Instant::now();
                    }
                }
                _ => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
            }
        }
        // Over TLS the stream may still hold all of it, encrypted: once is enough.
        empty(&mut self.reply.bytes);
        (self.reply.written, self.reply.interim) = (0, 0);
        let flushed = ready!(self.client.stream.poll_flush(cx));
        Poll::Ready(flushed.map_err(|_| Lost::Client(CloseReason::ClientReset)))
    }

    /// Reads the endpoint's side once and takes in what came.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        let begun = attempt.down.response.is_some();
        let long = begun
            && attempt.down.withhold.is_none()
            && !attempt.down.flow.small
            && is_long(&attempt.down.body, attempt.down.emit);
        if attempt.down.body.has_tiny_chunks() {
            ready!(attempt.upstream.stream.poll_read_ready(cx))
                .map_err(|_| self.broken(attempt))?;
            ready!(attempt.down.flow.turn.poll(&self.worker.tiny_chunks, cx));
        } else if long || attempt.down.flow.full || attempt.down.lent.is_some() {
            let blocked = attempt.down.lent.is_some();
            ready!(self.poll_turn_down(cx, attempt, blocked));
        }
        if long && attempt.down.lent.is_none() {
            let (source, sink) = (&attempt.upstream.stream, &self.client.stream);
            attempt.down.lent = self.worker.pipes.lend(source, sink);
        }
        if attempt.down.lent.is_some() {
            return self.poll_receive_lent(cx, attempt);
        }
        if self.upload.whole && self.reply.passed {
            self.upload.stop_keeping(&mut attempt.up);
        }
        let decoded = attempt.down.response.is_some() && attempt.down.body.remaining().is_none();
        let room = self.room(attempt).min(if decoded {
            decoded_at_once(&attempt.down.body)
        } else {
            SCRATCH
        });
        let mut scratch = self.worker.scratch.borrow_mut();
        let Ok(read) = ready!(attempt.upstream.stream.poll_read(cx, &mut scratch[..room])) else {
            return Poll::Ready(Err(self.broken(attempt)));
        };
        attempt.down.flow.took(read.len(), room);
        if read.is_empty() {
            attempt.spent = true;
            // After a failed write, the end may have been a reset. It ends no body that only the
            // connection's end could end.
            let until_close = |response: &Response| response.framing == Framing::UntilClose;
            let is_doubtful = attempt.up.failed
                && attempt.down.response.as_ref().is_some_and(until_close)
                && !attempt.down.body.is_done();
            let whole = !is_doubtful
                && attempt.down.response.is_some()
                && attempt
                    .down
                    .body
                    .eof(attempt.down.emit, &mut self.reply.bytes)
                    .is_ok();
            return Poll::Ready(if whole {
                Ok(())
            } else {
                Err(self.broken(attempt))
            });
        }
        let copy_free = attempt.down.response.is_some()
            && attempt.down.emit == Emit::Identity
            && attempt.down.body.remaining().is_some()
            && attempt.down.withhold.is_none();
        if copy_free {
            let taken = attempt.down.body.pass(read.len());
            attempt.spent |= taken < read.len();
            match self.client.stream.poll_write(cx, &read[..taken]) {
                Poll::Ready(Ok(n)) => {
                    self.reply.passed |= n > 0;
                    self.reply.bytes_out += n as u64;
                    self.client_moved = Instant::now();
                    append(&mut self.reply.bytes, &read[n..taken]);
                }
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)));
                }
                Poll::Pending => append(&mut self.reply.bytes, &read[..taken]),
            }
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.take_in(attempt, read))
    }

    /// Moves one pipe's fill of a long body to the client.
    fn poll_receive_lent(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        let Some(lent) = &mut attempt.down.lent else {
            return Poll::Ready(Ok(()));
        };
        let left = attempt.down.body.remaining().unwrap_or(0);
        match lent.poll_move(cx, &attempt.upstream.stream, &self.client.stream, left) {
            Poll::Ready(Ok(n)) => {
                attempt.down.body.pass(n);
                self.reply.bytes_out += n as u64;
                self.client_moved = Instant::now();
                attempt.down.lent = None;
                attempt.down.flow.filled(n);
                Poll::Ready(if n == 0 {
                    Err(self.broken(attempt))
                } else {
                    Ok(())
                })
            }
            Poll::Ready(Err(Broken::Sink(_))) => {
                Poll::Ready(Err(Lost::Client(CloseReason::ClientReset)))
            }
            Poll::Ready(Err(Broken::Source(_))) => Poll::Ready(Err(self.broken(attempt))),
            Poll::Pending => {
                if lent.is_empty() {
                    attempt.down.lent = None;
                }
                Poll::Pending
            }
        }
    }

    /// The upstream connection has ended before its response.
    fn broken(&self, attempt: &Attempt) -> Lost {
        let untouched = attempt.down.response.is_none()
            && attempt.down.inbuf.is_empty()
            && !attempt.down.had_interim;
        Lost::Upstream {
            forced: false,
            stale: attempt.reused && untouched,
        }
    }

    /// Takes in bytes of a response: heads first, then the body.
    fn take_in(&mut self, attempt: &mut Attempt, read: &[u8]) -> Result<(), Lost> {
        if attempt.down.response.is_some() {
            return self.take_body(attempt, read);
        }
        if attempt.down.inbuf.is_empty() {
            let taken = self.take_heads(attempt, read)?;
            return match attempt.down.response {
                Some(_) => self.take_body(attempt, &read[taken..]),
                None => {
                    append(&mut attempt.down.inbuf, &read[taken..]);
                    Ok(())
                }
            };
        }
        let mut inbuf = std::mem::take(&mut attempt.down.inbuf);
        append(&mut inbuf, read);
        let taken = self.take_heads(attempt, &inbuf)?;
        if attempt.down.response.is_some() {
            return self.take_body(attempt, &inbuf[taken..]);
        }
        inbuf.drain(..taken);
        attempt.down.inbuf = inbuf;
        Ok(())
    }

    /// Takes in an answer that was not to be the client's, after all.
    pub(super) fn settle(&mut self, attempt: &mut Attempt) -> Result<(), Lost> {
        attempt.down.is_settled = true;
        self.take_in(attempt, &[])
    }

    /// Takes in interim heads and the final one, as far as they are there. Returns how many bytes
    /// these were.
    fn take_heads(&mut self, attempt: &mut Attempt, input: &[u8]) -> Result<usize, Lost> {
        let mut taken = 0;
        loop {
            let close = self.is_last();
            let before = self.reply.bytes.len();
            let parsed = head::parse_response(
                &input[taken..],
                &self.limits,
                self.request.method,
                self.request.version,
                close,
                &mut self.reply.bytes,
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
                attempt.down.had_interim = true;
                self.reply.interims += 1;
                if self.reply.interims > INTERIMS {
                    return Err(Lost::BadResponse(Reject {
                        status: 502,
                        reason: "too_many_interim_responses",
                    }));
                }
                let known = self.request.version == Version::H10
                    || (response.status == 100 && self.reply.continued);
                self.reply.continued |= response.status == 100;
                if known {
                    self.reply.bytes.truncate(before);
                } else {
                    self.reply.interim = self.reply.bytes.len();
                }
                continue;
            }
            if response.status == 408
                && attempt.reused
                && !response.keep_alive
                && !self.reply.passed
            {
                // This answer comes from the server's idle timeout, not from the application
                // (contract 3.4).
                if self.upload.repeatable {
                    return Err(Lost::Upstream {
                        forced: false,
                        stale: true,
                    });
                }
            }
            if response.is_unavailable()
                && self.port.policy.retries_unavailable
                && self.upload.whole
                && !self.reply.passed
            {
                self.reply.bytes.truncate(before);
                return Err(Lost::Unavailable);
            }
            let codes = self.way.as_ref().and_then(|way| way.retry());
            if codes.is_some_and(|it| it.codes.contains(&response.status))
                && !attempt.down.is_settled
                && self.upload.whole
                && !self.reply.passed
            {
                self.reply.bytes.truncate(before);
                let from = taken - response.consumed;
                attempt.down.inbuf = input[from..].to_vec();
                return Err(Lost::Status);
            }
            if let Some(way) = &self.way {
                way.change_answer(&mut self.reply.bytes, before);
            }
            attempt.down.body = BodyDecoder::new(response.framing, &self.limits, 502);
            attempt.down.emit = response.emit;
            let counted = matches!(response.framing, Framing::Counted(_) | Framing::None);
            self.reply.framed = counted || response.emit == Emit::Chunked;
            self.reply.told_close = close || response.client_close;
            self.reply.status = response.status;
            let endpoint = &attempt.upstream.local.endpoint;
            let now = Instant::now();
            endpoint.latency().record(now - attempt.began, millis(now));
            attempt.down.response = Some(response);
            return Ok(taken);
        }
    }

    fn take_body(&mut self, attempt: &mut Attempt, input: &[u8]) -> Result<(), Lost> {
        let Some(response) = &attempt.down.response else {
            return Ok(());
        };
        if self.is_tunnel(response) {
            append(&mut attempt.down.inbuf, input);
            return Ok(());
        }
        let taken = attempt
            .down
            .body
            .decode(input, attempt.down.emit, &mut self.reply.bytes)
            .map_err(Lost::BadResponse)?;
        attempt.spent |= taken < input.len();
        let small = matches!(response.framing, Framing::Counted(n) if n <= WITHHOLD_MAX);
        if small
            && !attempt.down.body.is_done()
            && !self.reply.passed
            && attempt.down.withhold.is_none()
        {
            attempt.down.withhold = Some(Box::pin(tokio::time::sleep(WITHHOLD)));
        }
        Ok(())
    }
}

/// A counted response up to this size is withheld until complete, for at most [`WITHHOLD`].
const WITHHOLD_MAX: u64 = 16 << 10;
/// See [`WITHHOLD_MAX`].
const WITHHOLD: Duration = Duration::from_millis(5);
/// The most 1xx responses of one exchange.
const INTERIMS: u32 = 32;

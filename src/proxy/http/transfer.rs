//! Both directions of an attempt, polled as far as they go: the request to the endpoint
//! ([`crate::proxy::http::upload`]) and the response to the client
//! ([`crate::proxy::http::download`]).
//!
//! Invariant: a client that has left ends its exchange, even while nothing is read from it.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use crate::contract::reason::CloseReason;
use crate::net::socket::{LOOK, Peer};
use crate::proxy::http::exchange::{Attempt, Exchange, Lost};

impl Exchange<'_> {
    /// Polls both directions as far as they go. Ready when the whole response has been written to
    /// the client.
    pub(super) fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt,
    ) -> Poll<Result<(), Lost>> {
        if attempt.upstream.is_lost() {
            attempt.spent = true;
            (attempt.up.over, attempt.up.failed) = (true, true);
        }
        if !attempt.up.over {
            attempt.upstream.is_sending();
            match self.poll_upload(cx, attempt) {
                Poll::Ready(Ok(())) => attempt.up.over = true,
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => {}
            }
        }
        if attempt.down.flow.full
            && self.reply.written < self.reply.bytes.len()
            && attempt.down.withhold.is_none()
        {
            ready!(self.poll_turn_down(cx, attempt, true));
        }
        loop {
            if let Some(withhold) = &mut attempt.down.withhold
                && (attempt.down.body.is_done() || withhold.as_mut().poll(cx).is_ready())
            {
                attempt.down.withhold = None;
            }
            if attempt.down.withhold.is_none() {
                ready!(self.poll_flush(cx))?;
                if attempt.down.response.is_some() && attempt.down.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
            }
            match self.poll_receive(cx, attempt) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => break,
            }
        }
        if attempt.watch_client
            && attempt.up.over
            && self.client.stream.poll_read_ready(cx).is_ready()
        {
            // Something came: more requests, a half-close, or the end of the connection.
            match self.client.stream.peer() {
                Peer::Gone => return Poll::Ready(Err(Lost::Client(CloseReason::ClientReset))),
                Peer::Open | Peer::HalfClosed => attempt.watch_client = false,
            }
        }
        let held_up = self.upload.sent.len() > attempt.up.written || attempt.up.lent.is_some();
        if !attempt.watch_client || (held_up && !attempt.up.over) {
            // What came stays unread, so readiness says nothing new any more; or nothing is read
            // while the endpoint takes nothing. Ask from time to time whether the client is there.
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
}

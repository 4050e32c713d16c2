//! Both directions of an attempt, polled as far as they go: the request to the endpoint
//! ([`crate::proxy::http::upload`]) and the response to the client
//! ([`crate::proxy::http::download`]).
//!
//! Invariant: a client that has reset its connection ends its exchange, even while nothing is read
//! from it. A client that has ended its direction still gets its response (contract 4.4).

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
            attempt.watch_client = false;
            self.look_at_client(cx, attempt)?;
        }
        let held_up = self.upload.sent.len() > attempt.up.written || attempt.up.lent.is_some();
        if !attempt.watch_client || (held_up && !attempt.up.over) {
            // What came stays unread, so readiness says nothing new any more; or nothing is read
            // while the endpoint takes nothing. Ask from time to time whether the client is there.
            let look = attempt.look.take();
            let mut look = look.unwrap_or_else(|| Box::pin(tokio::time::sleep(LOOK)));
            while look.as_mut().poll(cx).is_ready() {
                self.look_at_client(cx, attempt)?;
                look.as_mut().reset((Instant::now() + LOOK).into());
            }
            attempt.look = Some(look);
        }
        Poll::Pending
    }

    /// Asks whether the client is still there. If it will send nothing more, the endpoint gets its
    /// FIN, and the application decides what that means. Behind a FIN the connection takes no other
    /// request, so a FIN that stands behind further requests is not passed on with this one.
    fn look_at_client(&self, cx: &mut Context<'_>, attempt: &mut Attempt) -> Result<(), Lost> {
        match self.client.stream.peer() {
            Peer::Gone => return Err(Lost::Client(CloseReason::ClientReset)),
            Peer::HalfClosed if attempt.up.over && !attempt.up.ended && !attempt.up.failed => {
                if self.client.unread.is_empty() && self.client.stream.has_ended() {
                    // A failure shows when the response is read.
                    let _ = attempt.upstream.stream.poll_shutdown(cx);
                    attempt.up.ended = true;
                    attempt.spent = true;
                }
            }
            Peer::Open | Peer::HalfClosed => {}
        }
        Ok(())
    }
}

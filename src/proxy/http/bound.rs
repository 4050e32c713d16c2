//! A connection to an endpoint that belongs to one client, because the application authenticates
//! the connection and not each request (NTLM, Negotiate; contract 1.13).
//!
//! Invariants: nobody but this client ever gets the connection. It has its lease from the moment it
//! was dispatched to, so an endpoint that drains is not drained while a client is logged on to it.
//!
//! Leaves out a replay: a request that is lost here may go to another connection by the rules of
//! contract 3. There it meets an application that does not know its client yet.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::sync::futures::OwnedNotified;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::contract::endpoint::Lease;
use crate::proxy::upstream::Upstream;

/// What makes a connection belong to its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tie {
    /// The application has offered a login. The client has not begun it, so it loses nothing if the
    /// connection is given up: an endpoint that leaves gets no further request from it.
    Offer,
    /// A request has carried a part of a login. The connection is kept until its client leaves, the
    /// endpoint closes it, or the drain deadline cuts it.
    Login,
}

/// The connection, between two requests of its client.
pub struct Bound {
    upstream: Upstream,
    /// Dropped after the connection.
    lease: Lease,
    tie: Tie,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    left: Pin<Box<OwnedNotified>>,
}

impl Bound {
    /// Keeps a connection whose exchange has ended at a message boundary.
    pub fn new(mut upstream: Upstream, lease: Lease, tie: Tie) -> Box<Self> {
        upstream.reused = true;
        let local = &upstream.local;
        Box::new(Self {
            cut: Box::pin(local.force.clone().cancelled_owned()),
            left: Box::pin(local.left.clone().notified_owned()),
            upstream,
            lease,
            tie,
        })
    }

    /// The connection for the next request, if it still serves. The kernel is asked, because a
    /// request that may run only once goes out on it, too, however long it was idle.
    pub fn take(self) -> Option<(Lease, Upstream, Option<Tie>)> {
        let serves = self.upstream.stream.is_quiet() && self.holds();
        serves.then_some((self.lease, self.upstream, Some(self.tie)))
    }

    /// Ready when the connection serves no more: the endpoint has ended it, or sent what nobody
    /// asked for, or the endpoint leaves.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.upstream.stream.poll_read(cx, &mut [0]).is_ready() {
            return Poll::Ready(());
        }
        if self.cut.as_mut().poll(cx).is_ready() {
            let tally = &self.lease.endpoint().tally;
            tally.forced.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(());
        }
        while self.left.as_mut().poll(cx).is_ready() {
            self.left
                .set(self.upstream.local.left.clone().notified_owned());
        }
        match self.holds() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Whether the endpoint's state lets the client keep the connection.
    fn holds(&self) -> bool {
        !self.upstream.local.force.is_cancelled()
            && (self.tie == Tie::Login || self.lease.endpoint().is_open())
    }
}

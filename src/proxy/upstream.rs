//! Connections to endpoints: the open ones, and the idle ones that a worker keeps for the next
//! request.
//!
//! Invariants: a connection is kept only if its last exchange ended at a message boundary and its
//! endpoint is open. Connections belong to the [`Endpoint`] itself, so an address that passes to
//! another pod inherits none. Where an endpoint sees its clients' addresses, nobody gets the connection
//! of another client. Every open socket is in its endpoint's list, and leaves the list before
//! it is closed.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::contract::counters::Counter;
use crate::contract::endpoint::Endpoint;
use crate::net::stream::Stream;
use crate::proxy::h2::carrier::Carrier;
use crate::proxy::silence::{Slot, Sockets};

/// A connection that waits for the next request.
pub struct Idle {
    upstream: Upstream,
    /// When its last exchange ended.
    pub since: Instant,
}

/// How sure it must be that a kept connection is still alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// A lost request can be sent again: what the runtime knows is enough.
    Repeatable,
    /// It cannot be sent again: the connection was used within a second, and the kernel is asked
    /// (contract 3.3).
    Once,
    /// Only a new connection serves.
    Fresh,
}

impl Idle {
    /// Whether the connection has nothing to read and no end, as far as the runtime knows. The
    /// kernel is asked only in doubt: after a splice, or a read that filled its buffer, the runtime
    /// takes the socket for readable even if it is not.
    pub fn is_alive(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let stream = &self.upstream.stream;
        if self.upstream.is_lost() {
            return false;
        }
        matches!(stream.poll_read_ready(&mut cx), Poll::Pending) || stream.is_quiet()
    }
}

/// Takes the connection that was used last by this source, if one is as sure to be alive as `reuse`
/// requires. One on which the endpoint does not see the source is taken only while `is_lost` says that
/// a new one would be no better. One on which TLS was spoken in another way than `backend` asks for, or not at
/// all, is left for others: a Gateway's policy and the Service may ask for different ways.
pub fn check_out(
    local: &Rc<Local>,
    source: Option<IpAddr>,
    backend: Option<u64>,
    reuse: Reuse,
    is_lost: impl Fn() -> bool,
) -> Option<Upstream> {
    if reuse == Reuse::Fresh {
        return None;
    }
    let mut idle = local.idle.borrow_mut();
    let fits = |it: &Idle| it.upstream.source() == source && it.upstream.stream.mark() == backend;
    while let Some(place) = idle.iter().rposition(fits) {
        let mut candidate = idle.remove(place);
        let is_named = candidate.upstream.is_named || source.is_none();
        if !candidate.is_alive() || !is_named && !is_lost() {
            continue;
        }
        if reuse == Reuse::Once && candidate.since.elapsed() > RECENT {
            idle.insert(place, candidate);
            return None;
        }
        if reuse == Reuse::Repeatable || candidate.upstream.stream.is_quiet() {
            candidate.upstream.rests = false;
            return Some(candidate.upstream);
        }
    }
    None
}

/// Keeps a connection for the next request of its source, unless its endpoint leaves. Where enough are
/// kept already, the oldest ends: the sources of the others may never come again.
pub fn check_in(mut upstream: Upstream, now: Instant) {
    let local = upstream.local.clone();
    let mut idle = local.idle.borrow_mut();
    if local.endpoint.is_open() {
        if idle.len() >= KEPT {
            idle.remove(0);
        }
        upstream.reused = true;
        upstream.rests = true;
        idle.push(Idle {
            upstream,
            since: now,
        });
    }
}

/// No common server ends an idle connection sooner than this.
pub const RECENT: Duration = Duration::from_secs(1);
/// The most idle connections that a worker keeps for one endpoint.
const KEPT: usize = 256;

/// What one worker keeps for one endpoint.
pub struct Local {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// This worker's count of what it dispatched to the endpoint. No other worker writes it.
    pub dispatched: Arc<Counter>,
    /// Cancelled at the drain deadline. A child of the endpoint's own token: to wait on one token
    /// that all workers share costs many times more.
    pub force: CancellationToken,
    /// Wakes the clients that a connection to the endpoint belongs to: the endpoint drains, or is
    /// out of rotation.
    pub left: Arc<Notify>,
    /// Idle connections, the one that was used last at the end.
    pub idle: RefCell<Vec<Idle>>,
    /// The clients whose addresses the endpoint is to see, by connection. Nobody else gets such a
    /// connection. They are not in the connections, which are many and have none mostly.
    pub(super) sources: RefCell<FxHashMap<Slot, IpAddr>>,
    /// The sockets of all open connections.
    pub(super) sockets: Sockets,
    /// The sockets have the short keepalive of a deleted pod.
    pub(super) tightened: Cell<bool>,
    /// How many idle connections the endpoint's count includes for this worker.
    pub(super) reported: Cell<u32>,
    /// A task connects to the endpoint to find out whether it leaves.
    pub looked_at: Cell<bool>,
    /// Connections of HTTP/2 that take new streams.
    pub(super) carriers: RefCell<Vec<Rc<Carrier>>>,
    /// How many of them are being opened, and the wake-up for who waits for that.
    pub(super) opening: Cell<u32>,
    pub(super) opened: Notify,
}

/// A connection to an endpoint.
pub struct Upstream {
    /// The connection.
    pub stream: Stream,
    /// The worker's part of the endpoint.
    pub local: Rc<Local>,
    /// It belongs to one client, see [`Local::sources`].
    has_source: bool,
    /// The endpoint sees that address. A policy for that client may be why a connect fails.
    pub is_named: bool,
    /// Its place among the sockets to the endpoint. `None`: another connection carries it.
    slot: Option<Slot>,
    /// It has carried a request before.
    pub reused: bool,
    /// It carries nothing now, so its close is a proper end.
    rests: bool,
}

impl Local {
    /// Whether the worker must still find this by its endpoint: for the next dispatch, for the
    /// connections that are open, or so that only one task connects to an endpoint that lost
    /// requests.
    pub(super) fn is_needed(&self) -> bool {
        self.endpoint.is_open() || !self.sockets.is_empty() || self.looked_at.get()
    }

    /// The endpoint leaves: closes the idle connections, and counts them for the drain receipt.
    pub(super) fn drop_idle(&self) {
        self.left.notify_waiters();
        // A connection of HTTP/2 ends with its last stream.
        let carriers = std::mem::take(&mut *self.carriers.borrow_mut());
        let unused = carriers.iter().filter(|it| it.idle_since().is_some());
        let closed = self.idle.borrow_mut().drain(..).count() + unused.count();
        self.endpoint
            .tally
            .idle_closed
            .fetch_add(closed as u32, Ordering::Relaxed);
        self.report_idle();
    }

    /// Closes connections of HTTP/2 without a stream: those that are unused since a moment that `is_old`.
    /// Returns whether there were any.
    pub(super) fn drop_unused(&self, is_old: impl Fn(Instant) -> bool) -> bool {
        let mut carriers = self.carriers.borrow_mut();
        let before = carriers.len();
        carriers.retain(|it| it.is_open() && !it.idle_since().is_some_and(&is_old));
        carriers.len() < before
    }

    /// Brings the endpoint's count of idle connections up to date. Not done for each request, which
    /// would cost two atomic operations.
    pub(super) fn report_idle(&self) {
        let carriers = self.carriers.borrow();
        let unused = carriers.iter().filter(|it| it.idle_since().is_some());
        let now = (self.idle.borrow().len() + unused.count()) as u32;
        let change = now.wrapping_sub(self.reported.replace(now));
        self.endpoint
            .tally
            .idle
            .fetch_add(change, Ordering::Relaxed);
    }
}

impl Upstream {
    /// Starts to connect for this source, from its shadow if it has one.
    ///
    /// # Errors
    /// As for [`socket::bind_source`](crate::net::socket::bind_source), and those of a connect.
    pub fn connect(
        local: Rc<Local>,
        source: Option<IpAddr>,
        shadow: Option<IpAddr>,
    ) -> io::Result<Self> {
        let shadow = source.and(shadow);
        let stream = Stream::connect(local.endpoint.address, shadow)?;
        let slot = stream.fd().map(|fd| local.sockets.open(fd));
        if let (Some(source), Some(slot)) = (source, slot) {
            local.sources.borrow_mut().insert(slot, source);
        }
        Ok(Self {
            stream,
            local,
            has_source: source.is_some(),
            is_named: shadow.is_some(),
            slot,
            reused: false,
            rests: false,
        })
    }

    /// A connection that another process has opened. No other client gets it.
    pub(super) fn adopted(local: Rc<Local>, stream: Stream) -> Self {
        let slot = stream.fd().map(|fd| local.sockets.open(fd));
        Self {
            stream,
            local,
            has_source: false,
            is_named: false,
            slot,
            reused: false,
            rests: false,
        }
    }

    /// A connection that another one carries, and that belongs to this source.
    pub(super) fn carried(
        local: Rc<Local>,
        stream: Stream,
        source: Option<IpAddr>,
        is_named: bool,
        reused: bool,
    ) -> Self {
        Self {
            stream,
            local,
            has_source: source.is_some(),
            is_named,
            slot: None,
            reused,
            rests: false,
        }
    }

    /// The client to whom it belongs. `None`: it is anybody's.
    pub(super) fn source(&self) -> Option<IpAddr> {
        let slot = self.slot.filter(|_| self.has_source)?;
        self.local.sources.borrow().get(&slot).copied()
    }

    /// Its place among the sockets to the endpoint.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// Must be called while something is sent, so that an endpoint that has vanished is noticed.
    #[inline]
    pub fn is_sending(&self) {
        if let Some(slot) = self.slot {
            self.local.sockets.sent_to(slot);
        }
    }

    /// Whether the endpoint has vanished. What it had sent before can still be read, and then comes
    /// an end that is not its own.
    #[inline]
    pub fn is_lost(&self) -> bool {
        self.slot
            .is_some_and(|slot| self.local.sockets.is_lost(slot))
    }
}

/// Runs before the fields are dropped, so the socket leaves the list before it is closed.
impl Drop for Upstream {
    fn drop(&mut self) {
        if self.is_lost() {
            // The kernel need not go on trying to deliver.
            self.stream.reset_on_close();
        } else if self.rests {
            self.stream.end();
        }
        let Some(slot) = self.slot else {
            return;
        };
        if self.has_source {
            self.local.sources.borrow_mut().remove(&slot);
        }
        self.local.sockets.close(slot);
    }
}

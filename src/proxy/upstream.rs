//! Idle upstream connections, kept per worker and endpoint.
//!
//! Invariant: a connection goes back only when its last exchange ended at a message boundary and its endpoint is open;
//! it is keyed by the [`Endpoint`](crate::contract::endpoint::Endpoint) itself, so an address that passes to another pod inherits none.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::contract::endpoint::Endpoint;
use crate::net::stream::Stream;

pub struct Idle {
    upstream: Upstream,
    pub since: Instant,
}

/// How sure one has to be that a kept connection still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// A loss can be repeated: what the runtime knows is enough.
    Repeatable,
    /// It cannot: used a moment ago, and the kernel is asked.
    Once,
    /// Only a new connection will do.
    Fresh,
}

impl Idle {
    /// Nothing to read and no end, as far as the runtime has heard. Costs a system call only where that is in doubt: a
    /// splice, or a read that filled its buffer, leaves a socket marked readable that has no more to read.
    pub fn is_alive(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let stream = &self.upstream.stream;
        matches!(stream.poll_read_ready(&mut cx), Poll::Pending) || stream.is_quiet()
    }
}

/// The connection used last, if there is one that may be trusted so far.
pub fn check_out(local: &Rc<Local>, reuse: Reuse) -> Option<Upstream> {
    if reuse == Reuse::Fresh {
        return None;
    }
    let mut idle = local.idle.borrow_mut();
    while let Some(candidate) = idle.pop() {
        if !candidate.is_alive() {
            continue;
        }
        if reuse == Reuse::Once && candidate.since.elapsed() > RECENT {
            idle.push(candidate);
            return None;
        }
        if reuse == Reuse::Repeatable || candidate.upstream.stream.is_quiet() {
            return Some(candidate.upstream);
        }
    }
    None
}

/// Keeps a connection for the next request, unless its endpoint leaves or enough are kept.
pub fn check_in(mut upstream: Upstream, now: Instant) {
    let local = upstream.local.clone();
    let mut idle = local.idle.borrow_mut();
    if local.endpoint.is_open() && idle.len() < KEPT {
        upstream.reused = true;
        idle.push(Idle {
            upstream,
            since: now,
        });
    }
}

/// No server of note ends idle connections sooner.
pub const RECENT: Duration = Duration::from_secs(1);
/// Idle connections per worker and endpoint.
const KEPT: usize = 256;

/// What one worker keeps for one endpoint.
pub struct Local {
    pub endpoint: Arc<Endpoint>,
    /// Cancelled at the drain deadline (a child of the endpoint's own: see design, section 5).
    pub force: CancellationToken,
    pub idle: RefCell<Vec<Idle>>,
    pub(super) sockets: RefCell<Vec<RawFd>>,
    /// Those of them whose silence is not yet heeded.
    pub(super) young: RefCell<Vec<RawFd>>,
    pub(super) tightened: Cell<bool>,
    pub(super) reported: Cell<u32>,
    /// Somebody finds out whether it is on its way out.
    pub looked_at: Cell<bool>,
}

/// A connection to an endpoint.
pub struct Upstream {
    pub stream: Stream,
    pub local: Rc<Local>,
    /// Has carried a request before.
    pub reused: bool,
}

impl Local {
    /// Whether the worker must still find this by its endpoint: for the next dispatch, for the
    /// connections that are open, or so that others see that somebody is looking at the endpoint.
    pub(super) fn is_needed(&self) -> bool {
        self.endpoint.is_open() || !self.sockets.borrow().is_empty() || self.looked_at.get()
    }

    pub(super) fn drop_idle(&self) {
        let closed = self.idle.borrow_mut().drain(..).count();
        self.endpoint
            .tally
            .idle_closed
            .fetch_add(closed as u32, Ordering::Relaxed);
        self.report_idle();
    }

    /// Brings the endpoint's count of idle connections up to date; not per request, which would cost two atomics.
    pub(super) fn report_idle(&self) {
        let now = self.idle.borrow().len() as u32;
        let change = now.wrapping_sub(self.reported.replace(now));
        self.endpoint
            .tally
            .idle
            .fetch_add(change, Ordering::Relaxed);
    }
}

impl Upstream {
    /// Starts to connect.
    pub fn connect(local: Rc<Local>) -> io::Result<Self> {
        let stream = Stream::connect(local.endpoint.address)?;
        local.sockets.borrow_mut().push(stream.as_raw_fd());
        local.young.borrow_mut().push(stream.as_raw_fd());
        Ok(Self {
            stream,
            local,
            reused: false,
        })
    }
}

/// Runs before the fields are dropped: the number leaves the list before the socket is closed.
impl Drop for Upstream {
    fn drop(&mut self) {
        for list in [&self.local.sockets, &self.local.young] {
            let mut list = list.borrow_mut();
            // The newest are the likeliest to end.
            if let Some(at) = list.iter().rposition(|fd| *fd == self.stream.as_raw_fd()) {
                list.swap_remove(at);
            }
        }
    }
}

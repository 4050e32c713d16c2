//! Idle upstream connections, kept per worker and endpoint.
//!
//! Invariant: a connection goes back only when its last exchange ended at a message boundary and its endpoint is open;
//! it is keyed by the [`Endpoint`](crate::contract::endpoint::Endpoint) itself, so an address that passes to another pod inherits none.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::net::socket;
use crate::worker::{Local, Upstream};

pub struct Idle {
    upstream: Upstream,
    pub since: Instant,
}

/// How sure one has to be that a kept connection still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
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
        matches!(stream.poll_read_ready(&mut cx), Poll::Pending) || socket::is_quiet(stream)
    }
}

/// The connection used last, if there is one that may be trusted so far.
pub fn check_out(local: &Rc<Local>, trust: Trust) -> Option<Upstream> {
    if trust == Trust::Fresh {
        return None;
    }
    let mut idle = local.idle.borrow_mut();
    while let Some(candidate) = idle.pop() {
        if !candidate.is_alive() {
            continue;
        }
        if trust == Trust::Once && candidate.since.elapsed() > RECENT {
            idle.push(candidate);
            return None;
        }
        if trust == Trust::Repeatable || socket::is_quiet(&candidate.upstream.stream) {
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
        idle.push(Idle { upstream, since: now });
    }
}

/// No server of note ends idle connections sooner.
pub const RECENT: Duration = Duration::from_secs(1);
/// Idle connections per worker and endpoint.
const KEPT: usize = 256;

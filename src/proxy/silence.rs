//! Endpoints that have fallen silent: a connection whose endpoint acknowledges nothing of what was
//! sent to it, for `timeouts.upstreamSilence`, is given up (contract 2.4).
//!
//! Invariant: an endpoint that is alive is never given up because it is slow. A closed receive
//! window whose probes are answered is no silence, however long it stays closed.
//!
//! Once a second, the kernel is asked about those connections to which something was sent since it
//! last said that all had arrived. An idle connection costs nothing here: the kernel's keepalive
//! watches over it.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::contract::clock::millis;
use crate::net::socket;

/// The upstream sockets of one worker to one endpoint.
#[derive(Default)]
pub struct Sockets(RefCell<Slots>);

/// A socket's place among them, counted from 1: so there is room for none in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(NonZeroU32);

impl Slot {
    fn new(at: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(at))
    }

    fn at(self) -> u32 {
        self.0.get() - 1
    }
}

#[derive(Default)]
struct Slots {
    all: Vec<Watched>,
    /// Places without a socket.
    free: Vec<u32>,
    /// The places to ask about. Some may have no socket any more, or another one.
    asked: Vec<Asked>,
}

/// What is kept of a socket. There is one for each connection, so it is small.
struct Watched {
    /// [`CLOSED`] once the socket is closed: the number may be another socket's now.
    fd: RawFd,
    /// It is in [`Slots::asked`].
    is_asked: bool,
    /// It was opened since it was last asked about.
    is_new: bool,
    is_lost: bool,
}

/// A socket to which something was sent.
#[derive(Clone, Copy)]
struct Asked {
    at: u32,
    /// Since when the endpoint has answered nothing: the lower bits of [`millis`].
    silent_since: Option<u32>,
    /// How many segments had come by then.
    heard: u32,
}

impl Sockets {
    /// Takes in a new socket. Its owner calls [`Self::close`] before it closes the socket.
    pub(super) fn open(&self, fd: RawFd) -> Slot {
        let slots = &mut *self.0.borrow_mut();
        let watched = Watched {
            fd,
            is_asked: true,
            is_new: true,
            is_lost: false,
        };
        let at = match slots.free.pop() {
            Some(at) => at,
            None => {
                slots.all.push(Watched {
                    is_asked: false,
                    ..watched
                });
                (slots.all.len() - 1) as u32
            }
        };
        // A place that is still to be asked about stays so.
        if !std::mem::replace(&mut slots.all[at as usize], watched).is_asked {
            slots.asked.push(Asked::new(at));
        }
        Slot::new(at)
    }

    /// Notes that something is being sent on the socket.
    #[inline]
    pub(super) fn sent_to(&self, slot: Slot) {
        let at = slot.at();
        let slots = &mut *self.0.borrow_mut();
        if !std::mem::replace(&mut slots.all[at as usize].is_asked, true) {
            slots.asked.push(Asked::new(at));
        }
    }

    /// Whether the connection is given up. What the endpoint had sent can still be read; the end
    /// that comes after it is not the endpoint's.
    #[inline]
    pub(super) fn is_lost(&self, slot: Slot) -> bool {
        let at = slot.at();
        self.0.borrow().all[at as usize].is_lost
    }

    /// Whether the endpoint has ended the connection, as the kernel knows. What it had sent before that
    /// counts as an answer that is still to be read.
    pub(super) fn has_ended(&self, slot: Slot) -> bool {
        let at = slot.at();
        let fd = self.0.borrow().all[at as usize].fd;
        fd == CLOSED || socket::has_ended_fd(fd)
    }

    pub(super) fn close(&self, slot: Slot) {
        let at = slot.at();
        let slots = &mut *self.0.borrow_mut();
        slots.all[at as usize].fd = CLOSED;
        slots.free.push(at);
    }

    /// Whether none is open.
    pub(super) fn is_empty(&self) -> bool {
        let slots = self.0.borrow();
        slots.free.len() == slots.all.len()
    }

    /// Whether there is any to ask about.
    pub(super) fn has_asked(&self) -> bool {
        !self.0.borrow().asked.is_empty()
    }

    /// Replaces the keepalive of all sockets: from now on, the endpoint may be silent this long.
    pub(super) fn set_keepalive(&self, silence: Duration) {
        let all = &mut self.0.borrow_mut().all;
        for watched in all.iter_mut().filter(|it| it.fd != CLOSED) {
            watched.is_new = false;
            // This fails only for a socket that is already dead.
            let _ = socket::set_keepalive(watched.fd, silence);
        }
    }

    /// Asks about each socket to which something was sent. `limits` gives how long an endpoint may
    /// be silent, and how long one that has not yet acknowledged any byte. Gives way to other tasks
    /// in between: there may be tens of thousands of sockets.
    pub(super) async fn look(&self, limits: impl Fn() -> (Duration, Duration)) {
        let asked = std::mem::take(&mut self.0.borrow_mut().asked);
        for some in asked.chunks(AT_ONCE) {
            self.ask(some, limits());
            tokio::task::yield_now().await;
        }
    }

    fn ask(&self, some: &[Asked], limits: (Duration, Duration)) {
        let now = millis(Instant::now()) as u32;
        let slots = &mut *self.0.borrow_mut();
        for asked in some {
            let watched = &mut slots.all[asked.at as usize];
            let again = watched.ask(*asked, now, limits);
            watched.is_asked = again.is_some();
            slots.asked.extend(again);
        }
    }
}

impl Asked {
    fn new(at: u32) -> Self {
        Self {
            at,
            silent_since: None,
            heard: 0,
        }
    }
}

impl Watched {
    /// Asks the kernel, and gives the connection up if it has been silent for too long. Returns what
    /// to ask next, if anything.
    fn ask(
        &mut self,
        asked: Asked,
        now: u32,
        (limit, first): (Duration, Duration),
    ) -> Option<Asked> {
        if self.fd == CLOSED || self.is_lost {
            return None;
        }
        let is_new = std::mem::take(&mut self.is_new);
        if is_new {
            // This fails only for a socket that is already dead.
            let _ = socket::set_keepalive(self.fd, limit);
        }
        let Some(delivery) = socket::delivery(self.fd) else {
            // The connect has a timeout of its own, and an end is seen by a read or a write.
            return Some(Asked::new(asked.at));
        };
        if !delivery.unanswered {
            return delivery.waiting.then_some(Asked::new(asked.at));
        }
        let silent_since = match asked.silent_since {
            Some(since) if !is_new && asked.heard == delivery.heard => since,
            _ => now,
        };
        // The SYN counts as one.
        let limit = match delivery.acknowledged > 1 {
            true => limit,
            false => first,
        };
        if u128::from(now.wrapping_sub(silent_since)) < limit.as_millis() {
            return Some(Asked {
                at: asked.at,
                silent_since: Some(silent_since),
                heard: delivery.heard,
            });
        }
        self.is_lost = true;
        // The task that serves the connection wakes up.
        socket::stop_reading(self.fd);
        None
    }
}

/// Stands for no socket.
const CLOSED: RawFd = -1;
/// How long an endpoint may be silent whose pod is deleted.
pub(super) const POD_GONE: Duration = Duration::from_secs(2);
/// An endpoint that has acknowledged no byte yet may be silent this many times longer: Linux leaves
/// what comes unanswered while the accept queue is full, and a connect without a proxy would wait
/// about as long.
pub(super) const UNACCEPTED: u32 = 8;
/// How many sockets are asked about before other tasks have their turn.
const AT_ONCE: usize = 64;

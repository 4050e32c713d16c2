//! One worker's UDP sessions: a client's way to an endpoint, for as long as datagrams come.
//!
//! Invariants: a session that is in the table has taken a permit of all client connections, and gives
//! it back when it leaves the table. It has at most two sockets to endpoints, the current one and the
//! one before. A datagram is never copied to the heap, unless it is held.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::{EndpointId, Lease};
use crate::contract::listener::{ListenerId, ListenerSpec};
use crate::net::datagrams::{Connected, Datagrams, LONGEST};
use crate::proxy::claims::{self, Key};
use crate::proxy::upstream::Local;

/// A listener's socket on this worker.
pub struct Door {
    /// The listener.
    pub spec: Arc<ListenerSpec>,
    /// The socket.
    pub socket: Datagrams,
    /// This process reads it. Until then, its predecessor does.
    pub is_read: Cell<bool>,
}

/// A client, and what serves it.
pub struct Session {
    /// Its identity.
    pub key: Key,
    /// Where its datagrams arrive, and its answers leave.
    pub door: Rc<Door>,
    /// The listener of the Service that serves it: the door's, or the one that a route has led to.
    pub listener: Arc<ListenerSpec>,
    /// The metrics of its Service port.
    pub metrics: Arc<ServiceMetrics>,
    /// When it began.
    pub since: Instant,
    /// Its last datagram, in either direction.
    pub last: Cell<Instant>,
    /// The datagram that was sent last, if it is short: if it is refused, it goes elsewhere.
    pub sent: RefCell<Vec<u8>>,
    /// Datagrams that wait for an endpoint.
    pub held: RefCell<Held>,
    /// The process that replaces this one has it, too.
    pub is_handed: Cell<bool>,
    /// It was handed over to this process.
    pub claim: RefCell<Option<claims::Held>>,
    flow: RefCell<Option<Rc<Flow>>>,
    before: RefCell<Option<Rc<Flow>>>,
    /// The endpoint that it was sent to last.
    served_by: Cell<Option<EndpointId>>,
    place: Cell<usize>,
    permit: Cell<Option<OwnedSemaphorePermit>>,
}

/// A session's socket to one endpoint, with the lease on it.
pub struct Flow {
    /// The lease. A drain waits for it, see [`Flow::ends_at`].
    pub lease: Lease,
    /// The worker's part of the endpoint.
    pub local: Rc<Local>,
    /// The socket.
    pub socket: Connected,
    /// The endpoint sees the client's address. A policy for that client may be why it refuses.
    pub is_named: bool,
    /// Its last datagram, in either direction.
    pub last: Cell<Instant>,
    /// Wakes the task that passes the answers on: something that [`Flow::ends_at`] reads has changed.
    pub changed: Notify,
    /// It is the current one of its session.
    is_current: Cell<bool>,
    /// It ends now.
    is_over: Cell<bool>,
}

/// Datagrams that wait for an endpoint, in their order.
#[derive(Default)]
pub struct Held {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A task waits for an endpoint.
    pub is_watched: bool,
}

/// All sessions of a worker.
#[derive(Default)]
pub struct Sessions {
    /// Clients choose the keys, so the hash has a random key.
    by_key: RefCell<HashMap<Key, Rc<Session>>>,
    /// The same sessions, in no order.
    all: RefCell<Vec<Rc<Session>>>,
    /// This worker's sockets of UDP listeners.
    doors: RefCell<HashMap<ListenerId, Rc<Door>>>,
    /// Every datagram is read into this. Nothing in it survives a poll. Empty without a UDP listener.
    buffer: RefCell<Vec<u8>>,
}

impl Sessions {
    /// Calls `with` with the worker's buffer, which takes the longest datagram.
    pub fn with_buffer<T>(&self, with: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.buffer.borrow_mut();
        buffer.resize(LONGEST, 0);
        with(&mut buffer)
    }

    /// The session with this identity.
    pub fn find(&self, key: &Key) -> Option<Rc<Session>> {
        self.by_key.borrow().get(key).cloned()
    }

    /// This worker's socket of a listener.
    pub fn door(&self, listener: ListenerId) -> Option<Rc<Door>> {
        self.doors.borrow().get(&listener).cloned()
    }

    /// This worker's sockets of listeners.
    pub fn doors(&self) -> Vec<Rc<Door>> {
        self.doors.borrow().values().cloned().collect()
    }

    /// A listener's socket is there.
    pub fn open(&self, door: Rc<Door>) {
        self.doors.borrow_mut().insert(door.spec.id, door);
    }

    /// A listener's socket closes: ends its sessions.
    pub fn close(&self, listener: ListenerId) {
        self.doors.borrow_mut().remove(&listener);
        for session in self.of_listener(listener) {
            self.end(&session);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins a session.
    pub fn begin(
        &self,
        key: Key,
        door: Rc<Door>,
        listener: Arc<ListenerSpec>,
        metrics: Arc<ServiceMetrics>,
        permit: OwnedSemaphorePermit,
    ) -> Rc<Session> {
        let now = Instant::now();
        metrics.udp_sessions.inc();
        let mut all = self.all.borrow_mut();
        let session = Rc::new(Session {
            key,
            door,
            listener,
            metrics,
            since: now,
            last: Cell::new(now),
            sent: RefCell::default(),
            held: RefCell::default(),
            is_handed: Cell::new(false),
            claim: RefCell::default(),
            flow: RefCell::default(),
            before: RefCell::default(),
            served_by: Cell::new(None),
            place: Cell::new(all.len()),
            permit: Cell::new(Some(permit)),
        });
        all.push(session.clone());
        self.by_key.borrow_mut().insert(key, session.clone());
        session
    }

    /// Ends a session, and its sockets to endpoints.
    pub fn end(&self, session: &Rc<Session>) {
        // A session ends once. Its place belongs to another one from then on.
        let Some(permit) = session.permit.take() else {
            return;
        };
        drop(permit);
        self.by_key.borrow_mut().remove(&session.key);
        let mut all = self.all.borrow_mut();
        let place = session.place.get();
        all.swap_remove(place);
        if let Some(moved) = all.get(place) {
            moved.place.set(place);
        }
        session.metrics.udp_sessions.dec();
        session.claim.take();
        *session.held.borrow_mut() = Held::default();
        for flow in [session.flow.take(), session.before.take()] {
            flow.iter().for_each(|flow| flow.end());
        }
    }

    /// Ends a session for a new one: of a few at random, the one that was idle for longest. To find
    /// the very oldest would cost more with each session, and a flood of new clients would make that
    /// the worker's only work. Returns `false` if there is none.
    pub fn evict(&self) -> bool {
        let oldest = {
            let all = self.all.borrow();
            let looked_at = (0..LOOKS.min(all.len())).map(|_| &all[fastrand::usize(..all.len())]);
            looked_at.min_by_key(|session| session.last.get()).cloned()
        };
        let Some(oldest) = oldest else {
            return false;
        };
        oldest.metrics.udp_evicted.inc();
        self.end(&oldest);
        true
    }

    /// The sessions of a listener.
    pub fn of_listener(&self, listener: ListenerId) -> Vec<Rc<Session>> {
        let all = self.all.borrow();
        let of = all
            .iter()
            .filter(|session| session.key.listener == listener);
        of.cloned().collect()
    }
}

impl Session {
    /// Whether it is in the table.
    pub fn is_open(&self) -> bool {
        let permit = self.permit.take();
        let is_open = permit.is_some();
        self.permit.set(permit);
        is_open
    }

    /// The flow for the next datagram; `None` if its endpoint has left or refuses.
    pub fn flow(&self) -> Option<Rc<Flow>> {
        let flow = self.flow.borrow();
        flow.as_ref().filter(|flow| flow.is_usable()).cloned()
    }

    /// Makes this the current flow. The answers of the one before are still passed on.
    pub fn set_flow(&self, flow: Rc<Flow>) {
        let endpoint = flow.lease.endpoint().id;
        let before = self.served_by.replace(Some(endpoint));
        if before.is_some_and(|before| before != endpoint) {
            self.metrics.udp_sessions_moved.inc();
        }
        let before = self.flow.replace(Some(flow));
        if let Some(before) = before {
            before.is_current.set(false);
            before.changed.notify_one();
            if let Some(older) = self.before.replace(Some(before)) {
                older.end();
            }
        }
    }

    /// Passes on the answers of this flow, too, unless those of another one are still awaited.
    pub fn set_before(&self, flow: Rc<Flow>) -> bool {
        let mut before = self.before.borrow_mut();
        let is_free = before.is_none();
        if is_free {
            flow.is_current.set(false);
            *before = Some(flow);
        }
        is_free
    }

    /// Forgets a flow that has ended. Returns whether it was the current one.
    pub fn forget(&self, flow: &Rc<Flow>) -> bool {
        let is = |other: &RefCell<Option<Rc<Flow>>>| {
            let is = other
                .borrow()
                .as_ref()
                .is_some_and(|it| Rc::ptr_eq(it, flow));
            if is {
                other.take();
            }
            is
        };
        is(&self.before);
        is(&self.flow)
    }

    /// Keeps a copy of the datagram that was sent last, or nothing if it is long.
    pub fn note_sent(&self, bytes: &[u8], now: Instant) {
        self.last.set(now);
        let mut sent = self.sent.borrow_mut();
        sent.clear();
        if bytes.len() <= KEPT {
            sent.extend_from_slice(bytes);
        }
    }

    /// Wakes its flows.
    pub fn notify(&self) {
        for flow in [&self.flow, &self.before] {
            flow.borrow()
                .iter()
                .for_each(|flow| flow.changed.notify_one());
        }
    }
}

impl Flow {
    /// A flow that is the next current one of its session.
    pub fn new(lease: Lease, local: Rc<Local>, socket: Connected, is_named: bool) -> Rc<Self> {
        Rc::new(Self {
            lease,
            local,
            socket,
            is_named,
            last: Cell::new(Instant::now()),
            changed: Notify::new(),
            is_current: Cell::new(true),
            is_over: Cell::new(false),
        })
    }

    fn is_usable(&self) -> bool {
        let endpoint = self.lease.endpoint();
        endpoint.is_open() && !endpoint.is_ejected() && !self.is_over.get()
    }

    /// Ends it without waiting for answers.
    pub fn end(&self) {
        self.is_over.set(true);
        self.changed.notify_one();
    }

    /// When it ends if no datagram comes; `None`: now. The current flow of a session lasts as long as
    /// the session, `idle` after the last datagram. One that gets nothing more waits 2 s for
    /// answers that are under way. Then its lease is given back, and the drain of its endpoint is over.
    pub fn ends_at(&self, session: &Session, idle: Duration, closing: bool) -> Option<Instant> {
        if self.is_over.get() {
            return None;
        }
        // The other process has the socket, too.
        let goes_on = !closing || session.is_handed.get();
        match self.is_current.get() && self.is_usable() && goes_on {
            true => Some(session.last.get() + idle),
            false => Some(self.last.get() + LINGER.min(idle)),
        }
    }
}

impl Held {
    /// Keeps a datagram, if there is room.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.waiting.len() < HELD && self.bytes + bytes.len() <= HELD_BYTES;
        if fits {
            self.bytes += bytes.len();
            self.waiting.push_back(bytes.to_vec());
        }
        fits
    }

    /// Takes the oldest datagram.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let bytes = self.waiting.pop_front()?;
        self.bytes -= bytes.len();
        Some(bytes)
    }

    /// Puts a datagram back that could not be sent.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.waiting.push_front(bytes);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// How long the answers of an endpoint are awaited that gets nothing more. A resolver or a game server
/// answers sooner, and a drain without a known end should not take longer.
const LINGER: Duration = Duration::from_secs(2);
/// The longest datagram that is kept in case it is refused: longer than one of any usual link.
const KEPT: usize = 2 << 10;
/// The most datagrams that a session holds, and the most bytes of them.
const HELD: usize = 8;
const HELD_BYTES: usize = 8 << 10;
/// How many sessions are looked at to end one.
const LOOKS: usize = 8;

//! Everything that the connections of one worker share, without a lock: configuration, routes,
//! buffers, endpoints and queues.
//!
//! Invariant: all of it stays on this thread. A drain is correct because of the lease, never
//! because of what a worker has noticed.
//!
//! Leaves out the thread and its loop ([`crate::proxy::run`]) and what threads share
//! ([`crate::proxy::shared`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::TcpListener;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::settings::Config;
use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::listener::{ListenerId, ListenerSpec, Serves};
use crate::contract::name::PortKey;
use crate::contract::policy::PortRef;
use crate::contract::snapshot::{Place, Port};
use crate::net::pipe::Pipes;
use crate::net::turns;
use crate::proxy::budget::Budget;
use crate::proxy::heir::Heir;
use crate::proxy::shared::{Shared, Spare, WorkerCommand};
use crate::proxy::silence::{self, Sockets};
use crate::proxy::udp::sessions::Sessions;
use crate::proxy::upstream::Local;
use crate::wire::buffer::{BUFFER_MAX, SCRATCH};

/// A TCP listener that a worker accepts from, and its socket.
pub(super) type Accepts = (Arc<ListenerSpec>, Rc<AsyncFd<TcpListener>>);

/// One worker.
pub struct Worker {
    /// Its place among the workers.
    pub index: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// A copy of this worker's own, so that its reference count is too. All workers would contend
    /// for the count of a shared one at each request.
    pub(super) config: RefCell<Rc<Config>>,
    /// Every read goes here first. Nothing in it survives a poll.
    pub scratch: RefCell<Box<[u8]>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    pub(super) locals: RefCell<FxHashMap<EndpointId, Rc<Local>>>,
    budgets: RefCell<HashMap<PortKey, Rc<Budget>>>,
    pub(super) listeners: RefCell<HashMap<ListenerId, CancellationToken>>,
    /// The TCP listeners that it accepts from, by the listener and the number of the socket.
    pub(super) accepting: RefCell<HashMap<(ListenerId, usize), Accepts>>,
    pub(super) routes: RefCell<FxHashMap<ListenerId, Route>>,
    /// Pipes for splice.
    pub pipes: Pipes,
    /// Turns for bodies that consist of little but chunk lines: they cost the most for each byte.
    pub tiny_chunks: Rc<turns::Queue>,
    /// Turns for connections with more to move than one read takes.
    pub bulk: Rc<turns::Queue>,
    /// Turns for accepts.
    pub accepts: Rc<turns::Queue>,
    /// Turns for clients that have had no answer yet.
    pub unanswered: Rc<turns::Queue>,
    /// Turns for TLS handshakes: each may cost a signature.
    pub handshakes: Rc<turns::Queue>,
    /// The shutdown's grace is over: nothing is replayed any more.
    pub cut: Cell<bool>,
    /// Tells clients of HTTP/2 that this process ends.
    pub goodbye: Arc<Notify>,
    /// The tasks of the client connections, to wake them when there is an heir.
    pub(super) sessions: RefCell<Slab<Waker>>,
    /// Turns for datagrams.
    pub datagrams: Rc<turns::Queue>,
    /// The UDP sessions.
    pub udp: Sessions,
}

/// A listener's service port, and where a newer one would be.
pub(super) struct Route {
    place: Arc<Place>,
    routed: Rc<Routed>,
}

/// A service port, with what this worker counts for it.
pub struct Routed {
    port: Arc<Port>,
    /// The retry budget of this worker for the port.
    pub budget: Rc<Budget>,
}

impl Worker {
    pub(super) fn new(index: usize, shared: Arc<Shared>, config: &Config) -> Self {
        Self {
            index,
            shared,
            config: RefCell::new(Rc::new(Config::clone(config))),
            scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            buffers: RefCell::default(),
            locals: RefCell::default(),
            budgets: RefCell::default(),
            listeners: RefCell::default(),
            accepting: RefCell::default(),
            routes: RefCell::default(),
            pipes: Pipes::default(),
            tiny_chunks: Rc::new(turns::Queue::new(TINY_CHUNKS)),
            bulk: Rc::new(turns::Queue::new(BULK)),
            accepts: Rc::new(turns::Queue::new(ACCEPTS)),
            unanswered: Rc::new(turns::Queue::new(UNANSWERED)),
            handshakes: Rc::new(turns::Queue::new(HANDSHAKES)),
            cut: Cell::new(false),
            goodbye: Arc::default(),
            sessions: RefCell::default(),
            datagrams: Rc::new(turns::Queue::new(DATAGRAMS)),
            udp: Sessions::default(),
        }
    }

    /// The service port that serves a listener's next connection or request, as it is published
    /// now. It looks a port up once per change of it.
    pub fn port(&self, spec: &ListenerSpec) -> Option<Rc<Routed>> {
        let mut routes = self.routes.borrow_mut();
        if let Some(route) = routes.get(&spec.id).filter(|route| route.is_current()) {
            return Some(route.routed.clone());
        }
        // A named port may have moved to another place.
        let Serves::Port { service, port } = &spec.serves else {
            return None;
        };
        let place = self.shared.snapshot.place(service, port, spec.transport());
        let Some((place, port)) = place.and_then(|place| place.port().map(|port| (place, port)))
        else {
            routes.remove(&spec.id);
            return None;
        };
        let budget = self.budget(&port.key);
        let routed = Rc::new(Routed { budget, port });
        let route = Route {
            place,
            routed: routed.clone(),
        };
        routes.insert(spec.id, route);
        Some(routed)
    }

    /// The service port of a listener, and a future that completes when it may have changed since.
    pub fn watched_port(
        &self,
        spec: &ListenerSpec,
    ) -> (Option<Rc<Routed>>, impl Future<Output = ()> + use<>) {
        let mut generation = self.shared.generation.clone();
        let changes = self.port(spec).map(|port| port.hold.changes());
        // Read again, since the port may have changed before the future was made.
        let port = self.port(spec);
        let changed = async move {
            match changes {
                Some(changes) => changes.await,
                // The Service does not exist.
                None => {
                    if generation.changed().await.is_err() {
                        // The control thread is gone, and the process ends.
                        std::future::pending().await
                    }
                }
            }
        };
        (port, changed)
    }

    /// Waits while the Service of a listener that was named at `since` may still be read.
    pub async fn until_known(&self, spec: &ListenerSpec, since: Instant) {
        let until = since + FIRST_LOOK;
        while Instant::now() < until {
            let (port, changed) = self.watched_port(spec);
            if port.is_some() {
                return;
            }
            let _ = tokio::time::timeout_at(until.into(), changed).await;
        }
    }

    /// The process that replaces this one, if one can be asked now.
    pub(super) fn heir(&self) -> Option<Arc<Heir>> {
        self.shared.heir.load_full().filter(|heir| heir.is_there())
    }

    /// Whether there is one.
    pub(super) fn has_heir(&self) -> bool {
        self.shared.has_heir()
    }

    /// Whether a connection can be offered to it now, for a look at each poll.
    #[inline]
    pub(super) fn can_offer(&self) -> bool {
        let heir = || self.shared.heir.load();
        self.shared.leaving.load(Ordering::Relaxed)
            && heir().as_ref().is_some_and(|it| it.has_room())
    }

    /// Has each connection look whether it can pass to the heir, a few at a time: the others are served
    /// meanwhile. It goes on for those that are busy.
    pub(super) async fn offer_all(self: Rc<Self>) {
        while self.has_heir() {
            let all: Vec<usize> = self.sessions.borrow().iter().map(|(at, _)| at).collect();
            for some in all.chunks(OFFERED) {
                for at in some {
                    // It may have ended, and another one begun in its place.
                    if let Some(waker) = self.sessions.borrow().get(*at) {
                        waker.wake_by_ref();
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(OFFER_AGAIN).await;
        }
    }

    /// The newest configuration.
    pub fn config(&self) -> Rc<Config> {
        self.config.borrow().clone()
    }

    /// An empty buffer, one that was given back if there is one.
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a buffer for reuse, unless it is large or enough are kept.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffer.capacity() > 0 && buffer.capacity() <= BUFFER_MAX && buffers.len() < BUFFERS {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// This worker's part of an endpoint. Made at its first use.
    pub fn local(&self, endpoint: &Arc<Endpoint>) -> Rc<Local> {
        if let Some(local) = self.locals.borrow().get(&endpoint.id) {
            return local.clone();
        }
        let local = Rc::new(Local {
            endpoint: endpoint.clone(),
            dispatched: endpoint.tally.dispatched.of_worker(self.index),
            force: endpoint.force().child_token(),
            left: Arc::default(),
            idle: RefCell::default(),
            sources: RefCell::default(),
            sockets: Sockets::default(),
            tightened: Cell::new(false),
            reported: Cell::new(0),
            looked_at: Cell::new(false),
            carriers: RefCell::default(),
            opening: Cell::new(0),
            opened: Notify::new(),
        });
        self.locals.borrow_mut().insert(endpoint.id, local.clone());
        local
    }

    fn budget(&self, key: &PortKey) -> Rc<Budget> {
        if let Some(budget) = self.budgets.borrow().get(key) {
            return budget.clone();
        }
        let budget = Rc::new(Budget::default());
        self.budgets
            .borrow_mut()
            .insert(key.clone(), budget.clone());
        budget
    }

    /// After a change: closes the idle connections to those of these endpoints that drain or are
    /// out, and gives the sockets of deleted pods a short keepalive. The cost does not depend
    /// on the other endpoints.
    pub(super) fn drop_idle_of(&self, endpoints: &[EndpointId]) {
        let locals = self.locals.borrow();
        for local in endpoints.iter().filter_map(|id| locals.get(id)) {
            if !local.endpoint.is_open() {
                local.drop_idle();
            }
            if local.endpoint.pod_gone() && !local.tightened.replace(true) {
                local.sockets.set_keepalive(silence::POD_GONE);
            }
        }
    }

    /// Out of descriptors: closes idle connections to endpoints, here, or on the other workers if
    /// there are none here. Returns whether there were any here.
    pub fn spare(&self, which: Spare) -> bool {
        let dropped = self.drop_idle(which);
        if !dropped {
            self.shared.post_all(|| WorkerCommand::DropIdle(which));
        }
        dropped
    }

    /// Closes idle connections to endpoints. Returns whether there were any.
    pub(super) fn drop_idle(&self, which: Spare) -> bool {
        let mut kept = match which {
            Spare::Surplus => self.shared.loads[self.index].load(Ordering::Relaxed),
            Spare::All => 0,
        };
        let mut dropped = false;
        for local in self.locals.borrow().values() {
            let mut idle = local.idle.borrow_mut();
            let keep = kept.min(idle.len());
            kept -= keep;
            // The oldest are closed.
            let surplus = idle.len() - keep;
            dropped |= idle.drain(..surplus).count() > 0;
            drop(idle);
            dropped |= local.drop_unused(|_| which == Spare::All);
            local.report_idle();
        }
        dropped
    }

    /// Once a second: closes idle connections that have ended or aged, drops what no endpoint,
    /// listener or port needs any more, and fades the budgets.
    pub(super) fn sweep(&self) {
        let (now, limit) = (Instant::now(), self.config.borrow().timeouts.upstream_idle);
        self.locals.borrow_mut().retain(|_, local| {
            local
                .idle
                .borrow_mut()
                .retain(|idle| idle.is_alive() && now.duration_since(idle.since) < limit);
            local.drop_unused(|since| now.duration_since(since) >= limit);
            local.report_idle();
            // A UDP session has one, too.
            local.is_needed() || Rc::strong_count(local) > 1
        });
        // An old port keeps its endpoints in memory.
        self.routes
            .borrow_mut()
            .retain(|_, route| route.is_current());
        self.budgets.borrow_mut().retain(|key, budget| {
            budget.fade();
            let number = PortRef::Number(key.port);
            let published = &self.shared.snapshot;
            published
                .place(&key.service, &number, key.transport)
                .is_some()
        });
    }

    /// Gives up the connections to endpoints that have fallen silent, without end. It looks once a
    /// second, apart from [`Self::sweep`], because it may take long.
    pub(super) async fn give_up_silent(self: Rc<Self>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            let busy = |local: &&Rc<Local>| local.sockets.has_asked();
            let busy: Vec<Rc<Local>> = self
                .locals
                .borrow()
                .values()
                .filter(busy)
                .cloned()
                .collect();
            for local in busy {
                let limits = || match local.endpoint.pod_gone() {
                    true => (silence::POD_GONE, silence::POD_GONE),
                    false => {
                        let limit = self.config.borrow().timeouts.upstream_silence;
                        (limit, limit * silence::UNACCEPTED)
                    }
                };
                local.sockets.look(limits).await;
            }
        }
    }
}

impl Route {
    fn is_current(&self) -> bool {
        self.place.has(&self.routed.port)
    }
}

impl Deref for Routed {
    type Target = Port;

    fn deref(&self) -> &Port {
        &self.port
    }
}

/// How long a Service that was just named may take to be read.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(2);
/// How many connections are woken at a time, and how soon all of them again.
const OFFERED: usize = 32;
const OFFER_AGAIN: Duration = Duration::from_millis(50);
/// How many buffers are kept for reuse.
const BUFFERS: usize = 128;
/// Turns between two looks at the sockets. A look costs little beside one such turn.
const TINY_CHUNKS: u32 = 1;
const BULK: u32 = 1;
const ACCEPTS: u32 = 2;
const UNANSWERED: u32 = 4;
const HANDSHAKES: u32 = 1;
const DATAGRAMS: u32 = 2;

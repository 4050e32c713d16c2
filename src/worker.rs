//! One worker: a thread with its own runtime, its mailbox, and everything that its connections share without a lock.
//!
//! Invariant: all that is here stays on this thread; between workers there are only the published snapshot, the
//! endpoints' atomics and the mailboxes. Correctness of a drain rests on the lease, never on what a worker has noticed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::contract::endpoint::{Endpoint, EndpointId, Leaving};
use crate::contract::listener::{ListenerId, ListenerSpec};
use crate::contract::name::PortKey;
use crate::contract::snapshot::{Port, Snapshot};
use crate::http::pool::Idle;
use crate::http::replay::Budget;
use crate::net::pipe::Pipes;
use crate::net::{socket, turns};
use crate::observe::access_log::AccessLog;
use crate::wire::buffer::{BUFFER_MAX, SCRATCH};
use crate::{listener, session};

/// What all workers share.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub generation: watch::Receiver<u64>,
    /// Connections of each worker, to spread new ones.
    pub loads: Box<[AtomicUsize]>,
    /// One permit a client connection.
    pub connections: Arc<Semaphore>,
    pub mailboxes: Box<[mpsc::UnboundedSender<Mail>]>,
    /// This process shuts down: the next response on each connection says so.
    pub closing: AtomicBool,
    pub access_log: Option<AccessLog>,
}

/// What a worker is told.
pub enum Mail {
    Config(Arc<Config>),
    Listen(Arc<ListenerSpec>, std::net::TcpListener),
    /// Serve what waits in the accept queue, then close.
    Unlisten(ListenerId),
    Connection(Handover),
    /// The last lease of this endpoint is gone: close what is idle, then drop the message.
    Drained(Arc<Leaving>),
    /// Another worker, or the admin port, is out of descriptors.
    DropIdle(Spare),
    /// The shutdown's grace is over: end what is left.
    Cut,
    /// Return from [`run`].
    Exit,
}

/// For whom idle connections are given up, and how many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// For a newcomer, those beyond one for each client that is here already.
    Surplus,
    /// For a client that is here, or a probe.
    All,
}

/// An accepted connection on its way to the worker that will serve it.
pub struct Handover {
    pub fd: OwnedFd,
    pub peer: SocketAddr,
    pub listener: Arc<ListenerSpec>,
    pub permit: OwnedSemaphorePermit,
}

pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    /// This worker's own, as all that counts references on the way of a request: shared counts are fought for by all.
    config: RefCell<Rc<Config>>,
    /// Every read goes here first; nothing in it survives a poll.
    pub scratch: RefCell<Box<[u8]>>,
    buffers: RefCell<Vec<Vec<u8>>>,
    locals: RefCell<FxHashMap<EndpointId, Rc<Local>>>,
    budgets: RefCell<HashMap<PortKey, Rc<Budget>>>,
    listeners: RefCell<HashMap<ListenerId, CancellationToken>>,
    routes: RefCell<FxHashMap<ListenerId, Route>>,
    pub pipes: Pipes,
    /// For bodies of next to nothing but chunk lines, which cost the most for their bytes.
    pub crumbs: Rc<turns::Queue>,
    /// For whoever has more to move than a read takes.
    pub bulk: Rc<turns::Queue>,
    /// For new connections.
    pub accepts: Rc<turns::Queue>,
    /// For clients who have had no answer yet.
    pub newcomers: Rc<turns::Queue>,
    /// Set when the shutdown's grace is over: nothing is replayed any more.
    pub cut: Cell<bool>,
}

/// A listener's service port as of one generation of the snapshot.
type Route = (u64, Option<Rc<Routed>>);

/// A service port, with what this worker counts for it.
pub struct Routed {
    port: Arc<Port>,
    pub budget: Rc<Budget>,
}

/// What one worker keeps for one endpoint.
pub struct Local {
    pub endpoint: Arc<Endpoint>,
    /// Cancelled at the drain deadline (a child of the endpoint's own: see design, section 5).
    pub force: CancellationToken,
    pub idle: RefCell<Vec<Idle>>,
    sockets: RefCell<Vec<RawFd>>,
    /// Those of them whose silence is not yet heeded.
    young: RefCell<Vec<RawFd>>,
    tightened: Cell<bool>,
    reported: Cell<u32>,
    /// Somebody finds out whether it is on its way out.
    pub looked_at: Cell<bool>,
}

/// A connection to an endpoint.
pub struct Upstream {
    pub stream: TcpStream,
    pub local: Rc<Local>,
    /// Has carried a request before.
    pub reused: bool,
}

impl Shared {
    /// The same to every worker.
    pub fn tell_all(&self, mail: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            // A worker is gone only when the process ends.
            let _ = mailbox.send(mail());
        }
    }
}

/// Runs a worker until its mailbox closes; blocks the thread.
pub fn run(
    index: usize,
    shared: Arc<Shared>,
    config: Arc<Config>,
    mailbox: mpsc::UnboundedReceiver<Mail>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(31)
        .on_thread_park(turns::idle)
        .build_local(tokio::runtime::LocalOptions::default())?;
    let worker = Rc::new(Worker {
        index,
        shared,
        config: RefCell::new(Rc::new(Config::clone(&config))),
        scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
        buffers: RefCell::default(),
        locals: RefCell::default(),
        budgets: RefCell::default(),
        listeners: RefCell::default(),
        routes: RefCell::default(),
        pipes: Pipes::default(),
        crumbs: Rc::new(turns::Queue::new(CRUMBS)),
        bulk: Rc::new(turns::Queue::new(BULK)),
        accepts: Rc::new(turns::Queue::new(ACCEPTS)),
        newcomers: Rc::new(turns::Queue::new(NEWCOMERS)),
        cut: Cell::new(false),
    });
    runtime.block_on(worker.serve(mailbox));
    Ok(())
}

impl Worker {
    async fn serve(self: Rc<Self>, mut mailbox: mpsc::UnboundedReceiver<Mail>) {
        for queue in [&self.crumbs, &self.bulk, &self.accepts, &self.newcomers] {
            let queue = queue.clone();
            tokio::task::spawn_local(async move { queue.serve().await });
        }
        let mut generation = self.shared.generation.clone();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                mail = mailbox.recv() => match mail {
                    Some(Mail::Exit) | None => {
                        // Whatever is kept refers to where it is kept.
                        self.drop_idle(Spare::All);
                        return;
                    }
                    Some(mail) => self.open(mail),
                },
                Ok(()) = generation.changed() => self.drop_idle_of_leavers(),
                _ = second.tick() => self.sweep(),
            }
        }
    }

    fn open(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Config(config) => *self.config.borrow_mut() = Rc::new(Config::clone(&config)),
            Mail::Listen(spec, socket) => {
                let stop = CancellationToken::new();
                self.listeners.borrow_mut().insert(spec.id, stop.clone());
                tokio::task::spawn_local(listener::accept_on(self.clone(), spec, socket, stop));
            }
            Mail::Unlisten(id) => {
                if let Some(stop) = self.listeners.borrow_mut().remove(&id) {
                    stop.cancel();
                }
                self.routes.borrow_mut().remove(&id);
            }
            Mail::Connection(handover) => session::start(self, handover),
            Mail::Drained(leaving) => {
                if let Some(local) = self.locals.borrow().get(&leaving.0.id) {
                    local.drop_idle();
                }
            }
            Mail::Cut => {
                self.cut.set(true);
                self.locals.borrow().values().for_each(|local| local.force.cancel());
            }
            Mail::DropIdle(which) => drop(self.drop_idle(which)),
            Mail::Exit => {}
        }
    }

    /// What a listener's service port looks like in the published snapshot; resolved once per publish.
    pub fn port(&self, spec: &ListenerSpec) -> Option<Rc<Routed>> {
        let snapshot = self.shared.snapshot.load();
        let mut routes = self.routes.borrow_mut();
        match routes.get(&spec.id) {
            Some((generation, port)) if *generation == snapshot.generation => port.clone(),
            _ => {
                let port = snapshot.port(&spec.service, &spec.port).cloned();
                let port = port.map(|port| Rc::new(Routed { budget: self.budget(&port.key), port }));
                routes.insert(spec.id, (snapshot.generation, port.clone()));
                port
            }
        }
    }

    pub fn config(&self) -> Rc<Config> {
        self.config.borrow().clone()
    }

    /// An empty buffer, from the last ones given back.
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffer.capacity() > 0 && buffer.capacity() <= BUFFER_MAX && buffers.len() < BUFFERS {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    /// This worker's part of an endpoint, made at its first use.
    pub fn local(&self, endpoint: &Arc<Endpoint>) -> Rc<Local> {
        if let Some(local) = self.locals.borrow().get(&endpoint.id) {
            return local.clone();
        }
        let local = Rc::new(Local {
            endpoint: endpoint.clone(),
            force: endpoint.force.child_token(),
            idle: RefCell::default(),
            sockets: RefCell::default(),
            young: RefCell::default(),
            tightened: Cell::new(false),
            reported: Cell::new(0),
            looked_at: Cell::new(false),
        });
        self.locals.borrow_mut().insert(endpoint.id, local.clone());
        local
    }

    fn budget(&self, key: &PortKey) -> Rc<Budget> {
        if let Some(budget) = self.budgets.borrow().get(key) {
            return budget.clone();
        }
        let budget = Rc::new(Budget::default());
        self.budgets.borrow_mut().insert(key.clone(), budget.clone());
        budget
    }

    /// After a publish: idle connections of endpoints that are draining or out are closed, sockets of deleted pods
    /// given less patience.
    fn drop_idle_of_leavers(&self) {
        for local in self.locals.borrow().values() {
            if !local.endpoint.is_open() {
                local.drop_idle();
            }
            if local.endpoint.pod_gone() && !local.tightened.replace(true) {
                local.young.borrow_mut().clear();
                local.sockets.borrow().iter().for_each(|fd| drop(socket::heed_silence(*fd, true)));
            }
        }
    }

    /// Out of descriptors: clients come before connections that are only kept, on whichever worker. Answers whether
    /// there were any here.
    pub fn spare(&self, which: Spare) -> bool {
        let dropped = self.drop_idle(which);
        if !dropped {
            self.shared.tell_all(|| Mail::DropIdle(which));
        }
        dropped
    }

    fn drop_idle(&self, which: Spare) -> bool {
        let mut kept = match which {
            Spare::Surplus => self.shared.loads[self.index].load(Ordering::Relaxed),
            Spare::All => 0,
        };
        let mut dropped = false;
        for local in self.locals.borrow().values() {
            let mut idle = local.idle.borrow_mut();
            let keep = kept.min(idle.len());
            kept -= keep;
            // The oldest go.
            let surplus = idle.len() - keep;
            dropped |= idle.drain(..surplus).count() > 0;
            drop(idle);
            local.report_idle();
        }
        dropped
    }

    /// Once a second: idle connections that ended or aged, new ones that have lived so long, locals that nobody needs, the
    /// budgets' memory.
    fn sweep(&self) {
        let (now, limit) = (Instant::now(), self.config.borrow().timeouts.upstream_idle);
        self.locals.borrow_mut().retain(|_, local| {
            local.idle.borrow_mut().retain(|idle| idle.is_alive() && now.duration_since(idle.since) < limit);
            local.report_idle();
            let gone = local.endpoint.pod_gone();
            let young = std::mem::take(&mut *local.young.borrow_mut());
            young.into_iter().for_each(|fd| drop(socket::heed_silence(fd, gone)));
            local.endpoint.is_open() || Rc::strong_count(local) > 1
        });
        let snapshot = self.shared.snapshot.load();
        self.routes.borrow_mut().retain(|_, (generation, _)| *generation == snapshot.generation);
        self.budgets.borrow_mut().retain(|key, budget| {
            budget.fade();
            snapshot.ports.contains_key(key)
        });
    }
}

impl Deref for Routed {
    type Target = Port;

    fn deref(&self) -> &Port {
        &self.port
    }
}

impl Local {
    fn drop_idle(&self) {
        let closed = self.idle.borrow_mut().drain(..).count();
        self.endpoint.tally.idle_closed.fetch_add(closed as u32, Ordering::Relaxed);
        self.report_idle();
    }

    /// Brings the endpoint's count of idle connections up to date; not per request, which would cost two atomics.
    fn report_idle(&self) {
        let now = self.idle.borrow().len() as u32;
        let change = now.wrapping_sub(self.reported.replace(now));
        self.endpoint.tally.idle.fetch_add(change, Ordering::Relaxed);
    }
}

impl Upstream {
    /// Starts to connect.
    pub fn connect(local: Rc<Local>) -> io::Result<Self> {
        let stream = socket::connect(local.endpoint.address)?;
        local.sockets.borrow_mut().push(stream.as_raw_fd());
        local.young.borrow_mut().push(stream.as_raw_fd());
        Ok(Self { stream, local, reused: false })
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

/// Turns between two looks at the sockets: what a look costs is little beside one of them.
const CRUMBS: u32 = 1;
const BULK: u32 = 1;
const ACCEPTS: u32 = 2;
const NEWCOMERS: u32 = 4;
/// Buffers kept for reuse, and the largest worth keeping.
const BUFFERS: usize = 128;

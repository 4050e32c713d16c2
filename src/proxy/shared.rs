//! What workers share, and what they are told.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::config::settings::Config;
use crate::contract::endpoint::Leaving;
use crate::contract::listener::{ListenerId, ListenerSpec};
use crate::contract::snapshot::Snapshot;
use crate::observe::access_log::AccessLog;

/// What all workers share.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub generation: watch::Receiver<u64>,
    /// Connections of each worker, to spread new ones.
    pub loads: Box<[AtomicUsize]>,
    /// One permit a client connection.
    pub connections: Arc<Semaphore>,
    pub mailboxes: Box<[mpsc::UnboundedSender<WorkerCommand>]>,
    /// This process shuts down: the next response on each connection says so.
    pub closing: AtomicBool,
    pub access_log: Option<AccessLog>,
}

/// What a worker is told.
pub enum WorkerCommand {
    Config(Arc<Config>),
    Listen(Arc<ListenerSpec>, std::net::TcpListener),
    /// Serve what waits in the accept queue, then close.
    Unlisten(ListenerId),
    Connection(Accepted),
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
    /// For a new client: those beyond one for each client that is here already.
    Surplus,
    /// For a client that is here, or a probe.
    All,
}

/// An accepted connection on its way to the worker that will serve it.
pub struct Accepted {
    pub fd: OwnedFd,
    pub peer: SocketAddr,
    pub listener: Arc<ListenerSpec>,
    pub permit: OwnedSemaphorePermit,
}

impl Shared {
    /// Client connections of all workers.
    pub fn connections(&self) -> usize {
        self.loads
            .iter()
            .map(|load| load.load(Ordering::Relaxed))
            .sum()
    }

    /// The same to every worker.
    pub fn post_all(&self, mail: impl Fn() -> WorkerCommand) {
        for mailbox in &self.mailboxes {
            // A worker is gone only when the process ends.
            let _ = mailbox.send(mail());
        }
    }
}

//! What all workers share, and the commands a worker gets in its mailbox.
//!
//! Invariant: a request takes no mutex of ours, unless its
//! Service has session affinity (`contract/affinity.rs`), or its client is to be seen by the endpoint, and
//! needs a new connection or has no shadow (`contract/source.rs`). It reads the snapshot and `closing`. It changes
//! atomics: the lease word, the latency average and the tally of its endpoint, the hold queue of
//! its Service, and the metrics of its Service port. It sends at most one line to the bounded queue
//! of the access log. Mailboxes, `loads` and `connections` are for connections, not for requests.
//!
//! `docs/architecture.md`, section "Threads", lists all that threads share.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use rustc_hash::FxHashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::settings::Config;
use crate::contract::address::AddressMap;
use crate::contract::endpoint::{EndpointId, Leaving};
use crate::contract::inside::Inside;
use crate::contract::listener::{ListenerId, ListenerSpec, Routes};
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Scope};
use crate::contract::snapshot::Published;
use crate::contract::source::Sources;
use crate::observe::access_log::AccessLog;
use crate::proxy::claims::{Claim, Claims, Held, Key};
use crate::proxy::doors::{DoorName, Doors};
use crate::proxy::heir::{Adopted, Heir, Offer};

/// What all workers share.
pub struct Shared {
    /// Every Service port as it is now.
    pub snapshot: Arc<Published>,
    /// Changes after each publish, when the drains that came with it have begun.
    pub generation: watch::Receiver<u64>,
    /// How many client connections each worker has, to spread new ones.
    pub loads: Box<[AtomicUsize]>,
    /// One permit for each client connection of this process.
    pub connections: Arc<Semaphore>,
    /// How many permits there are in all. Fewer while there are many listening sockets.
    pub places: AtomicUsize,
    /// The workers' mailboxes.
    ///
    /// They are unbounded so that no sender ever waits: the control thread must reach the next
    /// `begin_drain`, and two workers that wait for each other would stand still. Other bounds keep
    /// them short: a [`WorkerCommand::Connection`] holds a permit of `connections`, a
    /// [`WorkerCommand::DropIdle`] is followed by a pause of its sender, and the control thread
    /// sends one message for each change of a listener, each reload, each drained endpoint, and each
    /// change that takes endpoints out of rotation.
    pub mailboxes: Box<[mpsc::UnboundedSender<WorkerCommand>]>,
    /// This process shuts down: the next response on each connection says so.
    pub closing: AtomicBool,
    /// This process is asked to shut down: it accepts connections for some time, and load balancers
    /// are told to send them elsewhere.
    pub leaving: AtomicBool,
    /// The process that replaces this one, once it is ready. It is known before `closing` is set, so that
    /// no client that can pass over is told to go.
    pub heir: ArcSwapOption<Heir>,
    /// The access log, if the configuration asks for one.
    pub access_log: Option<AccessLog>,
    /// Clients that were refused for their PROXY header.
    pub refused_headers: Pace,
    /// Clients whose TLS handshake failed.
    pub refused_handshakes: Pace,
    /// Endpoints whose TLS is not as it should be.
    pub refused_endpoints: Pace,
    /// Where clients inside the cluster come from.
    pub inside: ArcSwap<Inside>,
    /// The listeners of the addresses that the kernel leads to a shared port.
    pub addresses: Arc<AddressMap>,
    /// The routes of listeners, by what the listeners belong to and its port. No request looks here.
    pub routes: Mutex<FxHashMap<(ObjectName, PortRef), Arc<Routes>>>,
    /// The shadows of clients, where `ebbtide net` is asked for some.
    pub sources: Option<Arc<Sources>>,
    /// Connections to endpoints from the node's address instead of the client's.
    pub sources_lost: Pace,
    /// UDP sessions that had no place.
    pub udp_full: Pace,
    /// UDP sessions that another process has handed over.
    pub claims: Arc<Claims>,
    /// The processes that have the sockets of this one's UDP listeners, too.
    pub doors: Doors,
}

/// Counts what happens often, and says when to log it: immediately, and then at most once in
/// [`Pace::PAUSE_MS`], so that no client can fill the log.
#[derive(Debug, Default)]
pub struct Pace {
    /// What was counted since the last line.
    count: AtomicU64,
    /// The earliest time of the next line, by [`millis`](crate::contract::clock::millis).
    next_ms: AtomicU64,
}

impl Pace {
    /// The time between two lines, in milliseconds.
    pub const PAUSE_MS: u64 = 10_000;

    /// Counts one. Returns the count since the last line if a line is due.
    pub fn count(&self, now_ms: u64) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let next = self.next_ms.load(Ordering::Relaxed);
        if now_ms < next {
            return None;
        }
        // Only one of the workers that find a line due writes it.
        let then = now_ms + Self::PAUSE_MS;
        self.next_ms
            .compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        Some(self.count.swap(0, Ordering::Relaxed))
    }
}

/// A listening socket for a worker.
pub struct Listening {
    /// Its number among the listener's sockets.
    pub number: usize,
    /// The socket.
    pub socket: OwnedFd,
    /// Cancelled when the process before this one reads it no more. Until then a socket of UDP is left alone.
    /// `None`: no other process has it.
    pub may_read: Option<CancellationToken>,
}

/// A message to a worker.
pub enum WorkerCommand {
    /// Use this configuration from now on.
    Config(Arc<Config>),
    /// Accept on this socket, which is this worker's share of the listener, or a part of it.
    Listen(Arc<ListenerSpec>, Listening),
    /// Serve what waits in the accept queue, then close.
    Unlisten(ListenerId),
    /// Serve a connection that another worker has accepted.
    Connection(Accepted),
    /// These endpoints left rotation, or their pods are gone: close the idle connections to them.
    Left(Arc<[EndpointId]>),
    /// The last lease of this endpoint is gone: close the idle connections to it, then drop the
    /// message.
    Drained(Arc<Leaving>),
    /// Another worker, or the admin port, is out of descriptors.
    DropIdle(Spare),
    /// Serve a connection that another process has handed over.
    Adopt(Box<Adopted>),
    /// Serve a UDP session that another process has handed over, unless another worker has it already.
    AdoptSession(Box<Adopted>, Held),
    /// Show the sockets of UDP listeners to the process that replaces this one, see [`Shared::doors`].
    ShowDoors(std::sync::mpsc::Sender<(DoorName, OwnedFd)>),
    /// Another worker has taken this UDP session, see [`Shared::claims`].
    Claimed(Key),
    /// [`Shared::heir`] is there: hand over what can be.
    HandOver,
    /// Nothing is accepted any more: clients of HTTP/2 are told to go elsewhere.
    Closing,
    /// The shutdown's grace is over: end what is left.
    Cut,
    /// Return from [`run`](crate::proxy::run::run).
    Exit,
}

/// What idle connections are given up for, and so how many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// For a new client: those beyond one for each client that is here already.
    Surplus,
    /// For a client that is here already, or for a probe: all of them.
    All,
}

/// An accepted connection on its way to the worker that will serve it.
pub struct Accepted {
    /// The socket, not yet registered with a runtime.
    pub fd: OwnedFd,
    /// The address of the connection's peer.
    pub peer: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<ListenerSpec>,
    /// Its permit of [`Shared::connections`].
    pub permit: OwnedSemaphorePermit,
}

impl Shared {
    /// How many client connections all workers have.
    pub fn connections(&self) -> usize {
        self.loads
            .iter()
            .map(|load| load.load(Ordering::Relaxed))
            .sum()
    }

    /// Whether a process that replaces this one can be asked. While this process serves, this reads one
    /// atomic.
    pub fn has_heir(&self) -> bool {
        let heir = || self.heir.load();
        self.leaving.load(Ordering::Relaxed) && heir().as_ref().is_some_and(|it| it.is_there())
    }

    /// Allows this many client connections from now on. If more are open, it stays at those that are,
    /// and returns `false`. Only the control thread may call it.
    pub fn resize(&self, wanted: usize) -> bool {
        let places = self.places.load(Ordering::Relaxed);
        let now = match wanted > places {
            true => {
                self.connections.add_permits(wanted - places);
                wanted
            }
            false => places - self.connections.forget_permits(places - wanted),
        };
        self.places.store(now, Ordering::Relaxed);
        now == wanted
    }

    /// The routes of the listeners that belong to `owner` and have this port. Only the control thread may
    /// call it.
    pub fn routes_of(&self, owner: &ObjectName, port: &PortRef) -> Arc<Routes> {
        let mut all = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((owner.clone(), port.clone()))
            .or_default()
            .clone()
    }

    /// Forgets routes of what is gone. Only the control thread may call it.
    pub fn forget_routes(&self, is_gone: impl Fn(&(ObjectName, PortRef)) -> bool) {
        let mut all = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|of, _| !is_gone(of));
    }

    /// Which traffic policy counts for a client of a listener.
    pub fn scope(&self, listener: &ListenerSpec, client: IpAddr) -> Option<Scope> {
        self.inside.load().scope(listener.scope, client)
    }

    /// Takes in where clients inside the cluster come from: by the configuration, and by the source if
    /// it has told something new. Only the control thread may call it.
    pub fn note_inside(&self, configured: &Inside, node_pods: Option<Vec<IpNet>>) {
        let node_pods = node_pods.unwrap_or_else(|| self.inside.load().node_pods.clone());
        let configured = configured.clone();
        self.inside.store(Arc::new(Inside {
            node_pods,
            ..configured
        }));
    }

    /// Gives a connection to the worker with the fewest.
    pub fn give_least(&self, connection: WorkerCommand) {
        let least = self.least();
        self.loads[least].fetch_add(1, Ordering::Relaxed);
        // A worker is gone only when the process ends.
        let _ = self.mailboxes[least].send(connection);
    }

    /// Gives a UDP session to a worker that has a socket of its listener. The worker that gets its next
    /// datagram finds it.
    pub fn give_session(&self, adopted: Box<Adopted>) {
        let (spec, count) = (&adopted.listener, self.mailboxes.len());
        let index = match spec.sockets == count {
            true => fastrand::usize(..count),
            // `control/sockets.rs` gives single sockets to the workers by this.
            false => spec.id.0 as usize % count,
        };
        let (Offer::Session(it), Some(lease), [socket]) =
            (&adopted.offer, &adopted.lease, adopted.sockets.as_slice())
        else {
            return;
        };
        // Without a descriptor, its client gets another session with the next datagram.
        let Ok(socket) = socket.try_clone() else {
            return;
        };
        let key = Key {
            listener: spec.id,
            client: it.door.client,
            asked: it.asked,
        };
        let claim = Claim {
            socket: Arc::new(socket),
            endpoint: lease.endpoint().clone(),
            is_named: it.is_named,
            owner: index,
        };
        let held = self.claims.add(key, claim);
        // A worker is gone only when the process ends.
        let _ = self.mailboxes[index].send(WorkerCommand::AdoptSession(adopted, held));
    }

    /// The worker with the fewest client connections.
    pub(super) fn least(&self) -> usize {
        let load = |i: &usize| self.loads[*i].load(Ordering::Relaxed);
        (0..self.loads.len()).min_by_key(load).unwrap_or_default()
    }

    /// Sends the same message to every worker.
    pub fn post_all(&self, command: impl Fn() -> WorkerCommand) {
        for mailbox in &self.mailboxes {
            // A worker is gone only when the process ends.
            let _ = mailbox.send(command());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_immediately_and_then_once_in_each_pause() {
        let pace = Pace::default();
        assert_eq!(pace.count(0), Some(1));
        for now in 1..1_000 {
            assert_eq!(pace.count(now), None);
        }
        assert_eq!(pace.count(Pace::PAUSE_MS), Some(1_000));
        assert_eq!(pace.count(2 * Pace::PAUSE_MS - 1), None);
        assert_eq!(pace.count(5 * Pace::PAUSE_MS), Some(2));
    }
}

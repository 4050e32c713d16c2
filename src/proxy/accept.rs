//! One worker's share of a listener: accepts on its own SO_REUSEPORT socket, and hands a connection
//! over to a worker that has fewer. The process that replaces this one accepts on it, too.
//!
//! Invariants: there are never more connections than permits. At the limit, or without descriptors,
//! the loop waits instead of spinning. No Service port takes the last places from the others.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::contract::listener::{ListenerSpec, Serves};
use crate::contract::policy::Transport;
use crate::net::socket;
use crate::proxy::doors::DoorName;
use crate::proxy::session;
use crate::proxy::shared::{Accepted, Listening, Spare, WorkerCommand};
use crate::proxy::worker::Worker;

/// Counts an accept loop as ended.
pub(super) struct Accepting(Arc<ListenerSpec>);

impl Accepting {
    pub(super) fn of(spec: &Arc<ListenerSpec>) -> Self {
        Self(spec.clone())
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.accepting.fetch_sub(1, Ordering::Release);
    }
}

/// Accepts until `stop`. Then leaves the socket to the process that has it as well, or serves what the
/// kernel has accepted already, and closes. `may_read` is cancelled when a predecessor that has the
/// socket accepts no more.
pub async fn serve(
    worker: Rc<Worker>,
    spec: Arc<ListenerSpec>,
    listening: Listening,
    stop: CancellationToken,
) {
    let _accepting = Accepting::of(&spec);
    let Listening {
        number,
        socket,
        may_read,
    } = listening;
    let socket = match socket::watch(socket.into()) {
        Ok(socket) => Rc::new(socket),
        Err(error) => {
            return tracing::error!(listener = spec.name, %error, "cannot watch the listening socket");
        }
    };
    let (key, accepts) = ((spec.id, number), (spec.clone(), socket.clone()));
    worker.accepting.borrow_mut().insert(key, accepts);
    accept_until(&worker, &spec, &socket, &stop).await;
    worker.accepting.borrow_mut().remove(&key);
    if let Some(may_read) = may_read.filter(|it| !it.is_cancelled()) {
        // The predecessor goes on to accept. It must not be told that this process does.
        return may_read.cancel();
    }
    if !worker.shared.doors.release(name(&spec, number)).await {
        accept_the_rest(&worker, &spec, &socket).await;
    }
}

/// Shows the sockets of TCP listeners that this worker accepts from.
pub fn show_doors(worker: &Worker, show: &Sender<(DoorName, OwnedFd)>) {
    for ((_, number), (spec, socket)) in &*worker.accepting.borrow() {
        if let Ok(copy) = socket.get_ref().as_fd().try_clone_to_owned() {
            // Nobody may listen any more.
            let _ = show.send((name(spec, *number), copy));
        }
    }
}

/// How another process knows the socket of a listener.
fn name(spec: &ListenerSpec, number: usize) -> DoorName {
    DoorName {
        transport: Transport::Tcp,
        listener: spec.address,
        number,
    }
}

/// Accepts until `stop`, or until the socket fails.
async fn accept_until(
    worker: &Rc<Worker>,
    spec: &Arc<ListenerSpec>,
    socket: &AsyncFd<TcpListener>,
    stop: &CancellationToken,
) {
    let mut warned: Option<Instant> = None;
    loop {
        let mut ready = tokio::select! {
            biased;
            ready = socket.readable() => match ready {
                Ok(ready) => ready,
                Err(error) => return tracing::error!(listener = spec.name, %error, "the listening socket failed"),
            },
            () = stop.cancelled() => return,
        };
        while has_its_share(worker, spec) && !stop.is_cancelled() {
            tokio::time::sleep(SHARE_PAUSE).await;
        }
        // The permit comes first: at the limit, connections wait in the kernel's queue.
        let permit = tokio::select! {
            permit = worker.shared.connections.clone().acquire_owned() => match permit {
                Ok(permit) => permit,
                Err(_closed) => return,
            },
            () = stop.cancelled() => return,
        };
        // A burst of new connections must not delay established ones.
        worker.accepts.turn().await;
        match socket::accept(socket.get_ref()) {
            Ok(client) => hand_over(worker, spec, client, permit),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                ready.clear_ready();
            }
            Err(error) if socket::is_shortage(&error) => {
                if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) {
                    tracing::warn!(listener = spec.name, %error, "cannot accept; waiting");
                    warned = Some(Instant::now());
                }
                drop(permit);
                worker.spare(Spare::Surplus);
                tokio::time::sleep(SHORTAGE_PAUSE).await;
            }
            // The client has left before the accept (ECONNABORTED), or a signal came. accept(2)
            // says to go on.
            Err(_) => {}
        }
    }
}

/// Serves what the kernel has accepted already.
async fn accept_the_rest(
    worker: &Rc<Worker>,
    spec: &Arc<ListenerSpec>,
    socket: &AsyncFd<TcpListener>,
) {
    match socket::ignore_new_connections(socket.get_ref()) {
        Ok(()) => tokio::time::sleep(HANDSHAKES).await,
        Err(error) => {
            tracing::warn!(listener = spec.name, %error, "clients that connect while it closes may be reset")
        }
    }
    while let Ok(permit) = worker.shared.connections.clone().acquire_owned().await {
        match socket::accept(socket.get_ref()) {
            Ok(client) => hand_over(worker, spec, client, permit),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) if socket::is_shortage(&error) => {
                drop::<OwnedSemaphorePermit>(permit);
                tokio::time::sleep(SHORTAGE_PAUSE).await;
            }
            Err(_) => {}
        }
    }
}

/// Whether the last places are not for this listener: few are left, and its Service port has half of
/// all, while there are other Services.
fn has_its_share(worker: &Worker, spec: &ListenerSpec) -> bool {
    let shared = &worker.shared;
    let places = shared.places.load(Ordering::Relaxed);
    shared.connections.available_permits() <= places / 8
        && shared.snapshot.is_shared()
        && worker.port(spec).is_some_and(|port| {
            let taken = usize::try_from(port.metrics.connections_active.get()).unwrap_or(0);
            taken > places / 2
        })
}

/// Hands a connection to the worker with the fewest, if that worker has fewer than this one.
fn hand_over(
    worker: &Rc<Worker>,
    spec: &Arc<ListenerSpec>,
    (fd, peer): (OwnedFd, SocketAddr),
    permit: OwnedSemaphorePermit,
) {
    let listener = match spec.serves {
        Serves::Port { .. } | Serves::Routes { .. } | Serves::HealthCheck { .. } => spec.clone(),
        Serves::Addresses => {
            let address = socket::original_destination(&fd);
            match address.and_then(|it| worker.shared.addresses.get(&it)) {
                Some(listener) if listener.admits(peer.ip()) => listener,
                // Its client may not connect, or has connected to the shared port itself.
                _ => return socket::reset(fd),
            }
        }
    };
    let accepted = Accepted {
        fd,
        peer,
        listener,
        permit,
    };
    let loads = &worker.shared.loads;
    let load = |i: usize| loads[i].load(Ordering::Relaxed);
    let least = worker.shared.least();
    if load(least) < load(worker.index) {
        loads[least].fetch_add(1, Ordering::Relaxed);
        if let Err(returned) =
            worker.shared.mailboxes[least].send(WorkerCommand::Connection(accepted))
        {
            loads[least].fetch_sub(1, Ordering::Relaxed);
            if let WorkerCommand::Connection(accepted) = returned.0 {
                loads[worker.index].fetch_add(1, Ordering::Relaxed);
                session::start(worker, accepted);
            }
        }
    } else {
        loads[worker.index].fetch_add(1, Ordering::Relaxed);
        session::start(worker, accepted);
    }
}

/// How long handshakes under way may take when a listener closes: longer than nearly any round
/// trip.
const HANDSHAKES: Duration = Duration::from_millis(100);
/// How long to wait for places that others leave.
const SHARE_PAUSE: Duration = Duration::from_millis(50);
/// A shortage is logged no more often than this.
const WARN_AGAIN: Duration = Duration::from_secs(10);
/// How long to wait for descriptors before the next accept.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

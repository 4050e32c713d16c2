//! UDP sessions pass from the process that ends to the one that replaces it, each with its socket to the
//! endpoint: the endpoint sees the same client, and the client has the same endpoint.
//!
//! Invariant: no datagram is lost between the two. Both may send and receive by the socket while it
//! passes: a datagram goes to one of them, and both serve the same client by it.
//!
//! A session passes if its endpoint can be used. What it holds, and the answers of an endpoint that it
//! has left, stay with the old process.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::contract::endpoint::Lease;
use crate::contract::policy::Transport;
use crate::net::datagrams::Connected;
use crate::proxy::claims::{Held, Key};
use crate::proxy::doors::DoorName;
use crate::proxy::heir::{self, Adopted, Heir, Offer, UdpSession};
use crate::proxy::led;
use crate::proxy::udp::forward::{answers, go_on, share};
use crate::proxy::udp::sessions::{Door, Flow, Session};
use crate::proxy::worker::Worker;

/// Offers the sessions of a listener to the process that replaces this one, if it is there. They go on
/// here meanwhile, and those that it has taken until the listener closes.
pub(super) async fn give_all(worker: &Rc<Worker>, door: &Rc<Door>) {
    let Some(heir) = worker.heir() else {
        return;
    };
    let mut all = worker.udp.of_listener(door.spec.id);
    all.retain(|session| !session.is_handed.get());
    for some in all.chunks(AT_ONCE) {
        let offers = some.iter().map(|session| give(worker, &heir, session));
        futures::future::join_all(offers).await;
    }
}

async fn give(worker: &Rc<Worker>, heir: &Heir, session: &Rc<Session>) {
    if let Some((offer, socket)) = offer(worker, session) {
        let taken = heir.offer_sockets(offer, vec![socket], &[]).await;
        session.is_handed.set(taken == Some(true));
    }
}

/// What is said of a session, and its socket. `None`: there is nothing that could pass.
fn offer(worker: &Rc<Worker>, session: &Rc<Session>) -> Option<(Offer, OwnedFd)> {
    let flow = session
        .flow()
        .filter(|_| session.held.borrow().is_empty())?;
    let port = worker.port(&session.listener)?;
    let endpoint = flow.lease.endpoint();
    let still = session.last.get().elapsed().as_millis();
    let it = UdpSession {
        door: heir::Door::of(&session.door.spec, session.key.client),
        asked: session.key.asked,
        service: port.key.service.clone(),
        port: port.key.port,
        endpoint: endpoint.address,
        pod: endpoint.pod.as_deref().cloned(),
        is_named: flow.is_named,
        still_ms: u64::try_from(still).unwrap_or(u64::MAX),
    };
    let socket = flow.socket.copy().ok()?;
    Some((Offer::Session(Box::new(it)), socket))
}

/// Goes on with a session that another process has handed over. If it cannot, the client gets another
/// session with its next datagram.
pub fn adopt(worker: &Rc<Worker>, adopted: Adopted, held: Held) {
    let Adopted {
        offer: Offer::Session(it),
        mut sockets,
        listener,
        lease: Some(lease),
        permit,
        ..
    } = adopted
    else {
        return;
    };
    let (Some(door), Some(socket)) = (worker.udp.door(listener.id), sockets.pop()) else {
        return;
    };
    let key = held.key();
    if let Some(session) = worker.udp.find(&key) {
        // The client was faster, and has another endpoint. The old one may still answer.
        return serve_late(worker, &session, lease, socket, it.is_named);
    }
    if !worker.shared.claims.is_owned(&key, worker.index) {
        // Another worker has got its next datagram.
        return;
    }
    let Some(led_to) = led::of_session(&door.spec, key.client.ip()) else {
        return;
    };
    let port = worker.port(&led_to);
    let port = port.filter(|port| port.key.service == it.service && port.key.port == it.port);
    let Some(port) = port.filter(|_| worker.udp.len() < share(worker)) else {
        return;
    };
    let Ok(socket) = Connected::adopted(socket) else {
        return;
    };
    let metrics = port.metrics.clone();
    let session = worker.udp.begin(key, door, led_to, metrics, permit);
    session.claim.replace(Some(held));
    go_on(worker, &session, lease, socket, it.is_named);
    let now = Instant::now();
    let last = now.checked_sub(Duration::from_millis(it.still_ms));
    session.last.set(last.unwrap_or(now));
}

/// Shows the sockets of UDP listeners that this worker reads.
pub fn show_doors(worker: &Worker, show: &Sender<(DoorName, OwnedFd)>) {
    for door in worker.udp.doors() {
        if door.is_read.get()
            && let Ok(socket) = door.socket.copy()
        {
            // Nobody may listen any more.
            let _ = show.send((name(worker, &door), socket));
        }
    }
}

/// How the other process knows this socket.
pub(super) fn name(worker: &Worker, door: &Door) -> DoorName {
    DoorName {
        transport: Transport::Udp,
        listener: door.spec.address,
        number: worker.index,
    }
}

/// Another worker has taken this session.
pub fn let_go(worker: &Worker, key: &Key) {
    // If it has come back since, the other worker's message is on its way there.
    if let Some(session) = worker.udp.find(key)
        && !worker.shared.claims.is_owned(key, worker.index)
    {
        worker.udp.end(&session);
    }
}

/// Passes on what the endpoint before still answers.
fn serve_late(
    worker: &Rc<Worker>,
    session: &Rc<Session>,
    lease: Lease,
    socket: OwnedFd,
    is_named: bool,
) {
    let Ok(socket) = Connected::adopted(socket) else {
        return;
    };
    let local = worker.local(lease.endpoint());
    let flow = Flow::new(lease, local, socket, is_named);
    if session.set_before(flow.clone()) {
        tokio::task::spawn_local(answers(worker.clone(), session.clone(), flow));
    }
}

/// How many sessions are offered at once by each worker.
const AT_ONCE: usize = 32;

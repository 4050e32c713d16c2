//! The way of a datagram to an endpoint, and of the answers back to the client.
//!
//! Invariants: a datagram goes only to an endpoint that grants a lease (contract 1.1). One that an
//! endpoint has refused goes to another. Datagrams of one client keep their order, also those that
//! were held.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::contract::clock::millis;
use crate::contract::endpoint::{EndpointId, Lease};
use crate::contract::listener::ListenerSpec;
use crate::contract::reason::DropReason;
use crate::net::datagrams::Connected;
use crate::net::socket;
use crate::proxy::balancer::{self, Avoid, Cost, Origin};
use crate::proxy::claims::Key;
use crate::proxy::led;
use crate::proxy::shared::{Spare, WorkerCommand};
use crate::proxy::source::Source;
use crate::proxy::udp::sessions::{Door, Flow, Session};
use crate::proxy::worker::{Routed, Worker};

/// Passes a client's datagram on, or holds it, or drops it.
pub(super) fn take_in(worker: &Rc<Worker>, door: &Rc<Door>, key: Key, bytes: &[u8]) {
    let session = worker.udp.find(&key);
    let known = session.and_then(|it| Some((worker.port(&it.listener)?, it)));
    let (port, session) = match known {
        Some(known) => known,
        None => {
            let listener = led::of_session(&door.spec, key.client.ip());
            let Some((port, listener)) = listener.and_then(|it| Some((worker.port(&it)?, it)))
            else {
                // Nothing is known of a Service that does not exist, so nobody counts.
                return;
            };
            if let Some(other) = worker.udp.find(&key) {
                // No route leads to its Service any more.
                worker.udp.end(&other);
            }
            match begin(worker, door, listener, key, &port) {
                Some(session) => {
                    claim(worker, &session);
                    (port, session)
                }
                None => return port.metrics.dropped(DropReason::NoSession),
            }
        }
    };
    if !session.held.borrow().is_empty() || !send(worker, &session, &port, None, bytes) {
        hold(worker, &session, &port, bytes);
    }
}

/// How many sessions this worker may have.
pub(super) fn share(worker: &Worker) -> usize {
    let places = worker.shared.places.load(Ordering::Relaxed);
    let most = worker.config().limits.udp_sessions.min(places / 2);
    most.div_ceil(worker.shared.loads.len())
}

/// A new session, at the cost of another one if there is no place.
fn begin(
    worker: &Rc<Worker>,
    door: &Rc<Door>,
    listener: Arc<ListenerSpec>,
    key: Key,
    port: &Rc<Routed>,
) -> Option<Rc<Session>> {
    let shared = &worker.shared;
    let share = share(worker);
    let mut is_full = worker.udp.len() >= share;
    let permit = loop {
        if !is_full && let Ok(permit) = shared.connections.clone().try_acquire_owned() {
            break Some(permit);
        }
        if let Some(count) = shared.udp_full.count(millis(Instant::now())) {
            let listener = &door.spec.name;
            tracing::warn!(
                listener,
                count,
                share,
                "no place for another UDP session; the oldest end"
            );
        }
        if !worker.udp.evict() {
            break None;
        }
        is_full = worker.udp.len() >= share;
    };
    let (door, metrics) = (door.clone(), port.metrics.clone());
    Some(worker.udp.begin(key, door, listener, metrics, permit?))
}

/// A client's datagram has come to this worker, and another one may have the session that was handed
/// over: takes it from there.
fn claim(worker: &Rc<Worker>, session: &Rc<Session>) {
    let Some((claim, held)) = (worker.shared.claims).take_over(session.key, worker.index) else {
        return;
    };
    session.claim.replace(Some(held));
    let (lease, copy) = (claim.endpoint.adopt(), claim.socket.try_clone());
    if let (Some(lease), Ok(socket)) = (lease, copy.and_then(Connected::adopted)) {
        go_on(worker, session, lease, socket, claim.is_named);
    }
    if claim.owner != worker.index
        && let Some(mailbox) = worker.shared.mailboxes.get(claim.owner)
    {
        let _ = mailbox.send(WorkerCommand::Claimed(session.key));
    }
}

/// Sends a datagram to the session's endpoint, or to another one if that one has left or refuses.
/// Returns `false` if no endpoint takes it now. `not`: the endpoint that has refused it.
fn send(
    worker: &Rc<Worker>,
    session: &Rc<Session>,
    port: &Rc<Routed>,
    not: Option<EndpointId>,
    bytes: &[u8],
) -> bool {
    loop {
        let flow = match session.flow() {
            Some(flow) => flow,
            None => match connect(worker, session, port, not) {
                Ok(Some(flow)) => flow,
                Ok(None) => return false,
                Err(_) => {
                    session.metrics.dropped(DropReason::NotSent);
                    return true;
                }
            },
        };
        let now = Instant::now();
        match flow.socket.try_send(bytes) {
            Ok(()) => {
                flow.last.set(now);
                session.note_sent(bytes, now);
                session.metrics.datagrams[0].inc();
                flow.lease.endpoint().note_dispatch(millis(now));
                return true;
            }
            // The kernel reports what became of the datagram before. It has not sent this one.
            Err(error) if is_refusal(&error) => {
                if !give_up(worker, session, port, &flow) {
                    return false;
                }
            }
            Err(_) => {
                session.metrics.dropped(DropReason::NotSent);
                return true;
            }
        }
    }
}

/// The endpoint of a flow refuses datagrams: ejects it, and sends the datagram that it has refused to
/// another one. Returns `false` if that one is held now.
///
/// If the endpoint sees its client, a NetworkPolicy may refuse that client alone. So it is not ejected,
/// and the datagram moves once.
fn give_up(worker: &Rc<Worker>, session: &Rc<Session>, port: &Rc<Routed>, flow: &Rc<Flow>) -> bool {
    let endpoint = flow.lease.endpoint();
    if endpoint.is_open() && !flow.is_named {
        endpoint.eject();
    }
    flow.end();
    if !session.forget(flow) {
        // It belonged to a drain. What it has refused was sent before the drain began, and the client
        // sends to another endpoint since.
        return true;
    }
    let refused = session.sent.take();
    if refused.is_empty() {
        return true;
    }
    session.metrics.datagrams_moved.inc();
    let not = flow.is_named.then_some(endpoint.id);
    let is_sent = send(worker, session, port, not, &refused);
    if flow.is_named {
        session.sent.take();
    }
    if is_sent {
        return true;
    }
    hold(worker, session, port, &refused);
    false
}

/// A flow to an endpoint that is usable now; `None` if there is none, or if it is not known yet where
/// the client's datagrams leave from.
///
/// # Errors
/// This machine has no socket for it, or only the endpoint `not` is usable.
fn connect(
    worker: &Rc<Worker>,
    session: &Rc<Session>,
    port: &Rc<Routed>,
    not: Option<EndpointId>,
) -> io::Result<Option<Rc<Flow>>> {
    let avoid = Avoid {
        tried: not.as_slice(),
        siblings_of: None,
    };
    let from = origin(worker, session);
    let source = Source::wanted(worker, port, from);
    if source.is_some_and(|it| !it.is_settled(worker)) {
        return Ok(None);
    }
    let Some(lease) = balancer::pick(port, Cost::Tcp, from, &avoid, Instant::now()) else {
        return Ok(None);
    };
    if Some(lease.endpoint().id) == not {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let seen = source.filter(|it| it.at(lease.endpoint()).is_some());
    let mut shadow = seen.and_then(|it| it.shadow_now(worker, port));
    let mut socket = Connected::to(lease.endpoint().address, shadow);
    if let (Err(error), Some(source)) = (&socket, seen)
        && source.has_gone(worker, port, error)
    {
        shadow = None;
        socket = Connected::to(lease.endpoint().address, None);
    }
    let socket = socket.inspect_err(|error| {
        if socket::is_shortage(error) {
            worker.spare(Spare::Surplus);
        }
    })?;
    let is_named = shadow.is_some();
    Ok(Some(go_on(worker, session, lease, socket, is_named)))
}

/// Makes this socket the session's way to an endpoint.
pub(super) fn go_on(
    worker: &Rc<Worker>,
    session: &Rc<Session>,
    lease: Lease,
    socket: Connected,
    is_named: bool,
) -> Rc<Flow> {
    let local = worker.local(lease.endpoint());
    let flow = Flow::new(lease, local, socket, is_named);
    session.set_flow(flow.clone());
    tokio::task::spawn_local(answers(worker.clone(), session.clone(), flow.clone()));
    flow
}

/// Passes the answers of an endpoint on, until the flow ends.
pub(super) async fn answers(worker: Rc<Worker>, session: Rc<Session>, flow: Rc<Flow>) {
    let ends_at = || {
        let closing = worker.shared.closing.load(Ordering::Relaxed);
        let idle = worker.config().timeouts.udp_idle;
        flow.ends_at(&session, idle, closing)
    };
    let mut end = pin!(tokio::time::sleep_until(Instant::now().into()));
    loop {
        // It is registered before the endpoint is looked at: a drain that begins after that wakes it.
        let mut left = pin!(flow.local.left.notified());
        left.as_mut().enable();
        match ends_at() {
            Some(at) if at > Instant::now() => end.as_mut().reset(at.into()),
            _ => break,
        }
        if !pass_until_changed(&worker, &session, &flow, left, end.as_mut()).await {
            break;
        }
    }
    flow.end();
    if session.forget(&flow) && session.held.borrow().is_empty() {
        worker.udp.end(&session);
    }
}

/// Passes answers on until the end of the flow may have changed. Returns `false` at its end.
async fn pass_until_changed(
    worker: &Rc<Worker>,
    session: &Rc<Session>,
    flow: &Rc<Flow>,
    mut left: impl Future<Output = ()> + Unpin,
    mut end: std::pin::Pin<&mut tokio::time::Sleep>,
) -> bool {
    loop {
        tokio::select! {
            biased;
            () = flow.local.force.cancelled() => {
                // Answers still came, or it would have ended.
                flow.lease.endpoint().tally.forced.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            () = flow.changed.notified() => return true,
            () = &mut left => return true,
            ready = flow.socket.readable() => {
                match pass_some(worker, session, flow) {
                    _ if ready.is_err() => return false,
                    Passed::Refused => return false,
                    Passed::All => {}
                    // A flood of answers takes turns, as a flood of questions does.
                    Passed::Some => worker.datagrams.turn().await,
                }
            }
            () = end.as_mut() => return true,
        }
    }
}

/// What has become of the answers of an endpoint.
enum Passed {
    /// There are no more.
    All,
    /// There are more.
    Some,
    /// The endpoint refuses datagrams.
    Refused,
}

/// Passes on the answers that are there.
fn pass_some(worker: &Rc<Worker>, session: &Rc<Session>, flow: &Rc<Flow>) -> Passed {
    let door = &session.door;
    for _ in 0..BURST {
        let passed = worker.udp.with_buffer(|buffer| {
            let len = flow.socket.try_recv(buffer)?;
            let key = &session.key;
            let sent = door.socket.try_send(&buffer[..len], key.client, key.asked);
            io::Result::Ok(sent.is_ok())
        });
        match passed {
            Ok(is_sent) => {
                let now = Instant::now();
                flow.last.set(now);
                session.last.set(now);
                match is_sent {
                    true => session.metrics.datagrams[1].inc(),
                    false => session.metrics.dropped(DropReason::NotSent),
                }
            }
            Err(error) if is_refusal(&error) => {
                if let Some(port) = worker.port(&session.listener) {
                    give_up(worker, session, &port, flow);
                }
                return Passed::Refused;
            }
            Err(_) => return Passed::All,
        }
    }
    Passed::Some
}

/// Keeps a datagram until an endpoint is usable, or drops it.
fn hold(worker: &Rc<Worker>, session: &Rc<Session>, port: &Rc<Routed>, bytes: &[u8]) {
    let mut held = session.held.borrow_mut();
    let from = origin(worker, session);
    let source = Source::wanted(worker, port, from);
    let is_settled = source.is_none_or(|it| it.is_settled(worker));
    let has_nobody = port.policy.hold_timeout.is_zero() || port.refuses(from.scope);
    if has_nobody && is_settled {
        session.metrics.dropped(DropReason::NoEndpoint);
        drop(held);
        return leave_idle(worker, session);
    }
    if !held.push(bytes) {
        return session.metrics.dropped(DropReason::HeldFull);
    }
    session.last.set(Instant::now());
    if !std::mem::replace(&mut held.is_watched, true) {
        tokio::task::spawn_local(held_out(worker.clone(), session.clone(), port.clone()));
    }
}

/// Waits for an endpoint, and sends what is held. After the hold time it is dropped.
async fn held_out(worker: Rc<Worker>, session: Rc<Session>, port: Rc<Routed>) {
    let client = session.key.client.ip();
    let scope = worker.shared.scope(&session.door.spec, client);
    let expires = Instant::now() + port.policy.hold_timeout;
    let metrics = &session.metrics;
    let mut reason = DropReason::HeldFull;
    // A new client waits for its source only.
    let is_sent = settle_and_flush(&worker, &session, &port).await;
    if !is_sent && let Some(_place) = port.hold.take_place(worker.config().limits.held) {
        reason = DropReason::NoEndpoint;
        metrics.held_now.inc();
        while session.is_open() && Instant::now() < expires && !worker.cut.get() {
            let (port, changed) = worker.watched_port(&session.listener);
            if let Some(port) = port
                && balancer::has_usable(&port, scope)
            {
                let turn = port.hold.turn(port.width(scope), Instant::now());
                tokio::time::sleep_until(turn.min(expires).into()).await;
                if settle_and_flush(&worker, &session, &port).await {
                    break;
                }
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(expires.into()) => {}
            }
        }
        metrics.held_now.dec();
    }
    let mut held = session.held.borrow_mut();
    held.is_watched = false;
    while held.pop().is_some() {
        metrics.dropped(reason);
    }
    drop(held);
    leave_idle(&worker, &session);
}

/// Finds out where the client's datagrams leave from, and sends what is held. Returns whether nothing is
/// left.
async fn settle_and_flush(worker: &Rc<Worker>, session: &Rc<Session>, port: &Rc<Routed>) -> bool {
    if let Some(source) = Source::wanted(worker, port, origin(worker, session)) {
        source.settle(worker).await;
    }
    !session.is_open() || flush(worker, session, port)
}

fn origin(worker: &Worker, session: &Session) -> Origin {
    let client = session.key.client.ip().to_canonical();
    let scope = worker.shared.scope(&session.door.spec, client);
    Origin { client, scope }
}

/// Sends what is held, in its order. Returns whether nothing is left.
fn flush(worker: &Rc<Worker>, session: &Rc<Session>, port: &Rc<Routed>) -> bool {
    loop {
        let Some(bytes) = session.held.borrow_mut().pop() else {
            return true;
        };
        if !send(worker, session, port, None, &bytes) {
            session.held.borrow_mut().put_back(bytes);
            return false;
        }
    }
}

/// Ends a session that has no endpoint and holds nothing.
fn leave_idle(worker: &Rc<Worker>, session: &Rc<Session>) {
    if session.flow().is_none() && session.held.borrow().is_empty() {
        worker.udp.end(session);
    }
}

/// Whether an error says that nobody listens at the endpoint, or that there is no way to it.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// How many answers are passed on in one turn.
const BURST: usize = 32;

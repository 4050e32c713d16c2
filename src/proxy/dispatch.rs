//! The way to a connection: pick an endpoint, enter its lease, reuse a connection or open one, and
//! wait while no endpoint is usable.
//!
//! Invariant: every [`Upstream`] comes with the [`Lease`] that was entered before the connection
//! was chosen.
//!
//! Leaves out the connects themselves: see [`crate::proxy::race`].

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::contract::backend::Backend;
use crate::contract::clock::millis;
use crate::contract::counters::{Counter, ServiceMetrics};
use crate::contract::endpoint::Lease;
use crate::contract::listener::ListenerSpec;
use crate::net::socket::Peer;
use crate::net::turns::in_turn;
use crate::proxy::balancer::{self, Avoid};
use crate::proxy::h2::connect as carried;
use crate::proxy::race::{Ask, connect, fail};
use crate::proxy::source::Source;
use crate::proxy::upstream::{self, Upstream};
use crate::proxy::worker::{Routed, Worker};

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No such service port in the table.
    NoService,
    /// Nothing became usable within the hold time.
    Expired,
    /// The queue of held requests and connections is full.
    Full,
    /// The client left while it was held.
    ClientLeft,
    /// The caller's own deadline has passed.
    Deadline,
    /// The endpoint is not who it should be, or does not speak TLS as it should.
    Tls,
}

/// A connection to an endpoint of `port`, which the caller has just resolved by
/// [`Worker::port`]. A client that is held sees every later snapshot.
pub async fn upstream(
    worker: &Rc<Worker>,
    spec: &ListenerSpec,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
) -> Result<(Lease, Upstream), Refusal> {
    let found = match try_dispatch(worker, spec, port, ask, ask.at).await? {
        Some(found) => found,
        // Boxed, as all rare paths are: their room would be part of every exchange.
        None => Box::pin(held(worker, spec, port, ask)).await?,
    };
    found.1.local.dispatched.inc();
    Ok(found)
}

/// A connection that needs no change of the endpoints.
async fn try_dispatch(
    worker: &Rc<Worker>,
    spec: &ListenerSpec,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
    at: Instant,
) -> Result<Option<(Lease, Upstream)>, Refusal> {
    let (backend, waits) = with_backend(spec, port, |it| (it.id, it.waits)).unzip();
    if waits == Some(true) {
        return Ok(None);
    }
    let Some(lease) = balancer::pick(port, ask.cost, ask.from, &ask.avoid, at) else {
        return Ok(None);
    };
    let local = worker.local(lease.endpoint());
    let source = Source::wanted(worker, port, ask.from);
    let seen = source.and_then(|it| it.at(lease.endpoint()));
    let is_lost = || source.is_some_and(|it| it.is_lost(worker));
    let kept = match ask.http2 {
        true => carried::open(&local, seen, backend, ask.reuse, is_lost),
        false => upstream::check_out(&local, seen, backend, ask.reuse, is_lost),
    };
    if let Some(upstream) = kept {
        lease.endpoint().note_dispatch(millis(at));
        return Ok(Some((lease, upstream)));
    }
    if !ask.http2 {
        return Box::pin(open(worker, spec, port, ask, lease)).await;
    }
    Box::pin(async move {
        carried::wait_for_other(&local).await;
        if let Some(upstream) = carried::open(&local, seen, backend, ask.reuse, is_lost) {
            lease.endpoint().note_dispatch(millis(at));
            return Ok(Some((lease, upstream)));
        }
        let _opening = carried::Opening::new(local);
        open_http2(worker, spec, port, ask, lease).await
    })
    .await
}

/// A stream on a new connection of HTTP/2. An endpoint that ends its new connection without a word counts
/// as one that cannot be connected to.
async fn open_http2(
    worker: &Rc<Worker>,
    spec: &ListenerSpec,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
    mut lease: Lease,
) -> Result<Option<(Lease, Upstream)>, Refusal> {
    let mut tried = ask.avoid.tried.to_vec();
    loop {
        let avoid = Avoid {
            tried: &tried,
            ..ask.avoid
        };
        let again = Ask { avoid, ..*ask };
        let Some((entered, upstream)) = open(worker, spec, port, &again, lease).await? else {
            return Ok(None);
        };
        let is_named = upstream.is_named;
        if let Some(upstream) = carried::adopt(upstream).await {
            return Ok(Some((entered, upstream)));
        }
        let ended = io::ErrorKind::ConnectionReset.into();
        fail(worker, &entered, is_named, &ended, port, ask.from.scope);
        tried.push(entered.endpoint().id);
        let avoid = Avoid {
            tried: &tried,
            ..ask.avoid
        };
        match balancer::pick(port, ask.cost, ask.from, &avoid, Instant::now()) {
            Some(next) if !tried.contains(&next.endpoint().id) => lease = next,
            _ => return Ok(None),
        }
    }
}

/// A new connection, with TLS on it where a policy or the Service says so.
async fn open(
    worker: &Rc<Worker>,
    spec: &ListenerSpec,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
    lease: Lease,
) -> Result<Option<(Lease, Upstream)>, Refusal> {
    let found = connect(worker, spec, port, ask, lease).await;
    let backend = || {
        spec.backend
            .load_full()
            .or_else(|| port.policy.backend.clone())
    };
    match found.map(|found| (found, backend())) {
        Some((found, Some(backend))) => Box::pin(secure(worker, port, ask, &backend, found)).await,
        found => Ok(found.map(|(found, _)| found)),
    }
}

/// Speaks TLS with an endpoint that was just connected to. `None`: the endpoint is lost, as by a
/// connect that fails. One that is not who it should be is no such loss: another try would find the
/// same.
async fn secure(
    worker: &Rc<Worker>,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
    backend: &Backend,
    (lease, mut upstream): (Lease, Upstream),
) -> Result<Option<(Lease, Upstream)>, Refusal> {
    let endpoint = lease.endpoint().address;
    let refused = |cause: &str| {
        let now = millis(Instant::now());
        if let Some(count) = worker.shared.refused_endpoints.count(now) {
            let service = &port.key.service;
            tracing::warn!(count, %service, %endpoint, cause, "endpoints refused for their TLS");
        }
        Refusal::Tls
    };
    let session = backend.session(endpoint.ip(), ask.http2);
    let session = session.map_err(|cause| refused(&cause))?;
    let begun = upstream.stream.begin_tls(session, &[], backend.id);
    begun.map_err(|error| refused(&error.to_string()))?;
    let shaken = {
        let always = Cell::new(true);
        let shake = pin!(poll_fn(|cx| upstream.stream.poll_handshake(cx)));
        let shake = in_turn(&worker.handshakes, &always, false, shake);
        tokio::time::timeout(worker.config().timeouts.connect, shake).await
    };
    match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(()) if ask.http2 && !upstream.stream.has_agreed_on(b"h2") => {
            Err(refused("it does not speak HTTP/2"))
        }
        Ok(()) => Ok(Some((lease, upstream))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(refused(&error.to_string()))
        }
        Err(error) => {
            let is_named = upstream.is_named;
            fail(worker, &lease, is_named, &error, port, ask.from.scope);
            Ok(None)
        }
    }
}

/// Looks at how TLS is spoken with the endpoints now: as the policy of the listener says, else as the Service
/// says.
fn with_backend<T>(
    spec: &ListenerSpec,
    port: &Routed,
    look: impl FnOnce(&Backend) -> T,
) -> Option<T> {
    let of_policy = spec.backend.load();
    let backend = of_policy.as_deref().or(port.policy.backend.as_deref());
    backend.map(look)
}

/// Whether nobody has told yet whom the endpoints' certificates must come from: a Service's first moments.
fn waits_for_authorities(spec: &ListenerSpec, port: &Routed) -> bool {
    with_backend(spec, port, |it| it.waits) == Some(true)
}

/// Waits in the bounded queue until an endpoint becomes usable, and then for its turn (contract
/// 1.9).
async fn held(
    worker: &Rc<Worker>,
    spec: &ListenerSpec,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
) -> Result<(Lease, Upstream), Refusal> {
    let metrics = port.metrics.clone();
    let limits = worker.config().limits.held;
    let Some(_place) = port.hold.take_place(limits) else {
        metrics.held_refused.inc();
        return Err(Refusal::Full);
    };
    let mut counted = HeldNow {
        metrics: &metrics,
        outcome: &metrics.held_left,
    };
    metrics.held_now.inc();
    let expires = Instant::now() + port.policy.hold_timeout;
    loop {
        let (port, changed) = worker.watched_port(spec);
        if let Some(port) = port
            && balancer::has_usable(&port, ask.from.scope)
            && !waits_for_authorities(spec, &port)
        {
            let turn = port.hold.turn(port.width(ask.from.scope), Instant::now());
            tokio::time::sleep_until(turn.min(expires).into()).await;
            if let Some(found) = try_dispatch(
                worker,
                spec,
                &worker.port(spec).unwrap_or(port),
                ask,
                Instant::now(),
            )
            .await?
            {
                counted.outcome = &metrics.held_released;
                return Ok(found);
            }
        }
        let tick =
            tokio::time::sleep_until((Instant::now() + LOOK_AFTER_CLIENT).min(expires).into());
        tokio::select! {
            () = changed => {}
            () = tick => {}
        }
        if ask.client.peer() != Peer::Open {
            return Err(Refusal::ClientLeft);
        }
        if Instant::now() >= expires || worker.cut.get() {
            counted.outcome = &metrics.held_expired;
            return Err(Refusal::Expired);
        }
    }
}

/// Counts one held client for as long as it waits, and how the wait ended. Unless its `outcome` is
/// set, the client has left.
struct HeldNow<'a> {
    metrics: &'a ServiceMetrics,
    outcome: &'a Counter,
}

impl Drop for HeldNow<'_> {
    fn drop(&mut self) {
        self.metrics.held_now.dec();
        self.outcome.inc();
    }
}

/// How often a held client is checked for having left.
const LOOK_AFTER_CLIENT: Duration = Duration::from_millis(100);

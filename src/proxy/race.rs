//! The connects of one client: to the picked endpoint, and to others if that one fails or does not answer.
//!
//! Invariants: a connect that fails ejects its endpoint, unless the endpoint may only be busy, and costs
//! the client neither attempts nor retries (contract 1.8). A connect without an answer for 100 ms races
//! with a second one, within a budget (contract 3.1; the idea of RFC 8305, over endpoints).

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::contract::clock::millis;
use crate::contract::endpoint::{EndpointId, Lease};
use crate::contract::hold::Moving;
use crate::contract::listener::ListenerSpec;
use crate::contract::policy::Scope;
use crate::contract::reason::RetryReason;
use crate::contract::snapshot::Port;
use crate::net::socket;
use crate::net::stream::Stream;
use crate::proxy::balancer::{self, Avoid, Cost, Origin};
use crate::proxy::second_look::{eject, eject_if_lost};
use crate::proxy::shared::Spare;
use crate::proxy::source::Source;
use crate::proxy::upstream::{Reuse, Upstream};
use crate::proxy::worker::{Routed, Worker};

/// What connection is wanted.
pub struct Ask<'a> {
    /// What the pick is for.
    pub cost: Cost,
    /// Which kept connections may be used.
    pub reuse: Reuse,
    /// A stream of HTTP/2 is wanted, and not a connection of its own.
    pub http2: bool,
    /// Which endpoints not to pick.
    pub avoid: Avoid<'a>,
    /// The client. It is held only while it is still there.
    pub client: &'a Stream,
    /// Who asks.
    pub from: Origin,
    /// When the connection was asked for.
    pub at: Instant,
}

/// A connect that is under way.
struct Connecting {
    lease: Lease,
    upstream: Upstream,
    gives_up: Instant,
}

/// Connects to the picked endpoint, and to others if that one fails or does not answer, until one
/// answers or each has failed. A client that waits for an answer sees every later snapshot.
pub(super) async fn connect(
    worker: &Rc<Worker>,
    spec: &ListenerSpec,
    port: &Rc<Routed>,
    ask: &Ask<'_>,
    first: Lease,
) -> Option<(Lease, Upstream)> {
    let mut race: Vec<Connecting> = Vec::with_capacity(1);
    // Endpoints that are not to be picked: those that lost the request, then those that failed here.
    let mut out = ask.avoid.tried.to_vec();
    let mut next = Some(first);
    let mut started = 0;
    // When a client moves on whose endpoints have all been ejected.
    let mut moves: Option<(Instant, Moving)> = None;
    port.budget.count_connect();
    let from = match Source::wanted(worker, port, ask.from) {
        // Boxed, since most clients have none, or have it already.
        Some(source) => Some((source, Box::pin(source.shadow(worker, port)).await)),
        None => None,
    };
    loop {
        if let Some(lease) = next.take() {
            started += 1;
            match start(worker, port, lease, from) {
                Ok(connecting) => race.push(connecting),
                Err((lease, error)) => {
                    let is_named = from.is_some_and(|(_, shadow)| shadow.is_some());
                    fail(worker, &lease, is_named, &error, port, ask.from.scope);
                    if socket::is_shortage(&error) {
                        if worker.spare(Spare::All) {
                            next = Some(lease);
                            continue;
                        }
                        tokio::time::sleep(SHORTAGE_PAUSE).await;
                        return None;
                    }
                    out.push(lease.endpoint().id);
                }
            }
        }
        if race.is_empty() {
            let avoid = Avoid {
                tried: &out,
                ..ask.avoid
            };
            let port = worker.port(spec)?;
            let lease = balancer::pick(&port, ask.cost, ask.from, &avoid, Instant::now())?;
            // An endpoint that is only slow to accept is not ejected. It gets one connect of this
            // client, which is held from then on (contract 1.9).
            if out[ask.avoid.tried.len()..].contains(&lease.endpoint().id) {
                return None;
            }
            next = Some(lease);
            continue;
        }
        let patience = match &moves {
            Some((turn, _)) => tokio::time::sleep_until((*turn).into()),
            None => tokio::time::sleep(RACE_AFTER),
        };
        tokio::pin!(patience);
        let ended = poll_fn(
            |cx| match poll_race(worker, &mut race, cx, port, ask.from.scope) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending => patience.as_mut().poll(cx).map(|()| None),
            },
        )
        .await;
        match ended {
            Some(Ok(won)) => {
                won.lease.endpoint().readmit();
                if started > 1 {
                    port.metrics.retried(RetryReason::Connect, true);
                }
                if !race.is_empty() {
                    let (worker, port) = (worker.clone(), port.clone());
                    tokio::task::spawn_local(see_to_end(worker, race, port, ask.from.scope));
                }
                return Some((won.lease, won.upstream));
            }
            Some(Err(failed)) => out.push(failed),
            None => {}
        }
        if !race.is_empty() && race.len() < RACERS {
            let busy: Vec<EndpointId> = race
                .iter()
                .map(|c| c.lease.endpoint().id)
                .chain(out.iter().copied())
                .collect();
            let avoid = Avoid {
                tried: &busy,
                ..ask.avoid
            };
            // What others have found silent in the meantime is as good as lost. All who wait for it
            // notice at about the same time, and must not fill the next endpoint's accept queue.
            let hopeless = race.iter().all(|c| c.lease.endpoint().is_ejected());
            let now = Instant::now();
            let has_turn = moves.as_ref().is_some_and(|(turn, _)| *turn <= now);
            if hopeless && moves.is_none() {
                let moving = port.hold.move_on();
                moves = Some((port.hold.turn(port.width(ask.from.scope), now), moving));
                continue;
            }
            // Not a second connect to an endpoint that has failed or whose connect is under way. A
            // client with session affinity waits for its endpoint, unless that one is lost.
            next = worker
                .port(spec)
                .filter(|port| hopeless || port.affinity.is_none())
                .and_then(|port| balancer::pick(&port, ask.cost, ask.from, &avoid, Instant::now()))
                .filter(|lease| !busy.contains(&lease.endpoint().id))
                .filter(|_| hopeless && has_turn || !hopeless && port.budget.hedge());
            if has_turn || !hopeless {
                moves = None;
            }
        }
    }
}

/// Starts one connect. `from`: the client whose address is to be seen, and its shadow if it has one.
fn start(
    worker: &Rc<Worker>,
    port: &Port,
    lease: Lease,
    from: Option<(Source, Option<IpAddr>)>,
) -> Result<Connecting, (Lease, io::Error)> {
    let timeout = worker.config().timeouts.connect;
    let now = Instant::now();
    lease.endpoint().note_dispatch(millis(now));
    let seen = from.and_then(|(source, _)| source.at(lease.endpoint()));
    let connect = |shadow| Upstream::connect(worker.local(lease.endpoint()), seen, shadow);
    let mut connected = connect(from.and_then(|(_, shadow)| shadow));
    if let (Err(error), Some((source, _))) = (&connected, from)
        && source.has_gone(worker, port, error)
    {
        connected = connect(None);
    }
    match connected {
        Ok(upstream) => Ok(Connecting {
            lease,
            upstream,
            gives_up: now + timeout,
        }),
        Err(error) => Err((lease, error)),
    }
}

/// Ready with the first connect that succeeds, or with the endpoint of one that has failed and left
/// the race.
fn poll_race(
    worker: &Rc<Worker>,
    race: &mut Vec<Connecting>,
    cx: &mut Context<'_>,
    port: &Rc<Routed>,
    scope: Option<Scope>,
) -> Poll<Result<Connecting, EndpointId>> {
    for i in 0..race.len() {
        let stream = &race[i].upstream.stream;
        let error = match stream.poll_write_ready(cx) {
            Poll::Pending if Instant::now() < race[i].gives_up => continue,
            Poll::Pending => Some(io::ErrorKind::TimedOut.into()),
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) => stream.take_error().unwrap_or_else(Some),
        };
        let done = race.swap_remove(i);
        return Poll::Ready(match error {
            None => Ok(done),
            Some(error) => {
                let is_named = done.upstream.is_named;
                fail(worker, &done.lease, is_named, &error, port, scope);
                Err(done.lease.endpoint().id)
            }
        });
    }
    Poll::Pending
}

/// Waits for the other connects of a race: each still shows whether its endpoint answers.
async fn see_to_end(
    worker: Rc<Worker>,
    mut race: Vec<Connecting>,
    port: Rc<Routed>,
    scope: Option<Scope>,
) {
    while !race.is_empty() {
        let tick = tokio::time::sleep(RACE_AFTER);
        tokio::pin!(tick);
        let ended = poll_fn(|cx| match poll_race(&worker, &mut race, cx, &port, scope) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => tick.as_mut().poll(cx).map(|()| None),
        })
        .await;
        if let Some(Ok(done)) = ended {
            done.lease.endpoint().readmit();
        }
    }
}

/// Counts a failed connect and ejects its endpoint, unless the endpoint may only be busy. If the
/// endpoint was to see its client, a NetworkPolicy may refuse that client alone: then a connect from the
/// node's address decides.
pub(super) fn fail(
    worker: &Rc<Worker>,
    lease: &Lease,
    is_named: bool,
    error: &io::Error,
    port: &Rc<Routed>,
    scope: Option<Scope>,
) {
    port.metrics.retried(RetryReason::Connect, false);
    match is_named && !socket::is_shortage(error) {
        true => {
            let (worker, endpoint) = (worker.clone(), lease.endpoint().clone());
            tokio::task::spawn_local(eject_if_lost(worker, endpoint, port.clone(), scope));
        }
        false => eject(lease.endpoint(), error, port, scope),
    }
}

/// How long a connect may go unanswered before a second one is started.
const RACE_AFTER: Duration = Duration::from_millis(100);
/// The most connects of one client that are under way together.
const RACERS: usize = 4;
/// How long to wait for descriptors.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

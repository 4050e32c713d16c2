//! A second look at an endpoint that has lost a connection or refused one: whether it leaves, and
//! whether it is ejected.
//!
//! Invariant: one task of a worker at a time connects to an endpoint for this. A storm of losses must
//! not become a storm of connects. These connects come from the node's address.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::contract::endpoint::Endpoint;
use crate::contract::policy::Scope;
use crate::contract::snapshot::Port;
use crate::net::socket;
use crate::proxy::balancer;
use crate::proxy::worker::{Routed, Worker};

/// Ejects an endpoint to which a connect has failed, unless it may only be busy.
pub(super) fn eject(
    endpoint: &Arc<Endpoint>,
    error: &io::Error,
    port: &Port,
    scope: Option<Scope>,
) {
    let silent = error.kind() == io::ErrorKind::TimedOut;
    if socket::is_shortage(error) || silent && !balancer::may_eject_silent(port, scope) {
        return;
    }
    tracing::debug!(endpoint = %endpoint.address, %error, "connect failed; ejected");
    endpoint.eject();
}

/// Connects from the node's address, and ejects the endpoint if that fails, too. One task at a time
/// does so for an endpoint.
pub(super) async fn eject_if_lost(
    worker: Rc<Worker>,
    endpoint: Arc<Endpoint>,
    port: Rc<Routed>,
    scope: Option<Scope>,
) {
    let local = worker.local(&endpoint);
    if local.looked_at.replace(true) {
        return;
    }
    let _looking = Looking(&local.looked_at);
    let patience = worker.config().timeouts.connect;
    match tokio::time::timeout(patience, TcpStream::connect(endpoint.address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => eject(&endpoint, &error, &port, scope),
        Err(_) => eject(&endpoint, &io::ErrorKind::TimedOut.into(), &port, scope),
    }
}

/// Whether discovery reports within a second that an endpoint leaves that has lost a request. Then
/// the loss is free (contract 3.7).
pub async fn is_announced_soon(endpoint: &Endpoint, deadline: Option<Instant>) -> bool {
    let until = second_look(deadline);
    while !endpoint.is_announced() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

/// Whether an endpoint that lost a connection turns out, within a second, to leave or to refuse
/// connections. One of the callers connects to the endpoint and the others wait for the result: a
/// storm of losses must not become a storm of connects.
pub async fn is_leaving_soon(
    worker: &Worker,
    endpoint: &Arc<Endpoint>,
    deadline: Option<Instant>,
) -> bool {
    let until = second_look(deadline);
    let local = worker.local(endpoint);
    let mine = !local.looked_at.replace(true);
    let _looking = mine.then(|| Looking(&local.looked_at));
    while Instant::now() < until {
        if endpoint.is_leaving() {
            return true;
        }
        if mine
            && let Ok(Err(error)) =
                tokio::time::timeout(LOOK_EVERY, TcpStream::connect(endpoint.address)).await
            && !socket::is_shortage(&error)
        {
            endpoint.eject();
            return true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}

fn second_look(deadline: Option<Instant>) -> Instant {
    let until = Instant::now() + SECOND_LOOK;
    deadline.map_or(until, |at| at.min(until))
}

/// Lets another caller look when this one is done, or dropped.
struct Looking<'a>(&'a Cell<bool>);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// How long after a loss its endpoint may still turn out to leave.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How often such an endpoint is connected to, and how long a connect may take.
const LOOK_EVERY: Duration = Duration::from_millis(100);

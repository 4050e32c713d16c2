//! Protocol `auto`: finds out from the client's first bytes, or from its silence, whether it speaks
//! HTTP/1.
//!
//! Invariant: every byte that is read here stays in [`Client::unread`] for the protocol that is
//! found. A silent client holds no lease on an endpoint that leaves.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::contract::endpoint::{Endpoint, Lease};
use crate::contract::listener::ListenerSpec;
use crate::contract::reason::CloseReason;
use crate::proxy::client::Client;
use crate::proxy::tcp::acquire_tcp;
use crate::proxy::upstream::{self, Upstream};
use crate::proxy::worker::Worker;
use crate::proxy::{balancer, dispatch};
use crate::wire::sniff::{self, Sniff};

/// The protocol that `auto` found.
pub(super) enum Known {
    Http,
    /// With the provisional connection, if one was made.
    Tcp(Option<Box<(Lease, Upstream)>>),
}

/// Reads the first bytes. A client that stays silent is connected provisionally, since its server
/// may be the side that speaks first. A request line that comes before the server's first byte
/// still means HTTP.
pub(super) async fn detect(worker: &Rc<Worker>, client: &mut Client) -> Result<Known, CloseReason> {
    let (idle, head_time) = {
        let config = worker.config();
        (config.timeouts.client_idle, config.timeouts.head)
    };
    match tokio::time::timeout(SILENCE, sniff(worker, client)).await {
        Ok(sniffed) => {
            return Ok(if sniffed? {
                Known::Http
            } else {
                Known::Tcp(None)
            });
        }
        Err(_silent) => {}
    }
    // A request line that has begun gets the time of a head. If it does not end by then, it was no
    // request line.
    let deadline = Instant::now()
        + if client.unread.is_empty() {
            idle
        } else {
            head_time
        };
    loop {
        let found = tokio::select! {
            biased;
            // A client that sends while it is held is asked what it speaks: a request must not be
            // refused by a reset, as a TCP connection is.
            _ = client.stream.readable() => None,
            found = Box::pin(acquire_tcp(worker, client)) => Some(found?),
        };
        let Some((lease, upstream)) = found else {
            let sniffed = tokio::time::timeout(head_time, sniff(worker, client))
                .await
                .unwrap_or(Ok(false))?;
            return Ok(if sniffed {
                Known::Http
            } else {
                Known::Tcp(None)
            });
        };
        let (connected, listener) = (Instant::now(), client.listener.clone());
        tokio::select! {
            biased;
            sniffed = sniff(worker, client) => {
                if sniffed? {
                    // An older connection may be about to reach its server's idle timeout.
                    if connected.elapsed() < upstream::RECENT {
                        upstream::check_in(upstream, connected);
                    }
                    return Ok(Known::Http);
                }
                return Ok(Known::Tcp(Some(Box::new((lease, upstream)))));
            }
            _ = upstream.stream.readable() => {
                // The server's end without a byte is passed on. But if the endpoint leaves, the
                // client need not notice, and gets another endpoint.
                let silent_end = upstream.stream.has_ended();
                if !silent_end || !dispatch::is_leaving_soon(worker, lease.endpoint(), None).await {
                    return Ok(Known::Tcp(Some(Box::new((lease, upstream)))));
                }
            }
            // Neither side has sent anything: another endpoint serves as well, and the drain of
            // this one need not wait.
            () = left(worker, &listener, lease.endpoint()) => {}
            () = tokio::time::sleep_until(deadline.into()) => {
                let begun = !client.unread.is_empty();
                return if begun { Ok(Known::Tcp(Some(Box::new((lease, upstream))))) } else { Err(CloseReason::ClientTimeout) };
            }
        }
        drop((lease, upstream));
        if worker.cut.get() {
            return Err(CloseReason::Shutdown);
        }
        // A silent client has asked for nothing, so the hold time does not run for it.
        tokio::select! {
            _ = client.stream.readable() => {}
            () = something_usable(worker, &client.listener) => {}
            () = tokio::time::sleep_until(deadline.into()) => return Err(CloseReason::ClientTimeout),
        }
    }
}

/// Waits until the endpoint is out of rotation.
async fn left(worker: &Worker, listener: &ListenerSpec, endpoint: &Endpoint) {
    loop {
        let (_, changed) = worker.watched_port(listener);
        if !endpoint.is_open() || worker.cut.get() {
            return;
        }
        changed.await;
    }
}

/// Waits until the listener's service port has a usable endpoint.
async fn something_usable(worker: &Worker, listener: &ListenerSpec) {
    loop {
        let (port, changed) = worker.watched_port(listener);
        if port.is_some_and(|port| balancer::has_usable(&port)) {
            return;
        }
        changed.await;
    }
}

/// Reads until it is sure whether the client speaks HTTP/1. Cancellation safe: what was read stays
/// in `unread`.
async fn sniff(worker: &Worker, client: &mut Client) -> Result<bool, CloseReason> {
    loop {
        if !client.unread.is_empty() {
            match sniff::sniff(&client.unread) {
                Sniff::Http => return Ok(true),
                Sniff::Other => return Ok(false),
                Sniff::NeedMore => {}
            }
        }
        let before = client.unread.len();
        let patient = before == 0 || sniff::may_become_request(&client.unread);
        let fill = poll_fn(|cx| client.poll_fill(cx, worker));
        let filled = if patient {
            fill.await
        } else {
            match tokio::time::timeout(SILENCE, fill).await {
                Ok(filled) => filled,
                // The beginning of something else: its server may know what to answer.
                Err(_silent) => return Ok(false),
            }
        };
        filled.map_err(|_| CloseReason::ClientReset)?;
        if client.unread.len() == before {
            // The client has ended its direction, and what it sent is no request.
            return if before == 0 {
                Err(CloseReason::ClientClosed)
            } else {
                Ok(false)
            };
        }
    }
}

/// After this silence of the client, its server may be the side that speaks first.
const SILENCE: Duration = Duration::from_millis(200);

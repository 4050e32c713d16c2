//! Protocol `auto`: what the client's first bytes say, and what its silence says.

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

/// What `auto` found out.
pub(super) enum Known {
    Http,
    /// With the provisional connection, if one was made.
    Tcp(Option<Box<(Lease, Upstream)>>),
}

/// Looks at the first bytes. A silent client is connected provisionally, since its server may be the one to speak first;
/// a request line before the server's first byte still makes it HTTP.
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
    // A request line that has begun is waited for as any head is; without an end it was none.
    let deadline = Instant::now()
        + if client.unread.is_empty() {
            idle
        } else {
            head_time
        };
    loop {
        let found = tokio::select! {
            biased;
            // It speaks while it is still held: a request must not be refused as a connection is, by a reset.
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
        let connected = Instant::now();
        tokio::select! {
            biased;
            sniffed = sniff(worker, client) => {
                if sniffed? {
                    // An older one may be at the end of its server's patience.
                    if connected.elapsed() < upstream::RECENT {
                        upstream::check_in(upstream, connected);
                    }
                    return Ok(Known::Http);
                }
                return Ok(Known::Tcp(Some(Box::new((lease, upstream)))));
            }
            _ = upstream.stream.readable() => {
                // Its end without a byte is passed on, unless the endpoint is going: the client need not notice that.
                let unheard = upstream.stream.has_ended();
                if !unheard || !dispatch::is_leaving_soon(worker, lease.endpoint(), None).await {
                    return Ok(Known::Tcp(Some(Box::new((lease, upstream)))));
                }
            }
            // Nobody has said anything: another endpoint does as well, and this one's drain need not wait for us.
            () = left(worker, lease.endpoint()) => {}
            () = tokio::time::sleep_until(deadline.into()) => {
                let begun = !client.unread.is_empty();
                return if begun { Ok(Known::Tcp(Some(Box::new((lease, upstream))))) } else { Err(CloseReason::ClientTimeout) };
            }
        }
        drop((lease, upstream));
        if worker.cut.get() {
            return Err(CloseReason::Shutdown);
        }
        // Somebody silent is not held, with a limit, for what it has not asked yet.
        tokio::select! {
            _ = client.stream.readable() => {}
            () = something_usable(worker, &client.listener) => {}
            () = tokio::time::sleep_until(deadline.into()) => return Err(CloseReason::ClientTimeout),
        }
    }
}

/// Until the endpoint is out of rotation.
async fn left(worker: &Worker, endpoint: &Endpoint) {
    let mut generation = worker.shared.generation.clone();
    while endpoint.is_open() && !worker.cut.get() && generation.changed().await.is_ok() {}
}

async fn something_usable(worker: &Worker, listener: &ListenerSpec) {
    let mut generation = worker.shared.generation.clone();
    while !worker
        .port(listener)
        .is_some_and(|port| balancer::has_usable(&port))
        && generation.changed().await.is_ok()
    {}
}

/// Reads until it is sure whether this is HTTP/1. Cancellation safe: what was read stays in `unread`.
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
                // A word without an end: its server may know what to answer.
                Err(_silent) => return Ok(false),
            }
        };
        filled.map_err(|_| CloseReason::ClientReset)?;
        if client.unread.len() == before {
            // It has ended its direction: whatever it sent, it is not a request.
            return if before == 0 {
                Err(CloseReason::ClientClosed)
            } else {
                Ok(false)
            };
        }
    }
}

/// After this a silent client's server may be the one that speaks first.
const SILENCE: Duration = Duration::from_millis(200);

//! Protocol `auto`: finds out from the client's first line, or from its silence, whether it speaks
//! HTTP/1.
//!
//! Invariants: no endpoint gets the end of a first line before the line is known to be none of
//! HTTP. Every byte that no endpoint has stays in [`Client::unread`] for the protocol that is found.
//! A silent client holds no lease on an endpoint that leaves.

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
use crate::proxy::{balancer, second_look};
use crate::wire::sniff::{self, Beginning, Sniff};

/// The protocol that `auto` found.
pub(super) enum Known {
    Http,
    Http2,
    /// With the provisional connection, if one was made.
    Tcp(Option<Box<(Lease, Upstream)>>),
}

/// Reads the first line. While its end is missing, a silent client is connected provisionally,
/// since its server may be the side that speaks next. A request line that comes before the server's
/// first byte still means HTTP, and one that has begun is never TCP.
pub(super) async fn detect(worker: &Rc<Worker>, client: &mut Client) -> Result<Known, CloseReason> {
    let idle_ends = Instant::now() + worker.config().timeouts.client_idle;
    let mut line = Line::default();
    loop {
        match line.sniff(worker, client).await? {
            Sniff::Http => return Ok(Known::Http),
            Sniff::Http2 => return Ok(Known::Http2),
            Sniff::Other => return Ok(Known::Tcp(None)),
            Sniff::NeedMore => {}
        }
        let (lease, upstream) = tokio::select! {
            biased;
            // A client that sends while it is held is asked what it speaks: a request must not be
            // refused by a reset, as a TCP connection is.
            _ = client.stream.readable(), if client.unread.is_empty() => continue,
            found = Box::pin(acquire_tcp(worker, client)) => found?,
        };
        match line
            .meet(worker, client, &lease, upstream, idle_ends)
            .await?
        {
            Met::Http => return Ok(Known::Http),
            Met::Http2 => return Ok(Known::Http2),
            Met::Tcp(upstream) => return Ok(Known::Tcp(Some(Box::new((lease, upstream))))),
            Met::Left => drop(lease),
        }
        if worker.cut.get() {
            return Err(CloseReason::Shutdown);
        }
        // A silent client has asked for nothing, so the hold time does not run for it.
        tokio::select! {
            _ = client.stream.readable() => {}
            () = something_usable(worker, client) => {}
            () = tokio::time::sleep_until(idle_ends.into()) => return Err(CloseReason::ClientTimeout),
        }
    }
}

/// The client's first line, while its end is missing.
#[derive(Default)]
struct Line {
    /// When a request line that has begun must have ended. It gets the time of a head.
    ends: Option<Instant>,
}

/// What a provisional connection has led to.
enum Met {
    Http,
    Http2,
    Tcp(Upstream),
    /// The endpoint has left, and neither side has sent anything: another endpoint serves as well.
    Left,
}

impl Line {
    /// Reads until the line is known, or until the server may be the side that speaks next.
    async fn sniff(&mut self, worker: &Worker, client: &mut Client) -> Result<Sniff, CloseReason> {
        let mut known = sniff::sniff(&client.unread);
        while known == Sniff::NeedMore {
            let beginning = sniff::beginning(&client.unread);
            let patience = match beginning {
                Beginning::Request => self.request_ends(worker) - Instant::now(),
                Beginning::Word => SILENCE,
                Beginning::Text => Duration::ZERO,
            };
            known = match tokio::time::timeout(patience, read(worker, client)).await {
                Ok(sniffed) => sniffed?,
                Err(_late) if beginning == Beginning::Request => Sniff::Http,
                Err(_silent) => break,
            };
        }
        Ok(known)
    }

    /// Waits with a provisional connection for the side that speaks next. The endpoint gets what is
    /// no request line so far, never the end of the line.
    async fn meet(
        &mut self,
        worker: &Worker,
        client: &mut Client,
        lease: &Lease,
        mut upstream: Upstream,
        idle_ends: Instant,
    ) -> Result<Met, CloseReason> {
        let (connected, mut passed) = (Instant::now(), 0);
        let (force, listener) = (upstream.local.force.clone(), client.listener.clone());
        loop {
            let silent = client.unread.is_empty();
            let request = !silent && sniff::beginning(&client.unread) == Beginning::Request;
            let ends = match request {
                true => self.request_ends(worker),
                false => idle_ends,
            };
            if !request && passed < client.unread.len() {
                let rest = &client.unread[passed..];
                tokio::select! {
                    biased;
                    written = upstream.stream.write_all(rest) => if written.is_err() {
                        client.stream.reset_on_close();
                        return Err(CloseReason::UpstreamReset);
                    },
                    () = force.cancelled() => {}
                }
                passed = client.unread.len();
            }
            let tcp = tokio::select! {
                biased;
                sniffed = read(worker, client) => match sniffed? {
                    Sniff::NeedMore => false,
                    Sniff::Other => true,
                    sniffed @ (Sniff::Http | Sniff::Http2) => {
                        // An older connection may be about to reach its server's idle timeout.
                        if passed == 0 && connected.elapsed() < upstream::RECENT {
                            upstream::check_in(upstream, connected);
                        }
                        return Ok(match sniffed {
                            Sniff::Http2 => Met::Http2,
                            _ => Met::Http,
                        });
                    }
                },
                _ = upstream.stream.readable() => {
                    // The server's end without a byte is passed on. But if the endpoint leaves, the
                    // client need not notice, and gets another endpoint.
                    let silent_end = passed == 0 && upstream.stream.has_ended();
                    if silent_end && second_look::is_leaving_soon(worker, lease.endpoint(), None).await {
                        return Ok(Met::Left);
                    }
                    true
                }
                () = left(worker, &listener, lease.endpoint()), if passed == 0 => return Ok(Met::Left),
                () = force.cancelled(), if passed > 0 => true,
                () = tokio::time::sleep_until(ends.into()), if silent || request => {
                    return if request { Ok(Met::Http) } else { Err(CloseReason::ClientTimeout) };
                }
            };
            if tcp {
                client.unread.drain(..passed);
                return Ok(Met::Tcp(upstream));
            }
        }
    }

    fn request_ends(&mut self, worker: &Worker) -> Instant {
        let head_time = worker.config().timeouts.head;
        *self.ends.get_or_insert_with(|| Instant::now() + head_time)
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
async fn something_usable(worker: &Worker, client: &Client) {
    loop {
        let (port, changed) = worker.watched_port(&client.listener);
        if port.is_some_and(|port| balancer::has_usable(&port, client.scope)) {
            return;
        }
        changed.await;
    }
}

/// Reads once. Cancellation safe: what was read stays in `unread`.
async fn read(worker: &Worker, client: &mut Client) -> Result<Sniff, CloseReason> {
    let before = client.unread.len();
    poll_fn(|cx| client.poll_fill(cx, worker))
        .await
        .map_err(|_| CloseReason::ClientReset)?;
    match client.unread.len() {
        0 => Err(CloseReason::ClientClosed),
        after if after == before => Ok(sniff::sniff_all(&client.unread)),
        _ => Ok(sniff::sniff(&client.unread)),
    }
}

/// After this silence of the client, its server may be the side that speaks first.
const SILENCE: Duration = Duration::from_millis(200);

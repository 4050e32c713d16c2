//! A stream to an endpoint: on a connection that is open and has room, or on a new one.
//!
//! Invariants: nobody gets a stream on a connection of another client, where the endpoint sees its
//! clients' addresses. A burst of requests opens one connection, not one for each.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use h2::Ping;
use tokio::time::Instant;

use crate::net::stream::Stream;
use crate::proxy::h2::carrier::{Carried, Carrier};
use crate::proxy::h2::endpoint::EndpointStream;
use crate::proxy::h2::io;
use crate::proxy::h2::limits::{ALL_WINDOWS, SENDING, STREAMS, WINDOW};
use crate::proxy::upstream::{Local, Reuse, Upstream};

/// Opens a stream on a connection of this source that is open and has room. Where a request may run
/// only once (`reuse`), the kernel is asked whether the connection is still there. One on which the
/// endpoint does not see the source is taken only while `is_lost` says that a new one would be no better.
pub fn open(
    local: &Rc<Local>,
    source: Option<IpAddr>,
    backend: Option<u64>,
    reuse: Reuse,
    is_lost: impl Fn() -> bool,
) -> Option<Upstream> {
    let mut carriers = local.carriers.borrow_mut();
    carriers.retain(|carrier| carrier.is_open());
    let serves = |carrier: &&Rc<Carrier>| {
        let is_named = carrier.is_named || source.is_none();
        carrier.source == source
            && carrier.backend == backend
            && carrier.has_room()
            && (is_named || is_lost())
            && (reuse == Reuse::Repeatable || !local.sockets.has_ended(carrier.slot))
    };
    let carrier = carriers.iter().find(serves)?.clone();
    drop(carriers);
    Some(stream(local.clone(), carrier))
}

/// Waits while somebody else opens a connection to the endpoint, but not for long. Then a stream may be
/// had on that one.
pub async fn wait_for_other(local: &Local) {
    let until = Instant::now() + PATIENCE;
    while local.opening.get() > 0 {
        let opened = local.opened.notified();
        if tokio::time::timeout_at(until, opened).await.is_err()
            || local.carriers.borrow().iter().any(|it| it.has_room())
        {
            return;
        }
    }
}

/// Says that a connection is being opened, for as long as it lives.
pub struct Opening(Rc<Local>);

impl Opening {
    /// Begins to open a connection.
    pub fn new(local: Rc<Local>) -> Self {
        local.opening.set(local.opening.get() + 1);
        Self(local)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
        self.0.opened.notify_waiters();
    }
}

/// Makes a connection of HTTP/2 of one that has just been opened, and opens its first stream. `None`:
/// the connection has failed, and no request was sent on it.
///
/// The endpoint first answers a PING. So a process that ends has not been given a request that may run
/// only once, and what the endpoint has said of its limits is known. One that is too slow for that gets
/// its request without.
pub async fn adopt(upstream: Upstream) -> Option<Upstream> {
    let local = upstream.local.clone();
    let (source, is_named) = (upstream.source(), upstream.is_named);
    let (slot, backend) = (upstream.slot()?, upstream.stream.mark());
    let (io, wire) = io::of_endpoint(upstream);
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(ALL_WINDOWS)
        .max_send_buffer_size(SENDING)
        .initial_max_send_streams(STREAMS as usize)
        .handshake(io)
        .await
        .ok()?;
    let mut ping = connection.ping_pong()?;
    let carrier = Carrier::new(send, source, is_named, backend, slot);
    let (here, that) = (local.clone(), Rc::downgrade(&carrier));
    tokio::task::spawn_local(async move {
        let driven = poll_fn(|cx| {
            if wire.has_read_much()
                && let Some(carrier) = that.upgrade()
            {
                carrier.bodies.gather();
            }
            let polled = Pin::new(&mut connection).poll(cx);
            wire.poll_send(cx);
            polled
        });
        if let Err(error) = driven.await {
            let address = here.endpoint.address;
            tracing::debug!(endpoint = %address, %error, "a connection of HTTP/2 has failed");
        }
        let mut carriers = here.carriers.borrow_mut();
        carriers.retain(|it| Rc::as_ptr(it) != that.as_ptr());
    });
    let answered = tokio::time::timeout(PATIENCE, ping.ping(Ping::opaque())).await;
    if answered.is_ok_and(|it| it.is_err()) {
        return None;
    }
    if local.endpoint.is_open() {
        local.carriers.borrow_mut().push(carrier.clone());
    }
    Some(stream(local, carrier))
}

fn stream(local: Rc<Local>, carrier: Rc<Carrier>) -> Upstream {
    let (source, is_named) = (carrier.source, carrier.is_named);
    let reused = carrier.used.get();
    let inner = EndpointStream::new(Carried::new(carrier));
    Upstream::carried(
        local,
        Stream::carried(Box::new(inner)),
        source,
        is_named,
        reused,
    )
}

/// How long a request waits for a connection that another opens, or for the first word on a new one.
const PATIENCE: Duration = Duration::from_millis(100);

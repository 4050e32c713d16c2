//! One client connection, from accept to its one close reason: first which protocol the client
//! speaks, then TCP or HTTP.
//!
//! Invariant: everything that a connection takes (its permit, its place in the worker's load, its
//! gauge) is given back by the drop of `Open`, however the connection ends. An idle connection is
//! small: what serves a request is boxed, and lives only as long as the request.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use crate::contract::clock::millis;
use crate::contract::counters::{Counter, ServiceMetrics};
use crate::contract::listener::{Action, FoundBy, Serves};
use crate::contract::policy::Protocol;
use crate::contract::reason::CloseReason;
use crate::net::stream::Stream;
use crate::net::turns::in_turn;
use crate::proxy::about::About;
use crate::proxy::client::{Client, Spoken};
use crate::proxy::detect::{Known, detect};
use crate::proxy::early_end::{EarlyEnd, is_worth_a_line};
use crate::proxy::h2::serve::http2;
use crate::proxy::health_check;
use crate::proxy::heir::{Adopted, Offer};
use crate::proxy::http::serve::{Ended, http};
use crate::proxy::led;
use crate::proxy::proxy_header;
use crate::proxy::relay::Pair;
use crate::proxy::shared::Accepted;
use crate::proxy::sni;
use crate::proxy::tcp::acquire_tcp;
use crate::proxy::tls;
use crate::proxy::upstream::Upstream;
use crate::proxy::worker::Worker;

/// What an open connection has taken. Its drop gives everything back.
struct Open {
    worker: Rc<Worker>,
    metrics: Option<Arc<ServiceMetrics>>,
    /// The route that the whole connection was led by, for the access log.
    action: Option<Arc<Action>>,
    reason: CloseReason,
    /// Its place among [`Worker::sessions`], counted from 1. Small: every connection has one.
    place: Option<NonZeroU32>,
    _permit: OwnedSemaphorePermit,
}

/// Serves an accepted connection in a new task. The caller has counted it in the worker's load.
pub fn start(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted {
        fd,
        peer,
        listener,
        permit,
    } = accepted;
    let open = Open {
        worker: worker.clone(),
        metrics: None,
        action: None,
        reason: CloseReason::ClientClosed,
        place: None,
        _permit: permit,
    };
    let stream = match Stream::accepted(fd) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "cannot watch an accepted connection"),
    };
    let unanswered = Rc::new(Cell::new(true));
    let client = Box::new(Client {
        stream,
        unread: Vec::new(),
        peer,
        neighbour: peer.ip(),
        scope: worker.shared.scope(&listener, peer.ip()),
        door: listener.clone(),
        listener,
        unanswered,
        spoken: Spoken::Nothing,
        stays: false,
    });
    tokio::task::spawn_local(serve(open, client));
}

/// Serves a connection that another process has handed over. The caller has counted it in the worker's
/// load.
pub fn adopt(worker: &Rc<Worker>, adopted: Adopted) {
    let Adopted {
        offer,
        sockets,
        owed,
        listener,
        lease,
        permit,
    } = adopted;
    let metrics = worker.port(&listener).map(|port| port.metrics.clone());
    if let Some(metrics) = &metrics {
        metrics.connections_active.inc();
    }
    let mut open = Open {
        worker: worker.clone(),
        metrics,
        action: None,
        reason: CloseReason::ClientClosed,
        place: None,
        _permit: permit,
    };
    let mut streams = sockets.into_iter().map(Stream::accepted);
    let session: Established = match (offer, streams.next(), streams.next(), lease) {
        (Offer::Http(it), Some(Ok(stream)), None, _) => {
            let client = Box::new(Client {
                stream,
                unread: owed,
                peer: it.door.client,
                neighbour: it.neighbour,
                scope: worker.shared.scope(&listener, it.door.client.ip()),
                door: listener.clone(),
                listener,
                unanswered: Rc::new(Cell::new(it.is_unanswered)),
                spoken: match it.is_new {
                    true => Spoken::Nothing,
                    false => Spoken::Http1,
                },
                stays: false,
            });
            Box::pin(either_http(worker.clone(), client))
        }
        (Offer::Pair(it), Some(Ok(client)), Some(Ok(upstream)), Some(lease)) => {
            let about = About {
                peer: it.door.client,
                door: listener.clone(),
                listener,
                route: it.route.as_deref().map(|name| {
                    Arc::new(Action {
                        route: name.into(),
                        ..Action::default()
                    })
                }),
                started_ms: millis(Instant::now()).saturating_sub(it.age_ms),
                is_logged: it.is_logged,
            };
            let upstream = Upstream::adopted(worker.local(lease.endpoint()), upstream);
            let pair = Pair::adopted(worker.clone(), client, upstream, lease, &it, owed);
            Box::pin(joined(pair, about))
        }
        // The kernel watches no more descriptors. The drops close the connection.
        _ => return tracing::warn!("cannot watch a connection that was handed over"),
    };
    tokio::task::spawn_local(async move {
        open.can_be_woken().await;
        open.ends_by(session.await);
    });
}

/// Not an `async fn`: that would keep its arguments twice for as long as the connection is idle.
#[allow(clippy::manual_async_fn)] // See above.
fn serve(mut open: Open, client: Box<Client>) -> impl Future<Output = ()> {
    async move {
        match Box::pin(begin(&mut open, client)).await {
            Ok(session) => open.ends_by(session.await),
            Err(reason) => open.ends_by(reason),
        }
    }
}

/// An established session. A TCP session and an HTTP session are boxed separately from each other
/// and from [`establish`]. So an open TCP connection holds no memory that only HTTP needs, and no
/// open connection holds memory that only its establishment needed.
type Established = Pin<Box<dyn Future<Output = CloseReason>>>;

async fn begin(open: &mut Open, client: Box<Client>) -> Result<Established, CloseReason> {
    open.can_be_woken().await;
    let (queue, unanswered) = (open.worker.unanswered.clone(), client.unanswered.clone());
    in_turn(&queue, &unanswered, false, pin!(establish(open, client))).await
}

/// Starts what serves the client, or logs why nothing does.
async fn establish(open: &mut Open, mut client: Box<Client>) -> Result<Established, CloseReason> {
    let (worker, started) = (open.worker.clone(), Instant::now());
    let ended = |client: &Client, reason: CloseReason, has_sent| {
        if is_worth_a_line(reason, has_sent) {
            let end = EarlyEnd {
                took: started.elapsed(),
                route: None,
                line: &[],
                answer: None,
                reason: reason.as_str(),
            };
            end.log(&worker, client);
        }
        reason
    };
    if let Serves::HealthCheck { service } = &client.listener.serves {
        let service = service.clone();
        return Ok(Box::pin(health_check::serve(worker, client, service)));
    }
    let known = find_protocol(open, &mut client).await;
    let (lease, upstream) = match known {
        Err(reason) => return Err(ended(&client, reason, !client.unread.is_empty())),
        Ok(Known::Http) => return Ok(Box::pin(either_http(worker, client))),
        Ok(Known::Http2) => return Ok(Box::pin(http2(worker, client))),
        Ok(Known::Tcp(Some(found))) => *found,
        Ok(Known::Tcp(None)) => Box::pin(acquire_tcp(&worker, &client))
            .await
            .map_err(|reason| ended(&client, reason, true))?,
    };
    client.unanswered.set(false);
    let route = open.action.take().filter(|it| it.name().is_some());
    let (stream, unread, about) = client.into_pair(route, true);
    let pair = Pair::new(worker, stream, upstream, lease, unread, Vec::new());
    Ok(Box::pin(joined(pair, about)))
}

/// Not an `async fn`, see [`serve`].
#[allow(clippy::manual_async_fn)] // See above.
fn joined(pair: Box<Pair>, about: About) -> impl Future<Output = CloseReason> {
    async move {
        let worker = pair.worker.clone();
        let ended = pair.run(&about).await;
        about.log(&worker, ended.reason, ended.endpoint, ended.sent);
        ended.reason
    }
}

/// Serves HTTP of the version that the client begins with.
async fn either_http(worker: Rc<Worker>, client: Box<Client>) -> CloseReason {
    match http(worker.clone(), client).await {
        Ended::Closed(reason) => reason,
        Ended::Http2(mut client) => {
            client.spoken = Spoken::Http2;
            Box::pin(http2(worker, client)).await
        }
    }
}

/// Finds out the client's address and its protocol, and counts the connection.
async fn find_protocol(open: &mut Open, client: &mut Client) -> Result<Known, CloseReason> {
    if client.listener.proxy_protocol {
        Box::pin(proxy_header::read(&open.worker, client)).await?;
    }
    let worker = open.worker.clone();
    if !client.listener.by_name.is_empty() {
        Box::pin(sni::choose(&worker, client)).await?;
    }
    let door = client.door.clone();
    let by = match &door.serves {
        Serves::Routes { by, .. } => *by,
        _ => FoundBy::Request,
    };
    if by != FoundBy::Request
        && let Serves::Routes { table, .. } = &door.serves
    {
        open.action = Some(Box::pin(led::lead(&worker, client, table, by)).await?);
    }
    let port = worker.port(&client.listener);
    let protocol = match (&port, client.listener.protocol) {
        _ if by != FoundBy::Request => Protocol::Tcp,
        (Some(port), Some(own)) => own.at_target(port.target_port),
        (Some(port), None) => port.protocol,
        (None, own) => own.unwrap_or(Protocol::Auto),
    };
    let refuses = port.as_ref().is_some_and(|port| port.refuses(client.scope));
    open.metrics = port.map(|port| port.metrics.clone());
    if let Some(metrics) = &open.metrics {
        metrics.connections_active.inc();
    }
    if refuses {
        client.stream.reset_on_close();
        return Err(CloseReason::NoEndpoint);
    }
    // What routes lead on has the TLS of its door, and none of its Service's listener.
    let ends_tls = match by {
        FoundBy::Request => client.listener.tls.as_ref(),
        FoundBy::Name => door.tls.as_ref().filter(|_| {
            let action = open.action.as_ref();
            action.is_some_and(|action| action.ends_tls)
        }),
        FoundBy::Connection => None,
    };
    if let Some(termination) = ends_tls.cloned() {
        Box::pin(tls::terminate(&worker, client, &termination, protocol)).await?;
        open.count(|m| match client.stream.is_resumed() {
            true => &m.handshakes[1],
            false => &m.handshakes[0],
        });
    }
    let known = match protocol {
        _ if client.stream.has_agreed_on(b"h2") => {
            client.spoken = Spoken::Http2;
            Known::Http2
        }
        _ if client.stream.has_agreed_on(b"http/1.1") => Known::Http,
        Protocol::Http | Protocol::Http2 => Known::Http,
        // A UDP listener accepts no connection.
        Protocol::Tcp | Protocol::Udp => Known::Tcp(None),
        Protocol::Auto => {
            let known = Box::pin(detect(&worker, client)).await?;
            if matches!(known, Known::Http2) {
                client.spoken = Spoken::Http2Unasked;
            }
            known
        }
    };
    open.count(|m| match known {
        Known::Http | Known::Http2 => &m.connections_http,
        Known::Tcp(_) => &m.connections_tcp,
    });
    Ok(known)
}

impl Open {
    /// Leaves its task's waker with the worker.
    async fn can_be_woken(&mut self) {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let place = self.worker.sessions.borrow_mut().insert(waker);
        self.place = u32::try_from(place + 1).ok().and_then(NonZeroU32::new);
    }

    fn ends_by(&mut self, reason: CloseReason) {
        self.reason = reason;
    }

    fn count(&self, which: impl Fn(&ServiceMetrics) -> &Counter) {
        if let Some(metrics) = &self.metrics {
            which(metrics).inc();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let place = place.get() as usize - 1;
            self.worker.sessions.borrow_mut().remove(place);
        }
        self.worker.shared.loads[self.worker.index].fetch_sub(1, Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            metrics.connections_active.dec();
            metrics.closed(self.reason);
        }
    }
}

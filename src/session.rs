//! One client connection, from accept to its one close reason: whose protocol it is, then TCP or HTTP.
//!
//! Invariant: everything a connection takes (its permit, its place in the worker's load, its gauge) is given back by
//! `Open`'s drop, whatever way it ends. The idle state is small: what is busy is boxed and lives only while busy.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::balancer::{Avoid, Cost};
use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::{Endpoint, Lease};
use crate::contract::listener::ListenerSpec;
use crate::contract::policy::Protocol;
use crate::contract::reason::CloseReason;
use crate::dispatch::{Ask, Refusal};
use crate::http::exchange::End;
use crate::http::pool::Trust;
use crate::http::{exchange, pool};
use crate::net::socket;
use crate::net::turns::in_turn;
use crate::observe::access_log::{AccessEntry, AccessLog};
use crate::relay::{Ended, Pair};
use crate::wire::buffer::{SCRATCH, append};
use crate::wire::sniff::Sniff;
use crate::wire::{answer, head, message, sniff};
use crate::worker::{Handover, Routed, Upstream, Worker};
use crate::{balancer, dispatch};

mod proxy_header;

/// The client's side of a session.
pub struct Client {
    pub stream: TcpStream,
    /// Read, and not yet consumed.
    pub unread: Vec<u8>,
    /// The connection's peer, or whom a trusted PROXY header names.
    pub peer: SocketAddr,
    /// The connection's peer itself.
    pub neighbour: IpAddr,
    pub listener: Arc<ListenerSpec>,
    /// It has had nothing of an answer yet, or one that made no sense: what it asks for is done in turn with others like it.
    pub newcomer: Rc<Cell<bool>>,
}

/// What an open connection has taken; given back on drop.
struct Open {
    worker: Rc<Worker>,
    metrics: Option<Arc<ServiceMetrics>>,
    reason: CloseReason,
    _permit: OwnedSemaphorePermit,
}

/// Serves an accepted connection in a task of its own. The caller has counted it in the worker's load.
pub fn start(worker: &Rc<Worker>, handover: Handover) {
    let Handover { fd, peer, listener, permit } = handover;
    let open = Open { worker: worker.clone(), metrics: None, reason: CloseReason::ClientClosed, _permit: permit };
    let stream = match TcpStream::from_std(fd.into()) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "cannot watch an accepted connection"),
    };
    let newcomer = Rc::new(Cell::new(true));
    let client = Box::new(Client { stream, unread: Vec::new(), peer, neighbour: peer.ip(), listener, newcomer });
    tokio::task::spawn_local(serve(open, client));
}

/// Not an `async fn`, which would keep its arguments twice for as long as the connection is idle.
#[allow(clippy::manual_async_fn)] // See above.
fn serve(mut open: Open, client: Box<Client>) -> impl Future<Output = ()> {
    async move {
        match Box::pin(begin(&mut open, client)).await {
            Ok(session) => open.ends_by(session.await),
            Err(reason) => open.ends_by(reason),
        }
    }
}

/// What an established session is: each kind boxed for itself, so that a TCP pair does not pay for what an HTTP client
/// needs, and neither for its beginning.
type Established = Pin<Box<dyn Future<Output = CloseReason>>>;

async fn begin(open: &mut Open, client: Box<Client>) -> Result<Established, CloseReason> {
    let (queue, newcomer) = (open.worker.newcomers.clone(), client.newcomer.clone());
    in_turn(&queue, &newcomer, false, pin!(establish(open, client))).await
}

/// Finds out who the client is and what it speaks, and connects it if that is TCP.
async fn establish(open: &mut Open, mut client: Box<Client>) -> Result<Established, CloseReason> {
    if client.listener.proxy_protocol {
        Box::pin(proxy_header::read(&open.worker, &mut client)).await?;
    }
    let worker = open.worker.clone();
    let port = worker.port(&client.listener);
    let protocol = match (&port, client.listener.protocol) {
        (Some(port), Some(own)) => own.at_target(port.target_port),
        (Some(port), None) => port.protocol,
        (None, own) => own.unwrap_or(Protocol::Auto),
    };
    open.metrics = port.map(|port| port.metrics.clone());
    if let Some(metrics) = &open.metrics {
        metrics.connections_active.inc();
    }
    let known = match protocol {
        Protocol::Http => Known::Http,
        Protocol::Tcp => Known::Tcp(None),
        Protocol::Auto => Box::pin(detect(&worker, &mut client)).await?,
    };
    let upstream = match known {
        Known::Http => {
            open.count(|m| &m.connections_http);
            return Ok(Box::pin(http(worker, client)));
        }
        Known::Tcp(upstream) => upstream,
    };
    open.count(|m| &m.connections_tcp);
    let (lease, upstream) = match upstream {
        Some(found) => *found,
        None => Box::pin(acquire_tcp(&worker, &client)).await?,
    };
    let port = worker.port(&client.listener);
    client.newcomer.set(false);
    let Client { stream, unread, peer, listener, .. } = *client;
    let log = worker.shared.access_log.clone().zip(port);
    let logged = log.map(|(log, port)| Box::new(Logged { log, port, peer, listener, started: Instant::now() }));
    let pair = Pair::new(worker, stream, upstream, lease, unread, Vec::new());
    Ok(Box::pin(async move {
        let ended = pair.run().await;
        if let Some(logged) = logged {
            logged.write(&ended);
        }
        ended.reason
    }))
}

/// What `auto` found out.
enum Known {
    Http,
    /// With the provisional connection, if one was made.
    Tcp(Option<Box<(Lease, Upstream)>>),
}

/// Looks at the first bytes. A silent client is connected provisionally, since its server may be the one to speak first;
/// a request line before the server's first byte still makes it HTTP.
async fn detect(worker: &Rc<Worker>, client: &mut Client) -> Result<Known, CloseReason> {
    let (idle, head_time) = {
        let config = worker.config();
        (config.timeouts.client_idle, config.timeouts.head)
    };
    match tokio::time::timeout(SILENCE, sniff(worker, client)).await {
        Ok(sniffed) => return Ok(if sniffed? { Known::Http } else { Known::Tcp(None) }),
        Err(_silent) => {}
    }
    // A request line that has begun is waited for as any head is; without an end it was none.
    let deadline = Instant::now() + if client.unread.is_empty() { idle } else { head_time };
    loop {
        let found = tokio::select! {
            biased;
            // It speaks while it is still held: a request must not be refused as a connection is, by a reset.
            _ = client.stream.readable() => None,
            found = Box::pin(acquire_tcp(worker, client)) => Some(found?),
        };
        let Some((lease, upstream)) = found else {
            let sniffed = tokio::time::timeout(head_time, sniff(worker, client)).await.unwrap_or(Ok(false))?;
            return Ok(if sniffed { Known::Http } else { Known::Tcp(None) });
        };
        let connected = Instant::now();
        tokio::select! {
            biased;
            sniffed = sniff(worker, client) => {
                if sniffed? {
                    // An older one may be at the end of its server's patience.
                    if connected.elapsed() < pool::RECENT {
                        pool::check_in(upstream, connected);
                    }
                    return Ok(Known::Http);
                }
                return Ok(Known::Tcp(Some(Box::new((lease, upstream)))));
            }
            _ = upstream.stream.readable() => {
                // Its end without a byte is passed on, unless the endpoint is going: the client need not notice that.
                let unheard = socket::has_ended(&upstream.stream);
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
    while !worker.port(listener).is_some_and(|port| balancer::any(&port)) && generation.changed().await.is_ok() {}
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
            return if before == 0 { Err(CloseReason::ClientClosed) } else { Ok(false) };
        }
    }
}

async fn acquire_tcp(worker: &Rc<Worker>, client: &Client) -> Result<(Lease, Upstream), CloseReason> {
    let (cost, trust, avoid) = (Cost::Tcp, Trust::Fresh, Avoid::default());
    let ask = Ask { cost, trust, avoid, client: &client.stream, at: Instant::now() };
    dispatch::upstream(worker, &client.listener, &ask).await.map_err(|refusal| {
        // A clean close would read as success.
        socket::reset_on_close(&client.stream);
        if refusal == Refusal::ClientLeft { CloseReason::ClientReset } else { CloseReason::NoEndpoint }
    })
}

/// What the access log says of a TCP connection.
struct Logged {
    log: AccessLog,
    port: Rc<Routed>,
    peer: SocketAddr,
    listener: Arc<ListenerSpec>,
    started: Instant,
}

impl Logged {
    fn write(&self, ended: &Ended) {
        self.log.write(&AccessEntry {
            time: SystemTime::now(),
            peer: self.peer,
            listener: &self.listener.name,
            service: &self.port.key,
            method: None,
            target: None,
            status: None,
            bytes_sent: ended.sent,
            duration: self.started.elapsed(),
            endpoint: Some(ended.endpoint),
            attempts: 1,
            reason: Some(ended.reason.as_str()),
        });
    }
}

async fn http(worker: Rc<Worker>, client: Box<Client>) -> CloseReason {
    let (queue, newcomer) = (worker.newcomers.clone(), client.newcomer.clone());
    // It has been established this moment.
    in_turn(&queue, &newcomer, true, pin!(requests(worker, client))).await
}

/// Requests one after the other until something ends it.
async fn requests(worker: Rc<Worker>, mut client: Box<Client>) -> CloseReason {
    let worker = &worker;
    let mut timer = pin!(tokio::time::sleep(Duration::MAX));
    loop {
        let end = match read_head(worker, &mut client, timer.as_mut()).await {
            Ok((request, head)) => {
                let started = Instant::now();
                Box::pin(exchange::run(worker, &mut client, request, head, timer.as_mut(), started)).await
            }
            Err(HeadEnd::Refused(reject)) => {
                let mut answer = Vec::new();
                answer::write_answer(reject.status, reject.reason, None, true, false, &mut answer);
                if let Some(port) = worker.port(&client.listener) {
                    port.metrics.answered(reject.status);
                }
                let idle = worker.config().timeouts.client_idle;
                let _ = tokio::time::timeout(idle, client.stream.write_all(&answer)).await;
                let timed_out = reject.status == 408;
                End::Linger(if timed_out { CloseReason::ClientTimeout } else { CloseReason::BadRequest })
            }
            Err(HeadEnd::Closed(reason)) => return reason,
        };
        match end {
            End::KeepAlive => {}
            End::Close(reason) => {
                // What it sent beyond its last request would make the close a reset, and cost it the answer.
                if !socket::is_quiet(&client.stream) {
                    Box::pin(linger(worker, &mut client)).await;
                }
                return reason;
            }
            End::Linger(reason) => {
                Box::pin(linger(worker, &mut client)).await;
                return reason;
            }
            End::Cut(reason) => {
                socket::reset_on_close(&client.stream);
                return reason;
            }
            End::Tunnel { lease, upstream, down } => {
                let Client { stream, unread, .. } = *client;
                return Pair::new(worker.clone(), stream, *upstream, lease, unread, down).run().await.reason;
            }
        }
    }
}

/// A request's head, and its canonical form for the upstream.
type Parsed = (message::Request, Vec<u8>);

enum HeadEnd {
    Closed(CloseReason),
    Refused(message::Reject),
}

/// Reads the next request's head.
async fn read_head(
    worker: &Rc<Worker>,
    client: &mut Client,
    mut timer: Pin<&mut tokio::time::Sleep>,
) -> Result<Parsed, HeadEnd> {
    let (idle, head_time) = {
        let config = worker.config();
        (config.timeouts.client_idle, config.timeouts.head)
    };
    let mut begun = head::has_begun(&client.unread);
    timer.as_mut().reset((Instant::now() + if begun { head_time } else { idle }).into());
    let mut parsed = client.parse(worker)?;
    poll_fn(|cx| {
        loop {
            if let Some(found) = parsed.take() {
                return Poll::Ready(Ok(found));
            }
            match client.poll_head(cx, worker) {
                Poll::Ready(found) => parsed = found?,
                Poll::Pending => break,
            }
            if parsed.is_none() && !begun && head::has_begun(&client.unread) {
                begun = true;
                timer.as_mut().reset((Instant::now() + head_time).into());
            }
        }
        timer.as_mut().poll(cx).map(|()| {
            Err(if begun {
                HeadEnd::Refused(message::Reject { status: 408, reason: "head_timeout" })
            } else {
                HeadEnd::Closed(CloseReason::ClientTimeout)
            })
        })
    })
    .await
}

impl Client {
    /// Reads once, into `unread`. Nothing added: the client has ended its direction.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<std::io::Result<()>> {
        let mut scratch = worker.scratch.borrow_mut();
        let room = self.room(worker);
        let read = ready!(socket::poll_read(&mut self.stream, cx, &mut scratch[..room]))?;
        append(&mut self.unread, read);
        Poll::Ready(Ok(()))
    }

    /// For a read into `unread`, which is to hold little more than the largest head.
    fn room(&self, worker: &Worker) -> usize {
        (worker.config().limits.head_size + 1).saturating_sub(self.unread.len()).clamp(ROOM_LEAST, SCRATCH)
    }

    /// Reads once, and keeps nothing of it. 0: the client has ended its direction.
    fn poll_waste(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<std::io::Result<usize>> {
        let mut scratch = worker.scratch.borrow_mut();
        socket::poll_read(&mut self.stream, cx, &mut scratch).map_ok(|read| read.len())
    }

    /// Reads once and parses; a head that comes whole is parsed where it was read.
    fn poll_head(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<Result<Option<Parsed>, HeadEnd>> {
        let reset = |_| HeadEnd::Closed(CloseReason::ClientReset);
        let mut scratch = worker.scratch.borrow_mut();
        let room = self.room(worker);
        let read = ready!(socket::poll_read(&mut self.stream, cx, &mut scratch[..room])).map_err(reset)?;
        if read.is_empty() {
            let idle = !head::has_begun(&self.unread);
            let reason = if idle { CloseReason::ClientClosed } else { CloseReason::ClientReset };
            return Poll::Ready(Err(HeadEnd::Closed(reason)));
        }
        if !self.unread.is_empty() {
            append(&mut self.unread, read);
            drop(scratch);
            return Poll::Ready(self.parse(worker));
        }
        let parsed = self.parse_bytes(worker, read)?;
        let consumed = parsed.as_ref().map_or(0, |(request, _)| request.consumed);
        if consumed < read.len() {
            append(&mut self.unread, &read[consumed..]);
        }
        Poll::Ready(Ok(parsed))
    }

    fn parse(&mut self, worker: &Worker) -> Result<Option<Parsed>, HeadEnd> {
        if self.unread.is_empty() {
            return Ok(None);
        }
        let parsed = self.parse_bytes(worker, &self.unread)?;
        if let Some((request, _)) = &parsed {
            self.unread.drain(..request.consumed);
            if self.unread.is_empty() {
                // An idle client owns no bytes.
                self.unread = Vec::new();
            }
        }
        Ok(parsed)
    }

    fn parse_bytes(&self, worker: &Worker, bytes: &[u8]) -> Result<Option<Parsed>, HeadEnd> {
        let config = worker.config();
        let limits = message::Limits { head_size: config.limits.head_size, headers: config.limits.headers };
        let forwarding = head::Forwarding {
            peer: self.peer.ip(),
            local: self.listener.address,
            trusted: config.trusted_proxies.iter().any(|net| net.contains(&self.neighbour)),
            https: false,
            allow_connect: self.listener.allow_connect,
        };
        let mut out = worker.buffer();
        match head::parse_request(bytes, &limits, &forwarding, &mut out) {
            Ok(Some(request)) => Ok(Some((request, out))),
            Ok(None) => {
                worker.give_back(out);
                Ok(None)
            }
            Err(reject) => Err(HeadEnd::Refused(reject)),
        }
    }
}

/// Ends a connection whose client may still be sending, so that our answer is not lost to a reset (RFC 9112 section 9.6).
/// Bounded by time, not by bytes: a client that writes its whole request before it reads must come to its end.
async fn linger(worker: &Worker, client: &mut Client) {
    let _ = client.stream.shutdown().await;
    let drain = async {
        client.unread = Vec::new();
        while let Ok(Ok(1..)) = tokio::time::timeout(LINGER_SILENT, poll_fn(|cx| client.poll_waste(cx, worker))).await {
        }
    };
    let _ = tokio::time::timeout(LINGER_MAX, drain).await;
}

impl Open {
    fn ends_by(&mut self, reason: CloseReason) {
        self.reason = reason;
    }

    fn count(&self, which: impl Fn(&ServiceMetrics) -> &prometheus::IntCounter) {
        if let Some(metrics) = &self.metrics {
            which(metrics).inc();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.shared.loads[self.worker.index].fetch_sub(1, Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            metrics.connections_active.dec();
            metrics.closed(self.reason);
        }
    }
}

/// After this a silent client's server may be the one that speaks first.
const SILENCE: Duration = Duration::from_millis(200);
const LINGER_SILENT: Duration = Duration::from_secs(1);
const LINGER_MAX: Duration = Duration::from_secs(30);
const ROOM_LEAST: usize = 512;

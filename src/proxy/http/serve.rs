//! An HTTP/1 client connection: one request after the other, until something ends it.
//!
//! Invariants: an idle client owns no bytes. An answer is not lost to a reset because the client
//! was still sending.
//!
//! Leaves out how a request is forwarded, see [`crate::proxy::http::forward`].

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::config::settings::Config;
use crate::contract::listener::{FoundBy, Serves};
use crate::contract::reason::CloseReason;
use crate::net::turns::in_turn;
use crate::proxy::client::{Client, Spoken};
use crate::proxy::early_end::{EarlyEnd, Refused, first_line};
use crate::proxy::heir::{Door, HttpClient, Offer};
use crate::proxy::http::bound::Bound;
use crate::proxy::http::end::answer_alone;
use crate::proxy::http::exchange::End;
use crate::proxy::http::forward::forward;
use crate::proxy::http::route::{Found, route};
use crate::proxy::parting;
use crate::proxy::relay::Pair;
use crate::proxy::worker::Worker;
use crate::wire::buffer::append;
use crate::wire::{answer, head, message, sniff};

/// How an HTTP/1 connection ended.
pub enum Ended {
    /// It is closed, for this reason.
    Closed(CloseReason),
    /// The client speaks HTTP/2. All that it has sent is still unread.
    Http2(Box<Client>),
}

/// Serves an HTTP client until its connection ends, or begins as one of HTTP/2.
pub async fn http(worker: Rc<Worker>, client: Box<Client>) -> Ended {
    let (queue, unanswered) = (worker.unanswered.clone(), client.unanswered.clone());
    // The establishment of the session has just taken a turn, so the first poll needs none.
    in_turn(&queue, &unanswered, true, pin!(requests(worker, client))).await
}

/// Leads a client whose listener another one has replaced to that one.
fn go_on(worker: &Worker, client: &mut Client, bound: &mut Option<Box<Bound>>) {
    let (last, peer) = (client.door.last(), client.peer.ip());
    if last.id == client.door.id || !last.admits(peer) {
        return;
    }
    *bound = None;
    client.scope = worker.shared.scope(last, peer);
    client.listener = last.clone();
    client.door = client.listener.clone();
}

/// Serves one request after the other. Returns how the connection ended.
async fn requests(worker: Rc<Worker>, mut client: Box<Client>) -> Ended {
    let worker = &worker;
    let mut timer = pin!(tokio::time::sleep(Duration::MAX));
    let mut bound = None;
    loop {
        let end = match read_head(worker, &mut client, &mut bound, timer.as_mut()).await {
            Ok(Parsed {
                config,
                mut request,
                mut head,
            }) => {
                if client.spoken == Spoken::Nothing {
                    client.spoken = Spoken::Http1;
                }
                go_on(worker, &mut client, &mut bound);
                let door = client.door.clone();
                let found = match &door.serves {
                    Serves::Routes {
                        table,
                        by: FoundBy::Request,
                    } => {
                        let client = &mut client;
                        route(worker, client, &mut bound, &mut request, &mut head, table)
                    }
                    _ => Found::Forward {
                        way: None,
                        since: None,
                    },
                };
                match found {
                    Found::Forward { way, since } => {
                        if let Some(since) = since {
                            Box::pin(worker.until_known(&client.listener, since)).await;
                        }
                        Box::pin(forward(
                            worker,
                            &mut client,
                            &mut bound,
                            config,
                            request,
                            head,
                            way,
                            timer.as_mut(),
                        ))
                        .await
                    }
                    Found::Answer(answer) => {
                        let client = &mut client;
                        Box::pin(answer_alone(
                            worker, client, config, &request, head, &answer,
                        ))
                        .await
                    }
                }
            }
            Err(HeadEnd::Refused(refused)) => {
                let reject = refused.reject();
                let mut answer = Vec::new();
                answer::write_answer(reject.status, reject.reason, None, true, false, &mut answer);
                if let Some(port) = worker.port(&client.listener) {
                    port.metrics.answered(reject.status);
                }
                let idle = worker.config().timeouts.client_idle;
                let _ = tokio::time::timeout(idle, client.stream.write_all(&answer)).await;
                let timed_out = reject.status == 408;
                let head_time = worker.config().timeouts.head;
                let end = EarlyEnd {
                    route: None,
                    took: if timed_out { head_time } else { Duration::ZERO },
                    line: refused.line(),
                    answer: Some((reject.status, answer.len())),
                    reason: reject.reason,
                };
                end.log(worker, &client);
                End::Linger(if timed_out {
                    CloseReason::ClientTimeout
                } else {
                    CloseReason::BadRequest
                })
            }
            Err(HeadEnd::Http2) => return Ended::Http2(client),
            Err(HeadEnd::HandOver) => match Box::pin(pass_on(worker, &mut client)).await {
                true => return Ended::Closed(CloseReason::HandedOver),
                false => continue,
            },
            Err(HeadEnd::Closed(reason)) => {
                if head::has_begun(&client.unread) {
                    let end = EarlyEnd {
                        took: Duration::ZERO,
                        route: None,
                        line: first_line(&client.unread),
                        answer: None,
                        reason: reason.as_str(),
                    };
                    end.log(worker, &client);
                } else {
                    client.stream.end();
                }
                return Ended::Closed(reason);
            }
        };
        if !matches!(end, End::KeepAlive) {
            bound = None;
        }
        match end {
            End::KeepAlive => {}
            End::Close(reason) => {
                // Unread bytes would make the close a reset, and the client could lose the answer.
                if !client.stream.is_quiet() {
                    Box::pin(linger(worker, &mut client)).await;
                }
                client.stream.end();
                return Ended::Closed(reason);
            }
            End::Linger(reason) => {
                Box::pin(linger(worker, &mut client)).await;
                return Ended::Closed(reason);
            }
            End::Cut {
                reason,
                framed: true,
            } => {
                Box::pin(linger(worker, &mut client)).await;
                return Ended::Closed(reason);
            }
            End::Cut {
                reason,
                framed: false,
            } => {
                if matches!(
                    reason,
                    CloseReason::ClientReset | CloseReason::ClientTimeout
                ) {
                    client.stream.reset_on_close();
                } else {
                    Box::pin(parting::reset(worker, &mut client.stream, &[])).await;
                }
                return Ended::Closed(reason);
            }
            End::Tunnel {
                lease,
                upstream,
                down,
            } => {
                let (stream, unread, about) = client.into_pair(None, false);
                let pair = Pair::new(worker.clone(), stream, *upstream, lease, unread, down);
                // Boxed: an idle client of HTTP needs no room for a tunnel.
                let tunnel = Box::pin(async move { pair.run(&about).await.reason });
                return Ended::Closed(tunnel.await);
            }
        }
    }
}

/// Offers an idle client to the process that replaces this one. `false`: it is still ours.
async fn pass_on(worker: &Worker, client: &mut Client) -> bool {
    let Some(heir) = worker.heir() else {
        return false;
    };
    let offer = Offer::Http(HttpClient {
        door: Door::of(&client.door, client.peer),
        neighbour: client.neighbour,
        is_new: client.spoken == Spoken::Nothing,
        is_unanswered: client.unanswered.get(),
        unread: client.unread.len(),
    });
    let taken = heir
        .offer(offer, &[&client.stream], &[&client.unread])
        .await;
    client.stays |= taken == Some(false);
    taken == Some(true)
}

/// A request's head.
struct Parsed {
    /// The configuration that the head was parsed by; it holds for the whole exchange.
    config: Rc<Config>,
    request: message::Request,
    /// The canonical form for the endpoint.
    head: Vec<u8>,
}

/// Why there is no head.
enum HeadEnd {
    Closed(CloseReason),
    Refused(Refused),
    /// The connection has begun with the preface of HTTP/2.
    Http2,
    /// The connection can pass to the process that replaces this one.
    HandOver,
}

/// Reads the next request's head. Meanwhile gives up a connection that belongs to the client, if
/// it serves no more.
async fn read_head(
    worker: &Rc<Worker>,
    client: &mut Client,
    bound: &mut Option<Box<Bound>>,
    mut timer: Pin<&mut tokio::time::Sleep>,
) -> Result<Parsed, HeadEnd> {
    // Before its next request is looked at: a client that asks without a pause would never pass.
    if passes_on(worker, client, bound) {
        return Err(HeadEnd::HandOver);
    }
    let config = worker.config();
    let (idle, head_time) = (config.timeouts.client_idle, config.timeouts.head);
    let mut begun = head::has_begun(&client.unread);
    timer
        .as_mut()
        .reset((Instant::now() + if begun { head_time } else { idle }).into());
    let mut parsed = client.parse(worker, config)?;
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
        if passes_on(worker, client, bound) {
            return Poll::Ready(Err(HeadEnd::HandOver));
        }
        if bound.as_mut().is_some_and(|it| it.poll_end(cx).is_ready()) {
            *bound = None;
        }
        timer.as_mut().poll(cx).map(|()| {
            Err(if begun {
                let reject = message::Reject {
                    status: 408,
                    reason: "head_timeout",
                };
                HeadEnd::Refused(Refused::new(worker, reject, &client.unread))
            } else {
                HeadEnd::Closed(CloseReason::ClientTimeout)
            })
        })
    })
    .await
}

/// Whether the connection goes to the process that replaces this one before its next request.
fn passes_on(worker: &Worker, client: &Client, bound: &Option<Box<Bound>>) -> bool {
    worker.can_offer() && client.can_pass() && bound.is_none()
}

/// Ends a connection whose client may still be sending, so that the answer is not lost to a reset
/// (RFC 9112 section 9.6). Bounded by time, not by bytes: some clients write their whole request
/// before they read.
pub(in crate::proxy) async fn linger(worker: &Worker, client: &mut Client) {
    let _ = client.stream.shutdown().await;
    let drain = async {
        client.unread = Vec::new();
        while let Ok(Ok(1..)) =
            tokio::time::timeout(LINGER_SILENT, poll_fn(|cx| client.poll_waste(cx, worker))).await
        {
        }
    };
    let _ = tokio::time::timeout(LINGER_MAX, drain).await;
}

/// A client that sends nothing for this long is taken to have sent everything.
const LINGER_SILENT: Duration = Duration::from_secs(1);
/// A linger ends after this time, even if the client still sends.
const LINGER_MAX: Duration = Duration::from_secs(30);

impl Client {
    /// Reads once and parses. A head that comes whole is parsed where it was read.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
    ) -> Poll<Result<Option<Parsed>, HeadEnd>> {
        let is_idle = !head::has_begun(&self.unread);
        // Many clients of TLS end an idle connection by a FIN alone. Nothing is missing then.
        let reset = |error: io::Error| match is_idle && error.kind() == ErrorKind::UnexpectedEof {
            true => HeadEnd::Closed(CloseReason::ClientClosed),
            false => HeadEnd::Closed(CloseReason::ClientReset),
        };
        let mut scratch = worker.scratch.borrow_mut();
        // A request that arrives now is read by the newest configuration.
        let config = worker.config();
        let room = self.room(&config);
        let read = ready!(self.stream.poll_read(cx, &mut scratch[..room])).map_err(reset)?;
        if read.is_empty() {
            let reason = if is_idle {
                CloseReason::ClientClosed
            } else {
                CloseReason::ClientReset
            };
            return Poll::Ready(Err(HeadEnd::Closed(reason)));
        }
        if !self.unread.is_empty() {
            append(&mut self.unread, read);
            drop(scratch);
            return Poll::Ready(self.parse(worker, config));
        }
        let parsed = match self.parse_bytes(worker, config, read) {
            Err(HeadEnd::Http2) => {
                append(&mut self.unread, read);
                return Poll::Ready(Err(HeadEnd::Http2));
            }
            parsed => parsed?,
        };
        let consumed = parsed.as_ref().map_or(0, |parsed| parsed.request.consumed);
        if consumed < read.len() {
            append(&mut self.unread, &read[consumed..]);
        }
        Poll::Ready(Ok(parsed))
    }

    fn parse(&mut self, worker: &Worker, config: Rc<Config>) -> Result<Option<Parsed>, HeadEnd> {
        if self.unread.is_empty() {
            return Ok(None);
        }
        let parsed = self.parse_bytes(worker, config, &self.unread)?;
        if let Some(parsed) = &parsed {
            self.unread.drain(..parsed.request.consumed);
            if self.unread.is_empty() {
                // An idle client owns no bytes.
                self.unread = Vec::new();
            }
        }
        Ok(parsed)
    }

    fn parse_bytes(
        &self,
        worker: &Worker,
        config: Rc<Config>,
        bytes: &[u8],
    ) -> Result<Option<Parsed>, HeadEnd> {
        if self.spoken == Spoken::Nothing {
            match sniff::is_http2(bytes) {
                Some(true) => return Err(HeadEnd::Http2),
                Some(false) => {}
                None => return Ok(None),
            }
        }
        let limits = message::Limits {
            head_size: config.limits.head_size,
            headers: config.limits.headers,
        };
        // The client's own address decides, also behind a load balancer that speaks the PROXY
        // protocol: the load balancer passes the client's bytes on unchanged.
        let peer = self.peer.ip().to_canonical();
        // The listener's own address may be unspecified, or have port 0. The connection's costs a
        // system call, so only a request that may need it asks the kernel. Where the kernel has led
        // the client here, the listener's address is the one that the client asked for.
        let is_own = self.door.sockets > 0 && head::may_need_local(bytes);
        let local = is_own
            .then(|| self.stream.local().ok())
            .flatten()
            .unwrap_or(self.door.address);
        let forwarding = head::Forwarding {
            peer,
            local,
            trusted: config.trusted_proxies.iter().any(|net| net.contains(&peer)),
            https: self.stream.is_tls(),
            allow_connect: self.door.allow_connect,
        };
        let mut out = worker.buffer();
        match head::parse_request(bytes, &limits, &forwarding, &mut out) {
            Ok(Some(request)) => Ok(Some(Parsed {
                config,
                request,
                head: out,
            })),
            Ok(None) => {
                worker.give_back(out);
                Ok(None)
            }
            Err(reject) => Err(HeadEnd::Refused(Refused::new(worker, reject, bytes))),
        }
    }
}

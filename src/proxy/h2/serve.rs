//! A client's connection of HTTP/2: its streams, and its end.
//!
//! Invariants: the connection gets no GOAWAY because an endpoint leaves. When this process ends, the
//! client is told first, and every stream that it had begun by then is served (RFC 9113 section 6.8).
//!
//! Leaves out what a request is: each stream is served as a connection of HTTP/1
//! ([`crate::proxy::http`]).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;

use crate::contract::listener::{ListenerSpec, Serves};
use crate::contract::policy::Scope;
use crate::contract::reason::CloseReason;
use crate::net::stream::Stream;
use crate::proxy::client::{Client, Spoken};
use crate::proxy::early_end::EarlyEnd;
use crate::proxy::h2::client::{ClientStream, Secure, Streams};
use crate::proxy::h2::io::{self, Io, Wire};
use crate::proxy::h2::limits::{ALL_WINDOWS, SENDING, STREAMS, WINDOW};
use crate::proxy::http::serve::http;
use crate::proxy::worker::Worker;

/// Serves a client's connection until it ends.
pub async fn http2(worker: Rc<Worker>, client: Box<Client>) -> CloseReason {
    let config = worker.config();
    let Client {
        stream,
        unread,
        peer,
        neighbour,
        door: listener,
        scope,
        unanswered,
        spoken,
        ..
    } = *client;
    let origin = Origin {
        secure: Secure {
            is_tls: stream.is_tls(),
            name: stream.server_name(|name| Rc::from(name)),
        },
        worker,
        streams: Rc::default(),
        peer,
        neighbour,
        listener,
        scope,
        unanswered,
        spoken,
    };
    let (io, wire) = io::of_client(stream, unread, origin.worker.bulk.clone());
    let mut handshake = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(ALL_WINDOWS)
        .max_send_buffer_size(SENDING)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(config.limits.head_size as u32)
        .enable_connect_protocol()
        .handshake(io);
    let handshake = poll_fn(|cx| {
        let polled = Pin::new(&mut handshake).poll(cx);
        wire.poll_send(cx);
        polled
    });
    match tokio::time::timeout(config.timeouts.head, handshake).await {
        Ok(Ok(connection)) => origin.serve(connection, &wire).await,
        Ok(Err(error)) => reason_of(&error),
        Err(_) => CloseReason::ClientTimeout,
    }
}

/// Where the streams of a connection come from.
struct Origin {
    worker: Rc<Worker>,
    streams: Rc<Streams>,
    peer: SocketAddr,
    neighbour: IpAddr,
    listener: Arc<ListenerSpec>,
    scope: Option<Scope>,
    unanswered: Rc<Cell<bool>>,
    spoken: Spoken,
    secure: Secure,
}

impl Origin {
    async fn serve(self, mut connection: Connection<Io, Bytes>, wire: &Wire) -> CloseReason {
        let mut goodbye = pin!(self.worker.goodbye.clone().notified_owned());
        let mut is_leaving = self.worker.shared.closing.load(Ordering::Relaxed);
        if is_leaving {
            connection.graceful_shutdown();
        }
        let idle = self.worker.config().timeouts.client_idle;
        let mut timer = pin!(tokio::time::sleep(idle));
        let mut used = Instant::now();
        poll_fn(|cx| {
            if wire.has_read_much() {
                self.streams.bodies.gather();
            }
            if !is_leaving && goodbye.as_mut().poll(cx).is_ready() {
                is_leaving = true;
                connection.graceful_shutdown();
            }
            loop {
                let accepted = pin!(connection.accept()).poll(cx);
                match accepted {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let handing_back = self.start(request, respond);
                        if handing_back && !std::mem::replace(&mut is_leaving, true) {
                            connection.graceful_shutdown();
                        }
                        let (resets, answers) = (&self.streams.resets, &self.streams.answers);
                        if resets.get() > answers.get() + RESETS {
                            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(reason_of(&error)),
                    Poll::Ready(None) if is_leaving => return Poll::Ready(CloseReason::Shutdown),
                    Poll::Ready(None) => return Poll::Ready(CloseReason::ClientClosed),
                }
            }
            wire.poll_send(cx);
            if self.streams.open.get() > 0 {
                used = Instant::now();
            }
            while timer.as_mut().poll(cx).is_ready() {
                let unused = used.elapsed();
                if self.streams.open.get() > 0 {
                    timer.as_mut().reset((Instant::now() + idle).into());
                } else if unused < idle {
                    timer.as_mut().reset((used + idle).into());
                } else if unused < idle + FAREWELL {
                    is_leaving = true;
                    connection.graceful_shutdown();
                    // What is to be said goes out with the next poll.
                    cx.waker().wake_by_ref();
                    timer.as_mut().reset((used + idle + FAREWELL).into());
                } else {
                    return Poll::Ready(CloseReason::ClientTimeout);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Serves a stream in a new task. Returns whether the client is to go elsewhere with its next one.
    fn start(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) -> bool {
        let listener = self.listener.last();
        let port = self.worker.port(listener);
        let is_closed = || listener.accepting.load(Ordering::Relaxed) == 0;
        let handing_back = match &port {
            Some(port) => port.handing_back,
            // Nothing will serve it here again.
            None => matches!(listener.serves, Serves::Port { .. }) && is_closed(),
        };
        let logged = self.worker.shared.access_log.is_some();
        let line = logged.then(|| format!("{} {}", request.method(), request.uri().path()));
        match ClientStream::new(request, respond, self.streams.clone(), self.secure.clone()) {
            Ok(stream) => {
                let client = Box::new(Client {
                    stream: Stream::carried(Box::new(stream)),
                    unread: Vec::new(),
                    peer: self.peer,
                    neighbour: self.neighbour,
                    door: self.listener.clone(),
                    listener: self.listener.clone(),
                    scope: self.scope,
                    unanswered: self.unanswered.clone(),
                    spoken: self.spoken,
                    stays: false,
                });
                let session = http(self.worker.clone(), client);
                // How a stream ended is in its exchange's line and counts.
                tokio::task::spawn_local(async move { drop(session.await) });
            }
            Err(reject) => {
                if let Some(port) = port {
                    port.metrics.answered(reject.status);
                }
                let end = EarlyEnd {
                    took: Duration::ZERO,
                    route: None,
                    line: line.as_deref().unwrap_or_default().as_bytes(),
                    answer: Some((reject.status, 0)),
                    reason: reject.reason,
                };
                let name = &self.listener.name;
                end.log_for(&self.worker, self.peer, &self.listener, name);
            }
        }
        handing_back
    }
}

fn reason_of(error: &h2::Error) -> CloseReason {
    match error.is_io() || error.is_remote() {
        true => CloseReason::ClientReset,
        false => CloseReason::BadRequest,
    }
}

/// How many more streams than it let be answered a client may have reset (CVE-2023-44487).
const RESETS: u32 = 200;
/// How long an idle client has to take note of the end of its connection.
const FAREWELL: Duration = Duration::from_secs(1);

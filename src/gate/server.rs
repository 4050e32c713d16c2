//! The gate's listener: calls of the kubelet for pods of this node, and questions of other instances.
//!
//! Invariants: a connection costs a bounded buffer for a bounded time. Connections of other hosts take no
//! place from the kubelet's calls. All that another host can do is to suspend a pod for [`HINT`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::contract::name::ObjectName;
use crate::contract::snapshot::Published;
use crate::gate::ask::{Known, Who};
use crate::gate::hold::{Gate, hold};
use crate::gate::log::Outcome;
use crate::gate::look;
use crate::gate::message::{Answers, LEAVING, LONGEST, Leaving, MOST, SIGNATURE, is_signed};
use crate::net::socket;
use crate::observe::health::Health;

/// What a connection needs.
pub(super) struct Server {
    pub(super) gate: Rc<Gate>,
    pub(super) snapshot: Arc<Published>,
    pub(super) health: Arc<Health>,
    pub(super) connections: RefCell<[VecDeque<AbortHandle>; 2]>,
}

/// Listens on an address from the first table until `leaving`, and tries again while that cannot be.
pub(super) async fn listen(server: Rc<Server>, address: SocketAddr, leaving: CancellationToken) {
    // Without a table, no pod is known, and each call would be answered at once. Another process of this
    // node may still have one.
    while !server.health.is_synced() {
        tokio::select! {
            () = leaving.cancelled() => return,
            () = tokio::time::sleep(AGAIN / 20) => {}
        }
    }
    let mut has_failed = false;
    let listener = loop {
        let bound = socket::listen(address).and_then(TcpListener::from_std);
        match bound {
            Ok(listener) => break listener,
            Err(error) if !std::mem::replace(&mut has_failed, true) => {
                tracing::error!(%address, %error, "gate: cannot listen; the pods of this node are not held. Trying again");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = leaving.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    };
    tracing::info!(%address, "listening for pods that are deleted");
    loop {
        let accepted = tokio::select! {
            () = leaving.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => server.take(stream),
            Err(error) => {
                tracing::warn!(%error, "gate: a connection could not be accepted");
                tokio::time::sleep(AGAIN / 10).await;
            }
        }
    }
    // Another process of this node may listen here already. Those who connect now reach it a second
    // later, or nobody.
    if let Ok(listener) = listener.into_std() {
        let _ = socket::ignore_new_connections(&listener);
        if let Ok(listener) = TcpListener::from_std(listener) {
            let waiting = async {
                while let Ok((stream, _)) = listener.accept().await {
                    server.take(stream)
                }
            };
            let _ = tokio::time::timeout(AGAIN / 10, waiting).await;
        }
    }
}

impl Server {
    /// Serves a connection, in the place of the oldest of its kind if all places are taken.
    fn take(self: &Rc<Self>, stream: TcpStream) {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let asked = socket::original_destination(&stream).unwrap_or(local);
        let kind = usize::from(asked.ip() == local.ip());
        let mut connections = self.connections.borrow_mut();
        let connections = &mut connections[kind];
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= PLACES
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let serving =
            tokio::task::spawn_local(serve(self.clone(), stream, asked.ip().to_canonical()));
        connections.push_back(serving.abort_handle());
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>, asked: IpAddr) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.strip_prefix(LEAVING)) {
            (&Method::POST, Some("")) => self.leaving(request).await,
            (&Method::GET, Some(pod)) => self.look(&request, pod),
            (_, Some(_)) => plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "only POST of pods, and GET of a pod\n",
            ),
            (_, None) => self.hold(asked).await,
        }
    }

    /// A call for the pod at this address. The kubelet does not look at the answer.
    async fn hold(&self, asked: IpAddr) -> Response<Body> {
        let mut counted = Counted {
            gate: self.gate.clone(),
            began: Instant::now(),
            outcome: Outcome::Gone,
        };
        let outcome = hold(self.gate.clone(), asked).await;
        counted.outcome = outcome;
        plain(StatusCode::OK, &format!("{}\n", outcome.as_str()))
    }

    /// Another instance says that pods leave.
    async fn leaving(&self, request: Request<Incoming>) -> Response<Body> {
        let signature = signature(&request);
        let body = axum::body::to_bytes(Body::new(request.into_body()), LONGEST);
        let body = match tokio::time::timeout(HEAD, body).await {
            Ok(Ok(body)) => body,
            _ => {
                return plain(
                    StatusCode::BAD_REQUEST,
                    "the body is too long or too slow\n",
                );
            }
        };
        if !self.may(LEAVING, &body, &signature) {
            return plain(
                StatusCode::UNAUTHORIZED,
                "the signature is missing or wrong\n",
            );
        }
        let pods = match serde_json::from_slice::<Leaving>(&body) {
            Ok(Leaving { pods }) if pods.len() <= MOST => pods,
            _ => return plain(StatusCode::BAD_REQUEST, "expected {\"pods\": [UID, …]}\n"),
        };
        self.gate.metrics.gate.hints.inc_by(pods.len() as u64);
        let until = Instant::now() + HINT;
        let asks = pods.into_iter().map(|uid| (Who::Uid(uid), until));
        let Some(found) = self.gate.asker.ask(asks.collect()).await else {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the control loop does not answer\n",
            );
        };
        let has = |known: &Option<Known>| known.as_ref().map(Known::has).unwrap_or_default();
        json(&Answers {
            pods: found.iter().map(has).collect(),
        })
    }

    /// Another instance asks what this one has of a pod: `/namespace/name`.
    fn look(&self, request: &Request<Incoming>, pod: &str) -> Response<Body> {
        let path = request.uri().path();
        if !self.may(path, b"", &signature(request)) {
            return plain(
                StatusCode::UNAUTHORIZED,
                "the signature is missing or wrong\n",
            );
        }
        match pod.strip_prefix('/').and_then(|pod| pod.split_once('/')) {
            Some((namespace, name)) => {
                let pod = ObjectName::new(namespace, name);
                json(&look::own(&self.snapshot, &pod))
            }
            None => plain(
                StatusCode::NOT_FOUND,
                "expected /api/v1/gate/NAMESPACE/POD\n",
            ),
        }
    }

    /// Whether a request comes from another instance, as far as that can be known.
    fn may(&self, path: &str, body: &[u8], signature: &str) -> bool {
        match self.gate.peers.key() {
            Some(key) => is_signed(&key, path, body, signature, SystemTime::now()),
            None => true,
        }
    }
}

/// Counts a call when it ends, also if its caller hangs up.
struct Counted {
    gate: Rc<Gate>,
    began: Instant,
    outcome: Outcome,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let metrics = &self.gate.metrics.gate;
        metrics.call(self.outcome.as_str(), self.began.elapsed());
    }
}

fn signature(request: &Request<Incoming>) -> String {
    let field = request.headers().get(SIGNATURE);
    let text = field.and_then(|it| it.to_str().ok());
    text.unwrap_or_default().to_owned()
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
}

fn json(answer: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(answer) {
        Ok(body) => Response::new(Body::from(body)),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, ""),
    }
}

async fn serve(server: Rc<Server>, stream: TcpStream, asked: IpAddr) {
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request, asked).await) }
    });
    let connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), answer)
    );
    // It does not matter here how a connection ends.
    let _ = connection.await;
}

/// For how long another instance's word counts, unless it is confirmed (contract 16).
const HINT: Duration = Duration::from_secs(2);
/// Connections of each kind: led here by the kernel, and all others.
const PLACES: usize = 1_024;
/// How long the head of a request may take, and how long a connection may wait for the next one.
const HEAD: Duration = Duration::from_secs(60);
/// The buffer of a connection in bytes.
const BUFFER: usize = 16 << 10;
/// The time between two tries to listen.
const AGAIN: Duration = Duration::from_secs(1);

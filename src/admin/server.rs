//! The HTTP server of the admin pages: health, metrics, the status page and its JSON.
//!
//! Invariant: a client of this port cannot change anything, and cannot keep another client from a
//! response. Only GET and HEAD are served. No request header and no body has an effect. Each client
//! costs a bounded buffer for a bounded time. When all places are taken, the oldest connection is
//! closed. The contents of the pages are in [`report`], [`readiness`] and [`gauges`].

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::listener::AdminListener;
use crate::admin::report::{self, Admin};
use crate::admin::{gauges, held, history, readiness};
use crate::contract::name::ObjectName;

/// Serves the admin pages until `shutdown`. That token ends this server, not the proxy: while the
/// proxy shuts down, `/readyz` must still report it. Responses in flight then have one second.
///
/// If the process is out of descriptors, the server calls `spare`, which closes idle connections to
/// endpoints. Otherwise a liveness probe would fail, and the kubelet would end a proxy that serves.
pub async fn serve(
    mut listener: AdminListener,
    admin: Admin,
    spare: impl Fn(),
    shutdown: CancellationToken,
) {
    let routers = [Asker::ThisMachine, Asker::Other].map(|asker| router(admin.clone(), asker));
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(stream) => {
                let asker = Asker::of(&stream);
                oldest_first
                    .retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
                if oldest_first.len() >= CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                oldest_first.push_back(connections.spawn(connection(
                    stream,
                    routers[asker as usize].clone(),
                    shutdown.clone(),
                )));
            }
            // Most likely the process is out of descriptors. The pause keeps this loop from
            // spinning.
            Err(error) => {
                tracing::warn!(%error, "admin: a connection could not be accepted");
                spare();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let all_gone = async { while connections.join_next().await.is_some() {} };
    let all_gone = tokio::time::timeout(FAREWELL, all_gone);
    let _ = tokio::join!(all_gone, listener.finish());
}

/// Connections served at the same time.
const CONNECTIONS: usize = 64;
/// How long a request's head may take, and how long a connection may wait for its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time a connection takes no further request. So a client that never reads its response
/// does not keep its place.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a response in flight may take after its connection has begun to close.
const FAREWELL: Duration = Duration::from_secs(1);
/// The buffer of a connection in bytes. A longer request head gets 431.
const BUFFER: usize = 16 << 10;

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    tokio::select! {
        // It does not matter here how a client ends its connection.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(LIFETIME) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(FAREWELL, connection).await;
}

/// Who asks, by the addresses of the connection.
#[derive(Debug, Clone, Copy)]
enum Asker {
    /// The kubelet, on the node's network: it asks for this process.
    ThisMachine,
    /// A load balancer, on the node's network: it asks for the node.
    Other,
}

impl Asker {
    /// A connection from this machine to itself has one address at both ends.
    fn of(stream: &TcpStream) -> Self {
        match (stream.peer_addr(), stream.local_addr()) {
            (Ok(peer), Ok(local)) if peer.ip() != local.ip() => Self::Other,
            _ => Self::ThisMachine,
        }
    }
}

fn router(admin: Admin, asker: Asker) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/livez", get(livez))
        .route(
            "/readyz",
            get(async move |State(admin): State<Admin>| readyz(&admin, asker)),
        )
        .route(
            "/metrics",
            get(metrics).with_state(Scrapes::new(admin.clone())),
        )
        .route(
            "/api/v1/status",
            get(async |State(admin): State<Admin>| Json(report::Status::of(&admin))),
        )
        .route(
            "/api/v1/drains",
            get(async |State(admin): State<Admin>| Json(report::Drains::of(&admin))),
        )
        .route(
            "/api/v1/history",
            get(
                async |State(admin): State<Admin>, Query(wanted): Query<history::Wanted>| {
                    history::answer(&admin, wanted)
                },
            ),
        )
        .route(
            "/api/v1/gate/{namespace}/{pod}",
            get(
                async |State(admin): State<Admin>,
                       UrlPath((namespace, pod)): UrlPath<(String, String)>| {
                    let pod = ObjectName::new(namespace, pod);
                    held::instances(&admin.snapshot, admin.gate.looks.as_ref(), pod).await
                },
            ),
        )
        .fallback(async || (StatusCode::NOT_FOUND, PATHS))
        .layer(middleware::from_fn(guard))
        .with_state(admin)
}

/// The control loop turns each second. After this long without a turn it counts as dead.
const STANDSTILL: Duration = Duration::from_secs(10);
const PATHS: &str = "not found; the pages are /, /livez, /readyz, /metrics, /api/v1/status, /api/v1/drains, /api/v1/history and /api/v1/gate/NAMESPACE/POD\n";

/// Refuses all methods except GET and HEAD, on every path. Adds headers, so that no cache stores a
/// response and no browser guesses its type.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => next.run(request).await,
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            [(ALLOW, "GET, HEAD")],
            "only GET and HEAD\n",
        )
            .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Alive while the control loop turns: without it no endpoint leaves rotation.
async fn livez(State(admin): State<Admin>) -> (StatusCode, String) {
    liveness(admin.health.since_beat())
}

/// `since` is how long ago the control loop last turned.
fn liveness(since: Duration) -> (StatusCode, String) {
    if since < STANDSTILL {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let line = format!(
        "the control loop has stood still for {} s\n",
        since.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, line)
}

fn readyz(admin: &Admin, asker: Asker) -> (StatusCode, String) {
    let state = admin.health.state();
    let line = match asker {
        Asker::ThisMachine => readiness::readiness(&state),
        Asker::Other => readiness::of_node(&state),
    };
    match line {
        Ok(line) => (StatusCode::OK, line + "\n"),
        Err(line) => (StatusCode::SERVICE_UNAVAILABLE, line + "\n"),
    }
}

/// The page of metrics, rendered at most once in [`Scrapes::FRESH`]: its cost does not grow with the
/// number of its readers.
#[derive(Clone)]
struct Scrapes {
    admin: Admin,
    last: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

impl Scrapes {
    const FRESH: Duration = Duration::from_secs(1);

    fn new(admin: Admin) -> Self {
        Self {
            admin,
            last: Arc::default(),
        }
    }

    fn page(&self, now: Instant) -> Result<Bytes, prometheus::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, page)) = &*last
            && now.saturating_duration_since(*at) < Self::FRESH
        {
            return Ok(page.clone());
        }
        gauges::refresh_gauges(&self.admin);
        let page = Bytes::from(self.admin.metrics.render()?);
        *last = Some((now, page.clone()));
        Ok(page)
    }
}

async fn metrics(State(scrapes): State<Scrapes>) -> Response {
    match scrapes.page(Instant::now()) {
        Ok(page) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics: {error}\n"),
        )
            .into_response(),
    }
}

/// The status page. Its policy allows only its own script and style, by a nonce of this response.
async fn page() -> impl IntoResponse {
    // The nonce may be guessable: the page is static text, so nobody else can put a script into it.
    let nonce = format!("{:032x}", fastrand::u128(..));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    (
        [(CONTENT_SECURITY_POLICY, policy)],
        Html(PAGE.replace("{{nonce}}", &nonce)),
    )
}

/// The page with its style and its scripts. Only the nonce is left open.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let scripts = concat!(include_str!("chart.js"), include_str!("page.js"));
    include_str!("page.html")
        .replace("{{style}}", include_str!("page.css"))
        .replace("{{script}}", scripts)
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::snapshot::Published;
    use crate::observe::health::Health;
    use crate::observe::metrics::Metrics;

    #[test]
    fn the_page_of_metrics_is_rendered_once_a_second_however_many_read_it() {
        let metrics = Metrics::new().unwrap();
        let scrapes = Scrapes::new(Admin {
            snapshot: Arc::<Published>::default(),
            drains: Arc::default(),
            metrics: metrics.clone(),
            health: Arc::new(Health::new("files")),
            history: Arc::default(),
            gate: Default::default(),
            started: Instant::now(),
        });
        let shop = metrics.service(&ObjectName::new("web", "shop").port(80));
        let now = Instant::now();
        let first = scrapes.page(now).unwrap();
        shop.answered(200);
        let soon = scrapes.page(now + Duration::from_millis(999)).unwrap();
        assert_eq!(soon, first, "the copy is fresh");
        let later = scrapes.page(now + Scrapes::FRESH).unwrap();
        assert_ne!(later, first);
    }

    #[test]
    fn a_control_loop_that_stands_still_is_not_alive() {
        let alive = liveness(Duration::from_millis(9_999));
        assert_eq!(alive, (StatusCode::OK, "ok\n".to_owned()));
        let (status, line) = liveness(Duration::from_secs(11));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(line.contains("has stood still for 11 s"), "{line}");
    }
}

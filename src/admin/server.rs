//! The admin pages: health, metrics, the status page and its API. Plain HTTP/1.1, read-only.
//!
//! Invariant: nobody who reaches this port can change anything or keep another from an answer. Only GET and HEAD are
//! answered, no request header or body has an effect, and a client costs a bounded buffer for a bounded time; when all
//! places are taken the oldest connection goes. What the answers say is in [`report`]; the `ebbtide status` command that
//! reads them, in [`mod@status`].

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use axum::extract::{Request, State};
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

/// Serves the admin pages until `shutdown`, which is the end of this server and not the proxy's: while the proxy shuts
/// down, `/readyz` must still be there to say so. Answers in flight then have a second. `spare` has descriptors freed that
/// are only kept for later: a probe that finds none to be had would end a proxy that serves.
pub async fn serve(
    mut listener: AdminListener,
    admin: Admin,
    spare: impl Fn(),
    shutdown: CancellationToken,
) {
    let router = router(admin);
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
                oldest_first
                    .retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
                if oldest_first.len() >= CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                oldest_first.push_back(connections.spawn(connection(
                    stream,
                    router.clone(),
                    shutdown.clone(),
                )));
            }
            // Out of descriptors, most likely: without a pause this would spin.
            Err(error) => {
                tracing::warn!(%error, "admin: a connection could not be accepted");
                spare();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let all_gone = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, all_gone).await;
}

/// Connections served at once.
const CONNECTIONS: usize = 64;
/// For a request's head to arrive, and for the next request on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection takes no further request, so that a reader who never reads does not stay for ever.
const LIFETIME: Duration = Duration::from_secs(60);
/// For an answer in flight to be taken once its connection is told to end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes; a longer request head is answered with 431.
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
        // How a client goes away is of no interest here.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(LIFETIME) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(FAREWELL, connection).await;
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route(
            "/api/v1/status",
            get(async |State(admin): State<Admin>| Json(report::Status::of(&admin))),
        )
        .route(
            "/api/v1/drains",
            get(async |State(admin): State<Admin>| Json(report::Drains::of(&admin))),
        )
        .fallback(async || (StatusCode::NOT_FOUND, PATHS))
        .layer(middleware::from_fn(guard))
        .with_state(admin)
}

/// The control loop turns each second. After this long without a turn it counts as dead.
const STANDSTILL: Duration = Duration::from_secs(10);
const PATHS: &str =
    "not found: there are /, /livez, /readyz, /metrics, /api/v1/status and /api/v1/drains\n";

/// Read-only, whatever the path; never stored, never taken for another type.
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
    let since = admin.health.since_beat();
    if since < STANDSTILL {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let line = format!(
        "the control loop has stood still for {} s\n",
        since.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, line)
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    match report::readiness(&admin.health.state()) {
        Ok(line) => (StatusCode::OK, line + "\n"),
        Err(line) => (StatusCode::SERVICE_UNAVAILABLE, line + "\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    report::refresh_gauges(&admin);
    match admin.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics: {error}\n"),
        )
            .into_response(),
    }
}

/// The page's only script and style are its own: each is let in by a nonce of this answer, and nothing else is.
async fn page() -> impl IntoResponse {
    // Need not be unguessable: the page is static text, there is nothing in it that somebody else could have put there.
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

const PAGE: &str = include_str!("page.html");

//! The connections to the API server: the library's own transport, but with keepalive and few
//! connections.
//!
//! A watch whose connection is forgotten on its way (NAT, a firewall, a lost node) would be silent
//! for ever without keepalive, and bookmarks are too rare to notice that.
//!
//! Over TLS, requests share a connection (HTTP/2), if the API server offers that. An API server serves
//! 100 requests at a time on one connection, unless `--http2-max-streams-per-connection` says more.
//! One more would wait until another ends, and watches do not end. So each [`STREAMS`] requests get a
//! connection of their own.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, TryFutureExt};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::{Request, Response};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use tower::util::BoxService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

/// What sends requests to the API server.
pub(super) type Transport = BoxService<Request<Body>, Response<Counted>, BoxError>;

/// Makes the transport of a configuration.
///
/// # Errors
/// The certificates or the credentials cannot be used.
pub(super) fn transport(config: &kube::Config) -> kube::Result<Transport> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(KEEPALIVE + KEEPALIVE_INTERVAL * KEEPALIVE_RETRIES));
    let tls = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    let tls = match &config.tls_server_name {
        None => tls,
        Some(name) => {
            let name = name.clone().try_into();
            let name = name.map_err(|error| kube::Error::Service(Box::new(error)))?;
            tls.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
    };
    let tls = tls.enable_http1().enable_http2().wrap_connector(tcp);
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let connections = Connections {
        connector,
        clients: Arc::default(),
    };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(service.boxed())
}

type Connector = TimeoutConnector<HttpsConnector<HttpConnector>>;
type Client = legacy::Client<Connector, Body>;

/// Clients of the API server. With HTTP/2, each has one connection.
#[derive(Clone)]
struct Connections {
    connector: Connector,
    clients: Arc<Mutex<Vec<(Client, Place)>>>,
}

/// Shared by a client and its requests: as many requests are under way as there are others.
type Place = Arc<()>;

impl Connections {
    /// The first client with less than [`STREAMS`] requests.
    fn with_room(&self) -> (Client, Place) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = |(_, place): &&(Client, Place)| Arc::strong_count(place) <= STREAMS;
        if let Some(found) = clients.iter().find(has_room) {
            return found.clone();
        }
        let client = legacy::Client::builder(TokioExecutor::new())
            // Lists of many namespaces at once leave as many connections behind them.
            .pool_max_idle_per_host(1)
            .build(self.connector.clone());
        let new = (client, Place::default());
        clients.push(new.clone());
        new
    }
}

impl Service<Request<Body>> for Connections {
    type Response = Response<Counted>;
    type Error = legacy::Error;
    type Future = BoxFuture<'static, Result<Response<Counted>, legacy::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), legacy::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, place) = self.with_room();
        let count = |response: Response<Incoming>| {
            response.map(|body| Counted {
                body,
                _place: place,
            })
        };
        client.request(request).map_ok(count).boxed()
    }
}

/// The body of a response. While it lasts, it counts for its connection.
pub(super) struct Counted {
    body: Incoming,
    _place: Place,
}

impl HttpBody for Counted {
    type Data = <Incoming as HttpBody>::Data;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The largest number of requests at a time on one connection of HTTP/2.
const STREAMS: usize = 64;
/// Idle time before the first probe. With the two constants below, a connection that the other side
/// has forgotten ends within 15 s.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 2;

//! The way to a Kubernetes API server: where it is, who we are there, what time it is by its clock, and that it answers.
//!
//! What the watch library does not tell its user is read off the responses here: the `Date` header, from which drain
//! deadlines are counted after a relist, and that a broken watch has been answered again. And what it does not do is
//! done here: watches that end as soon as they begin are paused between.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::api::Api;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::runtime::utils::Backoff;
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tower::util::BoxService;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};

use crate::config::fault::Refused;
use crate::config::settings::Kubernetes;
use crate::text::{chain, one_line};

/// Where the API server is and who we are there: the configured kubeconfig, else in-cluster, else `KUBECONFIG`, else the
/// home folder's.
pub async fn locate(wanted: &Kubernetes) -> Result<kube::Config, Refused> {
    let options = KubeConfigOptions::default();
    let mut config = match &wanted.kubeconfig {
        Some(path) => from_file(path, &options).await?,
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => kube::Config::incluster()
            .map_err(|error| {
                unusable(
                    format!("this pod has no usable service account ({})", chain(&error)),
                    "let automountServiceAccountToken be true",
                )
            })?,
        None => kube::Config::from_kubeconfig(&options)
            .await
            .map_err(|error| {
                unusable(
                    format!(
                        "not in a cluster, and no usable kubeconfig ({})",
                        chain(&error)
                    ),
                    "name one in discovery.kubernetes.kubeconfig or in KUBECONFIG",
                )
            })?,
    };
    config.connect_timeout = Some(CONNECT);
    // From the last byte that came or went: what breaks a watch that has fallen silent.
    config.read_timeout = Some(wanted.silence);
    config.reset_reader_on_write = true;
    // A 429 or 503 would be kept from us for five minutes, and its end for up to 160 s: we have pauses of our own.
    config.default_retry = false;
    Ok(config)
}

async fn from_file(path: &Path, options: &KubeConfigOptions) -> Result<kube::Config, Refused> {
    let refuse = |error: &dyn std::error::Error| {
        unusable(
            format!(
                "kubeconfig {} cannot be used ({})",
                path.display(),
                chain(error)
            ),
            "`kubectl --kubeconfig FILE get services` tells more",
        )
    };
    let file = Kubeconfig::read_from(path).map_err(|error| refuse(&error))?;
    kube::Config::from_custom_kubeconfig(file, options)
        .await
        .map_err(|error| refuse(&error))
}

/// The API server cannot be found, or not how to authenticate there.
fn unusable(what: String, cure: &str) -> Refused {
    Refused::new("discovery.kubernetes", format!("{what}: {cure}"))
}

/// A client that tells what it hears. To be made and used inside one runtime.
pub fn connect(
    config: kube::Config,
) -> Result<(Client, Arc<Clock>, mpsc::UnboundedReceiver<String>), Refused> {
    let service = transport(&config).map_err(|error| {
        unusable(
            format!(
                "cannot make a connection of this kubeconfig ({})",
                chain(&error)
            ),
            "see its certificates and its credentials",
        )
    })?;
    let (answered, heard) = mpsc::unbounded_channel();
    let clock = Arc::new(Clock::default());
    let layer = Listen {
        clock: clock.clone(),
        answered,
        paces: Arc::default(),
    };
    let client = ClientBuilder::new(service, config.default_namespace)
        .with_layer(&layer)
        .build();
    Ok((client, clock, heard))
}

/// As the library's own way there, but with keepalive: a watch whose connection is forgotten on its way (NAT, a firewall, a
/// lost node) is silent for ever otherwise, and bookmarks are too rare to miss.
fn transport(config: &kube::Config) -> kube::Result<Transport> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(KEEPALIVE + KEEPALIVE_INTERVAL * KEEPALIVE_RETRIES));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(service.boxed())
}

type Transport = BoxService<Request<Body>, Response<Incoming>, BoxError>;

/// The objects of one kind, in a namespace or (`None`) in all.
pub fn objects<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// What the API server said, or what kept it from saying anything, in one line.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => one_line(&status.message),
        other => chain(other),
    }
}

/// The API server's clock, as its last response told it: to the second, and never ahead of it.
#[derive(Debug, Default)]
pub struct Clock(Mutex<Option<(SystemTime, Instant)>>);

impl Clock {
    /// Its time now; before any response, ours.
    pub fn now(&self) -> SystemTime {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((told, at)) => told + at.elapsed(),
            None => SystemTime::now(),
        }
    }

    fn set(&self, date: &str) {
        if let Ok(told) = jiff::fmt::rfc2822::parse(date) {
            let told = (SystemTime::from(told.timestamp()), Instant::now());
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }
    }
}

/// Between the attempts of what fails: 100 ms, doubling to 5 s, each somewhere in its upper half, so that the nodes of a
/// cluster do not come back all at once. From the start again after a while without a failure.
#[derive(Debug, Default)]
pub struct Pauses {
    count: u32,
    over: Option<Instant>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self
            .over
            .is_some_and(|over| now.saturating_duration_since(over) > LONGEST_PAUSE)
        {
            self.count = 0;
        }
        let pause = (FIRST_PAUSE * 2u32.pow(self.count)).min(LONGEST_PAUSE);
        let pause = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.count = (self.count + 1).min(10);
        self.over = Some(now + pause);
        Some(pause)
    }
}

impl Backoff for Pauses {
    /// That something came is no success yet: a list that fails begins well each time.
    fn reset(&mut self) {}
}

/// When the last watch of a path was answered well, and the pauses after short ones.
#[derive(Default)]
struct Pace {
    answered: Option<Instant>,
    pauses: Pauses,
}

/// Reads the date off each response, tells the path of each watch that was answered well (a list may still fail then),
/// and keeps watches apart.
#[derive(Clone)]
struct Listen {
    clock: Arc<Clock>,
    answered: mpsc::UnboundedSender<String>,
    /// By path: as many as there are watches.
    paces: Arc<Mutex<HashMap<String, Pace>>>,
}

impl Listen {
    /// How long to wait before the next watch.
    fn pause(&self, path: &str) -> Duration {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = paces.entry(path.to_owned()).or_default();
        let short = pace.answered.is_some_and(|at| at.elapsed() < SHORT);
        if short {
            pace.pauses.next().unwrap_or_default()
        } else {
            Duration::ZERO
        }
    }

    fn watch_answered(&self, path: String) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.entry(path.clone()).or_default().answered = Some(Instant::now());
        // Nobody listens any more only when the process ends.
        let _ = self.answered.send(path);
    }
}

impl<S> Layer<S> for Listen {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening {
            inner,
            listen: self.clone(),
        }
    }
}

struct Listening<S> {
    inner: S,
    listen: Listen,
}

impl<S, B> Service<Request<Body>> for Listening<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let is_watch = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let listen = self.listen.clone();
        let pause = if is_watch {
            listen.pause(&path)
        } else {
            Duration::ZERO
        };
        let hear = move |response: Response<B>| {
            if let Some(date) = response
                .headers()
                .get("date")
                .and_then(|date| date.to_str().ok())
            {
                listen.clock.set(date);
            }
            if is_watch && response.status().is_success() {
                listen.watch_answered(path);
            }
            response
        };
        // Nothing is sent before it is polled.
        let answer = self.inner.call(request);
        let paused = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            answer.await
        };
        paused.map_ok(hear).boxed()
    }
}

const CONNECT: Duration = Duration::from_secs(5);
/// A connection that the other side has forgotten is found out within 15 s.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A watch that ends sooner has not been worth its request; the API server ends them after minutes.
const SHORT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_what_the_last_date_said_and_goes_on_from_there() {
        let clock = Clock::default();
        clock.set("Sun, 06 Nov 1994 08:49:37 GMT");
        let told = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let ahead = clock.now().duration_since(told).unwrap();
        assert!(ahead < Duration::from_secs(600), "{ahead:?}");
        clock.set("yesterday");
        assert!(
            clock.now() >= told + ahead,
            "what is no date changes nothing"
        );
    }
}

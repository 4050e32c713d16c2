//! The client of the Kubernetes API server: where the server is, which credentials are used, what
//! time its clock shows, and whether it answers.
//!
//! The watch library does not report two things, so this file reads them from the responses. One is
//! the `Date` header, from which drain deadlines count after a relist (contract 1.4). The other is
//! that a broken watch has been answered again. The library also does not pause between watches
//! that end as soon as they begin, so this file does. What the objects mean is left to `discovery`.
//!
//! A watch is named by its path and its selectors ([`watch_name`]).
//!
//! Watches share connections (`transport.rs`). A watch that falls silent must be noticed although
//! others go on, so the silence of each response is bounded here, and not only that of the connection.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use hyper::body::{Body as HttpBody, Frame};
use hyper::{Request, Response, Uri};
use kube::api::{Api, WatchParams};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::runtime::utils::Backoff;
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tower::{BoxError, Layer, Service};

use crate::cluster::transport::transport;
use crate::config::fault::Refused;
use crate::config::settings::Kubernetes;
use crate::text::{chain, one_line};

/// Finds the API server and the credentials: the configured kubeconfig, else the pod's service
/// account, else `KUBECONFIG`, else the file in the home folder.
///
/// # Errors
/// None of these is usable.
pub async fn locate(wanted: &Kubernetes) -> Result<kube::Config, Refused> {
    let options = KubeConfigOptions::default();
    let mut config = match &wanted.kubeconfig {
        Some(path) => from_file(path, &options).await?,
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => kube::Config::incluster()
            .map_err(|error| {
                unusable(
                    format!("this pod has no usable service account ({})", chain(&error)),
                    "set automountServiceAccountToken to true",
                )
            })?,
        None => kube::Config::from_kubeconfig(&options)
            .await
            .map_err(|error| {
                unusable(
                    format!(
                        "this is not a pod, and there is no usable kubeconfig ({})",
                        chain(&error)
                    ),
                    "set discovery.kubernetes.kubeconfig or KUBECONFIG to a kubeconfig file",
                )
            })?,
    };
    config.connect_timeout = Some(CONNECT);
    // Counts from the last byte in either direction. It ends a watch that has fallen silent.
    config.read_timeout = Some(wanted.silence);
    config.reset_reader_on_write = true;
    // The library would hide a 429 or 503 for five minutes, and its end for up to 160 s. `Pauses`
    // does the waiting instead.
    config.default_retry = false;
    Ok(config)
}

async fn from_file(path: &Path, options: &KubeConfigOptions) -> Result<kube::Config, Refused> {
    let refuse = |error: &dyn std::error::Error| {
        unusable(
            format!(
                "cannot use kubeconfig {} ({})",
                path.display(),
                chain(error)
            ),
            "`kubectl --kubeconfig FILE get services` shows why",
        )
    };
    let file = Kubeconfig::read_from(path).map_err(|error| refuse(&error))?;
    kube::Config::from_custom_kubeconfig(file, options)
        .await
        .map_err(|error| refuse(&error))
}

/// The error when the API server, or a way to authenticate there, cannot be found.
fn unusable(what: String, cure: &str) -> Refused {
    Refused::new("discovery.kubernetes", format!("{what}: {cure}"))
}

/// Makes a client, the API server's clock, and a channel with the names of watches that were
/// answered well. The client must be made and used inside one runtime.
///
/// # Errors
/// The kubeconfig's certificates or credentials cannot be used.
pub fn connect(
    config: kube::Config,
) -> Result<(Client, Arc<Clock>, mpsc::UnboundedReceiver<String>), Refused> {
    let service = transport(&config).map_err(|error| {
        unusable(
            format!("cannot connect with this kubeconfig ({})", chain(&error)),
            "check its certificates and its credentials",
        )
    })?;
    let (answered, paths) = mpsc::unbounded_channel();
    let clock = Arc::new(Clock::default());
    let layer = Observe {
        silence: config.read_timeout.unwrap_or(LONGEST_SILENCE),
        clock: clock.clone(),
        answered,
        paces: Arc::default(),
    };
    let client = ClientBuilder::new(service, config.default_namespace)
        .with_layer(&layer)
        .build();
    Ok((client, clock, paths))
}

/// The API for objects of one kind, in a namespace or (`None`) in all.
pub fn objects<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// The name of a watch with these parameters, as [`connect`]'s channel reports it.
pub fn watch_name(path: &str, labels: Option<&str>, fields: Option<&str>) -> String {
    let parameters = WatchParams {
        label_selector: labels.map(str::to_owned),
        field_selector: fields.map(str::to_owned),
        ..WatchParams::default()
    };
    let request = kube::core::Request::new(path).watch(&parameters, "0");
    request.map_or_else(|_| path.to_owned(), |request| name_of(request.uri()))
}

/// The path of a watch's request, and its selectors.
fn name_of(uri: &Uri) -> String {
    let mut name = uri.path().to_owned();
    for pair in pairs(uri) {
        if pair.starts_with("labelSelector=") || pair.starts_with("fieldSelector=") {
            name += "&";
            name += pair;
        }
    }
    name
}

fn pairs(uri: &Uri) -> impl Iterator<Item = &str> {
    uri.query().unwrap_or_default().split('&')
}

/// The API server's message, or the reason why there is none, in one line.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => one_line(&status.message),
        other => chain(other),
    }
}

/// The API server's clock, by the `Date` of its last response. The clock has a resolution of a
/// second and is never ahead of the API server.
#[derive(Debug, Default)]
pub struct Clock(Mutex<Option<(SystemTime, Instant)>>);

impl Clock {
    /// The API server's time now. Before any response, this process's own time.
    pub fn now(&self) -> SystemTime {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((date_at, at)) => date_at + at.elapsed(),
            None => SystemTime::now(),
        }
    }

    fn set(&self, date: &str) {
        if let Ok(date_at) = jiff::fmt::rfc2822::parse(date) {
            let date_at = (SystemTime::from(date_at.timestamp()), Instant::now());
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(date_at);
        }
    }
}

/// The pauses between attempts: 100 ms, doubling to 5 s. Each pause is random within its upper
/// half, so that the nodes of a cluster do not all come back at the same time. The pauses start
/// again after 5 s without a failure.
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
    /// Does nothing: a first event is no success yet, because a list that fails also begins well.
    fn reset(&mut self) {}
}

/// When the last watch of a name was answered well, and the pauses after short watches.
#[derive(Default)]
struct Pace {
    answered: Option<Instant>,
    pauses: Pauses,
}

/// Reads the date of each response, reports the name of each watch that was answered well (a list
/// may still fail then, a streamed one, too), and pauses between short watches.
#[derive(Clone)]
struct Observe {
    silence: Duration,
    clock: Arc<Clock>,
    answered: mpsc::UnboundedSender<String>,
    /// One entry for each watch, by name.
    paces: Arc<Mutex<HashMap<String, Pace>>>,
}

impl Observe {
    /// How long to wait before the next watch of this name.
    fn pause(&self, name: &str) -> Duration {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = paces.entry(name.to_owned()).or_default();
        let short = pace.answered.is_some_and(|at| at.elapsed() < SHORT);
        if short {
            pace.pauses.next().unwrap_or_default()
        } else {
            Duration::ZERO
        }
    }

    /// Notes that a watch was answered well. Watches that nobody has opened for long are forgotten.
    fn watch_answered(&self, name: String, asked: Asked) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.retain(|_, pace| pace.answered.is_none_or(|at| at.elapsed() < FORGET));
        paces.entry(name.clone()).or_default().answered = Some(Instant::now());
        if asked == Asked::Watch {
            // The receiver is gone only when the process ends.
            let _ = self.answered.send(name);
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The events from a known position on.
    Watch,
    /// All objects, and then the events.
    Stream,
    Other,
}

impl Asked {
    fn by(uri: &Uri) -> Self {
        let has = |wanted| pairs(uri).any(|pair| pair == wanted);
        match (has("watch=true"), has("sendInitialEvents=true")) {
            (true, false) => Self::Watch,
            (true, true) => Self::Stream,
            (false, _) => Self::Other,
        }
    }
}

impl<S> Layer<S> for Observe {
    type Service = ObservedService<S>;

    fn layer(&self, inner: S) -> ObservedService<S> {
        ObservedService {
            inner,
            observe: self.clone(),
        }
    }
}

struct ObservedService<S> {
    inner: S,
    observe: Observe,
}

impl<S, B> Service<Request<Body>> for ObservedService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: 'static,
{
    type Response = Response<Bounded<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Bounded<B>>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = Asked::by(request.uri());
        let name = match asked {
            Asked::Other => String::new(),
            Asked::Watch | Asked::Stream => name_of(request.uri()),
        };
        let observe = self.observe.clone();
        let pause = match asked {
            Asked::Other => Duration::ZERO,
            Asked::Watch | Asked::Stream => observe.pause(&name),
        };
        let note = move |response: Response<B>| {
            if let Some(date) = response
                .headers()
                .get("date")
                .and_then(|date| date.to_str().ok())
            {
                observe.clock.set(date);
            }
            if asked != Asked::Other && response.status().is_success() {
                observe.watch_answered(name, asked);
            }
            response.map(|body| Bounded::new(body, observe.silence))
        };
        // Nothing is sent before the future is polled.
        let answer = self.inner.call(request);
        let paused = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            answer.await
        };
        paused.map_ok(note).boxed()
    }
}

/// The body of a response. It ends with an error when nothing has come for `silence`.
struct Bounded<B> {
    body: B,
    silence: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl<B> Bounded<B> {
    fn new(body: B, silence: Duration) -> Self {
        let alarm = Box::pin(tokio::time::sleep(silence));
        Self {
            body,
            silence,
            alarm,
        }
    }
}

impl<B> HttpBody for Bounded<B>
where
    B: HttpBody + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            let next = tokio::time::Instant::now() + this.silence;
            this.alarm.as_mut().reset(next);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.alarm.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err("the API server has fallen silent".into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The longest connect to the API server.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a response may be silent if the configuration does not say.
const LONGEST_SILENCE: Duration = Duration::from_secs(75);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A watch that ends sooner counts as short. The API server ends watches after minutes.
const SHORT: Duration = Duration::from_secs(1);
/// A watch is opened again long before this.
const FORGET: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_starts_at_the_last_date_and_goes_on() {
        let clock = Clock::default();
        clock.set("Sun, 06 Nov 1994 08:49:37 GMT");
        let date_at = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let ahead = clock.now().duration_since(date_at).unwrap();
        assert!(ahead < Duration::from_secs(600), "{ahead:?}");
        clock.set("yesterday");
        assert!(
            clock.now() >= date_at + ahead,
            "a text that is not a date changes nothing"
        );
    }
}

//! An API server that stores Services, EndpointSlices and Pods and reports them as the real one
//! does. It misbehaves on command. It records each request. A request that Ebbtide must never make
//! is a complaint, and a complaint fails the test.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes};
use futures::stream;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate for 127.0.0.1, signed by itself, and its key.
const CERTIFICATE: &[u8] = include_bytes!("../../fixtures/api-server.pem");

/// The certificate that a client must trust.
pub fn certificate() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(CERTIFICATE).unwrap()
}

fn acceptor() -> TlsAcceptor {
    let key = PrivateKeyDer::from_pem_slice(CERTIFICATE).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Services,
    Slices,
    Pods,
}

const CLAIM: &str = "service.kubernetes.io/service-proxy-name";

pub const KINDS: [Kind; 3] = [Kind::Services, Kind::Slices, Kind::Pods];

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// The first page of a list.
    List,
    /// The other pages of a list.
    More,
    Watch,
    /// A watch that begins with all objects, refused.
    Stream,
    /// One object.
    Get,
}

/// How requests are answered, until [`Api::lift`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Status(u16),
    /// The connection ends without a response.
    Drop,
    /// Half the response, and then the connection ends. A watch gets a good response that ends
    /// immediately.
    Half,
    /// No response until [`Api::lift`].
    Wait,
}

/// An order to the watches that are open now, in sequence with the events.
#[derive(Debug, Clone)]
pub enum Order {
    /// Sends these bytes unchanged.
    Raw(String),
    /// Sends nothing more, and stays open.
    Silence,
    /// The connection breaks.
    Cut,
    /// The response ends properly.
    End,
}

/// A request that the server received.
#[derive(Debug, Clone)]
pub struct Asked {
    pub kind: Kind,
    pub verb: Verb,
    /// `None` means all namespaces.
    pub namespace: Option<String>,
    pub query: String,
    pub selector: Option<String>,
    pub at: Instant,
}

/// The server. It stops with the runtime that it was started in.
#[derive(Clone)]
pub struct Api {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Changes with everything that a task may wait for.
    moved: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(Kind, String, String), Value>,
    log: Vec<Entry>,
    /// Versions up to this one are forgotten.
    forgotten: HashMap<Kind, u64>,
    /// An old version is refused by a plain status 410, not in a stream of status 200.
    gone_by_status: bool,
    /// The rest of a list, by its continue token.
    pages: HashMap<String, (u64, Vec<Value>)>,
    faults: HashMap<(Kind, Verb), Fault>,
    unplugged: bool,
    /// Kinds whose events are held back.
    held: BTreeSet<Kind>,
    /// How far the server's clock is ahead of ours, in seconds.
    ahead: i64,
    asked: Vec<Asked>,
    open: HashMap<Kind, usize>,
    watches: usize,
    posted: Vec<Value>,
    refuse_events: bool,
    refused_events: usize,
    /// Whether lists are streamed (WatchList).
    streams: bool,
    /// Namespaces, and kinds of objects in them, that the user may not read.
    forbidden: BTreeSet<(Kind, Option<String>)>,
    /// Namespaces that do not exist.
    absent: BTreeSet<String>,
    connections: usize,
    complaints: Vec<String>,
}

struct Entry {
    version: u64,
    kind: Kind,
    namespace: Option<String>,
    what: What,
}

enum What {
    Event(&'static str, Value),
    Order(Order),
}

impl Api {
    /// Speaks HTTP/1.1 without TLS.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Speaks TLS with the certificate [`CERTIFICATE`], and HTTP/2 to clients that want it, as a real
    /// one does: 100 requests at a time on one connection.
    pub async fn start_tls() -> Self {
        Self::start_with(Some(acceptor())).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            version: 100,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            moved: watch::Sender::new(0),
        });
        let api = Self { address, shared };
        tokio::spawn(api.clone().serve(listener, tls));
        api
    }

    /// Creates or replaces an object, and reports it. As the EndpointSlice controller does, gives the
    /// slices of a Service the label of the Service's claim.
    pub fn apply(&self, object: &Value) {
        let mut state = self.lock();
        let mut object = object.clone();
        match kind_of(&object) {
            Kind::Slices => {
                let claim = state.claim_of(&object);
                set_label(&mut object, claim);
                state.put(object);
            }
            Kind::Services => {
                let (_, namespace, _) = key_of(Kind::Services, &object);
                state.put(object);
                let slices = state.objects.iter();
                let slices =
                    slices.filter(|((kind, at, _), _)| (*kind, at) == (Kind::Slices, &namespace));
                let slices: Vec<Value> = slices.map(|(_, slice)| slice.clone()).collect();
                for mut slice in slices {
                    let claim = state.claim_of(&slice);
                    if slice["metadata"]["labels"][CLAIM] != claim {
                        set_label(&mut slice, claim);
                        state.put(slice);
                    }
                }
            }
            Kind::Pods => state.put(object),
        }
        drop(state);
        self.shared.notify();
    }

    /// Takes the label of the claim from a slice, as one has that another controller made.
    pub fn unlabel(&self, namespace: &str, name: &str) {
        let mut state = self.lock();
        let key = (Kind::Slices, namespace.to_owned(), name.to_owned());
        let mut slice = state.objects[&key].clone();
        set_label(&mut slice, Value::Null);
        state.put(slice);
        drop(state);
        self.shared.notify();
    }

    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        let mut object = state
            .objects
            .remove(&(kind, namespace.into(), name.into()))
            .unwrap();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.log.push(Entry {
            version,
            kind,
            namespace: Some(namespace.into()),
            what: What::Event("DELETED", object),
        });
        drop(state);
        self.shared.notify();
    }

    /// Reports an existing object once more.
    pub fn echo(&self, kind: Kind, namespace: &str, name: &str) {
        let object = self.lock().objects[&(kind, namespace.into(), name.into())].clone();
        self.apply(&object);
    }

    /// Sends a bookmark to all open watches of a kind.
    pub fn bookmark(&self, kind: Kind) {
        let version = self.lock().version.to_string();
        self.order(kind, Order::Raw(format!("{}\n", bookmark(kind, &version))));
    }

    pub fn order(&self, kind: Kind, order: Order) {
        let mut state = self.lock();
        let version = state.version;
        state.log.push(Entry {
            version,
            kind,
            namespace: None,
            what: What::Order(order),
        });
        drop(state);
        self.shared.notify();
    }

    /// Forgets all versions, so that no watch of this kind can be resumed. The open watches receive
    /// 410 and end.
    pub fn forget(&self, kind: Kind) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        state.forgotten.insert(kind, version);
        state.version += 1;
        drop(state);
        self.order(kind, Order::Raw(format!("{}\n", gone())));
        self.order(kind, Order::End);
    }

    /// Like [`Self::forget`], but the open watches are only cut, and the next ones are refused by a
    /// plain status 410.
    pub fn forget_by_status(&self, kind: Kind) {
        let mut state = self.lock();
        state.version += 2;
        let version = state.version - 1;
        state.forgotten.insert(kind, version);
        state.gone_by_status = true;
        drop(state);
        self.order(kind, Order::Cut);
    }

    /// Forgets the continue tokens given so far.
    pub fn forget_pages(&self) {
        self.lock().pages.clear();
    }

    pub fn fault(&self, kind: Kind, verb: Verb, fault: Fault) {
        self.lock().faults.insert((kind, verb), fault);
    }

    pub fn lift(&self, kind: Kind, verb: Verb) {
        self.lock().faults.remove(&(kind, verb));
        self.shared.notify();
    }

    /// Replaces the last event of a kind by these bytes, for the watches that are open. Other
    /// watches never receive the event.
    pub fn replace_by_garbage(&self, kind: Kind, bytes: &str) {
        let mut state = self.lock();
        let last = state
            .log
            .iter_mut()
            .rfind(|entry| entry.kind == kind)
            .unwrap();
        last.what = What::Order(Order::Raw(format!("{bytes}\n")));
    }

    /// From now on, lists are streamed where that is asked for.
    pub fn stream(&self) {
        self.lock().streams = true;
    }

    /// From now on, the user may not read objects of this kind in this namespace (`None`: in all at
    /// once). Open watches go on.
    pub fn forbid(&self, kind: Kind, namespace: Option<&str>) {
        let place = (kind, namespace.map(str::to_owned));
        self.lock().forbidden.insert(place);
    }

    pub fn allow(&self, kind: Kind, namespace: Option<&str>) {
        let place = (kind, namespace.map(str::to_owned));
        self.lock().forbidden.remove(&place);
    }

    /// From now on, this namespace does not exist, and its lists are empty.
    pub fn without_namespace(&self, name: &str) {
        self.lock().absent.insert(name.to_owned());
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// Holds the events of a kind back until [`Self::release`].
    pub fn hold(&self, kind: Kind) {
        self.lock().held.insert(kind);
    }

    pub fn release(&self, kind: Kind) {
        self.lock().held.remove(&kind);
        self.shared.notify();
    }

    /// Ends all connections, and each new one immediately, until [`Self::plug`].
    pub fn unplug(&self) {
        self.lock().unplugged = true;
        self.shared.notify();
    }

    pub fn plug(&self) {
        self.lock().unplugged = false;
        self.shared.notify();
    }

    /// Sets the server's clock.
    pub fn set_ahead(&self, seconds: i64) {
        self.lock().ahead = seconds;
    }

    /// The time of the server's clock plus `seconds`, in the format of its objects.
    pub fn time(&self, seconds: i64) -> String {
        let time =
            jiff::Timestamp::now() + jiff::SignedDuration::from_secs(self.lock().ahead + seconds);
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// The requests of this kind, apart from those of the [`is_second`] watch.
    pub fn count(&self, kind: Kind, verb: Verb) -> usize {
        let state = self.lock();
        let asked = state.asked.iter();
        let asked = asked.filter(|it| (it.kind, it.verb) == (kind, verb));
        asked
            .filter(|it| !is_second(kind, it.selector.as_deref()))
            .count()
    }

    /// How many watches of this kind are open, apart from the [`is_second`] one.
    pub fn open(&self, kind: Kind) -> usize {
        self.lock().open.get(&kind).copied().unwrap_or(0)
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.lock().watches
    }

    /// The Events (events.k8s.io/v1) that were posted.
    pub fn posted(&self) -> Vec<Value> {
        self.lock().posted.clone()
    }

    /// How many Events were refused because they exist.
    pub fn refused_events(&self) -> usize {
        self.lock().refused_events
    }

    /// From now on, posting Events is forbidden.
    pub fn refuse_events(&self) {
        self.lock().refuse_events = true;
    }

    pub fn complaints(&self) -> Vec<String> {
        self.lock().complaints.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl State {
    fn put(&mut self, mut object: Value) {
        self.version += 1;
        let (version, kind) = (self.version, kind_of(&object));
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = key_of(kind, &object);
        let namespace = Some(key.1.clone());
        let before = self.objects.insert(key, object.clone());
        let of = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let what = What::Event(of, object);
        self.log.push(Entry {
            version,
            kind,
            namespace,
            what,
        });
    }

    /// The label of the claim of a slice's Service, or null.
    fn claim_of(&self, slice: &Value) -> Value {
        let service = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
        let namespace = &slice["metadata"]["namespace"];
        let part = |part: &Value| part.as_str().unwrap_or_default().to_owned();
        let key = (Kind::Services, part(namespace), part(service));
        let service = self.objects.get(&key);
        service.map_or(Value::Null, |service| {
            service["metadata"]["labels"][CLAIM].clone()
        })
    }
}

impl Shared {
    fn notify(&self) {
        self.moved.send_modify(|count| *count += 1);
    }
}

/// The responses.
impl Api {
    async fn serve(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let mut connections = JoinSet::new();
        let mut moved = self.shared.moved.subscribe();
        loop {
            if self.lock().unplugged {
                connections.abort_all();
            }
            tokio::select! {
                _ = moved.changed() => {}
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { return };
                    if self.lock().unplugged {
                        continue;
                    }
                    connections.spawn(self.clone().serve_one(stream, tls.clone()));
                }
            }
        }
    }

    /// Serves one connection. It does not matter how a client ends it.
    async fn serve_one(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _open = Open::new(&self);
        let service = service_fn(|request| self.clone().answer(request));
        let Some(tls) = tls else {
            let http1 = http1::Builder::new();
            let _ = http1.serve_connection(TokioIo::new(stream), service).await;
            return;
        };
        let Ok(stream) = tls.accept(stream).await else {
            return;
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if is_http2 {
            let mut http2 = http2::Builder::new(TokioExecutor::new());
            http2.max_concurrent_streams(100);
            let _ = http2.serve_connection(stream, service).await;
        } else {
            let _ = http1::Builder::new()
                .serve_connection(stream, service)
                .await;
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let mut response = self.judge(request).await?;
        let ahead = self.lock().ahead;
        let now = SystemTime::now();
        let shift = Duration::from_secs(ahead.unsigned_abs());
        let time = if ahead < 0 { now - shift } else { now + shift };
        let time = jiff::Timestamp::try_from(time).unwrap();
        let date = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        response.headers_mut().insert("date", date.parse().unwrap());
        Ok(response)
    }

    async fn judge(&self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let (path, query) = (
            request.uri().path().to_owned(),
            request.uri().query().unwrap_or("").to_owned(),
        );
        if request.method() == "POST" && path.starts_with("/apis/events.k8s.io/v1/namespaces/") {
            let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20)
                .await
                .unwrap();
            let event: Value = serde_json::from_slice(&body).unwrap();
            let mut state = self.lock();
            let name = |event: &Value| event["metadata"]["name"].clone();
            return Ok(if state.refuse_events {
                status(403, "events is forbidden")
            } else if state.posted.iter().any(|other| name(other) == name(&event)) {
                state.refused_events += 1;
                status(409, "already exists")
            } else {
                state.posted.push(event.clone());
                answer(201, &event)
            });
        }
        if request.method() == "GET"
            && let Some((collection, name)) = path.rsplit_once('/')
            && let Some((Kind::Services, Some(namespace))) = place(collection)
        {
            let mut state = self.lock();
            state.asked.push(Asked {
                kind: Kind::Services,
                verb: Verb::Get,
                namespace: Some(namespace.clone()),
                query,
                selector: None,
                at: Instant::now(),
            });
            let found = state
                .objects
                .get(&(Kind::Services, namespace, name.to_owned()));
            return Ok(found.map_or_else(|| status(404, "not found"), |found| answer(200, found)));
        }
        if let Some(name) = path.strip_prefix("/api/v1/namespaces/")
            && !name.contains('/')
        {
            let metadata = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": name}});
            return Ok(match self.lock().absent.contains(name) {
                true => status(404, "not found"),
                false => answer(200, &metadata),
            });
        }
        let Some((kind, namespace)) = place(&path).filter(|_| request.method() == "GET") else {
            self.lock()
                .complaints
                .push(format!("{} {path}", request.method()));
            return Ok(status(404, "no such path"));
        };
        let parameter = |name: &str| {
            let pair = query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            pair.filter(|value| !value.is_empty()).map(decoded)
        };
        let selector = parameter("labelSelector").or_else(|| parameter("fieldSelector"));
        let token = parameter("continue");
        let initial = parameter("sendInitialEvents").is_some();
        let verb = match (parameter("watch").is_some(), &token) {
            (true, _) if initial && self.lock().streams => Verb::List,
            (true, _) if initial => Verb::Stream,
            (true, _) => Verb::Watch,
            (false, Some(_)) => Verb::More,
            (false, None) => Verb::List,
        };
        let accept = request
            .headers()
            .get("accept")
            .map_or("", |it| it.to_str().unwrap())
            .to_owned();
        {
            let mut state = self.lock();
            state.asked.push(Asked {
                kind,
                verb,
                namespace: namespace.clone(),
                query: query.clone(),
                selector: selector.clone(),
                at: Instant::now(),
            });
            let of = |namespace| (kind, namespace);
            if verb != Verb::Stream && state.forbidden.contains(&of(namespace.clone())) {
                return Ok(status(
                    403,
                    "forbidden: User \"ebbtide\" cannot list resource",
                ));
            }
            if kind == Kind::Pods && !accept.contains("as=PartialObjectMetadata") {
                state.complaints.push(format!(
                    "Pods whole, not only their metadata: {path}, Accept: {accept}"
                ));
                return Ok(status(406, "only metadata"));
            }
        }
        self.shared.notify();
        let mut moved = self.shared.moved.subscribe();
        let fault = loop {
            let fault = self.lock().faults.get(&(kind, verb)).copied();
            match fault {
                Some(Fault::Wait) => _ = moved.changed().await,
                fault => break fault,
            }
        };
        match fault {
            Some(Fault::Status(code)) => {
                let what = if kind == Kind::Pods {
                    "pods"
                } else {
                    "services"
                };
                return Ok(status(
                    code,
                    &format!("{what} is forbidden: User \"ebbtide\" cannot list resource"),
                ));
            }
            Some(Fault::Half) if verb == Verb::Watch => return Ok(Response::new(Body::empty())),
            Some(Fault::Drop) => return Err(std::io::Error::other("as ordered")),
            _ => {}
        }
        match verb {
            Verb::Stream => Ok(status(
                422,
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
                 WatchList feature gate is enabled",
            )),
            Verb::Get => unreachable!(),
            Verb::Watch => Ok(self.watch(
                kind,
                namespace,
                selector,
                &parameter("resourceVersion").unwrap_or_default(),
            )),
            Verb::List if initial => {
                let whole = self.watch_all(kind, namespace, selector);
                Ok(if fault == Some(Fault::Half) {
                    Response::new(Body::from("{\"type\":\"ADDED\",\"obj"))
                } else {
                    whole
                })
            }
            Verb::List | Verb::More => {
                let limit = parameter("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
                let whole = self.list(
                    kind,
                    namespace.as_deref(),
                    selector.as_deref(),
                    limit,
                    token,
                );
                Ok(if fault == Some(Fault::Half) {
                    half(whole).await
                } else {
                    whole
                })
            }
        }
    }

    fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        selector: Option<&str>,
        limit: usize,
        token: Option<String>,
    ) -> Response<Body> {
        let mut state = self.lock();
        let (version, mut items) = match token {
            Some(token) => match state.pages.remove(&token) {
                Some(rest) => rest,
                None => return status(410, "The provided continue parameter is too old"),
            },
            None => {
                let listed = state.objects.iter().filter(|((of, at, _), object)| {
                    *of == kind
                        && namespace.is_none_or(|namespace| namespace == at)
                        && selector.is_none_or(|selector| selects(selector, object))
                });
                (
                    state.version,
                    listed
                        .map(|(_, object)| shown(kind, object, true))
                        .collect(),
                )
            }
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if items.len() > limit {
            let rest = items.split_off(limit);
            let token = format!("page{}", state.asked.len());
            metadata["continue"] = token.clone().into();
            metadata["remainingItemCount"] = rest.len().into();
            state.pages.insert(token, (version, rest));
        }
        let (api_version, list) = match kind {
            Kind::Services => ("v1", "ServiceList"),
            Kind::Slices => ("discovery.k8s.io/v1", "EndpointSliceList"),
            Kind::Pods => ("meta.k8s.io/v1", "PartialObjectMetadataList"),
        };
        answer(
            200,
            &json!({"apiVersion": api_version, "kind": list, "metadata": metadata, "items": items}),
        )
    }

    /// All objects, the mark of their end, and then the events.
    fn watch_all(
        &self,
        kind: Kind,
        namespace: Option<String>,
        selector: Option<String>,
    ) -> Response<Body> {
        let mut text = String::new();
        let state = self.lock();
        for ((of, at, _), object) in &state.objects {
            if *of == kind
                && namespace.as_ref().is_none_or(|namespace| namespace == at)
                && selector
                    .as_ref()
                    .is_none_or(|selector| selects(selector, object))
            {
                let object = shown(kind, object, false);
                text += &format!("{}\n", json!({"type": "ADDED", "object": object}));
            }
        }
        let mut end = bookmark(kind, &state.version.to_string());
        end["object"]["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        text += &format!("{end}\n");
        let version = state.version.to_string();
        drop(state);
        let events = self.watch(kind, namespace, selector, &version);
        let begin = stream::iter([Ok::<_, axum::Error>(Bytes::from(text))]);
        let rest = events.into_body().into_data_stream();
        Response::new(Body::from_stream(futures::StreamExt::chain(begin, rest)))
    }

    fn watch(
        &self,
        kind: Kind,
        namespace: Option<String>,
        selector: Option<String>,
        version: &str,
    ) -> Response<Body> {
        let mut state = self.lock();
        let Ok(version) = version.parse::<u64>() else {
            state
                .complaints
                .push(format!("a watch of {kind:?} from {version:?}"));
            return status(400, "resourceVersion");
        };
        if state
            .forgotten
            .get(&kind)
            .is_some_and(|forgotten| version <= *forgotten)
        {
            if state.gone_by_status {
                return status(410, "too old resource version");
            }
            return Response::new(Body::from(format!("{}\n", gone())));
        }
        *state.open.entry(kind).or_default() += usize::from(!is_second(kind, selector.as_deref()));
        state.watches += 1;
        let reader = Reader {
            api: self.clone(),
            kind,
            namespace,
            selector,
            shown: BTreeSet::new(),
            // Orders are for the watches that are open when the order is given.
            orders_from: state.log.len(),
            from: version,
            next: 0,
            moved: self.shared.moved.subscribe(),
            over: false,
        };
        drop(state);
        self.shared.notify();
        Response::new(Body::from_stream(stream::unfold(reader, Reader::read)))
    }
}

/// One open connection.
struct Open(Api);

impl Open {
    fn new(api: &Api) -> Self {
        api.lock().connections += 1;
        Self(api.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().connections -= 1;
        self.0.shared.notify();
    }
}

/// One open watch.
struct Reader {
    api: Api,
    kind: Kind,
    namespace: Option<String>,
    selector: Option<String>,
    /// The objects that the selector selected so far, by namespace and name.
    shown: BTreeSet<(String, String)>,
    orders_from: usize,
    from: u64,
    next: usize,
    moved: watch::Receiver<u64>,
    over: bool,
}

enum Next {
    Send(Result<Bytes, std::io::Error>),
    Wait,
    Never,
    End,
}

impl Reader {
    async fn read(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        loop {
            match self.look() {
                Next::Send(bytes) => return Some((bytes, self)),
                Next::Wait => _ = self.moved.changed().await,
                Next::Never => std::future::pending().await,
                Next::End => return None,
            }
        }
    }

    /// All that is ready, as one piece.
    fn look(&mut self) -> Next {
        if std::mem::take(&mut self.over) {
            return Next::Send(Err(std::io::Error::other("as ordered")));
        }
        self.moved.mark_unchanged();
        let api = self.api.clone();
        let state = api.lock();
        if state.held.contains(&self.kind) {
            return Next::Wait;
        }
        let mut text = String::new();
        while let Some(entry) = state.log.get(self.next) {
            let number = self.next;
            let order = match &entry.what {
                _ if entry.kind != self.kind => None,
                What::Event(of, object) => {
                    let here = self.namespace.is_none() || self.namespace == entry.namespace;
                    let (_, at, name) = key_of(self.kind, object);
                    let selects = |selector: &String| selects(selector, object);
                    let selected = *of != "DELETED" && self.selector.as_ref().is_none_or(selects);
                    let before = match selected {
                        true => !self.shown.insert((at, name)),
                        false => self.shown.remove(&(at, name)),
                    };
                    // An object that a selector no longer selects is deleted for the watch.
                    let of = match (&self.selector, selected, before) {
                        (None, ..) => Some(*of),
                        (Some(_), true, false) => Some("ADDED"),
                        (Some(_), true, true) => Some("MODIFIED"),
                        (Some(_), false, true) => Some("DELETED"),
                        (Some(_), false, false) => None,
                    };
                    if let Some(of) = of.filter(|_| here && entry.version > self.from) {
                        let event = json!({"type": of, "object": shown(self.kind, object, false)});
                        text += &format!("{event}\n");
                    }
                    None
                }
                What::Order(_) if number < self.orders_from => None,
                What::Order(Order::Raw(raw)) => {
                    text += raw;
                    None
                }
                What::Order(order) => Some(order),
            };
            if order.is_some() && !text.is_empty() {
                break;
            }
            self.next += 1;
            match order {
                Some(Order::Silence) => return Next::Never,
                Some(Order::End) => return Next::End,
                Some(_) => {
                    self.over = true;
                    return Next::Send(Ok(Bytes::from_static(b"{\"type\":\"MODI")));
                }
                None => {}
            }
        }
        if text.is_empty() {
            Next::Wait
        } else {
            Next::Send(Ok(text.into()))
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.api.lock();
        state.watches -= 1;
        if let Some(open) = state.open.get_mut(&self.kind) {
            *open -= usize::from(!is_second(self.kind, self.selector.as_deref()));
        }
        drop(state);
        self.api.shared.notify();
    }
}

/// Sets or removes the label of a claim.
fn set_label(slice: &mut Value, claim: Value) {
    let Some(labels) = slice["metadata"]["labels"].as_object_mut() else {
        return;
    };
    match claim {
        Value::Null => _ = labels.remove(CLAIM),
        claim => _ = labels.insert(CLAIM.to_owned(), claim),
    }
}

fn kind_of(object: &Value) -> Kind {
    match object["kind"].as_str().unwrap() {
        "Service" => Kind::Services,
        "EndpointSlice" => Kind::Slices,
        "Pod" => Kind::Pods,
        other => panic!("{other}"),
    }
}

fn key_of(kind: Kind, object: &Value) -> (Kind, String, String) {
    let part = |name: &str| {
        object["metadata"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (kind, part("namespace"), part("name"))
}

/// An object as the real server shows it: items of a typed list have no type, and a Pod is only its
/// metadata.
fn shown(kind: Kind, object: &Value, listed: bool) -> Value {
    let mut object = object.clone();
    match kind {
        Kind::Pods => json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"].take(),
        }),
        Kind::Services | Kind::Slices => {
            if let Some(fields) = object.as_object_mut().filter(|_| listed) {
                fields.remove("apiVersion");
                fields.remove("kind");
            }
            object
        }
    }
}

fn bookmark(kind: Kind, version: &str) -> Value {
    let (api_version, of) = match kind {
        Kind::Services => ("v1", "Service"),
        Kind::Slices => ("discovery.k8s.io/v1", "EndpointSlice"),
        Kind::Pods => ("meta.k8s.io/v1", "PartialObjectMetadata"),
    };
    let metadata = json!({"resourceVersion": version});
    let object = json!({"apiVersion": api_version, "kind": of, "metadata": metadata});
    json!({"type": "BOOKMARK", "object": object})
}

/// Whether this is the second watch of its kind for a proxy whose listener names a Service: that of
/// the named Service, beside the watch of claimed ones, and those of claimed Services' slices, beside
/// the watch of the named one's.
fn is_second(kind: Kind, selector: Option<&str>) -> bool {
    let selector = selector.unwrap_or_default();
    match kind {
        Kind::Services => selector.starts_with("metadata.name="),
        Kind::Slices => selector.contains(CLAIM),
        Kind::Pods => false,
    }
}

/// Whether a selector selects an object: `label=value`, `label in (a,b)`, `label`,
/// `metadata.name=x` or `spec.nodeName=x`, and after a last comma `label!=value`.
fn selects(selector: &str, object: &Value) -> bool {
    if let Some((not, value)) = selector.split_once("!=") {
        let (selector, label) = not.rsplit_once(',').unwrap();
        return object["metadata"]["labels"][label] != value && selects(selector, object);
    }
    let (name, values) = match selector.split_once(" in (") {
        Some((name, set)) => (name, set.trim_end_matches(')').split(',').collect()),
        None => match selector.split_once('=') {
            Some((name, value)) => (name, vec![value]),
            None => (selector, Vec::new()),
        },
    };
    let found = match name {
        "metadata.name" => &object["metadata"]["name"],
        "spec.nodeName" => &object["spec"]["nodeName"],
        label => &object["metadata"]["labels"][label],
    };
    let is_any = values.is_empty() && !found.is_null();
    is_any || found.as_str().is_some_and(|found| values.contains(&found))
}

/// A value of a query without its escapes.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'+', after) => (b' ', after),
            (b'%', [a, b, after @ ..]) => {
                let digits = String::from_utf8(vec![*a, *b]).unwrap();
                (u8::from_str_radix(&digits, 16).unwrap(), after)
            }
            (byte, after) => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).unwrap()
}

/// The kind and the namespace that a path names.
fn place(path: &str) -> Option<(Kind, Option<String>)> {
    let (group, rest) = match path.strip_prefix("/api/v1/") {
        Some(rest) => ("", rest),
        None => (
            "discovery",
            path.strip_prefix("/apis/discovery.k8s.io/v1/")?,
        ),
    };
    let (namespace, resource) = match rest.strip_prefix("namespaces/") {
        Some(rest) => rest
            .split_once('/')
            .map(|(namespace, resource)| (Some(namespace.to_owned()), resource))?,
        None => (None, rest),
    };
    let kind = match (group, resource) {
        ("", "services") => Kind::Services,
        ("", "pods") => Kind::Pods,
        ("discovery", "endpointslices") => Kind::Slices,
        _ => return None,
    };
    Some((kind, namespace))
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    let response = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    response.body(Body::from(body.to_string())).unwrap()
}

fn status(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    });
    answer(code, &body)
}

fn gone() -> Value {
    let object = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (100)", "reason": "Expired", "code": 410,
    });
    json!({"type": "ERROR", "object": object})
}

async fn half(whole: Response<Body>) -> Response<Body> {
    let (head, body) = whole.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let pieces = [
        Ok(bytes.slice(..bytes.len() / 2)),
        Err(std::io::Error::other("as ordered")),
    ];
    Response::from_parts(head, Body::from_stream(stream::iter(pieces)))
}

//! An API server that stores Services, EndpointSlices and Pods and reports them as the real one
//! does. It misbehaves on command. It records each request. A request that Ebbtide must never make
//! is a complaint, and a complaint fails the test.

// The bench `scale` takes this file in by its path, and so its children, too.
#[path = "api/answers.rs"]
mod answers;
#[path = "api/objects.rs"]
pub mod objects;
#[path = "api/reader.rs"]
mod reader;
#[path = "api/serve.rs"]
mod serve;
#[path = "api/written.rs"]
mod written;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use objects::{bookmark, gone, key_of, kind_of, set_label};
use serve::acceptor;
pub use serve::certificate;
use written::Patched;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Services,
    Slices,
    Pods,
    /// Only those that a listener names.
    Secrets,
    /// Only those that a Service names.
    ConfigMaps,
    /// Only where they are served.
    Ingresses,
    /// IngressClasses, where Ingress objects are served.
    Classes,
    /// Objects of the Gateway API, where they are served. Its other kinds are not installed.
    GatewayClasses,
    Gateways,
    HttpRoutes,
    Policies,
}

pub const CLAIM: &str = "service.kubernetes.io/service-proxy-name";

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
    /// Whether a streamed list is taken for a plain watch, as by a server that does not know of them.
    ignores_streams: bool,
    /// Namespaces, and kinds of objects in them, that the user may not read.
    forbidden: BTreeSet<(Kind, Option<String>)>,
    /// Verb, resource and name of what a review of access does not allow.
    denied: BTreeSet<(String, String, String)>,
    /// Namespaces that do not exist.
    absent: BTreeSet<String>,
    /// The labels and the spec of nodes, by name; `None`: not answered yet. The others may not be read.
    nodes: HashMap<String, Option<(Value, Value)>>,
    /// By name.
    leases: HashMap<String, Value>,
    releases: usize,
    patched: Vec<Patched>,
    /// The status code that writes of statuses get.
    patches_get: Option<u16>,
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
            _ => state.put(object),
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

    /// Reviews of access do not allow this. Requests are answered all the same.
    pub fn deny(&self, verb: &str, resource: &str, name: &str) {
        let denied = (verb.into(), resource.into(), name.into());
        self.lock().denied.insert(denied);
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

    /// From now on, a streamed list is a watch without a beginning.
    pub fn ignore_streams(&self) {
        self.lock().ignores_streams = true;
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

    /// From now on, this node may be read, and has these labels and this spec. `None`: the answer waits.
    pub fn node(&self, name: &str, fields: Option<(Value, Value)>) {
        self.lock().nodes.insert(name.to_owned(), fields);
        self.shared.notify();
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

/// Whether this is the second watch of its kind for a proxy whose listener names a Service: that of
/// the named Service, beside the watch of claimed ones, and those of claimed Services' slices, beside
/// the watch of the named one's.
fn is_second(kind: Kind, selector: Option<&str>) -> bool {
    let selector = selector.unwrap_or_default();
    match kind {
        Kind::Services => selector.starts_with("metadata.name="),
        Kind::Slices => selector.contains(CLAIM),
        _ => false,
    }
}

//! The configuration as the program uses it: every value is checked and has its unit in its type.
//!
//! [`Config::load`] (for a text [`Config::parse`]) is the only way to get one from a file. The
//! defaults are here and nowhere else. Reading the file again at SIGHUP is left to `app.rs`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::tls::Tls;
use crate::contract::inside::Inside;
use crate::contract::listener::FoundBy;
use crate::contract::name::ObjectName;
use crate::contract::policy::{NonIdempotent, PortRef, Protocol, Scope, Transport};

/// A whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where Services, EndpointSlices and Pods come from.
    pub discovery: Discovery,
    /// The IP addresses on which the nodePorts of claimed Services are bound. Empty: no nodePort is
    /// bound.
    pub node_port_addresses: Vec<std::net::IpAddr>,
    /// Which Services are claimed.
    pub claim: Claim,
    /// How the other addresses of claimed Services are served. `None`: they are not.
    pub addresses: Option<Addresses>,
    /// The explicit listeners, and those of Ingress objects.
    pub listeners: Vec<ListenerConfig>,
    /// Which Ingress objects are served. `None`: none.
    pub ingress: Option<Ingress>,
    /// Which Gateways are served. `None`: none.
    pub gateway: Option<Gateway>,
    /// When pods that are deleted are told to stop. `None`: no call of theirs is answered.
    pub gate: Option<Gate>,
    /// Where the admin pages are served.
    pub admin: SocketAddr,
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// Bounds on memory and connections.
    pub limits: Limits,
    /// When a request is tried again.
    pub retry: Retry,
    /// Peers whose `X-Forwarded-*` and PROXY headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the access log is written.
    pub access_log: bool,
    /// What `/metrics` shows of each Service port.
    pub per_service: PerService,
    /// Where clients inside the cluster come from, as far as the configuration says.
    pub inside: Inside,
    /// This node.
    pub node: Node,
    /// The name of the Lease whose holder writes statuses, from the environment variable `LEASE_NAME`.
    pub lease: String,
}

/// This node, as slices name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name, from the environment variable `NODE_NAME`. `None`: traffic policies are not served,
    /// and no topology hint counts.
    pub name: Option<String>,
    /// Its zone, from the environment variable `NODE_ZONE`. If absent, the API server is asked.
    pub zone: Option<String>,
}

/// Which Services are claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Also those without a label that names a proxy: there is no kube-proxy.
    pub all: bool,
    /// The value of the label `service.kubernetes.io/service-proxy-name` that claims a Service.
    pub proxy_name: String,
}

impl Default for Claim {
    fn default() -> Self {
        Self {
            all: false,
            proxy_name: "ebbtide".to_owned(),
        }
    }
}

/// Which Ingress objects are served. Their listeners are among [`Config::listeners`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// Those of this class.
    pub class: String,
    /// And those whose IngressClass has this `spec.controller`.
    pub controller: String,
    /// Whether annotations of ingress-nginx count.
    pub nginx_keys: bool,
    /// What their status says.
    pub publish: Publish,
    /// The field `Server` of each answer, in place of the application's.
    pub server: Option<String>,
}

impl Ingress {
    /// The defaults, for a class.
    pub fn of(class: &str) -> Self {
        Self {
            class: class.to_owned(),
            controller: "ebbtide.dev/ingress".to_owned(),
            nginx_keys: false,
            publish: Publish::Addresses(Vec::new()),
            server: None,
        }
    }
}

/// What the status of Ingress objects says of where they are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// These IP addresses and names of hosts. None: no status is written.
    Addresses(Vec<String>),
    /// What the status of this Service says.
    Service(ObjectName),
}

/// Which Gateways are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Those whose class names this controller.
    pub controller: String,
    /// Each gets one of these addresses. Empty: all share the addresses of the node.
    pub addresses: Vec<IpNet>,
}

/// The gate: it answers the `preStop` calls of this node's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Where it listens. Empty: the node's addresses are not known, and it listens nowhere.
    pub addresses: Vec<std::net::IpAddr>,
    /// The port of pods' calls, and of other instances.
    pub port: u16,
    /// The headless Service of all instances.
    pub service: Option<ObjectName>,
    /// Other instances, by the addresses of their gates.
    pub peers: Vec<SocketAddr>,
    /// The file with the key that all instances share.
    pub key: Option<PathBuf>,
}

/// How cluster IPs, external IPs and load balancer addresses are served: `ebbtide net` leads their
/// clients to one port of this proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct Addresses {
    /// This node's own addresses: one of each family that is served. Empty: they are not known.
    pub nodes: Vec<std::net::IpAddr>,
    /// Whether endpoints see their clients' addresses, where a Service says nothing else.
    pub keeps_source: bool,
    /// The port on these addresses.
    pub port: u16,
    /// The socket of `ebbtide net`.
    pub socket: PathBuf,
}

/// What `/metrics` shows of each Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PerService {
    /// Counters, gauges and histograms.
    All,
    /// Counters and gauges.
    Counters,
    /// Nothing: only what concerns the whole process.
    Off,
}

/// The source of truth.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// A folder of manifests.
    Files {
        /// The folder.
        path: PathBuf,
    },
    /// The fixed endpoints of `ebbtide proxy --to`: one Service, which the listener names, without
    /// changes.
    Static {
        /// The endpoints.
        to: Vec<SocketAddr>,
    },
    /// A Kubernetes API server.
    Kubernetes(Kubernetes),
}

/// The API server as the source of truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Kubernetes {
    /// Namespaces to watch. Empty: all.
    pub namespaces: Vec<String>,
    /// The kubeconfig file. `None`: the pod's service account, then `KUBECONFIG`, then the file in
    /// the home folder.
    pub kubeconfig: Option<PathBuf>,
    /// Which pods are watched.
    pub pods: PodWatch,
    /// Where the last table is kept for a restart without the API server. `None`: nowhere.
    pub snapshot: Option<PathBuf>,
    /// How often that file may be written. This is not a field of the file.
    pub save_every: Duration,
    /// How long the first table may wait for all namespaces. Then those that are known are served.
    /// This is not a field of the file.
    pub patience: Duration,
    /// How long the slices of a namespace may wait for its first pods. Then they are used without
    /// them. This is not a field of the file: the pods of a large cluster take the API server longer
    /// than a start may take.
    pub pods_patience: Duration,
    /// A connection to the API server without a byte for this long is closed. This is not a field
    /// of the file: bookmarks come once a minute, so a shorter time would break healthy watches,
    /// and a longer time would miss deletions for longer.
    pub silence: Duration,
}

/// Which pods are watched. Only their metadata is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodWatch {
    /// All pods of the namespaces in use: a drain begins with the deletion of its pod.
    All,
    /// The pods of this node. For others, a drain begins when a slice shows it.
    Node(String),
    /// None: each drain begins when a slice shows it.
    None,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            kubeconfig: None,
            pods: PodWatch::All,
            snapshot: None,
            save_every: Duration::from_secs(10),
            patience: Duration::from_secs(10),
            pods_patience: Duration::from_secs(3),
            silence: Duration::from_secs(75),
        }
    }
}

impl Discovery {
    /// The source's name on the admin pages.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Files { .. } => "files",
            Self::Static { .. } => "static",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// An explicit listener.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerConfig {
    /// The name in logs and on the admin pages. Unique.
    pub name: String,
    /// The address to bind. Port 0: any free port.
    pub address: SocketAddr,
    /// The Service to serve.
    pub service: ObjectName,
    /// Which port of the Service.
    pub port: PortRef,
    /// The protocol. `None`: the Service port's own.
    pub protocol: Option<Protocol>,
    /// Whether clients must send a PROXY header.
    pub proxy_protocol: bool,
    /// Whether HTTP CONNECT is forwarded.
    pub allow_connect: bool,
    /// How TLS ends here. `None`: what comes is passed on as it is.
    pub tls: Option<Tls>,
    /// Clients of TLS that ask for some names are passed on to other Services, as they are.
    pub sni: Vec<Passthrough>,
    /// Who may connect. Empty: everybody. This is not a field of the file: a Service's
    /// `loadBalancerSourceRanges` sets it.
    pub source_ranges: Vec<IpNet>,
    /// Which traffic policy of the Service counts. This is not a field of the file: a listener that
    /// the configuration names reaches every endpoint.
    pub scope: Option<Scope>,
    /// Whether load balancers ask here for the Service's endpoints on this node. This is not a field
    /// of the file.
    pub health_check: bool,
    /// What goes where routes say. Then `service` is what the routes belong to, and `port` distinguishes
    /// its listeners. This is not a field of the file.
    pub routes: Option<FoundBy>,
}

/// Where clients of TLS are passed on to that ask for some names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passthrough {
    /// The names, each of which may begin with `*.`.
    pub hosts: Vec<String>,
    /// The Service to serve.
    pub service: ObjectName,
    /// Which port of the Service.
    pub port: PortRef,
}

impl ListenerConfig {
    /// The Services that it names.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        let own = self.routes.is_none().then_some(&self.service);
        own.into_iter().chain(self.sni.iter().map(|it| &it.service))
    }

    /// What its clients speak over.
    pub fn transport(&self) -> Transport {
        self.protocol.map_or(Transport::Tcp, Protocol::transport)
    }
}

/// How long each step may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// For one connect to an endpoint.
    pub connect: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// For one request with all its attempts. `None`: no bound.
    pub request: Option<Duration>,
    /// For an HTTP client connection without a byte in either direction.
    pub client_idle: Duration,
    /// For a TCP connection or a tunnel without a byte in either direction. `None`: no bound.
    pub tunnel_idle: Option<Duration>,
    /// For a pooled connection to an endpoint without a request.
    pub upstream_idle: Duration,
    /// For a connection to an endpoint that acknowledges nothing of what was sent to it.
    pub upstream_silence: Duration,
    /// How long a request or connection waits for a usable endpoint. Zero: no wait.
    pub hold: Duration,
    /// How long a drain may take if the pod's grace period is not known.
    pub drain: Duration,
    /// After SIGTERM: how long connections are still accepted.
    pub lame_duck: Duration,
    /// After `lame_duck`: how long clients may finish.
    pub shutdown: Duration,
    /// For a UDP session without a datagram in either direction.
    pub udp_idle: Duration,
}

/// Bounds on memory and connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Client connections at the same time, over all workers.
    pub connections: usize,
    /// Bytes of a request's or response's head.
    pub head_size: usize,
    /// Fields of a head.
    pub headers: usize,
    /// Bytes of a request's body that are kept for a replay.
    pub replay_body: usize,
    /// Requests and connections that may wait for an endpoint at the same time, for each Service
    /// port.
    pub held: usize,
    /// The longest hold time that a Service's annotation may ask for.
    pub hold_timeout: Duration,
    /// UDP sessions at the same time, over all workers.
    pub udp_sessions: usize,
}

/// When a request is tried again (contract 3.7).
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Tries of one request in all. Losses on leaving endpoints do not count.
    pub attempts: u32,
    /// Retries as a share of recent requests, in percent.
    pub budget_percent: u32,
    /// Retries a second that are always allowed.
    pub budget_floor: u32,
    /// When POST and PATCH may be sent twice.
    pub non_idempotent: NonIdempotent,
}

impl Config {
    /// A configuration with all defaults and no listener.
    pub fn new(discovery: Discovery) -> Self {
        Self {
            discovery,
            node_port_addresses: Vec::new(),
            claim: Claim::default(),
            addresses: None,
            listeners: Vec::new(),
            ingress: None,
            gateway: None,
            gate: None,
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9901)),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            retry: Retry::default(),
            trusted_proxies: Vec::new(),
            access_log: false,
            per_service: PerService::All,
            inside: Inside::default(),
            node: Node::default(),
            lease: "ebbtide".to_owned(),
        }
    }

    /// The Services that listeners name.
    pub fn named_services(&self) -> BTreeSet<ObjectName> {
        let named = self.listeners.iter().flat_map(ListenerConfig::services);
        named.cloned().collect()
    }

    /// The Secrets that listeners name.
    pub fn named_secrets(&self) -> BTreeSet<ObjectName> {
        let tls = self.listeners.iter().filter_map(|it| it.tls.as_ref());
        tls.flat_map(|it| it.secrets.iter().cloned()).collect()
    }

    /// Whether endpoints see their clients' addresses, where a Service says nothing else.
    pub fn keeps_source(&self) -> bool {
        self.addresses.as_ref().is_some_and(|it| it.keeps_source)
    }

    /// What can be in force, but cannot be meant. Each text names the field and the cure.
    pub fn warnings(&self) -> Vec<String> {
        let required = self.listeners.iter().filter(|it| it.proxy_protocol);
        let nobody = required.filter(|_| self.trusted_proxies.is_empty());
        let warning = |listener: &ListenerConfig| {
            format!(
                "listener {}: proxyProtocol: required refuses every client, because trustedProxies \
                 is empty; add the load balancer's addresses to trustedProxies",
                listener.name
            )
        };
        let mut warnings: Vec<String> = nobody.map(warning).collect();
        if self
            .addresses
            .as_ref()
            .is_some_and(|it| it.nodes.is_empty())
        {
            warnings.push(
                "services.addresses: on serves no address, because the node's own addresses are not \
                 known; set the environment variable NODE_IPS, as the manifests in deploy/ do, or \
                 services.nodeAddresses"
                    .into(),
            );
        }
        if let Some(gate) = &self.gate {
            if gate.addresses.is_empty() {
                warnings.push(
                    "gate listens nowhere, because the node's own addresses are not known; set the environment \
                     variable NODE_IPS, as the manifests in deploy/ do, or gate.addresses"
                        .into(),
                );
            } else if self.addresses.is_none() {
                warnings.push(
                    "gate: no call of a pod arrives, because services.addresses is off; set services.addresses: \
                     on, and run `ebbtide net`"
                        .into(),
                );
            }
        }
        if self.claim.all && self.addresses.is_none() {
            warnings.push(
                "services.claim: all claims the cluster IPs of all Services, and nobody serves them; set \
                 services.addresses: on, and run `ebbtide net`"
                    .into(),
            );
        }
        warnings
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            connect: s(3),
            head: s(10),
            request: None,
            client_idle: s(660),
            tunnel_idle: None,
            upstream_idle: s(60),
            upstream_silence: s(8),
            hold: s(10),
            drain: s(30),
            lame_duck: s(0),
            shutdown: s(30),
            // Clients that keep a session open send at least once in 30 s, which is what Linux's
            // conntrack gives a flow without an answer; it gives 120 s after answers.
            udp_idle: s(60),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            head_size: 16 << 10,
            headers: 100,
            replay_body: 64 << 10,
            held: 1024,
            hold_timeout: Duration::from_secs(600),
            udp_sessions: 8192,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            budget_percent: 20,
            budget_floor: 10,
            non_idempotent: NonIdempotent::Never,
        }
    }
}

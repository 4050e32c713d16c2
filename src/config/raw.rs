//! The configuration file's shape, as serde reads it and `ebbtide schema` prints it.
//!
//! Values whose form serde cannot know (durations, sizes, addresses) are strings here.
//! [`super::checked`] reads them and fills in defaults. The doc comments are the descriptions of
//! the schema. No value is checked here.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_saphyr::{Error as Yaml, Location, MessageFormatter};

use crate::config::expected::{Lacks, any_of};
use crate::config::fault::Fault;
use crate::config::places::Aim;
use crate::config::value;

/// Configuration of Ebbtide, a connection-draining proxy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Ebbtide configuration")]
pub(super) struct Config {
    /// Where Services, EndpointSlices and Pods come from. Exactly one of `files` and `kubernetes`.
    pub discovery: Option<Discovery>,
    /// What a claim takes over, besides nodePorts.
    pub services: Option<Services>,
    /// Binds the nodePort of every claimed Service. If absent, no nodePort is bound.
    pub node_ports: Option<NodePorts>,
    /// Explicit listeners. Each serves one port of one Service, claimed or not.
    pub listeners: Option<Vec<Listener>>,
    /// Serves Ingress objects. If absent, they are not served.
    pub ingress: Option<Ingress>,
    /// Serves the Gateway API. If absent, it is not served.
    pub gateway: Option<Gateway>,
    /// Answers the `preStop` calls of this node's pods when every proxy has let go of them. If absent, no
    /// pod's call is answered.
    pub gate: Option<Gate>,
    /// The admin pages: health, metrics, status.
    pub admin: Option<Admin>,
    /// Worker threads, at least 1. If absent: one for each available core.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: Option<u64>,
    /// How long each step may take.
    pub timeouts: Option<Timeouts>,
    /// Bounds on memory and connections.
    pub limits: Option<Limits>,
    /// When a request is tried again.
    pub retry: Option<Retry>,
    /// CIDRs of the peers whose `X-Forwarded-*` and PROXY headers are believed.
    #[schemars(extend("default" = []))]
    pub trusted_proxies: Option<Vec<String>>,
    /// One line for each HTTP exchange or TCP connection, on standard output.
    #[schemars(extend("default" = "off", "enum" = ["off", "json"]))]
    pub access_log: Option<String>,
    /// What `/metrics` shows.
    pub metrics: Option<Metrics>,
}

/// What `/metrics` shows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metrics {
    /// The metrics of each Service port that has had a client: all of them, all without histograms,
    /// or none.
    #[schemars(extend("default" = "all", "enum" = ["all", "counters", "off"]))]
    pub per_service: Option<String>,
}

/// The source of Services, EndpointSlices and Pods. Exactly one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Discovery {
    /// A folder of manifests.
    pub files: Option<Files>,
    /// The Kubernetes API.
    pub kubernetes: Option<Kubernetes>,
    /// A file that keeps the last table of `kubernetes`, so that a restart can serve it while the
    /// API server is gone. Relative to the configuration file's folder. If absent: none is kept.
    pub snapshot: Option<String>,
}

/// A folder of manifests. Its objects stand for those of an API server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Files {
    /// The folder with `*.yaml`, `*.yml` and `*.json` files: Service, EndpointSlice, Pod. Relative
    /// to the configuration file's folder.
    pub path: String,
}

/// The Kubernetes API.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kubernetes {
    /// Namespaces to watch. Empty: all.
    #[schemars(extend("default" = []))]
    pub namespaces: Option<Vec<String>>,
    /// A kubeconfig file, relative to the configuration file's folder. If absent: the pod's service
    /// account, then `KUBECONFIG`, then the file in the home folder.
    pub kubeconfig: Option<String>,
    /// Whose metadata is watched: `all` pods of the namespaces in use, those of this `node`, or
    /// `none`. A drain of a pod that is not watched begins when an EndpointSlice shows it.
    #[schemars(extend("default" = "all", "enum" = ["all", "node", "none"]))]
    pub pods: Option<String>,
}

/// What a claim takes over, besides nodePorts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Services {
    /// Which Services are claimed: those with a label that names this proxy (`labelled`), or, where no
    /// kube-proxy runs, also those without a label that names a proxy (`all`).
    #[schemars(extend("default" = "labelled", "enum" = ["labelled", "all"]))]
    pub claim: Option<String>,
    /// The value of the label `service.kubernetes.io/service-proxy-name` that claims a Service.
    #[schemars(extend("default" = "ebbtide"))]
    pub proxy_name: Option<String>,
    /// Whether cluster IPs, external IPs and load balancer addresses of claimed Services are served.
    /// Needs `ebbtide net` on the node.
    #[schemars(extend("default" = "off", "enum" = ["off", "on"]))]
    pub addresses: Option<String>,
    /// This node's own addresses, at most one of each family. If absent: those in the environment
    /// variable `NODE_IPS`, separated by commas.
    pub node_addresses: Option<Vec<String>>,
    /// The ranges of the pods' addresses. Pods and the node itself, which connect to an external address
    /// or a nodePort, go by no traffic policy that is Local. If absent: the `spec.podCIDRs` of this
    /// node's Node object.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
    /// Which address an endpoint sees of a client that is a pod of this node: the client's own or the
    /// node's.
    #[schemars(extend("default" = "client", "enum" = ["client", "node"]))]
    pub source: Option<String>,
    /// The port on the node's addresses to which `ebbtide net` leads clients.
    #[schemars(extend("default" = 15001), range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The socket of `ebbtide net`. Relative to the configuration file's folder.
    #[schemars(extend("default" = "/run/ebbtide/net.sock"))]
    pub socket: Option<String>,
}

/// The listeners of nodePorts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodePorts {
    /// IP addresses on which nodePorts are bound.
    #[schemars(extend("default" = ["0.0.0.0", "::"]), length(min = 1))]
    pub addresses: Option<Vec<String>>,
}

/// Listeners for Ingress objects.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Ingress {
    /// The `ingressClassName` of the Ingress objects that are served.
    #[schemars(extend("default" = "ebbtide"))]
    pub class: Option<String>,
    /// IP addresses on which both ports are bound.
    #[schemars(extend("default" = ["0.0.0.0", "::"]), length(min = 1))]
    pub addresses: Option<Vec<String>>,
    /// The port without TLS. 0: any free port.
    #[schemars(extend("default" = 80), range(max = 65535))]
    pub http_port: Option<u16>,
    /// The port with TLS. 0: any free port.
    #[schemars(extend("default" = 443), range(max = 65535))]
    pub https_port: Option<u16>,
    /// The Secret, as `namespace/name`, with the certificate for clients that ask for no name or an unknown
    /// one. If absent: the certificate of the oldest Ingress.
    pub default_secret: Option<String>,
    /// The `spec.controller` of the IngressClasses whose Ingress objects are served, too.
    #[schemars(extend("default" = "ebbtide.dev/ingress"))]
    pub controller: Option<String>,
    /// Whose annotations count: `off` or `nginx` (those of ingress-nginx).
    #[schemars(extend("default" = "off", "enum" = ["off", "nginx"]))]
    pub keys: Option<String>,
    /// The IP addresses and host names in the status of the objects. If absent: `addresses`, if they are
    /// those of this node, else its own.
    pub publish: Option<Vec<String>>,
    /// The Service, as `namespace/name`, whose load balancer's addresses stand in the status of the
    /// objects instead.
    pub publish_service: Option<String>,
    /// The field `Server` of each answer of an application, in place of its own. If absent: as it comes.
    pub server: Option<String>,
}

/// Which Gateways are served.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    /// The `controllerName` of the GatewayClasses whose Gateways are served.
    #[schemars(extend("default" = "ebbtide.dev/gateway"))]
    pub controller_name: Option<String>,
    /// IP addresses and ranges, of which each Gateway gets one. If absent: all Gateways share the addresses
    /// of the node.
    #[schemars(extend("default" = []))]
    pub addresses: Option<Vec<String>>,
}

/// When a pod that is deleted is told to stop.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gate {
    /// IP addresses on which the gate listens, for the kubelet and for other instances. If absent: those of
    /// `services.nodeAddresses`.
    pub addresses: Option<Vec<String>>,
    /// The port of pods' `preStop` calls, and of other instances.
    #[schemars(extend("default" = 9902), range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The headless Service of all instances, as `namespace/name`. Needs `discovery.kubernetes`.
    pub service: Option<String>,
    /// Other instances by the addresses of their gates, `IP:port`, besides those of `service`.
    #[schemars(extend("default" = []))]
    pub peers: Option<Vec<String>>,
    /// The file with the key that all instances share, of 16 bytes or more. Relative to the configuration
    /// file's folder. If absent: other instances are believed without one.
    pub key: Option<String>,
}

/// A listener that serves one port of one Service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Listener {
    /// The listener's name in logs and on the admin pages. No two listeners have the same name.
    pub name: String,
    /// `IP:port` to bind. Port 0: any free port, which the log and the admin API show.
    pub address: String,
    /// The Service as `namespace/name`.
    pub service: String,
    /// The Service port's name or number.
    pub port: PortText,
    /// The protocol. If absent: the Service port's own. A UDP port needs `udp`.
    pub protocol: Option<Protocol>,
    /// Whether clients must send a PROXY header (v1 or v2).
    #[schemars(extend("default" = "off", "enum" = ["off", "required"]))]
    pub proxy_protocol: Option<String>,
    /// Whether HTTP CONNECT is forwarded.
    #[schemars(extend("default" = false))]
    pub allow_connect: Option<bool>,
    /// Ends the clients' TLS here. If absent: what comes is passed on as it is.
    pub tls: Option<Tls>,
    /// Clients of TLS that ask for some names (SNI) are passed on to other Services, encrypted as they
    /// are. All others are served by `service`.
    pub sni: Option<Vec<Passthrough>>,
}

/// Where clients of TLS are passed on to that ask for some names.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Passthrough {
    /// The names, such as `shop.example.com` or `*.example.com`.
    #[schemars(length(min = 1))]
    pub hosts: Vec<String>,
    /// The Service as `namespace/name`.
    pub service: String,
    /// The Service port's name or number.
    pub port: PortText,
}

/// How a listener speaks TLS with its clients. A client gets the certificate for exactly the name
/// that it asks for (SNI), else one for `*.` and the rest of that name, else the first.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Tls {
    /// Files with certificates. They are read again when they change.
    #[schemars(extend("default" = []))]
    pub certificates: Option<Vec<Pair>>,
    /// Secrets of type `kubernetes.io/tls` as `namespace/name`.
    #[schemars(extend("default" = []))]
    pub secrets: Option<Vec<String>>,
    /// The oldest version of TLS that is spoken.
    #[schemars(extend("default" = "1.2", "enum" = ["1.2", "1.3"]))]
    pub min_version: Option<String>,
    /// Whether clients need a certificate: `none` is asked for, it is `optional`, or `required`. If
    /// absent: `required` where `clientCa` is given, else `none`.
    #[schemars(extend("enum" = ["none", "optional", "required"]))]
    pub client_certificates: Option<String>,
    /// The file of the authorities (PEM) of clients' certificates, relative to the configuration
    /// file's folder. It is read again when it changes.
    pub client_ca: Option<String>,
}

/// A certificate and its key. Relative to the configuration file's folder.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pair {
    /// The certificate and its chain, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
}

/// The admin pages.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Admin {
    /// `IP:port` on which the admin pages are served, plain HTTP.
    #[schemars(extend("default" = "127.0.0.1:9901"))]
    pub address: Option<String>,
}

/// How long each step may take.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Timeouts {
    /// For one connect to an endpoint.
    #[schemars(extend("default" = "3s"))]
    pub connect: Option<DurationText>,
    /// From the first byte of a request's head to its last.
    #[schemars(extend("default" = "10s"))]
    pub head: Option<DurationText>,
    /// For one request with all its attempts. `none`: no bound.
    #[schemars(extend("default" = "none"))]
    pub request: Option<DurationText>,
    /// For an HTTP client connection without a byte in either direction.
    #[schemars(extend("default" = "11m"))]
    pub client_idle: Option<DurationText>,
    /// For a TCP connection, or a tunnel after an upgrade or CONNECT, without a byte in either
    /// direction. `none`: no bound.
    #[schemars(extend("default" = "none"))]
    pub tunnel_idle: Option<DurationText>,
    /// For a pooled connection to an endpoint without a request.
    #[schemars(extend("default" = "60s"))]
    pub upstream_idle: Option<DurationText>,
    /// For a connection to an endpoint that acknowledges nothing of what was sent to it, not even
    /// the probes of its closed receive window.
    #[schemars(extend("default" = "8s"))]
    pub upstream_silence: Option<DurationText>,
    /// How long a request or connection waits for a usable endpoint. `0s`: no wait.
    #[schemars(extend("default" = "10s"))]
    pub hold: Option<DurationText>,
    /// How long a drain may take if the pod's grace period is not known.
    #[schemars(extend("default" = "30s"))]
    pub drain: Option<DurationText>,
    /// After SIGTERM: how long `/readyz` fails while connections are still accepted.
    #[schemars(extend("default" = "0s"))]
    pub lame_duck: Option<DurationText>,
    /// After `lameDuck`: how long clients may finish.
    #[schemars(extend("default" = "30s"))]
    pub shutdown: Option<DurationText>,
    /// For a UDP session without a datagram in either direction.
    #[schemars(extend("default" = "60s"))]
    pub udp_idle: Option<DurationText>,
}

/// Bounds on memory and connections.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Limits {
    /// Client connections at the same time, over all workers. At the limit nothing is accepted.
    #[schemars(extend("default" = 20_000), range(min = 1, max = 1_000_000))]
    pub connections: Option<u64>,
    /// Bytes of a request's or response's head. A longer request head gets 431, or 414 if its
    /// first line alone is longer.
    #[schemars(extend("default" = "16KiB"))]
    pub head_size: Option<SizeText>,
    /// Fields of a head. A request with more gets 431.
    #[schemars(extend("default" = 100), range(min = 1, max = 256))]
    pub headers: Option<u64>,
    /// Bytes of a request's body that are kept for a replay. 0: a request with a body is never
    /// replayed.
    #[schemars(extend("default" = "64KiB"))]
    pub replay_body: Option<SizeText>,
    /// Requests and connections of one Service port that may wait for an endpoint at the same time.
    #[schemars(extend("default" = 1024), range(max = 1_000_000))]
    pub held: Option<u64>,
    /// The longest hold time, whatever a Service's annotation asks for. A held client takes one of
    /// `connections`.
    #[schemars(extend("default" = "10m"))]
    pub hold_timeout: Option<DurationText>,
    /// UDP sessions at the same time, over all workers: each worker has its share. At the limit, a new
    /// one ends one that has been idle for longest. Each takes one of `connections`, and all together
    /// never more than half of them.
    #[schemars(extend("default" = 8192), range(min = 1, max = 1_000_000))]
    pub udp_sessions: Option<u64>,
}

/// When a request is tried again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Retry {
    /// Tries of one request in all. 1: no retry. Losses on endpoints that leave do not count.
    #[schemars(extend("default" = 3), range(min = 1, max = 10))]
    pub attempts: Option<u64>,
    /// Retries as a share of recent requests, in percent. Losses on endpoints that leave do not
    /// count.
    #[schemars(extend("default" = 20), range(max = 100))]
    pub budget_percent: Option<u64>,
    /// Retries a second that are always allowed.
    #[schemars(extend("default" = 10), range(max = 10_000))]
    pub budget_floor: Option<u64>,
    /// When POST and PATCH may be sent twice.
    #[schemars(extend("default" = "never"))]
    pub non_idempotent: Option<NonIdempotent>,
}

/// How the bytes of a listener are read.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum Protocol {
    Auto,
    Http,
    H2c,
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum NonIdempotent {
    Never,
    IdempotencyKey,
    Always,
}

#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct DurationText(pub String);

#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct SizeText(pub String);

#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct PortText(pub String);

/// Reads the document's shape. A fault has a place and no path.
pub(super) fn parse(text: &str) -> Result<Config, Fault> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (aim, what) = explain(error.without_snippet());
        let place = error
            .location()
            .filter(|at| *at != Location::UNKNOWN)
            .map(|at| (at.line(), at.column()));
        Fault {
            path: String::new(),
            at: place.map(|place| (place, aim)),
            what,
            lacks: lacks(error.without_snippet()),
        }
    })
}

/// Translates a parser's error: which field at its place is meant, and what was expected.
fn explain(error: &Yaml) -> (Aim, String) {
    match error {
        Yaml::SerdeUnknownField { expected, .. } => (
            Aim::Inner,
            format!("unknown field, expected {}", any_of(expected)),
        ),
        Yaml::SerdeMissingField { field, .. } => {
            let example = match *field {
                "name" => "a name such as web",
                "address" => "IP:PORT such as 127.0.0.1:8080",
                "service" => "namespace/name such as web/nginx-svc",
                "port" => "the Service port's name or number",
                "path" => "a folder of manifests",
                "hosts" => "a list of names such as shop.example.com",
                "certificate" => "a file with a certificate and its chain (PEM)",
                "key" => "a file with the certificate's private key (PEM)",
                _ => "a value",
            };
            (Aim::Absent(field), format!("missing, expected {example}"))
        }
        Yaml::SerdeUnknownVariant {
            variant, expected, ..
        } => (
            Aim::Inner,
            format!(
                "{variant:?} is not known, expected {}{}",
                any_of(expected),
                value::protocol_hint(variant)
            ),
        ),
        Yaml::DuplicateMappingKey { .. } => (Aim::Inner, "given twice, expected it once".into()),
        Yaml::NullIntoString { .. } => (Aim::Inner, "empty, expected a value".into()),
        Yaml::InvalidScalar { ty, .. } => {
            let expected = match *ty {
                "boolean" => "true or false",
                ty if ty.starts_with(['u', 'i']) => "a whole number",
                ty => ty,
            };
            (Aim::Inner, format!("bad value, expected {expected}"))
        }
        Yaml::Unexpected { expected, .. } => {
            let expected = match *expected {
                "mapping start" => "fields below it (name: value)",
                "sequence start" => "a list",
                "string scalar" | "scalar" => "a single value",
                other => other,
            };
            (
                Aim::Outer,
                format!("of the wrong kind, expected {expected}"),
            )
        }
        Yaml::MultipleDocuments { .. } => (
            Aim::Inner,
            "a second document begins, expected only one".into(),
        ),
        Yaml::AliasError { error, .. } => explain(error),
        other => {
            let text = serde_saphyr::UserMessageFormatter.format_message(other);
            (
                Aim::Inner,
                format!("{text}, expected YAML as `ebbtide schema` describes it"),
            )
        }
    }
}

/// What an explanation lacks until it is known which field is meant.
fn lacks(error: &Yaml) -> Lacks {
    match error {
        Yaml::InvalidScalar { ty, .. } if ty.starts_with(['u', 'i']) => Lacks::Bounds,
        Yaml::Unexpected { expected, .. } if *expected == "mapping start" => Lacks::Names,
        Yaml::AliasError { error, .. } => lacks(error),
        _ => Lacks::Nothing,
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "examples": ["250ms", "10s", "5m"]})
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer"], "pattern": "^[0-9]+ ?(B|KiB|MiB)?$", "minimum": 0})
    }
}

impl JsonSchema for PortText {
    fn schema_name() -> Cow<'static, str> {
        "PortNameOrNumber".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer"], "minimum": 1, "maximum": 65535})
    }
}

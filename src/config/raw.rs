//! The configuration file's shape, as serde reads it and `ebbtide schema` shows it, and its check into the real types.
//!
//! Leaves whose form serde cannot know (durations, sizes, addresses) are strings here and are read in [`Config::check`],
//! which fills in defaults and refuses what is out of bounds or contradicts itself. The doc comments are the schema's
//! descriptions.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_saphyr::{Error as Yaml, Location};

use super::value::{self, DAY, MILLISECOND, MINUTE};
use super::{Discovery, Fault, ListenerConfig, NonIdempotent, PortRef, Protocol};

/// Configuration of Ebbtide, a connection-draining proxy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Ebbtide configuration")]
pub struct Config {
    /// Where Services, EndpointSlices and Pods come from. Exactly one of `files` and `kubernetes`.
    discovery: Option<RawDiscovery>,
    /// Binds the nodePort of every claimed Service. Absent: no listener is derived from a Service.
    node_ports: Option<NodePorts>,
    /// Explicit listeners; each serves one port of one Service, claimed or not.
    listeners: Option<Vec<Listener>>,
    /// The admin pages: health, metrics, status.
    admin: Option<Admin>,
    /// Worker threads, at least 1. Absent: one per available core.
    #[schemars(range(min = 1, max = 1024))]
    workers: Option<u64>,
    timeouts: Option<Timeouts>,
    limits: Option<Limits>,
    retry: Option<Retry>,
    /// CIDRs whose `X-Forwarded-*` headers are believed.
    #[schemars(extend("default" = []))]
    trusted_proxies: Option<Vec<String>>,
    /// One line per request or connection on standard output.
    #[schemars(extend("default" = "off"))]
    access_log: Option<AccessLog>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Discovery")]
struct RawDiscovery {
    files: Option<Files>,
    kubernetes: Option<Kubernetes>,
}

/// A folder of manifests, read as the API server's state would be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Files {
    /// Folder of `*.yaml`, `*.yml` and `*.json`: Service, EndpointSlice, Pod. Relative to the configuration file's folder.
    path: String,
}

/// The Kubernetes API (not served by this build yet).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "part of the file's shape; refused until there is a Kubernetes source")]
struct Kubernetes {
    /// Namespaces to watch; empty: all.
    #[schemars(extend("default" = []))]
    namespaces: Option<Vec<String>>,
    /// Absent: in-cluster, then `KUBECONFIG`, then the home folder's.
    kubeconfig: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodePorts {
    /// IP addresses on which nodePorts are bound.
    #[schemars(extend("default" = ["0.0.0.0", "::"]), length(min = 1))]
    addresses: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Listener {
    /// Its name in logs and on the admin pages; no two alike.
    name: String,
    /// `IP:port` to bind; port 0: any free port, which is logged and shown by the admin API.
    address: String,
    /// The Service as `namespace/name`.
    service: String,
    /// The Service port's name or number.
    port: PortText,
    /// Absent: the Service's own.
    protocol: Option<RawProtocol>,
    /// The PROXY protocol (v1 and v2) from the client's side.
    #[schemars(extend("default" = "off"))]
    proxy_protocol: Option<ProxyProtocol>,
    /// Whether HTTP CONNECT is passed on.
    #[schemars(extend("default" = false))]
    allow_connect: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Admin {
    #[schemars(extend("default" = "127.0.0.1:9901"))]
    address: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Timeouts {
    /// For one connect to an endpoint.
    #[schemars(extend("default" = "1s"))]
    connect: Option<DurationText>,
    /// From the first byte of a request's head to its last.
    #[schemars(extend("default" = "10s"))]
    head: Option<DurationText>,
    /// For one request, all its attempts together; `none`: no bound.
    #[schemars(extend("default" = "none"))]
    request: Option<DurationText>,
    /// A client connection without a byte either way.
    #[schemars(extend("default" = "5m"))]
    client_idle: Option<DurationText>,
    /// A pooled connection to an endpoint without a request.
    #[schemars(extend("default" = "60s"))]
    upstream_idle: Option<DurationText>,
    /// How long a request or connection waits for a usable endpoint; `0s`: not at all.
    #[schemars(extend("default" = "10s"))]
    hold: Option<DurationText>,
    /// How long a drain may take where no pod, and so no grace period, is known.
    #[schemars(extend("default" = "30s"))]
    drain: Option<DurationText>,
    /// After SIGTERM: how long `/readyz` fails while connections are still accepted.
    #[schemars(extend("default" = "0s"))]
    lame_duck: Option<DurationText>,
    /// After the lame duck: how long clients have to finish.
    #[schemars(extend("default" = "30s"))]
    shutdown: Option<DurationText>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Limits {
    /// Client connections at once, over all workers; beyond it nothing is accepted.
    #[schemars(extend("default" = 20_000), range(min = 1, max = 1_000_000))]
    connections: Option<u64>,
    /// Bytes of a request's head; beyond it 431.
    #[schemars(extend("default" = "16KiB"))]
    head_size: Option<SizeText>,
    /// Headers of a request; beyond it 431.
    #[schemars(extend("default" = 100), range(min = 1, max = 1_000))]
    headers: Option<u64>,
    /// Bytes of a request's body that are kept for a replay; 0: a request with a body is never replayed.
    #[schemars(extend("default" = "64KiB"))]
    replay_body: Option<SizeText>,
    /// Requests and connections of one Service that wait for an endpoint at once.
    #[schemars(extend("default" = 1024), range(max = 1_000_000))]
    held: Option<u64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Retry {
    /// Tries of one request in all; 1: no retry. Losses to endpoints that leave are not counted.
    #[schemars(extend("default" = 3), range(min = 1, max = 10))]
    attempts: Option<u64>,
    /// Retries allowed, as a share of recent requests. Losses to endpoints that leave are not counted.
    #[schemars(extend("default" = 20), range(max = 100))]
    budget_percent: Option<u64>,
    /// Retries a second that are always allowed.
    #[schemars(extend("default" = 10), range(max = 10_000))]
    budget_floor: Option<u64>,
    /// When POST and PATCH may be sent twice.
    #[schemars(extend("default" = "never"))]
    non_idempotent: Option<RawNonIdempotent>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Protocol")]
enum RawProtocol {
    Auto,
    Http,
    Tcp,
}

/// `off` is a word to YAML 1.2 and `false` to YAML 1.1, so a tool may have rewritten it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum ProxyProtocol {
    #[serde(alias = "false", alias = "no", alias = "Off", alias = "OFF")]
    Off,
    Required,
}

/// `off` is a word to YAML 1.2 and `false` to YAML 1.1, so a tool may have rewritten it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum AccessLog {
    #[serde(alias = "false", alias = "no", alias = "Off", alias = "OFF")]
    Off,
    Json,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "NonIdempotent")]
enum RawNonIdempotent {
    Never,
    IdempotencyKey,
    Always,
}

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct DurationText(String);

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct SizeText(String);

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct PortText(String);

/// Reads the document's shape. The fault's path is relative to what stands at its place.
pub fn parse(text: &str) -> Result<Config, Fault> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (path, what) = explain(error.without_snippet());
        let at = error.location().filter(|at| *at != Location::UNKNOWN).map(|at| (at.line(), at.column()));
        Fault { path, at, what }
    })
}

/// The parser's error in the words of this file: a path below its place, and what was expected.
fn explain(error: &Yaml) -> (String, String) {
    let here = String::new();
    match error {
        Yaml::SerdeUnknownField { expected, .. } => (here, format!("unknown field, expected {}", any_of(expected))),
        Yaml::SerdeMissingField { field, .. } => {
            let example = match *field {
                "name" => "a name such as web",
                "address" => "IP:PORT such as 127.0.0.1:8080",
                "service" => "namespace/name such as web/nginx-svc",
                "port" => "the Service port's name or number",
                "path" => "a folder of manifests",
                _ => "a value",
            };
            ((*field).to_owned(), format!("missing, expected {example}"))
        }
        Yaml::SerdeUnknownVariant { variant, expected, .. } => {
            (here, format!("{variant:?} is not known, expected {}", any_of(expected)))
        }
        Yaml::DuplicateMappingKey { .. } => (here, "given twice, expected it once".into()),
        Yaml::NullIntoString { .. } => (here, "empty, expected a value".into()),
        Yaml::InvalidScalar { ty, .. } => {
            let expected = match *ty {
                "boolean" => "true or false",
                ty if ty.starts_with(['u', 'i']) => "a whole number",
                ty => ty,
            };
            (here, format!("no such value here, expected {expected}"))
        }
        Yaml::Unexpected { expected, .. } => {
            let expected = match *expected {
                "mapping start" => "fields below it (name: value)",
                "sequence start" => "a list",
                "string scalar" | "scalar" => "a single value",
                other => other,
            };
            (here, format!("of the wrong kind, expected {expected}"))
        }
        Yaml::MultipleDocuments { .. } => (here, "a second document begins, expected one".into()),
        Yaml::AliasError { error, .. } => explain(error),
        other => {
            let text = other.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            (here, format!("{text}, expected YAML as `ebbtide schema` describes it"))
        }
    }
}

fn any_of(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        [only] => (*only).into(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

impl Config {
    /// Fills in defaults and checks every value. `folder` is the configuration file's own.
    pub fn check(self, folder: &Path) -> Result<super::Config, Fault> {
        let default = super::Config::new(self.discovery.unwrap_or_default().check(folder)?);
        let admin = match self.admin.unwrap_or_default().address {
            None => default.admin,
            Some(text) => at("admin.address", value::address(&text))?,
        };
        Ok(super::Config {
            node_port_addresses: self.node_ports.map_or(Ok(Vec::new()), NodePorts::check)?,
            listeners: listeners(self.listeners.unwrap_or_default(), admin)?,
            admin,
            workers: self.workers.map_or(Ok(default.workers), workers)?,
            timeouts: self.timeouts.unwrap_or_default().check()?,
            limits: self.limits.unwrap_or_default().check()?,
            retry: self.retry.unwrap_or_default().check()?,
            trusted_proxies: items("trustedProxies", self.trusted_proxies.unwrap_or_default(), |text| {
                text.parse().map_err(|_| format!("{text:?} is no CIDR, expected one such as 10.0.0.0/8"))
            })?,
            access_log: self.access_log == Some(AccessLog::Json),
            ..default
        })
    }
}

impl RawDiscovery {
    fn check(self, folder: &Path) -> Result<Discovery, Fault> {
        let files = match (self.files, self.kubernetes) {
            (Some(files), None) => files,
            (None, None) => return Err(Fault::new("discovery", "names no source, expected files or kubernetes")),
            (Some(_), Some(_)) => {
                return Err(Fault::new("discovery", "names two sources, expected either files or kubernetes"));
            }
            (None, Some(_)) => {
                return Err(Fault::new("discovery.kubernetes", "not served by this build yet, expected files"));
            }
        };
        let path = folder.join(&files.path);
        std::fs::read_dir(&path).map_err(|error| {
            let what = format!("{:?} cannot be read ({}), expected a folder of manifests", path, value::plain(&error));
            Fault::new("discovery.files.path", what)
        })?;
        Ok(Discovery::Files { path })
    }
}

impl NodePorts {
    fn check(self) -> Result<Vec<IpAddr>, Fault> {
        let Some(texts) = self.addresses else {
            return Ok(vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
        };
        if texts.is_empty() {
            return Err(Fault::new("nodePorts.addresses", "empty, expected IP addresses such as 0.0.0.0 and '::'"));
        }
        let mut seen = HashSet::new();
        items("nodePorts.addresses", texts, |text| {
            let address: IpAddr =
                text.parse().map_err(|_| format!("{text:?} is no IP address, expected one such as 0.0.0.0 or '::'"))?;
            if seen.insert(address) { Ok(address) } else { Err(format!("{text:?} is given twice, expected it once")) }
        })
    }
}

fn listeners(raw: Vec<Listener>, admin: SocketAddr) -> Result<Vec<ListenerConfig>, Fault> {
    let mut names = HashMap::new();
    let mut addresses = HashMap::from([(admin, "admin".to_owned())]);
    let mut checked = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let me = format!("listeners[{index}]");
        let listener = raw.check(&me)?;
        if let Some(other) = names.insert(listener.name.clone(), me.clone()) {
            let what = format!("{:?} is the name of {other} too, expected one of its own", listener.name);
            return Err(Fault::new(format!("{me}.name"), what));
        }
        if listener.address.port() != 0
            && let Some(other) = addresses.insert(listener.address, me.clone())
        {
            let what = format!("{} is the address of {other} too, expected one of its own", listener.address);
            return Err(Fault::new(format!("{me}.address"), what));
        }
        checked.push(listener);
    }
    Ok(checked)
}

impl Listener {
    fn check(self, me: &str) -> Result<ListenerConfig, Fault> {
        let at = |field: &str, what: String| Fault::new(format!("{me}.{field}"), what);
        if self.name.is_empty()
            || self.name.len() > 63
            || self.name.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            let what = format!("{:?} is no name, expected 1 to 63 bytes without spaces", self.name);
            return Err(at("name", what));
        }
        Ok(ListenerConfig {
            address: value::address(&self.address).map_err(|what| at("address", what))?,
            service: value::service(&self.service).map_err(|what| at("service", what))?,
            port: PortRef::read(&self.port.0).map_err(|what| at("port", what))?,
            protocol: self.protocol.map(|protocol| match protocol {
                RawProtocol::Auto => Protocol::Auto,
                RawProtocol::Http => Protocol::Http,
                RawProtocol::Tcp => Protocol::Tcp,
            }),
            proxy_protocol: self.proxy_protocol == Some(ProxyProtocol::Required),
            allow_connect: self.allow_connect.unwrap_or(false),
            name: self.name,
        })
    }
}

impl PortRef {
    fn read(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            Ok(number) if number > 0 => Ok(Self::Number(number)),
            Err(_) if value::label(text) && text.bytes().any(|b| b.is_ascii_lowercase()) => {
                Ok(Self::Name(text.to_owned()))
            }
            _ => Err(format!("{text:?} is no port, expected a Service port's name or a number from 1 to 65535")),
        }
    }
}

fn workers(number: u64) -> Result<NonZeroUsize, Fault> {
    let number = at("workers", value::whole::<usize>(number, 1..=1024))?;
    Ok(NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN))
}

impl Timeouts {
    fn check(self) -> Result<super::Timeouts, Fault> {
        let default = super::Timeouts::default();
        let read = |name: &str, text: Option<DurationText>, default, within: RangeInclusive<Duration>| match text {
            None => Ok(default),
            Some(text) => at(&format!("timeouts.{name}"), value::duration(&text.0, within)),
        };
        let request = self.request.filter(|text| text.0 != "none");
        Ok(super::Timeouts {
            connect: read("connect", self.connect, default.connect, MILLISECOND..=MINUTE)?,
            head: read("head", self.head, default.head, MILLISECOND..=10 * MINUTE)?,
            request: match request {
                None => None,
                some => Some(read("request", some, DAY, MILLISECOND..=DAY)?),
            },
            client_idle: read("clientIdle", self.client_idle, default.client_idle, MILLISECOND..=30 * DAY)?,
            upstream_idle: read("upstreamIdle", self.upstream_idle, default.upstream_idle, MILLISECOND..=DAY)?,
            hold: read("hold", self.hold, default.hold, value::HOLD)?,
            drain: read("drain", self.drain, default.drain, value::DRAIN)?,
            lame_duck: read("lameDuck", self.lame_duck, default.lame_duck, Duration::ZERO..=10 * MINUTE)?,
            shutdown: read("shutdown", self.shutdown, default.shutdown, Duration::ZERO..=DAY)?,
        })
    }
}

impl Limits {
    fn check(self) -> Result<super::Limits, Fault> {
        let default = super::Limits::default();
        let count = |name: &str, number: Option<u64>, default, within: RangeInclusive<u64>| match number {
            None => Ok(default),
            Some(number) => at(&format!("limits.{name}"), value::whole(number, within)),
        };
        let size = |name: &str, text: Option<SizeText>, default, within: RangeInclusive<usize>| match text {
            None => Ok(default),
            Some(text) => at(&format!("limits.{name}"), value::size(&text.0, within)),
        };
        Ok(super::Limits {
            connections: count("connections", self.connections, default.connections, 1..=1_000_000)?,
            head_size: size("headSize", self.head_size, default.head_size, 1 << 10..=1 << 20)?,
            headers: count("headers", self.headers, default.headers, 1..=1_000)?,
            replay_body: size("replayBody", self.replay_body, default.replay_body, 0..=16 << 20)?,
            held: count("held", self.held, default.held, 0..=1_000_000)?,
        })
    }
}

impl Retry {
    fn check(self) -> Result<super::Retry, Fault> {
        let default = super::Retry::default();
        let count = |name: &str, number: Option<u64>, default, within| match number {
            None => Ok(default),
            Some(number) => at(&format!("retry.{name}"), value::whole::<u32>(number, within)),
        };
        Ok(super::Retry {
            attempts: count("attempts", self.attempts, default.attempts, value::ATTEMPTS)?,
            budget_percent: count("budgetPercent", self.budget_percent, default.budget_percent, 0..=100)?,
            budget_floor: count("budgetFloor", self.budget_floor, default.budget_floor, 0..=10_000)?,
            non_idempotent: match self.non_idempotent {
                None => default.non_idempotent,
                Some(RawNonIdempotent::Never) => NonIdempotent::Never,
                Some(RawNonIdempotent::IdempotencyKey) => NonIdempotent::IdempotencyKey,
                Some(RawNonIdempotent::Always) => NonIdempotent::Always,
            },
        })
    }
}

fn at<T>(path: &str, result: Result<T, String>) -> Result<T, Fault> {
    result.map_err(|what| Fault::new(path, what))
}

fn items<T>(path: &str, texts: Vec<String>, mut read: impl FnMut(&str) -> Result<T, String>) -> Result<Vec<T>, Fault> {
    texts.iter().enumerate().map(|(index, text)| at(&format!("{path}[{index}]"), read(text))).collect()
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

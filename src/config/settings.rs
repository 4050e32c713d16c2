//! The configuration: real, checked types, and the way in from a file.
//!
//! [`Config::load`] (of a text: [`Config::parse`]) is the only door: what it returns has its defaults filled in and every
//! value inside its bounds, so that nothing behind it checks again. Reading goes from `raw` (the file's shape, by serde)
//! through `checked` to the types here; `value` reads single values, `places` finds the line of a field, [`service`] lays a
//! Service's annotations over the configuration. Reading again at SIGHUP is `app`'s.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::contract::name::ObjectName;
use crate::contract::policy::{NonIdempotent, PortRef, Protocol};

/// A whole configuration file, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub discovery: Discovery,
    /// Where nodePorts of claimed Services are bound; empty: none is.
    pub node_port_addresses: Vec<std::net::IpAddr>,
    pub listeners: Vec<ListenerConfig>,
    pub admin: SocketAddr,
    pub workers: NonZeroUsize,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub retry: Retry,
    pub trusted_proxies: Vec<IpNet>,
    pub access_log: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    Files {
        path: PathBuf,
    },
    /// `ebbtide proxy --to`: one Service named by the listener, these endpoints, no changes.
    Static {
        to: Vec<SocketAddr>,
    },
    Kubernetes(Kubernetes),
}

/// The API server as the source of truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Kubernetes {
    /// Empty: all.
    pub namespaces: Vec<String>,
    /// `None`: in-cluster, then `KUBECONFIG`, then the home folder's.
    pub kubeconfig: Option<PathBuf>,
    /// A connection to the API server on which nothing has come for this long is given up. Not a field of the file:
    /// bookmarks come once a minute, so less would break watches in order, and more would miss deletions for longer.
    pub silence: Duration,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            kubeconfig: None,
            silence: Duration::from_secs(75),
        }
    }
}

impl Discovery {
    /// As the admin pages name it.
    pub fn source(&self) -> &'static str {
        match self {
            Self::Files { .. } => "files",
            Self::Static { .. } => "static",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ListenerConfig {
    pub name: String,
    pub address: SocketAddr,
    pub service: ObjectName,
    pub port: PortRef,
    /// `None`: the Service's own.
    pub protocol: Option<Protocol>,
    pub proxy_protocol: bool,
    pub allow_connect: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    pub connect: Duration,
    pub head: Duration,
    pub request: Option<Duration>,
    pub client_idle: Duration,
    pub upstream_idle: Duration,
    pub hold: Duration,
    pub drain: Duration,
    pub lame_duck: Duration,
    pub shutdown: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub connections: usize,
    /// Bytes.
    pub head_size: usize,
    pub headers: usize,
    /// Bytes.
    pub replay_body: usize,
    /// Per Service.
    pub held: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Tries of one request in all, losses to leaving endpoints not counted.
    pub attempts: u32,
    pub budget_percent: u32,
    /// Retries a second that are always allowed.
    pub budget_floor: u32,
    pub non_idempotent: NonIdempotent,
}

impl Config {
    /// All defaults, and no listener.
    pub fn new(discovery: Discovery) -> Self {
        Self {
            discovery,
            node_port_addresses: Vec::new(),
            listeners: Vec::new(),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9901)),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            retry: Retry::default(),
            trusted_proxies: Vec::new(),
            access_log: false,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            connect: s(1),
            head: s(10),
            request: None,
            client_idle: s(300),
            upstream_idle: s(60),
            hold: s(10),
            drain: s(30),
            lame_duck: s(0),
            shutdown: s(30),
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

//! The configuration: real, checked types. (Raw serde types and their conversion: being written.)

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::discovery::ObjectName;

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

/// A Service port by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortRef {
    Name(String),
    Number(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Auto,
    Http,
    Tcp,
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

/// When POST and PATCH may be sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonIdempotent {
    Never,
    IdempotencyKey,
    Always,
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
        Self { connections: 20_000, head_size: 16 << 10, headers: 100, replay_body: 64 << 10, held: 1024 }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 3, budget_percent: 20, budget_floor: 10, non_idempotent: NonIdempotent::Never }
    }
}

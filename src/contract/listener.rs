//! A listener as every worker knows it.

use std::net::SocketAddr;

use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};

/// Unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u64);

/// A listener as every worker knows it.
#[derive(Debug)]
pub struct ListenerSpec {
    pub id: ListenerId,
    pub name: String,
    /// As bound.
    pub address: SocketAddr,
    pub service: ObjectName,
    pub port: PortRef,
    /// `None`: the Service port's own.
    pub protocol: Option<Protocol>,
    pub proxy_protocol: bool,
    pub allow_connect: bool,
}

//! Where clients come in: the ports of Gateways of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::contract::route::Rule;
use crate::discovery::gateway::{GatewayObject, GatewaySpec};
use crate::routing::gateway::addresses::Given;
use crate::routing::gateway::facts::Facts;
use crate::routing::gateway::listeners::Found;
use crate::routing::gateway::rules::Planned;

/// All doors, by what they belong to, their port, and whether that is one of UDP.
pub type Doors = BTreeMap<(ObjectName, u16, bool), Door>;

/// A port where clients come in.
#[derive(Debug)]
pub struct Door {
    /// How they are served.
    pub enters: Enters,
    /// The addresses with this port.
    pub addresses: Vec<IpAddr>,
    /// Whether the addresses are Ebbtide's to give, and not the node's own.
    pub of_pool: bool,
    /// The Secrets with certificates, in the order in which they count.
    pub secrets: Vec<ObjectName>,
    /// The rules, in the order in which they count.
    pub rules: Vec<(Rule, Arc<Planned>)>,
    /// What gets every connection or session.
    pub default: Option<Arc<Planned>>,
    /// Hosts that belong to a listener: what it has no rule for goes to no other.
    pub hosts: BTreeSet<String>,
    /// Whether a listener has all other hosts.
    pub has_rest: bool,
}

/// How clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enters {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// TLS, which is passed on or ends here, as its route says.
    Tls,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Enters {
    /// By the protocol of a listener.
    pub fn of(protocol: &str) -> Self {
        match protocol {
            "HTTPS" => Self::Https,
            "TLS" => Self::Tls,
            "TCP" => Self::Tcp,
            "UDP" => Self::Udp,
            _ => Self::Http,
        }
    }

    /// The protocol of its listeners.
    pub fn protocol_name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// What its listener speaks.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http | Self::Https => Protocol::Http,
            Self::Tls | Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
        }
    }
}

/// A Gateway of ours, and what is found out about it.
#[derive(Debug)]
pub struct Ours<'a> {
    /// The object.
    pub object: &'a GatewayObject,
    /// What it asks for.
    pub spec: &'a GatewaySpec,
    /// Its address.
    pub given: Given,
    /// Its listeners.
    pub listeners: Vec<Found<'a>>,
}

/// The door of a listener.
pub fn door_of(
    gateway: &GatewayObject,
    found: &Found<'_>,
    facts: &Facts<'_>,
) -> (ObjectName, u16, bool) {
    let owner = match facts.settings.addresses.is_empty() {
        true => ObjectName::new("", "gateway"),
        false => {
            let name = &gateway.name;
            ObjectName::new(&*name.namespace, format!("gateway/{}", name.name))
        }
    };
    (owner, found.spec.port, found.spec.protocol == "UDP")
}

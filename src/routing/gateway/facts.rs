//! What a plan is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::settings;
use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
use crate::discovery::gateway::{GatewayKind, GatewayObject};
use crate::routing::gateway::grants::Grants;
use crate::routing::world::objects::World;

/// All objects of the Gateway API.
pub type Objects = BTreeMap<(GatewayKind, ObjectName), Arc<GatewayObject>>;

/// What is known of another object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It is there, and can be used.
    Is(()),
    /// It may be there: it has not been read yet.
    Unknown,
    /// It is not there, or cannot be used, for this reason.
    Missing(String),
}

/// What a plan is made of.
pub struct Facts<'a> {
    /// Which Gateways are ours, and their addresses.
    pub settings: &'a settings::Gateway,
    /// The addresses of this node, for Gateways that share them.
    pub node: &'a [IpAddr],
    /// All objects.
    pub objects: &'a Objects,
    /// Who may refer to objects of other namespaces.
    pub grants: Grants<'a>,
    /// What is known of a port of a Service. The last argument: whether it is one of UDP.
    pub service: &'a dyn Fn(&ObjectName, u16, bool) -> Known,
    /// The name of a port of a Service, which may be empty. `None`: the Service has not been read yet, or
    /// has no such port.
    pub port_name: &'a dyn Fn(&ObjectName, u16) -> Option<String>,
    /// What is known of a Secret with a certificate.
    pub secret: &'a dyn Fn(&ObjectName) -> Known,
    /// What is known of an object with authorities. `None`: it has not been read yet.
    pub authorities: &'a dyn Fn(&Holder) -> Option<FoundAuthorities>,
    /// The time, as the API writes it.
    pub now: String,
}

/// The ports of a Service, each with its name, which may be empty; `None`: there is no such Service.
pub type Ports = Option<Vec<(u16, Transport, String)>>;

/// The ports of a Service, as far as a route can name them.
pub fn ports_of(world: &World, name: &ObjectName) -> Ports {
    let service = world.service(name).filter(|it| !it.external_name)?;
    let ports = service.ports.iter();
    let named = ports.map(|it| {
        let name = it.name.clone().unwrap_or_default();
        (it.port, it.transport, name)
    });
    Some(named.collect())
}

/// The name of one of these ports over TCP.
pub fn port_name(ports: &Ports, port: u16) -> Option<String> {
    let mut ports = ports.iter().flatten();
    let found = ports.find(|(number, over, _)| (*number, *over) == (port, Transport::Tcp));
    found.map(|(_, _, name)| name.clone())
}

/// What is known of one of these ports.
pub fn known_port(ports: &Ports, name: &ObjectName, port: u16, is_udp: bool) -> Known {
    let transport = if is_udp {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    let is_it = |(number, over, _): &(u16, _, _)| (*number, *over) == (port, transport);
    match ports {
        None => Known::Missing(format!("there is no Service {name}")),
        Some(ports) if ports.iter().any(is_it) => Known::Is(()),
        Some(_) => Known::Missing(format!("Service {name} has no {transport} port {port}")),
    }
}

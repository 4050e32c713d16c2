//! What a plan is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::settings;
use crate::contract::name::ObjectName;
use crate::discovery::gateway::{GatewayKind, GatewayObject};
use crate::routing::gateway::grants::Grants;

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
    /// What is known of a Secret with a certificate.
    pub secret: &'a dyn Fn(&ObjectName) -> Known,
    /// The time, as the API writes it.
    pub now: String,
}

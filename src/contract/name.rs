//! Names of Kubernetes objects: Services, EndpointSlices, Pods, and one port of a Service. The
//! names are not checked here; `config` and `discovery` check what they read.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::contract::policy::Transport;

/// `namespace/name` of a Service, EndpointSlice or Pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// The namespace of the object.
    pub namespace: String,
    /// The name of the object, unique for its kind in the namespace.
    pub name: String,
}

impl ObjectName {
    /// Joins a namespace and a name. Nothing is checked.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// One TCP port of the Service with this name.
    pub fn port(&self, port: u16) -> PortKey {
        self.port_over(Transport::Tcp, port)
    }

    /// One port of the Service with this name.
    pub fn port_over(&self, transport: Transport, port: u16) -> PortKey {
        PortKey {
            service: self.clone(),
            port,
            transport,
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The pod behind an endpoint, as a slice names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's name, in the namespace of its slice.
    pub name: String,
    /// The pod's UID. Empty where the slice gives none; such a pod is matched by its name.
    pub uid: String,
}

/// One port of one Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// The Service that has the port.
    pub service: ObjectName,
    /// The Service port's number.
    pub port: u16,
    /// What carries it.
    pub transport: Transport,
}

impl PortKey {
    /// What identifies the port within its Service.
    pub fn id(&self) -> (u16, Transport) {
        (self.port, self.transport)
    }
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

//! What of an Ingress is not served, in words: a pure function of the objects.

use std::collections::BTreeSet;

use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Transport};
use crate::discovery::object::{BackendRef, IngressObject, ServiceObject};

/// Each field that asks for what is not served, and each Service, port and Secret that is missing.
/// `lacks` says what is wrong with a Secret.
pub fn unserved<'a>(
    ingress: &IngressObject,
    services: impl Fn(&ObjectName) -> Option<&'a ServiceObject>,
    lacks: impl Fn(&ObjectName) -> Option<String>,
) -> Vec<String> {
    let fields = ingress.unserved.iter();
    let mut all: Vec<String> = fields.map(|it| format!("{it} is not served")).collect();
    let backends: BTreeSet<&BackendRef> = ingress.backends().collect();
    all.extend(backends.into_iter().filter_map(|to| {
        let BackendRef { service, port } = to;
        match services(service) {
            None => Some(format!("there is no Service {service}")),
            Some(found) if found.external_name => {
                Some(format!("Service {service}: type ExternalName is refused"))
            }
            Some(found) if !has_port(found, port) => {
                Some(format!("Service {service} has no TCP port {port}"))
            }
            Some(_) => None,
        }
    }));
    let secrets = ingress.secrets.iter();
    all.extend(secrets.filter_map(|it| Some(format!("Secret {it}: {}", lacks(it)?))));
    all
}

fn has_port(service: &ServiceObject, wanted: &PortRef) -> bool {
    let mut ports = service.ports.iter();
    ports.any(|port| {
        port.transport == Transport::Tcp
            && match wanted {
                PortRef::Number(number) => port.port == *number,
                PortRef::Name(name) => port.name.as_ref() == Some(name),
            }
    })
}

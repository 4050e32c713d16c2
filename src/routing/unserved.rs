//! What of an Ingress is not served, in words: a pure function of the objects.

use std::collections::BTreeSet;

use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Transport};
use crate::discovery::object::{BackendRef, IngressObject, ServiceObject};
use crate::routing::nginx::keys::{Keys, PREFIX};

/// Each field and annotation that asks for what is not served, and each Service, port and Secret that is
/// missing. `nginx`: annotations of ingress-nginx count. `lacks` says what is wrong with a Secret.
pub fn unserved<'a>(
    ingress: &IngressObject,
    nginx: bool,
    services: impl Fn(&ObjectName) -> Option<&'a ServiceObject>,
    lacks: impl Fn(&ObjectName) -> Option<String>,
) -> Vec<String> {
    let fields = ingress.unserved.iter();
    let mut all: Vec<String> = fields.map(|it| format!("{it} is not served")).collect();
    if nginx {
        all.extend(by_nginx(ingress, &services));
    } else if !ingress.nginx.is_empty() {
        let keys: Vec<&str> = ingress.nginx.keys().map(String::as_str).collect();
        let keys = keys.join(", ");
        all.push(format!(
            "annotations of ingress-nginx do not count without ingress.keys: nginx: {keys}"
        ));
    }
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

fn by_nginx<'a>(
    ingress: &IngressObject,
    services: &impl Fn(&ObjectName) -> Option<&'a ServiceObject>,
) -> Vec<String> {
    let keys = Keys::of(&ingress.nginx);
    let mut all = keys.unserved.clone();
    for (rule, to) in &ingress.rules {
        if keys.apply(rule).is_none() {
            all.push(format!(
                "path {}: neither PREFIX(/|$)(.*) with rewrite-target: /$2 nor PREFIX/(.*) with /$1, so its rule is not served",
                rule.path
            ));
        }
        let has_tls = |it: &ServiceObject| it.annotations.contains_key(BACKEND_TLS);
        if keys.wants_tls && services(&to.service).is_some_and(|it| !has_tls(it)) {
            all.push(format!(
                "{PREFIX}backend-protocol: for TLS to endpoints, set {BACKEND_TLS} on Service {}",
                to.service
            ));
        }
    }
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

const BACKEND_TLS: &str = "ebbtide.dev/backend-tls";

//! Warnings of `check`: what would run, but perhaps not as meant. Each names the listener or
//! Service and, where there is one, the cure.

use std::collections::BTreeSet;

use crate::command::check::served::{Bound, Services, is_ready, port_name, port_of};
use crate::config::settings::{Config, Discovery};
use crate::contract::name::ObjectName;
use crate::contract::policy::{Policy, Protocol, Transport};
use crate::routing::world::merged::{MergedPort, MergedService};
use crate::text::near;

/// Listeners whose Service or port does not exist.
pub(super) fn of_listeners(config: &Config, services: &Services) -> Vec<String> {
    let mut warnings = Vec::new();
    for listener in &config.listeners {
        let (name, transport) = (&listener.name, listener.transport());
        let own = listener
            .routes
            .is_none()
            .then_some((&listener.service, &listener.port));
        let passed_on = listener.sni.iter().map(|it| (&it.service, &it.port));
        for (wanted, port) in own.into_iter().chain(passed_on) {
            match services.get(wanted) {
                None => {
                    let source = if matches!(config.discovery, Discovery::Kubernetes(_)) {
                        "the cluster has no"
                    } else {
                        "no manifest has the"
                    };
                    let meant = meant(wanted, services).unwrap_or_default();
                    warnings.push(format!("listener {name}: {source} Service {wanted}{meant}"));
                }
                Some(service) if port_of(service, port, transport).is_none() => {
                    let ports: Vec<String> = service.ports.iter().map(port_name).collect();
                    let ports = if ports.is_empty() {
                        "none".to_owned()
                    } else {
                        ports.join(", ")
                    };
                    warnings.push(format!(
                        "listener {name}: {wanted} has no {transport} port {port}, it has {ports}"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    warnings
}

/// The Service that a name most likely means.
fn meant(wanted: &ObjectName, services: &Services) -> Option<String> {
    if let Some(same) = services.keys().find(|it| it.name == wanted.name) {
        let place = &same.namespace;
        return Some(format!(
            ", the one of this name is in namespace {place}; correct the listener or metadata.namespace \
             (without it, a manifest is in default)"
        ));
    }
    let here = services
        .keys()
        .filter(|it| it.namespace == wanted.namespace);
    let meant = near(&wanted.name, here.map(|it| it.name.as_str()))?;
    Some(format!(", did you mean {}/{meant}?", wanted.namespace))
}

/// Listeners whose address another listener or the admin pages have already; or no listener. `--migrate`
/// needs none.
pub(super) fn of_addresses(config: &Config, bound: &[Bound]) -> Vec<String> {
    let mut warnings = Vec::new();
    if bound.is_empty() && config.gateway.is_none() && config.ingress.is_none() {
        warnings.push(
            "no listener: nothing would be served; add listeners, or nodePorts and a claimed Service"
                .to_owned(),
        );
    }
    for listener in bound {
        let Bound {
            name,
            address,
            service,
            taken_by,
            transport,
            ..
        } = listener;
        let is_admin = *transport == Transport::Tcp && *address == config.admin;
        let other = if is_admin && address.port() != 0 {
            Some("the admin pages".to_owned())
        } else {
            taken_by.as_ref().map(|other| format!("listener {other}"))
        };
        warnings.extend(other.map(|other| {
            format!(
                "listener {name} of {service}: {address} is taken by {other}, so this listener would \
                 not be bound"
            )
        }));
    }
    warnings
}

/// What is doubtful about a Service that would be served. `listened`: a listener serves it.
pub(super) fn of_service(config: &Config, service: &MergedService, listened: bool) -> Vec<String> {
    let MergedService {
        object,
        authorities,
        ports,
        warnings: merging,
    } = service;
    let name = &object.name;
    if object.external_name {
        // All other warnings follow from this one.
        return vec![format!(
            "{name}: type ExternalName is refused, it has no endpoints"
        )];
    }
    let mut warnings = Vec::new();
    if object.claimed {
        warnings.extend(object.lost(config).map(|lost| format!("{name}: {lost}")));
        if object.headless {
            warnings.push(format!(
                "{name}: claimed, but headless (clusterIP: None): its clients connect to its pods themselves, \
                 past Ebbtide; remove the label, and claim a second Service with the same selector and a \
                 cluster IP, or add a listener"
            ));
        } else if !listened {
            let cure = if config.node_port_addresses.is_empty() {
                "nodePorts"
            } else {
                "make it type NodePort"
            };
            warnings.push(format!(
                "{name}: claimed, but no listener serves it; add a listener, or {cure}"
            ));
        }
    }
    // The environment of the node is here only with files.
    if !matches!(config.discovery, Discovery::Kubernetes(_)) {
        let unheeded = config.without_node(&object.traffic).into_iter();
        warnings.extend(unheeded.map(|it| format!("{name}: {it}")));
    }
    warnings.extend(merging.iter().map(|warning| format!("{name}: {warning}")));
    let annotations = &object.annotations;
    warnings.extend(
        Protocol::of_service(annotations, None, None, Transport::Tcp)
            .1
            .map(|warning| format!("{name}: {warning}")),
    );
    let (policy, found) = Policy::for_service(config, annotations, authorities.as_ref());
    warnings.extend(found.iter().map(|warning| format!("{name}: {warning}")));
    if policy.backend.is_some_and(|backend| backend.insecure) {
        warnings.push(format!(
            "{name}: ebbtide.dev/backend-tls: insecure: anybody between the proxy and the endpoints can read \
             and change what they say; give the ca of the endpoints' certificates"
        ));
    }
    for port in ports
        .iter()
        .filter(|port| !port.endpoints.iter().any(is_ready))
    {
        warnings.push(format!(
            "{name}: port {} has no ready endpoint",
            port_name(port)
        ));
    }
    warnings
}

/// Ports of a Service whose name no slice has. `names` are the names of the slices' ports over a
/// transport. A port gets its endpoints by its name, so such a port has none.
pub(super) fn of_port_names<'a>(
    service: &MergedService,
    names: impl Fn(Transport) -> BTreeSet<&'a str>,
) -> Vec<String> {
    let words = |name: &str| match name {
        "" => "a port without a name".to_owned(),
        name => format!("{name:?}"),
    };
    let warning = |port: &MergedPort| {
        let names = names(port.port.transport);
        let name = port.port.name.as_deref().unwrap_or_default();
        if names.is_empty() || names.contains(name) {
            return None;
        }
        let have: Vec<String> = names.iter().map(|name| words(name)).collect();
        let wanted = match &port.port.name {
            Some(name) => format!("named {name:?}"),
            None => "without a name".to_owned(),
        };
        Some(format!(
            "{}: no slice has a port {wanted}, the slices have {}; give the port of the Service \
             and of its slices the same name",
            service.object.name,
            have.join(", ")
        ))
    };
    service.ports.iter().filter_map(warning).collect()
}

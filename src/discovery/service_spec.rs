//! What a Service says besides its ports: whether it is claimed, which endpoints its clients may reach,
//! its addresses, and the fields that nobody serves once it is claimed.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use crate::config::settings::Claim;
use crate::contract::address::{AddressKind, ServiceAddress};
use crate::contract::policy::Traffic;
use crate::discovery::invalid::{Invalid, port_number, seconds};

/// Whether this proxy serves a Service without a listener that names it. The labels of kube-proxy's own
/// rule decide: one that is headless by label is for no proxy, although it has a cluster IP. Without a
/// label, and with `services.claim: all`, these are the Services that kube-proxy would serve.
pub fn is_claimed(service: &Service, claim: &Claim) -> bool {
    let labels = service.metadata.labels.as_ref();
    let of_proxies = |name| labels?.get(&format!("service.kubernetes.io/{name}"));
    if of_proxies("headless").is_some() {
        return false;
    }
    match of_proxies("service-proxy-name") {
        Some(name) => *name == claim.proxy_name,
        None => {
            let is_served = |spec: &ServiceSpec| !is_headless(spec) && !is_external_name(spec);
            claim.all && service.spec.as_ref().is_some_and(is_served)
        }
    }
}

/// Whether a name stands for the Service, and no endpoint.
pub(super) fn is_external_name(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

/// Whether the Service has no address of its own: its name leads to its pods
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#headless-services>).
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Which endpoints the clients of a Service may reach.
pub(super) fn traffic(service: &Service, spec: &ServiceSpec) -> Result<Traffic, Invalid> {
    let affinity = match spec.session_affinity.as_deref().unwrap_or_default() {
        "" | "None" => None,
        "ClientIP" => {
            let config = spec.session_affinity_config.as_ref();
            let client_ip = config.and_then(|config| config.client_ip.as_ref());
            let timeout = client_ip.and_then(|it| it.timeout_seconds);
            let timeout = timeout.unwrap_or(DEFAULT_AFFINITY);
            if !(1..=MAX_AFFINITY).contains(&timeout) {
                return Err(Invalid {
                    field: "spec.sessionAffinityConfig.clientIP.timeoutSeconds".into(),
                    message: format!("expected seconds from 1 to {MAX_AFFINITY}, found {timeout}"),
                });
            }
            Some(seconds(timeout.into()))
        }
        other => {
            return Err(Invalid {
                field: "spec.sessionAffinity".into(),
                message: format!("expected ClientIP or None, found {other:?}"),
            });
        }
    };
    let health_check = spec.health_check_node_port.filter(|number| *number != 0);
    let mut annotations = service.metadata.annotations.iter().flatten();
    let has_mode = annotations.any(|(key, value)| key == TOPOLOGY_MODE && value != "Disabled");
    let distribution = spec.traffic_distribution.as_deref();
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    Ok(Traffic {
        affinity,
        external_local: is_local(&spec.external_traffic_policy),
        internal_local: is_local(&spec.internal_traffic_policy),
        prefers_near: has_mode || distribution.is_some_and(|it| !it.is_empty()),
        health_check: health_check
            .map(|number| port_number(number, || "spec.healthCheckNodePort".into()))
            .transpose()?,
    })
}

/// The addresses on which kube-proxy served this Service. A text that is no address is skipped: the
/// API server refuses it, and a file may hold anything.
pub(super) fn addresses(service: &Service, spec: &ServiceSpec) -> Vec<ServiceAddress> {
    let one = spec.cluster_ip.iter();
    let cluster: Vec<&String> = match &spec.cluster_ips {
        Some(all) if !all.is_empty() => all.iter().collect(),
        _ => one.collect(),
    };
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer
        .and_then(|it| it.ingress.as_ref())
        .into_iter()
        .flatten();
    // A balancer with mode `Proxy` sends to nodePorts, and wants clients in the cluster to pass it.
    let ingress = ingress.filter(|it| it.ip_mode.as_deref() != Some("Proxy"));
    let all = [
        (AddressKind::Cluster, cluster),
        (
            AddressKind::External,
            spec.external_ips.iter().flatten().collect(),
        ),
        (
            AddressKind::LoadBalancer,
            ingress.filter_map(|it| it.ip.as_ref()).collect(),
        ),
    ];
    let mut found: Vec<ServiceAddress> = Vec::new();
    for (kind, texts) in all {
        for ip in texts.into_iter().filter_map(|text| text.parse().ok()) {
            if !found.iter().any(|it| it.ip == ip) {
                found.push(ServiceAddress { ip, kind });
            }
        }
    }
    found
}

/// The fields that kube-proxy served for this Service and that nobody serves after Ebbtide's claim.
pub(super) fn unserved(spec: &ServiceSpec) -> Vec<String> {
    let mut fields = Vec::new();
    let mut name = |field: &str, value: &str| fields.push(format!("spec.{field}: {value}"));
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let is_served = |protocol: &&str| matches!(*protocol, "TCP" | "UDP");
        if let Some(protocol) = port.protocol.as_deref().filter(|it| !is_served(it)) {
            name(&format!("ports[{i}].protocol"), protocol);
        }
    }
    fields
}

/// Seconds of session affinity that the API server gives a Service without `timeoutSeconds`, and the
/// most that it accepts.
const DEFAULT_AFFINITY: i32 = 10_800;
const MAX_AFFINITY: i32 = 86_400;
/// The annotation that `trafficDistribution` replaces.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

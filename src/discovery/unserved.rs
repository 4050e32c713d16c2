//! The fields of a claimed Service that nobody serves: the claim takes them from kube-proxy, and
//! Ebbtide does not serve them yet. Each is named in a warning.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// The fields that kube-proxy served for this Service and that nobody serves after Ebbtide's claim.
pub(super) fn unserved(service: &Service, spec: &ServiceSpec) -> Vec<String> {
    let mut fields = Vec::new();
    let mut name = |field: &str, value: &str| fields.push(format!("spec.{field}: {value}"));
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(protocol) = port.protocol.as_deref().filter(|p| *p != "TCP") {
            name(&format!("ports[{i}].protocol"), protocol);
        }
    }
    if let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    {
        name("clusterIP", ip);
    }
    for (field, list) in [
        ("externalIPs", &spec.external_ips),
        (
            "loadBalancerSourceRanges",
            &spec.load_balancer_source_ranges,
        ),
    ] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            name(field, &list.join(", "));
        }
    }
    let distribution = spec.traffic_distribution.as_deref();
    if let Some(value) = distribution.filter(|value| !value.is_empty()) {
        name("trafficDistribution", value);
    }
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer
        .and_then(|balancer| balancer.ingress.as_ref())
        .into_iter()
        .flatten();
    for ip in ingress
        .filter(|it| it.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|it| it.ip.as_ref())
    {
        fields.push(format!("status.loadBalancer.ingress: {ip}"));
    }
    fields
}

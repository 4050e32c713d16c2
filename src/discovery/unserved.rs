//! The fields of a claimed Service that nobody serves: the claim takes them from kube-proxy, and
//! Ebbtide does not serve them yet. Each is named in a warning.

use k8s_openapi::api::core::v1::ServiceSpec;

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
    let distribution = spec.traffic_distribution.as_deref();
    if let Some(value) = distribution.filter(|value| !value.is_empty()) {
        name("trafficDistribution", value);
    }
    fields
}

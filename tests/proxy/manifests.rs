//! Manifests that a test writes by hand, beside those of its fleet or rig.

use std::net::SocketAddr;

use serde_json::{Value, json};

pub fn service(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "web", "name": name, "annotations": annotations},
        "spec": {"ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

/// Of one endpoint, which is ready.
pub fn slice(service: &str, port: &str, address: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "web", "name": format!("{service}-by-hand"),
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": address.port(), "protocol": "TCP", "name": port}],
        "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
    })
}

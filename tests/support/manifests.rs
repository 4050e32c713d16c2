//! Services and EndpointSlices of namespace `web`, as the API server or a manifest shows them. The
//! objects are JSON values, so that a test can change any field, also to an invalid value. Pods are
//! in `pods.rs`.

use serde_json::{Value, json};

/// A Service with port 80.
pub fn service(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "web", "name": name, "annotations": annotations},
        "spec": {"ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

/// A slice. `port` is the port's name and number. The address family is that of the first endpoint.
pub fn slice(name: &str, service: &str, port: (&str, u16), endpoints: &[Value]) -> Value {
    let first = endpoints
        .first()
        .and_then(|endpoint| endpoint["addresses"][0].as_str());
    let family = if first.is_some_and(|address| address.contains(':')) {
        "IPv6"
    } else {
        "IPv4"
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "web", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "ports": [{"port": port.1, "protocol": "TCP", "name": port.0}],
        "endpoints": endpoints,
    })
}

/// An endpoint of a slice. Its Pod has the UID of [`uid_of`].
pub fn endpoint(
    address: &str,
    pod: Option<&str>,
    [ready, serving, terminating]: [bool; 3],
) -> Value {
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    });
    if let Some(pod) = pod {
        endpoint["targetRef"] =
            json!({"kind": "Pod", "namespace": "web", "name": pod, "uid": uid_of(pod)});
    }
    endpoint
}

/// The UID of the object with this name.
pub fn uid_of(name: &str) -> String {
    format!("uid-{name}")
}

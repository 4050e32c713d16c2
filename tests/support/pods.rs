//! Pods of namespace `web`, as the API server or a manifest shows them.

use serde_json::{Value, json};

use super::manifests::uid_of;

/// `hash` is that of its template.
pub fn pod(name: &str, hash: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "web", "name": name, "uid": uid_of(name), "labels": {"pod-template-hash": hash}},
    })
}

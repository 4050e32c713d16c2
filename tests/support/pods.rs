//! Pods of namespace `web`, as the API server or a manifest shows them.

use serde_json::{Value, json};

use super::manifests::uid_of;

/// A Pod. `hash` is the value of its `pod-template-hash` label.
pub fn pod(name: &str, hash: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "web", "name": name, "uid": uid_of(name), "labels": {"pod-template-hash": hash}},
    })
}

//! Pods of namespace `web`, as the API server or a manifest shows them. The UID follows from the
//! name, as in `manifests.rs`, so that a slice and its pod agree. A pod that is being deleted gets
//! its fields from the test.

use serde_json::{Value, json};

use super::manifests::uid_of;

/// A Pod. `hash` is the value of its `pod-template-hash` label.
pub fn pod(name: &str, hash: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "web", "name": name, "uid": uid_of(name), "labels": {"pod-template-hash": hash}},
    })
}

//! This node's object at the API server: what neither the container nor a slice tells of it.
//!
//! It is read once, because a node keeps its zone. Only the few fields that are used are read: an
//! object with the list of its images is large.

use std::collections::BTreeMap;

use hyper::Request;
use ipnet::IpNet;
use kube::Client;
use serde::Deserialize;

use crate::cluster::api::{Pauses, said};

/// The fields of a v1 Node that are used.
#[derive(Debug, Default, Deserialize)]
pub struct NodeObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl NodeObject {
    /// The zone of the node, if it has one.
    pub fn zone(&self) -> Option<&str> {
        let zone = self.metadata.labels.get("topology.kubernetes.io/zone");
        zone.map(String::as_str).filter(|zone| !zone.is_empty())
    }

    /// The ranges of the addresses of its pods, where the cluster gives each node a range.
    pub fn pod_ranges(&self) -> Vec<IpNet> {
        let texts = self.spec.pod_cidrs.iter();
        texts.filter_map(|text| text.parse().ok()).collect()
    }
}

/// Asks for a node. Tries until there is an answer. A refusal is an answer, and logged: nothing is known
/// of the node then.
pub async fn ask(client: Client, name: String) -> NodeObject {
    let mut pauses = Pauses::default();
    loop {
        // The name was checked: it is a path as it is.
        let Ok(request) = Request::get(format!("/api/v1/nodes/{name}")).body(Vec::new()) else {
            return NodeObject::default();
        };
        match client.request(request).await {
            Ok(node) => return node,
            Err(error @ kube::Error::Api(_)) if is_final(&error) => {
                tracing::warn!(
                    node = name,
                    error = said(&error),
                    "may not read this node's object; grant `get` of nodes as \
                     deploy/kustomize/base/rbac.yaml does, or set the environment variable NODE_ZONE, \
                     without which no zone hint counts, and services.podCIDRs, without which pods are not \
                     told from clients outside"
                );
                return NodeObject::default();
            }
            Err(_) => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
        }
    }
}

fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

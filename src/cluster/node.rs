//! This node's object at the API server: what neither the container nor a slice tells of it.
//!
//! It is read until all is known, and then no more: a node keeps its zone and its range. Only the few
//! fields that are used are read: an object with the list of its images is large.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::Request;
use ipnet::IpNet;
use kube::Client;
use serde::Deserialize;

use crate::cluster::api::Pauses;
use crate::text::one_line;

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

/// Looks at a node until all is known of it: a cloud tells a new node's zone, and the cluster its range
/// of pods, after pods on the network of the node have begun.
pub struct Looks {
    client: Client,
    name: String,
    /// Before the next look.
    pause: Duration,
    asked: BoxFuture<'static, Option<NodeObject>>,
}

impl Looks {
    /// Begins to look. `name` is a DNS subdomain.
    pub fn at(client: Client, name: String) -> Self {
        Self {
            asked: ask(client.clone(), name.clone(), Duration::ZERO).boxed(),
            client,
            name,
            pause: FIRST_PAUSE,
        }
    }

    /// The next answer. There is none after a refusal, after an answer that lacks nothing, and after
    /// some minutes: then the node has no zone, or no range. Cancellation-safe.
    pub async fn next(&mut self) -> NodeObject {
        let found = (&mut self.asked).await;
        let is_whole = found
            .as_ref()
            .is_none_or(|it| it.zone().is_some() && !it.pod_ranges().is_empty());
        self.asked = match is_whole || self.pause > LONGEST_PAUSE {
            true => std::future::pending().boxed(),
            false => ask(self.client.clone(), self.name.clone(), self.pause).boxed(),
        };
        self.pause *= 2;
        found.unwrap_or_default()
    }
}

/// Asks for a node after a pause. Tries until there is an answer. A refusal is logged; `None`.
async fn ask(client: Client, name: String, pause: Duration) -> Option<NodeObject> {
    tokio::time::sleep(pause).await;
    let mut pauses = Pauses::default();
    loop {
        let request = Request::get(format!("/api/v1/nodes/{name}")).body(Vec::new());
        match client.request(request.ok()?).await {
            Ok(node) => return Some(node),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                return Some(NodeObject::default());
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    node = name,
                    error = one_line(&status.message),
                    "may not read this node's object; grant `get` of nodes as \
                     deploy/kustomize/base/rbac.yaml does, or set the environment variable NODE_ZONE, \
                     without which no zone hint counts, and services.podCIDRs, without which pods are not \
                     told from clients outside"
                );
                return None;
            }
            Err(_) => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The pauses double up to this one: nine looks in as many minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(256);

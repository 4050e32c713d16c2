//! The drill's requests to the API server: make, roll and remove its objects, and find the nodes.
//!
//! Invariant: only objects with the drill's own label are changed or removed. Objects are read as
//! JSON by pointer, because the API's types for a whole pod would be a fifth of the program.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams,
};
use kube::core::{ApiResource, params::Preconditions};
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::cluster::api::{self, said};
use crate::cluster::rights::{self, Right};
use crate::command::drill::manifests::{self, MADE, MANAGED_BY, MANAGER, NAME, REPLICAS, Resource};
use crate::command::drill::settings::{Settings, refused};
use crate::config::fault::Refused;
use crate::config::settings::Kubernetes;

/// One namespace of a cluster.
pub(super) struct Cluster {
    client: Client,
    namespace: String,
}

/// Where an object that was made is reached; a Deployment is not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub node_port: Option<u16>,
    pub cluster: Option<SocketAddr>,
}

/// The progress of the Deployment's rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rollout {
    /// Pods of the previous version that are leaving or gone.
    pub replaced: usize,
    /// Whether all pods have the newest version and are available.
    pub done: bool,
}

impl Cluster {
    /// Connects as the proxy does: by the service account in a cluster, then by `KUBECONFIG`, then
    /// by the file in the home folder.
    ///
    /// # Errors
    /// No API server is configured, or its configuration is bad.
    pub(super) async fn connect(namespace: &str) -> Result<Self, Refused> {
        let config = api::locate(&Kubernetes {
            silence: SILENCE,
            ..Kubernetes::default()
        })
        .await?;
        let (client, _, _) = api::connect(config)?;
        Ok(Self {
            client,
            namespace: namespace.to_owned(),
        })
    }

    /// Finds out whether the drill can run. Removes what an earlier drill has left, and changes
    /// nothing else.
    ///
    /// # Errors
    /// A right is missing, a foreign object has one of the names, an object cannot be removed, or
    /// the API server would refuse an object.
    pub(super) async fn prepare(
        &self,
        settings: &Settings,
        objects: &[Value],
    ) -> Result<(), Refused> {
        let namespace = Some(self.namespace.as_str());
        let mut needed = vec![
            Right::new("get create patch delete", "deployments.apps", namespace),
            Right::new("get create delete", "services", namespace),
        ];
        if settings.address.is_none() {
            needed.push(Right::new("list", "nodes", None));
        }
        let missing = rights::missing(&self.client, needed)
            .await
            .map_err(|error| {
                refused(format!(
                    "the API server does not answer: {}; `kubectl get nodes` shows more",
                    said(&error)
                ))
            })?;
        if !missing.is_empty() {
            let list = missing
                .iter()
                .map(Right::to_string)
                .collect::<Vec<_>>()
                .join("; ");
            let nodes = missing.iter().any(|right| right.resource == "nodes");
            let or = if nodes {
                "; with --address the nodes are not needed"
            } else {
                ""
            };
            return Err(refused(format!(
                "you may not {list}: ask for this right{or}"
            )));
        }
        for (kind, name) in MADE {
            let found = self.api(kind).get_metadata_opt(name).await;
            match found
                .map_err(|error| refused(format!("{} {name}: {}", kind.as_str(), said(&error))))?
            {
                Some(found) if !is_ours(&found.metadata) => {
                    return Err(refused(self.foreign(kind, name)));
                }
                _ => {}
            }
        }
        if let Some(left) = self.remove().await.into_iter().next() {
            return Err(refused(format!(
                "an object of an earlier drill cannot be removed: {left}"
            )));
        }
        // A dry run finds a quota, a policy or a missing namespace before anything is made.
        for object in objects {
            self.create(object, true)
                .await
                .map_err(|error| refused(said(&error)))?;
        }
        Ok(())
    }

    fn foreign(&self, kind: Resource, name: &str) -> String {
        format!(
            "namespace {0} has a {1} {name} that no drill made (it lacks the label {MANAGED_BY}={MANAGER}); choose \
             another --namespace, or remove it: kubectl --namespace {0} delete {2} {name}",
            self.namespace,
            kind.as_str(),
            kind.as_str().to_lowercase()
        )
    }

    /// Makes an object. Returns where it is reached, if it is a Service.
    ///
    /// # Errors
    /// The error of the API server.
    pub(super) async fn create(&self, object: &Value, dry_run: bool) -> kube::Result<Made> {
        let kind = if object["kind"] == "Deployment" {
            Resource::Deployment
        } else {
            Resource::Service
        };
        let params = PostParams {
            dry_run,
            field_manager: Some(MANAGER.to_owned()),
        };
        let object: DynamicObject =
            serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
        let made = self.api(kind).create(&params, &object).await?;
        let port = |field: &str| {
            let port = made.data.pointer(&format!("/spec/ports/0/{field}"));
            port.and_then(Value::as_u64)?.try_into().ok()
        };
        let ip = made.data.pointer("/spec/clusterIP").and_then(Value::as_str);
        let ip = ip.and_then(|ip| ip.parse().ok());
        Ok(Made {
            node_port: port("nodePort"),
            cluster: Option::zip(ip, port("port")).map(|(ip, port)| SocketAddr::new(ip, port)),
        })
    }

    /// Makes the Deployment replace all its pods.
    ///
    /// # Errors
    /// The error of the API server.
    pub(super) async fn update(&self) -> kube::Result<()> {
        let patch = Patch::Merge(manifests::update(&jiff::Timestamp::now().to_string()));
        self.api(Resource::Deployment)
            .patch(NAME, &PatchParams::default(), &patch)
            .await
            .map(drop)
    }

    /// The progress of the rollout. If the API server does not answer, it is reported as not begun.
    ///
    /// # Errors
    /// The Deployment does not exist (any more), or may not be read.
    pub(super) async fn rollout(&self) -> kube::Result<Rollout> {
        match self.api(Resource::Deployment).get(NAME).await {
            Ok(deployment) => Ok(Rollout::of(&deployment)),
            Err(error) if matches!(code(&error), 401 | 403 | 404) => Err(error),
            Err(_) => Ok(Rollout {
                replaced: 0,
                done: false,
            }),
        }
    }

    /// Waits until all pods have the newest version and are ready.
    ///
    /// # Errors
    /// They are not ready after two minutes. The error says why, if the cluster does.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while !self
            .rollout()
            .await
            .map_err(|error| anyhow::anyhow!("Deployment {NAME}: {}", said(&error)))?
            .done
        {
            if Instant::now() > deadline {
                let why = self
                    .why_not_ready()
                    .await
                    .unwrap_or_else(|| "the cluster does not say why".to_owned());
                anyhow::bail!("the sample application's pods are not ready after {START:?}: {why}");
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn why_not_ready(&self) -> Option<String> {
        let pods = self.namespaced(&ApiResource::erase::<Pod>(&()), &self.namespace);
        let pods = pods
            .list(&ListParams::default().labels(&format!("{MANAGED_BY}={MANAGER}")))
            .await
            .ok()?
            .items;
        let reason = pods.iter().find_map(|pod| {
            let waiting =
                items(pod, "/status/containerStatuses").find_map(|it| it.pointer("/state/waiting"));
            let unmet = || items(pod, "/status/conditions").find_map(|it| text(it, "message"));
            let words = |it| {
                ["reason", "message"]
                    .map(|field| text(it, field).unwrap_or_default())
                    .join(" ")
            };
            Some(format!(
                "{}: {}",
                pod.name_any(),
                waiting.map(words).or_else(unmet)?
            ))
        });
        if reason.is_some() {
            return reason;
        }
        // No pod could be made, because of a quota or an admission policy.
        let deployment = self.api(Resource::Deployment).get(NAME).await.ok()?;
        items(&deployment, "/status/conditions")
            .find(|it| it["type"] == "ReplicaFailure")
            .and_then(|it| text(it, "message"))
    }

    /// Removes all objects of drills in this namespace and waits until they are gone. Returns what
    /// is left, each with the reason.
    pub(super) async fn remove(&self) -> Vec<String> {
        let deadline = Instant::now() + REMOVAL;
        let (mut left, mut failed) = (MADE.to_vec(), Vec::new());
        loop {
            let mut still = Vec::new();
            for (kind, name) in left {
                let what =
                    |why: &str| format!("{} {}/{name}: {why}", kind.as_str(), self.namespace);
                let is_late = Instant::now() > deadline;
                match self.remove_one(kind, name).await {
                    Ok(true) => {}
                    Ok(false) if is_late => {
                        failed.push(what(&format!("still there after {REMOVAL:?}")))
                    }
                    Err(error) if is_late || matches!(code(&error), 401 | 403) => {
                        failed.push(what(&said(&error)))
                    }
                    _ => still.push((kind, name)),
                }
            }
            if still.is_empty() {
                return failed;
            }
            left = still;
            sleep(POLL).await;
        }
    }

    /// Returns whether no such object of a drill exists any more. If it exists, deletes it.
    async fn remove_one(&self, kind: Resource, name: &str) -> kube::Result<bool> {
        let api = self.api(kind);
        let Some(found) = api.get_metadata_opt(name).await? else {
            return Ok(true);
        };
        if !is_ours(&found.metadata) {
            return Ok(true);
        }
        if found.metadata.deletion_timestamp.is_none() {
            // Foreground: the object is gone only when its pods are gone. By UID: another object
            // that has taken the name meanwhile is not deleted.
            let this = Preconditions {
                uid: found.metadata.uid,
                resource_version: None,
            };
            api.delete(name, &DeleteParams::foreground().preconditions(this))
                .await?;
        }
        Ok(false)
    }

    /// The InternalIPs of the nodes that are ready.
    ///
    /// # Errors
    /// The error of the API server.
    pub(super) async fn nodes(&self) -> kube::Result<Vec<IpAddr>> {
        let nodes: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &ApiResource::erase::<Node>(&()));
        Ok(nodes
            .list(&ListParams::default())
            .await?
            .items
            .iter()
            .filter_map(address)
            .collect())
    }

    fn api(&self, kind: Resource) -> Api<DynamicObject> {
        let resource = match kind {
            Resource::Service => ApiResource::erase::<Service>(&()),
            Resource::Deployment => ApiResource::erase::<Deployment>(&()),
        };
        self.namespaced(&resource, &self.namespace)
    }

    pub(super) fn namespaced(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }
}

impl Rollout {
    /// The progress by the rules of `kubectl rollout status`.
    fn of(deployment: &DynamicObject) -> Self {
        let status = |field: &str| {
            deployment
                .data
                .pointer(&format!("/status/{field}"))
                .and_then(Value::as_i64)
        };
        if status("observedGeneration") < deployment.metadata.generation {
            return Self {
                replaced: 0,
                done: false,
            };
        }
        let count = |field: &str| usize::try_from(status(field).unwrap_or(0)).unwrap_or(0);
        let (all, updated) = (count("replicas"), count("updatedReplicas"));
        let done = updated == REPLICAS && all == REPLICAS && count("availableReplicas") == REPLICAS;
        Self {
            replaced: REPLICAS.saturating_sub(all.saturating_sub(updated)),
            done,
        }
    }
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER))
}

/// The status code of the API server; 0 if there was no response.
fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

fn address(node: &DynamicObject) -> Option<IpAddr> {
    let is_ready =
        items(node, "/status/conditions").any(|it| it["type"] == "Ready" && it["status"] == "True");
    let internal = items(node, "/status/addresses").filter(|it| it["type"] == "InternalIP");
    internal
        .filter_map(|it| text(it, "address")?.parse().ok())
        .next()
        .filter(|_| is_ready)
}

/// The items of a list in an object; none if there is no such list.
pub(super) fn items<'a>(
    object: &'a DynamicObject,
    pointer: &str,
) -> impl Iterator<Item = &'a Value> {
    object
        .data
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

pub(super) fn text(value: &Value, field: &str) -> Option<String> {
    value.get(field)?.as_str().map(str::to_owned)
}

/// The pause between two reads of a state that is waited for.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// How long a response of the API server may be silent.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the pods may take to become ready.
const START: Duration = Duration::from_secs(120);
/// How long a removal may take. It is longer than a pod's grace period (30 s): the application ends
/// at SIGTERM, but its node may be slow or gone.
const REMOVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn a_rollout_is_done_when_no_old_pod_is_left_and_all_are_available() {
        let of = |generation: i64, status: Value| {
            let metadata = json!({"generation": generation});
            let Rollout { replaced, done } =
                Rollout::of(&from_value(json!({"metadata": metadata, "status": status})).unwrap());
            (replaced, done)
        };
        let status = |all: usize, updated: usize, available: usize| {
            let seen = 2;
            json!({"observedGeneration": seen, "replicas": all, "updatedReplicas": updated, "availableReplicas": available})
        };
        assert_eq!(of(2, status(3, 3, 3)), (3, true));
        assert_eq!(
            of(3, status(3, 3, 3)),
            (0, false),
            "a status of the previous generation does not count"
        );
        assert_eq!(
            of(2, status(4, 1, 3)),
            (0, false),
            "one new pod has come, no old one has left"
        );
        assert_eq!(of(2, status(4, 2, 3)), (1, false));
        assert_eq!(of(2, status(4, 3, 3)), (2, false));
        assert_eq!(
            of(2, status(3, 3, 2)),
            (3, false),
            "the last pod is not available yet"
        );
        assert_eq!(of(1, json!(null)), (0, false));
        assert_eq!(
            of(2, status(9, 1, 3)),
            (0, false),
            "a status that cannot be is no panic"
        );
    }

    #[test]
    fn only_a_ready_node_has_an_address() {
        let node = |ready: &str, addresses: Value| {
            let conditions = json!([{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": ready}]);
            address(
                &from_value(json!({"metadata": {}, "status": {"conditions": conditions, "addresses": addresses}}))
                    .unwrap(),
            )
        };
        let addresses = json!([{"type": "Hostname", "address": "10.0.0.9"}, {"type": "InternalIP", "address": "10.0.0.1"}]);
        assert_eq!(node("True", addresses.clone()), Some([10, 0, 0, 1].into()));
        assert_eq!(node("Unknown", addresses), None);
        assert_eq!(
            node("True", json!([{"type": "InternalIP", "address": "node1"}])),
            None
        );
    }
}

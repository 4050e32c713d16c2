//! The manifests of a fleet: one Service, its Pods and its EndpointSlices, as files that
//! `discovery.files` reads.
//!
//! Invariant: each file is renamed into place, so no reader ever sees half of a manifest. A
//! manifest that would not change is not written again. All functions take the fleet's folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::command::demo::pod::{Pod, uid};

/// The folder that `discovery.files` reads.
pub(super) fn folder(fleet: &Path) -> PathBuf {
    fleet.join(MANIFESTS)
}

/// Writes the Service: claimed for Ebbtide, port 80 named `http`.
pub(super) fn write_service(fleet: &Path, app_protocol: Option<&str>) -> anyhow::Result<()> {
    let mut port = json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": "http" });
    if let Some(protocol) = app_protocol {
        port["appProtocol"] = json!(protocol);
    }
    let labels = json!({ "service.kubernetes.io/service-proxy-name": "ebbtide" });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": NAMESPACE, "name": SERVICE, "uid": uid(), "labels": labels },
        "spec": { "selector": { "app": SERVICE }, "ports": [port] },
    });
    write(fleet, "service.json", &service)
}

/// Writes a Pod with this `terminationGracePeriodSeconds`.
pub(super) fn write_pod(fleet: &Path, pod: &Pod, grace: Duration) -> anyhow::Result<()> {
    let grace = grace.as_secs();
    let mut metadata = json!({
        "namespace": NAMESPACE,
        "name": pod.name,
        "uid": pod.uid,
        "labels": { "app": SERVICE, "pod-template-hash": pod.version },
    });
    if let Some(deleted_at) = pod.deleted_at {
        // The API server sets the timestamp to the end of the grace period, in whole seconds.
        let ends = jiff::Timestamp::from_second(deleted_at.as_second() + grace.cast_signed())?;
        metadata["deletionTimestamp"] = json!(ends.to_string());
        metadata["deletionGracePeriodSeconds"] = json!(grace);
    }
    let spec = json!({
        "terminationGracePeriodSeconds": grace,
        "containers": [{ "name": "sample-app", "image": "ebbtide" }],
    });
    write(
        fleet,
        &pod_file(pod),
        &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }),
    )
}

/// Removes a Pod, if it has a manifest.
pub(super) fn remove_pod(fleet: &Path, pod: &Pod) -> std::io::Result<()> {
    let file = folder(fleet).join(pod_file(pod));
    if file.exists() {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// Writes the EndpointSlices of these pods, `slice_size` endpoints in each, and removes the slices
/// that are no longer needed. `port` is the port of all pods. `with_pods`: the endpoints refer to
/// Pods.
pub(super) fn write_slices(
    fleet: &Path,
    pods: &[&Pod],
    port: u16,
    slice_size: usize,
    with_pods: bool,
) -> anyhow::Result<()> {
    let mut files = BTreeSet::new();
    // A Service without pods has one empty slice.
    let slices = pods.len().div_ceil(slice_size).max(1);
    for number in 0..slices {
        let pods = pods.iter().skip(number * slice_size).take(slice_size);
        let endpoints: Vec<Value> = pods.map(|pod| endpoint(pod, with_pods)).collect();
        let name = format!("{SERVICE}-{number}");
        let labels = json!({ "kubernetes.io/service-name": SERVICE });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "namespace": NAMESPACE, "name": name, "labels": labels },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "protocol": "TCP", "port": port }],
            "endpoints": endpoints,
        });
        let file = format!("slice-{number}.json");
        write(fleet, &file, &slice)?;
        files.insert(file);
    }
    let folder = folder(fleet);
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("slice-") && !files.contains(&name) {
            std::fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

fn endpoint(pod: &Pod, with_pods: bool) -> Value {
    let mut endpoint = json!({
        "addresses": [pod.address.ip()],
        "conditions": { "ready": pod.ready, "serving": pod.serving, "terminating": pod.terminating },
    });
    if with_pods {
        endpoint["targetRef"] =
            json!({ "kind": "Pod", "namespace": NAMESPACE, "name": pod.name, "uid": pod.uid });
    }
    endpoint
}

fn write(fleet: &Path, file: &str, object: &Value) -> anyhow::Result<()> {
    let path = folder(fleet).join(file);
    let text = serde_json::to_vec_pretty(object)?;
    if std::fs::read(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let temporary = fleet.join(file);
    std::fs::write(&temporary, text)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}.json", pod.name)
}

/// The namespace of all objects of a fleet.
pub const NAMESPACE: &str = "web";
/// The name of a fleet's Service.
pub const SERVICE: &str = "shop";
const MANIFESTS: &str = "manifests";

//! Additions to the rigs of `tests/support` for these scenarios: pods, endpoints in every
//! condition, metrics and log lines. They write manifests and read what the proxy reports. Requests
//! are sent by `ask.rs`, and endpoints are in `play.rs` and `scripted.rs`.

use std::path::Path;
use std::time::Duration;

use ebbtide::routing::drains::Record;
use serde_json::{Value, json};

use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::pods::pod;
use crate::support::process::Process;
use crate::support::rig::{Rig, one_listener};
use crate::support::wait::eventually;

impl Folder {
    /// Writes a Pod manifest. `deletion` is the remaining grace in seconds of a pod that is being
    /// deleted.
    pub fn pod(&self, name: &str, hash: &str, deletion: Option<u64>) {
        let mut pod = pod(name, hash);
        if let Some(grace) = deletion {
            let ends = jiff::Timestamp::now() + Duration::from_secs(grace);
            pod["metadata"]["deletionTimestamp"] =
                json!(ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        self.write(&format!("pod-{name}.json"), &pod);
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests().join(file)).unwrap();
    }
}

impl Ep {
    pub fn of_pod(self) -> Self {
        Self { pod: true, ..self }
    }

    pub fn not_ready(self) -> Self {
        Self {
            ready: false,
            serving: false,
            ..self
        }
    }

    /// The conditions that the EndpointSlice controller writes for a pod that is being deleted and
    /// still answers its probe.
    pub fn terminating(self) -> Self {
        Self {
            ready: false,
            serving: true,
            terminating: true,
            ..self
        }
    }
}

impl Rig {
    /// Like [`Rig::with_protocol`], with protocol `auto`.
    pub async fn start(more: &str) -> Self {
        Self::with_protocol("auto", more).await
    }

    /// The drains so far, and those that run.
    pub fn receipts(&self) -> Vec<Record> {
        self.running().admin.drains.records()
    }

    /// The sum of a metric over all samples whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.running().admin.metrics.render().unwrap_or_default();
        let text = String::from_utf8_lossy(text.as_ref()).into_owned();
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Process {
    /// Starts like [`Rig::with_protocol`] with these endpoints, and waits until all of them are in
    /// rotation.
    pub async fn start(protocol: &str, endpoints: &[Ep], more: &str) -> Self {
        Self::run_as(BINARY.as_ref(), endpoints, protocol, more).await
    }

    /// Like [`Self::start`], with another build of the program.
    pub async fn run_as(binary: &Path, endpoints: &[Ep], protocol: &str, more: &str) -> Self {
        Self::launch(binary, endpoints, &one_listener(protocol, more), &["web"]).await
    }

    /// As `logged`, once there is such a line: a line is written by a thread of its own, so it may come
    /// after what it tells is seen elsewhere.
    pub async fn lines(&self, what: &str) -> Vec<Value> {
        eventually(what, async || !self.logged(what).is_empty()).await;
        self.logged(what)
    }

    /// The lines at the end of the log whose message contains `what`.
    pub fn logged(&self, what: &str) -> Vec<Value> {
        let tail = self.proxy.log_tail();
        let lines = tail
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| {
                line["message"]
                    .as_str()
                    .is_some_and(|message| message.contains(what))
            })
            .collect()
    }
}

//! The proxy as a process of its own, over a folder of manifests. Tests use it where signals,
//! descriptors, logs or exit codes matter. Where they do not, `rig.rs` runs the proxy in the test's
//! process.

use std::net::SocketAddr;
use std::path::Path;

use ebbtide::command::demo::proxy::Proxy;
use serde_json::Value;

use super::binary::BINARY;
use super::folder::{Ep, Folder};
use super::wait::eventually;

/// A running proxy and its folder. The process is killed at drop.
pub struct Process {
    pub proxy: Proxy,
    pub folder: Folder,
}

impl Process {
    /// Starts a proxy with a complete configuration and these endpoints. Waits until the proxy
    /// listens on these listeners and all of the endpoints are in rotation.
    pub async fn run(endpoints: &[Ep], text: &str, listeners: &[&str]) -> Self {
        Self::launch(BINARY.as_ref(), endpoints, text, listeners).await
    }

    /// Like [`Self::run`], with another build of the program.
    pub async fn launch(binary: &Path, endpoints: &[Ep], text: &str, listeners: &[&str]) -> Self {
        let folder = Folder::new();
        folder.endpoints(endpoints);
        let proxy = Proxy::start(binary, folder.path(), text, listeners)
            .await
            .unwrap();
        let process = Self { proxy, folder };
        process.ready(endpoints.len()).await;
        process
    }

    /// Waits until at least `count` endpoints are in rotation.
    pub async fn ready(&self, count: usize) {
        eventually(&format!("{count} endpoints in rotation"), async || {
            let status = self.json("/api/v1/status").await;
            let endpoints = status["services"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|s| s["endpoints"].as_array());
            endpoints
                .flatten()
                .filter(|e| e["state"] == "ready")
                .count()
                >= count
        })
        .await;
    }

    pub fn web(&self) -> SocketAddr {
        self.proxy.web().unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.proxy.page(path).await.unwrap().body).unwrap()
    }
}

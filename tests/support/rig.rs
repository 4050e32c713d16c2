//! A proxy in this process, over a folder of manifests, with real sockets and threads. Tests can
//! read its published snapshot and its metrics directly. It has no signals and no log of its own:
//! see `process.rs`.

use std::net::SocketAddr;
use std::ops::Deref;

use ebbtide::app::{self, Running};
use ebbtide::config::settings::{Config, Node};

use super::folder::Folder;
use super::wait::eventually;

/// A running proxy and its folder. Drop shuts the proxy down without grace, so that a failed test
/// leaves nothing behind.
pub struct Rig {
    folder: Folder,
    running: Option<Running>,
}

impl Rig {
    /// Starts with one listener `web` for Service `web/shop` port 80, no endpoints, and `more` YAML
    /// at the end of the configuration.
    pub async fn with_protocol(protocol: &str, more: &str) -> Self {
        Self::run(Folder::new(), &one_listener(protocol, more)).await
    }

    /// Starts a proxy with a complete configuration.
    pub async fn run(folder: Folder, text: &str) -> Self {
        let file = folder.path().join("ebbtide.yaml");
        std::fs::write(&file, text).unwrap();
        let config = Config {
            node: Node {
                name: Some(NODE.into()),
                zone: None,
            },
            ..Config::load(&file).unwrap()
        };
        let running = app::start(config).unwrap();
        eventually("ready", async || {
            let state = running.admin.health.state();
            state.synced && state.ports_tried
        })
        .await;
        Self {
            folder,
            running: Some(running),
        }
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// The address that clients connect to.
    pub fn web(&self) -> SocketAddr {
        self.running().listener("web").unwrap()
    }

    /// Waits until the published table has exactly `count` usable endpoints and the drains
    /// that came with the table have begun.
    pub async fn usable(&self, count: usize) {
        eventually(&format!("{count} usable endpoints"), async || {
            let snapshot = self.running().admin.snapshot.load();
            snapshot
                .ports
                .values()
                .any(|port| port.usable.len() == count)
                && self.running().is_settled()
        })
        .await;
    }
}

/// The node's name.
pub const NODE: &str = "n1";

/// A configuration with one listener `web` for Service `web/shop` port 80, and `more` YAML at its
/// end.
pub fn one_listener(protocol: &str, more: &str) -> String {
    format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: {protocol}}}]\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n{more}\n"
    )
}

impl Deref for Rig {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown();
            running.shutdown();
            running.wait();
        }
    }
}

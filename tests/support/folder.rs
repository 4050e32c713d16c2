//! A folder of manifests that belongs to one scenario, and the endpoints that it lists. A file is
//! replaced by a rename, so the proxy never reads half a manifest. The folder holds Service
//! `web/shop` from the beginning.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::manifests::{endpoint, service, slice};

/// A temporary folder. The manifests are in the folder `manifests` within it. It is removed at
/// drop.
pub struct Folder(TempDir);

impl Folder {
    /// Makes a folder that holds Service `web/shop`.
    pub fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(folder.manifests()).unwrap();
        folder.service(&[]);
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn manifests(&self) -> PathBuf {
        self.path().join("manifests")
    }

    /// Writes Service `web/shop` with these annotations.
    pub fn service(&self, annotations: &[(&str, &str)]) {
        let annotations: Map<_, _> = annotations
            .iter()
            .map(|(key, value)| ((*key).into(), json!(value)))
            .collect();
        self.write("service.json", &service("shop", annotations.into()));
    }

    /// Writes one slice for each endpoint, named `slice-{name}`. Removes the slices of all other
    /// endpoints.
    pub fn endpoints(&self, endpoints: &[Ep]) {
        let keep: Vec<String> = endpoints
            .iter()
            .map(|ep| format!("slice-{}.json", ep.name))
            .collect();
        for ep in endpoints {
            self.write(&format!("slice-{}.json", ep.name), &ep.slice());
        }
        for entry in std::fs::read_dir(self.manifests()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("slice-") && !keep.contains(&name) {
                std::fs::remove_file(self.manifests().join(name)).unwrap();
            }
        }
    }

    /// Replaces a whole manifest by a rename.
    pub fn write(&self, file: &str, object: &Value) {
        let temporary = self.path().join(file);
        std::fs::write(&temporary, object.to_string()).unwrap();
        std::fs::rename(temporary, self.manifests().join(file)).unwrap();
    }
}

/// An endpoint of Service `web/shop`, as its slice shows it.
#[derive(Clone)]
pub struct Ep {
    pub name: String,
    pub address: SocketAddr,
    /// The slice names Pod `name` as the endpoint's target.
    pub pod: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl Ep {
    /// A ready endpoint without a pod.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            address,
            pod: false,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    fn slice(&self) -> Value {
        self.slice_of("shop", "")
    }

    /// The slice of this endpoint for another Service. `port` is the name of its port.
    pub fn slice_of(&self, service: &str, port: &str) -> Value {
        let conditions = [self.ready, self.serving, self.terminating];
        let pod = self.pod.then_some(self.name.as_str());
        let endpoint = endpoint(&self.address.ip().to_string(), pod, conditions);
        slice(
            &format!("slice-{}", self.name),
            service,
            (port, self.address.port()),
            &[endpoint],
        )
    }
}

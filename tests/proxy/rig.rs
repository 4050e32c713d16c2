//! What the scenarios share: a proxy in this process with manifests in a folder of its own, scripted endpoints on
//! loopback, and waiting for a condition instead of for a time.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebbtide::app::{self, Running};
use ebbtide::command::demo::proxy::Proxy;
use ebbtide::config::settings::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The program under test, for scenarios that need it as a process.
pub fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_ebbtide").into()
}

/// A proxy in this process. Shut down at drop (without grace), so that a failed test leaves nothing behind.
pub struct Rig {
    pub folder: TempDir,
    pub running: Option<Running>,
}

impl Rig {
    /// Starts with one listener `web` for Service `web/shop` port 80, no endpoints, and `more` YAML at the end of the
    /// configuration.
    pub async fn start(more: &str) -> Self {
        Self::with_protocol("auto", more).await
    }

    pub async fn with_protocol(protocol: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        let rig = Self { folder, running: None };
        rig.service(&[]);
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\n\
             listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: {protocol}}}]\n\
             admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n{more}\n"
        );
        rig.run(&text).await
    }

    /// Starts with a whole configuration of the scenario's own.
    pub async fn run(mut self, text: &str) -> Self {
        let file = self.folder.path().join("ebbtide.yaml");
        std::fs::write(&file, text).unwrap();
        let running = app::start(Config::load(&file).unwrap()).unwrap();
        eventually("ready", || {
            let state = running.admin.health.state();
            state.synced && state.ports_tried
        })
        .await;
        self.running = Some(running);
        self
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Where clients connect.
    pub fn web(&self) -> SocketAddr {
        self.running().listener("web").unwrap()
    }

    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// Writes the Service with these annotations.
    pub fn service(&self, annotations: &[(&str, &str)]) {
        let annotations: serde_json::Map<_, _> = annotations.iter().map(|(k, v)| ((*k).into(), json!(v))).collect();
        self.write(
            "service.json",
            &json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": "web", "name": "shop", "annotations": annotations},
                "spec": {"ports": [{"port": 80, "protocol": "TCP"}]},
            }),
        );
    }

    /// Writes one slice per endpoint, named `slice-{name}`; removes those of endpoints that are not given.
    pub fn endpoints(&self, endpoints: &[Ep]) {
        let keep: Vec<String> = endpoints.iter().map(|ep| format!("slice-{}.json", ep.name)).collect();
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

    /// Writes a Pod manifest; `deletion` is its grace in seconds, once it is being deleted.
    pub fn pod(&self, name: &str, hash: &str, deletion: Option<u64>) {
        let mut metadata = json!({
            "namespace": "web", "name": name, "uid": uid_of(name), "labels": {"pod-template-hash": hash},
        });
        if let Some(grace) = deletion {
            let ends = jiff::Timestamp::now() + Duration::from_secs(grace);
            metadata["deletionTimestamp"] = json!(ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            metadata["deletionGracePeriodSeconds"] = json!(grace);
        }
        self.write(&format!("pod-{name}.json"), &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}));
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests().join(file)).unwrap();
    }

    /// Replaces a manifest whole.
    pub fn write(&self, file: &str, object: &Value) {
        let temporary = self.folder.path().join(file);
        std::fs::write(&temporary, object.to_string()).unwrap();
        std::fs::rename(temporary, self.manifests().join(file)).unwrap();
    }

    /// Waits until the published table has as many usable endpoints, and what it ended drains.
    pub async fn usable(&self, count: usize) {
        eventually(&format!("{count} usable endpoints"), || {
            let snapshot = self.running().admin.snapshot.load();
            snapshot.ports.values().any(|port| port.usable.len() == count) && self.running().is_settled()
        })
        .await;
    }

    /// A metric's sum over all samples whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.running().admin.metrics.render().unwrap_or_default();
        let text = String::from_utf8_lossy(text.as_ref()).into_owned();
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
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

/// The proxy as a process of its own, over manifests as [`Rig`] writes them. Killed at drop.
pub struct Process {
    pub proxy: Proxy,
    /// Without a proxy in this process.
    pub rig: Rig,
}

impl Process {
    /// Starts as [`Rig::with_protocol`] does, with these endpoints, and waits until all of them are in rotation.
    pub async fn start(protocol: &str, endpoints: &[Ep], more: &str) -> Self {
        Self::run_as(&binary(), endpoints, protocol, more).await
    }

    /// As [`Self::start`], another build of the program.
    pub async fn run_as(binary: &Path, endpoints: &[Ep], protocol: &str, more: &str) -> Self {
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\n\
             listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: {protocol}}}]\n\
             admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n{more}\n"
        );
        Self::launch(binary, endpoints, &text, &["web"]).await
    }

    /// Starts with a whole configuration, and waits until it listens at these listeners.
    pub async fn run(endpoints: &[Ep], text: &str, listeners: &[&str]) -> Self {
        Self::launch(&binary(), endpoints, text, listeners).await
    }

    /// As [`Self::run`], another build of the program.
    pub async fn launch(binary: &Path, endpoints: &[Ep], text: &str, listeners: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        let rig = Rig { folder, running: None };
        rig.service(&[]);
        rig.endpoints(endpoints);
        let proxy = Proxy::start(binary, rig.folder.path(), text, listeners).await.unwrap();
        let process = Self { proxy, rig };
        process.ready(endpoints.len()).await;
        process
    }

    /// Waits until as many endpoints are in rotation.
    pub async fn ready(&self, count: usize) {
        until(&format!("{count} endpoints in rotation"), async || {
            let status = self.json("/api/v1/status").await;
            let endpoints = status["services"].as_array().unwrap().iter().flat_map(|s| s["endpoints"].as_array());
            endpoints.flatten().filter(|e| e["state"] == "ready").count() >= count
        })
        .await;
    }

    pub fn web(&self) -> SocketAddr {
        self.proxy.web().unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.proxy.page(path).await.unwrap().body).unwrap()
    }

    /// The log's last lines whose message contains `what`.
    pub fn logged(&self, what: &str) -> Vec<Value> {
        let tail = self.proxy.log_tail();
        let lines = tail.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"].as_str().is_some_and(|message| message.contains(what))).collect()
    }
}

/// An endpoint as its slice shows it.
#[derive(Clone)]
pub struct Ep {
    pub name: String,
    pub address: SocketAddr,
    /// Names a Pod `name` with the UID [`uid_of`] it.
    pub pod: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl Ep {
    /// Ready, and without a pod.
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self { name: name.into(), address, pod: false, ready: true, serving: true, terminating: false }
    }

    pub fn of_pod(self) -> Self {
        Self { pod: true, ..self }
    }

    pub fn not_ready(self) -> Self {
        Self { ready: false, serving: false, ..self }
    }

    /// As the EndpointSlice controller writes a pod that is being deleted and still answers its probe.
    pub fn terminating(self) -> Self {
        Self { ready: false, serving: true, terminating: true, ..self }
    }

    fn slice(&self) -> Value {
        let mut endpoint = json!({
            "addresses": [self.address.ip()],
            "conditions": {"ready": self.ready, "serving": self.serving, "terminating": self.terminating},
        });
        if self.pod {
            endpoint["targetRef"] =
                json!({"kind": "Pod", "namespace": "web", "name": self.name, "uid": uid_of(&self.name)});
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "web", "name": format!("slice-{}", self.name),
                         "labels": {"kubernetes.io/service-name": "shop"}},
            "addressType": if self.address.is_ipv6() { "IPv6" } else { "IPv4" },
            "ports": [{"port": self.address.port(), "protocol": "TCP", "name": ""}],
            "endpoints": [endpoint],
        })
    }
}

pub fn uid_of(pod: &str) -> String {
    format!("uid-of-{pod}")
}

/// A scripted endpoint: every accepted connection runs `script` with its number, counted from 0. Probes of the proxy's
/// control side connect and close at once: they count as connections too, so a script must bear an immediate end.
pub struct Scripted {
    pub address: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Scripted {
    pub async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    pub fn on<F, Fut>(listener: TcpListener, script: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(stream, number));
            }
        });
        Self { address, accepted, task }
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Polls a condition until it holds; fails after a deadline that only a broken program reaches.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 30 s: {what}");
}

/// As [`eventually`], for a condition that has to be asked for.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..6_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// Bounds a wait that is expected to end.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("not within 30 s: {what}"),
    }
}

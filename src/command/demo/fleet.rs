//! A Deployment in small: sample-app processes, the manifests that describe them, and rolling updates of both.
//!
//! Each process has a loopback address of its own and shares the port, as pods do, so that they share EndpointSlices too.
//! Everything that happens to a leaving pod happens at chosen moments ([`Options`]): its Pod is marked, its endpoint is
//! marked, its process gets a signal, and last it disappears. Dropping the fleet kills its processes and removes its folder.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::command::demo::child;

/// How a fleet is run. May be changed between two updates ([`Fleet::options`]).
#[derive(Debug, Clone)]
pub struct Options {
    /// The program that has `sample-app`.
    pub binary: PathBuf,
    pub replicas: usize,
    /// Version of the first pods.
    pub version: String,
    /// Further arguments of each sample-app, such as `--tcp`.
    pub app_args: Vec<String>,
    /// `appProtocol` of the Service's port.
    pub app_protocol: Option<String>,
    pub tell: Tell,
    /// What ends a leaving process. One that it does not end (a SIGSTOP) is killed when the pod is removed.
    pub signal: Signal,
    /// When the signal comes, in milliseconds after the first manifest change (before it, where negative); drawn anew for
    /// each pod.
    pub signal_offset: RangeInclusive<i64>,
    /// From the Pod's `deletionTimestamp` to the slice's `terminating` ([`Tell::PodAndSlice`]).
    pub slice_lag: Duration,
    /// From the end of the process to the end of its manifests.
    pub gone_after: Duration,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// Pods are Ready before their server listens, by so much: an application without a readiness probe.
    pub listen_after: Option<Duration>,
    /// Endpoints in one EndpointSlice.
    pub slice_size: usize,
}

/// What the manifests say of a leaving pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// The Pod gets a `deletionTimestamp`, then its endpoint is `terminating`.
    PodAndSlice,
    /// There are no Pod manifests; the endpoint is `terminating`.
    Slice,
    /// There are no Pod manifests; the endpoint is gone from the slice.
    Removal,
}

/// One process and what the manifests say of it; change the conditions with [`Fleet::update`].
#[derive(Debug)]
pub struct Pod {
    pub id: PodId,
    pub name: String,
    pub uid: String,
    pub version: String,
    pub address: SocketAddr,
    /// Named by a slice. False once: as when a selector switches away.
    pub listed: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    deleted_at: Option<jiff::Timestamp>,
    process: Child,
}

/// Unique within its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(u32);

pub struct Fleet {
    pub options: Options,
    /// Processes started and ended so far.
    pub started: usize,
    pub ended: usize,
    pods: Vec<Pod>,
    folder: TempDir,
    network: [u8; 2],
    port: u16,
    last_host: u8,
    endpoints: watch::Sender<Vec<SocketAddr>>,
}

impl Options {
    /// Three replicas that exit at SIGTERM, which comes from 50 ms before to 50 ms after the manifest says so.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            replicas: 3,
            version: "v1".into(),
            app_args: Vec::new(),
            app_protocol: Some("http".into()),
            tell: Tell::PodAndSlice,
            signal: Signal::TERM,
            signal_offset: -50..=50,
            slice_lag: Duration::ZERO,
            gone_after: Duration::from_millis(100),
            grace: Duration::from_secs(30),
            listen_after: None,
            slice_size: 100,
        }
    }
}

impl Fleet {
    /// Starts the replicas, and returns once all listen (those with `listen_after`: once all are started) and the
    /// manifests are written.
    ///
    /// # Errors
    /// A process that cannot be started or does not listen within 20 s; a folder that cannot be written.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let network = [fastrand::u8(1..=254), fastrand::u8(..)];
        let folder =
            TempDir::with_prefix("ebbtide-fleet-").context("a folder for the manifests")?;
        std::fs::create_dir(folder.path().join(MANIFESTS))?;
        // A port that is free on one of our addresses is so on the others, and stays ours while any of them listens on it.
        let port = TcpListener::bind((Ipv4Addr::new(127, network[0], network[1], 1), 0))?
            .local_addr()?
            .port();
        let mut fleet = Self {
            started: 0,
            ended: 0,
            pods: Vec::new(),
            folder,
            network,
            port,
            last_host: 0,
            endpoints: watch::Sender::default(),
            options,
        };
        fleet.write_service()?;
        let (replicas, version) = (fleet.options.replicas, fleet.options.version.clone());
        fleet.scale_up(replicas, &version).await?;
        Ok(fleet)
    }

    /// The folder that `discovery.files` reads.
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join(MANIFESTS)
    }

    /// A folder for whatever else belongs to this fleet; removed with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where new connections may go by what the manifests say now: ready endpoints, else terminating ones that serve.
    pub fn endpoints(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.endpoints.subscribe()
    }

    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Starts `count` more pods at once, waits until they listen, and adds them to the slices.
    pub async fn scale_up(&mut self, count: usize, version: &str) -> anyhow::Result<Vec<PodId>> {
        let mut new = Vec::new();
        let mut outputs = Vec::new();
        for _ in 0..count {
            let (pod, output) = self.spawn(version)?;
            new.push(pod.id);
            self.pods.push(pod);
            outputs.push(output);
        }
        if self.options.listen_after.is_none() {
            for output in outputs {
                timeout(START, listening(output))
                    .await
                    .context("a sample-app took too long to listen")??;
            }
        }
        for pod in self.pods.iter_mut().filter(|pod| new.contains(&pod.id)) {
            (pod.listed, pod.ready, pod.serving) = (true, true, true);
        }
        for pod in self.pods.iter().filter(|pod| new.contains(&pod.id)) {
            self.write_pod(pod)?;
        }
        self.write_slices()?;
        Ok(new)
    }

    /// What a Deployment does with `maxSurge: 1` and `maxUnavailable: 0`: a new pod, and once it is Ready the old one
    /// leaves. Returns when the old one is gone.
    pub async fn replace(&mut self, old: PodId, version: &str) -> anyhow::Result<PodId> {
        let new = self.scale_up(1, version).await?;
        self.retire(&[old]).await?;
        new.first().copied().context("no pod was started")
    }

    /// A rolling update: replaces every pod there is, one after the other, with `pause` after each.
    pub async fn roll(&mut self, version: &str, pause: Duration) -> anyhow::Result<()> {
        for old in self.ids() {
            self.replace(old, version).await?;
            sleep(pause).await;
        }
        Ok(())
    }

    /// Every pod that is not leaving.
    pub fn ids(&self) -> Vec<PodId> {
        self.pods
            .iter()
            .filter(|pod| !pod.terminating)
            .map(|pod| pod.id)
            .collect()
    }

    /// Ends pods as [`Options`] says, all of them side by side; returns when they are gone from the manifests.
    pub async fn retire(&mut self, ids: &[PodId]) -> anyhow::Result<()> {
        enum Step {
            MarkPod(PodId),
            MarkEndpoint(PodId),
            Signal(PodId),
        }
        let mut steps = Vec::new();
        for &id in ids {
            steps.push((0, Step::MarkPod(id)));
            let lag = if self.options.tell == Tell::PodAndSlice {
                self.options.slice_lag.as_millis() as i64
            } else {
                0
            };
            steps.push((lag, Step::MarkEndpoint(id)));
            steps.push((
                fastrand::i64(self.options.signal_offset.clone()),
                Step::Signal(id),
            ));
        }
        // Stable: at the same moment the manifests come first.
        steps.sort_by_key(|(at, _)| *at);
        let first = steps.first().map_or(0, |(at, _)| *at);
        let begin = Instant::now();
        for (at, step) in steps {
            sleep_until(begin + Duration::from_millis((at - first).unsigned_abs())).await;
            match step {
                Step::MarkPod(id) => {
                    let pod = self.pod_mut(id)?;
                    pod.deleted_at = Some(jiff::Timestamp::now());
                    self.write_pod(self.pod(id)?)?;
                }
                Step::MarkEndpoint(id) => {
                    let removed = self.options.tell == Tell::Removal;
                    let pod = self.pod_mut(id)?;
                    (pod.terminating, pod.ready) = (true, false);
                    pod.listed &= !removed;
                    self.write_slices()?;
                }
                Step::Signal(id) => child::signal(&self.pod(id)?.process, self.options.signal),
            }
        }
        self.remove(ids).await
    }

    /// Kills a process and says nothing in the manifests: a crash.
    pub async fn crash(&mut self, id: PodId) -> anyhow::Result<()> {
        self.pod_mut(id)?.process.kill().await?;
        Ok(())
    }

    /// Sends any signal to a pod's process.
    pub fn signal(&self, id: PodId, signal: Signal) -> anyhow::Result<()> {
        child::signal(&self.pod(id)?.process, signal);
        Ok(())
    }

    /// Changes what the slices say of a pod, and writes them.
    pub fn update(&mut self, id: PodId, change: impl FnOnce(&mut Pod)) -> anyhow::Result<()> {
        change(self.pod_mut(id)?);
        self.write_slices()
    }

    /// Requests with this key (that of `/count/<key>`, else the path) that all processes have seen, killed ones too.
    pub fn requests(&self, key: &str) -> std::io::Result<usize> {
        let text = std::fs::read_to_string(self.folder.path().join(REQUESTS))?;
        Ok(text
            .lines()
            .filter(|line| line.split(' ').next() == Some(key))
            .count())
    }

    pub fn pod(&self, id: PodId) -> anyhow::Result<&Pod> {
        self.pods
            .iter()
            .find(|pod| pod.id == id)
            .with_context(|| format!("there is no pod {id:?}"))
    }

    fn pod_mut(&mut self, id: PodId) -> anyhow::Result<&mut Pod> {
        self.pods
            .iter_mut()
            .find(|pod| pod.id == id)
            .with_context(|| format!("there is no pod {id:?}"))
    }

    fn spawn(&mut self, version: &str) -> anyhow::Result<(Pod, Option<ChildStdout>)> {
        let id = PodId(self.started as u32);
        let address = self.free_address()?;
        let mut command = child::sample_app(&self.options.binary);
        command
            .args(["--listen", &address.to_string(), "--version", version])
            .args(&self.options.app_args);
        command
            .arg("--count-file")
            .arg(self.folder.path().join(REQUESTS));
        if let Some(after) = self.options.listen_after {
            command.args([
                "--listen-after",
                &humantime::format_duration(after).to_string(),
            ]);
        }
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a sample-app")?;
        self.started += 1;
        let output = process.stdout.take();
        let suffix: String = std::iter::repeat_with(fastrand::lowercase)
            .take(5)
            .collect();
        let pod = Pod {
            id,
            name: format!("{SERVICE}-{version}-{suffix}"),
            uid: uid(),
            version: version.to_owned(),
            address,
            listed: false,
            ready: false,
            serving: false,
            terminating: false,
            deleted_at: None,
            process,
        };
        Ok((pod, output))
    }

    /// The next address in turn that no pod has; as on a node, one comes back only after all the others.
    fn free_address(&mut self) -> anyhow::Result<SocketAddr> {
        let [a, b] = self.network;
        for _ in 0..254 {
            self.last_host = self.last_host % 254 + 1;
            let address = SocketAddr::from(([127, a, b, self.last_host], self.port));
            if self.pods.iter().all(|pod| pod.address != address) {
                return Ok(address);
            }
        }
        bail!("a fleet has at most 254 pods")
    }

    /// Waits for the processes to end, and takes them out of the manifests.
    async fn remove(&mut self, ids: &[PodId]) -> anyhow::Result<()> {
        let deadline = Instant::now() + EXIT;
        for &id in ids {
            let stopped = self.options.signal == Signal::STOP;
            let process = &mut self.pod_mut(id)?.process;
            if stopped
                || tokio::time::timeout_at(deadline, process.wait())
                    .await
                    .is_err()
            {
                process.kill().await?;
            }
        }
        sleep(self.options.gone_after).await;
        self.ended += ids.len();
        let (gone, left) = std::mem::take(&mut self.pods)
            .into_iter()
            .partition(|pod| ids.contains(&pod.id));
        self.pods = left;
        let gone: Vec<Pod> = gone;
        // As in Kubernetes: the Pod goes, and the EndpointSlice controller follows.
        for file in gone
            .iter()
            .map(|pod| self.manifests().join(pod.file()))
            .filter(|file| file.exists())
        {
            std::fs::remove_file(file)?;
        }
        self.write_slices()
    }

    fn write_service(&self) -> anyhow::Result<()> {
        let mut port =
            json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": "http" });
        if let Some(protocol) = &self.options.app_protocol {
            port["appProtocol"] = json!(protocol);
        }
        let labels = json!({ "service.kubernetes.io/service-proxy-name": "ebbtide" });
        self.write(
            "service.json",
            &json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "namespace": NAMESPACE, "name": SERVICE, "uid": uid(), "labels": labels },
                "spec": { "selector": { "app": SERVICE }, "ports": [port] },
            }),
        )
    }

    fn write_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        if self.options.tell != Tell::PodAndSlice {
            return Ok(());
        }
        let grace = self.options.grace.as_secs();
        let mut metadata = json!({
            "namespace": NAMESPACE,
            "name": pod.name,
            "uid": pod.uid,
            "labels": { "app": SERVICE, "pod-template-hash": pod.version },
        });
        if let Some(deleted_at) = pod.deleted_at {
            // The API server's timestamp is when the grace period ends, in whole seconds.
            let ends = jiff::Timestamp::from_second(deleted_at.as_second() + grace.cast_signed())?;
            metadata["deletionTimestamp"] = json!(ends.to_string());
            metadata["deletionGracePeriodSeconds"] = json!(grace);
        }
        let spec = json!({
            "terminationGracePeriodSeconds": grace,
            "containers": [{ "name": "sample-app", "image": "ebbtide" }],
        });
        self.write(
            &pod.file(),
            &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }),
        )
    }

    /// Writes every slice whose content is another than before, and tells those who follow [`Fleet::endpoints`].
    fn write_slices(&self) -> anyhow::Result<()> {
        let listed: Vec<&Pod> = self.pods.iter().filter(|pod| pod.listed).collect();
        let mut names = BTreeSet::new();
        // An empty fleet has one empty slice, as a Service has.
        let slices = listed.len().div_ceil(self.options.slice_size).max(1);
        for number in 0..slices {
            let pods = listed
                .iter()
                .skip(number * self.options.slice_size)
                .take(self.options.slice_size);
            let endpoints: Vec<Value> = pods.map(|pod| self.endpoint(pod)).collect();
            let name = format!("{SERVICE}-{number}");
            let labels = json!({ "kubernetes.io/service-name": SERVICE });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": { "namespace": NAMESPACE, "name": name, "labels": labels },
                "addressType": "IPv4",
                "ports": [{ "name": "http", "protocol": "TCP", "port": self.port }],
                "endpoints": endpoints,
            });
            let file = format!("slice-{number}.json");
            self.write(&file, &slice)?;
            names.insert(file);
        }
        for entry in std::fs::read_dir(self.manifests())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("slice-") && !names.contains(&name) {
                std::fs::remove_file(self.manifests().join(name))?;
            }
        }
        let addresses = |wanted: fn(&Pod) -> bool| -> Vec<SocketAddr> {
            listed
                .iter()
                .filter(|pod| wanted(pod))
                .map(|pod| pod.address)
                .collect()
        };
        let mut usable = addresses(|pod| pod.ready && !pod.terminating);
        if usable.is_empty() {
            usable = addresses(|pod| pod.serving && pod.terminating);
        }
        self.endpoints
            .send_if_modified(|now| std::mem::replace(now, usable.clone()) != usable);
        Ok(())
    }

    fn endpoint(&self, pod: &Pod) -> Value {
        let mut endpoint = json!({
            "addresses": [pod.address.ip()],
            "conditions": { "ready": pod.ready, "serving": pod.serving, "terminating": pod.terminating },
        });
        if self.options.tell == Tell::PodAndSlice {
            endpoint["targetRef"] =
                json!({ "kind": "Pod", "namespace": NAMESPACE, "name": pod.name, "uid": pod.uid });
        }
        endpoint
    }

    /// Replaces a manifest whole: nobody ever reads half of one.
    fn write(&self, file: &str, object: &Value) -> anyhow::Result<()> {
        let path = self.manifests().join(file);
        let text = serde_json::to_vec_pretty(object)?;
        if std::fs::read(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let temporary = self.folder.path().join(file);
        std::fs::write(&temporary, text)
            .with_context(|| format!("cannot write {}", temporary.display()))?;
        std::fs::rename(&temporary, &path)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Pod {
    fn file(&self) -> String {
        format!("pod-{}.json", self.name)
    }
}

/// Waits for the line that says so.
async fn listening(output: Option<ChildStdout>) -> anyhow::Result<()> {
    let mut lines = BufReader::new(output.context("no stdout")?).lines();
    match lines.next_line().await? {
        Some(line) if line.starts_with("listening ") => Ok(()),
        other => bail!("a sample-app ended before it listened ({other:?})"),
    }
}

/// A random (version 4) UUID.
fn uid() -> String {
    let n = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{n:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts
        .map(|part| hex.get(part).unwrap_or_default().to_owned())
        .join("-")
}

/// The Service that all fleets are: `web/shop`, port 80, named `http`.
pub const NAMESPACE: &str = "web";
pub const SERVICE: &str = "shop";
const MANIFESTS: &str = "manifests";
const REQUESTS: &str = "requests";
const START: Duration = Duration::from_secs(20);
const EXIT: Duration = Duration::from_secs(5);

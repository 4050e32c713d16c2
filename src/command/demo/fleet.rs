//! A small Deployment: sample-app processes, the manifests that describe them, and rolling updates
//! of both.
//!
//! Each process has a loopback address of its own, and all use the same port, as pods do. So they
//! can share EndpointSlices. A pod leaves in steps at chosen moments ([`Options`]): its Pod is
//! marked, its endpoint is marked, its process gets a signal, and at last its manifests disappear.
//! Dropping the fleet kills its processes and removes its folder.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::command::demo::pod::{Pod, PodId, uid};
use crate::command::demo::{child, manifests};

/// How a fleet is run. [`Fleet::options`] may be changed between two updates.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program that has `sample-app`.
    pub binary: PathBuf,
    /// The number of pods at the start.
    pub replicas: usize,
    /// The version of the first pods.
    pub version: String,
    /// More arguments for each sample-app, such as `--tcp`.
    pub app_args: Vec<String>,
    /// The `appProtocol` of the Service's port.
    pub app_protocol: Option<String>,
    /// What the manifests say about a leaving pod.
    pub tell: Tell,
    /// The signal for a leaving process. If it does not end the process (SIGSTOP), the process is
    /// killed when the pod is removed.
    pub signal: Signal,
    /// When the signal comes, in milliseconds after the first manifest change. A negative number
    /// means before it. Each pod gets its own random value from this range.
    pub signal_offset: RangeInclusive<i64>,
    /// The time from the Pod's `deletionTimestamp` to the slice's `terminating`
    /// ([`Tell::PodAndSlice`]).
    pub slice_lag: Duration,
    /// The time from the end of the process to the removal of its manifests.
    pub gone_after: Duration,
    /// The pods' `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// How long pods are Ready before their server listens, as with an application without a
    /// readiness probe.
    pub listen_after: Option<Duration>,
    /// The largest number of endpoints in one EndpointSlice.
    pub slice_size: usize,
}

/// What the manifests say about a leaving pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// The Pod gets a `deletionTimestamp`, then its endpoint becomes `terminating`.
    PodAndSlice,
    /// There are no Pod manifests. The endpoint becomes `terminating`.
    Slice,
    /// There are no Pod manifests. The endpoint disappears from the slice.
    Removal,
}

/// The running fleet: its processes and the folder with its manifests.
pub struct Fleet {
    /// How the next steps of the fleet are done.
    pub options: Options,
    /// Processes started so far.
    pub started: usize,
    /// Processes ended by an update so far.
    pub ended: usize,
    pods: Vec<Pod>,
    folder: TempDir,
    network: [u8; 2],
    port: u16,
    last_host: u8,
    endpoints: watch::Sender<Vec<SocketAddr>>,
}

impl Options {
    /// Three replicas that exit at SIGTERM. The signal comes at most 50 ms before or after the
    /// manifest says that the pod leaves.
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
    /// Starts the replicas and writes the manifests. Returns when all processes listen, or with
    /// `listen_after` when all are started.
    ///
    /// # Errors
    /// A process cannot be started or does not listen within 20 s, or the folder cannot be written.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let network = [fastrand::u8(1..=254), fastrand::u8(..)];
        let folder = TempDir::with_prefix("ebbtide-fleet-")
            .context("cannot make a folder for the manifests")?;
        std::fs::create_dir(manifests::folder(folder.path()))?;
        // The network is random, so a port that is free on one of its addresses is free on the
        // others. The port stays with this fleet while one of its processes listens on it.
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
        manifests::write_service(fleet.folder(), fleet.options.app_protocol.as_deref())?;
        let (replicas, version) = (fleet.options.replicas, fleet.options.version.clone());
        fleet.scale_up(replicas, &version).await?;
        Ok(fleet)
    }

    /// The folder that `discovery.files` reads.
    pub fn manifests(&self) -> PathBuf {
        manifests::folder(self.folder.path())
    }

    /// A folder for other files of this fleet. It is removed with the fleet.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The endpoints for new connections, by the manifests as they are now: the ready ones, or else
    /// the terminating ones that still serve.
    pub fn endpoints(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.endpoints.subscribe()
    }

    /// All pods, leaving ones included.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Starts `count` more pods in parallel, waits until they listen, and adds them to the slices.
    ///
    /// # Errors
    /// As [`Fleet::start`].
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

    /// Replaces one pod as a Deployment does with `maxSurge: 1` and `maxUnavailable: 0`: a new pod
    /// starts, and when it is Ready the old pod leaves. Returns when the old pod is gone.
    ///
    /// # Errors
    /// As [`Fleet::start`]; there is no pod `old`.
    pub async fn replace(&mut self, old: PodId, version: &str) -> anyhow::Result<PodId> {
        let new = self.scale_up(1, version).await?;
        self.retire(&[old]).await?;
        new.first().copied().context("no pod was started")
    }

    /// A rolling update: replaces all pods, one after the other, with a pause of `pause` after
    /// each.
    ///
    /// # Errors
    /// As [`Fleet::replace`].
    pub async fn roll(&mut self, version: &str, pause: Duration) -> anyhow::Result<()> {
        for old in self.ids() {
            self.replace(old, version).await?;
            sleep(pause).await;
        }
        Ok(())
    }

    /// The pods that are not leaving.
    pub fn ids(&self) -> Vec<PodId> {
        self.pods
            .iter()
            .filter(|pod| !pod.terminating)
            .map(|pod| pod.id)
            .collect()
    }

    /// Ends pods as [`Options`] says, all of them in parallel. Returns when they are gone from the
    /// manifests.
    ///
    /// # Errors
    /// There is no such pod, a process cannot be killed, or a manifest cannot be written.
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
        // The sort is stable: of two steps at the same moment, the manifest comes before the
        // signal.
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

    /// Kills a process without a change of the manifests, as a crash does.
    ///
    /// # Errors
    /// There is no such pod, or its process cannot be killed.
    pub async fn crash(&mut self, id: PodId) -> anyhow::Result<()> {
        self.pod_mut(id)?.process.kill().await?;
        Ok(())
    }

    /// Sends a signal to a pod's process.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn signal(&self, id: PodId, signal: Signal) -> anyhow::Result<()> {
        child::signal(&self.pod(id)?.process, signal);
        Ok(())
    }

    /// Changes a pod and writes the slices.
    ///
    /// # Errors
    /// There is no such pod, or a manifest cannot be written.
    pub fn update(&mut self, id: PodId, change: impl FnOnce(&mut Pod)) -> anyhow::Result<()> {
        change(self.pod_mut(id)?);
        self.write_slices()
    }

    /// The number of requests with this key that all processes have received, killed ones included.
    /// The key is that of `/count/<key>`, or else the path.
    ///
    /// # Errors
    /// The file of requests cannot be read.
    pub fn requests(&self, key: &str) -> std::io::Result<usize> {
        let text = std::fs::read_to_string(self.folder.path().join(REQUESTS))?;
        Ok(text
            .lines()
            .filter(|line| line.split(' ').next() == Some(key))
            .count())
    }

    /// A pod by its identity.
    ///
    /// # Errors
    /// There is no such pod.
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
            name: format!("{}-{version}-{suffix}", manifests::SERVICE),
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

    /// The next address that no pod has. The addresses are taken in turn, as on a node, so an
    /// address comes back only after all others.
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

    /// Waits for the processes to end, then removes their manifests.
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
        // As in Kubernetes: the Pod is removed first, and the EndpointSlice controller follows.
        for pod in &gone {
            manifests::remove_pod(self.folder(), pod)?;
        }
        self.write_slices()
    }

    fn write_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        match self.options.tell {
            Tell::PodAndSlice => manifests::write_pod(self.folder(), pod, self.options.grace),
            Tell::Slice | Tell::Removal => Ok(()),
        }
    }

    /// Writes the slices, then the list of [`Fleet::endpoints`].
    fn write_slices(&self) -> anyhow::Result<()> {
        let listed: Vec<&Pod> = self.pods.iter().filter(|pod| pod.listed).collect();
        manifests::write_slices(
            self.folder(),
            &listed,
            self.port,
            self.options.slice_size,
            self.options.tell == Tell::PodAndSlice,
        )?;
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
}

/// Waits for the line that a sample-app prints when it listens.
async fn listening(output: Option<ChildStdout>) -> anyhow::Result<()> {
    let mut lines = BufReader::new(output.context("no stdout")?).lines();
    match lines.next_line().await? {
        Some(line) if line.starts_with("listening ") => Ok(()),
        other => bail!("a sample-app ended before it listened ({other:?})"),
    }
}

/// The file to which each process appends the key of each request.
const REQUESTS: &str = "requests";
/// How long a process may take to listen.
const START: Duration = Duration::from_secs(20);
/// How long a process may take to end after its signal.
const EXIT: Duration = Duration::from_secs(5);

//! One proxy with a cluster of a given size: an API server that stores the objects, and endpoints
//! that accept connections.
//!
//! The proxy is the real program, in a process of its own. What it costs is read from `/proc`, and
//! how it reacts from its own metrics.

use std::fs::read_to_string;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::api::{Api, Kind};
use crate::guard::Guard;
use crate::measure;

/// What a lab has.
pub struct Plan {
    /// Claimed Services with a nodePort and one endpoint each: `s0`, `s1` and so on.
    pub services: usize,
    /// Endpoints of Service `shop`. Its pods are the ones that are deleted.
    pub shop: usize,
    /// Endpoints of a further Service. They answer no connect.
    pub silent: usize,
    /// Nobody reads the proxy's log.
    pub log_stalls: bool,
}

/// The running proxy and its cluster.
pub struct Lab {
    pub api: Api,
    pub plan: Plan,
    pub admin: SocketAddr,
    guard: Guard,
    pid: u32,
    /// How many Services were deleted.
    deleted: AtomicUsize,
    /// The log that nobody reads.
    _log: Option<std::fs::File>,
    folder: tempfile::TempDir,
}

impl Lab {
    /// Starts the API server and the proxy, and waits until the proxy is ready and its endpoints
    /// have joined.
    pub fn start(servers: &tokio::runtime::Handle, plan: Plan) -> anyhow::Result<Self> {
        let api = servers.block_on(Api::start());
        for n in 0..plan.services {
            add_service(&api, n);
        }
        api.apply(&service("shop", None));
        for first in (0..plan.shop).step_by(SLICE) {
            let members = (first..plan.shop.min(first + SLICE)).map(shop_member);
            api.apply(&slice("shop", first, PORT, members));
        }
        (0..plan.shop).for_each(|n| api.apply(&pod(&shop_member(n).0)));
        if plan.silent > 0 {
            api.apply(&service("silent", None));
        }
        for first in (0..plan.silent).step_by(SLICE) {
            let member = |n: usize| (format!("silent-{n}"), address(SILENT, n));
            let members = (first..plan.silent.min(first + SLICE)).map(member);
            api.apply(&slice("silent", first, SILENT_PORT, members));
        }
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let unread = plan.log_stalls.then(|| pipe(&log)).transpose()?;
        let admin = free_address()?;
        let server = api.address;
        write_config(folder.path(), "kubernetes: {kubeconfig: kubeconfig}", admin)?;
        std::fs::write(
            folder.path().join("kubeconfig"),
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
                 clusters: [{{name: it, cluster: {{server: 'http://{server}'}}}}]\n\
                 users: [{{name: it, user: {{token: secret}}}}]\n\
                 contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n"
            ),
        )?;
        let guard = run_program(folder.path(), &log)?;
        let mut lab = Self {
            api,
            plan,
            admin,
            guard,
            pid: 0,
            deleted: AtomicUsize::new(0),
            _log: unread,
            folder,
        };
        lab.wait("ready", |lab| get(lab.admin, "/readyz").is_ok())?;
        lab.pid = *lab.guard.pids().first().context("the proxy has ended")?;
        let joined = lab.plan.services + lab.plan.shop;
        lab.wait("joined", |lab| lab.in_rotation() == joined)?;
        // The probes of the last endpoints and the pages above end, and the gauges are fresh.
        std::thread::sleep(Duration::from_millis(1_500));
        Ok(lab)
    }

    fn wait(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !is_so(self) {
            if self.guard.has_ended() || begun.elapsed() > Duration::from_secs(60) {
                let log = if self._log.is_some() {
                    String::new()
                } else {
                    read_to_string(self.folder.path().join("log"))?
                };
                let end = log.lines().rev().take(5).collect::<Vec<_>>().join("\n");
                bail!(
                    "the proxy is not {what} after {:?}:\n{end}",
                    begun.elapsed()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn is_running(&self) -> bool {
        Path::new(&format!("/proc/{}/exe", self.pid))
            .read_link()
            .is_ok()
    }

    /// Processor time of the threads whose names begin with `name`.
    pub fn cpu(&self, name: &str) -> Duration {
        measure::thread_cpu(self.pid, name)
    }

    /// How many endpoints are in rotation.
    fn in_rotation(&self) -> usize {
        let page = get(self.admin, "/api/v1/status").unwrap_or_default();
        page.matches("\"state\":\"ready\"").count()
    }

    /// How many drains reacted within each bound in seconds, since the proxy began.
    pub fn reactions(&self) -> anyhow::Result<Vec<(f64, u64)>> {
        // The page may be a second old.
        std::thread::sleep(Duration::from_millis(1_200));
        let page = get(self.admin, "/metrics")?;
        let bucket = |line: &str| {
            let (bound, count) = line
                .strip_prefix("ebbtide_drain_reaction_seconds_bucket{le=\"")?
                .split_once("\"} ")?;
            Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
        };
        Ok(page.lines().filter_map(bucket).collect())
    }

    /// Deletes the pod `n` of Service `shop`, as the API server reports the beginning of it.
    pub fn delete_shop_pod(&self, n: usize) {
        self.api.apply(&deleted(&self.api, &shop_member(n).0));
    }

    /// Shows the pod `n` of Service `shop` once more. Nothing that routing uses has changed.
    pub fn touch_shop_pod(&self, n: usize) {
        self.api.echo(Kind::Pods, "web", &shop_member(n).0);
    }

    /// Makes the endpoint of a Service ready or not ready.
    pub fn set_ready(&self, n: usize, ready: bool) {
        let (pod, address) = member(n);
        let mut it = slice(&format!("s{n}"), 0, PORT, std::iter::once((pod, address)));
        it["endpoints"][0]["conditions"]["ready"] = ready.into();
        self.api.apply(&it);
    }

    /// Deletes this many Services with their pods and slices, as the deletion of a namespace does.
    pub fn delete_services(&self, count: usize) {
        for _ in 0..count {
            let n = self.deleted.fetch_add(1, Ordering::Relaxed);
            if n < self.plan.services {
                self.delete_service(n);
            }
        }
    }

    fn delete_service(&self, n: usize) {
        let name = format!("s{n}");
        self.api.apply(&deleted(&self.api, &member(n).0));
        self.api.delete(Kind::Slices, "web", &format!("{name}-0"));
        self.api.delete(Kind::Services, "web", &name);
        self.api.delete(Kind::Pods, "web", &member(n).0);
    }

    /// Asks the proxy to shut down, and waits for its end.
    pub fn signal_and_wait(&self) -> anyhow::Result<Duration> {
        let pid = Pid::from_raw(self.pid.cast_signed()).context("pid")?;
        let begun = Instant::now();
        kill_process(pid, Signal::TERM)?;
        while self.is_running() {
            if begun.elapsed() > Duration::from_secs(30) {
                bail!("the proxy has not ended 30 s after SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }
}

/// Starts a proxy that reads a folder, and waits until it is ready. Returns its private bytes and
/// the time from its start until it was ready.
pub fn start_from_files(services: usize, endpoints_each: usize) -> anyhow::Result<(u64, Duration)> {
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    for n in 0..services {
        let name = format!("s{n}");
        let file = |kind: &str| manifests.join(format!("{name}.{kind}.json"));
        std::fs::write(file("service"), unchecked(&name, n).to_string())?;
        for first in (0..endpoints_each).step_by(SLICE) {
            let member = |m: usize| (format!("{name}-{m}"), address(10, n * endpoints_each + m));
            let members = (first..endpoints_each.min(first + SLICE)).map(member);
            std::fs::write(
                file(&format!("slice-{first}")),
                slice(&name, first, PORT, members).to_string(),
            )?;
        }
    }
    let admin = free_address()?;
    write_config(folder.path(), "files: {path: manifests}", admin)?;
    let begun = Instant::now();
    let mut guard = run_program(folder.path(), &folder.path().join("log"))?;
    while get(admin, "/readyz").is_err() {
        if guard.has_ended() || begun.elapsed() > Duration::from_secs(60) {
            bail!("the proxy is not ready after {:?}", begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = begun.elapsed();
    std::thread::sleep(Duration::from_millis(500));
    Ok((measure::private_bytes(&guard.pids()), took))
}

fn write_config(folder: &Path, source: &str, admin: SocketAddr) -> anyhow::Result<()> {
    let config = format!(
        "discovery: {{{source}}}\nadmin: {{address: '{admin}'}}\nworkers: 2\n\
         nodePorts: {{addresses: [127.0.0.1]}}\ntimeouts: {{lameDuck: {LAME_DUCK_S}s, shutdown: {SHUTDOWN_S}s}}\n\
         listeners: [{{name: shop, address: '127.0.0.1:80', service: web/shop, port: 80}}]\n"
    );
    Ok(std::fs::write(folder.join("ebbtide.yaml"), config)?)
}

fn run_program(folder: &Path, log: &Path) -> anyhow::Result<Guard> {
    let cores: Vec<usize> = (0..std::thread::available_parallelism()?.get()).collect();
    let config = folder.join("ebbtide.yaml").display().to_string();
    let arguments = ["run".to_owned(), "--config".to_owned(), config];
    // Another build of the program can be measured beside this one.
    let program = std::env::var("EBBTIDE_PROGRAM");
    let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_ebbtide").to_owned());
    Guard::start(&cores, Path::new(&program), &arguments, log)
}

/// A pipe that has a reader, which does not read.
fn pipe(at: &Path) -> anyhow::Result<std::fs::File> {
    mknodat(CWD, at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    Ok(std::fs::File::options().read(true).write(true).open(at)?)
}

/// Creates the Service `n` with its slice and its pod.
fn add_service(api: &Api, n: usize) {
    let name = format!("s{n}");
    api.apply(&service(&name, Some(FIRST_NODE_PORT + n)));
    api.apply(&slice(&name, 0, PORT, std::iter::once(member(n))));
    api.apply(&pod(&member(n).0));
}

fn service(name: &str, node_port: Option<usize>) -> Value {
    let mut port = json!({"name": "http", "port": 80, "protocol": "TCP"});
    if let Some(node_port) = node_port {
        port["nodePort"] = node_port.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "web", "name": name, "uid": format!("uid-{name}"),
            "labels": {"service.kubernetes.io/service-proxy-name": "ebbtide"}},
        "spec": {"ports": [port]},
    })
}

/// A Service whose endpoints are used without a probe. A folder may name endpoints that do not
/// exist.
fn unchecked(name: &str, n: usize) -> Value {
    let mut it = service(name, Some(FIRST_NODE_PORT + n));
    it["metadata"]["annotations"] = json!({"ebbtide.dev/join-check": "off"});
    it
}

fn slice(
    service: &str,
    first: usize,
    port: u16,
    members: impl Iterator<Item = (String, Ipv4Addr)>,
) -> Value {
    let endpoint = |(pod, address): (String, Ipv4Addr)| {
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "web", "name": pod, "uid": format!("uid-{pod}")},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "web", "name": format!("{service}-{first}"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": members.map(endpoint).collect::<Vec<_>>(),
    })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "web", "name": name, "uid": format!("uid-{name}"),
            "labels": {"pod-template-hash": "7d4b9c6f5"}},
    })
}

fn deleted(api: &Api, name: &str) -> Value {
    let mut it = pod(name);
    it["metadata"]["deletionTimestamp"] = api.time(30).into();
    it["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    it
}

/// The pod of Service `n` and its address.
fn member(n: usize) -> (String, Ipv4Addr) {
    (format!("s{n}-pod"), address(1, n))
}

fn shop_member(n: usize) -> (String, Ipv4Addr) {
    (format!("shop-{n}"), address(2, n))
}

fn address(second: u32, n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (second << 20) + n as u32)
}

/// A GET request. Returns the body of a response with status 200.
pub fn get(to: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    anyhow::ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}

/// Accepts the connections to all endpoints except the silent ones, and closes them. Keeps the
/// accept queue of the silent ones full, so that no connect to them is answered.
pub fn open_endpoints() -> anyhow::Result<()> {
    let open = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    std::thread::spawn(move || open.incoming().for_each(drop));
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    silent.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, SILENT_PORT)).into())?;
    silent.listen(0)?;
    let to = SocketAddr::from((address(SILENT, 0), SILENT_PORT));
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
        queue.push(stream);
    }
    std::mem::forget((silent, queue));
    Ok(())
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The configured `timeouts.lameDuck` and `timeouts.shutdown`, in seconds.
pub const LAME_DUCK_S: u64 = 1;
pub const SHUTDOWN_S: u64 = 1;
const SLICE: usize = 100;
const PORT: u16 = 8080;
const SILENT_PORT: u16 = 8081;
/// The part of 10.0.0.0/8 that the silent endpoints have.
const SILENT: u32 = 3;
const FIRST_NODE_PORT: usize = 10_000;

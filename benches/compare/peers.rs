//! The proxies: where each program is, how it is started from its template in this folder, and how
//! it learns of other endpoints.
//!
//! In a template, words such as `@LISTEN@` and `@FOLDER@` are replaced. A line with `@ENDPOINT@` is
//! repeated for each endpoint. A line with `@BULK@` or `@ROLLOUT@` is used for that purpose only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::guard::Guard;

/// A peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The proxy of this repository.
    Ebbtide,
    /// No proxy.
    Direct,
    /// <https://www.haproxy.org>
    Haproxy,
    /// <https://nginx.org>
    Nginx,
    /// <https://caddyserver.com>
    Caddy,
    /// <https://github.com/vicanso/pingap>, on Pingora.
    Pingap,
}

/// What a proxy speaks to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// HTTP/1.1.
    Http,
    /// Bytes.
    Tcp,
    /// HTTP/1.1 and HTTP/2 over TLS, as the client chooses. Endpoints speak HTTP/1.1.
    Secure,
    /// HTTP/2 without TLS, on both sides, as gRPC uses it.
    Grpc,
}

/// The purpose of a visit. The best configuration of some peers depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Many small requests.
    Load,
    /// Large bodies.
    Bulk,
    /// Many idle connections.
    Idle,
    /// Endpoints that are replaced.
    Rollout,
}

/// All peers, in the order in which they take turns.
pub const ALL: [Kind; 6] = [
    Kind::Ebbtide,
    Kind::Direct,
    Kind::Haproxy,
    Kind::Nginx,
    Kind::Caddy,
    Kind::Pingap,
];

impl Kind {
    /// The name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebbtide => "ebbtide",
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Caddy => "caddy",
            Self::Pingap => "pingap",
        }
    }

    /// Whether the peer supports the mode.
    pub fn speaks(self, mode: Mode) -> bool {
        match mode {
            Mode::Http => true,
            Mode::Tcp => !matches!(self, Self::Caddy | Self::Pingap),
            Mode::Secure | Mode::Grpc => {
                matches!(self, Self::Ebbtide | Self::Haproxy | Self::Nginx)
            }
        }
    }

    /// The path of its program, or else how to install it.
    pub fn program(self) -> Result<PathBuf, &'static str> {
        let (places, cure): (Vec<PathBuf>, _) = match self {
            Self::Direct => return Ok(PathBuf::new()),
            Self::Ebbtide => return Ok(PathBuf::from(env!("CARGO_BIN_EXE_ebbtide"))),
            Self::Haproxy => (vec!["/usr/sbin/haproxy".into()], "apt-get install haproxy"),
            Self::Nginx => (
                vec!["/usr/sbin/nginx".into()],
                "apt-get install nginx libnginx-mod-stream",
            ),
            Self::Caddy => (
                vec![tools().join("caddy")],
                "benches/compare/install.sh (Go needed)",
            ),
            Self::Pingap => (vec![tools().join("pingap")], "benches/compare/install.sh"),
        };
        places
            .into_iter()
            .chain(on_path(self.name()))
            .find(|path| path.is_file())
            .ok_or(cure)
    }

    /// Its version, `missing` if it is not installed.
    pub fn version(self) -> String {
        let flag = match self {
            Self::Direct => return String::new(),
            Self::Ebbtide => return ebbtide::VERSION.to_owned(),
            Self::Haproxy | Self::Nginx => "-v",
            // `caddy version` does not report the version of a build by `go install`.
            Self::Caddy => "build-info",
            Self::Pingap => "--version",
        };
        let Ok(program) = self.program() else {
            return "missing".to_owned();
        };
        let Ok(output) = Command::new(program).arg(flag).output() else {
            return "unknown".to_owned();
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let own = text.lines().find(|line| line.contains("/caddy/v2\t"));
        let line = own.or(text.lines().next()).unwrap_or_default().to_owned();
        let word = line.split([' ', '/', '\t']).find(|word| {
            word.trim_start_matches('v')
                .starts_with(|c: char| c.is_ascii_digit())
                && word.contains('.')
        });
        word.unwrap_or(&line).to_owned()
    }
}

/// A program on the search path.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The folder where `install.sh` puts the programs that it builds.
pub fn tools() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_default().join("ebbtide-bench/bin")
}

/// A running proxy.
pub struct Peer {
    kind: Kind,
    /// The addresses to which clients connect.
    pub to: Vec<SocketAddr>,
    guard: Option<Guard>,
    folder: tempfile::TempDir,
    template: String,
    listen: SocketAddr,
    admin: SocketAddr,
    /// All endpoints for which HAProxy has a server line, in that order.
    slots: Vec<SocketAddr>,
    mode: Mode,
    purpose: Purpose,
}

impl Peer {
    /// Starts a proxy in front of the endpoints `live`, and waits until it answers. The endpoints
    /// `spare` come later.
    ///
    /// # Errors
    /// The proxy does not start or does not answer within 15 s.
    pub fn start(
        kind: Kind,
        mode: Mode,
        purpose: Purpose,
        cores: &[usize],
        live: &[SocketAddr],
        spare: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ebbtide-compare-")
            .tempdir()?;
        let template = match (kind, mode) {
            (Kind::Direct, _) => "",
            (Kind::Ebbtide, _) => include_str!("ebbtide.yaml"),
            (Kind::Haproxy, Mode::Http | Mode::Secure | Mode::Grpc) => {
                include_str!("haproxy-http.cfg")
            }
            (Kind::Haproxy, Mode::Tcp) => include_str!("haproxy-tcp.cfg"),
            (Kind::Nginx, Mode::Http | Mode::Secure | Mode::Grpc) => {
                include_str!("nginx-http.conf")
            }
            (Kind::Nginx, Mode::Tcp) => include_str!("nginx-stream.conf"),
            (Kind::Caddy, _) => include_str!("Caddyfile"),
            (Kind::Pingap, _) => include_str!("pingap.toml"),
        };
        let protocol = match mode {
            Mode::Http | Mode::Secure => "http",
            Mode::Tcp => "tcp",
            Mode::Grpc => "h2c",
        };
        let listen = free_address()?;
        let to = if kind == Kind::Direct {
            live.to_vec()
        } else {
            vec![listen]
        };
        let mut peer = Self {
            kind,
            to,
            guard: None,
            folder,
            template: template.replace("@PROTOCOL@", protocol),
            listen,
            admin: free_address()?,
            slots: [live, spare].concat(),
            mode,
            purpose,
        };
        if kind != Kind::Direct {
            peer.spawn(cores, live)
                .with_context(|| format!("{} did not start", kind.name()))?;
        }
        Ok(peer)
    }

    fn spawn(&mut self, cores: &[usize], live: &[SocketAddr]) -> anyhow::Result<()> {
        let file = self.folder.path().join(match self.kind {
            Kind::Ebbtide => "ebbtide.yaml",
            Kind::Caddy => "Caddyfile",
            Kind::Pingap => "pingap.toml",
            _ => "proxy.conf",
        });
        std::fs::write(&file, self.filled_in(live))?;
        if self.mode == Mode::Secure {
            self.write_certificate()?;
        }
        if self.kind == Kind::Ebbtide {
            std::fs::create_dir(self.folder.path().join("manifests"))?;
            self.write_manifests(live, &[])?;
        }
        let file = file.display().to_string();
        let arguments: &[&str] = match self.kind {
            Kind::Ebbtide => &["run", "--config", &file],
            Kind::Haproxy => &["-db", "-f", &file],
            Kind::Nginx => &["-e", "stderr", "-p", "@", "-c", &file],
            Kind::Caddy => &["run", "--adapter", "caddyfile", "--config", &file],
            Kind::Pingap => &["--conf", &file],
            Kind::Direct => &[],
        };
        let here = self.folder.path().display().to_string();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| word.replace('@', &here))
            .collect();
        let log = self.folder.path().join("log");
        let program = self.kind.program().map_err(anyhow::Error::msg)?;
        let mut guard = Guard::start(cores, &program, &arguments, &log)?;
        let begun = Instant::now();
        while !self.answers() {
            if guard.has_ended() || begun.elapsed() > START {
                bail!(
                    "{}",
                    std::fs::read_to_string(&log).unwrap_or_default().trim()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.guard = Some(guard);
        Ok(())
    }

    /// Whether it serves. With other protocols than HTTP/1.1, whether it listens: the load before the
    /// measurement shows the rest.
    fn answers(&self) -> bool {
        match self.mode {
            Mode::Http | Mode::Tcp => get(self.listen, "/1k").is_ok(),
            Mode::Secure | Mode::Grpc => TcpStream::connect(self.listen).is_ok(),
        }
    }

    /// A key of P-256 and its certificate, which nobody verifies.
    fn write_certificate(&self) -> anyhow::Result<()> {
        let made = rcgen::generate_simple_self_signed(["bench.example".to_owned()])?;
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let file = |name: &str| self.folder.path().join(name);
        std::fs::write(file("tls.crt"), &certificate)?;
        std::fs::write(file("tls.key"), &key)?;
        Ok(std::fs::write(file("tls.pem"), certificate + &key)?)
    }

    /// The ids of its processes.
    pub fn pids(&self) -> Vec<u32> {
        self.guard.as_ref().map(Guard::pids).unwrap_or_default()
    }

    /// Whether the peer can learn of other endpoints immediately.
    pub fn can_roll(kind: Kind) -> bool {
        // Pingap reads its file every ten seconds. The direct load has no proxy.
        !matches!(kind, Kind::Pingap | Kind::Direct)
    }

    /// Reports a change by the peer's own means: the endpoints are now `live`, and `leaving` are
    /// about to end.
    ///
    /// # Errors
    /// The peer does not accept the change.
    pub fn update(&mut self, live: &[SocketAddr], leaving: &[SocketAddr]) -> anyhow::Result<()> {
        match self.kind {
            Kind::Ebbtide => self.write_manifests(live, leaving),
            Kind::Haproxy => {
                let mut commands = Vec::new();
                for (n, slot) in self.slots.iter().enumerate() {
                    match (live.contains(slot), leaving.contains(slot)) {
                        (true, _) => commands.push(format!("set server app/s{n} state ready")),
                        (_, true) => commands.push(format!("set server app/s{n} state maint")),
                        _ => {}
                    }
                }
                let mut stream = UnixStream::connect(self.folder.path().join("admin.sock"))?;
                stream.write_all(format!("{}\n", commands.join(";")).as_bytes())?;
                let mut said = String::new();
                stream.read_to_string(&mut said)?;
                ensure!(said.trim().is_empty(), "haproxy returned: {}", said.trim());
                Ok(())
            }
            Kind::Nginx => {
                std::fs::write(self.folder.path().join("proxy.conf"), self.filled_in(live))?;
                let master = self
                    .pids()
                    .into_iter()
                    .next()
                    .and_then(|pid| Pid::from_raw(pid.cast_signed()));
                Ok(kill_process(
                    master.context("nginx has ended")?,
                    Signal::HUP,
                )?)
            }
            Kind::Caddy => {
                let config = self.filled_in(live);
                let mut stream = TcpStream::connect(self.admin)?;
                write!(
                    stream,
                    "POST /load HTTP/1.1\r\nHost: {}\r\nContent-Type: text/caddyfile\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n{config}",
                    self.admin,
                    config.len()
                )?;
                let mut said = String::new();
                stream.read_to_string(&mut said)?;
                ensure!(said.starts_with("HTTP/1.1 200"), "caddy returned: {said}");
                Ok(())
            }
            Kind::Pingap | Kind::Direct => bail!("{} cannot learn of a change", self.kind.name()),
        }
    }

    fn filled_in(&self, live: &[SocketAddr]) -> String {
        let list: Vec<String> = live.iter().map(SocketAddr::to_string).collect();
        let buffer = if self.purpose == Purpose::Idle {
            "16k"
        } else {
            "64k"
        };
        let mut text = String::new();
        for line in self.template.lines() {
            let marks = [
                ("@BULK@", self.purpose == Purpose::Bulk),
                ("@ROLLOUT@", self.purpose == Purpose::Rollout),
                ("@SECURE@", self.mode == Mode::Secure),
                ("@GRPC@", self.mode == Mode::Grpc),
                ("@HTTP1@", self.mode != Mode::Grpc),
                ("@HTTP@", self.mode == Mode::Http),
            ];
            if marks
                .iter()
                .any(|(mark, wanted)| line.contains(mark) && !wanted)
            {
                continue;
            }
            let line = marks
                .iter()
                .fold(line.to_owned(), |line, (mark, _)| line.replace(mark, ""));
            // HAProxy has a line for each endpoint, also for later ones. The other peers have only
            // the live ones.
            let endpoints = if line.contains("@SPARE@") {
                &self.slots[..]
            } else {
                live
            };
            if line.contains("@ENDPOINT@") {
                for (n, endpoint) in endpoints.iter().enumerate() {
                    let spare = if live.contains(endpoint) {
                        ""
                    } else {
                        " disabled"
                    };
                    let line = line
                        .replace("@ENDPOINT@", &endpoint.to_string())
                        .replace("@N@", &n.to_string());
                    text += &line.replace("@SPARE@", spare);
                    text += "\n";
                }
                continue;
            }
            text += &line
                .replace("@LISTEN@", &self.listen.to_string())
                .replace("@ADMIN@", &self.admin.to_string())
                .replace("@FOLDER@", &self.folder.path().display().to_string())
                .replace("@MODULES@", "/usr/lib/nginx/modules")
                .replace("@STREAM_BUFFER@", buffer)
                .replace("@ENDPOINTS@", &list.join(" "))
                .replace("@ENDPOINTS_JSON@", &format!("{list:?}"));
            text += "\n";
        }
        text
    }

    fn write_manifests(&self, live: &[SocketAddr], leaving: &[SocketAddr]) -> anyhow::Result<()> {
        let says: &[_] = match self.mode {
            Mode::Grpc => &[("ebbtide.dev/protocol", "h2c")],
            _ => &[],
        };
        write_manifests(&self.folder.path().join("manifests"), live, leaving, says)
    }
}

/// Writes a Service and its slices. Each endpoint has its own pod. The slices are renamed into
/// place. `annotations` are those of the Service; they can turn the join check off.
pub fn write_manifests(
    folder: &Path,
    live: &[SocketAddr],
    leaving: &[SocketAddr],
    annotations: &[(&str, &str)],
) -> anyhow::Result<()> {
    let service = folder.join("service.json");
    if !service.exists() {
        std::fs::write(&service, service_manifest("shop", annotations).to_string())?;
    }
    let endpoints = live
        .iter()
        .map(|address| (address, false))
        .chain(leaving.iter().map(|address| (address, true)));
    // A slice has one port for all its endpoints, so each endpoint needs its own slice.
    let items =
        endpoints.map(|(address, terminating)| slice_manifest("shop", &[*address], terminating));
    let list =
        serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()});
    let new = folder.join(".slices.new");
    std::fs::write(&new, list.to_string())?;
    Ok(std::fs::rename(&new, folder.join("slices.json"))?)
}

/// The manifest of a Service in the namespace `web`.
pub fn service_manifest(name: &str, annotations: &[(&str, &str)]) -> serde_json::Value {
    let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "web", "annotations": annotations},
        "spec": {"ports": [{"name": "http", "port": 80}]}
    })
}

/// The manifest of a slice. Its port is that of the first endpoint.
pub fn slice_manifest(
    service: &str,
    addresses: &[SocketAddr],
    terminating: bool,
) -> serde_json::Value {
    let first = addresses[0];
    let endpoint = |address: &SocketAddr| {
        let pod = format!(
            "{service}-{}-{}",
            address.ip().to_string().replace('.', "-"),
            address.port()
        );
        serde_json::json!({
            "addresses": [address.ip()],
            "conditions": {"ready": !terminating, "serving": true, "terminating": terminating},
            "targetRef": {"kind": "Pod", "name": pod, "namespace": "web", "uid": pod}
        })
    };
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}-{}", first.ip().to_string().replace('.', "-"), first.port()), "namespace": "web",
            "labels": {"kubernetes.io/service-name": service}
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": first.port()}],
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>()
    })
}

/// An address that is free now.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The body of a page, within one second.
///
/// # Errors
/// There is no response in time, or its status is not 200.
pub fn get(from: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    ensure!(
        text.starts_with("HTTP/1.1 200"),
        "{}",
        text.lines().next().unwrap_or("nothing")
    );
    Ok(text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default())
}

/// How long a proxy may take to start.
const START: Duration = Duration::from_secs(15);

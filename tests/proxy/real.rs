//! Real clients and real servers with the proxy between them: each client that is installed asks
//! each server that is installed. What they exchange is in `tests/proxy/real/`: counted, chunked
//! and close-delimited bodies both ways, HEAD, 100 Continue, an offer of h2c (Java), and a server
//! that closes idle connections sooner than the proxy does (Node).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::soon;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proxy/real");

/// A program that serves and asks.
#[derive(Clone)]
struct Peer {
    name: &'static str,
    command: Vec<String>,
}

impl Peer {
    fn new(name: &'static str, command: &[&str]) -> Self {
        let command = command.iter().map(|part| (*part).to_owned()).collect();
        Self { name, command }
    }

    fn run(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(arguments);
        command.stdin(Stdio::null());
        command
    }
}

/// A server on loopback. It is killed at drop.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(peer: &Peer) -> Self {
        let mut process = peer.run(&["serve"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap();
        Self {
            process,
            address: ([127, 0, 0, 1], port).into(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The peers whose tools are installed. Those of Go and Java are built in `scratch`.
fn peers(scratch: &Path) -> Vec<Peer> {
    let file = |name: &str| format!("{FOLDER}/{name}");
    let mut peers = Vec::new();
    let mut add = |tool: &str, version: &str, peer: Peer| {
        let there = Command::new(tool)
            .arg(version)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match there {
            Ok(status) if status.success() => peers.push(peer),
            _ => println!("SKIPPED: real: {tool} is not installed"),
        }
    };
    let python = Peer::new("Python", &["python3", &file("peer.py")]);
    add("python3", "--version", python);
    add(
        "node",
        "--version",
        Peer::new("Node", &["node", &file("peer.js")]),
    );
    let folder = scratch.to_str().unwrap();
    add(
        "javac",
        "--version",
        Peer::new("Java", &["java", "-cp", folder, "Peer"]),
    );
    let program: PathBuf = scratch.join("peer");
    let program = program.to_str().unwrap();
    add("go", "version", Peer::new("Go", &[program]));
    let builds: [(&str, &[&str]); 2] = [
        ("Go", &["go", "build", "-o", program, &file("peer.go")]),
        ("Java", &["javac", "-d", folder, &file("Peer.java")]),
    ];
    for (name, build) in builds {
        if peers.iter().any(|peer| peer.name == name) {
            let built = Command::new(build[0])
                .args(&build[1..])
                .env("GO111MODULE", "off")
                .status();
            assert!(built.unwrap().success(), "{build:?}");
        }
    }
    peers
}

#[tokio::test]
async fn every_client_is_served_by_every_server() {
    let scratch = tempfile::tempdir().unwrap();
    let peers = peers(scratch.path());
    for server in &peers {
        let running = Server::start(server);
        let rig = Rig::start("").await;
        rig.endpoints(&[Ep::new("a", running.address)]);
        rig.usable(1).await;
        let port = rig.web().port().to_string();
        for client in &peers {
            let pair = format!("{} asks {}", client.name, server.name);
            let mut command = client.run(&["ask", "127.0.0.1", &port]);
            let asked = tokio::task::spawn_blocking(move || command.output().unwrap());
            let output = soon(&pair, asked).await.unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(said, "asked 7\n", "{pair}: {wrong}");
        }
        curl(rig.web(), server.name, scratch.path());
        let failures = rig.metric("ebbtide_failures_total", "");
        assert_eq!(failures, 0.0, "of {}", server.name);
    }
}

/// What curl does otherwise than the libraries: HTTP/1.0, an `Expect` before a long body, several
/// requests by one command.
fn curl(web: SocketAddr, server: &str, scratch: &Path) {
    if Command::new("curl").arg("--version").output().is_err() {
        return println!("SKIPPED: real: curl is not installed");
    }
    let file = scratch.join("body");
    let body: Vec<u8> = (0..2_000_000).map(|at: u32| at as u8).collect();
    std::fs::write(&file, &body).unwrap();
    let upload = format!("@{}", file.display());
    let url = |path: &str| format!("http://{web}{path}");
    let chunked = "Transfer-Encoding: chunked";
    let cases: [(&[&str], usize); 5] = [
        (
            &[&url("/counted"), &url("/chunked"), &url("/counted")],
            3 * 102_400,
        ),
        (&["--http1.0", &url("/chunked")], 102_400),
        (
            &[
                "-H",
                "Expect: 100-continue",
                "--data-binary",
                &upload,
                &url("/echo"),
            ],
            body.len(),
        ),
        (
            &["-H", chunked, "--data-binary", &upload, &url("/echo")],
            body.len(),
        ),
        (
            &["--http1.0", "--data-binary", &upload, &url("/echo")],
            body.len(),
        ),
    ];
    for (arguments, length) in cases {
        let output = Command::new("curl")
            .args(["-s", "-S", "--fail", "--max-time", "60"])
            .args(arguments)
            .output()
            .unwrap();
        let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "curl {arguments:?} of {server}: {wrong}"
        );
        assert_eq!(
            output.stdout.len(),
            length,
            "curl {arguments:?} of {server}"
        );
    }
}

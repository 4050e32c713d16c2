//! The access log's lines for what ends early (docs/reference.md, "Access log"): each request and
//! each connection that the proxy refuses has one line, with the reason that its client got.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::proxy::play::{Act, OK, Play};
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::process::Process;
use crate::support::wait::{eventually, soon};

/// A program in `folder` that runs the proxy with its access log in a file.
fn logging(folder: &Path) -> (PathBuf, PathBuf) {
    let (program, log) = (folder.join("ebbtide-logging"), folder.join("access"));
    let script = format!("#!/bin/sh\nexec '{BINARY}' \"$@\" > '{}'\n", log.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (program, log)
}

fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a client does after its bytes.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It reads to the end.
    Reads,
    /// It ends its direction first.
    Ends,
}
use Then::{Ends, Reads};

#[tokio::test]
async fn each_refused_request_and_connection_has_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (program, log) = logging(folder.path());
    let app = Play::start(|_| Act::Say(OK.into())).await;
    let listener = |name: &str, service: &str, more: &str| {
        format!(
            "{{name: {name}, address: '127.0.0.1:0', service: web/{service}, port: 80, {more}}}"
        )
    };
    let listeners = [
        listener("web", "shop", "protocol: http"),
        listener("auto", "shop", "protocol: auto"),
        listener("proxied", "shop", "protocol: tcp, proxyProtocol: required"),
        listener("absent", "absent", "protocol: http"),
        listener("absent-tcp", "absent", "protocol: tcp"),
    ];
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nlisteners: [{}]\nadmin: {{address: '127.0.0.1:0'}}\n\
         accessLog: json\ntimeouts: {{head: 300ms}}\ntrustedProxies: [127.0.0.1/32]\nworkers: 1\n",
        listeners.join(", ")
    );
    let names = ["web", "auto", "proxied", "absent", "absent-tcp"];
    let endpoints = [Ep::new("a", app.address())];
    let process = Process::launch(&program, &endpoints, &text, &names).await;

    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(17 << 10));
    let many = format!("GET /many HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
    let get = |rest: &str| format!("GET /x HTTP/1.1\r\n{rest}\r\n");
    let chunk = "POST /chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n";
    // Listener, bytes, and then: method, target, status.
    let cases: Vec<(&str, String, Then, Value)> = vec![
        ("web", get(""), Reads, json!(["GET", "/x", 400])),
        (
            "web",
            get("Host: a\nX: y\r\n"),
            Reads,
            json!(["GET", "/x", 400]),
        ),
        (
            "web",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            Reads,
            json!(["GET", "/\u{e9}", 400]),
        ),
        (
            "web",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(),
            Reads,
            json!(["GET", "/", 505]),
        ),
        (
            "web",
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".into(),
            Reads,
            json!(["CONNECT", "a:1", 501]),
        ),
        ("web", many, Reads, json!(["GET", "/many", 431])),
        (
            "web",
            long.clone(),
            Reads,
            json!(["GET", &long[4..2048], 414]),
        ),
        (
            "web",
            "GET /slow HTTP/1.1\r\nHo".into(),
            Reads,
            json!(["GET", "/slow", 408]),
        ),
        (
            "web",
            "GET /left HTTP/1.1\r\nHo".into(),
            Ends,
            json!(["GET", "/left", null]),
        ),
        (
            "web",
            "\u{16}\u{3}\u{1}\n".into(),
            Reads,
            json!([null, null, 400]),
        ),
        ("web", chunk.into(), Reads, json!(["POST", "/chunk", 400])),
        (
            "auto",
            "GET / HTTP/2.0\r\n\r\n".into(),
            Reads,
            json!(["GET", "/", 505]),
        ),
        (
            "auto",
            "GET /slow".into(),
            Reads,
            json!(["GET", "/slow", 408]),
        ),
        (
            "proxied",
            "GET / HTTP/1.1\r\n".into(),
            Reads,
            json!([null, null, null]),
        ),
        (
            "proxied",
            "PROXY TCP4 1".into(),
            Ends,
            json!([null, null, null]),
        ),
        (
            "absent",
            get("Host: a\r\n"),
            Reads,
            json!(["GET", "/x", 503]),
        ),
        (
            "absent-tcp",
            "hello".into(),
            Reads,
            json!([null, null, null]),
        ),
    ];
    for (number, (listener, bytes, then, expected)) in cases.iter().enumerate() {
        // Health checks connect and leave. They have no line.
        drop(TcpStream::connect(process.web()).await.unwrap());
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = socket.local_addr().unwrap();
        let mut answer = Vec::new();
        match socket.connect(process.proxy.listeners[*listener]).await {
            Ok(mut client) => {
                let _ = client.write_all(bytes.as_bytes()).await;
                if *then == Ends {
                    client.shutdown().await.unwrap();
                }
                let _ = soon("the end", client.read_to_end(&mut answer)).await;
            }
            // A listener without a Service may reset the connection sooner than this client looks.
            Err(error) => assert_eq!(
                (*listener, error.kind()),
                ("absent-tcp", ErrorKind::ConnectionReset)
            ),
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        eventually(&format!("a line for {bytes:?}"), async || {
            lines(&log).len() > number
        })
        .await;
        let lines = lines(&log);
        let line = &lines[number];
        assert_eq!(lines.len(), number + 1, "one line for {bytes:?}: {lines:?}");
        let said = json!([line["method"], line["target"], line["status"]]);
        assert_eq!(&said, expected, "{line}");
        assert_eq!(line["listener"], *listener, "{line}");
        let absent = listener.starts_with("absent");
        assert_eq!(line["service"].is_null(), absent, "{line}");
        assert_eq!(line["bytesSent"], answer.len(), "{line}: {answer}");
        let reason = match (answer.is_empty(), *listener) {
            (false, _) => answer
                .split("x-ebbtide-reason: ")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next())
                .unwrap(),
            (true, "proxied") => "bad_proxy_header",
            (true, "absent-tcp") => "no_endpoint",
            (true, _) => "client_reset",
        };
        assert_eq!(line["reason"], reason, "{line}");
        assert_eq!(line["attempts"], 0, "{line}");
        assert_eq!(line["peer"].as_str().unwrap(), peer.to_string());
    }
}

/// A client that leaves while it waits for an endpoint: its request has a line, and so has a TCP
/// connection.
#[tokio::test]
async fn a_client_that_leaves_while_it_is_held_has_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let (program, log) = logging(folder.path());
    let listener = |name: &str, protocol: &str| {
        format!(
            "{{name: {name}, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: {protocol}}}"
        )
    };
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nlisteners: [{}, {}]\nadmin: {{address: '127.0.0.1:0'}}\n\
         accessLog: json\n",
        listener("web", "http"),
        listener("tcp", "tcp"),
    );
    let process = Process::launch(&program, &[], &text, &["web", "tcp"]).await;
    for (number, (name, method)) in [("web", json!("GET")), ("tcp", json!(null))]
        .iter()
        .enumerate()
    {
        let address = process.proxy.listeners[*name];
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        eventually("a held client", async || {
            let held = process.proxy.metric("ebbtide_held", |_| true).await;
            held.unwrap() == 1.0
        })
        .await;
        client.set_zero_linger().unwrap();
        drop(client);
        eventually("a line", async || lines(&log).len() > number).await;
        let line = &lines(&log)[number];
        assert_eq!(
            (&line["method"], &line["status"]),
            (method, &Value::Null),
            "{line}"
        );
        assert_eq!(line["reason"], "client_reset", "{line}");
    }
}

//! Ingress objects: which Service gets a request, and that a change of rules costs nobody anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebbtide::command::demo::proxy::{Proxy, config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::play::{Act, Play, Turn};
use crate::proxy::rollout::{five, roll_five};
use crate::proxy::scripted::Scripted;
use crate::proxy::tls::{Authority, Pair, connect, trusting};
use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// A rule of one path: host, path, path type, Service.
pub(super) type Path<'a> = (&'a str, &'a str, &'a str, &'a str);

fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"number": 80}}})
}

pub(super) fn ingress(name: &str, class: &str, paths: &[Path<'_>]) -> Value {
    let rules = paths.iter().map(|(host, path, kind, service)| {
        let path = json!({"path": path, "pathType": kind, "backend": backend(service)});
        let mut rule = json!({"http": {"paths": [path]}});
        if !host.is_empty() {
            rule["host"] = json!(host);
        }
        rule
    });
    let rules: Vec<Value> = rules.collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "web"},
        "spec": {"ingressClassName": class, "rules": rules},
    })
}

/// An endpoint that answers with its name.
pub(super) async fn named(name: &'static str) -> Play {
    let answer = move |_: Turn| {
        let length = name.len();
        Act::Say(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}").into())
    };
    Play::start(answer).await
}

/// Adds a Service with this endpoint.
pub(super) fn add(folder: &Folder, name: &str, endpoint: SocketAddr) {
    folder.write(&format!("{name}.json"), &service(name, json!({})));
    let slice = Ep::new(name, endpoint).slice_of(name, "");
    folder.write(&format!("{name}-slice.json"), &slice);
}

/// A proxy that serves Ingress objects of class `ebbtide`, and waits for none.
async fn rig(folder: Folder, more: &str) -> Rig {
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         ingress: {{addresses: [127.0.0.1], httpPort: 0, httpsPort: 0}}\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n{more}\n"
    );
    Rig::run(folder, &text).await
}

pub(super) fn http(rig: &Rig) -> SocketAddr {
    rig.running().listener("ingress-http@127.0.0.1").unwrap()
}

pub(super) fn https(rig: &Rig) -> SocketAddr {
    rig.running().listener("ingress-https@127.0.0.1").unwrap()
}

/// One request on an open connection: the status, and the body or the reason.
pub(super) async fn ask(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    host: &str,
    path: &str,
    more: &str,
) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("a head", stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let field = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::to_owned)
    };
    let length = field("Content-Length: ").map_or(0, |it| it.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let status = head[9..12].parse().unwrap();
    let reason = field("x-ebbtide-reason: ").or_else(|| field("X-Ebbtide-Reason: "));
    (status, reason.unwrap_or(String::from_utf8(body).unwrap()))
}

pub(super) fn ok(name: &str) -> (u16, String) {
    (200, name.to_owned())
}

pub(super) fn none() -> (u16, String) {
    (404, "no_route".to_owned())
}

/// Waits until a new client gets this answer.
pub(super) async fn until(to: SocketAddr, host: &str, path: &str, expected: &(u16, String)) {
    eventually(&format!("{expected:?} for {host}{path}"), async || {
        let mut stream = TcpStream::connect(to).await.unwrap();
        ask(&mut stream, host, path, "").await == *expected
    })
    .await;
}

#[tokio::test]
async fn each_request_of_a_connection_goes_where_its_host_and_path_say() {
    let folder = Folder::new();
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    for (name, play) in [("a", &a), ("b", &b), ("c", &c)] {
        add(&folder, name, play.address());
    }
    let paths = [
        ("a.example", "/", "Prefix", "a"),
        ("a.example", "/b", "Prefix", "b"),
        ("a.example", "/b/c", "Exact", "c"),
        ("*.example", "/", "ImplementationSpecific", "b"),
        ("", "/c", "Prefix", "c"),
    ];
    folder.write("ingress.json", &ingress("all", "ebbtide", &paths));
    let others = [("other.test", "/", "Prefix", "a")];
    folder.write("other.json", &ingress("other", "nginx", &others));
    let rig = rig(folder, "").await;
    until(http(&rig), "a.example", "/", &ok("a")).await;
    let mut stream = TcpStream::connect(http(&rig)).await.unwrap();
    for (host, path, expected) in [
        ("a.example", "/", "a"),
        ("A.Example:80", "/x?/b", "a"),
        ("a.example", "/b", "b"),
        ("a.example", "/b/", "b"),
        ("a.example", "/bb", "a"),
        ("a.example", "/b/c", "c"),
        ("a.example", "/b/c/", "b"),
        ("x.example", "/b/c", "b"),
        ("y.x.example", "/c/d", "c"),
        ("other.test", "/c", "c"),
    ] {
        let got = ask(&mut stream, host, path, "").await;
        assert_eq!(got, ok(expected), "{host}{path}");
    }
    assert_eq!(ask(&mut stream, "other.test", "/", "").await, none());
    // A default backend gets the rest.
    let mut default = ingress("default", "ebbtide", &[]);
    default["spec"]["defaultBackend"] = backend("a");
    rig.write("default.json", &default);
    until(http(&rig), "other.test", "/", &ok("a")).await;
    rig.remove("default.json");
    until(http(&rig), "other.test", "/", &none()).await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_and_takes_nothing_from_the_rest() {
    let folder = Folder::new();
    let a = named("a").await;
    add(&folder, "a", a.address());
    let paths = [
        ("a.example", "/", "Prefix", "a"),
        ("a.example", "/gone", "Prefix", "nobody"),
    ];
    let mut all = ingress("all", "ebbtide", &paths);
    let bucket = json!({"apiGroup": "x.example", "kind": "Bucket", "name": "b"});
    let path = json!({"path": "/bucket", "pathType": "Prefix", "backend": {"resource": bucket}});
    all["spec"]["rules"][0]["http"]["paths"]
        .as_array_mut()
        .unwrap()
        .push(path);
    folder.write("ingress.json", &all);
    let rig = rig(folder, "timeouts: {hold: 100ms}").await;
    until(http(&rig), "a.example", "/bucket", &ok("a")).await;
    let missing = (503, "no_service".to_owned());
    until(http(&rig), "a.example", "/gone", &missing).await;
}

#[tokio::test]
async fn a_change_of_rules_costs_no_request_and_no_connection() {
    let folder = Folder::new();
    let a = named("a").await;
    let tunnel = Scripted::start(|mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        while let Ok(byte) = stream.read_u8().await {
            stream.write_u8(byte).await.unwrap();
        }
    })
    .await;
    add(&folder, "a", a.address());
    add(&folder, "tunnel", tunnel.address);
    let of = |service: &'static str| {
        let paths = [
            ("a.example", "/", "Prefix", service),
            ("a.example", "/tunnel", "Prefix", "tunnel"),
        ];
        ingress("all", "ebbtide", &paths)
    };
    folder.write("ingress.json", &of("a"));
    let rig = rig(folder, "timeouts: {drain: 200ms}").await;
    until(http(&rig), "a.example", "/", &ok("a")).await;
    let mut joined = TcpStream::connect(http(&rig)).await.unwrap();
    let upgrade = "Connection: upgrade\r\nUpgrade: echo\r\n";
    assert_eq!(
        ask(&mut joined, "a.example", "/tunnel", upgrade).await.0,
        101
    );
    let mut kept = TcpStream::connect(http(&rig)).await.unwrap();
    let names: [&'static str; 5] = ["b", "c", "d", "e", "f"];
    let mut plays = Vec::new();
    for name in names {
        // The Service comes with the rule that needs it, and the one before leaves with its rule.
        let play = named(name).await;
        add(&rig, name, play.address());
        plays.push(play);
        let only = [("a.example", "/", "Prefix", name)];
        rig.write("ingress.json", &ingress("all", "ebbtide", &only));
        eventually("the new Service", async || {
            let (status, body) = ask(&mut kept, "a.example", "/", "").await;
            assert_eq!(status, 200, "{name}: {body}");
            body == name
        })
        .await;
        // Longer than a drain may take.
        tokio::time::sleep(Duration::from_millis(300)).await;
        joined.write_u8(7).await.unwrap();
        assert_eq!(soon("an echo", joined.read_u8()).await.unwrap(), 7);
    }
}

#[tokio::test]
async fn a_rolling_update_behind_an_ingress_costs_no_client_a_request_or_its_connection() {
    let mut fleet = five().await;
    let (folder, manifests) = (fleet.folder().to_owned(), fleet.manifests());
    // 2,000 rules of others, of which one changes all the time.
    let others: Vec<Path<'_>> = (0..2_000)
        .map(|_| ("other.example", "/x", "Prefix", "nobody"))
        .collect();
    let mut rules = ingress("all", "ebbtide", &others);
    for (number, rule) in rules["spec"]["rules"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .enumerate()
    {
        rule["host"] = json!(format!("h{number}.example"));
    }
    let own = [("", "/", "Prefix", "shop")];
    let write = |name: &str, object: &Value| {
        let file = folder.join(name);
        std::fs::write(&file, object.to_string()).unwrap();
        std::fs::rename(file, manifests.join(name)).unwrap();
    };
    write("others.json", &rules);
    write("own.json", &ingress("own", "ebbtide", &own));
    let text = config(
        &manifests,
        "workers: 2\ningress: {addresses: [127.0.0.1], httpPort: 0, httpsPort: 0}",
    );
    let name = "ingress-http@127.0.0.1";
    let proxy = Proxy::start(BINARY.as_ref(), &folder, &text, &[name])
        .await
        .unwrap();
    let to = std::future::ready(proxy.listeners[name]);
    roll_five(&mut fleet, &proxy, to, |number| {
        rules["spec"]["rules"][0]["host"] = json!(format!("new{number}.example"));
        write("others.json", &rules);
    })
    .await;
}

#[tokio::test]
async fn what_belongs_to_a_client_at_one_service_serves_no_other() {
    let folder = Folder::new();
    let login = Play::start(|_| {
        let answer =
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM 2\r\nContent-Length: 1\r\n\r\na";
        Act::Say(answer.into())
    })
    .await;
    let b = named("b").await;
    add(&folder, "a", login.address());
    add(&folder, "b", b.address());
    let paths = [("", "/a", "Prefix", "a"), ("", "/b", "Prefix", "b")];
    folder.write("ingress.json", &ingress("all", "ebbtide", &paths));
    let rig = rig(folder, "").await;
    until(http(&rig), "x", "/b", &ok("b")).await;
    let mut stream = TcpStream::connect(http(&rig)).await.unwrap();
    let got = ask(&mut stream, "x", "/a", "Authorization: NTLM 1\r\n").await;
    assert_eq!(got, (401, "a".to_owned()));
    assert_eq!(ask(&mut stream, "x", "/b", "").await, ok("b"));
    assert_eq!(
        ask(&mut stream, "x", "/b", "Authorization: NTLM 1\r\n").await,
        ok("b")
    );
}

pub(super) fn secret(name: &str, pair: &Pair) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": "web"},
        "stringData": {"tls.crt": pair.certificate, "tls.key": pair.key},
    })
}

#[tokio::test]
async fn certificates_come_from_the_secrets_that_ingresses_name() {
    let folder = Folder::new();
    let (authority, a) = (Authority::new(), named("a").await);
    let pairs = ["a.example", "b.example"].map(|name| authority.sign(&[name]));
    add(&folder, "a", a.address());
    let with = |host: &'static str, name: &str| {
        let mut one = ingress(name, "ebbtide", &[(host, "/", "Prefix", "a")]);
        one["spec"]["tls"] = json!([{"hosts": [host], "secretName": name}]);
        one
    };
    folder.write("a-ingress.json", &with("a.example", "a"));
    folder.write("a-secret.json", &secret("a", &pairs[0]));
    let rig = rig(folder, "").await;
    let config = Arc::new(trusting());
    let shown = async |host: &str| {
        let stream = connect(https(&rig), host, &config).await.ok()?;
        let shown = stream.get_ref().1.peer_certificates()?[0].clone();
        Some(shown.into_owned())
    };
    eventually("the first certificate", async || {
        shown("a.example").await == Some(pairs[0].der())
    })
    .await;
    let mut kept = connect(https(&rig), "a.example", &config).await.unwrap();
    assert_eq!(ask(&mut kept, "a.example", "/", "").await, ok("a"));
    rig.write("b-secret.json", &secret("b", &pairs[1]));
    rig.write("b-ingress.json", &with("b.example", "b"));
    eventually("the second certificate", async || {
        shown("b.example").await == Some(pairs[1].der())
    })
    .await;
    assert_eq!(shown("a.example").await, Some(pairs[0].der()));
    assert_eq!(ask(&mut kept, "b.example", "/", "").await, ok("a"));
}

//! BackendTLSPolicies: over which routes and how TLS is spoken with endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{GROUP, backends, class, free_port, gateway, route};
use crate::proxy::ask::raw;
use crate::proxy::ingress::{add, ask, ok, until};
use crate::proxy::scripted::Scripted;
use crate::proxy::tls::{Authority, Pair, connect, trusting};
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::rig::Rig;
use crate::support::wait::eventually;

/// An endpoint that speaks TLS with who begins with it, and answers with the name that it was asked for.
/// To others it answers `clear`.
async fn endpoint(pair: &Pair) -> Scripted {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    let mut config = config
        .with_single_cert(vec![pair.der()], pair.key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Scripted::start(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let mut first = [0];
            match stream.peek(&mut first).await {
                Ok(1) if first == [22] => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let session = stream.get_ref().1;
                        let is_http2 = session.alpn_protocol().is_some();
                        let name = session.server_name().unwrap_or("-").to_owned();
                        match is_http2 {
                            true => answer_http2(stream, &name).await,
                            false => answer(stream, &name).await,
                        }
                    }
                }
                Ok(1) => answer(stream, "clear").await,
                _ => {}
            }
        }
    })
    .await
}

/// Answers each request with this, and keeps the connection.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, name: &str) {
    let (length, mut head) = (name.len(), Vec::new());
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.flush().await;
        }
    }
}

/// The same in HTTP/2, with these words before.
async fn answer_http2(stream: impl AsyncRead + AsyncWrite + Unpin, name: &str) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let answer = format!("over HTTP/2 {name}");
        let mut body = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        let _ = body.send_data(answer.into(), true);
    }
}

/// A policy for Service `a`, or one of its ports, that takes its authorities from ConfigMap `ca`.
fn policy(name: &str, port: Option<&str>, hostname: &str, names: &[&str]) -> Value {
    let mut target = json!({"group": "", "kind": "Service", "name": "a"});
    if let Some(port) = port {
        target["sectionName"] = json!(port);
    }
    let names = names.iter();
    let names = names.map(|it| match it.contains(':') {
        true => json!({"type": "URI", "uri": it}),
        false => json!({"type": "Hostname", "hostname": it}),
    });
    let names: Vec<Value> = names.collect();
    json!({
        "apiVersion": GROUP, "kind": "BackendTLSPolicy", "metadata": {"name": name, "namespace": "web"},
        "spec": {"targetRefs": [target], "validation": {
            "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
            "hostname": hostname, "subjectAltNames": names}},
    })
}

fn authorities(of: &Authority) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca", "namespace": "web"},
        "data": {"ca.crt": of.pem()},
    })
}

/// The same for each rule of every test: what is refused for its TLS.
fn refused() -> (u16, String) {
    (502, "upstream_tls".to_owned())
}

/// A folder with a Gateway whose route leads to Service `a`, and the Gateway's port.
fn edge() -> (Folder, u16) {
    let (folder, port) = (Folder::new(), free_port());
    folder.write("class.json", &class());
    let listener = json!({"name": "http", "port": port, "protocol": "HTTP"});
    folder.write("edge.json", &gateway("edge", json!([listener])));
    let rules = json!({"rules": [{"backendRefs": backends(&["a"])}]});
    folder.write("route.json", &route("HTTPRoute", "shop", "edge", rules));
    (folder, port)
}

fn address(rig: &Rig, port: u16) -> SocketAddr {
    let name = format!("web/gateway/edge:{port}@127.66.0.1");
    rig.running().listener(&name).unwrap()
}

#[tokio::test]
async fn a_grpcroute_has_http2_spoken_over_the_tls_of_a_policy() {
    let authority = Authority::new();
    let endpoint = endpoint(&authority.sign(&["shop.example"])).await;
    let (folder, port) = edge();
    let rules = json!({"rules": [{"backendRefs": backends(&["a"])}]});
    folder.write("route.json", &route("GRPCRoute", "shop", "edge", rules));
    add(&folder, "a", endpoint.address);
    folder.write("ca.json", &authorities(&authority));
    folder.write("policy.json", &policy("p", None, "shop.example", &[]));
    let rig = super::rig(folder).await;
    let get = b"GET /s/m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (answer, _) = raw(address(&rig, port), get).await;
    assert!(answer.contains("over HTTP/2 shop.example"), "{answer}");
    rig.write("ca.json", &authorities(&Authority::new()));
    eventually("the endpoint is refused", async || {
        let (answer, _) = raw(address(&rig, port), get).await;
        answer.starts_with("HTTP/1.1 502") && answer.contains("upstream_tls")
    })
    .await;
}

#[tokio::test]
async fn endpoints_are_verified_as_their_policy_says_now() {
    let authority = Authority::new();
    let endpoint = endpoint(&authority.sign_for(&["shop.example"], &["spiffe://a/shop"])).await;
    let (folder, port) = edge();
    add(&folder, "a", endpoint.address);
    folder.write("ca.json", &authorities(&authority));
    folder.write("policy.json", &policy("p", None, "shop.example", &[]));
    let rig = super::rig(folder).await;
    let to = address(&rig, port);
    let mut client = TcpStream::connect(to).await.unwrap();
    assert_eq!(ask(&mut client, "x", "/", "").await, ok("shop.example"));
    for (hostname, names, expected) in [
        ("other.example", &[][..], refused()),
        ("other.example", &["shop.example"], ok("other.example")),
        ("shop.example", &["other.example"], refused()),
        (
            "id.example",
            &["b.example", "spiffe://a/shop"],
            ok("id.example"),
        ),
        ("shop.example", &["spiffe://a/other"], refused()),
        ("not a name", &[], refused()),
        ("shop.example", &[], ok("shop.example")),
    ] {
        rig.write("policy.json", &policy("p", None, hostname, names));
        until(to, "x", "/", &expected).await;
    }
    rig.write("ca.json", &authorities(&Authority::new()));
    until(to, "x", "/", &refused()).await;
    rig.write("ca.json", &authorities(&authority));
    until(to, "x", "/", &ok("shop.example")).await;
    rig.remove("ca.json");
    until(to, "x", "/", &refused()).await;
    rig.write("ca.json", &authorities(&authority));
    until(to, "x", "/", &ok("shop.example")).await;
    let again = ask(&mut client, "x", "/", "").await;
    assert_eq!(again, ok("shop.example"), "the connection goes on");
    rig.remove("policy.json");
    until(to, "x", "/", &ok("clear")).await;
}

#[tokio::test]
async fn a_policy_counts_for_its_port_and_of_two_the_older() {
    let authority = Authority::new();
    let names = ["wide.example", "later.example", "narrow.example"];
    let endpoint = endpoint(&authority.sign(&names)).await;
    let (folder, port) = edge();
    let rules = |port: u16| {
        let to = json!([{"name": "a", "port": port}]);
        json!({"matches": [{"path": {"type": "Exact", "value": format!("/{port}")}}], "backendRefs": to})
    };
    let rules = json!({"rules": [rules(80), rules(81)]});
    folder.write("route.json", &route("HTTPRoute", "shop", "edge", rules));
    folder.write("ca.json", &authorities(&authority));
    // The policies are there before their Service.
    let made = |mut policy: Value, at: &str| {
        policy["metadata"]["creationTimestamp"] = json!(at);
        policy
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let wide = made(policy("z-wide", None, "wide.example", &[]), old);
    folder.write("wide.json", &wide);
    let later = made(policy("a-later", None, "later.example", &[]), new);
    folder.write("later.json", &later);
    let narrow = made(policy("narrow", Some("second"), "narrow.example", &[]), new);
    folder.write("narrow.json", &narrow);
    let rig = super::rig(folder).await;
    let to = address(&rig, port);
    let mut shop = service("a", json!({}));
    shop["spec"]["ports"] = json!([{"port": 80, "name": "first"}, {"port": 81, "name": "second"}]);
    rig.write("a.json", &shop);
    let mut slice = Ep::new("a", endpoint.address).slice_of("a", "first");
    let number = endpoint.address.port();
    slice["ports"] = json!([{"name": "first", "port": number}, {"name": "second", "port": number}]);
    rig.write("a-slice.json", &slice);
    until(to, "x", "/80", &ok("wide.example")).await;
    until(to, "x", "/81", &ok("narrow.example")).await;
    rig.remove("wide.json");
    until(to, "x", "/80", &ok("later.example")).await;
    rig.remove("narrow.json");
    until(to, "x", "/81", &ok("later.example")).await;
}

#[tokio::test]
async fn tls_and_clear_connections_to_one_endpoint_are_not_mixed() {
    let authority = Authority::new();
    let pair = authority.sign(&["shop.example", "ended.example"]);
    let endpoint = endpoint(&pair).await;
    let (folder, port) = edge();
    let (ended, tcp) = (free_port(), free_port());
    let tls = json!({"certificateRefs": [{"name": "pair"}]});
    let listeners = json!([
        {"name": "http", "port": port, "protocol": "HTTP"},
        {"name": "tls", "port": ended, "protocol": "TLS", "hostname": "ended.example", "tls": tls},
        {"name": "tcp", "port": tcp, "protocol": "TCP"},
    ]);
    folder.write("edge.json", &gateway("edge", listeners));
    for kind in ["TLSRoute", "TCPRoute"] {
        let rules = json!({"rules": [{"backendRefs": backends(&["a"])}]});
        folder.write(&format!("{kind}.json"), &route(kind, "a", "edge", rules));
    }
    folder.write(
        "pair.json",
        &json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "pair", "namespace": "web"},
            "stringData": {"tls.crt": pair.certificate, "tls.key": pair.key},
        }),
    );
    add(&folder, "a", endpoint.address);
    folder.write("ca.json", &authorities(&authority));
    folder.write("policy.json", &policy("p", None, "shop.example", &[]));
    let text = "discovery: {files: {path: manifests}}\ngateway: {addresses: [127.66.0.0/29]}\n\
                listeners: [{name: web, address: '127.0.0.1:0', service: web/a, port: 80, protocol: http}]\n\
                admin: {address: '127.0.0.1:0'}\nworkers: 1\n";
    let rig = Rig::run(folder, text).await;
    let to = address(&rig, port);
    until(to, "x", "/", &ok("shop.example")).await;
    let mut through = TcpStream::connect(to).await.unwrap();
    let mut plain = TcpStream::connect(rig.web()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&mut through, "x", "/", "").await, ok("shop.example"));
        assert_eq!(ask(&mut plain, "x", "/", "").await, ok("clear"));
    }
    // The look before the endpoint is in rotation, and one of each kind.
    assert_eq!(endpoint.accepted(), 3, "both are kept");
    let trusting = Arc::new(trusting());
    let client = connect(address(&rig, ended), "ended.example", &trusting).await;
    let answer = ask(&mut client.unwrap(), "x", "/", "").await;
    assert_eq!(
        answer,
        ok("shop.example"),
        "TLS that ends here begins again"
    );
    let mut client = TcpStream::connect(address(&rig, tcp)).await.unwrap();
    let answer = ask(&mut client, "x", "/", "").await;
    assert_eq!(answer, ok("clear"), "bytes are passed on as they are");
}

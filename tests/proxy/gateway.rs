//! Gateways and their routes, from a folder of manifests.

mod policies;

use std::net::SocketAddr;
use std::sync::Arc;

use ebbtide::command::demo::proxy::{Proxy, config};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::ingress::{add, ask, named, none, ok, secret, until};
use crate::proxy::play::{Act, Play, Turn};
use crate::proxy::rollout::{five, roll_five};
use crate::proxy::tls::{Authority, connect, hello, trusting};
use crate::support::binary::BINARY;
use crate::support::folder::Folder;
use crate::support::rig::Rig;
use crate::support::serve::serve;
use crate::support::wait::eventually;

const GROUP: &str = "gateway.networking.k8s.io/v1";

/// The class of the Gateways of these tests.
fn class() -> Value {
    json!({
        "apiVersion": GROUP, "kind": "GatewayClass", "metadata": {"name": "ours"},
        "spec": {"controllerName": "ebbtide.dev/gateway"},
    })
}

fn gateway(name: &str, listeners: Value) -> Value {
    json!({
        "apiVersion": GROUP, "kind": "Gateway", "metadata": {"name": name, "namespace": "web"},
        "spec": {"gatewayClassName": "ours", "listeners": listeners},
    })
}

fn route(kind: &str, name: &str, to: &str, spec: Value) -> Value {
    let mut route = json!({
        "apiVersion": GROUP, "kind": kind, "metadata": {"name": name, "namespace": "web"}, "spec": spec,
    });
    route["spec"]["parentRefs"] = json!([{"name": to}]);
    route
}

fn backends(all: &[&str]) -> Value {
    let all = all.iter().map(|name| json!({"name": name, "port": 80}));
    all.collect()
}

/// A proxy that gives addresses of the loopback to Gateways, once all endpoints of the folder are in
/// rotation. Its requests wait for no endpoint.
async fn rig(folder: Folder) -> Rig {
    let text = "discovery: {files: {path: manifests}}\ngateway: {addresses: [127.66.0.0/29]}\n\
                admin: {address: '127.0.0.1:0'}\nworkers: 2\ntimeouts: {hold: 0s}\n";
    let rig = Rig::run(folder, text).await;
    eventually("all endpoints are in rotation", async || {
        let snapshot = rig.running().admin.snapshot.load();
        let mut ports = snapshot.ports.values();
        ports.all(|port| !port.usable.is_empty() && port.usable.len() == port.all.len())
            && rig.running().is_settled()
    })
    .await;
    rig
}

/// A port that nobody has.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[tokio::test]
async fn routes_lead_the_requests_of_a_gateway_on_and_follow_changes() {
    let folder = Folder::new();
    let (a, b) = (named("a").await, named("b").await);
    add(&folder, "a", a.address());
    add(&folder, "b", b.address());
    let port = free_port();
    folder.write("class.json", &class());
    let listener = json!({"name": "http", "port": port, "protocol": "HTTP"});
    folder.write("edge.json", &gateway("edge", json!([listener])));
    let rule = |path: &str, to: &str| json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": backends(&[to])});
    let rules = json!({"hostnames": ["x.example"], "rules": [rule("/a", "a"), rule("/a/b", "b")]});
    folder.write("route.json", &route("HTTPRoute", "shop", "edge", rules));
    let rig = rig(folder).await;
    let name = format!("web/gateway/edge:{port}@127.66.0.1");
    let to: SocketAddr = rig.running().listener(&name).unwrap();
    let mut client = TcpStream::connect(to).await.unwrap();
    assert_eq!(ask(&mut client, "x.example", "/a/", "").await, ok("a"));
    assert_eq!(ask(&mut client, "x.example", "/a/b", "").await, ok("b"));
    let mut other = TcpStream::connect(to).await.unwrap();
    assert_eq!(ask(&mut other, "x.example", "/c", "").await, none());
    let rules = json!({"rules": [rule("/", "b")]});
    rig.write("route.json", &route("HTTPRoute", "shop", "edge", rules));
    until(to, "any.example", "/a", &ok("b")).await;
    assert_eq!(
        ask(&mut client, "x.example", "/a/", "").await,
        ok("b"),
        "the connection goes on"
    );
    rig.remove("edge.json");
    eventually("the listener is closed", async || {
        rig.running().listener(&name).is_none()
    })
    .await;
}

/// Of two listeners of one port, one ends TLS and the other passes it on.
#[tokio::test]
async fn tls_ends_where_the_listener_of_its_name_ends_it() {
    let folder = Folder::new();
    let ended = named("ended").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    add(&folder, "ended", ended.address());
    add(&folder, "passed", listener.local_addr().unwrap());
    // What is passed on comes back as it is.
    serve(listener, async |mut stream, _| {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let (port, pair) = (free_port(), Authority::new().sign(&["ended.example"]));
    folder.write("class.json", &class());
    let tls = |name: &str, host: &str, tls: Value| json!({"name": name, "port": port, "protocol": "TLS", "hostname": host, "tls": tls});
    let ends = tls(
        "ends",
        "ended.example",
        json!({"certificateRefs": [{"name": "pair"}]}),
    );
    let passes = tls("passes", "*.example", json!({"mode": "Passthrough"}));
    folder.write("edge.json", &gateway("edge", json!([passes, ends])));
    folder.write("pair.json", &secret("pair", &pair));
    for (name, host) in [("ended", "ended.example"), ("passed", "passed.example")] {
        let spec = json!({"hostnames": [host], "rules": [{"backendRefs": backends(&[name])}]});
        folder.write(
            &format!("{name}-route.json"),
            &route("TLSRoute", name, "edge", spec),
        );
    }
    let rig = rig(folder).await;
    let to = format!("web/gateway/edge:{port}@127.66.0.1");
    let to: SocketAddr = rig.running().listener(&to).unwrap();
    let mut client = connect(to, "ended.example", &Arc::new(trusting()))
        .await
        .unwrap();
    assert_eq!(ask(&mut client, "x", "/", "").await, ok("ended"));
    let shown = client.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, pair.der());
    let (mut client, hello) = (
        TcpStream::connect(to).await.unwrap(),
        hello("passed.example"),
    );
    client.write_all(&hello).await.unwrap();
    let mut back = vec![0; hello.len()];
    client.read_exact(&mut back).await.unwrap();
    assert_eq!(back, hello, "no byte of it is changed");
}

/// What a new connection of HTTP/2 is answered.
async fn ask_h2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
) -> (u16, String) {
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("https://{host}/"))
        .body(())
        .unwrap();
    let (answer, _) = send.send_request(request, true).unwrap();
    let (parts, mut body) = answer.await.unwrap().into_parts();
    let mut text = Vec::new();
    while let Some(piece) = body.data().await {
        text.extend_from_slice(&piece.unwrap());
    }
    connection.abort();
    let reason = parts.headers.get("x-ebbtide-reason");
    let text = reason.map_or(&text[..], |it| it.as_bytes());
    (
        parts.status.as_u16(),
        String::from_utf8(text.to_vec()).unwrap(),
    )
}

/// Behind each of these listeners of a Gateway an application of its name, until what is returned is dropped.
async fn behind(folder: &Folder, listeners: &[&'static str]) -> Vec<Play> {
    let mut applications = Vec::new();
    for &name in listeners {
        let application = named(name).await;
        add(folder, name, application.address());
        applications.push(application);
        let mut route = route(
            "HTTPRoute",
            name,
            "edge",
            json!({"rules": [{"backendRefs": backends(&[name])}]}),
        );
        route["spec"]["parentRefs"][0]["sectionName"] = json!(name);
        folder.write(&format!("{name}-route.json"), &route);
    }
    applications
}

/// A browser uses a connection for every host of its certificate. Where another listener has the host, it is
/// told to connect again.
#[tokio::test]
async fn a_request_by_the_connection_of_another_listener_is_misdirected() {
    let folder = Folder::new();
    let port = free_port();
    let pair = Authority::new().sign(&["a.example", "*.wild.example", "rest.example"]);
    folder.write("class.json", &class());
    folder.write("pair.json", &secret("pair", &pair));
    let listener = |name: &str, host: Option<&str>| json!({"name": name, "port": port, "protocol": "HTTPS", "hostname": host, "tls": {"certificateRefs": [{"name": "pair"}]}});
    let hosts = [
        ("a", Some("a.example")),
        ("wild", Some("*.wild.example")),
        ("own", Some("own.wild.example")),
        ("rest", None),
    ];
    let listeners = hosts.map(|(name, host)| listener(name, host));
    folder.write("edge.json", &gateway("edge", json!(listeners)));
    let _applications = behind(&folder, &hosts.map(|(name, _)| name)).await;
    let rig = rig(folder).await;
    let to = format!("web/gateway/edge:{port}@127.66.0.1");
    let to: SocketAddr = rig.running().listener(&to).unwrap();
    let other = || (421, "misdirected_request".to_owned());
    let cases = [
        ("a.example", "A.example.", ok("a")),
        ("a.example", "b.wild.example", other()),
        ("a.example", "rest.example", other()),
        ("b.wild.example", "c.d.wild.example:443", ok("wild")),
        ("b.wild.example", "own.wild.example", other()),
        ("own.wild.example", "own.wild.example", ok("own")),
        ("own.wild.example", "b.wild.example", other()),
        ("rest.example", "x.example", ok("rest")),
        ("rest.example", "a.example", other()),
    ];
    let (h1, mut h2) = (Arc::new(trusting()), trusting());
    h2.alpn_protocols = vec![b"h2".to_vec()];
    let h2 = Arc::new(h2);
    for (name, host, wanted) in cases {
        let mut client = connect(to, name, &h1).await.unwrap();
        let answer = ask(&mut client, host, "/", "").await;
        assert_eq!(answer, wanted, "{host} by {name}");
        // The connection stays for what it is good for.
        let rest = ask(&mut client, name, "/", "").await;
        assert_eq!(rest.0, 200, "{name} after {host}");
        let client = connect(to, name, &h2).await.unwrap();
        assert_eq!(
            ask_h2(client, host).await,
            wanted,
            "{host} by {name}, HTTP/2"
        );
    }
    // Who names no host in the handshake is asked for none.
    let mut nameless = connect(to, "127.66.0.1", &h1).await.unwrap();
    assert_eq!(ask(&mut nameless, "a.example", "/", "").await, ok("a"));
}

/// An application of one pod is asked again, too.
#[tokio::test]
async fn an_answer_of_the_only_endpoint_is_asked_for_again() {
    let folder = Folder::new();
    let ill_first = |turn: Turn| {
        let status = if turn.number % 3 < 2 { 500 } else { 200 };
        Act::Say(format!("HTTP/1.1 {status} X\r\nContent-Length: 1\r\n\r\na").into())
    };
    let a = Play::start(ill_first).await;
    add(&folder, "a", a.address());
    let port = free_port();
    folder.write("class.json", &class());
    let listener = json!({"name": "http", "port": port, "protocol": "HTTP"});
    folder.write("edge.json", &gateway("edge", json!([listener])));
    let rule = |path: &str, retry: Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "retry": retry, "backendRefs": backends(&["a"])})
    };
    let rules = json!({"rules": [
        rule("/thrice", json!({"codes": [500], "attempts": 3})),
        rule("/twice", json!({"codes": [500], "attempts": 1})),
    ]});
    folder.write("route.json", &route("HTTPRoute", "shop", "edge", rules));
    let rig = rig(folder).await;
    let name = format!("web/gateway/edge:{port}@127.66.0.1");
    let to = rig.running().listener(&name).unwrap();
    let mut client = TcpStream::connect(to).await.unwrap();
    for _ in 0..5 {
        assert_eq!(ask(&mut client, "x", "/thrice", "").await, ok("a"));
    }
    assert_eq!(
        ask(&mut client, "x", "/twice", "").await,
        (500, "a".to_owned())
    );
}

#[tokio::test]
async fn a_rolling_update_behind_an_httproute_costs_no_client_a_request_or_its_connection() {
    let mut fleet = five().await;
    let (folder, manifests) = (fleet.folder().to_owned(), fleet.manifests());
    let write = |name: &str, objects: &[Value]| {
        let file = folder.join(name);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(&file, list.to_string()).unwrap();
        std::fs::rename(file, manifests.join(name)).unwrap();
    };
    let port = free_port();
    let listener = json!({"name": "http", "port": port, "protocol": "HTTP"});
    write("edge.json", &[class(), gateway("edge", json!([listener]))]);
    let rules = json!({"rules": [{"backendRefs": backends(&["shop"])}]});
    write("own.json", &[route("HTTPRoute", "own", "edge", rules)]);
    // 1,000 routes of others, of which one changes with each replacement.
    let mut others: Vec<Value> = (0..1_000)
        .map(|number| {
            let rules = json!([{"backendRefs": backends(&["nobody"])}]);
            let spec = json!({"hostnames": [format!("h{number}.example")], "rules": rules});
            route("HTTPRoute", &format!("r{number}"), "edge", spec)
        })
        .collect();
    write("others.json", &others);
    let text = config(
        &manifests,
        "workers: 2\ngateway: {addresses: [127.68.0.0/29]}",
    );
    let name = format!("web/gateway/edge:{port}@127.68.0.1");
    let proxy = Proxy::start(BINARY.as_ref(), &folder, &text, &[&name])
        .await
        .unwrap();
    let to = std::future::ready(proxy.listeners[&name]);
    roll_five(&mut fleet, &proxy, to, |number| {
        others[0]["spec"]["hostnames"] = json!([format!("new{number}.example")]);
        write("others.json", &others);
    })
    .await;
}

/// Numbers of ports of TCP and of UDP have nothing to do with each other.
#[tokio::test]
async fn listeners_of_tcp_and_of_udp_share_the_number_of_a_port() {
    for udp_first in [true, false] {
        let (folder, port) = (Folder::new(), free_port());
        let a = named("a").await;
        add(&folder, "a", a.address());
        folder.write("class.json", &class());
        let mut listeners = ["UDP", "HTTP"]
            .map(|it| json!({"name": it.to_lowercase(), "port": port, "protocol": it}));
        if !udp_first {
            listeners.reverse();
        }
        folder.write("edge.json", &gateway("edge", json!(listeners)));
        let rules = json!({"rules": [{"backendRefs": backends(&["a"])}]});
        folder.write(
            "route.json",
            &route("HTTPRoute", "a", "edge", rules.clone()),
        );
        folder.write("udp.json", &route("UDPRoute", "a", "edge", rules));
        let rig = rig(folder).await;
        let of = |port: String| {
            rig.running()
                .listener(&format!("web/gateway/edge:{port}@127.66.0.1"))
        };
        assert!(
            of(format!("{port}/udp")).is_some(),
            "UDP first: {udp_first}"
        );
        let to = of(port.to_string()).unwrap();
        let mut client = TcpStream::connect(to).await.unwrap();
        assert_eq!(ask(&mut client, "x", "/", "").await, ok("a"));
    }
}

/// The clients of a host stay with it while its certificate is broken or deleted.
#[tokio::test]
async fn a_host_whose_certificate_is_gone_keeps_the_last_one_and_its_routes() {
    let (folder, port) = (Folder::new(), free_port());
    let authority = Authority::new();
    let pair = authority.sign(&["a.example"]);
    folder.write("class.json", &class());
    folder.write("pair-a.json", &secret("pair-a", &pair));
    folder.write(
        "pair-rest.json",
        &secret("pair-rest", &authority.sign(&["rest.example"])),
    );
    let _applications = behind(&folder, &["a", "rest"]).await;
    let listener = |name: &str, host: Option<&str>| {
        let refs = json!({"certificateRefs": [{"name": format!("pair-{name}")}]});
        json!({"name": name, "port": port, "protocol": "HTTPS", "hostname": host, "tls": refs})
    };
    let listeners = [listener("rest", None), listener("a", Some("a.example"))];
    folder.write("edge.json", &gateway("edge", json!(listeners)));
    let rig = rig(folder).await;
    let to = format!("web/gateway/edge:{port}@127.66.0.1");
    let to: SocketAddr = rig.running().listener(&to).unwrap();
    let config = Arc::new(trusting());
    let mut kept = connect(to, "a.example", &config).await.unwrap();
    assert_eq!(ask(&mut kept, "a.example", "/", "").await, ok("a"));
    let broken = || {
        let problems = rig.running().admin.health.state().certificates;
        problems
            .iter()
            .any(|it| format!("{it:?}").contains("pair-a"))
    };
    let mut spoilt = secret("pair-a", &pair);
    spoilt["stringData"]["tls.crt"] = json!("spoilt");
    for change in ["spoilt", "removed"] {
        match change {
            "spoilt" => rig.write("pair-a.json", &spoilt),
            _ => rig.remove("pair-a.json"),
        }
        eventually(&format!("it is known to be {change}"), async || broken()).await;
        // A rule that comes later shows that the plan knows it, too.
        let host = format!("{change}.example");
        let spec = json!({"hostnames": [host], "rules": [{"backendRefs": backends(&["a"])}]});
        rig.write("later.json", &route("HTTPRoute", "later", "edge", spec));
        eventually("the later rule is in force", async || {
            let mut client = connect(to, "rest.example", &config).await.unwrap();
            ask(&mut client, &host, "/", "").await == ok("a")
        })
        .await;
        assert_eq!(
            ask(&mut kept, "a.example", "/", "").await,
            ok("a"),
            "{change}"
        );
        let mut client = connect(to, "a.example", &config).await.unwrap();
        let shown = client.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(shown, pair.der(), "{change}");
        assert_eq!(
            ask(&mut client, "a.example", "/", "").await,
            ok("a"),
            "{change}"
        );
    }
    let new = authority.sign(&["a.example"]);
    rig.write("pair-a.json", &secret("pair-a", &new));
    eventually("the new one is shown", async || {
        let client = connect(to, "a.example", &config).await.unwrap();
        client.get_ref().1.peer_certificates().unwrap()[0] == new.der()
    })
    .await;
}

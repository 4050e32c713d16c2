//! What a Service's `spec` says of its clients, in the real proxy: session affinity, traffic
//! policies and health checks. Each client has
//! an address of its own in 127.0.0.0/8. The pick itself is tested in `src/proxy/balancer.rs`.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use ebbtide::command::demo::proxy::Proxy;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::proxy::scripted::Scripted;
use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::process::Process;
use crate::support::rig::{NODE, Rig, one_listener};
use crate::support::vitals::script;
use crate::support::wait::{eventually, soon};

/// Endpoints that answer each request with their own name, and end the connection. They serve HTTP
/// clients and TCP clients alike.
struct Named(HashMap<String, Scripted>);

impl Named {
    async fn start(count: usize) -> Self {
        let mut all = HashMap::new();
        for n in 0..count {
            let name = format!("e{n}");
            let endpoint = Scripted::start(move |mut stream: TcpStream, _| async move {
                let mut request = [0; 4096];
                if matches!(stream.read(&mut request).await, Ok(1..)) {
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\ne{n}"
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
            all.insert(name, endpoint.await);
        }
        Self(all)
    }

    /// Their entries for the slices, without those in `left_out`.
    fn entries(&self, left_out: &[&str]) -> Vec<Ep> {
        let stays = self
            .0
            .iter()
            .filter(|(name, _)| !left_out.contains(&&***name));
        stays
            .map(|(name, endpoint)| Ep::new(name, endpoint.address))
            .collect()
    }
}

/// A connection from this address with one request; returns the name of the endpoint that answered.
/// Without a whole answer, it returns what came, and of a connection that is refused, `refused`.
async fn ask(from: [u8; 4], to: SocketAddr) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
    let Ok(mut stream) = soon("a connection", socket.connect(to)).await else {
        return "refused".into();
    };
    let mut text = Vec::new();
    let _ = stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    let read = soon("an answer", stream.read_to_end(&mut text)).await;
    if read.is_err() && text.is_empty() {
        return "refused".into();
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    match text.split_once("\r\n\r\n") {
        Some((head, name)) if head.starts_with("HTTP/1.1 200") => name.into(),
        _ => text,
    }
}

/// Connections from one address at the same time.
async fn ask_together(from: [u8; 4], to: SocketAddr, count: usize) -> HashSet<String> {
    let asks: Vec<_> = (0..count).map(|_| tokio::spawn(ask(from, to))).collect();
    let mut names = HashSet::new();
    for ask in asks {
        names.insert(ask.await.unwrap());
    }
    names
}

/// Service `web/shop` with more fields in its `spec`.
fn shop(spec: Value) -> Value {
    let mut shop = service("shop", json!({}));
    for (field, value) in spec.as_object().unwrap() {
        shop["spec"][field] = value.clone();
    }
    shop
}

/// A proxy whose Service has session affinity.
async fn sticky(protocol: &str, endpoints: &[Ep], seconds: u32) -> Rig {
    let rig = Rig::with_protocol(protocol, "").await;
    let config = json!({"clientIP": {"timeoutSeconds": seconds}});
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
    rig.write("service.json", &shop(spec));
    rig.endpoints(endpoints);
    rig.usable(endpoints.len()).await;
    eventually("affinity", async || {
        let snapshot = rig.running().admin.snapshot.load();
        snapshot.ports.values().all(|port| port.affinity.is_some())
    })
    .await;
    rig
}

#[tokio::test]
async fn a_client_stays_at_one_endpoint_over_all_its_connections() {
    let endpoints = Named::start(4).await;
    for protocol in ["http", "tcp", "auto"] {
        let rig = sticky(protocol, &endpoints.entries(&[]), 10_800).await;
        let mut used = HashSet::new();
        for client in 2..22 {
            let from = [127, 0, 0, client];
            let mut names = ask_together(from, rig.web(), 8).await;
            names.insert(ask(from, rig.web()).await);
            assert_eq!(names.len(), 1, "{protocol}: {names:?}");
            used.extend(names);
        }
        assert!(used.len() > 1, "{protocol}: the clients are spread");
        assert!(
            used.iter().all(|name| endpoints.0.contains_key(name)),
            "{used:?}"
        );
    }
}

#[tokio::test]
async fn a_client_whose_endpoint_leaves_moves_to_one_other_endpoint() {
    for protocol in ["http", "tcp"] {
        for dies in [false, true] {
            let mut endpoints = Named::start(5).await;
            let rig = sticky(protocol, &endpoints.entries(&[]), 10_800).await;
            let from = [127, 0, 0, 2];
            let first = ask(from, rig.web()).await;
            let gone = endpoints.0.remove(&first).unwrap();
            if !dies {
                // The process of an endpoint that no slice lists may live on.
                rig.endpoints(&endpoints.entries(&[]));
                rig.usable(4).await;
            }
            drop(gone);
            let next = ask_together(from, rig.web(), 16).await;
            assert_eq!(next.len(), 1, "{protocol}, dies: {dies}: {next:?}");
            assert!(
                endpoints.0.contains_key(next.iter().next().unwrap()),
                "{next:?}"
            );
            assert_eq!(ask_together(from, rig.web(), 16).await, next);
        }
    }
}

#[tokio::test]
async fn a_client_is_forgotten_after_the_timeout() {
    let endpoints = Named::start(4).await;
    let rig = sticky("http", &endpoints.entries(&[]), 1).await;
    let from = [127, 0, 0, 2];
    let first = ask(from, rig.web()).await;
    eventually("another endpoint", async || {
        tokio::time::sleep(std::time::Duration::from_millis(1_050)).await;
        ask(from, rig.web()).await != first
    })
    .await;
}

#[tokio::test]
async fn what_terminates_gets_nothing_even_if_it_is_published_as_ready() {
    let endpoints = Named::start(2).await;
    let rig = Rig::start("").await;
    rig.write(
        "service.json",
        &shop(json!({"publishNotReadyAddresses": true})),
    );
    let mut entries = endpoints.entries(&[]);
    rig.endpoints(&entries);
    rig.usable(2).await;
    let from = [127, 0, 0, 2];
    entries[0].terminating = true;
    rig.endpoints(&entries);
    rig.usable(1).await;
    let other = HashSet::from([entries[1].name.clone()]);
    assert_eq!(ask_together(from, rig.web(), 30).await, other);
    // Its pod says that it does not serve, but it is all that there is.
    entries[0].serving = false;
    rig.endpoints(&entries[..1]);
    let last = HashSet::from([entries[0].name.clone()]);
    eventually("the last resort", async || {
        ask_together(from, rig.web(), 30).await == last
    })
    .await;
}

/// An address that is free now.
fn free_address() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// Claimed Service `web/shop` with a nodePort.
fn claimed(node_port: SocketAddr, spec: Value) -> Value {
    let mut shop = shop(spec);
    shop["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
    shop["spec"]["ports"][0]["nodePort"] = node_port.port().into();
    shop
}

/// Puts an endpoint on a node.
fn put(folder: &Folder, endpoint: &Ep, node: &str) {
    let mut slice = endpoint.slice_of("shop", "");
    slice["endpoints"][0]["nodeName"] = node.into();
    folder.write(&format!("slice-{}.json", endpoint.name), &slice);
}

/// A proxy with listener `web` and a nodePort for claimed Service `web/shop`.
struct Node {
    rig: Rig,
    node_port: SocketAddr,
}

impl Node {
    async fn start(spec: Value) -> Self {
        let node_port = free_address();
        let more = "nodePorts: {addresses: [127.0.0.1]}\ntimeouts: {hold: 100ms, lameDuck: 60s}";
        let rig = Rig::run(Folder::new(), &one_listener("auto", more)).await;
        let node = Self { rig, node_port };
        node.shop(spec);
        eventually("the nodePort", async || {
            TcpStream::connect(node_port).await.is_ok()
        })
        .await;
        node
    }

    fn shop(&self, spec: Value) {
        self.rig
            .write("service.json", &claimed(self.node_port, spec));
    }

    fn put(&self, endpoint: &Ep, node: &str) {
        put(&self.rig, endpoint, node);
    }

    /// The endpoints that answer on the nodePort, and on listener `web`.
    async fn answers(&self) -> [HashSet<String>; 2] {
        let from = [127, 0, 0, 2];
        [
            ask_together(from, self.node_port, 30).await,
            ask_together(from, self.rig.web(), 30).await,
        ]
    }

    async fn until_answered_by(&self, node_port: &[&str], web: &[&str]) {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        let expected = [names(node_port), names(web)];
        eventually(&format!("{expected:?}"), async || {
            self.answers().await == expected
        })
        .await;
        assert_eq!(self.answers().await, expected);
    }
}

#[tokio::test]
async fn a_node_port_with_a_local_policy_reaches_endpoints_of_this_node_only() {
    let endpoints = Named::start(2).await;
    let node = Node::start(json!({"externalTrafficPolicy": "Local"})).await;
    let entry = |name: &str| Ep::new(name, endpoints.0[name].address);
    node.put(&entry("e0"), NODE);
    node.put(&entry("e1"), "n2");
    node.until_answered_by(&["e0"], &["e0", "e1"]).await;
    // KEP-1669: it serves on while nothing else does here.
    node.put(&entry("e0").terminating(), NODE);
    node.until_answered_by(&["e0"], &["e1"]).await;
    node.rig.remove("slice-e0.json");
    // Clients outside are held for the hold time, and then refused.
    node.until_answered_by(&["refused"], &["e1"]).await;
    node.shop(json!({"externalTrafficPolicy": "Cluster"}));
    node.until_answered_by(&["e1"], &["e1"]).await;
}

/// The clients of a nodePort get the endpoints that hints give to this node. Those of listener `web` get
/// all.
#[tokio::test]
async fn hints_choose_the_endpoints_of_a_node_port_until_they_leave() {
    let endpoints = Named::start(3).await;
    let node = Node::start(json!({"trafficDistribution": "PreferSameNode"})).await;
    let entry = |name: &str| Ep::new(name, endpoints.0[name].address);
    let put = |endpoint: &Ep, of: &str| {
        let mut slice = endpoint.slice_of("shop", "");
        slice["endpoints"][0]["hints"] = json!({"forNodes": [{"name": of}]});
        node.rig
            .write(&format!("slice-{}.json", endpoint.name), &slice);
    };
    for (name, of) in [("e0", NODE), ("e1", "n2"), ("e2", NODE)] {
        put(&entry(name), of);
    }
    node.until_answered_by(&["e0", "e2"], &["e0", "e1", "e2"])
        .await;
    put(&entry("e0").terminating(), NODE);
    node.until_answered_by(&["e2"], &["e1", "e2"]).await;
    put(&entry("e2").terminating(), NODE);
    node.until_answered_by(&["e1"], &["e1"]).await;
}

#[tokio::test]
async fn the_nodes_name_and_zone_come_from_the_environment() {
    let endpoints = Named::start(2).await;
    let (folder, node_port) = (Folder::new(), free_address());
    let spec = json!({"externalTrafficPolicy": "Local"});
    folder.write("service.json", &claimed(node_port, spec));
    for (name, node) in [("e0", "n7"), ("e1", "n8")] {
        put(&folder, &Ep::new(name, endpoints.0[name].address), node);
    }
    // Another Service, whose endpoints have hints for zones.
    let hinted = free_address();
    let mut other = claimed(hinted, json!({}));
    other["metadata"]["name"] = "other".into();
    folder.write("other.json", &other);
    for (name, zone) in [("e0", "z1"), ("e1", "z2")] {
        let mut slice = Ep::new(name, endpoints.0[name].address).slice_of("other", "");
        slice["metadata"]["name"] = format!("other-{name}").into();
        slice["endpoints"][0]["hints"] = json!({"forZones": [{"name": zone}]});
        folder.write(&format!("other-{name}.json"), &slice);
    }
    let environment = "export NODE_NAME=n7 NODE_ZONE=z2";
    let program = script(BINARY.as_ref(), environment, folder.path());
    let text = one_listener("http", "nodePorts: {addresses: [127.0.0.1]}");
    let proxy = Proxy::start(&program, folder.path(), &text, &["web"]);
    let process = Process {
        proxy: proxy.await.unwrap(),
        folder,
    };
    process.ready(2).await;
    let names = ask_together([127, 0, 0, 2], node_port, 30).await;
    assert_eq!(names, HashSet::from(["e0".into()]));
    eventually("the endpoint of this zone", async || {
        ask_together([127, 0, 0, 2], hinted, 30).await == HashSet::from(["e1".into()])
    })
    .await;
}

/// The answer to a health check: its head and its body.
async fn health(at: SocketAddr) -> Option<(String, Value)> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut text = String::new();
    soon("an answer", stream.read_to_string(&mut text))
        .await
        .ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.to_owned(), serde_json::from_str(body).ok()?))
}

#[tokio::test]
async fn a_load_balancer_is_told_how_many_ready_endpoints_this_node_has() {
    let endpoints = Named::start(3).await;
    let check = free_address();
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": check.port(),
    });
    let node = Node::start(spec).await;
    let entry = |name: &str| Ep::new(name, endpoints.0[name].address);
    let told = async |count: usize, serves: bool| {
        let status = if count > 0 && serves {
            "200 OK"
        } else {
            "503 Service Unavailable"
        };
        let weight = format!("X-Load-Balancing-Endpoint-Weight: {count}");
        let body = json!({
            "service": {"namespace": "web", "name": "shop"},
            "localEndpoints": count,
            "serviceProxyHealthy": serves,
        });
        eventually(
            &format!("{count} endpoints, serves: {serves}"),
            async || {
                health(check).await.is_some_and(|(head, found)| {
                    head.starts_with(&format!("HTTP/1.1 {status}\r\n"))
                        && head.contains(&weight)
                        && head.contains("Content-Type: application/json")
                        && head.contains("X-Content-Type-Options: nosniff")
                        && found == body
                })
            },
        )
        .await;
    };
    node.put(&entry("e1"), "n2");
    told(0, true).await;
    // The endpoints of these tests share one address, and an address counts once.
    node.put(&entry("e0"), NODE);
    node.put(&entry("e2"), NODE);
    told(1, true).await;
    node.rig.remove("slice-e2.json");
    node.put(&entry("e0").terminating(), NODE);
    told(0, true).await;
    assert_eq!(
        node.answers().await[0],
        HashSet::from(["e0".into()]),
        "the last resort"
    );
    node.put(&entry("e2"), NODE);
    told(1, true).await;
    node.rig.running().shutdown();
    told(1, false).await;
}

#[tokio::test]
async fn a_health_check_port_is_bound_when_it_is_free_and_closed_with_its_service() {
    let endpoints = Named::start(1).await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let check = taken.local_addr().unwrap();
    let local = |check: u16| json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": check});
    let node = Node::start(local(check.port())).await;
    node.put(&Ep::new("e0", endpoints.0["e0"].address), NODE);
    let failed = || {
        let listeners = node.rig.running().admin.health.state().listeners;
        let mut listeners = listeners.into_iter();
        listeners
            .find(|it| it.address == check)
            .and_then(|it| it.error.clone())
    };
    eventually("the failure is named", async || failed().is_some()).await;
    drop(taken);
    eventually("an answer", async || health(check).await.is_some()).await;
    assert_eq!(failed(), None);
    node.shop(json!({"externalTrafficPolicy": "Cluster"}));
    eventually("closed", async || TcpStream::connect(check).await.is_err()).await;
}

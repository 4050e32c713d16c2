//! Clients that are there when a Service is claimed: the kernel has their flows. Those of UDP lead to
//! the pods that kube-proxy chose, for as long as the clients send. Those of a TCP client that asked too
//! early lead nowhere.

use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use ebbtide::net::netlink;
use ebbtide::net::rules::{Rules, Transport};
use serde_json::json;

use super::namespace::{ip, is_inside};
use super::node::{App, Node, echo, in_pod, make_network, shop};
use super::process::until;
use crate::support::manifests::{endpoint, service, slice};

const CLUSTER: &str = "10.96.0.10:53";
const NODE_PORT: &str = "192.0.2.1:30053";
const EARLY: &str = "10.96.0.11:80";
/// The node's default route.
const GATEWAY: &str = "192.0.2.254";

#[test]
fn the_flows_of_kube_proxys_time_come_over_and_go_back() {
    if !is_inside("addresses::claimed::the_flows_of_kube_proxys_time_come_over_and_go_back") {
        return;
    }
    make_network();
    let (old, new) = (echo("192.0.2.1:0", "old"), echo("127.0.0.1:0", "new"));
    // In place of kube-proxy's rules.
    let both = [CLUSTER, NODE_PORT].map(|at| (Transport::Udp, at.parse().unwrap()));
    let to = |port: u16| format!("192.0.2.1:{port}").parse().unwrap();
    let rules: Rules = both.into_iter().map(|at| (at, to(old))).collect();
    netlink::replace(&rules).unwrap();
    let clients = [
        client(CLUSTER),
        in_pod(|| client(CLUSTER)),
        client(NODE_PORT),
        in_pod(|| client(NODE_PORT)),
    ];
    for client in &clients {
        until("an answer of the old one", || ask(client) == "old ask");
    }
    netlink::remove().unwrap();

    let node = Node::start_in(&[], "");
    let mut dns = service("dns", json!({}));
    dns["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
    dns["spec"]["type"] = json!("NodePort");
    dns["spec"]["clusterIP"] = json!("10.96.0.10");
    dns["spec"]["ports"] =
        json!([{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}]);
    node.folder.write("dns.json", &dns);
    let mut here = slice(
        "dns",
        "dns",
        ("dns", new),
        &[endpoint("127.0.0.1", None, [true, true, false])],
    );
    here["ports"][0]["protocol"] = json!("UDP");
    node.folder.write("dns-slice.json", &here);
    for (n, client) in clients.iter().enumerate() {
        let what = format!("an answer through the proxy for client {n}");
        until(&what, || ask(client) == "new ask");
    }

    // The claim ends: nothing of ours holds the flows.
    std::fs::remove_file(node.folder.manifests().join("dns.json")).unwrap();
    let gone = || {
        netlink::list()
            .unwrap()
            .0
            .keys()
            .all(|at| !both.contains(at))
    };
    until("no rule of it", gone);
    // The rules go first. A process that is killed in between leaves the flows.
    until("no flow of it", || {
        flows(|it| it.contains("dport=53 ") || it.contains("dport=30053 ")) == 0
    });
    let mut rules = netlink::list().unwrap().0;
    rules.extend(both.map(|at| (at, to(old))));
    drop(node);
    netlink::replace(&rules).unwrap();
    for client in &clients {
        until("an answer as before", || ask(client) == "old ask");
    }
}

#[test]
fn a_client_that_connects_before_the_rule_is_there_is_served_by_it() {
    const TEST: &str =
        "addresses::claimed::a_client_that_connects_before_the_rule_is_there_is_served_by_it";
    if !is_inside(TEST) {
        return;
    }
    let app = App::start("a");
    let node = Node::start(&[app.ep()], "");
    // Somebody who is there and does not answer: without one, the client would soon be told so.
    ip(&[
        "neigh",
        "add",
        GATEWAY,
        "lladdr",
        "02:00:00:00:00:01",
        "dev",
        "outside",
    ]);
    let asked = || in_pod(|| TcpStream::connect(EARLY).map(drop));
    let waits = || flows(|it| it.contains("dst=10.96.0.11 ") && it.contains("UNREPLIED"));
    let kept = std::thread::scope(|scope| {
        let client = scope.spawn(asked);
        until("its SYN", || waits() == 1);
        let mut early = shop();
        early["metadata"]["name"] = json!("early");
        early["spec"] = json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80, "name": "http"}]});
        node.folder.write("early.json", &early);
        let mut here = app.ep().slice_of("early", "");
        here["metadata"]["name"] = json!("early");
        node.folder.write("early-slice.json", &here);
        // In the meantime nobody has ended it: TCP gives up after two minutes.
        client.join().unwrap()
    });
    assert!(kept.is_ok(), "{kept:?}");
    assert_eq!(waits(), 0);
}

/// How many flows the kernel has of which this holds.
fn flows(of: impl Fn(&str) -> bool) -> usize {
    let flows = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap();
    flows.lines().filter(|it| of(it)).count()
}

/// A client that keeps its port.
fn client(at: &str) -> UdpSocket {
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    let patience = Some(Duration::from_millis(500));
    client.set_read_timeout(patience).unwrap();
    client.connect(at).unwrap();
    client
}

/// The answer, or nothing.
fn ask(client: &UdpSocket) -> String {
    let mut buf = [0; 64];
    let answered = client.send(b"ask").and_then(|_| client.recv(&mut buf));
    String::from_utf8_lossy(&buf[..answered.unwrap_or(0)]).into_owned()
}

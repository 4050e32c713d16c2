//! A firewall of the node between its pods and the port to which they are led.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use ebbtide::net::netlink::Family;
use ebbtide::net::passage::{self, Passage};

use super::namespace::is_inside;
use super::node::{App, CLUSTER, CLUSTER_V6, Node, get, in_pod, make_network, page};
use super::process::until;
use super::seen::{DNS, dns, nft};
use crate::support::binary::BINARY;
use crate::support::manifests::{endpoint, slice};

#[test]
fn a_firewall_that_keeps_pods_away_is_named() {
    if !is_inside("addresses::firewall::a_firewall_that_keeps_pods_away_is_named") {
        return;
    }
    make_network();
    // As an administrator writes it who knows of the proxy.
    accept("meta l4proto { tcp, udp } accept");
    let app = App::start("a");
    let node = Node::start_in(&[app.ep()], "");
    node.folder.write("dns.json", &dns());
    let mut here = slice(
        "dns",
        "dns",
        ("dns", 53),
        &[endpoint("127.0.0.1", None, [true, true, false])],
    );
    here["ports"][0]["protocol"] = serde_json::json!("UDP");
    node.folder.write("dns-slice.json", &here);
    until("a doubt", || {
        obstacle().contains("may keep pods from the proxy: chain input of table inet filter drops")
    });
    // A node's own connections prove nothing, and are not counted.
    get(CLUSTER).unwrap();
    assert_eq!(passage::read(Family::V4).unwrap(), Some(Passage::default()));
    in_pod(|| get(CLUSTER)).unwrap();
    until("no doubt", || obstacle().is_empty());

    // IPv6 is forgotten.
    accept("meta nfproto ipv4 tcp dport 15001 accept");
    get(CLUSTER_V6).unwrap();
    in_pod(|| get(CLUSTER)).unwrap();
    assert!(in_pod(|| try_connect(CLUSTER_V6)).is_err());
    until("what is certain", || {
        obstacle().contains(
            "keeps pods or other hosts from the proxy: 1 of 1 attempts to connect to an IPv6",
        )
    });
    let ready = page("/readyz");
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("keeps pods"),
        "{ready}"
    );
    let status = Command::new(BINARY)
        .args(["status", "--admin", "127.0.0.1:9901"])
        .output();
    let status = String::from_utf8(status.unwrap().stdout).unwrap();
    let says = "addresses of Services: a firewall of this node keeps pods";
    assert!(status.contains(says), "{status}");

    // UDP is forgotten, too.
    in_pod(|| {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(b"ask", DNS).unwrap();
    });
    until("the datagram", || {
        obstacle().contains("an IPv4") && obstacle().ends_with("and UDP")
    });
}

#[test]
fn a_rule_that_somebody_takes_away_comes_back() {
    if !is_inside("addresses::firewall::a_rule_that_somebody_takes_away_comes_back") {
        return;
    }
    let app = App::start("a");
    let _node = Node::start(&[app.ep()], "");
    for chain in [
        "ip ebbtide prerouting",
        "ip6 ebbtide input",
        "ip ebbtide output",
    ] {
        nft(None, &format!("flush chain {chain}"));
        let whole = |family| passage::read(family).unwrap().is_some();
        until(chain, || Family::ALL.into_iter().all(whole));
        for served in [in_pod(|| get(CLUSTER)), get(CLUSTER)] {
            assert!(served.unwrap().starts_with("a "));
        }
    }
}

/// The node accepts what comes by `lo`, what it has accepted once, and this.
fn accept(rule: &str) {
    nft(
        None,
        &format!(
            "table inet filter\nflush table inet filter\ntable inet filter {{\nchain input {{\n\
             type filter hook input priority 0; policy drop;\niif lo accept\n\
             ct state established,related accept\nmeta l4proto icmpv6 accept\n{rule}\n}}\n}}\n"
        ),
    );
}

/// What the status says.
fn obstacle() -> String {
    let page = page("/api/v1/status");
    let (_, body) = page.split_once("\r\n\r\n").unwrap();
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    status["obstacle"].as_str().unwrap_or_default().to_owned()
}

/// One SYN.
fn try_connect(to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    TcpStream::connect_timeout(&to, Duration::from_millis(500))
}

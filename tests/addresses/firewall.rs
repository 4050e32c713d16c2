//! What stands between a node's pods and the port to which they are led: a firewall, and a full table of
//! connections.

use std::io::{BufWriter, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Duration;

use ebbtide::net::netlink::Family;
use ebbtide::net::passage::{self, Passage};

use super::namespace::is_inside;
use super::node::{App, CLUSTER, CLUSTER_V6, Client, Node, get, in_pod, make_network, page};
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

#[test]
fn a_full_table_of_connections_is_named_and_costs_only_new_connections() {
    if !is_inside(
        "addresses::firewall::a_full_table_of_connections_is_named_and_costs_only_new_connections",
    ) {
        return;
    }
    let app = App::start("a");
    let _node = Node::start(&[app.ep()], "");
    let mut client = in_pod(|| Client::connect(CLUSTER)).unwrap();
    client.get().unwrap();
    // The limit is the machine's, and cannot be set here. So the table of this network is filled.
    let limit = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
    let limit: u32 = limit.trim().parse().unwrap();
    if !fill(0..limit / 100 * 95) {
        println!("SKIPPED: a_full_table_of_connections: no conntrack, which fills the table");
        return;
    }
    until("a doubt", || {
        obstacle().contains("table of connections is nearly full")
    });
    fill(limit / 100 * 95..limit);
    assert!(in_pod(|| try_connect(CLUSTER)).is_err());
    client.get().unwrap();
    // Also the status page is reached again, when there is some room. One in sixteen goes.
    empty("10.250.0.0/20");
    until("a new connection", || {
        in_pod(|| try_connect(CLUSTER)).is_ok()
    });
    until("what is certain", || {
        let said = obstacle();
        said.contains("table of connections is full")
            && said.ends_with("nf_conntrack_max on the node")
    });
    empty("10.250.0.0/16");
    until("no obstacle", || obstacle().is_empty());
    assert!(in_pod(|| get(CLUSTER)).unwrap().starts_with("a "));
}

/// Fills the table with flows that have an answer: the kernel makes no room by those.
fn fill(places: Range<u32>) -> bool {
    let mut command = Command::new("conntrack");
    command.args(["-R", "-"]).stdin(Stdio::piped());
    let Ok(mut child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return false;
    };
    let mut flows = BufWriter::new(child.stdin.take().unwrap());
    for n in places {
        let [_, far, high, low] = n.to_be_bytes();
        let flow = format!(
            "-I -p udp -s 10.250.{high}.{low} -d 10.251.0.{far} --sport 9 --dport 9 -t 300 -u SEEN_REPLY,ASSURED\n"
        );
        // It ends at the first one that has no place.
        if flows.write_all(flow.as_bytes()).is_err() {
            break;
        }
    }
    let _ = flows.flush();
    drop(flows);
    let _ = child.wait();
    true
}

fn empty(of: &str) {
    let emptied = Command::new("conntrack").args(["-D", "-s", of]).output();
    assert!(emptied.unwrap().status.success());
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

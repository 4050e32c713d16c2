//! The kubelet's call of a pod's gate, with real packets: it goes to the pod's address without a
//! host, and arrives at the proxy of the node. Nobody else is led there.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebbtide::net::netlink;
use ebbtide::net::rules::Transport;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::namespace::is_inside;
use super::node::{
    App, CLUSTER, Client, NODE, Node, POD, get, in_pod, inside_of, is_refused, make_network, page,
};
use super::process::until;
use crate::support::manifests::{endpoint, slice};

/// Where the kubelet calls.
const GATE: &str = "10.244.0.2:9902";
const GATE_V6: &str = "[fd00:244::2]:9902";

/// A slice with a pod that is on this node.
fn here(name: &str, address: SocketAddr) -> Value {
    let mut endpoint = endpoint(&address.ip().to_string(), Some(name), [true, true, false]);
    endpoint["nodeName"] = json!(NODE);
    slice(
        &format!("slice-{name}"),
        "shop",
        ("", address.port()),
        &[endpoint],
    )
}

/// An application of the pod, that answers with its name once it is told to.
fn app_in_pod(name: &'static str, at: &str) -> App {
    let address = at.parse().unwrap();
    in_pod(move || App::start_at(name, address))
}

/// The kubelet's call: no timeout of its own, and it does not look at the answer.
fn call(at: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}

fn led(at: &str) -> Option<SocketAddr> {
    let rules = netlink::list().unwrap().0;
    rules.get(&(Transport::Own, at.parse().unwrap())).copied()
}

#[test]
fn the_kubelets_call_arrives_at_the_proxy_of_the_node_and_no_other_does() {
    if !is_inside(
        "addresses::gate::the_kubelets_call_arrives_at_the_proxy_of_the_node_and_no_other_does",
    ) {
        return;
    }
    make_network();
    let app = app_in_pod("a", "10.244.0.2:8080");
    let mut node = Node::start_in(&[], "gate: {}");
    node.folder.write("slice-a.json", &here("a", app.address));
    until("the rule", || led(GATE).is_some());
    assert_eq!(led(GATE), Some("192.0.2.1:9902".parse().unwrap()));
    until("the gate", || TcpStream::connect("192.0.2.1:9902").is_ok());
    until("the pod", || get(CLUSTER).is_ok());

    // A request is in flight, and another pod of the Service comes.
    app.slow.store(true, Ordering::SeqCst);
    let seen = app.seen.load(Ordering::SeqCst);
    let posted = std::thread::spawn(|| Client::connect(CLUSTER).unwrap().get());
    until("the request", || app.seen.load(Ordering::SeqCst) > seen);
    let other = App::start("b");
    node.folder.write(
        "slice-b.json",
        &slice(
            "slice-b",
            "shop",
            ("", other.address.port()),
            &[endpoint("127.0.0.1", Some("b"), [true, true, false])],
        ),
    );
    until("both", || {
        page("/api/v1/status").matches(r#""state":"ready""#).count() == 2
    });
    let kubelet = std::thread::spawn(|| call(GATE));
    until("only the other", || {
        (0..20).all(|_| get(CLUSTER).is_ok_and(|it| it.starts_with("b ")))
    });
    assert!(!kubelet.is_finished());
    app.slow.store(false, Ordering::SeqCst);
    assert_eq!(kubelet.join().unwrap().unwrap(), "clear");
    assert!(posted.join().unwrap().unwrap().starts_with("a "));
    let held = page("/api/v1/drains");
    assert!(
        held.contains(r#""pod":"web/a""#) && held.contains("this instance (1 in flight)"),
        "{held}"
    );

    // The pod itself, and others that ask for its address, reach the pod: nobody listens there.
    assert!(in_pod(|| is_refused(GATE)));
    inside_of("pod", || assert!(is_refused("127.0.0.1:9902")));
    // The node's own address is no pod's.
    assert_eq!(call("192.0.2.1:9902").unwrap(), "unknown");

    // A pod that itself listens on the port is asked itself.
    let own = app_in_pod("own", "[fd00:244::2]:9902");
    node.folder
        .write("slice-own.json", &here("own", own.address));
    node.folder.write(
        "slice-six.json",
        &here("six", "[fd00:244::3]:80".parse().unwrap()),
    );
    until("the rule of IPv6", || led("[fd00:244::3]:9902").is_some());
    assert_eq!(
        led("[fd00:244::3]:9902"),
        Some("[2001:db8::1]:9902".parse().unwrap())
    );
    assert_eq!(led(GATE_V6), None);

    // A pod that is over has no rule.
    std::fs::remove_file(node.folder.manifests().join("slice-a.json")).unwrap();
    until("its end", || led(GATE).is_none());
    assert!(is_refused(GATE), "{POD} is asked itself");

    // Without Ebbtide, the pod is asked itself, and the kubelet goes on.
    node.folder.write("slice-a.json", &here("a", app.address));
    until("the rule", || led(GATE).is_some());
    let net = node.net.take().unwrap();
    node.signal(Signal::KILL);
    node.proxy.wait().unwrap();
    assert!(is_refused(GATE), "nobody listens where the rule leads");
    net.signal(Signal::TERM);
    until("no rules", || led(GATE).is_none());
    assert!(is_refused(GATE));
}

//! Pods around the node, and applications in them that tell whom they see.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::namespace::ip;
use super::node::{CLUSTER, get, inside_of, shop};
use super::process::until;
use crate::support::folder::Ep;
use crate::support::manifests::service;

/// A pod: its network namespace, and its addresses.
#[derive(Debug, Clone, Copy)]
pub struct Pod {
    pub name: &'static str,
    pub v4: &'static str,
    pub v6: &'static str,
}

/// Behind a veth of its own, as Calico makes pods. `Node::start` makes this one.
pub const ROUTED: Pod = Pod {
    name: "pod",
    v4: "10.244.0.2",
    v6: "fd00:244::2",
};
/// Two on one bridge.
pub const BRIDGED: Pod = Pod {
    name: "bridged",
    v4: "10.244.1.2",
    v6: "fd00:244:0:1::2",
};
pub const NEIGHBOUR: Pod = Pod {
    name: "neighbour",
    v4: "10.244.1.3",
    v6: "fd00:244:0:1::3",
};
/// On another node. The node reaches it by a gateway.
pub const FAR: Pod = Pod {
    name: "other",
    v4: "10.244.2.2",
    v6: "fd00:244:0:2::2",
};
/// A pod in the node's own network.
pub const HOST: Pod = Pod {
    name: "",
    v4: "192.0.2.1",
    v6: "2001:db8::1",
};

/// Makes the pods beside [`ROUTED`]. Packets between pods of one bridge pass the node's rules, as
/// Kubernetes requires it.
pub fn make_pods() {
    ip(&["link", "add", "name", "cni0", "type", "bridge"]);
    ip(&["addr", "add", "10.244.1.1/24", "dev", "cni0"]);
    ip(&["addr", "add", "fd00:244:0:1::1/64", "dev", "cni0", "nodad"]);
    ip(&["link", "set", "cni0", "up"]);
    for file in ["iptables", "ip6tables"] {
        std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{file}"), "1").unwrap();
    }
    for (pod, link) in [(BRIDGED, "b0"), (NEIGHBOUR, "b1")] {
        add_pod(pod, link, ["10.244.1.1", "fd00:244:0:1::1"]);
        ip(&["link", "set", link, "master", "cni0"]);
    }
    add_pod(FAR, "wire", ["172.16.0.1", "fd00:172::1"]);
    ip(&["addr", "add", "172.16.0.1/24", "dev", "wire"]);
    ip(&["addr", "add", "fd00:172::1/64", "dev", "wire", "nodad"]);
    for (pods, node) in [
        ("10.244.2.0/24", "172.16.0.2"),
        ("fd00:244:0:2::/64", "fd00:172::2"),
    ] {
        ip(&["route", "add", pods, "via", node]);
    }
}

fn add_pod(pod: Pod, link: &str, gateways: [&str; 2]) {
    let is_far = pod.name == FAR.name;
    ip(&["netns", "add", pod.name]);
    let peer = ["peer", "name", "eth0", "netns", pod.name];
    ip(&[&["link", "add", link, "type", "veth"][..], &peer].concat());
    ip(&["link", "set", link, "up"]);
    let inside = |arguments: &[&str]| ip(&[&["-n", pod.name][..], arguments].concat());
    inside(&["link", "set", "lo", "up"]);
    inside(&["link", "set", "eth0", "up"]);
    // The pod's own addresses are behind its node there.
    let (device, [node4, node6]) = match is_far {
        true => ("lo", ["172.16.0.2/24".into(), "fd00:172::2/64".into()]),
        false => ("eth0", [format!("{}/24", pod.v4), format!("{}/64", pod.v6)]),
    };
    inside(&["addr", "add", &node4, "dev", "eth0"]);
    inside(&["addr", "add", &node6, "dev", "eth0", "nodad"]);
    if is_far {
        inside(&["addr", "add", pod.v4, "dev", device]);
        inside(&["addr", "add", pod.v6, "dev", device, "nodad"]);
    }
    for gateway in gateways {
        inside(&["route", "add", "default", "via", gateway]);
    }
}

/// An application in a pod. It answers each request and each datagram with its name and the address
/// that it sees. With a raw connection, it only tells the address.
pub struct App {
    pub name: String,
    pub address: SocketAddr,
    /// The ends of the connections that have carried a request, by the address that it saw.
    pub connections: Arc<Mutex<HashSet<(IpAddr, u16)>>>,
    /// While set, it finishes no answer.
    pub slow: Arc<AtomicBool>,
}

impl App {
    pub fn start(pod: Pod, is_ipv6: bool) -> Self {
        let at = if is_ipv6 { pod.v6 } else { pod.v4 };
        let at = SocketAddr::new(at.parse().unwrap(), 8080);
        let name = format!("{}{}", pod.name, if is_ipv6 { "6" } else { "4" });
        let connections = Arc::<Mutex<HashSet<_>>>::default();
        let slow = Arc::<AtomicBool>::default();
        let (noted, waits, own) = (connections.clone(), slow.clone(), name.clone());
        let run = move || {
            let listener = TcpListener::bind(at).unwrap();
            let datagrams = UdpSocket::bind(at).unwrap();
            let udp_name = own.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = datagrams.recv_from(&mut buffer) {
                    let answer = format!("{udp_name} {}", from.ip());
                    let _ = datagrams.send_to(answer.as_bytes(), from);
                }
            });
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (noted, waits, name) = (noted.clone(), waits.clone(), own.clone());
                    std::thread::spawn(move || serve(stream, &name, &noted, &waits));
                }
            });
        };
        match pod.name {
            "" => run(),
            name => inside_of(name, run),
        }
        Self {
            name,
            address: at,
            connections,
            slow,
        }
    }

    /// As its slice shows it.
    pub fn ep(&self) -> Ep {
        Ep {
            pod: true,
            ..Ep::new(&format!("a{}", self.name), self.address)
        }
    }
}

fn serve(
    mut stream: TcpStream,
    name: &str,
    noted: &Mutex<HashSet<(IpAddr, u16)>>,
    waits: &AtomicBool,
) -> Option<()> {
    let peer = stream.peer_addr().ok()?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        noted.lock().unwrap().insert((peer.ip(), peer.port()));
        while waits.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let body = format!("{name} {}", peer.ip());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).ok()?;
    }
}

/// Service `web/dns`: UDP port 53, with these addresses.
pub const DNS: &str = "10.96.0.10:53";

pub fn dns() -> serde_json::Value {
    let mut dns = service("dns", json!({}));
    dns["metadata"]["labels"] = shop()["metadata"]["labels"].clone();
    dns["spec"]["clusterIP"] = json!("10.96.0.10");
    dns["spec"]["ports"] = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
    dns
}

/// Asks by a datagram, from a socket of its own.
pub fn ask(at: &str) -> Option<String> {
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    let patience = Duration::from_secs(3);
    client.set_read_timeout(Some(patience)).unwrap();
    client.connect(at).unwrap();
    client.send(b"ask").ok()?;
    let mut buffer = [0; 64];
    let read = client.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// What a client in this pod gets by this address.
pub fn seen(pod: Pod, at: &str) -> String {
    inside_of(pod.name, || get(at)).unwrap()
}

/// What [`NEIGHBOUR`] answers if it sees the node.
pub const BY_NODE: &str = "neighbour4 10.244.1.1";

/// Runs `nft` with this text, in the pod or on the node.
pub fn nft(pod: Option<Pod>, text: &str) {
    let run = || {
        let mut child = std::process::Command::new("nft")
            .args(["-f", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success(), "{text}");
    };
    match pod {
        Some(pod) => inside_of(pod.name, run),
        None => run(),
    }
}

/// Waits until one application serves the Service's clients, and no other one. While there are two, so
/// many picks do not choose the same one.
pub fn until_only(app: &App, get: impl Fn() -> std::io::Result<String>) {
    let prefix = format!("{} ", app.name);
    until(&app.name, || {
        (0..40).all(|_| get().is_ok_and(|it| it.starts_with(&prefix)))
    });
}

/// Waits until the application sees these clients by their own addresses. A client that had no answer
/// in time, on a busy machine, is seen as the node at first.
pub fn until_seen(app: &App, clients: &[Pod]) {
    for client in clients {
        let own = format!("{} {}", app.name, client.v4);
        until(&own, || seen(*client, CLUSTER) == own);
    }
}

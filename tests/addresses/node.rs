//! A node in the test's namespace: two addresses, a pod behind a veth, a proxy and its `ebbtide net`,
//! applications on loopback, and clients on the node and in the pod.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use super::namespace::ip;
use super::process::{Net, until};
use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;

/// The addresses of Service `web/shop`, port 80.
pub const CLUSTER: &str = "10.96.0.7:80";
pub const CLUSTER_V6: &str = "[fd00:96::7]:80";
pub const EXTERNAL: &str = "203.0.113.9:80";
pub const BALANCER: &str = "203.0.113.10:80";
pub const ALL: [&str; 4] = [CLUSTER, CLUSTER_V6, EXTERNAL, BALANCER];
pub const SHARED: &str = "192.0.2.1:15001";
/// The node's name.
pub const NODE: &str = "here";
pub const POD: &str = "10.244.0.2";

/// Makes the node's network: a default route, since cluster IPs are on no interface, and a pod.
pub fn make_network() {
    // A kernel may lack the kind `dummy`.
    ip(&[
        "link", "add", "outside", "type", "veth", "peer", "name", "far",
    ]);
    ip(&["link", "set", "far", "up"]);
    ip(&["addr", "add", "192.0.2.1/24", "dev", "outside"]);
    ip(&["addr", "add", "2001:db8::1/64", "dev", "outside", "nodad"]);
    ip(&["link", "set", "outside", "up"]);
    ip(&["route", "add", "default", "via", "192.0.2.254"]);
    ip(&["route", "add", "default", "via", "2001:db8::fe"]);
    // Files of `ip netns` stay in this namespace.
    std::fs::create_dir_all("/run/netns").unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "none", "/run/netns"])
        .status();
    assert!(mounted.unwrap().success());
    ip(&["netns", "add", "pod"]);
    ip(&[
        "link", "add", "veth", "type", "veth", "peer", "name", "eth0", "netns", "pod",
    ]);
    ip(&["addr", "add", "10.244.0.1/24", "dev", "veth"]);
    ip(&["addr", "add", "fd00:244::1/64", "dev", "veth", "nodad"]);
    ip(&["link", "set", "veth", "up"]);
    ip(&["-n", "pod", "addr", "add", "10.244.0.2/24", "dev", "eth0"]);
    ip(&[
        "-n",
        "pod",
        "addr",
        "add",
        "fd00:244::2/64",
        "dev",
        "eth0",
        "nodad",
    ]);
    ip(&["-n", "pod", "link", "set", "eth0", "up"]);
    ip(&["-n", "pod", "link", "set", "lo", "up"]);
    ip(&["-n", "pod", "route", "add", "default", "via", "10.244.0.1"]);
    ip(&["-n", "pod", "route", "add", "default", "via", "fd00:244::1"]);
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{file}"), "1").unwrap();
    }
}

/// Runs this in the pod.
pub fn in_pod<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    inside_of("pod", run)
}

/// Runs this in the network namespace of this name.
pub fn inside_of<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        let there = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&there),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
        run()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

/// The proxy of the node with its folder.
pub struct Node {
    pub folder: Folder,
    pub net: Option<Net>,
    pub proxy: Child,
}

impl Node {
    /// Service `web/shop` with these endpoints. Waits until the addresses are served or refused.
    pub fn start(endpoints: &[Ep], more: &str) -> Self {
        make_network();
        Self::start_in(endpoints, more)
    }

    /// The same, in a network that [`make_network`] has made.
    pub fn start_in(endpoints: &[Ep], more: &str) -> Self {
        let folder = Folder::new();
        folder.write("service.json", &shop());
        folder.endpoints(endpoints);
        let net = Net::start(&folder.path().join("net.sock"));
        let proxy = start_proxy(folder.path(), more);
        let node = Self {
            folder,
            net: Some(net),
            proxy,
        };
        until("the rules", || ALL.iter().all(|at| rule(at).is_some()));
        node
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(
            Pid::from_raw(self.proxy.id().cast_signed()).unwrap(),
            signal,
        )
        .unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

pub fn start_proxy(folder: &Path, more: &str) -> Child {
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nadmin: {{address: '127.0.0.1:9901'}}\nworkers: 2\n\
         services: {{addresses: on, nodeAddresses: [192.0.2.1, '2001:db8::1'], socket: net.sock,\n\
         podCIDRs: [10.244.0.0/24]}}\n\
         nodePorts: {{addresses: [0.0.0.0]}}\n{more}\n"
    );
    std::fs::write(folder.join("ebbtide.yaml"), text).unwrap();
    Command::new(BINARY)
        .args(["run", "--config"])
        .arg(folder.join("ebbtide.yaml"))
        .env("NODE_NAME", NODE)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The Service: claimed, with all kinds of addresses.
pub fn shop() -> Value {
    let mut shop = service("shop", json!({}));
    shop["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "ebbtide"});
    shop["spec"]["type"] = json!("LoadBalancer");
    shop["spec"]["clusterIP"] = json!("10.96.0.7");
    shop["spec"]["clusterIPs"] = json!(["10.96.0.7", "fd00:96::7"]);
    shop["spec"]["externalIPs"] = json!(["203.0.113.9"]);
    shop["spec"]["ports"][0]["nodePort"] = json!(30080);
    shop["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.10"}]}});
    shop
}

/// Where an address leads now.
pub fn rule(at: &str) -> Option<SocketAddr> {
    let at: SocketAddr = at.parse().unwrap();
    let rules = ebbtide::net::netlink::list().unwrap().0;
    rules
        .get(&(ebbtide::net::rules::Transport::Tcp, at))
        .copied()
}

/// An HTTP server on loopback. It answers its name, and who asked, by X-Forwarded-For.
pub struct App {
    pub name: &'static str,
    pub address: SocketAddr,
    /// While set, it finishes no answer.
    pub slow: Arc<AtomicBool>,
    /// How many requests have arrived.
    pub seen: Arc<AtomicUsize>,
}

impl App {
    pub fn start(name: &'static str) -> Self {
        Self::start_at(name, ([127, 0, 0, 1], 0).into())
    }

    /// The same at an address of the namespace that the caller is in.
    pub fn start_at(name: &'static str, at: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let (slow, seen) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (waits, counts) = (slow.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (waits, counts) = (waits.clone(), counts.clone());
                std::thread::spawn(move || serve(stream, name, &waits, &counts));
            }
        });
        Self {
            name,
            address,
            slow,
            seen,
        }
    }

    pub fn ep(&self) -> Ep {
        Ep::new(self.name, self.address)
    }
}

fn serve(mut stream: TcpStream, name: &str, slow: &AtomicBool, seen: &AtomicUsize) -> Option<()> {
    loop {
        let head = read_head(&mut stream).ok()?;
        seen.fetch_add(1, Ordering::SeqCst);
        while slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let field = |name: &str| {
            let mut lines = head.lines();
            let line = lines.find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let body = format!("{name} {} {}", field("X-Forwarded-For:"), field("Host:"));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).ok()?;
    }
}

/// Reads to the end of a head, byte by byte.
fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A client with one connection.
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(to: &str) -> io::Result<Self> {
        let address = to.parse().unwrap();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(20))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self(stream))
    }

    /// The body of the answer to a GET.
    pub fn get(&mut self) -> io::Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
        let head = read_head(&mut self.0)?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        match head.starts_with("HTTP/1.1 200") {
            true => Ok(body),
            false => Err(io::Error::other(format!("{head}{body}"))),
        }
    }
}

/// How many requests and connections the proxy holds.
pub fn held() -> f64 {
    sum_of("ebbtide_held")
}

/// The sum of a metric over all Service ports.
pub fn sum_of(metric: &str) -> f64 {
    let page = page("/metrics");
    let lines = page
        .lines()
        .filter(|line| line.starts_with(&format!("{metric}{{")));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// A page of the proxy's admin port, with its head.
pub fn page(path: &str) -> String {
    let mut admin = TcpStream::connect("127.0.0.1:9901").unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    admin.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    admin.read_to_string(&mut page).unwrap();
    page
}

/// One request on a connection of its own.
pub fn get(to: &str) -> io::Result<String> {
    Client::connect(to)?.get()
}

/// Like [`get`], and gives up soon: the endpoint may be slow.
pub fn try_get(to: &str) -> io::Result<String> {
    let mut client = Client::connect(to)?;
    client
        .0
        .set_read_timeout(Some(Duration::from_millis(300)))?;
    client.get()
}

/// Whether a connection is refused.
pub fn is_refused(to: &str) -> bool {
    let tried = Client::connect(to);
    tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Answers datagrams with its name, and returns its port.
pub fn echo(at: &str, name: &'static str) -> u16 {
    let server = UdpSocket::bind(at).unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((n, from)) = server.recv_from(&mut buf) {
            let answer = [name.as_bytes(), b" ", &buf[..n]].concat();
            let _ = server.send_to(&answer, from);
        }
    });
    port
}

//! UDP sessions pass from a process that ends to the one that replaces it (contract 1.14): an endpoint
//! sees the same client address as before, and a client has the same endpoint.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebbtide::command::demo::proxy::Proxy;
use ebbtide::net::handoff::Doorway;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use crate::proxy::handed::loses;
use crate::support::binary::BINARY;
use crate::support::folder::{Ep, Folder};
use crate::support::process::Process;
use crate::support::vitals::open_descriptors;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers with its name and the address that it sees, and remembers that by word.
struct App {
    ep: Ep,
    socket: Arc<UdpSocket>,
    seen: Arc<Mutex<HashMap<Vec<u8>, SocketAddr>>>,
}

impl App {
    async fn start(name: &'static str) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let seen = Arc::<Mutex<HashMap<Vec<u8>, SocketAddr>>>::default();
        let (own, shared) = (socket.clone(), seen.clone());
        tokio::spawn(async move {
            let mut buf = [0; 256];
            loop {
                // An answer to a client that is gone can be refused.
                if let Ok((n, from)) = own.recv_from(&mut buf).await {
                    shared.lock().unwrap().insert(buf[..n].to_vec(), from);
                    let answer = format!("{name} sees {from}");
                    let _ = own.send_to(answer.as_bytes(), from).await;
                }
            }
        });
        let ep = Ep::new(name, socket.local_addr().unwrap());
        Self { ep, socket, seen }
    }
}

struct Place {
    web: SocketAddr,
    admin: SocketAddr,
    apps: Vec<App>,
    text: String,
}

impl Place {
    async fn new(more: &str) -> Self {
        let web = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (web, admin) = (web.local_addr().unwrap(), admin.local_addr().unwrap());
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\nlisteners:\n\
             - {{name: web, address: '{web}', service: web/shop, port: 53, protocol: udp}}\n\
             admin: {{address: '{admin}'}}\nworkers: 2\n{more}\n"
        );
        let mut apps = Vec::new();
        for name in ["app-a", "app-b", "app-c"] {
            apps.push(App::start(name).await);
        }
        Self {
            web,
            admin,
            apps,
            text,
        }
    }

    async fn process(&self) -> Process {
        // All is known at the start, as from an API server: else clients came to a Service without ports.
        let folder = Folder::new();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "web", "name": "shop"},
            "spec": {"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]},
        });
        for app in &self.apps {
            let mut slice = app.ep.slice_of("shop", "dns");
            slice["ports"][0]["protocol"] = json!("UDP");
            let file = format!("slice-{}.json", app.ep.name);
            folder.write(&file, &slice);
        }
        folder.write("service.json", &service);
        let proxy = Proxy::start(BINARY.as_ref(), folder.path(), &self.text, &["web"]).await;
        let proxy = proxy.unwrap();
        let process = Process { proxy, folder };
        process.ready(self.apps.len()).await;
        process
    }

    async fn client(&self) -> Client {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.web).await.unwrap();
        let mut client = Client {
            socket,
            first: String::new(),
        };
        client.first = client.ask().await;
        client
    }

    async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    /// Each asks again and again until `true` is stored, and counts its answers.
    async fn clients_that_never_stop(
        &self,
        count: usize,
    ) -> (Arc<AtomicBool>, Vec<JoinHandle<usize>>) {
        let is_over = Arc::new(AtomicBool::new(false));
        let asking = (self.clients(count).await.into_iter()).map(|client| {
            let is_over = is_over.clone();
            tokio::spawn(async move {
                let mut asked = 0;
                while !is_over.load(Ordering::SeqCst) {
                    assert_eq!(client.ask().await, client.first);
                    asked += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                asked
            })
        });
        let asking = asking.collect();
        (is_over, asking)
    }
}

struct Client {
    socket: UdpSocket,
    /// Its first answer.
    first: String,
}

impl Client {
    /// The datagram names the client.
    fn word(&self) -> Vec<u8> {
        self.socket.local_addr().unwrap().to_string().into_bytes()
    }

    async fn hears(&self) -> String {
        let mut buf = [0; 256];
        let n = soon("an answer", self.socket.recv(&mut buf)).await.unwrap();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    async fn ask(&self) -> String {
        self.socket.send(&self.word()).await.unwrap();
        self.hears().await
    }
}

async fn ends_well(process: &mut Process) {
    let status = soon("the process's end", process.proxy.wait()).await;
    assert!(status.unwrap().success());
    assert!(!process.proxy.log_tail().contains("cutting what is left"));
}

/// Returns when the process has ended. Before that, it may take a datagram and not answer.
async fn is_killed(process: &mut Process) {
    process.proxy.signal(Signal::KILL);
    let ended = soon("the process's end", process.proxy.wait()).await;
    assert!(!ended.unwrap().success());
}

async fn sessions(process: &Process) -> f64 {
    let all = |_: &str| true;
    let count = process.proxy.metric("ebbtide_udp_sessions", all).await;
    count.unwrap_or_default()
}

/// The endpoint that a client has, and the address that it sees, stay the same through two
/// replacements. What an endpoint says between them reaches the client.
#[tokio::test]
async fn a_client_keeps_its_endpoint_and_its_source_port_through_replacements() {
    let place = Place::new("timeouts: {lameDuck: 10m, shutdown: 10m}").await;
    let mut process = place.process().await;
    let clients = place.clients(60).await;
    for _ in 0..2 {
        let next = place.process().await;
        process.proxy.signal(Signal::TERM);
        ends_well(&mut process).await;
        process = next;
        assert_eq!(sessions(&process).await, 60.0);
        for app in &place.apps {
            let seen = app.seen.lock().unwrap().clone();
            for from in seen.values() {
                app.socket.send_to(b"late", from).await.unwrap();
            }
        }
        for client in &clients {
            assert_eq!(client.hears().await, "late");
            assert_eq!(client.ask().await, client.first);
            assert_eq!(client.ask().await, client.first);
        }
        // Each has one session, whichever worker its datagrams come to.
        eventually("no session twice", async || {
            sessions(&process).await == 60.0
        })
        .await;
    }
}

/// No datagram stays without its answer, and none goes to another endpoint, or from another address: neither
/// while both processes are there, nor when one leaves its clients to the other.
#[tokio::test]
async fn clients_that_never_stop_stay_where_they_are() {
    let place = Place::new("").await;
    let mut process = place.process().await;
    let (is_over, asking) = place.clients_that_never_stop(24).await;
    for _ in 0..3 {
        let next = place.process().await;
        process.proxy.signal(Signal::TERM);
        ends_well(&mut process).await;
        process = next;
    }
    is_over.store(true, Ordering::SeqCst);
    for client in asking {
        assert!(client.await.unwrap() > 0);
    }
}

/// A process that closes its listener before it ever read does not take its clients: the one that ends
/// serves them.
#[tokio::test]
async fn a_listener_that_is_removed_before_it_reads_leaves_its_clients_where_they_are() {
    let mut place = Place::new("").await;
    let web = place.text.clone();
    // It closes when the process leaves its sockets.
    let own = "- {name: own, address: '127.0.0.1:0', service: web/shop, port: 53}\nadmin:";
    place.text = web.replace("admin:", own);
    let old = place.process().await;
    place.text = web;
    let new = place.process().await;
    let (is_over, asking) = place.clients_that_never_stop(10).await;
    loses(&new, place.web, &place.text).await;
    old.proxy.signal(Signal::TERM);
    let own = old.proxy.listeners["own"];
    eventually("the old process accepts no more", async || {
        TcpStream::connect(own).await.is_err()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    is_over.store(true, Ordering::SeqCst);
    for client in asking {
        assert!(client.await.unwrap() > 0);
    }
}

/// Whichever of both processes ends without a word, the other one serves their socket.
#[tokio::test]
async fn a_process_that_is_killed_leaves_the_sockets_to_the_other_one() {
    let place = Place::new("").await;
    let mut old = place.process().await;
    let clients = place.clients(20).await;
    let mut new = place.process().await;
    is_killed(&mut new).await;
    for client in &clients {
        assert_eq!(client.ask().await, client.first);
    }
    let new = place.process().await;
    is_killed(&mut old).await;
    for client in &clients {
        client.ask().await;
    }
    assert_eq!(sessions(&new).await, 20.0);
}

/// Sessions that were handed over end as all others do, with every descriptor of theirs.
#[tokio::test]
async fn a_session_that_was_handed_over_ends_and_leaves_nothing() {
    let place = Place::new("timeouts: {udpIdle: 20s}").await;
    let mut old = place.process().await;
    let clients = place.clients(40).await;
    let new = place.process().await;
    let before = open_descriptors(new.proxy.pid().unwrap());
    old.proxy.signal(Signal::TERM);
    ends_well(&mut old).await;
    for client in &clients[..20] {
        assert_eq!(client.ask().await, client.first);
    }
    eventually("no session is left", async || sessions(&new).await == 0.0).await;
    eventually("no descriptor is left", async || {
        open_descriptors(new.proxy.pid().unwrap()) <= before
    })
    .await;
}

/// A successor that does not know what a session is, refuses it or ends: each client goes on, with
/// another endpoint at worst.
#[tokio::test]
async fn a_successor_that_takes_no_session_costs_nobody_more_than_before() {
    let answers: [Option<&'static str>; 2] = [
        Some(r#"{"refused":"unknown variant `session`, expected `http` or `pair`"}"#),
        None,
    ];
    for answer in answers {
        let place = Place::new("timeouts: {lameDuck: 1s, shutdown: 10m}").await;
        let mut old = place.process().await;
        let clients = place.clients(10).await;
        let asked = Arc::new(AtomicUsize::new(0));
        let (name, count) = (
            format!("ebbtide-clients-{}", place.admin.port()),
            asked.clone(),
        );
        let fake = std::thread::spawn(move || {
            let door = loop {
                match Doorway::open(&name) {
                    Ok(door) => break door,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            let channel = door.accept().unwrap();
            channel.send(br#"{"version":1,"oldest":1}"#, &[]).unwrap();
            while let Ok(Some(it)) = channel.receive() {
                assert!(it.bytes.starts_with(br#"{"session""#));
                count.fetch_add(1, Ordering::SeqCst);
                match answer {
                    Some(answer) if channel.send(answer.as_bytes(), &[]).is_ok() => {}
                    _ => break,
                }
            }
        });
        old.proxy.signal(Signal::TERM);
        eventually("sessions are offered", async || {
            asked.load(Ordering::SeqCst) >= answer.map_or(1, |_| clients.len())
        })
        .await;
        for client in &clients {
            assert_eq!(client.ask().await, client.first);
        }
        ends_well(&mut old).await;
        fake.join().unwrap();
    }
}

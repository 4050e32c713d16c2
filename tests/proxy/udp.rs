//! UDP through the real proxy (contract 1.17): a client stays with its endpoint, and moves with its
//! next datagram when the endpoint leaves or refuses. Everything that clients can make grow is
//! bounded, and is given back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::Transport;
use ebbtide::contract::reason::Outcome;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use crate::proxy::tcp::echo;
use crate::support::folder::{Ep, Folder};
use crate::support::process::Process;
use crate::support::rig::Rig;
use crate::support::vitals::open_descriptors;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers each datagram with its own name and the datagram.
struct Echo {
    ep: Ep,
    seen: Arc<AtomicUsize>,
    mute: Arc<AtomicBool>,
    socket: Arc<UdpSocket>,
    task: JoinHandle<()>,
}

impl Echo {
    async fn start(name: &str) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (seen, mute) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let task = tokio::spawn({
            let (socket, seen, mute) = (socket.clone(), seen.clone(), mute.clone());
            let name = name.to_owned();
            async move {
                let mut buffer = vec![0; 2048];
                // An answer to a client that is gone can be refused.
                loop {
                    if let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                        seen.fetch_add(1, Ordering::SeqCst);
                        if !mute.load(Ordering::SeqCst) {
                            let answer = [name.as_bytes(), b" ", &buffer[..n]].concat();
                            let _ = socket.send_to(&answer, from).await;
                        }
                    }
                }
            }
        });
        let ep = Ep::new(name, socket.local_addr().unwrap());
        Self {
            ep,
            seen,
            mute,
            socket,
            task,
        }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    fn terminating(&self) -> Ep {
        Ep {
            ready: false,
            terminating: true,
            ..self.ep.clone()
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A Service with port 53 of both transports.
fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "web", "name": "shop"},
        "spec": {"ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ]},
    })
}

fn slice(ep: &Ep) -> Value {
    let mut slice = ep.slice_of("shop", "dns");
    slice["ports"][0]["protocol"] = json!("UDP");
    slice
}

fn config(address: &str, more: &str) -> String {
    format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners:\n\
         - {{name: web, address: '{address}', service: web/shop, port: 53, protocol: udp}}\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n{more}\n"
    )
}

async fn rig_on(address: &str, more: &str) -> Rig {
    let folder = Folder::new();
    folder.write("service.json", &service());
    Rig::run(folder, &config(address, more)).await
}

async fn rig(more: &str) -> Rig {
    rig_on("127.0.0.1:0", more).await
}

/// Writes the slices of these endpoints, and waits until exactly `usable` are in rotation.
async fn show(rig: &Rig, eps: &[&Ep], usable: usize) {
    for ep in eps {
        rig.write(&format!("slice-{}.json", ep.name), &slice(ep));
    }
    let key = ObjectName::new("web", "shop").port_over(Transport::Udp, 53);
    eventually(&format!("{usable} usable endpoints"), async || {
        let snapshot = rig.running().admin.snapshot.load();
        let port = snapshot.ports.get(&key);
        port.is_some_and(|port| port.usable.len() == usable) && rig.running().is_settled()
    })
    .await;
}

async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((to.ip(), 0)).await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn answer(client: &UdpSocket) -> String {
    let mut buffer = [0; 2048];
    let n = soon("an answer", client.recv(&mut buffer)).await.unwrap();
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

/// Sends one datagram and returns the name of the endpoint that answered it.
async fn ask(client: &UdpSocket, text: &str) -> String {
    client.send(text.as_bytes()).await.unwrap();
    let answer = answer(client).await;
    let (name, rest) = answer.split_once(' ').unwrap();
    assert_eq!(rest, text);
    name.to_owned()
}

fn count(rig: &Rig, name: &str, labels: &str) -> f64 {
    rig.metric(&format!("ebbtide_udp_{name}"), labels)
}

#[tokio::test]
async fn each_client_gets_its_own_answers_and_stays_with_its_endpoint() {
    let (a, b) = (Echo::start("a").await, Echo::start("b").await);
    let rig = rig("").await;
    show(&rig, &[&a.ep, &b.ep], 2).await;
    for n in 0..16 {
        let clients = [client(rig.web()).await, client(rig.web()).await];
        let first = [
            ask(&clients[0], &format!("{n}-left")).await,
            ask(&clients[1], &format!("{n}-right")).await,
        ];
        for again in 0..3 {
            for (client, first) in clients.iter().zip(&first) {
                assert_eq!(ask(client, &format!("{n}-{again}")).await, *first);
            }
        }
    }
    assert!(a.seen() > 0 && b.seen() > 0, "both get clients");
    let all = 16.0 * 8.0;
    assert_eq!(count(&rig, "datagrams_total", "to=\"endpoint\""), all);
    // An answer is counted when it has left.
    eventually("the count of the answers", async || {
        count(&rig, "datagrams_total", "to=\"client\"") == all
    })
    .await;
    assert_eq!(count(&rig, "sessions{", ""), 32.0);
}

#[tokio::test]
async fn the_next_datagram_leaves_a_draining_endpoint_whose_late_answers_still_arrive() {
    let (a, b) = (Echo::start("a").await, Echo::start("b").await);
    let rig = rig("timeouts: {drain: 1h}").await;
    show(&rig, &[&a.ep], 1).await;
    let client = client(rig.web()).await;
    assert_eq!(ask(&client, "1").await, "a");
    show(&rig, &[&b.ep], 2).await;
    a.mute.store(true, Ordering::SeqCst);
    client.send(b"2").await.unwrap();
    eventually("the second datagram", async || a.seen() == 2).await;
    show(&rig, &[&a.terminating()], 1).await;
    assert_eq!(ask(&client, "3").await, "b");
    assert_eq!(a.seen(), 2, "nothing after the drain has begun");
    // What the endpoint owes comes from it, to the socket of the proxy that it knows.
    assert_eq!(rig.receipts().len(), 1, "the drain waits for the answer");
    let known = crate::proxy::tcp::known(&rig, a.ep.address).unwrap();
    assert_eq!(known.leases(), 1);
    a.mute.store(false, Ordering::SeqCst);
    let upstream = of_proxy(&a).await;
    a.socket.send_to(b"late", upstream).await.unwrap();
    assert_eq!(answer(&client).await, "late");
    eventually("the end of the drain", async || {
        let receipts = rig.receipts();
        receipts[0]
            .ended
            .is_some_and(|(_, outcome)| outcome == Outcome::Drained)
    })
    .await;
    assert_eq!(ask(&client, "4").await, "b");
}

/// The address of the proxy's socket that sent to this endpoint last: a datagram to the endpoint's
/// own socket tells it. Found by asking the kernel, since the echo's task has read the datagram.
async fn of_proxy(echo: &Echo) -> SocketAddr {
    let port = echo.ep.address.port();
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    let line = table
        .lines()
        .find(|line| line.contains(&format!(" {remote} 01 ")));
    let local = line.unwrap().split_whitespace().nth(1).unwrap();
    let port = u16::from_str_radix(local.split_once(':').unwrap().1, 16).unwrap();
    ([127, 0, 0, 1], port).into()
}

#[tokio::test]
async fn a_drain_without_datagrams_gives_its_leases_back() {
    let (a, b) = (Echo::start("a").await, Echo::start("b").await);
    let rig = rig("timeouts: {udpIdle: 1h, drain: 1h}").await;
    show(&rig, &[&a.ep], 1).await;
    let client = client(rig.web()).await;
    assert_eq!(ask(&client, "1").await, "a");
    show(&rig, &[&b.ep], 2).await;
    show(&rig, &[&a.terminating()], 1).await;
    eventually("the end of the drain", async || {
        let receipts = rig.receipts();
        let ended = receipts.first().and_then(|receipt| receipt.ended);
        ended.is_some_and(|(_, outcome)| outcome == Outcome::Drained)
    })
    .await;
    assert_eq!(ask(&client, "2").await, "b");
}

/// Three replicas are replaced five times while clients play ping-pong. A client that misses one
/// answer waits for ever.
#[tokio::test]
async fn five_rollouts_of_three_replicas_lose_nothing() {
    let mut random = fastrand::Rng::with_seed(0x0ebb_71de);
    let rig = rig("timeouts: {drain: 1h}").await;
    let mut replicas = Vec::new();
    for n in 0..3 {
        replicas.push(Echo::start(&format!("v0-{n}")).await);
    }
    let eps: Vec<&Ep> = replicas.iter().map(|echo| &echo.ep).collect();
    show(&rig, &eps, 3).await;
    let stop = Arc::<AtomicBool>::default();
    let players: Vec<JoinHandle<usize>> = (0..8)
        .map(|player| {
            let (stop, web) = (stop.clone(), rig.web());
            tokio::spawn(async move {
                let client = client(web).await;
                let mut played = 0;
                while !stop.load(Ordering::SeqCst) {
                    ask(&client, &format!("{player}-{played}")).await;
                    played += 1;
                }
                played
            })
        })
        .collect();
    for round in 1..=5 {
        random.shuffle(&mut replicas);
        for (n, replica) in replicas.iter_mut().enumerate() {
            let new = Echo::start(&format!("v{round}-{n}")).await;
            show(&rig, &[&new.ep], 4).await;
            let old = std::mem::replace(replica, new);
            show(&rig, &[&old.terminating()], 3).await;
            let seen = old.seen();
            let done = (round - 1) * 3 + n + 1;
            eventually("the end of the drain", async || {
                let ended = rig.receipts().into_iter().filter(|it| it.ended.is_some());
                ended.count() == done
            })
            .await;
            assert!(old.seen() <= seen + 8, "what was under way, and no more");
            std::fs::remove_file(rig.manifests().join(format!("slice-{}.json", old.ep.name)))
                .unwrap();
        }
    }
    stop.store(true, Ordering::SeqCst);
    let mut played = 0;
    for player in players {
        played += player.await.unwrap();
    }
    assert!(played > 1_000, "{played}");
    assert_eq!(count(&rig, "dropped_total", ""), 0.0);
    eventually("the count of the answers", async || {
        count(&rig, "datagrams_total", "to=\"client\"") == played as f64
    })
    .await;
}

#[tokio::test]
async fn a_refused_datagram_goes_to_another_endpoint() {
    let alive = Echo::start("alive").await;
    let dead = Echo::start("dead").await;
    let rig = rig("").await;
    show(&rig, &[&alive.ep, &dead.ep], 2).await;
    let clients: Vec<UdpSocket> = {
        let mut clients = Vec::new();
        while clients.is_empty() {
            let client = client(rig.web()).await;
            if ask(&client, "which").await == "dead" {
                clients.push(client);
            }
        }
        clients
    };
    let ep = dead.ep.clone();
    dead.task.abort();
    eventually("the end of the echo", async || dead.task.is_finished()).await;
    drop(dead);
    for n in 0..3 {
        assert_eq!(ask(&clients[0], &format!("{n}")).await, "alive");
    }
    assert_eq!(count(&rig, "moved_total", ""), 1.0);
    assert_eq!(count(&rig, "sessions_moved_total", ""), 1.0);
    // It comes back, and gets clients again.
    let socket = UdpSocket::bind(ep.address).await.unwrap();
    eventually("a datagram at the endpoint that is back", async || {
        let client = client(rig.web()).await;
        client.send(b"again").await.unwrap();
        let mut buffer = [0; 16];
        socket.try_recv_from(&mut buffer).is_ok()
    })
    .await;
}

#[tokio::test]
async fn an_idle_session_ends_and_gives_its_descriptor_back() {
    let app = Echo::start("a").await;
    let text = config("127.0.0.1:0", "timeouts: {udpIdle: 300ms}");
    let process = Process::run(&[], &text, &["web"]).await;
    process.folder.write("service.json", &service());
    process.folder.write("slice-a.json", &slice(&app.ep));
    process.ready(1).await;
    let pid = process.proxy.pid().unwrap();
    let mut clients = Vec::new();
    // Which of the admin's connections are open is not for this test to say.
    let before = open_descriptors(pid);
    for n in 0..64 {
        let client = client(process.web()).await;
        client.send(format!("{n}").as_bytes()).await.unwrap();
        clients.push(client);
    }
    for client in &clients {
        answer(client).await;
    }
    eventually("no descriptor of the sessions", async || {
        open_descriptors(pid) < before + 8
    })
    .await;
    eventually("no session", async || {
        let sessions = process.proxy.metric("ebbtide_udp_sessions", |_| true);
        sessions.await.unwrap() == 0.0
    })
    .await;
    assert_eq!(ask(&clients[0], "again").await, "a");
}

#[tokio::test]
async fn sessions_are_bounded_and_a_new_client_is_served_at_the_limit() {
    let app = Echo::start("a").await;
    let rig = rig("limits: {udpSessions: 4}").await;
    show(&rig, &[&app.ep], 1).await;
    let mut clients = Vec::new();
    for n in 0..40 {
        let client = client(rig.web()).await;
        assert_eq!(ask(&client, &format!("{n}")).await, "a");
        clients.push(client);
        assert!(count(&rig, "sessions{", "") <= 4.0);
    }
    assert!(count(&rig, "sessions_evicted_total", "") >= 36.0);
    let leases = || crate::proxy::tcp::leases(&rig, app.ep.address);
    eventually("the leases of the ended sessions", async || leases() <= 4).await;
}

#[tokio::test]
async fn one_number_serves_tcp_and_udp() {
    let (udp, tcp) = (Echo::start("a").await, echo().await);
    let folder = Folder::new();
    folder.write("service.json", &service());
    // Both listeners have one number, too.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let more = format!(
        "\n- {{name: tcp, address: '{address}', service: web/shop, port: 53, protocol: tcp}}\nadmin:"
    );
    let text = config(&address.to_string(), "").replace("\nadmin:", &more);
    let rig = Rig::run(folder, &text).await;
    show(&rig, &[&udp.ep], 1).await;
    let ep = Ep::new("t", tcp.address);
    rig.write("slice-t.json", &ep.slice_of("shop", "dns-tcp"));
    let client = client(address).await;
    assert_eq!(ask(&client, "over udp").await, "a");
    eventually("the TCP endpoint", async || {
        crate::proxy::tcp::known(&rig, tcp.address).is_some_and(|it| it.is_open())
    })
    .await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"over tcp").await.unwrap();
    let mut got = [0; 8];
    soon("the echo", stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"over tcp");
    let mut names: Vec<String> = Vec::new();
    for port in rig.running().admin.snapshot.load().ports.into_keys() {
        names.push(port.to_string());
    }
    assert_eq!(names, ["web/shop:53", "web/shop:53/udp"]);
    assert_eq!(rig.metric("ebbtide_connections_total", "transport"), 0.0);
    assert_eq!(
        rig.metric("ebbtide_udp_sessions{", "transport=\"udp\""),
        1.0
    );
}

/// A connected socket takes datagrams only from the address that it is connected to.
#[tokio::test]
async fn an_answer_comes_from_the_address_that_was_asked() {
    let app = Echo::start("a").await;
    let rig = rig_on("0.0.0.0:0", "").await;
    show(&rig, &[&app.ep], 1).await;
    for ip in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 1, 2, 3]] {
        let client = client((ip, rig.web().port()).into()).await;
        assert_eq!(ask(&client, "hello").await, "a");
    }
}

#[tokio::test]
async fn datagrams_are_held_in_their_order_and_no_more_than_are_allowed() {
    let app = Echo::start("a").await;
    let rig = rig("").await;
    show(&rig, &[], 0).await;
    let client = client(rig.web()).await;
    for n in 0..20 {
        client.send(format!("{n}").as_bytes()).await.unwrap();
    }
    eventually("the bound", async || {
        count(&rig, "dropped_total", "reason=\"held_full\"") == 12.0
    })
    .await;
    show(&rig, &[&app.ep], 1).await;
    for n in 0..8 {
        assert_eq!(answer(&client).await, format!("a {n}"));
    }
    assert_eq!(ask(&client, "after").await, "a");
}

#[tokio::test]
async fn what_is_held_too_long_is_dropped_and_counted() {
    let rig = rig("timeouts: {hold: 50ms}").await;
    show(&rig, &[], 0).await;
    let client = client(rig.web()).await;
    for _ in 0..3 {
        client.send(b"x").await.unwrap();
    }
    eventually("three dropped datagrams and no session", async || {
        count(&rig, "dropped_total", "reason=\"no_endpoint\"") == 3.0
            && count(&rig, "sessions{", "") == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_session_goes_on_in_a_shutdown_until_it_is_silent() {
    let app = Echo::start("a").await;
    let text = config("127.0.0.1:0", "timeouts: {udpIdle: 1h, shutdown: 1h}");
    let mut process = Process::run(&[], &text, &["web"]).await;
    process.folder.write("service.json", &service());
    process.folder.write("slice-a.json", &slice(&app.ep));
    process.ready(1).await;
    let (active, silent) = (client(process.web()).await, client(process.web()).await);
    ask(&active, "1").await;
    ask(&silent, "1").await;
    process.proxy.signal(Signal::TERM);
    let sessions = async || {
        let sessions = process.proxy.metric("ebbtide_udp_sessions", |_| true);
        sessions.await.unwrap()
    };
    eventually("the end of the silent session", async || {
        ask(&active, "still").await == "a" && sessions().await == 1.0
    })
    .await;
    assert_eq!(ask(&active, "last").await, "a");
    let status = soon("the end of the process", process.proxy.wait())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0), "{}", process.proxy.log_tail());
    assert!(process.proxy.log_tail().contains("no connection was cut"));
}

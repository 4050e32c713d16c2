//! Client connections pass from a process that ends to the one that replaces it (contract 1.14): idle
//! clients of HTTP/1, TCP connections and tunnels, in whatever state they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ebbtide::command::demo::client;
use ebbtide::net::handoff::Doorway;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::process::Process;
use crate::support::wait::{eventually, soon};

/// An endpoint that answers requests, opens tunnels, and then echoes. It sends a long stream for `flood`.
pub(super) struct App {
    endpoint: Scripted,
    seen: Arc<Seen>,
}

/// What the endpoint has seen, and what it waits for.
#[derive(Default)]
struct Seen {
    /// Bytes of floods that it could send.
    sent: AtomicUsize,
    /// Requests for `/slow`.
    slow: AtomicUsize,
    /// Clients that have ended their direction.
    ended: AtomicUsize,
    /// A request for `/slow` is answered, and a client that has ended hears a last word, when this opens.
    gate: CancellationToken,
    /// Answers one request for `/slow`.
    answer_one: Notify,
}

impl App {
    pub(super) async fn start() -> Self {
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        let endpoint =
            Scripted::start(move |stream: TcpStream, _| serve(stream, shared.clone())).await;
        Self { endpoint, seen }
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut buf = [0; 4096];
    // A join check says nothing.
    let mut is_joined = false;
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        let said = &buf[..n];
        if said.starts_with(b"flood") {
            for part in flood().chunks(4096) {
                if stream.write_all(part).await.is_err() {
                    return;
                }
                seen.sent.fetch_add(part.len(), Ordering::SeqCst);
            }
            continue;
        }
        if said.starts_with(b"GET /slow") {
            seen.slow.fetch_add(1, Ordering::SeqCst);
            tokio::select! {
                () = seen.gate.cancelled() => {}
                () = seen.answer_one.notified() => {}
            }
        }
        let is_tunnel = said.starts_with(b"GET /tunnel");
        is_joined = is_tunnel || !said.starts_with(b"GET");
        let answer: &[u8] = match said {
            _ if is_tunnel => {
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n"
            }
            _ if said.starts_with(b"GET") => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            _ => said,
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
    // A client that has ended its direction may still be told something.
    if is_joined {
        seen.ended.fetch_add(1, Ordering::SeqCst);
        seen.gate.cancelled().await;
        let _ = stream.write_all(b"late").await;
    }
}

/// More than all buffers on its way hold, and no two parts of it are alike.
fn flood() -> Vec<u8> {
    (0..3_000_000u32).flat_map(u32::to_le_bytes).collect()
}

/// The configuration of both processes: the same addresses.
pub(super) struct Place {
    pub(super) web: SocketAddr,
    echo: SocketAddr,
    admin: SocketAddr,
    pub(super) text: String,
}

impl Place {
    pub(super) fn new(more: &str) -> Self {
        let free = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [web, echo, admin] = free.map(|socket| socket.local_addr().unwrap());
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\nlisteners:\n\
             - {{name: web, address: '{web}', service: web/shop, port: 80, protocol: http}}\n\
             - {{name: echo, address: '{echo}', service: web/shop, port: 80, protocol: tcp}}\n\
             admin: {{address: '{admin}'}}\nworkers: 2\n{more}"
        );
        Self {
            web,
            echo,
            admin,
            text,
        }
    }

    pub(super) async fn process(&self, app: &App) -> Process {
        let endpoints = [Ep::new("app", app.endpoint.address)];
        Process::run(&endpoints, &self.text, &["web", "echo"]).await
    }

    /// The name at which an ending process asks.
    fn name(&self) -> String {
        format!("ebbtide-clients-{}", self.admin.port())
    }
}

async fn request(client: &mut TcpStream, rest: &[u8]) -> String {
    client.write_all(rest).await.unwrap();
    let mut buf = [0; 4096];
    let n = soon("an answer", client.read(&mut buf)).await.unwrap();
    String::from_utf8_lossy(&buf[..n]).into_owned()
}

pub(super) async fn get(client: &mut TcpStream, path: &str) -> String {
    request(
        client,
        format!("GET {path} HTTP/1.1\r\nhost: n\r\n\r\n").as_bytes(),
    )
    .await
}

async fn echoes(client: &mut TcpStream, word: &[u8]) {
    client.write_all(word).await.unwrap();
    let mut back = vec![0; word.len()];
    soon("the echo", client.read_exact(&mut back))
        .await
        .unwrap();
    assert_eq!(back, word);
}

pub(super) async fn ends_well(process: &mut Process) {
    let status = soon("the process's end", process.proxy.wait()).await;
    assert!(status.unwrap().success());
}

/// Reloads this configuration with the listener at `web` under another name and address. Returns when it
/// is closed.
pub(super) async fn loses(process: &Process, web: SocketAddr, text: &str) {
    let without = text.replace("name: web, ", "name: other, ");
    let without = without.replace(&web.to_string(), "127.0.0.1:0");
    std::fs::write(process.folder.path().join("ebbtide.yaml"), without).unwrap();
    process.proxy.signal(Signal::HUP);
    eventually("the listener is closed", async || {
        let status = process.json("/api/v1/status").await;
        let all = status["listeners"].as_array().unwrap();
        all.iter().all(|it| it["name"] != "web")
    })
    .await;
}

fn handed(process: &Process, reason: &str) -> bool {
    process.proxy.log_tail().contains(reason)
}

#[tokio::test]
async fn clients_in_every_state_pass_to_the_next_process_and_notice_nothing() {
    let app = App::start().await;
    let place = Place::new("timeouts: {lameDuck: 10m, shutdown: 10m}\n");
    let mut old = place.process(&app).await;

    let mut idle = Vec::new();
    for _ in 0..40 {
        let mut client = TcpStream::connect(place.web).await.unwrap();
        assert!(get(&mut client, "/").await.ends_with("ok"));
        idle.push(client);
    }
    let mut new_one = TcpStream::connect(place.web).await.unwrap();
    let mut half_a_head = TcpStream::connect(place.web).await.unwrap();
    half_a_head
        .write_all(b"GET / HTTP/1.1\r\nho")
        .await
        .unwrap();
    let mut tunnel = TcpStream::connect(place.web).await.unwrap();
    let upgrade =
        b"GET /tunnel HTTP/1.1\r\nhost: n\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n";
    assert!(
        request(&mut tunnel, upgrade)
            .await
            .starts_with("HTTP/1.1 101")
    );
    echoes(&mut tunnel, b"through the tunnel").await;
    let mut pair = TcpStream::connect(place.echo).await.unwrap();
    echoes(&mut pair, b"before").await;
    let mut half_closed = TcpStream::connect(place.echo).await.unwrap();
    echoes(&mut half_closed, b"before").await;
    let mut flooded = TcpStream::connect(place.echo).await.unwrap();
    flooded.write_all(b"flood").await.unwrap();
    let mut busy = TcpStream::connect(place.web).await.unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: n\r\n\r\n")
        .await
        .unwrap();
    eventually("the busy request at the endpoint", async || {
        app.seen.slow.load(Ordering::SeqCst) == 1
    })
    .await;
    // The flood fills every buffer on its way, and the client takes nothing: the proxy holds bytes.
    let (mut before, mut stood) = (0, 0);
    eventually("the flood stands still", async || {
        let now = app.seen.sent.load(Ordering::SeqCst);
        stood = if now > 0 && now == before {
            stood + 1
        } else {
            0
        };
        before = now;
        stood >= 10
    })
    .await;

    let new = place.process(&app).await;
    half_closed.shutdown().await.unwrap();
    eventually("the end at the endpoint", async || {
        app.seen.ended.load(Ordering::SeqCst) == 1
    })
    .await;
    old.proxy.signal(Signal::TERM);
    old.lines("is ready: handing client connections over").await;
    app.seen.gate.cancel();
    let mut answer = vec![0; 4096];
    let n = soon("the answer of the busy one", busy.read(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(answer.ends_with("ok"), "{answer}");
    assert!(
        !answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    ends_well(&mut old).await;
    assert!(!handed(&old, "cutting what is left"));

    for client in &mut idle {
        assert!(get(client, "/").await.ends_with("ok"));
    }
    assert!(get(&mut new_one, "/").await.ends_with("ok"));
    assert!(
        request(&mut half_a_head, b"st: n\r\n\r\n")
            .await
            .ends_with("ok")
    );
    assert!(get(&mut busy, "/").await.ends_with("ok"));
    echoes(&mut tunnel, b"still through it").await;
    echoes(&mut pair, b"after").await;
    let mut late = Vec::new();
    soon("the last word", half_closed.read_to_end(&mut late))
        .await
        .unwrap();
    assert_eq!(late, b"late");
    let (mut got, expected) = (vec![0; flood().len()], flood());
    soon("the flood", flooded.read_exact(&mut got))
        .await
        .unwrap();
    assert!(got == expected, "the flood has changed on its way");
    echoes(&mut flooded, b"after").await;
    drop((
        idle,
        pair,
        flooded,
        tunnel,
        busy,
        new_one,
        half_a_head,
        half_closed,
    ));
    eventually("no connection is left", async || {
        let active = |line: &str| !line.is_empty();
        new.proxy
            .metric("ebbtide_connections_active", active)
            .await
            .unwrap()
            == 0.0
    })
    .await;
}

/// As when a DaemonSet is rolled again and again. The times are the defaults, so nothing waits for the
/// successor but the old process itself. Who scrapes the node sees each answer counted once.
#[tokio::test]
async fn a_client_that_never_stops_asking_keeps_its_connection_through_three_replacements() {
    let app = App::start().await;
    let place = Place::new("");
    let mut process = place.process(&app).await;
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (web, done) = (place.web, done.clone());
            tokio::spawn(async move {
                let mut client = TcpStream::connect(web).await.unwrap();
                let mut asked = 0;
                while done.load(Ordering::SeqCst) == 0 {
                    let answer = get(&mut client, "/").await;
                    assert!(answer.ends_with("ok"), "{answer:?} after {asked}");
                    assert!(!answer.to_lowercase().contains("connection: close"));
                    asked += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                asked
            })
        })
        .collect();
    let (admin, is_over) = (place.admin, done.clone());
    let scraped = tokio::spawn(async move {
        let mut most = 0;
        while is_over.load(Ordering::SeqCst) == 0 {
            // There is a moment in which nobody has the address.
            if let Some(now) = answered(admin).await {
                assert!(now >= most, "{now} after {most}");
                most = now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    for _ in 0..3 {
        let next = place.process(&app).await;
        process.proxy.signal(Signal::TERM);
        ends_well(&mut process).await;
        process = next;
    }
    done.store(1, Ordering::SeqCst);
    let mut all = 0;
    for client in clients {
        let asked = client.await.unwrap();
        assert!(asked > 0);
        all += asked;
    }
    scraped.await.unwrap();
    eventually(&format!("{all} answers"), async || {
        answered(place.admin).await == Some(all)
    })
    .await;
}

#[tokio::test]
async fn a_client_whose_next_request_has_come_already_passes_with_it() {
    let app = App::start().await;
    let place = Place::new("timeouts: {lameDuck: 10m, shutdown: 10m}\n");
    let mut old = place.process(&app).await;
    let mut client = TcpStream::connect(place.web).await.unwrap();
    // The second one is there when the first is answered.
    let both = b"GET /slow?1 HTTP/1.1\r\nhost: n\r\n\r\nGET /slow?2 HTTP/1.1\r\nhost: n\r\n\r\n";
    client.write_all(both).await.unwrap();
    eventually("the first request at the endpoint", async || {
        app.seen.slow.load(Ordering::SeqCst) == 1
    })
    .await;
    let _new = place.process(&app).await;
    old.proxy.signal(Signal::TERM);
    old.lines("is ready: handing client connections over").await;
    app.seen.answer_one.notify_one();
    let mut buf = [0; 4096];
    let n = soon("the first answer", client.read(&mut buf))
        .await
        .unwrap();
    assert!(buf[..n].ends_with(b"ok"), "{:?}", &buf[..n]);
    eventually("the second request at the endpoint", async || {
        app.seen.slow.load(Ordering::SeqCst) == 2
    })
    .await;
    // The old process has no part in it.
    ends_well(&mut old).await;
    app.seen.answer_one.notify_one();
    let n = soon("the second answer", client.read(&mut buf))
        .await
        .unwrap();
    assert!(buf[..n].ends_with(b"ok"), "{:?}", &buf[..n]);
}

/// How many requests are answered, by the metrics of this admin address.
async fn answered(admin: SocketAddr) -> Option<u64> {
    let page = client::get(admin, "/metrics", Duration::from_secs(5)).await;
    let text = page.ok()?.text().into_owned();
    let counts = text.lines().filter_map(|line| {
        let (series, count) = line.rsplit_once(' ')?;
        let is_it = series.starts_with("ebbtide_requests_total{");
        count.parse::<u64>().ok().filter(|_| is_it)
    });
    Some(counts.sum())
}

/// A process that answers what it is offered, as `answer` says for the nth; `None`: it is gone. Ends with
/// the other process.
struct Fake {
    asked: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Fake {
    fn start(name: String, hello: &'static str, answer: fn(usize) -> Option<&'static str>) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let thread = std::thread::spawn(move || {
            let door = loop {
                match Doorway::open(&name) {
                    Ok(door) => break door,
                    // The running process has the name until it is told to end.
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            let channel = door.accept().unwrap();
            channel.send(hello.as_bytes(), &[]).unwrap();
            while let Ok(Some(_)) = channel.receive() {
                let Some(answer) = answer(count.fetch_add(1, Ordering::SeqCst)) else {
                    break;
                };
                if channel.send(answer.as_bytes(), &[]).is_err() {
                    break;
                }
            }
        });
        Self { asked, thread }
    }

    async fn is_asked(&self, times: usize) {
        let asked = || self.asked.load(Ordering::SeqCst);
        eventually("what is offered", async || asked() >= times).await;
    }
}

const HELLO: &str = r#"{"version":1,"oldest":1}"#;

/// A successor answers in a wrong way, or not at all: each client goes on.
async fn costs_nothing(
    hello: &'static str,
    answer: fn(usize) -> Option<&'static str>,
    times: usize,
) {
    let app = App::start().await;
    app.seen.gate.cancel();
    let place = Place::new("timeouts: {lameDuck: 1s, shutdown: 10m}\n");
    let mut old = place.process(&app).await;
    let mut pairs = Vec::new();
    for _ in 0..5 {
        let mut pair = TcpStream::connect(place.echo).await.unwrap();
        echoes(&mut pair, b"before").await;
        pairs.push(pair);
    }
    let mut idle = TcpStream::connect(place.web).await.unwrap();
    assert!(get(&mut idle, "/").await.ends_with("ok"));
    let fake = Fake::start(place.name(), hello, answer);
    old.proxy.signal(Signal::TERM);
    fake.is_asked(times).await;
    for pair in &mut pairs {
        echoes(pair, b"after").await;
    }
    let answer = get(&mut idle, "/").await;
    assert!(answer.ends_with("ok"), "{answer}");
    drop((pairs, idle));
    ends_well(&mut old).await;
    fake.thread.join().unwrap();
}

#[tokio::test]
async fn a_successor_that_refuses_everything_costs_nobody_a_connection() {
    costs_nothing(HELLO, |_| Some(r#"{"refused":"no"}"#), 6).await;
}

#[tokio::test]
async fn a_successor_of_another_form_is_not_asked() {
    costs_nothing(r#"{"version":9,"oldest":7}"#, |_| None, 0).await;
}

#[tokio::test]
async fn a_successor_that_dies_in_the_middle_costs_nobody_a_connection() {
    costs_nothing(HELLO, |_| None, 1).await;
    costs_nothing(HELLO, |_| Some("what?"), 1).await;
}

/// A successor that dies while clients pass to it leaves the listeners with the old process, until the next
/// one is there.
#[tokio::test]
async fn a_successor_that_dies_in_the_middle_refuses_no_new_client() {
    let app = App::start().await;
    app.seen.gate.cancel();
    let place = Place::new("timeouts: {lameDuck: 10m, shutdown: 10m}\n");
    let mut old = place.process(&app).await;
    let mut idle = TcpStream::connect(place.web).await.unwrap();
    assert!(get(&mut idle, "/").await.ends_with("ok"));
    let fake = Fake::start(place.name(), HELLO, |_| None);
    old.proxy.signal(Signal::TERM);
    fake.is_asked(1).await;
    fake.thread.join().unwrap();
    // Longer than a successor is watched.
    for _ in 0..30 {
        let mut new = TcpStream::connect(place.web).await.unwrap();
        assert!(get(&mut new, "/").await.ends_with("ok"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let new = place.process(&app).await;
    ends_well(&mut old).await;
    assert!(get(&mut idle, "/").await.ends_with("ok"));
    drop(new);
}

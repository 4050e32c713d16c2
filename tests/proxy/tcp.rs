//! TCP connections to endpoints that drain, refuse, keep silent or break, and the detection of HTTP
//! by protocol `auto` (contract 1.4, 3.1, 4.4 and 4.5). Each direction ends on its own, and no byte
//! is lost or repeated. Contract 1.12 lists the ends that the proxy does not hold yet.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::Client;
use ebbtide::contract::endpoint::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::proxy::busy::Full;
use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that hands each accepted connection to the scenario.
pub struct Station {
    pub scripted: Scripted,
    streams: mpsc::UnboundedReceiver<TcpStream>,
}

impl Station {
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: TcpListener) -> Self {
        let (sender, streams) = mpsc::unbounded_channel();
        let scripted = Scripted::on(listener, move |stream, _| {
            let _ = sender.send(stream);
            std::future::ready(())
        });
        Self { scripted, streams }
    }

    pub fn ep(&self, name: &str) -> Ep {
        Ep::new(name, self.scripted.address)
    }

    /// The next connection that sends bytes, and those bytes. A join check sends none.
    pub async fn next(&mut self) -> (TcpStream, Vec<u8>) {
        let next = async {
            loop {
                let mut stream = self.streams.recv().await.unwrap();
                let mut first = vec![0; 4096];
                if let Ok(n @ 1..) = stream.read(&mut first).await {
                    first.truncate(n);
                    return (stream, first);
                }
            }
        };
        soon("a connection at the endpoint", next).await
    }
}

/// An endpoint that echoes everything.
pub async fn echo() -> Scripted {
    Scripted::start(|mut stream: TcpStream, _| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// Opens a connection through the proxy and passes one byte. Returns both ends.
pub async fn through(rig: &Rig, station: &mut Station) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    client.write_all(b"!").await.unwrap();
    let (endpoint, first) = station.next().await;
    assert_eq!(first, b"!");
    (client, endpoint)
}

/// Sends these bytes at one end and expects them at the other.
pub async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    soon("the bytes", to.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, bytes);
}

/// Reads to the end. Returns the bytes, and the error that ended the connection, or `None` after a
/// FIN.
pub async fn to_end(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut got = Vec::new();
    let end = soon("the end", stream.read_to_end(&mut got)).await;
    (got, end.err().map(|error| error.kind()))
}

/// The endpoint in the published table, of all generations the latest.
pub fn known(rig: &Rig, address: SocketAddr) -> Option<Arc<Endpoint>> {
    let snapshot = rig.running().admin.snapshot.load();
    let all = snapshot.ports.values().flat_map(|port| port.all.iter());
    all.filter(|endpoint| endpoint.address == address)
        .max_by_key(|endpoint| endpoint.id)
        .cloned()
}

pub fn leases(rig: &Rig, address: SocketAddr) -> u64 {
    known(rig, address).map_or(0, |endpoint| endpoint.leases())
}

async fn drains(rig: &Rig, count: usize) {
    eventually("a drain", async || rig.receipts().len() == count).await;
}

/// Sends a request and reads the head of the response, which has no body.
async fn head_of_answer(stream: &mut TcpStream) -> String {
    stream
        .write_all(b"GET /x HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = soon("a response", stream.read_buf(&mut answer))
            .await
            .unwrap();
        assert_ne!(n, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

/// Answers a head with the head itself, in a field. Closes nothing.
async fn mirror(mut stream: TcpStream) {
    let mut head = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut head).await {
        if head.ends_with(b"\r\n\r\n") {
            let seen = String::from_utf8_lossy(&head).replace("\r\n", "|");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Seen: {seen}\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            head.clear();
        }
    }
}

#[tokio::test]
async fn a_draining_connection_works_both_ways_and_ends_by_fin_when_quiet() {
    let mut a = Station::start().await;
    let b = echo().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.service(&[("ebbtide.dev/drain-timeout", "2500ms")]);
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (mut client, mut endpoint) = through(&rig, &mut a).await;
    rig.endpoints(&[a.ep("a").terminating(), Ep::new("b", b.address)]);
    drains(&rig, 1).await;
    let deadline = rig.receipts()[0].deadline.unwrap();
    // Bytes pass until well before the deadline. Then comes more than a second of silence.
    while Instant::now() + Duration::from_millis(1400) < deadline {
        passes(&mut client, &mut endpoint, b"up").await;
        passes(&mut endpoint, &mut client, b"and down").await;
    }
    let (at_client, at_endpoint) = tokio::join!(to_end(&mut client), to_end(&mut endpoint));
    assert!(Instant::now() >= deadline, "cut before the drain deadline");
    assert_eq!(
        (at_client, at_endpoint),
        ((Vec::new(), None), (Vec::new(), None))
    );
    eventually("the receipt", async || rig.receipts()[0].ended.is_some()).await;
    let record = &rig.receipts()[0];
    assert_eq!((record.finished, record.forced), (0, 1));
}

#[tokio::test]
async fn a_connection_cut_in_mid_transfer_is_reset_at_both_ends() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.service(&[("ebbtide.dev/drain-timeout", "1500ms")]);
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (mut client, endpoint) = through(&rig, &mut a).await;
    rig.endpoints(&[]);
    drains(&rig, 1).await;
    let deadline = rig.receipts()[0].deadline.unwrap();
    let (mut from_client, mut to_client) = endpoint.into_split();
    let sending = tokio::spawn(async move {
        loop {
            if let Err(error) = to_client.write_all(b"tick").await {
                return error.kind();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let (at_client, at_endpoint) = tokio::join!(to_end(&mut client), async {
        let mut rest = Vec::new();
        soon("the end", from_client.read_to_end(&mut rest))
            .await
            .map_err(|error| error.kind())
    });
    assert!(Instant::now() >= deadline, "cut before the drain deadline");
    assert_eq!(at_client.1, Some(ErrorKind::ConnectionReset));
    // The kernel reports the reset either to the reader or to the sender first, and to one only.
    let sent = soon("the sender's end", sending).await.unwrap();
    let reported = [at_endpoint.err(), Some(sent)];
    assert!(
        reported.contains(&Some(ErrorKind::ConnectionReset)),
        "{reported:?}"
    );
}

#[tokio::test]
async fn no_new_connection_reaches_a_draining_endpoint() {
    let b = echo().await;
    let rig = Rig::with_protocol("tcp", "").await;
    let stop = Arc::new(AtomicBool::new(false));
    rig.endpoints(&[Ep::new("b", b.address)]);
    rig.usable(1).await;
    let mut clients = Vec::new();
    let served: Arc<[AtomicUsize; 16]> = Arc::default();
    for number in 0..served.len() {
        let (web, stop, served) = (rig.web(), stop.clone(), served.clone());
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let mut client = TcpStream::connect(web).await.unwrap();
                client.write_all(b"x").await.unwrap();
                soon("the echo", client.read_exact(&mut [0])).await.unwrap();
                served[number].fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    // Waits until every client has made `count` connections that began after this call.
    let more = async |count: usize| {
        let before: Vec<usize> = served.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        let all = async || {
            served
                .iter()
                .zip(&before)
                .all(|(now, before)| now.load(Ordering::SeqCst) > before + count)
        };
        eventually("more connections", all).await;
    };
    for round in 1..=5 {
        let a = echo().await;
        let ep = Ep::new("a", a.address);
        rig.endpoints(&[ep.clone(), Ep::new("b", b.address)]);
        eventually("connections at a", async || a.accepted() > 20).await;
        // Some of these connections stay, and keep the endpoint draining.
        let mut staying = Vec::new();
        for _ in 0..16 {
            let mut client = TcpStream::connect(rig.web()).await.unwrap();
            client.write_all(b"x").await.unwrap();
            soon("the echo", client.read_exact(&mut [0])).await.unwrap();
            staying.push(client);
        }
        rig.endpoints(&[ep.terminating(), Ep::new("b", b.address)]);
        drains(&rig, round).await;
        more(1).await;
        let before = a.accepted();
        more(20).await;
        assert_eq!(a.accepted(), before, "round {round}");
        assert!(
            rig.receipts().iter().any(|r| r.ended.is_none()),
            "drained too soon for the test"
        );
        drop(staying);
        rig.endpoints(&[Ep::new("b", b.address)]);
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        soon("a client's end", client).await.unwrap();
    }
}

#[tokio::test]
async fn each_direction_is_closed_independently() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;

    let (mut client, mut endpoint) = through(&rig, &mut a).await;
    client.write_all(b"the whole question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(
        to_end(&mut endpoint).await,
        (b"the whole question".to_vec(), None)
    );
    passes(&mut endpoint, &mut client, b"a late").await;
    endpoint.write_all(b" answer").await.unwrap();
    drop(endpoint);
    assert_eq!(to_end(&mut client).await, (b" answer".to_vec(), None));

    let (mut client, mut endpoint) = through(&rig, &mut a).await;
    endpoint.write_all(b"nothing more from here").await.unwrap();
    endpoint.shutdown().await.unwrap();
    assert_eq!(
        to_end(&mut client).await,
        (b"nothing more from here".to_vec(), None)
    );
    passes(&mut client, &mut endpoint, b"but from").await;
    client.write_all(b" there").await.unwrap();
    drop(client);
    assert_eq!(to_end(&mut endpoint).await, (b" there".to_vec(), None));
    eventually("no connection left", async || {
        rig.metric("ebbtide_connections_active", "") == 0.0
    })
    .await;
    assert_eq!(leases(&rig, a.scripted.address), 0);
}

#[tokio::test]
async fn a_reset_stays_a_reset_and_frees_the_connection() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (client, mut endpoint) = through(&rig, &mut a).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(
        to_end(&mut endpoint).await.1,
        Some(ErrorKind::ConnectionReset)
    );
    eventually("the connection freed", async || {
        leases(&rig, a.scripted.address) == 0
    })
    .await;

    let (mut client, endpoint) = through(&rig, &mut a).await;
    endpoint.set_zero_linger().unwrap();
    drop(endpoint);
    assert_eq!(
        to_end(&mut client).await.1,
        Some(ErrorKind::ConnectionReset)
    );
    eventually("the connection freed", async || {
        leases(&rig, a.scripted.address) == 0
    })
    .await;
}

/// Sends until nothing goes any further: what is sent waits in the proxy, for the endpoint.
pub async fn send_until_blocked(stream: &mut TcpStream) {
    let block = vec![b'x'; 64 << 10];
    let a_while = Duration::from_millis(200);
    while let Ok(sent) = tokio::time::timeout(a_while, stream.write_all(&block)).await {
        sent.unwrap();
    }
}

/// The proxy still has bytes for the endpoint. Its write meets the reset, and its read would then
/// report an end (contract 1.12).
#[tokio::test]
async fn a_reset_while_the_client_sends_stays_a_reset_and_what_came_before_arrives() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    for _ in 0..5 {
        let (mut client, mut endpoint) = through(&rig, &mut a).await;
        send_until_blocked(&mut client).await;
        passes(&mut endpoint, &mut client, b"part").await;
        endpoint.set_zero_linger().unwrap();
        drop(endpoint);
        assert_eq!(
            to_end(&mut client).await,
            (Vec::new(), Some(ErrorKind::ConnectionReset))
        );
    }
    eventually("the connections freed", async || {
        leases(&rig, a.scripted.address) == 0
    })
    .await;
}

/// A client that has half-closed and then resets (a killed `curl`) is noticed, although nothing is
/// written to it.
#[tokio::test]
async fn a_reset_after_a_half_close_is_noticed_while_the_other_way_is_silent() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (mut client, mut endpoint) = through(&rig, &mut a).await;
    client.shutdown().await.unwrap();
    assert_eq!(soon("the FIN", endpoint.read(&mut [0])).await.unwrap(), 0);
    client.set_zero_linger().unwrap();
    drop(client);
    eventually("the client's reset noticed", async || {
        leases(&rig, a.scripted.address) == 0
    })
    .await;

    let (mut client, mut endpoint) = through(&rig, &mut a).await;
    endpoint.shutdown().await.unwrap();
    assert_eq!(soon("the FIN", client.read(&mut [0])).await.unwrap(), 0);
    endpoint.set_zero_linger().unwrap();
    drop(endpoint);
    eventually("the endpoint's reset noticed", async || {
        leases(&rig, a.scripted.address) == 0
    })
    .await;
}

#[tokio::test]
async fn a_refused_connect_moves_on_before_the_client_notices() {
    let b = echo().await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let rig = Rig::with_protocol("tcp", "").await;
    rig.service(&[("ebbtide.dev/join-check", "off")]);
    rig.endpoints(&[Ep::new("gone", gone), Ep::new("b", b.address)]);
    rig.usable(2).await;
    let mut tries = 0;
    // Until the endpoint has been tried once. From then on it is ejected.
    while rig.metric("ebbtide_retries_total", "reason=\"connect\"") == 0.0 || tries < 20 {
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        soon("the echo", client.read_exact(&mut [0])).await.unwrap();
        tries += 1;
        assert!(tries < 2_000, "the refusing endpoint was never tried");
    }
    assert!(known(&rig, gone).unwrap().is_ejected());
}

#[tokio::test]
async fn a_black_hole_costs_no_more_than_the_race() {
    let hole = Full::start().await;
    let address = hole.address();
    let b = echo().await;
    let rig = Rig::with_protocol("tcp", "timeouts: {connect: 1m}").await;
    rig.service(&[("ebbtide.dev/join-check", "off")]);
    rig.endpoints(&[Ep::new("hole", address), Ep::new("b", b.address)]);
    rig.usable(2).await;
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        soon("the echo", client.read_exact(&mut [0])).await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    println!(
        "20 connections beside a black hole: {:?}, slowest {slowest:?}",
        began.elapsed()
    );
    assert!(leases(&rig, address) > 0, "the black hole was never tried");
    drop(hole);
}

#[tokio::test]
async fn auto_serves_a_server_that_speaks_first() {
    let a = Scripted::start(|mut stream: TcpStream, _| async move {
        if stream.write_all(b"220 hello\r\n").await.is_ok() {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    })
    .await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("a", a.address)]);
    rig.usable(1).await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    let mut greeting = [0; 11];
    soon("the greeting", client.read_exact(&mut greeting))
        .await
        .unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    // After the server's first byte, a request line is not parsed any more.
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(
        to_end(&mut client).await,
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), None)
    );
}

#[tokio::test]
async fn auto_forwards_what_is_no_request_line() {
    let a = echo().await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("a", a.address)]);
    rig.usable(1).await;
    let hellos: [&[u8]; 4] = [
        b"\x00\x01\x02 binary",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"EHLO there\r\n",
        // This could still become a request line. The client does not have to send more before
        // it is served.
        b"hello",
    ];
    for hello in hellos {
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        client.write_all(hello).await.unwrap();
        let mut back = vec![0; hello.len()];
        let what = format!("the echo of {:?}", String::from_utf8_lossy(hello));
        soon(&what, client.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, hello);
    }
    assert_eq!(
        rig.metric("ebbtide_connections_total", "protocol=\"tcp\""),
        hellos.len() as f64
    );
}

#[tokio::test]
async fn a_request_line_before_the_endpoints_first_byte_is_http_after_any_silence() {
    let a = Scripted::start(|stream, _| mirror(stream)).await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("a", a.address)]);
    rig.usable(1).await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    eventually("a provisional connection", async || {
        leases(&rig, a.address) == 1
    })
    .await;
    for _ in 0..2 {
        let answer = head_of_answer(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.to_lowercase().contains("x-forwarded-for: 127.0.0.1"),
            "{answer}"
        );
    }
    eventually("the lease is returned", async || {
        leases(&rig, a.address) == 0
    })
    .await;
    assert_eq!(
        rig.metric("ebbtide_connections_total", "protocol=\"http\""),
        1.0
    );
    assert!(
        a.accepted() <= 3,
        "one connect for the join check, the provisional one, and at most one more for both requests"
    );
}

/// Two endpoints that answer HTTP, and a silent client. Returns the client, and whether its
/// provisional endpoint is `a`.
async fn silent_client(rig: &Rig, a: &Scripted, b: &Scripted) -> (TcpStream, bool) {
    rig.service(&[("ebbtide.dev/drain-timeout", "1s")]);
    rig.endpoints(&[Ep::new("a", a.address), Ep::new("b", b.address)]);
    rig.usable(2).await;
    let client = TcpStream::connect(rig.web()).await.unwrap();
    eventually("a provisional connection", async || {
        leases(rig, a.address) + leases(rig, b.address) == 1
    })
    .await;
    (client, leases(rig, a.address) == 1)
}

#[tokio::test]
async fn a_silent_client_outlives_the_drain_deadline_of_its_provisional_endpoint() {
    let a = Scripted::start(|stream, _| mirror(stream)).await;
    let b = Scripted::start(|stream, _| mirror(stream)).await;
    let rig = Rig::start("").await;
    let (mut client, on_a) = silent_client(&rig, &a, &b).await;
    let other = if on_a {
        ("b", b.address)
    } else {
        ("a", a.address)
    };
    rig.endpoints(&[Ep::new(other.0, other.1)]);
    eventually("moved to the other endpoint", async || {
        leases(&rig, other.1) == 1
    })
    .await;
    assert!(
        head_of_answer(&mut client)
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn a_silent_client_outlives_its_provisional_endpoint() {
    let a = Scripted::start(|stream, _| mirror(stream)).await;
    let rig = Rig::start("").await;
    let dying = Arc::new(tokio::sync::Notify::new());
    let ended = dying.clone();
    let c = Scripted::start(move |stream, _| {
        let ended = ended.clone();
        async move {
            tokio::select! {
                () = mirror(stream) => {}
                () = ended.notified() => {}
            }
        }
    })
    .await;
    rig.endpoints(&[Ep::new("c", c.address)]);
    rig.usable(1).await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    eventually("a provisional connection", async || {
        leases(&rig, c.address) == 1
    })
    .await;
    let address = c.address;
    // The process dies, and no manifest changes.
    drop(c);
    eventually("the socket closed", async || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    dying.notify_waiters();
    eventually("the endpoint ejected", async || {
        known(&rig, address).unwrap().is_ejected()
    })
    .await;
    rig.endpoints(&[Ep::new("a", a.address), Ep::new("c", address)]);
    assert!(
        head_of_answer(&mut client)
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(a.accepted() > 0);
}

#[tokio::test]
async fn a_request_of_a_client_that_was_held_silent_is_answered_and_not_reset() {
    let rig = Rig::start("").await;
    rig.service(&[("ebbtide.dev/hold-timeout", "3s")]);
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    eventually("held", async || rig.metric("ebbtide_held{", "") == 1.0).await;
    let answer = head_of_answer(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

/// The pattern repeats with a period that no buffer has, so a lost or repeated buffer is detected.
const PERIOD: usize = 9_973;
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..PERIOD + (1 << 20))
        .map(|i| (i % PERIOD * 31) as u8)
        .collect()
});

async fn send_pattern(to: &mut (impl AsyncWriteExt + Unpin), length: usize) {
    let mut sent = 0;
    while sent < length {
        let n = (length - sent).min(200_000);
        let start = sent % PERIOD;
        to.write_all(&PATTERN[start..start + n]).await.unwrap();
        sent += n;
    }
}

/// Reads to the FIN and compares. Returns the length.
async fn check_pattern(from: &mut (impl AsyncReadExt + Unpin)) -> usize {
    let mut buf = vec![0; 256 << 10];
    let mut seen = 0;
    loop {
        let n = soon("more bytes", from.read(&mut buf)).await.unwrap();
        if n == 0 {
            return seen;
        }
        let start = seen % PERIOD;
        assert!(
            buf[..n] == PATTERN[start..start + n],
            "wrong bytes after {seen}"
        );
        seen += n;
    }
}

#[tokio::test]
async fn large_transfers_in_both_directions_arrive_whole() {
    const SIZE: usize = 64 << 20;
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (client, endpoint) = through(&rig, &mut a).await;
    let began = Instant::now();
    let mut ends = Vec::new();
    for stream in [client, endpoint] {
        let (mut read, mut write) = stream.into_split();
        ends.push(tokio::spawn(async move { check_pattern(&mut read).await }));
        tokio::spawn(async move {
            send_pattern(&mut write, SIZE).await;
            write.shutdown().await.unwrap();
        });
    }
    for end in ends {
        assert_eq!(end.await.unwrap(), SIZE);
    }
    println!("2 x 64 MiB: {:?}", began.elapsed());
}

#[tokio::test]
async fn eight_megabytes_each_way_around_a_one_sided_close() {
    const SIZE: usize = 8_000_000;
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (mut client, mut endpoint) = through(&rig, &mut a).await;
    let server = tokio::spawn(async move {
        assert_eq!(check_pattern(&mut endpoint).await, SIZE);
        send_pattern(&mut endpoint, SIZE).await;
    });
    send_pattern(&mut client, SIZE).await;
    client.shutdown().await.unwrap();
    assert_eq!(check_pattern(&mut client).await, SIZE);
    server.await.unwrap();
}

/// With pieces large enough for splice, and with small pieces that are copied.
#[tokio::test]
async fn a_slow_reader_slows_its_sender() {
    const SIZE: usize = 256 << 20;
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    for (piece, pause) in [
        (100_000, Duration::ZERO),
        (20_000, Duration::from_micros(200)),
    ] {
        let (mut client, mut endpoint) = through(&rig, &mut a).await;
        let mut sent = 0;
        // The connection is full when it accepts nothing for a second.
        while sent < SIZE {
            let start = sent % PERIOD;
            match tokio::time::timeout(
                Duration::from_secs(1),
                endpoint.write(&PATTERN[start..start + piece]),
            )
            .await
            {
                Ok(n) => sent += n.unwrap(),
                Err(_full) => break,
            }
            tokio::time::sleep(pause).await;
        }
        println!(
            "buffered for a reader that does not read: {} KiB",
            sent >> 10
        );
        assert!(sent < SIZE / 2, "nothing held the sender back: {sent}");
        drop(endpoint);
        assert_eq!(check_pattern(&mut client).await, sent);
    }
}

#[tokio::test]
async fn a_tunnel_is_tcp_until_the_drain_deadline() {
    let mut a = Station::start().await;
    let b = Scripted::start(|stream, _| mirror(stream)).await;
    let rig = Rig::start("").await;
    rig.service(&[("ebbtide.dev/drain-timeout", "2500ms")]);
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let client = Client::connect(rig.web()).await.unwrap();
    let server = async {
        let (mut endpoint, head) = a.next().await;
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(
            head.contains("upgrade: websocket") && head.contains("connection: upgrade"),
            "{head}"
        );
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst";
        endpoint.write_all(answer.as_bytes()).await.unwrap();
        endpoint
    };
    let asked = async {
        let mut client = client;
        let headers = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
        let answer = soon("101", client.exchange("GET", "/ws", headers, b""))
            .await
            .unwrap();
        assert_eq!(answer.status, 101);
        client.into_parts()
    };
    let (mut endpoint, (mut client, mut first)) = tokio::join!(server, asked);
    while first.len() < 5 {
        assert_ne!(
            soon("the first bytes", client.read_buf(&mut first))
                .await
                .unwrap(),
            0
        );
    }
    assert_eq!(first, b"first");
    rig.endpoints(&[a.ep("a").terminating(), Ep::new("b", b.address)]);
    drains(&rig, 1).await;
    let deadline = rig.receipts()[0].deadline.unwrap();
    while Instant::now() + Duration::from_millis(1400) < deadline {
        passes(&mut client, &mut endpoint, b"\x81\x02up").await;
        passes(&mut endpoint, &mut client, b"\x81\x04down").await;
    }
    let (at_client, at_endpoint) = tokio::join!(to_end(&mut client), to_end(&mut endpoint));
    assert!(Instant::now() >= deadline, "cut before the drain deadline");
    assert_eq!((at_client.1, at_endpoint.1), (None, None));
}

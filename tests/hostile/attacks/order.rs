//! The order of service when much work is ready at the same time. The proxy is stopped, a burst of
//! connections gets ready, and behind it one request of a client that was connected before. When
//! that request reaches its endpoint, the proxy is stopped again, and the test counts how many of
//! the burst were served first.
//!
//! The measure is an order, not a time. A machine that is busy elsewhere lets more of the burst go
//! first, so the best of several tries counts. Without turns it would always be the whole burst.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

use crate::hostile::alone::{Alone, alone};
use crate::hostile::attacks::siege::add_hostile;
use crate::hostile::idle::{in_state, is_asleep};
use crate::support::folder::Ep;
use crate::support::frames::{PING, PREFACE, SETTINGS, frame};
use crate::support::process::Process;
use crate::support::vitals::open_descriptors;

/// About three times as many as there are pipes, so that copies without a pipe must wait for their
/// turn, too.
const BURST: u64 = 200;
/// The most pipes that one worker lends out (`src/net/pipe.rs`).
const PIPES: u64 = 64;
/// So many of the burst are ready at the same moment. They are far more than there are pipes.
const MOST: usize = BURST as usize * 3 / 4;
const TRIES: usize = 20;
/// Only a broken program takes longer than this: the kernel's probes of a closed window are up to two
/// minutes apart.
const PATIENCE: Duration = Duration::from_secs(300);
/// A state counts as still when this many looks, a millisecond apart, find it unchanged.
const STILL: u32 = 40;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
const NOTHING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

struct Stage {
    _process: Process,
    pid: u32,
    good: TcpStream,
    arrived: Receiver<()>,
    go_on: Sender<()>,
    /// Where the burst connects (`gate`), and the endpoint that it reaches (`hostile`).
    gate: SocketAddr,
    hostile: TcpListener,
    _alone: Alone,
}

impl Stage {
    async fn set(protocol: &str) -> Self {
        let alone = alone().await;
        let (well_behaved, hostile) = (listen(), listen());
        hostile.set_nonblocking(true).unwrap();
        let addresses = (
            well_behaved.local_addr().unwrap(),
            hostile.local_addr().unwrap(),
        );
        let (request_arrived, arrived) = channel();
        let (go_on, may_go_on) = channel();
        let pid = Arc::new(OnceLock::new());
        std::thread::spawn({
            let pid = pid.clone();
            move || {
                serve(
                    &well_behaved,
                    &pid,
                    &request_arrived,
                    &Mutex::new(may_go_on),
                )
            }
        });
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\n\
             listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: http}},\n\
             {{name: gate, address: '127.0.0.1:0', service: web/hostile, port: 80, protocol: {protocol}}}]\n\
             admin: {{address: '127.0.0.1:0'}}\nworkers: 1\n"
        );
        let process = Process::run(&[Ep::new("app", addresses.0)], &text, &["web", "gate"]).await;
        add_hostile(&process, addresses.1).await;
        let gate = process.proxy.listeners["gate"];
        let good = TcpStream::connect(process.web()).unwrap();
        good.set_read_timeout(Some(PATIENCE)).unwrap();
        let number = process.proxy.pid().unwrap();
        pid.set(number).unwrap();
        let mut stage = Self {
            _process: process,
            pid: number,
            good,
            arrived,
            go_on,
            gate,
            hostile,
            _alone: alone,
        };
        stage.ask("/before");
        stage.answered();
        stage
    }

    /// Stops the proxy and lets the burst get `ready`. Then the good client sends its request.
    /// `seen` counts the served part of the burst when that request has reached its endpoint.
    fn ahead(&mut self, ready: impl FnOnce(), seen: impl FnOnce()) {
        stop(self.pid);
        ready();
        self.ask("/order");
        signal(self.pid, Signal::CONT);
        self.arrived
            .recv_timeout(PATIENCE)
            .expect("the good client's request arrives");
        seen();
        self.go_on.send(()).unwrap();
        self.answered();
    }

    /// The same, where each served client costs the proxy one descriptor. In the end the whole
    /// burst has its descriptors.
    fn ahead_by_descriptors(&mut self, ready: impl FnOnce()) -> u64 {
        let pid = self.pid;
        until_still("the proxy sleeps", || is_asleep(pid));
        let (before, mut ahead) = (open_descriptors(pid), 0);
        self.ahead(ready, || ahead = open_descriptors(pid) - before);
        patiently("all of the burst are served", || {
            open_descriptors(pid) - before >= BURST
        });
        ahead
    }

    fn ask(&mut self, path: &str) {
        self.good
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes())
            .unwrap();
    }

    fn answered(&mut self) {
        read_until(&mut self.good, b"\r\n\r\nok");
    }

    /// One client of the burst, which sends these bytes.
    fn client(&self, bytes: &[u8]) -> TcpStream {
        let socket = socket();
        socket.connect(&self.gate.into()).unwrap();
        let mut client = TcpStream::from(socket);
        client.write_all(bytes).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A burst whose clients have had one response each, and the endpoint's side of their
    /// connections.
    fn established(&self) -> (Vec<TcpStream>, Vec<TcpStream>) {
        let mut clients: Vec<TcpStream> = (0..BURST).map(|_| self.client(REQUEST)).collect();
        let mut endpoints = self.arrived_burst();
        endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.write_all(NOTHING).unwrap());
        until_each_receives("all have their response", &mut clients, || {});
        (clients, endpoints)
    }

    /// The endpoint's side of the burst's connections, once a byte has come on each. Join checks
    /// send no byte.
    fn arrived_burst(&self) -> Vec<TcpStream> {
        let (mut silent, mut burst) = (Vec::new(), Vec::new());
        patiently("the burst reaches its endpoint", || {
            while let Ok((stream, _)) = self.hostile.accept() {
                stream.set_nonblocking(true).unwrap();
                silent.push(stream);
            }
            burst.extend(silent.extract_if(.., |stream| matches!(read_some(stream), Ok(1..))));
            burst.len() as u64 == BURST
        });
        burst
    }
}

/// The good client's endpoint. It stops the proxy when the request for `/order` arrives.
fn serve(
    listener: &TcpListener,
    pid: &OnceLock<u32>,
    request_arrived: &Sender<()>,
    may_go_on: &Mutex<Receiver<()>>,
) {
    std::thread::scope(|scope| {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let request_arrived = request_arrived.clone();
            scope.spawn(move || {
                while let Some(head) = try_read_until(&mut stream, b"\r\n\r\n") {
                    if head.starts_with(b"GET /order ") {
                        stop(*pid.get().unwrap());
                        request_arrived.send(()).unwrap();
                        let _ = may_go_on.lock().unwrap().recv();
                        signal(*pid.get().unwrap(), Signal::CONT);
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
}

fn listen() -> TcpListener {
    let listener = socket();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&any.into()).unwrap();
    // Room for a burst that is accepted later.
    listener.listen(1_024).unwrap();
    listener.into()
}

/// Small kernel buffers, so that the bytes wait before the proxy and in its pipes. Small segments:
/// loopback's own are as large as these buffers, so that the kernel drops some, and tries again up to
/// two minutes later.
fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.set_send_buffer_size(64 << 10).unwrap();
    socket.set_tcp_mss(1_460).unwrap();
    socket
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    patiently("it stops", || in_state(pid, 'T'));
}

/// `None` at the end of the stream.
fn try_read_until(stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !read.ends_with(end) {
        stream.read_exact(&mut byte).ok()?;
        read.push(byte[0]);
    }
    Some(read)
}

fn read_until(stream: &mut TcpStream, end: &[u8]) {
    try_read_until(stream, end).expect("the stream goes on");
}

fn read_some(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.read(&mut [0; 64 << 10])
}

fn write_some(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.write(&[0; 16 << 10])
}

/// One pass of writes or reads over all streams, as far as each goes. Returns the number of bytes
/// for each.
fn pass(
    streams: &mut [TcpStream],
    mut once: impl FnMut(&mut TcpStream) -> std::io::Result<usize>,
) -> Vec<usize> {
    let all = |stream: &mut TcpStream| {
        let mut sum = 0;
        loop {
            match once(stream) {
                Ok(0) => return sum,
                Ok(n) => sum += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return sum,
                Err(error) => panic!("a stream broke: {error}"),
            }
        }
    };
    streams.iter_mut().map(all).collect()
}

/// Waits until `over` returns true.
fn patiently(what: &str, mut over: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !over() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `quiet` has returned true [`STILL`] times in a row.
fn until_still(what: &str, mut quiet: impl FnMut() -> bool) {
    let mut times = 0;
    patiently(what, || {
        times = if quiet() { times + 1 } else { 0 };
        times == STILL
    });
}

/// Reads, and calls `meanwhile`, until each stream has received something.
fn until_each_receives(what: &str, streams: &mut [TcpStream], meanwhile: impl FnMut()) {
    until_so_many_receive(streams.len(), what, streams, meanwhile);
}

fn until_so_many_receive(
    many: usize,
    what: &str,
    streams: &mut [TcpStream],
    mut meanwhile: impl FnMut(),
) {
    let mut received = vec![false; streams.len()];
    patiently(what, || {
        received
            .iter_mut()
            .zip(pass(streams, read_some))
            .for_each(|(received, n)| *received |= n > 0);
        meanwhile();
        received.iter().filter(|received| **received).count() >= many
    });
}

/// Writes until the kernel takes no more and the proxy sleeps.
fn stuff(pid: u32, sources: &mut [TcpStream]) {
    until_still("the kernel takes no more", || {
        pass(sources, write_some).iter().all(|wrote| *wrote == 0) && is_asleep(pid)
    });
}

/// Reads everything that the kernel delivers. Returns how many streams received anything.
fn drain(sinks: &mut [TcpStream]) -> u64 {
    let mut received = vec![false; sinks.len()];
    until_still("nothing arrives any more", || {
        let read = pass(sinks, read_some);
        received
            .iter_mut()
            .zip(&read)
            .for_each(|(received, n)| *received |= *n > 0);
        read.iter().all(|n| *n == 0)
    });
    received.iter().filter(|received| **received).count() as u64
}

/// Fewer connections than there are pipes may be served first, in one of the tries. Without turns,
/// all connections with a pipe, or all without one, would be served together.
async fn judge(burst: &str, mut once: impl AsyncFnMut() -> u64) {
    let mut seen = Vec::new();
    while seen.len() < TRIES {
        let ahead = once().await;
        seen.push(ahead);
        if ahead < PIPES {
            return println!(
                "FIGURE attack order-{burst}: {ahead} of a burst of {BURST} served before an established client"
            );
        }
    }
    panic!(
        "{burst}: of a burst of {BURST}, these many were served before an established client: {seen:?}"
    );
}

/// Transfers that stand still because their sinks take nothing. Then the sinks take everything at
/// the same moment.
async fn judge_flows(
    burst: &str,
    mut stage: Stage,
    mut sources: Vec<TcpStream>,
    mut sinks: Vec<TcpStream>,
) {
    judge(burst, async || {
        stuff(stage.pid, &mut sources);
        let (mut ahead, sinks) = (0, RefCell::new(&mut sinks));
        let ready = || {
            // The kernel may first wait to probe a closed window. The proxy is stopped, so nothing
            // arrives where it had not written yet.
            until_so_many_receive(
                MOST,
                "the waiting bytes arrive",
                &mut sinks.borrow_mut(),
                || {},
            );
            drain(&mut sinks.borrow_mut());
        };
        stage.ahead(ready, || ahead = drain(&mut sinks.borrow_mut()));
        // The burst gets its turns, too.
        until_each_receives("all of the burst go on", &mut sinks.borrow_mut(), || {
            drop(pass(&mut sources, write_some))
        });
        ahead
    })
    .await;
}

#[tokio::test]
async fn an_established_client_is_served_before_a_burst_of_new_connections() {
    judge("new-connections", async || {
        let mut stage = Stage::set("http").await;
        let mut burst: Vec<TcpStream> = (0..BURST).map(|_| stage.client(b"")).collect();
        // Each client needs a connection to the endpoint.
        stage.ahead_by_descriptors(|| {
            burst
                .iter_mut()
                .for_each(|client| client.write_all(REQUEST).unwrap())
        })
    })
    .await;
}

#[tokio::test]
async fn an_established_client_is_served_before_a_burst_is_accepted() {
    judge("not-yet-accepted", async || {
        let mut stage = Stage::set("http").await;
        let (gate, mut burst) = (stage.gate, Vec::new());
        stage.ahead_by_descriptors(|| {
            burst.extend((0..BURST).map(|_| TcpStream::connect(gate).unwrap()))
        })
    })
    .await;
}

/// Frames that cost their senders nothing, far more of them than one turn reads.
#[tokio::test]
async fn an_established_client_is_served_before_a_burst_of_pings() {
    const A_TURN: usize = 16 << 10;
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    let pings = frame(PING, 0, 0, b"12345678").repeat(3 * A_TURN / 17);
    judge("pings", async || {
        let mut stage = Stage::set("http").await;
        let burst = (0..BURST).map(|_| stage.client(&begin));
        let (mut ahead, burst) = (0, RefCell::new(burst.collect::<Vec<_>>()));
        until_each_receives("all have begun", &mut burst.borrow_mut(), || {});
        drain(&mut burst.borrow_mut());
        let ready = || {
            for client in burst.borrow_mut().iter_mut() {
                client.write_all(&pings).unwrap();
            }
        };
        stage.ahead(ready, || {
            let answers = pass(&mut burst.borrow_mut(), read_some).into_iter();
            ahead = answers.filter(|length| *length > 2 * A_TURN).count() as u64;
        });
        ahead
    })
    .await;
}

#[tokio::test]
async fn an_established_client_is_served_before_a_burst_of_long_pairs() {
    let stage = Stage::set("tcp").await;
    let sources = (0..BURST).map(|_| stage.client(b"\0")).collect();
    let sinks = stage.arrived_burst();
    judge_flows("long-pairs", stage, sources, sinks).await;
}

/// The clients do not read what their endpoints send.
#[tokio::test]
async fn an_established_client_is_served_before_a_burst_of_half_blocked_pairs() {
    let stage = Stage::set("tcp").await;
    let sources = (0..BURST).map(|_| stage.client(b"\0")).collect();
    let mut sinks = stage.arrived_burst();
    stuff(stage.pid, &mut sinks);
    judge_flows("half-blocked-pairs", stage, sources, sinks).await;
}

#[tokio::test]
async fn an_established_client_is_served_before_a_burst_of_long_uploads() {
    let stage = Stage::set("http").await;
    let (mut sources, sinks) = stage.established();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n",
        1u64 << 40
    );
    sources
        .iter_mut()
        .for_each(|source| source.write_all(head.as_bytes()).unwrap());
    judge_flows("long-uploads", stage, sources, sinks).await;
}

#[tokio::test]
async fn an_established_client_is_served_before_a_burst_of_long_responses() {
    let stage = Stage::set("http").await;
    let (mut sinks, mut sources) = stage.established();
    sinks
        .iter_mut()
        .for_each(|sink| sink.write_all(REQUEST).unwrap());
    until_each_receives("all have sent another request", &mut sources, || {});
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 40);
    sources
        .iter_mut()
        .for_each(|source| source.write_all(head.as_bytes()).unwrap());
    judge_flows("long-responses", stage, sources, sinks).await;
}

//! Who comes first where much stands ready at once. The proxy is stopped, a herd gets ready, and behind it one request of a
//! client that was there before. When that reaches its endpoint, the proxy is stopped again, and it is counted how many of the
//! herd were served before: by an order, not by a time. A machine that is busy elsewhere has more of them served, so the best
//! of some tries counts; without turns it is always all of them.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::process::{Pid, Signal, kill_process};

use crate::hostile::alone::{Alone, alone};
use crate::hostile::attacks::siege::add_hostile;
use crate::hostile::idle::{in_state, is_asleep};
use crate::support::folder::Ep;
use crate::support::process::Process;
use crate::support::vitals::open_descriptors;

/// More than there are pipes, by as many again: what is copied waits its turn, too.
const HERD: u64 = 200;
/// What a worker lends out at the most (`relay.rs`).
const PIPES: u64 = 64;
const TRIES: usize = 20;
/// Only a broken program takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Looks, a millisecond apart, at what is to stay as it is.
const STILL: u32 = 40;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
const NOTHING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

struct Stage {
    _process: Process,
    pid: u32,
    good: TcpStream,
    arrived: Receiver<()>,
    go_on: Sender<()>,
    /// Where the herd comes in, and where it ends up.
    gate: SocketAddr,
    hostile: TcpListener,
    _alone: Alone,
}

impl Stage {
    async fn set(protocol: &str) -> Self {
        let alone = alone().await;
        let (decent, hostile) = (listen(), listen());
        hostile.set_nonblocking(true).unwrap();
        let addresses = (decent.local_addr().unwrap(), hostile.local_addr().unwrap());
        let (tell, arrived) = channel();
        let (go_on, told) = channel();
        let pid = Arc::new(OnceLock::new());
        std::thread::spawn({
            let pid = pid.clone();
            move || serve(&decent, &pid, &tell, &Mutex::new(told))
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

    /// Lets the herd get `ready` and then the good one ask; how many were served is to be `seen` when that is on its way.
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

    /// The same where whoever is served costs the proxy a descriptor. In the end all of the herd have theirs.
    fn ahead_by_descriptors(&mut self, ready: impl FnOnce()) -> u64 {
        let pid = self.pid;
        until_still("it sleeps", || is_asleep(pid));
        let (before, mut ahead) = (open_descriptors(pid), 0);
        self.ahead(ready, || ahead = open_descriptors(pid) - before);
        patiently("all of the herd are served", || {
            open_descriptors(pid) - before >= HERD
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

    /// One of the herd, which sends this.
    fn client(&self, says: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(self.gate).unwrap();
        small(&client);
        client.write_all(says).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A herd that has had an answer each, and the endpoint's side of it.
    fn regulars(&self) -> (Vec<TcpStream>, Vec<TcpStream>) {
        let mut clients: Vec<TcpStream> = (0..HERD).map(|_| self.client(REQUEST)).collect();
        let mut endpoints = self.arrived_herd();
        endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.write_all(NOTHING).unwrap());
        until_each_hears("all have their answer", &mut clients, || {});
        (clients, endpoints)
    }

    /// The endpoint's side of the herd's connections, once something has come on each: on probes nothing does.
    fn arrived_herd(&self) -> Vec<TcpStream> {
        let (mut silent, mut herd) = (Vec::new(), Vec::new());
        patiently("the herd reaches its endpoint", || {
            while let Ok((stream, _)) = self.hostile.accept() {
                stream.set_nonblocking(true).unwrap();
                silent.push(stream);
            }
            herd.extend(silent.extract_if(.., |stream| matches!(read_some(stream), Ok(1..))));
            herd.len() as u64 == HERD
        });
        herd
    }
}

/// The good client's endpoint.
fn serve(
    listener: &TcpListener,
    pid: &OnceLock<u32>,
    tell: &Sender<()>,
    told: &Mutex<Receiver<()>>,
) {
    std::thread::scope(|scope| {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let tell = tell.clone();
            scope.spawn(move || {
                while let Some(head) = try_read_until(&mut stream, b"\r\n\r\n") {
                    if head.starts_with(b"GET /order ") {
                        stop(*pid.get().unwrap());
                        tell.send(()).unwrap();
                        let _ = told.lock().unwrap().recv();
                        signal(*pid.get().unwrap(), Signal::CONT);
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
}

fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    small(&listener);
    // Room for a herd that is accepted later.
    rustix::net::listen(&listener, 1_024).unwrap();
    listener
}

/// Little room in the kernel: what is to be moved is to stand before the proxy and in its pipes.
fn small(socket: &impl AsFd) {
    set_socket_recv_buffer_size(socket, 64 << 10).unwrap();
    set_socket_send_buffer_size(socket, 64 << 10).unwrap();
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    patiently("it stops", || in_state(pid, 'T'));
}

/// `None` at the end.
fn try_read_until(stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !read.ends_with(end) {
        stream.read_exact(&mut byte).ok()?;
        read.push(byte[0]);
    }
    Some(read)
}

fn read_until(stream: &mut TcpStream, end: &[u8]) {
    try_read_until(stream, end).expect("it goes on");
}

fn read_some(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.read(&mut [0; 64 << 10])
}

fn write_some(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.write(&[0; 16 << 10])
}

/// One pass of writes or reads over all of them, as far as each goes; answers the bytes of each.
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
                Err(error) => panic!("a flow broke: {error}"),
            }
        }
    };
    streams.iter_mut().map(all).collect()
}

/// Until `over` says so.
fn patiently(what: &str, mut over: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !over() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Until `quiet` has said so often enough in a row.
fn until_still(what: &str, mut quiet: impl FnMut() -> bool) {
    let mut times = 0;
    patiently(what, || {
        times = if quiet() { times + 1 } else { 0 };
        times == STILL
    });
}

/// Reads, and does what is given, until something has come to each.
fn until_each_hears(what: &str, streams: &mut [TcpStream], mut meanwhile: impl FnMut()) {
    let mut heard = vec![false; streams.len()];
    patiently(what, || {
        heard
            .iter_mut()
            .zip(pass(streams, read_some))
            .for_each(|(heard, n)| *heard |= n > 0);
        meanwhile();
        heard.iter().all(|heard| *heard)
    });
}

/// Writes until nothing goes any further, and the proxy has nothing to do.
fn stuff(pid: u32, sources: &mut [TcpStream]) {
    until_still("nothing goes any further", || {
        pass(sources, write_some).iter().all(|wrote| *wrote == 0) && is_asleep(pid)
    });
}

/// Reads all there is, as the kernel brings it; answers of how many there was anything.
fn drain(sinks: &mut [TcpStream]) -> u64 {
    let mut heard = vec![false; sinks.len()];
    until_still("nothing comes any more", || {
        let read = pass(sinks, read_some);
        heard
            .iter_mut()
            .zip(&read)
            .for_each(|(heard, n)| *heard |= *n > 0);
        read.iter().all(|n| *n == 0)
    });
    heard.iter().filter(|heard| **heard).count() as u64
}

/// Fewer than there are pipes, in one of the tries: whoever has one, or has none, would be served all at once without turns.
async fn judge(herd: &str, mut once: impl AsyncFnMut() -> u64) {
    let mut seen = Vec::new();
    while seen.len() < TRIES {
        let ahead = once().await;
        seen.push(ahead);
        if ahead < PIPES {
            return println!(
                "FIGURE attack order-{herd}: {ahead} of a herd of {HERD} served before one who was there"
            );
        }
    }
    panic!("{herd}: of a herd of {HERD} so many were served before one who was there: {seen:?}");
}

/// Transfers that stand since their sinks take nothing; then these take everything at once.
async fn judge_flows(
    herd: &str,
    mut stage: Stage,
    mut sources: Vec<TcpStream>,
    mut sinks: Vec<TcpStream>,
) {
    judge(herd, async || {
        stuff(stage.pid, &mut sources);
        let (mut ahead, sinks) = (0, RefCell::new(&mut sinks));
        let ready = || {
            // The kernel may have it wait for a probe of a closed window.
            until_each_hears("what stood arrives", &mut sinks.borrow_mut(), || {});
            drain(&mut sinks.borrow_mut());
        };
        stage.ahead(ready, || ahead = drain(&mut sinks.borrow_mut()));
        // And the herd has its turns.
        until_each_hears("all of the herd go on", &mut sinks.borrow_mut(), || {
            drop(pass(&mut sources, write_some))
        });
        ahead
    })
    .await;
}

#[tokio::test]
async fn who_is_there_is_served_before_a_herd_of_newcomers() {
    judge("newcomers", async || {
        let mut stage = Stage::set("http").await;
        let mut herd: Vec<TcpStream> = (0..HERD).map(|_| stage.client(b"")).collect();
        // Each needs a connection to the endpoint.
        stage.ahead_by_descriptors(|| {
            herd.iter_mut()
                .for_each(|client| client.write_all(REQUEST).unwrap())
        })
    })
    .await;
}

#[tokio::test]
async fn who_is_there_is_served_before_a_herd_is_accepted() {
    judge("not-yet-accepted", async || {
        let mut stage = Stage::set("http").await;
        let (gate, mut herd) = (stage.gate, Vec::new());
        stage.ahead_by_descriptors(|| {
            herd.extend((0..HERD).map(|_| TcpStream::connect(gate).unwrap()))
        })
    })
    .await;
}

#[tokio::test]
async fn who_is_there_is_served_before_a_herd_of_long_pairs() {
    let stage = Stage::set("tcp").await;
    let sources = (0..HERD).map(|_| stage.client(b"\0")).collect();
    let sinks = stage.arrived_herd();
    judge_flows("long-pairs", stage, sources, sinks).await;
}

/// What their endpoints send is not taken.
#[tokio::test]
async fn who_is_there_is_served_before_a_herd_of_half_blocked_pairs() {
    let stage = Stage::set("tcp").await;
    let sources = (0..HERD).map(|_| stage.client(b"\0")).collect();
    let mut sinks = stage.arrived_herd();
    stuff(stage.pid, &mut sinks);
    judge_flows("half-blocked-pairs", stage, sources, sinks).await;
}

#[tokio::test]
async fn who_is_there_is_served_before_a_herd_of_long_uploads() {
    let stage = Stage::set("http").await;
    let (mut sources, sinks) = stage.regulars();
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
async fn who_is_there_is_served_before_a_herd_of_long_answers() {
    let stage = Stage::set("http").await;
    let (mut sinks, mut sources) = stage.regulars();
    sinks
        .iter_mut()
        .for_each(|sink| sink.write_all(REQUEST).unwrap());
    until_each_hears("all have asked again", &mut sources, || {});
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 40);
    sources
        .iter_mut()
        .for_each(|source| source.write_all(head.as_bytes()).unwrap());
    judge_flows("long-answers", stage, sources, sinks).await;
}

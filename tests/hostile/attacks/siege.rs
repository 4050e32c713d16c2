//! One proxy under attack: a hostile endpoint that follows the request's path, good clients that
//! were connected before, and the account of both.
//!
//! The good clients must notice only what the proxy does. So the proxy has processors of its own.
//! On the other processors, the attackers and their hostile endpoint (a Service of its own) give
//! way to the good clients and their endpoint.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ebbtide::command::demo::client::Client;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::hostile::alone::{Alone, alone};
use crate::hostile::idle::is_asleep;
use crate::hostile::listen::listen;
use crate::support::binary::BINARY;
use crate::support::folder::Ep;
use crate::support::manifests::service;
use crate::support::memory::own_bytes;
use crate::support::process::Process;
use crate::support::vitals::cpu;
use crate::support::wait::{eventually, soon};

/// The most memory that one hostile connection may cost.
const EACH: u64 = 64 << 10;
/// The same, where a body is kept for a replay: 64 KiB (`limits.replayBody` by default), and half
/// as much for everything else.
const WITH_KEPT_BODY: u64 = 96 << 10;
const GOOD: usize = 8;
/// How long the good clients are measured.
const WATCH: Duration = Duration::from_secs(2);
/// A pause between an attacker's writes. Without it, the attackers would measure how this machine
/// shares its processors, and not the proxy.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Siege {
    pub process: Process,
    /// Where attackers connect.
    pub gate: SocketAddr,
    pub pid: u32,
    name: &'static str,
    good: Good,
    /// How long good clients' requests take without an attack, measured before it and after it.
    calm: Vec<Duration>,
    /// The processor time that the proxy used for all of these.
    serving: Duration,
    before: u64,
    /// The bound for one hostile connection, in bytes.
    bound: u64,
    attackers: Crew,
    /// Bytes that the hostile endpoints have sent.
    poured: Arc<AtomicU64>,
    _well_behaved: Crew,
    _alone: Alone,
}

/// What was measured during the attack.
pub struct Seen {
    peak: u64,
    times: Vec<Duration>,
    cpu: f64,
}

/// The processors to run on: one half for the proxy, the other half for everything else. With only
/// one processor, all share it.
struct Cores {
    proxy: CpuSet,
    others: CpuSet,
}

impl Cores {
    fn split() -> Self {
        static ALL: std::sync::OnceLock<CpuSet> = std::sync::OnceLock::new();
        let all = *ALL.get_or_init(|| sched_getaffinity(None).unwrap());
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|core| all.is_set(*core))
            .collect();
        let (some, rest) = cores.split_at(cores.len() / 2);
        let set = |cores: &[usize]| {
            let mut set = CpuSet::new();
            cores.iter().for_each(|core| set.set(*core));
            if cores.is_empty() { all } else { set }
        };
        Self {
            proxy: set(some),
            others: set(rest),
        }
    }

    /// Restricts this thread, and all that it starts, to these processors.
    fn take(cores: &CpuSet) {
        sched_setaffinity(None, cores).unwrap();
    }
}

/// A thread with a runtime. Dropping this ends both.
struct Crew {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Crew {
    fn start() -> Self {
        Self::start_as(|| {})
    }

    /// This thread gives way to others immediately (sched(7), SCHED_IDLE). The highest nice value
    /// would not do: such a thread keeps a processor for the rest of its slice, which is 3 ms.
    fn start_idle() -> Self {
        Self::start_as(|| {
            let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
            let done = Command::new("chrt")
                .args(["--idle", "--pid", "0", &thread])
                .status();
            assert!(
                done.is_ok_and(|status| status.success()),
                "chrt (package util-linux) must be installed"
            );
        })
    }

    fn start_as(prepare: impl FnOnce() + Send + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (handle, (stop, stopped)) = (runtime.handle().clone(), oneshot::channel::<()>());
        std::thread::spawn(move || {
            prepare();
            let _ = runtime.block_on(stopped);
        });
        Self {
            handle,
            _stop: stop,
        }
    }
}

impl Siege {
    /// Starts the proxy with good clients and measures their baseline. `warm` opens hostile
    /// connections first, so that what is allocated only once is not counted.
    pub async fn start(
        name: &'static str,
        more: &str,
        warm: impl AsyncFn(SocketAddr, &Handle),
    ) -> Self {
        Self::start_as(BINARY.as_ref(), name, more, warm).await
    }

    /// Like [`Self::start`], with another build of the program.
    pub async fn start_as(
        program: &Path,
        name: &'static str,
        more: &str,
        warm: impl AsyncFn(SocketAddr, &Handle),
    ) -> Self {
        let alone = alone().await;
        let cores = Cores::split();
        Cores::take(&cores.others);
        let (well_behaved, attackers) = (Crew::start(), Crew::start_idle());
        let poured = Arc::new(AtomicU64::new(0));
        let start = async |crew: &Crew| {
            let poured = poured.clone();
            let app = crew
                .handle
                .spawn(listen(move |stream| serve(stream, poured.clone())));
            app.await.unwrap()
        };
        let (app, hostile) = (start(&well_behaved).await, start(&attackers).await);
        let text = format!(
            "discovery: {{files: {{path: manifests}}}}\n\
             listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: http}},\n\
             {{name: gate, address: '127.0.0.1:0', service: web/hostile, port: 80, protocol: http}},\n\
             {{name: void, address: '127.0.0.1:0', service: web/void, port: 80, protocol: http}}]\n\
             admin: {{address: '127.0.0.1:0'}}\nworkers: {}\n{more}\n",
            cores.proxy.count().max(1)
        );
        Cores::take(&cores.proxy);
        let listeners = ["web", "gate", "void"];
        let process = Process::launch(program, &[Ep::new("app", app)], &text, &listeners).await;
        Cores::take(&cores.others);
        add_hostile(&process, hostile).await;
        let (gate, pid) = (
            process.proxy.listeners["gate"],
            process.proxy.pid().unwrap(),
        );
        let mut good = Good::start(process.web());
        good.times(Duration::from_millis(300)).await;
        warm(gate, &attackers.handle).await;
        let mut siege = Self {
            process,
            gate,
            pid,
            name,
            good,
            calm: Vec::new(),
            serving: Duration::ZERO,
            before: 0,
            bound: EACH,
            attackers,
            poured,
            _well_behaved: well_behaved,
            _alone: alone,
        };
        siege.alone_again().await;
        siege.calm().await;
        siege.before = own_bytes(pid);
        siege
    }

    /// Sets the bound for attackers that make the proxy keep a body for a replay.
    pub fn with_kept_bodies(mut self) -> Self {
        self.bound = WITH_KEPT_BODY;
        self
    }

    /// Sets the bound for attackers that hold this many streams each, whose windows are all full.
    pub fn with_streams(mut self, streams: u64) -> Self {
        self.bound = EACH * streams;
        self
    }

    /// The thread that attackers run on.
    pub fn attackers(&self) -> &Handle {
        &self.attackers.handle
    }

    /// Waits until the kernel's buffers are full: no hostile endpoint can send more, although each
    /// had its turn, and the proxy sleeps. A proxy that has work but no processor does not sleep.
    pub async fn stuffed(&self) {
        self.still(1).await;
    }

    /// Waits until nothing moves any more, also if no hostile endpoint has anything to send.
    pub async fn settled(&self) {
        self.still(0).await;
    }

    /// Waits until the proxy sleeps and hostile endpoints send nothing more, after `least` bytes.
    async fn still(&self, least: u64) {
        let (mut last, mut still) = (0, 0);
        for _ in 0..60_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.attackers
                .handle
                .spawn(tokio::task::yield_now())
                .await
                .unwrap();
            let poured = self.poured.load(Ordering::Relaxed);
            still = if poured == last && is_asleep(self.pid) {
                still + 1
            } else {
                0
            };
            last = poured;
            if poured >= least && still == 50 {
                return;
            }
        }
        panic!("hostile endpoints can still send bytes: {last} so far");
    }

    /// Measures the good clients' requests without an attack, under the same observation as during
    /// one.
    async fn calm(&mut self) {
        let sampler = Sampler::start(self.pid);
        let before = cpu(self.pid);
        self.calm.extend(self.good.times(WATCH).await);
        self.serving += cpu(self.pid) - before;
        sampler.peak();
    }

    /// Measures during the attack: the good clients send requests, and the memory is sampled.
    pub async fn watch(&mut self) -> Seen {
        let sampler = Sampler::start(self.pid);
        let times = self.good.times(WATCH).await;
        // The good clients pause here, so the processor time is spent on the attack alone.
        let (before, begun) = (cpu(self.pid), Instant::now());
        tokio::time::sleep(WATCH).await;
        Seen {
            cpu: (cpu(self.pid) - before).as_secs_f64() / begun.elapsed().as_secs_f64(),
            peak: sampler.peak(),
            times,
        }
    }

    /// Ends the attack. Waits until the proxy has dropped the attackers' connections and serves a
    /// new connection. Then checks what was measured.
    pub async fn end<T>(mut self, hostile: Hostile<T>, seen: Seen) {
        self.over(hostile, seen).await;
    }

    /// Like [`Self::end`], for an attack that moves no bytes while it lasts. Then the proxy only
    /// looks now and then whether each client is still there. The unit is what a request of a good
    /// client costs, since a fast machine and a slow one use different shares of a processor. A
    /// proxy that does not sleep works for about 4,000 requests a second.
    pub async fn end_quiet<T>(mut self, hostile: Hostile<T>, seen: Seen) {
        let (name, cpu) = (self.name, seen.cpu);
        self.over(hostile, seen).await;
        let requests = cpu / self.a_request();
        assert!(
            requests < 1_000.0,
            "{name}: {:.0} % of a processor while nothing moves, as much as {requests:.0} requests a second cost",
            cpu * 100.0,
        );
    }

    /// The processor time that a request of a good client costs without an attack, in seconds.
    fn a_request(&self) -> f64 {
        self.serving.as_secs_f64() / self.calm.len() as f64
    }

    async fn over<T>(&mut self, mut hostile: Hostile<T>, seen: Seen) {
        let count = hostile.count as u64;
        hostile.tasks.shutdown().await;
        drop(hostile);
        let ended = Instant::now();
        self.alone_again().await;
        ok(
            &mut soon("a connection", Client::connect(self.process.web()))
                .await
                .unwrap(),
        )
        .await;
        let recovered = ended.elapsed();
        // The good clients have kept their connections.
        self.calm().await;
        let each = seen.peak.saturating_sub(self.before) / count;
        let (in_attack, without) = (p99(seen.times), p99(self.calm.clone()));
        println!(
            "FIGURE attack {}: {count} hostile connections, {:.1} KiB each at the peak; good clients' p99 {in_attack:.2} ms, without \
             {without:.2} ms ({:.1} x); {:.0} % of a processor, as for {:.0} requests/s; over after {:.2} s",
            self.name,
            each as f64 / 1024.0,
            in_attack / without,
            seen.cpu * 100.0,
            seen.cpu / self.a_request(),
            recovered.as_secs_f64()
        );
        assert!(
            each <= self.bound,
            "{}: each hostile connection costs {each} bytes",
            self.name
        );
    }

    /// Adds a Service without an endpoint, and returns its listener.
    pub async fn add_void(&self) -> SocketAddr {
        self.process
            .folder
            .write("void.json", &service("void", json!({})));
        eventually("the service without an endpoint", async || {
            let status = self.process.json("/api/v1/status").await;
            status["services"]
                .as_array()
                .unwrap()
                .iter()
                .any(|service| service["name"] == "void")
        })
        .await;
        self.process.proxy.listeners["void"]
    }

    async fn alone_again(&self) {
        eventually("only the good clients are left", async || {
            self.process
                .proxy
                .metric("ebbtide_connections_active", |_| true)
                .await
                .is_ok_and(|n| n <= GOOD as f64)
        })
        .await;
    }
}

/// Adds a Service for the attackers beside that of the good clients, and waits until its endpoint
/// is in rotation.
pub async fn add_hostile(process: &Process, address: SocketAddr) {
    process
        .folder
        .write("hostile.json", &service("hostile", json!({})));
    process.folder.write(
        "hostile-slice.json",
        &Ep::new("hostile", address).slice_of("hostile", ""),
    );
    process.ready(2).await;
}

/// Samples the memory of a process.
struct Sampler {
    done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Sampler {
    fn start(pid: u32) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    peak = own_bytes(pid).max(peak);
                    std::thread::sleep(Duration::from_millis(20));
                }
                peak
            }
        });
        Self { done, thread }
    }

    fn peak(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The attackers: connections that stay open, or tasks that run until they are dropped.
pub struct Hostile<T> {
    pub count: usize,
    pub standing: Vec<T>,
    pub tasks: JoinSet<()>,
}

impl<T> Hostile<T> {
    pub fn standing(standing: Vec<T>) -> Self {
        Self {
            count: standing.len(),
            standing,
            tasks: JoinSet::new(),
        }
    }
}

/// `count` attackers, each of which repeats `once`.
pub fn busy<F, Fut>(attackers: &Handle, count: usize, once: F) -> Hostile<()>
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = io::Result<()>> + Send,
{
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let once = once.clone();
        let attacker = async move {
            loop {
                // The proxy is expected to end the attacker's connection.
                let _ = once(number).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tasks.spawn_on(attacker, attackers);
    }
    Hostile {
        count,
        standing: Vec::new(),
        tasks,
    }
}

/// A connection with a receive buffer of 4 KiB.
pub async fn narrow(web: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    soon("a connection", socket.connect(web)).await.unwrap()
}

/// Sends the same bytes every [`PAUSE`] until the other side ends the connection, and reads
/// everything that arrives.
pub async fn pour(web: SocketAddr, head: &[u8], piece: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(web).await?;
    stream.write_all(head).await?;
    let (mut read, mut write) = stream.split();
    let reads = async {
        tokio::io::copy(&mut read, &mut tokio::io::sink())
            .await
            .map(|_| ())
    };
    let writes = async {
        if piece.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            write.write_all(piece).await?;
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! { over = reads => over, over = writes => over }
}

async fn ok(client: &mut Client) {
    assert_eq!(
        soon("a response", client.exchange("GET", "/ok", "", b""))
            .await
            .unwrap()
            .status,
        200
    );
}

/// Keep-alive clients on a thread of their own, so that they do not wait for the attackers' turns.
struct Good {
    ask: mpsc::Sender<Duration>,
    measured: mpsc::Receiver<Vec<Duration>>,
}

impl Good {
    fn start(web: SocketAddr) -> Self {
        let ((ask, mut wanted), (report, measured)) = (mpsc::channel(1), mpsc::channel(1));
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let mut clients = Vec::new();
                    for _ in 0..GOOD {
                        clients.push(Client::connect(web).await.unwrap());
                    }
                    while let Some(time) = wanted.recv().await {
                        let _ = report.send(requests(&mut clients, time).await).await;
                    }
                });
        });
        Self { ask, measured }
    }

    /// The time of each request that the good clients send within `time`.
    async fn times(&mut self, time: Duration) -> Vec<Duration> {
        self.ask.send(time).await.unwrap();
        self.measured
            .recv()
            .await
            .expect("a good client lost its connection, or got no answer")
    }
}

/// The clients send requests in turn, a millisecond apart. A time counts from the request sent to
/// the response read.
async fn requests(clients: &mut [Client], time: Duration) -> Vec<Duration> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        for client in clients.iter_mut() {
            let sent = Instant::now();
            ok(client).await;
            times.push(sent.elapsed());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    times
}

/// The p99 in milliseconds: the median of the p99s of five parts of the time. The host stops this
/// machine for a moment now and then, which spoils one or two parts.
fn p99(times: Vec<Duration>) -> f64 {
    let part = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() * 99 / 100]
    };
    let mut parts: Vec<Duration> = times.chunks(times.len().div_ceil(5)).map(part).collect();
    parts.sort();
    parts[parts.len() / 2].as_secs_f64() * 1e3
}

/// A hostile endpoint that follows the request's path.
async fn serve(mut stream: TcpStream, poured: Arc<AtomicU64>) {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut buf = Vec::new();
    loop {
        if let Some(end) = buf.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = buf.drain(..end + 4).collect();
            let path =
                String::from_utf8_lossy(head.split(|b| *b == b' ').nth(1).unwrap_or_default())
                    .into_owned();
            if path != "/ok" {
                let _ = misbehave(&mut stream, &path, &poured).await;
                return;
            }
            if stream.write_all(OK).await.is_err() {
                return;
            }
        } else if !matches!(stream.read_buf(&mut buf).await, Ok(1..)) {
            return;
        }
    }
}

async fn misbehave(stream: &mut TcpStream, path: &str, poured: &AtomicU64) -> io::Result<()> {
    if let Some(after) = path
        .strip_prefix("/die/")
        .and_then(|after| after.parse().ok())
    {
        return die(stream, after).await;
    }
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
    let (head, piece): (&[u8], Vec<u8>) = match path {
        // Reads nothing and sends nothing, until the connection fails.
        "/deaf" => {
            stream.ready(tokio::io::Interest::ERROR).await?;
            return Ok(());
        }
        "/silent" => {
            return tokio::io::copy(stream, &mut tokio::io::sink())
                .await
                .map(|_| ());
        }
        "/tunnel" => (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: any\r\n\r\n",
            vec![0; 64 << 10],
        ),
        "/big" => (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n",
            vec![0; 64 << 10],
        ),
        "/chunks" => (
            chunked,
            [b"10000\r\n".as_slice(), &[0; 64 << 10], b"\r\n"].concat(),
        ),
        "/tiny_chunks" => (chunked, b"1\r\nx\r\n".repeat(2_000)),
        "/interim" => (
            b"",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(200),
        ),
        "/trailers" => (
            chunked,
            b"0\r\n"
                .iter()
                .copied()
                .chain(b"X-Trailer: and one more\r\n".repeat(2_000))
                .collect(),
        ),
        _ => return Ok(()),
    };
    stream.write_all(head).await?;
    loop {
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let n = stream.write(rest).await?;
            poured.fetch_add(n as u64, Ordering::Relaxed);
            rest = &rest[n..];
        }
    }
}

/// Reads `after` bytes of a body, and then drops the connection.
async fn die(stream: &mut TcpStream, after: usize) -> io::Result<()> {
    tokio::io::copy(
        &mut (&mut *stream).take(after as u64),
        &mut tokio::io::sink(),
    )
    .await?;
    stream.set_zero_linger()
}

//! One proxy under attack: an endpoint that does as the path says, good clients that were there before, and the account.
//!
//! What the good clients notice is to be the proxy's doing. So it has processors of its own, and beside it the attackers and
//! their hostile endpoint, which is a service of its own, give way to the good clients and theirs.

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
use crate::support::process::Process;
use crate::support::vitals::{cpu, own_bytes};
use crate::support::wait::{eventually, soon};

/// What one hostile connection may cost at the most.
const EACH: u64 = 64 << 10;
/// The same where a body is kept for a replay: 64 KiB by default (`limits.replayBody`), and half as much for all else.
const WITH_KEPT_BODY: u64 = 96 << 10;
const GOOD: usize = 8;
/// For so long they are looked at.
const WATCH: Duration = Duration::from_secs(2);
/// Without it the attackers would measure who gets this machine's processors, rather than the proxy.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Siege {
    pub process: Process,
    /// Where attackers come in.
    pub gate: SocketAddr,
    pub pid: u32,
    name: &'static str,
    good: Good,
    /// What good clients' requests take without an attack: before it, and later after it, too.
    calm: Vec<Duration>,
    before: u64,
    /// Of one connection.
    bound: u64,
    mob: Crew,
    /// Bytes that hostile endpoints have got rid of.
    poured: Arc<AtomicU64>,
    _decent: Crew,
    _alone: Alone,
}

/// What was seen while the attack stood.
pub struct Seen {
    peak: u64,
    times: Vec<Duration>,
    cpu: f64,
}

/// The processors this may run on: a half for the proxy, the other for all that is around it. Where there is one only,
/// they share it.
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

    /// For this thread, and what it starts.
    fn take(cores: &CpuSet) {
        sched_setaffinity(None, cores).unwrap();
    }
}

/// A thread with a runtime; both end with it.
struct Crew {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Crew {
    fn muster() -> Self {
        Self::muster_as(|| {})
    }

    /// It gives way to others at once (sched(7), SCHED_IDLE). The nicest thread would not: it keeps a processor for the rest
    /// of its slice, which is 3 ms.
    fn muster_idle() -> Self {
        Self::muster_as(|| {
            let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
            let done = Command::new("chrt")
                .args(["--idle", "--pid", "0", &thread])
                .status();
            assert!(
                done.is_ok_and(|status| status.success()),
                "chrt, of util-linux, has to be there"
            );
        })
    }

    fn muster_as(prepare: impl FnOnce() + Send + 'static) -> Self {
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
    /// Starts the proxy with good clients, whose times are the baseline, and warms up what is allocated once by `warm` hostile
    /// connections.
    pub async fn lay(
        name: &'static str,
        more: &str,
        warm: impl AsyncFn(SocketAddr, &Handle),
    ) -> Self {
        Self::lay_as(BINARY.as_ref(), name, more, warm).await
    }

    /// As [`Self::lay`], another build of the program.
    pub async fn lay_as(
        program: &Path,
        name: &'static str,
        more: &str,
        warm: impl AsyncFn(SocketAddr, &Handle),
    ) -> Self {
        let alone = alone().await;
        let cores = Cores::split();
        Cores::take(&cores.others);
        let (decent, mob) = (Crew::muster(), Crew::muster_idle());
        let poured = Arc::new(AtomicU64::new(0));
        let start = async |crew: &Crew| {
            let poured = poured.clone();
            let app = crew
                .handle
                .spawn(listen(move |stream| serve(stream, poured.clone())));
            app.await.unwrap()
        };
        let (app, hostile) = (start(&decent).await, start(&mob).await);
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
        warm(gate, &mob.handle).await;
        let mut siege = Self {
            process,
            gate,
            pid,
            name,
            good,
            calm: Vec::new(),
            before: 0,
            bound: EACH,
            mob,
            poured,
            _decent: decent,
            _alone: alone,
        };
        siege.alone_again().await;
        siege.calm().await;
        siege.before = own_bytes(pid);
        siege
    }

    /// Each attacker has the proxy keep a body for a replay.
    pub fn with_kept_bodies(mut self) -> Self {
        self.bound = WITH_KEPT_BODY;
        self
    }

    /// The threads that attackers run on.
    pub fn mob(&self) -> &Handle {
        &self.mob.handle
    }

    /// Waits until the kernel's buffers are full: no hostile endpoint gets rid of any more, though each has had its turn, and
    /// the proxy sleeps, which it does not while it has something to do that it gets no processor for.
    pub async fn stuffed(&self) {
        let (mut last, mut still) = (0, 0);
        for _ in 0..60_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.mob
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
            if poured > 0 && still == 50 {
                return;
            }
        }
        panic!("hostile endpoints still get rid of bytes: {last} so far");
    }

    /// What the good clients' requests take now, under the same observation as in an attack.
    async fn calm(&mut self) {
        let sampler = Sampler::start(self.pid);
        self.calm.extend(self.good.times(WATCH).await);
        sampler.peak();
    }

    /// Looks on while the attack stands: the good clients go on, memory is sampled.
    pub async fn watch(&mut self) -> Seen {
        let sampler = Sampler::start(self.pid);
        let times = self.good.times(WATCH).await;
        // Without the good clients: what is spent now is spent on the attack alone.
        let (busy, begun) = (cpu(self.pid), Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cpu = (cpu(self.pid) - busy).as_secs_f64() / begun.elapsed().as_secs_f64();
        Seen {
            peak: sampler.peak(),
            times,
            cpu,
        }
    }

    /// `hostile` end it. Waits until they are forgotten and a newcomer is served, then judges what was seen.
    pub async fn lift<T>(mut self, mut hostile: Hostile<T>, seen: Seen) {
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
        // The good ones have noticed nothing that cost them their connection.
        self.calm().await;
        let each = seen.peak.saturating_sub(self.before) / count;
        let (in_attack, without) = (p99(seen.times), p99(self.calm));
        println!(
            "FIGURE attack {}: {count} hostile connections, {:.1} KiB each at the peak; good clients' p99 {in_attack:.2} ms, without \
             {without:.2} ms ({:.1} x); {:.0} % of a processor; over after {:.2} s",
            self.name,
            each as f64 / 1024.0,
            in_attack / without,
            seen.cpu * 100.0,
            recovered.as_secs_f64()
        );
        assert!(
            each <= self.bound,
            "{}: each hostile connection costs {each} bytes",
            self.name
        );
    }

    /// As [`Self::lift`], of an attack that moves nothing while it stands: then the proxy does not either.
    pub async fn lift_quiet<T>(self, hostile: Hostile<T>, seen: Seen) {
        let (name, cpu) = (self.name, seen.cpu);
        self.lift(hostile, seen).await;
        assert!(
            cpu < 0.1,
            "{name}: {:.0} % of a processor while nothing moves",
            cpu * 100.0
        );
    }

    /// The listener of a service that has no endpoint.
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

/// A service for attackers, beside the good clients' one, in rotation.
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

/// The attackers: connections that stand, or tasks that go on until dropped.
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

/// `count` attackers of the `mob`, each of which does `once` over and over.
pub fn busy<F, Fut>(mob: &Handle, count: usize, once: F) -> Hostile<()>
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = io::Result<()>> + Send,
{
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let once = once.clone();
        let attacker = async move {
            loop {
                // That the proxy ends it is what is expected.
                let _ = once(number).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tasks.spawn_on(attacker, mob);
    }
    Hostile {
        count,
        standing: Vec::new(),
        tasks,
    }
}

/// A connection that takes as little as it can.
pub async fn narrow(web: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    soon("a connection", socket.connect(web)).await.unwrap()
}

/// Sends the same bytes every [`PAUSE`] until the other side ends it, and reads whatever comes.
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
        soon("an answer", client.exchange("GET", "/ok", "", b""))
            .await
            .unwrap()
            .status,
        200
    );
}

/// Keep-alive clients on a thread of their own, so that they do not wait for the attackers' turns.
struct Good {
    ask: mpsc::Sender<Duration>,
    told: mpsc::Receiver<Vec<Duration>>,
}

impl Good {
    fn start(web: SocketAddr) -> Self {
        let ((ask, mut asked), (tell, told)) = (mpsc::channel(1), mpsc::channel(1));
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
                    while let Some(time) = asked.recv().await {
                        let _ = tell.send(requests(&mut clients, time).await).await;
                    }
                });
        });
        Self { ask, told }
    }

    /// What each of their requests took, for so long.
    async fn times(&mut self, time: Duration) -> Vec<Duration> {
        self.ask.send(time).await.unwrap();
        self.told
            .recv()
            .await
            .expect("a good client lost its connection, or got no answer")
    }
}

/// They ask in turn, a millisecond apart; from sent to answered.
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

/// In milliseconds: the median of the p99s of five parts of the time, since a host that stops this machine for a moment, and
/// again, spoils one or two of them.
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

/// An endpoint that does as the path says.
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
        // Takes nothing and says nothing, until the connection is of no more use.
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

/// Reads so much of a body, and then is no more.
async fn die(stream: &mut TcpStream, after: usize) -> io::Result<()> {
    tokio::io::copy(
        &mut (&mut *stream).take(after as u64),
        &mut tokio::io::sink(),
    )
    .await?;
    stream.set_zero_linger()
}

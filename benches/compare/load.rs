//! The load: one single-threaded process for each measurement. It gets a [`Spec`] and returns a
//! [`Report`].
//!
//! Closed loop: each client sends its next request when it has its response. Open loop (`rate`):
//! requests are due at a constant rate, spread over the clients. A latency counts from the moment
//! at which the request was due, so a stall counts for all requests that it delayed (no coordinated
//! omission).

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::backend::{content_length, discard};
use crate::guard;

/// A load to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The addresses that clients take in turn: one for a proxy, all endpoints without a proxy.
    pub to: Vec<SocketAddr>,
    /// The path of each request.
    pub path: String,
    /// The number of clients.
    pub clients: usize,
    /// The length in seconds.
    pub seconds: f64,
    /// Requests a second, of all clients together; none: closed loop.
    pub rate: Option<f64>,
    /// Bytes of the body of a POST; 0: GET.
    pub upload: u64,
    /// Whether each request opens a connection.
    pub fresh: bool,
    /// Whether each client does one exchange and is then idle until standard input ends.
    pub idle: bool,
}

/// The result of a load. Latencies are in microseconds.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Requests with a good response.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Connections that the server ended between two requests.
    pub reconnects: u64,
    /// Responses of endpoints that are slow on purpose. They are not among the latencies.
    pub slow: u64,
    /// Bytes of bodies in both directions.
    pub bytes: u64,
    /// The length in seconds.
    pub seconds: f64,
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The maximum.
    pub max: f64,
}

impl Spec {
    /// A closed loop of GET requests on connections that are kept.
    pub fn new(to: &[SocketAddr], path: &str, clients: usize, seconds: f64) -> Self {
        let path = path.to_owned();
        Self {
            to: to.to_vec(),
            path,
            clients,
            seconds,
            rate: None,
            upload: 0,
            fresh: false,
            idle: false,
        }
    }

    fn is_bulk(&self) -> bool {
        self.upload > 0 || self.path != "/1k"
    }
}

/// Runs a load to its end.
///
/// # Errors
/// The process fails or does not end in time.
pub fn run(cores: &[usize], spec: &Spec) -> anyhow::Result<Report> {
    let at_most = Duration::from_secs_f64(spec.seconds + 30.0);
    let arguments = [
        "load".to_owned(),
        guard::list(cores),
        serde_json::to_string(spec)?,
    ];
    let text = guard::run(cores, &std::env::current_exe()?, &arguments, at_most)?;
    serde_json::from_str(&text).with_context(|| format!("the load returned: {text}"))
}

/// A load that runs in the background.
pub struct Running(std::thread::JoinHandle<anyhow::Result<Report>>);

impl Running {
    /// Starts it.
    pub fn start(cores: &[usize], spec: &Spec) -> Self {
        let (cores, spec) = (cores.to_vec(), spec.clone());
        Self(std::thread::spawn(move || run(&cores, &spec)))
    }

    /// Waits for its end.
    pub fn finish(self) -> anyhow::Result<Report> {
        self.0
            .join()
            .map_err(|_| anyhow::anyhow!("the load's thread failed"))?
    }
}

/// Idle clients that have had one response. Dropping it closes their connections.
pub struct Idle(Child);

impl Idle {
    /// Opens the clients.
    pub fn open(cores: &[usize], to: &[SocketAddr], clients: usize) -> anyhow::Result<Self> {
        let spec = Spec {
            idle: true,
            ..Spec::new(to, "/1k", clients, 60.0)
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["load", &guard::list(cores), &serde_json::to_string(&spec)?]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("stdout")?;
        let idle = Self(child);
        BufReader::new(out).read_line(&mut line)?;
        if line.trim() != "idle" {
            bail!("{clients} clients could not be opened: {line}");
        }
        Ok(idle)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A load by wrk, on connections that are kept. The report has requests, failures and seconds only.
pub fn wrk(program: &Path, cores: &[usize], spec: &Spec) -> anyhow::Result<Report> {
    let to = spec.to.first().context("the load has no address")?;
    let seconds = spec.seconds.ceil().max(1.0);
    let threads = cores.len().min(spec.clients);
    let mut arguments = vec![
        format!("-t{threads}"),
        format!("-c{}", spec.clients),
        format!("-d{seconds}s"),
    ];
    arguments.extend([
        "--timeout".to_owned(),
        "10s".to_owned(),
        format!("http://{to}{}", spec.path),
    ]);
    let text = guard::run(
        cores,
        program,
        &arguments,
        Duration::from_secs_f64(seconds + 30.0),
    )?;
    // "123456 requests in 4.00s, 140.00MB read", "Socket errors: connect 0, read 0, …", "Non-2xx or
    // 3xx responses: 1"
    let line = text
        .lines()
        .find(|line| line.contains(" requests in "))
        .context("wrk")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let errors = text
        .lines()
        .filter(|line| line.contains("Socket errors:") || line.contains("Non-2xx"));
    let numbers = errors
        .flat_map(|line| line.split([' ', ',']))
        .filter_map(|word| word.parse::<u64>().ok());
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))
        .context("wrk")?
        .trim()
        .parse::<f64>()?;
    let requests = words.first().context("wrk")?.parse::<u64>()?;
    Ok(Report {
        requests,
        failed: numbers.sum(),
        seconds: requests as f64 / rate,
        ..Report::default()
    })
}

/// The process `load`.
pub fn main(cores: &[usize], spec: &str) -> anyhow::Result<()> {
    let spec: Spec = serde_json::from_str(spec)?;
    guard::pin(cores)?;
    ebbtide::net::socket::raise_descriptor_limit();
    let spec = Rc::new(spec);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        if spec.idle {
            return stay(&spec).await;
        }
        let tally = Rc::new(Tally::default());
        let beats: Rc<[Notify]> = (0..spec.clients).map(|_| Notify::new()).collect();
        let begun = Instant::now();
        if let Some(rate) = spec.rate {
            tokio::task::spawn_local(beat(timer(interval(rate))?, beats.clone()));
        }
        let end = begun + Duration::from_secs_f64(spec.seconds);
        let clients: Vec<_> = (0..spec.clients)
            .map(|n| {
                tokio::task::spawn_local(client(
                    spec.clone(),
                    n,
                    begun,
                    end,
                    tally.clone(),
                    beats.clone(),
                ))
            })
            .collect();
        // The load waits for responses that are under way at its end, for a bounded time.
        let patience = Duration::from_secs(8);
        for client in clients {
            if let Ok(joined) = tokio::time::timeout_at((end + patience).into(), client).await {
                joined?;
            }
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let report = tally.0.borrow().report(if spec.is_bulk() {
            elapsed
        } else {
            elapsed.min(spec.seconds)
        });
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    })
}

async fn stay(spec: &Rc<Spec>) -> anyhow::Result<()> {
    let mut clients = Vec::with_capacity(spec.clients);
    for n in 0..spec.clients {
        let mut connection = Connection::open(spec, n).await?;
        if !connection.exchange(&request(spec, n), 0).await?.ok {
            bail!("refused");
        }
        clients.push(connection);
    }
    println!("idle");
    std::io::stdout().flush()?;
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}

/// The time from one request to the next, in the whole nanoseconds of the timer. With a finer unit
/// the timer would gradually become early. A client that is woken before its request is due waits
/// for a whole turn of all clients.
fn interval(rate: f64) -> Duration {
    Duration::from_nanos((1e9 / rate) as u64)
}

/// A timer that fires for each request that is due. tokio's timers have a resolution of a
/// millisecond.
fn timer(interval: Duration) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )?;
    let step = Timespec {
        tv_sec: interval.as_secs().cast_signed(),
        tv_nsec: interval.subsec_nanos().into(),
    };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec {
            it_interval: step,
            it_value: step,
        },
    )?;
    // The replacement of this function is unsafe, because a type could change its descriptor. An
    // OwnedFd does not.
    #[allow(deprecated)]
    let timer = AsyncFd::new(timer)?;
    Ok(timer)
}

/// Wakes one client after the other, one for each request that is due.
async fn beat(timer: AsyncFd<OwnedFd>, clients: Rc<[Notify]>) {
    let mut next = 0;
    while let Ok(mut ready) = timer.readable().await {
        let mut count = [0; 8];
        match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return,
            Err(_would_block) => continue,
        }
        for _ in 0..u64::from_ne_bytes(count) {
            clients[next].notify_one();
            next = (next + 1) % clients.len();
        }
    }
}

async fn client(
    spec: Rc<Spec>,
    n: usize,
    begun: Instant,
    end: Instant,
    tally: Rc<Tally>,
    beats: Rc<[Notify]>,
) {
    let request = request(&spec, n);
    let interval = spec.rate.map(interval);
    let step = interval.map(|interval| interval * spec.clients as u32);
    let mut due = begun + interval.map_or(Duration::ZERO, |interval| interval * (n + 1) as u32);
    let mut connection = None;
    loop {
        while step.is_some() && due > Instant::now() {
            beats[n].notified().await;
        }
        if step.is_none() {
            due = Instant::now();
        }
        if due >= end || Instant::now() > end + Duration::from_secs(5) {
            return;
        }
        let answer = ask(&spec, n, &request, &mut connection, &tally).await;
        let now = Instant::now();
        match answer {
            // A large transfer counts as a whole, and the load then lasts until the last one ends.
            // Other responses after the end count for the latencies (open loop) but not for the
            // throughput.
            Ok(answer) if answer.ok => {
                if step.is_some() || now <= end || spec.is_bulk() {
                    tally.0.borrow_mut().take(
                        &answer,
                        spec.upload,
                        now.saturating_duration_since(due),
                    );
                }
            }
            _ => {
                tally.0.borrow_mut().failed += 1;
                connection = None;
                // The pause keeps a refused client from spinning.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        due += step.unwrap_or_default();
    }
}

async fn ask(
    spec: &Spec,
    n: usize,
    request: &[u8],
    connection: &mut Option<Connection>,
    tally: &Tally,
) -> std::io::Result<Answer> {
    if connection.as_ref().is_some_and(Connection::has_ended) {
        tally.0.borrow_mut().reconnects += 1;
        *connection = None;
    }
    if connection.is_none() {
        *connection = Some(Connection::open(spec, n).await?);
    }
    let Some(open) = connection else {
        return Err(std::io::ErrorKind::NotConnected.into());
    };
    let answer = tokio::time::timeout(PATIENCE, open.exchange(request, spec.upload)).await??;
    if spec.fresh {
        *connection = None;
    } else if answer.closes {
        tally.0.borrow_mut().reconnects += 1;
        *connection = None;
    }
    Ok(answer)
}

fn request(spec: &Spec, n: usize) -> Vec<u8> {
    let (path, host) = (&spec.path, spec.to[n % spec.to.len()]);
    match spec.upload {
        0 => format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
        n => format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {n}\r\n\r\n")
            .into_bytes(),
    }
}

struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

struct Answer {
    ok: bool,
    slow: bool,
    closes: bool,
    bytes: u64,
}

impl Connection {
    async fn open(spec: &Spec, n: usize) -> std::io::Result<Self> {
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(spec.to[n % spec.to.len()]))
            .await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            unread: Vec::new(),
        })
    }

    /// Whether the server has closed the connection while it was idle.
    fn has_ended(&self) -> bool {
        ebbtide::net::socket::has_ended(&self.stream)
    }

    async fn exchange(&mut self, request: &[u8], upload: u64) -> std::io::Result<Answer> {
        self.stream.write_all(request).await?;
        let mut left = upload;
        while left > 0 {
            let piece = left.min(PIECE.len() as u64);
            self.stream.write_all(&PIECE[..piece as usize]).await?;
            left -= piece;
        }
        let mut buf = [0; 4096];
        let head = loop {
            if let Some(at) = self
                .unread
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n")
            {
                break at + 4;
            }
            match self.stream.read(&mut buf).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => self.unread.extend_from_slice(&buf[..n]),
            }
        };
        let body = content_length(&self.unread[..head]);
        let ok = self.unread.starts_with(b"HTTP/1.1 200");
        let lower = self.unread[..head].to_ascii_lowercase();
        let closes = lower.windows(17).any(|bytes| bytes == b"connection: close");
        if lower
            .windows(18)
            .any(|bytes| bytes == b"transfer-encoding:")
        {
            return Err(std::io::Error::other(
                "the proxy changed Content-Length to chunked",
            ));
        }
        self.unread.drain(..head);
        if body <= SMALL {
            while (self.unread.len() as u64) < body {
                match self.stream.read(&mut buf).await? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    n => self.unread.extend_from_slice(&buf[..n]),
                }
            }
        }
        let here = (self.unread.len() as u64).min(body);
        let last = (here as usize)
            .checked_sub(1)
            .and_then(|at| self.unread.get(at));
        let slow = body <= SMALL && last == Some(&b's');
        self.unread.drain(..here as usize);
        discard(&self.stream, body - here).await?;
        Ok(Answer {
            ok,
            slow,
            closes,
            bytes: body,
        })
    }
}

#[derive(Default)]
struct Tally(RefCell<Counts>);

#[derive(Default)]
struct Counts {
    requests: u64,
    failed: u64,
    reconnects: u64,
    slow: u64,
    bytes: u64,
    latencies: Histogram,
}

impl Counts {
    fn take(&mut self, answer: &Answer, upload: u64, latency: Duration) {
        self.requests += 1;
        self.bytes += answer.bytes + upload;
        match answer.slow {
            true => self.slow += 1,
            false => self.latencies.record(latency),
        }
    }

    fn report(&self, seconds: f64) -> Report {
        Report {
            requests: self.requests,
            failed: self.failed,
            reconnects: self.reconnects,
            slow: self.slow,
            bytes: self.bytes,
            seconds,
            p50: self.latencies.quantile(0.5),
            p99: self.latencies.quantile(0.99),
            p999: self.latencies.quantile(0.999),
            max: self.latencies.quantile(1.0),
        }
    }
}

/// A histogram of nanoseconds. Each bucket is 1/128 of its value wide.
pub struct Histogram(Vec<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; 64 * 128])
    }
}

impl Histogram {
    /// Adds a value.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos())
            .unwrap_or(u64::MAX)
            .max(128);
        let power = nanos.ilog2() as usize;
        self.0[power * 128 + ((nanos >> (power - 7)) as usize - 128)] += 1;
    }

    /// A quantile in microseconds; 0 if there is no value.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = (self.0.iter().sum::<u64>() as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.0.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                let (power, step) = (at / 128, at % 128);
                return (128 + step) as f64 * f64::powi(2.0, power as i32 - 7) / 1000.0;
            }
        }
        0.0
    }
}

/// A request without a response in this time has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bodies up to this many bytes are read, larger ones are discarded in the kernel.
const SMALL: u64 = 64 << 10;
static PIECE: [u8; 256 << 10] = [b'u'; 256 << 10];

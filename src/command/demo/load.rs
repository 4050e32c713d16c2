//! Load at a constant rate on keep-alive connections, and an exact count of what happened to it.
//!
//! Open loop: request *i* is due at `i / rate`, independent of the requests before it, and belongs
//! to client `i % clients`. Latency counts from the due time, so a stall counts for every request
//! that it delayed (no coordinated omission). It includes the timer's own millisecond. Nothing is
//! retried: a request that fails is one failure. Each TCP connection that is opened is counted. A
//! connection that the server has closed is not used again, as in any careful client.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::command::demo::client::{Client, Failure, Response};
use crate::command::demo::timeline::Timeline;
use crate::config::value;

/// The load to send. [`Load::new`] gives the common case; its fields can be changed.
#[derive(Debug, Clone)]
pub struct Load {
    /// The address to which all clients connect.
    pub target: SocketAddr,
    /// The number of clients.
    pub clients: usize,
    /// Requests a second, of all clients together.
    pub rate: f64,
    /// The time in which requests are due: `rate * duration` requests in all.
    pub duration: Duration,
    /// The method of each request.
    pub method: &'static str,
    /// The path of each request, with its query.
    pub path: String,
    /// The body of each request.
    pub body: Vec<u8>,
    /// Whether clients keep their connections. If not, each request opens one.
    pub keep_alive: bool,
    /// How long one request with its connect may take.
    pub timeout: Duration,
    /// Whether the different bodies of good responses are counted (the first [`BODIES`] of them).
    pub by_body: bool,
    /// Whether [`Report::timeline`] is filled. The body of each good response is its version then.
    pub by_second: bool,
}

/// The counts while the load runs.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The time since the load began.
    pub elapsed: Duration,
    /// Requests sent, or whose connect began.
    pub sent: u64,
    /// Good responses, as in [`Report::ok`].
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// TCP connections opened.
    pub sockets: u64,
}

/// The result of a load. `sent == ok + failed`, unless some requests were never sent; those are
/// failures, too.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests sent, or whose connect began.
    pub sent: u64,
    /// Requests with a whole response and a status below 400.
    pub ok: u64,
    /// Requests that failed or were never sent.
    pub failed: u64,
    /// Failures by kind: the kinds of [`Failure`], `status 503` and so on, and `not sent` for a
    /// request that still waited for its client one timeout after the end.
    pub errors: BTreeMap<String, u64>,
    /// The first [`LOSSES`] failures.
    pub losses: Vec<Loss>,
    /// TCP connections opened.
    pub sockets: u64,
    /// Times of good responses, from the moment at which the request was due.
    pub latency: Times,
    /// Times of good responses, from the moment at which the request was sent, or its connect
    /// began.
    pub service: Times,
    /// The longest time in which no client got a good response.
    pub longest_stall: Duration,
    /// Good responses by body, if [`Load::by_body`] is set.
    pub by_body: BTreeMap<String, u64>,
    /// What happened in each second, if [`Load::by_second`] is set.
    pub timeline: Timeline,
}

/// One failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// When the request was due, counted from the start of the load.
    pub due: Duration,
    /// How long after that the request failed.
    pub after: Duration,
    /// How the request failed, as in [`Report::errors`].
    pub error: String,
}

/// Percentiles, exact to one percent. The maximum is exact to a microsecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The maximum.
    pub max: Duration,
}

impl Load {
    /// Eight keep-alive clients that send 500 GET requests a second.
    pub fn new(target: SocketAddr, path: impl Into<String>, duration: Duration) -> Self {
        Self {
            target,
            clients: CLIENTS as usize,
            rate: 500.0,
            duration,
            method: "GET",
            path: path.into(),
            body: Vec::new(),
            keep_alive: true,
            timeout: Duration::from_secs(30),
            by_body: false,
            by_second: false,
        }
    }

    /// Sends all requests, or those that are due before `stop`. Requests in flight at `stop` still
    /// get their responses. `progress` is called ten times a second. Dropping the future ends the
    /// load immediately.
    pub async fn run(&self, stop: &CancellationToken, progress: impl Fn(Snapshot)) -> Report {
        let start = Instant::now();
        let tally = Arc::new(Tally {
            start,
            inner: Mutex::new(Inner::new(start, self.by_second)),
        });
        let mut clients = JoinSet::new();
        for index in 0..self.clients {
            clients.spawn(run_client(
                self.clone(),
                index as u64,
                tally.clone(),
                stop.clone(),
            ));
        }
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                ended = clients.join_next() => if ended.is_none() { break },
                _ = tick.tick() => progress(tally.snapshot()),
            }
        }
        progress(tally.snapshot());
        tally.report(
            stop.is_cancelled()
                .then(Instant::now)
                .unwrap_or(start + self.duration),
        )
    }

    fn total(&self) -> u64 {
        (self.rate * self.duration.as_secs_f64()).round() as u64
    }
}

/// One client: its requests in order.
async fn run_client(load: Load, index: u64, tally: Arc<Tally>, stop: CancellationToken) {
    let end = tally.start + load.duration + load.timeout;
    let mut connection: Option<Client> = None;
    for number in (index..load.total()).step_by(load.clients) {
        let due = tally.start + Duration::from_secs_f64(number as f64 / load.rate);
        loop {
            let ended = async {
                match &connection {
                    Some(client) => client.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = ended => connection = None,
                () = sleep_until(due) => break,
            }
        }
        let began = Instant::now();
        if began > end {
            tally.failed(due, "not sent".into());
            continue;
        }
        tally.lock().counts.sent += 1;
        let answer = timeout(load.timeout, request(&load, connection.take(), &tally)).await;
        match answer.unwrap_or(Err(Failure::Timeout)) {
            Ok((kept, response)) => {
                connection = kept;
                match response.status {
                    ..400 => tally.answered(due, began, &response.body, load.by_body),
                    status => tally.failed(due, format!("status {status}")),
                }
            }
            Err(failure) => tally.failed(due, failure.to_string()),
        }
    }
}

/// One request, on the given connection or on a new one. Returns the connection if it may be used
/// again.
async fn request(
    load: &Load,
    connection: Option<Client>,
    tally: &Tally,
) -> Result<(Option<Client>, Response), Failure> {
    let mut client = match connection {
        Some(client) => client,
        None => {
            let connected = Client::connect(load.target).await;
            if matches!(connected, Ok(_) | Err(Failure::Reset)) {
                tally.lock().counts.sockets += 1;
            }
            connected?
        }
    };
    let headers = if load.keep_alive {
        ""
    } else {
        "Connection: close\r\n"
    };
    let response = client
        .exchange(load.method, &load.path, headers, &load.body)
        .await?;
    Ok((
        (response.keep_alive && load.keep_alive).then_some(client),
        response,
    ))
}

struct Tally {
    start: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    counts: Snapshot,
    errors: BTreeMap<String, u64>,
    losses: Vec<Loss>,
    latency: Histogram,
    service: Histogram,
    last_answer: Instant,
    longest_stall: Duration,
    by_body: BTreeMap<String, u64>,
    timeline: Option<Timeline>,
}

impl Tally {
    fn answered(&self, due: Instant, began: Instant, body: &[u8], by_body: bool) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.counts.ok += 1;
        let latency = now.saturating_duration_since(due);
        inner.latency.add(latency);
        if let Some(timeline) = &mut inner.timeline {
            timeline.answered(now - self.start, latency, body);
        }
        inner.service.add(now - began);
        inner.no_answer_until(now);
        inner.last_answer = now;
        if by_body {
            let body = String::from_utf8_lossy(body).trim().to_owned();
            if inner.by_body.len() < BODIES || inner.by_body.contains_key(&body) {
                *inner.by_body.entry(body).or_default() += 1;
            }
        }
    }

    fn failed(&self, due: Instant, error: String) {
        let mut inner = self.lock();
        inner.counts.failed += 1;
        if let Some(timeline) = &mut inner.timeline {
            timeline.failed(self.start.elapsed());
        }
        *inner.errors.entry(error.clone()).or_default() += 1;
        if inner.losses.len() < LOSSES {
            inner.losses.push(Loss {
                due: due - self.start,
                after: due.elapsed(),
                error,
            });
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            elapsed: self.start.elapsed(),
            ..self.lock().counts.clone()
        }
    }

    fn report(&self, end: Instant) -> Report {
        let mut inner = self.lock();
        inner.no_answer_until(end);
        let mut timeline = inner.timeline.clone().unwrap_or_default();
        timeline.close();
        Report {
            timeline,
            sent: inner.counts.sent,
            ok: inner.counts.ok,
            failed: inner.counts.failed,
            errors: inner.errors.clone(),
            losses: inner.losses.clone(),
            sockets: inner.counts.sockets,
            latency: inner.latency.times(),
            service: inner.service.times(),
            longest_stall: inner.longest_stall,
            by_body: inner.by_body.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new(start: Instant, by_second: bool) -> Self {
        Self {
            counts: Snapshot::default(),
            errors: BTreeMap::new(),
            losses: Vec::new(),
            latency: Histogram::default(),
            service: Histogram::default(),
            last_answer: start,
            longest_stall: Duration::ZERO,
            by_body: BTreeMap::new(),
            timeline: by_second.then(Timeline::default),
        }
    }

    fn no_answer_until(&mut self, now: Instant) {
        self.longest_stall = self
            .longest_stall
            .max(now.saturating_duration_since(self.last_answer));
    }
}

impl fmt::Display for Report {
    /// One line, for the message of a test that fails.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            ok,
            failed,
            sockets,
            longest_stall,
            latency,
            errors,
            ..
        } = self;
        write!(
            f,
            "{sent} sent, {ok} ok, {failed} failed, {sockets} sockets, longest stall {longest_stall:.0?}, "
        )?;
        write!(
            f,
            "p99 {:.1?}, errors {errors:?}, first losses {:?}",
            latency.p99, &self.losses
        )
    }
}

/// Counts in buckets, each one percent wide. 2,500 buckets hold 1 us to 10 h, so the memory does
/// not grow with the load.
#[derive(Default)]
struct Histogram {
    buckets: Vec<u64>,
    max: Duration,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let micros = time.as_secs_f64() * 1e6;
        let bucket = (micros.max(1.0).ln() / STEP.ln()) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.max = self.max.max(time);
    }

    fn times(&self) -> Times {
        Times {
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
            max: self.max,
        }
    }

    /// The upper edge of the bucket that holds the quantile, but never more than the maximum.
    fn quantile(&self, q: f64) -> Duration {
        let rank = (self.buckets.iter().sum::<u64>() as f64 * q).ceil() as u64;
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        });
        match bucket {
            Some(bucket) if rank > 0 => {
                Duration::from_secs_f64(STEP.powf(bucket as f64 + 1.0) / 1e6).min(self.max)
            }
            _ => Duration::ZERO,
        }
    }
}

/// A load's length, parsed as a command line gives it: 1 s to 1 h.
///
/// # Errors
/// The text is no duration in this range. The error says what was expected.
pub fn load_time(text: &str) -> Result<Duration, String> {
    value::duration(text, Duration::from_secs(1)..=Duration::from_secs(3600))
}

/// The clients of [`Load::new`].
pub(crate) const CLIENTS: u64 = 8;
/// The number of different bodies that are counted.
pub const BODIES: usize = 64;
/// The number of failures that are recorded one by one.
pub const LOSSES: usize = 100;
const TICK: Duration = Duration::from_millis(100);
/// The ratio of a bucket's upper edge to its lower edge.
const STEP: f64 = 1.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_one_percent_and_the_maximum_exactly() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.times(), Times::default());
        for micros in 1..=10_000 {
            histogram.add(Duration::from_micros(micros));
        }
        let Times { p50, p99, max } = histogram.times();
        let within =
            |time: Duration, micros: f64| (time.as_secs_f64() * 1e6 / micros - 1.0).abs() <= 0.011;
        assert!(within(p50, 5_000.0), "{p50:?}");
        assert!(within(p99, 9_900.0), "{p99:?}");
        assert_eq!(max, Duration::from_millis(10));
    }
}

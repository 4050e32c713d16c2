//! What the process writes: its log to stderr, the access log to stdout, and one line per finished drain.
//!
//! Invariant: no worker ever waits for a reader. The access log goes through a bounded queue to a thread of its own, and
//! a line that finds it full is dropped and counted. Log lines are few (per event, never per request) and written in
//! place.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use serde::{Serialize, Serializer};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::{FormatFields, format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::contract::name::PortKey;
use crate::drain;
use crate::rollout::Rollout;
use crate::text::one_line;

/// Starts the log: to stderr, human on a terminal and JSON otherwise, at the level of `EBBTIDE_LOG` (tracing's filter
/// syntax, e.g. `debug` or `info,ebbtide::discovery=trace`; default `info`). Without effect where a log was started before.
pub fn init() {
    let wanted = std::env::var(LEVEL_VARIABLE).ok().filter(|text| !text.trim().is_empty());
    let (filter, refused) = filter(wanted.as_deref());
    let terminal = io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer();
    let started = if terminal {
        // https://no-color.org
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let layer = layer.fmt_fields(human_fields()).with_writer(io::stderr);
        registry.with(layer.with_target(false).with_ansi(colour)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true).with_writer(|| JsonLines(io::stderr()))).try_init()
    };
    if let (Ok(()), Some(error)) = (started, refused) {
        tracing::warn!(%error, "{LEVEL_VARIABLE} is not a log filter such as `debug` or `info,ebbtide=trace`: using info");
    }
}

const LEVEL_VARIABLE: &str = "EBBTIDE_LOG";

/// The filter, and why the wanted one was refused.
fn filter(wanted: Option<&str>) -> (EnvFilter, Option<String>) {
    match wanted.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new("info"), Some(error.to_string())),
        None => (EnvFilter::new("info"), None),
    }
}

/// The fields of an event on a terminal. The library's own way leaves line feeds, and of `%` fields every control character.
fn human_fields() -> impl for<'w> FormatFields<'w> + 'static {
    let write = |to: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = one_line(&format!("{value:?}"));
        if field.name() == "message" { write!(to, "{value}") } else { write!(to, "{field}={value}") }
    };
    format::debug_fn(write).delimited(" ")
}

/// Where JSON goes, each event in one piece: it escapes neither DEL nor what is a terminal's beyond ASCII.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(String::from_utf8_lossy(event).trim_end_matches('\n'));
        self.0.write_all((line + "\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The one line of a finished drain: who, why, how long, and what became of what was in flight.
pub fn drain_receipt(record: &drain::Record, took: Duration) {
    let outcome = record.ended.map_or("running", |(_, outcome)| outcome.as_str());
    tracing::info!(
        service = %record.service,
        address = %record.address,
        pod = record.pod.as_deref(),
        trigger = record.trigger.as_str(),
        outcome,
        took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        finished = record.finished,
        replayed = record.replayed,
        forced = record.forced,
        idle_closed = record.idle_closed,
        "endpoint {outcome}"
    );
}

/// The one line of a rollout that is over.
pub fn rollout_receipt(rollout: &Rollout) {
    tracing::info!(
        service = %rollout.service,
        pods_gone = rollout.pods_gone,
        pods_come = rollout.pods_come,
        took_ms = u64::try_from(rollout.took.as_millis()).unwrap_or(u64::MAX),
        requests = rollout.requests,
        failures = rollout.failures,
        replayed = rollout.replayed,
        held = rollout.held,
        forced = rollout.forced,
        connections_kept = rollout.connections_kept,
        connections_lost = rollout.connections_lost,
        "rollout over"
    );
}

/// One exchange, or one TCP connection (then `method`, `target` and `status` are `None`).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessEntry<'a> {
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    pub peer: SocketAddr,
    pub listener: &'a str,
    #[serde(serialize_with = "display")]
    pub service: &'a PortKey,
    #[serde(serialize_with = "text")]
    pub method: Option<&'a [u8]>,
    #[serde(serialize_with = "text")]
    pub target: Option<&'a [u8]>,
    pub status: Option<u16>,
    /// To the client, heads included.
    pub bytes_sent: u64,
    #[serde(rename = "durationMs", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// The last endpoint that was tried.
    pub endpoint: Option<SocketAddr>,
    pub attempts: u32,
    /// Of Ebbtide's own answers (`x-ebbtide-reason`) and of connections that ended early.
    pub reason: Option<&'a str>,
}

/// Appends the entry as one JSON object and a line feed. Bytes that are not UTF-8 become U+FFFD; nothing an entry holds
/// can end the line or the string it stands in.
pub fn access_log_line(entry: &AccessEntry<'_>, line: &mut Vec<u8>) {
    let start = line.len();
    match serde_json::to_writer(&mut *line, entry) {
        Ok(()) => line.push(b'\n'),
        // Not reachable: the keys are strings and a Vec takes every byte.
        Err(_) => line.truncate(start),
    }
}

/// The workers' end of the access log: cheap to clone, never waits.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: mpsc::SyncSender<Vec<u8>>,
    dropped: IntCounter,
}

/// The writing thread: ends when every [`AccessLog`] has been dropped and what was queued is written.
#[derive(Debug)]
pub struct AccessLogWriter(mpsc::Receiver<()>);

/// Lines that may wait to be written: some megabytes, and about a second at full load.
const QUEUED_LINES: usize = 16 * 1024;

impl AccessLog {
    /// Starts the writing thread. `dropped` counts the lines that found the queue full or the output broken.
    ///
    /// # Errors
    /// Only where the thread cannot be started.
    pub fn start(output: impl Write + Send + 'static, dropped: IntCounter) -> io::Result<(Self, AccessLogWriter)> {
        let (lines, queue) = mpsc::sync_channel(QUEUED_LINES);
        let (done, finished) = mpsc::channel();
        let lost = dropped.clone();
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            write_lines(output, &queue, &lost);
            drop(done);
        })?;
        Ok((Self { lines, dropped }, AccessLogWriter(finished)))
    }

    pub fn write(&self, entry: &AccessEntry<'_>) {
        let mut line = Vec::with_capacity(320);
        access_log_line(entry, &mut line);
        if self.lines.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

impl AccessLogWriter {
    /// Waits until the thread has written everything, at most `patience` (stdout may be a pipe that nobody reads).
    /// Answers whether it has.
    pub fn finish(self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

/// Writes whatever waits, in one piece, until every sender is gone. A piece that cannot be written is counted as dropped
/// and the next one tried; the first failure is logged.
fn write_lines(mut output: impl Write, queue: &mpsc::Receiver<Vec<u8>>, dropped: &IntCounter) {
    let mut failed = false;
    while let Ok(mut piece) = queue.recv() {
        let mut lines = 1;
        while piece.len() < PIECE
            && let Ok(line) = queue.try_recv()
        {
            piece.extend_from_slice(&line);
            lines += 1;
        }
        if let Err(error) = output.write_all(&piece).and_then(|()| output.flush()) {
            dropped.inc_by(lines);
            if !std::mem::replace(&mut failed, true) {
                tracing::error!(%error, "the access log cannot be written; its lines are dropped and counted");
            }
        }
    }
}

/// Bytes written at once, about.
const PIECE: usize = 64 << 10;

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    crate::text::timestamp(*time).serialize(serializer)
}

fn display<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn text<S: Serializer>(bytes: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.map(String::from_utf8_lossy).serialize(serializer)
}

/// Milliseconds, to the microsecond.
fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::contract::name::ObjectName;
    use crate::contract::reason::Trigger;

    fn service() -> PortKey {
        PortKey { service: ObjectName::new("web", "shop"), port: 80 }
    }

    fn entry<'a>(service: &'a PortKey, target: &'a [u8]) -> AccessEntry<'a> {
        AccessEntry {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            peer: "[2001:db8::1]:4711".parse().unwrap(),
            listener: "web",
            service,
            method: Some(b"GET"),
            target: Some(target),
            status: Some(200),
            bytes_sent: 512,
            duration: Duration::from_micros(1_234),
            endpoint: Some("10.0.0.1:8080".parse().unwrap()),
            attempts: 2,
            reason: None,
        }
    }

    #[test]
    fn an_entry_is_one_line_of_json() {
        let service = service();
        let mut line = b"before\n".to_vec();
        access_log_line(&entry(&service, b"/a?b=c"), &mut line);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                "before\n",
                r#"{"time":"2023-11-14T22:13:20.123Z","peer":"[2001:db8::1]:4711","listener":"web","#,
                r#""service":"web/shop:80","method":"GET","target":"/a?b=c","status":200,"bytesSent":512,"#,
                r#""durationMs":1.234,"endpoint":"10.0.0.1:8080","attempts":2,"reason":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn no_byte_of_a_target_can_leave_its_string() {
        let service = service();
        let target: Vec<u8> = (0..=255).collect();
        let mut line = Vec::new();
        access_log_line(&entry(&service, &target), &mut line);
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1, "one line");
        assert!(line.iter().all(|&b| b >= b' ' || b == b'\n'), "no control character");
        let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(read["target"], String::from_utf8_lossy(&target).as_ref());
        assert_eq!(read["attempts"], 2, "what follows the target is intact");
    }

    #[test]
    fn a_tcp_connection_has_no_method() {
        let service = service();
        let mut line = Vec::new();
        access_log_line(&AccessEntry { method: None, target: None, status: None, ..entry(&service, b"") }, &mut line);
        let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert!(read["method"].is_null() && read["target"].is_null() && read["status"].is_null(), "{read}");
    }

    /// Collects what is written once its gate is open.
    #[derive(Clone)]
    struct Output {
        gate: Arc<Mutex<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        broken: bool,
    }

    impl Output {
        fn new(broken: bool) -> Self {
            Self { gate: Arc::default(), written: Arc::default(), broken }
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            if self.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_never_time() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let output = Output::new(false);
        let (log, writer) = AccessLog::start(output.clone(), dropped.clone()).unwrap();
        let service = service();
        let sent = QUEUED_LINES as u64 * 2;
        {
            let _closed = output.gate.lock().unwrap();
            for _ in 0..sent {
                log.write(&entry(&service, b"/"));
            }
            assert!(dropped.get() > 0);
        }
        drop(log);
        assert!(writer.finish(Duration::from_secs(60)), "all of the queue is written at the end");
        let lines = output.written.lock().unwrap().iter().filter(|&&b| b == b'\n').count() as u64;
        assert_eq!(lines + dropped.get(), sent, "written or counted as dropped");
        assert!(lines >= QUEUED_LINES as u64);
    }

    #[test]
    fn a_broken_output_is_counted_too() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let (log, writer) = AccessLog::start(Output::new(true), dropped.clone()).unwrap();
        for _ in 0..100 {
            log.write(&entry(&service(), b"/"));
        }
        drop(log);
        assert!(writer.finish(Duration::from_secs(60)));
        assert_eq!(dropped.get(), 100);
    }

    #[test]
    fn a_bad_filter_falls_back_to_info() {
        assert_eq!(filter(None).0.to_string(), "info");
        assert_eq!(filter(Some("debug")).0.to_string(), "debug");
        let (used, refused) = filter(Some("ebbtide=loudly"));
        assert_eq!(used.to_string(), "info");
        assert!(refused.is_some());
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let hostile = "a\r\nlevel=ERROR forged\0\t\x1b[31m\x7f\u{85}\u{9b}31m";
        for json in [false, true] {
            let output = Output::new(false);
            let writer = output.clone();
            let layer = tracing_subscriber::fmt::layer();
            let log = || {
                tracing::warn!(subject = hostile, error = %hostile, "{hostile}");
                tracing::info!("next");
            };
            let registry = tracing_subscriber::registry();
            if json {
                let layer = layer.json().flatten_event(true).with_writer(move || JsonLines(writer.clone()));
                tracing::subscriber::with_default(registry.with(layer), log);
            } else {
                let layer = layer.fmt_fields(human_fields()).with_ansi(false).with_writer(move || writer.clone());
                tracing::subscriber::with_default(registry.with(layer), log);
            }
            let text = String::from_utf8(output.written.lock().unwrap().clone()).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.len() == 2 && lines[0].contains("forged") && lines[1].contains("next"), "{text:?}");
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        }
    }

    #[test]
    fn a_receipt_is_one_line_with_its_fields() {
        let output = Output::new(false);
        let writer = output.clone();
        let subscriber = tracing_subscriber::registry()
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(move || writer.clone()));
        let record = drain::Record {
            service: service(),
            address: "10.0.0.1:8080".parse().unwrap(),
            pod: Some("shop-1".into()),
            started_at: SystemTime::now(),
            trigger: Trigger::PodDeleted,
            deadline: None,
            in_flight: 0,
            ended: Some((SystemTime::now(), crate::contract::reason::Outcome::Forced)),
            finished: 7,
            replayed: 2,
            forced: 1,
            idle_closed: 4,
        };
        tracing::subscriber::with_default(subscriber, || drain_receipt(&record, Duration::from_millis(1_500)));
        let written = output.written.lock().unwrap().clone();
        assert_eq!(written.iter().filter(|&&b| b == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&written).unwrap();
        for (field, value) in [
            ("service", serde_json::json!("web/shop:80")),
            ("address", "10.0.0.1:8080".into()),
            ("pod", "shop-1".into()),
            ("trigger", "podDeleted".into()),
            ("outcome", "forced".into()),
            ("took_ms", 1_500.into()),
            ("finished", 7.into()),
            ("replayed", 2.into()),
            ("forced", 1.into()),
            ("idle_closed", 4.into()),
            ("level", "INFO".into()),
        ] {
            assert_eq!(line[field], value, "{field} in {line}");
        }
    }
}

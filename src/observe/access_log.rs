//! The access log: one line for each HTTP exchange and each TCP connection, on standard output.
//!
//! Invariant: no worker waits for a reader. Lines go through a bounded queue to a thread of their
//! own. A line that finds the queue full is dropped and counted. Which exchanges get no line is in
//! docs/reference.md, "Access log".

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use serde::{Serialize, Serializer};

use crate::contract::name::PortKey;

/// One HTTP exchange or one TCP connection. For a TCP connection `method`, `target` and `status`
/// are `None`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessEntry<'a> {
    /// When the exchange or connection ended.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// The client, or the client that a trusted PROXY header names.
    pub peer: SocketAddr,
    /// The listener's name.
    pub listener: &'a str,
    /// The Service port, as `namespace/name:port`.
    #[serde(serialize_with = "display")]
    pub service: &'a PortKey,
    /// The request's method.
    #[serde(serialize_with = "text")]
    pub method: Option<&'a [u8]>,
    /// The request's target as the client sent it.
    #[serde(serialize_with = "text")]
    pub target: Option<&'a [u8]>,
    /// The status of the response that the client got.
    pub status: Option<u16>,
    /// Bytes to the client, heads included.
    pub bytes_sent: u64,
    /// How long the exchange or connection took. Written as milliseconds, to the microsecond.
    #[serde(rename = "durationMs", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// The last endpoint that was tried.
    pub endpoint: Option<SocketAddr>,
    /// How often the request was sent; 1 for a TCP connection.
    pub attempts: u32,
    /// The `x-ebbtide-reason` of Ebbtide's own response, or the close reason of a connection that
    /// ended early.
    pub reason: Option<&'a str>,
}

/// Appends the entry as one JSON object and a line feed. Bytes that are not UTF-8 become U+FFFD. No
/// content of an entry can end the line or its JSON string.
pub fn access_log_line(entry: &AccessEntry<'_>, line: &mut Vec<u8>) {
    let start = line.len();
    match serde_json::to_writer(&mut *line, entry) {
        Ok(()) => line.push(b'\n'),
        // Not reachable: the keys are strings and a `Vec` accepts every byte.
        Err(_) => line.truncate(start),
    }
}

/// The workers' end of the access log. It is cheap to clone and never waits.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: mpsc::SyncSender<Vec<u8>>,
    dropped: IntCounter,
}

/// The writing thread. It ends when every [`AccessLog`] has been dropped and the queue is written.
#[derive(Debug)]
pub struct AccessLogWriter(mpsc::Receiver<()>);

/// Lines that may wait to be written: some megabytes, or about a second at full load.
const QUEUED_LINES: usize = 16 * 1024;

impl AccessLog {
    /// Starts the writing thread. `dropped` counts the lines that found the queue full or the
    /// output broken.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        output: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> io::Result<(Self, AccessLogWriter)> {
        let (lines, queue) = mpsc::sync_channel(QUEUED_LINES);
        let (done, finished) = mpsc::channel();
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                write_lines(output, &queue, &lost);
                drop(done);
            })?;
        Ok((Self { lines, dropped }, AccessLogWriter(finished)))
    }

    /// Queues a line for the entry. A full queue drops the line and counts it.
    pub fn write(&self, entry: &AccessEntry<'_>) {
        let mut line = Vec::with_capacity(320);
        access_log_line(entry, &mut line);
        if self.lines.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

impl AccessLogWriter {
    /// Waits until the thread has written everything, at most for `patience`, because standard
    /// output may be a pipe that nobody reads. Returns whether everything is written.
    pub fn finish(self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

/// Writes the queued lines in pieces, until every sender is gone. A piece that cannot be written is
/// counted as dropped, and the next piece is tried. Only the first failure is logged.
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
                tracing::error!(%error, "cannot write the access log to standard output; lines are dropped and counted");
            }
        }
    }
}

/// Bytes of one write, about.
const PIECE: usize = 64 << 10;

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    crate::text::timestamp(*time).serialize(serializer)
}

fn display<S: Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn text<S: Serializer>(bytes: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.map(String::from_utf8_lossy).serialize(serializer)
}

/// Writes milliseconds, to the microsecond.
fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::name::ObjectName;
    use std::sync::{Arc, Mutex};

    /// Collects the output once its gate is open.
    #[derive(Clone)]
    struct Output {
        gate: Arc<Mutex<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        broken: bool,
    }

    impl Output {
        fn new(broken: bool) -> Self {
            Self {
                gate: Arc::default(),
                written: Arc::default(),
                broken,
            }
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

    fn service() -> PortKey {
        PortKey {
            service: ObjectName::new("web", "shop"),
            port: 80,
        }
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
        assert!(
            line.iter().all(|&b| b >= b' ' || b == b'\n'),
            "no control character"
        );
        let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(read["target"], String::from_utf8_lossy(&target).as_ref());
        assert_eq!(
            read["attempts"], 2,
            "the fields after the target are intact"
        );
    }

    #[test]
    fn a_tcp_connection_has_no_method() {
        let service = service();
        let mut line = Vec::new();
        access_log_line(
            &AccessEntry {
                method: None,
                target: None,
                status: None,
                ..entry(&service, b"")
            },
            &mut line,
        );
        let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert!(
            read["method"].is_null() && read["target"].is_null() && read["status"].is_null(),
            "{read}"
        );
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
        assert!(
            writer.finish(Duration::from_secs(60)),
            "the whole queue is written at the end"
        );
        let lines = output
            .written
            .lock()
            .unwrap()
            .iter()
            .filter(|&&b| b == b'\n')
            .count() as u64;
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
}

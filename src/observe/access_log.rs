//! The access log: one line for each HTTP request and each TCP connection, on standard output.
//!
//! Invariant: no worker waits for a reader. Lines go through a bounded queue to a thread of their
//! own. A line that finds the queue full is dropped and counted. Which exchanges get no line is in
//! docs/reference.md, "Access log".

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use serde::{Serialize, Serializer};

use crate::contract::name::PortKey;
use crate::observe::lines::{Lines, Writer};

/// One HTTP request or one TCP connection. For a TCP connection `method`, `target` and `status` are
/// `None`.
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
    /// The Service port, as `namespace/name:port`. `None` if there is no such port.
    #[serde(serialize_with = "display")]
    pub service: Option<&'a PortKey>,
    /// The route of the request. Left out where no route has led it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// The request's method.
    #[serde(serialize_with = "text")]
    pub method: Option<&'a [u8]>,
    /// The request's target as the client sent it.
    #[serde(serialize_with = "text")]
    pub target: Option<&'a [u8]>,
    /// The status of the response that the client got.
    pub status: Option<u16>,
    /// The endpoint's `grpc-status`. Left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    /// Bytes to the client, heads included.
    pub bytes_sent: u64,
    /// How long the exchange or connection took. Written as milliseconds, to the microsecond.
    #[serde(rename = "durationMs", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// The last endpoint that was tried.
    pub endpoint: Option<SocketAddr>,
    /// How often the request was sent; 1 for a TCP connection. 0 if no endpoint was asked.
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
pub struct AccessLog(Lines);

/// The thread that writes the access log.
#[derive(Debug)]
pub struct AccessLogWriter(Writer);

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
        let broken = |error| {
            tracing::error!(%error, "cannot write the access log to standard output; lines are dropped and counted");
        };
        let (lines, writer) = Lines::start("access-log", QUEUED_LINES, output, dropped, broken)?;
        Ok((Self(lines), AccessLogWriter(writer)))
    }

    /// Queues a line for the entry. A full queue drops the line and counts it.
    pub fn write(&self, entry: &AccessEntry<'_>) {
        let mut line = Vec::with_capacity(320);
        access_log_line(entry, &mut line);
        self.0.push(line);
    }
}

impl AccessLogWriter {
    /// Waits until the thread has written everything, at most for `patience`, because standard
    /// output may be a pipe that nobody reads. Returns whether everything is written.
    pub fn finish(self, patience: Duration) -> bool {
        self.0.finish(patience)
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    crate::text::timestamp(*time).serialize(serializer)
}

fn display<S: Serializer>(
    value: &Option<impl std::fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
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

    fn service() -> PortKey {
        ObjectName::new("web", "shop").port(80)
    }

    fn entry<'a>(service: &'a PortKey, target: &'a [u8]) -> AccessEntry<'a> {
        AccessEntry {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            peer: "[2001:db8::1]:4711".parse().unwrap(),
            listener: "web",
            service: Some(service),
            route: Some("HTTPRoute web/shop"),
            method: Some(b"GET"),
            target: Some(target),
            status: Some(200),
            grpc_status: None,
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
                r#""service":"web/shop:80","route":"HTTPRoute web/shop","method":"GET","target":"/a?b=c","status":200,"bytesSent":512,"#,
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
}

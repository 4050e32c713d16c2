//! A minimal HTTP/1.1 client: one connection, one request at a time. It reports how a connection
//! ended.
//!
//! It is written by hand because a client library hides what is counted here: a library opens
//! sockets and sends requests again when it wants to. This client never retries and never reuses a
//! connection after a failure. It reads only what a well-behaved server sends, and a response has
//! no size limit.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Bytes that were read and not used yet.
    buffer: Vec<u8>,
}

/// A whole response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case and values, in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// The body, decoded if it was chunked.
    pub body: Vec<u8>,
    /// Whether another request may be sent on this connection.
    pub keep_alive: bool,
}

/// How a request failed. The display form is one short word from this closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server refused the connection.
    #[error("refused")]
    Refused,
    /// The connect failed in another way.
    #[error("unreachable")]
    Unreachable,
    /// The connection was reset, at any point.
    #[error("reset")]
    Reset,
    /// The connection ended cleanly before the first byte of a response ("empty reply").
    #[error("closed")]
    Closed,
    /// The connection ended cleanly in the middle of a response.
    #[error("cut")]
    Cut,
    /// There was no response in time.
    #[error("timeout")]
    Timeout,
    /// The response is not HTTP/1.
    #[error("malformed")]
    Malformed,
}

impl Client {
    /// Opens a connection. Cancellation safe.
    ///
    /// # Errors
    /// [`Failure::Refused`], [`Failure::Unreachable`], or [`Failure::Reset`] if the server reset
    /// the connection directly after the handshake.
    pub async fn connect(server: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(server)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::Refused,
                // The handshake was done, and the reset came before this task ran again.
                io::ErrorKind::ConnectionReset => Failure::Reset,
                _ => Failure::Unreachable,
            })?;
        // Without this option a request waits for the acknowledgement of the previous one. If the
        // option cannot be set, the connection is only slower.
        let _ = stream.set_nodelay(true);
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Sends a whole request, then reads its whole response. `headers` are complete lines, each
    /// with its CRLF. Host and Content-Length are added. Not cancellation safe: after a
    /// cancellation, drop the client.
    ///
    /// # Errors
    /// Any [`Failure`] except a refusal. Do not use the connection again after an error.
    pub async fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Result<Response, Failure> {
        let host = self.stream.peer_addr().map_err(|_| Failure::Reset)?;
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}{headers}\r\n");
        // One write, so that a small request is one segment.
        let written = self
            .stream
            .write_all(&[head.as_bytes(), body].concat())
            .await;
        // A server may respond and close before it has read the whole request. That response
        // counts.
        let mut response = match (self.response(method == "HEAD").await, &written) {
            (Err(_), Err(_)) => return Err(Failure::Reset),
            (response, _) => response?,
        };
        response.keep_alive &= written.is_ok();
        Ok(response)
    }

    /// Returns when the server ends the idle connection, or sends bytes without a request. In both
    /// cases no request may be sent on the connection any more. Cancellation safe.
    pub async fn ended(&self) {
        if self.buffer.is_empty() {
            let _ = self.stream.peek(&mut [0]).await;
        }
    }

    /// The connection, and the bytes that were read beyond the last response.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }

    async fn response(&mut self, to_head: bool) -> Result<Response, Failure> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(Failure::Closed);
        }
        let mut response = loop {
            let (response, length) = self.head().await?;
            self.buffer.drain(..length);
            // An interim response (100, 103) is followed by another response.
            if response.status >= 200 || response.status == 101 {
                break response;
            }
        };
        let encoding = response.header("transfer-encoding");
        let length = response.header("content-length");
        if to_head || matches!(response.status, 101 | 204 | 304) {
        } else if encoding.is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            response.body = self.chunks().await?;
        } else if let Some(length) = length {
            let length = length.parse().map_err(|_| Failure::Malformed)?;
            response.body = self.take(length).await?;
        } else {
            while self.fill().await? > 0 {}
            response.body = std::mem::take(&mut self.buffer);
            response.keep_alive = false;
        }
        // Bytes behind the response belong to no request, so the connection is not used again.
        response.keep_alive &= self.buffer.is_empty();
        Ok(response)
    }

    /// Reads until a head is complete. Returns the head and its length.
    async fn head(&mut self) -> Result<(Response, usize), Failure> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head.parse(&self.buffer).map_err(|_| Failure::Malformed)?;
            if let (httparse::Status::Complete(length), Some(status)) = (parsed, head.code) {
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                let headers = head
                    .headers
                    .iter()
                    .map(|h| (h.name.to_ascii_lowercase(), text(h.value)))
                    .collect();
                let mut response = Response {
                    status,
                    headers,
                    body: Vec::new(),
                    keep_alive: head.version == Some(1),
                };
                match response.header("connection") {
                    Some(value) if value.eq_ignore_ascii_case("close") => {
                        response.keep_alive = false
                    }
                    Some(value) if value.eq_ignore_ascii_case("keep-alive") => {
                        response.keep_alive = true
                    }
                    _ => {}
                }
                return Ok((response, length));
            }
            self.more().await?;
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let size = self.line().await?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| Failure::Malformed)?;
            if size == 0 {
                // Trailers, up to the empty line.
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size).await?);
            if !self.line().await?.is_empty() {
                return Err(Failure::Malformed);
            }
        }
    }

    /// The next line without its CRLF.
    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Reads more of a response that has begun.
    async fn more(&mut self) -> Result<(), Failure> {
        match self.fill().await? {
            0 => Err(Failure::Cut),
            _ => Ok(()),
        }
    }

    async fn fill(&mut self) -> Result<usize, Failure> {
        self.buffer.reserve(READ);
        self.stream
            .read_buf(&mut self.buffer)
            .await
            .map_err(|_| Failure::Reset)
    }
}

/// The response to one GET on a connection of its own. Cancellation safe.
///
/// # Errors
/// Any [`Failure`]; [`Failure::Timeout`] after `patience`.
pub async fn get(server: SocketAddr, path: &str, patience: Duration) -> Result<Response, Failure> {
    let exchange = async {
        Client::connect(server)
            .await?
            .exchange("GET", path, "Connection: close\r\n", b"")
            .await
    };
    timeout(patience, exchange)
        .await
        .unwrap_or(Err(Failure::Timeout))
}

impl Response {
    /// The value of the first header with this name, which must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Bytes per read.
const READ: usize = 16 << 10;

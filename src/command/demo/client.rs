//! A minimal HTTP/1.1 client: one connection, one request at a time, and every end of the connection seen and named.
//!
//! Hand-written because a client library hides what is counted here: it opens sockets and sends again as it likes. It
//! never retries, never reuses a connection after a fault, and reads only what a well-behaved server sends.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Read and not yet used.
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether another request may follow on this connection.
    pub keep_alive: bool,
}

/// How a request failed; the display form is short and from a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("refused")]
    Refused,
    /// Any other failed connect.
    #[error("unreachable")]
    Unreachable,
    /// A reset, at any point.
    #[error("reset")]
    Reset,
    /// A clean end of the connection before the first byte of an answer ("empty reply").
    #[error("closed")]
    Closed,
    /// A clean end of the connection in the middle of an answer.
    #[error("cut")]
    Cut,
    #[error("timeout")]
    Timeout,
    #[error("malformed")]
    Malformed,
}

impl Client {
    /// # Errors
    /// [`Failure::Refused`], [`Failure::Unreachable`], or [`Failure::Reset`] for a connection that stood and was reset at once.
    pub async fn connect(server: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(server)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::Refused,
                // The handshake was done, and the reset came before we looked.
                io::ErrorKind::ConnectionReset => Failure::Reset,
                _ => Failure::Unreachable,
            })?;
        // Without it a request waits for the acknowledgement of the one before; on failure it is only slower.
        let _ = stream.set_nodelay(true);
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Sends a request whole, then reads its whole answer. `headers` are complete lines, each with its CRLF; Host and
    /// Content-Length are added. Not cancellation safe: drop the client with it.
    ///
    /// # Errors
    /// Any [`Failure`] but a refusal; the connection is then of no more use.
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
        // One write, so that the smallest request is one segment.
        let written = self
            .stream
            .write_all(&[head.as_bytes(), body].concat())
            .await;
        // A server may answer and close before it has read everything: the answer counts.
        let mut response = match (self.response(method == "HEAD").await, &written) {
            (Err(_), Err(_)) => return Err(Failure::Reset),
            (response, _) => response?,
        };
        response.keep_alive &= written.is_ok();
        Ok(response)
    }

    /// Returns when the server ends the idle connection, or speaks unasked: either way no request may be sent on it.
    pub async fn ended(&self) {
        if self.buffer.is_empty() {
            let _ = self.stream.peek(&mut [0]).await;
        }
    }

    /// The connection itself, and what was read of it beyond the last answer.
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
            // 100 and 103 only announce.
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
        // Bytes that nobody asked for: whose answer would they be?
        response.keep_alive &= self.buffer.is_empty();
        Ok(response)
    }

    /// Reads until a head is complete; returns it and its length.
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
                // Trailers, then the empty line.
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size).await?);
            if !self.line().await?.is_empty() {
                return Err(Failure::Malformed);
            }
        }
    }

    /// One line without its CRLF.
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

    /// Reads some more of an answer that has begun.
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

impl Response {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

const READ: usize = 16 << 10;

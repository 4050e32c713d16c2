//! HTTP/1.1 on the wire, through the proxy (contract 4): real sockets on both sides, byte for byte.
//! The table of heads and bodies is in `tests/wire/http_table.rs`. These tests show what both sides
//! really receive, and which connections stay open.

mod bodies;
mod patience;
mod reported;
mod requests;
mod responses;
mod tunnels;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::scripted::Scripted;
use crate::support::folder::{Ep, Folder};
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// The fields that the proxy adds to a request for host `a` from loopback.
const FORWARDED: &str =
    "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

/// Either end of a connection, read as raw messages.
pub struct Wire {
    pub stream: TcpStream,
    /// Bytes that were read and not yet taken.
    pub buffer: Vec<u8>,
    pub end: Option<End>,
    /// Where whole messages are recorded.
    pub seen: Option<Arc<Mutex<Vec<String>>>>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
            end: None,
            seen: None,
        }
    }

    pub async fn connect(rig: &Rig) -> Self {
        Self::new(TcpStream::connect(rig.web()).await.unwrap())
    }

    /// Sends bytes. Errors are ignored, because the test looks at what the other side sends then. A
    /// reset that a write has met is recorded, because no later read reports it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = soon("a write", self.stream.write_all(bytes.as_ref())).await;
        if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset) {
            self.end = Some(End::Reset);
        }
    }

    /// Sends two pieces that most likely arrive apart.
    async fn send_split(&mut self, bytes: &[u8], at: usize) {
        self.send(&bytes[..at]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.send(&bytes[at..]).await;
    }

    async fn dribble(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send([*byte]).await;
            tokio::task::yield_now().await;
        }
    }

    async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads once. Returns false at the end, by FIN or by reset.
    pub async fn fill(&mut self) -> bool {
        self.buffer.reserve(64 << 10);
        match soon("bytes or an end", self.stream.read_buf(&mut self.buffer)).await {
            Ok(1..) => true,
            Ok(_) => {
                self.end.get_or_insert(End::Fin);
                false
            }
            Err(_) => {
                self.end = Some(End::Reset);
                false
            }
        }
    }

    /// Takes everything up to and including `mark`.
    pub async fn until(&mut self, mark: &str) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self
                .buffer
                .windows(mark.len())
                .position(|window| window == mark.as_bytes())
            {
                return self.take(at + mark.len()).await;
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        let rest = self.buffer.split_off(length);
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    pub async fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n")
            .await
            .map(|head| String::from_utf8_lossy(&head).into_owned())
    }

    /// Takes a whole message: a head, and the body that it frames. `None` if the connection ended
    /// first; see `end`.
    async fn message(&mut self) -> Option<String> {
        let head = self.head().await?;
        let mut message = head.clone().into_bytes();
        if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
            loop {
                let line = self.until("\r\n").await?;
                let size =
                    usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim_end(), 16).ok()?;
                message.extend(line);
                if size == 0 {
                    break;
                }
                message.extend(self.take(size + 2).await?);
            }
            loop {
                let line = self.until("\r\n").await?;
                message.extend_from_slice(&line);
                if line == b"\r\n" {
                    break;
                }
            }
        } else if let Some(length) = field(&head, "Content-Length") {
            message.extend(self.take(length.parse().unwrap()).await?);
        }
        let message = String::from_utf8_lossy(&message).into_owned();
        if let Some(seen) = &self.seen {
            seen.lock().unwrap().push(message.clone());
        }
        Some(message)
    }

    /// Reads everything up to the end. Returns it with the kind of end.
    async fn rest(&mut self) -> (String, End) {
        while self.fill().await {}
        (
            String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned(),
            self.end.unwrap(),
        )
    }

    /// The next response is [`OK`].
    async fn assert_served(&mut self, request: &str) {
        self.send(request).await;
        assert_eq!(self.message().await.as_deref(), Some(OK), "{request:?}");
    }

    /// The connection serves another request, so it is open and its messages are in step.
    async fn assert_alive(&mut self, after: &str) {
        self.send("GET /alive HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(
            self.message().await.as_deref(),
            Some(OK),
            "the next request after {after:?}"
        );
    }
}

/// The value of a field in a head that the proxy or a test wrote.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n")
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// An endpoint with scripted connections. Connections without bytes (the proxy's join checks) are
/// not counted.
struct Origin {
    scripted: Scripted,
    used: Arc<AtomicUsize>,
    /// Every whole request, in the order in which they became whole.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    /// `script` gets each connection that carries a byte, with its number.
    async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(Wire, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (used, seen) = <(Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>)>::default();
        let (count, notes, script) = (used.clone(), seen.clone(), Arc::new(script));
        let scripted = Scripted::start(move |stream: TcpStream, _| {
            let (count, seen, script) = (count.clone(), Some(notes.clone()), script.clone());
            async move {
                if matches!(stream.peek(&mut [0]).await, Ok(1..)) {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    script(
                        Wire {
                            seen,
                            ..Wire::new(stream)
                        },
                        number,
                    )
                    .await;
                }
            }
        })
        .await;
        Self {
            scripted,
            used,
            seen,
        }
    }

    /// Answers each whole request with the result of `answer`, and keeps the connection.
    async fn answering(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::start(move |mut wire, _| {
            let answer = answer.clone();
            async move {
                while let Some(request) = wire.message().await {
                    wire.send(answer(&request)).await;
                }
            }
        })
        .await
    }

    async fn ok() -> Self {
        Self::answering(|_| OK.into()).await
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// A proxy with one worker (so with one pool) before `origin`, for HTTP only.
async fn scene(origin: &Origin, more: &str) -> Rig {
    scene_with(origin, "protocol: http", more).await
}

async fn scene_with(origin: &Origin, listener: &str, more: &str) -> Rig {
    scene_on(origin, "127.0.0.1:0", listener, more).await
}

async fn scene_on(origin: &Origin, address: &str, listener: &str, more: &str) -> Rig {
    let folder = Folder::new();
    folder.endpoints(&[Ep::new("a", origin.scripted.address)]);
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners: [{{name: web, address: '{address}', service: web/shop, port: 80, {listener}}}]\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 1\n{more}\n"
    );
    let rig = Rig::run(folder, &text).await;
    rig.usable(1).await;
    rig
}

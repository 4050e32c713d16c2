//! An endpoint with a scripted part: it reads whole requests, records them byte for byte, and does
//! what its [`Act`] says. It looks only for the end of each request and checks nothing else. For
//! raw bytes in both directions, use `wire.rs`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::proxy::scripted::Scripted;

/// A small, correct response.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What to do with a request that has been read whole.
#[derive(Debug, Clone)]
pub enum Act {
    /// Send the response, and wait for the next request.
    Say(Vec<u8>),
    SayAndClose(Vec<u8>),
    SayAndReset(Vec<u8>),
    SayAndHang(Vec<u8>),
    /// Send the response, wait longer than any response is withheld, and close.
    SayWaitAndClose(Vec<u8>),
    /// Send the response once [`Play::release`] has been called.
    SayLater(Vec<u8>),
    Close,
    /// Close without waiting for the request's body.
    CloseAfterHead,
    /// Send nothing until the other side closes.
    Hang,
}

/// The number of a request, counted from 0.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Among all requests that this endpoint has begun to read.
    pub number: usize,
    pub on_connection: usize,
}

pub struct Play {
    scripted: Option<Scripted>,
    address: SocketAddr,
    stage: Arc<Stage>,
}

struct Stage {
    requests: Mutex<Vec<Vec<u8>>>,
    heads: AtomicUsize,
    /// Connections that have carried a request and have not ended.
    open: AtomicUsize,
    drop: Mutex<CancellationToken>,
    release: CancellationToken,
}

impl Play {
    pub async fn start(act: impl Fn(Turn) -> Act + Send + Sync + 'static) -> Self {
        let stage = Arc::new(Stage {
            requests: Mutex::default(),
            heads: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            drop: Mutex::default(),
            release: CancellationToken::new(),
        });
        let (act, of_script) = (Arc::new(act), stage.clone());
        let scripted = Scripted::start(move |stream, _| {
            let (stage, act) = (of_script.clone(), act.clone());
            async move {
                let dropped = stage.drop.lock().unwrap().clone();
                tokio::select! {
                    () = play(stream, &stage, act.as_ref()) => {}
                    () = dropped.cancelled() => {}
                }
            }
        })
        .await;
        Self {
            address: scripted.address,
            scripted: Some(scripted),
            stage,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that were read whole, byte for byte.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        self.stage.requests.lock().unwrap().clone()
    }

    /// How many request heads have arrived.
    pub fn heads(&self) -> usize {
        self.stage.heads.load(Ordering::SeqCst)
    }

    /// How many connections have carried a request and have not ended.
    pub fn open(&self) -> usize {
        self.stage.open.load(Ordering::SeqCst)
    }

    /// How many connects were accepted so far, with the join checks.
    pub fn accepted(&self) -> usize {
        self.scripted.as_ref().map_or(0, Scripted::accepted)
    }

    /// Sends all responses of [`Act::SayLater`].
    pub fn release(&self) {
        self.stage.release.cancel();
    }

    /// Ends every open connection.
    pub fn drop_connections(&self) {
        std::mem::take(&mut *self.stage.drop.lock().unwrap()).cancel();
    }

    /// From now on connects are refused.
    pub fn stop_listening(&mut self) {
        self.scripted = None;
    }
}

/// Serves one connection.
async fn play(mut stream: TcpStream, stage: &Stage, act: &(dyn Fn(Turn) -> Act + Send + Sync)) {
    let mut unread = Vec::new();
    let mut open = None;
    for on_connection in 0.. {
        let Some(head) = head(&mut stream, &mut unread).await else {
            return;
        };
        open.get_or_insert_with(|| Open::count(&stage.open));
        let turn = Turn {
            number: stage.heads.fetch_add(1, Ordering::SeqCst),
            on_connection,
        };
        let act = act(turn);
        if matches!(act, Act::CloseAfterHead) {
            return;
        }
        let Some(body) = body(&mut stream, &mut unread, &head).await else {
            return;
        };
        stage.requests.lock().unwrap().push([head, body].concat());
        let said = match &act {
            Act::Say(bytes)
            | Act::SayAndClose(bytes)
            | Act::SayAndReset(bytes)
            | Act::SayAndHang(bytes)
            | Act::SayWaitAndClose(bytes) => stream.write_all(bytes).await,
            Act::SayLater(bytes) => {
                stage.release.cancelled().await;
                stream.write_all(bytes).await
            }
            Act::Close | Act::CloseAfterHead | Act::Hang => Ok(()),
        };
        if said.is_err() {
            return;
        }
        match act {
            Act::Say(_) | Act::SayLater(_) => {}
            Act::SayAndClose(_) | Act::Close | Act::CloseAfterHead => return,
            Act::SayWaitAndClose(_) => return tokio::time::sleep(Duration::from_millis(200)).await,
            Act::SayAndReset(_) => {
                // The bytes must be on their way before the reset overtakes them.
                tokio::time::sleep(Duration::from_millis(50)).await;
                SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                return;
            }
            Act::Hang | Act::SayAndHang(_) => {
                while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
                return;
            }
        }
    }
}

async fn fill(stream: &mut TcpStream, unread: &mut Vec<u8>) -> bool {
    matches!(stream.read_buf(unread).await, Ok(1..))
}

async fn head(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    take_through(stream, unread, b"\r\n\r\n").await
}

async fn take_through(
    stream: &mut TcpStream,
    unread: &mut Vec<u8>,
    mark: &[u8],
) -> Option<Vec<u8>> {
    loop {
        if let Some(at) = unread.windows(mark.len()).position(|bytes| bytes == mark) {
            let rest = unread.split_off(at + mark.len());
            return Some(std::mem::replace(unread, rest));
        }
        if !fill(stream, unread).await {
            return None;
        }
    }
}

async fn body(stream: &mut TcpStream, unread: &mut Vec<u8>, head: &[u8]) -> Option<Vec<u8>> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let last = take_through(stream, unread, b"\r\n0\r\n").await?;
        let trailers = take_through(stream, unread, b"\r\n").await?;
        let rest = if trailers == b"\r\n" {
            Vec::new()
        } else {
            take_through(stream, unread, b"\r\n").await?
        };
        return Some([last, trailers, rest].concat());
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    while unread.len() < length {
        if !fill(stream, unread).await {
            return None;
        }
    }
    let rest = unread.split_off(length);
    Some(std::mem::replace(unread, rest))
}

/// Counts something for as long as it lives.
pub struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    pub fn count(open: &'a AtomicUsize) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

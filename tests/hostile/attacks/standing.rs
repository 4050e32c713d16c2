//! Attacks by connections that stay open and do almost nothing. Each is held open to make the proxy
//! spend memory or descriptors. [`Siege`] bounds the cost of each connection. Almost all of these
//! attacks also require a proxy that is idle while nothing moves. Attacks that never pause are in
//! `busy.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::siege::{Hostile, Siege, narrow};
use crate::support::binary::BINARY;
use crate::support::vitals::{limited, room_for};
use crate::support::wait::{eventually, soon};

/// Connects and sends these bytes.
async fn open_with(web: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = soon("a connection", TcpStream::connect(web)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

async fn many<T>(count: usize, open: impl AsyncFn() -> T) -> Hostile<T> {
    let mut standing = Vec::with_capacity(count);
    for _ in 0..count {
        standing.push(open().await);
    }
    Hostile::standing(standing)
}

async fn until_active(siege: &Siege, count: usize) {
    eventually("all attackers are connected", async || {
        siege
            .process
            .proxy
            .metric("ebbtide_connections_active", |_| true)
            .await
            .is_ok_and(|n| n >= count as f64)
    })
    .await;
}

#[tokio::test]
async fn slowloris() {
    const HEAD: &[u8] = b"GET /ok HTTP/1.1\r\nHost: shop\r\nX-Slow: ";
    let Some(served) = room_for(10_000) else {
        return println!("SKIPPED: slowloris: the hard limit of descriptors is too low");
    };
    // The last eighth of the places is for other Services. Clients without a place wait in the
    // kernel's queue.
    let (served, count) = (served * 7 / 8, (served + 512).min(10_000));
    // Longer head timeout than the default, so that no attacker is closed before it is measured.
    let warm = async |web, _: &Handle| drop(many(200, async || open_with(web, HEAD).await).await);
    let mut siege = Siege::start("slowloris", "timeouts: {head: 5m}", warm).await;
    let mut hostile = many(count, async || open_with(siege.gate, HEAD).await).await;
    until_active(&siege, served).await;
    for _ in 0..3 {
        for stream in &mut hostile.standing {
            stream.write_all(b"x").await.unwrap();
        }
    }
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// A head that is almost too large and never ends. It arrives byte by byte, which grows each buffer
/// to its largest size.
#[tokio::test]
async fn heads_that_never_end() {
    let head = [
        b"GET /ok HTTP/1.1\r\nHost: shop\r\nX-Slow: ".as_slice(),
        &[b'x'; 16_000],
    ]
    .concat();
    let warm = async |web, _: &Handle| drop(many(50, async || open_with(web, &head).await).await);
    let mut siege = Siege::start("large-slow-heads", "timeouts: {head: 5m}", warm).await;
    let mut hostile = many(1_000, async || open_with(siege.gate, &head[..8_000]).await).await;
    until_active(&siege, 1_000).await;
    for at in (8_000..16_000).step_by(1_000) {
        for stream in &mut hostile.standing {
            stream.write_all(&head[at..at + 1_000]).await.unwrap();
        }
    }
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

async fn slow_read(name: &'static str, path: &str, count: usize) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
    let open = async |web| {
        let mut stream = narrow(web).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let warm = async |web, _: &Handle| {
        let some = many(20, async || open(web).await).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(some);
    };
    let mut siege = Siege::start(name, "", warm).await;
    let hostile = many(count, async || open(siege.gate).await).await;
    siege.stuffed().await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

#[tokio::test]
async fn slow_read_of_a_counted_body() {
    slow_read("slow-read-counted", "/big", 300).await;
}

#[tokio::test]
async fn slow_read_of_large_chunks() {
    slow_read("slow-read-chunked", "/chunks", 300).await;
}

#[tokio::test]
async fn slow_read_of_one_byte_chunks() {
    // Fewer connections: tiny chunks take a while to fill the kernel's buffers.
    slow_read("slow-read-1-byte-chunks", "/tiny_chunks", 50).await;
}

/// Sends until the proxy takes no more.
async fn stuff(stream: &mut TcpStream) {
    let zeros = vec![0; 64 << 10];
    while tokio::time::timeout(Duration::from_millis(20), stream.write_all(&zeros))
        .await
        .is_ok()
    {}
}

/// Bodies that are kept for a replay to the last byte, because no endpoint answers. Behind each, as
/// many requests as the proxy takes.
#[tokio::test]
async fn the_largest_bodies_that_are_kept() {
    const HEAD: &[u8] = b"PUT /silent HTTP/1.1\r\nHost: shop\r\nContent-Length: 65536\r\n\r\n";
    let open = async |web| {
        let mut stream = open_with(web, HEAD).await;
        stuff(&mut stream).await;
        stream.set_zero_linger().unwrap();
        stream
    };
    let warm = async |web, _: &Handle| drop(many(10, async || open(web).await).await);
    let mut siege = Siege::start("kept-for-a-replay", "", warm)
        .await
        .with_kept_bodies();
    let hostile = many(200, async || open(siege.gate).await).await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// Everything that one connection can keep waiting: a large head, requests behind it, and a
/// response that is not read.
#[tokio::test]
async fn pipelined_behind_a_slow_read() {
    let head = [
        b"GET /big HTTP/1.1\r\nHost: shop\r\nX-Large: ".as_slice(),
        &[b'x'; 15_000],
        b"\r\n\r\n",
    ]
    .concat();
    let behind = b"GET /ok HTTP/1.1\r\nHost: shop\r\n\r\n".repeat(1_000);
    let request = [head, behind].concat();
    let open = async |web| {
        let mut stream = narrow(web).await;
        stream.write_all(&request).await.unwrap();
        stream
    };
    let warm = async |web, _: &Handle| drop(many(20, async || open(web).await).await);
    let mut siege = Siege::start("pipelined-behind-slow-read", "", warm).await;
    let hostile = many(200, async || open(siege.gate).await).await;
    siege.stuffed().await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// Both directions of the tunnel are full, and neither side reads.
#[tokio::test]
async fn a_tunnel_that_is_not_read() {
    const HEAD: &[u8] =
        b"GET /tunnel HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: any\r\n\r\n";
    let open = async |web| {
        let mut stream = narrow(web).await;
        stream.write_all(HEAD).await.unwrap();
        let mut answer = [0; 12];
        soon("a response", stream.read_exact(&mut answer))
            .await
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
        stuff(&mut stream).await;
        stream
    };
    let warm = async |web, _: &Handle| drop(many(10, async || open(web).await).await);
    let mut siege = Siege::start("tunnel-not-read", "", warm).await;
    let hostile = many(100, async || open(siege.gate).await).await;
    siege.stuffed().await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// Bodies for an endpoint that reads nothing. The proxy must not take in what it cannot send on. When
/// the attackers leave, their FIN stands behind bytes that nobody takes, so it is not seen: what ends
/// them is the time of a request.
#[tokio::test]
async fn uploads_to_a_deaf_endpoint() {
    const HEAD: &[u8] =
        b"POST /deaf HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000000000\r\n\r\n";
    let open = async |web| {
        let mut stream = open_with(web, HEAD).await;
        stuff(&mut stream).await;
        stream
    };
    let warm = async |web, _: &Handle| drop(many(10, async || open(web).await).await);
    let mut siege = Siege::start("upload-to-deaf-endpoint", "timeouts: {request: 15s}", warm).await;
    let hostile = many(100, async || open(siege.gate).await).await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// Requests without a response, and as many bytes behind them as the proxy takes.
#[tokio::test]
async fn pipelined_behind_silence() {
    let head = [
        b"GET /silent HTTP/1.1\r\nHost: shop\r\nX-Large: ".as_slice(),
        &[b'x'; 15_000],
    ]
    .concat();
    let rest = [
        b"\r\n\r\n".as_slice(),
        &b"GET /ok HTTP/1.1\r\nHost: shop\r\n\r\n".repeat(4_000),
    ]
    .concat();
    let open = async |web| {
        let mut stream = open_with(web, &head).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        let _ = tokio::time::timeout(Duration::from_millis(20), stream.write_all(&rest)).await;
        // The client leaves by a reset. The proxy must notice it, although it reads nothing any
        // more.
        stream.set_zero_linger().unwrap();
        stream
    };
    let warm = async |web, _: &Handle| drop(many(10, async || open(web).await).await);
    let mut siege = Siege::start("pipelined-behind-silence", "", warm).await;
    let hostile = many(300, async || open(siege.gate).await).await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// More connections than descriptors allow, by a limit that was set before the proxy started. The
/// proxy accepts fewer, and can serve each one that it has accepted.
#[tokio::test]
async fn a_flood_at_the_descriptor_limit() {
    let folder = tempfile::tempdir().unwrap();
    let program = limited(BINARY.as_ref(), 1_200, folder.path());
    let warm = async |web, _: &Handle| drop(many(200, async || open_with(web, b"").await).await);
    let mut siege = Siege::start_as(&program, "connection-flood", "", warm).await;
    let hostile = many(3_000, async || open_with(siege.gate, b"").await).await;
    // Two descriptors for each connection, and a reserve of 512.
    until_active(&siege, (1_200 - 512) / 2).await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

/// More requests than may be held, for a Service that has no endpoint.
#[tokio::test]
async fn a_hold_queue_flood() {
    const GET: &[u8] = b"GET /ok HTTP/1.1\r\nHost: shop\r\n\r\n";
    let warm = async |_, _: &Handle| {};
    let mut siege = Siege::start("hold-queue-flood", "", warm).await;
    let void = siege.add_void().await;
    let hostile = many(3_000, async || open_with(void, GET).await).await;
    eventually("the queue is full", async || {
        siege
            .process
            .proxy
            .metric("ebbtide_held", |_| true)
            .await
            .is_ok_and(|held| held >= 1_024.0)
    })
    .await;
    let seen = siege.watch().await;
    siege.end(hostile, seen).await;
}

//! Attacks by HTTP/2: floods of frames that cost their sender little, field blocks that grow when they
//! are read, and windows that open never or by single bytes. [`Siege`] bounds the cost of each
//! connection, and shows what well-behaved clients notice.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::siege::{Hostile, Siege, busy, narrow, pour};
use crate::support::frames::{
    CANCEL, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get,
};
use crate::support::wait::soon;

const COUNT: usize = 50;
/// Streams of one connection that the proxy serves at once.
const STREAMS: u32 = 100;
const CONTINUATION: u8 = 9;
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
const INITIAL_WINDOW: u16 = 4;

/// The beginning of a connection, with this window for each stream.
fn begin(window: u32) -> Vec<u8> {
    let payload = [&INITIAL_WINDOW.to_be_bytes()[..], &window.to_be_bytes()].concat();
    let all = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    [PREFACE, &frame(SETTINGS, 0, 0, &payload), &all].concat()
}

/// A request that is whole.
fn request(stream: u32, path: &'static str) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &block(&get(path)),
    )
}

/// The head of a request whose body follows.
fn post(stream: u32, path: &'static str) -> Vec<u8> {
    let mut fields = get(path);
    fields[0].1 = b"POST";
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

/// The numbers of a connection's first streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|at| 2 * at + 1)
}

fn pouring(
    attackers: &Handle,
    count: usize,
    web: SocketAddr,
    head: &[u8],
    piece: &[u8],
) -> Hostile<()> {
    let (head, piece) = (head.to_vec(), piece.to_vec());
    busy(attackers, count, move |_| {
        let (head, piece) = (head.clone(), piece.clone());
        async move { pour(web, &head, &piece).await }
    })
}

/// Attackers that send `head`, which begins so many streams, and then `piece` without end.
async fn flood(name: &'static str, streams: u32, head: &[u8], piece: &[u8]) {
    flood_by(COUNT, name, streams, head, piece).await;
}

async fn flood_by(count: usize, name: &'static str, streams: u32, head: &[u8], piece: &[u8]) {
    let warm = async |web: SocketAddr, attackers: &Handle| {
        let hostile = pouring(attackers, count.min(20), web, head, piece);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        drop(hostile);
    };
    let siege = Siege::start(name, "", warm).await;
    let mut siege = siege.with_streams(streams.into());
    let hostile = pouring(siege.attackers(), count, siege.gate, head, piece);
    let seen = siege.watch().await;
    siege.end(hostile, seen).await;
}

#[tokio::test]
async fn a_flood_of_settings() {
    flood(
        "h2-settings",
        1,
        &begin(0),
        &frame(SETTINGS, 0, 0, b"").repeat(1_000),
    )
    .await;
}

#[tokio::test]
async fn a_flood_of_pings() {
    flood(
        "h2-pings",
        1,
        &begin(0),
        &frame(PING, 0, 0, b"12345678").repeat(1_000),
    )
    .await;
}

#[tokio::test]
async fn a_flood_of_priorities() {
    const PRIORITY: u8 = 2;
    let piece = frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 16]).repeat(1_000);
    flood("h2-priorities", 1, &begin(0), &piece).await;
}

#[tokio::test]
async fn a_field_block_that_never_ends() {
    let head = [begin(0), frame(HEADERS, END_STREAM, 1, &block(&get("/ok")))].concat();
    let piece = frame(CONTINUATION, 0, 1, &block(&[(b"x-a", b"b")])).repeat(100);
    flood("h2-continuations", 1, &head, &piece).await;
}

#[tokio::test]
async fn a_field_block_of_nothing_that_never_ends() {
    let head = [begin(0), frame(HEADERS, END_STREAM, 1, b"")].concat();
    flood(
        "h2-empty-continuations",
        1,
        &head,
        &frame(CONTINUATION, 0, 1, b"").repeat(1_000),
    )
    .await;
}

#[tokio::test]
async fn a_flood_of_empty_data() {
    let head = [begin(0), post(1, "/deaf")].concat();
    flood(
        "h2-empty-data",
        1,
        &head,
        &frame(DATA, 0, 1, b"").repeat(1_000),
    )
    .await;
}

/// Each frame fills a byte of the window, and costs the proxy more than a byte while nobody takes it.
/// Few attackers, since the kernel holds millions of these frames for each.
#[tokio::test]
async fn a_flood_of_one_byte_data() {
    let heads = streams(STREAMS).flat_map(|stream| post(stream, "/deaf"));
    let head: Vec<u8> = begin(0).into_iter().chain(heads).collect();
    let piece = streams(STREAMS).flat_map(|stream| frame(DATA, 0, stream, b"x").repeat(20));
    let piece: Vec<u8> = piece.collect();
    flood_by(10, "h2-1-byte-data", STREAMS, &head, &piece).await;
}

/// Rounds of this many streams each, on one connection after the other. `stream` makes what is sent of
/// a stream.
async fn rounds(
    name: &'static str,
    each: u32,
    stream: impl Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static,
) {
    let once = move |web: SocketAddr, stream: &(dyn Fn(u32) -> Vec<u8> + Send + Sync)| {
        let all: Vec<u8> = streams(each).flat_map(stream).collect();
        async move {
            let mut connection = TcpStream::connect(web).await?;
            connection.write_all(&begin(0)).await?;
            let (mut read, mut write) = connection.split();
            let reads = async { tokio::io::copy(&mut read, &mut tokio::io::sink()).await };
            let writes = async {
                write.write_all(&all).await?;
                std::future::pending::<std::io::Result<u64>>().await
            };
            tokio::select! { over = reads => over, over = writes => over }.map(drop)
        }
    };
    let attack = |attackers: &Handle, count, web| {
        let stream = stream.clone();
        busy(attackers, count, move |_| once(web, &stream))
    };
    let warm = async |web: SocketAddr, attackers: &Handle| {
        let hostile = attack(attackers, 20, web);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        drop(hostile);
    };
    let mut siege = Siege::start(name, "", warm).await.with_streams(4);
    let hostile = attack(siege.attackers(), COUNT, siege.gate);
    let seen = siege.watch().await;
    siege.end(hostile, seen).await;
}

/// CVE-2023-44487.
#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_begin() {
    rounds("h2-rapid-reset", 2_000, |stream| {
        let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        [request(stream, "/silent"), reset].concat()
    })
    .await;
}

/// The same, but each stream is one that the proxy resets (CVE-2025-8671).
#[tokio::test]
async fn streams_that_make_the_proxy_reset_them() {
    rounds("h2-made-you-reset", 2_000, |stream| {
        let nothing = frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes());
        [request(stream, "/silent"), nothing].concat()
    })
    .await;
}

/// An entry of the dynamic table, and thousands of references to it: one byte of the block each.
#[tokio::test]
async fn a_field_block_that_grows_when_it_is_read() {
    rounds("h2-field-bomb", 500, |stream| {
        let mut fields = block(&get("/ok"));
        if stream == 1 {
            // A literal that is added to the table (RFC 7541 section 6.2.1).
            let mut entry = block(&[(b"x-bomb", &[b'x'; 4_000])]);
            entry[0] = 0x40;
            fields.extend_from_slice(&entry);
        }
        fields.extend_from_slice(&[0x80 | 62; 8_000]);
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields)
    })
    .await;
}

/// Opens a connection with these bytes, reads nothing, and takes little from the kernel.
async fn stuffed(web: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = narrow(web).await;
    let sent = stream.write_all(bytes);
    // The proxy may take no more.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), sent).await;
    stream.set_zero_linger().unwrap();
    stream
}

/// Attackers that send `bytes` once, and stay.
async fn stay(name: &'static str, count: usize, streams: u64, bytes: &[u8]) {
    let open = async |web, count| {
        let mut standing = Vec::new();
        for _ in 0..count {
            standing.push(stuffed(web, bytes).await);
        }
        Hostile::standing(standing)
    };
    let warm = async |web, _: &Handle| drop(open(web, 5).await);
    let mut siege = Siege::start(name, "timeouts: {request: 60s}", warm)
        .await
        .with_streams(streams);
    let hostile = open(siege.gate, count).await;
    siege.settled().await;
    let seen = siege.watch().await;
    siege.end_quiet(hostile, seen).await;
}

fn all(window: u32, stream: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    begin(window)
        .into_iter()
        .chain(streams(STREAMS).flat_map(stream))
        .collect()
}

/// Answers that nobody lets in.
#[tokio::test]
async fn windows_that_never_open() {
    stay(
        "h2-no-window",
        20,
        STREAMS.into(),
        &all(0, |stream| request(stream, "/big")),
    )
    .await;
}

/// Answers that nobody reads from the kernel.
#[tokio::test]
async fn a_hundred_answers_that_are_not_read() {
    let bytes = all(1 << 30, |stream| request(stream, "/big"));
    stay("h2-slow-read", 20, 2 * u64::from(STREAMS), &bytes).await;
}

/// The same with chunks of one byte.
#[tokio::test]
async fn a_hundred_answers_of_one_byte_chunks_that_are_not_read() {
    let bytes = all(1 << 30, |stream| request(stream, "/tiny_chunks"));
    stay(
        "h2-slow-read-1-byte-chunks",
        5,
        2 * u64::from(STREAMS),
        &bytes,
    )
    .await;
}

/// Bodies that nobody takes, in frames of the largest size.
#[tokio::test]
async fn a_hundred_bodies_that_are_not_taken() {
    let bytes = all(0, |stream| {
        let part = frame(DATA, 0, stream, &[b'x'; 16_000]);
        [post(stream, "/deaf"), part.repeat(4)].concat()
    });
    stay(
        "h2-uploads-to-deaf-endpoint",
        20,
        2 * u64::from(STREAMS),
        &bytes,
    )
    .await;
}

/// Requests without an answer.
#[tokio::test]
async fn a_hundred_streams_that_never_end() {
    stay(
        "h2-silent-streams",
        20,
        STREAMS.into(),
        &all(0, |stream| request(stream, "/silent")),
    )
    .await;
}

/// A window that opens by a byte at a time.
#[tokio::test]
async fn a_window_that_opens_byte_by_byte() {
    let head = [begin(0), request(1, "/big")].concat();
    let piece = frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()).repeat(200);
    flood("h2-1-byte-windows", 2, &head, &piece).await;
}

/// The proxy still serves after all of that, over HTTP/2 too.
#[tokio::test]
async fn a_connection_of_http2_is_served() {
    let warm = async |_, _: &Handle| {};
    let siege = Siege::start("h2-served", "", warm).await;
    let mut stream = TcpStream::connect(siege.gate).await.unwrap();
    stream
        .write_all(&[begin(1_000), request(1, "/ok")].concat())
        .await
        .unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"ok") {
        soon("an answer", stream.read_buf(&mut got)).await.unwrap();
    }
}

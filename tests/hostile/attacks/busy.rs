//! Attacks that never pause. The proxy refuses or cuts each attacker, and the attacker comes back
//! immediately. [`Siege`] checks the cost in memory, and that the well-behaved clients keep their
//! connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::siege::{Hostile, Siege, busy, pour};

const COUNT: usize = 100;

fn post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// `count` attackers that send `head`, and then `piece` without end.
fn pouring(
    attackers: &Handle,
    count: usize,
    web: SocketAddr,
    head: &str,
    piece: &[u8],
) -> Hostile<()> {
    let (head, piece): (Arc<str>, Arc<[u8]>) = (head.into(), piece.into());
    busy(attackers, count, move |_| {
        let (head, piece) = (head.clone(), piece.clone());
        async move { pour(web, head.as_bytes(), &piece).await }
    })
}

async fn siege(name: &'static str, head: String, piece: Vec<u8>) {
    attack(prepare(name, &head, &piece).await, &head, &piece).await;
}

async fn prepare(name: &'static str, head: &str, piece: &[u8]) -> Siege {
    let warm = async |web: SocketAddr, attackers: &Handle| {
        let hostile = pouring(attackers, 20, web, head, piece);
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(hostile);
    };
    Siege::start(name, "", warm).await
}

async fn attack(mut siege: Siege, head: &str, piece: &[u8]) {
    let hostile = pouring(siege.attackers(), COUNT, siege.gate, head, piece);
    let seen = siege.watch().await;
    siege.end(hostile, seen).await;
}

#[tokio::test]
async fn an_endless_chunk_extension() {
    siege(
        "endless-chunk-extension",
        post("/silent") + "1;",
        vec![b'a'; 4_096],
    )
    .await;
}

#[tokio::test]
async fn a_long_extension_for_every_byte() {
    let piece = [b"1;".as_slice(), &[b'a'; 250], b"\r\nx\r\n"]
        .concat()
        .repeat(8);
    siege("extension-per-byte", post("/silent"), piece).await;
}

#[tokio::test]
async fn one_byte_chunks() {
    siege("1-byte-chunks", post("/silent"), b"1\r\nx\r\n".repeat(350)).await;
}

/// The same with a request whose body is kept for a replay, up to the limit of the replay buffer.
#[tokio::test]
async fn one_byte_chunks_that_are_kept() {
    let (head, piece) = (
        post("/silent").replace("POST", "PUT"),
        b"1\r\nx\r\n".repeat(350),
    );
    attack(
        prepare("1-byte-chunks-kept", &head, &piece)
            .await
            .with_kept_bodies(),
        &head,
        &piece,
    )
    .await;
}

#[tokio::test]
async fn one_byte_chunks_of_an_endpoint() {
    siege(
        "1-byte-chunks-of-endpoint",
        "GET /tiny_chunks HTTP/1.1\r\nHost: shop\r\n\r\n".into(),
        vec![],
    )
    .await;
}

#[tokio::test]
async fn endless_trailers_of_a_client() {
    siege(
        "endless-request-trailers",
        post("/silent") + "0\r\n",
        b"X-Trailer: one more\r\n".repeat(100),
    )
    .await;
}

#[tokio::test]
async fn endless_trailers_of_an_endpoint() {
    siege(
        "endless-response-trailers",
        "GET /trailers HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".into(),
        vec![],
    )
    .await;
}

#[tokio::test]
async fn endless_interim_responses() {
    siege(
        "endless-1xx",
        "GET /interim HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".into(),
        vec![],
    )
    .await;
}

/// 16 uploads of 16 MiB, each lost with its endpoint before its end, again and again. With
/// `EBBTIDE_FULL=1`: 4 uploads of 2 GiB.
#[tokio::test]
async fn uploads_to_a_dying_endpoint() {
    let full = std::env::var_os("EBBTIDE_FULL").is_some();
    let (uploads, size): (usize, usize) = if full { (4, 2 << 30) } else { (16, 16 << 20) };
    let warm = async |web: SocketAddr, _: &Handle| {
        futures::future::join_all((0..4).map(|_| upload(web, 16 << 20))).await;
    };
    let mut siege = Siege::start("upload-to-dying-endpoint", "", warm).await;
    let (web, refused) = (siege.gate, Arc::new(AtomicUsize::new(0)));
    let count = refused.clone();
    let hostile = busy(siege.attackers(), uploads, move |_| {
        let count = count.clone();
        async move {
            let answer = upload(web, size).await?;
            count.fetch_add(
                usize::from(answer.starts_with(b"HTTP/1.1 502 ")),
                Ordering::Relaxed,
            );
            Ok(())
        }
    });
    let seen = siege.watch().await;
    let met = async {
        while refused.load(Ordering::Relaxed) < uploads {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), met)
        .await
        .expect("each upload loses its endpoint");
    siege.end(hostile, seen).await;
}

/// Sends zeros until the response arrives.
async fn upload(web: SocketAddr, size: usize) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(web).await?;
    let head = format!(
        "POST /die/{} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n",
        size - (1 << 20)
    );
    stream.write_all(head.as_bytes()).await?;
    let zeros = vec![0; 64 << 10];
    for _ in 0..size / zeros.len() {
        stream.write_all(&zeros).await?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

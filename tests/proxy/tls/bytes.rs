//! Bytes over TLS: many of them, both ways, and how they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::version;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::play::{Act, Play};
use crate::proxy::scripted::Scripted;
use crate::proxy::tls::{connect, open, rig, speaking};
use crate::support::folder::Ep;
use crate::support::wait::{eventually, soon};

/// Bytes that differ from each other and from those of another seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

/// Echoes all that comes and then ends.
async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

#[tokio::test]
async fn a_tunnel_and_a_tcp_connection_carry_much_both_ways_and_end_one_direction_at_a_time() {
    for version in [&version::TLS12, &version::TLS13] {
        for protocol in ["tcp", "auto", "http"] {
            let rig = rig(protocol, "", "").await;
            let is_tunnel = protocol == "http";
            let endpoint = Scripted::start(move |mut stream, _| async move {
                if is_tunnel {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                }
                echo(stream).await;
            })
            .await;
            rig.endpoints(&[Ep::new("e", endpoint.address)]);
            rig.usable(1).await;
            let config = Arc::new(speaking(version));
            let mut stream = connect(rig.web(), "a.example", &config).await.unwrap();
            if is_tunnel {
                let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                stream.write_all(request).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(soon("a head", stream.read_u8()).await.unwrap());
                }
                assert!(head.starts_with(b"HTTP/1.1 101"));
            }
            let sent = noise(7, 8 << 20);
            let (mut from, mut to) = tokio::io::split(stream);
            let write = async {
                to.write_all(&sent).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let mut came = Vec::new();
            let read = from.read_to_end(&mut came);
            let (_, read) = soon("the echo", async { tokio::join!(write, read) }).await;
            // A clean end: a FIN without `close_notify` would be an error.
            read.unwrap();
            assert!(
                came == sent,
                "{protocol} {version:?}: {} of {}",
                came.len(),
                sent.len()
            );
        }
    }
}

#[tokio::test]
async fn long_bodies_come_whole_both_ways_and_the_connection_is_kept() {
    for framing in ["Content-Length: 3000000", "Transfer-Encoding: chunked"] {
        let rig = rig("http", "", "").await;
        let body = noise(9, 3_000_000);
        let framed = |body: &[u8]| match framing {
            "Transfer-Encoding: chunked" => {
                let chunk = |piece: &[u8]| {
                    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
                };
                let mut all: Vec<u8> = body.chunks(70_000).flat_map(chunk).collect();
                all.extend_from_slice(b"0\r\n\r\n");
                all
            }
            _ => body.to_vec(),
        };
        let answer = [
            format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes(),
            &framed(&body),
        ]
        .concat();
        let endpoint = Play::start(move |_| Act::Say(answer.clone())).await;
        rig.endpoints(&[Ep::new("e", endpoint.address())]);
        rig.usable(1).await;
        let mut stream = open(rig.web()).await;
        for _ in 0..2 {
            let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            let request = [head.as_bytes(), &framed(&body)].concat();
            let (mut from, mut to) = tokio::io::split(stream);
            let write = async {
                to.write_all(&request).await.unwrap();
                to.flush().await.unwrap();
            };
            let read = async {
                let mut reader = tokio::io::BufReader::new(&mut from);
                read_body(&mut reader, framing).await
            };
            let ((), came) = soon("both bodies", async { tokio::join!(write, read) }).await;
            assert!(came == body, "{framing}");
            stream = from.unsplit(to);
        }
        let requests = endpoint.requests();
        assert_eq!(requests.len(), 2, "over one connection of the client");
        for request in requests {
            assert!(request.len() > 3_000_000);
            if framing.starts_with("Content") {
                assert!(request.ends_with(&body));
            }
        }
        assert_eq!(rig.metric("ebbtide_tls_handshakes_total", ""), 1.0);
    }
}

/// Reads one response and returns its body.
async fn read_body(from: &mut (impl AsyncReadExt + Unpin), framing: &str) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let mut body = Vec::new();
    if let Some(length) = framing.strip_prefix("Content-Length: ") {
        body.resize(length.parse().unwrap(), 0);
        from.read_exact(&mut body).await.unwrap();
        return body;
    }
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(from.read_u8().await.unwrap());
        }
        let text = std::str::from_utf8(&line).unwrap().trim();
        let mut chunk = vec![0; usize::from_str_radix(text, 16).unwrap() + 2];
        from.read_exact(&mut chunk).await.unwrap();
        if chunk.len() == 2 {
            return body;
        }
        body.extend_from_slice(&chunk[..chunk.len() - 2]);
    }
}

#[tokio::test]
async fn a_response_that_the_connection_ends_is_whole_with_a_close_notify_and_cut_without() {
    let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it".to_vec();
    for whole in [true, false] {
        let rig = rig("http", "", "").await;
        let act = match whole {
            true => Act::SayAndClose(answer.clone()),
            false => Act::SayAndReset(answer.clone()),
        };
        let endpoint = Play::start(move |_| act.clone()).await;
        rig.endpoints(&[Ep::new("e", endpoint.address())]);
        rig.usable(1).await;
        let mut stream = open(rig.web()).await;
        // HTTP/1.0: nothing but the end of the connection ends the body.
        stream
            .write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut came = Vec::new();
        let read = soon("the end", stream.read_to_end(&mut came)).await;
        assert!(came.ends_with(b"all of it"), "{whole}");
        assert_eq!(read.is_ok(), whole, "{read:?}");
    }
}

#[tokio::test]
async fn a_clients_fin_without_a_close_notify_is_no_end_for_the_endpoint() {
    for says_so in [true, false] {
        let rig = rig("tcp", "", "").await;
        // What the endpoint has seen: nothing, the bytes, a clean end, a reset.
        let seen = Arc::new(AtomicUsize::new(0));
        let sees = seen.clone();
        let endpoint = Scripted::start(move |mut stream, _| {
            let seen = sees.clone();
            async move {
                let mut came = [0; 4];
                // Join checks send nothing.
                if stream.read_exact(&mut came).await.is_ok() {
                    seen.store(1, Ordering::SeqCst);
                    let end = stream.read(&mut came).await;
                    seen.store(if end.is_ok() { 2 } else { 3 }, Ordering::SeqCst);
                }
            }
        })
        .await;
        rig.endpoints(&[Ep::new("e", endpoint.address)]);
        rig.usable(1).await;
        let mut stream = open(rig.web()).await;
        stream.write_all(b"half").await.unwrap();
        stream.flush().await.unwrap();
        eventually("the bytes", async || seen.load(Ordering::SeqCst) == 1).await;
        match says_so {
            true => stream.shutdown().await.unwrap(),
            false => SockRef::from(stream.get_ref().0)
                .shutdown(std::net::Shutdown::Write)
                .unwrap(),
        }
        let expected = if says_so { 2 } else { 3 };
        eventually("an end", async || seen.load(Ordering::SeqCst) > 1).await;
        assert_eq!(seen.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test]
async fn a_client_that_leaves_between_two_requests_by_a_fin_alone_has_ended_properly() {
    let rig = rig("http", "", "").await;
    let endpoint = Play::start(|_| Act::Say(crate::proxy::play::OK.into())).await;
    rig.endpoints(&[Ep::new("e", endpoint.address())]);
    rig.usable(1).await;
    let mut stream = open(rig.web()).await;
    crate::proxy::tls::handshake::ask(&mut stream)
        .await
        .unwrap();
    drop(stream);
    eventually("a close", async || {
        rig.metric("ebbtide_connection_closes_total", "client_closed") == 1.0
    })
    .await;
}

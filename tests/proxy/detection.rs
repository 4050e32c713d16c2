//! Protocol `auto` through the proxy (contract 4.5): whatever a server could read as a request is
//! judged as HTTP, and no endpoint gets it as plain bytes. What is another protocol passes.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::scripted::Scripted;
use crate::proxy::tcp::{echo, leases};
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// An endpoint that records every byte of each connection, and answers nothing.
async fn recorder() -> (Scripted, Arc<Mutex<Vec<Vec<u8>>>>) {
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let notes = seen.clone();
    let scripted = Scripted::start(move |mut stream: TcpStream, number| {
        let notes = notes.clone();
        async move {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                let mut notes = notes.lock().unwrap();
                let count = notes.len().max(number + 1);
                notes.resize(count, Vec::new());
                notes[number].extend_from_slice(&buf[..n]);
            }
        }
    })
    .await;
    (scripted, seen)
}

async fn rig(a: &Scripted, more: &str) -> Rig {
    let rig = Rig::start(more).await;
    rig.endpoints(&[Ep::new("a", a.address)]);
    rig.usable(1).await;
    rig
}

/// What an attacker hides behind a first line that the proxy does not know.
const SMUGGLED: &str = "Host: a\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: 3\r\n\
                        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

/// First lines that some server takes for a request, and the status that each gets.
fn request_lines() -> Vec<(Vec<u8>, &'static str)> {
    let long = [b"GET /", &[b'a'; 17 << 10][..], b" HTTP/1.1\r\n"].concat();
    let old = [b"X-", &[b'a'; 17 << 10][..], b" / HTTP/1.1\r\n"].concat();
    [
        (&b"GET /\xc3\xa9 HTTP/1.1\r\n"[..], "400"),
        (b"GET / HTTP/1.2\r\n", "505"),
        (b"GET / HTTP/2.0\r\n", "505"),
        (b"PRI * HTTP/2.0\r\n", "505"),
        (b"GET / http/1.1\r\n", "400"),
        (b"GET  / HTTP/1.1\r\n", "400"),
        (b"GET\t/\tHTTP/1.1\r\n", "400"),
        (b"X / HTTP/1.1 \r\n", "400"),
        (b"X / HTTP/1.1\n", "400"),
        (b"X / HTTP/1.1\rY: z\r\n", "400"),
        (b"\r\n\r\nX / HTTP/1.1\r\n", "400"),
        (b" X / HTTP/1.1\r\n", "400"),
        (b"{X} / HTTP/1.1\r\n", "400"),
        (b"X / HTTP/1.1\r\n", "400"),
    ]
    .map(|(line, status)| (line.to_vec(), status))
    .into_iter()
    .chain([(long, "414"), (old, "431")])
    .collect()
}

#[tokio::test]
async fn what_some_server_takes_for_a_request_line_is_never_plain_tcp() {
    let (a, seen) = recorder().await;
    let rig = rig(&a, "").await;
    let mut lines = 0;
    for (line, status) in request_lines() {
        let step = line.len().div_ceil(24);
        for at in (0..line.len()).step_by(step) {
            let mut client = TcpStream::connect(rig.web()).await.unwrap();
            client.set_nodelay(true).unwrap();
            client.write_all(&line[..at]).await.unwrap();
            tokio::task::yield_now().await;
            let rest = [&line[at..], SMUGGLED.as_bytes()].concat();
            let _ = client.write_all(&rest).await;
            assert_refused(&mut client, status, &line).await;
            lines += 1;
        }
    }
    assert!(lines > 200);
    assert_only_beginnings(&seen);
}

/// The pauses are longer than the proxy waits for a silent client.
#[tokio::test]
async fn a_request_line_that_comes_in_pieces_is_never_plain_tcp() {
    let (a, seen) = recorder().await;
    let rig = rig(&a, "").await;
    for (pieces, status) in [
        (&["FO", "O / HT", "TP/1.1 \r\n"][..], "400"),
        (&["\r\n", "GET / HTTP/1.2\r\n"], "505"),
        (&["{", "X} / HTTP/1.1\r\n"], "400"),
        (&["", "GET /", " HTTP/2.0\r\n"], "505"),
    ] {
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        client.set_nodelay(true).unwrap();
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
        client.write_all(SMUGGLED.as_bytes()).await.unwrap();
        assert_refused(&mut client, status, pieces.concat().as_bytes()).await;
    }
    assert_only_beginnings(&seen);
    // The same with nothing at fault is served, although an endpoint has got a part of the line.
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    client.write_all(b"FO").await.unwrap();
    eventually("a part of the line at the endpoint", async || {
        seen.lock().unwrap().iter().any(|bytes| bytes == b"FO")
    })
    .await;
    client
        .write_all(b"O / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    eventually("the request on another connection", async || {
        let whole = b"FOO / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 127.0.0.1\r\n";
        seen.lock()
            .unwrap()
            .iter()
            .any(|bytes| bytes.starts_with(whole))
    })
    .await;
}

/// A client could wait until the proxy no longer expects a request.
#[tokio::test]
async fn a_request_line_that_never_ends_is_a_408() {
    let (a, seen) = recorder().await;
    let rig = rig(&a, "timeouts: {head: 300ms}").await;
    for begun in ["GET / HT", "POST /"] {
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        client.write_all(begun.as_bytes()).await.unwrap();
        assert_refused(&mut client, "408", begun.as_bytes()).await;
    }
    // A silent client has the time of an idle one, and then of a head.
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    eventually("a provisional connection", async || {
        leases(&rig, a.address) == 1
    })
    .await;
    client.write_all(b"GET /").await.unwrap();
    assert_refused(&mut client, "408", b"GET /").await;
    assert_eq!(*seen.lock().unwrap(), Vec::<Vec<u8>>::new());
}

/// `limits.headSize` is what holds, below the bytes that detection looks at and above them.
#[tokio::test]
async fn the_configured_size_of_a_head_holds_with_auto_as_with_http() {
    let origin = Scripted::start(|mut stream: TcpStream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
    })
    .await;
    for (size, length, status) in [
        ("1KiB", 900, "200"),
        ("1KiB", 2_000, "414"),
        ("64KiB", 40_000, "200"),
        ("64KiB", 70_000, "414"),
    ] {
        let rig = rig(&origin, &format!("limits: {{headSize: {size}}}")).await;
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        let target = "a".repeat(length);
        let ask = format!("GET /{target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let _ = client.write_all(ask.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = soon("an answer", client.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{size}, {length}: {answer}"
        );
    }
}

/// Texts without a line's end, and lines in pieces: their server gets each piece as it comes.
#[tokio::test]
async fn other_protocols_pass_piece_by_piece() {
    let a = echo().await;
    let rig = rig(&a, "").await;
    for pieces in [
        &["ruok"][..],
        &["{\"id\":1}", "{\"id\":2}"],
        &["EHLO ", "there\r\n", "GET / HTTP/1.1\r\n\r\n"],
        &["\r\n", "help\r\n"],
        &["GET key\r\n", "GET / HTTP/1.1\r\n\r\n"],
        &["CMD\r", "CMD\r"],
        &["msg \u{e9}", "\u{e9}"],
    ] {
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            let mut back = vec![0; piece.len()];
            let what = format!("the echo of {piece:?} in {pieces:?}");
            soon(&what, client.read_exact(&mut back)).await.unwrap();
            assert_eq!(back, piece.as_bytes(), "{pieces:?}");
        }
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon("the end", client.read_to_end(&mut rest))
            .await
            .unwrap();
        assert_eq!(rest, b"", "{pieces:?}");
    }
    assert_eq!(
        rig.metric("ebbtide_connections_total", "protocol=\"http\""),
        0.0
    );
}

/// A text without an end is TCP like any other when its endpoint drains: it goes on, up to the
/// deadline.
#[tokio::test]
async fn a_text_that_has_begun_goes_on_while_its_endpoint_drains() {
    let (a, seen) = recorder().await;
    let rig = rig(&a, "").await;
    rig.service(&[("ebbtide.dev/drain-timeout", "2s")]);
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    client.write_all(b"text").await.unwrap();
    let got = async |what: &[u8]| {
        eventually("the text at the endpoint", async || {
            seen.lock().unwrap().iter().any(|bytes| bytes == what)
        })
        .await;
    };
    got(b"text").await;
    rig.endpoints(&[]);
    rig.usable(0).await;
    client.write_all(b" more").await.unwrap();
    got(b"text more").await;
    let end = soon("the deadline", client.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    eventually("a receipt of the cut", async || {
        rig.receipts().iter().any(|drain| drain.forced == 1)
    })
    .await;
}

async fn assert_refused(client: &mut TcpStream, status: &str, line: &[u8]) {
    let mut answer = Vec::new();
    let _ = soon("a refusal", client.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let line = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("x-ebbtide-reason: "),
        "{line:?}: {answer}"
    );
}

/// No endpoint has got a whole first line.
fn assert_only_beginnings(seen: &Mutex<Vec<Vec<u8>>>) {
    for bytes in seen.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(bytes).into_owned();
        assert!(!text.trim_start().contains(['\r', '\n']), "{text:?}");
        assert!(!text.contains("HTTP/"), "{text:?}");
    }
}

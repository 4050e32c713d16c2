//! Clients that do not shake hands as they should.

use std::sync::Arc;

use rustls::ClientConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::ask::raw;
use crate::proxy::play::{Act, OK, Play};
use crate::proxy::tls::handshake::ask;
use crate::proxy::tls::{Authority, folder, listener, open, rig, trusting};
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

async fn serve(rig: &Rig) -> Play {
    let endpoint = Play::start(|_| Act::Say(OK.into())).await;
    rig.endpoints(&[Ep::new("e", endpoint.address())]);
    rig.usable(1).await;
    endpoint
}

/// The first bytes of a client.
fn hello() -> Vec<u8> {
    let name = "a.example".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(trusting()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

async fn closes(rig: &Rig, reason: &str, count: f64) {
    eventually(reason, async || {
        rig.metric("ebbtide_connection_closes_total", reason) == count
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_handshake_get_an_alert_and_nothing_of_them_reaches_an_endpoint() {
    let rig = rig("auto", "", "").await;
    let endpoint = serve(&rig).await;
    let long = [&[22, 3, 1, 0x40, 0][..], &[1, 1, 0, 0], &[0; 0x4000 - 4]].concat();
    let endless = [&[22, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let too_long: Vec<u8> = std::iter::once(long)
        .chain((0..5).map(|_| endless.clone()))
        .flatten()
        .collect();
    let mut bent = hello();
    // The length of the session's number, which then is too long.
    bent[43] = 0xff;
    let all: [&[u8]; 6] = [
        b"\x00\x01\x02garbage",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[22, 3, 1, 0xff, 0xff, 1],
        &[21, 3, 3, 0, 2, 2, 40],
        &too_long,
        &bent,
    ];
    for (n, bytes) in all.into_iter().enumerate() {
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut came = Vec::new();
        let end = soon("the end", stream.read_to_end(&mut came)).await;
        assert!(end.is_ok(), "{n}: {end:?}");
        // An alert is not answered, and rustls has none for a message that is too long.
        assert_eq!(came.is_empty(), [3, 4].contains(&n), "{n}: {came:?}");
        assert!(
            came.is_empty() || came.starts_with(&[21, 3]),
            "{n}: {came:?}"
        );
        drop(stream);
        closes(&rig, "bad_handshake", (n + 1) as f64).await;
    }
    assert_eq!(ask(&mut open(rig.web()).await).await.unwrap(), OK);
    assert_eq!(endpoint.heads(), 1);
}

#[tokio::test]
async fn a_client_that_sends_before_it_reads_learns_why_it_is_refused() {
    let (folder, _) = folder();
    let authority = Authority::new().pem();
    std::fs::write(folder.path().join("ca.crt"), authority).unwrap();
    let rig = Rig::run(folder, &listener("http", ", clientCa: ca.crt", "")).await;
    let endpoint = serve(&rig).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    let mut client = open(rig.web()).await;
    client.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..1000 {
        client.write_all(&[b'x'; 1000]).await.unwrap();
    }
    client.flush().await.unwrap();
    let end = soon("the alert", client.read(&mut [0; 100])).await;
    let end = end.unwrap_err().to_string();
    assert!(end.contains("CertificateRequired"), "{end}");
    drop(client);
    closes(&rig, "bad_handshake", 1.0).await;
    assert_eq!(endpoint.heads(), 0);
}

#[tokio::test]
async fn a_request_in_the_clear_is_told_what_is_missing() {
    let rig = rig("http", "", "").await;
    let endpoint = serve(&rig).await;
    let body = "x".repeat(20_000);
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        format!("POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n{body}"),
    ] {
        let (answer, clean) = raw(rig.web(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(
            answer
                .to_lowercase()
                .contains("x-ebbtide-reason: tls_required\r\n"),
            "{answer}"
        );
        assert!(clean);
    }
    closes(&rig, "bad_request", 2.0).await;
    assert_eq!(endpoint.heads(), 0);
}

#[tokio::test]
async fn a_handshake_may_come_byte_by_byte() {
    let rig = rig("http", "", "").await;
    let _endpoint = serve(&rig).await;
    let name = "a.example".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(trusting()), name).unwrap();
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    while client.is_handshaking() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        for byte in flight {
            stream.write_all(&[byte]).await.unwrap();
        }
        if client.is_handshaking() {
            let byte = soon("an answer", stream.read_u8()).await.unwrap();
            client.read_tls(&mut &[byte][..]).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    let mut last = Vec::new();
    client.write_tls(&mut last).unwrap();
    for byte in last {
        stream.write_all(&[byte]).await.unwrap();
    }
    eventually("a handshake", async || {
        rig.metric("ebbtide_tls_handshakes_total", "full") == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_handshake_has_the_time_of_a_head_from_its_first_byte_on() {
    let rig = rig("http", "", "timeouts: {head: 300ms}").await;
    let hello = hello();
    for part in [1, hello.len() / 2, hello.len()] {
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        stream.write_all(&hello[..part]).await.unwrap();
        let mut came = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut came)).await;
        assert_eq!(!came.is_empty(), part == hello.len());
    }
    closes(&rig, "client_timeout", 3.0).await;
}

#[tokio::test]
async fn a_thousand_silent_clients_and_a_herd_of_handshakes_delay_nobody_for_good() {
    let rig = rig("http", "", "").await;
    let _endpoint = serve(&rig).await;
    let mut kept = open(rig.web()).await;
    let hello = hello();
    let mut silent = Vec::new();
    for n in 0..1_000 {
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        // Half of them leave a handshake in its middle.
        if n % 2 == 0 {
            stream.write_all(&hello).await.unwrap();
        }
        silent.push(stream);
        if n % 100 == 0 {
            assert_eq!(ask(&mut kept).await.unwrap(), OK);
        }
    }
    assert_eq!(ask(&mut open(rig.web()).await).await.unwrap(), OK);
    drop(silent);
    eventually("the others have left", async || {
        rig.metric("ebbtide_connections_active", "") <= 2.0
    })
    .await;
    assert_eq!(ask(&mut kept).await.unwrap(), OK);
}

//! An endpoint that takes nothing for longer than `timeouts.upstreamSilence`, and then goes on
//! (contract 1.12, 2.4): its receive window is closed, but its kernel answers.

use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::soon;

/// More than all buffers on the way take.
const LONG: usize = 24 << 20;
/// Several times the limit below. A longer pause changes nothing.
const PAUSE: Duration = Duration::from_secs(4);
const LIMIT: &str = "timeouts: {upstreamSilence: 1s}";

/// An endpoint that reads each connection to its end, once it may, and then says how much came.
async fn paused(gate: Arc<Semaphore>) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener)
        .set_recv_buffer_size(8 << 10)
        .unwrap();
    Scripted::on(listener, move |mut stream: TcpStream, _| {
        let gate = gate.clone();
        async move {
            let _ = gate.acquire().await;
            let (mut head, mut body, mut some) = (Vec::new(), 0, [0; 64 << 10]);
            while let Ok(n) = stream.read(&mut some).await {
                if head.is_empty() && some.starts_with(b"PUT ") {
                    let end = some[..n].windows(4).position(|it| it == b"\r\n\r\n");
                    head.extend_from_slice(&some[..end.unwrap() + 4]);
                }
                body += n;
                if n == 0 || body == head.len() + LONG {
                    break;
                }
            }
            let count = (body - head.len()).to_string();
            let answer = match head.is_empty() {
                true => count,
                false => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{count}",
                    count.len()
                ),
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
}

async fn start(protocol: &str) -> (Rig, Arc<Semaphore>, Scripted) {
    let gate = Arc::new(Semaphore::new(0));
    let endpoint = paused(gate.clone()).await;
    let rig = Rig::with_protocol(protocol, LIMIT).await;
    rig.endpoints(&[Ep::new("a", endpoint.address)]);
    rig.usable(1).await;
    (rig, gate, endpoint)
}

async fn pause(gate: &Semaphore) {
    tokio::time::sleep(PAUSE).await;
    gate.close();
}

#[tokio::test]
async fn a_tcp_connection_outlives_an_endpoint_that_takes_nothing_for_a_while() {
    let (rig, gate, _endpoint) = start("tcp").await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    let (mut read, mut write) = client.split();
    let send = async {
        write.write_all(&vec![b'x'; LONG]).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = String::new();
    let receive = soon("the count", read.read_to_string(&mut got));
    let ((), received, ()) = tokio::join!(send, receive, pause(&gate));
    received.unwrap();
    assert_eq!(got, LONG.to_string());
}

#[tokio::test]
async fn an_upload_outlives_an_endpoint_that_takes_nothing_for_a_while() {
    let (rig, gate, _endpoint) = start("http").await;
    let mut client = TcpStream::connect(rig.web()).await.unwrap();
    let head =
        format!("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {LONG}\r\n\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + LONG, b'x');
    let send = async {
        let (mut read, mut write) = client.split();
        let mut got = Vec::new();
        let (sent, received) = tokio::join!(
            write.write_all(&request),
            soon("the answer", read.read_to_end(&mut got))
        );
        sent.unwrap();
        received.unwrap();
        String::from_utf8(got).unwrap()
    };
    let (answer, ()) = tokio::join!(send, pause(&gate));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(&LONG.to_string()), "{answer}");
}

//! What comes before a cut arrives, and then comes an end that does not look clean (contract 1.6,
//! 1.12): in each direction, whatever the framing, however slowly the other side reads.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ebbtide::net::socket::delivery;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::proxy::tcp::{Station, known, through, to_end};
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// How much arrives before the cut.
const PART: usize = 1_000_000;

/// Bytes of which no two pieces are alike.
fn pattern() -> Vec<u8> {
    (0..PART as u32 / 4).flat_map(u32::to_be_bytes).collect()
}

/// Sends all of it, and waits until the proxy's kernel has it: a reset would take the rest back.
pub async fn deliver(stream: &mut TcpStream, bytes: &[u8]) {
    soon("the bytes sent", stream.write_all(bytes))
        .await
        .unwrap();
    eventually("the bytes received", async || {
        let delivery = delivery(stream.as_raw_fd()).unwrap();
        !delivery.unanswered && !delivery.waiting
    })
    .await;
}

pub fn die(stream: TcpStream, by_reset: bool) {
    if by_reset {
        stream.set_zero_linger().unwrap();
    }
}

/// A client whose kernel takes little at a time.
async fn narrow(rig: &Rig) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(rig.web()).await.unwrap()
}

/// Reads to the end, a little at a time, with pauses.
pub async fn slowly(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut all, mut some) = (Vec::new(), vec![0; 4 << 10]);
    loop {
        match soon("more", stream.read(&mut some)).await {
            Ok(0) => return (all, None),
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(error) => return (all, Some(error.kind())),
        }
        if all.len() % 32 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What a chunked body holds, and whether its last chunk came.
pub fn decode(mut body: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while let Some(end) = body.windows(2).position(|it| it == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (all, true);
        }
        let rest = &body[end + 2..];
        all.extend_from_slice(&rest[..size.min(rest.len())]);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    (all, false)
}

#[tokio::test]
async fn a_slow_client_gets_every_byte_of_a_response_that_is_cut_and_no_clean_end() {
    let chunk = format!("{PART:X}\r\n");
    let rows = [
        ("1.1", "Content-Length: 2000000\r\n\r\n", false),
        ("1.1", "Content-Length: 2000000\r\n\r\n", true),
        ("1.1", "Transfer-Encoding: chunked\r\n\r\n", false),
        ("1.1", "Transfer-Encoding: chunked\r\n\r\n", true),
        // For these clients nothing but the end of the connection ends the body.
        ("1.0", "Connection: close\r\n\r\n", true),
        ("1.0", "Transfer-Encoding: chunked\r\n\r\n", true),
        // A client of version 1.1 gets such a body in chunks.
        ("1.1", "Connection: close\r\n\r\n", true),
    ];
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("http", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    for (version, framing, by_reset) in rows {
        let row = format!("{version} {framing:?} reset {by_reset}");
        let mut client = narrow(&rig).await;
        let get = format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n");
        client.write_all(get.as_bytes()).await.unwrap();
        let (mut endpoint, _) = a.next().await;
        let chunked = framing.starts_with("Transfer");
        let mut answer = format!("HTTP/1.1 200 OK\r\n{framing}").into_bytes();
        if chunked {
            answer.extend_from_slice(chunk.as_bytes());
        }
        answer.extend_from_slice(&pattern());
        let serve = async {
            deliver(&mut endpoint, &answer).await;
            die(endpoint, by_reset);
        };
        let ((got, end), ()) = tokio::join!(slowly(&mut client), serve);
        let head = got.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        let text = String::from_utf8_lossy(&got[..head]).to_lowercase();
        let (body, whole) = match text.contains("transfer-encoding: chunked") {
            true => decode(&got[head..]),
            false => (got[head..].to_vec(), false),
        };
        assert!(!whole, "{row}: a whole answer");
        assert!(body == pattern(), "{row}: {} bytes of {PART}", body.len());
        let framed = text.contains("content-length") || text.contains("transfer-encoding");
        let expected = (!framed).then_some(ErrorKind::ConnectionReset);
        assert_eq!(end, expected, "{row}");
    }
}

#[tokio::test]
async fn a_slow_side_of_a_tcp_connection_gets_every_byte_and_then_the_reset() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    for client_dies in [false, true] {
        let (client, endpoint) = through(&rig, &mut a).await;
        let (mut dies, mut reads) = match client_dies {
            true => (client, endpoint),
            false => (endpoint, client),
        };
        SockRef::from(&reads).set_recv_buffer_size(4 << 10).unwrap();
        let serve = async {
            deliver(&mut dies, &pattern()).await;
            die(dies, true);
        };
        let ((got, end), ()) = tokio::join!(slowly(&mut reads), serve);
        assert!(got == pattern(), "{client_dies}: {} bytes", got.len());
        assert_eq!(end, Some(ErrorKind::ConnectionReset), "{client_dies}");
        eventually("the lease returned", async || {
            known(&rig, a.scripted.address).unwrap().leases() == 0
        })
        .await;
    }
}

/// The client is written to when it resets: the write takes the socket's error, and the read would
/// then report an end.
#[tokio::test]
async fn a_reset_while_the_endpoint_sends_stays_a_reset() {
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    for _ in 0..5 {
        let (mut client, mut endpoint) = through(&rig, &mut a).await;
        client.write_all(b"part").await.unwrap();
        let send = async {
            let block = vec![b'x'; 64 << 10];
            while endpoint.try_write(&block).is_ok() || endpoint.writable().await.is_ok() {
                if endpoint
                    .try_write(&block)
                    .is_err_and(|e| e.kind() != ErrorKind::WouldBlock)
                {
                    break;
                }
            }
        };
        let leave = async {
            client.read_exact(&mut vec![0; 256 << 10]).await.unwrap();
            die(client, true);
        };
        soon("the reset", async { tokio::join!(send, leave) }).await;
        // The write above has met the reset. What had come before it is still there.
        let (got, end) = to_end(&mut endpoint).await;
        assert_ne!((got.len(), end), (0, None), "an end that looks clean");
    }
}

/// A client that reads nothing holds up neither the deadline nor the receipt.
#[tokio::test]
async fn a_client_that_reads_nothing_delays_no_drain_deadline() {
    for protocol in ["tcp", "http"] {
        let mut a = Station::start().await;
        let rig = Rig::with_protocol(protocol, "timeouts: {drain: 1s}").await;
        rig.endpoints(&[a.ep("a")]);
        rig.usable(1).await;
        let mut client = narrow(&rig).await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let (mut endpoint, _) = a.next().await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
        endpoint.write_all(head).await.unwrap();
        crate::proxy::tcp::send_until_blocked(&mut endpoint).await;
        rig.endpoints(&[]);
        eventually("the receipt", async || {
            rig.receipts().iter().any(|receipt| receipt.ended.is_some())
        })
        .await;
        let (got, end) = to_end(&mut client).await;
        assert!(!got.is_empty());
        let expected = (protocol == "tcp").then_some(ErrorKind::ConnectionReset);
        assert_eq!(end, expected, "{protocol}");
    }
}

#[tokio::test]
async fn a_connection_without_a_byte_for_the_tunnels_idle_time_ends_by_fin_and_a_busy_one_does_not()
{
    let mut a = Station::start().await;
    let rig = Rig::with_protocol("tcp", "timeouts: {tunnelIdle: 1s, clientIdle: 100ms}").await;
    rig.endpoints(&[a.ep("a")]);
    rig.usable(1).await;
    let (mut idle, mut idle_endpoint) = through(&rig, &mut a).await;
    let (mut busy, mut busy_endpoint) = through(&rig, &mut a).await;
    let ends = async { tokio::join!(to_end(&mut idle), to_end(&mut idle_endpoint)) };
    tokio::pin!(ends);
    let ends = loop {
        // Either direction counts.
        crate::proxy::tcp::passes(&mut busy, &mut busy_endpoint, b"up").await;
        crate::proxy::tcp::passes(&mut busy_endpoint, &mut busy, b"down").await;
        match tokio::time::timeout(Duration::from_millis(20), &mut ends).await {
            Ok(ends) => break ends,
            Err(_) => continue,
        }
    };
    assert_eq!(ends, ((Vec::new(), None), (Vec::new(), None)));
    crate::proxy::tcp::passes(&mut busy, &mut busy_endpoint, b"still").await;
    eventually("the count", async || {
        let reason = "reason=\"client_timeout\"";
        rig.metric("ebbtide_connection_closes_total", reason) == 1.0
    })
    .await;
}

/// The endpoint reads nothing, so nothing is read from the client.
#[tokio::test]
async fn a_client_that_resets_behind_bytes_that_the_endpoint_does_not_take_is_noticed() {
    for protocol in ["tcp", "http"] {
        let mut a = Station::start().await;
        let rig = Rig::with_protocol(protocol, "").await;
        rig.endpoints(&[a.ep("a")]);
        rig.usable(1).await;
        let mut client = TcpStream::connect(rig.web()).await.unwrap();
        let head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
        client.write_all(head).await.unwrap();
        let (endpoint, _) = a.next().await;
        crate::proxy::tcp::send_until_blocked(&mut client).await;
        die(client, true);
        eventually("the lease returned", async || {
            known(&rig, a.scripted.address).unwrap().leases() == 0
        })
        .await;
        drop(endpoint);
    }
}

//! The end of a client within its exchange (contract 4.4): its FIN reaches the endpoint, and the
//! application decides what it means.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebbtide::contract::reason::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::play::{Act, OK, Play};
use crate::proxy::scripted::Scripted;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// An endpoint that sends `first`, waits for the end of the client's direction, sends `then`, and
/// waits for the end of the connection. Counts the ends that it saw within an exchange.
async fn until_end(
    first: &'static [&'static str],
    then: &'static [&'static str],
) -> (Scripted, Arc<AtomicUsize>) {
    let ends = Arc::new(AtomicUsize::new(0));
    let seen = ends.clone();
    let scripted = Scripted::start(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let mut bytes = [0; 4096];
            if !matches!(stream.read(&mut bytes).await, Ok(1..)) {
                return;
            }
            for part in first {
                stream.write_all(part.as_bytes()).await.unwrap();
            }
            while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
            seen.fetch_add(1, Ordering::SeqCst);
            for part in then {
                // Each part comes by itself.
                tokio::task::yield_now().await;
                if stream.write_all(part.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (scripted, ends)
}

async fn rig_of(scripted: &Scripted) -> Rig {
    let rig = Rig::start("timeouts: {drain: 1h}").await;
    rig.endpoints(&[Ep::new("a", scripted.address)]);
    rig.usable(1).await;
    rig
}

/// Sends bytes and ends the client's direction. Returns all that comes back, and whether it ends
/// cleanly.
async fn half_close(rig: &Rig, bytes: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(rig.web()).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = Vec::new();
    let clean = soon("the end", stream.read_to_end(&mut text)).await.is_ok();
    (String::from_utf8_lossy(&text).into_owned(), clean)
}

/// The application answers only once it has seen the FIN, so the FIN has reached it.
#[tokio::test]
async fn a_client_that_half_closes_and_waits_gets_its_whole_response() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    type Parts = &'static [&'static str];
    let rows: [(Parts, Parts, &str); 3] = [
        (&[], &[OK], "\r\n\r\nok"),
        (
            &[CHUNKED, "5\r\nhello\r\n"],
            &["6\r\n world\r\n", "0\r\n\r\n"],
            " world\r\n0\r\n\r\n",
        ),
        // Without a length: the proxy makes chunks of what comes.
        (
            &["HTTP/1.1 200 OK\r\n\r\n", "hello"],
            &[" ", "world"],
            "\r\n0\r\n\r\n",
        ),
    ];
    for (first, then, end) in rows {
        let (endpoint, ends) = until_end(first, then).await;
        let rig = rig_of(&endpoint).await;
        let put = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
        for (number, request) in [GET, put].into_iter().enumerate() {
            let (text, clean) = half_close(&rig, request).await;
            assert!(
                clean && text.starts_with("HTTP/1.1 200 ") && text.ends_with(end),
                "{text}"
            );
            assert_eq!(
                ends.load(Ordering::SeqCst),
                number + 1,
                "the connection was kept"
            );
        }
        assert_eq!(rig.metric("ebbtide_retries_total", ""), 0.0);
    }
}

/// The FIN behind pipelined requests is that of the last one.
#[tokio::test]
async fn an_end_behind_further_requests_belongs_to_the_last_one() {
    let play = Play::start(|_| Act::Say(OK.into())).await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("a", play.address())]);
    rig.usable(1).await;
    let (text, clean) = half_close(&rig, &GET.repeat(5)).await;
    assert_eq!((text, clean), (OK.repeat(5), true));
    assert_eq!(play.requests().len(), 5);
}

/// A client that leaves an endless response is noticed by its FIN, and its exchange holds up no
/// drain: nothing else tells the endpoint, since nothing is sent any more.
#[tokio::test]
async fn a_client_that_leaves_a_stream_of_events_is_noticed_immediately() {
    const HEAD: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (endpoint, ends) = until_end(&[HEAD, "8\r\ndata: 1\n\r\n"], &[]).await;
    let rig = rig_of(&endpoint).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(rig.web()).await.unwrap();
        stream.write_all(GET.as_bytes()).await.unwrap();
        let mut text = String::new();
        while !text.contains("data: 1") {
            let mut bytes = [0; 1024];
            let n = soon("an event", stream.read(&mut bytes)).await.unwrap();
            text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
        clients.push(stream);
    }
    assert_eq!(ends.load(Ordering::SeqCst), 0);
    rig.endpoints(&[]);
    eventually("the drain", async || rig.receipts().len() == 1).await;
    assert!(rig.receipts()[0].ended.is_none());
    let left = std::time::Instant::now();
    drop(clients);
    eventually("all ends", async || ends.load(Ordering::SeqCst) == 20).await;
    eventually("the end of the drain", async || {
        rig.receipts()[0].ended.is_some()
    })
    .await;
    assert_eq!(rig.receipts()[0].ended.unwrap().1, Outcome::Drained);
    println!(
        "FIGURE ends leaving: {:?} until 20 streams and their drain had ended",
        left.elapsed()
    );
    assert_eq!(failures(&rig), 0.0, "a client that leaves is no failure");
}

fn failures(rig: &Rig) -> f64 {
    rig.metric("ebbtide_failures_total", "")
}

/// The application ends the exchange when it sees the client's end: its decision is passed on, and
/// the request is not sent again to somebody who might decide otherwise.
#[tokio::test]
async fn an_exchange_that_the_application_ends_at_the_clients_end_is_not_replayed() {
    // The second request may meet a kept connection: its end is no stale connection's.
    let play = Play::start(|turn| match turn.number {
        0 => Act::Say(OK.into()),
        3 => Act::SayAndHang(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\npart".into()),
        _ => Act::Hang,
    })
    .await;
    let rig = Rig::start("").await;
    rig.endpoints(&[Ep::new("a", play.address())]);
    rig.usable(1).await;
    let (text, _) = half_close(&rig, GET).await;
    assert!(text.ends_with("ok"), "{text}");
    for ran in [2, 3] {
        let (text, clean) = half_close(&rig, GET).await;
        assert_eq!((text.as_str(), clean), ("", true));
        assert_eq!(play.requests().len(), ran);
    }
    // A response that has begun is cut, so that a client that still reads sees that it is not whole.
    let (text, clean) = half_close(&rig, GET).await;
    assert!(!clean, "a clean end after {text}");
    assert_eq!(play.requests().len(), 4);
    assert_eq!(
        failures(&rig),
        0.0,
        "the application's decision is no failure"
    );
}

/// The endpoint leaves, so the loss is the rollout's doing and not the application's decision.
#[tokio::test]
async fn a_half_closed_client_gets_its_replay() {
    for before in [true, false] {
        let (a, b) = (
            Play::start(|_| Act::SayLater(OK.into())).await,
            Play::start(|_| Act::Say(OK.into())).await,
        );
        let rig = Rig::start("").await;
        let (ep_a, ep_b) = (Ep::new("a", a.address()), Ep::new("b", b.address()));
        rig.endpoints(std::slice::from_ref(&ep_a));
        rig.usable(1).await;
        let web = rig.web();
        let mut stream = TcpStream::connect(web).await.unwrap();
        stream.write_all(GET.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        eventually("in flight", async || a.requests().len() == 1).await;
        rig.endpoints(&[ep_a.clone(), ep_b.clone()]);
        rig.usable(2).await;
        let leave = || rig.endpoints(&[ep_a.clone().terminating(), ep_b.clone()]);
        if before {
            leave();
            rig.usable(1).await;
            a.drop_connections();
        } else {
            a.drop_connections();
            leave();
        }
        let mut text = String::new();
        soon("a response", stream.read_to_string(&mut text))
            .await
            .unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 ") && text.ends_with("ok"),
            "{text}"
        );
        assert_eq!((a.requests().len(), b.requests().len()), (1, 1));
    }
}

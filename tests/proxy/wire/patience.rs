//! The proxy's timeouts for a client, and the waits that are not the client's (contract 4.1). A
//! client is idle only while the proxy waits for its bytes. A slow endpoint, a body that moves and
//! a response that streams do not make it idle.

use std::sync::atomic::AtomicBool;

use super::*;

#[tokio::test]
async fn a_head_that_is_never_complete_gets_a_408() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "timeouts: {head: 300ms, clientIdle: 60s}").await;
    for before in ["", GET] {
        for steady in [false, true] {
            let mut client = Wire::connect(&rig).await;
            client.send(before).await;
            if !before.is_empty() {
                assert_eq!(client.message().await.as_deref(), Some(OK));
            }
            client.send("GET / HTTP/1.1\r\nHost: a\r\nA: b").await;
            let (mut reader, mut writer) = client.stream.into_split();
            // A byte now and then does not restart the timeout.
            let dribble = tokio::spawn(async move {
                while steady && writer.write_all(b"b").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // Dropping the writer would end this direction.
                std::future::pending::<()>().await;
            });
            let mut answer = String::new();
            let end = soon(
                "the response and the end",
                reader.read_to_string(&mut answer),
            )
            .await;
            dribble.abort();
            assert!(
                answer.starts_with("HTTP/1.1 408 ") && end.is_ok(),
                "{answer} {end:?}"
            );
            assert_eq!(field(&answer, "x-ebbtide-reason"), Some("head_timeout"));
            assert_eq!(field(&answer, "Connection"), Some("close"));
        }
    }
    assert_eq!(origin.seen().len(), 2);
}

#[tokio::test]
async fn an_idle_client_is_closed_without_a_response() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "timeouts: {clientIdle: 300ms, head: 60s}").await;
    let mut fresh = Wire::connect(&rig).await;
    assert_eq!(fresh.rest().await, (String::new(), End::Fin));
    let mut client = Wire::connect(&rig).await;
    client.assert_alive("nothing").await;
    assert_eq!(client.rest().await, (String::new(), End::Fin));
    let timeouts = || rig.metric("ebbtide_connection_closes_total", "client_timeout");
    eventually("both to be counted", async || timeouts() == 2.0).await;
}

/// RFC 9112 section 2.2: an empty line before a request is ignored, and does not begin a request.
#[tokio::test]
async fn an_empty_line_alone_leaves_a_client_idle() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "timeouts: {clientIdle: 300ms, head: 50ms}").await;
    for part in ["\r\n", "\r"] {
        let mut client = Wire::connect(&rig).await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok\r\n")
            .await;
        assert_eq!(client.message().await.as_deref(), Some(OK));
        client.assert_alive("an empty line behind a body").await;
        client.send(part).await;
        assert_eq!(
            client.rest().await,
            (String::new(), End::Fin),
            "idle, not in the middle of a head"
        );
    }
}

#[tokio::test]
async fn a_body_that_stalls_ends_both_connections() {
    let stalled = Arc::new(AtomicBool::new(false));
    let flag = stalled.clone();
    let origin = Origin::start(move |mut wire, _| {
        let flag = flag.clone();
        async move {
            flag.store(
                wire.message().await.is_none() && wire.end.is_some(),
                Ordering::SeqCst,
            );
        }
    })
    .await;
    let rig = scene(&origin, "timeouts: {clientIdle: 300ms}").await;
    for body in [
        "Content-Length: 9\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        stalled.store(false, Ordering::SeqCst);
        let mut client = Wire::connect(&rig).await;
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}"))
            .await;
        let (answer, _) = client.rest().await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
        eventually("the endpoint's end", async || {
            stalled.load(Ordering::SeqCst)
        })
        .await;
    }
}

#[tokio::test]
async fn a_slow_endpoint_does_not_make_its_client_idle() {
    let origin = Origin::start(|mut wire, _| async move {
        while wire.message().await.is_some() {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            wire.send(OK).await;
        }
    })
    .await;
    let rig = scene(&origin, "timeouts: {clientIdle: 200ms, head: 200ms}").await;
    let mut client = Wire::connect(&rig).await;
    client.send(GET.repeat(2)).await;
    for _ in 0..2 {
        assert_eq!(client.message().await.as_deref(), Some(OK));
    }
}

/// Bytes in one direction keep the other direction alive, too.
#[tokio::test]
async fn a_response_that_streams_keeps_an_open_upload_alive() {
    let origin = Origin::start(|mut wire, _| async move {
        if wire.head().await.is_none() {
            return;
        }
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            wire.send("1\r\nx\r\n").await;
        }
        wire.send("0\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let rig = scene(&origin, "timeouts: {clientIdle: 2s}").await;
    let mut client = Wire::connect(&rig).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    let answer = client.message().await;
    assert_eq!(
        answer.map(|answer| answer.matches("1\r\nx\r\n").count()),
        Some(40),
        "{:?}",
        client.end
    );
}

/// The proxy's own response does not wait for a body that the client holds back until `100
/// Continue`.
#[tokio::test]
async fn an_own_answer_does_not_wait_for_the_body() {
    let origin = Origin::start(|mut wire, _| async move {
        wire.rest().await;
    })
    .await;
    let rig = scene(
        &origin,
        "timeouts: {head: 60s, hold: 100ms, request: 300ms}",
    )
    .await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    for expect in ["", "Expect: 100-continue\r\n"] {
        for framing in ["Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n"] {
            let mut client = Wire::connect(&rig).await;
            client.send(format!("{head}{expect}{framing}\r\n")).await;
            let answer = client.message().await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        }
    }
    rig.endpoints(&[]);
    rig.usable(0).await;
    let mut client = Wire::connect(&rig).await;
    client
        .send(format!("{head}Content-Length: 10\r\n\r\n"))
        .await;
    let answer = client.message().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(field(&answer, "Retry-After"), Some("1"));
    // The client may still send the body, and go on.
    client.send(format!("0123456789{GET}")).await;
    let answer = client.message().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

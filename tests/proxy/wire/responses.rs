//! Responses (contract 4.3): what the client receives, whether both connections stay open, and
//! which responses cannot be forwarded. A fault before the first byte is a 502, a later fault is a
//! visible cut, and no request is sent twice because of it.

use super::*;

/// An endpoint that answers `GET /n` with the n-th of `answers`. If the second of the pair says so,
/// it then ends its connection, by FIN or by reset. It answers everything else with [`OK`]. For
/// `/n/slow` it sends byte by byte.
pub(super) async fn playing(answers: Vec<(String, Option<End>)>) -> Origin {
    let answers = Arc::new(answers);
    Origin::start(move |mut wire, _| {
        let answers = answers.clone();
        async move {
            // An unread body would turn every close into a reset.
            while let Some(request) = wire.message().await {
                let target = request
                    .split(' ')
                    .nth(1)
                    .unwrap_or_default()
                    .trim_start_matches('/');
                let (number, slow) = target
                    .split_once('/')
                    .map_or((target, false), |(number, _)| (number, true));
                let Some((answer, end)) = number.parse::<usize>().ok().and_then(|n| answers.get(n))
                else {
                    wire.send(OK).await;
                    continue;
                };
                match slow {
                    true => wire.dribble(answer.as_bytes()).await,
                    false => wire.send(answer).await,
                }
                match end {
                    None => {}
                    Some(End::Fin) => return,
                    Some(End::Reset) => {
                        // The bytes must arrive before the reset.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        return wire.stream.set_zero_linger().unwrap();
                    }
                }
            }
        }
    })
    .await
}

/// (request line, response, what the client gets). The client's connection stays open unless the
/// head says otherwise.
fn passed_on() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        (
            "GET {} HTTP/1.1",
            "HTTP/1.1 200 Fine\r\nA:b\r\nContent-Length: 04\r\nConnection: keep-alive, x\r\nX: 1\r\nKeep-Alive: 3\r\n\r\nbody",
            "HTTP/1.1 200 Fine\r\nA: b\r\nContent-Length: 4\r\n\r\nbody",
        ),
        (
            "GET {} HTTP/1.1",
            "HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n03;x=y\r\nabc\r\n0;z\r\nT: v\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.0",
            "HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
        ),
        (
            "GET {} HTTP/1.0",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
        ),
        (
            "HEAD {} HTTP/1.1",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
        ),
        (
            "HEAD {} HTTP/1.1",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.1",
            "HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 204 No\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.1",
            "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.1",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.1",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.0",
            "HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            "GET {} HTTP/1.1",
            "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        ),
    ]
}

#[tokio::test]
async fn responses_arrive_canonical_however_they_come_and_both_connections_live_on() {
    let answers = passed_on()
        .iter()
        .map(|(_, answer, _)| ((*answer).to_owned(), None))
        .collect();
    let origin = playing(answers).await;
    let rig = scene(&origin, "").await;
    for (n, (line, _, expected)) in passed_on().into_iter().enumerate() {
        for target in [format!("/{n}"), format!("/{n}/slow")] {
            let mut client = Wire::connect(&rig).await;
            let keep = if line.ends_with("1.0") {
                "Connection: keep-alive\r\n"
            } else {
                ""
            };
            client
                .send(format!(
                    "{}\r\nHost: a\r\n{keep}\r\n",
                    line.replace("{}", &target)
                ))
                .await;
            let got = client
                .take(expected.len())
                .await
                .map(|got| String::from_utf8(got).unwrap());
            assert_eq!(
                got.as_deref(),
                Some(expected),
                "{line} {n}; then {:?}",
                client.buffer
            );
            if expected.contains("Connection: close") {
                assert_eq!(client.rest().await, (String::new(), End::Fin));
            } else {
                client.assert_alive(expected).await;
            }
        }
    }
    assert_eq!(origin.used(), 1, "connections to the endpoint");
}

#[tokio::test]
async fn a_response_may_end_with_its_connection_and_a_reset_is_no_end() {
    let answer = "HTTP/1.1 200 OK\r\n\r\nuntil the end".to_owned();
    let origin = playing(vec![
        (answer.clone(), Some(End::Fin)),
        (answer, Some(End::Reset)),
    ])
    .await;
    let rig = scene(&origin, "").await;
    // An HTTP/1.1 client gets chunks and keeps its connection.
    let mut client = Wire::connect(&rig).await;
    client.send("GET /0 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(
        client.message().await.as_deref(),
        Some(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\nuntil the end\r\n0\r\n\r\n"
        )
    );
    client.assert_alive("a body until the end").await;
    // An HTTP/1.0 client gets the response as it came.
    let mut client = Wire::connect(&rig).await;
    client
        .send("GET /0 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        .await;
    let expected = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end";
    assert_eq!(client.rest().await, (expected.into(), End::Fin));
    // A reset is not an end of the body, for either client.
    for (version, expected) in [("1.1", End::Fin), ("1.0", End::Reset)] {
        let mut client = Wire::connect(&rig).await;
        client
            .send(format!("GET /1 HTTP/{version}\r\nHost: a\r\n\r\n"))
            .await;
        let (got, end) = client.rest().await;
        assert!(
            got.contains("until the end") && !got.contains("\r\n0\r\n"),
            "{got:?}"
        );
        assert_eq!(end, expected, "to a client of {version}");
    }
    assert_eq!(origin.seen().len(), 5, "nothing was sent twice");
}

/// Faults before a byte has reached the client: 502 with a reason, the client keeps its connection,
/// and nothing is sent twice.
#[tokio::test]
async fn a_response_that_cannot_be_forwarded_is_a_502_and_its_request_is_not_sent_again() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
    let faults = [
        (
            head("Content-Length: 1\r\nTransfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\n",
            "length_with_transfer_encoding",
        ),
        (
            head("Content-Length: 2\r\nContent-Length: 3") + "ok",
            "duplicate_content_length",
        ),
        (head("Content-Length: 2,2") + "ok", "bad_content_length"),
        (head("Content-Length: -2") + "ok", "bad_content_length"),
        (head("Transfer-Encoding: gzip"), "unknown_transfer_encoding"),
        (
            head("Transfer-Encoding: chunked, chunked"),
            "bad_transfer_encoding",
        ),
        (head("A: b\rc"), "bare_cr"),
        (head("A: b\nContent-Length: 0"), "bare_lf"),
        (head("A: b\0"), "control_byte"),
        (head("A: b\r\n c"), "obs_fold"),
        (head("A : b"), "bad_header"),
        ("HTTP/3.0 200 OK\r\n\r\n".into(), "unsupported_version"),
        ("SSH-2.0-OpenSSH_9.9\r\n\r\n".into(), "bad_version"),
        ("HTTP/1.1 abc OK\r\n\r\n".into(), "bad_status_line"),
        (head(&"A: b\r\n".repeat(101)), "too_many_headers"),
        (
            head(&format!("A: {}", "b".repeat(17 << 10))),
            "head_too_large",
        ),
        (
            "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".into(),
            "unsolicited_upgrade",
        ),
        ("HTTP/1.1 101 Switching\r\n\r\n".into(), "bad_upgrade"),
        (
            "HTTP/1.1 102 Processing\r\n\r\n".repeat(100),
            "too_many_interim_responses",
        ),
    ];
    let origin = playing(
        faults
            .iter()
            .map(|(answer, _)| (answer.clone(), None))
            .collect(),
    )
    .await;
    let rig = scene(&origin, "").await;
    for (n, (answer, reason)) in faults.iter().enumerate() {
        for target in [format!("/{n}"), format!("/{n}/slow")] {
            let mut client = Wire::connect(&rig).await;
            let before = (origin.seen().len(), origin.used());
            client
                .send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"))
                .await;
            let mut got = client.message().await.unwrap();
            while got.starts_with("HTTP/1.1 102 ") {
                got = client.message().await.unwrap();
            }
            assert!(got.starts_with("HTTP/1.1 502 "), "{answer:?}: {got}");
            assert_eq!(field(&got, "x-ebbtide-reason"), Some(*reason), "{answer:?}");
            assert_eq!(
                origin.seen().len(),
                before.0 + 1,
                "{answer:?}: the request was sent twice"
            );
            client.assert_alive(answer).await;
            assert_eq!(
                origin.used(),
                before.1 + 1 + usize::from(before.1 == 0),
                "{answer:?}: its connection is used again"
            );
        }
    }
}

/// Faults after a byte has reached the client: what was passed on is followed by a reset, never by
/// a FIN.
#[tokio::test]
async fn a_response_that_breaks_later_is_cut_visibly() {
    let chunked = |rest: &str| {
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n{rest}")
    };
    let large = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 32000000\r\n\r\n{}",
        "x".repeat(16_000_000)
    );
    let faults = [
        (chunked("x\r\n"), None),
        (chunked("5\nabcde\r\n"), None),
        (chunked("20000000000001\r\n"), None),
        (chunked("5\r\nabcdef\r\n"), None),
        (chunked(&format!("5;{}\r\n", "a".repeat(300))), None),
        (chunked("0\r\nA : b\r\n\r\n"), None),
        (chunked("5\r\nab"), Some(End::Fin)),
        (chunked("0\r\n"), Some(End::Fin)),
        (chunked("5\r\nab"), Some(End::Reset)),
        (large.clone(), Some(End::Fin)),
        (large, Some(End::Reset)),
    ];
    let mut answers = Vec::new();
    for (answer, end) in &faults {
        answers.push((answer.clone(), *end));
    }
    let answers = Arc::new(answers);
    // The first chunk goes alone, so that it has reached the client before the fault arrives.
    let origin = Origin::start({
        let answers = answers.clone();
        move |mut wire, _| {
            let answers = answers.clone();
            async move {
                let Some(request) = wire.message().await else {
                    return;
                };
                let n: usize = request
                    .split(['/', ' '])
                    .nth(2)
                    .unwrap_or_default()
                    .parse()
                    .unwrap();
                let (answer, end) = &answers[n];
                let first = answer.find("first").map_or(8_000_000, |at| at + 7);
                wire.send(&answer[..first]).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                wire.send(&answer[first..]).await;
                match end {
                    Some(End::Fin) => {}
                    Some(End::Reset) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        wire.stream.set_zero_linger().unwrap();
                    }
                    None => _ = wire.rest().await,
                }
            }
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    for (n, (answer, end)) in faults.iter().enumerate() {
        let what = format!("{n}: {:?} {end:?}", &answer[..answer.len().min(120)]);
        let mut client = Wire::connect(&rig).await;
        client
            .send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        // All buffers fill meanwhile, and the end of a large body comes while it is spliced.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (got, client_end) = client.rest().await;
        assert!(
            got.starts_with("HTTP/1.1 200 OK\r\n"),
            "{what}: {:?}",
            got.get(..200)
        );
        assert!(
            !got.ends_with("\r\n0\r\n\r\n") && got.len() < 30_000_000,
            "{what} looks complete"
        );
        // The framing tells.
        assert_eq!(client_end, End::Fin, "{what}");
        assert_eq!(
            origin.seen().len(),
            n + 1,
            "{what}: the request was sent twice"
        );
    }
}

/// Extra bytes would be taken for the response to the next request.
#[tokio::test]
async fn a_connection_with_bytes_beyond_the_response_is_not_used_again() {
    let extra = |answer: &str| {
        (
            format!("{answer}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
            None,
        )
    };
    let origin = playing(vec![
        extra(OK),
        extra("HTTP/1.1 204 No\r\n\r\n"),
        extra("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokx".into(),
            None,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".into(),
            None,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok".into(),
            None,
        ),
    ])
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for n in 0..6 {
        client
            .send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        let answer = client.message().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        client.assert_alive("bytes beyond").await;
        // The next request uses the connection of the good request.
        assert_eq!(origin.used(), n + 2, "after {n}");
    }
}

/// Servers end a connection that is idle for too long, and some send a 408 first.
#[tokio::test]
async fn a_connection_that_sends_or_ends_while_idle_is_not_used_again() {
    let origin = Origin::start(|mut wire, number| async move {
        while wire.message().await.is_some() {
            wire.send(OK).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            match number {
                0 => wire.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await,
                1 => return,
                2 => return wire.stream.set_zero_linger().unwrap(),
                _ => {}
            }
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for n in 1..=5 {
        client.assert_alive("an idle time").await;
        assert_eq!(origin.used(), n.min(4));
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(origin.seen().len(), 5, "nothing was sent twice");
    assert_eq!(rig.metric("ebbtide_retries_total", ""), 0.0);
}

/// The same, but the 408 crosses the next request. A server's idle timeout is no response to that
/// request. The request is replayed if it may be repeated.
#[tokio::test]
async fn a_408_that_crosses_a_request_is_no_response() {
    let origin = Origin::start(|mut wire, number| async move {
        assert!(wire.message().await.is_some());
        wire.send(OK).await;
        while wire.message().await.is_some() {
            match number {
                0 => {
                    wire.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                    return;
                }
                _ => wire.send(OK).await,
            }
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for _ in 0..3 {
        client.assert_alive("an idle time").await;
    }
    assert_eq!(origin.used(), 2);
}

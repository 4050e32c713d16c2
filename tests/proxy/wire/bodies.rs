//! Bodies: in both directions at the same time, larger than any buffer, broken off, refused, or
//! announced by `Expect` (contract 4.1 to 4.3). A body that ends early never becomes a whole one,
//! and no byte of a body is read as a request.

use super::*;
use crate::proxy::tcp::send_until_blocked;

#[tokio::test]
async fn a_chunked_body_that_breaks_the_rules_is_refused_and_never_becomes_whole() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    let faults = [
        ("x\r\n", "bad_chunk_size"),
        ("\r\n", "bad_chunk_size"),
        ("5 5\r\n", "bad_chunk_extension"),
        ("0x5\r\n", "bad_chunk_size"),
        ("5\nabcde\r\n0\r\n\r\n", "bad_chunk_size"),
        ("5\r\nabcdeX", "bad_chunk_end"),
        ("5\r\nabcde\n0\r\n\r\n", "bad_chunk_end"),
        ("20000000000001\r\n", "chunk_too_large"),
        ("00000000000000005\r\n", "chunk_too_large"),
        ("5;a=\0\r\n", "bad_chunk_extension"),
        ("0\r\nA: b\nC: d\r\n\r\n", "bad_trailer"),
        ("0\r\n A: b\r\n\r\n", "bad_trailer"),
        ("0\r\nContent-Length: 5\r\n\r\n", "forbidden_trailer"),
        ("0\r\nHost: b\r\n\r\n", "forbidden_trailer"),
    ];
    let too_long = format!("5;{}\r\n", "a".repeat(300));
    let too_large = format!("0\r\nA: {}\r\n\r\n", "b".repeat(17 << 10));
    let long = [
        (too_long.as_str(), "chunk_extension_too_long"),
        (too_large.as_str(), "trailers_too_large"),
    ];
    for (body, reason) in faults.into_iter().chain(long) {
        for first in ["", "3\r\nabc\r\n"] {
            let bytes = format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{first}{body}"
            );
            for at in [
                0,
                bytes.len() - body.len(),
                bytes.len() - body.len() / 2,
                bytes.len() - 1,
            ] {
                let mut client = Wire::connect(&rig).await;
                match at {
                    0 => client.dribble(bytes.as_bytes()).await,
                    at => client.send_split(bytes.as_bytes(), at).await,
                }
                let answer = client.message().await.unwrap_or_default();
                assert!(
                    answer.starts_with("HTTP/1.1 400 "),
                    "{body:?} split at {at}: {answer}"
                );
                assert_eq!(
                    field(&answer, "x-ebbtide-reason"),
                    Some(reason),
                    "{body:?} split at {at}"
                );
                assert_eq!(field(&answer, "Connection"), Some("close"));
                assert_eq!(
                    client.rest().await,
                    (String::new(), End::Fin),
                    "{body:?} split at {at}"
                );
            }
        }
    }
    assert_eq!(origin.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_malformed_request_reaches_no_endpoint() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    for body in ["x\r\n", "5\r\nabcdeX", "3\r\nabc\r\n0\r\nHost: b\r\n\r\n"] {
        let mut client = Wire::connect(&rig).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
            ))
            .await;
        let answer = client.message().await.unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        assert_eq!(client.rest().await, (String::new(), End::Fin), "{body:?}");
    }
    assert_eq!(origin.used(), 0);
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_no_whole_request_to_the_endpoint() {
    let (report, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut wire, _| {
        let report = report.clone();
        async move {
            let whole = wire.message().await.is_some();
            report
                .send((
                    whole,
                    wire.end,
                    String::from_utf8_lossy(&wire.buffer).into_owned(),
                ))
                .unwrap();
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    for part in [
        "Content-Length: 10\r\n\r\n12345",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n123",
    ] {
        for reset in [false, true] {
            let mut client = Wire::connect(&rig).await;
            client.send(format!("{head}{part}")).await;
            let before = origin.used();
            eventually("the upload to begin", async || {
                origin.used() == before.max(1)
            })
            .await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if reset {
                client.stream.set_zero_linger().unwrap();
                drop(client);
            } else {
                client.half_close().await;
                let (answer, _) = client.rest().await;
                assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
            }
            let (whole, end, left) = soon("the endpoint's end", ended.recv()).await.unwrap();
            assert!(!whole && end.is_some(), "{part:?} looked whole: {left:?}");
            assert!(!left.ends_with("0\r\n\r\n"), "{part:?} {left:?}");
        }
    }
}

/// Only the end of the endpoint's connection can end such a body. While the proxy still has bytes for
/// the endpoint, its write meets the reset, and its read would then report an end (contract 1.12).
#[tokio::test]
async fn a_reset_during_an_upload_never_ends_a_response_without_length_cleanly() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let origin = Origin::start(move |mut wire, _| {
        let gate = opened.clone();
        async move {
            wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart")
                .await;
            // The body is not read.
            gate.acquire().await.unwrap().forget();
            wire.stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    for length in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        let mut client = Wire::connect(&rig).await;
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n"))
            .await;
        if length.ends_with("chunked") {
            client.send("3B9ACA00\r\n").await;
        }
        send_until_blocked(&mut client.stream).await;
        gate.add_permits(1);
        let (answer, end) = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{length}: {answer}");
        assert!(answer.contains("part"), "{length}: {answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{length}: {answer}");
        // The missing last chunk tells.
        assert_eq!(end, End::Fin, "{length}: {answer}");
    }
}

/// 16 MiB of bytes that differ from place to place.
fn pattern() -> Vec<u8> {
    (0..16u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// The pattern in chunks of many sizes, in canonical form.
fn chunks(payload: &[u8]) -> Vec<u8> {
    let (mut out, mut rest, mut size) = (Vec::new(), payload, 1);
    while !rest.is_empty() {
        let (chunk, more) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        (rest, size) = (more, size * 3 % 200_003 + 1);
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// An endpoint that sends a request's body back while it arrives, with all that follows it.
async fn echo() -> Origin {
    Origin::start(|mut wire, _| async move {
        let Some(head) = wire.head().await else {
            return;
        };
        let framing = match field(&head, "Content-Length") {
            Some(length) => format!("Content-Length: {length}"),
            None => "Transfer-Encoding: chunked".into(),
        };
        wire.send(format!(
            "HTTP/1.1 200 OK\r\n{framing}\r\nConnection: close\r\n\r\n"
        ))
        .await;
        let begun = std::mem::take(&mut wire.buffer);
        wire.send(begun).await;
        let (mut reader, mut writer) = wire.stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

#[tokio::test]
async fn sixteen_mebibytes_go_up_and_come_down_at_the_same_time() {
    let origin = echo().await;
    let rig = scene(&origin, "").await;
    let payload = pattern();
    for (framing, body) in [
        (
            format!("Content-Length: {}", payload.len()),
            payload.clone(),
        ),
        ("Transfer-Encoding: chunked".into(), chunks(&payload)),
    ] {
        for slow in [false, true] {
            let client = Wire::connect(&rig).await;
            let (reader, mut writer) = client.stream.into_split();
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            let upload = body.clone();
            let writing = tokio::spawn(async move {
                writer.write_all(head.as_bytes()).await.unwrap();
                writer.write_all(&upload).await.unwrap();
                writer
            });
            // The response begins before the body is whole, and the rest may be large.
            let expected = [
                format!("HTTP/1.1 200 OK\r\n{framing}\r\nConnection: close\r\n\r\n").as_bytes(),
                &body,
            ]
            .concat();
            let got = read_exactly(reader, expected.len(), slow).await;
            assert!(
                got == expected,
                "{framing}: {} bytes of {} arrived, or wrong ones",
                got.len(),
                expected.len()
            );
            writing.await.unwrap();
        }
    }
}

/// Reads up to `length` bytes. With `slow`, it reads small pieces with pauses, so that all buffers
/// on the way fill.
async fn read_exactly(
    mut reader: impl tokio::io::AsyncRead + Unpin,
    length: usize,
    slow: bool,
) -> Vec<u8> {
    let mut got = Vec::with_capacity(length);
    let mut piece = vec![0; 256 << 10];
    while got.len() < length {
        if slow {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        match soon("bytes", reader.read(&mut piece)).await {
            Ok(n @ 1..) => got.extend_from_slice(&piece[..n]),
            _ => break,
        }
    }
    got
}

#[tokio::test]
async fn a_slow_reader_gets_a_large_response_whole() {
    let payload = Arc::new(pattern());
    let chunked = Arc::new(chunks(&payload));
    let (a, b) = (payload.clone(), chunked.clone());
    let origin = Origin::start(move |mut wire, _| {
        let (payload, chunked) = (a.clone(), b.clone());
        async move {
            while let Some(request) = wire.message().await {
                let (framing, body) = match request.starts_with("GET /counted") {
                    true => (format!("Content-Length: {}", payload.len()), &payload),
                    false => ("Transfer-Encoding: chunked".into(), &chunked),
                };
                wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"))
                    .await;
                wire.send(body.as_slice()).await;
            }
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for (target, body) in [
        ("/counted", &payload),
        ("/chunked", &chunked),
        ("/counted", &payload),
    ] {
        client
            .send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        client.head().await.unwrap();
        let mut got = std::mem::take(&mut client.buffer);
        let missing = body.len() - got.len();
        got.extend(read_exactly(&mut client.stream, missing, true).await);
        assert!(
            got == **body,
            "{target}: {} bytes of {} arrived, or wrong ones",
            got.len(),
            body.len()
        );
    }
    assert_eq!(origin.used(), 1);
}

/// An endpoint that answers as soon as it has read a head, and reads no body.
async fn hasty(answer: String) -> Origin {
    Origin::start(move |mut wire, _| {
        let answer = answer.clone();
        async move {
            let Some(head) = wire.head().await else {
                return;
            };
            if head.starts_with("GET ") {
                return wire.send(OK).await;
            }
            wire.send(&answer).await;
            // The connection stays open: its end would be a reset, which might overtake the
            // response.
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
    })
    .await
}

#[tokio::test]
async fn an_answer_before_a_small_body_keeps_the_client() {
    let origin = hasty("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno".into()).await;
    let rig = scene(&origin, "").await;
    let body = "x".repeat(60_000);
    let mut client = Wire::connect(&rig).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}",
            body.len(),
            &body[..100]
        ))
        .await;
    let expected = "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(
        client.message().await.as_deref(),
        Some(expected),
        "before the rest is sent"
    );
    client.send(&body[100..]).await;
    client.assert_alive("the unwanted body").await;
}

/// Nothing says how long the rest of a chunked body is. So the end of the connection is announced
/// before that rest is seen, and whatever it turns out to be (RFC 9112 section 9.6).
#[tokio::test]
async fn an_answer_before_the_end_of_a_chunked_body_announces_the_close() {
    let origin = hasty("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno".into()).await;
    let rig = scene(&origin, "").await;
    let expected = "HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    for length in [10, 60_000, 300_000] {
        let body = format!("{length:x}\r\n{}\r\n0\r\nT: v\r\n\r\n", "x".repeat(length));
        for part in [0, 5, body.len() - 1] {
            let mut client = Wire::connect(&rig).await;
            client
                .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            client.send(&body[..part]).await;
            let context = format!("{length} bytes, {part} sent before the response");
            assert_eq!(
                client.message().await.as_deref(),
                Some(expected),
                "{context}"
            );
            client.send(&body[part..]).await;
            client.send(GET).await;
            assert_eq!(client.rest().await, (String::new(), End::Fin), "{context}");
        }
    }
}

/// The proxy's own answer, too. A chunked body that has already come whole costs nobody the
/// connection.
#[tokio::test]
async fn a_refusal_before_the_end_of_a_chunked_body_announces_the_close() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "timeouts: {hold: 0s}").await;
    rig.endpoints(&[]);
    rig.usable(0).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let mut client = Wire::connect(&rig).await;
    for _ in 0..2 {
        client.send(format!("{post}0\r\nT: v\r\n\r\n")).await;
        let answer = client.message().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(field(&answer, "Connection"), None, "{answer}");
    }
    client.send(post).await;
    let answer = client.message().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(field(&answer, "Connection"), Some("close"), "{answer}");
    client.send("0\r\n\r\n").await;
    assert_eq!(client.rest().await, (String::new(), End::Fin));
}

#[tokio::test]
async fn an_answer_before_a_large_body_closes_and_is_read_whole() {
    let large = "x".repeat(1 << 20);
    let answer = format!(
        "HTTP/1.1 413 Much\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    );
    let origin = hasty(answer).await;
    let rig = scene(&origin, "").await;
    let body = vec![b'x'; 32 << 20];
    for framing in [
        format!("Content-Length: {}", body.len()),
        "Transfer-Encoding: chunked".into(),
    ] {
        let client = Wire::connect(&rig).await;
        let (reader, mut writer) = client.stream.into_split();
        let size = if framing.starts_with('T') {
            format!("{:x}\r\n", body.len())
        } else {
            String::new()
        };
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{size}");
        let upload = body.clone();
        // A client that stops at the first failed write and then gives up the response, as many
        // clients do.
        let writing = tokio::spawn(async move {
            writer.write_all(head.as_bytes()).await?;
            writer.write_all(&upload).await?;
            std::io::Result::Ok(writer)
        });
        let expected = format!(
            "HTTP/1.1 413 Much\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{large}",
            large.len()
        );
        let mut reader = reader;
        let mut got = Vec::new();
        let end = soon("the response and the end", reader.read_to_end(&mut got)).await;
        assert!(
            got == expected.as_bytes(),
            "{framing}: {} bytes of {}: {end:?}",
            got.len(),
            expected.len()
        );
        assert!(end.is_ok(), "{framing}: {end:?}");
        assert!(
            writing.await.unwrap().is_ok(),
            "{framing}: the client could not finish sending"
        );
    }
}

/// Past the replay buffer the body moves by splice. Splice must lose nothing, add nothing, and stop
/// where the body ends.
#[tokio::test]
async fn a_long_upload_arrives_whole_and_both_connections_go_on() {
    let origin = Origin::start(|mut wire, _| async move {
        while let Some(head) = wire.head().await {
            let length = field(&head, "Content-Length").map_or(0, |length| length.parse().unwrap());
            let body = wire.take(length).await.unwrap();
            assert!(body == sequence(length), "{length} bytes arrived changed");
            wire.send(OK).await;
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for length in [(64 << 10) + 1, (128 << 10) - 1, 300_000, 5 << 20, 1 << 20] {
        client
            .send(format!(
                "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            ))
            .await;
        // In pieces of all sizes, so that some arrive while others wait.
        for piece in sequence(length).chunks(77_777) {
            client.send(piece).await;
        }
        assert_eq!(
            client.message().await.as_deref(),
            Some(OK),
            "{length} bytes"
        );
        client.assert_alive(&format!("{length} bytes")).await;
    }
    assert_eq!(origin.used(), 1, "its connection was not kept");
}

fn sequence(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n / 251 + n) as u8).collect()
}

/// The bytes in flight when the response comes, in any buffer, are body and never become a request.
#[tokio::test]
async fn no_byte_of_an_upload_that_was_answered_early_becomes_a_request() {
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let origin = Origin::start(|mut wire, _| async move {
        while let Some(head) = wire.head().await {
            wire.seen
                .as_ref()
                .unwrap()
                .lock()
                .unwrap()
                .push(head.clone());
            if head.starts_with("PUT ") {
                // Waits until the buffers on the way are full or hold the whole body.
                tokio::time::sleep(Duration::from_millis(300)).await;
                wire.send(OK).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                // Anything else that arrived before the body is whole would be counted as body.
                let length = field(&head, "Content-Length").unwrap().parse().unwrap();
                if wire.take(length).await.is_none() {
                    return;
                }
                continue;
            }
            wire.send(OK).await;
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let one = |length: usize| {
        let rig = &rig;
        async move {
            let mut client = Wire::connect(rig).await;
            let body: Vec<u8> = SMUGGLED.bytes().cycle().take(length).collect();
            let stream = std::mem::replace(
                &mut client.stream,
                TcpStream::connect(rig.web()).await.unwrap(),
            );
            let (reader, mut writer) = stream.into_split();
            let writing = tokio::spawn(async move {
                let head = format!(
                    "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = writer.write_all(head.as_bytes()).await;
                let _ = writer.write_all(&body).await;
                writer
            });
            let writer = soon("all bytes sent, or refused", writing).await.unwrap();
            client.stream = reader.reunite(writer).unwrap();
            let answer = client.message().await.unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n"),
                "{length} bytes: {answer}"
            );
            let closes = answer.contains("Connection: close");
            match closes {
                true => assert_eq!(
                    client.rest().await.0,
                    "",
                    "{length} bytes: more than one response"
                ),
                false => client.assert_alive(&format!("{length} bytes")).await,
            }
            closes
        }
    };
    let closes = futures::future::join_all((1..=28).map(|n| one(n * (256 << 10) + 13))).await;
    let closed = closes.iter().filter(|closes| **closes).count();
    let kept = closes.len() - closed;
    assert!(
        kept > 0 && closed > 0,
        "{kept} kept, {closed} closed: one of the two cases did not occur"
    );
    assert!(
        !origin.seen().iter().any(|head| head.contains("smuggled")),
        "a body was read as a request"
    );
}

#[tokio::test]
async fn continue_is_requested_and_granted_through_the_proxy() {
    let origin = Origin::start(|mut wire, _| async move {
        for _ in 0..2 {
            let head = wire.head().await.unwrap();
            assert_eq!(
                head,
                format!("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n{FORWARDED}\r\n")
            );
            assert!(wire.buffer.is_empty());
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(wire.take(4).await.unwrap(), b"body");
            wire.seen.as_ref().unwrap().lock().unwrap().push(head);
            wire.send(OK).await;
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for _ in 0..2 {
        client
            .send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .await;
        assert_eq!(
            client.head().await.as_deref(),
            Some("HTTP/1.1 100 Continue\r\n\r\n")
        );
        client.send("body").await;
        assert_eq!(client.message().await.as_deref(), Some(OK));
    }
    assert_eq!((origin.seen().len(), origin.used()), (2, 1));
}

/// After this response the client may or may not send the body, and the proxy cannot know which. So
/// it announces the close and ends the connection.
#[tokio::test]
async fn a_final_answer_instead_of_continue_ends_the_connection() {
    let origin = hasty("HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno".into()).await;
    let rig = scene(&origin, "").await;
    for framing in ["Content-Length: 34", "Transfer-Encoding: chunked"] {
        let mut client = Wire::connect(&rig).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"
            ))
            .await;
        let answer = client.message().await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 417 ") && answer.ends_with("no"),
            "{answer}"
        );
        assert_eq!(field(&answer, "Connection"), Some("close"), "{framing}");
        assert_eq!(client.rest().await, (String::new(), End::Fin), "{framing}");
    }
}

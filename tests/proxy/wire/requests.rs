//! Requests (contract 4.1 and 4.2): which are refused, what the endpoint receives of the others,
//! and which address stands for the client. A refused request reaches no endpoint, and the refusal
//! reaches the client, however the bytes were split.

use super::*;

/// (bytes, status, reason): at least one for each rule that refuses a head.
fn refused() -> Vec<(String, u16, &'static str)> {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    vec![
        (
            post("Content-Length: 5\r\nTransfer-Encoding: chunked"),
            400,
            "length_with_transfer_encoding",
        ),
        (
            post("Content-Length: 5\r\nContent-Length: 5"),
            400,
            "duplicate_content_length",
        ),
        (post("Content-Length: 5, 5"), 400, "bad_content_length"),
        (post("Content-Length: +5"), 400, "bad_content_length"),
        (post("Content-Length:"), 400, "bad_content_length"),
        (
            post("Transfer-Encoding: chunked, chunked"),
            400,
            "bad_transfer_encoding",
        ),
        (
            post("Transfer-Encoding: gzip, chunked"),
            501,
            "unknown_transfer_encoding",
        ),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            400,
            "transfer_encoding_on_http10",
        ),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400, "missing_host"),
        (post("Host: a"), 400, "duplicate_host"),
        (
            "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n".into(),
            400,
            "bad_host",
        ),
        (line("GET http://b/ HTTP/1.1"), 400, "host_mismatch"),
        (post("A: b\rc"), 400, "bare_cr"),
        (post("A: b\nC: d"), 400, "bare_lf"),
        (post("A: b\0"), 400, "control_byte"),
        (post("A: b\r\n c"), 400, "obs_fold"),
        (post("A : b"), 400, "bad_header"),
        (post(": b"), 400, "bad_header"),
        (line("GET / HTTP/2.0"), 505, "unsupported_version"),
        (line("GET / HTTP/1.2"), 505, "unsupported_version"),
        (line("GET / HTPP/1.1"), 400, "bad_version"),
        (line("GET  / HTTP/1.1"), 400, "bad_request_line"),
        (line("GET / HTTP/1.1 "), 400, "bad_request_line"),
        (line("GET /\u{e9} HTTP/1.1"), 400, "bad_target"),
        (line("\r\n\r\nGET / HTTP/1.1"), 400, "leading_blank_line"),
        (line("CONNECT a:80 HTTP/1.1"), 501, "connect_refused"),
        (post(&"A: b\r\n".repeat(101)), 431, "too_many_headers"),
        (
            post(&format!("A: {}", "b".repeat(17 << 10))),
            431,
            "head_too_large",
        ),
        (
            line(&format!("GET /{} HTTP/1.1", "a".repeat(17 << 10))),
            414,
            "target_too_long",
        ),
    ]
}

/// Each row whole, split at every byte boundary (at about 120 places if it is long), and byte by
/// byte. The verdict is always the same, the client reads all of it, and nothing reaches the
/// endpoint.
#[tokio::test]
async fn what_is_malformed_is_refused_however_it_comes_and_reaches_no_endpoint() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    for (bytes, status, reason) in refused() {
        let mut tasks = tokio::task::JoinSet::new();
        for at in (0..=bytes.len()).step_by(1 + bytes.len() / 120) {
            let (mut client, bytes) = (Wire::connect(&rig).await, bytes.clone());
            tasks.spawn(async move {
                match at {
                    0 => client.dribble(bytes.as_bytes()).await,
                    at => client.send_split(bytes.as_bytes(), at).await,
                }
                (at, client.message().await, client.rest().await)
            });
        }
        for (at, answer, rest) in tasks.join_all().await {
            let answer = answer.unwrap_or_else(|| panic!("no response to {bytes:?} split at {at}"));
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{bytes:?} split at {at}: {answer}"
            );
            assert_eq!(
                field(&answer, "x-ebbtide-reason"),
                Some(reason),
                "{bytes:?} split at {at}"
            );
            assert_eq!(field(&answer, "Connection"), Some("close"));
            assert_eq!(rest, (String::new(), End::Fin), "{bytes:?} split at {at}");
        }
        assert_eq!(origin.used(), 0, "{bytes:?} reached the endpoint");
    }
}

/// (bytes, what the endpoint gets), with `{x}` for the fields that the proxy adds.
fn forwarded() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "GET /p?q=1 HTTP/1.1\r\nhost: a\r\nAccept:*/*  \r\n\r\n",
            "GET /p?q=1 HTTP/1.1\r\nhost: a\r\nAccept: */*\r\n{x}\r\n",
        ),
        (
            "GET /api/v1/query?query=up{job=\"a\"} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /api/v1/query?query=up{job=\"a\"} HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET http://a/p HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /p HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n{x}\r\nabc",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTrailer: T\r\nTransfer-Encoding: Chunked\r\n\r\n\
             003;a=b;c=\"d;\\\"\"\r\nabc\r\nA\r\n0123456789\r\n00;x\r\nT: v \r\nConnection: x\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n{x}\r\n\
             3\r\nabc\r\na\r\n0123456789\r\n0\r\nT: v\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-hop, host, content-length\r\nX-Hop: 1\r\n\
             Keep-Alive: 5\r\nTE: trailers, gzip\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTE: trailers\r\n{x}Connection: TE\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABk\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: evil\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
    ]
}

/// All requests use one client connection, and the proxy uses one connection to the endpoint.
#[tokio::test]
async fn what_is_well_formed_arrives_canonical_however_it_comes() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    let mut served = 0;
    for (bytes, expected) in forwarded() {
        let expected = expected.replace("{x}", FORWARDED);
        let ok = match bytes.contains("HTTP/1.0") {
            true => OK.replace("\r\n\r\n", "\r\nConnection: keep-alive\r\n\r\n"),
            false => OK.into(),
        };
        for at in 0..=bytes.len() {
            match at {
                0 => client.dribble(bytes.as_bytes()).await,
                at => client.send_split(bytes.as_bytes(), at).await,
            }
            assert_eq!(
                client.message().await.as_deref(),
                Some(ok.as_str()),
                "{bytes:?} split at {at}"
            );
            served += 1;
            let seen = origin.seen();
            assert_eq!(
                (seen.len(), seen.last()),
                (served, Some(&expected)),
                "{bytes:?} split at {at}"
            );
        }
    }
    assert_eq!(origin.used(), 1, "connections to the endpoint");
}

#[tokio::test]
async fn a_hundred_requests_in_sequence_use_one_connection_to_the_endpoint() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for _ in 0..100 {
        client.assert_alive("a hundred").await;
    }
    assert_eq!((origin.seen().len(), origin.used()), (100, 1));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_a_bad_one_last() {
    let origin = Origin::answering(|request| {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        )
    })
    .await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    let mut bytes = String::new();
    for n in 0..40 {
        bytes += &match n % 2 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
            _ => format!(
                "POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
            ),
        };
    }
    client.send(bytes + "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /late HTTP/1.1\r\nHost: a\r\n\r\n").await;
    for n in 0..40 {
        let answer = client.message().await.unwrap();
        assert!(
            answer.ends_with(&format!("\r\n\r\n/{n}")),
            "response {n}: {answer}"
        );
    }
    let answer = client.message().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(client.rest().await, (String::new(), End::Fin));
    assert_eq!(
        origin.seen().len(),
        40,
        "the bytes behind a refused head are not read"
    );
}

/// The client still sends far more than the buffers hold when the refusal is ready.
#[tokio::test]
async fn a_refusal_is_not_lost_to_a_client_that_is_still_sending() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    for size in [0, 100 << 10, 8 << 20] {
        let mut client = Wire::connect(&rig).await;
        let bytes = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n{}",
            "b".repeat(size)
        );
        soon(
            "the client's writing",
            client.stream.write_all(bytes.as_bytes()),
        )
        .await
        .unwrap();
        let answer = client.message().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(
            client.rest().await,
            (String::new(), End::Fin),
            "after {size} bytes"
        );
    }
    assert_eq!(origin.used(), 0);
}

#[tokio::test]
async fn an_http_1_0_client_keeps_its_connection_only_if_it_asks() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    let mut client = Wire::connect(&rig).await;
    for _ in 0..3 {
        client
            .send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            .await;
        let answer = client.message().await.unwrap();
        assert_eq!(field(&answer, "Connection"), Some("keep-alive"));
    }
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let answer = client.message().await.unwrap();
    assert_eq!(field(&answer, "Connection"), Some("close"));
    assert_eq!(client.rest().await, (String::new(), End::Fin));
    let host = format!("Host: {}\r\n", rig.web());
    assert!(
        origin.seen().iter().all(|request| request.contains(&host)),
        "{:?}",
        origin.seen()
    );
    assert_eq!(origin.used(), 1);
}

/// Some clients send a line break after a body. It must not cost them the response.
#[tokio::test]
async fn a_client_that_asked_to_close_gets_its_whole_answer_although_it_sent_more() {
    let large = "x".repeat(4 << 20);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    );
    let origin = Origin::answering(move |_| answer.clone()).await;
    let rig = scene(&origin, "").await;
    for more in ["\r\n", GET] {
        let mut client = Wire::connect(&rig).await;
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        let head = client.head().await.unwrap();
        assert_eq!(field(&head, "Connection"), Some("close"));
        client.send(more).await;
        assert_eq!(
            client.take(large.len()).await.map(|body| body.len()),
            Some(large.len()),
            "with {more:?}"
        );
        assert_eq!(
            client.rest().await,
            (String::new(), End::Fin),
            "with {more:?}"
        );
    }
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let origin = Origin::start(|mut wire, _| async move {
        while wire.message().await.is_some() {
            // The client's FIN arrives before the response.
            tokio::time::sleep(Duration::from_millis(20)).await;
            wire.send(OK).await;
        }
    })
    .await;
    let rig = scene(&origin, "").await;
    for request in [
        GET,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    ] {
        let mut client = Wire::connect(&rig).await;
        client.send(request).await;
        client.half_close().await;
        assert_eq!(client.rest().await, (OK.into(), End::Fin));
    }
    let mut client = Wire::connect(&rig).await;
    client.send(GET.repeat(3)).await;
    client.half_close().await;
    assert_eq!(client.rest().await, (OK.repeat(3), End::Fin), "pipelined");
}

#[tokio::test]
async fn half_a_head_before_the_end_is_no_request() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "").await;
    for at in [1, 10, GET.len() - 1] {
        let mut client = Wire::connect(&rig).await;
        client.send(&GET[..at]).await;
        client.half_close().await;
        let (answer, end) = client.rest().await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
        assert_eq!(end, End::Fin);
    }
    assert_eq!(origin.used(), 0);
}

/// A nodePort is bound on the unspecified address, and a listener may have port 0. Neither of these
/// is where the client connected to.
#[tokio::test]
async fn a_request_without_host_gets_the_address_that_its_client_connected_to() {
    let origin = Origin::ok().await;
    for (bound, to) in [("0.0.0.0:0", "127.0.0.2"), ("127.0.0.1:0", "127.0.0.1")] {
        let rig = scene_on(&origin, bound, "protocol: http", "").await;
        let to = format!("{to}:{}", rig.web().port());
        let mut client = Wire::new(TcpStream::connect(&to).await.unwrap());
        for _ in 0..2 {
            client
                .send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                .await;
            assert!(client.message().await.is_some());
            let seen = origin.seen();
            assert_eq!(
                field(seen.last().unwrap(), "Host"),
                Some(&*to),
                "bound on {bound}"
            );
        }
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_extended() {
    let origin = Origin::ok().await;
    let rig = scene(&origin, "trustedProxies: [127.0.0.0/8]").await;
    let mut client = Wire::connect(&rig).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-For: 192.0.2.2\r\nX-Forwarded-Host: shop\r\nForwarded: for=192.0.2.1\r\n\r\n",
        )
        .await;
    assert_eq!(client.message().await.as_deref(), Some(OK));
    assert_eq!(
        origin.seen()[0],
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\nForwarded: for=192.0.2.1\r\n\
         X-Forwarded-For: 192.0.2.1, 192.0.2.2, 127.0.0.1\r\n\r\n"
    );
}

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A v2 header for 192.0.2.9:1000 to 192.0.2.8:80 with one TLV. `command` is 0x21 for PROXY and
/// 0x20 for LOCAL.
fn v2(command: u8) -> Vec<u8> {
    let addresses = [192, 0, 2, 9, 192, 0, 2, 8, 3, 232, 0, 80];
    let tlv = [4, 0, 1, 0];
    [V2, &[command, 0x11, 0, 16], &addresses, &tlv].concat()
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client() {
    let origin = Origin::ok().await;
    let rig = scene_with(
        &origin,
        "protocol: http, proxyProtocol: required",
        "trustedProxies: [127.0.0.1/32]",
    )
    .await;
    let v1 = |line: &str| format!("PROXY {line}\r\n").into_bytes();
    for (header, client_address) in [
        (v1("TCP4 192.0.2.9 192.0.2.8 1000 80"), "192.0.2.9"),
        (v1("TCP6 2001:db8::9 2001:db8::8 1000 80"), "2001:db8::9"),
        (v1("UNKNOWN"), "127.0.0.1"),
        (v2(0x21), "192.0.2.9"),
        // A health check by the load balancer before the proxy. Its addresses must be ignored.
        (v2(0x20), "127.0.0.1"),
    ] {
        let bytes = [&header, GET.as_bytes()].concat();
        for at in 0..header.len() + 3 {
            let mut client = Wire::connect(&rig).await;
            client.send_split(&bytes, at).await;
            assert_eq!(
                client.message().await.as_deref(),
                Some(OK),
                "{header:?} split at {at}"
            );
            client.assert_alive("the first").await;
            let seen = origin.seen();
            for request in &seen[seen.len() - 2..] {
                assert_eq!(
                    field(request, "X-Forwarded-For"),
                    Some(client_address),
                    "{header:?} split at {at}"
                );
            }
        }
    }
}

/// A load balancer that speaks the PROXY protocol passes the client's bytes on unchanged. So the
/// fields are the named client's claim, although the balancer is in `trustedProxies`.
#[tokio::test]
async fn a_client_that_a_proxy_header_names_is_trusted_by_its_own_address_only() {
    let origin = Origin::ok().await;
    let rig = scene_with(
        &origin,
        "protocol: http, proxyProtocol: required",
        "trustedProxies: [127.0.0.1/32, 198.51.100.0/24]",
    )
    .await;
    let claims = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
                  X-Forwarded-Port: 1\r\nForwarded: for=10.0.0.1\r\n";
    let believed = |client: &str| {
        format!(
            "X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
             Forwarded: for=10.0.0.1\r\nX-Forwarded-For: 10.0.0.1, {client}\r\n"
        )
    };
    let replaced = |client: &str| {
        format!("X-Forwarded-For: {client}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n")
    };
    let v1 = |line: &str| format!("PROXY {line}\r\n").into_bytes();
    for (header, expected) in [
        (
            v1("TCP4 192.0.2.9 192.0.2.8 1000 80"),
            replaced("192.0.2.9"),
        ),
        (
            v1("TCP6 2001:db8::9 2001:db8::8 1000 80"),
            replaced("2001:db8::9"),
        ),
        (v2(0x21), replaced("192.0.2.9")),
        // Another proxy, behind the load balancer and in `trustedProxies` itself.
        (
            v1("TCP4 198.51.100.7 192.0.2.8 1000 80"),
            believed("198.51.100.7"),
        ),
        (
            v1("TCP6 ::ffff:198.51.100.7 ::ffff:192.0.2.8 1000 80"),
            believed("198.51.100.7"),
        ),
        // No client is named, so the request is the load balancer's own.
        (v1("UNKNOWN"), believed("127.0.0.1")),
        (v2(0x20), believed("127.0.0.1")),
    ] {
        let mut client = Wire::connect(&rig).await;
        client.send(&header).await;
        for turn in ["first", "second"] {
            client
                .send(format!("GET / HTTP/1.1\r\nHost: a\r\n{claims}\r\n"))
                .await;
            assert_eq!(client.message().await.as_deref(), Some(OK), "{header:?}");
            assert_eq!(
                origin.seen().last().unwrap(),
                &format!("GET / HTTP/1.1\r\nHost: a\r\n{expected}\r\n"),
                "the {turn} request after {:?}",
                String::from_utf8_lossy(&header)
            );
        }
    }
}

#[tokio::test]
async fn without_a_proper_proxy_header_nothing_is_served() {
    let origin = Origin::ok().await;
    let rig = scene_with(
        &origin,
        "protocol: http, proxyProtocol: required",
        "trustedProxies: [127.0.0.1/32]",
    )
    .await;
    let bad_version = v2(0x31);
    let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 5000]].concat();
    for header in [
        GET.as_bytes(),
        b"PROXY TCP5 x\r\n",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"",
        &bad_version,
        &endless,
    ] {
        let mut client = Wire::connect(&rig).await;
        client.send(header).await;
        client.send(GET).await;
        client.half_close().await;
        let (answer, _) = client.rest().await;
        assert_eq!(answer, "", "after {:?}", String::from_utf8_lossy(header));
    }
    for cut_short in [&v2(0x21)[..20], &v2(0x21)[..14], b"PROXY TCP4 192.0.2.9"] {
        let mut client = Wire::connect(&rig).await;
        client.send(cut_short).await;
        client.half_close().await;
        assert_eq!(client.rest().await.0, "");
    }
    let untrusting = scene_with(
        &origin,
        "protocol: http, proxyProtocol: required",
        "trustedProxies: [192.0.2.0/24]",
    )
    .await;
    let mut client = Wire::connect(&untrusting).await;
    client
        .send("PROXY TCP4 192.0.2.9 192.0.2.8 1000 80\r\n")
        .await;
    client.send(GET).await;
    assert_eq!(client.rest().await.0, "", "a peer outside trustedProxies");
    assert_eq!(origin.used(), 0);
}

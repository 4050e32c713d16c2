//! Messages of HTTP/2 as text of HTTP/1, and back (`wire/translate.rs`). What is written here, the
//! strict parser reads as one message with the same meaning, whatever the HTTP/2 peer says.

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::{Forwarding, parse_request, parse_response};
use ebbtide::wire::message::{Emit, Framing, Limits, Method, Version};
use ebbtide::wire::translate::{
    Chunks, Piece, Tunnel, read_request, read_response, write_last_chunk, write_request,
    write_response,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    head_size: 64 << 10,
    headers: 200,
};

fn forwarding() -> Forwarding {
    Forwarding {
        peer: [192, 0, 2, 7].into(),
        local: ([198, 51, 100, 1], 8080).into(),
        trusted: false,
        https: false,
        allow_connect: true,
    }
}

fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}

fn text_of(
    request: &Request<()>,
    protocol: Option<&str>,
    ends: bool,
) -> Result<String, &'static str> {
    let mut out = Vec::new();
    match write_request(request, protocol, ends, &mut out) {
        Ok(_) => Ok(String::from_utf8_lossy(&out).into_owned()),
        Err(reject) => {
            assert!(out.is_empty(), "a refused request has left text");
            Err(reject.reason)
        }
    }
}

#[test]
fn each_request_becomes_the_text_of_one() {
    let rows = [
        (
            request("GET", "http://a.example/x?y=1", &[("accept", "*/*")]),
            None,
            true,
            Ok("GET /x?y=1 HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n"),
        ),
        (
            request("POST", "http://a/x", &[("content-length", "5")]),
            None,
            false,
            Ok("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"),
        ),
        (
            request("POST", "http://a/x", &[("te", "trailers")]),
            None,
            false,
            Ok(
                "POST /x HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\ntransfer-encoding: chunked\r\n\r\n",
            ),
        ),
        (
            request(
                "GET",
                "http://a/",
                &[("cookie", "a=1"), ("x", "1"), ("cookie", "b=2")],
            ),
            None,
            true,
            Ok("GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\ncookie: a=1; b=2\r\n\r\n"),
        ),
        (
            request("GET", "http://a/", &[("host", "A")]),
            None,
            true,
            Ok("GET / HTTP/1.1\r\nhost: A\r\n\r\n"),
        ),
        (
            request("GET", "http://a/", &[("host", "b")]),
            None,
            true,
            Err("host_mismatch"),
        ),
        (
            request("CONNECT", "a:443", &[]),
            None,
            false,
            Ok("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n"),
        ),
        (
            request(
                "CONNECT",
                "http://a/chat",
                &[
                    ("sec-websocket-version", "13"),
                    ("sec-websocket-key", "theirs"),
                ],
            ),
            Some("websocket"),
            false,
            Ok(
                "GET /chat HTTP/1.1\r\nhost: a\r\nsec-websocket-version: 13\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: ZWJidGlkZS1lYmJ0aWRlIQ==\r\n\r\n",
            ),
        ),
        (
            request("CONNECT", "http://a/x", &[]),
            Some("connect-udp"),
            false,
            Err("connect_refused"),
        ),
    ];
    for (request, protocol, ends, expected) in rows {
        let text = text_of(&request, protocol, ends);
        assert_eq!(
            text.as_deref(),
            expected.as_ref().map(|it| *it),
            "{request:?}"
        );
    }
}

#[test]
fn what_a_request_wants_beside_its_message_is_known() {
    let mut out = Vec::new();
    let grpc = request(
        "POST",
        "http://a/x",
        &[("content-type", "application/grpc+proto")],
    );
    let (framing, wanted) = write_request(&grpc, None, false, &mut out).unwrap();
    assert!(wanted.grpc && wanted.tunnel.is_none() && framing == Framing::Chunked);
    let web = request(
        "POST",
        "http://a/x",
        &[("content-type", "application/grpc-web")],
    );
    assert!(!write_request(&web, None, true, &mut out).unwrap().1.grpc);
    let connect = request("CONNECT", "http://a/x", &[]);
    let wanted = write_request(&connect, Some("websocket"), false, &mut out);
    assert_eq!(wanted.unwrap().1.tunnel, Some(Tunnel::WebSocket));
}

#[test]
fn responses_keep_their_meaning_in_both_directions() {
    let fields = |lines: &[(&'static str, &'static str)]| {
        let lines = lines.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        lines.collect::<HeaderMap>()
    };
    let grpc = [
        ("content-type", "application/grpc"),
        ("content-length", "7"),
    ];
    let rows: [(u16, &[_], bool, bool, Framing, &str); 8] = [
        (
            200,
            &[("content-length", "7")],
            false,
            false,
            Framing::Counted(7),
            "content-length: 7\r\nconnection: close",
        ),
        (
            200,
            &[],
            false,
            false,
            Framing::Chunked,
            "transfer-encoding: chunked\r\nconnection: close",
        ),
        (
            200,
            &[],
            true,
            false,
            Framing::Counted(0),
            "content-length: 0\r\nconnection: close",
        ),
        (
            200,
            &[("content-length", "7")],
            true,
            true,
            Framing::None,
            "content-length: 7\r\nconnection: close",
        ),
        (
            304,
            &[("content-length", "7")],
            true,
            false,
            Framing::None,
            "content-length: 7\r\nconnection: close",
        ),
        (204, &[], true, false, Framing::None, "connection: close"),
        (
            103,
            &[("link", "</a>")],
            true,
            false,
            Framing::None,
            "link: </a>",
        ),
        (
            200,
            &grpc,
            false,
            false,
            Framing::Chunked,
            "content-type: application/grpc\r\ntransfer-encoding: chunked\r\nconnection: close",
        ),
    ];
    for (status, lines, ends, head_only, framing, text) in rows {
        let (code, map) = (StatusCode::from_u16(status).unwrap(), fields(lines));
        let mut out = Vec::new();
        assert_eq!(
            write_response(code, &map, ends, head_only, &mut out),
            framing
        );
        let expected = format!("HTTP/1.1 {status} \r\n{text}\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&out), expected);
        let method = if head_only { Method::Head } else { Method::Get };
        let mut canonical = Vec::new();
        let read = parse_response(&out, &LIMITS, method, Version::H11, false, &mut canonical);
        let read = read.unwrap().unwrap();
        assert_eq!((read.status, read.framing), (status, framing));
        let back = read_response(&canonical).unwrap().unwrap().head;
        assert_eq!(back.status(), code);
        for (name, value) in lines.iter().filter(|(name, _)| *name != "content-length") {
            assert_eq!(back.headers()[*name], *value);
        }
        assert!(!back.headers().contains_key("connection"));
        assert!(!back.headers().contains_key("transfer-encoding"));
    }
}

#[test]
fn a_response_that_only_its_connection_ends_is_known() {
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    assert_eq!(
        read_response(head).unwrap().unwrap().framing,
        Framing::UntilClose
    );
    let head = b"HTTP/1.1 204 No Content\r\n\r\n";
    assert_eq!(read_response(head).unwrap().unwrap().framing, Framing::None);
}

#[test]
fn trailers_pass_and_the_fields_of_a_hop_do_not() {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("connection", HeaderValue::from_static("x"));
    let mut text = b"3\r\nabc\r\n".to_vec();
    write_last_chunk(Some(&trailers), &mut text);
    assert_eq!(text, b"3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n");
    let (payload, read) = unchunk(&text, text.len());
    assert_eq!(payload, b"abc");
    assert_eq!(read.unwrap()["grpc-status"], "0");
}

/// Reads a chunked body in reads of `step` bytes.
fn unchunk(text: &[u8], step: usize) -> (Vec<u8>, Option<HeaderMap>) {
    let (mut chunks, mut payload) = (Chunks::default(), Vec::new());
    for part in text.chunks(step.max(1)) {
        let mut at = 0;
        loop {
            let (lines, piece) = chunks.next(&part[at..]).unwrap();
            at += lines;
            match piece {
                Piece::More => break,
                Piece::Data(n) => {
                    payload.extend_from_slice(&part[at..at + n]);
                    chunks.took(n);
                    at += n;
                }
                Piece::End(trailers) => {
                    assert_eq!(at, part.len(), "the body ends where its text does");
                    return (payload, trailers);
                }
            }
        }
    }
    panic!("the body has no end");
}

#[test]
fn a_chunk_size_without_end_is_refused() {
    assert!(Chunks::default().next(b"fffffffffffffffff\r\n").is_none());
    assert!(Chunks::default().next(b"xyz\r\n").is_none());
}

fn name() -> impl Strategy<Value = HeaderName> {
    let known = [
        "cookie",
        "te",
        "connection",
        "host",
        "x-forwarded-for",
        "content-length",
        "expect",
    ];
    prop_oneof![
        proptest::sample::select(known.to_vec()).prop_map(HeaderName::from_static),
        "[a-z][a-z0-9-]{0,12}".prop_map(|it| HeaderName::from_bytes(it.as_bytes()).unwrap()),
    ]
}

/// Mostly what an address is made of.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![30 => b'a'..=b'z', 5 => 0x21..=0x7eu8, 1 => any::<u8>()]
}

proptest! {
    /// Any field, path and authority that the types of HTTP/2 can hold: the strict parser reads one
    /// message, or refuses it. What it accepts has no field that the client did not send.
    #[test]
    fn no_request_of_http2_becomes_two(
        fields in vec((name(), vec(any::<u8>(), 0..24)), 0..8),
        path in vec(byte(), 0..24),
        authority in vec(byte(), 1..12),
        ends in any::<bool>(),
    ) {
        let path = [b"/", &path[..]].concat();
        let uri = http::Uri::builder()
            .scheme("http")
            .authority(&authority[..])
            .path_and_query(&path[..])
            .build();
        let Ok(uri) = uri else { return Ok(()) };
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        for (name, value) in &fields {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                request.headers_mut().append(name.clone(), value);
            }
        }
        let mut text = Vec::new();
        if write_request(&request, None, ends, &mut text).is_err() {
            return Ok(());
        }
        let mut out = Vec::new();
        let Ok(parsed) = parse_request(&text, &LIMITS, &forwarding(), &mut out) else {
            return Ok(());
        };
        let parsed = parsed.expect("a whole head");
        prop_assert_eq!(parsed.consumed, text.len(), "something stands behind the head");
        let lines = out.split(|&b| b == b'\n').count() - 2;
        let own = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "host", "transfer-encoding", "te", "connection"];
        prop_assert!(lines <= request.headers().len() + own.len());
        if let Ok(read) = read_request(&out, false) {
            let read = read.expect("a whole head");
            prop_assert_eq!(read.length, out.len());
            let (back, framing) = (read.head, read.framing);
            prop_assert_eq!(framing == Framing::Chunked, parsed.framing == Framing::Chunked);
            for (name, value) in back.headers() {
                let sent = request.headers().get_all(name);
                let is_own = own.contains(&name.as_str()) || name == "cookie" || name == "content-length";
                // A parser trims what stands around a value.
                let same = |it: &HeaderValue| it.as_bytes().trim_ascii() == value.as_bytes();
                prop_assert!(is_own || sent.iter().any(same), "{} is not the client's", name);
            }
        }
    }

    /// What `body.rs` writes comes back as it was, however the text is split.
    #[test]
    fn chunks_come_back(parts in vec(vec(any::<u8>(), 1..40), 0..6), step in 1usize..50) {
        let mut text = Vec::new();
        for part in &parts {
            text.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            text.extend_from_slice(part);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        let mut canonical = Vec::new();
        let mut decoder = BodyDecoder::new(Framing::Chunked, &LIMITS, 400);
        decoder.decode(&text, Emit::Chunked, &mut canonical).unwrap();
        prop_assert_eq!(unchunk(&canonical, step).0, parts.concat());
    }
}

//! The table of contract 4 for the parser alone: each line has one or more cases, with the verdict
//! and the forwarded bytes. Every case is also read split at each of its byte boundaries, and with
//! a good request behind it.

use ebbtide::wire::answer::write_answer;
use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::{Forwarding, parse_request, parse_response};
use ebbtide::wire::message::{Emit, Framing, Limits, Method, Reject, Request, Response, Version};
use ebbtide::wire::sniff::{Beginning, Sniff, beginning, sniff, sniff_all};
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    head_size: 16 << 10,
    headers: 100,
};
const GET: &str = "GET /next HTTP/1.1\r\nHost: next\r\n\r\n";

fn forwarding() -> Forwarding {
    Forwarding {
        peer: "192.0.2.7".parse().unwrap(),
        local: "198.51.100.1:8080".parse().unwrap(),
        trusted: false,
        https: false,
        allow_connect: false,
    }
}

fn request(input: &[u8], fwd: &Forwarding) -> (Result<Option<Request>, Reject>, String) {
    let mut out = Vec::new();
    let verdict = parse_request(input, &LIMITS, fwd, &mut out);
    (verdict, String::from_utf8_lossy(&out).into_owned())
}

/// Reads `head` as it grows byte by byte: `None` until it is complete, or the refusal of the whole
/// head. With a request behind it, the verdict is the same, and `consumed` is the head's length.
fn request_however_split(head: &[u8], fwd: &Forwarding) -> (Result<Request, Reject>, String) {
    let whole = request(head, fwd);
    for end in 0..head.len() {
        let part = request(&head[..end], fwd);
        match whole.0 {
            Err(reject) => assert!(
                part.0 == Ok(None) || part.0 == Err(reject),
                "{part:?} of {whole:?}, {end} bytes"
            ),
            Ok(_) => assert_eq!(
                part.0,
                Ok(None),
                "{end} bytes of {:?}",
                String::from_utf8_lossy(head)
            ),
        }
        assert_eq!(part.1, "", "nothing is written before the head is complete");
    }
    assert_eq!(
        request(&[head, GET.as_bytes()].concat(), fwd),
        whole,
        "with a request behind it"
    );
    let verdict = whole.0.map(|request| request.expect("a complete head"));
    if let Ok(request) = verdict {
        assert_eq!(request.consumed, head.len());
    }
    (verdict, whole.1)
}

type Answer = (Result<Response, Reject>, String);

fn response_however_split(head: &[u8], method: Method, client: Version, close: bool) -> Answer {
    let read = |input: &[u8]| {
        let mut out = Vec::new();
        let verdict = parse_response(input, &LIMITS, method, client, close, &mut out);
        (verdict, String::from_utf8_lossy(&out).into_owned())
    };
    let whole = read(head);
    for end in 0..head.len() {
        let part = read(&head[..end]);
        match whole.0 {
            Err(reject) => assert!(
                part.0 == Ok(None) || part.0 == Err(reject),
                "{part:?} of {whole:?}, {end} bytes"
            ),
            Ok(_) => assert_eq!(
                part.0,
                Ok(None),
                "{end} bytes of {:?}",
                String::from_utf8_lossy(head)
            ),
        }
        assert_eq!(part.1, "");
    }
    assert_eq!(
        read(&[head, b"HTTP/1.1 200 OK\r\n\r\n"].concat()),
        whole,
        "with a response behind it"
    );
    let verdict = whole.0.map(|response| response.expect("a complete head"));
    if let Ok(response) = verdict {
        assert_eq!(response.consumed, head.len());
    }
    (verdict, whole.1)
}

/// Checks a list of (head, status, reason).
fn refused(cases: &[(&str, u16, &str)]) {
    assert!(!cases.is_empty());
    for &(head, status, reason) in cases {
        let (verdict, _) = request_however_split(head.as_bytes(), &forwarding());
        let reject = verdict.expect_err(head);
        assert_eq!((reject.status, reject.reason), (status, reason), "{head:?}");
    }
}

/// Checks a list of (head, what the upstream receives), with `{x}` for the X-Forwarded fields of
/// host `a`.
fn forwarded(cases: &[(&str, &str)]) -> Vec<Request> {
    assert!(!cases.is_empty());
    let x = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n";
    let check = |&(head, expected): &(&str, &str)| {
        let (verdict, out) = request_however_split(head.as_bytes(), &forwarding());
        let request = verdict.unwrap_or_else(|reject| panic!("{head:?}: {reject:?}"));
        assert_eq!(
            out,
            expected
                .replace("{x}", &format!("{x}X-Forwarded-Host: a\r\n"))
                .replace("{y}", x),
            "{head:?}"
        );
        request
    };
    cases.iter().map(check).collect()
}

#[test]
fn a_plain_request_is_forwarded_in_its_order() {
    let requests = forwarded(&[
        (
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "PURGE /x?y=%20|{}\\^ HTTP/1.1\r\nB_c:1\r\nhOST:\ta \r\nEmpty:\r\nObs: \u{e9}\r\nSpaced: \t a  b \t\r\n\r\n",
            "PURGE /x?y=%20|{}\\^ HTTP/1.1\r\nB_c: 1\r\nhOST: a\r\nEmpty: \r\nObs: \u{e9}\r\nSpaced: a  b\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \r\n{y}\r\n",
        ),
    ]);
    assert_eq!(
        (
            requests[0].method,
            requests[0].framing,
            requests[0].keep_alive
        ),
        (Method::Get, Framing::None, true)
    );
    assert_eq!(requests[2].method, Method::Other);
}

#[test]
fn content_length_is_one_decimal_number() {
    let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    for (fields, reason) in [
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "length_with_transfer_encoding",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
            "length_with_transfer_encoding",
        ),
        (
            "Transfer-Encoding: gzip\r\nContent-Length: 0",
            "length_with_transfer_encoding",
        ),
        (
            "Content-Length: 5\r\ncontent-length: 5",
            "duplicate_content_length",
        ),
        (
            "Content-Length: 5\r\nContent-Length: 6",
            "duplicate_content_length",
        ),
        ("Content-Length: 5, 5", "bad_content_length"),
        ("Content-Length: 5,", "bad_content_length"),
        ("Content-Length: +5", "bad_content_length"),
        ("Content-Length: -0", "bad_content_length"),
        ("Content-Length: 0x5", "bad_content_length"),
        ("Content-Length: 5 5", "bad_content_length"),
        ("Content-Length: 5\u{661}", "bad_content_length"),
        ("Content-Length: 1e3", "bad_content_length"),
        ("Content-Length:", "bad_content_length"),
        ("Content-Length:  \t", "bad_content_length"),
        ("Content-Length: 9223372036854775808", "bad_content_length"),
        (
            "Content-Length: 99999999999999999999999999999999",
            "bad_content_length",
        ),
    ] {
        refused(&[(&with(fields), 400, reason)]);
    }
    let requests = forwarded(&[
        (
            &with("Content-Length: 9223372036854775807"),
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n{x}\r\n",
        ),
        (
            &with("content-LENGTH:0005 "),
            "POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 5\r\n{x}\r\n",
        ),
        (
            &with("Content-Length: 000"),
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n{x}\r\n",
        ),
    ]);
    let framings = [
        Framing::Counted(i64::MAX as u64),
        Framing::Counted(5),
        Framing::Counted(0),
    ];
    assert_eq!(
        requests.iter().map(|r| r.framing).collect::<Vec<_>>(),
        framings
    );
}

#[test]
fn transfer_encoding_is_chunked_once() {
    let with = |version: &str, fields: &str| {
        format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n\r\n")
    };
    for (fields, status, reason) in [
        (
            "Transfer-Encoding: chunked, chunked",
            400,
            "bad_transfer_encoding",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
            "bad_transfer_encoding",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            400,
            "bad_transfer_encoding",
        ),
        (
            "Transfer-Encoding: chunked, gzip",
            400,
            "bad_transfer_encoding",
        ),
        ("Transfer-Encoding: chunked,", 400, "bad_transfer_encoding"),
        ("Transfer-Encoding: ,chunked", 400, "bad_transfer_encoding"),
        ("Transfer-Encoding:", 400, "bad_transfer_encoding"),
        ("Transfer-Encoding: identity", 400, "bad_transfer_encoding"),
        (
            "Transfer-Encoding: \"chunked\"",
            400,
            "bad_transfer_encoding",
        ),
        (
            "Transfer-Encoding: chunked;q=1",
            400,
            "bad_transfer_encoding",
        ),
        (
            "Transfer-Encoding: chunked chunked",
            400,
            "bad_transfer_encoding",
        ),
        (
            "Transfer-Encoding: \u{e9}chunked",
            400,
            "bad_transfer_encoding",
        ),
        ("Transfer-Encoding: \x0bchunked", 400, "control_byte"),
        ("Transfer-Encoding : chunked", 400, "bad_header"),
        (
            "Transfer-Encoding: gzip, chunked",
            501,
            "unknown_transfer_encoding",
        ),
        (
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            501,
            "unknown_transfer_encoding",
        ),
        ("Transfer-Encoding: gzip", 501, "unknown_transfer_encoding"),
        (
            "Transfer-Encoding: xchunked",
            501,
            "unknown_transfer_encoding",
        ),
    ] {
        refused(&[(&with("1.1", fields), status, reason)]);
    }
    refused(&[(
        &with("1.0", "Transfer-Encoding: chunked"),
        400,
        "transfer_encoding_on_http10",
    )]);
    let canonical = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n";
    let requests = forwarded(&[(&with("1.1", "transfer-encoding:\tCHUNKED "), canonical)]);
    assert_eq!(requests[0].framing, Framing::Chunked);
}

#[test]
fn host_is_one_and_agrees_with_the_target() {
    refused(&[
        ("GET / HTTP/1.1\r\n\r\n", 400, "missing_host"),
        ("GET http://a/ HTTP/1.1\r\n\r\n", 400, "missing_host"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            400,
            "duplicate_host",
        ),
        (
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            400,
            "duplicate_host",
        ),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "bad_host"),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400, "bad_host"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_host"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "bad_host"),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "bad_host"),
        (
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "host_mismatch",
        ),
        (
            "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "host_mismatch",
        ),
        (
            "GET https://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "host_mismatch",
        ),
        (
            "GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n",
            400,
            "host_mismatch",
        ),
        (
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_target",
        ),
        ("GET http:///x HTTP/1.1\r\nHost:\r\n\r\n", 400, "bad_target"),
        (
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_target",
        ),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ]);
    forwarded(&[
        (
            "GET http://A/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /x?y HTTP/1.1\r\nHost: A\r\n{y}X-Forwarded-Host: A\r\n\r\n",
        ),
        (
            "GET HTTP://a HTTP/1.1\r\nHost: a:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /?q HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET //b/c HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET //b/c HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
    ]);
}

#[test]
fn lines_end_in_crlf_and_hold_no_control_bytes() {
    refused(&[
        (
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "leading_blank_line",
        ),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_lf"),
        ("GET / HTTP/1.1\nHost: a\n\n", 400, "bare_lf"),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400, "bare_lf"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "bare_lf"),
        ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400, "bare_cr"),
        ("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400, "bare_cr"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\rX", 400, "bare_cr"),
        ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", 400, "control_byte"),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "control_byte"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[0m\r\n\r\n",
            400,
            "control_byte",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
            400,
            "bad_header",
        ),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "obs_fold"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
            400,
            "obs_fold",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", 400, "obs_fold"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_header"),
        ("GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", 400, "bad_header"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
            400,
            "bad_header",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400, "bad_header"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n",
            400,
            "bad_header",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: b\r\n\r\n",
            400,
            "bad_header",
        ),
    ]);
}

#[test]
fn the_request_line_is_three_words_of_this_protocol() {
    refused(&[
        (
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            505,
            "unsupported_version",
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            505,
            "unsupported_version",
        ),
        (
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            505,
            "unsupported_version",
        ),
        (
            "GET / HTTP/0.9\r\nHost: a\r\n\r\n",
            505,
            "unsupported_version",
        ),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
        ("GET / HTTP/1.x\r\nHost: a\r\n\r\n", 400, "bad_version"),
        ("GET / HTTP/2\r\nHost: a\r\n\r\n", 400, "bad_version"),
        (
            "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        ("GET /\r\n\r\n", 400, "bad_request_line"),
        ("GET\r\n\r\n", 400, "bad_request_line"),
        (
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        (
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
        (
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        (
            "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        (
            "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
        (
            "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "bad_request_line",
        ),
        ("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ]);
}

/// RFC 3986 wants these bytes encoded. But they can be read in one way only, clients send them, and
/// other proxies forward them.
#[test]
fn a_target_may_have_every_visible_byte_but_a_fragment() {
    for byte in (0x21..0x7f).filter(|byte| *byte != b'#').map(char::from) {
        let head = format!("GET /a?b={byte}c HTTP/1.1\r\nHost: a\r\n");
        forwarded(&[(&format!("{head}\r\n"), &format!("{head}{{x}}\r\n"))]);
        let absolute = format!("GET http://a/{byte} HTTP/1.1\r\nHost: a\r\n\r\n");
        let origin = format!("GET /{byte} HTTP/1.1\r\nHost: a\r\n{{x}}\r\n");
        forwarded(&[(&absolute, &origin)]);
    }
    // Not in a host, which other parsers end in other places.
    refused(&[(
        "GET http://a\"/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        "bad_target",
    )]);
}

#[test]
fn upgrade_needs_both_its_halves() {
    let requests = forwarded(&[
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Keep-Alive, UPGRADE\r\nUpgrade: websocket\r\nSec-K: k\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nSec-K: k\r\n{x}Connection: upgrade\r\n\r\n",
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
            "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n{x}\r\n",
        ),
    ]);
    assert_eq!(
        requests.iter().map(|r| r.upgrade).collect::<Vec<_>>(),
        [true, false, false, false, false]
    );
}

#[test]
fn an_offer_of_h2c_is_dropped_whole() {
    let offer = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let dropped = "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n";
    let upgraded =
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{x}Connection: upgrade\r\n\r\n";
    let settings = "HTTP2-Settings: AAMAAABk\r\n";
    for (fields, expected) in [
        (
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n{s}",
            dropped,
        ),
        // Some endpoints upgrade although `Connection` does not list the settings.
        ("Connection: Upgrade\r\nUpgrade: h2c\r\n{s}", dropped),
        ("Connection: Upgrade\r\nUpgrade: H2C\r\n", dropped),
        ("{s}", dropped),
        ("http2-SETTINGS: x\r\n", dropped),
        (
            "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n{s}",
            upgraded,
        ),
        (
            "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: , h2c/1 ,websocket\r\n",
            upgraded,
        ),
        (
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
            upgraded,
        ),
        // What is no protocol's name, although a lenient parser could read h2c in it.
        ("Connection: upgrade\r\nUpgrade: \"h2c\"\r\n", dropped),
        ("Connection: upgrade\r\nUpgrade: h2c;q=1\r\n", dropped),
        ("Connection: upgrade\r\nUpgrade: h2c\u{a0}\r\n", dropped),
        (
            "Connection: upgrade\r\nUpgrade: h2c x, websocket\r\n",
            upgraded,
        ),
        ("Connection: upgrade\r\nUpgrade:\r\n", dropped),
    ] {
        let head = offer(&fields.replace("{s}", settings));
        let requests = forwarded(&[(&head, expected)]);
        assert_eq!(requests[0].upgrade, expected == upgraded, "{head:?}");
    }
    // Names with a version, and several of them, pass as they came.
    forwarded(&[(
        &offer("Connection: upgrade\r\nUpgrade: TLS/1.0,foo , bar/2\r\n"),
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.0,foo , bar/2\r\n{x}Connection: upgrade\r\n\r\n",
    )]);
}

#[test]
fn connect_is_refused_unless_enabled() {
    let head = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    refused(&[(head, 501, "connect_refused")]);
    let fwd = Forwarding {
        allow_connect: true,
        ..forwarding()
    };
    let (verdict, out) = request_however_split(head.as_bytes(), &fwd);
    assert_eq!(verdict.unwrap().method, Method::Connect);
    assert!(
        out.starts_with("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n"),
        "{out}"
    );
    for (head, reason) in [
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
        ("CONNECT a:b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
        (
            "CONNECT b:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
            "host_mismatch",
        ),
        (
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 1\r\n\r\n",
            "connect_with_body",
        ),
    ] {
        assert_eq!(
            request_however_split(head.as_bytes(), &fwd).0,
            Err(Reject {
                status: 400,
                reason
            }),
            "{head:?}"
        );
    }
}

#[test]
fn a_head_is_bounded_in_bytes_and_lines() {
    let limits = Limits {
        head_size: 64,
        headers: 3,
    };
    let read = |head: &str| {
        let mut out = Vec::new();
        parse_request(head.as_bytes(), &limits, &forwarding(), &mut out)
            .map(|r| r.map(|r| r.consumed))
    };
    let of_size = |size: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "x".repeat(size - 32)
        )
    };
    assert_eq!(read(&of_size(64)), Ok(Some(64)));
    let too_large = Err(Reject {
        status: 431,
        reason: "head_too_large",
    });
    assert_eq!(read(&of_size(65)), too_large);
    for end in 0..=65 {
        let expected = if end < 64 { Ok(None) } else { too_large };
        assert_eq!(read(&of_size(65)[..end]), expected, "{end} bytes");
    }
    // A request line that does not end within the bound has a target that is too long.
    let too_long = Err(Reject {
        status: 414,
        reason: "target_too_long",
    });
    for line in [
        format!("GET /{}", "a".repeat(80)),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(50)),
        format!("GET /{} HTTP/1.1\r\n", "a".repeat(49)),
    ] {
        for end in 0..=line.len() {
            let expected = if end < 64 { Ok(None) } else { too_long };
            assert_eq!(read(&line[..end]), expected, "{end} bytes of {line:?}");
        }
    }
    let fits = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(48));
    assert_eq!(read(&fits), too_large, "the line fits, the fields do not");
    // A fault within the bound is reported first. Beyond the bound the parser looks for no fault.
    assert_eq!(
        read(&format!("GET / HTTP/1.1\n{}", "x".repeat(80)))
            .unwrap_err()
            .reason,
        "bare_lf"
    );
    assert_eq!(read(&format!("{}\n", "x".repeat(64))), too_large);
    assert_eq!(
        read("GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\n\r\n"),
        Ok(Some(35))
    );
    let too_many = Err(Reject {
        status: 431,
        reason: "too_many_headers",
    });
    assert_eq!(
        read("GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\nD:\r\n\r\n"),
        too_many
    );

    let hundred = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(count - 1)
        )
    };
    assert!(request(hundred(100).as_bytes(), &forwarding()).0.is_ok());
    refused(&[(&hundred(101), 431, "too_many_headers")]);
    refused(&[(
        &format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: a{}\r\n\r\n",
            ",a".repeat(32)
        ),
        400,
        "too_many_connection_options",
    )]);
}

#[test]
fn http_1_0_keeps_alive_where_it_asks_and_needs_no_host() {
    let requests = forwarded(&[
        (
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 198.51.100.1:8080\r\n{y}\r\n",
        ),
        (
            "GET http://a/ HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{y}\r\n",
        ),
        (
            "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nConnection: close\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nConnection: foo,Close\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nHost: a\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
    ]);
    assert_eq!(
        requests.iter().map(|r| r.keep_alive).collect::<Vec<_>>(),
        [false, false, true, false, false, false]
    );
    assert!(!requests[5].expect_continue);
}

#[test]
fn fields_for_one_hop_are_not_forwarded() {
    forwarded(&[
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n{x}\r\n",
        ),
        // Fields that `Connection` lists are removed, but never the fields that frame and route the
        // message.
        (
            "PUT / HTTP/1.1\r\nConnection: a, , host,Content-Length\r\nConnection: b\r\nHost: a\r\n\
             Content-Length: 1\r\nA: 1\r\nb: 2\r\nC: 3\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nC: 3\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding, x-forwarded-for\r\n\
             Transfer-Encoding: chunked\r\nTrailer: D\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nTrailer: D\r\nTransfer-Encoding: chunked\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTrailer: D\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
    ]);
}

#[test]
fn te_trailers_is_forwarded_and_no_other_coding() {
    let passed = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n{x}Connection: TE\r\n\r\n";
    let dropped = "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n";
    for (fields, expected) in [
        ("TE: trailers\r\nConnection: TE\r\n", passed),
        ("Connection: te, keep-alive\r\nte: Trailers\r\n", passed),
        ("TE: trailers\r\n", passed),
        ("TE: gzip;q=0.5, trailers, deflate\r\n", passed),
        ("TE: gzip\r\nTE: trailers\r\nTE: trailers\r\n", passed),
        ("TE: gzip\r\nConnection: TE\r\n", dropped),
        ("TE: trailers;q=0\r\n", dropped),
        ("TE: xtrailers\r\n", dropped),
        ("TE:\r\n", dropped),
        ("Connection: TE\r\n", dropped),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        forwarded(&[(&head, expected)]);
    }
    forwarded(&[
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nTE: trailers\r\n{x}Connection: upgrade, TE\r\n\r\n",
        ),
        // An HTTP/1.0 client gets no trailers.
        (
            "GET / HTTP/1.0\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
    ]);
}

#[test]
fn what_decides_on_a_replay_is_what_the_upstream_receives() {
    let requests = forwarded(&[
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nIf-Match: x\r\nIdempotency-Key: k\r\nExpect: 100-Continue\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nIf-Match: x\r\nIdempotency-Key: k\r\nExpect: 100-Continue\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nConnection: idempotency-key, if-match, expect\r\nIf-Match: x\r\n\
             Idempotency-Key: k\r\nExpect: 100-continue\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nIF-NONE-MATCH: *\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nIF-NONE-MATCH: *\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nif-unmodified-since: x\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nif-unmodified-since: x\r\n{x}\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: x\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: x\r\n{x}\r\n",
        ),
    ]);
    let flags: Vec<_> = requests
        .iter()
        .map(|r| (r.conditional, r.idempotency_key, r.expect_continue))
        .collect();
    let (yes, no) = (true, false);
    assert_eq!(
        flags,
        [
            (yes, yes, yes),
            (no, no, no),
            (yes, no, no),
            (yes, no, no),
            (no, no, no)
        ]
    );
    use Method::*;
    for method in [
        Get, Head, Options, Trace, Put, Delete, Post, Patch, Connect, Other,
    ] {
        assert_eq!(
            method.is_idempotent(),
            !matches!(method, Post | Patch | Connect | Other),
            "{method:?}"
        );
    }
}

#[test]
fn forwarded_fields_are_believed_from_trusted_peers_only() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3\r\n\
                X-FORWARDED-Port: 1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX_Forwarded_For: c\r\n\r\n";
    // A name that is only the beginning of the others.
    let bare = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-: 1\r\nx_forwarded_: 2\r\n\r\n";
    forwarded(&[(bare, "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n")]);
    forwarded(&[(head, "GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n")]);
    let fwd = Forwarding {
        trusted: true,
        ..forwarding()
    };
    assert_eq!(
        request_however_split(head.as_bytes(), &fwd).1,
        "GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=1.1.1.1\r\nX-FORWARDED-Port: 1\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: b\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 192.0.2.7\r\n\r\n"
    );
    // A trusted peer without these fields is like any other peer. An IPv4 peer on a dual-stack
    // socket is forwarded as IPv4.
    let fwd = Forwarding {
        peer: "::ffff:192.0.2.9".parse().unwrap(),
        https: true,
        ..fwd
    };
    assert_eq!(
        request_however_split(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &fwd).1,
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n\r\n"
    );
}

#[test]
fn the_same_faults_in_a_response_are_502() {
    let cases = [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "length_with_transfer_encoding",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 01\r\n\r\n",
            "duplicate_content_length",
        ),
        (
            "HTTP/1.1 304 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "duplicate_content_length",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            "bad_content_length",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "unknown_transfer_encoding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "bad_transfer_encoding",
        ),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", "leading_blank_line"),
        ("HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", "bare_lf"),
        ("HTTP/1.1 200 OK\nA: b\r\n\n", "bare_lf"),
        ("HTTP/1.1 200 OK\n\r\n", "bare_lf"),
        ("HTTP/1.1 200 OK\nA: b\n c\n\n", "bare_lf"),
        ("\nHTTP/1.1 200 OK\n\n", "bare_lf"),
        ("HTTP/1.1 200 OK\nContent-Length: 1\x01\n\n", "bare_lf"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\x01\r\n\r\n",
            "control_byte",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0cchunked\r\n\r\n",
            "control_byte",
        ),
        ("HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n", "bare_cr"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "obs_fold"),
        ("HTTP/1.1 200 O\0K\r\n\r\n", "control_byte"),
        ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "bad_header"),
        ("HTTP/1.1 200 OK\r\n: b\r\n\r\n", "bad_header"),
        ("HTTP/3.0 200 OK\r\n\r\n", "unsupported_version"),
        ("HTTP/1.2 200 OK\r\n\r\n", "unsupported_version"),
        ("HTPP/1.1 200 OK\r\n\r\n", "bad_version"),
        ("HTTP/1.1 200OK\r\n\r\n", "bad_status_line"),
        ("HTTP/1.1  20 OK\r\n\r\n", "bad_status_line"),
        ("HTTP/1.1 20 OK\r\n\r\n", "bad_status_line"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "bad_status_line"),
        ("HTTP/1.1 099 OK\r\n\r\n", "bad_status_line"),
        ("HTTP/1.1 101 Switching\r\n\r\n", "bad_upgrade"),
        (
            "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
            "bad_upgrade",
        ),
        (
            "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n",
            "bad_upgrade",
        ),
        (
            "HTTP/1.0 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "bad_upgrade",
        ),
    ];
    for (head, reason) in cases {
        let (verdict, _) =
            response_however_split(head.as_bytes(), Method::Get, Version::H11, false);
        assert_eq!(
            verdict,
            Err(Reject {
                status: 502,
                reason
            }),
            "{head:?}"
        );
    }
    let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(17 << 10));
    let mut out = Vec::new();
    let verdict = parse_response(
        large.as_bytes(),
        &LIMITS,
        Method::Get,
        Version::H11,
        false,
        &mut out,
    );
    assert_eq!(
        verdict,
        Err(Reject {
            status: 502,
            reason: "head_too_large"
        })
    );
}

/// The table of docs/contract.md, section 4.3, whose bodies are in the table of `framing`.
#[test]
fn harmless_deviations_of_a_response_are_rewritten() {
    let plain = "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases = [
        ("HTTP/1.1 200 OK\nA: b\nContent-Length: 5\n\n", plain, true),
        (
            "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\n",
            plain,
            true,
        ),
        (
            "HTTP/1.1  200   OK\r\nA: b\r\nContent-Length: 5\r\n\r\n",
            plain,
            true,
        ),
        (
            "HTTP/2.0 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n",
            plain,
            false,
        ),
        (
            "HTTP/1.1 200 OK\x0b\r\nA: \x01b\x7f\r\nContent-Length: 5\r\n\r\n",
            plain,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\ncontent-length:5\r\n\r\n",
            plain,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: , chunked ,\r\n\r\n",
            chunked,
            true,
        ),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            chunked,
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
            chunked,
            false,
        ),
        // Several together.
        (
            "HTTP/2.0  200 OK\nA: \x1bb\nContent-Length: 5\nContent-Length: 5\n\n",
            plain,
            false,
        ),
        (
            "HTTP/1.1 200 OK\nHost: a\nHost: b\nContent-Length: 5\n\n",
            "HTTP/1.1 200 OK\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            true,
        ),
        // No reason, with its space and without.
        (
            "HTTP/1.1 204\nA: b\n\n",
            "HTTP/1.1 204 \r\nA: b\r\n\r\n",
            true,
        ),
    ];
    for (head, expected, keep_alive) in cases {
        let (verdict, out) =
            response_however_split(head.as_bytes(), Method::Get, Version::H11, false);
        let read = verdict.unwrap_or_else(|reject| panic!("{head:?}: {reject:?}"));
        assert_eq!(String::from_utf8_lossy(out.as_ref()), expected, "{head:?}");
        assert_eq!(
            (read.keep_alive, read.consumed),
            (keep_alive, head.len()),
            "{head:?}"
        );
    }
}

/// (request method, client, close), head, what the client receives, and the remaining results as a
/// line.
type ResponseCase = (
    (Method, Version, bool),
    &'static str,
    &'static str,
    &'static str,
);

#[test]
fn a_response_ends_where_method_and_status_say() {
    use {Method::*, Version::*};
    let cases: &[ResponseCase] = &[
        // Responses with a length.
        (
            (Get, H11, false),
            "HTTP/1.1 200 OK\r\nContent-Length: 05\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "Counted(5) Identity kept",
        ),
        (
            (Get, H11, true),
            "HTTP/1.1 404\r\nA:b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404 \r\nA: b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "Counted(0) Identity kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.1 999 caf\u{e9} \r\nConnection: close, X\r\nX: y\r\nKeep-Alive: 3\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 999 caf\u{e9} \r\nContent-Length: 5\r\n\r\n",
            "Counted(5) Identity",
        ),
        (
            (Get, H11, false),
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "Counted(5) Identity kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "Counted(5) Identity",
        ),
        // Responses to an HTTP/1.0 client.
        (
            (Get, H10, false),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
            "Counted(5) Identity kept",
        ),
        (
            (Get, H10, true),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            "Counted(5) Identity kept",
        ),
        (
            (Get, H10, false),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: D\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            "Chunked Identity kept client-closes",
        ),
        (
            (Get, H10, false),
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            "UntilClose Identity client-closes",
        ),
        // Chunked responses, and those that become chunked.
        (
            (Get, H11, false),
            "HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\nTrailer: D\r\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTrailer: D\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Chunked Chunked kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "UntilClose Chunked",
        ),
        // Responses without a body, by method and status.
        (
            (Head, H11, false),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Head, H11, false),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Head, H10, false),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Head, H11, false),
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "None Identity kept",
        ),
        // Interim responses carry no field about the connection.
        (
            (Post, H11, true),
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "None Identity kept",
        ),
        (
            (Get, H11, true),
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            "None Identity kept",
        ),
        // Tunnels, and offers of an upgrade.
        (
            (Get, H11, true),
            "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nA: b\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nA: b\r\nConnection: upgrade\r\n\r\n",
            "None Identity tunnel",
        ),
        (
            (Connect, H11, true),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "None Identity tunnel",
        ),
        (
            (Connect, H11, false),
            "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n",
            "Counted(5) Identity kept",
        ),
        (
            (Get, H11, false),
            "HTTP/1.1 200 OK\r\nUpgrade: h2\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "Counted(0) Identity kept",
        ),
        (
            (Get, H11, true),
            "HTTP/1.1 426 Upgrade\r\nUpgrade: h2\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 426 Upgrade\r\nUpgrade: h2\r\nContent-Length: 0\r\nConnection: upgrade\r\nConnection: close\r\n\r\n",
            "Counted(0) Identity kept",
        ),
    ];
    for &((method, client, close), head, expected, summary) in cases {
        let (verdict, out) = response_however_split(head.as_bytes(), method, client, close);
        let r = verdict.unwrap_or_else(|reject| panic!("{head:?}: {reject:?}"));
        assert_eq!(out, expected, "{method:?} {client:?} {head:?}");
        let flags = [
            (r.keep_alive, " kept"),
            (r.client_close, " client-closes"),
            (r.upgrade, " tunnel"),
        ];
        let flags: String = flags
            .into_iter()
            .filter_map(|(set, word)| set.then_some(word))
            .collect();
        assert_eq!(
            format!("{:?} {:?}{flags}", r.framing, r.emit),
            summary,
            "{method:?} {client:?} {head:?}"
        );
    }
}

/// Feeds `input` in these pieces. Returns the verdict at the end, how many bytes were taken, and
/// the output.
fn decode<'a>(
    framing: Framing,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    emit: Emit,
) -> (Result<bool, Reject>, usize, String) {
    let mut decoder = BodyDecoder::new(framing, &LIMITS, 400);
    let (mut out, mut taken, mut verdict) = (Vec::new(), 0, Ok(()));
    for piece in pieces {
        match decoder.decode(piece, emit, &mut out) {
            Ok(consumed) => {
                assert!(consumed == piece.len() || decoder.is_done());
                taken += consumed;
            }
            Err(reject) => verdict = Err(reject),
        }
        if decoder.is_done() || verdict.is_err() {
            break;
        }
    }
    (
        verdict.map(|()| decoder.is_done()),
        taken,
        String::from_utf8_lossy(&out).into_owned(),
    )
}

/// Decodes the input whole, in two pieces at each boundary, and byte by byte. The verdict, the
/// output and the bytes taken must be the same.
fn decode_however_split(
    framing: Framing,
    input: &[u8],
    emit: Emit,
) -> (Result<bool, Reject>, usize, String) {
    let whole = decode(framing, [input], emit);
    let agree = |split: (Result<bool, Reject>, usize, String), how: &str| {
        assert_eq!(
            split.0,
            whole.0,
            "{how} {:?}",
            String::from_utf8_lossy(input)
        );
        assert_eq!(split.2, whole.2, "{how}");
        if whole.0.is_ok() {
            assert_eq!(split.1, whole.1, "{how}");
        }
    };
    for at in 0..=input.len() {
        agree(
            decode(framing, [&input[..at], &input[at..]], emit),
            &format!("at {at}"),
        );
    }
    agree(decode(framing, input.chunks(1), emit), "dribbled");
    whole
}

#[test]
fn chunks_are_forwarded_in_canonical_form() {
    for (body, chunked, identity) in [
        ("0\r\n\r\n", "0\r\n\r\n", ""),
        ("000\r\n\r\n", "0\r\n\r\n", ""),
        (
            "5\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        (
            "00A\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n",
            "a\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n",
            "0123456789\n",
        ),
        ("1;a\r\nx\r\n0;b=c\r\n\r\n", "1\r\nx\r\n0\r\n\r\n", "x"),
        (
            "1 ; a = \"q\\\"; \t\u{e9}\" ;b\r\nx\r\n0\r\n\r\n",
            "1\r\nx\r\n0\r\n\r\n",
            "x",
        ),
        (
            "0\r\nDigest:  x \r\nG_s:\r\n\r\n",
            "0\r\nDigest: x\r\nG_s: \r\n\r\n",
            "",
        ),
        (
            "0\r\nConnection: a\r\nUpgrade: b\r\nX-Forwarded-For: c\r\nKept: d\r\nTE: e\r\nTrailer: f\r\n\
             authorization: NTLM g\r\nWWW-Authenticate: h\r\nProxy-Authorization: i\r\n\r\n",
            "0\r\nKept: d\r\n\r\n",
            "",
        ),
    ] {
        for (emit, expected) in [(Emit::Chunked, chunked), (Emit::Identity, identity)] {
            let (verdict, taken, out) =
                decode_however_split(Framing::Chunked, body.as_bytes(), emit);
            assert_eq!(
                (verdict, taken, out.as_str()),
                (Ok(true), body.len(), expected),
                "{body:?}"
            );
            let (verdict, taken, out) =
                decode_however_split(Framing::Chunked, (body.to_owned() + GET).as_bytes(), emit);
            assert_eq!(
                (verdict, taken, out.as_str()),
                (Ok(true), body.len(), expected),
                "{body:?}, a request behind"
            );
        }
    }
}

#[test]
fn a_bad_chunk_is_refused() {
    let long = format!("1;{}\r\n", "a".repeat(256));
    let trailers = format!("0\r\nA: {}", "x".repeat(16 << 10));
    let many = format!("0\r\n{}\r\n", "A: b\r\n".repeat(101));
    let cases = [
        ("20000000000001\r\n", "chunk_too_large"),
        ("ffffffffffffffff\r\n", "chunk_too_large"),
        ("10000000000000000\r\n", "chunk_too_large"),
        ("00000000000000001\r\n", "chunk_too_large"),
        ("\r\n", "bad_chunk_size"),
        ("g\r\n", "bad_chunk_size"),
        ("0x1\r\n", "bad_chunk_size"),
        ("-1\r\n", "bad_chunk_size"),
        ("+1\r\n", "bad_chunk_size"),
        (" 1\r\n", "bad_chunk_size"),
        (";a\r\n", "bad_chunk_size"),
        ("1\n", "bad_chunk_size"),
        ("1\0\r\n", "bad_chunk_size"),
        ("1\rx", "bad_chunk_end"),
        ("1 \r\n", "bad_chunk_extension"),
        ("1 1\r\n", "bad_chunk_extension"),
        ("1;\r\n", "bad_chunk_extension"),
        ("1;a=\r\n", "bad_chunk_extension"),
        ("1;a\n", "bad_chunk_extension"),
        ("1;a\0\r\n", "bad_chunk_extension"),
        ("1;a=\"\r\n\"\r\n", "bad_chunk_extension"),
        ("1;a=\"\x7f\"\r\n", "bad_chunk_extension"),
        ("1;a=\"b\"c\r\n", "bad_chunk_extension"),
        ("1;a\rx", "bad_chunk_end"),
        (&long, "chunk_extension_too_long"),
        ("1\r\nxy", "bad_chunk_end"),
        ("1\r\nx\n", "bad_chunk_end"),
        ("1\r\nx\rz", "bad_chunk_end"),
        ("1\r\nx0\r\n\r\n", "bad_chunk_end"),
        ("0\r\n\n", "bad_trailer"),
        ("0\r\n\rx", "bad_trailer"),
        ("0\r\nA: b\n\r\n", "bad_trailer"),
        ("0\r\nA: b\rc\r\n\r\n", "bad_trailer"),
        ("0\r\nA: b\0\r\n\r\n", "bad_trailer"),
        ("0\r\nA: b\r\n c\r\n\r\n", "bad_trailer"),
        ("0\r\nA : b\r\n\r\n", "bad_trailer"),
        ("0\r\n: b\r\n\r\n", "bad_trailer"),
        ("0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_trailer"),
        ("0\r\nContent-Length: 5\r\n\r\n", "forbidden_trailer"),
        (
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
            "forbidden_trailer",
        ),
        ("0\r\nHost: a\r\n\r\n", "forbidden_trailer"),
        (&many, "bad_trailer"),
    ];
    for (body, reason) in cases {
        for emit in [Emit::Chunked, Emit::Identity] {
            let (verdict, _, _) = decode_however_split(Framing::Chunked, body.as_bytes(), emit);
            assert_eq!(
                verdict,
                Err(Reject {
                    status: 400,
                    reason
                }),
                "{body:?}"
            );
        }
    }
    // Splitting 16 KiB at every boundary would take quadratic time.
    for verdict in [
        decode(Framing::Chunked, [trailers.as_bytes()], Emit::Chunked).0,
        decode(
            Framing::Chunked,
            trailers.as_bytes().chunks(1),
            Emit::Chunked,
        )
        .0,
    ] {
        assert_eq!(
            verdict,
            Err(Reject {
                status: 400,
                reason: "trailers_too_large"
            })
        );
    }
    let mut upstream = BodyDecoder::new(Framing::Chunked, &LIMITS, 502);
    assert_eq!(
        upstream
            .decode(b"x", Emit::Chunked, &mut Vec::new())
            .unwrap_err()
            .status,
        502
    );
    // The largest valid chunk size is accepted first.
    assert_eq!(
        decode(
            Framing::Chunked,
            [&b"20000000000000\r\n"[..]],
            Emit::Chunked
        )
        .2,
        "20000000000000\r\n"
    );
}

#[test]
fn counted_and_close_delimited_bodies() {
    assert_eq!(
        decode_however_split(Framing::None, b"x", Emit::Identity),
        (Ok(true), 0, String::new())
    );
    assert_eq!(
        decode_however_split(Framing::Counted(0), b"x", Emit::Identity),
        (Ok(true), 0, String::new())
    );
    assert_eq!(
        decode_however_split(Framing::Counted(3), b"abcd", Emit::Identity),
        (Ok(true), 3, "abc".into())
    );
    assert_eq!(
        decode_however_split(Framing::Counted(3), b"ab", Emit::Identity),
        (Ok(false), 2, "ab".into())
    );
    assert_eq!(
        decode_however_split(Framing::UntilClose, b"ab", Emit::Identity),
        (Ok(false), 2, "ab".into())
    );
    assert_eq!(
        decode(Framing::UntilClose, [&b"ab"[..], b"", b"c"], Emit::Chunked).2,
        "2\r\nab\r\n1\r\nc\r\n"
    );

    let mut counted = BodyDecoder::new(Framing::Counted(10), &LIMITS, 400);
    assert_eq!(
        (counted.pass(4), counted.remaining(), counted.is_done()),
        (4, Some(6), false)
    );
    assert_eq!(
        (counted.pass(7), counted.remaining(), counted.is_done()),
        (6, Some(0), true)
    );
    assert_eq!(counted.pass(1), 0);
    let mut close = BodyDecoder::new(Framing::UntilClose, &LIMITS, 502);
    assert_eq!(
        (close.pass(4), close.remaining(), close.is_done()),
        (4, None, false)
    );
    let mut chunked = BodyDecoder::new(Framing::Chunked, &LIMITS, 502);
    assert_eq!((chunked.pass(4), chunked.remaining()), (0, None));
}

#[test]
fn a_body_that_ends_early_is_not_whole() {
    let end = |framing, input: &[u8], emit| {
        let mut decoder = BodyDecoder::new(framing, &LIMITS, 502);
        let mut out = Vec::new();
        decoder.decode(input, emit, &mut out).unwrap();
        assert!(
            decoder.is_done() || !out.ends_with(b"0\r\n"),
            "the end is not written before it is certain"
        );
        out.clear();
        let verdict = decoder.eof(emit, &mut out);
        assert_eq!(verdict.is_ok(), decoder.is_done());
        (verdict, String::from_utf8(out).unwrap())
    };
    let truncated = (
        Err(Reject {
            status: 502,
            reason: "truncated_body",
        }),
        String::new(),
    );
    let fine = (Ok(()), String::new());
    assert_eq!(end(Framing::None, b"", Emit::Identity), fine);
    assert_eq!(end(Framing::Counted(2), b"ab", Emit::Identity), fine);
    assert_eq!(end(Framing::Counted(2), b"a", Emit::Identity), truncated);
    assert_eq!(end(Framing::UntilClose, b"a", Emit::Identity), fine);
    assert_eq!(
        end(Framing::UntilClose, b"a", Emit::Chunked),
        (Ok(()), "0\r\n\r\n".into())
    );
    let body = b"2;a\r\nab\r\n0\r\nA: b\r\n\r\n";
    for cut in 0..body.len() {
        assert_eq!(
            end(Framing::Chunked, &body[..cut], Emit::Chunked),
            truncated,
            "{cut}"
        );
    }
    assert_eq!(end(Framing::Chunked, body, Emit::Chunked), fine);
}

#[test]
fn the_proxys_own_answer_is_a_valid_response() {
    let mut out = Vec::new();
    write_answer(503, "hold_timeout", Some(1), true, false, &mut out);
    assert_eq!(
        String::from_utf8_lossy(&out),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 34\r\n\
         x-ebbtide-reason: hold_timeout\r\nRetry-After: 1\r\nConnection: close\r\n\r\nService Unavailable: hold_timeout\n"
    );
    for status in [400, 408, 414, 417, 431, 501, 502, 503, 504, 505] {
        for head_only in [false, true] {
            let mut out = Vec::new();
            write_answer(status, "some_reason", None, false, head_only, &mut out);
            let method = if head_only { Method::Head } else { Method::Get };
            let read = parse_response(&out, &LIMITS, method, Version::H11, false, &mut Vec::new());
            let read = read.unwrap().expect("a complete head");
            let length = match read.framing {
                Framing::Counted(length) => length as usize,
                other => {
                    assert_eq!((other, head_only), (Framing::None, true));
                    0
                }
            };
            assert_eq!(
                (read.status, read.keep_alive, out.len()),
                (status, true, read.consumed + length)
            );
        }
    }
}

#[test]
fn auto_knows_http_by_its_first_line() {
    use Sniff::{Http, NeedMore, Other};
    let long = |before: &str| [before.as_bytes(), &[b'a'; 17 << 10]].concat();
    let cases: Vec<(Vec<u8>, Sniff)> = [
        (&b"GET / HTTP/1.1\r\n"[..], Http),
        (b"get /x?y HTTP/1.1\r\nHost: a b c\r\n", Http),
        (b"M-SEARCH * HTTP/1.1\n", Http),
        (b"CONNECT a:443 HTTP/1.0\r\n", Http),
        // What this proxy refuses, and another server may accept.
        (b"GET / HTTP/1.2\r\n", Http),
        (b"GET / HTTP/2.0\r\n", Http),
        (b"GET / HTTP/2\r\n", Http),
        (b"GET / http/1.1\r\n", Http),
        (b"GET / HTTP/1.1x\r\n", Http),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", Http),
        (b"GET /\0 HTTP/1.1\r\n", Http),
        (b"GET  / HTTP/1.1\r\n", Http),
        (b"GET\t/\x0bHTTP/1.1\r\n", Http),
        (b"GET / HTTP/1.1 \t\0\xa0\r\n", Http),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Http),
        (b" \n\r\x85\xa0GET / HTTP/1.1\n", Http),
        (b"{GET} / HTTP/1.1\r\n", Http),
        (b"G\xc9T / HTTP/1.1\r\n", Http),
        (b"GET / HTTP/1.1\rHost: a\r\r", Http),
        (b"GET /\rHTTP/1.1\r\n", Http),
        (b"GET /HTTP/1HTTP/1.1\n", Http),
        (b"PRI * HTTP/2.0\r\nHost: a\r\n", Http),
        (b"\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http),
        // Other protocols.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Sniff::Http2),
        (b"GET /\r\n", Other),
        (b"get key\r\n", Other),
        (b"GET HTTP/\r\n", Other),
        (b"GET / HTTP/1.1 200\r\n", Other),
        (b"<34>1 x - \"GET / HTTP/1.1\"\n", Other),
        (b"set key 0 0 5\r\n", Other),
        (b"EHLO example.org\r\n", Other),
        (b"USER guest * * :x\r\n", Other),
        (b"CONNECT {\"verbose\":false}\r\n", Other),
        (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", Other),
        (b"INVITE sip:a@b SIP/2.0\r\n", Other),
        (b"PING\r\n", Other),
        (b"*1\r\n$4\r\nPING\r\n", Other),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Other),
        (b"\x16\x03\x01\x02\x00\x01", Other),
        (b"AMQP\0", Other),
        (b"\0", Other),
        (b"", NeedMore),
        (b"\r\n", NeedMore),
        (b"{\"id\":1}", NeedMore),
        (b"GET / HTTP/1.1", NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM", NeedMore),
    ]
    .map(|(first, verdict)| (first.to_vec(), verdict))
    .into_iter()
    .chain([
        // Too long to see its end: what begins like a request line is one.
        (long("GET /"), Http),
        (long("a"), Http),
        (long("X "), Http),
        (b"\r\n".repeat(9 << 10), Http),
        (long("{"), Other),
        (long("\u{e9} "), Other),
    ])
    .collect();
    for (first, verdict) in cases {
        let text = String::from_utf8_lossy(&first[..first.len().min(60)]).into_owned();
        assert_eq!(sniff(&first), verdict, "{text:?}");
        for end in (0..first.len()).step_by(1 + first.len() / 500) {
            let part = sniff(&first[..end]);
            assert!(part == NeedMore || part == verdict, "{end} of {text:?}");
        }
    }
}

#[test]
fn the_end_of_the_client_ends_its_first_line() {
    for (first, verdict) in [
        ("X / HTTP/1.1", Sniff::Http),
        ("GET /", Sniff::Other),
        ("\r\n", Sniff::Other),
        ("PRI * HTTP/2.0\r\n\r\n", Sniff::Http),
        ("ruok", Sniff::Other),
    ] {
        assert_eq!(sniff_all(first.as_bytes()), verdict, "{first:?}");
    }
}

#[test]
fn only_what_begins_like_a_request_line_is_waited_for() {
    for (first, verdict) in [
        ("", Beginning::Word),
        ("P", Beginning::Request),
        ("GET", Beginning::Request),
        ("\r\nDELETE /a", Beginning::Request),
        ("PRI * HTTP/2.0\r\n\r\n", Beginning::Request),
        ("PROPFIND /a", Beginning::Word),
        ("ruok", Beginning::Word),
        ("JDWP-Handshake", Beginning::Word),
        ("{\"id\":1}", Beginning::Text),
        ("\r\n", Beginning::Text),
    ] {
        assert_eq!(beginning(first.as_bytes()), verdict, "{first:?}");
    }
}

/// Bytes that resemble HTTP often enough to get far into the code.
fn httpish() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
        b"GET / HTTP/1.1\r\n",
        b"POST http://a/ HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 204 \r\n",
        b"Host: a\r\n",
        b"Content-Length: ",
        b"Transfer-Encoding: ",
        b"chunked",
        b"Connection: ",
        b"Upgrade: ",
        b"x",
        b"5",
        b"0",
        b"ff",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"\"",
        b"\\",
        b"=",
        b"\0",
        b"\xff",
        b"*",
        b"a: b\r\n",
    ];
    let word = prop_oneof![8 => prop::sample::select(words).prop_map(<[u8]>::to_vec), 1 => prop::collection::vec(any::<u8>(), 0..4)];
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

/// A request that must be accepted, and its framing.
fn valid_request() -> impl Strategy<Value = (String, Framing)> {
    let method = prop::sample::select(vec!["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "X-y"]);
    let fields = prop::collection::vec(
        (
            "F-[!#$%&'*+.^_`|~0-9A-Za-z-]{0,10}",
            "[ \t]{0,2}[!-~\u{e9}]{0,8}[ -~]{0,8}",
        ),
        0..8,
    );
    let framing = prop_oneof![
        Just((String::new(), Framing::None)),
        Just((
            "transfer-encoding: Chunked\r\n".to_owned(),
            Framing::Chunked
        )),
        (0..=i64::MAX as u64)
            .prop_map(|n| (format!("Content-length:{n}\r\n"), Framing::Counted(n))),
    ];
    let connection = prop::sample::select(vec![
        "",
        "Connection: close\r\n",
        "Connection: upgrade, f-x\r\nUpgrade: w\r\n",
    ]);
    (method, "/[!$-~]{0,20}", fields, framing, connection).prop_map(
        |(method, target, fields, framing, connection)| {
            let fields: String = fields
                .iter()
                .map(|(name, value)| format!("{name}:{value}\r\n"))
                .collect();
            (
                format!(
                    "{method} {target} HTTP/1.1\r\n{fields}Host: a\r\n{}{connection}\r\n",
                    framing.0
                ),
                framing.1,
            )
        },
    )
}

/// `bytes` cut at these places.
fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn any_bytes_have_one_verdict(input in httpish()) {
        let mut request = (Ok(None), String::new());
        let mut response = (Ok(None), Vec::new());
        let mut first = Sniff::NeedMore;
        for end in 0..=input.len() {
            let part = &input[..end];
            let now = self::request(part, &forwarding());
            prop_assert!(request.0 == Ok(None) || request == now, "{request:?} became {now:?}");
            request = now;
            let mut out = Vec::new();
            let now = (parse_response(part, &LIMITS, Method::Get, Version::H10, true, &mut out), out);
            prop_assert!(response.0 == Ok(None) || response == now, "{response:?} became {now:?}");
            response = now;
            let now = sniff(part);
            prop_assert!(first == Sniff::NeedMore || first == now);
            first = now;
        }
        _ = decode_however_split(Framing::Chunked, &input, Emit::Chunked);
    }

    /// However a request line is padded, whatever its target holds, and wherever the network
    /// splits it, it is HTTP, and no part of it is TCP.
    #[test]
    fn a_request_line_is_http_however_it_is_padded(
        before in "[ \t\r\n]{0,6}",
        method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}",
        gaps in ("[ \t\r]{1,4}", "[ \t\r]{1,4}"),
        target in prop::collection::vec(any::<u8>().prop_filter("no line end", |b| *b != b'\n'), 0..60),
        version in "[hH][tT][tT][pP]/[0-9]{1,2}(\\.[0-9]{1,2})?",
        after in "[ \t\0\u{a0}]{0,4}\r?\n",
        rest in any::<Vec<u8>>(),
    ) {
        let mut line = [before.as_bytes(), method.as_bytes(), gaps.0.as_bytes(), &target, gaps.1.as_bytes(), version.as_bytes(), after.as_bytes()].concat();
        let end = line.len();
        line.extend(rest);
        for at in 0..=line.len() {
            let part = sniff(&line[..at]);
            prop_assert!(part == Sniff::Http || part == Sniff::NeedMore && at < end, "{at}: {part:?}");
        }
    }

    /// The forwarded bytes read as the same request, and a second proxy of this kind changes
    /// nothing in them.
    #[test]
    fn valid_requests_round_trip((head, framing) in valid_request()) {
        let (read, out) = request(head.as_bytes(), &forwarding());
        let read = read.unwrap().unwrap();
        prop_assert_eq!((read.framing, read.consumed), (framing, head.len()));
        let (again, canonical) = request(out.as_bytes(), &forwarding());
        let again = again.unwrap().unwrap();
        prop_assert_eq!((again.method, again.framing, again.upgrade), (read.method, read.framing, read.upgrade));
        prop_assert_eq!(canonical, out);
    }

    #[test]
    fn payloads_survive_chunks(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        extension in "(;[a-z]{1,3}(=\"[ -!#-\\[\\]-~]{0,5}\")?){0,2}",
        trailer in "(T: [a-z]{0,5}\r\n){0,2}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let payload = chunks.concat();
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(format!("0{extension}\r\n{trailer}\r\n").as_bytes());
        let run = |framing, wire: &[u8], emit, end: bool| {
            let mut decoder = BodyDecoder::new(framing, &LIMITS, 400);
            let mut out = Vec::new();
            for piece in pieces(wire, &cuts) {
                assert_eq!(decoder.decode(piece, emit, &mut out), Ok(piece.len()));
            }
            if end {
                decoder.eof(emit, &mut out).unwrap();
            }
            assert!(decoder.is_done());
            out
        };
        prop_assert_eq!(&run(Framing::Chunked, &wire, Emit::Identity, false), &payload);
        let canonical = run(Framing::Chunked, &wire, Emit::Chunked, false);
        prop_assert_eq!(&run(Framing::Chunked, &canonical, Emit::Identity, false), &payload);
        prop_assert_eq!(&run(Framing::Chunked, &canonical, Emit::Chunked, false), &canonical);
        let rechunked = run(Framing::UntilClose, &payload, Emit::Chunked, true);
        prop_assert_eq!(&run(Framing::Chunked, &rechunked, Emit::Identity, false), &payload);
    }
}

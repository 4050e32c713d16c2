//! The table of requests: what a client sends, and what the proxy does with it by contract 4 and
//! RFC 9112 sections 2 to 9.
//!
//! In forwarded bytes, `{x}` stands for the `X-Forwarded-*` fields of a request for host `a`, `{y}`
//! for those of a request without a host, and `{l}` for the listener's own address.

use super::with;

pub struct Case {
    pub name: &'static str,
    /// The source of the rule: a section of RFC 9112, unless another one is named.
    pub rule: &'static str,
    pub input: Vec<u8>,
    pub verdict: Verdict,
    /// The request goes to the listener that allows CONNECT.
    pub connect: bool,
}

pub enum Verdict {
    /// The endpoint receives these bytes, and its response goes back. `keeps`: the client's
    /// connection then serves another request.
    Forwarded { bytes: Vec<u8>, keeps: bool },
    /// The proxy answers, nothing reaches the endpoint, and the connection ends.
    Refused { status: u16, reason: &'static str },
    /// The fault is in the body. If it came with the head, nothing reaches the endpoint. Otherwise
    /// the endpoint receives a beginning of these bytes, and then its connection ends.
    Cut {
        within: Vec<u8>,
        reason: &'static str,
    },
    /// The client ends before its message does. There is no response, and the endpoint sees the
    /// same as with `Cut`.
    Abandoned { within: Vec<u8> },
}

type Refused = (&'static str, &'static str, &'static [u8], u16, &'static str);
type CutChunks = (
    &'static str,
    &'static str,
    &'static [u8],
    &'static [u8],
    &'static str,
);
type Forwarded = (&'static str, &'static str, &'static [u8], &'static [u8]);

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name, rule, input: Vec<u8>, verdict| {
        cases.push(Case {
            name,
            rule,
            connect: input.starts_with(b"CONNECT ") && rule != OFF,
            input,
            verdict,
        });
    };
    for &(name, rule, input, status, reason) in REFUSED {
        add(
            name,
            rule,
            input.to_vec(),
            Verdict::Refused { status, reason },
        );
    }
    for &(name, rule, fields, status, reason) in REFUSED_FIELDS {
        let input = with(b"POST / HTTP/1.1\r\nHost: a\r\n{f}\r\n\r\n", "{f}", fields);
        // A server might take these bytes for the rest of the message. They must not be read as a
        // request.
        let behind = b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        add(
            name,
            rule,
            [&input[..], behind].concat(),
            Verdict::Refused { status, reason },
        );
    }
    for &(name, rule, input, bytes) in FORWARDED {
        add(
            name,
            rule,
            input.to_vec(),
            Verdict::Forwarded {
                bytes: bytes.to_vec(),
                keeps: true,
            },
        );
    }
    for &(name, rule, input, bytes) in FORWARDED_ONCE {
        add(
            name,
            rule,
            input.to_vec(),
            Verdict::Forwarded {
                bytes: bytes.to_vec(),
                keeps: false,
            },
        );
    }
    for &(name, rule, body, chunks) in FORWARDED_CHUNKS {
        let input = [
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            body,
        ]
        .concat();
        let bytes = [CHUNKED, chunks].concat();
        add(name, rule, input, Verdict::Forwarded { bytes, keeps: true });
    }
    for &(name, rule, body, chunks, reason) in CUT_CHUNKS {
        let input = [
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            body,
        ]
        .concat();
        let within = [CHUNKED, chunks].concat();
        add(name, rule, input, Verdict::Cut { within, reason });
    }
    for &(name, rule, input, within) in ABANDONED {
        add(
            name,
            rule,
            input.to_vec(),
            Verdict::Abandoned {
                within: within.to_vec(),
            },
        );
    }

    // Cases that are too long to write out.
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
    let long = |size: usize| head(&format!("A: {}\r\n", "b".repeat(size - 32)));
    let same =
        |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}{{x}}\r\n").into_bytes();
    let chunked = |body: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
            .into_bytes()
    };
    let kept = |bytes| Verdict::Forwarded { bytes, keeps: true };
    let cut = |reason| Verdict::Cut {
        within: CHUNKED.to_vec(),
        reason,
    };
    let too_large = || Verdict::Refused {
        status: 431,
        reason: "head_too_large",
    };
    add(
        "a head of exactly 16 KiB",
        "3",
        long(16 << 10),
        kept(same(&format!("A: {}\r\n", "b".repeat((16 << 10) - 32)))),
    );
    add(
        "a head of 16 KiB and one byte",
        "3",
        long((16 << 10) + 1),
        too_large(),
    );
    add(
        "a target over the bound",
        "3",
        with(
            b"GET /{f} HTTP/1.1\r\nHost: a\r\n\r\n",
            "{f}",
            &[b'a'; 20 << 10],
        ),
        Verdict::Refused {
            status: 414,
            reason: "target_too_long",
        },
    );
    add(
        "a head of zeros without an end",
        "3",
        [b"GET / HTTP/1.1\r\n", &[b'0'; 20 << 10][..]].concat(),
        too_large(),
    );
    add(
        "100 fields",
        "5",
        head(&"B: c\r\n".repeat(99)),
        kept(same(&"B: c\r\n".repeat(99))),
    );
    add(
        "101 fields",
        "5",
        head(&"B: c\r\n".repeat(100)),
        Verdict::Refused {
            status: 431,
            reason: "too_many_headers",
        },
    );
    add(
        "33 connection options",
        "9110 7.6.1",
        head(&format!("Connection: a{}\r\n", ",a".repeat(32))),
        Verdict::Refused {
            status: 400,
            reason: "too_many_connection_options",
        },
    );
    add(
        "an extension over its bound",
        "7.1.1",
        chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(300))),
        cut("chunk_extension_too_long"),
    );
    add(
        "an extension that never ends",
        "7.1.1",
        chunked(&format!("1;a=\"{}", "a".repeat(4096))),
        cut("chunk_extension_too_long"),
    );
    add(
        "trailers over the bound of a head",
        "7.1.2",
        chunked(&format!("0\r\nA: {}\r\n\r\n", "b".repeat(16 << 10))),
        cut("trailers_too_large"),
    );
    add(
        "101 trailers",
        "7.1.2",
        chunked(&format!("0\r\n{}\r\n", "A: b\r\n".repeat(101))),
        cut("bad_trailer"),
    );
    let payload = "x".repeat(5000);
    add(
        "a chunk that fills many reads",
        "7.1",
        chunked(&format!("1388\r\n{payload}\r\n0\r\n\r\n")),
        kept(
            [
                CHUNKED,
                format!("1388\r\n{payload}\r\n0\r\n\r\n").as_bytes(),
            ]
            .concat(),
        ),
    );
    cases
}

const OFF: &str = "9110 9.3.6, not enabled";
const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n";

/// Heads that are refused.
const REFUSED: &[Refused] = &[
    ("bare LF for every line", "2.2", b"GET / HTTP/1.1\nHost: a\n\n", 400, "bare_lf"),
    ("bare LF after the request line", "2.2", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bare_lf"),
    ("bare LF after a field", "2.2", b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400, "bare_lf"),
    ("bare LF for the empty line", "2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "bare_lf"),
    ("a leading bare LF", "2.2", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_lf"),
    ("two leading empty lines", "2.2", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "leading_blank_line"),
    ("a leading CR alone", "2.2", b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("CR inside a value", "2.2", b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rC: d\r\n\r\n", 400, "bare_cr"),
    ("CR inside the host", "2.2", b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400, "bare_cr"),
    ("CR inside the target", "2.2", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("CR CR LF", "2.2", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("CR CR LF at the end", "2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n", 400, "bare_cr"),
    ("CR without LF at the end", "2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n", 400, "bare_cr"),
    ("whitespace before the first field", "2.2", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "obs_fold"),
    ("a tab before the first field", "2.2", b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", 400, "obs_fold"),
    ("HTTP/0.9", "3", b"GET /\r\n\r\n", 400, "bad_request_line"),
    ("a method alone", "3", b"GET\r\n\r\n", 400, "bad_request_line"),
    ("no method", "3", b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("no target", "3", b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a space before the method", "3", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("two spaces after the method", "3", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("two spaces after the target", "3", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("a space after the version", "3", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a word after the version", "3", b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("tabs for spaces", "3", b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a vertical tab for a space", "3", b"GET\x0b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "control_byte"),
    ("a form feed for a space", "3", b"GET / \x0cHTTP/1.1\r\nHost: a\r\n\r\n", 400, "control_byte"),
    ("a space in the target", "3.2", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("a method that is no token", "3.1", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a method with a colon", "3.1", b"GET: / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a method beyond ASCII", "3.1", b"G\xc3\x89T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("NUL in the method", "3.1", b"GE\0T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "control_byte"),
    ("NUL in the target", "3.2", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "control_byte"),
    ("DEL in the target", "3.2", b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("UTF-8 in the target", "3.2", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("a byte beyond ASCII in the target", "3.2", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a fragment", "3.2", b"GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("a target without a slash", "3.2.1", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("a target that is a host", "3.2.3", b"GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 400, "bad_target"),
    ("an asterisk without OPTIONS", "3.2.4", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("an asterisk and more", "3.2.4", b"OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("another scheme", "3.2.2", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("a scheme without a host", "3.2.2", b"GET http:///x HTTP/1.1\r\nHost:\r\n\r\n", 400, "bad_target"),
    ("a scheme with one slash", "3.2.2", b"GET http:/a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("userinfo in the target", "9110 4.2.4", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("absolute-form against Host", "3.2.2", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "host_mismatch"),
    ("absolute-form, another port", "3.2.2", b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "host_mismatch"),
    (
        "absolute-form, the other scheme's port",
        "3.2.2",
        b"GET https://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        "host_mismatch",
    ),
    ("absolute-form, an empty Host", "3.2.2", b"GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n", 400, "host_mismatch"),
    ("absolute-form without Host", "3.2", b"GET http://a/ HTTP/1.1\r\n\r\n", 400, "missing_host"),
    ("no Host", "3.2", b"GET / HTTP/1.1\r\n\r\n", 400, "missing_host"),
    ("no Host but another field", "3.2", b"GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", 400, "missing_host"),
    ("two Host fields that agree", "3.2", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "duplicate_host"),
    ("two Host fields that disagree", "3.2", b"GET / HTTP/1.1\r\nHost: a\r\nHOST: b\r\n\r\n", 400, "duplicate_host"),
    ("two Host fields on HTTP/1.0", "3.2", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, "duplicate_host"),
    ("a list in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "bad_host"),
    ("a comma in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400, "bad_host"),
    ("a space in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_host"),
    ("a path in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "bad_host"),
    ("userinfo in Host", "3.2", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "bad_host"),
    ("a query in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 400, "bad_host"),
    ("a byte beyond ASCII in Host", "3.2", b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n", 400, "bad_host"),
    ("a port that is no number in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "bad_host"),
    ("a signed port in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n", 400, "bad_host"),
    ("two ports in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n", 400, "bad_host"),
    ("a port without a host", "3.2", b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400, "bad_host"),
    ("half an IPv6 Host", "3.2", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "bad_host"),
    ("brackets within Host", "3.2", b"GET / HTTP/1.1\r\nHost: a[b]\r\n\r\n", 400, "bad_host"),
    ("a name behind an IPv6 Host", "3.2", b"GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", 400, "bad_host"),
    ("an empty literal for a Host", "3.2", b"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 400, "bad_host"),
    ("two ports in the target", "3.2.2", b"GET http://a:80:81/ HTTP/1.1\r\nHost: a:80\r\n\r\n", 400, "bad_target"),
    (
        "a port that is no number in the target",
        "3.2.2",
        b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        "bad_target",
    ),
    ("NUL in Host", "3.2", b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", 400, "control_byte"),
    ("HTTP/2.0", "2.3", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "unsupported_version"),
    ("HTTP/1.2", "2.3, contract 4.1", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, "unsupported_version"),
    ("HTTP/0.9 as a version", "2.3", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505, "unsupported_version"),
    ("a version in lower case", "2.3", b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("another protocol's name", "2.3", b"GET / HTPP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("a version of one digit", "2.3", b"GET / HTTP/2\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("a minor version of two digits", "2.3", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
    ("a version that is no number", "2.3", b"GET / HTTP/1.x\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("a comma for the point", "2.3", b"GET / HTTP/1,1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("a space before the colon of Host", "5.1", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_header"),
    ("a tab before the colon of Host", "5.1", b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", 400, "bad_header"),
    ("CONNECT where it is not allowed", OFF, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, "connect_refused"),
    ("CONNECT, origin-form", "3.2.3", b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("CONNECT without a port", "3.2.3", b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("CONNECT, no number for a port", "3.2.3", b"CONNECT a:b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("CONNECT, a port over 65535", "3.2.3", b"CONNECT a:65536 HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400, "bad_target"),
    ("CONNECT, a signed port", "3.2.3", b"CONNECT a:+443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400, "bad_target"),
    ("CONNECT against Host", "3.2.3", b"CONNECT b:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400, "host_mismatch"),
    (
        "CONNECT with a length",
        "9110 9.3.6",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 1\r\n\r\nx",
        400,
        "connect_with_body",
    ),
    (
        "CONNECT, chunked",
        "9110 9.3.6",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "connect_with_body",
    ),
    (
        "chunked on HTTP/1.0",
        "6.1",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "transfer_encoding_on_http10",
    ),
    (
        "chunked and a length on HTTP/1.0",
        "6.1",
        b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "transfer_encoding_on_http10",
    ),
];

/// Field lines that refuse a POST. Behind each are the bytes of a chunked body and a smuggled
/// request.
const REFUSED_FIELDS: &[Refused] = &[
    (
        "length before chunked",
        "6.3",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        400,
        "length_with_transfer_encoding",
    ),
    (
        "chunked before length",
        "6.3",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        400,
        "length_with_transfer_encoding",
    ),
    (
        "an unknown coding and a length",
        "6.3",
        b"Transfer-Encoding: gzip\r\nContent-Length: 0",
        400,
        "length_with_transfer_encoding",
    ),
    (
        "two lengths that agree",
        "6.3",
        b"Content-Length: 5\r\ncontent-length: 5",
        400,
        "duplicate_content_length",
    ),
    (
        "two lengths that disagree",
        "6.3",
        b"Content-Length: 5\r\nContent-Length: 6",
        400,
        "duplicate_content_length",
    ),
    (
        "a list of equal lengths",
        "6.3",
        b"Content-Length: 5, 5",
        400,
        "bad_content_length",
    ),
    (
        "a list of lengths",
        "6.3",
        b"Content-Length: 5, 6",
        400,
        "bad_content_length",
    ),
    (
        "a length and a comma",
        "6.3",
        b"Content-Length: 5,",
        400,
        "bad_content_length",
    ),
    (
        "an empty length",
        "6.2",
        b"Content-Length:",
        400,
        "bad_content_length",
    ),
    (
        "a length of whitespace",
        "6.2",
        b"Content-Length:  \t",
        400,
        "bad_content_length",
    ),
    (
        "a positive sign",
        "6.2",
        b"Content-Length: +5",
        400,
        "bad_content_length",
    ),
    (
        "a negative length",
        "6.2",
        b"Content-Length: -5",
        400,
        "bad_content_length",
    ),
    (
        "minus nought",
        "6.2",
        b"Content-Length: -0",
        400,
        "bad_content_length",
    ),
    (
        "a hexadecimal length",
        "6.2",
        b"Content-Length: 0x5",
        400,
        "bad_content_length",
    ),
    (
        "a length of hex digits",
        "6.2",
        b"Content-Length: a",
        400,
        "bad_content_length",
    ),
    (
        "a length with a point",
        "6.2",
        b"Content-Length: 5.0",
        400,
        "bad_content_length",
    ),
    (
        "a length with an exponent",
        "6.2",
        b"Content-Length: 1e3",
        400,
        "bad_content_length",
    ),
    (
        "a length with an underscore",
        "6.2",
        b"Content-Length: 1_0",
        400,
        "bad_content_length",
    ),
    (
        "two numbers",
        "6.2",
        b"Content-Length: 5 5",
        400,
        "bad_content_length",
    ),
    (
        "a quoted length",
        "6.2",
        b"Content-Length: \"5\"",
        400,
        "bad_content_length",
    ),
    (
        "a digit of another script",
        "6.2",
        b"Content-Length: \xd9\xa5",
        400,
        "bad_content_length",
    ),
    (
        "a length of 2^63",
        "6.2",
        b"Content-Length: 9223372036854775808",
        400,
        "bad_content_length",
    ),
    (
        "a length of 2^64 + 5",
        "6.2",
        b"Content-Length: 18446744073709551621",
        400,
        "bad_content_length",
    ),
    (
        "a length of 40 digits",
        "6.2",
        b"Content-Length: 1000000000000000000000000000000000000005",
        400,
        "bad_content_length",
    ),
    (
        "a space before the length's colon",
        "5.1",
        b"Content-Length : 5",
        400,
        "bad_header",
    ),
    (
        "a vertical tab before the length",
        "5.5",
        b"Content-Length: \x0b5",
        400,
        "control_byte",
    ),
    (
        "NUL before the length",
        "5.5",
        b"Content-Length:\x005",
        400,
        "control_byte",
    ),
    (
        "a length with NUL",
        "5.5",
        b"Content-Length: 5\0",
        400,
        "control_byte",
    ),
    (
        "a folded length",
        "5.2",
        b"Content-Length:\r\n 5",
        400,
        "obs_fold",
    ),
    (
        "chunked twice in a list",
        "6.1",
        b"Transfer-Encoding: chunked, chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked twice in lines",
        "6.1",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked, then identity",
        "6.1",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        400,
        "bad_transfer_encoding",
    ),
    (
        "identity, then chunked",
        "6.1",
        b"Transfer-Encoding: identity, chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "identity",
        "6.1",
        b"Transfer-Encoding: identity",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked is not the last",
        "6.3",
        b"Transfer-Encoding: chunked, gzip",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked and an empty element",
        "9110 5.6.1, contract 4.1",
        b"Transfer-Encoding: chunked,",
        400,
        "bad_transfer_encoding",
    ),
    (
        "an empty element and chunked",
        "9110 5.6.1, contract 4.1",
        b"Transfer-Encoding: ,chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "no coding",
        "6.1",
        b"Transfer-Encoding:",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked in quotes",
        "6.1",
        b"Transfer-Encoding: \"chunked\"",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked in single quotes",
        "6.1",
        b"Transfer-Encoding: 'chunked'",
        501,
        "unknown_transfer_encoding",
    ),
    (
        "chunked with a parameter",
        "7",
        b"Transfer-Encoding: chunked;q=1",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked with a semicolon",
        "7",
        b"Transfer-Encoding: chunked;",
        400,
        "bad_transfer_encoding",
    ),
    (
        "two words",
        "6.1",
        b"Transfer-Encoding: chunked chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "a vertical tab before the coding's colon",
        "5.1",
        b"Transfer-Encoding\x0b: chunked",
        400,
        "control_byte",
    ),
    (
        "NUL before the coding's colon",
        "5.1",
        b"Transfer-Encoding\0: chunked",
        400,
        "control_byte",
    ),
    (
        "a no-break space before the coding's colon",
        "5.1",
        b"Transfer-Encoding\xc2\xa0: chunked",
        400,
        "bad_header",
    ),
    (
        "a no-break space before the length's colon",
        "5.1",
        b"Content-Length\xa0: 5",
        400,
        "bad_header",
    ),
    (
        "a byte order mark before the coding",
        "5.1",
        b"\xef\xbb\xbfTransfer-Encoding: chunked",
        400,
        "bad_header",
    ),
    (
        "a hyphen of another script in the name",
        "5.1",
        b"Transfer\xe2\x80\x90Encoding: chunked",
        400,
        "bad_header",
    ),
    (
        "a soft hyphen in the name",
        "5.1",
        b"Content\xc2\xad-Length: 5",
        400,
        "bad_header",
    ),
    (
        "a Kelvin sign in the coding",
        "6.1",
        b"Transfer-Encoding: chun\xe2\x84\xaaed",
        400,
        "bad_transfer_encoding",
    ),
    (
        "a no-break space behind the length",
        "6.2",
        b"Content-Length: 5\xc2\xa0",
        400,
        "bad_content_length",
    ),
    (
        "a form feed behind the length",
        "5.5",
        b"Content-Length: 5\x0c",
        400,
        "control_byte",
    ),
    (
        "a space within the length's name",
        "5.1",
        b"Content Length: 5",
        400,
        "bad_header",
    ),
    (
        "a colon twice",
        "6.1",
        b"Transfer-Encoding:: chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked behind a byte beyond ASCII",
        "6.1",
        b"Transfer-Encoding: \xffchunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked behind a no-break space",
        "6.1",
        b"Transfer-Encoding: \xc2\xa0chunked",
        400,
        "bad_transfer_encoding",
    ),
    (
        "chunked behind a vertical tab",
        "5.5",
        b"Transfer-Encoding: \x0bchunked",
        400,
        "control_byte",
    ),
    (
        "chunked before a form feed",
        "5.5",
        b"Transfer-Encoding: chunked\x0c",
        400,
        "control_byte",
    ),
    (
        "chunked and NUL",
        "5.5",
        b"Transfer-Encoding: chunked\0",
        400,
        "control_byte",
    ),
    (
        "a space before the coding's colon",
        "5.1",
        b"Transfer-Encoding : chunked",
        400,
        "bad_header",
    ),
    (
        "a tab before the coding's colon",
        "5.1",
        b"Transfer-Encoding\t: chunked",
        400,
        "bad_header",
    ),
    (
        "a space within the name",
        "5.1",
        b"Transfer Encoding: chunked",
        400,
        "bad_header",
    ),
    (
        "a space before the name",
        "5.2",
        b" Transfer-Encoding: chunked",
        400,
        "obs_fold",
    ),
    (
        "a folded coding",
        "5.2",
        b"Transfer-Encoding:\r\n chunked",
        400,
        "obs_fold",
    ),
    (
        "a folded coding, by a tab",
        "5.2",
        b"Transfer-Encoding: gzip,\r\n\tchunked",
        400,
        "obs_fold",
    ),
    (
        "a coding behind a folded line",
        "5.2",
        b"X: y\r\n Transfer-Encoding: chunked",
        400,
        "obs_fold",
    ),
    (
        "a coding behind a bare LF",
        "2.2",
        b"X: y\nTransfer-Encoding: chunked",
        400,
        "bare_lf",
    ),
    (
        "a coding behind a bare CR",
        "2.2",
        b"X: y\rTransfer-Encoding: chunked",
        400,
        "bare_cr",
    ),
    (
        "gzip, then chunked",
        "6.1",
        b"Transfer-Encoding: gzip, chunked",
        501,
        "unknown_transfer_encoding",
    ),
    (
        "gzip, then chunked, in lines",
        "6.1",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        501,
        "unknown_transfer_encoding",
    ),
    (
        "gzip",
        "6.1",
        b"Transfer-Encoding: gzip",
        501,
        "unknown_transfer_encoding",
    ),
    (
        "a coding that ends in chunked",
        "6.1",
        b"Transfer-Encoding: xchunked",
        501,
        "unknown_transfer_encoding",
    ),
    (
        "a coding that begins with chunked",
        "6.1",
        b"Transfer-Encoding: chunkedx",
        501,
        "unknown_transfer_encoding",
    ),
    ("an empty name", "5.1", b": b", 400, "bad_header"),
    ("a line without a colon", "5.1", b"A", 400, "bad_header"),
    ("a name in brackets", "5.1", b"A(b): c", 400, "bad_header"),
    ("a name with a slash", "5.1", b"A/b: c", 400, "bad_header"),
    ("a name with a quote", "5.1", b"\"A\": c", 400, "bad_header"),
    ("a name beyond ASCII", "5.1", b"A\xe9: b", 400, "bad_header"),
    ("a name with NUL", "5.1", b"A\0: b", 400, "control_byte"),
    ("NUL in a value", "5.5", b"A: b\0c", 400, "control_byte"),
    (
        "an escape in a value",
        "5.5",
        b"A: \x1b[0m",
        400,
        "control_byte",
    ),
    ("DEL in a value", "5.5", b"A: \x7f", 400, "bad_header"),
    ("a folded value", "5.2", b"A: b\r\n c", 400, "obs_fold"),
    (
        "a fold of nothing",
        "5.2",
        b"A: b\r\n \r\n\r\nGET / HTTP/1.1",
        400,
        "obs_fold",
    ),
    (
        "a request line among the fields",
        "5.1",
        b"GET / HTTP/1.1",
        400,
        "bad_header",
    ),
    ("a second Host", "3.2", b"Host: a", 400, "duplicate_host"),
];

/// Requests that are forwarded and leave the client's connection open.
const FORWARDED: &[Forwarded] = &[
    ("the shortest request", "3", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("one empty line before it", "2.2", b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    (
        "fields in their order, whitespace around values gone",
        "5.1",
        b"GET /x?y=%20 HTTP/1.1\r\nB_c:1\r\nhOST:\ta \r\nEmpty:\r\nSpaced: \t a  b \t\r\n\r\n",
        b"GET /x?y=%20 HTTP/1.1\r\nB_c: 1\r\nhOST: a\r\nEmpty: \r\nSpaced: a  b\r\n{x}\r\n",
    ),
    (
        "obs-text in a value",
        "9110 5.5",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: \xe9\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: \xe9\xff\r\n{x}\r\n",
    ),
    (
        "a name of every token character",
        "9110 5.6.2",
        b"GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~09azAZ: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~09azAZ: b\r\n{x}\r\n",
    ),
    (
        "characters that URIs do not allow and servers accept",
        "3.2, contract 4.2",
        b"GET /{}|\\^`<> HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /{}|\\^`<> HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "dots and slashes are the endpoint's matter",
        "3.2.1",
        b"GET //b/../%2e%2e/c;d?e?f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET //b/../%2e%2e/c;d?e?f HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    ("an unknown method", "9110 9.1", b"M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n", b"M-SEARCH / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("a method in lower case", "9110 9.1", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", b"get / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("HEAD", "9110 9.3.2", b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("an empty Host", "3.2", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \r\n{y}\r\n"),
    ("Host with a port", "3.2", b"GET / HTTP/1.1\r\nHost: a:80\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a:80\r\n{y}X-Forwarded-Host: a:80\r\n\r\n"),
    ("an IPv6 Host", "3.2", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n{y}X-Forwarded-Host: [::1]:80\r\n\r\n"),
    ("Host with an empty port", "3.2", b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a:\r\n{y}X-Forwarded-Host: a:\r\n\r\n"),
    ("absolute-form", "3.2.2", b"GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /x?y HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("absolute-form, the default port", "3.2.2", b"GET HTTP://a HTTP/1.1\r\nHost: a:80\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("absolute-form, a query alone", "3.2.2", b"GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /?q HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("OPTIONS, asterisk-form", "3.2.4", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("OPTIONS of a whole server", "3.2.4", b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    (
        "a counted body",
        "6.2",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{x}\r\nhello",
    ),
    (
        "a length of nought",
        "6.2",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n{x}\r\n",
    ),
    (
        "leading zeros and whitespace of a length",
        "6.2",
        b"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:\t0005 \r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 5\r\n{x}\r\nhello",
    ),
    (
        "a body that looks like a request",
        "6.3",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n{x}\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("a body of NUL, CR and LF", "6", b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\0\r\n\n", b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n{x}\r\n\0\r\n\n"),
    ("GET with a body", "9110 9.3.1", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n{x}\r\nx"),
    ("POST without a length has no body", "6.3", b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    (
        "chunked in another case",
        "7",
        b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\tCHUNKED \r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n0\r\n\r\n",
    ),
    (
        "fields that only look like framing",
        "6",
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Transfer-Encoding: chunked\r\nTransfer--Encoding: chunked\r\nTransfer-Encodings: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Transfer-Encoding: chunked\r\nTransfer--Encoding: chunked\r\nTransfer-Encodings: chunked\r\n{x}\r\n",
    ),
    (
        "a coding whose hyphen is an underscore",
        "contract 4.2, lookalikes",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nTRANSFER.ENCODING: chunked\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{x}\r\nhello",
    ),
    (
        "a length whose hyphen is an underscore",
        "contract 4.2, lookalikes",
        b"POST / HTTP/1.1\r\nHost: a\r\ncontent_length: 99\r\nContent~Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n0\r\n\r\n",
    ),
    (
        "claims about the client without proper hyphens",
        "contract 4.2, lookalikes",
        b"GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 9.9.9.9\r\nX-Forwarded_Host: evil\r\nx.forwarded-proto: https\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "other names with an underscore, and a no-break space in a value",
        "5.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nX_Forward: b\r\nContent_Lengths: 5\r\nX: y\xc2\xa0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX_Forward: b\r\nContent_Lengths: 5\r\nX: y\xc2\xa0\r\n{x}\r\n",
    ),
    (
        "fields that Connection lists are removed, except those that frame and route",
        "9110 7.6.1",
        b"PUT / HTTP/1.1\r\nConnection: a, , host,Content-Length\r\nConnection: b\r\nHost: a\r\nContent-Length: 1\r\nA: 1\r\nb: 2\r\nC: 3\r\n\r\nx",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nC: 3\r\n{x}\r\nx",
    ),
    (
        "Connection lists the coding",
        "9110 7.6.1",
        b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n0\r\n\r\n",
    ),
    (
        "fields of one hop",
        "9110 7.6.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n{x}\r\n",
    ),
    (
        "TE with trailers and another coding",
        "9110 10.1.4",
        b"GET / HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\nConnection: TE\r\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nTE: trailers\r\n{x}Connection: TE\r\n\r\n",
    ),
    (
        "claims about the client",
        "contract 4.2",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    ("a quote in the target", "3.2", b"GET /?q=\"a\" HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /?q=\"a\" HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("Upgrade without its option", "9110 7.8", b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: w\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    ("the option without Upgrade", "9110 7.8", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    (
        "an upgrade that is not answered",
        "9110 7.8",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: w\r\n{x}Connection: upgrade\r\n\r\n",
    ),
    (
        "an offer of h2c",
        "contract 4.2",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "an offer of h2c, settings not listed",
        "contract 4.2",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "an upgrade with a body",
        "9110 7.8",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: w\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n{x}\r\nx",
    ),
    (
        "a body that was not waited for",
        "9110 10.1.1",
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n{x}\r\nx",
    ),
    (
        "an expectation that only the endpoint can know",
        "9110 10.1.1",
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 1\r\n\r\nx",
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 1\r\n{x}\r\nx",
    ),
    ("keep-alive said of HTTP/1.1", "9.3", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
    (
        "HTTP/1.0 that asks to be kept",
        "9.3",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "a body of HTTP/1.0",
        "6.3",
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n{x}\r\nhi",
    ),
    ("Trailer without chunks", "9110 6.6.2", b"PUT / HTTP/1.1\r\nHost: a\r\nTrailer: T\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: a\r\n{x}\r\n"),
];

/// Requests that are forwarded and are the client's last.
const FORWARDED_ONCE: &[Forwarded] = &[
    (
        "close",
        "9.6",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "close in a list",
        "9.6",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "close and keep-alive",
        "9.3",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    ("HTTP/1.0 without a Host", "3.2", b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: {l}\r\n{y}\r\n"),
    ("HTTP/1.0, absolute-form", "3.2.2", b"GET http://a/ HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n{y}\r\n"),
    (
        "HTTP/1.0, Expect",
        "9110 10.1.1",
        b"PUT / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "HTTP/1.0, Upgrade",
        "9110 7.8",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: w\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n{x}\r\n",
    ),
    (
        "a body, then close",
        "9.6",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n1\r\nx\r\n0\r\n\r\n",
    ),
];

/// Chunked bodies, and the chunks that are forwarded.
const FORWARDED_CHUNKS: &[Forwarded] = &[
    ("no chunk", "7.1", b"0\r\n\r\n", b"0\r\n\r\n"),
    ("many zeros", "7.1", b"000\r\n\r\n", b"0\r\n\r\n"),
    (
        "two chunks",
        "7.1",
        b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    ),
    (
        "a size in capitals, with zeros",
        "7.1",
        b"00A\r\n0123456789\r\n0\r\n\r\n",
        b"a\r\n0123456789\r\n0\r\n\r\n",
    ),
    (
        "payload of CR, LF and an end",
        "7.1",
        b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
        b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
    ),
    (
        "an extension",
        "7.1.1",
        b"1;a\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\n\r\n",
    ),
    (
        "extensions with values",
        "7.1.1",
        b"1;a=b;c=\"d;\\\"e\"\r\nx\r\n0;f\r\n\r\n",
        b"1\r\nx\r\n0\r\n\r\n",
    ),
    (
        "whitespace around extensions",
        "7.1.1",
        b"1 ; a = b\t;c\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\n\r\n",
    ),
    (
        "obs-text in a quoted value",
        "7.1.1",
        b"1;a=\"\xe9\"\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\n\r\n",
    ),
    (
        "trailers",
        "7.1.2",
        b"0\r\nDigest:  x \r\nG_s:\r\n\r\n",
        b"0\r\nDigest: x\r\nG_s: \r\n\r\n",
    ),
    (
        "trailers of one hop, and claims",
        "9110 6.5.1",
        b"0\r\nConnection: a\r\nUpgrade: b\r\nX-Forwarded-For: c\r\nKept: d\r\nTE: e\r\n\r\n",
        b"0\r\nKept: d\r\n\r\n",
    ),
];

/// Chunked bodies with a fault, the chunks before the fault, and the reason.
const CUT_CHUNKS: &[CutChunks] = &[
    ("no size", "7.1", b"\r\n0\r\n\r\n", b"", "bad_chunk_size"),
    (
        "a size that is no number",
        "7.1",
        b"g\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "a size with 0x",
        "7.1",
        b"0x1\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    ("a negative size", "7.1", b"-1\r\n", b"", "bad_chunk_size"),
    (
        "a signed size",
        "7.1",
        b"+1\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "a space before the size",
        "7.1",
        b" 1\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "a space after the size",
        "7.1",
        b"1 \r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "a size and another",
        "7.1",
        b"1 1\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "an underscore in a size",
        "7.1",
        b"1_0\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "a comma after the size",
        "7.1",
        b"1,\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "NUL after the size",
        "7.1",
        b"1\0\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "a size of 2^53 + 1",
        "7.1",
        b"20000000000001\r\n",
        b"",
        "chunk_too_large",
    ),
    (
        "a size of 2^64 - 1",
        "7.1",
        b"ffffffffffffffff\r\n",
        b"",
        "chunk_too_large",
    ),
    (
        "a size of 2^64 + 1",
        "7.1",
        b"10000000000000001\r\nx\r\n0\r\n\r\n",
        b"",
        "chunk_too_large",
    ),
    (
        "17 digits of zeros",
        "7.1",
        b"00000000000000001\r\nx\r\n",
        b"",
        "chunk_too_large",
    ),
    (
        "bare LF after the size",
        "7.1",
        b"1\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "bare CR after the size",
        "7.1",
        b"1\rx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_end",
    ),
    (
        "CR CR LF after the size",
        "7.1",
        b"1\r\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_end",
    ),
    (
        "an extension without a name",
        "7.1.1",
        b"1;\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "an extension without a value",
        "7.1.1",
        b"1;a=\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "an extension with NUL",
        "7.1.1",
        b"1;a\0\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "an extension and bare LF",
        "7.1.1",
        b"1;a\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "an extension and bare CR",
        "7.1.1",
        b"1;a\rx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_end",
    ),
    (
        "a quoted line end",
        "7.1.1",
        b"1;a=\"\r\n\"\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "a quote that does not end",
        "7.1.1",
        b"1;a=\"\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "DEL in a quoted value",
        "7.1.1",
        b"1;a=\"\x7f\"\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_extension",
    ),
    (
        "more payload than its size",
        "7.1",
        b"1\r\nxy\r\n0\r\n\r\n",
        b"1\r\nx",
        "bad_chunk_end",
    ),
    (
        "payload, then the next size",
        "7.1",
        b"1\r\nx0\r\n\r\n",
        b"1\r\nx",
        "bad_chunk_end",
    ),
    (
        "payload, then bare LF",
        "7.1",
        b"1\r\nx\n0\r\n\r\n",
        b"1\r\nx",
        "bad_chunk_end",
    ),
    (
        "payload, then bare CR",
        "7.1",
        b"1\r\nx\r0\r\n\r\n",
        b"1\r\nx",
        "bad_chunk_end",
    ),
    (
        "a fault in the second chunk",
        "7.1",
        b"1\r\nx\r\nz\r\n",
        b"1\r\nx\r\n",
        "bad_chunk_size",
    ),
    (
        "the end with a bare LF",
        "7.1",
        b"0\r\n\n",
        b"",
        "bad_trailer",
    ),
    (
        "the end with a bare CR",
        "7.1",
        b"0\r\n\rx",
        b"",
        "bad_trailer",
    ),
    (
        "a trailer with a bare LF",
        "7.1.2",
        b"0\r\nA: b\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a trailer with a bare CR",
        "7.1.2",
        b"0\r\nA: b\rc\r\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a trailer with NUL",
        "7.1.2",
        b"0\r\nA: b\0\r\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a folded trailer",
        "7.1.2",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a space before a trailer's colon",
        "7.1.2",
        b"0\r\nA : b\r\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a trailer without a name",
        "7.1.2",
        b"0\r\n: b\r\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a request for trailers",
        "7.1.2",
        b"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"",
        "bad_trailer",
    ),
    (
        "a length as a trailer",
        "9110 6.5.1",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"",
        "forbidden_trailer",
    ),
    (
        "a coding as a trailer",
        "9110 6.5.1",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"",
        "forbidden_trailer",
    ),
    (
        "a host as a trailer",
        "9110 6.5.1",
        b"0\r\nHost: a\r\n\r\n",
        b"",
        "forbidden_trailer",
    ),
];

/// Bodies that the client ends too early (its FIN follows), and the most that may be forwarded.
const ABANDONED: &[(&str, &str, &[u8], &[u8])] = &[
    (
        "less than the length",
        "6.3",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{x}\r\nhell",
    ),
    (
        "the largest length",
        "6.2",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n{x}\r\nx",
    ),
    (
        "chunks without the last",
        "7.1",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n1\r\nx\r\n",
    ),
    (
        "the last chunk without its end",
        "7.1",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n1\r\nx\r\n",
    ),
    (
        "trailers without their end",
        "7.1.2",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n",
    ),
    (
        "a chunk of 2^32 + 1, and what would be the end of a shorter one",
        "7.1",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n100000001\r\nx\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n100000001\r\nx\r\n0\r\n\r\n",
    ),
    (
        "a chunk of 2^53 with a byte of it",
        "7.1",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n20000000000000\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{x}\r\n20000000000000\r\nx",
    ),
];

//! The table of responses (contract 4.3): what an endpoint sends, what the client receives of it,
//! and what happens to both connections. The verdict does not depend on how the bytes are split.
//! `lane.rs` runs the table through the proxy.

use super::with;

pub struct Case {
    pub name: &'static str,
    /// The source of the rule: a section of RFC 9112, unless another one is named.
    pub rule: &'static str,
    pub ask: Ask,
    pub input: Vec<u8>,
    /// The endpoint ends its connection after the response.
    pub fin: bool,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    Get,
    /// A POST is not sent twice, so a lost one is given up immediately.
    Post,
    Head,
    /// HTTP/1.0 with keep-alive.
    Old,
    /// A GET that asks to upgrade.
    Upgrade,
    Connect,
}

pub enum Verdict {
    /// These bytes reach the client.
    Passed(After, Vec<u8>),
    /// This head, then this payload in chunks. The sizes of the chunks depend on how the bytes
    /// arrived.
    Chunked(After, Vec<u8>, &'static [u8]),
    /// 502. The endpoint's connection is closed, and the client's stays open.
    Refused(&'static str),
    /// The fault is in the body: the client receives a beginning of these bytes and then a reset
    /// (an end, where the framing shows the cut), or a 502 if nothing had been forwarded.
    Cut(Vec<u8>, &'static str),
    /// These bytes, then everything that either side sends.
    Tunnel(Vec<u8>),
}

/// The state of both connections after the response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// Both serve another request.
    Kept,
    /// The client's serves another request, on another connection to the endpoint.
    Dropped,
    /// The client's connection ends.
    Closed,
}

use After::{Closed, Dropped, Kept};
use Ask::{Connect, Get, Head, Old, Post, Upgrade};

type EndedByClose = (
    &'static str,
    &'static str,
    &'static [u8],
    &'static [u8],
    &'static [u8],
);
type CutChunks = (
    &'static str,
    &'static str,
    &'static [u8],
    &'static [u8],
    &'static str,
);
type Tunnel = (
    &'static str,
    &'static str,
    Ask,
    &'static [u8],
    &'static [u8],
);
type Passed = (
    &'static str,
    &'static str,
    Ask,
    After,
    bool,
    &'static [u8],
    &'static [u8],
);

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, rule, ask, input: Vec<u8>, fin, verdict| {
        cases.push(Case {
            name,
            rule,
            ask,
            input,
            fin,
            verdict,
        });
    };
    for &(name, rule, input, reason) in REFUSED {
        add(
            name,
            rule,
            Get,
            input.to_vec(),
            false,
            Verdict::Refused(reason),
        );
    }
    for &(name, rule, fields, reason) in REFUSED_FIELDS {
        let input = with(
            b"HTTP/1.1 200 OK\r\n{f}\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "{f}",
            fields,
        );
        add(name, rule, Get, input, false, Verdict::Refused(reason));
    }
    for &(name, rule, ask, after, fin, input, bytes) in PASSED {
        add(
            name,
            rule,
            ask,
            input.to_vec(),
            fin,
            Verdict::Passed(after, bytes.to_vec()),
        );
    }
    for &(name, rule, input, head, payload) in ENDED_BY_CLOSE {
        add(
            name,
            rule,
            Get,
            input.to_vec(),
            true,
            Verdict::Chunked(Dropped, head.to_vec(), payload),
        );
    }
    for &(name, rule, body, chunks, reason) in CUT_CHUNKS {
        let input = [CHUNKED, body].concat();
        let lost = reason == "upstream_lost";
        let ask = if lost { Post } else { Get };
        add(
            name,
            rule,
            ask,
            input,
            lost,
            Verdict::Cut([CHUNKED, chunks].concat(), reason),
        );
    }
    for &(name, rule, input, within) in TRUNCATED {
        add(
            name,
            rule,
            Post,
            input.to_vec(),
            true,
            Verdict::Cut(within.to_vec(), "upstream_lost"),
        );
    }
    for &(name, rule, ask, input, head) in TUNNELS {
        add(
            name,
            rule,
            ask,
            input.to_vec(),
            false,
            Verdict::Tunnel(head.to_vec()),
        );
    }
    for &(name, rule, ask, input, reason) in REFUSED_OTHERS {
        add(
            name,
            rule,
            ask,
            input.to_vec(),
            false,
            Verdict::Refused(reason),
        );
    }

    let head =
        |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n").into_bytes();
    let refused = |reason| Verdict::Refused(reason);
    add(
        "a head over 16 KiB",
        "4",
        Get,
        head(&format!("A: {}\r\n", "b".repeat(17 << 10))),
        false,
        refused("head_too_large"),
    );
    add(
        "a status line without an end",
        "4",
        Get,
        [b"HTTP/1.1 200 ", &[b'a'; 17 << 10][..]].concat(),
        false,
        refused("head_too_large"),
    );
    add(
        "101 fields",
        "5",
        Get,
        head(&"A: b\r\n".repeat(100)),
        false,
        refused("too_many_headers"),
    );
    let many = head(&"A: b\r\n".repeat(99));
    add(
        "100 fields",
        "5",
        Get,
        many.clone(),
        false,
        Verdict::Passed(Kept, many),
    );
    let interim = |count: usize| [b"HTTP/1.1 103 Hints\r\n\r\n".repeat(count), head("")].concat();
    let hint = b"HTTP/1.1 103 Hints\r\n\r\n".to_vec();
    let lost = Verdict::Cut(hint.clone(), "upstream_lost");
    add(
        "an interim response and an end, to a GET that might be sent again",
        "9110 15.2",
        Get,
        hint,
        true,
        lost,
    );
    add(
        "32 interim responses",
        "9110 15.2",
        Get,
        interim(32),
        false,
        Verdict::Passed(Kept, interim(32)),
    );
    add(
        "33 interim responses",
        "9110 15.2",
        Get,
        interim(33),
        false,
        Verdict::Cut(interim(32), "too_many_interim_responses"),
    );
    add(
        "an extension over its bound",
        "7.1.1",
        Get,
        [
            CHUNKED,
            format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(300)).as_bytes(),
        ]
        .concat(),
        false,
        Verdict::Cut(CHUNKED.to_vec(), "chunk_extension_too_long"),
    );
    add(
        "trailers over the bound of a head",
        "7.1.2",
        Get,
        [
            CHUNKED,
            format!("0\r\nA: {}\r\n\r\n", "b".repeat(16 << 10)).as_bytes(),
        ]
        .concat(),
        false,
        Verdict::Cut(CHUNKED.to_vec(), "trailers_too_large"),
    );
    cases
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

const REFUSED: &[(&str, &str, &[u8], &str)] = &[
    (
        "a leading empty line",
        "2.2",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "leading_blank_line",
    ),
    (
        "bare LF after the status line",
        "2.2",
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        "bare_lf",
    ),
    (
        "CR inside a value",
        "2.2",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\nContent-Length: 0\r\n\r\n",
        "bare_cr",
    ),
    (
        "CR inside the reason",
        "2.2",
        b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
        "bare_cr",
    ),
    (
        "CR CR LF",
        "2.2",
        b"HTTP/1.1 200 OK\r\r\nContent-Length: 0\r\n\r\n",
        "bare_cr",
    ),
    (
        "NUL in the reason",
        "4",
        b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
        "control_byte",
    ),
    (
        "whitespace before the first field",
        "2.2",
        b"HTTP/1.1 200 OK\r\n A: b\r\nContent-Length: 0\r\n\r\n",
        "obs_fold",
    ),
    (
        "HTTP/1.2",
        "2.3, contract 4.1",
        b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "unsupported_version",
    ),
    (
        "a version in lower case",
        "2.3",
        b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_version",
    ),
    (
        "another protocol",
        "4",
        b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_version",
    ),
    (
        "no HTTP at all",
        "4",
        b"220 smtp.example ESMTP\r\n\r\n",
        "bad_version",
    ),
    (
        "a response of HTTP/0.9",
        "4",
        b"<html>hello</html>\r\n\r\n",
        "bad_version",
    ),
    (
        "a tab before the status",
        "4",
        b"HTTP/1.1\t200 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "a status of two digits",
        "4",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "a status of four digits",
        "4",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "a status below 100",
        "4",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "a negative status",
        "4",
        b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "a status that is no number",
        "4",
        b"HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "no status",
        "4",
        b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "bad_status_line",
    ),
    (
        "unrequested 101",
        "9110 7.8",
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nConnection: upgrade\r\n\r\n",
        "unsolicited_upgrade",
    ),
    (
        "two lengths of a 304",
        "6.3",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "duplicate_content_length",
    ),
    (
        "a length and chunked of a 204",
        "6.3",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "length_with_transfer_encoding",
    ),
    (
        "a bad interim response",
        "9110 15.2",
        b"HTTP/1.1 103 Hints\r\nA : b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "bad_header",
    ),
];

const REFUSED_FIELDS: &[(&str, &str, &[u8], &str)] = &[
    (
        "a control byte behind a length",
        "5.5",
        b"Content-Length: 5\x01",
        "control_byte",
    ),
    (
        "a form feed before a length",
        "5.5",
        b"Content-Length: \x0c5",
        "control_byte",
    ),
    (
        "a control byte in Connection",
        "5.5",
        b"Connection: clos\x01e",
        "control_byte",
    ),
    (
        "length before chunked",
        "6.3",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        "length_with_transfer_encoding",
    ),
    (
        "chunked before length",
        "6.3",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        "length_with_transfer_encoding",
    ),
    (
        "two lengths that disagree",
        "6.3",
        b"Content-Length: 5\r\nContent-Length: 6",
        "duplicate_content_length",
    ),
    (
        "a list of equal lengths",
        "6.3",
        b"Content-Length: 5, 5",
        "bad_content_length",
    ),
    (
        "a list of lengths",
        "6.3",
        b"Content-Length: 5, 6",
        "bad_content_length",
    ),
    (
        "an empty length",
        "6.2",
        b"Content-Length:",
        "bad_content_length",
    ),
    (
        "a signed length",
        "6.2",
        b"Content-Length: +5",
        "bad_content_length",
    ),
    (
        "a negative length",
        "6.2",
        b"Content-Length: -1",
        "bad_content_length",
    ),
    (
        "a hexadecimal length",
        "6.2",
        b"Content-Length: 0x5",
        "bad_content_length",
    ),
    (
        "a length of 2^64 + 5",
        "6.2",
        b"Content-Length: 18446744073709551621",
        "bad_content_length",
    ),
    (
        "a space before the length's colon",
        "5.1",
        b"Content-Length : 5",
        "bad_header",
    ),
    (
        "a folded length",
        "5.2",
        b"Content-Length:\r\n 5",
        "obs_fold",
    ),
    (
        "NUL in a length",
        "5.5",
        b"Content-Length: 5\0",
        "control_byte",
    ),
    (
        "chunked twice in a list",
        "6.1",
        b"Transfer-Encoding: chunked, chunked",
        "bad_transfer_encoding",
    ),
    (
        "chunked twice in lines",
        "6.1",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "bad_transfer_encoding",
    ),
    (
        "identity",
        "6.1",
        b"Transfer-Encoding: identity",
        "bad_transfer_encoding",
    ),
    (
        "chunked is not the last",
        "6.3",
        b"Transfer-Encoding: chunked, gzip",
        "bad_transfer_encoding",
    ),
    (
        "no coding",
        "6.1",
        b"Transfer-Encoding:",
        "bad_transfer_encoding",
    ),
    (
        "chunked in quotes",
        "6.1",
        b"Transfer-Encoding: \"chunked\"",
        "bad_transfer_encoding",
    ),
    (
        "chunked behind a vertical tab",
        "5.5",
        b"Transfer-Encoding: \x0bchunked",
        "control_byte",
    ),
    (
        "a space before the coding's colon",
        "5.1",
        b"Transfer-Encoding : chunked",
        "bad_header",
    ),
    (
        "a folded coding",
        "5.2",
        b"Transfer-Encoding:\r\n chunked",
        "obs_fold",
    ),
    (
        "gzip, then chunked",
        "6.1",
        b"Transfer-Encoding: gzip, chunked",
        "unknown_transfer_encoding",
    ),
    (
        "gzip",
        "6.1",
        b"Transfer-Encoding: gzip",
        "unknown_transfer_encoding",
    ),
    (
        "a coding that ends in chunked",
        "6.1",
        b"Transfer-Encoding: xchunked",
        "unknown_transfer_encoding",
    ),
    ("an empty name", "5.1", b": b", "bad_header"),
    ("a line without a colon", "5.1", b"A", "bad_header"),
    ("a name in brackets", "5.1", b"A(b): c", "bad_header"),
    ("a folded value", "5.2", b"A: b\r\n c", "obs_fold"),
    (
        "a value with a line end",
        "9110 5.5",
        b"Location: /\nSet-Cookie: a=b",
        "bare_lf",
    ),
];

const REFUSED_OTHERS: &[(&str, &str, Ask, &[u8], &str)] = &[
    (
        "101 without its fields",
        "9110 15.2.2",
        Upgrade,
        b"HTTP/1.1 101 Switching\r\n\r\n",
        "bad_upgrade",
    ),
    (
        "101 without Upgrade",
        "9110 15.2.2",
        Upgrade,
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n",
        "bad_upgrade",
    ),
    (
        "101 without its option",
        "9110 7.8",
        Upgrade,
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\n\r\n",
        "bad_upgrade",
    ),
    (
        "101 of HTTP/1.0",
        "9110 7.8",
        Upgrade,
        b"HTTP/1.0 101 Switching\r\nConnection: upgrade\r\nUpgrade: w\r\n\r\n",
        "bad_upgrade",
    ),
    (
        "a length and chunked to CONNECT",
        "6.3",
        Connect,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "length_with_transfer_encoding",
    ),
    (
        "unrequested 101 to HTTP/1.0",
        "9110 7.8",
        Old,
        b"HTTP/1.1 101 S\r\nUpgrade: w\r\nConnection: upgrade\r\n\r\n",
        "unsolicited_upgrade",
    ),
];

const PASSED: &[Passed] = &[
    // What curl, HAProxy and nginx accept alike: the table of docs/contract.md, section 4.3.
    ("bare LF for every line", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\nA: b\nContent-Length: 5\n\nhello", b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\nhello"),
    ("bare LF for the empty line", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("DEL in the reason", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 O\x7fK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 O K\r\nContent-Length: 5\r\n\r\nhello"),
    ("control bytes in a value", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nA: b\x01c\x1b[0m\x7f\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nA: b c [0m\r\nContent-Length: 5\r\n\r\nhello"),
    ("HTTP/2.0", "contract 4.3", Get, Dropped, false, b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("two spaces around the status", "contract 4.3", Get, Kept, false, b"HTTP/1.1  200   OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("chunked from HTTP/1.0", "contract 4.3", Get, Dropped, false, b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("an empty element behind chunked", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked,\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("two lengths that agree", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("two lengths that agree, to a HEAD", "contract 4.3", Head, Kept, false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ("two Host", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nHost: a\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    ("blanks behind a size", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5  \t\r\nhello\r\n0 \r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("extensions of any form", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0 ; a b=\"c\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ("a length and a coding as trailers", "contract 4.3", Get, Kept, false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n"),
    ("a counted body", "6.2", Get, Kept, false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("zeros before a length", "6.2", Get, Kept, false, b"HTTP/1.1 200 OK\r\nContent-Length: 05 \r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("no body", "6.2", Get, Kept, false, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    ("an empty reason", "4", Get, Kept, false, b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"),
    ("no reason and no space", "4, mended", Get, Kept, false, b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"),
    ("obs-text in the reason", "4", Get, Kept, false, b"HTTP/1.1 200 \xe9 \r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 \xe9 \r\nContent-Length: 0\r\n\r\n"),
    ("a status that is not registered", "9110 15", Get, Kept, false, b"HTTP/1.1 799 x\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 799 x\r\nContent-Length: 0\r\n\r\n"),
    ("whitespace around a value", "5.1", Get, Kept, false, b"HTTP/1.1 200 OK\r\nA:\t b \r\nContent-Length:0\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 0\r\n\r\n"),
    (
        "fields of one hop",
        "9110 7.6.1",
        Get,
        Kept,
        false,
        b"HTTP/1.1 200 OK\r\nConnection: x, content-length\r\nX: y\r\nKeep-Alive: 3\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "the endpoint's close is not the client's",
        "9.6",
        Get,
        Dropped,
        true,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    ("HTTP/1.0, counted", "9.3", Get, Dropped, true, b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    (
        "HTTP/1.0 that stays",
        "9.3",
        Get,
        Kept,
        false,
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    ("chunks", "7.1", Get, Kept, false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    (
        "chunks in capitals, extensions and trailers",
        "7.1",
        Get,
        Kept,
        false,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\nTrailer: T\r\n\r\n00A ;a=\"b\\\"\"\r\n0123456789\r\n0\r\nT: u\r\nConnection: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\nT: u\r\n\r\n",
    ),
    (
        "a body that looks like a response",
        "6.3",
        Get,
        Kept,
        false,
        b"HTTP/1.1 200 OK\r\nContent-Length: 38\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 38\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    ("HEAD with a length", "6.3", Head, Kept, false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ("HEAD, chunked", "6.3", Head, Kept, false, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("HEAD that says nothing", "6.3", Head, Kept, false, b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
    ("HEAD with a body all the same", "6.3", Head, Dropped, false, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ("304 with a length", "6.3", Get, Kept, false, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ("304, chunked", "6.3", Get, Kept, false, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("304 with a body all the same", "6.3", Get, Dropped, false, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ("204", "6.3", Get, Kept, false, b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ("204 with a length", "6.2", Get, Kept, false, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ("204, chunked", "6.1", Get, Dropped, false, b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ("204 with a body", "6.3", Get, Dropped, false, b"HTTP/1.1 204 No Content\r\n\r\nhello", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ("205", "9110 15.3.6", Get, Kept, false, b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"),
    (
        "an interim response",
        "9110 15.2",
        Get,
        Kept,
        false,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "an interim response with a length",
        "6.2",
        Get,
        Kept,
        false,
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "an unknown interim response",
        "9110 15.2",
        Get,
        Kept,
        false,
        b"HTTP/1.1 199 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 199 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "100 that the client did not request, once",
        "9110 15.2.1",
        Get,
        Kept,
        false,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "no interim response to HTTP/1.0",
        "9110 15.2",
        Old,
        Kept,
        false,
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
    ),
    (
        "counted, to HTTP/1.0",
        "9.3",
        Old,
        Kept,
        false,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    ),
    (
        "chunked, to HTTP/1.0",
        "6.1",
        Old,
        Closed,
        false,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n5;a\r\nhello\r\n1\r\n!\r\n0\r\nT: u\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello!",
    ),
    ("ended by close, to HTTP/1.0", "6.3", Old, Closed, true, b"HTTP/1.1 200 OK\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"),
    (
        "bytes behind it",
        "9.2",
        Get,
        Dropped,
        false,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "a second response behind it",
        "9.2",
        Get,
        Dropped,
        false,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "a second response behind chunks",
        "9.2",
        Get,
        Dropped,
        false,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "an offer to upgrade",
        "9110 7.8",
        Get,
        Kept,
        false,
        b"HTTP/1.1 200 OK\r\nUpgrade: h2\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "426 keeps what to upgrade to",
        "9110 15.5.22",
        Get,
        Kept,
        false,
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: w\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: w\r\nContent-Length: 0\r\nConnection: upgrade\r\n\r\n",
    ),
    (
        "an upgrade that is declined",
        "9110 7.8",
        Upgrade,
        Kept,
        false,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "CONNECT that is declined",
        "9110 9.3.6",
        Connect,
        Kept,
        false,
        b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno",
    ),
];

/// Responses without a length: the endpoint's FIN ends them, and the client receives chunks.
const ENDED_BY_CLOSE: &[EndedByClose] = &[
    (
        "ended by close",
        "6.3",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        CHUNKED,
        b"hello",
    ),
    (
        "ended by close, empty",
        "6.3",
        b"HTTP/1.1 200 OK\r\n\r\n",
        CHUNKED,
        b"",
    ),
    (
        "ended by close, HTTP/1.0",
        "6.3",
        b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"hello",
    ),
    (
        "HTTP/1.0 that claims to stay, without a length",
        "9.3",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n\r\nx\r\n",
        CHUNKED,
        b"\r\nx\r\n",
    ),
    (
        "payload that looks like chunks",
        "6.3",
        b"HTTP/1.1 200 OK\r\n\r\n0\r\n\r\n",
        CHUNKED,
        b"0\r\n\r\n",
    ),
];

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
        "a space before the size",
        "7.1",
        b" 1\r\nx\r\n0\r\n\r\n",
        b"",
        "bad_chunk_size",
    ),
    (
        "a size of 2^64 + 1",
        "7.1",
        b"10000000000000001\r\nx\r\n0\r\n\r\n",
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
        "more payload than its size",
        "7.1",
        b"1\r\nxy\r\n0\r\n\r\n",
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
        "a trailer with a bare LF",
        "7.1.2",
        b"0\r\nA: b\n\r\n",
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
        "chunks without the last",
        "8",
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n",
        "upstream_lost",
    ),
    (
        "half a chunk",
        "8",
        b"5\r\nhel",
        b"5\r\nhel",
        "upstream_lost",
    ),
    (
        "the last chunk without its end",
        "8",
        b"5\r\nhello\r\n0\r\n",
        b"5\r\nhello\r\n",
        "upstream_lost",
    ),
    (
        "trailers without their end",
        "8",
        b"0\r\nA: b\r\n",
        b"",
        "upstream_lost",
    ),
];

const TRUNCATED: &[(&str, &str, &[u8], &[u8])] = &[
    (
        "less than the length",
        "8",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
    ),
    (
        "nothing of a body",
        "8",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        "half a head",
        "8",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        b"",
    ),
    ("half a status line", "8", b"HTTP/1.1 2", b""),
    (
        "an interim response alone",
        "9110 15.2",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ),
];

const TUNNELS: &[Tunnel] = &[
    (
        "101",
        "9110 7.8",
        Upgrade,
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nConnection: Upgrade\r\nA: b\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nA: b\r\nConnection: upgrade\r\n\r\n",
    ),
    (
        "101 and its first bytes",
        "9110 7.8",
        Upgrade,
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nConnection: Upgrade\r\n\r\n\0\r\n\nhello",
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nConnection: upgrade\r\n\r\n\0\r\n\nhello",
    ),
    (
        "101 with a length",
        "6.2",
        Upgrade,
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: w\r\nConnection: upgrade\r\n\r\n",
    ),
    (
        "CONNECT",
        "9110 9.3.6",
        Connect,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ),
    (
        "CONNECT, with a length alone",
        "9110 9.3.6",
        Connect,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world",
        b"HTTP/1.1 200 OK\r\n\r\nhello, world",
    ),
];

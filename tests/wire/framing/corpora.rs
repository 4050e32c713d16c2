//! Public collections of HTTP messages, read by Ebbtide's parser and compared with the verdicts of
//! each collection. `tests/wire/framing/fetch.sh` fetches them; they are not part of this
//! repository. Every difference must be listed in [`RECONCILED`]. `CORPORA.md` is the resulting
//! table, and `EBBTIDE_WRITE=1` writes it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::{Forwarding, parse_request, parse_response};
use ebbtide::wire::message::{Emit, Method, Reject, Version};
use serde_json::Value;

use super::differential::{LIMITS, forwarding};
use super::show;

/// The verdict of a collection on a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    Valid,
    /// Invalid, or not to be trusted.
    Invalid,
    /// The collection leaves both open.
    Either,
}

struct Sample {
    name: String,
    bytes: Vec<u8>,
    response: bool,
    says: Says,
}

/// How Ebbtide reads a stream of messages.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// This many whole messages, and nothing else.
    Whole(usize),
    /// The last message has no end. It would be cut when the client disconnects.
    Unfinished(usize),
    /// The last head has no end. Nothing of it is forwarded.
    Waits(usize),
    Refused(&'static str),
}

struct Corpus {
    name: &'static str,
    source: &'static str,
    licence: &'static str,
    commit: &'static str,
    read: fn(&Path) -> Vec<Sample>,
}

const CORPORA: &[Corpus] = &[
    Corpus {
        name: "http-desync-guardian",
        source: "aws/http-desync-guardian, tests/*.yaml",
        licence: "Apache-2.0",
        commit: "7dd6f37171f0a8428d259f2631aee5e7b01a1d64",
        read: guardian,
    },
    Corpus {
        name: "llhttp",
        source: "nodejs/llhttp, test/{request,response}/*.md, strict types",
        licence: "MIT",
        commit: "01e105a30fd06e248bc8ac73c4adb34a63d4114a",
        read: llhttp,
    },
    Corpus {
        name: "gunicorn",
        source: "benoitc/gunicorn, tests/requests/{valid,invalid}/*.http",
        licence: "MIT",
        commit: "65ac1a3a4c0aa00960968c720d6e6bd2ac32f1b9",
        read: gunicorn,
    },
    Corpus {
        name: "http-garden",
        source: "narfindustries/http-garden, the payloads in TROPHIES.md",
        licence: "GPL-3.0",
        commit: "ffb9164c6603f6201c1dc70afb08fd229e2778bc",
        read: garden,
    },
];

/// (corpus, stricter or laxer, our reason or the sample's name, why it differs).
const RECONCILED: &[(&str, &str, &str, &str)] = &[
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Content_Length with underscore.",
        LOOKALIKE,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Transfer_Encoding with underscore.",
        LOOKALIKE,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Transfer-Encoding with multiple delimiters",
        OTHER_NAME,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Transfer-Encoding with multiple hyphens",
        OTHER_NAME,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Get with a body and Content-Length",
        BODY,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Get with a body and Transfer-Encoding",
        BODY,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Head with a body and Content-Length",
        BODY,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "ambiguous: Head with a body and Transfer-Encoding",
        BODY,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "real-life-test-cases: Has a CL in GET",
        BODY,
    ),
    (
        "http-desync-guardian",
        "laxer",
        "real-life-test-cases: Has a TE in GET",
        BODY,
    ),
    (
        "http-desync-guardian",
        "stricter",
        "bad_request_line",
        "a request line without a target: the corpus calls an empty target compliant, RFC 9112 section 3.2 does not",
    ),
    (
        "http-desync-guardian",
        "stricter",
        "bad_target",
        "a fragment, or bytes beyond ASCII: neither is allowed in a target (RFC 9112 section 3.2)",
    ),
    (
        "http-desync-guardian",
        "stricter",
        "bad_transfer_encoding",
        "RFC 7230 removed `identity` from the standard, and chunked has no parameters (RFC 9112 section 7)",
    ),
    (
        "http-desync-guardian",
        "stricter",
        "unknown_transfer_encoding",
        "codings other than chunked: 501, as RFC 9112 section 6.1 says for an unknown coding",
    ),
    (
        "llhttp",
        "laxer",
        "request/connection: CRLF between requests, explicit `close`",
        BEHIND,
    ),
    (
        "llhttp",
        "laxer",
        "request/connection: CRLF between requests, explicit `close` followed by tab",
        BEHIND,
    ),
    (
        "llhttp",
        "laxer",
        "request/connection: No restart when keep-alive is off (1.0)",
        BEHIND,
    ),
    (
        "llhttp",
        "laxer",
        "response/connection: HTTP/1.1 with keep-alive disabled and 204 status",
        BEHIND,
    ),
    (
        "llhttp",
        "laxer",
        "response/connection: HTTP/1.1 with keep-alive disabled, content-length",
        BEHIND,
    ),
    (
        "llhttp",
        "laxer",
        "request/invalid: HTTP protocol and ANNOUNCE method",
        "a method is any token (RFC 9110 section 9.1); the corpus has a fixed list",
    ),
    (
        "llhttp",
        "laxer",
        "request/invalid: Invalid method",
        "a method is any token (RFC 9110 section 9.1); the corpus has a fixed list",
    ),
    ("llhttp", "stricter", "bad_request_line", "HTTP/0.9"),
    (
        "llhttp",
        "stricter",
        "bad_target",
        "a fragment, userinfo, or an asterisk without OPTIONS (RFC 9112 section 3.2, RFC 9110 section 4.2.4)",
    ),
    (
        "llhttp",
        "stricter",
        "bad_transfer_encoding",
        "a response whose last coding is not chunked: its end would be that of the connection, and Ebbtide refuses it rather than guess",
    ),
    (
        "llhttp",
        "stricter",
        "bad_version",
        "RTSP and ICE, which the parser of the corpus supports, too",
    ),
    (
        "llhttp",
        "stricter",
        "connect_with_body",
        "content of CONNECT has no meaning (RFC 9110 section 9.3.6), and some would read it as the first bytes of the tunnel",
    ),
    (
        "llhttp",
        "stricter",
        "leading_blank_line",
        "an empty line before a response: RFC 9112 section 2.2 lets servers ignore one, not clients; here it is an extra byte behind the last response",
    ),
    (
        "llhttp",
        "stricter",
        "unknown_transfer_encoding",
        "codings other than chunked: 501, or 502 for a response",
    ),
    (
        "llhttp",
        "stricter",
        "unsupported_version",
        "HTTP/0.9 as a version",
    ),
    (
        "gunicorn",
        "laxer",
        "invalid/003c",
        "a method is any token (RFC 9110 section 9.1)",
    ),
    ("gunicorn", "laxer", "invalid/006", LIMIT),
    ("gunicorn", "laxer", "invalid/007", LIMIT),
    ("gunicorn", "laxer", "invalid/008", LIMIT),
    ("gunicorn", "laxer", "invalid/010", LIMIT),
    ("gunicorn", "laxer", "invalid/011", LIMIT),
    ("gunicorn", "laxer", "invalid/012", LIMIT),
    ("gunicorn", "laxer", "invalid/017", LIMIT),
    (
        "gunicorn",
        "laxer",
        "invalid/limit_header_default_01",
        LIMIT,
    ),
    (
        "gunicorn",
        "laxer",
        "invalid/019",
        "fields about the scheme that contradict each other: all are dropped, unless the peer is in `trustedProxies`",
    ),
    ("gunicorn", "laxer", "invalid/040", LOOKALIKE),
    ("gunicorn", "laxer", "invalid/chunked_07", LOOKALIKE),
    (
        "gunicorn",
        "laxer",
        "invalid/041",
        "two Content-Type fields: they do not affect framing, and the endpoint decides",
    ),
    (
        "gunicorn",
        "laxer",
        "invalid/rfc9112_chunked_missing_final_crlf_01",
        "the last chunk is withheld until its end has arrived: the endpoint sees a cut body, never a whole one",
    ),
    (
        "gunicorn",
        "stricter",
        "bad_header",
        "a space before the colon, which the case allows by a setting (RFC 9112 section 5.1: 400)",
    ),
    (
        "gunicorn",
        "stricter",
        "bad_target",
        "a fragment, userinfo or bytes beyond ASCII (RFC 9112 section 3.2, RFC 9110 section 4.2.4)",
    ),
    (
        "gunicorn",
        "stricter",
        "bad_transfer_encoding",
        "RFC 7230 removed `identity` from the standard",
    ),
    (
        "gunicorn",
        "stricter",
        "bad_version",
        "a PROXY header: only where the listener asks for one",
    ),
    (
        "gunicorn",
        "stricter",
        "leading_blank_line",
        "a PROXY header of version 2: only where the listener asks for one",
    ),
    (
        "gunicorn",
        "stricter",
        "head_too_large",
        "a head over 16 KiB: 431; the case turns the limit off",
    ),
    (
        "gunicorn",
        "stricter",
        "obs_fold",
        "folded lines, which the cases allow by a setting (RFC 9112 section 5.2: 400 is one of the two answers)",
    ),
    (
        "gunicorn",
        "stricter",
        "unknown_transfer_encoding",
        "codings other than chunked: 501",
    ),
    (
        "http-garden",
        "laxer",
        "payload 25",
        "chunked, without a chunk: cut when the client disconnects",
    ),
    (
        "http-garden",
        "laxer",
        "payload 32",
        "a valid length of 10 (decimal, with a leading zero), which some read as octal: it is forwarded as `10`",
    ),
    (
        "http-garden",
        "laxer",
        "payload 39",
        "a valid trailer, which some do not recognise; it is forwarded as its own line",
    ),
    (
        "http-garden",
        "laxer",
        "payload 41",
        "bytes beyond ASCII at the ends of a value, which some trim as whitespace: this concerns the endpoint's strings, not framing",
    ),
    (
        "http-garden",
        "laxer",
        "payload 45",
        "`Connection: close`: the bytes behind the message are never read",
    ),
    ("http-garden", "laxer", "payload 48", "two valid requests"),
    (
        "http-garden",
        "laxer",
        "payload 68",
        "a valid GET with a body, which some do not read",
    ),
    (
        "http-garden",
        "laxer",
        "payload 74",
        "a valid chunked request, which some servers answer wrongly",
    ),
];

const LOOKALIKE: &str = "a different field name, which frames nothing: the message is forwarded without it (see Lookalikes below)";
const OTHER_NAME: &str =
    "a different name and a valid token: no parser reads it as Transfer-Encoding";
const BODY: &str = "a body of GET or HEAD is framed like any other (RFC 9110 section 9.3.1): its length is beyond doubt, and its bytes are never read as the next request";
const LIMIT: &str =
    "only a limit that the corpus sets for this case; ours are 16 KiB and 100 fields";
const BEHIND: &str = "bytes behind the last message of a connection are never read and never forwarded: the corpus reports them, Ebbtide closes";

#[test]
fn differences_from_public_corpora_are_reconciled() {
    let root = std::env::var_os("EBBTIDE_CORPORA").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/corpora"));
    let mut table = String::from(HEADING);
    let mut notes = String::new();
    let (mut open, mut used, mut complete) = (Vec::new(), vec![false; RECONCILED.len()], true);
    for corpus in CORPORA {
        let folder = root.join(corpus.name);
        if !folder.is_dir() {
            complete = false;
            println!(
                "SKIPPED: differences_from_public_corpora_are_reconciled: {}: {} is missing: run tests/wire/framing/fetch.sh",
                corpus.name,
                folder.display()
            );
            continue;
        }
        let samples = (corpus.read)(&folder);
        assert!(
            samples.len() > 50,
            "{}: only {} samples found",
            corpus.name,
            samples.len()
        );
        let (mut agreed, mut either) = (0, 0);
        let mut differences = BTreeMap::<(&str, String), Vec<String>>::new();
        for sample in &samples {
            let read = read(sample);
            let key = match (sample.says, &read) {
                (Says::Either, _) => {
                    either += 1;
                    continue;
                }
                (Says::Valid, Read::Refused(reason)) => ("stricter", (*reason).to_owned()),
                (Says::Invalid, Read::Whole(_) | Read::Unfinished(_)) => {
                    ("laxer", sample.name.clone())
                }
                _ => {
                    agreed += 1;
                    continue;
                }
            };
            let what = format!("{}: {read:?}: {}", sample.name, show(&sample.bytes));
            differences.entry(key).or_default().push(what);
        }
        let count: usize = differences.values().map(Vec::len).sum();
        println!(
            "FIGURE framing corpus {}: {} cases, {agreed} agreed, {either} left open by the corpus, {count} differences",
            corpus.name,
            samples.len()
        );
        table += &format!(
            "| {} | {} | `{}` | {} | {agreed} | {either} | {count} |\n",
            corpus.source,
            corpus.licence,
            &corpus.commit[..9],
            samples.len()
        );
        for ((kind, key), samples) in &differences {
            let known = RECONCILED
                .iter()
                .position(|(of, k, what, _)| (of, k, what) == (&corpus.name, kind, &key.as_str()));
            match known {
                Some(at) => {
                    used[at] = true;
                    notes += &format!(
                        "| {} | {kind} | {key} | {} | {} |\n",
                        corpus.name,
                        samples.len(),
                        RECONCILED[at].3
                    );
                }
                None => open.push(format!(
                    "{} {kind} {key} ({}):\n  {}",
                    corpus.name,
                    samples.len(),
                    samples.join("\n  ")
                )),
            }
        }
    }
    assert!(open.is_empty(), "not reconciled:\n{}", open.join("\n"));
    if !complete {
        return;
    }
    let unused: Vec<_> = RECONCILED
        .iter()
        .zip(used)
        .filter(|(_, used)| !used)
        .collect();
    assert!(
        unused.is_empty(),
        "reconciled, but no longer a difference: {unused:?}"
    );
    let text = format!("{table}{DIFFERENCES}{notes}{LOOKALIKES}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/framing/CORPORA.md");
    if std::env::var_os("EBBTIDE_WRITE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(&file).unwrap_or_default() == text,
        "CORPORA.md is out of date: run this test with EBBTIDE_WRITE=1"
    );
}

const HEADING: &str = "# Public corpora and Ebbtide

This page compares the verdicts of public HTTP corpora with those of Ebbtide's parser.
`EBBTIDE_WRITE=1 cargo test --test wire corpora` writes it, after `tests/wire/framing/fetch.sh` has
fetched the corpora. No part of a corpus is in this repository. The reasons are ours (`RECONCILED`
in `corpora.rs`). A difference without a reason fails the test.

A request without a Host gets `Host: a`, because most corpora test parsers that treat Host like any
other field.

| corpus | licence | commit | cases | agreed | left open by the corpus | differences |
|---|---|---|---|---|---|---|
";

const DIFFERENCES: &str = "
*Stricter*: the corpus accepts a message, and Ebbtide refuses it with this reason. *Laxer*: the
corpus refuses or distrusts a message, and Ebbtide forwards it. Each such case is named.

| corpus | Ebbtide is | reason, or case | cases | why |
|---|---|---|---|---|
";

const LOOKALIKES: &str = "
## Lookalikes

A lookalike is a field name that HTTP distinguishes from another and an endpoint may not. CGI and its
successors (FastCGI, WSGI, PHP) turn each name into a variable and write `_` for everything but
letters and digits. There, `X_Forwarded_For` and `X-Forwarded-For` are the same variable.

| proxy | names with an underscore in a request, by default |
|---|---|
| nginx 1.22 | dropped silently (`underscores_in_headers off`, `ignore_invalid_headers on`) |
| HAProxy 2.6 | forwarded; dropped before a FastCGI application for this reason (`option http-restrict-req-hdr-names`: preserve, delete, reject) |
| Envoy | forwarded (`headers_with_underscores_action`: ALLOW, DROP_HEADER, REJECT_REQUEST) |

Ebbtide drops lookalikes of `Content-Length`, `Transfer-Encoding` and any `X-Forwarded-*` from a
request and from its trailers. It drops them also if the peer is in `trustedProxies`, because such a
peer may forward a client's fields. After that the message has one length, and only Ebbtide's own
fields describe the client. Every other name with an underscore is forwarded, because such names are
valid and applications use them. The message is not refused because of a lookalike, since its length
is beyond doubt. A response keeps its lookalikes, because no client turns names into variables.

These are no lookalikes but faults (400): any other byte between the name and the colon (a space, a
tab, a vertical tab, NUL, a no-break space), bytes beyond ASCII in a name (hyphens and letters of
other scripts, a byte order mark), a space within a name, and any byte but space and tab around a
length or a coding. Names are never case-sensitive (RFC 9110 section 5.1).
";

/// Reads all messages of a sample as a client's connection, or as an endpoint's responses to GETs.
fn read(sample: &Sample) -> Read {
    let fwd = Forwarding {
        allow_connect: true,
        ..forwarding()
    };
    let mut rest = sample.bytes.clone();
    let mut whole = 0;
    while !rest.is_empty() {
        // Bytes behind the head of a tunnel, or behind the last message of a connection, are not
        // read.
        let (consumed, framing, emit, last) = if sample.response {
            match parse_response(
                &rest,
                &LIMITS,
                Method::Get,
                Version::H11,
                false,
                &mut Vec::new(),
            ) {
                Ok(Some(it)) => (
                    it.consumed,
                    it.framing,
                    it.emit,
                    it.upgrade || it.status >= 200,
                ),
                Ok(None) => return Read::Waits(whole),
                Err(Reject { reason, .. }) => return Read::Refused(reason),
            }
        } else {
            match parse_request(&rest, &LIMITS, &fwd, &mut Vec::new()) {
                Ok(Some(it)) => (
                    it.consumed,
                    it.framing,
                    Emit::Chunked,
                    it.upgrade || !it.keep_alive || it.method == Method::Connect,
                ),
                Ok(None) => return Read::Waits(whole),
                Err(Reject {
                    reason: "missing_host",
                    ..
                }) => {
                    let skip = if rest.starts_with(b"\r\n") { 2 } else { 0 };
                    let line = rest[skip..]
                        .windows(2)
                        .position(|w| w == b"\r\n")
                        .unwrap_or(rest.len() - 2 - skip)
                        + 2
                        + skip;
                    let host = String::from_utf8_lossy(&rest[..line]).into_owned();
                    let host = host
                        .split_once("://")
                        .and_then(|(_, host)| host.split(['/', '?', ' ']).next())
                        .unwrap_or("a");
                    rest.splice(line..line, format!("Host: {host}\r\n").into_bytes());
                    continue;
                }
                Err(Reject { reason, .. }) => return Read::Refused(reason),
            }
        };
        rest.drain(..consumed);
        let mut body = BodyDecoder::new(framing, &LIMITS, 400);
        match body.decode(&rest, emit, &mut Vec::new()) {
            Ok(taken) => rest.drain(..taken),
            Err(Reject { reason, .. }) => return Read::Refused(reason),
        };
        if !(body.is_done() || sample.response && body.eof(emit, &mut Vec::new()).is_ok()) {
            return Read::Unfinished(whole);
        }
        whole += 1;
        if last || rest == b"\r\n" {
            break;
        }
    }
    Read::Whole(whole)
}

fn files(folder: &Path, ext: &str) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|it| it == ext));
    files.sort();
    assert!(!files.is_empty(), "nothing in {}", folder.display());
    files
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap().to_string_lossy().into_owned()
}

/// Each character up to U+00FF becomes the byte of that value.
fn latin(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Requests as fields of YAML with a tier: Compliant, Acceptable, Ambiguous or Severe. Bodies are
/// not given.
fn guardian(folder: &Path) -> Vec<Sample> {
    let mut samples = Vec::new();
    for file in files(&folder.join("tests"), "yaml") {
        let text = std::fs::read_to_string(&file).unwrap();
        let cases: Vec<Value> = serde_saphyr::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for case in cases {
            let word = |of: &Value, key: &str| match &of[key] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            let mut bytes = latin(&format!("{} {}", word(&case, "method"), word(&case, "uri")));
            let version = word(&case, "version");
            if !version.is_empty() {
                bytes.extend(latin(&format!(" {version}")));
            }
            bytes.extend_from_slice(b"\r\n");
            for field in case["headers"].as_array().into_iter().flatten() {
                bytes.extend(latin(&format!(
                    "{}: {}\r\n",
                    word(field, "name"),
                    word(field, "value")
                )));
            }
            bytes.extend_from_slice(b"\r\n");
            let says = match case["expected"]["tier"].as_str().unwrap() {
                "Compliant" => Says::Valid,
                "Acceptable" => Says::Either,
                "Ambiguous" | "Severe" => Says::Invalid,
                other => panic!("an unknown tier {other:?}"),
            };
            let name = format!("{}: {}", stem(&file), word(&case, "name").escape_default());
            samples.push(Sample {
                name,
                bytes,
                response: false,
                says,
            });
        }
    }
    samples
}

/// Markdown with `http` blocks and the parser's log for each, which may contain an `error`. Only
/// blocks for the strict parser count. Pauses belong to that parser's API and are ignored.
fn llhttp(folder: &Path) -> Vec<Sample> {
    let mut samples = Vec::new();
    for part in ["request", "response"] {
        for file in files(&folder.join("test").join(part), "md") {
            let text = std::fs::read_to_string(&file).unwrap();
            let (mut title, mut meta, mut input) = (String::new(), None, None);
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                if let Some(rest) = line.strip_prefix("<!-- meta=") {
                    meta = serde_json::from_str::<Value>(rest.trim_end_matches("-->").trim()).ok();
                } else if let Some(rest) = line.strip_prefix('#') {
                    title = rest.trim_matches(['#', ' ']).to_owned();
                } else if line == "```http" || line == "```log" {
                    let block: Vec<&str> =
                        lines.by_ref().take_while(|line| *line != "```").collect();
                    if line == "```http" {
                        input = Some(block.join("\n"));
                        continue;
                    }
                    let (Some(meta), Some(input)) = (meta.take(), input.take()) else {
                        continue;
                    };
                    let strict = meta["type"] == part || meta["type"] == format!("{part}-finish");
                    if !strict
                        || meta["pause"].is_string()
                        || meta["skipBody"] == true
                        || input.contains("${")
                    {
                        continue;
                    }
                    let error = block
                        .iter()
                        .any(|line| line.contains("error code=") && !line.contains("code=22 "));
                    let name = format!("{part}/{}: {title}", stem(&file));
                    let says = if error { Says::Invalid } else { Says::Valid };
                    samples.push(Sample {
                        name,
                        bytes: llhttp_bytes(&input),
                        response: part == "response",
                        says,
                    });
                }
            }
        }
    }
    samples
}

/// A line ends in CRLF. A backslash joins two lines, or writes a line end out.
fn llhttp_bytes(input: &str) -> Vec<u8> {
    let input = input.replace("\\\n", "").replace('\n', "\r\n");
    let mut text = String::new();
    let mut rest = input.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match rest.next() {
            Some('r') => text.push('\r'),
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('f') => text.push('\x0c'),
            Some('x') => {
                let mut code = 0;
                while let Some(digit) = rest.peek().and_then(|c| c.to_digit(16)) {
                    code = code * 16 + digit;
                    rest.next();
                }
                text.push(char::from_u32(code).unwrap());
            }
            Some(c) if c.is_digit(8) => {
                let mut code = c.to_digit(8).unwrap();
                for _ in 0..2 {
                    let Some(digit) = rest.peek().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    code = code * 8 + digit;
                    rest.next();
                }
                text.push(char::from_u32(code).unwrap());
            }
            other => {
                text.push('\\');
                text.extend(other);
            }
        }
    }
    latin(&text)
}

/// Requests whose line ends are written out.
fn gunicorn(folder: &Path) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (part, says) in [("valid", Says::Valid), ("invalid", Says::Invalid)] {
        for file in files(&folder.join("tests/requests").join(part), "http") {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes.retain(|byte| *byte != b'\n');
            let bytes = unescape(&bytes);
            samples.push(Sample {
                name: format!("{part}/{}", stem(&file)),
                bytes,
                response: false,
                says,
            });
        }
    }
    samples
}

/// The payloads in backquotes. Each was misread by some server or proxy, so each counts as invalid.
/// If a payload is valid, the reconciliation says so.
fn garden(folder: &Path) -> Vec<Sample> {
    let text = std::fs::read_to_string(folder.join("TROPHIES.md")).unwrap();
    let mut samples = Vec::new();
    for (number, line) in text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- Payload: `"))
        .enumerate()
    {
        let bytes = unescape(line.split('`').next().unwrap().as_bytes());
        samples.push(Sample {
            name: format!("payload {}", number + 1),
            bytes,
            response: false,
            says: Says::Invalid,
        });
    }
    samples
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        match (byte, more) {
            (b'\\', [b'x', high, low, ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = &more[3..];
            }
            (b'\\', [b'r', ..]) => bytes.push(b'\r'),
            (b'\\', [b'n', ..]) => bytes.push(b'\n'),
            (b'\\', [b't', ..]) => bytes.push(b'\t'),
            (b'\\', [b'0', ..]) => bytes.push(0),
            (b'\\', [b'\\', ..]) => bytes.push(b'\\'),
            _ => {
                bytes.push(byte);
                continue;
            }
        }
        if !(byte == b'\\' && matches!(more.first(), Some(b'x'))) {
            rest = &rest[1..];
        }
    }
    bytes
}

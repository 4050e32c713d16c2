//! Forwarded requests, read by other parsers. Generated streams of requests go through Ebbtide's
//! parser. hyper, nginx, Go's net/http, Node's http and Python's h11 then read the forwarded bytes
//! as one connection. Each must see the same requests: method, target, host and body. A stricter
//! parser may refuse, and then sees fewer requests. A parser that sees another request, or one
//! more, is desynchronised, and that is a defect of Ebbtide.
//!
//! The tables show that the proxy forwards these very bytes. `EBBTIDE_DIFFERENTIAL=N` uses N
//! streams instead of 2,000, and `EBBTIDE_SEED=S` uses other ones.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::{Forwarding, parse_request};
use ebbtide::wire::message::{Emit, Framing, Limits, Reject};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::requests::{self, Verdict};
use super::show;

/// Method, target, host and body.
pub type Request = [Vec<u8>; 4];

/// A stream: the bytes that are forwarded of it, and the requests that Ebbtide reads in them.
pub struct Stream {
    input: Vec<u8>,
    pub forwarded: Vec<u8>,
    requests: Vec<Request>,
}

/// The requests that a parser saw in a stream, and whether it then refused something.
pub struct Seen {
    pub requests: Vec<Request>,
    pub refused: bool,
}

#[tokio::test]
async fn other_parsers_read_forwarded_requests_as_ebbtide_does() {
    let count = number("EBBTIDE_DIFFERENTIAL", 2_000) as usize;
    let seed = number("EBBTIDE_SEED", 1);
    let streams = streams(count, seed);
    let requests: usize = streams.iter().map(|stream| stream.requests.len()).sum();
    let cut = streams
        .iter()
        .filter(|stream| read(&stream.forwarded).1)
        .count();
    println!(
        "FIGURE framing differential: {count} streams of seed {seed}, {requests} whole requests, {cut} streams with a cut one"
    );
    assert!(
        requests > count / 2,
        "only {requests} requests in {count} streams"
    );
    let mut readers = 1;
    compare("hyper", &streams, &hyper(&streams).await);
    let by = |command: Result<Command, String>| command.map(|command| run(command, &streams));
    for (name, seen) in [
        ("nginx", super::nginx::read(&streams)),
        ("Go net/http", by(built_by_go())),
        (
            "Node http",
            by(script("node", "read.js", &["-e", ""], "no node")),
        ),
        (
            "Python h11",
            by(script("python3", "read.py", &["-c", "import h11"], NO_H11)),
        ),
    ] {
        match seen {
            Ok(seen) => {
                readers += 1;
                compare(name, &streams, &seen);
            }
            Err(why) => println!(
                "SKIPPED: other_parsers_read_forwarded_requests_as_ebbtide_does: {name}: {why}"
            ),
        }
    }
    println!("FIGURE framing differential: {readers} other parsers, 0 disagreements");
}

pub const NO_H11: &str = "no python3 with h11 (tests/wire/framing/fetch.sh)";

pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}: a number, not {text:?}"))
    })
}

fn compare(name: &str, streams: &[Stream], seen: &[Seen]) {
    assert_eq!(
        streams.len(),
        seen.len(),
        "{name} has not read every stream"
    );
    let (mut agreed, mut refusals) = (0, Vec::new());
    let mut wrong = Vec::new();
    for (stream, seen) in streams.iter().zip(seen) {
        // A parser may refuse a request that was cut short, or still wait for it.
        if seen.requests == stream.requests {
            agreed += 1;
        } else if seen.refused && stream.requests.starts_with(&seen.requests) {
            refusals.push(&stream.requests[seen.requests.len()]);
        } else {
            let list = |requests: &[Request]| {
                requests
                    .iter()
                    .map(|r| show(&r.join(&b' ')))
                    .collect::<Vec<_>>()
                    .join(" | ")
            };
            wrong.push(format!(
                "of {}\n  forwarded {}\n  Ebbtide reads {}\n  {name} {}{}",
                show(&stream.input),
                show(&stream.forwarded),
                list(&stream.requests),
                list(&seen.requests),
                if seen.refused { " and refuses" } else { "" },
            ));
        }
    }
    println!(
        "FIGURE framing differential {name}: {agreed} agreed, {} refused there, {} disagreements",
        refusals.len(),
        wrong.len()
    );
    let kinds: BTreeSet<String> = refusals
        .iter()
        .map(|r| format!("{} {} {}", show(&r[0]), show(&r[1]), show(&r[2])))
        .collect();
    for kind in kinds
        .iter()
        .take(if std::env::var_os("EBBTIDE_VERBOSE").is_some() {
            200
        } else {
            0
        })
    {
        println!("  {name} refuses {kind}");
    }
    assert!(
        wrong.is_empty(),
        "{} disagreements with {name}, the first:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(
        agreed > streams.len() / 2,
        "{name} read only {agreed} of {} streams",
        streams.len()
    );
}

/// Streams of one to three requests of the table with up to three mutations, from which something
/// is forwarded.
fn streams(count: usize, seed: u64) -> Vec<Stream> {
    let mut random = fastrand::Rng::with_seed(seed);
    let cases = requests::cases();
    let good: Vec<&[u8]> = cases
        .iter()
        .filter(|case| matches!(case.verdict, Verdict::Forwarded { .. }) && case.input.len() < 2048)
        .map(|case| &case.input[..])
        .collect();
    let any: Vec<&[u8]> = cases
        .iter()
        .filter(|case| case.input.len() < 2048)
        .map(|case| &case.input[..])
        .collect();
    let mut streams = Vec::new();
    for _ in 0..count * 50 {
        if streams.len() == count {
            break;
        }
        let mut input = Vec::new();
        for _ in 0..random.usize(1..=3) {
            let from = if random.u8(..) < 200 { &good } else { &any };
            let mut part = from[random.usize(..from.len())].to_vec();
            for _ in 0..random.usize(0..=3) {
                mutate(&mut part, PARTS, &mut random);
            }
            input.extend(part);
        }
        let forwarded = forward(&input);
        if !forwarded.is_empty() {
            let requests = read(&forwarded).0;
            streams.push(Stream {
                input,
                forwarded,
                requests,
            });
        }
    }
    assert_eq!(
        streams.len(),
        count,
        "too few streams from which something is forwarded"
    );
    streams
}

pub const PARTS: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\"",
    b"\\",
    b"\0",
    b"\xff",
    b"\x7f",
    b"0",
    b"5",
    b"a",
    b"/",
    b"?",
    b"%00",
    b"..",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"chunked",
    b"Connection: close\r\n",
    b"Connection: keep-alive, x\r\n",
    b"X: y\r\n",
    b"X:\r\n",
    b"Host: b\r\n",
    b"TE: trailers\r\n",
    b"Trailer: t\r\n",
    b"HEAD ",
    b"HTTP/1.0",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"1;a=\"\\\"\r\n",
    b"t: u\r\n",
    b"http://b",
    b"Expect: 100-continue\r\n",
    b"X-Forwarded-For: \r\n",
];

/// Changes, removes or inserts a byte, a line, or one of `parts`.
pub fn mutate(bytes: &mut Vec<u8>, parts: &[&[u8]], random: &mut fastrand::Rng) {
    let at = random.usize(..=bytes.len());
    match random.u8(..6) {
        0 if at < bytes.len() => bytes[at] = random.u8(..),
        1 => {
            let end = (at + random.usize(1..8)).min(bytes.len());
            bytes.drain(at..end);
        }
        2 => {
            // Repeats a line.
            let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
            let line = lines[random.usize(..lines.len().max(1)).min(lines.len() - 1)].to_vec();
            let place: usize = lines[..random.usize(..=lines.len())]
                .iter()
                .map(|line| line.len())
                .sum();
            bytes.splice(place..place, line);
        }
        3 => {
            // Inserts behind a line end, where a field or a chunk may be.
            let ends: Vec<usize> = (1..=bytes.len())
                .filter(|at| bytes[at - 1] == b'\n')
                .collect();
            let place = if ends.is_empty() {
                at
            } else {
                ends[random.usize(..ends.len())]
            };
            bytes.splice(
                place..place,
                parts[random.usize(..parts.len())].iter().copied(),
            );
        }
        _ => _ = bytes.splice(at..at, parts[random.usize(..parts.len())].iter().copied()),
    }
    if bytes.is_empty() {
        bytes.push(b'G');
    }
}

pub const LIMITS: Limits = Limits {
    head_size: 16 << 10,
    headers: 100,
};

/// As for a client on this machine.
pub fn forwarding() -> Forwarding {
    Forwarding {
        peer: [127, 0, 0, 1].into(),
        local: ([127, 0, 0, 1], 8080).into(),
        trusted: false,
        https: false,
        allow_connect: false,
    }
}

/// All that is forwarded of a client's connection, up to the first fault.
fn forward(input: &[u8]) -> Vec<u8> {
    let (mut rest, mut out) = (input, Vec::new());
    while let Ok(Some(request)) = parse_request(rest, &LIMITS, &forwarding(), &mut out) {
        rest = &rest[request.consumed..];
        let emit = if request.framing == Framing::Chunked {
            Emit::Chunked
        } else {
            Emit::Identity
        };
        let mut body = BodyDecoder::new(request.framing, &LIMITS, 400);
        match body.decode(rest, emit, &mut out) {
            Ok(taken) if body.is_done() => rest = &rest[taken..],
            _ => break,
        }
        // The bytes behind an upgrade depend on its response.
        if !request.keep_alive || request.upgrade {
            break;
        }
    }
    out
}

/// The requests in the forwarded bytes by Ebbtide's own reading, and whether the last is cut short.
fn read(forwarded: &[u8]) -> (Vec<Request>, bool) {
    let (mut rest, mut requests) = (forwarded, Vec::new());
    let wide = Limits {
        head_size: 64 << 10,
        headers: 200,
    };
    while !rest.is_empty() {
        let mut out = Vec::new();
        let parsed = match parse_request(rest, &wide, &forwarding(), &mut out) {
            Ok(Some(parsed)) => parsed,
            other => panic!(
                "the forwarded bytes are not valid: {other:?} of {}",
                show(rest)
            ),
        };
        let head = &rest[..parsed.consumed];
        // A Host that Ebbtide added must be distinguished from one that the client sent.
        if head
            .windows(20)
            .any(|part| part == b"\r\nX-Forwarded-Host: ")
        {
            assert!(
                out == head,
                "the forwarded head is not canonical: {}",
                show(head)
            );
        }
        rest = &rest[parsed.consumed..];
        let mut words = head
            .split(|b| *b == b' ' || *b == b'\r')
            .map(<[u8]>::to_vec);
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let host = head
            .split(|b| *b == b'\n')
            .find(|line| line.len() > 5 && line[..5].eq_ignore_ascii_case(b"host:"))
            .map(|line| line[5..].trim_ascii().to_vec())
            .unwrap();
        let mut body = BodyDecoder::new(parsed.framing, &LIMITS, 400);
        let mut payload = Vec::new();
        match body.decode(rest, Emit::Identity, &mut payload) {
            Ok(taken) if body.is_done() => rest = &rest[taken..],
            Ok(_) => return (requests, true),
            Err(Reject { reason, .. }) => panic!("a forwarded body is not valid: {reason}"),
        }
        requests.push([method, target, host, payload]);
    }
    (requests, false)
}

async fn hyper(streams: &[Stream]) -> Vec<Seen> {
    let mut all = Vec::new();
    for stream in streams {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let notes = notes.clone();
            async move {
                let (head, body) = request.into_parts();
                let host = head
                    .headers
                    .get("host")
                    .map(|host| host.as_bytes().to_vec())
                    .unwrap_or_default();
                if let Ok(body) = axum::body::to_bytes(axum::body::Body::new(body), 1 << 20).await {
                    let (method, target) =
                        (head.method.as_str().into(), head.uri.to_string().into());
                    notes
                        .lock()
                        .unwrap()
                        .push([method, target, host, body.to_vec()]);
                }
                Ok::<_, Infallible>(hyper::Response::new(axum::body::Body::empty()))
            }
        });
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(server), service);
        let feed = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let _ = client.write_all(&stream.forwarded).await;
            let _ = client.shutdown().await;
            let mut answers = Vec::new();
            let _ = client.read_to_end(&mut answers).await;
            answers
        };
        let (ended, answers) = tokio::join!(connection, feed);
        let refused = ended.is_err() || answers.windows(10).any(|w| w == b"HTTP/1.1 4");
        let requests = std::mem::take(&mut *seen.lock().unwrap());
        all.push(Seen { requests, refused });
    }
    all
}

/// The parsers that are programs of their own, or why one cannot run.
pub fn built_by_go() -> Result<Command, String> {
    // Both tests need the program, and a program cannot be overwritten while it runs.
    static BUILT: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let binary = built().join("go-net-http");
        std::fs::create_dir_all(built()).map_err(|error| error.to_string())?;
        let build = Command::new("go")
            .args(["build", "-o"])
            .arg(&binary)
            .arg(".")
            .current_dir(sources())
            .output();
        let build = build.map_err(|_| "no Go toolchain".to_owned())?;
        match build.status.success() {
            true => Ok(binary),
            false => Err(format!(
                "go build: {}",
                String::from_utf8_lossy(&build.stderr)
            )),
        }
    });
    BUILT.clone().map(|binary| bounded(&binary))
}

pub fn script(program: &str, file: &str, probe: &[&str], missing: &str) -> Result<Command, String> {
    let found = Command::new(program)
        .args(probe)
        .env("PYTHONPATH", built())
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        return Err(missing.to_owned());
    }
    let mut command = bounded(Path::new(program));
    command.arg(sources().join(file)).env("PYTHONPATH", built());
    Ok(command)
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/framing/parsers")
}

fn built() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/parsers")
}

/// The program ends after 900 s, whatever it reads.
fn bounded(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.arg("900").arg(program);
    command
}

/// The parser's output: one line for each input line.
pub fn lines_of(mut command: Command, lines: impl Iterator<Item = String>) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = lines.map(|line| line + "\n").collect();
    let feed = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    feed.join().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn run(command: Command, streams: &[Stream]) -> Vec<Seen> {
    let seen = |line: &str| {
        let (line, refused) = line
            .strip_suffix('!')
            .map_or((line, false), |line| (line, true));
        let requests = line.split(';').filter(|part| !part.is_empty());
        let requests = requests.map(|part| {
            let parts: Vec<Vec<u8>> = part.split(',').map(unhex).collect();
            parts.try_into().unwrap()
        });
        Seen {
            requests: requests.collect(),
            refused,
        }
    };
    lines_of(command, streams.iter().map(|stream| hex(&stream.forwarded)))
        .lines()
        .map(seen)
        .collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

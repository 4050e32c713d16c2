//! Forwarded responses, read by other parsers. Generated responses, valid and broken, go through
//! the whole proxy. Go's net/http, Python's http.client and h11 then read the bytes that the client
//! received. Each must see the same responses, status and body, and the same end: a cut is never an
//! end. Behind each response is the response to a second request of the same client. Nothing of the
//! first response may ever be read in its place.
//!
//! The count and the seed are set as in `differential.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::parse_response;
use ebbtide::wire::message::{Emit, Framing, Limits, Method, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::differential::{
    LIMITS, NO_H11, PARTS, built_by_go, hex, lines_of, mutate, number, script, unhex,
};
use super::responses::{self, Ask, Verdict};
use super::show;
use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::soon;

/// The response of an endpoint.
#[derive(Clone)]
struct Answer {
    ask: Ask,
    bytes: Vec<u8>,
    /// The endpoint pauses here, so that the bytes before have been forwarded.
    pause_at: Option<usize>,
}

/// A response, and the bytes that the client received.
struct Stream {
    answer: Answer,
    got: Vec<u8>,
    reset: bool,
}

/// Statuses and bodies, and whether the last response was cut or refused.
#[derive(PartialEq, Eq)]
struct Seen {
    responses: Vec<(u16, Vec<u8>)>,
    broken: bool,
}

#[tokio::test]
async fn other_parsers_read_forwarded_responses_as_ebbtide_does() {
    let (count, seed) = (
        number("EBBTIDE_DIFFERENTIAL", 2_000) as usize,
        number("EBBTIDE_SEED", 1),
    );
    let streams = through_the_proxy(generate(count, seed)).await;
    let ours: Vec<Seen> = streams.iter().map(read).collect();
    let mut kinds = BTreeMap::<&str, usize>::new();
    for (stream, seen) in streams.iter().zip(&ours) {
        let own = stream.got.windows(18).any(|w| w == b"\r\nx-ebbtide-reason");
        *kinds
            .entry(if own {
                "refused"
            } else if seen.broken {
                "cut"
            } else {
                "passed"
            })
            .or_default() += 1;
        // Whatever a parser read first, the second response is the right one or nothing.
        if let Some((status, body)) = seen.responses.get(1) {
            assert!(
                (*status, &body[..]) == (200, b"good"),
                "{} became {}",
                show(&stream.answer.bytes),
                show(&stream.got)
            );
        }
    }
    println!("FIGURE framing differential responses: {count} streams of seed {seed}: {kinds:?}");
    for kind in ["refused", "cut", "passed"] {
        assert!(
            kinds
                .get(kind)
                .is_some_and(|streams| *streams > count / 100),
            "too few are {kind}: {kinds:?}"
        );
    }
    let mut readers = 0;
    for (name, command) in [
        (
            "Go net/http client",
            built_by_go().map(|mut go| {
                go.arg("responses");
                go
            }),
        ),
        (
            "Python http.client",
            script("python3", "read_responses.py", &["-c", ""], "no python3").map(|mut it| {
                it.arg("http.client");
                it
            }),
        ),
        (
            "Python h11 client",
            script(
                "python3",
                "read_responses.py",
                &["-c", "import h11"],
                NO_H11,
            )
            .map(|mut it| {
                it.arg("h11");
                it
            }),
        ),
    ] {
        match command {
            Ok(command) => {
                readers += 1;
                let text = lines_of(command, streams.iter().map(line));
                compare(name, &streams, &ours, text.lines().map(seen).collect());
            }
            Err(why) => println!(
                "SKIPPED: other_parsers_read_forwarded_responses_as_ebbtide_does: {name}: {why}"
            ),
        }
    }
    println!("FIGURE framing differential responses: {readers} other parsers, 0 disagreements");
}

fn compare(name: &str, streams: &[Stream], ours: &[Seen], theirs: Vec<Seen>) {
    assert_eq!(
        streams.len(),
        theirs.len(),
        "{name} has not read every stream"
    );
    let (mut agreed, mut refused, mut wrong) = (0, 0, Vec::new());
    for ((stream, ours), theirs) in streams.iter().zip(ours).zip(&theirs) {
        if ours == theirs {
            agreed += 1;
        } else if theirs.broken && !ours.broken && ours.responses.starts_with(&theirs.responses) {
            refused += 1;
            if std::env::var_os("EBBTIDE_VERBOSE").is_some() {
                println!("  {name} refuses {}", show(&stream.got));
            }
        } else {
            let list = |seen: &Seen| {
                let list: Vec<_> = seen
                    .responses
                    .iter()
                    .map(|(status, body)| format!("{status} {}", show(body)))
                    .collect();
                list.join(" | ") + if seen.broken { " and a fault" } else { "" }
            };
            wrong.push(format!(
                "of {}\n  the client of {:?} got {} (reset: {})\n  Ebbtide reads {}\n  {name} {}",
                show(&stream.answer.bytes),
                stream.answer.ask,
                show(&stream.got),
                stream.reset,
                list(ours),
                list(theirs),
            ));
        }
    }
    println!(
        "FIGURE framing differential responses {name}: {agreed} agreed, {refused} refused there, {} disagreements",
        wrong.len()
    );
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

/// Responses of the table with up to two mutations each. Some are cut short.
fn generate(count: usize, seed: u64) -> Vec<Answer> {
    let mut random = fastrand::Rng::with_seed(seed);
    let cases = responses::cases();
    let plain = |case: &&responses::Case| {
        case.input.len() < 2048 && !matches!(case.ask, Ask::Upgrade | Ask::Connect)
    };
    let passed = |case: &&responses::Case| {
        matches!(case.verdict, Verdict::Passed(..) | Verdict::Chunked(..))
    };
    let any: Vec<_> = cases.iter().filter(plain).collect();
    let good: Vec<_> = cases.iter().filter(plain).filter(passed).collect();
    let parts: Vec<&[u8]> = PARTS.iter().chain(RESPONSE_PARTS).copied().collect();
    let generated = (0..count).map(|_| {
        let from = if random.u8(..) < 220 { &good } else { &any };
        let case = from[random.usize(..from.len())];
        let mut input = case.input.clone();
        for _ in 0..random.usize(0..=2) {
            mutate(&mut input, &parts, &mut random);
        }
        let body = input
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .map_or(input.len(), |at| at + 4);
        if random.u8(..) < 64 {
            input.truncate(random.usize(body..=input.len()));
        }
        // A POST is used because a lost GET would be sent again.
        let ask = if case.ask == Ask::Get {
            Ask::Post
        } else {
            case.ask
        };
        // If the pause came after the response's end, the connection might meanwhile carry another
        // request, and the extra bytes would be a response to that.
        let pause_at = if random.bool() {
            body
        } else {
            random.usize(..=input.len())
        };
        let pause_at =
            Some(pause_at).filter(|at| random.u8(..) < 192 && !is_over(ask, &input[..*at]));
        Answer {
            ask,
            bytes: input,
            pause_at,
        }
    });
    generated.collect()
}

const RESPONSE_PARTS: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 S\r\nUpgrade: w\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"204",
    b"304",
    b"Upgrade: w\r\n",
    b"Set-Cookie: a=b\r\n",
];

/// Connections that are open at the same time.
const CLIENTS: usize = 16;

async fn through_the_proxy(inputs: Vec<Answer>) -> Vec<Stream> {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with_protocol("http", "").await;
    rig.endpoints(&[Ep::new("a", endpoint.local_addr().unwrap())]);
    let inputs = Rc::new(inputs);
    let local = tokio::task::LocalSet::new();
    let answers = inputs.clone();
    local.spawn_local(async move {
        while let Ok((stream, _)) = endpoint.accept().await {
            tokio::task::spawn_local(answer(stream, answers.clone()));
        }
    });
    let clients = async {
        rig.usable(1).await;
        let clients = (0..CLIENTS).map(|first| {
            let (inputs, web) = (inputs.clone(), rig.web());
            tokio::task::spawn_local(async move {
                let mut streams = Vec::new();
                for number in (first..inputs.len()).step_by(CLIENTS) {
                    let answer = inputs[number].clone();
                    let (got, reset) =
                        soon("the end of a response", client(web, answer.ask, number)).await;
                    streams.push((number, Stream { answer, got, reset }));
                }
                streams
            })
        });
        let mut streams = BTreeMap::new();
        for client in clients.collect::<Vec<_>>() {
            streams.extend(client.await.unwrap());
        }
        streams.into_values().collect()
    };
    local.run_until(clients).await
}

/// Sends a request and a good one behind it, and reads everything.
async fn client(web: SocketAddr, ask: Ask, number: usize) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(web).await.unwrap();
    let good = "GET /good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let request = match ask {
        Ask::Old => format!(
            "GET /{number} HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /good HTTP/1.0\r\n\r\n"
        ),
        Ask::Head => format!("HEAD /{number} HTTP/1.1\r\nHost: a\r\n\r\n{good}"),
        _ => format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n{good}"),
    };
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let reset = stream.read_to_end(&mut got).await.is_err();
    (got, reset)
}

/// Answers a numbered request with its input and ends. Answers any other request well.
async fn answer(mut stream: TcpStream, inputs: Rc<Vec<Answer>>) {
    let mut head = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut head).await {
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head);
        let number = text
            .split(['/', ' '])
            .nth(2)
            .and_then(|number| number.parse::<usize>().ok());
        // Errors are ignored: the test looks at what the client then receives.
        if let Some(Answer {
            bytes, pause_at, ..
        }) = number.map(|number| &inputs[number])
        {
            let (first, second) = bytes.split_at(pause_at.unwrap_or(0));
            let _ = stream.write_all(first).await;
            if pause_at.is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let _ = stream.write_all(second).await;
            let _ = stream.shutdown().await;
        } else {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
                .await;
        }
        head.clear();
    }
}

/// Whether the proxy has finished a response after these bytes.
fn is_over(ask: Ask, mut bytes: &[u8]) -> bool {
    let method = if ask == Ask::Head {
        Method::Head
    } else {
        Method::Get
    };
    loop {
        match parse_response(bytes, &LIMITS, method, Version::H11, false, &mut Vec::new()) {
            Ok(Some(head)) if head.status < 200 => bytes = &bytes[head.consumed..],
            Ok(Some(head)) => {
                let mut body = BodyDecoder::new(head.framing, &LIMITS, 502);
                let decoded = body.decode(&bytes[head.consumed..], Emit::Identity, &mut Vec::new());
                return decoded.is_err() || body.is_done();
            }
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// What was forwarded, by Ebbtide's own reading.
fn read(stream: &Stream) -> Seen {
    let (mut rest, mut responses) = (&stream.got[..], Vec::new());
    let limits = Limits {
        head_size: 64 << 10,
        headers: 200,
    };
    let (first, version) = match stream.answer.ask {
        Ask::Head => (Method::Head, Version::H11),
        Ask::Old => (Method::Get, Version::H10),
        _ => (Method::Post, Version::H11),
    };
    let invalid = |why: &str| -> ! {
        panic!(
            "{why}: of {} was forwarded {}",
            show(&stream.answer.bytes),
            show(&stream.got)
        )
    };
    for method in [first, Method::Get] {
        let response = loop {
            if rest.is_empty() && (stream.reset || !responses.is_empty()) {
                return Seen {
                    responses,
                    broken: stream.reset,
                };
            }
            let close = rest
                .windows(21)
                .take_while(|w| !w.starts_with(b"\r\n\r\n"))
                .any(|w| w == b"\r\nConnection: close\r\n");
            let mut again = Vec::new();
            let Ok(Some(response)) =
                parse_response(rest, &limits, method, version, close, &mut again)
            else {
                invalid("no valid response");
            };
            let head;
            (head, rest) = rest.split_at(response.consumed);
            // The proxy's own responses have a reason field, and are not an endpoint's.
            if again != head && !head.windows(16).any(|w| w == b"x-ebbtide-reason") {
                invalid("not canonical");
            }
            if response.status >= 200 {
                break (response, close);
            }
        };
        let (response, close) = response;
        let mut body = BodyDecoder::new(response.framing, &limits, 502);
        let mut payload = Vec::new();
        let Ok(taken) = body.decode(rest, Emit::Identity, &mut payload) else {
            invalid("no valid body")
        };
        rest = &rest[taken..];
        // A length or chunks show that something is missing, whatever the end is.
        let whole = body.is_done() || response.framing == Framing::UntilClose && !stream.reset;
        if !whole {
            return Seen {
                responses,
                broken: true,
            };
        }
        responses.push((response.status, payload));
        if close {
            break;
        }
    }
    if !rest.is_empty() {
        invalid("more than was requested");
    }
    Seen {
        responses,
        broken: stream.reset,
    }
}

/// The methods of both requests, whether the connection ended in a reset, and the bytes.
fn line(stream: &Stream) -> String {
    let first = match stream.answer.ask {
        Ask::Head => "HEAD",
        Ask::Old => "GET",
        _ => "POST",
    };
    format!(
        "{first} {} {}",
        if stream.reset { "reset" } else { "end" },
        hex(&stream.got)
    )
}

fn seen(line: &str) -> Seen {
    let (line, broken) = line
        .strip_suffix('!')
        .map_or((line, false), |line| (line, true));
    let parts = line.split(';').filter(|part| !part.is_empty());
    let responses = parts.map(|part| {
        let (status, body) = part.split_once(',').unwrap();
        (status.parse().unwrap(), unhex(body))
    });
    Seen {
        responses: responses.collect(),
        broken,
    }
}

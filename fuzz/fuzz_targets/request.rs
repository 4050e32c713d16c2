//! A request of a client: head, then body (contract 4.1, 4.2). The verdict does not depend on where
//! the bytes are split. What is forwarded is canonical: read again, it has the same meaning and is
//! forwarded without a change.
#![no_main]

#[path = "plain.rs"]
mod plain;

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::{Forwarding, parse_request};
use ebbtide::wire::message::{Emit, Framing, Limits, Reject, Request};
use libfuzzer_sys::fuzz_target;
use plain::Head;

const LIMITS: Limits = Limits {
    head_size: 4 << 10,
    headers: 24,
};

fn read(input: &[u8], fwd: &Forwarding) -> (Result<Option<Request>, Reject>, Vec<u8>) {
    let mut out = Vec::new();
    let verdict = parse_request(input, &LIMITS, fwd, &mut out);
    (verdict, out)
}

fuzz_target!(|data: &[u8]| {
    let Some((&flags, input)) = data.split_first() else {
        return;
    };
    let fwd = Forwarding {
        peer: [192, 0, 2, 7].into(),
        local: ([198, 51, 100, 1], 8080).into(),
        trusted: flags & 1 != 0,
        https: flags & 2 != 0,
        allow_connect: flags & 4 != 0,
    };
    let (verdict, out) = read(input, &fwd);
    for end in (0..input.len().min(64)).chain((64..input.len()).step_by(17)) {
        let (part, written) = read(&input[..end], &fwd);
        match (&part, &verdict) {
            (Ok(None), _) => assert!(written.is_empty()),
            (Ok(Some(request)), _) => {
                assert!(request.consumed <= end && part == verdict && written == out)
            }
            (Err(_), _) => assert_eq!(part, verdict, "split at {end}"),
        }
    }
    let Ok(Some(request)) = verdict else {
        return assert!(out.is_empty());
    };
    assert!(request.consumed <= input.len() && request.consumed <= LIMITS.head_size);
    assert!(
        out.len() <= 2 * request.consumed + 256,
        "{} bytes of {}",
        out.len(),
        request.consumed
    );
    plainly(&input[..request.consumed], &out, &request, &fwd);
    // The fields that the proxy adds may exceed the limits that the client's head was within.
    let wide = Limits {
        head_size: 64 << 10,
        headers: 64,
    };
    let mut again = Vec::new();
    let plain = Forwarding {
        trusted: false,
        ..fwd
    };
    let reread = parse_request(&out, &wide, &plain, &mut again)
        .expect("what is forwarded is valid")
        .expect("what is forwarded is complete");
    assert_eq!(reread.consumed, out.len());
    assert_eq!(
        (reread.method, reread.framing, reread.upgrade),
        (request.method, request.framing, request.upgrade)
    );
    // If the head has X-Forwarded-Host, the client named its host, so a second pass changes
    // nothing. A host that the proxy added itself gets no such field.
    if !fwd.trusted
        && out
            .windows(20)
            .any(|part| part == b"\r\nX-Forwarded-Host: ")
    {
        assert_eq!(again, out);
    }

    let body = &input[request.consumed..];
    let emit = if request.framing == Framing::Chunked {
        Emit::Chunked
    } else {
        Emit::Identity
    };
    let mut forwarded = Vec::new();
    let mut decoder = BodyDecoder::new(request.framing, &LIMITS, 400);
    let Ok(taken) = decoder.decode(body, emit, &mut forwarded) else {
        return;
    };
    assert!(taken == body.len() || decoder.is_done());
    if decoder.is_done() {
        let mut upstream = BodyDecoder::new(reread.framing, &LIMITS, 400);
        let (mut there, mut payload) = (Vec::new(), Vec::new());
        assert_eq!(
            upstream.decode(&forwarded, Emit::Identity, &mut there),
            Ok(forwarded.len())
        );
        assert!(
            upstream.is_done(),
            "the endpoint sees the same end as the proxy"
        );
        _ = BodyDecoder::new(request.framing, &LIMITS, 400).decode(
            body,
            Emit::Identity,
            &mut payload,
        );
        assert_eq!(there, payload);
    }
});

/// Checks what is forwarded with the minimal reader.
fn plainly(input: &[u8], out: &[u8], request: &Request, fwd: &Forwarding) {
    let (sent, head) = (
        Head::read(input.strip_prefix(b"\r\n").unwrap_or(input)),
        Head::read(out),
    );
    head.assert_canonical(out);
    let words: Vec<&[u8]> = head.start.split(|&b| b == b' ').collect();
    assert!(
        words.len() == 3 && words.iter().all(|word| !word.is_empty()) && words[2] == b"HTTP/1.1"
    );
    assert_eq!(Some(words[0]), sent.start.split(|&b| b == b' ').next());
    let framing = match head.framing() {
        (_, true) => Framing::Chunked,
        (Some(length), _) => Framing::Counted(length),
        (None, false) => Framing::None,
    };
    assert_eq!(framing, request.framing);
    assert_eq!(head.all("host").len(), 1);
    let connection: &[&[u8]] = match (request.upgrade, head.all("te").is_empty()) {
        (true, false) => &[b"upgrade, TE"],
        (true, true) => &[b"upgrade"],
        (false, false) => &[b"TE"],
        (false, true) => &[],
    };
    assert_eq!(
        (
            head.all("connection").as_slice(),
            !head.all("upgrade").is_empty()
        ),
        (connection, request.upgrade)
    );
    // The client has asked for trailers.
    assert!(head.all("te").is_empty() || !sent.all("te").is_empty());
    let named = [
        head.all("x-forwarded-for").len(),
        head.all("x-forwarded-proto").len(),
        head.all("x-forwarded-host").len(),
    ];
    assert!(head.all("x-forwarded-for")[0].ends_with(b"192.0.2.7"));
    if !fwd.trusted {
        assert!(
            head.all("x-forwarded-for") == [b"192.0.2.7"] && named[..2] == [1, 1] && named[2] <= 1
        );
        let claims = head
            .fields
            .iter()
            .filter(|(name, _)| name.to_ascii_lowercase().starts_with(b"x-forwarded-"));
        assert!(claims.count() == named.iter().sum::<usize>() && head.all("forwarded").is_empty());
    }
    let ours = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
    ];
    head.assert_taken_from(&sent, &ours);
}

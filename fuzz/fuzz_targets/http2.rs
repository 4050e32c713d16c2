//! A request of HTTP/2 as text of HTTP/1 (`wire/translate.rs`): whatever its fields say, the strict
//! parser reads one message or refuses it, and no field is the client's that it did not send. What is
//! forwarded becomes the same request of HTTP/2 again.
//!
//! The input is a byte of options, then lines: method, path and authority in the first one, a field in
//! each other.
#![no_main]

use ebbtide::wire::head::{Forwarding, parse_request};
use ebbtide::wire::message::{Framing, Limits};
use ebbtide::wire::translate::{read_request, write_request};
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    head_size: 64 << 10,
    headers: 200,
};

fuzz_target!(|data: &[u8]| {
    let Some((&flags, input)) = data.split_first() else {
        return;
    };
    let Some(request) = request(input) else {
        return;
    };
    let protocol = (flags & 1 != 0).then_some("websocket");
    let mut text = Vec::new();
    if write_request(&request, protocol, flags & 2 != 0, &mut text).is_err() {
        return assert!(text.is_empty());
    }
    assert!(text.ends_with(b"\r\n\r\n"));
    let forwarding = Forwarding {
        peer: [192, 0, 2, 7].into(),
        local: ([198, 51, 100, 1], 8080).into(),
        trusted: flags & 4 != 0,
        https: false,
        allow_connect: true,
    };
    let mut out = Vec::new();
    let Ok(parsed) = parse_request(&text, &LIMITS, &forwarding, &mut out) else {
        return;
    };
    let parsed = parsed.expect("the text is a whole head");
    assert_eq!(
        parsed.consumed,
        text.len(),
        "something stands behind the head"
    );
    let Ok(read) = read_request(&out, false) else {
        return;
    };
    let read = read.expect("what is forwarded is a whole head");
    assert_eq!(read.length, out.len());
    let (back, framing) = (read.head, read.framing);
    assert_eq!(
        framing == Framing::Chunked,
        parsed.framing == Framing::Chunked
    );
    for (name, value) in back.headers() {
        let ours = name.as_str().starts_with("x-forwarded-")
            || matches!(
                name.as_str(),
                "te" | "cookie" | "content-length" | "sec-websocket-key" | "upgrade"
            );
        let same = |it: &HeaderValue| it.as_bytes().trim_ascii() == value.as_bytes();
        assert!(
            ours || request.headers().get_all(name).iter().any(same),
            "{name}"
        );
    }
});

fn request(input: &[u8]) -> Option<Request<()>> {
    let mut lines = input.split(|&b| b == b'\n');
    let mut words = lines.next()?.split(|&b| b == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let (path, authority) = (words.next()?, words.next()?);
    let uri = match method == Method::CONNECT {
        true => Uri::builder().authority(authority),
        false => Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(path),
    };
    let mut request = Request::new(());
    *request.uri_mut() = uri.build().ok()?;
    *request.method_mut() = method;
    for line in lines {
        let at = line.iter().position(|&b| b == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request)
}

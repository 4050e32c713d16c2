//! Protocol `auto` (contract 4.5): later bytes never change a verdict on the first bytes, and every
//! request that the parser accepts is detected as HTTP.
#![no_main]

use ebbtide::wire::head::{Forwarding, parse_request};
use ebbtide::wire::message::Limits;
use ebbtide::wire::sniff::{Sniff, may_become_request, sniff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut now = Sniff::NeedMore;
    for end in 0..=input.len().min(512) {
        let next = sniff(&input[..end]);
        assert!(
            now == Sniff::NeedMore || now == next,
            "{now:?} became {next:?} at {end}"
        );
        now = next;
    }
    let whole = sniff(input);
    assert!(now == Sniff::NeedMore || now == whole);
    if may_become_request(input) {
        assert!((0..input.len().min(64)).all(|end| may_become_request(&input[..end])));
    }
    let fwd = Forwarding {
        peer: [192, 0, 2, 7].into(),
        local: ([198, 51, 100, 1], 8080).into(),
        trusted: false,
        https: false,
        allow_connect: true,
    };
    let limits = Limits {
        head_size: 16 << 10,
        headers: 100,
    };
    let accepted = matches!(
        parse_request(input, &limits, &fwd, &mut Vec::new()),
        Ok(Some(_))
    );
    let method = input.iter().position(|&b| b == b' ').unwrap_or(input.len());
    // `auto` takes a connection as HTTP only if a request line comes first. The parser also skips
    // one empty line before it.
    if accepted && method <= 32 && !input.starts_with(b"\r\n") {
        assert_eq!(whole, Sniff::Http);
    }
});

//! Protocol `auto` (contract 4.5): later bytes never change a verdict on the first bytes, every
//! request that the parser accepts is detected as HTTP, and no line that ends in a version of HTTP
//! becomes TCP, wherever it is split and however it is padded.
#![no_main]

use ebbtide::wire::head::{Forwarding, parse_request};
use ebbtide::wire::message::Limits;
use ebbtide::wire::sniff::{Beginning, Sniff, beginning, sniff, sniff_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    one_verdict(input);
    let now = sniff(input);
    assert!(now == Sniff::NeedMore || now == sniff_all(input));
    if !input.is_empty() && beginning(input) == Beginning::Request {
        let requests = |end: &usize| *end == 0 || beginning(&input[..*end]) == Beginning::Request;
        let begun = input.iter().position(u8::is_ascii_uppercase).unwrap_or(0) + 1;
        assert!((begun..input.len().min(64)).all(|end| requests(&end)));
    }
    if is_accepted(input) {
        assert_eq!(now, Sniff::Http);
    }
    if is_request_line(input) {
        assert_eq!(now, Sniff::Http);
    }
    // The same input as a target, within a line that some server could accept.
    let target: Vec<u8> = input.iter().copied().filter(|b| *b != b'\n').collect();
    let padding = b" \t\x0b\x0c";
    let pad = &padding[..input.len() % padding.len()];
    for version in ["HTTP/1.1", "HTTP/1.2", "HTTP/2.0", "http/1"] {
        let parts: [&[u8]; 8] = [
            pad,
            b"M ",
            pad,
            &target,
            b" ",
            version.as_bytes(),
            pad,
            b"\r\n",
        ];
        let line = parts.concat();
        assert_eq!(sniff(&line), Sniff::Http);
        one_verdict(&line);
    }
});

fn one_verdict(input: &[u8]) {
    let mut now = Sniff::NeedMore;
    for end in 0..=input.len().min(512) {
        let next = sniff(&input[..end]);
        assert!(
            now == Sniff::NeedMore || now == next,
            "{now:?} became {next:?} at {end}"
        );
        now = next;
    }
    assert!(now == Sniff::NeedMore || now == sniff(input));
}

fn is_accepted(input: &[u8]) -> bool {
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
    let parsed = parse_request(input, &limits, &fwd, &mut Vec::new());
    matches!(parsed, Ok(Some(_)))
}

/// A second, plain reading of the rule: the first line that is not blank ends in `HTTP/` and a
/// version, and its first word is text.
fn is_request_line(input: &[u8]) -> bool {
    let text: String = input.iter().map(|&b| char::from(b)).collect();
    let text = text.trim_start_matches(char::is_whitespace);
    let Some((line, _)) = text.split_once('\n') else {
        return false;
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [first, .., last] = words[..] else {
        return false;
    };
    let version = last
        .get(..5)
        .is_some_and(|name| name.eq_ignore_ascii_case("HTTP/"));
    let digits = last.get(5..).unwrap_or_default();
    version
        && !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && !first.contains(char::is_control)
        && line.len() < 16 << 10
        && !PREFACE.starts_with(input)
        && !input.starts_with(PREFACE)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

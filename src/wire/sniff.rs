//! What a client's first bytes are, for protocol `auto`.

use crate::wire::fields::is_tchar;

/// What a client's first bytes are, for protocol `auto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sniff {
    Http,
    Other,
    NeedMore,
}

/// No request line of HTTP is longer than the head that it is in.
const SNIFF_LIMIT: usize = 16 << 10;

/// Whether these first bytes begin, as far as they go, with a method of RFC 9110 or 5789 and a space.
pub fn may_become_request(first: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"TRACE ",
        b"CONNECT ",
    ];
    METHODS
        .iter()
        .any(|method| first.iter().zip(*method).all(|(a, b)| a == b))
}

/// Knows HTTP/1 by a whole request line up to its version: many line protocols begin with a word and a space, or even
/// with `GET key`. TLS, the HTTP/2 preface and other bytes are `Other` with the first byte that does not fit.
pub fn sniff(first: &[u8]) -> Sniff {
    let mut words = first
        .get(..SNIFF_LIMIT)
        .unwrap_or(first)
        .split(|&b| b == b' ');
    let method = words.next().unwrap_or_default();
    let target = words.next();
    let version = words.next();
    let fits = method.len() <= 32
        && method.iter().copied().all(is_tchar)
        && target.is_none_or(|target| {
            !method.is_empty()
                && (version.is_none() || !target.is_empty())
                && target.iter().all(u8::is_ascii_graphic)
        });
    match version {
        _ if !fits => Sniff::Other,
        Some(version) if version.starts_with(b"HTTP/1.0") || version.starts_with(b"HTTP/1.1") => {
            Sniff::Http
        }
        Some(version) if !b"HTTP/1.".starts_with(version) => Sniff::Other,
        _ if first.len() >= SNIFF_LIMIT => Sniff::Other,
        _ => Sniff::NeedMore,
    }
}

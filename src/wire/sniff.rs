//! Detection of the client's protocol by its first bytes, for protocol `auto` (contract 4.5). How
//! long the proxy waits for those bytes is in `proxy/detect.rs`.

use crate::wire::fields::is_tchar;

/// What the first bytes of a client mean for protocol `auto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sniff {
    /// A complete HTTP/1 request line up to its version.
    Http,
    /// The bytes cannot become an HTTP/1 request line.
    Other,
    /// The bytes can still become an HTTP/1 request line.
    NeedMore,
}

/// Bytes: a request line is not longer than the head that contains it.
const SNIFF_LIMIT: usize = 16 << 10;

/// Whether these bytes begin with a method of RFC 9110 or RFC 5789 and a space, as far as they go.
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

/// Recognises HTTP/1 by a complete request line up to its version, because many line protocols
/// begin with a word and a space, or even with `GET key`. TLS, the HTTP/2 preface and other
/// protocols are [`Sniff::Other`] from the first byte that does not fit.
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

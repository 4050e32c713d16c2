//! Detection of the client's protocol by its first line, for protocol `auto` (contract 4.5). How
//! long the proxy waits for that line is in `proxy/detect.rs`.
//!
//! Invariant: a line that some server reads as a request line is HTTP, whether this proxy would
//! accept the line or not. Otherwise all that follows it would reach the endpoint unchecked.

use crate::wire::fields::is_tchar;

/// What the first bytes of a client mean for protocol `auto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sniff {
    /// The first line is that of an HTTP request, well formed or not.
    Http,
    /// The client has begun with the preface of HTTP/2.
    Http2,
    /// The bytes begin with something else.
    Other,
    /// The end of the first line is still to come.
    NeedMore,
}

/// How long to wait for the end of the first line, before the server is asked what it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginning {
    /// A method of RFC 9110 or RFC 5789 and a space, as far as the bytes go. No server but one of
    /// HTTP answers to that, so the wait is that for a head.
    Request,
    /// A word that may be a method: what is left may be on its way.
    Word,
    /// Anything else.
    Text,
}

/// Bytes: what is longer and has no end is judged by its beginning.
const SNIFF_LIMIT: usize = 16 << 10;

/// The beginning of an HTTP/2 connection (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What these bytes begin with, if [`sniff`] needs more.
pub fn beginning(first: &[u8]) -> Beginning {
    const METHODS: [&[u8]; 10] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"TRACE ",
        b"CONNECT ",
        b"PRI ",
    ];
    let line = without_padding(first);
    let fits = |method: &&[u8]| line.iter().zip(*method).all(|(a, b)| a == b);
    if !line.is_empty() && METHODS.iter().any(fits) {
        return Beginning::Request;
    }
    match line.len() == first.len() && word(line).iter().copied().all(is_tchar) {
        true => Beginning::Word,
        false => Beginning::Text,
    }
}

/// Recognises HTTP/1 by a first line that ends in a version of HTTP, because many line protocols
/// begin with a word and a space, or even with `GET key`. Servers differ in what they skip before
/// the line, between its words and behind it, and in the methods that they take, so none of that
/// decides. A byte of a binary protocol in the first word does.
pub fn sniff(first: &[u8]) -> Sniff {
    match first.get(..PREFACE.len()) {
        Some(PREFACE) => return Sniff::Http2,
        None if PREFACE.starts_with(first) => return Sniff::NeedMore,
        _ => {}
    }
    let window = first.get(..SNIFF_LIMIT).unwrap_or(first);
    let line = without_padding(window);
    let word = word(line);
    if word.iter().any(u8::is_ascii_control) {
        return Sniff::Other;
    }
    match end_of_line(line) {
        Some(verdict) => verdict,
        None if window.len() < SNIFF_LIMIT => Sniff::NeedMore,
        None if word.iter().copied().all(is_tchar) => Sniff::Http,
        None => Sniff::Other,
    }
}

/// Whether these are first bytes of HTTP/2. `None`: as far as they go.
pub fn is_http2(first: &[u8]) -> Option<bool> {
    match first.get(..PREFACE.len()) {
        Some(beginning) => Some(beginning == PREFACE),
        None => (!PREFACE.starts_with(first)).then_some(false),
    }
}

/// The verdict on the first bytes if nothing follows them: their end ends the line, too.
pub fn sniff_all(first: &[u8]) -> Sniff {
    let ended = [first, b"\n"].concat();
    match sniff(&ended) {
        Sniff::Other | Sniff::NeedMore => Sniff::Other,
        known => known,
    }
}

/// Whether a line ends in `HTTP/` and a digit, with padding behind or without. `None`: its end is
/// still to come. Some servers end a line at a carriage return alone, and others take that for a
/// blank, so either reading makes the line one of HTTP.
fn end_of_line(line: &[u8]) -> Option<Sniff> {
    const NAME: &[u8] = b"HTTP/";
    let (mut named, mut version, mut padded) = (0, false, false);
    for byte in line {
        match byte {
            b'\r' | b'\n' if version => return Some(Sniff::Http),
            b'\n' => return Some(Sniff::Other),
            b if !b.is_ascii_graphic() => (named, padded) = (0, true),
            b => {
                let goes_on = version && !padded && (b.is_ascii_alphanumeric() || *b == b'.');
                version = goes_on || named == NAME.len() && b.is_ascii_digit();
                let fits = |at: usize| NAME.get(at).is_some_and(|it| it.eq_ignore_ascii_case(b));
                named = match fits(named) {
                    true => named + 1,
                    false => usize::from(fits(0)),
                };
                padded = false;
            }
        }
    }
    None
}

/// The bytes after blanks and empty lines.
fn without_padding(bytes: &[u8]) -> &[u8] {
    let padding = bytes.iter().take_while(|&&b| is_blank(b)).count();
    bytes.get(padding..).unwrap_or_default()
}

fn word(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|&b| is_blank(b));
    line.get(..end.unwrap_or(line.len())).unwrap_or(line)
}

/// Whether some server takes the byte for a blank between two words: whitespace of ASCII, of C and
/// of Latin-1.
fn is_blank(b: u8) -> bool {
    matches!(b, b'\t'..=b'\r' | 0x1c..=b' ' | 0x85 | 0xa0)
}

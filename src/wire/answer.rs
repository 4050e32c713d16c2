//! Responses that Ebbtide makes itself. Which status and reason a fault gets is decided by the
//! caller.

use std::io::Write;

/// Appends a response of Ebbtide itself, with the field `x-ebbtide-reason` and a body of one line.
///
/// `reason` is one of a closed set of snake_case words. `retry_after` is in seconds. `close` adds
/// `Connection: close`; it must be set for an HTTP/1.0 client, because this response never offers
/// keep-alive. `head_only` leaves the body out, for a response to HEAD.
pub fn write_answer(
    status: u16,
    reason: &str,
    retry_after: Option<u32>,
    close: bool,
    head_only: bool,
    out: &mut Vec<u8>,
) {
    let phrase = match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        414 => "URI Too Long",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    let length = phrase.len() + 2 + reason.len() + 1;
    _ = write!(
        out,
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n"
    );
    _ = write!(out, "x-ebbtide-reason: {reason}\r\n");
    if let Some(seconds) = retry_after {
        _ = write!(out, "Retry-After: {seconds}\r\n");
    }
    out.extend_from_slice(if close {
        b"Connection: close\r\n\r\n"
    } else {
        b"\r\n"
    });
    if !head_only {
        _ = writeln!(out, "{phrase}: {reason}");
    }
}

//! Responses that Ebbtide makes itself. Which status and reason a fault gets is decided by the
//! caller.

use std::io::Write;

/// As [`write_answer`], with these fields. One with a control byte in its value is left out.
pub fn write_with(
    status: u16,
    reason: &str,
    fields: &[(String, String)],
    close: bool,
    head_only: bool,
    out: &mut Vec<u8>,
) {
    let lines = fields.iter();
    let lines: String = lines
        .filter(|(_, value)| !value.bytes().any(|it| it.is_ascii_control()))
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write(status, reason, &lines, close, head_only, out);
}

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
    let field = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
    let field = field.unwrap_or_default();
    write(status, reason, &field, close, head_only, out);
}

fn write(status: u16, reason: &str, field: &str, close: bool, head_only: bool, out: &mut Vec<u8>) {
    let phrase = match status {
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    let length = phrase.len() + 2 + reason.len() + 1;
    _ = write!(out, "HTTP/1.1 {status} {phrase}\r\n");
    // RFC 9110 section 15.3.5: this one has no content.
    let has_body = status != 204;
    if has_body {
        _ = write!(
            out,
            "Content-Type: text/plain\r\nContent-Length: {length}\r\n"
        );
    }
    _ = write!(out, "x-ebbtide-reason: {reason}\r\n{field}");
    out.extend_from_slice(if close {
        b"Connection: close\r\n\r\n"
    } else {
        b"\r\n"
    });
    if has_body && !head_only {
        _ = writeln!(out, "{phrase}: {reason}");
    }
}

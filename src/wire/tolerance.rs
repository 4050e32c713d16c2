//! Response heads of servers that deviate harmlessly: what curl, HAProxy and nginx accept alike and
//! nobody can read in two ways is rewritten into the form that `head.rs` accepts. The table with
//! the reason for each is in docs/contract.md, section 4.3. Requests are never rewritten.
//!
//! Invariants: a head that is in order never comes here. What is rewritten is parsed strictly
//! afterwards, so nothing here decides that a head is accepted. The verdict on a head does not
//! depend on how the network split it.

use crate::wire::fields::{FieldKind, is_tchar, kind, list};
use crate::wire::message::{Limits, Reject};

/// Finds the end of a head that [`end_of_head`](crate::wire::fields::end_of_head) refuses with
/// `fault`. All lines end alike: a line feed alone among other ends is what an injected line looks
/// like. Only the empty line may be a line feed alone.
pub(super) fn end_of_head(
    input: &[u8],
    limits: &Limits,
    fault: Reject,
) -> Result<Option<usize>, Reject> {
    let window = input.get(..limits.head_size).unwrap_or(input);
    let (mut start, mut bare) = (0, None);
    for (at, byte) in window.iter().enumerate() {
        match (byte, window.get(at + 1)) {
            (b'\r', Some(b'\n') | None) => {}
            (b'\0' | b'\r', _) => return Err(fault),
            (b'\n', next) => {
                let is_bare = !window
                    .get(start..at)
                    .is_some_and(|line| line.ends_with(b"\r"));
                if at == start + usize::from(!is_bare) {
                    let ends = start > 0 && (is_bare || bare == Some(false));
                    return if ends { Ok(Some(at + 1)) } else { Err(fault) };
                }
                if *bare.get_or_insert(is_bare) != is_bare || matches!(next, Some(b' ' | b'\t')) {
                    return Err(fault);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    match input.len() < limits.head_size {
        true => Ok(None),
        false => Err(Reject {
            status: 502,
            reason: "head_too_large",
        }),
    }
}

/// The head in the form of a server that does not deviate. `None` if something else is at fault.
pub(super) fn repaired(head: &[u8]) -> Option<Vec<u8>> {
    let mut lines = head
        .split(|&b| b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let (version, rest) = lines.next()?.split_at_checked(8)?;
    let (code, reason) = after_spaces(rest)?.split_at_checked(3)?;
    let reason = match reason {
        [] => reason,
        more => after_spaces(more)?,
    };
    let mut close = match version {
        b"HTTP/1.0" | b"HTTP/1.1" => false,
        // Some applications copy a status line. What follows is HTTP/1.1, because this connection
        // is; but that is the last thing to believe of it.
        b"HTTP/2.0" => true,
        _ => return None,
    };
    let mut out = Vec::with_capacity(head.len() + 64);
    let (mut length, mut host) = (None, false);
    let is_safe = |b: &u8| *b == b'\t' || !b.is_ascii_control();
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
        let is_name = !name.is_empty() && name.iter().copied().all(is_tchar);
        let text = std::str::from_utf8(name).ok().filter(|_| is_name)?;
        let kind = kind(text);
        if kind == FieldKind::EndToEnd {
            write(&mut out, &[name, b": ", &without_controls(value)]);
            continue;
        }
        // A reader may skip a control byte here, or stop at it.
        if !value.iter().all(is_safe) {
            return None;
        }
        let value = value.trim_ascii();
        match kind {
            FieldKind::ContentLength if length == Some(value) => continue,
            FieldKind::ContentLength => length = Some(value),
            FieldKind::Host if std::mem::replace(&mut host, true) => continue,
            FieldKind::TransferEncoding => {
                // The body is in chunks, or it is refused. The connection ends after it, as RFC 9112
                // section 6.1 says.
                close |= version == b"HTTP/1.0";
                let codings: Vec<&[u8]> = list(value).filter(|it| !it.is_empty()).collect();
                write(&mut out, &[name, b": ", &codings.join(&b", "[..])]);
                continue;
            }
            _ => {}
        }
        write(&mut out, &[name, b": ", value]);
    }
    if close {
        write(&mut out, &[b"Connection: close"]);
    }
    out.extend_from_slice(b"\r\n");
    let version = if close {
        b"HTTP/1.1".as_slice()
    } else {
        version
    };
    let mut status = Vec::with_capacity(out.len() + reason.len() + 16);
    write(
        &mut status,
        &[version, b" ", code, b" ", &without_controls(reason)],
    );
    status.extend(out);
    Some(status)
}

/// A control byte could end a line for some reader. None has a meaning in a value (RFC 9110 section
/// 5.5).
fn without_controls(value: &[u8]) -> Vec<u8> {
    let safe = |b: &u8| match b {
        b'\t' => b'\t',
        b if b.is_ascii_control() => b' ',
        b => *b,
    };
    value
        .iter()
        .map(safe)
        .collect::<Vec<u8>>()
        .trim_ascii()
        .to_vec()
}

/// What follows one space or more; `None` if there is none.
fn after_spaces(text: &[u8]) -> Option<&[u8]> {
    let spaces = text.iter().take_while(|&&b| b == b' ').count();
    text.get(spaces..).filter(|_| spaces > 0)
}

fn write(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

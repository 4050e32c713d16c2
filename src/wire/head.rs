//! Heads of requests and responses: strict input, canonical output (contract 4; RFC 9112 sections 2
//! to 6, RFC 9110 section 7).
//!
//! This file owns the start lines, the framing that a message's fields give, and what of a message
//! is forwarded. Invariants: nothing is appended to `out` before a head is complete and accepted;
//! the verdict on the same bytes does not depend on how the network split them. Bodies are in
//! `body.rs`. `Via`, `Max-Forwards` and a missing `Date` are left out (contract 4.2).

use std::io::Write;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::wire::fields::{
    FieldKind, Fields, Lines, MAX_HEADERS, binds_connection, end_of_head, grpc_status, write_line,
    write_upgrade,
};
use crate::wire::message::{Emit, Framing, Limits, Method, Reject, Request, Response, Version};
use crate::wire::target::{Target, is_authority};
use crate::wire::tolerance;

/// How the requests of a client are forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding {
    /// The client's address, for `X-Forwarded-For`.
    pub peer: IpAddr,
    /// The address that the client connected to. It becomes `Host` for an HTTP/1.0 request that
    /// names none.
    pub local: SocketAddr,
    /// Whether [`Forwarding::peer`] is in `trustedProxies`. If so, its `X-Forwarded-*` fields are used and
    /// extended. If not, these fields and `Forwarded` are replaced.
    pub trusted: bool,
    /// Whether `X-Forwarded-Proto` says `https` instead of `http`.
    pub https: bool,
    /// Whether CONNECT is forwarded. If not, the client gets 501.
    pub allow_connect: bool,
}

/// Whether the input has more than the one empty line that a client may send before a request (RFC
/// 9112 section 2.2). Some clients end a body with an empty line that the body's length does not
/// count.
pub fn has_begun(input: &[u8]) -> bool {
    !b"\r\n".starts_with(input)
}

/// Whether the request line is one of HTTP/1.0. Only for such a request [`Forwarding::local`] is
/// read.
pub fn may_need_local(input: &[u8]) -> bool {
    let input = input.strip_prefix(b"\r\n").unwrap_or(input);
    let line = input.split(|&b| b == b'\r').next().unwrap_or_default();
    line.ends_with(b" HTTP/1.0")
}

/// Reads a client's request head and appends the head for the endpoint to `out`: HTTP/1.1, origin
/// form, fields in their order, without the fields of one hop, with `X-Forwarded-*` (contract 4.2).
/// `Ok(None)`: the head is not complete, and nothing was appended.
///
/// # Errors
/// The request is refused with a 4xx or 5xx of [`Reject`] (contract 4.1), and nothing was appended.
pub fn parse_request(
    input: &[u8],
    limits: &Limits,
    fwd: &Forwarding,
    out: &mut Vec<u8>,
) -> Result<Option<Request>, Reject> {
    if !has_begun(input) {
        return Ok(None);
    }
    let (input, skipped) = input
        .strip_prefix(b"\r\n")
        .map_or((input, 0), |rest| (rest, 2));
    let Some(length) =
        end_of_head(input, limits).map_err(|reject| of_line(reject, input, limits))?
    else {
        return Ok(None);
    };
    let head = input.get(..length).unwrap_or(input);
    let mut lines: Lines<'_> = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let room = limits.headers.min(MAX_HEADERS);
    let status = parsed.parse_with_uninit_headers(head, &mut lines[..room]);
    let (name, raw_target) = (
        parsed.method.unwrap_or_default(),
        parsed.path.unwrap_or_default(),
    );
    match status {
        Ok(httparse::Status::Complete(parsed)) if parsed == length => {}
        Ok(_) => return Err(Reject::bad("bad_request_line")),
        Err(httparse::Error::Version) => {
            let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
            return Err(bad_version(
                line.get(name.len() + raw_target.len() + 2..)
                    .unwrap_or_default(),
            ));
        }
        Err(error) => return Err(bad_syntax(error, "bad_request_line")),
    }
    let version = if parsed.version == Some(0) {
        Version::H10
    } else {
        Version::H11
    };
    let method = Method::new(name);
    let mut kinds = [FieldKind::EndToEnd; MAX_HEADERS];
    let fields = Fields::survey(parsed.headers, version, &mut kinds)?;

    if method == Method::Connect && !fwd.allow_connect {
        return Err(Reject {
            status: 501,
            reason: "connect_refused",
        });
    }
    let target = Target::new(method, raw_target)?;
    let host = match (fields.host, target.authority) {
        (None, _) if version == Version::H11 => return Err(Reject::bad("missing_host")),
        (Some(host), _) if !host.is_empty() && !is_authority(host) => {
            return Err(Reject::bad("bad_host"));
        }
        (Some(host), Some(authority)) if !authority.is(host) => {
            return Err(Reject::bad("host_mismatch"));
        }
        (_, Some(authority)) => Some(authority.text.as_bytes()),
        (host, None) => host,
    };
    let framing = match fields.length {
        _ if fields.chunked => Framing::Chunked,
        Some((_, length)) => Framing::Counted(length),
        None => Framing::None,
    };
    let has_body = !matches!(framing, Framing::None | Framing::Counted(0));
    if method == Method::Connect && has_body {
        return Err(Reject::bad("connect_with_body"));
    }
    let mut request = Request {
        method,
        version,
        framing,
        keep_alive: keeps_alive(version, &fields),
        upgrade: fields.upgrade && fields.protocol && !has_body && method != Method::Connect,
        expect_continue: false,
        conditional: false,
        idempotency_key: false,
        binds: false,
        consumed: skipped + length,
    };

    out.reserve(length + 256);
    for part in [name, " ", target.prefix, target.rest, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if fields.host.is_none() {
        match host {
            Some(authority) => write_line(out, "Host", authority),
            None => _ = write!(out, "Host: {}\r\n", fwd.local),
        }
    }
    for (kind, line) in fields.iter() {
        let mut value = line.value;
        match kind {
            FieldKind::Host => value = host.unwrap_or_default(),
            FieldKind::ContentLength => value = fields.length.map_or(value, |(digits, _)| digits),
            FieldKind::Upgrade if request.upgrade => {
                write_upgrade(out, line);
                continue;
            }
            FieldKind::ForwardedHost | FieldKind::ForwardedProto | FieldKind::ForwardedOther
                if fwd.trusted => {}
            FieldKind::Connection
            | FieldKind::HopByHop
            | FieldKind::Te
            | FieldKind::TransferEncoding
            | FieldKind::Upgrade
            | FieldKind::Lookalike => continue,
            FieldKind::ForwardedFor
            | FieldKind::ForwardedHost
            | FieldKind::ForwardedProto
            | FieldKind::ForwardedOther => continue,
            _ if fields.is_listed(line.name) => continue,
            FieldKind::Trailer if framing != Framing::Chunked => continue,
            // An HTTP/1.0 client does not understand the interim response (RFC 9110 section
            // 10.1.1).
            FieldKind::Expect if version == Version::H10 => continue,
            FieldKind::Expect => {
                request.expect_continue |= value.eq_ignore_ascii_case(b"100-continue")
            }
            FieldKind::Conditional => request.conditional = true,
            FieldKind::IdempotencyKey => request.idempotency_key = true,
            FieldKind::Credentials => request.binds |= binds_connection(value),
            FieldKind::Trailer
            | FieldKind::Challenge
            | FieldKind::GrpcStatus
            | FieldKind::EndToEnd => {}
        }
        write_line(out, line.name, value);
    }
    if fields.chunked {
        write_line(out, "Transfer-Encoding", b"chunked");
    }
    // Trailers of a response pass to an HTTP/1.1 client. No transfer coding but chunked does.
    let trailers = fields.trailers && version == Version::H11;
    if trailers {
        write_line(out, "TE", b"trailers");
    }
    write_forwarded(&fields, fields.host.and(host), fwd, out);
    match (request.upgrade, trailers) {
        (true, true) => write_line(out, "Connection", b"upgrade, TE"),
        (true, false) => write_line(out, "Connection", b"upgrade"),
        (false, true) => write_line(out, "Connection", b"TE"),
        (false, false) => {}
    }
    out.extend_from_slice(b"\r\n");
    Ok(Some(request))
}

fn write_forwarded(
    fields: &Fields<'_, '_>,
    host: Option<&[u8]>,
    fwd: &Forwarding,
    out: &mut Vec<u8>,
) {
    let (mut has_host, mut has_proto) = (false, false);
    out.extend_from_slice(b"X-Forwarded-For: ");
    if fwd.trusted {
        for (kind, line) in fields.iter() {
            has_host |= kind == FieldKind::ForwardedHost;
            has_proto |= kind == FieldKind::ForwardedProto;
            if kind == FieldKind::ForwardedFor && !line.value.is_empty() {
                out.extend_from_slice(line.value);
                out.extend_from_slice(b", ");
            }
        }
    }
    match fwd.peer.to_canonical() {
        IpAddr::V4(peer) => write_v4(out, peer),
        IpAddr::V6(peer) => _ = write!(out, "{peer}"),
    }
    out.extend_from_slice(b"\r\n");
    if !has_proto {
        write_line(
            out,
            "X-Forwarded-Proto",
            if fwd.https { b"https" } else { b"http" },
        );
    }
    if let Some(host) = host.filter(|host| !host.is_empty() && !has_host) {
        write_line(out, "X-Forwarded-Host", host);
    }
}

/// Writes the address as its `Display` does. `Display` takes longer than the rest of a line.
fn write_v4(out: &mut Vec<u8>, address: Ipv4Addr) {
    for (i, octet) in address.octets().into_iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        let digits = [octet / 100, octet / 10 % 10, octet % 10].map(|digit| b'0' + digit);
        out.extend_from_slice(&digits[usize::from(octet < 100) + usize::from(octet < 10)..]);
    }
}

fn keeps_alive(version: Version, fields: &Fields<'_, '_>) -> bool {
    !fields.close && (version == Version::H11 || fields.keep_alive)
}

/// A head that is too large, but whose request line alone is too long: its target is (RFC 9112
/// section 3). Only bytes within the bound decide, so the verdict does not depend on how the
/// network split them.
fn of_line(reject: Reject, input: &[u8], limits: &Limits) -> Reject {
    let window = input.get(..limits.head_size).unwrap_or(input);
    let long = reject.status == 431 && window.contains(&b' ') && !window.contains(&b'\n');
    match long {
        true => Reject {
            status: 414,
            reason: "target_too_long",
        },
        false => reject,
    }
}

/// `version` is the text at the place of the version.
fn bad_version(version: &[u8]) -> Reject {
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Reject {
                status: 505,
                reason: "unsupported_version",
            }
        }
        _ => Reject::bad("bad_version"),
    }
}

fn bad_syntax(error: httparse::Error, start_line: &'static str) -> Reject {
    match error {
        httparse::Error::TooManyHeaders => Reject {
            status: 431,
            reason: "too_many_headers",
        },
        httparse::Error::HeaderName | httparse::Error::HeaderValue => Reject::bad("bad_header"),
        _ => Reject::bad(start_line),
    }
}

/// Reads an endpoint's response head and appends the head for the client to `out` (contract 4.3).
/// The output is always HTTP/1.1. It has `Connection: close` if `close` or
/// [`Response::client_close`] says so, and otherwise `Connection: keep-alive` for an HTTP/1.0
/// client. `Ok(None)`: the head is not complete, and nothing was appended.
///
/// A 1xx response is written too. The caller must not send it to an HTTP/1.0 client.
///
/// A head that deviates harmlessly is rewritten first, see `tolerance.rs`.
///
/// # Errors
/// The response cannot be forwarded: a [`Reject`] with status 502, and nothing was appended.
pub fn parse_response(
    input: &[u8],
    limits: &Limits,
    request_method: Method,
    client: Version,
    close: bool,
    out: &mut Vec<u8>,
) -> Result<Option<Response>, Reject> {
    let (end, deviates) = match end_of_head(input, limits).map_err(Reject::of_upstream) {
        Err(fault) if fault.reason != "head_too_large" => {
            (tolerance::end_of_head(input, limits, fault)?, Some(fault))
        }
        end => (end?, None),
    };
    let Some(consumed) = end else {
        return Ok(None);
    };
    let head = input.get(..consumed).unwrap_or(input);
    let read =
        |head: &[u8], out: &mut Vec<u8>| response(head, limits, request_method, client, close, out);
    let strict = match deviates {
        Some(fault) => Err(fault),
        None => read(head, out),
    };
    let answer = strict.or_else(|fault| match tolerance::repaired(head) {
        Some(head) => read(&head, out).map_err(|_| fault),
        None => Err(fault),
    });
    let answer = answer.map_err(Reject::of_upstream)?;
    Ok(Some(Response { consumed, ..answer }))
}

fn response(
    head: &[u8],
    limits: &Limits,
    request_method: Method,
    client: Version,
    close: bool,
    out: &mut Vec<u8>,
) -> Result<Response, Reject> {
    let mut lines: Lines<'_> = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let room = limits.headers.min(MAX_HEADERS);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut lines[..room]) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Reject::bad("bad_status_line")),
        // The version is a known one, so the fault is in the text after it.
        Err(httparse::Error::Version)
            if head.starts_with(b"HTTP/1.0") || head.starts_with(b"HTTP/1.1") =>
        {
            return Err(Reject::bad("bad_status_line"));
        }
        Err(httparse::Error::Version) => {
            return Err(bad_version(head.get(..8).unwrap_or_default()));
        }
        Err(error) => return Err(bad_syntax(error, "bad_status_line")),
    }
    let version = if parsed.version == Some(0) {
        Version::H10
    } else {
        Version::H11
    };
    let status = parsed
        .code
        .filter(|code| *code >= 100)
        .ok_or(Reject::bad("bad_status_line"))?;
    let mut kinds = [FieldKind::EndToEnd; MAX_HEADERS];
    let fields = Fields::survey(parsed.headers, version, &mut kinds)?;
    if status == 101 && !fields.upgrade {
        return Err(Reject::bad("bad_upgrade"));
    }
    let tunnel = status == 101 || request_method == Method::Connect && (200..300).contains(&status);
    let bodiless = matches!(status, 100..200 | 204);
    let framing = match fields.length {
        _ if tunnel || bodiless || status == 304 || request_method == Method::Head => Framing::None,
        _ if fields.chunked => Framing::Chunked,
        Some((_, length)) => Framing::Counted(length),
        None => Framing::UntilClose,
    };
    let uncounted = matches!(framing, Framing::Chunked | Framing::UntilClose);
    let mut answer = Response {
        status,
        version,
        framing,
        emit: if uncounted && client == Version::H11 {
            Emit::Chunked
        } else {
            Emit::Identity
        },
        keep_alive: keeps_alive(version, &fields) && framing != Framing::UntilClose && !tunnel,
        client_close: uncounted && client == Version::H10,
        upgrade: tunnel,
        grpc_status: None,
        binds: false,
        consumed: head.len(),
    };

    // The reason phrase is forwarded as it came, because `httparse` withholds one with obs-text.
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let (code, reason) = (
        line.get(9..12).unwrap_or_default(),
        line.get(13..).unwrap_or_default(),
    );
    out.reserve(head.len() + 64);
    for part in [b"HTTP/1.1 ", code, b" ", reason, b"\r\n"] {
        out.extend_from_slice(part);
    }
    // A 426 names the protocol to upgrade to. In any other response, an offer is the endpoint's
    // own, for its hop only.
    let offers = fields.upgrade && matches!(status, 101 | 426);
    for (kind, line) in fields.iter() {
        let mut value = line.value;
        match kind {
            FieldKind::Connection
            | FieldKind::HopByHop
            | FieldKind::Te
            | FieldKind::TransferEncoding => continue,
            FieldKind::ContentLength if tunnel || bodiless => continue,
            FieldKind::ContentLength => value = fields.length.map_or(value, |(digits, _)| digits),
            FieldKind::Upgrade if !offers => continue,
            FieldKind::Trailer if framing != Framing::Chunked || client == Version::H10 => continue,
            FieldKind::Upgrade | FieldKind::Host => {}
            _ if fields.is_listed(line.name) => continue,
            FieldKind::Challenge => answer.binds |= binds_connection(value),
            FieldKind::GrpcStatus => answer.grpc_status = Some(grpc_status(value)),
            _ => {}
        }
        write_line(out, line.name, value);
    }
    // A response to HEAD, or a 304, has the fields that the response to GET would have.
    let shows_chunked = fields.chunked && !tunnel && !bodiless;
    if client == Version::H11 && (uncounted || shows_chunked) {
        write_line(out, "Transfer-Encoding", b"chunked");
    }
    if offers {
        write_line(out, "Connection", b"upgrade");
    }
    if !tunnel && status >= 200 {
        match client {
            _ if close || answer.client_close => write_line(out, "Connection", b"close"),
            Version::H10 => write_line(out, "Connection", b"keep-alive"),
            Version::H11 => {}
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(answer)
}

//! The field section that heads and trailers share: where it ends, and what its fields say about
//! framing and forwarding.
//!
//! `httparse` splits the lines. This file refuses what `httparse` accepts and two implementations
//! could read differently (RFC 9112 sections 2.2, 5 and 6). Invariant: `end_of_head` reads strictly
//! from left to right, so the verdict on a head does not depend on how the network split it. The
//! start lines are in `head.rs`.

use std::mem::MaybeUninit;

use httparse::Header;

use crate::wire::message::{Limits, Reject, Version};

/// The largest number of field lines that is ever accepted, and so the largest `limits.headers`.
/// The room for them is on the stack.
pub const MAX_HEADERS: usize = 256;

/// The largest number of connection options other than `close`, `keep-alive` and `upgrade`. Each of
/// them is compared with each field.
const MAX_OPTIONS: usize = 32;

/// Room for the lines that `httparse` splits. It is not initialised, so it costs nothing to make.
pub(super) type Lines<'a> = [MaybeUninit<Header<'a>>; MAX_HEADERS];

/// Room in which [`Fields::survey`] notes the kind of each line.
pub(super) type Kinds = [FieldKind; MAX_HEADERS];

/// Finds the end of a head, after its empty line, or the first fault before it. `Ok(None)`: the
/// input has neither yet.
pub(super) fn end_of_head(input: &[u8], limits: &Limits) -> Result<Option<usize>, Reject> {
    let window = input.get(..limits.head_size).unwrap_or(input);
    let (mut line, mut at) = (0, 0);
    loop {
        at = next_control(window, at);
        match (window.get(at), window.get(at + 1)) {
            (Some(b'\t'), _) => at += 1,
            (Some(b'\r'), Some(b'\n')) if at == line && line == 0 => {
                return Err(Reject::bad("leading_blank_line"));
            }
            (Some(b'\r'), Some(b'\n')) if at == line => return Ok(Some(at + 2)),
            (Some(b'\r'), Some(b'\n')) => {
                at += 2;
                line = at;
                if matches!(window.get(at), Some(b' ' | b'\t')) {
                    return Err(Reject::bad("obs_fold"));
                }
            }
            (Some(b'\r'), Some(_)) => return Err(Reject::bad("bare_cr")),
            (Some(b'\n'), _) => return Err(Reject::bad("bare_lf")),
            (Some(b'\r') | None, _) if input.len() >= limits.head_size => {
                return Err(Reject {
                    status: 431,
                    reason: "head_too_large",
                });
            }
            (Some(b'\r') | None, _) => return Ok(None),
            (Some(_), _) => return Err(Reject::bad("control_byte")),
        }
    }
}

/// Index of the first byte below 0x20 at or after `from`, or the length. It tests eight bytes a
/// step. The words are read as little-endian, so the borrow of the subtraction spoils only bytes
/// after the first hit.
fn next_control(bytes: &[u8], mut from: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    while let Some(eight) = bytes.get(from..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        let below = word.wrapping_sub(ONES * 0x20) & !word & (ONES * 0x80);
        if below != 0 {
            return from + below.trailing_zeros() as usize / 8;
        }
        from += 8;
    }
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().position(|&b| b < 0x20).unwrap_or(rest.len())
}

/// What a field means to a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FieldKind {
    EndToEnd,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    /// Hop-by-hop, whether `Connection` lists the field or not (RFC 9110 section 7.6.1).
    HopByHop,
    /// Hop-by-hop. This proxy makes a `TE` of its own.
    Te,
    Upgrade,
    Trailer,
    Expect,
    /// A precondition. A lost first attempt may have changed its outcome.
    Conditional,
    IdempotencyKey,
    /// `Authorization` and `Proxy-Authorization`.
    Credentials,
    /// `grpc-status`.
    GrpcStatus,
    /// `WWW-Authenticate` and `Proxy-Authenticate`.
    Challenge,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    /// `Forwarded` and the other `X-Forwarded-*` fields: a claim about the client that needs trust.
    ForwardedOther,
    /// An ordinary field to HTTP. But some endpoints read its name as a field that frames the
    /// message, or as one that only the proxy may set.
    Lookalike,
}

pub(super) fn kind(name: &str) -> FieldKind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 if is("te") => FieldKind::Te,
        4 if is("host") => FieldKind::Host,
        6 if is("expect") => FieldKind::Expect,
        7 if is("upgrade") => FieldKind::Upgrade,
        7 if is("trailer") => FieldKind::Trailer,
        8 if is("if-match") => FieldKind::Conditional,
        9 if is("forwarded") => FieldKind::ForwardedOther,
        10 if is("connection") => FieldKind::Connection,
        10 if is("keep-alive") => FieldKind::HopByHop,
        11 if is("grpc-status") => FieldKind::GrpcStatus,
        13 if is("if-none-match") => FieldKind::Conditional,
        13 if is("authorization") => FieldKind::Credentials,
        14 if is("content-length") => FieldKind::ContentLength,
        // It is for the hop that an `Upgrade: h2c` is for (RFC 7540 section 3.2.1).
        14 if is("http2-settings") => FieldKind::HopByHop,
        15 if is("idempotency-key") => FieldKind::IdempotencyKey,
        15 if is("x-forwarded-for") => FieldKind::ForwardedFor,
        16 if is("x-forwarded-host") => FieldKind::ForwardedHost,
        16 if is("proxy-connection") => FieldKind::HopByHop,
        16 if is("www-authenticate") => FieldKind::Challenge,
        17 if is("transfer-encoding") => FieldKind::TransferEncoding,
        17 if is("x-forwarded-proto") => FieldKind::ForwardedProto,
        18 if is("proxy-authenticate") => FieldKind::Challenge,
        19 if is("if-unmodified-since") => FieldKind::Conditional,
        19 if is("proxy-authorization") => FieldKind::Credentials,
        12.. if name
            .as_bytes()
            .get(..12)
            .is_some_and(|p| p.eq_ignore_ascii_case(b"x-forwarded-")) =>
        {
            FieldKind::ForwardedOther
        }
        12.. if is_lookalike(name.as_bytes()) => FieldKind::Lookalike,
        _ => FieldKind::EndToEnd,
    }
}

/// CGI and its successors (FastCGI, WSGI, PHP) make a variable of each field name, with `_` for
/// every character except letters and digits. So `X_Forwarded_For` and `X-Forwarded-For` become the
/// same variable, and an endpoint cannot see that the client itself sent the first one.
fn is_lookalike(name: &[u8]) -> bool {
    let begins = |with: &[u8]| {
        let mut pairs = name.iter().zip(with);
        pairs.all(|(a, b)| a.eq_ignore_ascii_case(b) || *b == b'-' && !a.is_ascii_alphanumeric())
    };
    match name.len() {
        14 if begins(b"content-length") => true,
        17 if begins(b"transfer-encoding") => true,
        _ => begins(b"x-forwarded-"),
    }
}

/// The result of one pass over the fields of a head.
pub(super) struct Fields<'h, 'b> {
    pub lines: &'h [Header<'b>],
    kinds: &'h [FieldKind],
    pub host: Option<&'b [u8]>,
    /// The decimal digits of Content-Length without leading zeros, and their value: at most 2^63-1.
    pub length: Option<(&'b [u8], u64)>,
    /// Whether `Transfer-Encoding` is `chunked`.
    pub chunked: bool,
    pub close: bool,
    pub keep_alive: bool,
    /// Whether both parts of an upgrade are present: `Upgrade`, and `Connection: upgrade`.
    pub upgrade: bool,
    /// Whether `Upgrade` names a protocol of which [`passes_upgrade`] is true.
    pub protocol: bool,
    /// Whether `TE` has `trailers`.
    pub trailers: bool,
    /// Whether `Connection` lists names other than `close`, `keep-alive` and `upgrade`.
    lists: bool,
}

impl<'h, 'b> Fields<'h, 'b> {
    /// Reads the fields. It refuses every message whose length or host two parsers could read
    /// differently.
    pub(super) fn survey(
        lines: &'h [Header<'b>],
        version: Version,
        room: &'h mut Kinds,
    ) -> Result<Self, Reject> {
        let mut fields = Fields {
            lines,
            kinds: &[],
            host: None,
            length: None,
            chunked: false,
            close: false,
            keep_alive: false,
            upgrade: false,
            protocol: false,
            trailers: false,
            lists: false,
        };
        let (mut upgrade_field, mut upgrade_option, mut options, mut coded) =
            (false, false, 0, false);
        for (line, slot) in lines.iter().zip(&mut *room) {
            *slot = kind(line.name);
            match *slot {
                FieldKind::Host if fields.host.is_some() => {
                    return Err(Reject::bad("duplicate_host"));
                }
                FieldKind::Host => fields.host = Some(line.value),
                FieldKind::ContentLength if fields.length.is_some() => {
                    return Err(Reject::bad("duplicate_content_length"));
                }
                FieldKind::ContentLength => fields.length = Some(content_length(line.value)?),
                FieldKind::TransferEncoding if version == Version::H10 => {
                    return Err(Reject::bad("transfer_encoding_on_http10"));
                }
                FieldKind::TransferEncoding => {
                    for coding in list(line.value) {
                        // `chunked` comes last and once (RFC 9112 section 6.1).
                        if fields.chunked
                            || coding.eq_ignore_ascii_case(b"identity")
                            || !is_token(coding)
                        {
                            return Err(Reject::bad("bad_transfer_encoding"));
                        }
                        fields.chunked = coding.eq_ignore_ascii_case(b"chunked");
                        coded |= !fields.chunked;
                    }
                }
                FieldKind::Connection => {
                    for option in list(line.value) {
                        match option {
                            b"" => {}
                            o if o.eq_ignore_ascii_case(b"close") => fields.close = true,
                            o if o.eq_ignore_ascii_case(b"keep-alive") => fields.keep_alive = true,
                            o if o.eq_ignore_ascii_case(b"upgrade") => upgrade_option = true,
                            _ => options += 1,
                        }
                    }
                }
                FieldKind::Te => {
                    fields.trailers |=
                        list(line.value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
                }
                FieldKind::Upgrade => {
                    upgrade_field = true;
                    fields.protocol |= list(line.value).any(passes_upgrade);
                }
                _ => {}
            }
        }
        if options > MAX_OPTIONS {
            return Err(Reject::bad("too_many_connection_options"));
        }
        if (fields.chunked || coded) && fields.length.is_some() {
            return Err(Reject::bad("length_with_transfer_encoding"));
        }
        if coded {
            return Err(Reject {
                status: 501,
                reason: "unknown_transfer_encoding",
            });
        }
        fields.kinds = room;
        fields.lists = options > 0;
        // `Upgrade` exists in HTTP/1.1 only (RFC 9110 section 7.8).
        fields.upgrade = upgrade_field && upgrade_option && version == Version::H11;
        Ok(fields)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FieldKind, &'h Header<'b>)> {
        self.kinds.iter().copied().zip(self.lines)
    }

    /// Whether `Connection` lists this field, so that it is for this hop only.
    pub(super) fn is_listed(&self, name: &str) -> bool {
        self.lists
            && self
                .iter()
                .filter(|(kind, _)| *kind == FieldKind::Connection)
                .any(|(_, line)| {
                    list(line.value).any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
                })
    }
}

fn content_length(value: &[u8]) -> Result<(&[u8], u64), Reject> {
    const BAD: Reject = Reject::bad("bad_content_length");
    let zeros = value.iter().take_while(|&&b| b == b'0').count();
    // A value of only zeros keeps one of them.
    let digits = value
        .get(zeros.min(value.len().saturating_sub(1))..)
        .unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let number = digits.iter().try_fold(0i64, |n, &d| {
        n.checked_mul(10)?.checked_add(i64::from(d - b'0'))
    });
    number.map(|n| (digits, n.unsigned_abs())).ok_or(BAD)
}

/// Whether an element of a request's `Upgrade` is forwarded: a protocol's name, with or without a
/// version (RFC 9110 section 7.8), but not h2c. Behind an endpoint that grants h2c, the connection
/// would be a tunnel, in which the client itself says what `X-Forwarded-*` says. RFC 9113 has
/// removed this upgrade, and a client that offers it goes on with HTTP/1.1. What is no name is
/// dropped, too, because an endpoint may read h2c in it.
pub(super) fn passes_upgrade(protocol: &[u8]) -> bool {
    let mut parts = protocol.splitn(2, |&b| b == b'/');
    let name = parts.next().unwrap_or_default();
    is_token(name) && parts.next().is_none_or(is_token) && !name.eq_ignore_ascii_case(b"h2c")
}

/// Appends an `Upgrade` line with the elements that [`passes_upgrade`] lets pass, or nothing if
/// there are none.
pub(super) fn write_upgrade(out: &mut Vec<u8>, line: &Header<'_>) {
    if list(line.value).all(passes_upgrade) {
        return write_line(out, line.name, line.value);
    }
    let passed: Vec<&[u8]> = list(line.value).filter(|it| passes_upgrade(it)).collect();
    if !passed.is_empty() {
        write_line(out, line.name, &passed.join(&b", "[..]));
    }
}

/// Whether credentials or challenges name a scheme that authenticates the connection, and with it
/// every later request on it (RFC 4559 section 4; MS-NTHT and MS-WSMV for the others). The test is
/// for the beginning of a name, so that `Nego2` and what may follow it count, too. A comma in a
/// quoted string may give a false yes, which costs one connection and no more.
pub(super) fn binds_connection(value: &[u8]) -> bool {
    const SCHEMES: [&[u8]; 4] = [b"NTLM", b"Nego", b"Kerberos", b"CredSSP"];
    list(value).any(|element| {
        SCHEMES.iter().any(|scheme| {
            let name = element.get(..scheme.len());
            name.is_some_and(|name| name.eq_ignore_ascii_case(scheme))
        })
    })
}

/// A status of gRPC. What is none is UNKNOWN, as its clients take it.
pub(super) fn grpc_status(value: &[u8]) -> u8 {
    let number = std::str::from_utf8(value)
        .ok()
        .and_then(|it| it.parse().ok());
    number.filter(|it| *it <= 16).unwrap_or(2)
}

/// The elements of a comma-separated list, without the whitespace around them.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&b| b == b',')
        .map(|element| element.trim_ascii())
}

pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_tchar)
}

/// Whether a byte may be in a token (RFC 9110 section 5.6.2).
pub(super) fn is_tchar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Appends one canonical field line.
pub(super) fn write_line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

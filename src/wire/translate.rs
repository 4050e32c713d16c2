//! Messages of HTTP/2 as canonical HTTP/1.1 text, and back (RFC 9113 section 8).
//!
//! Ebbtide serves a stream of HTTP/2 as it serves a connection of HTTP/1 that carries one request. So
//! every rule for requests stands in one place. What an HTTP/2 peer says becomes text here, and then
//! meets the strict parser of `head.rs`, as if an HTTP/1 peer had sent it. What goes back is text that
//! `head.rs` has written.
//!
//! Invariant: no byte of an HTTP/2 message can end a line of the text, or begin another message in it.

use std::io::Write;
use std::mem::MaybeUninit;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};

use crate::wire::fields::{Lines, MAX_HEADERS, list, write_line};
use crate::wire::message::{Framing, Reject};

/// What a request asks for beside its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// An answer of this proxy must be one of gRPC.
    pub grpc: bool,
    /// The stream is to become a tunnel of this kind.
    pub tunnel: Option<Tunnel>,
}

/// A head that was read from text.
#[derive(Debug)]
pub struct Read<T> {
    /// The head.
    pub head: T,
    /// How the text of its body ends.
    pub framing: Framing,
    /// Bytes of the text that the head took.
    pub length: usize,
    /// The sender ends its connection behind this message.
    pub is_last: bool,
}

/// How a stream becomes a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// CONNECT (RFC 9113 section 8.5).
    Connect,
    /// Extended CONNECT for WebSocket (RFC 8441), which is an upgrade in HTTP/1.1.
    WebSocket,
}

/// Appends a request head as text. `ends`: no body follows. `protocol`: what an extended CONNECT
/// asks for.
///
/// # Errors
/// The request cannot be text of HTTP/1.1: 400, or 501 for a protocol that is not WebSocket. Nothing
/// was appended.
pub fn write_request(
    request: &Request<()>,
    protocol: Option<&str>,
    ends: bool,
    out: &mut Vec<u8>,
) -> Result<(Framing, Wanted), Reject> {
    let (uri, fields) = (request.uri(), request.headers());
    let authority = uri.authority().map(|it| it.as_str());
    let host = fields.get(header::HOST).map(|it| it.as_bytes());
    if let (Some(authority), Some(host)) = (authority, host)
        && !authority.as_bytes().eq_ignore_ascii_case(host)
    {
        return Err(Reject::bad("host_mismatch"));
    }
    let tunnel = match (request.method() == Method::CONNECT, protocol) {
        (true, None) => Some(Tunnel::Connect),
        (true, Some("websocket")) => Some(Tunnel::WebSocket),
        (true, Some(_)) => {
            return Err(Reject {
                status: 501,
                reason: "connect_refused",
            });
        }
        (false, _) => None,
    };
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    let target = match tunnel {
        Some(Tunnel::Connect) => authority.ok_or(Reject::bad("missing_host"))?,
        _ => path,
    };
    // The strict parser refuses the rest. But it must not read two lines where one was meant.
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Reject::bad("bad_target"));
    }
    let method = match tunnel {
        Some(Tunnel::WebSocket) => "GET",
        _ => request.method().as_str(),
    };
    let length = fields.get_all(header::CONTENT_LENGTH).iter().next();
    let framing = match (tunnel, length.and_then(number)) {
        (Some(_), _) => Framing::None,
        (None, _) if ends => Framing::None,
        (None, Some(length)) => Framing::Counted(length),
        (None, None) => Framing::Chunked,
    };
    for part in [method, " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if let (Some(authority), None) = (authority, host) {
        write_line(out, "host", authority.as_bytes());
    }
    for (name, value) in fields {
        let is_crumb = name == header::COOKIE || is_hop(name);
        let is_framing = tunnel.is_some()
            && (name == header::CONTENT_LENGTH || name == header::SEC_WEBSOCKET_KEY);
        if !is_crumb && !is_framing {
            write_line(out, name.as_str(), value.as_bytes());
        }
    }
    write_cookies(fields, out);
    if fields.get(header::TE).is_some_and(|te| te == "trailers") {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    match tunnel {
        Some(Tunnel::WebSocket) => {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
            // HTTP/2 needs no key. An HTTP/1.1 server does, and nobody reads its answer to it.
            out.extend_from_slice(b"sec-websocket-key: ZWJidGlkZS1lYmJ0aWRlIQ==\r\n");
        }
        _ if framing == Framing::Chunked => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
    let grpc = is_grpc(fields);
    Ok((framing, Wanted { grpc, tunnel }))
}

/// Cookies may come in crumbs, which are joined for HTTP/1.1 (RFC 9113 section 8.2.3).
fn write_cookies(fields: &HeaderMap, out: &mut Vec<u8>) {
    let mut between: &[u8] = b"cookie: ";
    for crumb in fields.get_all(header::COOKIE) {
        out.extend_from_slice(between);
        out.extend_from_slice(crumb.as_bytes());
        between = b"; ";
    }
    if between == b"; " {
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads a request head that `head.rs` has written, and returns how many bytes it took. `None`: its end
/// is still to come. The scheme is `http` unless `https` is set.
///
/// # Errors
/// HTTP/2 has no such request: its target is none of RFC 3986.
///
/// A request for a WebSocket keeps its field `Upgrade`: see [`connect_websocket`].
pub fn read_request(text: &[u8], https: bool) -> Result<Option<Read<Request<()>>>, Reject> {
    const BAD: Reject = Reject::bad("bad_target");
    let mut lines: Lines<'_> = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let read = parsed.parse_with_uninit_headers(text, &mut lines);
    let httparse::Status::Complete(length) = read.map_err(|_| Reject::bad("bad_request_line"))?
    else {
        return Ok(None);
    };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes());
    let method = method.map_err(|_| Reject::bad("bad_request_line"))?;
    let target = parsed.path.unwrap_or_default();
    let (fields, framing) = read_fields(parsed.headers);
    let is_last = fields.closes;
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    let host = fields.host.unwrap_or_default();
    let uri = match method == Method::CONNECT {
        true => Uri::builder().authority(target),
        false => Uri::builder()
            .scheme(if https { "https" } else { "http" })
            .authority(host)
            .path_and_query(target),
    };
    *request.uri_mut() = uri.build().map_err(|_| BAD)?;
    *request.method_mut() = method;
    *request.headers_mut() = fields.map;
    if fields.trailers {
        let value = HeaderValue::from_static("trailers");
        request.headers_mut().insert(header::TE, value);
    }
    if fields.websocket && *request.method() == Method::GET {
        let value = HeaderValue::from_static("websocket");
        request.headers_mut().insert(header::UPGRADE, value);
    }
    Ok(Some(Read {
        head: request,
        framing,
        length,
        is_last,
    }))
}

/// Takes the wish for a WebSocket out of a request that was read from text. If the receiver knows extended
/// CONNECT, the request becomes one (RFC 8441 section 5), and what a granted upgrade is answered with is
/// returned. Otherwise it stays an ordinary request, as one whose upgrade is not granted.
pub fn connect_websocket(request: &mut Request<()>, is_known: bool) -> Option<String> {
    request.headers_mut().remove(header::UPGRADE)?;
    if !is_known {
        return None;
    }
    *request.method_mut() = Method::CONNECT;
    let key = request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
    let key = key.as_ref().map_or(&[][..], HeaderValue::as_bytes);
    // RFC 6455 section 4.2.2.
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    Some(BASE64_STANDARD.encode(hash))
}

/// Appends the head of the answer that grants an upgrade to a WebSocket, where an extended CONNECT has
/// had this answer. `accept` comes from [`connect_websocket`].
pub fn write_websocket(fields: &HeaderMap, accept: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    for (name, value) in fields {
        if !is_hop(name) && name != header::CONTENT_LENGTH && name != header::SEC_WEBSOCKET_ACCEPT {
            write_line(out, name.as_str(), value.as_bytes());
        }
    }
    write_line(out, "sec-websocket-accept", accept.as_bytes());
    out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n");
}

/// Appends a response head as text. `ends`: no body follows. `head_only`: the request was HEAD.
pub fn write_response(
    status: StatusCode,
    fields: &HeaderMap,
    ends: bool,
    head_only: bool,
    out: &mut Vec<u8>,
) -> Framing {
    _ = write!(out, "HTTP/1.1 {} \r\n", status.as_u16());
    let length = fields.get(header::CONTENT_LENGTH).and_then(number);
    let bodiless = head_only || status.is_informational() || status == 204 || status == 304;
    let framing = match length {
        _ if bodiless => Framing::None,
        _ if ends => Framing::Counted(0),
        // A counted body has no trailers, and gRPC needs them.
        Some(length) if !is_grpc(fields) => Framing::Counted(length),
        _ => Framing::Chunked,
    };
    for (name, value) in fields {
        let is_length = name == header::CONTENT_LENGTH;
        let keeps_length = bodiless || matches!(framing, Framing::Counted(1..));
        if !is_hop(name) && (!is_length || keeps_length) {
            write_line(out, name.as_str(), value.as_bytes());
        }
    }
    match framing {
        Framing::Counted(0) => out.extend_from_slice(b"content-length: 0\r\n"),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
    if !status.is_informational() {
        // A stream carries one request.
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Reads a response head that `head.rs` or `answer.rs` has written, and returns how many bytes it took.
/// `None`: its end is still to come. The framing is that of its fields: the caller knows of HEAD and of
/// tunnels.
///
/// # Errors
/// The head is not one of theirs.
pub fn read_response(text: &[u8]) -> Result<Option<Read<Response<()>>>, Reject> {
    const BAD: Reject = Reject {
        status: 502,
        reason: "bad_status_line",
    };
    let mut lines: Lines<'_> = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let read = config.parse_response_with_uninit_headers(&mut parsed, text, &mut lines);
    let httparse::Status::Complete(length) = read.map_err(|_| BAD)? else {
        return Ok(None);
    };
    let mut response = Response::new(());
    let code = parsed.code.unwrap_or_default();
    *response.status_mut() = StatusCode::from_u16(code).map_err(|_| BAD)?;
    *response.version_mut() = Version::HTTP_2;
    let (fields, framing) = read_fields(parsed.headers);
    let is_last = fields.closes;
    *response.headers_mut() = fields.map;
    let framing = match framing {
        // 304 may say how long the answer to a GET without conditions is (RFC 9110 section 8.6).
        _ if matches!(code, 100..200 | 204 | 304) => Framing::None,
        Framing::None => Framing::UntilClose,
        framing => framing,
    };
    Ok(Some(Read {
        head: response,
        framing,
        length,
        is_last,
    }))
}

/// Appends the end of a chunked body, with these trailers.
pub fn write_last_chunk(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten().filter(|(it, _)| !is_hop(it)) {
        write_line(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a message is one of gRPC.
pub fn is_grpc(fields: &HeaderMap) -> bool {
    let kind = fields.get(header::CONTENT_TYPE).map(|it| it.as_bytes());
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
        && !kind.is_some_and(|kind| kind.starts_with(b"application/grpc-web"))
}

/// The fields of a message without those of one hop.
struct ReadFields<'a> {
    map: HeaderMap,
    host: Option<&'a [u8]>,
    trailers: bool,
    /// An upgrade to a WebSocket is asked for.
    websocket: bool,
    /// `Connection: close`.
    closes: bool,
}

fn read_fields<'a>(lines: &[httparse::Header<'a>]) -> (ReadFields<'a>, Framing) {
    let mut fields = ReadFields {
        map: HeaderMap::with_capacity(lines.len()),
        host: None,
        trailers: false,
        websocket: false,
        closes: false,
    };
    let mut framing = Framing::None;
    for line in lines {
        let Ok(name) = HeaderName::from_bytes(line.name.as_bytes()) else {
            continue;
        };
        match name {
            header::HOST => fields.host = Some(line.value),
            header::TRANSFER_ENCODING => framing = Framing::Chunked,
            header::CONNECTION => {
                fields.closes |= list(line.value).any(|it| it.eq_ignore_ascii_case(b"close"));
            }
            header::TE => fields.trailers = list(line.value).any(|it| it == b"trailers"),
            header::UPGRADE => {
                let is = |it: &[u8]| it.eq_ignore_ascii_case(b"websocket");
                fields.websocket = list(line.value).any(is);
            }
            _ if is_hop(&name) => {}
            name => {
                // A line's value has none of the bytes that a field's may not have.
                let Ok(value) = HeaderValue::from_bytes(line.value) else {
                    continue;
                };
                if name == header::CONTENT_LENGTH {
                    framing = number(&value).map_or(framing, Framing::Counted);
                }
                fields.map.append(name, value);
            }
        }
    }
    (fields, framing)
}

/// Fields that HTTP/2 does not have (RFC 9113 section 8.2.2), and `TE`, which is written apart.
fn is_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::TE
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "http2-settings"
        )
}

fn number(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}

/// Reads a chunked body that `body.rs` has written, piece by piece.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
    /// Bytes that are left of the chunk, or its size as far as it is read.
    left: u64,
    /// The trailer section as far as it is read.
    trailers: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data,
    /// Behind the data of a chunk.
    Gap,
    Trailers,
    Done,
}

/// What comes next in a chunked body.
#[derive(Debug)]
pub enum Piece {
    /// This many bytes of the payload. The caller takes as many as it can, see [`Chunks::took`].
    Data(usize),
    /// The body is done.
    End(Option<HeaderMap>),
    /// The input ends here.
    More,
}

impl Chunks {
    /// Reads lines of chunks up to the next piece of payload. Returns how many bytes these were, and
    /// what stands behind them.
    ///
    /// `None`: the text is not canonical.
    pub fn next(&mut self, input: &[u8]) -> Option<(usize, Piece)> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::Size => match byte {
                    b'\n' if self.left == 0 => self.state = State::Trailers,
                    b'\n' => self.state = State::Data,
                    b'\r' => {}
                    _ => {
                        let digit = char::from(byte).to_digit(16)?;
                        let next = self.left.checked_mul(16)?;
                        self.left = next + u64::from(digit);
                    }
                },
                State::Data => {
                    let rest = input.len() - at;
                    let data = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                    return Some((at, Piece::Data(data)));
                }
                State::Gap if byte == b'\n' => self.state = State::Size,
                State::Gap => {}
                State::Trailers => {
                    self.trailers.push(byte);
                    if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
                        self.state = State::Done;
                        return Some((at + 1, Piece::End(self.read_trailers())));
                    }
                }
                State::Done => return None,
            }
            at += 1;
        }
        Some((at, Piece::More))
    }

    /// The caller has taken this much of the payload.
    pub fn took(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n as u64);
        if self.left == 0 {
            self.state = State::Gap;
        }
    }

    fn read_trailers(&mut self) -> Option<HeaderMap> {
        let text = std::mem::take(&mut self.trailers);
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(&text, &mut lines)
        else {
            return None;
        };
        let (fields, _) = read_fields(lines);
        (!fields.map.is_empty()).then_some(fields.map)
    }
}

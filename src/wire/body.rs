//! Bodies of messages: one decoder for every framing (contract 4). Its memory is bounded, and its
//! output does not depend on how the network split the input.
//!
//! Chunks are read by a state machine of this file (RFC 9112 section 7.1), because
//! `httparse::parse_chunk_size` takes an empty line for a zero, accepts NUL in extensions and
//! accepts sizes up to 2^64-1. Chunk sizes are kept. Extensions are validated and removed. So the
//! same chunked input always gives the same output bytes. Where the bytes come from and where they
//! go is left out.

use httparse::EMPTY_HEADER;

use crate::wire::buffer::make_room;
use crate::wire::fields::{FieldKind, MAX_HEADERS, grpc_status, kind, write_line};
use crate::wire::message::{Emit, Framing, Limits, Reject};

/// The largest chunk in bytes. An `f64` counts up to it exactly. It is far above any real chunk and
/// far below an overflow.
const MAX_CHUNK: u64 = 1 << 53;
/// Digits of a chunk's size, including leading zeros.
const MAX_DIGITS: u16 = 16;
/// Bytes that are written around a payload that comes without chunks, at most.
const CHUNK_LINES: usize = 32;
/// Bytes of one chunk's extensions, at most.
const MAX_EXTENSION: u16 = 256;

/// Decodes one body. It must not be used again after an error.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    /// Bytes that are left: of the body if its length is known, else of the chunk.
    remaining: u64,
    /// Digits or extension bytes of the current chunk line so far.
    line: u16,
    /// Status of a [`Reject`]: 400 for a client's body, 502 for an endpoint's.
    fault: u16,
    limits: Limits,
    /// The trailer section so far, at most `limits.head_size` bytes.
    trailers: Vec<u8>,
    tiny_chunks: bool,
    /// Bytes of payload in chunks so far.
    payload: u64,
    grpc_status: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Counted,
    UntilClose,
    Size,
    Extension(Extension),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// The places in `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extension {
    /// Whitespace after the size or a value. Only another extension may follow.
    Gap,
    NameStart,
    Name,
    NameEnd,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    /// A quoted value has ended.
    ValueEnd,
}

impl BodyDecoder {
    /// Makes a decoder. `fault` is the status of a [`Reject`]: 400 for a client's body, 502 for an
    /// endpoint's. `limits` bound the trailers.
    pub fn new(framing: Framing, limits: &Limits, fault: u16) -> Self {
        let (state, remaining) = match framing {
            Framing::None | Framing::Counted(0) => (State::Done, 0),
            Framing::Counted(length) => (State::Counted, length),
            Framing::Chunked => (State::Size, 0),
            Framing::UntilClose => (State::UntilClose, 0),
        };
        Self {
            state,
            remaining,
            line: 0,
            fault,
            limits: *limits,
            trailers: Vec::new(),
            tiny_chunks: false,
            payload: 0,
            grpc_status: None,
        }
    }

    /// Decodes the part of `input` that belongs to this body and appends to `out` what is to be
    /// forwarded. Returns the number of bytes taken: all of them, or fewer if the body is done.
    ///
    /// # Errors
    /// The body breaks the rules or the limits. The connection cannot be used again then.
    pub fn decode(&mut self, input: &[u8], emit: Emit, out: &mut Vec<u8>) -> Result<usize, Reject> {
        let (mut taken, mut lines) = (0, 0);
        make_room(out, input.len() + CHUNK_LINES);
        while let Some(&byte) = input.get(taken) {
            match self.state {
                State::Done => break,
                State::Counted | State::UntilClose => {
                    let length = self.pass(input.len() - taken);
                    self.write_whole(
                        input.get(taken..taken + length).unwrap_or_default(),
                        emit,
                        out,
                    );
                    taken += length;
                }
                State::Data => {
                    let rest = input.len() - taken;
                    let length = usize::try_from(self.remaining)
                        .map_or(rest, |remaining| remaining.min(rest));
                    out.extend_from_slice(input.get(taken..taken + length).unwrap_or_default());
                    self.remaining -= length as u64;
                    self.payload += length as u64;
                    if self.remaining == 0 {
                        self.state = State::DataCr;
                    }
                    taken += length;
                }
                State::Trailers => {
                    let n =
                        self.trailer_bytes(input.get(taken..).unwrap_or_default(), emit, out)?;
                    taken += n;
                    lines += n;
                }
                _ => {
                    taken += 1;
                    lines += 1;
                    self.chunk_byte(byte, emit, out)?;
                }
            }
        }
        self.tiny_chunks = lines > taken / 2;
        Ok(taken)
    }

    /// Whether the last input was more chunk lines and trailers than payload.
    pub fn has_tiny_chunks(&self) -> bool {
        self.tiny_chunks
    }

    /// For `Counted` and `UntilClose`: how many of the next `length` bytes belong to the body. They
    /// count as taken, and the caller forwards them unchanged. For other framings: 0.
    pub fn pass(&mut self, length: usize) -> usize {
        match self.state {
            State::UntilClose => length,
            State::Counted => {
                let length = usize::try_from(self.remaining)
                    .map_or(length, |remaining| remaining.min(length));
                self.remaining -= length as u64;
                if self.remaining == 0 {
                    self.state = State::Done;
                }
                length
            }
            _ => 0,
        }
    }

    /// Whether the whole body has been decoded.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes that the decoder holds: a trailer section that has not ended.
    pub fn held(&self) -> usize {
        self.trailers.len()
    }

    /// How much payload has come in chunks.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    /// Bytes that are still to come, if the framing gives their number.
    pub fn remaining(&self) -> Option<u64> {
        matches!(self.state, State::Counted | State::Done).then_some(self.remaining)
    }

    /// Notes that the sender has closed its side.
    ///
    /// # Errors
    /// The body has not ended. The receiver must see a cut.
    pub fn eof(&mut self, emit: Emit, out: &mut Vec<u8>) -> Result<(), Reject> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                if emit == Emit::Chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                Ok(())
            }
            _ => Err(self.reject("truncated_body")),
        }
    }

    /// Writes payload that came without chunks.
    fn write_whole(&self, payload: &[u8], emit: Emit, out: &mut Vec<u8>) {
        match emit {
            Emit::Identity => out.extend_from_slice(payload),
            Emit::Chunked => {
                write_size(payload.len() as u64, out);
                out.extend_from_slice(payload);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Decodes one byte between two pieces of payload.
    fn chunk_byte(&mut self, byte: u8, emit: Emit, out: &mut Vec<u8>) -> Result<(), Reject> {
        self.state = match (self.state, byte) {
            (State::Size, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.remaining = self.remaining << 4 | u64::from(digit);
                self.line += 1;
                if self.line > MAX_DIGITS || self.remaining > MAX_CHUNK {
                    return Err(self.reject("chunk_too_large"));
                }
                State::Size
            }
            (State::Size, _) if self.line == 0 => return Err(self.reject("bad_chunk_size")),
            (State::Size, b'\r') => State::SizeLf,
            (State::Size, b';' | b' ' | b'\t') => {
                self.line = 0;
                State::Extension(
                    Extension::Gap
                        .next(byte)
                        .ok_or(self.reject("bad_chunk_size"))?,
                )
            }
            (State::Size, _) => return Err(self.reject("bad_chunk_size")),
            (State::Extension(place), b'\r') if place.may_end() || self.is_lenient() => {
                State::SizeLf
            }
            (State::Extension(place), _) => {
                self.line += 1;
                if self.line >= MAX_EXTENSION {
                    return Err(self.reject("chunk_extension_too_long"));
                }
                let next = match self.is_lenient() {
                    true => (byte == b'\t' || !byte.is_ascii_control()).then_some(place),
                    false => place.next(byte),
                };
                State::Extension(next.ok_or(self.reject("bad_chunk_extension"))?)
            }
            (State::SizeLf, b'\n') => {
                self.line = 0;
                match self.remaining {
                    // The last chunk is withheld until the trailers are complete and valid. A
                    // receiver could take it for the end.
                    0 => State::Trailers,
                    size => {
                        if emit == Emit::Chunked {
                            write_size(size, out);
                        }
                        State::Data
                    }
                }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                if emit == Emit::Chunked {
                    out.extend_from_slice(b"\r\n");
                }
                State::Size
            }
            _ => return Err(self.reject("bad_chunk_end")),
        };
        Ok(())
    }

    /// Takes a line of the trailer section up to its end, or one byte of the line's end. An empty
    /// line ends the section. Returns the number of bytes taken.
    fn trailer_bytes(
        &mut self,
        input: &[u8],
        emit: Emit,
        out: &mut Vec<u8>,
    ) -> Result<usize, Reject> {
        let text = input
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n'))
            .unwrap_or(input.len());
        let piece = input.get(..text.max(1)).unwrap_or(input);
        let room = self.limits.head_size.saturating_sub(self.trailers.len());
        if room > 0 && (self.trailers.last() == Some(&b'\r')) != (piece == b"\n") {
            return Err(self.reject("bad_trailer"));
        }
        if room < piece.len() {
            return Err(self.reject("trailers_too_large"));
        }
        self.trailers.extend_from_slice(piece);
        if text == 0 && (self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n")) {
            self.write_trailers(emit, out)?;
            self.trailers = Vec::new();
            self.state = State::Done;
        }
        Ok(piece.len())
    }

    /// Forwards the trailers that a recipient may use. A trailer that would frame or route the
    /// message if it were a header is refused in a request. In a response it is dropped, as a
    /// trailer for one hop or with a claim about the client is (RFC 9110 section 6.5.1).
    fn write_trailers(&mut self, emit: Emit, out: &mut Vec<u8>) -> Result<(), Reject> {
        let mut lines = [EMPTY_HEADER; MAX_HEADERS];
        let room = self.limits.headers.min(MAX_HEADERS);
        let parsed = httparse::parse_headers(&self.trailers, &mut lines[..room]);
        let Ok(httparse::Status::Complete((_, lines))) = parsed else {
            return Err(self.reject("bad_trailer"));
        };
        let frames = |name| {
            let framing = [
                FieldKind::ContentLength,
                FieldKind::TransferEncoding,
                FieldKind::Host,
            ];
            framing.contains(&kind(name))
        };
        if !self.is_lenient() && lines.iter().any(|line| frames(line.name)) {
            return Err(self.reject("forbidden_trailer"));
        }
        let status = lines
            .iter()
            .find(|line| kind(line.name) == FieldKind::GrpcStatus);
        self.grpc_status = status.map(|line| grpc_status(line.value));
        if emit == Emit::Chunked {
            make_room(out, self.trailers.len() + CHUNK_LINES);
            out.extend_from_slice(b"0\r\n");
            for line in lines.iter().filter(|line| {
                matches!(kind(line.name), FieldKind::EndToEnd | FieldKind::GrpcStatus)
            }) {
                write_line(out, line.name, line.value);
            }
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// The `grpc-status` of the trailers.
    pub fn grpc_status(&self) -> Option<u8> {
        self.grpc_status
    }

    /// Whether the body is an endpoint's. What servers write behind a chunk's size is not forwarded
    /// and cannot be read in two ways, as long as no control byte is in it (contract 4.3).
    fn is_lenient(&self) -> bool {
        self.fault == 502
    }

    fn reject(&self, reason: &'static str) -> Reject {
        Reject {
            status: self.fault,
            reason,
        }
    }
}

fn write_size(size: u64, out: &mut Vec<u8>) {
    let digits = (u64::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (4 * at) & 15) as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

impl Extension {
    /// The place after `byte`; `None` if `byte` may not stand here.
    fn next(self, byte: u8) -> Option<Self> {
        use Extension::*;
        let blank = matches!(byte, b' ' | b'\t');
        let token = super::fields::is_tchar(byte);
        Some(match self {
            Gap | NameEnd | Name | Value | ValueEnd if byte == b';' => NameStart,
            Name | NameEnd if byte == b'=' => ValueStart,
            NameStart | Name if token => Name,
            ValueStart | Value if token => Value,
            ValueStart if byte == b'"' => Quoted,
            Quoted if byte == b'"' => ValueEnd,
            Quoted if byte == b'\\' => Escaped,
            Quoted | Escaped if blank || byte.is_ascii_graphic() || byte >= 0x80 => Quoted,
            Gap | NameStart | NameEnd | ValueStart if blank => self,
            Name if blank => NameEnd,
            Value | ValueEnd if blank => Gap,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Value | Self::ValueEnd)
    }
}

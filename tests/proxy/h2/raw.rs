//! A peer of HTTP/2 by hand. Its frames are in `tests/support/frames.rs`.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, frame,
};
use crate::support::wait::soon;

pub const GOAWAY: u8 = 7;
pub const ACK: u8 = 1;
pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Debug, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The four bytes at `at` of the payload: an error code, or a stream's number.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// A connection of HTTP/2.
pub struct Raw {
    pub stream: TcpStream,
    /// The last stream and the reason of each GOAWAY so far.
    pub goaways: Vec<(u32, u32)>,
    /// Pings are answered.
    pub pongs: bool,
}

impl Raw {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            goaways: Vec::new(),
            pongs: true,
        }
    }

    /// Connects as a client, with settings that are not acknowledged by anybody but the proxy.
    pub async fn connect(to: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let mut raw = Self::new(stream);
        raw.send(SETTINGS, 0, 0, b"").await;
        raw
    }

    /// Accepts the proxy's connection as an endpoint, with these settings. `None`: it has ended
    /// without a byte, so it was a join check.
    pub async fn accept(mut stream: TcpStream, settings: &[(u16, u32)]) -> Option<Self> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await.ok()?;
        assert_eq!(preface, PREFACE);
        let mut raw = Self::new(stream);
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        raw.send(SETTINGS, 0, 0, &payload).await;
        // Room for all bodies of a scenario.
        raw.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes())
            .await;
        Some(raw)
    }

    /// Sends a frame. A peer that has ended the connection is noticed by what is read.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let _ = self
            .stream
            .write_all(&frame(kind, flags, stream, payload))
            .await;
    }

    /// Sends a whole field block.
    pub async fn headers(&mut self, stream: u32, fields: &[(&[u8], &[u8])], ends: bool) {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(fields)).await;
    }

    /// Sends a whole answer of two bytes.
    pub async fn answer(&mut self, stream: u32) {
        self.headers(stream, &[(b":status", b"200")], false).await;
        self.send(DATA, END_STREAM, stream, b"ok").await;
    }

    /// Says GOAWAY.
    pub async fn go_away(&mut self, last: u32, reason: u32) {
        let payload = [last.to_be_bytes(), reason.to_be_bytes()].concat();
        self.send(GOAWAY, 0, 0, &payload).await;
    }

    /// Ends a stream by RST_STREAM.
    pub async fn reset(&mut self, stream: u32, reason: u32) {
        self.send(RST_STREAM, 0, stream, &reason.to_be_bytes())
            .await;
    }

    /// The next frame. Settings and pings are acknowledged, and returned too. `None`: the connection
    /// has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        soon("a frame", self.read()).await
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        let frame = Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        };
        match (frame.kind, frame.flags) {
            (SETTINGS, 0) => self.send(SETTINGS, ACK, 0, b"").await,
            (PING, 0) if self.pongs => self.send(PING, ACK, 0, &frame.payload).await,
            (GOAWAY, _) => self.goaways.push((frame.number(0), frame.number(4))),
            _ => {}
        }
        Some(frame)
    }

    /// The next frame for which this holds. The connection must not end before.
    pub async fn until(&mut self, what: &str, is_it: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let next = soon(what, self.read()).await;
            let frame = next.unwrap_or_else(|| panic!("the connection ended before {what}"));
            if is_it(&frame) {
                return frame;
            }
        }
    }

    /// The next request's stream.
    pub async fn request(&mut self) -> u32 {
        self.until("a request", |it| it.kind == HEADERS)
            .await
            .stream
    }
}

/// The status that a response's field block begins with, as `h2` encodes it: from the static table, or
/// as a literal in Huffman's code (RFC 7541, appendices A and B).
pub fn status(block: &[u8]) -> u16 {
    match block[0] {
        short @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(short - 0x88)],
        0x48 => {
            assert_eq!(block[1] & 0x80, 0x80, "a status in Huffman's code");
            let length = usize::from(block[1] & 0x7f);
            let bits = block[2..2 + length].iter();
            let mut bits =
                bits.flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
            let mut status = 0;
            for _ in 0..3 {
                let mut code = bits.by_ref().take(5).fold(0, |code, bit| code << 1 | bit);
                // 0, 1 and 2 have five bits, the other digits six.
                if code > 2 {
                    code = (code << 1 | bits.next().unwrap()) - 0x19 + 3;
                }
                status = status * 10 + code;
            }
            status
        }
        other => panic!("{other:#x} is no status"),
    }
}

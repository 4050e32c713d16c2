//! One direction of a stream's body: DATA frames as text of HTTP/1, and back.
//!
//! Invariant: no more is taken from the reader of one side than the other side has room for, so a
//! stream holds at most its window, in frames of whatever size.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use crate::wire::message::{Framing, Reject};
use crate::wire::translate::{Chunks, Piece, Read, write_last_chunk};

/// A body that comes in DATA frames, read as text.
#[derive(Debug)]
pub(super) struct Inflow {
    recv: RecvStream,
    chunked: bool,
    /// Lines around a chunk, before `data`.
    text: Vec<u8>,
    /// What is left of a DATA frame.
    data: Bytes,
    /// What has come behind `data` and was gathered.
    gathered: Vec<u8>,
    ended: bool,
    /// What is still to be read of a declared length. `MAX`: none was declared.
    left: u64,
    /// Wakes the task that polled last.
    waker: Waker,
}

impl Inflow {
    pub(super) fn new(recv: RecvStream, framing: Framing) -> Self {
        Self {
            recv,
            chunked: framing == Framing::Chunked,
            text: Vec::new(),
            data: Bytes::new(),
            gathered: Vec::new(),
            ended: false,
            left: match framing {
                Framing::Counted(length) => length,
                _ => u64::MAX,
            },
            waker: Waker::noop().clone(),
        }
    }

    /// Takes what has come out of `h2`, which keeps a record of each frame: hundreds of bytes for a frame
    /// of one byte.
    fn gather(&mut self) {
        let mut cx = Context::from_waker(&self.waker);
        // An end and an error are found again by who reads.
        while let Poll::Ready(Some(Ok(data))) = self.recv.poll_data(&mut cx) {
            self.gathered.extend_from_slice(&data);
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if self.gathered.is_empty() {
            self.waker.clone_from(cx.waker());
            return self.recv.poll_data(cx);
        }
        let gathered = std::mem::take(&mut self.gathered);
        Poll::Ready(Some(Ok(gathered.into())))
    }

    /// Ready when there is something to read, or nothing will come.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while self.text.is_empty() && self.data.is_empty() && !self.ended {
            match ready!(self.poll_data(cx)).transpose()? {
                Some(data) if data.is_empty() => {}
                Some(data) => {
                    if self.chunked {
                        _ = write!(self.text, "{:x}\r\n", data.len());
                    }
                    self.data = data;
                }
                None => {
                    if self.chunked {
                        let trailers = ready!(self.recv.poll_trailers(cx))?;
                        write_last_chunk(trailers.as_ref(), &mut self.text);
                    }
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready unless only the end is still to come, which many clients send in a frame of its own.
    pub(super) fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.left {
            0 => self.poll_ready(cx).map(|_| ()),
            _ => Poll::Ready(()),
        }
    }

    /// Whether the body has not ended, or not all of its text is read.
    pub(super) fn has_more(&self) -> bool {
        !self.ended || !self.text.is_empty()
    }

    /// Reads once. 0: the body has ended.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<Result<usize, h2::Error>> {
        ready!(self.poll_ready(cx))?;
        let mut read = take(&mut self.text, room);
        if read < room.len() && !self.data.is_empty() {
            let n = self.data.len().min(room.len() - read);
            self.data.copy_to_slice(&mut room[read..read + n]);
            read += n;
            self.left = self.left.saturating_sub(n as u64);
            // It fails only where the connection has ended.
            let _ = self.recv.flow_control().release_capacity(n);
            if self.chunked && self.data.is_empty() {
                self.text.extend_from_slice(b"\r\n");
                read += take(&mut self.text, &mut room[read..]);
            }
        }
        Poll::Ready(Ok(read))
    }
}

/// The bodies that a connection receives.
#[derive(Debug, Default)]
pub(super) struct Bodies(RefCell<Vec<Weak<RefCell<Inflow>>>>);

impl Bodies {
    pub(super) fn add(&self, body: Inflow) -> Rc<RefCell<Inflow>> {
        let mut all = self.0.borrow_mut();
        if all.len() == all.capacity() {
            all.retain(|it| it.strong_count() > 0);
        }
        let body = Rc::new(RefCell::new(body));
        all.push(Rc::downgrade(&body));
        body
    }

    /// Joins the frames that nobody has read yet. `h2` ends a connection that holds too many small ones.
    pub(super) fn gather(&self) {
        for body in self.0.borrow().iter().filter_map(Weak::upgrade) {
            body.borrow_mut().gather();
        }
    }
}

/// Moves bytes from the beginning of `text`. A head's buffer is freed after its end, a chunk's line is so
/// short that its buffer is kept.
pub(super) fn take(text: &mut Vec<u8>, room: &mut [u8]) -> usize {
    let n = text.len().min(room.len());
    room[..n].copy_from_slice(&text[..n]);
    text.drain(..n);
    if text.is_empty() && text.capacity() > LINE {
        *text = Vec::new();
    }
    n
}

/// The beginning of a head that is written as text.
#[derive(Debug, Default)]
pub(super) struct Beginning(Vec<u8>);

impl Beginning {
    /// Reads a head from what has come of it and `bytes`. Returns how many of `bytes` were taken; all of
    /// them while the end of the head is still to come.
    pub(super) fn read<T>(
        &mut self,
        bytes: &[u8],
        read: impl Fn(&[u8]) -> Result<Option<Read<T>>, Reject>,
    ) -> Result<(usize, Option<Read<T>>), Reject> {
        if self.0.is_empty()
            && let Some(found) = read(bytes)?
        {
            return Ok((found.length, Some(found)));
        }
        let before = self.0.len();
        self.0.extend_from_slice(bytes);
        let Some(found) = read(&self.0)? else {
            return Ok((bytes.len(), None));
        };
        self.0 = Vec::new();
        Ok((found.length - before, Some(found)))
    }
}

/// A body that is written as text and goes out in DATA frames.
#[derive(Debug)]
pub(super) struct Outflow {
    send: SendStream<Bytes>,
    form: Form,
}

/// How a body's end is found in its text.
#[derive(Debug)]
enum Form {
    Counted(u64),
    Chunked(Chunks),
    /// The sender ends it: a tunnel, or a body that ends with its connection.
    Open,
    Done,
}

impl Outflow {
    /// A body of this framing. One without a body must end with its head.
    pub(super) fn new(send: SendStream<Bytes>, framing: Framing) -> Self {
        let form = match framing {
            Framing::None | Framing::Counted(0) => Form::Done,
            Framing::Counted(length) => Form::Counted(length),
            Framing::Chunked => Form::Chunked(Chunks::default()),
            Framing::UntilClose => Form::Open,
        };
        Self { send, form }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.form, Form::Done)
    }

    /// Writes once and returns how many bytes were taken. What follows the body is dropped.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let data = match &mut self.form {
                Form::Done => return Poll::Ready(Ok(bytes.len())),
                Form::Open => rest.len(),
                Form::Counted(left) => {
                    usize::try_from(*left).map_or(rest.len(), |it| it.min(rest.len()))
                }
                Form::Chunked(chunks) => {
                    let (lines, piece) = next(chunks, rest)?;
                    taken += lines;
                    match piece {
                        Piece::More => break,
                        Piece::Data(data) => data,
                        Piece::End(trailers) => {
                            self.finish(Bytes::new(), trailers)?;
                            continue;
                        }
                    }
                }
            };
            let room = match self.poll_room(cx, data) {
                Poll::Ready(room) => room?.min(data),
                Poll::Pending if taken > 0 => break,
                Poll::Pending => return Poll::Pending,
            };
            let rest = &bytes[taken..];
            taken += match self.form {
                Form::Chunked(_) => self.send_chunks(rest, room)?,
                _ => self.send_plain(&rest[..room])?,
            };
        }
        Poll::Ready(Ok(taken))
    }

    /// Sends a piece of a body without chunks. Returns its length.
    fn send_plain(&mut self, piece: &[u8]) -> io::Result<usize> {
        let mut ends = false;
        if let Form::Counted(left) = &mut self.form {
            *left -= piece.len() as u64;
            ends = *left == 0;
        }
        if ends {
            self.form = Form::Done;
        }
        let data = Bytes::copy_from_slice(piece);
        self.send.send_data(data, ends).map_err(broken)?;
        Ok(piece.len())
    }

    /// Sends chunks that have come together in one frame: a frame costs more than the byte that may be in
    /// it. There is room for `room` bytes. Returns how many bytes of the text were taken.
    fn send_chunks(&mut self, text: &[u8], mut room: usize) -> io::Result<usize> {
        let Form::Chunked(chunks) = &mut self.form else {
            return Ok(0);
        };
        let (mut piece, mut taken) = (Vec::with_capacity(room), 0);
        let end = loop {
            let (lines, next) = next(chunks, &text[taken..])?;
            taken += lines;
            let data = match next {
                Piece::Data(data) => data,
                Piece::More => break None,
                Piece::End(trailers) => break Some(trailers),
            };
            if piece.len() == room {
                self.send.reserve_capacity(room + data);
                room = self.send.capacity().min(room + data);
            }
            let n = data.min(room - piece.len());
            if n == 0 {
                break None;
            }
            piece.extend_from_slice(&text[taken..taken + n]);
            chunks.took(n);
            taken += n;
        };
        let piece = Bytes::from(piece);
        match end {
            Some(trailers) => self.finish(piece, trailers)?,
            None => self.send.send_data(piece, false).map_err(broken)?,
        }
        Ok(taken)
    }

    /// Ends a body with its last piece, which may be empty.
    fn finish(&mut self, piece: Bytes, trailers: Option<HeaderMap>) -> io::Result<()> {
        self.form = Form::Done;
        let Some(trailers) = trailers else {
            return self.send.send_data(piece, true).map_err(broken);
        };
        if !piece.is_empty() {
            self.send.send_data(piece, false).map_err(broken)?;
        }
        self.send.send_trailers(trailers).map_err(broken)
    }

    /// Ready when a write may take something.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.form {
            Form::Done => Poll::Ready(Ok(())),
            _ => self.poll_room(cx, 1).map_ok(drop),
        }
    }

    /// How many of `wanted` bytes may be sent now; at least one.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(wanted);
        loop {
            match self.send.capacity() {
                0 => {}
                room => return Poll::Ready(Ok(room)),
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(room) => _ = room.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    /// Ends an open body cleanly. Returns whether that was possible.
    pub(super) fn end(&mut self) -> bool {
        match self.form {
            Form::Open => {
                self.form = Form::Done;
                self.send.send_data(Bytes::new(), true).is_ok()
            }
            Form::Done => true,
            Form::Counted(_) | Form::Chunked(_) => false,
        }
    }

    /// Ends the stream in the middle of its body.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.form = Form::Done;
        self.send.send_reset(reason);
    }

    /// Ends the body with these trailers, wherever it is.
    pub(super) fn end_with(&mut self, trailers: HeaderMap) {
        self.form = Form::Done;
        let _ = self.send.send_trailers(trailers);
    }

    /// Ready when the peer has reset the stream, or is gone.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(cx).map(drop)
    }
}

/// What the reader or writer of a stream is told of an error.
pub(super) fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// What comes next in a chunked body that this process has written.
fn next(chunks: &mut Chunks, rest: &[u8]) -> io::Result<(usize, Piece)> {
    let next = chunks.next(rest);
    Ok(next.ok_or(io::ErrorKind::InvalidData)?)
}

/// Bytes of a chunk's line and less, for which a buffer is kept.
const LINE: usize = 64;

//! TLS over a TCP socket: bytes between the socket and a [`Connection`], without waiting.
//!
//! Invariants: an end is clean only if the peer has said so (`close_notify`); a FIN alone is an
//! error, because an attacker can send one (RFC 9112 section 9.8). What was taken to be written is
//! in the kernel before [`Tls::poll_flush`] is ready.
//!
//! Leaves out certificates and who may connect: see the configuration of the [`Connection`].

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use rustls::{Connection, HandshakeKind};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The state of TLS on one connection. The socket is its caller's.
#[derive(Debug)]
pub(super) struct Tls {
    session: Connection,
    /// The socket or the peer's bytes failed. A socket reports its error only once.
    failed: Option<io::ErrorKind>,
}

/// What the peer's direction holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inbound {
    /// Nothing to read.
    Nothing,
    /// Bytes to read.
    Bytes,
    /// The end: a clean one, a FIN, or a fault.
    Ended,
}

impl Tls {
    pub(super) fn new(session: Connection) -> Self {
        Self {
            session,
            failed: None,
        }
    }

    /// Takes in bytes that were read from the socket before TLS began.
    pub(super) fn feed(&mut self, mut read: &[u8]) -> io::Result<()> {
        while !read.is_empty() {
            self.session.read_tls(&mut read)?;
            self.take_in()?;
        }
        Ok(())
    }

    /// Goes on with the handshake. Ready when it is complete and its last bytes are in the kernel.
    pub(super) fn poll_handshake(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(socket, cx))?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            match self.session.read_tls(&mut Waiting(socket, cx)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if is_would_block(&error) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
            if let Err(error) = self.take_in() {
                // The alert says why, if the kernel takes it at once.
                let _ = self.flush(&mut AtOnce(socket));
                return Poll::Ready(Err(error));
            }
        }
    }

    /// The protocol that both sides have agreed on (ALPN).
    pub(super) fn agreed(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    /// The name that the client has asked for.
    pub(super) fn server_name(&self) -> Option<&str> {
        match &self.session {
            Connection::Server(session) => session.server_name(),
            Connection::Client(_) => None,
        }
    }

    /// Whether the handshake resumed an earlier session.
    pub(super) fn is_resumed(&self) -> bool {
        self.session.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Ready when there is something to read, or an end.
    pub(super) fn poll_read_ready(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match self.fill(&mut Waiting(socket, cx), socket) {
            Inbound::Nothing => Poll::Pending,
            Inbound::Bytes | Inbound::Ended => Poll::Ready(Ok(())),
        }
    }

    /// What can be read now. No task is woken when that changes.
    pub(super) fn inbound(&mut self, socket: &TcpStream) -> Inbound {
        self.fill(&mut AtOnce(socket), socket)
    }

    /// Whether the peer has ended its direction, even if not all before that is read.
    pub(super) fn has_seen_end(&mut self, socket: &TcpStream) -> bool {
        // `close_notify` may stand behind bytes that are not read. A FIN is the kernel's to tell.
        self.inbound(socket) == Inbound::Ended
            || self
                .session
                .process_new_packets()
                .map_or(true, |state| state.peer_has_closed())
    }

    /// Reads until `room` is full or nothing is left, so that a full read shows that more is coming.
    pub(super) fn poll_read(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        while filled < room.len() {
            match self.fill(&mut Waiting(socket, cx), socket) {
                Inbound::Nothing if filled == 0 => return Poll::Pending,
                Inbound::Ended if filled == 0 => return Poll::Ready(self.end().map(|()| 0)),
                Inbound::Nothing | Inbound::Ended => break,
                Inbound::Bytes => filled += self.session.reader().read(&mut room[filled..])?,
            }
        }
        Poll::Ready(Ok(filled))
    }

    /// Reads only to leave nothing unread. After a fault, that is whatever comes.
    pub(super) fn poll_waste(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.failed.is_none() {
            return self.poll_read(socket, cx, room);
        }
        match Waiting(socket, cx).read(room) {
            Err(error) if is_would_block(&error) => Poll::Pending,
            read => Poll::Ready(read),
        }
    }

    /// Encrypts a part of `bytes`. What the kernel does not take is written by later calls of any
    /// method that reads or writes; [`Self::poll_flush`] says when it is gone.
    pub(super) fn poll_write(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(socket, cx))?;
        let taken = self.session.writer().write(bytes)?;
        match self.flush(&mut Waiting(socket, cx)) {
            Err(error) if !is_would_block(&error) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    /// Ready when all that was taken is in the kernel.
    pub(super) fn poll_flush(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match self.flush(&mut Waiting(socket, cx)) {
            Err(error) if is_would_block(&error) => Poll::Pending,
            flushed => Poll::Ready(flushed),
        }
    }

    /// Whether something that was taken is not in the kernel.
    pub(super) fn is_unsent(&self) -> bool {
        self.session.wants_write()
    }

    /// Tells the peer that nothing more comes, and that nothing is missing. After a fault, it is told
    /// of the fault only.
    pub(super) fn close(&mut self) {
        if self.failed.is_none() {
            self.session.send_close_notify();
        }
    }

    /// Writes what the kernel takes at once.
    pub(super) fn flush_at_once(&mut self, socket: &TcpStream) {
        // A failure shows when the connection is used, if ever.
        let _ = self.flush(&mut AtOnce(socket));
    }

    /// Reads and decrypts until there is something to tell.
    fn fill(&mut self, wire: &mut (impl Read + Write), socket: &TcpStream) -> Inbound {
        loop {
            match self.session.reader().fill_buf() {
                Ok(bytes) if !bytes.is_empty() => return Inbound::Bytes,
                Err(error) if is_would_block(&error) => {}
                _ => return Inbound::Ended,
            }
            if self.failed.is_some() {
                return Inbound::Ended;
            }
            if self.session.wants_write() {
                // The rest of an earlier write, or an answer of TLS itself.
                let _ = self.flush(wire);
            }
            match self.session.read_tls(wire) {
                Ok(_) => {}
                Err(error) if is_would_block(&error) => return Inbound::Nothing,
                Err(error) => self.failed = Some(error.kind()),
            }
            if self.take_in().is_err() {
                self.flush_at_once(socket);
            }
        }
    }

    /// Decrypts what was read from the socket. The text of an error says what TLS has against it.
    fn take_in(&mut self) -> io::Result<()> {
        let refused = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let taken = self.session.process_new_packets().map_err(refused);
        self.failed = taken.as_ref().err().map(io::Error::kind).or(self.failed);
        taken.map(|_| ())
    }

    /// How the peer's direction has ended.
    fn end(&mut self) -> io::Result<()> {
        match self.failed {
            Some(kind) => Err(kind.into()),
            None => self.session.reader().fill_buf().map(|_| ()),
        }
    }

    fn flush(&mut self, wire: &mut impl Write) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(wire)?;
        }
        Ok(())
    }
}

fn is_would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// The socket for a task that is woken when it can go on.
struct Waiting<'a, 'b>(&'a TcpStream, &'a mut Context<'b>);

impl Read for Waiting<'_, '_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Self(socket, cx) = self;
        loop {
            match socket.poll_read_ready(cx) {
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
                Poll::Ready(ready) => ready?,
            }
            let mut taken = None;
            let asked = socket.try_io(Interest::READABLE, || {
                let read = receive(socket, room)?;
                taken = Some(read);
                // A short read has emptied the socket. The runtime need not ask it again before
                // more comes.
                match 0 < read && read < room.len() {
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => Ok(()),
                }
            });
            match (taken, asked) {
                (Some(read), _) => return Ok(read),
                (None, Err(error)) if !is_would_block(&error) => return Err(error),
                _ => {}
            }
        }
    }
}

impl Write for Waiting<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let Self(socket, cx) = self;
        loop {
            match socket.poll_write_ready(cx) {
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
                Poll::Ready(ready) => ready?,
            }
            match socket.try_write_vectored(pieces) {
                Err(error) if is_would_block(&error) => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket as it is now. It wakes nobody.
struct AtOnce<'a>(&'a TcpStream);

impl Read for AtOnce<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        receive(self.0, room)
    }
}

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn receive(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let (read, _) = rustix::net::recv(socket, room, RecvFlags::DONTWAIT)?;
    Ok(read)
}

//! A connection to a client or to an endpoint, as the proxy reads and writes it.
//!
//! Invariant: the proxy sees every connection through this type. So a kind of connection that is
//! not a plain TCP socket changes this file and nothing that reads or writes.
//!
//! Leaves out how a listener accepts and how options are set: see [`crate::net::socket`].

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::socket::{self, Delivery, Peer};

/// A connection that is registered with this thread's runtime.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Bytes go to the socket as they are.
    Plain(TcpStream),
    /// Another connection carries this one.
    Carried(Box<dyn Carried>),
}

/// A connection that has no socket of its own, because another connection carries it: a stream of
/// HTTP/2. All calls come from the one task that owns it, and none blocks.
pub trait Carried: std::fmt::Debug {
    /// As [`Stream::poll_read_ready`].
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// As [`Stream::poll_write_ready`].
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Reads once and returns how many bytes that were. 0: the peer has ended its direction.
    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>>;
    /// As [`Stream::poll_write`].
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// As [`Stream::poll_shutdown`].
    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// As [`Stream::peer`].
    fn peer(&self) -> Peer;
    /// As [`Stream::is_refused`].
    fn is_refused(&self) -> bool;
}

impl Stream {
    /// Registers an accepted connection.
    pub fn accepted(fd: OwnedFd) -> io::Result<Self> {
        let kind = Kind::Plain(TcpStream::from_std(fd.into())?);
        Ok(Self { kind })
    }

    /// Starts to connect to an endpoint, from this address of the machine if one is given. Writable means connected or failed, see
    /// [`Self::take_error`].
    pub fn connect(address: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
        let kind = Kind::Plain(socket::connect(address, from)?);
        Ok(Self { kind })
    }

    /// A connection that another one carries.
    pub fn carried(inner: Box<dyn Carried>) -> Self {
        let kind = Kind::Carried(inner);
        Self { kind }
    }

    /// The address of this end: for an accepted connection, the one that the client connected to.
    ///
    /// # Errors
    /// `NotConnected` if there is no socket.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let socket = self.socket().ok_or(io::ErrorKind::NotConnected)?;
        let local = socket.local_addr()?;
        Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }

    /// The TCP socket, if the connection's bytes are the socket's bytes: then splice may move them.
    #[inline]
    pub fn plain(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(socket) => Some(socket),
            Kind::Carried(_) => None,
        }
    }

    /// The TCP socket below, also if its bytes are not the connection's.
    #[inline]
    fn socket(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(socket) => Some(socket),
            Kind::Carried(_) => None,
        }
    }

    /// Waits until there may be something to read. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Plain(socket) => socket.readable().await,
            Kind::Carried(inner) => poll_fn(|cx| inner.poll_read_ready(cx)).await,
        }
    }

    /// Ready when there may be something to read.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.kind {
            Kind::Plain(socket) => socket.poll_read_ready(cx),
            Kind::Carried(inner) => inner.poll_read_ready(cx),
        }
    }

    /// Ready when a write may take something, or when a connect has ended either way.
    #[inline]
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.kind {
            Kind::Plain(socket) => socket.poll_write_ready(cx),
            Kind::Carried(inner) => inner.poll_write_ready(cx),
        }
    }

    /// Reads once into `room`. An empty result means that the peer has ended its direction.
    #[inline]
    pub fn poll_read<'a>(
        &mut self,
        cx: &mut Context<'_>,
        room: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        let read = match &mut self.kind {
            Kind::Plain(socket) => {
                let mut buf = ReadBuf::new(room);
                ready!(Pin::new(socket).poll_read(cx, &mut buf))?;
                buf.filled().len()
            }
            Kind::Carried(inner) => ready!(inner.poll_read(cx, room))?,
        };
        Poll::Ready(Ok(&room[..read]))
    }

    /// Writes once and returns how many bytes were taken.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Kind::Carried(inner) => inner.poll_write(cx, bytes),
        }
    }

    /// As [`Self::poll_write`], from several buffers in one system call where there is a socket.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Kind::Plain(socket) = &mut self.kind {
            return Pin::new(socket).poll_write_vectored(cx, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty());
        self.poll_write(cx, first.map_or(&[], |part| part))
    }

    /// Ends our direction. The peer reads to the end of what was written, then sees the end.
    #[inline]
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Carried(inner) => inner.poll_shutdown(cx),
        }
    }

    /// Writes all of `bytes`. Not cancellation safe: an unknown part may have been written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match poll_fn(|cx| self.poll_write(cx, bytes)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Ends our direction, see [`Self::poll_shutdown`].
    pub async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// Why a connect failed, if it did.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket().map_or(Ok(None), TcpStream::take_error)
    }

    /// What is known of the peer without reading.
    pub fn peer(&self) -> Peer {
        match &self.kind {
            Kind::Plain(socket) => socket::peer(socket),
            Kind::Carried(inner) => inner.peer(),
        }
    }

    /// How far the peer has received what was written. `None`: the connection has ended, or another
    /// one carries it.
    pub fn delivery(&self) -> Option<Delivery> {
        socket::delivery(self.socket()?.as_raw_fd())
    }

    /// Whether an idle connection is really still there: nothing to read, and no end. A carried one is
    /// never idle: it ends with its only exchange.
    pub fn is_quiet(&self) -> bool {
        self.socket().is_none_or(socket::is_quiet)
    }

    /// Whether there is nothing to read but the end. It is not known of a carried connection.
    pub fn has_ended(&self) -> bool {
        self.socket().is_some_and(socket::has_ended)
    }

    /// Whether the peer has said that it has not begun to process what was written. Any request can
    /// then be sent again (RFC 9113 section 8.7).
    pub fn is_refused(&self) -> bool {
        match &self.kind {
            Kind::Plain(_) => false,
            Kind::Carried(inner) => inner.is_refused(),
        }
    }

    /// Whether another connection carries this one.
    pub fn is_carried(&self) -> bool {
        matches!(self.kind, Kind::Carried(_))
    }

    /// Whether the peer sees the end of our direction when the connection is closed. A carried one that is
    /// closed without an end is reset.
    pub fn ends_by_close(&self) -> bool {
        matches!(self.kind, Kind::Plain(_))
    }

    /// Makes the close of this connection a reset. A carried one that is dropped in the middle of its
    /// exchange is reset in any case.
    pub fn reset_on_close(&self) {
        if let Some(socket) = self.socket() {
            socket::reset_on_close(socket);
        }
    }

    /// The number of the TCP socket below, if there is one.
    pub fn fd(&self) -> Option<RawFd> {
        self.socket().map(AsRawFd::as_raw_fd)
    }
}

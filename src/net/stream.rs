//! A connection to a client or to an endpoint, as the proxy reads and writes it.
//!
//! Invariant: the proxy sees every connection through this type. So a kind of connection that is
//! not a plain TCP socket changes this file and nothing that reads or writes. An enum with one
//! variant costs nothing: each call compiles to the call on the socket itself.
//!
//! Leaves out how a listener accepts and how options are set: see [`crate::net::socket`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::net::socket::{self, Delivery, Peer};

/// A connection that is registered with this thread's runtime.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Bytes go to the socket as they are. TLS becomes the second kind.
    Plain(TcpStream),
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

    /// The address of this end: for an accepted connection, the one that the client connected to.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = self.socket().local_addr()?;
        Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }

    /// The TCP socket, if the connection's bytes are the socket's bytes: then splice may move them.
    #[inline]
    pub fn plain(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(socket) => Some(socket),
        }
    }

    /// The TCP socket below, also if its bytes are not the connection's.
    #[inline]
    fn socket(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(socket) => socket,
        }
    }

    /// Waits until there may be something to read. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Plain(socket) => socket.readable().await,
        }
    }

    /// Ready when there may be something to read.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.kind {
            Kind::Plain(socket) => socket.poll_read_ready(cx),
        }
    }

    /// Ready when a write may take something, or when a connect has ended either way.
    #[inline]
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.kind {
            Kind::Plain(socket) => socket.poll_write_ready(cx),
        }
    }

    /// Reads once into `room`. An empty result means that the peer has ended its direction.
    #[inline]
    pub fn poll_read<'a>(
        &mut self,
        cx: &mut Context<'_>,
        room: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        let mut buf = ReadBuf::new(room);
        ready!(match &mut self.kind {
            Kind::Plain(socket) => Pin::new(socket).poll_read(cx, &mut buf),
        })?;
        let read = buf.filled().len();
        Poll::Ready(Ok(&room[..read]))
    }

    /// Writes once and returns how many bytes were taken.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
        }
    }

    /// Ends our direction. The peer reads to the end of what was written, then sees the end.
    #[inline]
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }

    /// Writes all of `bytes`. Not cancellation safe: an unknown part may have been written.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(socket) => socket.write_all(bytes).await,
        }
    }

    /// Ends our direction, see [`Self::poll_shutdown`].
    pub async fn shutdown(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Plain(socket) => socket.shutdown().await,
        }
    }

    /// Why a connect failed, if it did.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket().take_error()
    }

    /// What is known of the peer without reading.
    pub fn peer(&self) -> Peer {
        socket::peer(self.socket())
    }

    /// How far the peer has received what was written. `None`: the connection has ended.
    pub fn delivery(&self) -> Option<Delivery> {
        socket::delivery(self.as_raw_fd())
    }

    /// Whether an idle connection is really still there: nothing to read, and no end.
    pub fn is_quiet(&self) -> bool {
        socket::is_quiet(self.socket())
    }

    /// Whether there is nothing to read but the end.
    pub fn has_ended(&self) -> bool {
        socket::has_ended(self.socket())
    }

    /// Makes the close of this connection a reset.
    pub fn reset_on_close(&self) {
        socket::reset_on_close(self.socket());
    }
}

/// The number of the TCP socket below.
impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket().as_raw_fd()
    }
}

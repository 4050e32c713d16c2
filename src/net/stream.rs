//! A connection to a client or to an endpoint, as the proxy reads and writes it: a TCP socket, with or
//! without TLS on it.
//!
//! Invariant: the proxy sees every connection through this type. So a kind of connection that is
//! not a plain TCP socket changes this file and nothing that reads or writes. Without TLS, each call
//! is one look at a pointer and the call on the socket itself.
//!
//! Leaves out how a listener accepts and how options are set: see [`crate::net::socket`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::socket::{self, Delivery, Peer};
use crate::net::tls::{Inbound, Tls};

/// A connection that is registered with this thread's runtime.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// Where it speaks TLS. To ask whether there is something to read is to decrypt.
    tls: Option<Box<RefCell<Tls>>>,
}

impl Stream {
    /// Registers an accepted connection.
    pub fn accepted(fd: OwnedFd) -> io::Result<Self> {
        let socket = TcpStream::from_std(fd.into())?;
        Ok(Self { socket, tls: None })
    }

    /// Starts to connect to an endpoint, from this address of the machine if one is given. Writable means connected or failed, see
    /// [`Self::take_error`].
    pub fn connect(address: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
        let socket = socket::connect(address, from)?;
        Ok(Self { socket, tls: None })
    }

    /// Speaks TLS from here on, as either side of it. `read`: what has come of it already.
    ///
    /// # Errors
    /// `read` is no TLS, or is refused.
    pub fn begin_tls(&mut self, session: impl Into<Connection>, read: &[u8]) -> io::Result<()> {
        let tls = self.tls.insert(Box::new(Tls::new(session.into()).into()));
        let fed = tls.get_mut().feed(read);
        if fed.is_err() {
            tls.get_mut().flush_at_once(&self.socket);
        }
        fed
    }

    /// Goes on with the handshake of TLS. Nothing else may be called before it is ready.
    ///
    /// # Errors
    /// `InvalidData`: the peer is refused, or refuses us. `UnexpectedEof`: it has ended. Others are
    /// the socket's.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.tls {
            None => Poll::Ready(Ok(())),
            Some(tls) => tls.get_mut().poll_handshake(&self.socket, cx),
        }
    }

    /// Whether its bytes are encrypted on the way.
    #[inline]
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether both sides have agreed on this protocol (ALPN).
    pub fn has_agreed_on(&self, protocol: &[u8]) -> bool {
        let agreed = |tls: &RefCell<Tls>| tls.borrow().agreed() == Some(protocol);
        self.tls.as_deref().is_some_and(agreed)
    }

    /// Whether its TLS session goes on with an earlier one.
    pub fn is_resumed(&self) -> bool {
        let resumed = |tls: &RefCell<Tls>| tls.borrow().is_resumed();
        self.tls.as_deref().is_some_and(resumed)
    }

    /// The address of this end: for an accepted connection, the one that the client connected to.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = self.socket.local_addr()?;
        Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }

    /// The TCP socket, if the connection's bytes are the socket's bytes: then splice may move them,
    /// and its close passes an end on.
    #[inline]
    pub fn plain(&self) -> Option<&TcpStream> {
        self.tls.is_none().then_some(&self.socket)
    }

    /// Waits until there may be something to read. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        match self.tls {
            None => self.socket.readable().await,
            Some(_) => poll_fn(|cx| self.poll_read_ready(cx)).await,
        }
    }

    /// Ready when there may be something to read. Over TLS: when there is.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.tls {
            None => self.socket.poll_read_ready(cx),
            Some(tls) => tls.borrow_mut().poll_read_ready(&self.socket, cx),
        }
    }

    /// Ready when the socket has something to read, whatever its bytes mean.
    pub fn poll_bytes_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    /// Ready when a write may take something, or when a connect has ended either way.
    #[inline]
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(cx)
    }

    /// Reads once into `room`. An empty result means that the peer has ended its direction.
    #[inline]
    pub fn poll_read<'a>(
        &mut self,
        cx: &mut Context<'_>,
        room: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        let read = match &mut self.tls {
            None => {
                let mut buf = ReadBuf::new(room);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf))?;
                buf.filled().len()
            }
            Some(tls) => ready!(tls.get_mut().poll_read(&self.socket, cx, room))?,
        };
        Poll::Ready(Ok(&room[..read]))
    }

    /// Writes once and returns how many bytes were taken. Over TLS, the kernel may not have all of
    /// them yet: see [`Self::poll_flush`].
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.tls {
            None => Pin::new(&mut self.socket).poll_write(cx, bytes),
            Some(tls) => tls.get_mut().poll_write(&self.socket, cx, bytes),
        }
    }

    /// Ready when the kernel has all that was taken. Whoever has written must poll this before it
    /// waits for anything else.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.tls {
            None => Poll::Ready(Ok(())),
            Some(tls) => tls.get_mut().poll_flush(&self.socket, cx),
        }
    }

    /// Ends our direction. The peer reads to the end of what was written, then sees the end: over
    /// TLS a `close_notify`, then a FIN.
    #[inline]
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &mut self.tls {
            tls.get_mut().close();
            ready!(tls.get_mut().poll_flush(&self.socket, cx))?;
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    /// Must be called before a connection is dropped that ends properly, without
    /// [`Self::poll_shutdown`]: the drop sends a FIN, and over TLS a FIN alone is no proper end.
    pub fn end(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.get_mut().close();
            tls.get_mut().flush_at_once(&self.socket);
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
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Ends our direction, see [`Self::poll_shutdown`].
    pub async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// Why a connect failed, if it did.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    /// What is known of the peer without reading.
    pub fn peer(&self) -> Peer {
        match (socket::peer(&self.socket), &self.tls) {
            (Peer::Open, Some(tls)) if tls.borrow_mut().has_seen_end(&self.socket) => {
                Peer::HalfClosed
            }
            (peer, _) => peer,
        }
    }

    /// How far the peer has received what was written. `None`: the connection has ended.
    pub fn delivery(&self) -> Option<Delivery> {
        let mut delivery = socket::delivery(self.as_raw_fd())?;
        delivery.waiting |= self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.borrow().is_unsent());
        Some(delivery)
    }

    /// Whether an idle connection is really still there: nothing to read, and no end.
    pub fn is_quiet(&self) -> bool {
        let has_nothing = match &self.tls {
            None => true,
            Some(tls) => tls.borrow_mut().inbound(&self.socket) == Inbound::Nothing,
        };
        // Bytes of TLS may have come in between, and a socket that is kept busy is in doubt.
        has_nothing && socket::is_quiet(&self.socket)
    }

    /// Whether there is nothing to read but the end.
    pub fn has_ended(&self) -> bool {
        match &self.tls {
            None => socket::has_ended(&self.socket),
            Some(tls) => tls.borrow_mut().inbound(&self.socket) == Inbound::Ended,
        }
    }

    /// Makes the close of this connection a reset.
    pub fn reset_on_close(&self) {
        socket::reset_on_close(&self.socket);
    }
}

/// The number of the TCP socket below.
impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;

//! A connection to a client or to an endpoint, as the proxy reads and writes it: a TCP socket, with or
//! without TLS on it.
//!
//! Invariant: the proxy sees every connection through this type. So a kind of connection that is
//! not a plain TCP socket changes this file and nothing that reads or writes. On a plain socket, each
//! call is one look at the kind and the call on the socket itself.
//!
//! Leaves out how a listener accepts and how options are set: see [`crate::net::socket`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
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
    kind: Kind,
}

/// It takes no more room than the socket alone.
#[derive(Debug)]
enum Kind {
    /// Bytes go to the socket as they are.
    Plain(TcpStream),
    /// `None` only within [`Stream::begin_tls`].
    Rare(Option<Box<Rare>>),
}

#[derive(Debug)]
enum Rare {
    Tls(Box<Secure>),
    /// Another connection carries this one.
    Carried(Box<dyn Carried>),
}

/// A connection by its kind, to read its state.
enum View<'a> {
    Plain(&'a TcpStream),
    Tls(&'a Secure),
    Carried(&'a dyn Carried),
    Nothing,
}

/// The same, to change its state.
enum ViewMut<'a> {
    Plain(&'a mut TcpStream),
    Tls(&'a mut Secure),
    Carried(&'a dyn Carried),
    Nothing,
}

#[derive(Debug)]
struct Secure {
    socket: TcpStream,
    /// To ask whether there is something to read is to decrypt.
    tls: RefCell<Tls>,
    mark: u64,
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
    fn is_refused(&self) -> bool {
        false
    }
    /// As [`Stream::is_tls`].
    fn is_tls(&self) -> bool {
        false
    }
    /// The name in [`Stream::server_name`].
    fn server_name(&self) -> Option<&str> {
        None
    }
}

impl Stream {
    #[inline]
    fn view(&self) -> View<'_> {
        match &self.kind {
            Kind::Plain(socket) => View::Plain(socket),
            Kind::Rare(Some(rare)) => match &**rare {
                Rare::Tls(secure) => View::Tls(secure),
                Rare::Carried(inner) => View::Carried(&**inner),
            },
            Kind::Rare(None) => View::Nothing,
        }
    }

    #[inline]
    fn view_mut(&mut self) -> ViewMut<'_> {
        match &mut self.kind {
            Kind::Plain(socket) => ViewMut::Plain(socket),
            Kind::Rare(Some(rare)) => match &mut **rare {
                Rare::Tls(secure) => ViewMut::Tls(secure),
                Rare::Carried(inner) => ViewMut::Carried(&**inner),
            },
            Kind::Rare(None) => ViewMut::Nothing,
        }
    }

    /// Registers an accepted connection.
    pub fn accepted(fd: OwnedFd) -> io::Result<Self> {
        let kind = Kind::Plain(TcpStream::from_std(fd.into())?);
        Ok(Self { kind })
    }

    /// Starts to connect to an endpoint, from this address of the machine if one is given. Writable means
    /// connected or failed, see [`Self::take_error`].
    pub fn connect(address: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
        let kind = Kind::Plain(socket::connect(address, from)?);
        Ok(Self { kind })
    }

    /// A connection that another one carries.
    pub fn carried(inner: Box<dyn Carried>) -> Self {
        let kind = Kind::Rare(Some(Box::new(Rare::Carried(inner))));
        Self { kind }
    }

    /// Speaks TLS from here on, as either side of it. `read`: what has come of it already. `mark` is what
    /// [`Self::mark`] returns.
    ///
    /// # Errors
    /// `read` is no TLS, or is refused.
    pub fn begin_tls(
        &mut self,
        session: impl Into<Connection>,
        read: &[u8],
        mark: u64,
    ) -> io::Result<()> {
        self.kind = match std::mem::replace(&mut self.kind, Kind::Rare(None)) {
            Kind::Plain(socket) => Kind::Rare(Some(Box::new(Rare::Tls(Box::new(Secure {
                socket,
                tls: Tls::new(session.into()).into(),
                mark,
            }))))),
            kind => kind,
        };
        let ViewMut::Tls(secure) = self.view_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let fed = secure.tls.get_mut().feed(read);
        if fed.is_err() {
            secure.tls.get_mut().flush_at_once(&secure.socket);
        }
        fed
    }

    /// Goes on with the handshake of TLS. Nothing else may be called before it is ready.
    ///
    /// # Errors
    /// `InvalidData`: the peer is refused, or refuses us. `UnexpectedEof`: it has ended. Others are
    /// the socket's.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.view_mut() {
            ViewMut::Tls(it) => it.tls.get_mut().poll_handshake(&it.socket, cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether its bytes are encrypted on the way.
    #[inline]
    pub fn is_tls(&self) -> bool {
        match self.view() {
            View::Carried(inner) => inner.is_tls(),
            _ => self.secure().is_some(),
        }
    }

    /// Reads the name that a client has asked for in its TLS handshake (SNI, RFC 6066 section 3), if it has.
    pub fn server_name<R>(&self, read: impl FnOnce(&str) -> R) -> Option<R> {
        match self.view() {
            View::Carried(inner) => inner.server_name().map(read),
            View::Tls(secure) => secure.tls.borrow().server_name().map(read),
            View::Plain(_) | View::Nothing => None,
        }
    }

    /// What TLS was begun with. `None`: it is not spoken on a socket of this connection.
    #[inline]
    pub fn mark(&self) -> Option<u64> {
        self.secure().map(|secure| secure.mark)
    }

    #[inline]
    fn secure(&self) -> Option<&Secure> {
        match self.view() {
            View::Tls(secure) => Some(secure),
            View::Plain(_) | View::Carried(_) | View::Nothing => None,
        }
    }

    /// Whether both sides have agreed on this protocol (ALPN).
    pub fn has_agreed_on(&self, protocol: &[u8]) -> bool {
        let agreed = |secure: &Secure| secure.tls.borrow().agreed() == Some(protocol);
        self.secure().is_some_and(agreed)
    }

    /// Whether its TLS session goes on with an earlier one.
    pub fn is_resumed(&self) -> bool {
        let resumed = |secure: &Secure| secure.tls.borrow().is_resumed();
        self.secure().is_some_and(resumed)
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

    /// The TCP socket, if the connection's bytes are the socket's bytes: then splice may move them,
    /// and its close passes an end on.
    #[inline]
    pub fn plain(&self) -> Option<&TcpStream> {
        match self.view() {
            View::Plain(socket) => Some(socket),
            View::Tls(_) | View::Carried(_) | View::Nothing => None,
        }
    }

    /// The TCP socket below, also if its bytes are not the connection's.
    #[inline]
    fn socket(&self) -> Option<&TcpStream> {
        match self.view() {
            View::Plain(socket) => Some(socket),
            View::Tls(secure) => Some(&secure.socket),
            View::Carried(_) | View::Nothing => None,
        }
    }

    /// Waits until there may be something to read. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        match self.view() {
            View::Plain(socket) => socket.readable().await,
            _ => poll_fn(|cx| self.poll_read_ready(cx)).await,
        }
    }

    /// Ready when there may be something to read. Over TLS: when there is.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.view() {
            View::Plain(socket) => socket.poll_read_ready(cx),
            View::Tls(it) => it.tls.borrow_mut().poll_read_ready(&it.socket, cx),
            View::Nothing => Poll::Pending,
            View::Carried(inner) => inner.poll_read_ready(cx),
        }
    }

    /// Ready when a write may take something, or when a connect has ended either way.
    #[inline]
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.view() {
            View::Plain(socket) => socket.poll_write_ready(cx),
            View::Tls(it) => it.socket.poll_write_ready(cx),
            View::Nothing => Poll::Pending,
            View::Carried(inner) => inner.poll_write_ready(cx),
        }
    }

    /// Reads once into `room`. An empty result means that the peer has ended its direction.
    #[inline]
    pub fn poll_read<'a>(
        &mut self,
        cx: &mut Context<'_>,
        room: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        let read = match self.view_mut() {
            ViewMut::Plain(socket) => {
                let mut buf = ReadBuf::new(room);
                ready!(Pin::new(socket).poll_read(cx, &mut buf))?;
                buf.filled().len()
            }
            ViewMut::Tls(it) => ready!(it.tls.get_mut().poll_read(&it.socket, cx, room))?,
            ViewMut::Nothing => return Poll::Pending,
            ViewMut::Carried(inner) => ready!(inner.poll_read(cx, room))?,
        };
        Poll::Ready(Ok(&room[..read]))
    }

    /// As [`Self::poll_read`], where nothing that comes is needed: a close with bytes unread is a reset,
    /// and the peer could lose what it was told last.
    pub fn poll_waste(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.view_mut() {
            ViewMut::Tls(it) => it.tls.get_mut().poll_waste(&it.socket, cx, room),
            _ => self.poll_read(cx, room).map_ok(|read| read.len()),
        }
    }

    /// Writes once and returns how many bytes were taken. Over TLS, the kernel may not have all of
    /// them yet: see [`Self::poll_flush`].
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.view_mut() {
            ViewMut::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            ViewMut::Tls(it) => it.tls.get_mut().poll_write(&it.socket, cx, bytes),
            ViewMut::Nothing => Poll::Pending,
            ViewMut::Carried(inner) => inner.poll_write(cx, bytes),
        }
    }

    /// As [`Self::poll_write`], from several buffers in one system call where there is a plain socket.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let ViewMut::Plain(socket) = self.view_mut() {
            return Pin::new(socket).poll_write_vectored(cx, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty());
        self.poll_write(cx, first.map_or(&[], |part| part))
    }

    /// Ready when the kernel has all that was taken. A task that has written must poll this before it
    /// waits for anything else.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.view_mut() {
            ViewMut::Tls(it) => it.tls.get_mut().poll_flush(&it.socket, cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ends our direction. The peer reads to the end of what was written, then sees the end: over
    /// TLS a `close_notify`, then a FIN.
    #[inline]
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.view_mut() {
            ViewMut::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            ViewMut::Tls(it) => {
                it.tls.get_mut().close();
                ready!(it.tls.get_mut().poll_flush(&it.socket, cx))?;
                Pin::new(&mut it.socket).poll_shutdown(cx)
            }
            ViewMut::Nothing => Poll::Pending,
            ViewMut::Carried(inner) => inner.poll_shutdown(cx),
        }
    }

    /// Must be called before a connection is dropped that ends properly, without
    /// [`Self::poll_shutdown`]: the drop sends a FIN, and over TLS a FIN alone is no proper end.
    pub fn end(&mut self) {
        if let ViewMut::Tls(it) = self.view_mut() {
            it.tls.get_mut().close();
            it.tls.get_mut().flush_at_once(&it.socket);
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
        self.socket().map_or(Ok(None), TcpStream::take_error)
    }

    /// What is known of the peer without reading.
    pub fn peer(&self) -> Peer {
        let has_ended = |it: &Secure| it.tls.borrow_mut().has_seen_end(&it.socket);
        match self.view() {
            View::Carried(inner) => inner.peer(),
            _ => match self.socket().map_or(Peer::Gone, socket::peer) {
                Peer::Open if self.secure().is_some_and(has_ended) => Peer::HalfClosed,
                peer => peer,
            },
        }
    }

    /// How far the peer has received what was written. `None`: the connection has ended, or another
    /// one carries it.
    pub fn delivery(&self) -> Option<Delivery> {
        let mut delivery = socket::delivery(self.fd()?)?;
        let is_unsent = |it: &Secure| it.tls.borrow().is_unsent();
        delivery.waiting |= self.secure().is_some_and(is_unsent);
        Some(delivery)
    }

    /// Whether an idle connection is really still there: nothing to read, and no end. A carried one is
    /// never idle: it ends with its only exchange.
    pub fn is_quiet(&self) -> bool {
        let Some(socket) = self.socket() else {
            return true;
        };
        let has_nothing = match self.secure() {
            None => true,
            Some(it) => it.tls.borrow_mut().inbound(socket) == Inbound::Nothing,
        };
        // Bytes of TLS may have come in between, and a socket that is kept busy is in doubt.
        has_nothing && socket::is_quiet(socket)
    }

    /// Whether there is nothing to read but the end. It is not known of a carried connection.
    pub fn has_ended(&self) -> bool {
        match self.secure() {
            Some(it) => it.tls.borrow_mut().inbound(&it.socket) == Inbound::Ended,
            None => self.socket().is_some_and(socket::has_ended),
        }
    }

    /// Whether the peer has said that it has not begun to process what was written. Any request can
    /// then be sent again (RFC 9113 section 8.7).
    pub fn is_refused(&self) -> bool {
        match self.view() {
            View::Carried(inner) => inner.is_refused(),
            _ => false,
        }
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

#[cfg(test)]
mod tests;

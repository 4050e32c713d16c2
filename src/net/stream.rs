//! A connection to a client or to an endpoint, as the proxy reads and writes it: a TCP socket, with or
//! without TLS on it.
//!
//! Invariant: the proxy sees every connection through this type. So a kind of connection that is
//! not a plain TCP socket changes this file and nothing that reads or writes. Without TLS, each call
//! is one look at the kind and the call on the socket itself.
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
    kind: Kind,
}

/// It takes no more room than the socket alone.
#[derive(Debug)]
enum Kind {
    /// Bytes go to the socket as they are.
    Plain(TcpStream),
    /// `None` only within [`Stream::begin_tls`].
    Tls(Option<Box<Secure>>),
}

#[derive(Debug)]
struct Secure {
    socket: TcpStream,
    /// To ask whether there is something to read is to decrypt.
    tls: RefCell<Tls>,
    mark: u64,
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
        self.kind = match std::mem::replace(&mut self.kind, Kind::Tls(None)) {
            Kind::Plain(socket) => Kind::Tls(Some(Box::new(Secure {
                socket,
                tls: Tls::new(session.into()).into(),
                mark,
            }))),
            kind => kind,
        };
        let Kind::Tls(Some(secure)) = &mut self.kind else {
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
        match self.secure_mut() {
            None => Poll::Ready(Ok(())),
            Some((socket, tls)) => tls.poll_handshake(socket, cx),
        }
    }

    /// Whether its bytes are encrypted on the way.
    #[inline]
    pub fn is_tls(&self) -> bool {
        self.secure().is_some()
    }

    /// What TLS was begun with. `None`: it is not spoken.
    #[inline]
    pub fn mark(&self) -> Option<u64> {
        self.secure().map(|secure| secure.mark)
    }

    /// Whether both sides have agreed on this protocol (ALPN).
    pub fn has_agreed_on(&self, protocol: &[u8]) -> bool {
        let agreed = |secure: &Secure| secure.tls.borrow().agreed() == Some(protocol);
        self.secure().is_some_and(agreed)
    }

    /// Whether its TLS session goes on with an earlier one.
    pub fn is_resumed(&self) -> bool {
        self.secure()
            .is_some_and(|secure| secure.tls.borrow().is_resumed())
    }

    #[inline]
    fn secure(&self) -> Option<&Secure> {
        match &self.kind {
            Kind::Tls(Some(secure)) => Some(secure),
            Kind::Plain(_) | Kind::Tls(None) => None,
        }
    }

    #[inline]
    fn secure_mut(&mut self) -> Option<(&TcpStream, &mut Tls)> {
        match &mut self.kind {
            Kind::Tls(Some(secure)) => Some((&secure.socket, secure.tls.get_mut())),
            Kind::Plain(_) | Kind::Tls(None) => None,
        }
    }

    /// The TCP socket below, also if its bytes are not the connection's.
    #[inline]
    fn socket(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(socket) => socket,
            Kind::Tls(Some(secure)) => &secure.socket,
            Kind::Tls(None) => unreachable!("nothing is called within begin_tls"),
        }
    }

    #[inline]
    fn socket_mut(&mut self) -> &mut TcpStream {
        match &mut self.kind {
            Kind::Plain(socket) => socket,
            Kind::Tls(Some(secure)) => &mut secure.socket,
            Kind::Tls(None) => unreachable!("nothing is called within begin_tls"),
        }
    }

    /// The address of this end: for an accepted connection, the one that the client connected to.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = self.socket().local_addr()?;
        Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }

    /// The TCP socket, if the connection's bytes are the socket's bytes: then splice may move them,
    /// and its close passes an end on.
    #[inline]
    pub fn plain(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(socket) => Some(socket),
            Kind::Tls(_) => None,
        }
    }

    /// Waits until there may be something to read. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        match self.plain() {
            Some(socket) => socket.readable().await,
            None => poll_fn(|cx| self.poll_read_ready(cx)).await,
        }
    }

    /// Ready when there may be something to read. Over TLS: when there is.
    #[inline]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.secure() {
            None => self.socket().poll_read_ready(cx),
            Some(it) => it.tls.borrow_mut().poll_read_ready(&it.socket, cx),
        }
    }

    /// Ready when a write may take something, or when a connect has ended either way.
    #[inline]
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_write_ready(cx)
    }

    /// Reads once into `room`. An empty result means that the peer has ended its direction.
    #[inline]
    pub fn poll_read<'a>(
        &mut self,
        cx: &mut Context<'_>,
        room: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        let read = match self.secure_mut() {
            None => {
                let mut buf = ReadBuf::new(room);
                ready!(Pin::new(self.socket_mut()).poll_read(cx, &mut buf))?;
                buf.filled().len()
            }
            Some((socket, tls)) => ready!(tls.poll_read(socket, cx, room))?,
        };
        Poll::Ready(Ok(&room[..read]))
    }

    /// Writes once and returns how many bytes were taken. Over TLS, the kernel may not have all of
    /// them yet: see [`Self::poll_flush`].
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.secure_mut() {
            None => Pin::new(self.socket_mut()).poll_write(cx, bytes),
            Some((socket, tls)) => tls.poll_write(socket, cx, bytes),
        }
    }

    /// Ready when the kernel has all that was taken. Whoever has written must poll this before it
    /// waits for anything else.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.secure_mut() {
            None => Poll::Ready(Ok(())),
            Some((socket, tls)) => tls.poll_flush(socket, cx),
        }
    }

    /// Ends our direction. The peer reads to the end of what was written, then sees the end: over
    /// TLS a `close_notify`, then a FIN.
    #[inline]
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some((socket, tls)) = self.secure_mut() {
            tls.close();
            ready!(tls.poll_flush(socket, cx))?;
        }
        Pin::new(self.socket_mut()).poll_shutdown(cx)
    }

    /// Must be called before a connection is dropped that ends properly, without
    /// [`Self::poll_shutdown`]: the drop sends a FIN, and over TLS a FIN alone is no proper end.
    pub fn end(&mut self) {
        if let Some((socket, tls)) = self.secure_mut() {
            tls.close();
            tls.flush_at_once(socket);
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
        self.socket().take_error()
    }

    /// What is known of the peer without reading.
    pub fn peer(&self) -> Peer {
        let has_ended = |it: &Secure| it.tls.borrow_mut().has_seen_end(&it.socket);
        match socket::peer(self.socket()) {
            Peer::Open if self.secure().is_some_and(has_ended) => Peer::HalfClosed,
            peer => peer,
        }
    }

    /// How far the peer has received what was written. `None`: the connection has ended.
    pub fn delivery(&self) -> Option<Delivery> {
        let mut delivery = socket::delivery(self.as_raw_fd())?;
        let is_unsent = |it: &Secure| it.tls.borrow().is_unsent();
        delivery.waiting |= self.secure().is_some_and(is_unsent);
        Some(delivery)
    }

    /// Whether an idle connection is really still there: nothing to read, and no end.
    pub fn is_quiet(&self) -> bool {
        let has_nothing = match self.secure() {
            None => true,
            Some(it) => it.tls.borrow_mut().inbound(&it.socket) == Inbound::Nothing,
        };
        // Bytes of TLS may have come in between, and a socket that is kept busy is in doubt.
        has_nothing && socket::is_quiet(self.socket())
    }

    /// Whether there is nothing to read but the end.
    pub fn has_ended(&self) -> bool {
        match self.secure() {
            None => socket::has_ended(self.socket()),
            Some(it) => it.tls.borrow_mut().inbound(&it.socket) == Inbound::Ended,
        }
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

#[cfg(test)]
mod tests;

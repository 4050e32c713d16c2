//! UDP sockets: those of listeners, which know the address that each datagram was sent to, and those
//! to endpoints.
//!
//! Invariant: an answer leaves from the address that its client has asked. A socket that is
//! bound to `0.0.0.0` or `::` could send it from another address, and then its client would drop it.
//!
//! Leaves out segment offload: each call moves one datagram.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::net::socket;

/// A listener's socket.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// What is known of a datagram beside its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The bytes of the datagram.
    pub len: usize,
    /// The client.
    pub peer: SocketAddr,
    /// The address of this machine that the client sent it to.
    pub asked: Option<IpAddr>,
}

/// Binds one of a port's sockets.
pub fn bind(address: SocketAddr) -> io::Result<StdSocket> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Whether a socket has this address already; see [`socket::is_listened_on`].
pub fn is_bound(address: SocketAddr) -> bool {
    let probe = || unbound(address)?.bind(&address.into());
    address.port() != 0 && probe().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // So that 0.0.0.0 and :: can be bound side by side.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

impl Datagrams {
    /// Registers a bound socket with this thread's runtime.
    pub fn watch(socket: StdSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        // The library serves QUIC, which forbids fragments and takes several datagrams in one read.
        socket::forward_plainly(socket.as_raw_fd(), socket.local_addr()?.is_ipv6())?;
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            state,
        })
    }

    /// Another descriptor of it, which this thread's runtime knows nothing of.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Waits until a datagram has arrived. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Datagrams of clients go to the other sockets of this address from now on. Those that have come
    /// can still be taken. The kernel gives a connected socket the datagrams of its peer only, and there
    /// is none.
    ///
    /// # Errors
    /// The kernel's. Nothing has changed.
    pub fn turn_away(&self) -> io::Result<()> {
        let nobody: SocketAddr = match self.socket.local_addr()? {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, DISCARD).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, DISCARD).into(),
        };
        Ok(rustix::net::connect(&self.socket, &nobody)?)
    }

    /// Takes a datagram. What is longer than `buffer` is cut off.
    ///
    /// # Errors
    /// `WouldBlock`: there is none, or the runtime has not noticed it yet.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        self.socket
            .try_io(Interest::READABLE, || self.recv_now(buffer))
    }

    /// As [`Self::try_recv`], but asks the kernel: for a socket that nobody waits for any more.
    pub fn recv_now(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let mut meta = [RecvMeta::default()];
        let mut buffers = [IoSliceMut::new(buffer)];
        self.state
            .recv((&self.socket).into(), &mut buffers, &mut meta)?;
        let [meta] = meta;
        Ok(Arrival {
            len: meta.len,
            peer: meta.addr,
            asked: meta.dst_ip,
        })
    }

    /// Answers a client. `from`: the address that it has asked.
    ///
    /// # Errors
    /// The datagram was not sent. `WouldBlock`: the send buffer is full.
    pub fn try_send(&self, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: bytes,
            segment_size: None,
            src_ip: from,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }
}

/// A socket to one endpoint. It gets datagrams of that endpoint only, and the kernel reports when
/// the endpoint's port is closed.
#[derive(Debug)]
pub struct Connected(UdpSocket);

impl Connected {
    /// A socket to this address, from this address of the machine if one is given. Nothing is sent.
    pub fn to(address: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
        let socket = unbound(address)?;
        if let Some(from) = from {
            socket::bind_source(&socket, from)?;
        }
        socket.connect(&address.into())?;
        Ok(Self(UdpSocket::from_std(socket.into())?))
    }

    /// A socket that another process has made so.
    pub fn adopted(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(UdpSocket::from_std(socket.into())?))
    }

    /// Another descriptor of it, which this thread's runtime knows nothing of.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Waits for a datagram, or for a refusal. Cancellation safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.ready(READ_OR_REFUSED).await.map(drop)
    }

    /// Takes a datagram.
    ///
    /// # Errors
    /// `ConnectionRefused`: something that was sent before has found the port closed.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut recv = || {
            let received = rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT);
            Ok(received?.0)
        };
        // The runtime forgets one readiness at a time.
        match self.0.try_io(Interest::READABLE, &mut recv) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.try_io(Interest::ERROR, recv)
            }
            received => received,
        }
    }

    /// Sends a datagram. Not by tokio's own call, which sends nothing until the runtime has looked at
    /// the socket once.
    ///
    /// # Errors
    /// It was not sent. For `ConnectionRefused`, see [`Self::try_recv`].
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(&self.0, bytes, flags)?;
        Ok(())
    }
}

/// The kernel reports a refusal as an error, with nothing to read.
const READ_OR_REFUSED: Interest = Interest::READABLE.add(Interest::ERROR);
/// Port 9 is that of the discard protocol (RFC 863): nobody sends from there.
const DISCARD: u16 = 9;
/// The longest datagram, rounded up.
pub const LONGEST: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_leaves_from_the_address_that_was_asked() {
        let ours = bind(([0, 0, 0, 0], 0).into()).unwrap();
        let port = ours.local_addr().unwrap().port();
        let ours = Datagrams::watch(ours).unwrap();
        for asked in ["127.0.0.1", "127.0.0.2"] {
            let asked: IpAddr = asked.parse().unwrap();
            let client = Connected::to((asked, port).into(), None).unwrap();
            client.try_send(b"ping").unwrap();
            ours.readable().await.unwrap();
            let mut buffer = [0; 16];
            let arrival = loop {
                match ours.try_recv(&mut buffer) {
                    Ok(arrival) => break arrival,
                    Err(_) => ours.readable().await.unwrap(),
                }
            };
            assert_eq!((arrival.len, arrival.asked), (4, Some(asked)));
            ours.try_send(b"pong", arrival.peer, arrival.asked).unwrap();
            client.readable().await.unwrap();
            assert_eq!(client.try_recv(&mut buffer).unwrap(), 4);
        }
    }

    /// What has come since the runtime looked last is taken all the same before the socket closes, also
    /// when it is turned away meanwhile.
    #[tokio::test]
    async fn what_the_runtime_has_not_noticed_yet_can_be_taken() {
        let ours = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = ours.local_addr().unwrap();
        let ours = Datagrams::watch(ours).unwrap();
        let client = Connected::to(address, None).unwrap();
        client.try_send(b"ping").unwrap();
        ours.turn_away().unwrap();
        let mut buffer = [0; 16];
        assert_eq!(ours.recv_now(&mut buffer).unwrap().len, 4);
        let nothing = ours.recv_now(&mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn a_closed_port_is_reported_though_nothing_comes_to_read() {
        let closed = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let client = Connected::to(closed.local_addr().unwrap(), None).unwrap();
        drop(closed);
        client.try_send(b"ping").unwrap();
        client.readable().await.unwrap();
        let refused = client.try_recv(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_bound_address_is_noticed_and_can_be_shared_all_the_same() {
        let first = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        assert!(is_bound(address));
        let _second = bind(address).unwrap();
        drop(first);
        assert!(is_bound(address));
        drop(_second);
        assert!(!is_bound(address));
    }
}

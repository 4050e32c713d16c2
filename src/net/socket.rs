//! Socket options, and the few system calls that tokio does not offer: listen with SO_REUSEPORT,
//! accept without registering, connect without waiting, ask for a peer's state without reading.
//!
//! Invariant: the crate's only `unsafe` is here: [`watch`], `borrow`, and the options that no
//! library offers, in `set_option`, [`delivery`] and [`peer_user`].
//!
//! Leaves out reading and writing: see [`crate::net::stream`].

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// Binds one of a port's listening sockets. Sets, once, the options that accepted connections
/// inherit.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    // A client that vanishes without a FIN must not keep its connection, and the drain of an
    // endpoint, for ever.
    let patience = TcpKeepalive::new()
        .with_time(CLIENT_KEEPALIVE)
        .with_interval(CLIENT_KEEPALIVE / 6)
        .with_retries(6);
    socket.set_tcp_keepalive(&patience)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether a socket listens on this address already. With [`listen`], two processes of one user can
/// listen on one address, and each gets a part of the clients.
pub fn is_listened_on(address: SocketAddr) -> bool {
    let probe = || {
        let socket = unbound(address)?;
        socket.bind(&address.into())
    };
    address.port() != 0 && probe().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// A TCP socket that can be bound to this address.
fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // So that 0.0.0.0 and :: can be bound side by side.
        socket.set_only_v6(true)?;
    }
    // Closed connections of the address do not count.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Whether this machine's kernel speaks IPv6.
pub fn has_ipv6() -> bool {
    static HAS: LazyLock<bool> =
        LazyLock::new(|| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok());
    *HAS
}

/// Registers a listening socket with this thread's runtime. The accept of tokio's own listener
/// would register every accepted connection with it too, but another worker may serve that
/// connection.
pub fn watch(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    #[allow(unsafe_code)]
    // SAFETY: a `TcpListener` owns its descriptor, keeps it for life and never changes it.
    let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    watched.map_err(|error| error.into_parts().1)
}

/// Makes a listening socket leave new clients unanswered, while the handshakes under way complete.
/// The clients try again a second later, and reach another socket. Without this, the close of the
/// listening socket would reset each client that came after the last accept.
///
/// The filter sees a segment from the TCP header on. Byte 13 holds the flags (RFC 9293 section
/// 3.1). Accepted connections inherit the filter, to no effect.
pub fn ignore_new_connections(listener: &TcpListener) -> io::Result<()> {
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    // Opcodes of classic BPF, <https://docs.kernel.org/networking/filter.html>.
    let (load_byte, and, jump_if_equal, pass) = (0x30, 0x54, 0x15, 0x06);
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(load_byte, 0, 0, 13),
        SockFilter::new(and, 0, 0, SYN | ACK),
        SockFilter::new(jump_if_equal, 0, 1, SYN),
        SockFilter::new(pass, 0, 0, 0),
        SockFilter::new(pass, 0, 0, u32::MAX),
    ])
}

/// Accepts one connection. It is not yet registered with any runtime.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let (fd, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer = peer.and_then(|any| SocketAddr::try_from(any).ok());
    Ok((
        fd,
        peer.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?,
    ))
}

/// The address that the client of an accepted connection asked for, where the kernel has led the
/// connection to another one (DNAT); `None` where the kernel knows nothing of it.
pub fn original_destination(accepted: &impl AsFd) -> Option<SocketAddr> {
    let socket = SockRef::from(accepted);
    let v4 = socket.original_dst_v4();
    let found = v4.or_else(|_| socket.original_dst_v6());
    found.ok()?.as_socket()
}

/// Closes an accepted connection with a reset.
pub fn reset(accepted: OwnedFd) {
    // This fails only for a socket that is already dead.
    let _ = SockRef::from(&accepted).set_linger(Some(Duration::ZERO));
}

/// Whether an error of accept or connect is a shortage of this machine: descriptors, memory or
/// ports. The peer has no part in it.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const SHORT: [Errno; 6] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
        Errno::AGAIN,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| SHORT.iter().any(|e| e.raw_os_error() == code))
}

/// Starts to connect to an endpoint. Writable means connected or failed, see
/// [`TcpStream::take_error`]. Keepalive is set a second later ([`set_keepalive`]), since
/// most connections for one request have closed by then.
///
/// `from`: the address of this end, see [`bind_source`].
pub fn connect(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = from {
        bind_source(&socket, from)?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(e) => return Err(e),
    }
    TcpStream::from_std(socket.into())
}

/// Binds a socket to an address of this machine that is on no interface: it has a route of type `local`
/// for it. The port is chosen at the connect.
///
/// # Errors
/// `NotFound`: this machine does not have the address.
pub fn bind_source(socket: &Socket, from: IpAddr) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    if from.is_ipv6() {
        // For IPv6, such a route is not enough. This needs no privilege.
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
    }
    let bound = socket.bind(&SocketAddr::new(from, 0).into());
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => io::ErrorKind::NotFound.into(),
        _ => error,
    })
}

/// Makes the kernel end an upstream connection that has nothing under way and whose peer answers
/// no probe for about `silence`.
///
/// The kernel sends no such probes while bytes are under way: see [`delivery`]. They are not bounded
/// by TCP_USER_TIMEOUT, since a closed receive window counts as silence there, although the peer
/// answers each probe of it. The kernel sends these probes ever more seldom; where it can (Linux
/// 6.15), it is told to send them at least once in `silence`.
///
/// `fd` must be open. The caller removes a socket's number from its list before it closes the
/// socket, and calls this on the thread that closes it.
pub fn set_keepalive(fd: RawFd, silence: Duration) -> io::Result<()> {
    /// Not in libc yet. `include/uapi/linux/tcp.h`: milliseconds, from 1,000 to 120,000.
    const TCP_RTO_MAX_MS: libc::c_int = 44;
    let longest = silence.clamp(Duration::from_secs(1), Duration::from_secs(120));
    // A kernel before 6.15 does not have it.
    let _ = set_option(
        fd,
        libc::IPPROTO_TCP,
        TCP_RTO_MAX_MS,
        longest.as_millis() as libc::c_int,
    );
    let second = Duration::from_secs(1);
    let (idle, interval, probes) = match silence < 4 * second {
        true => (second, second, 1),
        false => (silence * 5 / 8, silence / 8, 3),
    };
    SockRef::from(&borrow(fd)).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(idle.max(second))
            .with_interval(interval.max(second))
            .with_retries(probes),
    )
}

/// Makes a UDP socket forward datagrams as they are: one that is too long for a link is sent in
/// fragments, as a new socket does it, and each read takes one. `fd` must be open.
pub fn forward_plainly(fd: RawFd, is_ipv6: bool) -> io::Result<()> {
    set_option(
        fd,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_WANT,
    )?;
    if is_ipv6 {
        let want = libc::IPV6_PMTUDISC_WANT;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, want)?;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    }
    // A kernel before 5.0 does not have it.
    let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 0);
    Ok(())
}

fn set_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    #[allow(unsafe_code)]
    // SAFETY: the kernel reads `size` bytes at the pointer, and keeps none of it.
    let failed = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the reading of a connection whose peer has vanished: what it had sent can still be read,
/// then comes an end. `fd` must be open, as for [`set_keepalive`].
pub fn stop_reading(fd: RawFd) {
    // This fails only for a socket that is already dead.
    let _ = rustix::net::shutdown(borrow(fd), rustix::net::Shutdown::Read);
}

/// `fd` must be open for as long as the result is used.
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    #[allow(unsafe_code)] // SAFETY: it is open, see above.
    unsafe {
        BorrowedFd::borrow_raw(fd)
    }
}

/// How far a peer has received what was sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Something was sent since the last segment came from the peer: bytes, or a probe of its closed
    /// window.
    pub unanswered: bool,
    /// Bytes are not acknowledged, or wait until the peer's window opens.
    pub waiting: bool,
    /// How many bytes the peer has acknowledged. The SYN counts as the first.
    pub acknowledged: u64,
    /// The number of segments that came from the peer. It changes with every sign of life.
    pub heard: u32,
}

/// Asks the kernel for a [`Delivery`]. `None`: the connection is not established (yet, or any more).
pub fn delivery(fd: RawFd) -> Option<Delivery> {
    // `struct tcp_info` of include/uapi/linux/tcp.h, up to tcpi_notsent_bytes (Linux 4.6).
    let mut info = [0u8; 148];
    let mut size = info.len() as libc::socklen_t;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `size` bytes at the pointer, and the length to `size`.
    let failed = unsafe {
        let into = info.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size)
    };
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    const SYN_SENT: u8 = 2;
    const CLOSED: u8 = 7;
    if failed != 0 || size < info.len() as libc::socklen_t || matches!(info[0], SYN_SENT | CLOSED) {
        return None;
    }
    let (window_probes, unacknowledged, not_sent) = (info[3], word(24), word(144));
    // A receiver without room drops what is in flight and says so each time. In between, nothing is
    // sent, so nothing can be heard: what counts is a segment that was sent after the last answer.
    let (since_sent, since_heard) = (word(44), word(56));
    let is_overdue = unacknowledged > 0 && since_sent < since_heard;
    let mut acknowledged = [0; 8];
    acknowledged.copy_from_slice(&info[120..128]);
    Some(Delivery {
        unanswered: window_probes > 0 || is_overdue,
        waiting: not_sent > 0 || unacknowledged > 0,
        acknowledged: u64::from_ne_bytes(acknowledged),
        heard: word(140),
    })
}

/// The user of the process at the other end of a Unix socket, as it was at its connect or listen.
///
/// Its process is of no interest: from another PID namespace, as from another pod, its number is 0,
/// and then `rustix` reports an error instead of the user.
pub fn peer_user(socket: &impl AsFd) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `size` bytes at the pointer, and the length to `size`.
    let failed = unsafe {
        let (fd, into) = (socket.as_fd().as_raw_fd(), (&raw mut peer).cast());
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut size)
    };
    match failed {
        0 => Ok(peer.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the close of a connection a reset.
pub fn reset_on_close(stream: &TcpStream) {
    // This fails only for a socket that is already dead.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What is known of a peer without reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// No end is known.
    Open,
    /// It will send nothing more, but may still read.
    HalfClosed,
    /// It has reset the connection, or both directions have ended.
    Gone,
}

/// Asks the kernel for the peer's state.
pub fn peer(stream: &TcpStream) -> Peer {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    match poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    ) {
        Ok(0) => Peer::Open,
        Ok(_) if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) => Peer::Gone,
        Ok(_) => Peer::HalfClosed,
        Err(_) => Peer::Open,
    }
}

/// Whether an idle connection is really still there: nothing to read, and no end.
pub fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    matches!(
        rustix::net::recv(stream, &mut byte, flags),
        Err(rustix::io::Errno::AGAIN)
    ) && sockopt::socket_error(stream).is_ok_and(|e| e.is_ok())
}

/// Whether there is nothing to read but the end.
pub fn has_ended(stream: &TcpStream) -> bool {
    has_ended_fd(stream.as_raw_fd())
}

/// The same of an open socket by its number.
pub fn has_ended_fd(fd: RawFd) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(borrow(fd), &mut byte, flags) {
        Ok((read, _)) => read == 0,
        Err(error) => error != rustix::io::Errno::AGAIN,
    }
}

/// Raises the soft limit of descriptors to the hard one. Returns the limit now in force.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How often to ask for the state of a peer from which nothing is read, so that no read reports its
/// reset.
pub const LOOK: Duration = Duration::from_millis(500);
/// Connections that may wait for an accept; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A client that is silent this long is probed, six times within the same time again.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(60);

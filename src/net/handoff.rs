//! Descriptors that pass from one process to another, over a Unix socket in the network namespace that
//! both share.
//!
//! Invariants: only processes of this user speak with each other. A message arrives whole, with all of
//! its descriptors, or not at all. All functions block, for a bounded time where a peer is waited for.
//!
//! The name is an abstract one: two containers on a node's network share these, and share no folder.
//! See unix(7), sections "Abstract sockets" and `SCM_RIGHTS`.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg, shutdown, socket_with,
};

use crate::net::socket;

/// A socket at which processes of this user may ask.
#[derive(Debug)]
pub struct Doorway(OwnedFd);

/// A connection to another process of this user.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What one message holds.
#[derive(Debug)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, in the sender's order.
    pub descriptors: Vec<OwnedFd>,
}

impl Doorway {
    /// Takes this name.
    ///
    /// # Errors
    /// `AddrInUse`: another process has it.
    pub fn open(name: &str) -> io::Result<Self> {
        let socket = new_socket()?;
        bind(&socket, &address(name)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Waits for the next process of this user. Others are turned away.
    ///
    /// # Errors
    /// `InvalidInput` after [`Self::close`], else the kernel's.
    pub fn accept(&self) -> io::Result<Channel> {
        loop {
            // Accepting takes a descriptor before it waits, and would keep it from the clients.
            retry_on_intr(|| poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None))?;
            let channel = Channel(accept_with(&self.0, SocketFlags::CLOEXEC)?);
            if is_own(&channel.0)? {
                return Ok(channel);
            }
        }
    }

    /// Wakes [`Self::accept`] on another thread, and turns everybody away from now on. The name is
    /// free when this is dropped.
    pub fn close(&self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

impl Channel {
    /// Asks the process that has this name.
    ///
    /// # Errors
    /// `ConnectionRefused`: nobody has it. `PermissionDenied`: a process of another user has it.
    pub fn connect(name: &str) -> io::Result<Self> {
        let socket = new_socket()?;
        connect(&socket, &address(name)?)?;
        match is_own(&socket)? {
            true => Ok(Self(socket)),
            false => Err(ErrorKind::PermissionDenied.into()),
        }
    }

    /// How long each send and each receive may wait; `None`: for ever.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Recv, patience)?;
        Ok(set_socket_timeout(&self.0, Timeout::Send, patience)?)
    }

    /// Sends one message. The descriptors stay open here.
    ///
    /// # Errors
    /// `BrokenPipe`: the peer reads no more, and has not got this one. `WouldBlock`: it took nothing in
    /// time.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if bytes.len() > LONGEST
            || !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)?;
        Ok(())
    }

    /// Receives the next message; `None`: the peer sends no more.
    ///
    /// # Errors
    /// `InvalidData`: more came than a message holds. `WouldBlock`: nothing came in time.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; LONGEST];
        let message = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = part {
                descriptors.extend(some);
            }
        }
        if (message.flags).intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ErrorKind::InvalidData.into());
        }
        if message.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(message.bytes);
        Ok(Some(Received { bytes, descriptors }))
    }

    /// Whether the peer has closed it.
    pub fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::HUP)];
        let is_polled = retry_on_intr(|| poll(&mut polled, Some(&Timespec::default())));
        is_polled.is_ok() && polled[0].revents().contains(PollFlags::HUP)
    }

    /// The peer's sends fail from now on. What it has sent before can still be received.
    pub fn stop_receiving(&self) {
        let _ = shutdown(&self.0, Shutdown::Read);
    }
}

/// A file in memory that holds these bytes, for what is too long for a message.
///
/// # Errors
/// The kernel's.
pub fn file_of(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(
        "ebbtide",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    for part in parts {
        file.write_all(part)?;
    }
    file.rewind()?;
    Ok(file.into())
}

/// Reads `length` bytes of such a file.
///
/// # Errors
/// It is shorter, or `length` is more than a process ever passes on.
pub fn read_file(file: OwnedFd, length: usize) -> io::Result<Vec<u8>> {
    if length > LARGEST_FILE {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    File::from(file).read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn new_socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

fn address(name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

fn is_own(socket: &impl AsFd) -> io::Result<bool> {
    Ok(socket::peer_user(socket)? == rustix::process::geteuid().as_raw())
}

/// The most descriptors of a message: the kernel takes 253.
const MOST: usize = 250;
/// The longest message. The kernel's smallest default buffer holds several.
const LONGEST: usize = 32 << 10;
/// The largest file: two pipes and two buffers are far less.
const LARGEST_FILE: usize = 8 << 20;
const BACKLOG: i32 = 8;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;

    fn name() -> String {
        format!("ebbtide-test-{}-{}", std::process::id(), fastrand::u64(..))
    }

    #[test]
    fn a_connection_passes_with_what_was_not_read_of_it() {
        let (name, listener) = (name(), TcpListener::bind("127.0.0.1:0").unwrap());
        let door = Doorway::open(&name).unwrap();
        assert_eq!(
            Doorway::open(&name).unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
        let from = Channel::connect(&name).unwrap();
        let to = door.accept().unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"later").unwrap();
        let (socket, file) = (listener.accept().unwrap().0, file_of(&[b"ear", b"lier"]));
        let file = file.unwrap();
        from.send(b"one", &[socket.as_fd(), file.as_fd()]).unwrap();
        drop((socket, file));
        let mut received = to.receive().unwrap().unwrap();
        assert_eq!(received.bytes, b"one");
        let earlier = read_file(received.descriptors.pop().unwrap(), 7).unwrap();
        assert_eq!(earlier, b"earlier");
        let mut socket = TcpStream::from(received.descriptors.pop().unwrap());
        let mut later = [0; 5];
        socket.read_exact(&mut later).unwrap();
        assert_eq!(&later, b"later");
        assert!(!to.is_closed());
        drop(from);
        assert!(to.is_closed());
        assert!(to.receive().unwrap().is_none());
    }

    /// Else two processes could both take themselves for the owner of a connection.
    #[test]
    fn what_was_sent_before_the_end_of_receiving_arrives_and_nothing_after_it() {
        let name = name();
        let door = Doorway::open(&name).unwrap();
        let (from, to) = (Channel::connect(&name).unwrap(), door.accept().unwrap());
        to.send(b"before", &[]).unwrap();
        from.stop_receiving();
        assert_eq!(
            to.send(b"after", &[]).unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
        assert_eq!(from.receive().unwrap().unwrap().bytes, b"before");
        assert!(from.receive().unwrap().is_none());
    }

    #[test]
    fn a_doorway_closes_while_it_waits_and_its_name_is_free() {
        let name = name();
        let door = Arc::new(Doorway::open(&name).unwrap());
        let waiting = door.clone();
        let waiting = std::thread::spawn(move || waiting.accept().map(drop));
        door.close();
        assert!(waiting.join().unwrap().is_err());
        let refused = Channel::connect(&name).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(door);
        assert!(Doorway::open(&name).is_ok());
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let name = name();
        let door = Doorway::open(&name).unwrap();
        let (from, to) = (Channel::connect(&name).unwrap(), door.accept().unwrap());
        assert!(from.send(&vec![0; LONGEST + 1], &[]).is_err());
        from.send(&vec![1; LONGEST], &[]).unwrap();
        assert_eq!(to.receive().unwrap().unwrap().bytes.len(), LONGEST);
        assert!(read_file(file_of(&[b"short"]).unwrap(), 6).is_err());
        assert!(read_file(file_of(&[]).unwrap(), usize::MAX).is_err());
        to.set_patience(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(to.receive().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

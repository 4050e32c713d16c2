//! One exchange with the kernel by netlink: a request with its answers, or a batch for nf_tables, which
//! the kernel takes whole or not at all.
//!
//! Each exchange has a socket of its own, so no answer of another one can wait in it. The kernel
//! answers at once, and nothing here waits for anybody else.

use std::io;
use std::time::Duration;

use netlink_bindings::nftables::{Chained, Nfgenmsg};
use netlink_bindings::traits::{NetlinkChained, NetlinkRequest, Protocol};
use rustix::fd::OwnedFd;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt,
};

/// Sends one batch with what `put` puts into it, and waits until the kernel has taken or refused it.
pub(super) fn send(put: impl FnOnce(&mut Chained<'static>)) -> io::Result<()> {
    let mut border = Nfgenmsg::new();
    border.set_res_id(SUBSYSTEM);
    let mut batch = Chained::new(FIRST_SEQUENCE);
    batch.request().op_batch_begin_do(&border);
    put(&mut batch);
    batch.request().op_batch_end_do(&border);
    let batch = batch.finalize();
    // The kernel answers each message but the first and the last. (Since 6.10 these two as well.)
    let mut open = batch.chain_len() - 2;
    if open == 0 {
        return Ok(());
    }
    let socket = open_socket(Some(netlink::NETFILTER), batch.payload())?;
    let mut refused = None;
    receive(&socket, |kind, sequence, payload| {
        let Some(index) = batch.get_index(sequence) else {
            return Ok(false);
        };
        if kind == ERROR && index > 0 && index < batch.chain_len() - 1 {
            open -= 1;
        }
        if let (ERROR, Err(error)) = (kind, verdict(payload)) {
            let name = batch.name(index);
            refused.get_or_insert_with(|| io::Error::new(error.kind(), format!("{name}: {error}")));
        }
        // A refused batch may leave messages unanswered.
        Ok(open == 0 || refused.is_some())
    })?;
    refused.map_or(Ok(()), Err)
}

/// Sends one request, and gives each message of its answer to `take`.
pub(super) fn ask<R: NetlinkRequest>(
    request: &R,
    take: impl FnMut(R::ReplyType<'_>) -> io::Result<()>,
) -> io::Result<()> {
    match request.protocol() {
        Protocol::Raw { request_type, .. } => ask_as(request_type, request, take),
        Protocol::Generic(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Sends what a request holds as a message of another type.
pub(super) fn ask_as<R: NetlinkRequest>(
    request_type: u16,
    request: &R,
    mut take: impl FnMut(R::ReplyType<'_>) -> io::Result<()>,
) -> io::Result<()> {
    const REQUEST: u16 = 1;
    const ACKNOWLEDGE: u16 = 4;
    let Protocol::Raw { protonum, .. } = request.protocol() else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    // Absent, it is `NETLINK_ROUTE`, the number 0.
    let protocol = (protonum != 0).then_some(netlink::NETFILTER);
    let mut message = Vec::new();
    message.extend(((HEADER + request.payload().len()) as u32).to_ne_bytes());
    message.extend(request_type.to_ne_bytes());
    message.extend((request.flags() | REQUEST | ACKNOWLEDGE).to_ne_bytes());
    message.extend(FIRST_SEQUENCE.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(request.payload());
    let socket = open_socket(protocol, &message)?;
    receive(&socket, |kind, _, payload| match kind {
        ERROR | DONE => verdict(payload).map(|()| true),
        _ => take(R::decode_reply(payload)).map(|()| false),
    })
}

fn open_socket(protocol: Option<net::Protocol>, message: &[u8]) -> io::Result<OwnedFd> {
    let family = AddressFamily::NETLINK;
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(family, SocketType::RAW, flags, protocol)?;
    // The kernel takes a message only if the buffer holds it whole. What it answers to 10,000 rules
    // fits, too.
    sockopt::set_socket_send_buffer_size_force(&socket, message.len() + ROOM)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, message.len() + ROOM)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    match net::send(&socket, message, SendFlags::empty())? {
        sent if sent == message.len() => Ok(socket),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Gives each message that comes to `take` (its type, sequence number and payload), until `take`
/// returns `true`.
fn receive(
    socket: &OwnedFd,
    mut take: impl FnMut(u16, u32, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; ROOM];
    loop {
        let (read, _) = net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..read];
        while rest.len() >= HEADER {
            let word = |at: usize| {
                u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]])
            };
            let (length, sequence) = (word(0) as usize, word(8));
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            if length < HEADER || length > rest.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if take(kind, sequence, &rest[HEADER..length])? {
                return Ok(());
            }
            // Messages begin at multiples of four.
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// What an answer of type [`ERROR`] or [`DONE`] says.
fn verdict(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) | None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
    }
}

pub(super) fn invalid(error: impl std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{error:?}"))
}

/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const SUBSYSTEM: u16 = 10;
const FIRST_SEQUENCE: u32 = 1;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLMSG_ERROR`, which is also the answer to what went well, and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// More than one read of answers holds, in bytes.
const ROOM: usize = 64 << 10;
/// The kernel answers at once, so this time passes only if an answer was lost.
const PATIENCE: Duration = Duration::from_secs(5);

//! The sockets of listeners pass to the process that replaces this one when that begins, long before any
//! client does.
//!
//! Invariant: a process that has got the socket of a UDP listener does not read it before its predecessor
//! has left it, or has ended. So a client stays with the process that has its session, and no datagram is
//! lost between both. Both accept from the socket of a TCP listener.
//!
//! With a socket of its own, the new process would get a part of the UDP clients as soon as it binds, and
//! would know nothing of their sessions. The connections in the queue of a socket of its own would die with
//! it; and those that come to an old socket while it closes would wait for a second.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::contract::policy::Transport;
use crate::net::handoff::Channel;
use crate::proxy::doors::{DoorName, Release};
use crate::proxy::shared::{Shared, WorkerCommand};

/// What the new process asks. An old process that does not know it refuses it as an offer.
const ASK: &[u8] = br#""listeners""#;
/// What an earlier version asks: it knows the sockets of UDP listeners only.
const ASK_UDP: &[u8] = br#""doors""#;

/// What the old process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Said {
    /// This socket, which comes with the message.
    Door(DoorName),
    /// Those were all.
    All,
    /// This process does not read this socket now. It waits for one byte: whether the other one does.
    Released(DoorName),
}

/// A socket that a predecessor has as well.
pub(super) struct Inherited {
    /// The socket.
    pub(super) socket: OwnedFd,
    /// Cancelled: the predecessor reads it no more, or the listener here has closed.
    pub(super) may_read: CancellationToken,
}

/// The sockets of a predecessor.
#[derive(Clone, Default)]
pub struct Inheritance(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Those that no listener here has.
    spare: HashMap<(Transport, SocketAddr), HashMap<usize, Inherited>>,
    /// Those that a listener here has, and does not read yet.
    waiting: HashMap<DoorName, CancellationToken>,
}

impl Inheritance {
    /// Asks the process that serves at this admin port. Blocks, for a bounded time. Nothing: there is
    /// none, or it gives none.
    pub fn of_predecessor(port: u16) -> Self {
        let it = Self::default();
        match Channel::connect(&name(port)).and_then(|channel| it.ask(channel)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => {
                tracing::warn!(%error, "the process that this one replaces does not share its listening sockets; each gets a part of the clients");
            }
        }
        it
    }

    fn ask(&self, channel: Channel) -> io::Result<()> {
        channel.set_patience(Some(PATIENCE))?;
        channel.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
        channel.send(ASK, &[])?;
        let mut asked = [ASK_UDP].into_iter();
        loop {
            let mut received = channel.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
            match serde_json::from_slice(&received.bytes) {
                Ok(Said::Door(door)) => {
                    let socket = received.descriptors.pop().ok_or(ErrorKind::InvalidData)?;
                    let inherited = Inherited {
                        socket,
                        may_read: CancellationToken::new(),
                    };
                    let spare = &mut self.lock().spare;
                    let of_listener = spare.entry((door.transport, door.listener)).or_default();
                    of_listener.insert(door.number, inherited);
                }
                Ok(Said::All) => break,
                Ok(Said::Released(_)) => return Err(ErrorKind::InvalidData.into()),
                // It is of an earlier version.
                Err(_) => match asked.next() {
                    Some(less) => channel.send(less, &[])?,
                    None => return Ok(()),
                },
            }
        }
        if !self.lock().spare.is_empty() {
            channel.set_patience(None)?;
            let it = self.clone();
            let thread = std::thread::Builder::new().name("doors".into());
            thread.spawn(move || it.listen(&channel))?;
        }
        Ok(())
    }

    /// Takes in what the predecessor leaves, until it has ended.
    fn listen(&self, channel: &Channel) {
        while let Ok(Some(received)) = channel.receive() {
            let Ok(Said::Released(door)) = serde_json::from_slice(&received.bytes) else {
                break;
            };
            let mut state = self.lock();
            let mut waiting = state.waiting.remove(&door);
            // The listener here has closed before it ever read.
            waiting.take_if(|it| it.is_cancelled());
            if waiting.is_none()
                && let Some(spare) = state.spare.get_mut(&(door.transport, door.listener))
            {
                // No listener here wants it. Nobody would read it.
                spare.remove(&door.number);
            }
            drop(state);
            if channel.send(&[u8::from(waiting.is_some())], &[]).is_err() {
                break;
            }
            if let Some(may_read) = waiting {
                may_read.cancel();
            }
        }
        let state = std::mem::take(&mut *self.lock());
        state.waiting.values().for_each(CancellationToken::cancel);
    }

    /// How many sockets a listener at this address has, if it wants `count`: no socket of TCP is left, or
    /// what waits in its queue would be lost.
    pub(super) fn sockets(
        &self,
        transport: Transport,
        listener: SocketAddr,
        count: usize,
    ) -> usize {
        let spare = &self.lock().spare;
        let has = spare.get(&(transport, listener)).map_or(0, HashMap::len);
        match transport {
            Transport::Tcp => count.max(has),
            Transport::Udp => count,
        }
    }

    /// The sockets of the listener at this address. Those of UDP only if there are `count` of them: each has
    /// the sessions of a worker.
    pub(super) fn take(
        &self,
        transport: Transport,
        listener: SocketAddr,
        count: usize,
    ) -> Option<Vec<Inherited>> {
        let mut state = self.lock();
        let all = state.spare.remove(&(transport, listener))?;
        if transport == Transport::Udp && all.len() != count {
            return None;
        }
        for (number, inherited) in &all {
            let door = DoorName {
                transport,
                listener,
                number: *number,
            };
            state.waiting.insert(door, inherited.may_read.clone());
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        Some(all.into_iter().map(|(_, it)| it).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets that a process asks for with these bytes; `None`: they say something else.
pub(super) fn asked(bytes: &[u8]) -> Option<&'static [Transport]> {
    match bytes {
        ASK => Some(&[Transport::Tcp, Transport::Udp]),
        ASK_UDP => Some(&[Transport::Udp]),
        _ => None,
    }
}

/// Gives a successor this process's sockets of these transports, and tells it which of them it may read.
/// Returns when the successor has ended.
///
/// # Errors
/// The successor does not answer. This process reads on.
pub(super) fn give(channel: &Channel, shared: &Shared, transports: &[Transport]) -> io::Result<()> {
    let (show, shown) = std::sync::mpsc::channel();
    shared.post_all(|| WorkerCommand::ShowDoors(show.clone()));
    drop(show);
    let mut given = HashSet::new();
    for (door, socket) in shown {
        if !transports.contains(&door.transport) {
            continue;
        }
        channel.send(&serde_json::to_vec(&Said::Door(door))?, &[socket.as_fd()])?;
        given.insert(door);
    }
    let (ask, asked) = std::sync::mpsc::channel::<Release>();
    shared.doors.add(ask);
    channel.send(&serde_json::to_vec(&Said::All)?, &[])?;
    channel.set_patience(Some(PATIENCE))?;
    while !given.is_empty() && !channel.is_closed() {
        let Release { door, taken } = match asked.recv_timeout(LOOK) {
            Ok(release) => release,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let is_taken = given.contains(&door) && {
            channel.send(&serde_json::to_vec(&Said::Released(door))?, &[])?;
            let answer = channel.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
            answer.bytes == [1]
        };
        let _ = taken.send(is_taken);
    }
    Ok(())
}

/// The name at which the process of this admin port is asked.
pub(super) fn name(port: u16) -> String {
    format!("ebbtide-clients-{port}")
}

/// How often to look whether the successor is still there.
const LOOK: Duration = Duration::from_secs(1);
/// How long each answer of the other process may take.
const PATIENCE: Duration = Duration::from_secs(2);

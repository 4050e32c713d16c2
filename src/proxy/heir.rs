//! A client's connection passes to the process that replaces this one: what is said of it, and the way
//! there.
//!
//! Invariant: a connection has one owner. This process reads and writes nothing of it from the moment
//! it is offered until the other process has said whether it takes it, and again only if it does not.
//!
//! What TLS or HTTP/2 have agreed on cannot pass on, so only plain connections are offered.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::contract::endpoint::Lease;
use crate::contract::listener::ListenerSpec;
use crate::contract::name::{ObjectName, PodRef};
use crate::net::handoff::file_of;
use crate::net::stream::Stream;

/// The process that replaces this one, as the workers reach it.
#[derive(Debug, Clone)]
pub struct Heir {
    /// Unbounded, since a worker must not wait. `room` bounds it.
    offers: mpsc::UnboundedSender<Offered>,
    /// A connection on its way has its descriptors twice.
    room: Arc<Semaphore>,
}

/// The connections on their way, where the thread gets them that speaks with the other process.
#[derive(Debug)]
pub struct Offers(mpsc::UnboundedReceiver<Offered>);

/// A connection on its way, as the thread gets it that speaks with the other process.
#[derive(Debug)]
pub struct Offered {
    /// What it is.
    pub offer: Offer,
    /// The client's, the endpoint's if there is one, and a file with the bytes that were read and not
    /// yet written, if there are any.
    pub descriptors: Vec<OwnedFd>,
    /// Whether the other process has taken it. Dropped: the other process is gone.
    pub taken: oneshot::Sender<bool>,
    _room: Option<OwnedSemaphorePermit>,
}

/// What is said of a connection. The other process may be of another version: it refuses what it does
/// not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Offer {
    /// A client of HTTP/1 between two requests.
    Http(HttpClient),
    /// A client and an endpoint that are joined byte for byte.
    Pair(Box<Joined>),
    /// A UDP client with its endpoint.
    Session(Box<UdpSession>),
}

/// A client of HTTP/1 between two requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpClient {
    /// Where the client came in.
    pub door: Door,
    /// The address of the connection's peer.
    pub neighbour: IpAddr,
    /// Whether it has had no request yet.
    pub is_new: bool,
    /// Whether it has had no answer yet.
    pub is_unanswered: bool,
    /// How many bytes of its next request have been read.
    pub unread: usize,
}

/// A client and an endpoint that are joined byte for byte: a TCP connection, or a tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Joined {
    /// Where the client came in.
    pub door: Door,
    /// The Service, and the number of its port.
    pub service: ObjectName,
    /// See `service`.
    pub port: u16,
    /// The endpoint's address, and its pod.
    pub endpoint: SocketAddr,
    /// See `endpoint`.
    pub pod: Option<PodRef>,
    /// How long its drain leaves it; `None`: the endpoint does not drain.
    pub drain_ms: Option<u64>,
    /// Since when the client is here.
    pub age_ms: u64,
    /// Since when no byte has moved.
    pub still_ms: u64,
    /// Whether it has a line of its own in the access log. A tunnel's request has had it.
    pub is_logged: bool,
    /// The route that has led the connection.
    pub route: Option<String>,
    /// From the client.
    pub up: Half,
    /// From the endpoint.
    pub down: Half,
}

/// A UDP client with its endpoint. Its only socket is the one to the endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UdpSession {
    /// Where the client's datagrams come in.
    pub door: Door,
    /// The address of this machine that the client sends to.
    pub asked: Option<IpAddr>,
    /// The Service, and the number of its port.
    pub service: ObjectName,
    /// See `service`.
    pub port: u16,
    /// The endpoint's address, and its pod.
    pub endpoint: SocketAddr,
    /// See `endpoint`.
    pub pod: Option<PodRef>,
    /// Whether the endpoint sees the client's address.
    pub is_named: bool,
    /// Since when no datagram has come, in either direction.
    pub still_ms: u64,
}

/// One direction of a pair.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Half {
    /// How many bytes have been read and not yet written.
    pub waiting: usize,
    /// How many have been read in all.
    pub moved: u64,
    /// The source has ended it.
    pub ended: bool,
    /// The sink has been told so.
    pub shut: bool,
}

/// Where a client came in, and who it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Door {
    /// The listener's address.
    pub listener: SocketAddr,
    /// The listener's name.
    pub name: String,
    /// The client's address: the connection's peer, or the one that a PROXY header has named.
    pub client: SocketAddr,
}

impl Door {
    /// How a listener and its client are named.
    pub(super) fn of(listener: &ListenerSpec, client: SocketAddr) -> Self {
        Self {
            listener: listener.address,
            name: listener.name.clone(),
            client,
        }
    }
}

/// A connection that this process takes over, on its way to a worker.
#[derive(Debug)]
pub struct Adopted {
    /// As the other process has offered it.
    pub offer: Offer,
    /// As in [`Offered`], without the file.
    pub sockets: Vec<OwnedFd>,
    /// The bytes that were read and not yet written.
    pub owed: Vec<u8>,
    /// The listener where the client came in, or one in its name.
    pub listener: Arc<ListenerSpec>,
    /// A pair's right to go on with its endpoint.
    pub lease: Option<Lease>,
    /// Its permit of `Shared::connections`.
    pub permit: OwnedSemaphorePermit,
}

impl Heir {
    /// The way to a process, and where its thread gets the connections.
    pub fn new() -> (Self, Offers) {
        let (offers, offered) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(AT_ONCE));
        (Self { offers, room }, Offers(offered))
    }

    /// Whether it can still be asked.
    pub fn is_there(&self) -> bool {
        !self.offers.is_closed()
    }

    /// Whether it can be asked now, and would answer soon. Until then a client is better served here.
    pub(super) fn has_room(&self) -> bool {
        self.is_there() && self.room.available_permits() > 0
    }

    /// Offers a connection of these sockets, of which these bytes were read and not yet written.
    /// `Some(true)`: it is the other's, and must be dropped here. `Some(false)`: the other does not want
    /// it. `None`: the other cannot be asked any more. Not cancellation safe.
    pub async fn offer(&self, offer: Offer, streams: &[&Stream], owed: &[&[u8]]) -> Option<bool> {
        let mut sockets = Vec::with_capacity(streams.len() + 1);
        for stream in streams {
            // Without a descriptor it stays here.
            let Some(Ok(copy)) = stream.plain().map(|it| it.as_fd().try_clone_to_owned()) else {
                return Some(false);
            };
            sockets.push(copy);
        }
        self.offer_sockets(offer, sockets, owed).await
    }

    /// Like [`Self::offer`], with copies of the sockets. Not cancellation safe.
    pub async fn offer_sockets(
        &self,
        offer: Offer,
        mut descriptors: Vec<OwnedFd>,
        owed: &[&[u8]],
    ) -> Option<bool> {
        let room = self.room.clone().acquire_owned().await.ok();
        if owed.iter().any(|it| !it.is_empty()) {
            match file_of(owed) {
                Ok(file) => descriptors.push(file),
                Err(_) => return Some(false),
            }
        }
        let (taken, answer) = oneshot::channel();
        let offered = Offered {
            offer,
            descriptors,
            taken,
            _room: room,
        };
        self.offers.send(offered).ok()?;
        answer.await.ok()
    }
}

impl Offers {
    /// Waits for one, then takes what else is there, up to `most` of them. Empty: there is nobody left
    /// who could offer one. Blocks.
    pub fn next(&mut self, most: usize) -> Vec<Offered> {
        let mut some: Vec<_> = self.0.blocking_recv().into_iter().collect();
        while !some.is_empty()
            && some.len() < most
            && let Ok(next) = self.0.try_recv()
        {
            some.push(next);
        }
        some
    }
}

impl Drop for Offers {
    /// A receiver that is only dropped leaves what another thread is just sending in the channel until
    /// the last sender is gone. The client of such a connection would wait for ever.
    fn drop(&mut self) {
        self.0.close();
        while !matches!(self.0.try_recv(), Err(TryRecvError::Disconnected)) {
            std::thread::yield_now();
        }
    }
}

impl Offer {
    /// How many sockets come with it.
    pub fn sockets(&self) -> usize {
        match self {
            Self::Http(_) => 1,
            Self::Pair(_) => 2,
            Self::Session(_) => 1,
        }
    }

    /// How many bytes come with it, if that is a number at all.
    pub fn owed(&self) -> Option<usize> {
        match self {
            Self::Http(client) => Some(client.unread),
            Self::Pair(pair) => pair.up.waiting.checked_add(pair.down.waiting),
            Self::Session(_) => Some(0),
        }
    }
}

/// How many connections are on their way at a time.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Barrier;

    use super::*;

    /// A worker may offer a connection in the moment in which the talk with the other process ends.
    #[test]
    fn an_offer_is_answered_however_late_it_comes() {
        let door = Door {
            listener: ([127, 0, 0, 1], 80).into(),
            name: "web".into(),
            client: ([127, 0, 0, 1], 1).into(),
        };
        let offer = Offer::Http(HttpClient {
            neighbour: door.client.ip(),
            door,
            is_new: true,
            is_unanswered: true,
            unread: 0,
        });
        for at in 0..60_000 {
            let ((heir, offers), both) = (Heir::new(), Barrier::new(2));
            let mut asks = pin!(heir.offer(offer.clone(), &[], &[]));
            let mut ask = std::task::Context::from_waker(std::task::Waker::noop());
            let is_ready = std::thread::scope(|scope| {
                scope.spawn(|| {
                    both.wait();
                    for _ in 0..at % 40 {
                        std::hint::spin_loop();
                    }
                    drop(offers);
                });
                both.wait();
                asks.as_mut().poll(&mut ask).is_ready()
            });
            // "Gone" is an answer: the connection stays here.
            assert!(is_ready || asks.poll(&mut ask).is_ready(), "offer {at}");
        }
    }
}

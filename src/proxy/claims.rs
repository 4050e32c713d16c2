//! UDP sessions that another process has handed over, until a worker gets a datagram of their client.
//!
//! Invariant: a claim lasts as long as the session of the worker that has it.
//!
//! Only the kernel knows which worker gets a client's next datagram, and while listeners open and close
//! it changes its mind. So the worker that gets it takes the session from the one that has it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::contract::endpoint::Endpoint;
use crate::contract::listener::ListenerId;

/// What identifies a UDP session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The listener.
    pub listener: ListenerId,
    /// The client.
    pub client: SocketAddr,
    /// The address of this machine that the client sends to.
    pub asked: Option<IpAddr>,
}

/// What a worker needs to go on with such a session.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The socket to the endpoint. With the worker's own copy, a session has two descriptors, as a
    /// connection has.
    pub socket: Arc<OwnedFd>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// The endpoint sees the client's address.
    pub is_named: bool,
    /// The worker that has the session.
    pub owner: usize,
}

/// All such sessions. Each has a permit of all client connections, which bounds them.
#[derive(Debug, Default)]
pub struct Claims {
    /// So that a process that has taken nothing over takes no lock.
    count: AtomicUsize,
    all: Mutex<HashMap<Key, Claim>>,
}

/// A worker's hold on a claim. Dropped: the claim ends, unless another worker has it.
#[derive(Debug)]
pub struct Held {
    claims: Arc<Claims>,
    key: Key,
    owner: usize,
}

impl Claims {
    /// Adds one, or replaces it.
    pub fn add(self: &Arc<Self>, key: Key, claim: Claim) -> Held {
        let owner = claim.owner;
        let mut all = self.lock();
        all.insert(key, claim);
        self.count.store(all.len(), Ordering::Relaxed);
        drop(all);
        self.held(key, owner)
    }

    /// Makes `owner` the one that has this session. Returns the claim as it was before.
    pub fn take_over(self: &Arc<Self>, key: Key, owner: usize) -> Option<(Claim, Held)> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut all = self.lock();
        let claim = all.get_mut(&key)?;
        let before = claim.clone();
        claim.owner = owner;
        drop(all);
        Some((before, self.held(key, owner)))
    }

    /// Whether this worker has this session.
    pub fn is_owned(&self, key: &Key, owner: usize) -> bool {
        self.lock().get(key).is_some_and(|it| it.owner == owner)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn held(self: &Arc<Self>, key: Key, owner: usize) -> Held {
        let claims = self.clone();
        Held { claims, key, owner }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Claim>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Of which session it is.
    pub fn key(&self) -> Key {
        self.key
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.claims.lock();
        if all.get(&self.key).is_some_and(|it| it.owner == self.owner) {
            all.remove(&self.key);
            if all.is_empty() {
                *all = HashMap::new();
            }
            self.claims.count.store(all.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::contract::endpoint::EndpointId;

    #[test]
    fn a_claim_ends_with_the_session_of_the_worker_that_has_taken_it_last() {
        let (notices, _told) = mpsc::unbounded_channel();
        let address: SocketAddr = ([127, 0, 0, 1], 53).into();
        let claim = Claim {
            socket: Arc::new(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()),
            endpoint: Endpoint::new(EndpointId(1), address, None, None, notices),
            is_named: false,
            owner: 0,
        };
        let key = Key {
            listener: ListenerId(1),
            client: address,
            asked: None,
        };
        let claims = Arc::new(Claims::default());
        assert!(claims.take_over(key, 1).is_none());
        let first = claims.add(key, claim);
        let (before, second) = claims.take_over(key, 1).unwrap();
        assert_eq!(before.owner, 0);
        drop(first);
        let (before, third) = claims.take_over(key, 0).unwrap();
        assert_eq!(before.owner, 1);
        drop(second);
        assert_eq!(claims.len(), 1);
        drop(third);
        assert!(claims.is_empty());
        assert!(claims.take_over(key, 1).is_none());
    }
}

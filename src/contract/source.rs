//! The shadow of each client, as `ebbtide net` has told it: an address of the node from which the proxy
//! connects to endpoints, and in whose place the kernel writes the client's own (`net/source.rs`).
//!
//! Invariants: a shadow is used only while its last answer is younger than the connection to
//! `ebbtide net`, which may have given it to another client before. A client waits for an answer once,
//! for a bounded time, and then the node's own address has to do.
//!
//! A lookup takes one of several mutexes for a moment: once a connect, never a request on a connection
//! that is kept. Memory is bounded: a full part forgets all its clients, and they are asked for again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::contract::policy::Scope;

/// A client, and what kind of address it has asked for.
pub type Client = (IpAddr, Scope);

/// The shadows of clients. The workers ask, and the link to `ebbtide net` answers.
#[derive(Default)]
pub struct Sources {
    /// The node's own addresses: they need no shadow.
    nodes: Vec<IpAddr>,
    /// It has a random key, because clients choose their addresses.
    hasher: RandomState,
    parts: [Mutex<HashMap<Client, Known>>; PARTS],
    /// `ebbtide net` is connected.
    is_open: AtomicBool,
    /// Who waits for an answer. At most [`ASKED`] clients.
    waiting: Mutex<HashMap<Client, Arc<Notify>>>,
    /// The clients among them that `ebbtide net` has not been asked for.
    new: Mutex<Vec<Client>>,
    asked: Notify,
}

/// What is known of a client.
#[derive(Debug, Clone, Copy)]
struct Known {
    shadow: Option<IpAddr>,
    /// When a client without a shadow is asked for again.
    until: Option<Instant>,
}

impl Sources {
    /// Nothing is known.
    pub fn new(nodes: Vec<IpAddr>) -> Self {
        Self {
            nodes,
            ..Self::default()
        }
    }

    /// Whether this is an address of the node that the configuration names, or of its loopback.
    pub fn is_node(&self, client: IpAddr) -> bool {
        client.is_loopback() || self.nodes.contains(&client)
    }

    /// The client's shadow, if the answer is known (`Some(None)`: it has none), or if there is nobody
    /// to ask.
    pub fn known(&self, client: Client) -> Option<Option<IpAddr>> {
        let known = self.part(client).get(&client).copied();
        let known = known.filter(|it| it.until.is_none_or(|until| Instant::now() < until));
        match known {
            Some(known) => Some(known.shadow),
            None => (!self.is_open.load(Ordering::Acquire)).then_some(None),
        }
    }

    /// The client's shadow. Asks for it, and waits for the answer, if it is not known.
    ///
    /// Cancellation safe: the answer is kept for the next caller.
    pub async fn find(&self, client: Client) -> Option<IpAddr> {
        if let Some(known) = self.known(client) {
            return known;
        }
        let answered = {
            let mut waiting = lock(&self.waiting);
            if waiting.len() >= ASKED && !waiting.contains_key(&client) {
                return None;
            }
            let answered = waiting.entry(client).or_insert_with(|| {
                lock(&self.new).push(client);
                self.asked.notify_one();
                Arc::default()
            });
            // It hears of an answer from this moment on.
            answered.clone().notified_owned()
        };
        let _ = tokio::time::timeout(PATIENCE, answered).await;
        if self.known(client).is_none() {
            self.note(client, None);
        }
        self.known(client).flatten()
    }

    /// The shadow could not be used: it is asked for again.
    pub fn forget(&self, client: Client) {
        self.part(client).remove(&client);
    }

    /// The clients to ask for, if there are any.
    pub fn take_asked(&self) -> Vec<Client> {
        std::mem::take(&mut lock(&self.new))
    }

    /// Returns when there may be clients to ask for. Cancellation safe.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Takes in an answer.
    pub fn answer(&self, client: Client, shadow: Option<IpAddr>) {
        self.note(client, shadow);
        if let Some(waiting) = lock(&self.waiting).remove(&client) {
            waiting.notify_waiters();
        }
    }

    /// `ebbtide net` is connected, or gone. While it is gone, what it has answered before counts: its
    /// table is still there. The next one may know other shadows.
    pub fn set_open(&self, is_open: bool) {
        if is_open {
            self.parts.iter().for_each(|part| lock(part).clear());
        }
        self.is_open.store(is_open, Ordering::Release);
        if !is_open {
            lock(&self.new).clear();
            for (_, waiting) in lock(&self.waiting).drain() {
                waiting.notify_waiters();
            }
        }
    }

    fn note(&self, client: Client, shadow: Option<IpAddr>) {
        let until = shadow.is_none().then(|| Instant::now() + AGAIN);
        let mut part = self.part(client);
        if part.len() >= HELD && !part.contains_key(&client) {
            part.clear();
        }
        let known = part.entry(client).or_insert(Known { shadow, until });
        // The answer may have come while somebody gave up waiting for it.
        if shadow.is_some() || known.shadow.is_none() {
            *known = Known { shadow, until };
        }
    }

    fn part(&self, client: Client) -> MutexGuard<'_, HashMap<Client, Known>> {
        lock(&self.parts[self.hasher.hash_one(client) as usize % PARTS])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many that workers seldom wait for each other.
const PARTS: usize = 32;
/// The most clients of one part: 65,536 in all parts, in about 5 MB.
const HELD: usize = 2048;
/// The most clients that are asked for at one moment.
const ASKED: usize = 1024;
/// How long a client waits for its shadow.
const PATIENCE: Duration = Duration::from_millis(200);
/// When a client without a shadow is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn client(n: u8) -> Client {
        ([10, 244, 0, n].into(), Scope::Internal)
    }

    const SHADOW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 2));

    #[tokio::test]
    async fn a_client_is_asked_for_once_and_each_of_its_connections_gets_the_answer() {
        let sources = Arc::new(Sources::new(Vec::new()));
        assert_eq!(sources.known(client(2)), Some(None), "nobody to ask");
        sources.set_open(true);
        assert_eq!(sources.known(client(2)), None);
        let find = || {
            let sources = sources.clone();
            tokio::spawn(async move { sources.find(client(2)).await })
        };
        let (first, second) = (find(), find());
        sources.asked().await;
        tokio::task::yield_now().await;
        assert_eq!(sources.take_asked(), [client(2)]);
        sources.answer(client(2), Some(SHADOW));
        assert_eq!(first.await.unwrap(), Some(SHADOW));
        assert_eq!(second.await.unwrap(), Some(SHADOW));
        // It counts while `ebbtide net` is away, and not for the next one.
        sources.set_open(false);
        assert_eq!(sources.find(client(2)).await, Some(SHADOW));
        sources.set_open(true);
        assert_eq!(sources.known(client(2)), None);
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_a_moment_and_an_answer_that_comes_late_counts() {
        let sources = Sources::new(Vec::new());
        sources.set_open(true);
        assert_eq!(sources.find(client(2)).await, None);
        assert_eq!(sources.known(client(2)), Some(None), "not again at once");
        assert_eq!(sources.take_asked(), [client(2)]);
        sources.answer(client(2), Some(SHADOW));
        assert_eq!(sources.find(client(2)).await, Some(SHADOW));
        // `ebbtide net` ends: nobody waits for it.
        let mut cx = Context::from_waker(Waker::noop());
        let mut find = pin!(sources.find(client(3)));
        assert!(find.as_mut().poll(&mut cx).is_pending());
        sources.set_open(false);
        assert_eq!(find.poll(&mut cx), Poll::Ready(None));
        assert_eq!(sources.take_asked(), []);
        // All places of those who wait are taken.
        sources.set_open(true);
        for n in 0..ASKED {
            let other = ((n as u32).to_be_bytes().into(), Scope::External);
            lock(&sources.waiting).insert(other, Arc::default());
        }
        assert_eq!(sources.find(client(3)).await, None);
        assert_eq!(sources.take_asked(), []);
    }

    #[test]
    fn memory_is_bounded_whatever_clients_come() {
        let sources = Sources::new(Vec::new());
        for n in 0..100_000u32 {
            sources.answer((n.to_be_bytes().into(), Scope::External), Some(SHADOW));
        }
        let held: usize = sources.parts.iter().map(|part| lock(part).len()).sum();
        assert!((1..=PARTS * HELD).contains(&held), "{held}");
    }
}

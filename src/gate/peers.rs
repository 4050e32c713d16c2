//! The other instances: each is told of pods that leave, and asked what it has of them.
//!
//! Invariant: an instance gets one question at a time, about all pods that wait for one. What waits for
//! an instance is bounded, and one that is silent holds up no other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::gate::read_key;
use crate::gate::link::Link;
use crate::gate::log::{Has, Holder};
use crate::gate::message::MOST;
use crate::observe::metrics::Metrics;

/// All other instances that are known.
pub(super) struct Peers {
    peers: RefCell<BTreeMap<SocketAddr, Rc<Peer>>>,
    rounds: RefCell<HashMap<String, Weak<Round>>>,
    key: Key,
    metrics: Arc<Metrics>,
}

/// One instance.
struct Peer {
    address: SocketAddr,
    /// It is no instance any more, and its task ends.
    is_gone: Cell<bool>,
    /// The pods that it is to be told of.
    queue: RefCell<BTreeSet<String>>,
    wake: Notify,
}

/// What the instances say of one pod.
pub(super) struct Round {
    uid: String,
    said: RefCell<BTreeMap<SocketAddr, Said>>,
    changed: Notify,
}

/// What an instance has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing yet.
    Pending,
    /// Nothing in time.
    Silent,
    Has(Has),
}

impl Peers {
    pub(super) fn new(key: Option<PathBuf>, metrics: Arc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            peers: RefCell::default(),
            rounds: RefCell::default(),
            key: Key(key, RefCell::default()),
            metrics,
        })
    }

    /// The addresses of the instances are these now.
    pub(super) fn set(self: &Rc<Self>, addresses: &BTreeSet<SocketAddr>) {
        let mut peers = self.peers.borrow_mut();
        peers.retain(|address, peer| {
            let stays = addresses.contains(address);
            if !stays {
                peer.is_gone.set(true);
                peer.wake.notify_one();
            }
            stays
        });
        for address in addresses {
            peers.entry(*address).or_insert_with(|| {
                let peer = Rc::new(Peer {
                    address: *address,
                    is_gone: Cell::new(false),
                    queue: RefCell::default(),
                    wake: Notify::new(),
                });
                tokio::task::spawn_local(serve(peer.clone(), self.clone()));
                peer
            });
        }
        self.metrics
            .gate
            .peers
            .set(i64::try_from(peers.len()).unwrap_or(i64::MAX));
        for round in self.rounds.borrow().values().filter_map(Weak::upgrade) {
            round
                .said
                .borrow_mut()
                .retain(|peer, _| peers.contains_key(peer));
            round.changed.notify_waiters();
        }
    }

    /// The instances' addresses.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.peers.borrow().keys().copied().collect()
    }

    /// Tells every instance that a pod leaves.
    pub(super) fn hint(&self, uid: &str) {
        for peer in self.peers.borrow().values() {
            peer.tell(uid);
        }
    }

    /// Tells every instance that a pod leaves, and asks each what it has of it, until the round is
    /// dropped. Those who ask about one pod share a round.
    pub(super) fn ask(&self, uid: &str) -> Rc<Round> {
        let mut rounds = self.rounds.borrow_mut();
        if let Some(round) = rounds.get(uid).and_then(Weak::upgrade) {
            return round;
        }
        rounds.retain(|_, round| round.strong_count() > 0);
        let said = self
            .peers
            .borrow()
            .keys()
            .map(|peer| (*peer, Said::Pending))
            .collect();
        let round = Rc::new(Round {
            uid: uid.to_owned(),
            said: RefCell::new(said),
            changed: Notify::new(),
        });
        rounds.insert(uid.to_owned(), Rc::downgrade(&round));
        self.hint(uid);
        round
    }

    fn round(&self, uid: &str) -> Option<Rc<Round>> {
        self.rounds.borrow().get(uid).and_then(Weak::upgrade)
    }

    /// The key that all instances share.
    pub(super) fn key(&self) -> Option<Vec<u8>> {
        self.key.bytes()
    }
}

impl Peer {
    fn tell(&self, uid: &str) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() < WAITING {
            queue.insert(uid.to_owned());
            self.wake.notify_one();
        }
    }

    fn take(&self) -> Vec<String> {
        let mut queue = self.queue.borrow_mut();
        let some = std::iter::from_fn(|| queue.pop_first());
        some.take(MOST).collect()
    }
}

/// Tells one instance what waits for it, until it is no instance any more.
async fn serve(peer: Rc<Peer>, peers: Rc<Peers>) {
    let address = peer.address;
    let (mut link, mut was_silent) = (Link::new(address), false);
    let mut next_again = Instant::now();
    while !peer.is_gone.get() {
        let mut pods = peer.take();
        let left = peers.left(address);
        if Instant::now() >= next_again {
            pods.extend(left);
            pods.truncate(MOST);
            next_again = Instant::now() + AGAIN;
        } else if pods.is_empty() && !left.is_empty() {
            let _ = tokio::time::timeout_at(next_again.into(), peer.wake.notified()).await;
            continue;
        }
        if pods.is_empty() {
            peer.wake.notified().await;
            continue;
        }
        let found = link.tell(&pods, peers.key().as_deref()).await;
        if let Err(error) = &found {
            peers.metrics.gate.silent.inc_by(pods.len() as u64);
            if !was_silent {
                tracing::warn!(peer = %address, %error, "an instance does not say what it has of a pod; it is not waited for");
            }
        }
        was_silent = found.is_err();
        let found = found.ok();
        for (at, uid) in pods.iter().enumerate() {
            if let Some(round) = peers.round(uid) {
                let has = found.as_ref().map(|found| found[at]);
                round.note(address, has.map_or(Said::Silent, Said::Has));
            }
        }
    }
}

impl Peers {
    /// The pods of which an instance still had something.
    fn left(&self, peer: SocketAddr) -> Vec<String> {
        let rounds = self.rounds.borrow();
        let rounds = rounds.values().filter_map(Weak::upgrade);
        let left = rounds.filter(|round| match round.said.borrow().get(&peer) {
            Some(Said::Has(has)) => !has.is_nothing(),
            _ => false,
        });
        left.map(|round| round.uid.clone()).collect()
    }
}

impl Round {
    fn note(&self, peer: SocketAddr, said: Said) {
        // One that came later is not waited for.
        if let Some(before) = self.said.borrow_mut().get_mut(&peer) {
            *before = said;
            self.changed.notify_waiters();
        }
    }

    /// Whether every instance has answered, or has been silent.
    pub(super) fn is_answered(&self) -> bool {
        !self
            .said
            .borrow()
            .values()
            .any(|said| *said == Said::Pending)
    }

    /// Whether no instance that has answered has anything of the pod.
    pub(super) fn is_clear(&self) -> bool {
        let said = self.said.borrow();
        !said
            .values()
            .any(|said| matches!(said, Said::Has(has) if !has.is_nothing()))
    }

    /// Those that have something of the pod, or have not answered.
    pub(super) fn holders(&self) -> Vec<Holder> {
        let said = self.said.borrow();
        let left = said.iter().filter_map(|(peer, said)| {
            let has = match said {
                Said::Has(has) if has.is_nothing() => return None,
                Said::Has(has) => Some(*has),
                Said::Pending | Said::Silent => None,
            };
            Some(Holder {
                peer: Some(*peer),
                has,
            })
        });
        left.take(NAMED).collect()
    }

    /// Waits until an instance has said something else.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The file of the key, and what it held when it was read last.
struct Key(Option<PathBuf>, RefCell<Option<(Instant, Vec<u8>)>>);

impl Key {
    /// A key that cannot be read any more stays as it was.
    fn bytes(&self) -> Option<Vec<u8>> {
        let path = self.0.as_ref()?;
        let mut read = self.1.borrow_mut();
        if read.as_ref().is_none_or(|(at, _)| at.elapsed() > REREAD) {
            match (read_key(path), &mut *read) {
                (Ok(key), read) => *read = Some((Instant::now(), key)),
                (Err(error), Some((at, _))) => {
                    *at = Instant::now();
                    tracing::warn!(error, "gate.key: the last key stays in force");
                }
                // Nobody can guess this one: nothing is believed.
                (Err(error), read) => {
                    tracing::warn!(error, "gate.key");
                    let mut random: [u8; 32] = std::array::from_fn(|_| fastrand::u8(..));
                    // Those of fastrand could be guessed. They stay only if the system has no others.
                    let _ = aws_lc_rs::rand::fill(&mut random);
                    *read = Some((Instant::now(), random.to_vec()));
                }
            }
        }
        read.as_ref().map(|(_, key)| key.clone())
    }
}

/// Pods that may wait for an instance. More leave at once only on very large nodes.
const WAITING: usize = 4_096;
/// How often an instance that still has something is asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the key's file is read.
const REREAD: Duration = Duration::from_secs(10);
/// The most instances that a receipt names.
const NAMED: usize = 16;

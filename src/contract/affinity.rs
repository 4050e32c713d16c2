//! Session affinity: which endpoint of a Service port each client address was sent to last, for
//! `sessionAffinity: ClientIP`.
//!
//! Invariant: while an endpoint is chosen for a client, no other worker chooses one for the same
//! client. So all connections of a client move to one new endpoint when theirs leaves.
//!
//! Only ports of Services with session affinity have a table. Its mutexes are held for one pick. The
//! table knows endpoints by their ids, so it keeps no endpoint alive.
//!
//! Memory is bounded. Each part of the table has a newer and an older half of at most `HALF`
//! clients. A client that is seen moves to the newer half. When that half is full, or has existed for
//! the timeout, it becomes the older one, and the clients of the half before are forgotten. So a
//! client is forgotten too early only if many thousand others came after it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::contract::clock::millis;
use crate::contract::endpoint::{EndpointId, Lease};

/// The affinity of one Service port, as published. All copies share one table.
#[derive(Debug, Clone)]
pub struct Affinity {
    /// How long a client is remembered after its last connection or request.
    timeout: Duration,
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// It has a random key, because clients choose their addresses.
    hasher: RandomState,
    parts: [Mutex<Part>; PARTS],
}

/// The clients of one part of the table.
#[derive(Debug, Default)]
struct Part {
    newer: HashMap<IpAddr, Remembered>,
    older: HashMap<IpAddr, Remembered>,
    /// When the newer half was empty last.
    began_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    stick: Stick,
    used_ms: u64,
}

/// The endpoint that a client was sent to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stick {
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// Its place in a list of endpoints when it was seen there last. It saves a search.
    pub place: usize,
}

impl Affinity {
    /// An empty table.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            table: Arc::default(),
        }
    }

    /// The same table with another timeout, which counts for the clients in it, too.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Chooses an endpoint for a client, and remembers the choice. `pick` gets the endpoint of the
    /// client's last choice within the timeout, and returns the lease and the endpoint's place in its
    /// list, as far as it knows the place. It must not wait.
    pub fn choose(
        &self,
        client: IpAddr,
        now: Instant,
        pick: impl FnOnce(Option<Stick>) -> Option<(Lease, usize)>,
    ) -> Option<Lease> {
        let client = client.to_canonical();
        let (now_ms, timeout_ms) = (millis(now), self.timeout_ms());
        let part = self.table.hasher.hash_one(client) as usize % PARTS;
        let mut part = self.table.parts[part]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = part.newer.get(&client).or(part.older.get(&client));
        let before = before.filter(|it| now_ms < it.used_ms + timeout_ms);
        let (lease, place) = pick(before.map(|it| it.stick))?;
        let remembered = Remembered {
            stick: Stick {
                endpoint: lease.endpoint().id,
                place,
            },
            used_ms: now_ms,
        };
        if let Some(known) = part.newer.get_mut(&client) {
            *known = remembered;
            return Some(lease);
        }
        let full = part.newer.len() >= HALF;
        let forgotten = part.turn(now_ms, timeout_ms, full);
        part.newer.insert(client, remembered);
        drop(part);
        drop(forgotten);
        Some(lease)
    }

    /// Forgets clients that were not seen for the timeout. Some of them stay for up to twice as long,
    /// without effect.
    pub fn forget_expired(&self, now: Instant) {
        for part in &self.table.parts {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let forgotten = part.turn(millis(now), self.timeout_ms(), false);
            drop(part);
            drop(forgotten);
        }
    }

    /// How many clients are in the table.
    #[cfg(test)]
    fn clients(&self) -> usize {
        let part = |part: &Mutex<Part>| {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.newer.len() + part.older.len()
        };
        self.table.parts.iter().map(part).sum()
    }

    fn timeout_ms(&self) -> u64 {
        self.timeout.as_millis() as u64
    }
}

impl Part {
    /// Makes the newer half the older one if it is `full` or old. Returns the half that is
    /// forgotten, so that its memory can be freed after the mutex.
    fn turn(&mut self, now_ms: u64, timeout_ms: u64, full: bool) -> Option<Forgotten> {
        if !full && now_ms < self.began_ms + timeout_ms {
            return None;
        }
        self.began_ms = now_ms;
        let newer = std::mem::take(&mut self.newer);
        Some(std::mem::replace(&mut self.older, newer))
    }
}

type Forgotten = HashMap<IpAddr, Remembered>;

/// So many that workers seldom wait for each other.
const PARTS: usize = 32;
/// The most clients in half a part: 32,768 clients in all parts, in about 3 MB.
const HALF: usize = 512;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Barrier;

    use tokio::sync::mpsc;

    use super::*;
    use crate::contract::endpoint::Endpoint;

    fn endpoint(n: u64) -> Arc<Endpoint> {
        let address = ([10, 0, 0, 1], 80).into();
        let notices = mpsc::unbounded_channel().0;
        let endpoint = Endpoint::new(EndpointId(n), address, None, None, notices);
        endpoint.set_out(false);
        endpoint
    }

    fn client(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    /// Chooses `endpoint` at this second, and returns what was remembered.
    fn choose(affinity: &Affinity, n: u32, endpoint: &Arc<Endpoint>, second: u64) -> Option<u64> {
        let now = Instant::now() + Duration::from_secs(1_000 + second);
        let mut before = None;
        let lease = affinity.choose(client(n), now, |stick| {
            before = stick.map(|stick| stick.endpoint.0);
            Some((endpoint.enter()?, 0))
        });
        assert_eq!(lease.unwrap().endpoint().id, endpoint.id);
        before
    }

    #[test]
    fn a_client_is_remembered_until_the_timeout_after_its_last_choice() {
        let affinity = Affinity::new(Duration::from_secs(10));
        let (a, b) = (endpoint(1), endpoint(2));
        assert_eq!(choose(&affinity, 1, &a, 0), None);
        assert_eq!(choose(&affinity, 2, &b, 0), None, "another client");
        for second in [9, 18, 27] {
            assert_eq!(choose(&affinity, 1, &a, second), Some(1), "it is refreshed");
        }
        assert_eq!(choose(&affinity, 1, &b, 38), None);
        assert_eq!(choose(&affinity, 1, &b, 39), Some(2));
        let longer = affinity.clone().with_timeout(Duration::from_secs(100));
        assert_eq!(choose(&longer, 1, &b, 60), Some(2), "one table");
    }

    #[test]
    fn an_address_is_one_client_in_either_family() {
        let affinity = Affinity::new(Duration::from_secs(10));
        let (a, now) = (endpoint(1), Instant::now());
        let mapped = Ipv4Addr::from_bits(1).to_ipv6_mapped().into();
        for (client, known) in [(client(1), false), (mapped, true)] {
            let pick = |stick: Option<Stick>| {
                assert_eq!(stick.is_some(), known);
                Some((a.enter()?, 0))
            };
            assert!(affinity.choose(client, now, pick).is_some());
        }
    }

    #[test]
    fn the_table_is_bounded_and_the_last_clients_stay() {
        let affinity = Affinity::new(Duration::from_secs(10_800));
        let a = endpoint(1);
        let many = 4 * (PARTS * HALF) as u32;
        for n in 0..many {
            choose(&affinity, n, &a, 0);
            choose(&affinity, u32::MAX, &a, 0);
        }
        assert!(
            affinity.clients() <= 2 * PARTS * HALF,
            "{}",
            affinity.clients()
        );
        assert_eq!(choose(&affinity, many - 1, &a, 1), Some(1));
        assert_eq!(choose(&affinity, u32::MAX, &a, 1), Some(1), "it came often");
        assert_eq!(choose(&affinity, 0, &a, 1), None);
    }

    #[test]
    fn expired_clients_are_removed_and_no_endpoint_is_kept_alive() {
        let affinity = Affinity::new(Duration::from_secs(10));
        let a = endpoint(1);
        let gone = Arc::downgrade(&a);
        for n in 0..100 {
            choose(&affinity, n, &a, 0);
        }
        drop(a);
        assert!(gone.upgrade().is_none());
        let at = |second: u64| Instant::now() + Duration::from_secs(1_000 + second);
        affinity.forget_expired(at(11));
        affinity.forget_expired(at(22));
        assert_eq!(affinity.clients(), 0);
    }

    #[test]
    fn clients_that_choose_at_the_same_time_agree() {
        let affinity = Affinity::new(Duration::from_secs(10));
        let endpoints: Vec<_> = (0..50).map(endpoint).collect();
        let now = Instant::now();
        let together = Barrier::new(8);
        let choose = |_| {
            together.wait();
            let lease = affinity.choose(client(1), now, |stick| {
                let place =
                    stick.map_or_else(|| fastrand::usize(..50), |it| it.endpoint.0 as usize);
                // The others come meanwhile.
                std::thread::sleep(Duration::from_millis(2));
                Some((endpoints[place].enter()?, place))
            });
            lease.unwrap().endpoint().id
        };
        let chosen: Vec<_> = std::thread::scope(|threads| {
            let choose = &choose;
            let all: Vec<_> = (0..8).map(|n| threads.spawn(move || choose(n))).collect();
            all.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(chosen.iter().all(|id| *id == chosen[0]), "{chosen:?}");
    }
}

//! The last 15 minutes of each Service that has traffic, one entry a second: what was sent to each
//! generation of pods, what failed, was replayed or held, and the latencies.
//!
//! A thread of its own samples once a second what the workers count anyway, so a request pays
//! nothing for it. A generation is what shares a `pod-template-hash`, as in the replay rules
//! (contract 3.6). Endpoints without one are one generation.
//!
//! Invariant: the memory of a Service is at most [`Ring::LARGEST`] bytes, whatever its traffic is, and
//! a Service without traffic for 15 minutes has no ring. There are at most [`SERVICES`] rings.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::Endpoint;
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::snapshot::{Port, Published};
use crate::observe::ring::{BUCKETS, Generation, Ring, Second, Sums};

/// How many Services have a ring at the same time. A further one gets a ring when another has had
/// no traffic for 15 minutes.
pub const SERVICES: usize = 10_000;

/// The rings of all Services. The workers and the control thread never wait for its lock.
pub struct History {
    start: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The second that was sampled last, counted from the start.
    second: u64,
    /// When it ended, by the wall clock.
    end: SystemTime,
    ports: HashMap<PortKey, Last>,
    services: BTreeMap<ObjectName, Ring>,
}

/// The counters of a port when it was sampled last.
struct Last {
    counts: Counts,
    second: u64,
    /// Its endpoints that were in use. One that has left the table since is looked at once more.
    endpoints: Vec<Arc<Endpoint>>,
}

#[derive(Default, Clone, PartialEq)]
struct Counts {
    failures: u64,
    replayed: u64,
    held: u64,
    connections: u64,
    /// Observations up to each bound.
    latency: [u64; BUCKETS],
}

/// The last 15 minutes of a Service, or as much of it as its ring holds. All lists are equally long,
/// oldest second first.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// When the last second ended.
    pub end: SystemTime,
    /// Requests and TCP connections that were sent to the pods of each generation, by its
    /// `pod-template-hash`, in the order in which the generations came.
    pub generations: Vec<Generation>,
    /// The other counts of each second.
    pub seconds: Vec<Second>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            inner: Mutex::new(Inner {
                second: 0,
                end: SystemTime::now(),
                ports: HashMap::new(),
                services: BTreeMap::new(),
            }),
        }
    }
}

impl History {
    /// Samples once a second until the process ends, or `stopped` says so. Blocks its thread.
    pub fn run(&self, snapshot: &Published, stopped: impl Fn() -> bool) {
        while !stopped() {
            let next = Duration::from_secs(self.start.elapsed().as_secs() + 1);
            std::thread::sleep(next.saturating_sub(self.start.elapsed()));
            self.sample(snapshot, self.start.elapsed().as_secs(), SystemTime::now());
        }
    }

    /// Adds what has happened since the last call as the second that ends now. Seconds in between
    /// stay empty.
    pub fn sample(&self, snapshot: &Published, second: u64, now: SystemTime) {
        let mut inner = self.lock();
        let Inner {
            ports, services, ..
        } = &mut *inner;
        let mut sums: HashMap<ObjectName, Sums> = HashMap::new();
        snapshot.each_port(|port| {
            if !port.metrics.is_used() {
                return;
            }
            let now = Counts::of(&port.metrics);
            let last = match ports.get_mut(&port.key) {
                Some(last) => last,
                None => ports.entry(port.key.clone()).or_insert_with(|| Last {
                    counts: Counts::default(),
                    second,
                    endpoints: Vec::new(),
                }),
            };
            last.second = second;
            // The endpoints of a port without clients are not looked at.
            if now == last.counts && port.metrics.connections_active.get() == 0 {
                last.endpoints.clear();
                return;
            }
            let before = std::mem::replace(&mut last.counts, now.clone());
            let sums = sums.entry(port.key.service.clone()).or_default();
            now.add_since(&before, sums);
            add_generations(port, &mut last.endpoints, sums);
        });
        ports.retain(|_, last| last.second == second);
        for (service, sums) in sums.iter().filter(|(_, sums)| !sums.is_empty()) {
            if services.len() < SERVICES || services.contains_key(service) {
                let ring = services.entry(service.clone()).or_default();
                ring.push(second, sums);
            }
        }
        services.retain(|_, ring| ring.skip_to(second));
        (inner.second, inner.end) = (second, now);
    }

    /// What the ring of a Service holds; `None` if it has none.
    pub fn of(&self, service: &ObjectName) -> Option<Series> {
        let inner = self.lock();
        let (generations, seconds) = inner.services.get(service)?.read();
        Some(Series {
            end: inner.end,
            generations,
            seconds,
        })
    }

    /// The last second of each Service that has a ring, with the sum over its generations.
    pub fn last_seconds(&self) -> Vec<(ObjectName, u64, Second)> {
        let inner = self.lock();
        let rings = inner.services.iter();
        rings
            .map(|(service, ring)| {
                let (requests, last) = ring.last();
                (service.clone(), requests, last)
            })
            .collect()
    }

    /// Bytes of all rings.
    pub fn bytes(&self) -> usize {
        self.lock().services.values().map(Ring::bytes).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of(metrics: &ServiceMetrics) -> Self {
        let mut latency = [0; BUCKETS];
        let counts = metrics.request_duration.cumulative();
        latency
            .iter_mut()
            .zip(counts)
            .for_each(|(to, (_, count))| *to = count);
        Self {
            failures: metrics.failures.get(),
            replayed: metrics.replayed_so_far(),
            held: metrics.held_so_far(),
            connections: metrics.connections_tcp.get(),
            latency,
        }
    }

    /// A counter that has shrunk belongs to a port that was removed and made again.
    fn add_since(&self, before: &Self, sums: &mut Sums) {
        sums.failures += self.failures.saturating_sub(before.failures);
        sums.replayed += self.replayed.saturating_sub(before.replayed);
        sums.held += self.held.saturating_sub(before.held);
        for (index, sum) in sums.latency.iter_mut().enumerate() {
            *sum += self.latency[index].saturating_sub(before.latency[index]);
        }
    }
}

fn add_generations(port: &Port, used: &mut Vec<Arc<Endpoint>>, sums: &mut Sums) {
    let before = std::mem::take(used);
    for endpoint in before.iter().chain(port.all.iter()) {
        let count = endpoint.tally.dispatched.take();
        if count == 0 {
            continue;
        }
        let name = endpoint.template_hash.clone().unwrap_or_default();
        match sums.generations.iter_mut().find(|(it, _)| *it == name) {
            Some((_, sum)) => *sum += count,
            None => sums.generations.push((name, count)),
        }
    }
    used.extend(port.all.iter().filter(|it| it.was_used()).cloned());
}

//! Which endpoint gets the next connection or request: two random choices, the cheaper one, a lease on it.
//!
//! Invariant: only endpoints of the published snapshot that grant a lease are ever returned, usable ones before
//! serving-and-terminating ones, untried before tried. It leaves waiting (see [`crate::hold`]) to its callers.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use crate::endpoint::{Endpoint, EndpointId, Lease, millis};
use crate::routing::Port;

/// What a pick is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// In-flight requests, weighed with the response time.
    Http,
    /// Active plus connecting.
    Tcp,
}

/// What the caller would rather not get.
#[derive(Debug, Clone, Copy, Default)]
pub struct Avoid<'a> {
    /// Used again only where no other endpoint is usable.
    pub tried: &'a [EndpointId],
    /// A lost endpoint: its siblings (same `pod-template-hash`) are the next to leave.
    pub siblings_of: Option<&'a Endpoint>,
}

/// Picks an endpoint and enters it. `None`: nothing may be dispatched to right now.
pub fn pick(port: &Port, cost: Cost, avoid: &Avoid<'_>, now: Instant) -> Option<Lease> {
    for endpoints in [&port.usable, &port.last_resort] {
        if let Some(lost) = avoid.siblings_of
            && let Some(lease) = stranger(endpoints, avoid.tried, lost)
        {
            return Some(lease);
        }
        if let Some(lease) = two_choices(endpoints, cost, avoid.tried, now) {
            return Some(lease);
        }
        if let Some(lease) = scan(endpoints, avoid.tried).or_else(|| scan(endpoints, &[])) {
            return Some(lease);
        }
    }
    None
}

/// Whether a pick has a chance.
pub fn any(port: &Port) -> bool {
    port.usable.iter().chain(&port.last_resort).any(|e| e.is_open() && !e.is_ejected())
}

/// The common case, independent of the number of endpoints.
fn two_choices(endpoints: &[Arc<Endpoint>], cost: Cost, tried: &[EndpointId], now: Instant) -> Option<Lease> {
    let n = endpoints.len();
    for _ in 0..3 {
        let chosen = match n {
            0 => return None,
            1 => &endpoints[0],
            _ => {
                let i = fastrand::usize(..n);
                let j = (i + fastrand::usize(1..n)) % n;
                let (a, b) = (&endpoints[i], &endpoints[j]);
                match (is_fit(a, tried), is_fit(b, tried)) {
                    (true, true) => cheaper(a, b, cost, now),
                    (true, false) => a,
                    _ => b,
                }
            }
        };
        if is_fit(chosen, tried)
            && let Some(lease) = chosen.enter()
        {
            return Some(lease);
        }
    }
    None
}

/// The rare case: most endpoints are ejected, tried or leaving. Least loaded first, from a random start.
fn scan(endpoints: &[Arc<Endpoint>], tried: &[EndpointId]) -> Option<Lease> {
    let start = if endpoints.is_empty() { 0 } else { fastrand::usize(..endpoints.len()) };
    let (tail, head) = endpoints.split_at(start);
    let fit = || head.iter().chain(tail).filter(|e| is_fit(e, tried));
    fit().min_by_key(|e| e.leases()).and_then(|e| e.enter()).or_else(|| fit().find_map(|e| e.enter()))
}

/// The least loaded endpoint of another generation than the lost one's; without template hashes, the latest to join.
fn stranger(endpoints: &[Arc<Endpoint>], tried: &[EndpointId], lost: &Endpoint) -> Option<Lease> {
    let fit = || endpoints.iter().filter(|e| is_fit(e, tried));
    match &lost.template_hash {
        Some(hash) => {
            let others = || fit().filter(|e| e.template_hash.as_ref() != Some(hash));
            // Ties go to a random one: all replays of one loss arrive at the same moment.
            others().min_by_key(|e| (e.leases(), fastrand::u32(..)))
        }
        None => fit().filter(|e| e.joined() > lost.joined()).min_by_key(|e| (e.leases(), Reverse(e.joined()))),
    }
    .and_then(|e| e.enter())
}

fn is_fit(endpoint: &Endpoint, tried: &[EndpointId]) -> bool {
    !endpoint.is_ejected() && !tried.contains(&endpoint.id)
}

/// The cheaper of two, ties at random so that equal endpoints get equal shares. A newcomer's idleness is no argument for
/// it (it would get every pick it is in), its load is one against it.
fn cheaper<'a>(a: &'a Arc<Endpoint>, b: &'a Arc<Endpoint>, cost: Cost, now: Instant) -> &'a Arc<Endpoint> {
    let (mut load_a, mut load_b) = (a.leases() + 1, b.leases() + 1);
    match (a.is_warming(now), b.is_warming(now)) {
        (true, false) => load_a = load_a.max(load_b),
        (false, true) => load_b = load_b.max(load_a),
        _ => {}
    }
    if cost == Cost::Http {
        let now = millis(now);
        if let (Some(slow_a), Some(slow_b)) = (a.latency().micros(now), b.latency().micros(now))
            && (slow_a > 2 * slow_b + NOISE_US || slow_b > 2 * slow_a + NOISE_US)
        {
            // Only a clear difference counts: noise between equals must not skew their shares.
            load_a = load_a.saturating_mul(slow_a + NOISE_US);
            load_b = load_b.saturating_mul(slow_b + NOISE_US);
        }
    }
    match load_a.cmp(&load_b) {
        std::cmp::Ordering::Less => a,
        std::cmp::Ordering::Greater => b,
        std::cmp::Ordering::Equal => [a, b][fastrand::usize(..2)],
    }
}

/// Differences below this are scheduling, not the application: microseconds.
const NOISE_US: u64 = 2_000;

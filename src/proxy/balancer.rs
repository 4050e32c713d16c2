//! Which endpoint gets the next connection or request: the cheaper one of two random choices (with
//! a third choice if both are busy), and a lease on it.
//!
//! Invariant: only an endpoint of the published snapshot that grants a lease is ever returned.
//! Usable endpoints come before those that terminate and still serve, untried ones before tried
//! ones. Endpoints that topology hints prefer come first while one of them is untried: no client is
//! refused for a hint.
//!
//! Leaves out waiting, see [`crate::contract::hold`].

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::contract::affinity::Stick;
use crate::contract::clock::millis;
use crate::contract::endpoint::{Endpoint, EndpointId, Lease};
use crate::contract::endpoint_list::EndpointList;
use crate::contract::policy::Scope;
use crate::contract::snapshot::Port;

/// What a pick is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// In-flight requests, weighed with the response time.
    Http,
    /// Active plus connecting.
    Tcp,
}

/// Which endpoints the caller prefers not to get.
#[derive(Debug, Clone, Copy, Default)]
pub struct Avoid<'a> {
    /// Endpoints that lost this request: used again only if no other endpoint is usable.
    pub tried: &'a [EndpointId],
    /// The endpoint that lost the request last. Its siblings (same `pod-template-hash`) are the
    /// next to leave (contract 3.6).
    pub siblings_of: Option<&'a Endpoint>,
}

/// Who asks for an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The client's address, which session affinity goes by.
    pub client: IpAddr,
    /// Which traffic policy of the Service counts.
    pub scope: Option<Scope>,
}

/// Picks an endpoint and enters its lease. `None`: no endpoint grants a lease now.
///
/// With session affinity, a client stays at its endpoint while that one is usable and has not lost
/// the request.
pub fn pick(
    port: &Port,
    cost: Cost,
    from: Origin,
    avoid: &Avoid<'_>,
    now: Instant,
) -> Option<Lease> {
    let (near, lists) = (port.near(from.scope), port.endpoints(from.scope));
    let Some(affinity) = &port.affinity else {
        return near
            .and_then(|near| pick_untried(near, cost, avoid, now))
            .or_else(|| {
                let mut lists = lists.into_iter();
                lists.find_map(|endpoints| pick_among(endpoints, cost, avoid, now))
            });
    };
    affinity.choose(from.client, now, |stick| {
        let again = |endpoints| stick.and_then(|stick| pick_again(endpoints, stick, avoid.tried));
        let new = |lease: Lease| (lease, 0);
        near.and_then(|near| again(near).or_else(|| pick_untried(near, cost, avoid, now).map(new)))
            .or_else(|| {
                lists.into_iter().find_map(|endpoints| {
                    again(endpoints).or_else(|| pick_among(endpoints, cost, avoid, now).map(new))
                })
            })
    })
}

/// The endpoint that a client was sent to last, and its place.
fn pick_again(
    endpoints: &EndpointList,
    stick: Stick,
    tried: &[EndpointId],
) -> Option<(Lease, usize)> {
    let place = endpoints.place_of(stick.endpoint, stick.place)?;
    let endpoint = Some(&endpoints[place]).filter(|endpoint| is_fit(endpoint, tried))?;
    Some((endpoint.enter()?, place))
}

fn pick_among(
    endpoints: &EndpointList,
    cost: Cost,
    avoid: &Avoid<'_>,
    now: Instant,
) -> Option<Lease> {
    pick_untried(endpoints, cost, avoid, now).or_else(|| scan(endpoints, &[]))
}

fn pick_untried(
    endpoints: &EndpointList,
    cost: Cost,
    avoid: &Avoid<'_>,
    now: Instant,
) -> Option<Lease> {
    avoid
        .siblings_of
        .and_then(|lost| other_generation(endpoints, avoid.tried, lost))
        .or_else(|| random_choices(endpoints, cost, avoid.tried, now))
        .or_else(|| scan(endpoints, avoid.tried))
}

/// Whether a pick for a client of this scope may succeed now.
pub fn has_usable(port: &Port, scope: Option<Scope>) -> bool {
    let [usable, last_resort] = port.endpoints(scope);
    let mut all = usable.iter().chain(last_resort.iter());
    all.any(|e| e.is_open() && !e.is_ejected())
}

/// Whether one more endpoint may be ejected because a connect to it was not answered in time. A full
/// accept queue is load and not death: what an ejected endpoint does not take, the others must. So
/// the last one is never ejected for that, and no more than half of a Service. (Workers that decide
/// at the same moment may exceed this by one endpoint each, until the first probe.)
pub fn may_eject_silent(port: &Port, scope: Option<Scope>) -> bool {
    let [usable, _] = port.endpoints(scope);
    let ejected = usable.iter().filter(|e| e.is_ejected()).count();
    2 * (ejected + 1) <= usable.len()
}

/// The common case, independent of the number of endpoints.
fn random_choices(
    endpoints: &EndpointList,
    cost: Cost,
    tried: &[EndpointId],
    now: Instant,
) -> Option<Lease> {
    let n = endpoints.len();
    for _ in 0..3 {
        let chosen = match n {
            0 => return None,
            1 => &endpoints[0],
            _ => {
                let i = fastrand::usize(..n);
                let j = (i + fastrand::usize(1..n)) % n;
                let chosen = better(&endpoints[i], &endpoints[j], cost, tried, now);
                // If one endpoint in ten has become slow, two random ones are both slow in one pick
                // of a hundred. The client of that pick waits, and soon most clients would wait.
                match chosen.leases() {
                    0 => chosen,
                    _ => better(chosen, &endpoints[fastrand::usize(..n)], cost, tried, now),
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

/// The rare case: most endpoints are ejected, tried or leaving. Takes the least loaded of the first
/// few others, from a random start. Only where there are few others, all endpoints are looked at.
fn scan(endpoints: &EndpointList, tried: &[EndpointId]) -> Option<Lease> {
    let start = fastrand::usize(..endpoints.len().max(1));
    let fit = || endpoints.iter_from(start).filter(|e| is_fit(e, tried));
    fit()
        .filter(|e| e.is_open())
        .take(SAMPLE)
        .min_by_key(|e| e.leases())
        .and_then(|e| e.enter())
        .or_else(|| fit().find_map(|e| e.enter()))
}

/// The least loaded of a few endpoints of another generation than the lost one's. Without template
/// hashes, endpoints that joined after the lost one count as another generation.
///
/// A loss of many requests at once costs a look at many endpoints for each of them. So of a large
/// Service only some endpoints are looked at. Where so few are of another generation that none of
/// them is found, all replays together would be too much for those few.
fn other_generation(
    endpoints: &EndpointList,
    tried: &[EndpointId],
    lost: &Endpoint,
) -> Option<Lease> {
    let n = endpoints.len();
    let whole = n <= LOOKS;
    let others = (0..n.min(LOOKS))
        .map(|i| &endpoints[if whole { i } else { fastrand::usize(..n) }])
        .filter(|e| is_fit(e, tried) && e.is_open())
        .filter(|e| match &lost.template_hash {
            Some(hash) => e.template_hash.as_ref() != Some(hash),
            None => e.joined() > lost.joined(),
        })
        .take(if whole { n } else { SAMPLE });
    match &lost.template_hash {
        // Ties are broken at random: all replays of one loss arrive at the same moment.
        Some(_) => others.min_by_key(|e| (e.leases(), fastrand::u32(..))),
        None => others.min_by_key(|e| (e.leases(), Reverse(e.joined()))),
    }
    .and_then(|e| e.enter())
}

fn is_fit(endpoint: &Endpoint, tried: &[EndpointId]) -> bool {
    !endpoint.is_ejected() && !tried.contains(&endpoint.id)
}

/// The endpoint that is fit. If both are, the cheaper one.
fn better<'a>(
    a: &'a Arc<Endpoint>,
    b: &'a Arc<Endpoint>,
    cost: Cost,
    tried: &[EndpointId],
    now: Instant,
) -> &'a Arc<Endpoint> {
    match (is_fit(a, tried), is_fit(b, tried)) {
        (true, true) => cheaper(a, b, cost, now),
        (true, false) => a,
        _ => b,
    }
}

/// The cheaper of two. Ties are broken at random, so that equal endpoints get equal shares.
///
/// A new endpoint is idle only because it is new. Counting that would give it every pick.
fn cheaper<'a>(
    a: &'a Arc<Endpoint>,
    b: &'a Arc<Endpoint>,
    cost: Cost,
    now: Instant,
) -> &'a Arc<Endpoint> {
    let now = millis(now);
    let (mut load_a, mut load_b) = (a.leases() + 1, b.leases() + 1);
    if a.is_newer_than(b, now) {
        load_a = warming_load(load_a, load_b);
    } else if b.is_newer_than(a, now) {
        load_b = warming_load(load_b, load_a);
    }
    if cost == Cost::Http
        && let (Some(slow_a), Some(slow_b)) = (a.latency().micros(now), b.latency().micros(now))
        && (slow_a > 2 * slow_b + NOISE_US || slow_b > 2 * slow_a + NOISE_US)
    {
        // Only a clear difference counts: noise between equals must not change their shares. It
        // counts by odds: an endpoint that always lost would get no further sample, and could not
        // show that its one slow response was an accident.
        let square = |load: u64, slow: u64| (load as f64 * (slow + NOISE_US) as f64).powi(2);
        let (cost_a, cost_b) = (square(load_a, slow_a), square(load_b, slow_b));
        return if fastrand::f64() * (cost_a + cost_b) < cost_b {
            a
        } else {
            b
        };
    }
    match load_a.cmp(&load_b) {
        std::cmp::Ordering::Less => a,
        std::cmp::Ordering::Greater => b,
        std::cmp::Ordering::Equal => [a, b][fastrand::usize(..2)],
    }
}

/// The load that a new endpoint counts with beside an older one: the older one's, unless the new
/// one clearly cannot keep up.
fn warming_load(load: u64, other: u64) -> u64 {
    if load > 2 * other + 1 { load } else { other }
}

/// How many endpoints are compared where a comparison of all would cost too much.
const SAMPLE: usize = 8;
/// How many endpoints are looked at to find these.
const LOOKS: usize = 64;
/// In microseconds. Smaller differences come from scheduling, not from the application.
const NOISE_US: u64 = 10_000;

#[cfg(test)]
mod tests;

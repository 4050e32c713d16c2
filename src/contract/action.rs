//! What becomes of the requests of a route.
//!
//! Invariant: an action never changes, so a request keeps the one that it was found with.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule>.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::contract::listener::ListenerSpec;
use crate::contract::route::RouteTable;

/// The routes of some listeners, as they are now.
pub type Routes = ArcSwap<RouteTable<Arc<Action>>>;

/// What becomes of the requests of a route.
#[derive(Debug, Default)]
pub struct Action {
    /// The object and the rule, for example `HTTPRoute web/shop`, for logs and receipts.
    pub route: Arc<str>,
    /// What serves them.
    pub backends: Backends,
    /// What else is done. Most routes ask for nothing.
    pub filters: Option<Box<Filters>>,
}

impl Action {
    /// The name of the route, if it has one.
    pub fn name(&self) -> Option<&str> {
        Some(&*self.route).filter(|name| !name.is_empty())
    }

    /// One Service port that serves everything.
    pub fn serve(route: Arc<str>, target: Target) -> Self {
        Self {
            route,
            backends: Backends::new(vec![(1, Some(target))]),
            filters: None,
        }
    }
}

/// Service ports, each with its share of the requests.
#[derive(Debug, Default)]
pub struct Backends {
    /// Weights, and what each leads to. `None`: what it names cannot be served, and its share is answered
    /// with 500. No backend of a weight above 0: every request is answered so.
    pub all: Vec<(u32, Option<Target>)>,
    /// How many requests have been given away.
    pub turn: AtomicU32,
}

impl Backends {
    /// Backends with their weights. The first turn is anybody's: a route that is made anew again and again
    /// must not give its first backend more than its share.
    pub fn new(all: Vec<(u32, Option<Target>)>) -> Self {
        let turn = AtomicU32::new(fastrand::u32(..));
        Self { all, turn }
    }

    /// Whose turn it is: a place in [`Self::all`]. `None`: nobody has a weight.
    ///
    /// Turns follow the golden ratio: of any number of them in a row, each backend has its share, give or
    /// take a few. Chance would be off by the root of that number.
    pub fn choose(&self) -> Option<usize> {
        if let [(weight, _)] = self.all[..] {
            return (weight > 0).then_some(0);
        }
        let total: u64 = self.all.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = (u128::from(turn.wrapping_mul(GOLDEN)) * u128::from(total)) >> 32;
        let mut end = 0;
        self.all.iter().position(|(weight, _)| {
            end += u128::from(*weight);
            at < end
        })
    }
}

/// What a request goes to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The listener of one Service port. It is not bound. For UDP its protocol says so.
    pub listener: Arc<ListenerSpec>,
    /// When it was first named. Its Service may not have been read then.
    pub since: Instant,
    /// What is changed for this backend alone.
    pub filters: Option<Arc<Filters>>,
}

/// What is done with a request and its answer, beside passing them on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Fields of the request.
    pub request: FieldChanges,
    /// Fields of the answer.
    pub response: FieldChanges,
    /// The request is answered with a redirect.
    pub redirect: Option<Redirect>,
    /// The request gets another host or path.
    pub rewrite: Option<Rewrite>,
    /// All attempts together may take this long. Zero: as long as they like.
    pub request_timeout: Option<Duration>,
    /// One attempt may take this long. Zero: as long as it likes.
    pub attempt_timeout: Option<Duration>,
    /// Which answers are asked for again.
    pub retry: Option<Retry>,
    /// The most bytes of a request body. A longer one is answered with 413.
    pub body_size: Option<u64>,
    /// Who may ask; others get 403. Empty: everybody.
    pub source_ranges: Vec<IpNet>,
}

impl Filters {
    /// Whether a client of this canonical address may ask.
    pub fn admits(&self, client: IpAddr) -> bool {
        let ranges = &self.source_ranges;
        ranges.is_empty() || ranges.iter().any(|it| it.contains(&client))
    }
}

/// Changes of fields, in the order of these lists. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChanges {
    /// Replace all fields of the name.
    pub set: Vec<(String, String)>,
    /// Add to the fields of the name.
    pub add: Vec<(String, String)>,
    /// Take all fields of the name away.
    pub remove: Vec<String>,
}

/// A redirect. What is `None` is as in the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host, without a port.
    pub host: Option<String>,
    /// The path.
    pub path: Option<NewPath>,
    /// The port. `None`: that of `scheme` if there is one, else that of the listener.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Another host or path for the endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The host.
    pub host: Option<String>,
    /// The path.
    pub path: Option<NewPath>,
}

/// A path in place of that of the request. The query stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewPath {
    /// In place of all of it.
    Full(String),
    /// In place of the prefix by which the rule was found.
    Prefix {
        /// The prefix of the rule.
        of: String,
        /// What takes its place.
        to: String,
    },
}

/// Answers after which another endpoint is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Their statuses.
    pub codes: Vec<u16>,
    /// How many further attempts there may be. `None`: the Service's own limit.
    pub attempts: Option<u32>,
    /// The least time before each of them.
    pub backoff: Option<Duration>,
}

/// 2^32 divided by the golden ratio.
const GOLDEN: u32 = 0x9e37_79b9;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The most and the least that each backend gets of `window` turns in a row, of 20,000.
    fn shares(weights: &[u32], window: usize) -> Vec<(usize, usize)> {
        let backends = Backends::new(weights.iter().map(|weight| (*weight, None)).collect());
        let (mut last, mut counts) = (VecDeque::new(), vec![0; weights.len()]);
        let mut shares = vec![(0, usize::MAX); weights.len()];
        for turn in 0..20_000 {
            let chosen = backends.choose().unwrap();
            last.push_back(chosen);
            counts[chosen] += 1;
            if turn >= window {
                counts[last.pop_front().unwrap()] -= 1;
                for (share, count) in shares.iter_mut().zip(&counts) {
                    *share = (share.0.max(*count), share.1.min(*count));
                }
            }
        }
        shares
    }

    #[test]
    fn weights_are_kept_within_one_percent_in_every_window() {
        for weights in [
            &[90, 10][..],
            &[1, 1],
            &[70, 20, 10],
            &[1, 999_999],
            &[5, 0, 3],
        ] {
            let total: u32 = weights.iter().sum();
            for (weight, (most, least)) in weights.iter().zip(shares(weights, 1_000)) {
                let fair = 1_000.0 * f64::from(*weight) / f64::from(total);
                assert!(most as f64 <= fair + 10.0, "{weights:?}: {most}");
                assert!(least as f64 >= fair - 10.0, "{weights:?}: {least}");
                assert!(*weight > 0 || most == 0, "{weights:?}: {most}");
            }
        }
    }

    #[test]
    fn nobody_is_chosen_where_nobody_has_a_weight() {
        for weights in [&[][..], &[0], &[0, 0]] {
            let backends = Backends::new(weights.iter().map(|weight| (*weight, None)).collect());
            assert_eq!(backends.choose(), None, "{weights:?}");
        }
        let most = Backends::new(vec![(u32::MAX, None); 3]);
        assert!((0..100).all(|_| most.choose().is_some()));
    }
}

//! A listener as every worker knows it: where it is bound and what its clients are served by, a Service
//! port or routes. The routes lead to actions, and these to listeners of Service ports again.
//!
//! Invariants: what a [`ListenerSpec`] says never changes, but for how TLS is spoken. A listener whose configuration changes is
//! closed, and another one with another [`ListenerId`] is opened. An [`Action`] never changes either, so a
//! request keeps the one that it was found with.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;

use crate::contract::backend::Backend;
use crate::contract::by_name::ByName;
use crate::contract::filters::Filters;
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol, Scope, Transport};
use crate::contract::route::RouteTable;
use crate::contract::termination::Termination;

/// Names one listener of this process. A number is never given to another listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u64);

/// A listener as every worker knows it.
#[derive(Debug)]
pub struct ListenerSpec {
    /// Its identity in this process.
    pub id: ListenerId,
    /// Its name in the configuration, or one made from its Service, port and address.
    pub name: String,
    /// The address it is bound to. The port is never 0.
    pub address: SocketAddr,
    /// What its clients are served by.
    pub serves: Serves,
    /// The protocol of this listener. `None`: that of the Service port.
    pub protocol: Option<Protocol>,
    /// Whether every client begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Whether CONNECT requests are served.
    pub allow_connect: bool,
    /// How clients' TLS ends here. `None`: it does not.
    pub tls: Option<Arc<Termination>>,
    /// Clients of TLS that ask for one of these names are passed on to another Service. Each has a
    /// listener of its own here, which is not bound.
    pub by_name: ByName<Arc<ListenerSpec>>,
    /// Who may connect. Empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// How many sockets it was bound with: one for each worker, or a single one.
    pub sockets: usize,
    /// The accept loops of this listener that have not ended: at first one for each socket. At 0,
    /// every connection that the kernel had accepted is counted in a worker's load.
    pub accepting: AtomicUsize,
    /// Which traffic policy of the Service counts here. `None`: every endpoint may be reached.
    pub scope: Option<Scope>,
    /// When it was bound or named. Its Service may not have been read then.
    pub since: Instant,
    /// The listener that has taken its place at its address. Its clients of HTTP go on there with their next
    /// request.
    pub next: OnceLock<Arc<ListenerSpec>>,
    /// How TLS is spoken with the endpoints, where a BackendTLSPolicy says it. `None`: as the Service says.
    /// It changes in its place, so clients that are held see it.
    pub backend: ArcSwapOption<Backend>,
}

impl ListenerSpec {
    /// A listener of one Service port that is not bound: clients are led to it in other ways.
    pub fn unbound(
        id: ListenerId,
        name: &str,
        address: SocketAddr,
        service: &ObjectName,
        port: &PortRef,
    ) -> Self {
        Self {
            id,
            name: name.to_owned(),
            address,
            serves: Serves::Port {
                service: service.clone(),
                port: port.clone(),
            },
            protocol: None,
            proxy_protocol: false,
            allow_connect: false,
            tls: None,
            by_name: ByName::default(),
            source_ranges: Vec::new(),
            sockets: 0,
            accepting: AtomicUsize::new(0),
            scope: None,
            since: Instant::now(),
            next: OnceLock::new(),
            backend: ArcSwapOption::empty(),
        }
    }

    /// The listener at whose place its clients are now: the last of those that have replaced it, or itself.
    pub fn last(self: &Arc<Self>) -> &Arc<Self> {
        let mut last = self;
        while let Some(next) = last.next.get() {
            last = next;
        }
        last
    }

    /// Whether clients of HTTP that have come to this listener may go on at another one: TLS ends at both or
    /// at none, and it does not take them for clients of TCP.
    pub fn leads_to(&self, next: &Self) -> bool {
        let is_tcp = |it: &Self| it.protocol.is_some_and(|it| it == Protocol::Tcp);
        self.tls.is_some() == next.tls.is_some() && !is_tcp(next)
    }

    /// Whether a client of this address may connect.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.source_ranges.is_empty() || self.source_ranges.iter().any(|it| it.contains(&client))
    }
}

impl ListenerSpec {
    /// What its clients speak over. A UDP listener always names its protocol.
    pub fn transport(&self) -> Transport {
        self.protocol.map_or(Transport::Tcp, Protocol::transport)
    }
}

/// What finds its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// Each request, by its host, its path and more.
    Request,
    /// Each connection of TLS, by the name that it asks for. It is passed on as it is.
    Name,
    /// Each connection or session: the default of the routes has it.
    Connection,
}

/// What a listener's clients are served by.
#[derive(Debug)]
pub enum Serves {
    /// One port of one Service serves every connection and every request.
    Port {
        /// The Service.
        service: ObjectName,
        /// The port, as the configuration names it.
        port: PortRef,
    },
    /// Each connection belongs to the Service address that its client connected to: the kernel has
    /// led it here (`contract/address.rs`).
    Addresses,
    /// Routes lead to Service ports (`contract/route.rs`).
    Routes {
        /// The routes.
        table: Arc<Routes>,
        /// What finds its route.
        by: FoundBy,
    },
    /// Load balancers ask here whether this node has a ready endpoint of the Service.
    HealthCheck {
        /// The Service.
        service: ObjectName,
    },
}

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
    /// The TLS of a connection that is found by its name ends here. Else it is passed on.
    pub ends_tls: bool,
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
            ends_tls: false,
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
    /// Backends with their weights. The first turn is chosen by chance. A fixed one would give the first
    /// backend too much where routes change often.
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

//! The listeners: those that are wanted, those that are bound, and those to try again.
//!
//! Invariant: a change of one listener does not touch another, unless both want one address. A
//! listener that cannot be bound is named in `/readyz` and tried again with backoff, and costs the
//! others nothing. A change of a Service costs its own listeners, however many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::listener::{ListenerId, ListenerSpec};
use crate::contract::name::ObjectName;
use crate::contract::policy::{Protocol, Transport};
use crate::contract::snapshot::Published;
use crate::control::addresses::Addresses;
use crate::control::certificates::Certificates;
use crate::control::descriptors::Descriptors;
use crate::control::doors::Inheritance;
use crate::control::sockets::Sockets;
use crate::control::wanted::{Doors, Origin, of_service};
use crate::net::socket;
use crate::observe::health::{Health, ListenerState};
use crate::proxy::shared::Shared;

/// The wanted listeners and their sockets.
pub struct Listeners {
    sockets: Sockets,
    /// Boxed: the nodes of a map of large values are half empty.
    listeners: BTreeMap<Key, Box<Listener>>,
    /// The listeners of each Service.
    by_service: HashMap<ObjectName, Vec<Key>>,
    /// The listeners that want each address, in order. Only the first is bound: `SO_REUSEPORT` would let all
    /// bind, and would split the clients between their Services.
    by_address: HashMap<(Transport, SocketAddr), Vec<Key>>,
    /// When listeners that are not bound are tried.
    due: BTreeSet<(Instant, Key)>,
    /// To close at the next [`Listeners::retry`].
    unwanted: Vec<Arc<ListenerSpec>>,
    /// Addresses of Services that lost a listener in this [`Listeners::want`]. One that gets another
    /// listener keeps its rule: in between its clients would reach nobody.
    left: Vec<(Transport, SocketAddr)>,
    /// Failures since the last [`Listeners::retry`], with their Services.
    refused: Vec<(ObjectName, String)>,
    /// Listeners whose state in `/readyz` is out of date.
    dirty: BTreeSet<Key>,
    /// `/readyz` knows that every listener has been tried once.
    tried: bool,
    /// The process shuts down: nothing is bound any more.
    closed: bool,
    /// How cluster IPs and the like are served, where they are.
    addresses: Option<Addresses>,
    /// When Services that have lost their last endpoint begin to refuse.
    gaps: BTreeSet<(Instant, ObjectName)>,
}

/// A listener's origin and name. Where several want one address, the first by this order has it.
type Key = (Origin, Arc<str>);

struct Listener {
    config: ListenerConfig,
    /// The listener's own protocol, else the Service's.
    protocol: Protocol,
    state: State,
}

/// Where a listener stands.
enum State {
    Bound(Arc<ListenerSpec>),
    Failed {
        error: String,
        retry_at: Instant,
        pause: Duration,
    },
    /// Another listener has this address.
    Refused {
        error: String,
    },
    /// Its Service has no endpoint and had none for the hold time: clients are refused (contract
    /// 1.15).
    Absent,
}

impl Listeners {
    /// None yet. There will never be more sockets than their part of the descriptors.
    pub fn within(
        descriptors: Descriptors,
        certificates: Certificates,
        addresses: Option<Addresses>,
        inheritance: Inheritance,
    ) -> Self {
        Self {
            sockets: Sockets::within(descriptors, certificates, inheritance),
            listeners: BTreeMap::new(),
            by_service: HashMap::new(),
            by_address: HashMap::new(),
            due: BTreeSet::new(),
            unwanted: Vec::new(),
            left: Vec::new(),
            refused: Vec::new(),
            dirty: BTreeSet::new(),
            tried: false,
            closed: false,
            addresses,
            gaps: BTreeSet::new(),
        }
    }

    /// The Services that have listeners, or may want some.
    pub fn services(
        &self,
        config: &Config,
        routed: &Doors,
        published: &Published,
    ) -> BTreeSet<ObjectName> {
        let mut services: BTreeSet<ObjectName> = self.by_service.keys().cloned().collect();
        services.extend(routed.keys().cloned());
        services.extend(config.listeners.iter().map(|it| it.service.clone()));
        services.extend(published.load().ports.into_keys().map(|key| key.service));
        services
    }

    /// Whether every listener of the first table has been tried once.
    pub fn are_tried(&self) -> bool {
        self.tried
    }

    /// The listener that is bound to this address, or that serves it for the kernel.
    pub fn bound_to(&self, over: Transport, address: SocketAddr) -> Option<&Arc<ListenerSpec>> {
        let key = self.by_address.get(&(over, address))?.first()?;
        match &self.listeners.get(key)?.state {
            State::Bound(spec) => Some(spec),
            _ => None,
        }
    }

    /// A name for a listener that is not bound.
    pub fn next_id(&mut self) -> ListenerId {
        self.sockets.next_id()
    }

    /// Takes in which listeners of these Services are wanted now. A listener that is no longer
    /// wanted, or whose settings differ, is closed at the next [`Self::retry`].
    pub fn want(
        &mut self,
        config: &Config,
        routed: &Doors,
        published: &Published,
        services: &BTreeSet<ObjectName>,
    ) {
        if self.closed {
            return;
        }
        let mut configured: HashMap<&ObjectName, Vec<&ListenerConfig>> = HashMap::new();
        for listener in &config.listeners {
            if services.contains(&listener.service) {
                configured
                    .entry(&listener.service)
                    .or_default()
                    .push(listener);
            }
        }
        let now = Instant::now();
        // All that ends is removed before anything is added, so that a nodePort can pass from one
        // Service to another.
        let mut added = Vec::new();
        for service in services {
            let own = configured.get(service).into_iter().flatten().copied();
            let own = own.map(|it| (Origin::Configured, it));
            let doors = routed.get(service).into_iter().flatten();
            let own = own.chain(doors.map(|(origin, it)| (*origin, it)));
            let own = own.filter(|(_, it)| {
                it.routes.is_none() || it.address.ip() != ANY_IPV6 || socket::has_ipv6()
            });
            let ports = published.ports_of(service);
            let wanted: BTreeMap<Key, ListenerConfig> =
                of_service(config, own, &ports, socket::has_ipv6())
                    .filter(|(origin, _)| !is_address(*origin) || self.addresses.is_some())
                    .map(|(origin, it)| ((origin, Arc::from(it.name.as_str())), it))
                    .collect();
            for key in self.by_service.get(service).cloned().unwrap_or_default() {
                let has = self.listeners.get(&key).map(|listener| &listener.config);
                if wanted.get(&key) != has {
                    self.remove(&key, now);
                }
            }
            for (key, config) in wanted {
                let port = published.port(&config.service, &config.port, config.transport());
                let may_refuse = key.0 != Origin::Configured && !config.health_check;
                let claimed = port.as_ref().filter(|it| may_refuse && it.claimed);
                let refuses = match claimed.and_then(|it| it.closed_from(config.scope)) {
                    Some(from) if from > now => {
                        self.gaps.insert((from, service.clone()));
                        false
                    }
                    refused_from => refused_from.is_some(),
                };
                let protocol = config.protocol.or(port.map(|port| port.protocol));
                added.push((key, config, protocol.unwrap_or(Protocol::Auto), refuses));
            }
        }
        for (key, config, protocol, refuses) in added {
            match self.listeners.get_mut(&key) {
                Some(listener) if listener.protocol == protocol => {}
                Some(listener) => {
                    listener.protocol = protocol;
                    self.dirty.insert(key.clone());
                }
                None => self.add(key.clone(), config, protocol, now),
            }
            self.set_absent(&key, refuses, now);
        }
        for address in std::mem::take(&mut self.left) {
            if let (None, Some(addresses)) = (self.by_address.get(&address), &self.addresses) {
                addresses.release(address);
            }
        }
    }

    /// Services that may begin to refuse now, as [`Self::want`] decides.
    pub fn ended_gaps(&mut self, now: Instant) -> BTreeSet<ObjectName> {
        let mut ended = BTreeSet::new();
        while self.gaps.first().is_some_and(|(at, _)| *at <= now) {
            ended.extend(self.gaps.pop_first().map(|(_, service)| service));
        }
        ended
    }

    /// Refuses the clients of a listener, or serves them again. A listener whose address another one
    /// has does neither.
    fn set_absent(&mut self, key: &Key, refuses: bool, now: Instant) {
        let Some(listener) = self.listeners.get_mut(key) else {
            return;
        };
        match (&listener.state, refuses) {
            (State::Absent, false) => self.bind_next(key.clone(), now),
            (State::Bound(_) | State::Failed { .. }, true) => {
                let before = std::mem::replace(&mut listener.state, State::Absent);
                let address = (listener.config.transport(), listener.config.address);
                self.leave(key, before);
                self.dirty.insert(key.clone());
                if let (Origin::Address(_), Some(addresses)) = (key.0, &self.addresses) {
                    addresses.refuse(address);
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, key: Key, config: ListenerConfig, protocol: Protocol, now: Instant) {
        let address = config.address;
        let place = (config.transport(), address);
        let of_service = self.by_service.entry(config.service.clone());
        let of_service = of_service.or_default();
        of_service.reserve_exact(1);
        of_service.push(key.clone());
        let listener = Box::new(Listener {
            config,
            protocol,
            state: State::Refused {
                error: String::new(),
            },
        });
        self.listeners.insert(key.clone(), listener);
        // Port 0 asks for any free port, so several listeners may name it.
        if address.port() == 0 {
            return self.bind_next(key, now);
        }
        let claims = self.by_address.entry(place).or_default();
        if let Err(place) = claims.binary_search(&key) {
            claims.reserve_exact(1);
            claims.insert(place, key.clone());
        }
        let mut claims = claims.iter().cloned();
        match (claims.next(), claims.next()) {
            (Some(first), second) if first == key => {
                if let Some(second) = second {
                    self.refuse(second, &first);
                }
                self.bind_next(key, now);
            }
            (Some(first), _) => self.refuse(key, &first),
            (None, _) => {}
        }
    }

    fn remove(&mut self, key: &Key, now: Instant) {
        let Some(listener) = self.listeners.remove(key) else {
            return;
        };
        self.dirty.insert(key.clone());
        let service = &listener.config.service;
        let address = (listener.config.transport(), listener.config.address);
        if is_address(key.0) {
            self.left.push(address);
        }
        note_node_port(&self.addresses, key, &listener.config, false);
        if let Some(keys) = self.by_service.get_mut(service) {
            keys.retain(|it| it != key);
            if keys.is_empty() {
                self.by_service.remove(service);
            }
        }
        self.leave(key, listener.state);
        if let Some(claims) = self.by_address.get_mut(&address) {
            let was_first = claims.first() == Some(key);
            claims.retain(|it| it != key);
            match claims.first().cloned() {
                Some(next) if was_first => self.bind_next(next, now),
                Some(_) => {}
                None => _ = self.by_address.remove(&address),
            }
        }
    }

    /// Ends a state: a bound listener is closed at the next [`Self::retry`].
    fn leave(&mut self, key: &Key, state: State) {
        match state {
            State::Bound(spec) => self.unwanted.push(spec),
            State::Failed { retry_at, .. } => _ = self.due.remove(&(retry_at, key.clone())),
            State::Refused { .. } | State::Absent => {}
        }
    }

    /// Binds this listener at the next [`Self::retry`]. Those of one moment are bound in the order of
    /// their keys: a configured listener gets its descriptors before any nodePort.
    fn bind_next(&mut self, key: Key, retry_at: Instant) {
        self.due.insert((retry_at, key.clone()));
        if let Some(listener) = self.listeners.get_mut(&key) {
            listener.state = State::Failed {
                error: String::new(),
                retry_at,
                pause: FIRST_PAUSE,
            };
        }
        self.dirty.insert(key);
    }

    /// Does not bind this listener, since `owner` has its address.
    fn refuse(&mut self, key: Key, owner: &Key) {
        let Some(listener) = self.listeners.get_mut(&key) else {
            return;
        };
        let (address, error) = (
            listener.config.address,
            format!("listener {} has this address", owner.1),
        );
        tracing::error!(listener = listener.config.name, %address, error, "cannot listen");
        let failure = format!("{address} cannot be bound: {error}");
        self.refused
            .push((listener.config.service.clone(), failure));
        let before = std::mem::replace(&mut listener.state, State::Refused { error });
        self.leave(&key, before);
        self.dirty.insert(key);
    }

    /// Closes the unwanted listeners and binds those that are due. Returns the new failures, with
    /// their Services.
    pub fn retry(
        &mut self,
        now: Instant,
        shared: &Shared,
        health: &Health,
    ) -> Vec<(ObjectName, String)> {
        let mut failures = std::mem::take(&mut self.refused);
        for spec in self.unwanted.drain(..).filter(|spec| spec.sockets > 0) {
            self.sockets.close(spec, shared);
        }
        self.sockets.settle(shared);
        self.sockets.follows = health.predecessor_serves();
        let shares = self.listeners.len() > SHARED_FROM;
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.due.pop_first() else {
                break;
            };
            let Some(wanted) = self.listeners.get_mut(&key) else {
                continue;
            };
            let State::Failed {
                error: last, pause, ..
            } = &wanted.state
            else {
                continue;
            };
            let single = shares && key.0 == Origin::NodePort;
            let bound = match (key.0, &mut self.addresses) {
                (Origin::Address(_), Some(addresses)) => {
                    addresses.bind(&wanted.config, shares, &mut self.sockets, shared)
                }
                _ => {
                    let serves = wanted.config.serves(shared);
                    self.sockets.bind(&wanted.config, serves, single, shared)
                }
            };
            wanted.state = match bound {
                Ok(spec) => {
                    let (listener, service) = (&*key.1, &wanted.config.service);
                    tracing::info!(listener, address = %spec.address, %service, "listening");
                    note_node_port(&self.addresses, &key, &wanted.config, true);
                    State::Bound(spec)
                }
                Err(error) => {
                    let error = error.to_string();
                    if *last != error {
                        let (listener, address) = (&*key.1, wanted.config.address);
                        tracing::error!(listener, %address, error, "cannot listen; trying again");
                        let failure = format!("{address} cannot be bound, trying again: {error}");
                        failures.push((wanted.config.service.clone(), failure));
                    }
                    let retry_at = now + *pause;
                    self.due.insert((retry_at, key.clone()));
                    State::Failed {
                        error,
                        retry_at,
                        pause: (*pause * 2).min(LONGEST_PAUSE),
                    }
                }
            };
            self.dirty.insert(key);
        }
        self.sockets.settle(shared);
        self.show(health);
        failures
    }

    /// Shows in `/readyz` what has changed.
    fn show(&mut self, health: &Health) {
        for key in std::mem::take(&mut self.dirty) {
            let state = self.listeners.get(&key).map(|it| it.shown());
            health.show_listener(key.0 != Origin::Configured, key.1, state);
        }
        if !self.tried && health.is_synced() {
            self.tried = true;
            health.update(|h| h.ports_tried = true);
            if let Some(addresses) = &self.addresses {
                addresses.open();
            }
        }
    }

    /// When the next bind is due.
    pub fn next_retry(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let gap = self.gaps.first().map(|(at, _)| *at);
        due.into_iter().chain(gap).min()
    }

    /// Closes all listeners, for good. Endpoints still change while clients are drained, so later
    /// calls of [`Self::want`] have no effect.
    pub fn close_all(&mut self, shared: &Shared, health: &Health) {
        self.closed = true;
        self.gaps.clear();
        if let Some(mut addresses) = self.addresses.take() {
            addresses.close(&mut self.sockets, shared);
        }
        let now = Instant::now();
        for key in self.listeners.keys().cloned().collect::<Vec<_>>() {
            self.remove(&key, now);
        }
        self.due.clear();
        self.retry(now, shared, health);
    }

    /// Whether the workers have served the accept queues of all closed listeners.
    pub fn are_closed(&self) -> bool {
        self.sockets.are_closed()
    }
}

fn note_node_port(
    addresses: &Option<Addresses>,
    key: &Key,
    config: &ListenerConfig,
    is_bound: bool,
) {
    let is_udp = key.0 == Origin::NodePort && config.transport() == Transport::Udp;
    if let Some(addresses) = addresses.as_ref().filter(|_| is_udp) {
        addresses.note_node_port(config.address, is_bound);
    }
}

fn is_address(origin: Origin) -> bool {
    matches!(origin, Origin::Address(_))
}

impl Listener {
    /// As `/readyz` and the status page show it.
    fn shown(&self) -> ListenerState {
        let (address, error) = match &self.state {
            State::Bound(spec) => (spec.address, None),
            State::Absent => (self.config.address, None),
            State::Failed { error, .. } | State::Refused { error } => {
                (self.config.address, Some(error.clone()))
            }
        };
        ListenerState {
            name: self.config.name.clone(),
            address,
            service: self.config.service.clone(),
            port: self.config.port.to_string(),
            protocol: self.protocol,
            error,
            refuses: matches!(self.state, State::Absent),
        }
    }
}

/// With more listeners than this, a nodePort has one socket, which one worker serves for all:
/// otherwise the sockets would be ports x addresses x workers.
const SHARED_FROM: usize = 256;
/// A default. Nothing is wrong on a machine without IPv6.
const ANY_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Pauses between two tries to bind. They double.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

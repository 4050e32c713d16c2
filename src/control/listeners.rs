//! The set of listeners: what the configuration and the claimed Services want, what is bound, and what must be tried again.
//!
//! Invariant: a listener that does not change is not touched by one that does; one that cannot be bound is named in
//! `/readyz` and tried again with backoff, and costs the others nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::listener::{ListenerId, ListenerSpec, Serves};
use crate::contract::name::ObjectName;
use crate::contract::policy::{PortRef, Protocol};
use crate::contract::snapshot::Snapshot;
use crate::net::socket;
use crate::observe::health::{Health, ListenerState};
use crate::proxy::shared::{Shared, WorkerCommand};

#[derive(Default)]
pub struct Listeners {
    wanted: BTreeMap<String, Wanted>,
    next_id: u64,
    /// To be told.
    unwanted: Vec<Arc<ListenerSpec>>,
    /// Refused since the last [`Listeners::retry`], with their Services.
    refused: Vec<(ObjectName, String)>,
    /// Told to close, perhaps still emptying their accept queue.
    closing: Vec<Arc<ListenerSpec>>,
    dirty: bool,
    /// This process shuts down.
    closed: bool,
}

struct Wanted {
    config: ListenerConfig,
    /// What it serves: its own, else the Service's.
    protocol: Protocol,
    state: State,
}

enum State {
    Bound(Arc<ListenerSpec>),
    Failed {
        error: String,
        retry_at: Instant,
        pause: Duration,
    },
    /// Another listener has its address.
    Refused {
        error: String,
    },
}

impl State {
    /// To be bound at once.
    fn new() -> Self {
        Self::Failed {
            error: String::new(),
            retry_at: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }
}

impl Listeners {
    /// Takes in what is wanted now. What is no longer wanted, or wanted otherwise, is closed at the next [`Self::retry`].
    pub fn want(&mut self, config: &Config, snapshot: &Snapshot) {
        if self.closed {
            return;
        }
        let mut wanted: BTreeMap<String, ListenerConfig> = config
            .listeners
            .iter()
            .map(|listener| (listener.name.clone(), listener.clone()))
            .collect();
        for port in snapshot.ports.values().filter(|port| port.claimed) {
            let Some(node_port) = port.node_port else {
                continue;
            };
            // `::` is a default: where there is no IPv6, nothing is amiss.
            let addresses = config.node_port_addresses.iter();
            for address in
                addresses.filter(|it| **it != Ipv6Addr::UNSPECIFIED || socket::has_ipv6())
            {
                let name = format!("{}:{}@{address}", port.key.service, port.key.port);
                let listener = ListenerConfig {
                    name: name.clone(),
                    address: SocketAddr::new(*address, node_port),
                    service: port.key.service.clone(),
                    port: PortRef::Number(port.key.port),
                    protocol: None,
                    proxy_protocol: false,
                    allow_connect: false,
                };
                wanted.insert(name, listener);
            }
        }
        let unwanted: Vec<String> = self
            .wanted
            .iter()
            .filter(|(name, now)| wanted.get(*name) != Some(&now.config))
            .map(|(name, _)| name.clone())
            .collect();
        for name in unwanted {
            self.dirty = true;
            if let Some(Wanted {
                state: State::Bound(spec),
                ..
            }) = self.wanted.remove(&name)
            {
                self.unwanted.push(spec);
            }
        }
        let owners = owners(&wanted);
        for (name, config) in wanted {
            let owner = owners
                .get(&config.address)
                .filter(|owner| **owner != name)
                .cloned();
            let port = snapshot.port(&config.service, &config.port);
            let protocol = config
                .protocol
                .or(port.map(|port| port.protocol))
                .unwrap_or(Protocol::Auto);
            let entry = self.wanted.entry(name).or_insert_with(|| Wanted {
                config,
                protocol,
                state: State::new(),
            });
            self.dirty |= entry.protocol != protocol;
            entry.protocol = protocol;
            // SO_REUSEPORT would let both bind, and split the clients between two Services.
            match (owner, &entry.state) {
                (Some(owner), State::Failed { .. }) => self.refused.push(entry.refuse(&owner)),
                (Some(owner), State::Bound(spec)) => {
                    self.unwanted.push(spec.clone());
                    self.refused.push(entry.refuse(&owner));
                }
                (None, State::Refused { .. }) => entry.state = State::new(),
                (None | Some(_), _) => continue,
            }
            self.dirty = true;
        }
    }

    /// Closes what is to be closed and binds what is due. Answers what newly cannot be bound, with its Service.
    pub fn retry(
        &mut self,
        now: Instant,
        shared: &Shared,
        health: &Health,
    ) -> Vec<(ObjectName, String)> {
        let mut failures = std::mem::take(&mut self.refused);
        for spec in self.unwanted.drain(..) {
            shared.post_all(|| WorkerCommand::Unlisten(spec.id));
            self.closing.push(spec);
        }
        self.closing.retain(|spec| Arc::strong_count(spec) > 1);
        for (name, wanted) in &mut self.wanted {
            let State::Failed {
                error: last,
                retry_at,
                pause,
            } = &wanted.state
            else {
                continue;
            };
            if *retry_at > now {
                continue;
            }
            self.dirty = true;
            self.next_id += 1;
            wanted.state = match bind(&wanted.config, ListenerId(self.next_id), shared) {
                Ok(spec) => {
                    let (listener, service) = (name.as_str(), &wanted.config.service);
                    tracing::info!(listener, address = %spec.address, %service, "listening");
                    State::Bound(spec)
                }
                Err(error) => {
                    let error = error.to_string();
                    if *last != error {
                        let address = wanted.config.address;
                        tracing::error!(listener = name, %address, error, "cannot listen; trying again");
                        let failure = format!("{address} cannot be bound, trying again: {error}");
                        failures.push((wanted.config.service.clone(), failure));
                    }
                    State::Failed {
                        error,
                        retry_at: now + *pause,
                        pause: (*pause * 2).min(LONGEST_PAUSE),
                    }
                }
            };
        }
        if std::mem::take(&mut self.dirty) {
            let listeners = self
                .wanted
                .iter()
                .map(|(name, wanted)| wanted.state(name))
                .collect();
            health.update(|h| {
                h.listeners = listeners;
                h.ports_tried = true;
            });
        } else if self.wanted.is_empty() {
            health.update(|h| h.ports_tried |= h.synced);
        }
        failures
    }

    pub fn next_retry(&self) -> Option<Instant> {
        self.wanted
            .values()
            .filter_map(|wanted| match wanted.state {
                State::Failed { retry_at, .. } => Some(retry_at),
                State::Bound(_) | State::Refused { .. } => None,
            })
            .min()
    }

    /// Stops accepting everywhere, for good: endpoints still change while clients are drained.
    pub fn close_all(&mut self, shared: &Shared, health: &Health) {
        self.closed = true;
        for (_, wanted) in std::mem::take(&mut self.wanted) {
            if let State::Bound(spec) = wanted.state {
                self.unwanted.push(spec);
            }
        }
        self.dirty = true;
        self.retry(Instant::now(), shared, health);
    }

    /// Whether every closed listener's accept queue has been served.
    pub fn are_closed(&self) -> bool {
        self.closing.iter().all(|spec| Arc::strong_count(spec) == 1)
    }
}

impl Wanted {
    fn refuse(&mut self, owner: &str) -> (ObjectName, String) {
        let (address, error) = (
            self.config.address,
            format!("listener {owner} has this address"),
        );
        tracing::error!(listener = self.config.name, %address, error, "cannot listen");
        let failure = format!("{address} cannot be bound: {error}");
        self.state = State::Refused { error };
        (self.config.service.clone(), failure)
    }

    fn state(&self, name: &str) -> ListenerState {
        let (address, error) = match &self.state {
            State::Bound(spec) => (spec.address, None),
            State::Failed { error, .. } | State::Refused { error } => {
                (self.config.address, Some(error.clone()))
            }
        };
        ListenerState {
            name: name.to_owned(),
            address,
            service: self.config.service.clone(),
            port: self.config.port.to_string(),
            protocol: self.protocol,
            error,
        }
    }
}

/// Whose an address is: an explicit listener's (which names a free port only for itself), else the first by name.
fn owners(wanted: &BTreeMap<String, ListenerConfig>) -> BTreeMap<SocketAddr, String> {
    let mut owners = BTreeMap::new();
    let derived = |listener: &ListenerConfig| listener.name.contains('@');
    for explicit in [true, false] {
        for (name, listener) in wanted
            .iter()
            .filter(|(_, l)| derived(l) != explicit && l.address.port() != 0)
        {
            owners
                .entry(listener.address)
                .or_insert_with(|| name.clone());
        }
    }
    owners
}

/// One socket a worker, all on one address; none is handed out unless all could be bound.
fn bind(config: &ListenerConfig, id: ListenerId, shared: &Shared) -> io::Result<Arc<ListenerSpec>> {
    let first = socket::listen(config.address)?;
    let address = first.local_addr()?;
    let mut sockets: Vec<TcpListener> = vec![first];
    for _ in 1..shared.mailboxes.len() {
        sockets.push(socket::listen(address)?);
    }
    let spec = Arc::new(ListenerSpec {
        id,
        name: config.name.clone(),
        address,
        serves: Serves::Port {
            service: config.service.clone(),
            port: config.port.clone(),
        },
        protocol: config.protocol,
        proxy_protocol: config.proxy_protocol,
        allow_connect: config.allow_connect,
    });
    for (mailbox, socket) in shared.mailboxes.iter().zip(sockets) {
        // A worker is gone only when the process ends.
        let _ = mailbox.send(WorkerCommand::Listen(spec.clone(), socket));
    }
    Ok(spec)
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

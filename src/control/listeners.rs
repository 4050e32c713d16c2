//! The listeners: those that are wanted, those that are bound, and those to try again.
//!
//! Invariants: a change of one listener does not touch another. A listener that cannot be bound is
//! named in `/readyz` and tried again with backoff, and costs the others nothing. There are never
//! more listening sockets than their part of the descriptors.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::config::settings::{Config, ListenerConfig};
use crate::contract::listener::{ListenerId, ListenerSpec, Serves};
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::contract::snapshot::Snapshot;
use crate::control::descriptors::Descriptors;
use crate::control::wanted::{Origin, WantedListener, wanted};
use crate::net::socket;
use crate::observe::health::{Health, ListenerState};
use crate::proxy::shared::{Shared, WorkerCommand};

/// The wanted listeners and their sockets.
pub struct Listeners {
    listeners: BTreeMap<Key, Listener>,
    /// They bound the listening sockets, and each socket leaves less for clients.
    descriptors: Descriptors,
    next_id: u64,
    /// To close at the next [`Listeners::retry`].
    unwanted: Vec<Arc<ListenerSpec>>,
    /// Failures since the last [`Listeners::retry`], with their Services.
    refused: Vec<(ObjectName, String)>,
    /// The workers close these. They may still serve their accept queues.
    closing: Vec<Arc<ListenerSpec>>,
    /// What `/readyz` shows has changed.
    dirty: bool,
    /// The process shuts down: nothing is bound any more.
    closed: bool,
}

/// A listener's origin and name.
type Key = (Origin, String);

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
}

impl State {
    /// Due now.
    fn new() -> Self {
        Self::Failed {
            error: String::new(),
            retry_at: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }
}

impl Listeners {
    /// None yet. There will never be more sockets than their part of the descriptors.
    pub fn within(descriptors: Descriptors) -> Self {
        Self {
            listeners: BTreeMap::new(),
            descriptors,
            next_id: 0,
            unwanted: Vec::new(),
            refused: Vec::new(),
            closing: Vec::new(),
            dirty: false,
            closed: false,
        }
    }

    /// Takes in which listeners are wanted now. A listener that is no longer wanted, or whose
    /// settings differ, is closed at the next [`Self::retry`].
    pub fn want(&mut self, config: &Config, snapshot: &Snapshot) {
        if self.closed {
            return;
        }
        let claimed = snapshot.ports.values().filter(|port| port.claimed);
        let node_ports = claimed.filter_map(|port| Some((port.key.clone(), port.node_port?)));
        let wanted: BTreeMap<Key, WantedListener> = wanted(config, node_ports, socket::has_ipv6())
            .into_iter()
            .map(|it| ((it.origin, it.config.name.clone()), it))
            .collect();
        let changed = |key: &Key, now: &Listener| {
            wanted
                .get(key)
                .is_none_or(|wanted| wanted.config != now.config)
        };
        for (_, listener) in self.listeners.extract_if(.., |key, now| changed(key, now)) {
            self.dirty = true;
            if let State::Bound(spec) = listener.state {
                self.unwanted.push(spec);
            }
        }
        for (
            key,
            WantedListener {
                config, taken_by, ..
            },
        ) in wanted
        {
            let port = snapshot.port(&config.service, &config.port);
            let protocol = config.protocol.or(port.map(|port| port.protocol));
            let protocol = protocol.unwrap_or(Protocol::Auto);
            let listener = self.listeners.entry(key).or_insert_with(|| Listener {
                config,
                protocol,
                state: State::new(),
            });
            self.dirty |= listener.protocol != protocol;
            listener.protocol = protocol;
            match (taken_by, &listener.state) {
                (Some(owner), State::Failed { .. }) => {
                    self.refused.push(listener.refuse(&owner));
                }
                (Some(owner), State::Bound(spec)) => {
                    self.unwanted.push(spec.clone());
                    self.refused.push(listener.refuse(&owner));
                }
                (None, State::Refused { .. }) => listener.state = State::new(),
                (None | Some(_), _) => continue,
            }
            self.dirty = true;
        }
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
        for spec in self.unwanted.drain(..) {
            shared.post_all(|| WorkerCommand::Unlisten(spec.id));
            self.closing.push(spec);
        }
        self.closing.retain(|spec| is_accepting(spec));
        let shares = self.listeners.len() > SHARED_FROM;
        let mut open = Open::of(&self.listeners, &self.closing);
        for ((origin, name), wanted) in &mut self.listeners {
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
            let address = wanted.config.address;
            let sockets = match shares && *origin == Origin::NodePort {
                true => 1,
                false => shared.mailboxes.len(),
            };
            let after = open.sockets + sockets;
            let has_room = after <= self.descriptors.listening()
                && shared.resize(self.descriptors.connections(after));
            let bound = match has_room {
                false => Err(no_room(&self.descriptors)),
                true => {
                    if !open.ports.contains(&address.port()) && socket::is_listened_on(address) {
                        tracing::warn!(listener = name, %address, "another process listens on this address, too: each gets a part of the clients");
                    }
                    bind(&wanted.config, ListenerId(self.next_id), shared, sockets)
                }
            };
            wanted.state = match bound {
                Ok(spec) => {
                    let (listener, service) = (name.as_str(), &wanted.config.service);
                    tracing::info!(listener, address = %spec.address, %service, "listening");
                    open.sockets += sockets;
                    open.ports.insert(spec.address.port());
                    State::Bound(spec)
                }
                Err(error) => {
                    let error = error.to_string();
                    if *last != error {
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
        // What could not be bound, or has been closed, leaves room for clients.
        shared.resize(self.descriptors.connections(open.sockets));
        if std::mem::take(&mut self.dirty) {
            let listeners = self
                .listeners
                .iter()
                .map(|((_, name), listener)| listener.state(name))
                .collect();
            health.update(|h| {
                h.listeners = listeners;
                h.ports_tried = true;
            });
        } else if self.listeners.is_empty() {
            health.update(|h| h.ports_tried |= h.synced);
        }
        failures
    }

    /// When the next bind is due.
    pub fn next_retry(&self) -> Option<Instant> {
        self.listeners
            .values()
            .filter_map(|wanted| match wanted.state {
                State::Failed { retry_at, .. } => Some(retry_at),
                State::Bound(_) | State::Refused { .. } => None,
            })
            .min()
    }

    /// Closes all listeners, for good. Endpoints still change while clients are drained, so later
    /// calls of [`Self::want`] have no effect.
    pub fn close_all(&mut self, shared: &Shared, health: &Health) {
        self.closed = true;
        for (_, wanted) in std::mem::take(&mut self.listeners) {
            if let State::Bound(spec) = wanted.state {
                self.unwanted.push(spec);
            }
        }
        self.dirty = true;
        self.retry(Instant::now(), shared, health);
    }

    /// Whether the workers have served the accept queues of all closed listeners.
    pub fn are_closed(&self) -> bool {
        !self.closing.iter().any(|spec| is_accepting(spec))
    }
}

impl Listener {
    /// Does not bind this listener, since the listener `owner` has its address.
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

    /// As `/readyz` and the status page show it.
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

/// Whether a worker still serves the listener's accept queue.
fn is_accepting(spec: &ListenerSpec) -> bool {
    spec.accepting.load(Ordering::Acquire) > 0
}

/// The listening sockets that are open.
struct Open {
    sockets: usize,
    ports: HashSet<u16>,
}

impl Open {
    fn of(listeners: &BTreeMap<Key, Listener>, closing: &[Arc<ListenerSpec>]) -> Self {
        let bound = listeners.values().filter_map(|it| match &it.state {
            State::Bound(spec) => Some(spec),
            State::Failed { .. } | State::Refused { .. } => None,
        });
        let mut open = Self {
            sockets: 0,
            ports: HashSet::new(),
        };
        for spec in bound.chain(closing) {
            open.sockets += spec.accepting.load(Ordering::Relaxed);
            open.ports.insert(spec.address.port());
        }
        open
    }
}

fn no_room(descriptors: &Descriptors) -> io::Error {
    io::Error::other(format!(
        "no descriptor is left for it: of {}, {} are for listening sockets, and clients have theirs; \
         raise the limit (ulimit -n), or claim fewer Services",
        descriptors.limit,
        descriptors.listening()
    ))
}

/// Binds `count` sockets on one address, one for each worker, or one for all. The workers get their
/// sockets only if all could be bound. A worker hands connections over to others, so those that have
/// no socket are not idle.
fn bind(
    config: &ListenerConfig,
    id: ListenerId,
    shared: &Shared,
    count: usize,
) -> io::Result<Arc<ListenerSpec>> {
    let first = socket::listen(config.address)?;
    let address = first.local_addr()?;
    let mut sockets: Vec<TcpListener> = vec![first];
    for _ in 1..count {
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
        accepting: AtomicUsize::new(count),
    });
    // Single sockets go to the workers in turn.
    let first = id.0 as usize % shared.mailboxes.len();
    let mailboxes = shared.mailboxes.iter().cycle().skip(first);
    for (mailbox, socket) in mailboxes.zip(sockets) {
        // A worker ends only when the process ends.
        let _ = mailbox.send(WorkerCommand::Listen(spec.clone(), socket));
    }
    Ok(spec)
}

/// With more listeners than this, a nodePort has one socket, which one worker serves for all:
/// otherwise the sockets would be ports x addresses x workers.
const SHARED_FROM: usize = 256;
/// Pauses between two tries to bind. They double.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

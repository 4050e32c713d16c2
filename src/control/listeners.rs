//! The listeners: those that are wanted, those that are bound, and those to try again.
//!
//! Invariant: a change of one listener does not touch another. A listener that cannot be bound is
//! named in `/readyz` and tried again with backoff, and costs the others nothing.

use std::collections::BTreeMap;
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
use crate::control::wanted::{Origin, WantedListener, wanted};
use crate::net::socket;
use crate::observe::health::{Health, ListenerState};
use crate::proxy::shared::{Shared, WorkerCommand};

/// The wanted listeners and their sockets.
#[derive(Default)]
pub struct Listeners {
    listeners: BTreeMap<Key, Listener>,
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
        for ((_, name), wanted) in &mut self.listeners {
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

/// Binds one socket for each worker, all on one address. The workers get their sockets only if all
/// could be bound.
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
        accepting: AtomicUsize::new(shared.mailboxes.len()),
    });
    for (mailbox, socket) in shared.mailboxes.iter().zip(sockets) {
        // A worker ends only when the process ends.
        let _ = mailbox.send(WorkerCommand::Listen(spec.clone(), socket));
    }
    Ok(spec)
}

/// Pauses between two tries to bind. They double.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

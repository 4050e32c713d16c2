//! Listening sockets: they are bound within their part of the descriptors.
//!
//! Invariant: there are never more than [`Descriptors::listening`]. Each one leaves less for clients.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;

use crate::config::settings::ListenerConfig;
use crate::contract::by_name::ByName;
use crate::contract::listener::{ListenerId, ListenerSpec, Serves};
use crate::contract::policy::{Protocol, Transport};
use crate::contract::termination::Termination;
use crate::control::certificates::Certificates;
use crate::control::descriptors::Descriptors;
use crate::control::doors::Inheritance;
use crate::net::{datagrams, socket};
use crate::proxy::shared::{Listening, Shared, WorkerCommand};

/// The listening sockets of all workers.
pub(super) struct Sockets {
    descriptors: Descriptors,
    certificates: Certificates,
    inheritance: Inheritance,
    next_id: u64,
    open: usize,
    /// The process that this one replaces serves the same ports.
    pub(super) follows: bool,
    /// How many listeners are open on each port.
    ports: HashMap<(Transport, u16), usize>,
    /// The last listener of each address where none is now.
    gone: HashMap<(Transport, SocketAddr), Weak<ListenerSpec>>,
    /// The workers close these. They may still serve their accept queues.
    closing: Vec<Arc<ListenerSpec>>,
}

impl ListenerConfig {
    /// What its clients are served by.
    pub(super) fn serves(&self, shared: &Shared) -> Serves {
        let service = self.service.clone();
        match self.health_check {
            true => Serves::HealthCheck { service },
            false => match self.routes {
                Some(by) => Serves::Routes {
                    table: shared.routes_of(&service, &self.port),
                    by,
                },
                None => Serves::Port {
                    service,
                    port: self.port.clone(),
                },
            },
        }
    }
}

impl Sockets {
    /// None yet.
    pub(super) fn within(
        descriptors: Descriptors,
        certificates: Certificates,
        inheritance: Inheritance,
    ) -> Self {
        Self {
            descriptors,
            certificates,
            inheritance,
            next_id: 0,
            open: 0,
            follows: false,
            ports: HashMap::new(),
            gone: HashMap::new(),
            closing: Vec::new(),
        }
    }

    /// Binds one socket for each worker, or one that a single worker serves for all, and gives the
    /// workers their sockets. They get them only if all could be bound.
    ///
    /// The kernel spreads the clients over the sockets of a port. A UDP client has its session with
    /// one worker, and stays there: the sockets are opened together and closed together. Those of a
    /// predecessor are used: all of TCP, and those of UDP where there are as many.
    ///
    /// # Errors
    /// The address cannot be bound, or no descriptor is left for it.
    pub(super) fn bind(
        &mut self,
        config: &ListenerConfig,
        serves: Serves,
        single: bool,
        shared: &Shared,
    ) -> io::Result<Arc<ListenerSpec>> {
        let (address, transport) = (config.address, config.transport());
        let count = if single { 1 } else { shared.mailboxes.len() };
        let count = self.inheritance.sockets(transport, address, count);
        let after = self.open + count;
        let has_room = after <= self.descriptors.listening()
            && shared.resize(self.descriptors.connections(after));
        if !has_room {
            return Err(self.no_room());
        }
        let name = &config.name;
        let is_known = self.ports.contains_key(&(transport, address.port()));
        let id = self.next_id();
        let inherited = self.inheritance.take(transport, address, count);
        // A predecessor's clients of TCP pass over. Those of UDP would be divided until it ends.
        let is_expected = inherited.is_some() || self.follows && transport == Transport::Tcp;
        let is_shared = !is_known && !is_expected && is_taken(transport, address);
        let mut sockets: Vec<(OwnedFd, Option<CancellationToken>)> = Vec::with_capacity(count);
        let of_predecessor = inherited.into_iter().flatten();
        sockets.extend(of_predecessor.map(|it| (it.socket, Some(it.may_read))));
        let mut address = address;
        while sockets.len() < count {
            let (bound, socket) = open(transport, address)?;
            address = bound;
            sockets.push((socket, None));
        }
        if is_shared {
            tracing::warn!(listener = name, %address, "another process listens on this address, too: each gets a part of the clients");
        }
        let spec = Arc::new(ListenerSpec {
            id,
            name: config.name.clone(),
            address,
            serves,
            protocol: config.protocol,
            proxy_protocol: config.proxy_protocol,
            allow_connect: config.allow_connect,
            tls: self.certificates.terminate(config),
            by_name: self.passed_on(config, address),
            source_ranges: config.source_ranges.clone(),
            sockets: count,
            accepting: AtomicUsize::new(count),
            scope: config.scope,
            since: Instant::now(),
            next: OnceLock::new(),
            backend: ArcSwapOption::empty(),
        });
        let before = self.gone.remove(&(transport, address));
        if let Some(before) = before.and_then(|it| it.upgrade())
            && before.leads_to(&spec)
        {
            // It has had none.
            let _ = before.next.set(spec.clone());
        }
        self.open += count;
        *self.ports.entry((transport, address.port())).or_default() += 1;
        // Single sockets go to the workers in turn. A worker hands connections over to others, so
        // those that have no socket are not idle.
        let first = self.next_id as usize % shared.mailboxes.len();
        let mailboxes = shared.mailboxes.iter().cycle().skip(first);
        for ((number, (socket, may_read)), mailbox) in
            sockets.into_iter().enumerate().zip(mailboxes)
        {
            let listening = Listening {
                number,
                socket,
                may_read,
            };
            // A worker ends only when the process ends.
            let _ = mailbox.send(WorkerCommand::Listen(spec.clone(), listening));
        }
        Ok(spec)
    }

    /// How a listener that no socket is bound for speaks TLS.
    pub(super) fn terminate(&self, config: &ListenerConfig) -> Option<Arc<Termination>> {
        self.certificates.terminate(config)
    }

    /// The listeners of the names for which a listener passes TLS on.
    fn passed_on(
        &mut self,
        config: &ListenerConfig,
        address: SocketAddr,
    ) -> ByName<Arc<ListenerSpec>> {
        let mut by_name = ByName::default();
        for passthrough in &config.sni {
            let (id, name) = (self.next_id(), &config.name);
            let (service, port) = (&passthrough.service, &passthrough.port);
            let spec = Arc::new(ListenerSpec {
                protocol: Some(Protocol::Tcp),
                source_ranges: config.source_ranges.clone(),
                scope: config.scope,
                ..ListenerSpec::unbound(id, name, address, service, port)
            });
            for host in &passthrough.hosts {
                by_name.add(host, spec.clone());
            }
        }
        by_name
    }

    /// A name that no listener of this process has had.
    pub(super) fn next_id(&mut self) -> ListenerId {
        self.next_id += 1;
        ListenerId(self.next_id)
    }

    /// The workers serve what is in the accept queues of this listener, and then close it.
    pub(super) fn close(&mut self, spec: Arc<ListenerSpec>, shared: &Shared) {
        shared.post_all(|| WorkerCommand::Unlisten(spec.id));
        if self.gone.len() >= GONE {
            self.gone.retain(|_, it| it.strong_count() > 0);
        }
        let at = (spec.transport(), spec.address);
        self.gone.insert(at, Arc::downgrade(&spec));
        self.closing.push(spec);
    }

    /// Forgets what has been closed. What is not open leaves room for clients.
    pub(super) fn settle(&mut self, shared: &Shared) {
        for spec in self.closing.extract_if(.., |spec| !is_accepting(spec)) {
            self.open -= spec.sockets;
            let port = (spec.transport(), spec.address.port());
            if let Some(listeners) = self.ports.get_mut(&port) {
                *listeners -= 1;
                if *listeners == 0 {
                    self.ports.remove(&port);
                }
            }
        }
        shared.resize(self.descriptors.connections(self.open));
    }

    /// Whether the workers have served the accept queues of all closed listeners.
    pub(super) fn are_closed(&self) -> bool {
        !self.closing.iter().any(|spec| is_accepting(spec))
    }

    fn no_room(&self) -> io::Error {
        io::Error::other(format!(
            "no descriptor is left for it: of {}, {} are for listening sockets, and clients have \
             theirs; raise the limit (ulimit -n), or claim fewer Services",
            self.descriptors.limit,
            self.descriptors.listening()
        ))
    }
}

/// From so many on, those whose clients have left are forgotten.
const GONE: usize = 256;

/// Binds a socket. Returns its address, in which no port is 0.
fn open(transport: Transport, address: SocketAddr) -> io::Result<(SocketAddr, OwnedFd)> {
    match transport {
        Transport::Tcp => {
            let socket = socket::listen(address)?;
            Ok((socket.local_addr()?, socket.into()))
        }
        Transport::Udp => {
            let socket = datagrams::bind(address)?;
            Ok((socket.local_addr()?, socket.into()))
        }
    }
}

fn is_taken(transport: Transport, address: SocketAddr) -> bool {
    match transport {
        Transport::Tcp => socket::is_listened_on(address),
        Transport::Udp => datagrams::is_bound(address),
    }
}

/// Whether a worker still serves the listener's accept queue.
fn is_accepting(spec: &ListenerSpec) -> bool {
    spec.accepting.load(Ordering::Acquire) > 0
}

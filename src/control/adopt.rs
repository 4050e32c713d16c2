//! What this process takes over from the one that it replaces: the listener and the endpoint of each
//! connection.
//!
//! Invariant: a connection to an endpoint that leaves keeps the time that its drain has left it, also
//! if this process has never heard of the endpoint.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::contract::endpoint::{Endpoint, EndpointId, Lease};
use crate::contract::listener::{ListenerSpec, Serves};
use crate::contract::name::{PodRef, PortKey};
use crate::contract::policy::{PortRef, Transport};
use crate::contract::snapshot::Published;
use crate::control::command::Proposal;
use crate::control::listeners::Listeners;
use crate::proxy::heir::{Adopted, Joined, Offer};
use crate::proxy::shared::Shared;

/// What this process has taken over.
#[derive(Debug, Default)]
pub struct Adoptions {
    /// Stand-ins for the listeners of pairs, by name and Service port: all pairs of one share it.
    listeners: HashMap<(String, PortKey), Arc<ListenerSpec>>,
    /// Endpoints that this process does not know. They count from above, so that no other endpoint
    /// has their names.
    ghosts: u64,
}

/// An endpoint that this process does not know, and when its connections are cut.
type Ghost = (Instant, Arc<Endpoint>);

/// What this process has, to decide by.
pub(super) struct Known<'a> {
    pub(super) listeners: &'a mut Listeners,
    pub(super) snapshot: &'a Published,
    pub(super) shared: &'a Shared,
    /// How long a drain may take of which nothing else is known.
    pub(super) drain: Duration,
    /// It does not end.
    pub(super) is_running: bool,
}

impl Adoptions {
    /// Answers a proposal. Returns the endpoint whose deadline is to be watched, if it is unknown.
    pub(super) fn adopt(&mut self, proposal: Proposal, mut now: Known<'_>) -> Option<Ghost> {
        let mut ghost = None;
        let answer = match now.is_running {
            true => self.accept(&proposal.offer, &mut now, &mut ghost),
            false => Err("the process ends"),
        };
        let adopted = answer.and_then(|(listener, lease)| {
            let permit = now.shared.connections.clone().try_acquire_owned();
            Ok(Box::new(Adopted {
                permit: permit.map_err(|_| "limits.connections are taken")?,
                offer: proposal.offer,
                sockets: proposal.sockets,
                owed: proposal.owed,
                listener,
                lease,
            }))
        });
        // The thread that has asked waits for the answer.
        let _ = proposal.answer.send(adopted);
        ghost
    }

    fn accept(
        &mut self,
        offer: &Offer,
        now: &mut Known<'_>,
        ghost: &mut Option<Ghost>,
    ) -> Result<(Arc<ListenerSpec>, Option<Lease>), &'static str> {
        match offer {
            Offer::Http(client) => {
                let spec = now.listeners.bound_to(Transport::Tcp, client.door.listener);
                let spec = spec.ok_or("no listener has the address")?;
                // The client has begun without TLS, and goes on without it.
                match (&spec.tls, &spec.serves) {
                    (None, Serves::Port { .. } | Serves::Routes { .. }) => Ok((spec.clone(), None)),
                    _ => Err("the listener serves something else"),
                }
            }
            Offer::Pair(pair) => {
                let lease = self
                    .lease_for(pair, now, ghost)
                    .ok_or("the endpoint has drained")?;
                Ok((self.listener_for(pair, now.listeners), Some(lease)))
            }
            Offer::Session(it) => {
                let spec = now.listeners.bound_to(Transport::Udp, it.door.listener);
                let spec = spec.filter(|spec| spec.address == it.door.listener);
                let spec = spec.ok_or("no listener has the address")?;
                let port = it.service.port_over(Transport::Udp, it.port);
                let lease = known(now.snapshot, &port, it.endpoint, it.pod.as_ref());
                // Its client has another endpoint with the next datagram.
                let lease = lease.ok_or("the endpoint is not known")?;
                Ok((spec.clone(), Some(lease)))
            }
        }
    }

    /// The listener of a pair: it names the Service port that the pair counts for, and the log's line.
    fn listener_for(&mut self, pair: &Joined, listeners: &mut Listeners) -> Arc<ListenerSpec> {
        let key = (pair.door.name.clone(), pair.service.port(pair.port));
        if let Some(known) = self.listeners.get(&key) {
            return known.clone();
        }
        let (id, address) = (listeners.next_id(), pair.door.listener);
        let port = PortRef::Number(pair.port);
        let spec = ListenerSpec::unbound(id, &key.0, address, &pair.service, &port);
        self.listeners.entry(key).or_insert(Arc::new(spec)).clone()
    }

    /// The right to go on with a pair's endpoint.
    fn lease_for(
        &mut self,
        pair: &Joined,
        now: &Known<'_>,
        ghost: &mut Option<Ghost>,
    ) -> Option<Lease> {
        let port = pair.service.port_over(Transport::Tcp, pair.port);
        let known = known(now.snapshot, &port, pair.endpoint, pair.pod.as_ref());
        if known.is_some() {
            return known;
        }
        self.ghosts += 1;
        let id = EndpointId(u64::MAX - self.ghosts);
        let pod = pair.pod.clone().map(Arc::new);
        // Nobody hears of its end: its receipt is the other process's.
        let (notices, _) = mpsc::unbounded_channel();
        let unknown = Endpoint::new(id, pair.endpoint, pod, None, notices);
        let lease = unknown.adopt()?;
        let left = pair.drain_ms.map(Duration::from_millis);
        let left = left.unwrap_or(now.drain).min(LONGEST);
        let deadline = Instant::now() + left;
        unknown.shorten_deadline(deadline);
        unknown.begin_drain();
        *ghost = Some((deadline, unknown));
        Some(lease)
    }
}

/// The right to go on with an endpoint that this process knows, too.
fn known(
    snapshot: &Published,
    port: &PortKey,
    address: SocketAddr,
    pod: Option<&PodRef>,
) -> Option<Lease> {
    let number = PortRef::Number(port.port);
    let port = snapshot.port(&port.service, &number, port.transport)?;
    let is_it = |it: &&Arc<Endpoint>| it.address == address && it.pod.as_deref() == pod;
    port.all.iter().find(is_it).and_then(Endpoint::adopt)
}

/// No drain is longer than this, whatever another process says.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

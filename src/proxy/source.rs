//! Which address an endpoint sees: the client's own, or the node's.
//!
//! The client's own is kept where the endpoint's answers pass this node again: for clients of a cluster
//! IP, which are pods of this node, and for all others if they reach endpoints of this node only
//! (`externalTrafficPolicy: Local`). Nobody is refused for lack of it: the node's address is next.

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use crate::contract::clock::millis;
use crate::contract::endpoint::Endpoint;
use crate::contract::policy::Scope;
use crate::contract::snapshot::Port;
use crate::proxy::balancer::Origin;
use crate::proxy::worker::Worker;

/// A client whose address endpoints are to see.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    client: IpAddr,
    scope: Scope,
}

impl Source {
    /// The client's address is to be seen. `None`: the node's.
    pub fn wanted(worker: &Worker, port: &Port, from: Origin) -> Option<Self> {
        let sources = worker.shared.sources.as_ref()?;
        let scope = from.scope?;
        let passes = scope == Scope::Internal || port.traffic.external_local;
        let client = from.client.to_canonical();
        (passes && port.policy.keeps_source && !sources.is_node(client))
            .then_some(Self { client, scope })
    }

    /// The address that this endpoint is to see. `None`: the node's. An endpoint whose own address is
    /// the client's would answer itself. One without a pod may be a host that knows no way to pods.
    pub fn at(self, endpoint: &Endpoint) -> Option<IpAddr> {
        let address = endpoint.address.ip();
        let fits = address != self.client
            && address.is_ipv4() == self.client.is_ipv4()
            && endpoint.pod.is_some();
        fits.then_some(self.client)
    }

    /// Where to connect from. `None`: from the node's address, which is counted.
    pub async fn shadow(self, worker: &Worker, port: &Port) -> Option<IpAddr> {
        self.settle(worker).await;
        self.shadow_now(worker, port)
    }

    /// Asks for the shadow, and waits for the answer, if it is not known.
    pub async fn settle(self, worker: &Worker) {
        if let Some(sources) = &worker.shared.sources {
            sources.find((self.client, self.scope)).await;
        }
    }

    /// Whether the client has no shadow now.
    pub fn is_lost(self, worker: &Worker) -> bool {
        let sources = worker.shared.sources.as_ref();
        sources.is_none_or(|it| it.known((self.client, self.scope)) == Some(None))
    }

    /// Whether there is an answer to this.
    pub fn is_settled(self, worker: &Worker) -> bool {
        let sources = worker.shared.sources.as_ref();
        sources.is_none_or(|it| it.known((self.client, self.scope)).is_some())
    }

    /// As [`Self::shadow`], without a wait.
    pub fn shadow_now(self, worker: &Worker, port: &Port) -> Option<IpAddr> {
        let sources = worker.shared.sources.as_ref()?;
        let shadow = sources.known((self.client, self.scope)).flatten();
        if shadow.is_none() {
            self.lost(worker, port);
        }
        shadow
    }

    /// Whether a connect has failed because the node does not have the shadow any more. Then it is
    /// asked for again.
    pub fn has_gone(self, worker: &Worker, port: &Port, error: &io::Error) -> bool {
        let has_gone = error.kind() == io::ErrorKind::NotFound;
        if let Some(sources) = worker.shared.sources.as_ref().filter(|_| has_gone) {
            sources.forget((self.client, self.scope));
            self.lost(worker, port);
        }
        has_gone
    }

    fn lost(self, worker: &Worker, port: &Port) {
        port.metrics.source_lost.inc();
        if let Some(count) = worker.shared.sources_lost.count(millis(Instant::now())) {
            let (client, service) = (self.client, &port.key);
            tracing::warn!(
                %client, %service, count,
                "endpoints see the node's address instead of their client's"
            );
        }
    }
}

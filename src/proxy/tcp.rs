//! A TCP client: its connection to an endpoint, and its line in the access log.
//!
//! Invariant: a client that gets no endpoint sees a reset, never a clean close (contract 1.9).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::contract::endpoint::Lease;
use crate::contract::listener::{Action, ListenerSpec};
use crate::contract::reason::CloseReason;
use crate::observe::access_log::{AccessEntry, AccessLog};
use crate::proxy::balancer::{Avoid, Cost};
use crate::proxy::client::Client;
use crate::proxy::dispatch::{self, Refusal};
use crate::proxy::race::Ask;
use crate::proxy::relay::Ended;
use crate::proxy::upstream::{Reuse, Upstream};
use crate::proxy::worker::{Routed, Worker};

/// Connects a TCP client to an endpoint.
pub(super) async fn acquire_tcp(
    worker: &Rc<Worker>,
    client: &Client,
) -> Result<(Lease, Upstream), CloseReason> {
    let (cost, reuse, avoid) = (Cost::Tcp, Reuse::Fresh, Avoid::default());
    let ask = Ask {
        cost,
        reuse,
        http2: false,
        avoid,
        client: &client.stream,
        from: client.origin(),
        at: Instant::now(),
    };
    let found = match worker.port(&client.listener) {
        Some(port) => dispatch::upstream(worker, &client.listener, &port, &ask).await,
        None => Err(Refusal::NoService),
    };
    found.map_err(|refusal| {
        // A clean close would look like success.
        client.stream.reset_on_close();
        if refusal == Refusal::ClientLeft {
            CloseReason::ClientReset
        } else {
            CloseReason::NoEndpoint
        }
    })
}

/// What the access log says of a TCP connection.
pub(super) struct Logged {
    pub(super) log: AccessLog,
    /// `None` if the table has lost it since.
    pub(super) port: Option<Rc<Routed>>,
    pub(super) peer: SocketAddr,
    pub(super) door: Arc<ListenerSpec>,
    /// The action of its route, if a route has led it.
    pub(super) action: Option<Arc<Action>>,
    pub(super) started: Instant,
}

impl Logged {
    pub(super) fn write(&self, ended: &Ended) {
        self.log.write(&AccessEntry {
            time: SystemTime::now(),
            peer: self.peer,
            listener: &self.door.name,
            service: self.port.as_ref().map(|port| &port.key),
            route: self.action.as_deref().and_then(Action::name),
            method: None,
            target: None,
            status: None,
            grpc_status: None,
            bytes_sent: ended.sent,
            duration: self.started.elapsed(),
            endpoint: Some(ended.endpoint),
            attempts: 1,
            reason: Some(ended.reason.as_str()),
        });
    }
}

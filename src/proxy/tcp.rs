//! A TCP client: its connection to an endpoint.
//!
//! Invariant: a client that gets no endpoint sees a reset, never a clean close (contract 1.9).

use std::rc::Rc;
use std::time::Instant;

use crate::contract::endpoint::Lease;
use crate::contract::reason::CloseReason;
use crate::proxy::balancer::{Avoid, Cost};
use crate::proxy::client::Client;
use crate::proxy::dispatch::{self, Refusal};
use crate::proxy::race::Ask;
use crate::proxy::upstream::{Reuse, Upstream};
use crate::proxy::worker::Worker;

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

//! Starts the workers, with what they share.
//!
//! Invariant: there are descriptors for as many connections as the workers have places.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Semaphore, mpsc};

use crate::config::settings::{Config, Limits};
use crate::contract::snapshot::Published;
use crate::contract::source::Sources;
use crate::control::descriptors::Descriptors;
use crate::net::socket;
use crate::observe::access_log::AccessLog;
use crate::proxy::doors::Doors;
use crate::proxy::run;
use crate::proxy::shared::{Pace, Shared};
use crate::routing::table::RoutingTable;

/// Starts one thread a worker. Their mailboxes are unbounded: the sender, often the control loop,
/// must never wait for a worker. A worker gets at most one message a client connection, and those
/// are bounded by `limits.connections`; all other messages are few.
pub(super) fn start_workers(
    config: &Arc<Config>,
    snapshot: Arc<Published>,
    table: &RoutingTable,
    access_log: Option<AccessLog>,
    connections: usize,
) -> anyhow::Result<(Arc<Shared>, Vec<JoinHandle<()>>)> {
    let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..config.workers.get())
        .map(|_| mpsc::unbounded_channel())
        .unzip();
    let nodes = config.addresses.as_ref().map(|it| it.nodes.clone());
    let shared = Arc::new(Shared {
        snapshot,
        generation: table.generations().subscribe(),
        loads: mailboxes.iter().map(|_| AtomicUsize::new(0)).collect(),
        connections: Arc::new(Semaphore::new(connections)),
        places: AtomicUsize::new(connections),
        mailboxes: mailboxes.into(),
        closing: AtomicBool::new(false),
        leaving: AtomicBool::new(false),
        heir: ArcSwapOption::empty(),
        access_log,
        refused_headers: Pace::default(),
        refused_handshakes: Pace::default(),
        refused_endpoints: Pace::default(),
        inside: ArcSwap::from_pointee(config.inside.clone()),
        addresses: Arc::default(),
        routes: Mutex::default(),
        sources: nodes.map(|it| Arc::new(Sources::new(it))),
        sources_lost: Pace::default(),
        udp_full: Pace::default(),
        claims: Arc::default(),
        doors: Doors::default(),
    });
    let mut workers = Vec::new();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let (shared, config) = (shared.clone(), config.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        workers.push(thread.spawn(move || {
            if let Err(error) = run::run(index, shared, config, inbox) {
                tracing::error!(%error, "a worker cannot run");
            }
        })?);
    }
    Ok((shared, workers))
}

/// Divides the descriptors. Warns where `limits.connections` cannot be had. A default that cannot is no
/// fault of the configuration.
pub(super) fn descriptors(config: &Config) -> anyhow::Result<Descriptors> {
    let limit = usize::try_from(socket::raise_descriptor_limit()).unwrap_or(usize::MAX);
    let wanted = config.limits.connections.min(Semaphore::MAX_PERMITS);
    let parts = Descriptors::divide(limit, config.workers.get(), wanted)?;
    let listening = config.listeners.len() * config.workers.get();
    let connections = parts.connections(listening);
    if connections < wanted && wanted == Limits::default().connections {
        tracing::info!(
            limit = connections,
            descriptors = limit,
            "the descriptor limit allows fewer clients than the default of limits.connections"
        );
    } else if connections < wanted {
        tracing::warn!(
            limit = connections,
            descriptors = limit,
            "limits.connections is more than the descriptor limit allows"
        );
    }
    Ok(parts)
}

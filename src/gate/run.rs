//! The gate's thread: its listeners, and what it hears of other instances.
//!
//! Invariant: nothing here is waited for by anybody but the kubelet, other instances and pages.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::settings;
use crate::contract::snapshot::Published;
use crate::discovery::confirm::Confirm;
use crate::gate::ask::Asker;
use crate::gate::hold::Gate;
use crate::gate::log::{Log, Outcome};
use crate::gate::look::{self, Look};
use crate::gate::peers::Peers;
use crate::gate::server::{Server, listen};
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;

/// What the gate is given.
pub struct Parts {
    /// Its configuration.
    pub settings: settings::Gate,
    /// The grace of a pod whose deletion nobody can confirm.
    pub grace: Duration,
    /// The way to the control loop.
    pub asker: Asker,
    /// Who can say whether a pod is deleted.
    pub confirm: Option<mpsc::Sender<Confirm>>,
    /// Every Service port as it is now.
    pub snapshot: Arc<Published>,
    /// Whether there is a table.
    pub health: Arc<Health>,
    /// What is held.
    pub log: Arc<Log>,
    /// The metrics of this process.
    pub metrics: Arc<Metrics>,
    /// The addresses of the instances, this one among them.
    pub instances: watch::Receiver<BTreeSet<IpAddr>>,
    /// Pods of this node that leave, by their UIDs. Unbounded, since the control loop must not wait:
    /// each pod is told once.
    pub hints: mpsc::UnboundedReceiver<String>,
    /// Questions of the pages.
    pub looks: mpsc::Receiver<Look>,
    /// Cancelled when this process begins to leave.
    pub leaving: CancellationToken,
}

/// Runs until the process ends. Calls that are held when it begins to leave are held on.
pub async fn run(mut parts: Parts) {
    let settings = parts.settings;
    for outcome in Outcome::ALL {
        parts.metrics.gate.show(outcome.as_str());
    }
    let peers = Peers::new(settings.key.clone(), parts.metrics.clone());
    let gate = Rc::new(Gate {
        asker: parts.asker,
        peers: peers.clone(),
        confirm: parts.confirm,
        log: parts.log,
        metrics: parts.metrics,
        grace: parts.grace,
        held: Default::default(),
    });
    let server = Rc::new(Server {
        gate,
        snapshot: parts.snapshot.clone(),
        health: parts.health,
        connections: Default::default(),
    });
    for address in &settings.addresses {
        let address = SocketAddr::new(*address, settings.port);
        tokio::task::spawn_local(listen(server.clone(), address, parts.leaving.clone()));
    }
    loop {
        peers.set(&others(&settings, &parts.instances.borrow_and_update()));
        // What ends of these will say nothing more. The listeners go on.
        let has_ended = tokio::select! {
            Ok(()) = parts.instances.changed() => false,
            Some(uid) = parts.hints.recv() => {
                peers.hint(&uid);
                false
            }
            Some(Look { pod, answer }) = parts.looks.recv() => {
                let (snapshot, peers) = (parts.snapshot.clone(), peers.clone());
                tokio::task::spawn_local(async move {
                    let _ = answer.send(look::all(&snapshot, peers, &pod).await);
                });
                false
            }
            else => true,
        };
        if has_ended {
            return std::future::pending().await;
        }
    }
}

/// The gates of the other instances.
fn others(settings: &settings::Gate, instances: &BTreeSet<IpAddr>) -> BTreeSet<SocketAddr> {
    let found = instances
        .iter()
        .map(|ip| SocketAddr::new(*ip, settings.port));
    let all = found.chain(settings.peers.iter().copied());
    let is_own =
        |it: &SocketAddr| it.port() == settings.port && settings.addresses.contains(&it.ip());
    all.filter(|it| !is_own(it)).collect()
}

//! Starts the source of objects, and what the API server gets from this process.
//!
//! Invariant: each source runs on a thread of its own, until the control loop has ended.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

use crate::cluster::api;
use crate::cluster::events;
use crate::cluster::writer::Writer;
use crate::config::settings::{self, Config, Discovery, PodWatch};
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::discovery::confirm::{self, Confirm};
use crate::discovery::manifest::Reader;
use crate::discovery::source::Message;
use crate::discovery::{files, fixed, instances, kubernetes, published, secrets};
use crate::observe::metrics::Metrics;

/// Finds the API server. Runs on a thread of its own, since the caller may be inside a runtime.
pub(super) fn locate(wanted: &settings::Kubernetes) -> anyhow::Result<kube::Config> {
    let look = || -> anyhow::Result<kube::Config> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(api::locate(wanted))?)
    };
    let located = std::thread::scope(|scope| scope.spawn(look).join());
    located.map_err(|_| anyhow::anyhow!("reading the kubeconfig has panicked"))?
}

/// What the API server gets from this process.
pub(super) struct Writing {
    pub(super) events: events::Queue,
    pub(super) writer: Option<Writer>,
    /// Dropped when it has got all of it.
    pub(super) written: std::sync::mpsc::Sender<()>,
}

/// What the gate asks of the API server.
pub(super) struct ForGate {
    /// Whether pods are deleted.
    pub(super) questions: mpsc::Receiver<Confirm>,
    /// The Service of all instances, and who wants their addresses.
    pub(super) service: Option<ObjectName>,
    pub(super) instances: watch::Sender<BTreeSet<IpAddr>>,
}

/// Reads the API server on a thread of its own: reading a list of 10,000 endpoints must delay no
/// drain.
pub(super) fn feed_from_api_server(
    api_server: kube::Config,
    wanted: kubernetes::Wanted,
    publish: Option<ObjectName>,
    out: mpsc::Sender<Message>,
    writing: Writing,
    gate: Option<ForGate>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let server = api_server.cluster_url.to_string();
    let connected = {
        let _inside = runtime.enter();
        api::connect(api_server)?
    };
    std::thread::Builder::new()
        .name("discovery".into())
        .spawn(move || {
            let errors = move |kind| metrics.discovery_errors.with_label_values(&[kind]).inc();
            runtime.spawn(events::run(
                connected.0.clone(),
                writing.events,
                errors.clone(),
            ));
            let client = connected.0.clone();
            let writer = writing
                .writer
                .map(|it| runtime.spawn(it.run(client, errors.clone())));
            let (silence, in_use) = (wanted.settings.silence, wanted.in_use.clone());
            let client = connected.0.clone();
            runtime.spawn(secrets::run(client, silence, in_use, out.clone()));
            if let Some(gate) = gate {
                let is_watched = wanted.settings.pods != PodWatch::None;
                let client = (connected.0.clone(), connected.1.clone());
                runtime.spawn(confirm::run(
                    client,
                    gate.questions,
                    is_watched,
                    out.clone(),
                ));
                if let Some(service) = gate.service {
                    let client = connected.0.clone();
                    runtime.spawn(instances::run(client, silence, service, gate.instances));
                }
            }
            if let Some(service) = publish {
                let client = connected.0.clone();
                runtime.spawn(published::run(client, silence, service, out.clone()));
            }
            runtime.block_on(kubernetes::run(connected, server, wanted, out, errors));
            // It has resigned, because the control loop has ended.
            if let Some(writer) = writer {
                let _ = runtime.block_on(writer);
            }
            drop(writing.written);
        })?;
    Ok(())
}

/// Runs a source other than the API server, until the control loop has ended.
pub(super) async fn feed(config: Arc<Config>, out: mpsc::Sender<Message>, metrics: Arc<Metrics>) {
    match &config.discovery {
        Discovery::Files { path } => {
            files::watch(path.clone(), Reader::of(&config), out, move |kind| {
                metrics.discovery_errors.with_label_values(&[kind]).inc()
            })
            .await;
        }
        Discovery::Kubernetes(_) => {} // See `feed_from_api_server`.
        Discovery::Static { to } => {
            for listener in &config.listeners {
                let PortRef::Number(port) = listener.port else {
                    continue;
                };
                let changes = fixed::fixed(&listener.service, port, to);
                let _ = out
                    .send(Message::Changes {
                        received: Instant::now(),
                        changes,
                    })
                    .await;
            }
            let _ = out.send(Message::Synced).await;
            out.closed().await;
        }
    }
}

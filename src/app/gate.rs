//! Starts the gate's thread, and connects it with the control loop, the source and the pages.
//!
//! Invariant: without the section `gate`, nothing of it exists.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::report::Admin;
use crate::app::feed::ForGate;
use crate::config::settings::{Config, Discovery};
use crate::control::gate::{Gate, Led};
use crate::control::net_link::Outbox;
use crate::gate::ask::Asker;
use crate::gate::look::Looks;
use crate::gate::run::Parts;

/// What is connected with the gate.
pub(super) struct Ends {
    /// The gate's own.
    pub(super) parts: Parts,
    /// The control loop's.
    pub(super) control: Gate,
    /// The source's, if that is an API server.
    pub(super) source: ForGate,
    /// The pages'.
    pub(super) looks: Looks,
}

/// Connects all; `None`: there is no gate. `outbox` is the way to `ebbtide net`.
pub(super) fn connect(config: &Config, admin: &Admin, outbox: Option<Arc<Outbox>>) -> Option<Ends> {
    let settings = config.gate.clone()?;
    let (asker, questions) = Asker::new();
    let (confirm, confirmed) = mpsc::channel(WAITING);
    let (instances, known) = watch::channel(BTreeSet::<IpAddr>::new());
    let (hints_in, hints) = mpsc::unbounded_channel();
    let (looks_in, looks) = mpsc::channel(WAITING);
    let leaving = CancellationToken::new();
    let has_api_server = matches!(config.discovery, Discovery::Kubernetes(_));
    let control = Gate {
        questions: Some(questions),
        hints: Gate::tells(&config.discovery).then_some(hints_in),
        led: outbox.map(|outbox| Led {
            outbox,
            settings: settings.clone(),
        }),
        leaving: leaving.clone(),
    };
    let source = ForGate {
        questions: confirmed,
        service: settings.service.clone(),
        instances,
    };
    let parts = Parts {
        settings,
        grace: config.timeouts.drain,
        asker,
        confirm: has_api_server.then_some(confirm),
        snapshot: admin.snapshot.clone(),
        health: admin.health.clone(),
        log: admin.gate.log.clone(),
        metrics: admin.metrics.clone(),
        instances: known,
        hints,
        looks,
        leaving,
    };
    Some(Ends {
        parts,
        control,
        source,
        looks: looks_in,
    })
}

/// Questions that may wait.
const WAITING: usize = 64;

//! Every metric of the process, in one struct that is handed down at start. There are no globals.
//!
//! Invariant: labels come from closed enums plus `namespace`, `service` and `port`. An address or a
//! pod's name is never a label; the admin page shows those. What a Service port counts is in
//! [`ServiceMetrics`], and how it is shown in `families`. [`Metrics::forget`] removes all of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::config::settings::PerService;
use crate::contract::counters::ServiceMetrics;
use crate::contract::name::PortKey;
use crate::observe::families::Shown;
use crate::observe::metrics::gate::GateMetrics;
use crate::observe::metrics::inherited::Inherited;
use crate::observe::{families, log, process};

pub mod gate;
mod inherited;

/// All metrics. [`Metrics::service`] gives those of a Service port.
pub struct Metrics {
    /// The families without a label for the Service.
    registry: Registry,
    /// These are made when the process begins.
    started: SystemTime,
    detail: PerService,
    ports: Mutex<Ports>,
    inherited: Mutex<Inherited>,
    /// Seconds from the arrival of an event that ends an endpoint to the moment at which no lease on
    /// it is granted any more. One observation for each drain.
    pub drain_reaction: Histogram,
    /// Errors of the source of truth, by `kind`.
    pub discovery_errors: IntCounterVec,
    /// Seconds since the source was last in order. The admin pages set it for each scrape.
    pub discovery_age: IntGauge,
    /// Namespaces that cannot be listed, or do not exist. The admin pages set it for each scrape.
    pub namespaces_failed: IntGauge,
    /// Listeners that are wanted and not bound. The admin pages set it for each scrape.
    pub listeners_failed: IntGauge,
    /// Access log lines that were dropped.
    pub access_log_dropped: IntCounter,
    /// The gate.
    pub gate: GateMetrics,
    /// Lines of the log that were dropped.
    pub log_dropped: IntCounter,
}

type Ports = BTreeMap<Arc<PortKey>, Arc<ServiceMetrics>>;

/// Bucket bounds in seconds. A reaction takes tens of microseconds normally. More than a second is
/// a stall that needs an alert.
const REACTION: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    5.0,
];

impl Metrics {
    /// Makes all families. All of each Service port's are shown.
    ///
    /// # Errors
    /// Two families have the same name.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        Self::with(PerService::All)
    }

    /// Makes all families. `detail`: what is shown of each Service port.
    ///
    /// # Errors
    /// Two families have the same name.
    pub fn with(detail: PerService) -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let build = Opts::new(
            "ebbtide_build_info",
            "Always 1. The label is the running version with its commit.",
        );
        keep(&registry, IntGaugeVec::new(build, &["version"])?)?
            .with_label_values(&[crate::VERSION])
            .set(1);
        Ok(Arc::new(Self {
            started: SystemTime::now(),
            detail,
            ports: Mutex::default(),
            inherited: Mutex::default(),
            drain_reaction: keep(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "ebbtide_drain_reaction_seconds",
                        "Time from the arrival of an event that ends an endpoint to the moment at which nothing is dispatched to it any more.",
                    )
                    .buckets(REACTION.to_vec()),
                )?,
            )?,
            discovery_errors: keep(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "ebbtide_discovery_errors_total",
                        "Errors of the source of truth, by kind.",
                    ),
                    &["kind"],
                )?,
            )?,
            discovery_age: keep(
                &registry,
                IntGauge::new(
                    "ebbtide_discovery_age_seconds",
                    "Seconds since the source of truth was last in order; 0 while it is in order.",
                )?,
            )?,
            namespaces_failed: keep(
                &registry,
                IntGauge::new(
                    "ebbtide_namespaces_failed",
                    "Namespaces that cannot be listed or do not exist; /readyz names them.",
                )?,
            )?,
            listeners_failed: keep(
                &registry,
                IntGauge::new(
                    "ebbtide_listeners_failed",
                    "Listeners that are wanted and cannot be bound; /readyz names them.",
                )?,
            )?,
            log_dropped: keep(&registry, log::dropped())?,
            access_log_dropped: keep(
                &registry,
                IntCounter::new(
                    "ebbtide_access_log_dropped_total",
                    "Access log lines that were dropped because their reader was too slow.",
                )?,
            )?,
            gate: GateMetrics::new(&registry)?,
            registry,
        }))
    }

    /// The metrics of one Service port. Each call returns the same metrics, until the port is
    /// forgotten.
    pub fn service(&self, key: &PortKey) -> Arc<ServiceMetrics> {
        let mut ports = self.ports();
        if let Some(metrics) = ports.get(key) {
            return metrics.clone();
        }
        let metrics = Arc::<ServiceMetrics>::default();
        ports.insert(Arc::new(key.clone()), metrics.clone());
        metrics
    }

    /// Removes the metrics of a Service port that is gone. A holder of its [`ServiceMetrics`] may
    /// go on counting, and nobody sees those counts. The cost does not depend on the other ports.
    pub fn forget(&self, key: &PortKey) {
        self.ports().remove(key);
        lock(&self.inherited).forget(key);
    }

    /// All metrics in the Prometheus text format. A Service port is shown once it has had a client.
    ///
    /// # Errors
    /// A family cannot be encoded.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let inherited = self.inherited();
        let mut text = self.rest(&inherited)?;
        process::write(&mut text, self.started);
        if self.detail != PerService::Off {
            let mut ports = self.ports().clone();
            // This process may not know yet which ports there are.
            for key in inherited.ports() {
                ports.entry(key.clone()).or_default();
            }
            families::write(&mut text, &shown(ports, &inherited), self.detail);
        }
        Ok(text)
    }

    /// All that has been counted so far, also by earlier processes, for the process that replaces this
    /// one. Ports that are gone are not in it.
    ///
    /// # Errors
    /// A family cannot be encoded.
    pub fn report(&self) -> Result<Vec<u8>, prometheus::Error> {
        let (ports, inherited) = (self.ports().clone(), self.inherited());
        inherited::report(&shown(ports, &inherited), &self.rest(&inherited)?)
    }

    /// Shows what another process has counted, which this one replaces, together with what this one
    /// counts. A later report replaces the one before.
    ///
    /// # Errors
    /// It is no report.
    pub fn inherit(&self, report: &[u8]) -> Result<(), serde_json::Error> {
        let inherited = Inherited::of(report)?;
        *lock(&self.inherited) = inherited;
        Ok(())
    }

    /// The families without a label for the Service.
    fn rest(&self, inherited: &Inherited) -> Result<String, prometheus::Error> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        Ok(inherited.added_to(text))
    }

    /// What was counted before: a copy, since the control thread may wait for the lock.
    fn inherited(&self) -> Inherited {
        lock(&self.inherited).clone()
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those of these ports that have had a client.
fn shown(ports: Ports, inherited: &Inherited) -> Vec<Shown> {
    let shown = ports.into_iter().map(|(key, metrics)| Shown {
        before: inherited.of_port(&key),
        key,
        metrics,
    });
    let is_used = |it: &Shown| it.metrics.is_used() || !it.before.is_empty();
    shown.filter(is_used).collect()
}

fn keep<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests;

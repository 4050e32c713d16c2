//! The metrics of the gate.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// What the gate counts. It belongs to no Service: a pod may be in several.
pub struct GateMetrics {
    calls: IntCounterVec,
    held: Histogram,
    /// Other instances that are known.
    pub peers: IntGauge,
    /// Pods about which another instance did not answer in time.
    pub silent: IntCounter,
    /// Pods of which other instances said that they leave.
    pub hints: IntCounter,
}

impl GateMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let calls = Opts::new(
            "ebbtide_gate_calls_total",
            "preStop calls of pods that were answered, by outcome.",
        );
        let held = HistogramOpts::new(
            "ebbtide_gate_held_seconds",
            "Time from a pod's preStop call to its answer.",
        );
        Ok(Self {
            calls: keep(registry, IntCounterVec::new(calls, &["outcome"])?)?,
            held: keep(registry, Histogram::with_opts(held.buckets(HELD.to_vec()))?)?,
            peers: keep(
                registry,
                IntGauge::new(
                    "ebbtide_gate_peers",
                    "Other instances that are told of pods that leave.",
                )?,
            )?,
            silent: keep(
                registry,
                IntCounter::new(
                    "ebbtide_gate_silent_total",
                    "Questions about a pod that another instance did not answer in time.",
                )?,
            )?,
            hints: keep(
                registry,
                IntCounter::new(
                    "ebbtide_gate_hints_total",
                    "Pods of which other instances said that they leave; each asks again while it waits.",
                )?,
            )?,
        })
    }

    /// Shows the counter of an outcome from now on, so that a rate includes the first call.
    pub fn show(&self, outcome: &str) {
        self.calls.with_label_values(&[outcome]);
    }

    /// Counts a call.
    pub fn call(&self, outcome: &str, held: Duration) {
        self.calls.with_label_values(&[outcome]).inc();
        self.held.observe(held.as_secs_f64());
    }
}

fn keep<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Bucket bounds in seconds. An instance that does not answer takes a second.
const HELD: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 300.0,
];

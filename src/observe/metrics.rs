//! Every metric of the process, in one struct that is handed down at start. There are no globals.
//!
//! Invariant: labels come from closed enums plus `namespace`, `service` and `port`. An address or a
//! pod's name is never a label; the admin page shows those. A Service port's metrics are resolved
//! once, into [`ServiceMetrics`], so that the data plane looks nothing up. All of them exist from
//! then on with the value 0, so that a rate includes the first increment. [`Metrics::forget`]
//! removes all of them.

use std::sync::Arc;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::contract::counters::ServiceMetrics;
use crate::contract::name::PortKey;
use crate::contract::reason::{CloseReason, Outcome, Trigger};
use crate::observe::log;

/// The metric families. [`Metrics::service`] makes the metrics of a Service port.
pub struct Metrics {
    /// The registry that holds every family.
    pub registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    connections: IntCounterVec,
    connections_active: IntGaugeVec,
    closes: IntCounterVec,
    retries: IntCounterVec,
    failures: IntCounterVec,
    held: IntCounterVec,
    held_now: IntGaugeVec,
    endpoints: IntGaugeVec,
    drains: IntCounterVec,
    drain_duration: HistogramVec,
    /// Seconds from the arrival of an event that ends endpoints to the moment at which no lease on
    /// them is granted any more.
    pub drain_reaction: Histogram,
    deletion_lag: HistogramVec,
    upstream_connections: IntGaugeVec,
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
    /// Lines of the log that were dropped.
    pub log_dropped: IntCounter,
}

const PORT: &[&str] = &["namespace", "service", "port"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// In the order of [`RetryReason`](crate::contract::reason::RetryReason).
const RETRY_REASONS: [&str; 3] = ["connect", "stale", "replay"];
/// The values of the label `state` of `ebbtide_endpoints`, in the order of
/// [`ServiceMetrics::endpoints`].
pub const ENDPOINT_STATES: [&str; 4] = ["ready", "serving", "notReady", "draining"];

/// Bucket bounds in seconds. A reaction takes tens of microseconds normally. More than a second is
/// a stall that needs an alert.
const REACTION: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    5.0,
];
/// Bucket bounds in seconds. A `deletionTimestamp` has a resolution of one second. The steps are
/// fine below one second (for a source with a better clock) and around it, and end where the
/// propagation delays of other proxies end.
const LAG: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0,
];
/// Bucket bounds in seconds.
const REQUEST: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Bucket bounds in seconds: from an idle endpoint to a grace period of an hour.
const DRAIN: &[f64] = &[
    0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

impl Metrics {
    /// Makes all families.
    ///
    /// # Errors
    /// Two families have the same name.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, extra: &[&str]| {
            keep(
                &registry,
                IntCounterVec::new(Opts::new(name, help), &[PORT, extra].concat())?,
            )
        };
        let gauge = |name: &str, help: &str, extra: &[&str]| {
            keep(
                &registry,
                IntGaugeVec::new(Opts::new(name, help), &[PORT, extra].concat())?,
            )
        };
        let options = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::new(name, help).buckets(buckets.to_vec())
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            keep(
                &registry,
                HistogramVec::new(options(name, help, buckets), PORT)?,
            )
        };

        let build = Opts::new(
            "ebbtide_build_info",
            "Always 1. The label is the running version with its commit.",
        );
        keep(&registry, IntGaugeVec::new(build, &["version"])?)?
            .with_label_values(&[crate::VERSION])
            .set(1);
        Ok(Arc::new(Self {
            requests: counter(
                "ebbtide_requests_total",
                "HTTP responses to clients, by class of status code.",
                &["code"],
            )?,
            request_duration: histogram(
                "ebbtide_request_duration_seconds",
                "Time from the end of a request's head to the last byte of its response, holds and replays included.",
                REQUEST,
            )?,
            connections: counter(
                "ebbtide_connections_total",
                "Client connections served, by protocol.",
                &["protocol"],
            )?,
            connections_active: gauge(
                "ebbtide_connections_active",
                "Client connections open now.",
                &[],
            )?,
            closes: counter(
                "ebbtide_connection_closes_total",
                "Client connections that ended, by reason.",
                &["reason"],
            )?,
            retries: counter(
                "ebbtide_retries_total",
                "Retries, by what was lost (connect: a connect, stale: a reused connection, replay: a request) and by \
                 their outcome.",
                &["reason", "outcome"],
            )?,
            failures: counter(
                "ebbtide_failures_total",
                "Requests that Ebbtide had to fail: its own 502, 503 and 504, and responses that it cut.",
                &[],
            )?,
            held: counter(
                "ebbtide_held_total",
                "Requests and connections that found no usable endpoint, by the outcome of their wait.",
                &["outcome"],
            )?,
            held_now: gauge(
                "ebbtide_held",
                "Requests and connections that wait for a usable endpoint now.",
                &[],
            )?,
            endpoints: gauge(
                "ebbtide_endpoints",
                "Endpoints by state: ready (in rotation), serving (terminating, a last resort), notReady (not ready, \
                 joining or not answering), draining.",
                &["state"],
            )?,
            drains: counter(
                "ebbtide_drains_total",
                "Drains that ended, by the signal that came first and by outcome.",
                &["trigger", "outcome"],
            )?,
            drain_duration: histogram(
                "ebbtide_drain_duration_seconds",
                "Time from the beginning of an endpoint's drain to the end of its last connection or request.",
                DRAIN,
            )?,
            drain_reaction: keep(
                &registry,
                Histogram::with_opts(options(
                    "ebbtide_drain_reaction_seconds",
                    "Time from the arrival of an event that ends an endpoint to the moment at which nothing is dispatched to it any more.",
                    REACTION,
                ))?,
            )?,
            deletion_lag: histogram(
                "ebbtide_deletion_lag_seconds",
                "Time from a pod's deletion, by the source's clock, to the last dispatch to it.",
                LAG,
            )?,
            upstream_connections: gauge(
                "ebbtide_upstream_connections",
                "Connections to endpoints: active, or idle in a pool.",
                &["state"],
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
            registry,
        }))
    }

    /// The metrics of one Service port. Each call returns the same metrics, until the port is
    /// forgotten.
    pub fn service(&self, key: &PortKey) -> Arc<ServiceMetrics> {
        let port = key.port.to_string();
        let base = [
            key.service.namespace.as_str(),
            key.service.name.as_str(),
            port.as_str(),
        ];
        let counter =
            |vec: &IntCounterVec, extra: &[&str]| vec.with_label_values(&[&base, extra].concat());
        let gauge =
            |vec: &IntGaugeVec, extra: &[&str]| vec.with_label_values(&[&base, extra].concat());
        Arc::new(ServiceMetrics {
            requests: CLASSES.map(|class| counter(&self.requests, &[class])),
            request_duration: self.request_duration.with_label_values(&base),
            connections_http: counter(&self.connections, &["http"]),
            connections_tcp: counter(&self.connections, &["tcp"]),
            connections_active: gauge(&self.connections_active, &[]),
            closes: CloseReason::ALL.map(|reason| counter(&self.closes, &[reason.as_str()])),
            retries: RETRY_REASONS.map(|reason| {
                (
                    counter(&self.retries, &[reason, "ok"]),
                    counter(&self.retries, &[reason, "failed"]),
                )
            }),
            failures: counter(&self.failures, &[]),
            held_released: counter(&self.held, &["released"]),
            held_expired: counter(&self.held, &["expired"]),
            held_refused: counter(&self.held, &["refused"]),
            held_left: counter(&self.held, &["left"]),
            held_now: gauge(&self.held_now, &[]),
            endpoints: ENDPOINT_STATES.map(|state| gauge(&self.endpoints, &[state])),
            drains: Trigger::ALL.map(|trigger| {
                Outcome::ALL
                    .map(|outcome| counter(&self.drains, &[trigger.as_str(), outcome.as_str()]))
            }),
            drain_duration: self.drain_duration.with_label_values(&base),
            deletion_lag: self.deletion_lag.with_label_values(&base),
            upstream_active: gauge(&self.upstream_connections, &["active"]),
            upstream_idle: gauge(&self.upstream_connections, &["idle"]),
        })
    }

    /// Removes the metrics of a Service port that is gone. A holder of its [`ServiceMetrics`] may
    /// go on counting, and nobody sees those counts. The cost does not depend on the other ports:
    /// the labels are closed sets, so each metric is removed by its labels.
    pub fn forget(&self, key: &PortKey) {
        let port = key.port.to_string();
        let base = [
            key.service.namespace.as_str(),
            key.service.name.as_str(),
            port.as_str(),
        ];
        for class in CLASSES {
            remove(&self.requests, &base, &[class]);
        }
        for protocol in ["http", "tcp"] {
            remove(&self.connections, &base, &[protocol]);
        }
        for reason in CloseReason::ALL {
            remove(&self.closes, &base, &[reason.as_str()]);
        }
        for reason in RETRY_REASONS {
            remove(&self.retries, &base, &[reason, "ok"]);
            remove(&self.retries, &base, &[reason, "failed"]);
        }
        for outcome in ["released", "expired", "refused", "left"] {
            remove(&self.held, &base, &[outcome]);
        }
        for state in ENDPOINT_STATES {
            remove(&self.endpoints, &base, &[state]);
        }
        for trigger in Trigger::ALL {
            for outcome in Outcome::ALL {
                remove(&self.drains, &base, &[trigger.as_str(), outcome.as_str()]);
            }
        }
        for state in ["active", "idle"] {
            remove(&self.upstream_connections, &base, &[state]);
        }
        remove(&self.request_duration, &base, &[]);
        remove(&self.connections_active, &base, &[]);
        remove(&self.failures, &base, &[]);
        remove(&self.held_now, &base, &[]);
        remove(&self.drain_duration, &base, &[]);
        remove(&self.deletion_lag, &base, &[]);
    }

    /// All metrics in the Prometheus text format.
    ///
    /// # Errors
    /// A family cannot be encoded.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn keep<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Removes one metric from a family.
fn remove<B: MetricVecBuilder>(vec: &MetricVec<B>, base: &[&str], extra: &[&str]) {
    // An error says that there is no such metric: another call has removed it.
    let _ = vec.remove_label_values(&[base, extra].concat());
}

#[cfg(test)]
mod tests;

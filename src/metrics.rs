//! Every metric of the process, in one struct handed down at start; no globals.
//!
//! Labels come from closed enums plus `namespace`, `service`, `port`; never an address or a pod's name (those are on the
//! admin page). A service's children are resolved once, into [`ServiceMetrics`], so that the data plane looks nothing up.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::routing::PortKey;

/// Why a client connection ended: log field and metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client ended it, at a boundary.
    ClientClosed,
    /// The client reset it or went away in the middle of something.
    ClientReset,
    /// Idle, or its head incomplete, for too long.
    ClientTimeout,
    /// The upstream ended it, properly.
    UpstreamClosed,
    /// The upstream reset it or failed in the middle of something.
    UpstreamReset,
    /// HTTP keep-alive ended by what was agreed (`Connection: close`, HTTP/1.0).
    Completed,
    /// What the client sent was refused (4xx, then close).
    BadRequest,
    /// Nothing to dispatch to within the hold time.
    NoEndpoint,
    /// Cut at an endpoint's drain deadline.
    DrainDeadline,
    /// This process shuts down.
    Shutdown,
    /// The listener's PROXY header was missing or wrong.
    BadProxyHeader,
}

impl CloseReason {
    pub const ALL: [Self; 11] = [
        Self::ClientClosed,
        Self::ClientReset,
        Self::ClientTimeout,
        Self::UpstreamClosed,
        Self::UpstreamReset,
        Self::Completed,
        Self::BadRequest,
        Self::NoEndpoint,
        Self::DrainDeadline,
        Self::Shutdown,
        Self::BadProxyHeader,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ClientReset => "client_reset",
            Self::ClientTimeout => "client_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamReset => "upstream_reset",
            Self::Completed => "completed",
            Self::BadRequest => "bad_request",
            Self::NoEndpoint => "no_endpoint",
            Self::DrainDeadline => "drain_deadline",
            Self::Shutdown => "shutdown",
            Self::BadProxyHeader => "bad_proxy_header",
        }
    }
}

/// Why something was tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// Connect failed, nothing written.
    Connect,
    /// A reused connection turned out to be closed.
    Stale,
    /// Written, then lost.
    Replay,
}

/// The service-wide families; children are made by [`Metrics::service`].
pub struct Metrics {
    pub registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    connections: IntCounterVec,
    connections_active: IntGaugeVec,
    closes: IntCounterVec,
    retries: IntCounterVec,
    held: IntCounterVec,
    held_now: IntGaugeVec,
    endpoints: IntGaugeVec,
    drains: IntCounterVec,
    drain_duration: HistogramVec,
    pub drain_reaction: Histogram,
    deletion_lag: HistogramVec,
    upstream_connections: IntGaugeVec,
    pub discovery_errors: IntCounterVec,
    pub discovery_age: IntGauge,
}

/// One service port's metrics, resolved.
pub struct ServiceMetrics {
    /// By class: index 0 is `1xx` … 4 is `5xx`.
    pub requests: [IntCounter; 5],
    pub request_duration: Histogram,
    pub connections_http: IntCounter,
    pub connections_tcp: IntCounter,
    pub connections_active: IntGauge,
    closes: [IntCounter; CloseReason::ALL.len()],
    /// (ok, failed) by [`RetryReason`].
    retries: [(IntCounter, IntCounter); 3],
    pub held_released: IntCounter,
    pub held_expired: IntCounter,
    pub held_refused: IntCounter,
    pub held_left: IntCounter,
    pub held_now: IntGauge,
    /// ready, serving, notReady, draining.
    pub endpoints: [IntGauge; 4],
    drains: IntCounterVec,
    pub drain_duration: Histogram,
    pub deletion_lag: Histogram,
    pub upstream_active: IntGauge,
    pub upstream_idle: IntGauge,
    labels: [String; 3],
}

impl Metrics {
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        const FAST: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];
        const REQUEST: &[f64] =
            &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        const LONG: &[f64] = &[0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

        let build = gauge("ebbtide_build_info", "Always 1; the version is the label.", &["version"])?;
        build.with_label_values(&[crate::VERSION]).set(1);
        let reaction = histogram(
            "ebbtide_drain_reaction_seconds",
            "From the arrival of the event that ends an endpoint to the return of begin_drain.",
            &[],
            FAST,
        )?;
        let age =
            IntGauge::new("ebbtide_discovery_age_seconds", "Seconds since the source of truth was last in order.")?;
        registry.register(Box::new(age.clone()))?;
        Ok(Arc::new(Self {
            requests: counter(
                "ebbtide_requests_total",
                "HTTP requests answered, by status class.",
                &["namespace", "service", "port", "code"],
            )?,
            request_duration: histogram(
                "ebbtide_request_duration_seconds",
                "From the first byte of a request's head to the last byte of its response.",
                PORT,
                REQUEST,
            )?,
            connections: counter(
                "ebbtide_connections_total",
                "Client connections accepted.",
                &["namespace", "service", "port", "protocol"],
            )?,
            connections_active: gauge("ebbtide_connections_active", "Client connections open now.", PORT)?,
            closes: counter(
                "ebbtide_connection_closes_total",
                "Client connections ended, by reason.",
                &["namespace", "service", "port", "reason"],
            )?,
            retries: counter(
                "ebbtide_retries_total",
                "Second tries: a connect that failed, a stale reused connection, a request replayed.",
                &["namespace", "service", "port", "reason", "outcome"],
            )?,
            held: counter(
                "ebbtide_held_total",
                "Requests and connections that had to wait for a usable endpoint, by how that ended.",
                &["namespace", "service", "port", "outcome"],
            )?,
            held_now: gauge("ebbtide_held", "Requests and connections waiting for a usable endpoint now.", PORT)?,
            endpoints: gauge("ebbtide_endpoints", "Endpoints by state.", &["namespace", "service", "port", "state"])?,
            drains: counter(
                "ebbtide_drains_total",
                "Endpoints drained, by what set it off and how it ended.",
                &["namespace", "service", "port", "trigger", "outcome"],
            )?,
            drain_duration: histogram(
                "ebbtide_drain_duration_seconds",
                "From begin_drain to the last lease.",
                PORT,
                LONG,
            )?,
            drain_reaction: reaction.with_label_values::<&str>(&[]),
            deletion_lag: histogram(
                "ebbtide_deletion_lag_seconds",
                "From a pod's deletion, by the source's clock, to the last dispatch to it.",
                PORT,
                FAST,
            )?,
            upstream_connections: gauge(
                "ebbtide_upstream_connections",
                "Connections to endpoints, by state.",
                &["namespace", "service", "port", "state"],
            )?,
            discovery_errors: counter(
                "ebbtide_discovery_errors_total",
                "Errors of the source of truth, by kind.",
                &["kind"],
            )?,
            discovery_age: age,
            registry,
        }))
    }

    /// The children of one service port.
    pub fn service(&self, key: &PortKey) -> Arc<ServiceMetrics> {
        let labels = [key.service.namespace.clone(), key.service.name.clone(), key.port.to_string()];
        let base: Vec<&str> = labels.iter().map(String::as_str).collect();
        let counter = |vec: &IntCounterVec, rest: &[&str]| vec.with_label_values(&[&base[..], rest].concat());
        let gauge = |vec: &IntGaugeVec, rest: &[&str]| vec.with_label_values(&[&base[..], rest].concat());
        Arc::new(ServiceMetrics {
            requests: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| counter(&self.requests, &[class])),
            request_duration: self.request_duration.with_label_values(&base),
            connections_http: counter(&self.connections, &["http"]),
            connections_tcp: counter(&self.connections, &["tcp"]),
            connections_active: gauge(&self.connections_active, &[]),
            closes: CloseReason::ALL.map(|reason| counter(&self.closes, &[reason.as_str()])),
            retries: ["connect", "stale", "replay"]
                .map(|reason| (counter(&self.retries, &[reason, "ok"]), counter(&self.retries, &[reason, "failed"]))),
            held_released: counter(&self.held, &["released"]),
            held_expired: counter(&self.held, &["expired"]),
            held_refused: counter(&self.held, &["refused"]),
            held_left: counter(&self.held, &["left"]),
            held_now: gauge(&self.held_now, &[]),
            endpoints: ["ready", "serving", "notReady", "draining"].map(|state| gauge(&self.endpoints, &[state])),
            drains: self.drains.clone(),
            drain_duration: self.drain_duration.with_label_values(&base),
            deletion_lag: self.deletion_lag.with_label_values(&base),
            upstream_active: gauge(&self.upstream_connections, &["active"]),
            upstream_idle: gauge(&self.upstream_connections, &["idle"]),
            labels,
        })
    }

    /// Takes a service port that is gone out of the exposition.
    pub fn forget(&self, key: &PortKey) {
        let port = key.port.to_string();
        let base = [key.service.namespace.as_str(), key.service.name.as_str(), port.as_str()];
        for vec in [&self.connections_active, &self.held_now] {
            let _ = vec.remove_label_values(&base);
        }
        for state in ["ready", "serving", "notReady", "draining"] {
            let _ = self.endpoints.remove_label_values(&[&base[..], &[state]].concat());
        }
    }
}

impl ServiceMetrics {
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].inc();
    }

    pub fn retried(&self, reason: RetryReason, ok: bool) {
        let (done, failed) = &self.retries[reason as usize];
        if ok { done.inc() } else { failed.inc() }
    }

    pub fn answered(&self, status: u16) {
        self.requests[usize::from((status / 100).clamp(1, 5)) - 1].inc();
    }

    pub fn drained(&self, trigger: &str, outcome: &str) {
        let [namespace, service, port] = &self.labels;
        self.drains.with_label_values(&[namespace, service, port, trigger, outcome]).inc();
    }
}

const PORT: &[&str] = &["namespace", "service", "port"];

//! The metric families of Service ports: their names, labels and help, their text in the Prometheus
//! format, and their counts as numbers.
//!
//! Invariant: labels come from closed enums plus `namespace`, `service` and `port`, and
//! `transport` for a UDP port. The series of a
//! port appear with its first client, all of them together, so that a rate includes the increments
//! after that.

use std::fmt::Write;
use std::sync::Arc;

use crate::config::settings::PerService;
use crate::contract::counters::{Histogram, ServiceMetrics};
use crate::contract::name::PortKey;
use crate::contract::policy::Transport;
use crate::contract::reason::{CloseReason, DropReason, GrpcClass, Outcome, Trigger};

/// The values of the label `state` of `ebbtide_endpoints`, in the order of
/// [`ServiceMetrics::endpoints`].
pub const ENDPOINT_STATES: [&str; 4] = ["ready", "serving", "notReady", "draining"];

/// A family with a series, or several, for each Service port.
struct Family {
    name: &'static str,
    help: &'static str,
    series: Series,
    over: Over,
}

/// Which ports have a family.
#[derive(Clone, Copy)]
enum Over {
    Tcp,
    Udp,
    Both,
    /// Those that have counted something in it.
    Used,
}

/// The series of a family for one port. A counter or gauge has further labels, in `labels`, and
/// `values` gives a value for each.
enum Series {
    Counter(Labels, fn(&ServiceMetrics, usize) -> u64),
    Gauge(Labels, fn(&ServiceMetrics, usize) -> i64),
    Histogram(fn(&ServiceMetrics) -> &Histogram),
}

/// The further labels of each series of a port, in the order of their values.
type Labels = fn() -> Vec<Vec<(&'static str, &'static str)>>;

/// A port, what it counts, and what was counted of it before, in the order of [`names`].
pub(super) struct Shown {
    pub(super) key: Arc<PortKey>,
    pub(super) metrics: Arc<ServiceMetrics>,
    pub(super) before: Arc<[u64]>,
}

/// Writes the metrics of these ports.
pub(super) fn write(text: &mut String, ports: &[Shown], detail: PerService) {
    if ports.is_empty() {
        return;
    }
    let (mut at, nothing) = (0, ServiceMetrics::default());
    for family in FAMILIES {
        let from = at;
        at += family.counts(&nothing).count();
        let counts = |port: &Shown| {
            let before = port.before.iter().skip(from).chain(std::iter::repeat(&0));
            let counts = family.counts(&port.metrics).zip(before);
            counts.map(|(now, before)| now + before).collect::<Vec<_>>()
        };
        let ports = ports.iter().filter(|port| match family.over {
            Over::Tcp => port.key.transport == Transport::Tcp,
            Over::Udp => port.key.transport == Transport::Udp,
            Over::Both => true,
            Over::Used => counts(port).iter().any(|count| *count > 0),
        });
        let mut ports = ports.peekable();
        if ports.peek().is_none() {
            continue;
        }
        let kind = match family.series {
            Series::Counter(..) => "counter",
            Series::Gauge(..) => "gauge",
            Series::Histogram(_) if detail == PerService::Counters => continue,
            Series::Histogram(_) => "histogram",
        };
        let Family { name, help, .. } = family;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for port in ports {
            family.write(text, port, &counts(port));
        }
    }
}

/// The names of all series of a port that only grow. Their order is that of [`counts`]. The sum of a
/// histogram is in nanoseconds there.
pub(super) fn names() -> Vec<String> {
    let mut names = Vec::new();
    let nothing = ServiceMetrics::default();
    for family in FAMILIES {
        let name = family.name;
        match family.series {
            Series::Counter(labels, _) => {
                names.extend(labels().iter().map(|extra| format!("{name}{extra:?}")));
            }
            Series::Gauge(..) => {}
            Series::Histogram(histogram) => {
                let bounds = histogram(&nothing).cumulative();
                names.extend(bounds.map(|(bound, _)| format!("{name} up to {bound}")));
                names.push(format!("{name} sum"));
            }
        }
    }
    names
}

/// What a port has counted.
pub(super) fn counts(metrics: &ServiceMetrics) -> Vec<u64> {
    FAMILIES.iter().flat_map(|it| it.counts(metrics)).collect()
}

impl Family {
    fn counts<'a>(&self, metrics: &'a ServiceMetrics) -> Box<dyn Iterator<Item = u64> + 'a> {
        match self.series {
            Series::Counter(labels, value) => {
                Box::new((0..labels().len()).map(move |n| value(metrics, n)))
            }
            Series::Gauge(..) => Box::new(std::iter::empty()),
            Series::Histogram(histogram) => {
                let histogram = histogram(metrics);
                let up_to = histogram.cumulative().map(|(_, count)| count);
                Box::new(up_to.chain([histogram.nanos()]))
            }
        }
    }

    fn write(&self, text: &mut String, port: &Shown, counts: &[u64]) {
        let (name, key) = (self.name, &port.key);
        match self.series {
            Series::Counter(labels, _) => {
                for (extra, count) in labels().iter().zip(counts) {
                    let _ = writeln!(text, "{name}{{{}}} {count}", joined(key, extra));
                }
            }
            Series::Gauge(labels, value) => {
                for (n, extra) in labels().iter().enumerate() {
                    let now = value(&port.metrics, n);
                    let _ = writeln!(text, "{name}{{{}}} {now}", joined(key, extra));
                }
            }
            Series::Histogram(histogram) => {
                let labels = joined(key, &[]);
                let Some((nanos, up_to)) = counts.split_last() else {
                    return;
                };
                for ((bound, _), count) in histogram(&port.metrics).cumulative().zip(up_to) {
                    let bound = match bound.is_finite() {
                        true => bound.to_string(),
                        false => "+Inf".to_owned(),
                    };
                    let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
                }
                let (sum, all) = (*nanos as f64 / 1e9, up_to.last().unwrap_or(&0));
                let _ = writeln!(
                    text,
                    "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {all}"
                );
            }
        }
    }
}

/// The labels of a series, sorted by name.
fn joined(key: &PortKey, extra: &[(&str, &str)]) -> String {
    let port = key.port.to_string();
    let mut labels = vec![
        ("namespace", key.service.namespace.as_str()),
        ("port", port.as_str()),
        ("service", key.service.name.as_str()),
    ];
    if key.transport == Transport::Udp {
        labels.push(("transport", "udp"));
    }
    labels.extend(extra);
    labels.sort_unstable();
    let mut text = String::with_capacity(96);
    for (name, value) in labels {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{name}=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

fn one() -> Vec<Vec<(&'static str, &'static str)>> {
    vec![Vec::new()]
}

/// One label with these values.
fn each<const N: usize>(
    name: &'static str,
    values: [&'static str; N],
) -> Vec<Vec<(&'static str, &'static str)>> {
    values.map(|value| vec![(name, value)]).into()
}

/// In the order of [`RetryReason`](crate::contract::reason::RetryReason), then success and failure.
fn of_retries() -> Vec<Vec<(&'static str, &'static str)>> {
    let with =
        |reason| ["ok", "failed"].map(|outcome| vec![("outcome", outcome), ("reason", reason)]);
    ["connect", "stale", "replay"]
        .into_iter()
        .flat_map(with)
        .collect()
}

fn of_drains() -> Vec<Vec<(&'static str, &'static str)>> {
    let outcomes = |trigger: Trigger| {
        Outcome::ALL
            .map(|outcome| vec![("outcome", outcome.as_str()), ("trigger", trigger.as_str())])
    };
    Trigger::ALL.into_iter().flat_map(outcomes).collect()
}

const FAMILIES: &[Family] = &[
    Family {
        name: "ebbtide_requests_total",
        help: "HTTP responses to clients, by class of status code.",
        series: Series::Counter(
            || each("code", ["1xx", "2xx", "3xx", "4xx", "5xx"]),
            |metrics, n| metrics.requests[n].get(),
        ),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_grpc_responses_total",
        help: "Responses of gRPC that endpoints gave, by class of grpc-status.",
        series: Series::Counter(
            || each("class", GrpcClass::ALL.map(GrpcClass::as_str)),
            |metrics, n| metrics.grpc[n].get(),
        ),
        over: Over::Used,
    },
    Family {
        name: "ebbtide_request_duration_seconds",
        help: "Time from the end of a request's head to the last byte of its response, holds and replays included.",
        series: Series::Histogram(|metrics| &metrics.request_duration),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_connections_total",
        help: "Client connections served, by protocol.",
        series: Series::Counter(
            || each("protocol", ["http", "tcp"]),
            |metrics, n| [&metrics.connections_http, &metrics.connections_tcp][n].get(),
        ),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_tls_handshakes_total",
        help: "TLS handshakes with clients that succeeded, by kind: full, or resumed from an earlier session.",
        series: Series::Counter(
            || each("kind", ["full", "resumed"]),
            |metrics, n| metrics.handshakes[n].get(),
        ),
        over: Over::Used,
    },
    Family {
        name: "ebbtide_connections_active",
        help: "Client connections open now.",
        series: Series::Gauge(one, |metrics, _| metrics.connections_active.get()),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_connection_closes_total",
        help: "Client connections that ended, by reason.",
        series: Series::Counter(
            || each("reason", CloseReason::ALL.map(CloseReason::as_str)),
            |metrics, n| metrics.closes[n].get(),
        ),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_retries_total",
        help: "Retries, by what was lost (connect: a connect, stale: a reused connection, replay: a request) and by their outcome.",
        series: Series::Counter(of_retries, |metrics, n| {
            let (ok, failed) = &metrics.retries[n / 2];
            [ok, failed][n % 2].get()
        }),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_failures_total",
        help: "Requests that Ebbtide had to fail: its own 502, 503 and 504, and responses that it cut.",
        series: Series::Counter(one, |metrics, _| metrics.failures.get()),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_held_total",
        help: "Requests and connections that found no usable endpoint, by the outcome of their wait.",
        series: Series::Counter(
            || each("outcome", ["released", "expired", "refused", "left"]),
            |metrics, n| {
                [
                    &metrics.held_released,
                    &metrics.held_expired,
                    &metrics.held_refused,
                    &metrics.held_left,
                ][n]
                    .get()
            },
        ),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_held",
        help: "Requests and connections that wait for a usable endpoint now.",
        series: Series::Gauge(one, |metrics, _| metrics.held_now.get()),
        over: Over::Both,
    },
    Family {
        name: "ebbtide_endpoints",
        help: "Endpoints by state: ready (in rotation), serving (terminating, a last resort), notReady (not ready, joining or not answering), draining.",
        series: Series::Gauge(
            || each("state", ENDPOINT_STATES),
            |metrics, n| metrics.endpoints[n].get(),
        ),
        over: Over::Both,
    },
    Family {
        name: "ebbtide_drains_total",
        help: "Drains that ended, by the signal that came first and by outcome.",
        series: Series::Counter(of_drains, |metrics, n| {
            let outcomes = Outcome::ALL.len();
            metrics.drains().ended[n / outcomes][n % outcomes].get()
        }),
        over: Over::Both,
    },
    Family {
        name: "ebbtide_drain_duration_seconds",
        help: "Time from the beginning of an endpoint's drain to the end of its last connection or request.",
        series: Series::Histogram(|metrics| &metrics.drains().duration),
        over: Over::Both,
    },
    Family {
        name: "ebbtide_deletion_lag_seconds",
        help: "Time from a pod's deletion, by the source's clock, to the last dispatch to it.",
        series: Series::Histogram(|metrics| &metrics.drains().deletion_lag),
        over: Over::Both,
    },
    Family {
        name: "ebbtide_upstream_connections",
        help: "Connections to endpoints: active, or idle in a pool.",
        series: Series::Gauge(
            || each("state", ["active", "idle"]),
            |metrics, n| [&metrics.upstream_active, &metrics.upstream_idle][n].get(),
        ),
        over: Over::Tcp,
    },
    Family {
        name: "ebbtide_udp_datagrams_total",
        help: "Datagrams that were passed on, by direction.",
        series: Series::Counter(
            || each("to", ["endpoint", "client"]),
            |metrics, n| metrics.datagrams[n].get(),
        ),
        over: Over::Udp,
    },
    Family {
        name: "ebbtide_udp_dropped_total",
        help: "Datagrams that were dropped, by reason.",
        series: Series::Counter(
            || each("reason", DropReason::ALL.map(DropReason::as_str)),
            |metrics, n| metrics.datagrams_dropped[n].get(),
        ),
        over: Over::Udp,
    },
    Family {
        name: "ebbtide_source_lost_total",
        help: "Connections to endpoints from the node's address, where the client's was to be kept.",
        series: Series::Counter(one, |metrics, _| metrics.source_lost.get()),
        over: Over::Both,
    },
    Family {
        name: "ebbtide_udp_moved_total",
        help: "Datagrams that an endpoint refused, and that were sent to another one.",
        series: Series::Counter(one, |metrics, _| metrics.datagrams_moved.get()),
        over: Over::Udp,
    },
    Family {
        name: "ebbtide_udp_sessions",
        help: "UDP sessions open now.",
        series: Series::Gauge(one, |metrics, _| metrics.udp_sessions.get()),
        over: Over::Udp,
    },
    Family {
        name: "ebbtide_udp_sessions_moved_total",
        help: "UDP sessions that went on at another endpoint.",
        series: Series::Counter(one, |metrics, _| metrics.udp_sessions_moved.get()),
        over: Over::Udp,
    },
    Family {
        name: "ebbtide_udp_sessions_evicted_total",
        help: "UDP sessions that ended for a new one, because there was no place.",
        series: Series::Counter(one, |metrics, _| metrics.udp_evicted.get()),
        over: Over::Udp,
    },
];

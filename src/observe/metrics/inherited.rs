//! What the process that this one replaces has counted: no counter falls while Ebbtide is replaced.
//!
//! Invariant: a report holds all that was counted so far. So a later one replaces an earlier one, and
//! nothing counts twice. Series go by their names: a process of another version takes those it knows.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::Transport;
use crate::observe::families::{self, Shown};

/// What was counted before. A copy is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct Inherited {
    /// In the order of [`families::names`].
    ports: HashMap<Arc<PortKey>, Arc<[u64]>>,
    /// All other series that only grow, by name and labels.
    rest: Arc<HashMap<String, f64>>,
}

#[derive(Serialize, Deserialize)]
struct Report {
    /// What the counts of each port are, in their order.
    series: Vec<String>,
    ports: Vec<Counted>,
    rest: BTreeMap<String, f64>,
}

#[derive(Serialize, Deserialize)]
struct Counted {
    namespace: String,
    service: String,
    port: u16,
    transport: Transport,
    counts: Vec<u64>,
}

/// What these ports have counted, and this text in the Prometheus format.
pub(super) fn report(ports: &[Shown], rest: &str) -> Result<Vec<u8>, prometheus::Error> {
    let counted = ports.iter().map(|port| {
        let mut counts = families::counts(&port.metrics);
        let both = counts.iter_mut().zip(&*port.before);
        both.for_each(|(now, before)| *now += before);
        Counted {
            namespace: port.key.service.namespace.clone(),
            service: port.key.service.name.clone(),
            port: port.key.port,
            transport: port.key.transport,
            counts,
        }
    });
    let report = Report {
        series: families::names(),
        ports: counted.collect(),
        rest: growing(rest)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
    };
    serde_json::to_vec(&report).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

/// The series of this text that only grow.
fn growing(text: &str) -> impl Iterator<Item = (&str, f64)> {
    let mut grows = false;
    text.lines().filter_map(move |line| {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            grows = !family.ends_with(" gauge");
        }
        let (series, count) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
        Some((series, count.parse().ok()?)).filter(|_| grows)
    })
}

impl Inherited {
    /// Reads a report.
    pub(super) fn of(report: &[u8]) -> Result<Self, serde_json::Error> {
        let report: Report = serde_json::from_slice(report)?;
        let theirs: HashMap<_, _> = report.series.iter().zip(0..).collect();
        let names = families::names();
        let places: Vec<Option<usize>> = names.iter().map(|it| theirs.get(it).copied()).collect();
        let ports = report.ports.into_iter().map(|it| {
            let count = |place: &Option<usize>| {
                place.and_then(|at| it.counts.get(at)).copied().unwrap_or(0)
            };
            let key = PortKey {
                service: ObjectName::new(&*it.namespace, &*it.service),
                port: it.port,
                transport: it.transport,
            };
            (Arc::new(key), places.iter().map(count).collect())
        });
        Ok(Self {
            ports: ports.collect(),
            rest: Arc::new(report.rest.into_iter().collect()),
        })
    }

    /// The ports.
    pub(super) fn ports(&self) -> impl Iterator<Item = &Arc<PortKey>> {
        self.ports.keys()
    }

    /// What was counted of a port, in the order of [`families::names`]. Empty: it had no client.
    pub(super) fn of_port(&self, key: &PortKey) -> Arc<[u64]> {
        self.ports.get(key).cloned().unwrap_or_default()
    }

    /// Forgets a port.
    pub(super) fn forget(&mut self, key: &PortKey) {
        self.ports.remove(key);
    }

    /// A text in the Prometheus format, with what was counted before.
    pub(super) fn added_to(&self, text: String) -> String {
        if self.rest.is_empty() {
            return text;
        }
        let mut sum = String::with_capacity(text.len());
        for line in text.lines() {
            let counted = line.rsplit_once(' ').and_then(|(series, now)| {
                let before = self.rest.get(series)?;
                Some((series, before + now.parse::<f64>().ok()?))
            });
            let _ = match counted {
                Some((series, all)) => writeln!(sum, "{series} {all}"),
                None => writeln!(sum, "{line}"),
            };
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::reason::{CloseReason, GrpcClass};
    use crate::observe::metrics::Metrics;

    fn key(port: u16) -> PortKey {
        ObjectName::new("web", "shop").port(port)
    }

    /// The value of the series that begins so.
    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.render().unwrap();
        let line = text.lines().find(|it| it.starts_with(series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    #[test]
    fn counts_go_on_from_process_to_process_and_none_counts_twice() {
        let (first, second, third) = (
            Metrics::new().unwrap(),
            Metrics::new().unwrap(),
            Metrics::new().unwrap(),
        );
        let answered = |metrics: &Metrics, seconds: f64| {
            let port = metrics.service(&key(80));
            port.answered(200);
            port.closed(CloseReason::ClientClosed);
            port.request_duration.observe(seconds);
            metrics.access_log_dropped.inc();
            metrics.drain_reaction.observe(seconds);
            metrics.discovery_age.set(7);
        };
        answered(&first, 0.002);
        answered(&first, 40.0);
        first.service(&key(80)).grpc[GrpcClass::Ok as usize].inc();
        second.service(&key(80));
        for _ in 0..2 {
            second.inherit(&first.report().unwrap()).unwrap();
        }
        answered(&second, 0.002);
        third.service(&key(80));
        third.inherit(&second.report().unwrap()).unwrap();
        for metrics in [&second, &third] {
            for (series, expected) in [
                ("ebbtide_requests_total{code=\"2xx\"", 3.0),
                ("ebbtide_grpc_responses_total{class=\"ok\"", 1.0),
                ("ebbtide_request_duration_seconds_count", 3.0),
                ("ebbtide_request_duration_seconds_sum", 40.004),
                ("ebbtide_access_log_dropped_total", 3.0),
                ("ebbtide_drain_reaction_seconds_bucket{le=\"0.0025\"}", 2.0),
                ("ebbtide_drain_reaction_seconds_count", 3.0),
            ] {
                assert_eq!(value(metrics, series), Some(expected), "{series}");
            }
        }
        assert_eq!(value(&third, "ebbtide_discovery_age_seconds"), Some(0.0));
        assert_eq!(value(&third, "ebbtide_build_info"), Some(1.0));
        third.forget(&key(80));
        third.service(&key(80));
        assert_eq!(value(&third, "ebbtide_requests_total"), None, "forgotten");
    }

    #[test]
    fn another_version_takes_the_series_that_it_knows_and_ports_that_it_has() {
        let metrics = Metrics::new().unwrap();
        metrics.service(&key(80));
        let series = r#"["ebbtide_requests_total[(\"code\", \"2xx\")]", "new"]"#;
        let port = |port: u16, counts: &str| {
            format!(
                r#"{{"namespace": "web", "service": "shop", "port": {port}, "transport": "Tcp", "counts": {counts}}}"#
            )
        };
        let (known, gone) = (port(80, "[5, 6]"), port(81, "[7]"));
        let report = format!(
            r#"{{"series": {series}, "ports": [{known}, {gone}], "rest": {{"other_total": 3}}}}"#
        );
        metrics.inherit(report.as_bytes()).unwrap();
        assert_eq!(
            value(&metrics, "ebbtide_requests_total{code=\"2xx\""),
            Some(5.0)
        );
        assert_eq!(
            value(&metrics, "ebbtide_requests_total{code=\"5xx\""),
            Some(0.0)
        );
        let text = metrics.render().unwrap();
        assert!(text.contains("port=\"81\"") && !text.contains("other_total"));
        let report = String::from_utf8(metrics.report().unwrap()).unwrap();
        assert!(report.contains("\"port\":80") && !report.contains("\"port\":81"));
        assert!(metrics.inherit(b"{}").is_err());
        assert_eq!(
            value(&metrics, "ebbtide_requests_total{code=\"2xx\""),
            Some(5.0)
        );
    }
}

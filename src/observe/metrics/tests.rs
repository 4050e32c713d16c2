//! Labels and lines of the metrics.

use super::*;
use crate::contract::name::ObjectName;
use crate::contract::reason::{CloseReason, Outcome, RetryReason, Trigger};

fn key(name: &str, port: u16) -> PortKey {
    ObjectName::new("web", name).port(port)
}

fn lines_of(text: &str, service: &str) -> Vec<String> {
    text.lines()
        .filter(|l| l.contains(&format!("service=\"{service}\"")))
        .map(str::to_owned)
        .collect()
}

/// The table of docs/reference.md: name, type, labels other than those of the Service port.
const PROMISED: &[(&str, &str, &str)] = &[
    ("ebbtide_requests_total", "counter", "code"),
    ("ebbtide_request_duration_seconds", "histogram", ""),
    ("ebbtide_connections_total", "counter", "protocol"),
    ("ebbtide_connections_active", "gauge", ""),
    ("ebbtide_connection_closes_total", "counter", "reason"),
    ("ebbtide_retries_total", "counter", "reason outcome"),
    ("ebbtide_failures_total", "counter", ""),
    ("ebbtide_held_total", "counter", "outcome"),
    ("ebbtide_held", "gauge", ""),
    ("ebbtide_endpoints", "gauge", "state"),
    ("ebbtide_drains_total", "counter", "trigger outcome"),
    ("ebbtide_drain_duration_seconds", "histogram", ""),
    ("ebbtide_deletion_lag_seconds", "histogram", ""),
    ("ebbtide_upstream_connections", "gauge", "state"),
    ("ebbtide_source_lost_total", "counter", ""),
];

#[test]
fn every_promised_metric_is_there_with_its_type_and_labels() {
    let metrics = Metrics::new().unwrap();
    metrics.service(&key("shop", 80)).answered(200);
    metrics.discovery_errors.with_label_values(&["parse"]).inc();
    metrics.gate.show("clear");
    let text = metrics.render().unwrap();
    for (name, kind, extra) in PROMISED {
        assert!(
            text.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} {kind} missing in\n{text}"
        );
        let sample = text.lines().find(|l| {
            l.starts_with(&format!("{name}{{")) || l.starts_with(&format!("{name}_bucket{{"))
        });
        let sample = sample.unwrap_or_else(|| panic!("{name} has no sample"));
        for label in ["namespace", "service", "port"]
            .into_iter()
            .chain(extra.split_whitespace())
        {
            assert!(
                sample.contains(&format!("{label}=\"")),
                "{name} lacks {label}: {sample}"
            );
        }
    }
    for (name, kind) in [
        ("ebbtide_drain_reaction_seconds", "histogram"),
        ("ebbtide_discovery_age_seconds", "gauge"),
        ("ebbtide_listeners_failed", "gauge"),
        ("ebbtide_namespaces_failed", "gauge"),
        ("ebbtide_access_log_dropped_total", "counter"),
        ("ebbtide_log_dropped_total", "counter"),
        ("ebbtide_discovery_errors_total", "counter"),
        ("ebbtide_build_info", "gauge"),
        ("ebbtide_gate_calls_total", "counter"),
        ("ebbtide_gate_held_seconds", "histogram"),
        ("ebbtide_gate_peers", "gauge"),
        ("ebbtide_gate_silent_total", "counter"),
        ("ebbtide_gate_hints_total", "counter"),
        ("process_start_time_seconds", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
    ] {
        assert!(
            text.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} {kind} missing"
        );
    }
    assert!(
        text.contains(&format!(
            "ebbtide_build_info{{version=\"{}\"}} 1\n",
            crate::VERSION
        )),
        "{text}"
    );
    let families = text.lines().filter(|l| l.starts_with("# TYPE")).count();
    assert_eq!(
        families,
        PROMISED.len() + 18,
        "a family that docs/reference.md does not name"
    );
}

#[test]
fn a_count_reaches_the_metric_with_its_labels() {
    let metrics = Metrics::new().unwrap();
    let web = metrics.service(&key("shop", 80));
    web.answered(204);
    web.answered(99);
    web.answered(799);
    for reason in CloseReason::ALL {
        for _ in 0..=reason as usize {
            web.closed(reason);
        }
    }
    web.retried(RetryReason::Replay, true);
    web.drained(Trigger::SliceTerminating, Outcome::Forced);
    let text = metrics.render().unwrap();
    let labels = "namespace=\"web\",port=\"80\"";
    for (line, value) in [
        (format!("ebbtide_requests_total{{code=\"2xx\",{labels},service=\"shop\"}}"), 1),
        (format!("ebbtide_requests_total{{code=\"1xx\",{labels},service=\"shop\"}}"), 1),
        (format!("ebbtide_requests_total{{code=\"5xx\",{labels},service=\"shop\"}}"), 1),
        (format!("ebbtide_connection_closes_total{{{labels},reason=\"client_closed\",service=\"shop\"}}"), 1),
        (format!("ebbtide_connection_closes_total{{{labels},reason=\"bad_proxy_header\",service=\"shop\"}}"), 11),
        (format!("ebbtide_retries_total{{{labels_ns},outcome=\"ok\",{rest},reason=\"replay\",service=\"shop\"}}",
            labels_ns = "namespace=\"web\"", rest = "port=\"80\""), 1),
        ("ebbtide_drains_total{namespace=\"web\",outcome=\"forced\",port=\"80\",service=\"shop\",trigger=\"sliceTerminating\"}".into(), 1),
    ] {
        assert!(text.contains(&format!("{line} {value}\n")), "{line} {value} missing in\n{text}");
    }
}

#[test]
fn forgetting_a_port_removes_all_its_metrics_and_no_others() {
    let metrics = Metrics::new().unwrap();
    let gone = metrics.service(&key("gone", 80));
    for other in [key("gone", 81), key("kept", 80)] {
        metrics.service(&other).answered(200);
    }
    gone.answered(200);
    let before = metrics.render().unwrap();
    let kept_lines = lines_of(&before, "kept").len();
    assert!(kept_lines > 50, "{kept_lines}");
    assert_eq!(lines_of(&before, "gone").len(), 2 * kept_lines);

    metrics.forget(&key("gone", 80));
    // A drain that ends after its Service is gone must not bring the series back.
    gone.drained(Trigger::Removed, Outcome::Drained);
    gone.closed(CloseReason::Completed);
    let after = metrics.render().unwrap();
    assert_eq!(lines_of(&after, "kept").len(), kept_lines);
    let left = lines_of(&after, "gone");
    assert_eq!(left.len(), kept_lines);
    assert!(left.iter().all(|l| l.contains("port=\"81\"")), "{left:#?}");

    metrics.service(&key("gone", 80)).answered(200);
    assert_eq!(
        lines_of(&metrics.render().unwrap(), "gone").len(),
        2 * kept_lines,
        "a forgotten port may come back"
    );
}

#[test]
fn labels_are_in_the_order_of_their_enums() {
    assert_eq!(
        CloseReason::ALL.map(|r| r as usize),
        std::array::from_fn(|i| i)
    );
    assert_eq!(Trigger::ALL.map(|t| t as usize), [0, 1, 2]);
    assert_eq!(Outcome::ALL.map(|o| o as usize), [0, 1]);
    assert_eq!(
        [
            RetryReason::Connect,
            RetryReason::Stale,
            RetryReason::Replay
        ]
        .map(|r| r as usize),
        [0, 1, 2]
    );
}

#[test]
fn a_port_is_shown_from_its_first_client_on_with_all_its_series() {
    let metrics = Metrics::new().unwrap();
    let (shop, silent) = (key("shop", 80), key("silent", 80));
    let (used, unused) = (metrics.service(&shop), metrics.service(&silent));
    unused.drained(Trigger::Removed, Outcome::Drained);
    assert!(lines_of(&metrics.render().unwrap(), "shop").is_empty());
    used.connections_active.inc();
    let text = metrics.render().unwrap();
    assert!(lines_of(&text, "silent").is_empty(), "a drain is no client");
    let first = lines_of(&text, "shop");
    let mut names: Vec<_> = first
        .iter()
        .filter_map(|line| line.split('{').next())
        .collect();
    names.dedup();
    // Each histogram has the names _bucket, _sum and _count.
    assert_eq!(names.len(), PROMISED.len() + 2 * 3, "{names:?}");
    used.retried(RetryReason::Connect, false);
    used.connections_active.dec();
    used.closed(CloseReason::Completed);
    let later = lines_of(&metrics.render().unwrap(), "shop");
    assert_eq!(later.len(), first.len(), "no series appears later");
}

#[test]
fn the_series_of_service_ports_can_be_fewer() {
    let lines = |detail| {
        let metrics = Metrics::with(detail).unwrap();
        metrics.service(&key("shop", 80)).answered(200);
        let text = metrics.render().unwrap();
        assert!(text.contains("ebbtide_drain_reaction_seconds_bucket"));
        lines_of(&text, "shop")
    };
    let (all, counters) = (lines(PerService::All), lines(PerService::Counters));
    let is_histogram = |line: &&String| line.contains("_seconds");
    assert!(all.iter().any(|line| is_histogram(&line)));
    let others: Vec<_> = all.iter().filter(|line| !is_histogram(line)).collect();
    assert_eq!(counters.iter().collect::<Vec<_>>(), others);
    assert!(lines(PerService::Off).is_empty());
}

#[test]
fn a_label_is_escaped() {
    let metrics = Metrics::new().unwrap();
    metrics.service(&key("a\"b\\c\nd", 80)).answered(200);
    let text = metrics.render().unwrap();
    assert!(text.contains(r#"service="a\"b\\c\nd""#), "{text}");
}

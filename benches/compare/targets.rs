//! The targets of this bench and whether Ebbtide meets them.

use crate::peers::Kind;
use crate::results::{Better, Results, median, most, number};

/// One line of the table of targets.
pub struct Target {
    /// What is measured.
    pub what: &'static str,
    /// Ebbtide's result as text, whether it meets the minimum, and whether it meets the goal.
    /// `None` if it was not measured.
    pub found: Option<(String, bool, bool)>,
    /// The minimum.
    pub least: &'static str,
    /// The goal.
    pub goal: &'static str,
}

/// All targets, with what was measured.
pub fn targets(results: &Results) -> Vec<Target> {
    use Better::{Less, More};
    const BOTH: &[Kind] = &[Kind::Haproxy, Kind::Nginx];
    const PEERS: &[Kind] = &[Kind::Haproxy, Kind::Nginx, Kind::Caddy, Kind::Pingap];
    let wide = ["64 clients: requests/s", "1000 clients: requests/s"];
    let cpu = [
        "8 clients: CPU-µs a request",
        "64 clients: CPU-µs a request",
        "1000 clients: CPU-µs a request",
    ];
    let rates = ["HTTP: connections/s", "TCP: connections/s"];
    let bulk: Vec<String> = ["HTTP", "TCP"]
        .iter()
        .flat_map(|mode| {
            ["64 MiB answers", "1 MiB answers"].map(|what| format!("{mode} {what}: GB/s"))
        })
        .collect();
    let bulk: Vec<&str> = bulk.iter().map(String::as_str).collect();
    let uploads = ["HTTP 64 MiB uploads: GB/s", "TCP 64 MiB uploads: GB/s"];
    vec![
        against(
            results,
            "keep-alive, 64 and 1,000 clients",
            "keepalive",
            &wide,
            BOTH,
            More,
            "1.15",
            "1.3",
        ),
        against(
            results,
            "keep-alive, 8 clients",
            "keepalive",
            &["8 clients: requests/s"],
            BOTH,
            More,
            "1.3",
            "1.5",
        ),
        against(
            results,
            "TCP requests/s",
            "tcp",
            &["64 clients: requests/s", "8 clients: requests/s"],
            BOTH,
            More,
            "1.0",
            "1.1",
        ),
        against(
            results,
            "connections/s, TCP and HTTP",
            "connections",
            &rates,
            PEERS,
            More,
            "1.05",
            "1.2",
        ),
        against(
            results,
            "bulk and 1 MiB answers, to HAProxy and nginx",
            "bulk",
            &bulk,
            BOTH,
            More,
            "1.3",
            "2",
        ),
        against(
            results,
            "uploads, to HAProxy and nginx",
            "bulk",
            &uploads,
            BOTH,
            More,
            "1.3",
            "2",
        ),
        against(
            results,
            "bulk and 1 MiB answers, to direct",
            "bulk",
            &bulk,
            &[Kind::Direct],
            More,
            "0.8",
            "0.8",
        ),
        against(
            results,
            "CPU-µs a request, HTTP",
            "keepalive",
            &cpu,
            PEERS,
            Less,
            "0.95",
            "0.85",
        ),
        against(
            results,
            "CPU-µs a request, TCP",
            "tcp",
            &cpu[..2],
            BOTH,
            Less,
            "0.95",
            "0.85",
        ),
        against(
            results,
            "TLS handshakes, HTTP/2 requests, gRPC calls",
            "secure",
            &[
                "TLS: handshakes/s",
                "HTTP/2 over TLS, 1 x 100: requests/s",
                "HTTP/2 over TLS, 64 x 100: requests/s",
                "gRPC unary: calls/s",
            ],
            BOTH,
            More,
            "1.0",
            "1.2",
        ),
        against(
            results,
            "p99.9 at half load",
            "latency",
            &["p99.9, µs"],
            PEERS,
            Less,
            "1.0",
            "0.5",
        ),
        idle(
            results,
            "idle memory of a TCP pair, bytes",
            "TCP pair",
            "1536",
        ),
        idle(
            results,
            "idle memory of an HTTP client, bytes",
            "HTTP client",
            "2560",
        ),
        own(
            results,
            "event to every worker, p99 at 10,000 endpoints, µs",
            "10000 endpoints: event to snapshot p99, µs",
            "1000",
            "200",
        ),
        own(
            results,
            "pick at 10,000 endpoints, ns",
            "pick of 10000, ns",
            "100",
            "20",
        ),
        rollout(results),
    ]
}

/// A target for Ebbtide's ratio to the peers `kinds` that were measured: the worst ratio of all
/// rows.
#[allow(clippy::too_many_arguments)] // The arguments are one line of a table.
fn against(
    results: &Results,
    what: &'static str,
    group: &str,
    rows: &[&str],
    kinds: &[Kind],
    better: Better,
    least: &'static str,
    goal: &'static str,
) -> Target {
    let ratios = rows
        .iter()
        .filter_map(|row| results.row(group, row))
        .flat_map(|row| {
            kinds
                .iter()
                .filter_map(|kind| Some((row.ratio(*kind)?, *kind, row.name.as_str())))
        });
    let worst = ratios.reduce(|a, b| {
        let a_is_worse = if better == Better::More {
            a.0 < b.0
        } else {
            a.0 > b.0
        };
        if a_is_worse { a } else { b }
    });
    let found = worst.map(|(ratio, kind, row)| {
        let row = row.split(':').next().unwrap_or_default();
        let text = format!("{ratio:.2} × {} ({row})", kind.name());
        (
            text,
            meets(ratio, least, better),
            meets(ratio, goal, better),
        )
    });
    Target {
        what,
        found,
        least,
        goal,
    }
}

fn own(
    results: &Results,
    what: &'static str,
    row: &str,
    least: &'static str,
    goal: &'static str,
) -> Target {
    let value = results
        .row("control", row)
        .and_then(|row| row.values.get(&Kind::Ebbtide))
        .map(|values| median(values));
    let found = value.map(|v| {
        (
            number(v),
            meets(v, least, Better::Less),
            meets(v, goal, Better::Less),
        )
    });
    Target {
        what,
        found,
        least,
        goal,
    }
}

fn idle(results: &Results, what: &'static str, clients: &str, least: &'static str) -> Target {
    let row = results.row(
        "idle",
        &format!("{clients}: private bytes grown / connections"),
    );
    let all = results.row(
        "idle",
        &format!("{clients}: private bytes in all / connections"),
    );
    let found = row
        .and_then(|row| row.values.get(&Kind::Ebbtide))
        .map(|values| {
            let value = median(values);
            let below_all = all.is_some_and(|row| {
                row.values.keys().all(|kind| {
                    *kind == Kind::Ebbtide || row.ratio(*kind).is_some_and(|ratio| ratio < 1.0)
                })
            });
            let met = meets(value, least, Better::Less);
            (number(value), met, met && below_all)
        });
    Target {
        what,
        found,
        least,
        goal: "and below every peer's, in all",
    }
}

fn rollout(results: &Results) -> Target {
    let value = |row: &str| results.row("rollout", row)?.values.get(&Kind::Ebbtide);
    let found = value("failed requests")
        .zip(value("p99 rolling / quiet"))
        .map(|(failed, ratio)| {
            let (failed, ratio) = (most(failed), median(ratio));
            (
                format!("{failed} failed, p99 × {ratio:.2}"),
                failed == 0.0 && ratio <= 1.5,
                failed == 0.0 && ratio <= 1.1,
            )
        });
    Target {
        what: "rollout",
        found,
        least: "0 failed, p99 within 1.5 × quiet",
        goal: "1.1 ×",
    }
}
fn meets(value: f64, bound: &str, better: Better) -> bool {
    let bound: f64 = bound.parse().unwrap_or(f64::NAN);
    if better == Better::More {
        value >= bound
    } else {
        value <= bound
    }
}

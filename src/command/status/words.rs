//! What the plain text and the terminal page of `ebbtide status` say in the same words.

use std::time::Duration;

use jiff::Timestamp;

use crate::admin::report::{Drains, EndpointStatus, Status};
use crate::admin::state::State;
use crate::text::{one_line, seconds};

/// The proxy and its source: a line each, then a line for each thing that is wrong.
pub(super) fn head(at: &str, status: &Status) -> String {
    let mut text = format!(
        "ebbtide {} at {}, up {}{}\n",
        one_line(&status.version),
        at,
        seconds(Duration::from_secs(status.uptime_seconds)),
        if status.shutting_down {
            ", shutting down"
        } else {
            ""
        },
    );
    let discovery = &status.discovery;
    let age = seconds(Duration::from_secs(discovery.age_seconds));
    let state = match (discovery.synced, discovery.problems.is_empty()) {
        (false, _) => "no complete table yet".to_owned(),
        _ if discovery.saved_at.is_some() => format!("a saved table is in force, from {age} ago"),
        (true, true) => "in order".to_owned(),
        (true, false) => format!("not in order for {age}, the last good table is in force"),
    };
    text += &format!("source {}: {state}\n", one_line(&discovery.source));
    for namespace in &discovery.missing_namespaces {
        text += &format!(
            "  namespace {} cannot be listed and is not served\n",
            one_line(namespace)
        );
    }
    for namespace in &discovery.absent_namespaces {
        text += &format!("  namespace {} does not exist\n", one_line(namespace));
    }
    for problem in &discovery.problems {
        text += &format!(
            "  {}: {}\n",
            one_line(&problem.subject),
            one_line(&problem.error)
        );
    }

    if let Some(obstacle) = &status.obstacle {
        text += &format!("addresses of Services: {}\n", one_line(obstacle));
    }
    text
}

/// A line for each pod that the gate holds now.
pub(super) fn holds(drains: &Drains) -> String {
    let held = drains.gate.iter().filter(|it| it.outcome.is_none());
    let lines = held.map(|it| {
        let time = seconds(Duration::try_from_secs_f64(it.held_seconds).unwrap_or_default());
        let by = match it.by.join(", ") {
            by if by.is_empty() => String::new(),
            by => format!(", waits for {by}"),
        };
        one_line(&format!("gate: holds {} for {time}{by}", it.pod)) + "\n"
    });
    lines.collect()
}

/// An endpoint's state in words; for a draining endpoint, also the time to its deadline.
pub(super) fn doing(endpoint: &EndpointStatus, now: Timestamp) -> String {
    match left(endpoint.drain_deadline, now) {
        Some(left) if endpoint.state == State::Draining => format!("draining, {left}"),
        _ => endpoint.state.words().to_owned(),
    }
}

/// The time that is left until a deadline.
pub(super) fn left(deadline: Option<Timestamp>, now: Timestamp) -> Option<String> {
    let left = deadline?.duration_since(now);
    Some(format!(
        "{} left",
        seconds(Duration::try_from(left).unwrap_or_default())
    ))
}

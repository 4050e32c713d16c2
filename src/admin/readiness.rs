//! The line of `/readyz`: whether this proxy wants traffic, and why.
//!
//! The proxy is ready from the first complete table until its shutdown begins. A source that fails
//! later does not end readiness, because the last table stays in force (contract 1.10). A port that
//! cannot be bound, or a firewall, does not end it either. The line names all.

use crate::observe::health::{HealthState, NetState};
use crate::text::{one_line, seconds};

/// The line of `/readyz`: `Ok` if a load balancer should send traffic here, `Err` if not.
pub fn readiness(state: &HealthState) -> Result<String, String> {
    let unbound: Vec<String> = state
        .listeners
        .iter()
        .filter_map(|l| Some(format!("{} {}: {}", l.name, l.address, l.error.as_ref()?)))
        .collect();
    let broken: Vec<String> = state
        .problems
        .iter()
        .map(|p| format!("{}: {}", p.subject, p.error))
        .collect();
    let mut parts = Vec::new();
    if state.shutting_down {
        parts.push("shutting down".to_owned());
    } else if !state.synced {
        parts.push(format!(
            "no complete table of endpoints from {} yet",
            state.source
        ));
    } else if !state.ports_tried {
        parts.push("listeners are being bound".to_owned());
    }
    let ready = parts.is_empty();
    let missing: Vec<String> = state.standing.missing.iter().cloned().collect();
    if ready && !missing.is_empty() {
        parts.push(format!(
            "not served, because they cannot be listed: namespaces {}",
            first(&missing)
        ));
    }
    let absent: Vec<String> = state.standing.absent.iter().cloned().collect();
    if ready && !absent.is_empty() {
        parts.push(format!("namespaces that do not exist: {}", first(&absent)));
    }
    if ready && state.standing.saved_at.is_some() {
        parts.push(format!(
            "a saved table is in force, from {} ago",
            seconds(state.age())
        ));
    }
    if !broken.is_empty() {
        let age = if ready {
            format!(
                " for {}, the last good table is in force",
                seconds(state.age())
            )
        } else {
            String::new()
        };
        parts.push(format!(
            "source {} is not in order{age} ({})",
            state.source,
            first(&broken)
        ));
    }
    if !unbound.is_empty() {
        parts.push(format!("not bound, trying again ({})", first(&unbound)));
    }
    if !state.certificates.is_empty() {
        let named = state.certificates.iter();
        let named: Vec<String> = named
            .map(|p| format!("{}: {}", p.subject, p.error))
            .collect();
        parts.push(format!("certificates are not in order ({})", first(&named)));
    }
    if let Some(NetState::Away(error)) = &state.net {
        parts.push(format!(
            "addresses of Services are not kept up to date ({error})"
        ));
    }
    if let Some(obstacle) = &state.obstacle {
        parts.push(obstacle.words.clone());
    }
    let word = if ready { "ready" } else { "not ready" };
    let line = [word.to_owned()]
        .into_iter()
        .chain(parts)
        .collect::<Vec<_>>()
        .join("; ");
    // Errors of the source may hold line breaks. The response must be one line.
    let line = one_line(&line);
    if ready { Ok(line) } else { Err(line) }
}

/// The line of `/readyz` for other machines, which want to know whether the node serves. While this
/// process is not ready yet, the one that it replaces still does.
pub fn of_node(state: &HealthState) -> Result<String, String> {
    match readiness(state) {
        Err(line) if state.predecessor_serves && !state.shutting_down => Ok(format!(
            "ready, by the process that this one replaces; {line}"
        )),
        other => other,
    }
}

/// The first five entries of a list, and the number of the others.
fn first(list: &[String]) -> String {
    const NAMED: usize = 5;
    let named = list
        .iter()
        .take(NAMED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("; ");
    match list.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::contract::name::ObjectName;
    use crate::contract::policy::Protocol;
    use crate::discovery::source::Problem;
    use crate::observe::health::{Health, ListenerState};

    fn problem(subject: &str) -> Problem {
        Problem {
            subject: subject.into(),
            error: "line 3:\nnot YAML".into(),
            since: SystemTime::now(),
        }
    }

    fn synced() -> HealthState {
        let health = Health::new("files");
        health.update(|state| {
            state.synced = true;
            state.ports_tried = true;
        });
        health.state()
    }

    #[test]
    fn not_ready_until_synced_and_tried_and_while_shutting_down() {
        let mut state = HealthState {
            synced: false,
            ports_tried: false,
            ..synced()
        };
        assert_eq!(
            readiness(&state).unwrap_err(),
            "not ready; no complete table of endpoints from files yet"
        );
        state.synced = true;
        assert_eq!(
            readiness(&state).unwrap_err(),
            "not ready; listeners are being bound"
        );
        state.ports_tried = true;
        assert_eq!(readiness(&state).unwrap(), "ready");
        state.shutting_down = true;
        assert_eq!(readiness(&state).unwrap_err(), "not ready; shutting down");
    }

    #[test]
    fn the_node_is_ready_while_the_process_before_this_one_serves() {
        let mut state = HealthState {
            synced: false,
            predecessor_serves: true,
            ..synced()
        };
        assert!(readiness(&state).is_err());
        assert!(
            of_node(&state)
                .unwrap()
                .starts_with("ready, by the process")
        );
        state.shutting_down = true;
        assert!(of_node(&state).is_err());
        (state.shutting_down, state.predecessor_serves) = (false, false);
        assert!(of_node(&state).is_err());
        state.synced = true;
        assert_eq!(of_node(&state).unwrap(), "ready");
    }

    #[test]
    fn a_broken_source_is_named_and_does_not_end_readiness() {
        let health = Health::new("files");
        health.update(|state| (state.synced, state.ports_tried) = (true, true));
        health.report((0..7).map(|n| problem(&format!("m/{n}.yaml"))).collect());
        let earlier = Instant::now().checked_sub(Duration::from_secs(83)).unwrap();
        health.update(|state| state.current_at = earlier);
        health.report(vec![problem("m/a.yaml")]);
        let line = readiness(&health.state()).unwrap();
        assert_eq!(
            line,
            "ready; source files is not in order for 1m 23s, the last good table is in force (m/a.yaml: line 3: not YAML)"
        );
        health.report((0..7).map(|n| problem(&format!("m/{n}.yaml"))).collect());
        let line = readiness(&health.state()).unwrap();
        assert!(
            line.contains("m/4.yaml") && !line.contains("m/5.yaml") && line.contains("and 2 more"),
            "{line}"
        );

        health.report(Vec::new());
        assert_eq!(readiness(&health.state()).unwrap(), "ready");
        assert_eq!(health.state().age(), Duration::ZERO);
        health.report(vec![problem("m/a.yaml")]);
        assert!(
            health.state().age() < Duration::from_secs(60),
            "the age counts from the last moment at which the source was in order"
        );
    }

    #[test]
    fn a_port_that_cannot_be_bound_is_named() {
        let mut state = synced();
        state.listeners.push(Arc::new(ListenerState {
            name: "web".into(),
            address: "0.0.0.0:80".parse().unwrap(),
            service: ObjectName::new("web", "shop"),
            port: "http".into(),
            protocol: Protocol::Auto,
            error: Some("address in use".into()),
            refuses: false,
        }));
        assert_eq!(
            readiness(&state).unwrap(),
            "ready; not bound, trying again (web 0.0.0.0:80: address in use)"
        );
    }
}

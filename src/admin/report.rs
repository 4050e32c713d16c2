//! What the admin pages answer, made from [`Admin`]: readiness, gauges, and the JSON of `/api/v1`.
//!
//! The JSON types are read back by `ebbtide status`, of another version perhaps: a field is added, never changed, and
//! one that later versions added is `#[serde(default)]`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::contract::endpoint::Endpoint;
use crate::contract::policy::Protocol;
use crate::contract::snapshot::{Port, Snapshot};
use crate::discovery::source::Problem;
use crate::observe::health::{Health, HealthState};
use crate::observe::metrics::Metrics;
use crate::routing::{drains, rollouts};
use crate::text::{one_line, timestamp};

/// Whether to send traffic here, and one line why. A source in trouble is no reason not to: the last table is in force.
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
    let word = if ready { "ready" } else { "not ready" };
    let line = [word.to_owned()]
        .into_iter()
        .chain(parts)
        .collect::<Vec<_>>()
        .join("; ");
    // Error texts come from elsewhere; the answer is one line all the same.
    let line = one_line(&line);
    if ready { Ok(line) } else { Err(line) }
}

/// The first few of a list, and how many more there are.
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

/// A duration in whole seconds, for people: `1h 2m 3s`.
pub fn seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Sets the gauges that are true only when they are looked at.
pub fn refresh_gauges(admin: &Admin) {
    let age = admin.health.state().age().as_secs();
    admin
        .metrics
        .discovery_age
        .set(i64::try_from(age).unwrap_or(i64::MAX));
    for port in admin.snapshot.load().ports.values() {
        let mut counts = [0; 4];
        for endpoint in port.all.iter() {
            // The order of `metrics::ENDPOINT_STATES`.
            counts[match State::of(endpoint) {
                State::Ready => 0,
                State::Serving => 1,
                State::Joining | State::NotReady | State::NotAnswering | State::Out => 2,
                State::Draining => 3,
            }] += 1;
        }
        for (gauge, count) in port.metrics.endpoints.iter().zip(counts) {
            gauge.set(count);
        }
        let sum = |count: fn(&Endpoint) -> u64| port.all.iter().map(|e| count(e)).sum::<u64>();
        port.metrics
            .upstream_active
            .set(sum(Endpoint::leases).cast_signed());
        port.metrics
            .upstream_idle
            .set(sum(|e| u64::from(e.tally.idle.load(Ordering::Relaxed))).cast_signed());
    }
}

/// `/api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub uptime_seconds: u64,
    pub discovery: Discovery,
    pub listeners: Vec<Listener>,
    pub services: Vec<Service>,
    #[serde(default)]
    pub ready: bool,
    #[serde(default)]
    pub shutting_down: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovery {
    pub source: String,
    pub synced: bool,
    /// 0 while the source is in order.
    pub age_seconds: u64,
    #[serde(default)]
    pub problems: Vec<Trouble>,
}

/// A [`Problem`] of the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    pub subject: String,
    pub error: String,
    pub since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub address: SocketAddr,
    /// `namespace/name`.
    pub service: String,
    /// Name or number, as configured.
    pub port: String,
    pub protocol: String,
    /// Why it is not bound.
    #[serde(default)]
    pub error: Option<String>,
}

/// One port of one Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub port: u16,
    pub endpoints: Vec<EndpointStatus>,
    #[serde(default)]
    pub port_name: Option<String>,
    #[serde(default)]
    pub node_port: Option<u16>,
    #[serde(default)]
    pub protocol: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    pub address: SocketAddr,
    pub pod: Option<String>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub in_flight: u64,
    pub idle: u32,
    pub drain_deadline: Option<Timestamp>,
    #[serde(default)]
    pub state: State,
}

/// What an endpoint is used for: its conditions, its word and what the data plane found, in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// In rotation.
    Ready,
    /// Terminating and still serving: kept as its service's last resort.
    Serving,
    /// Ready, and not yet connected to by this proxy.
    Joining,
    #[default]
    NotReady,
    /// Ready, but a connect failed and none has succeeded since.
    NotAnswering,
    /// Ready by its last conditions, and taken out of rotation: gone from the slices.
    Out,
    Draining,
}

impl State {
    pub fn of(endpoint: &Endpoint) -> Self {
        let conditions = endpoint.conditions();
        if endpoint.is_draining() {
            Self::Draining
        } else if conditions.terminating {
            if conditions.serving {
                Self::Serving
            } else {
                Self::NotReady
            }
        } else if !conditions.ready {
            Self::NotReady
        } else if endpoint.is_ejected() {
            Self::NotAnswering
        } else if endpoint.is_open() {
            Self::Ready
        } else if endpoint.tally.last_dispatch_ms.load(Ordering::Relaxed) == 0 {
            Self::Joining
        } else {
            Self::Out
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Serving => "last resort",
            Self::Joining => "joining",
            Self::NotReady => "not ready",
            Self::NotAnswering => "not answering",
            Self::Out => "out of rotation",
            Self::Draining => "draining",
        }
    }
}

/// `/api/v1/drains`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drains {
    pub running: Vec<Drain>,
    /// Newest first.
    pub finished: Vec<Drain>,
    /// Receipts of the last bursts of drains, newest first.
    #[serde(default)]
    pub rollouts: Vec<Rollout>,
}

/// [`rollouts::Rollout`], whose fields say more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// `namespace/name`.
    pub service: String,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub pods_gone: u32,
    pub pods_come: u32,
    pub requests: u64,
    pub failures: u64,
    pub replayed: u64,
    pub held: u64,
    pub forced: u64,
    pub connections_kept: u64,
    pub connections_lost: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// `namespace/name:port`.
    pub service: String,
    pub address: SocketAddr,
    pub pod: Option<String>,
    pub started_at: Timestamp,
    /// podDeleted, sliceTerminating or removed.
    pub trigger: String,
    pub ended_at: Option<Timestamp>,
    /// drained or forced.
    pub outcome: Option<String>,
    pub finished: u32,
    pub replayed: u32,
    pub forced: u32,
    pub idle_closed: u32,
    #[serde(default)]
    pub in_flight: u64,
    #[serde(default)]
    pub drain_deadline: Option<Timestamp>,
}

impl Status {
    pub fn of(admin: &Admin) -> Self {
        let state = admin.health.state();
        let clocks = Clocks::now();
        let snapshot = admin.snapshot.load();
        let mut ports: Vec<_> = snapshot.ports.values().collect();
        ports.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Self {
            version: crate::VERSION.to_owned(),
            uptime_seconds: admin.started.elapsed().as_secs(),
            ready: readiness(&state).is_ok(),
            shutting_down: state.shutting_down,
            discovery: Discovery {
                source: state.source.to_owned(),
                synced: state.synced,
                age_seconds: state.age().as_secs(),
                problems: state.problems.into_iter().map(Trouble::from).collect(),
            },
            listeners: state
                .listeners
                .into_iter()
                .map(|l| Listener {
                    name: l.name,
                    address: l.address,
                    service: l.service.to_string(),
                    port: l.port,
                    protocol: protocol(l.protocol).to_owned(),
                    error: l.error,
                })
                .collect(),
            services: ports
                .into_iter()
                .map(|port| Service::of(port, &clocks))
                .collect(),
        }
    }
}

impl Service {
    fn of(port: &Port, clocks: &Clocks) -> Self {
        Self {
            namespace: port.key.service.namespace.clone(),
            name: port.key.service.name.clone(),
            port: port.key.port,
            port_name: port.name.clone(),
            node_port: port.node_port,
            protocol: protocol(port.protocol).to_owned(),
            endpoints: port
                .all
                .sorted()
                .iter()
                .map(|endpoint| EndpointStatus::of(endpoint, clocks))
                .collect(),
        }
    }
}

impl EndpointStatus {
    fn of(endpoint: &Endpoint, clocks: &Clocks) -> Self {
        let conditions = endpoint.conditions();
        Self {
            address: endpoint.address,
            pod: endpoint.pod.as_ref().map(|pod| pod.name.clone()),
            ready: conditions.ready,
            serving: conditions.serving,
            terminating: conditions.terminating,
            in_flight: endpoint.leases(),
            idle: endpoint.tally.idle.load(Ordering::Relaxed),
            drain_deadline: endpoint.drain_deadline().map(|at| clocks.wall(at)),
            state: State::of(endpoint),
        }
    }
}

impl Drains {
    pub fn of(admin: &Admin) -> Self {
        let clocks = Clocks::now();
        let (finished, running) = admin
            .drains
            .records()
            .into_iter()
            .map(|r| Drain::of(r, &clocks))
            .partition(|d| d.ended_at.is_some());
        Self {
            running,
            finished,
            rollouts: admin
                .drains
                .rollouts()
                .into_iter()
                .map(Rollout::from)
                .collect(),
        }
    }
}

impl From<rollouts::Rollout> for Rollout {
    fn from(rollout: rollouts::Rollout) -> Self {
        Self {
            service: rollout.service.to_string(),
            started_at: timestamp(rollout.started_at),
            ended_at: timestamp(rollout.ended_at),
            pods_gone: rollout.pods_gone,
            pods_come: rollout.pods_come,
            requests: rollout.requests,
            failures: rollout.failures,
            replayed: rollout.replayed,
            held: rollout.held,
            forced: rollout.forced,
            connections_kept: rollout.connections_kept,
            connections_lost: rollout.connections_lost,
        }
    }
}

impl Drain {
    fn of(record: drains::Record, clocks: &Clocks) -> Self {
        Self {
            service: record.service.to_string(),
            address: record.address,
            pod: record.pod,
            started_at: timestamp(record.started_at),
            trigger: record.trigger.as_str().to_owned(),
            ended_at: record.ended.map(|(at, _)| timestamp(at)),
            outcome: record.ended.map(|(_, outcome)| outcome.as_str().to_owned()),
            finished: record.finished,
            replayed: record.replayed,
            forced: record.forced,
            idle_closed: record.idle_closed,
            in_flight: record.in_flight,
            drain_deadline: record.deadline.map(|at| clocks.wall(at)),
        }
    }
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        Self {
            subject: problem.subject,
            error: problem.error,
            since: timestamp(problem.since),
        }
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Auto => "auto",
        Protocol::Http => "http",
        Protocol::Tcp => "tcp",
    }
}

/// The two clocks, read together, to tell people when a monotonic moment is.
struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn wall(&self, at: Instant) -> Timestamp {
        let wall = match at.checked_duration_since(self.monotonic) {
            Some(ahead) => self.wall.checked_add(ahead),
            None => self.wall.checked_sub(self.monotonic.duration_since(at)),
        };
        wall.map_or(Timestamp::MAX, timestamp)
    }
}

/// What the admin pages read. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub drains: Arc<drains::Log>,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub started: Instant,
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::contract::endpoint::{Conditions, EndpointId};
    use crate::contract::name::ObjectName;
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
            "the age counts from when it was last in order"
        );
    }

    #[test]
    fn a_port_that_cannot_be_bound_is_named() {
        let mut state = synced();
        state.listeners.push(ListenerState {
            name: "web".into(),
            address: "0.0.0.0:80".parse().unwrap(),
            service: ObjectName::new("web", "shop"),
            port: "http".into(),
            protocol: Protocol::Auto,
            error: Some("address in use".into()),
        });
        assert_eq!(
            readiness(&state).unwrap(),
            "ready; not bound, trying again (web 0.0.0.0:80: address in use)"
        );
    }

    #[test]
    fn states_in_a_life() {
        let (notices, _kept) = mpsc::unbounded_channel();
        let endpoint = Endpoint::new(
            EndpointId(1),
            "10.0.0.1:80".parse().unwrap(),
            None,
            None,
            notices,
        );
        let set = |ready, serving, terminating| {
            endpoint.set_conditions(Conditions {
                ready,
                serving,
                terminating,
            })
        };
        assert_eq!(State::of(&endpoint), State::NotReady);
        set(true, true, false);
        assert_eq!(State::of(&endpoint), State::Joining);
        endpoint.set_out(false);
        assert_eq!(State::of(&endpoint), State::Ready);
        endpoint.eject();
        assert_eq!(State::of(&endpoint), State::NotAnswering);
        endpoint.readmit();
        endpoint.tally.last_dispatch_ms.store(7, Ordering::Relaxed);
        endpoint.set_out(true);
        assert_eq!(State::of(&endpoint), State::Out);
        set(false, true, true);
        assert_eq!(State::of(&endpoint), State::Serving);
        set(false, false, true);
        assert_eq!(State::of(&endpoint), State::NotReady);
        endpoint.begin_drain();
        assert_eq!(State::of(&endpoint), State::Draining);
    }

    #[test]
    fn a_monotonic_moment_on_the_wall() {
        let clocks = Clocks {
            monotonic: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let at = |moment: Option<Instant>| clocks.wall(moment.unwrap()).to_string();
        assert_eq!(
            at(clocks.monotonic.checked_add(Duration::from_millis(30_500))),
            "2023-11-14T22:13:50.5Z"
        );
        assert_eq!(
            at(clocks.monotonic.checked_sub(Duration::from_millis(500))),
            "2023-11-14T22:13:19.5Z"
        );
    }
}

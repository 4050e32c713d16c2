//! The JSON of `/api/v1`, built from [`Admin`].
//!
//! `ebbtide status` reads these types back, perhaps from a proxy of another version. So a field may
//! be added, but never changed or removed. A field that a later version added is
//! `#[serde(default)]`. The readiness line and the gauges are in [`crate::admin::readiness`] and
//! [`crate::admin::gauges`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admin::held::Held;
use crate::admin::readiness::readiness;
use crate::admin::state::State;
use crate::contract::endpoint::Endpoint;
use crate::contract::snapshot::{Port, Published};
use crate::discovery::source::Problem;
use crate::gate;
use crate::observe::health::Health;
use crate::observe::history::History;
use crate::observe::metrics::Metrics;
use crate::routing::{drains, rollouts};
use crate::text::timestamp;

/// The response of `/api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The version and commit of this proxy.
    pub version: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// The state of the source of Services and endpoints.
    pub discovery: Discovery,
    /// All listeners, bound or not.
    pub listeners: Vec<Listener>,
    /// One entry for each Service port in the table, sorted by name and port.
    pub services: Vec<Service>,
    /// What keeps clients from the addresses of Services on this node.
    #[serde(default)]
    pub obstacle: Option<String>,
    /// Whether `/readyz` returns 200.
    #[serde(default)]
    pub ready: bool,
    /// Whether a shutdown has begun.
    #[serde(default)]
    pub shutting_down: bool,
}

/// The state of the source of Services and endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovery {
    /// `files`, `kubernetes` or `static`.
    pub source: String,
    /// Whether the first complete table is in force.
    pub synced: bool,
    /// Seconds since the source was last in order; 0 while it is in order.
    pub age_seconds: u64,
    /// When the table in force was saved to disk, while the source has not confirmed it.
    #[serde(default)]
    pub saved_at: Option<Timestamp>,
    /// Namespaces that cannot be listed. Their Services are not served.
    #[serde(default)]
    pub missing_namespaces: Vec<String>,
    /// Configured namespaces that do not exist.
    #[serde(default)]
    pub absent_namespaces: Vec<String>,
    /// What is wrong with the source now.
    #[serde(default)]
    pub problems: Vec<Trouble>,
}

/// A [`Problem`] of the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// The file, folder, object or watch that has the problem.
    pub subject: String,
    /// What is wrong.
    pub error: String,
    /// When the problem began.
    pub since: Timestamp,
}

/// One listener of this proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// The configured name, or `namespace/service:port@address` for a nodePort.
    pub name: String,
    /// The address where clients connect.
    pub address: SocketAddr,
    /// `namespace/name`.
    pub service: String,
    /// The Service port's name or number, as configured.
    pub port: String,
    /// `auto`, `http`, `tcp` or `udp`.
    pub protocol: String,
    /// Why the listener is not bound; none if it is bound, or if it refuses.
    #[serde(default)]
    pub error: Option<String>,
    /// Connections are refused: the Service has had no endpoint for longer than its hold time.
    #[serde(default)]
    pub refuses: bool,
}

/// One port of one Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The Service port's number.
    pub port: u16,
    /// All endpoints, draining ones included, in a fixed order.
    pub endpoints: Vec<EndpointStatus>,
    /// The Service port's name, if it has one.
    #[serde(default)]
    pub port_name: Option<String>,
    /// The nodePort, if the Service has one.
    #[serde(default)]
    pub node_port: Option<u16>,
    /// `auto`, `http`, `tcp` or `udp`, by the Service alone; a listener may choose another.
    #[serde(default)]
    pub protocol: String,
}

/// One endpoint of a Service port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The address to which the proxy connects.
    pub address: SocketAddr,
    /// The pod's name, if discovery knows the pod.
    pub pod: Option<String>,
    /// The endpoint's `ready` condition.
    pub ready: bool,
    /// The endpoint's `serving` condition.
    pub serving: bool,
    /// Whether the endpoint terminates, by its slice or by its pod.
    pub terminating: bool,
    /// Leases: exchanges, TCP connections and connects under way.
    pub in_flight: u64,
    /// Idle connections in the workers' pools.
    pub idle: u32,
    /// When what is in flight is cut; none if there is no deadline.
    pub drain_deadline: Option<Timestamp>,
    /// What the proxy uses the endpoint for.
    #[serde(default)]
    pub state: State,
}

/// The response of `/api/v1/drains`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drains {
    /// Drains that have begun and not ended.
    pub running: Vec<Drain>,
    /// Drains that have ended, newest first.
    pub finished: Vec<Drain>,
    /// Receipts of the last rollouts, newest first.
    #[serde(default)]
    pub rollouts: Vec<Rollout>,
    /// Pods that the gate holds, then those that it has held, newest first.
    #[serde(default)]
    pub gate: Vec<Held>,
}

/// One [`rollouts::Rollout`]; the fields have the meaning that they have there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// `namespace/name`.
    pub service: String,
    /// When the first drain began.
    pub started_at: Timestamp,
    /// When the last drain ended.
    pub ended_at: Timestamp,
    /// Pods that drained.
    pub pods_gone: u32,
    /// Pods that joined.
    pub pods_come: u32,
    /// Requests that clients got a response to.
    pub requests: u64,
    /// Requests that Ebbtide had to fail.
    pub failures: u64,
    /// Requests that were sent again to another endpoint.
    pub replayed: u64,
    /// Requests and connections that were held.
    pub held: u64,
    /// Exchanges and connections that were cut at a drain deadline.
    pub forced: u64,
    /// Client connections open at the end.
    pub connections_kept: u64,
    /// Client connections that an endpoint, a deadline or a lack of endpoints ended.
    pub connections_lost: u64,
    /// UDP sessions open at the end.
    pub sessions_kept: u64,
    /// UDP sessions that went on at another endpoint.
    pub sessions_moved: u64,
    /// Datagrams that an endpoint refused, and that were sent to another one.
    pub datagrams_refused: u64,
    /// Datagrams that were dropped because no endpoint was usable.
    pub datagrams_lost: u64,
    /// Routes that led to the Service at the end, for example `HTTPRoute web/shop`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
}

/// One drain of one endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// `namespace/name:port`.
    pub service: String,
    /// The endpoint's address.
    pub address: SocketAddr,
    /// The endpoint's pod, if discovery knows it.
    pub pod: Option<String>,
    /// When the drain began.
    pub started_at: Timestamp,
    /// `podDeleted`, `sliceTerminating` or `removed`: the signal that came first.
    pub trigger: String,
    /// When the drain ended; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// `drained`, or `forced` if something was cut; none while the drain runs.
    pub outcome: Option<String>,
    /// Exchanges and connections that ended without a cut after the drain began.
    pub finished: u32,
    /// Requests that were lost on this endpoint and sent to another one.
    pub replayed: u32,
    /// Exchanges and connections that were cut.
    pub forced: u32,
    /// Idle connections that were closed.
    pub idle_closed: u32,
    /// Leases now.
    #[serde(default)]
    pub in_flight: u64,
    /// When what is in flight is cut; none if there is no deadline.
    #[serde(default)]
    pub drain_deadline: Option<Timestamp>,
}

impl Status {
    /// The status now.
    pub fn of(admin: &Admin) -> Self {
        let state = admin.health.state();
        let clocks = Clocks::now();
        let snapshot = admin.snapshot.load();
        Self {
            version: crate::VERSION.to_owned(),
            uptime_seconds: admin.started.elapsed().as_secs(),
            obstacle: state.obstacle.as_ref().map(|it| it.words.clone()),
            ready: readiness(&state).is_ok(),
            shutting_down: state.shutting_down,
            discovery: Discovery {
                source: state.source.to_owned(),
                synced: state.synced,
                age_seconds: state.age().as_secs(),
                saved_at: state.standing.saved_at.and_then(|at| at.try_into().ok()),
                missing_namespaces: state.standing.missing.iter().cloned().collect(),
                absent_namespaces: state.standing.absent.iter().cloned().collect(),
                problems: state.problems.into_iter().map(Trouble::from).collect(),
            },
            listeners: state
                .listeners
                .iter()
                .map(|l| Listener {
                    name: l.name.clone(),
                    address: l.address,
                    service: l.service.to_string(),
                    port: l.port.clone(),
                    protocol: l.protocol.as_str().to_owned(),
                    error: l.error.clone(),
                    refuses: l.refuses,
                })
                .collect(),
            services: snapshot
                .ports
                .values()
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
            protocol: port.protocol.as_str().to_owned(),
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
    /// The drains and rollouts that the log holds now.
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
            gate: admin.gate.log.holds().into_iter().map(Held::from).collect(),
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
            sessions_kept: rollout.sessions_kept,
            sessions_moved: rollout.sessions_moved,
            datagrams_refused: rollout.datagrams_refused,
            datagrams_lost: rollout.datagrams_lost,
            routes: rollout.routes.iter().map(ToString::to_string).collect(),
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

/// Both clocks, read at the same moment. They convert a monotonic moment to wall time.
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

/// What the admin pages read. A clone shares all of it.
#[derive(Clone)]
pub struct Admin {
    /// Every Service port as it is now.
    pub snapshot: Arc<Published>,
    /// Running and finished drains, and rollouts.
    pub drains: Arc<drains::Log>,
    /// The metrics of this process.
    pub metrics: Arc<Metrics>,
    /// The state of the source and of the listeners.
    pub health: Arc<Health>,
    /// The last 15 minutes of each Service.
    pub history: Arc<History>,
    /// What the gate holds.
    pub gate: GateView,
    /// When the process started.
    pub started: Instant,
}

/// What the admin pages read of the gate.
#[derive(Clone, Default)]
pub struct GateView {
    /// The pods that are and were held.
    pub log: Arc<gate::log::Log>,
    /// The way to the gate; `None`: there is none.
    pub looks: Option<gate::look::Looks>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_monotonic_moment_becomes_wall_time() {
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

//! Liveness, readiness and the state of the source of truth.
//!
//! The control loop and the listeners write this state, and the admin pages read it. Whether a
//! state means ready is decided in `admin/readiness.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::contract::clock;
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::discovery::source::{Problem, Standing};
use crate::net::rules::Obstacle;

/// The state behind `/livez` and `/readyz`, shared between threads.
#[derive(Debug)]
pub struct Health {
    state: Mutex<HealthState>,
    /// The listeners of the state, kept apart so that a change of one costs nothing for the others.
    listeners: Mutex<Listeners>,
    /// When the control loop last turned, by [`clock::millis`].
    beat: AtomicU64,
}

/// By whether they are derived from a nodePort, then by name.
type Listeners = BTreeMap<(bool, Arc<str>), Arc<ListenerState>>;

/// A copy of the state at one moment.
#[derive(Debug, Clone)]
pub struct HealthState {
    /// The kind of source: `files`, `kubernetes` or `static`.
    pub source: &'static str,
    /// Whether the first complete table is in force.
    pub synced: bool,
    /// What the table in force lacks.
    pub standing: Standing,
    /// Whether every listener has been tried once.
    pub ports_tried: bool,
    /// Whether the process that this one replaces still wants traffic.
    pub predecessor_serves: bool,
    /// Whether another process has taken the admin address over, and lives.
    pub has_successor: bool,
    /// Whether SIGTERM or SIGINT has come.
    pub shutting_down: bool,
    /// When the source was last known to be in order. See [`HealthState::age`].
    pub current_at: Instant,
    /// What the source cannot read. Only [`Health::report`] may change it.
    pub problems: Vec<Problem>,
    /// Certificates that cannot be read, or that clients refuse.
    pub certificates: Vec<Problem>,
    /// How the addresses of Services are served; `None`: they are not, or nothing is known yet.
    pub net: Option<NetState>,
    /// What keeps clients from these addresses on this node, as `ebbtide net` says it.
    pub obstacle: Option<Obstacle>,
    /// Every listener that is bound or should be: the configured ones, then the nodePorts, by name.
    /// Only [`Health::show_listener`] may change them.
    pub listeners: Vec<Arc<ListenerState>>,
}

/// Where `ebbtide net` stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetState {
    /// It has written this process's rules.
    Serves,
    /// Another process of the node writes the rules: one that replaces this one.
    Waits,
    /// It is not there, or cannot write; and why.
    Away(String),
}

/// One listener, as the admin pages show it.
#[derive(Debug, Clone)]
pub struct ListenerState {
    /// The listener's name.
    pub name: String,
    /// The bound address, with a port 0 resolved; the configured address while the listener is not
    /// bound.
    pub address: SocketAddr,
    /// The Service that the listener serves.
    pub service: ObjectName,
    /// The Service port's name or number, as configured.
    pub port: String,
    /// The protocol that the listener is served with.
    pub protocol: Protocol,
    /// Why the listener is not bound; `None` while it is bound, and while it refuses.
    pub error: Option<String>,
    /// Connections are refused, because the Service has had no endpoint for longer than its hold
    /// time (contract 1.15).
    pub refuses: bool,
}

impl HealthState {
    /// The age of the table in force. It is zero while the source is in order. A saved table counts
    /// from when it was in order, by the wall clock.
    pub fn age(&self) -> Duration {
        if let Some(at) = self.standing.saved_at {
            at.elapsed().unwrap_or_default()
        } else if self.synced && self.problems.is_empty() {
            Duration::ZERO
        } else {
            self.current_at.elapsed()
        }
    }
}

impl Health {
    /// The state at the start: not synced, no listener tried. `source` is `files`, `kubernetes` or
    /// `static`.
    pub fn new(source: &'static str) -> Self {
        let state = HealthState {
            source,
            synced: false,
            standing: Standing::default(),
            ports_tried: false,
            predecessor_serves: false,
            has_successor: false,
            shutting_down: false,
            current_at: Instant::now(),
            problems: Vec::new(),
            certificates: Vec::new(),
            net: None,
            obstacle: None,
            listeners: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            listeners: Mutex::default(),
            beat: AtomicU64::new(clock::millis(Instant::now())),
        }
    }

    /// Notes that the control loop turns.
    pub fn beat(&self) {
        self.beat_at(clock::millis(Instant::now()));
    }

    /// Notes that the control loop turned at this moment, by [`clock::millis`].
    pub(crate) fn beat_at(&self, millis: u64) {
        self.beat.store(millis, Ordering::Relaxed);
    }

    /// How long ago the control loop last turned.
    pub fn since_beat(&self) -> Duration {
        // Another thread may beat between the two readings. Then the time since is zero.
        let beat = self.beat.load(Ordering::Relaxed);
        let since = clock::millis(Instant::now()).saturating_sub(beat);
        Duration::from_millis(since)
    }

    /// Whether the first complete table is in force.
    pub fn is_synced(&self) -> bool {
        self.lock().synced
    }

    /// See [`HealthState::has_successor`].
    pub fn has_successor(&self) -> bool {
        self.lock().has_successor
    }

    /// See [`HealthState::predecessor_serves`].
    pub fn predecessor_serves(&self) -> bool {
        self.lock().predecessor_serves
    }

    /// See [`HealthState::age`].
    pub fn age(&self) -> Duration {
        self.lock().age()
    }

    /// What the table in force lacks.
    pub fn standing(&self) -> Standing {
        self.lock().standing.clone()
    }

    /// A copy of the state now.
    pub fn state(&self) -> HealthState {
        let mut state = self.lock().clone();
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.listeners = listeners.values().cloned().collect();
        state
    }

    /// Shows a listener as it is now; `None`: it is no longer wanted. `is_node_port`: it is derived
    /// from a Service.
    pub fn show_listener(&self, is_node_port: bool, name: Arc<str>, now: Option<ListenerState>) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match now {
            Some(now) => _ = listeners.insert((is_node_port, name), Arc::new(now)),
            None => _ = listeners.remove(&(is_node_port, name)),
        }
    }

    /// Replaces the source's problems by the whole list as it is now. The table counts as current
    /// until the first problem.
    pub fn report(&self, problems: Vec<Problem>) {
        self.update(|state| {
            if state.problems.is_empty() || problems.is_empty() {
                state.current_at = Instant::now();
            }
            state.problems = problems;
        });
    }

    /// Changes the state under its lock. `change` must not block.
    pub fn update(&self, change: impl FnOnce(&mut HealthState)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_a_beat_counts_from_the_last_one_and_never_wraps() {
        let health = Health::new("files");
        health.beat_at(0);
        std::thread::sleep(Duration::from_millis(5));
        assert!(health.since_beat() >= Duration::from_millis(5));
        health.beat();
        assert!(health.since_beat() < Duration::from_secs(12));
        // Another thread beats between the two readings, also shortly after 32 bits of milliseconds.
        for ahead in [3_600_000, 1 << 31, (1 << 32) - 1, 1 << 32] {
            health.beat_at(clock::millis(Instant::now()) + ahead);
            assert_eq!(health.since_beat(), Duration::ZERO);
        }
    }
}

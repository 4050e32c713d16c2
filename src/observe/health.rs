//! Liveness, readiness and the state of the source of truth.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::contract::clock;
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::discovery::source::Problem;

/// Liveness, readiness and the state of the source of truth. Written by the control loop and the listeners.
#[derive(Debug)]
pub struct Health {
    state: Mutex<HealthState>,
    /// When the control loop last turned, by [`clock::millis`].
    beat: AtomicU32,
}

#[derive(Debug, Clone)]
pub struct HealthState {
    /// `files`, `kubernetes` or `static`.
    pub source: &'static str,
    /// The first complete table is in force.
    pub synced: bool,
    /// Every listener has been tried once.
    pub ports_tried: bool,
    pub shutting_down: bool,
    /// When the source was last known to be in order; see [`HealthState::age`].
    pub current_at: Instant,
    /// What the source cannot read; change it by [`Health::report`] only.
    pub problems: Vec<Problem>,
    pub listeners: Vec<ListenerState>,
}

#[derive(Debug, Clone)]
pub struct ListenerState {
    pub name: String,
    /// As bound (a port 0 resolved), or as configured while it is not bound.
    pub address: SocketAddr,
    pub service: ObjectName,
    /// Name or number, as configured.
    pub port: String,
    pub protocol: Protocol,
    /// Why it is not bound.
    pub error: Option<String>,
}

impl HealthState {
    /// How old the table in force is: nothing while the source is in order.
    pub fn age(&self) -> Duration {
        if self.synced && self.problems.is_empty() {
            Duration::ZERO
        } else {
            self.current_at.elapsed()
        }
    }
}

impl Health {
    pub fn new(source: &'static str) -> Self {
        let state = HealthState {
            source,
            synced: false,
            ports_tried: false,
            shutting_down: false,
            current_at: Instant::now(),
            problems: Vec::new(),
            listeners: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            beat: AtomicU32::new(clock::millis(Instant::now())),
        }
    }

    /// Notes that the control loop turns.
    pub fn beat(&self) {
        self.beat
            .store(clock::millis(Instant::now()), Ordering::Relaxed);
    }

    /// How long ago the control loop last turned.
    pub fn since_beat(&self) -> Duration {
        let now = clock::millis(Instant::now());
        let since = now.wrapping_sub(self.beat.load(Ordering::Relaxed));
        Duration::from_millis(since.into())
    }

    /// Whether the first complete table is in force.
    pub fn is_synced(&self) -> bool {
        self.lock().synced
    }

    /// A copy of everything.
    pub fn state(&self) -> HealthState {
        self.lock().clone()
    }

    /// Takes in the source's problems as they stand now (the whole list). The table counts as current until the first.
    pub fn report(&self, problems: Vec<Problem>) {
        self.update(|state| {
            if state.problems.is_empty() || problems.is_empty() {
                state.current_at = Instant::now();
            }
            state.problems = problems;
        });
    }

    pub fn update(&self, change: impl FnOnce(&mut HealthState)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

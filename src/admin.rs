//! The admin pages: health, metrics, status (pages being written).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::config::Protocol;
use crate::discovery::{ObjectName, Problem};
use crate::drain;
use crate::metrics::Metrics;
use crate::routing::Snapshot;

/// What the admin pages read. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub drains: Arc<drain::Log>,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub started: Instant,
}

/// Liveness, readiness and the state of the source of truth. Written by the control loop and the listeners.
#[derive(Debug)]
pub struct Health(Mutex<HealthState>);

#[derive(Debug, Clone)]
pub struct HealthState {
    /// `files` or `static`.
    pub source: &'static str,
    /// The first complete table is in force.
    pub synced: bool,
    /// Every listener has been tried once.
    pub ports_tried: bool,
    pub shutting_down: bool,
    /// When the source was last known to be in order.
    pub current_at: Instant,
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

impl Health {
    pub fn new(source: &'static str) -> Self {
        Self(Mutex::new(HealthState {
            source,
            synced: false,
            ports_tried: false,
            shutting_down: false,
            current_at: Instant::now(),
            problems: Vec::new(),
            listeners: Vec::new(),
        }))
    }

    pub fn state(&self) -> HealthState {
        self.lock().clone()
    }

    pub fn update(&self, change: impl FnOnce(&mut HealthState)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! One endpoint's drain, from `begin_drain` to its last lease, and the log of all of them.
//!
//! The log's invariant: every drain that began is either running or finished, and finishes once.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crate::discovery::slices::Trigger;
use crate::endpoint::{Endpoint, EndpointId};
use crate::routing::PortKey;

/// A drain as the admin page and the log line show it.
#[derive(Debug, Clone)]
pub struct Record {
    pub service: PortKey,
    pub address: SocketAddr,
    pub pod: Option<String>,
    pub started_at: SystemTime,
    pub trigger: Trigger,
    /// The endpoint's drain deadline and its leases, when the record was made.
    pub deadline: Option<Instant>,
    pub in_flight: u64,
    /// `None` while it runs.
    pub ended: Option<(SystemTime, Outcome)>,
    /// Exchanges and connections that ended by themselves after the drain began.
    pub finished: u32,
    pub replayed: u32,
    pub forced: u32,
    pub idle_closed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Drained,
    Forced,
}

impl Outcome {
    pub const ALL: [Self; 2] = [Self::Drained, Self::Forced];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Forced => "forced",
        }
    }
}

/// Running drains and the last [`KEPT`] finished ones.
#[derive(Debug, Default)]
pub struct Log(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<EndpointId, Running>,
    finished: VecDeque<Record>,
}

#[derive(Debug)]
struct Running {
    endpoint: Arc<Endpoint>,
    service: PortKey,
    trigger: Trigger,
    started_at: SystemTime,
    started: Instant,
}

/// Finished drains that are remembered.
pub const KEPT: usize = 1_000;

impl Log {
    pub fn begin(&self, endpoint: Arc<Endpoint>, service: PortKey, trigger: Trigger) {
        let running = Running {
            endpoint: endpoint.clone(),
            service,
            trigger,
            started_at: SystemTime::now(),
            started: Instant::now(),
        };
        self.lock().running.insert(endpoint.id, running);
    }

    /// Ends a drain; `None` if it had ended before. Returns the record and how long it took.
    pub fn end(&self, id: EndpointId) -> Option<(Record, std::time::Duration)> {
        let mut inner = self.lock();
        let running = inner.running.remove(&id)?;
        let mut record = running.record();
        let outcome = if record.forced > 0 { Outcome::Forced } else { Outcome::Drained };
        record.ended = Some((SystemTime::now(), outcome));
        if inner.finished.len() == KEPT {
            inner.finished.pop_front();
        }
        inner.finished.push_back(record.clone());
        Some((record, running.started.elapsed()))
    }

    /// Running drains first, then the finished ones, newest first.
    pub fn records(&self) -> Vec<Record> {
        let inner = self.lock();
        inner.running.values().map(Running::record).chain(inner.finished.iter().rev().cloned()).collect()
    }

    pub fn running(&self) -> usize {
        self.lock().running.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn record(&self) -> Record {
        let tally = &self.endpoint.tally;
        Record {
            service: self.service.clone(),
            address: self.endpoint.address,
            pod: self.endpoint.pod.as_ref().map(|pod| pod.name.clone()),
            started_at: self.started_at,
            trigger: self.trigger,
            deadline: self.endpoint.drain_deadline(),
            in_flight: self.endpoint.leases(),
            ended: None,
            finished: tally.finished.load(Ordering::Relaxed),
            replayed: tally.replayed.load(Ordering::Relaxed),
            forced: tally.forced.load(Ordering::Relaxed),
            idle_closed: tally.idle_closed.load(Ordering::Relaxed),
        }
    }
}

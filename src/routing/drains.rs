//! Drains and their receipts: the log of all running drains and of the last finished ones.
//!
//! Invariant: a drain that began is running or finished, and it finishes once. A receipt does not
//! change after its drain has finished. Which endpoint drains, and when, is decided in
//! `routing/table.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::contract::clock::millis;
use crate::contract::counters::ServiceMetrics;
use crate::contract::endpoint::{Endpoint, EndpointId};
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::reason::{Outcome, Trigger};
use crate::routing::rollouts::{Rollout, Rollouts};

/// A drain as the admin page and the log line show it. After the drain it is the receipt.
#[derive(Debug, Clone)]
pub struct Record {
    /// The Service port of the endpoint.
    pub service: PortKey,
    /// The endpoint's address.
    pub address: SocketAddr,
    /// The name of the endpoint's pod, where the slice names one.
    pub pod: Option<String>,
    /// When the drain began, by the wall clock.
    pub started_at: SystemTime,
    /// The signal that began the drain.
    pub trigger: Trigger,
    /// The endpoint's drain deadline when the record was made.
    pub deadline: Option<Instant>,
    /// The endpoint's leases when the record was made.
    pub in_flight: u64,
    /// When the drain ended, and how. `None` while it runs.
    pub ended: Option<(SystemTime, Outcome)>,
    /// Exchanges and connections that ended normally after the drain began.
    pub finished: u32,
    /// Requests that were lost here and sent to another endpoint.
    pub replayed: u32,
    /// Exchanges and connections that were cut at the drain deadline.
    pub forced: u32,
    /// Idle connections that the drain closed.
    pub idle_closed: u32,
}

impl Record {
    /// Whether a request or a connection was in flight or was moved to another endpoint.
    pub fn touched_requests(&self) -> bool {
        self.finished + self.replayed + self.forced > 0
    }

    /// The record as one line for people. `took` is how long the drain took.
    pub fn words(&self, took: Duration) -> String {
        let endpoint = self.pod.as_ref().map_or_else(
            || self.address.to_string(),
            |pod| format!("pod {pod} ({})", self.address),
        );
        let outcome = self
            .ended
            .map_or("draining", |(_, outcome)| outcome.as_str());
        let took = match took.as_millis() as u64 {
            0 => "under 1ms".to_owned(),
            took => humantime::format_duration(Duration::from_millis(took)).to_string(),
        };
        let Self {
            finished,
            replayed,
            forced,
            idle_closed,
            ..
        } = self;
        format!(
            "{endpoint}: {outcome} in {took} ({}); {finished} finished, {replayed} replayed, \
             {forced} forced, {idle_closed} idle connections closed",
            self.trigger.as_str()
        )
    }

    /// Logs a finished drain in one line: the endpoint, the trigger, the duration, and how
    /// connections and requests in flight ended.
    pub fn log(&self, took: Duration) {
        let outcome = self
            .ended
            .map_or("running", |(_, outcome)| outcome.as_str());
        tracing::info!(
            service = %self.service,
            address = %self.address,
            pod = self.pod.as_deref(),
            trigger = self.trigger.as_str(),
            outcome,
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            finished = self.finished,
            replayed = self.replayed,
            forced = self.forced,
            idle_closed = self.idle_closed,
            "endpoint {outcome}"
        );
    }
}

/// Running drains, the last [`KEPT`] finished drains, and the rollouts that they belong to.
#[derive(Default)]
pub struct Log(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    running: BTreeMap<EndpointId, Arc<Running>>,
    finished: VecDeque<Arc<Record>>,
    rollouts: Rollouts,
}

struct Running {
    endpoint: Arc<Endpoint>,
    service: PortKey,
    trigger: Trigger,
    metrics: Arc<ServiceMetrics>,
    /// When the event that ends the endpoint arrived.
    received: Instant,
    started_at: SystemTime,
    started: Instant,
    /// The endpoint's replays before the drain. The receipt leaves them out.
    replayed_before: u32,
    /// Idle connections that were closed before the drain. The receipt leaves them out.
    idle_closed_before: u32,
}

/// How many finished drains the log keeps.
pub const KEPT: usize = 1_000;

impl Log {
    /// Notes that a drain begins. `received` is when the event that ends the endpoint arrived. Call
    /// this before [`Endpoint::begin_drain`], so that the receipt counts what the drain closes.
    pub fn begin(
        &self,
        endpoint: Arc<Endpoint>,
        service: PortKey,
        trigger: Trigger,
        received: Instant,
        metrics: Arc<ServiceMetrics>,
    ) {
        let tally = &endpoint.tally;
        let now = Instant::now();
        let running = Running {
            service,
            trigger,
            metrics,
            received,
            started_at: SystemTime::now(),
            started: now,
            // A request that was lost within the last second was lost because the pod ended. The
            // event about the end arrives only now, so the receipt counts the replay.
            replayed_before: if endpoint.replayed_lately(now) {
                0
            } else {
                tally.replayed.load(Ordering::Relaxed)
            },
            idle_closed_before: tally.idle_closed.load(Ordering::Relaxed),
            endpoint: endpoint.clone(),
        };
        let mut inner = self.lock();
        let pod = endpoint.pod.as_ref().map_or_else(
            || endpoint.address.ip().to_string(),
            |pod| format!("{} {}", pod.name, pod.uid),
        );
        inner
            .rollouts
            .drain_began(&running.service, pod, &running.metrics, now);
        inner.running.insert(endpoint.id, Arc::new(running));
    }

    /// Ends a drain and counts it in the metrics. Returns the receipt and how long the drain took;
    /// `None` if the drain has ended before or never began. `asked` is when the pod's deletion was
    /// requested, where that is known.
    pub fn end(&self, id: EndpointId, asked: Option<Instant>) -> Option<(Record, Duration)> {
        let mut inner = self.lock();
        let running = inner.running.remove(&id)?;
        let mut record = running.record();
        let outcome = if record.forced > 0 {
            Outcome::Forced
        } else {
            Outcome::Drained
        };
        record.ended = Some((SystemTime::now(), outcome));
        if inner.finished.len() == KEPT {
            inner.finished.pop_front();
        }
        inner.finished.push_back(Arc::new(record.clone()));
        inner
            .rollouts
            .drain_ended(&record.service.service, record.forced, Instant::now());
        let took = running.started.elapsed();
        let counts = running.metrics.drained(running.trigger, outcome);
        counts.duration.observe(took.as_secs_f64());
        let last_ms = running
            .endpoint
            .tally
            .last_dispatch_ms
            .load(Ordering::Relaxed)
            .saturating_sub(1);
        let lag_ms = last_ms.saturating_sub(millis(asked.unwrap_or(running.received)));
        counts.deletion_lag.observe(lag_ms as f64 / 1_000.0);
        Some((record, took))
    }

    /// All drains: the running ones first, then the finished ones, newest first.
    pub fn records(&self) -> Vec<Record> {
        // The control thread waits for this lock, so the records are copied without it.
        let (running, finished): (Vec<_>, Vec<_>) = {
            let inner = self.lock();
            let finished = inner.finished.iter().rev().cloned();
            (
                inner.running.values().cloned().collect(),
                finished.collect(),
            )
        };
        let running = running.iter().map(|running| running.record());
        let finished = finished.iter().map(|record| Record::clone(record));
        running.chain(finished).collect()
    }

    /// When to call [`Log::close_rollouts`] next; `None` while no rollout runs.
    pub fn rollouts_due(&self) -> Option<Instant> {
        self.lock().rollouts.due()
    }

    /// Ends the rollouts that are over and returns their receipts; see [`Rollouts::close`].
    pub fn close_rollouts(
        &self,
        now: Instant,
        come: impl Fn(&ObjectName, Instant) -> Option<u32>,
        routes: impl Fn(&ObjectName) -> Vec<Arc<str>>,
    ) -> Vec<Rollout> {
        self.lock().rollouts.close(now, come, routes)
    }

    /// The receipts of the last rollouts, newest first.
    pub fn rollouts(&self) -> Vec<Rollout> {
        self.lock().rollouts.finished()
    }

    /// How many drains run now.
    pub fn running(&self) -> usize {
        self.lock().running.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// The drain as it is now.
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
            replayed: tally.replayed.load(Ordering::Relaxed) - self.replayed_before,
            forced: tally.forced.load(Ordering::Relaxed),
            idle_closed: tally.idle_closed.load(Ordering::Relaxed) - self.idle_closed_before,
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use tokio::sync::mpsc;

    use super::*;
    use crate::contract::name::ObjectName;

    fn begin(log: &Log, id: u64) -> Arc<Endpoint> {
        let address = ([10, 0, 0, 1], id as u16).into();
        let endpoint = Endpoint::new(
            EndpointId(id),
            address,
            None,
            None,
            mpsc::unbounded_channel().0,
        );
        let service = ObjectName::new("web", "shop").port(80);
        let metrics = crate::observe::metrics::Metrics::new()
            .unwrap()
            .service(&service);
        log.begin(
            endpoint.clone(),
            service,
            Trigger::SliceTerminating,
            Instant::now(),
            metrics,
        );
        endpoint
    }

    #[test]
    fn a_drain_runs_then_is_finished_once() {
        let log = Log::default();
        let endpoint = begin(&log, 7);
        assert_eq!((log.running(), log.records().len()), (1, 1));
        endpoint.tally.finished.store(3, Ordering::Relaxed);
        assert_eq!(
            log.records()[0].finished,
            3,
            "the record of a running drain shows its present counts"
        );
        assert!(log.records()[0].ended.is_none());
        let (record, _) = log.end(endpoint.id, None).unwrap();
        assert_eq!(
            (record.finished, record.ended.unwrap().1),
            (3, Outcome::Drained)
        );
        assert!(log.end(endpoint.id, None).is_none());
        assert_eq!((log.running(), log.records().len()), (0, 1));
        endpoint.tally.finished.store(4, Ordering::Relaxed);
        assert_eq!(log.records()[0].finished, 3, "a receipt does not change");
    }

    #[test]
    fn one_cut_connection_makes_the_drain_forced() {
        let log = Log::default();
        let endpoint = begin(&log, 7);
        endpoint.tally.forced.store(1, Ordering::Relaxed);
        assert_eq!(
            log.end(endpoint.id, None).unwrap().0.ended.unwrap().1,
            Outcome::Forced
        );
    }

    #[test]
    fn running_drains_come_first_then_the_newest_finished_ones_up_to_the_bound() {
        let log = Log::default();
        let last = KEPT as u64 + 2;
        for id in 0..=last {
            let endpoint = begin(&log, id);
            if id != 1 {
                log.end(endpoint.id, None).unwrap();
            }
        }
        let ports: Vec<u16> = log.records().iter().map(|r| r.address.port()).collect();
        assert_eq!(ports.len(), 1 + KEPT);
        assert_eq!(ports[..3], [1, last as u16, last as u16 - 1]);
        assert_eq!(ports.last(), Some(&3), "the oldest are gone");
    }

    /// Collects the log's output.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_receipt_is_one_line_with_its_fields() {
        let output = Output::default();
        let writer = output.clone();
        let subscriber = tracing_subscriber::registry().with(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(move || writer.clone()),
        );
        let record = Record {
            service: ObjectName::new("web", "shop").port(80),
            address: "10.0.0.1:8080".parse().unwrap(),
            pod: Some("shop-1".into()),
            started_at: SystemTime::now(),
            trigger: Trigger::PodDeleted,
            deadline: None,
            in_flight: 0,
            ended: Some((SystemTime::now(), Outcome::Forced)),
            finished: 7,
            replayed: 2,
            forced: 1,
            idle_closed: 4,
        };
        tracing::subscriber::with_default(subscriber, || record.log(Duration::from_millis(1_500)));
        let written = output.0.lock().unwrap().clone();
        assert_eq!(written.iter().filter(|&&b| b == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&written).unwrap();
        for (field, value) in [
            ("service", serde_json::json!("web/shop:80")),
            ("address", "10.0.0.1:8080".into()),
            ("pod", "shop-1".into()),
            ("trigger", "podDeleted".into()),
            ("outcome", "forced".into()),
            ("took_ms", 1_500.into()),
            ("finished", 7.into()),
            ("replayed", 2.into()),
            ("forced", 1.into()),
            ("idle_closed", 4.into()),
            ("level", "INFO".into()),
        ] {
            assert_eq!(line[field], value, "{field} in {line}");
        }
    }
}

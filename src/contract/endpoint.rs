//! One endpoint of one service port: its identity, its conditions, and the lease without which nothing is dispatched.
//!
//! **A terminating endpoint leaves rotation here**: the predicate is [`Endpoint::enter`] (see [`crate::contract::lease`] for the
//! word behind it), the action is [`crate::routing::table::RoutingTable::apply`], the proof is the first test of
//! `tests/proxy/drain.rs`. An `Endpoint` knows nothing of sockets or pools: workers keep those.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::contract::clock::millis;
use crate::contract::latency::Latency;
use crate::contract::lease::{Drained, Word};
use crate::contract::name::PodRef;

/// Conditions as the EndpointSlice gives them, nil rules applied (KEP-1672).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// Unique in this process and never used again, so that a worker's pool can never pass from one endpoint to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u64);

/// What the data plane tells the control loop about an endpoint.
#[derive(Debug)]
pub enum Notice {
    /// The last lease of a draining endpoint is gone; sent exactly once.
    Drained(Arc<Endpoint>),
    /// And every worker has closed its idle connections: its receipt can be written.
    Left(Arc<Endpoint>),
    /// A connect failed; the control side now tries until one succeeds.
    Ejected(Arc<Endpoint>),
}

#[derive(Debug)]
#[repr(C)] // So that what a pick reads lies together, beside the count of references: few cache lines among thousands.
pub struct Endpoint {
    word: Word,
    latency: Latency,
    pub id: EndpointId,
    /// When it was last let in, in milliseconds since the process began.
    let_in: AtomicU32,
    ejected: AtomicBool,
    /// Set when the pod object is gone: silent sockets get 2 s.
    pod_gone: AtomicBool,
    conditions: AtomicU8,
    pub address: SocketAddr,
    pub pod: Option<Arc<PodRef>>,
    /// Label `pod-template-hash`, to tell a replay's siblings apart.
    pub template_hash: Option<Arc<str>>,
    /// Set once, moved forward never: when what is still in flight is cut.
    deadline: Mutex<Option<Instant>>,
    /// Cancelled at the drain deadline; workers hold a child each.
    pub force: CancellationToken,
    pub tally: Tally,
    notices: mpsc::UnboundedSender<Notice>,
}

/// Counts of one endpoint's life, for its drain receipt.
#[derive(Debug, Default)]
pub struct Tally {
    pub finished: AtomicU32,
    pub replayed: AtomicU32,
    last_replay_ms: AtomicU32,
    pub forced: AtomicU32,
    pub idle_closed: AtomicU32,
    /// Idle pooled connections right now, over all workers.
    pub idle: AtomicU32,
    /// Milliseconds since the process began (+1; 0: never) of the last dispatch.
    pub last_dispatch_ms: AtomicU64,
}

/// Held by each worker until it has closed its idle connections to a drained endpoint; the last drop tells.
#[derive(Debug)]
pub struct Leaving(pub Arc<Endpoint>);

/// The right to dispatch to an endpoint. Held as long as the connection or exchange lives.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Endpoint {
    /// A new endpoint, out of rotation until [`Endpoint::set_out`]`(false)`.
    pub fn new(
        id: EndpointId,
        address: SocketAddr,
        pod: Option<Arc<PodRef>>,
        template_hash: Option<Arc<str>>,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Arc<Self> {
        Arc::new(Self {
            word: Word::new_out(),
            id,
            address,
            pod,
            template_hash,
            let_in: AtomicU32::new(0),
            conditions: AtomicU8::new(0),
            ejected: AtomicBool::new(false),
            pod_gone: AtomicBool::new(false),
            latency: Latency::default(),
            deadline: Mutex::new(None),
            force: CancellationToken::new(),
            tally: Tally::default(),
            notices,
        })
    }

    /// The predicate of the drain contract: a lease, or nothing when the endpoint drains or is out.
    pub fn enter(self: &Arc<Self>) -> Option<Lease> {
        self.word.enter().then(|| Lease(self.clone()))
    }

    /// Ends dispatch for good; when this has returned no lease can be granted. Idempotent.
    pub fn begin_drain(self: &Arc<Self>) {
        if self.word.begin_drain() == Drained::Report {
            self.report_drained();
        }
    }

    /// Out of rotation, or back in it.
    pub fn set_out(&self, out: bool) {
        if !out && !self.is_open() {
            self.note_let_in(Instant::now());
        }
        self.word.set_out(out);
    }

    pub(crate) fn note_let_in(&self, at: Instant) {
        self.let_in.store(millis(at), Ordering::Relaxed);
    }

    /// Orders endpoints by when they joined the rotation.
    pub fn joined(&self) -> (u32, EndpointId) {
        (self.let_in.load(Ordering::Relaxed), self.id)
    }

    pub fn is_draining(&self) -> bool {
        self.word.is_draining()
    }

    /// Neither draining nor out: its idle connections may be kept.
    pub fn is_open(&self) -> bool {
        self.word.is_open()
    }

    /// Leases held: active plus connecting.
    pub fn leases(&self) -> u64 {
        self.word.leases()
    }

    pub fn conditions(&self) -> Conditions {
        let bits = self.conditions.load(Ordering::Relaxed);
        Conditions {
            ready: bits & 1 != 0,
            serving: bits & 2 != 0,
            terminating: bits & 4 != 0,
        }
    }

    pub fn set_conditions(&self, c: Conditions) {
        let bits = u8::from(c.ready) | u8::from(c.serving) << 1 | u8::from(c.terminating) << 2;
        self.conditions.store(bits, Ordering::Relaxed);
    }

    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// A connect of the data plane failed: no picks until the control side has connected once.
    pub fn eject(self: &Arc<Self>) {
        if !self.ejected.swap(true, Ordering::AcqRel) {
            // The receiver is gone only when the process ends.
            let _ = self.notices.send(Notice::Ejected(self.clone()));
        }
    }

    /// A connect succeeded.
    pub fn readmit(&self) {
        if self.is_ejected() {
            self.note_let_in(Instant::now());
            self.ejected.store(false, Ordering::Release);
        }
    }

    pub fn set_pod_gone(&self) {
        self.pod_gone.store(true, Ordering::Relaxed);
    }

    pub fn pod_gone(&self) -> bool {
        self.pod_gone.load(Ordering::Relaxed)
    }

    /// Draining, out or not answering: a loss on it is the rollout's doing, not the application's.
    pub fn is_leaving(&self) -> bool {
        !self.is_open() || self.is_ejected() || self.conditions().terminating
    }

    /// Whether it was let in so recently, and so much later than the other, that its low load says nothing yet.
    pub fn is_newer_than(&self, other: &Self, now_ms: u32) -> bool {
        let (mine, others) = (
            self.let_in.load(Ordering::Relaxed),
            other.let_in.load(Ordering::Relaxed),
        );
        now_ms.wrapping_sub(mine) < WARM_UP_MS
            && (LATER_MS..u32::MAX / 2).contains(&mine.wrapping_sub(others))
    }

    /// A request lost here goes to another endpoint.
    pub fn count_replay(&self, now: Instant) {
        self.tally.replayed.fetch_add(1, Ordering::Relaxed);
        self.tally
            .last_replay_ms
            .store(millis(now), Ordering::Relaxed);
    }

    /// Whether one was within the last second.
    pub fn replayed_lately(&self, now: Instant) -> bool {
        millis(now).saturating_sub(self.tally.last_replay_ms.load(Ordering::Relaxed)) < 1_000
    }

    /// Remembers when something was last dispatched here, for the deletion lag.
    pub fn note_dispatch(&self, now_ms: u32) {
        self.tally
            .last_dispatch_ms
            .store(u64::from(now_ms) + 1, Ordering::Relaxed);
    }

    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    pub fn drain_deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the drain deadline or shortens it; a later one is ignored. Answers whether it changed.
    pub fn shorten_deadline(&self, to: Instant) -> bool {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let shorter = deadline.is_none_or(|now| to < now);
        if shorter {
            *deadline = Some(to);
        }
        shorter
    }

    fn report_drained(self: &Arc<Self>) {
        let _ = self.notices.send(Notice::Drained(self.clone()));
    }
}

impl Lease {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let _ = self.0.notices.send(Notice::Left(self.0.clone()));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.word.leave() == Drained::Report {
            self.0.report_drained();
        }
    }
}

/// How long a newcomer wins no pick by being idle, in milliseconds.
const WARM_UP_MS: u32 = 5_000;
/// Endpoints let in within this time of each other are as idle as each other.
const LATER_MS: u32 = 250;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn endpoint() -> (Arc<Endpoint>, mpsc::UnboundedReceiver<Notice>) {
        let (notices_in, notices) = mpsc::unbounded_channel();
        (
            Endpoint::new(
                EndpointId(1),
                ([10, 0, 0, 1], 80).into(),
                None,
                None,
                notices_in,
            ),
            notices,
        )
    }

    #[test]
    fn drained_is_reported_once_when_the_last_lease_is_gone() {
        let (endpoint, mut notices) = endpoint();
        assert!(endpoint.enter().is_none(), "out at birth");
        endpoint.set_out(false);
        let leases = [endpoint.enter().unwrap(), endpoint.enter().unwrap()];
        assert_eq!(endpoint.leases(), 2);
        endpoint.begin_drain();
        endpoint.begin_drain();
        assert!(endpoint.enter().is_none() && endpoint.is_draining());
        for lease in leases {
            assert!(notices.try_recv().is_err());
            drop(lease);
        }
        assert!(matches!(notices.try_recv(), Ok(Notice::Drained(e)) if Arc::ptr_eq(&e, &endpoint)));
        endpoint.begin_drain();
        assert!(notices.try_recv().is_err());
    }

    #[test]
    fn an_unused_endpoint_is_drained_at_once() {
        let (endpoint, mut notices) = endpoint();
        endpoint.begin_drain();
        endpoint.set_out(false);
        assert!(
            endpoint.enter().is_none(),
            "readiness does not undo a drain"
        );
        assert!(matches!(notices.try_recv(), Ok(Notice::Drained(_))));
    }

    #[test]
    fn an_ejection_is_told_once_until_it_ends() {
        let (endpoint, mut notices) = endpoint();
        for _ in 0..2 {
            endpoint.eject();
            endpoint.eject();
            assert!(endpoint.is_ejected() && endpoint.is_leaving());
            assert!(matches!(notices.try_recv(), Ok(Notice::Ejected(_))));
            assert!(notices.try_recv().is_err());
            endpoint.readmit();
            assert!(!endpoint.is_ejected());
        }
    }

    #[test]
    fn conditions_are_kept_apart() {
        let (endpoint, _notices) = endpoint();
        for bits in 0..8 {
            let conditions = Conditions {
                ready: bits & 1 != 0,
                serving: bits & 2 != 0,
                terminating: bits & 4 != 0,
            };
            endpoint.set_conditions(conditions);
            assert_eq!(endpoint.conditions(), conditions);
        }
    }

    #[test]
    fn a_drain_deadline_only_moves_forward() {
        let (endpoint, _notices) = endpoint();
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(endpoint.shorten_deadline(after(10)));
        assert!(!endpoint.shorten_deadline(after(20)));
        assert!(!endpoint.shorten_deadline(after(10)));
        assert_eq!(endpoint.drain_deadline(), Some(after(10)));
        assert!(endpoint.shorten_deadline(after(5)));
        assert_eq!(endpoint.drain_deadline(), Some(after(5)));
    }
}

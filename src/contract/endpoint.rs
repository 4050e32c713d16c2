//! One endpoint of one Service port: its identity, its conditions, and its leases. Nothing is
//! dispatched to an endpoint without a lease (contract 1.1).
//!
//! **A terminating endpoint leaves rotation here.** The predicate is [`Endpoint::enter`]; the
//! atomic word behind it is in [`crate::contract::lease`]. The action is
//! [`crate::routing::table::RoutingTable::apply`], which ends in `RoutingTable::settle`. The proof
//! is the first test of `tests/proxy/drain.rs`.
//!
//! An `Endpoint` knows nothing of sockets or pools. The workers keep those.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::contract::clock::millis;
use crate::contract::dispatched::Dispatched;
use crate::contract::latency::Latency;
use crate::contract::lease::{Drained, Word};
use crate::contract::name::PodRef;

/// Conditions of an endpoint, as the EndpointSlice gives them, with the API's nil rules applied
/// (KEP-1672, contract 2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    /// The endpoint may get new traffic. A missing condition means true.
    pub ready: bool,
    /// The endpoint answers, even if it terminates. A missing condition means true.
    pub serving: bool,
    /// The endpoint's pod is being deleted. A missing condition means false.
    pub terminating: bool,
}

/// Identity of an endpoint: unique in this process and never used again. So a worker's pool never
/// passes from one endpoint to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u64);

/// What the data plane reports to the control loop about an endpoint.
#[derive(Debug)]
pub enum Notice {
    /// The last lease of a draining endpoint is gone. Sent exactly once.
    Drained(Arc<Endpoint>),
    /// After [`Notice::Drained`], every worker has closed its idle connections to the endpoint. Its
    /// receipt can be written now.
    Left(Arc<Endpoint>),
    /// A connect to the endpoint failed. The control side now tries to connect until it succeeds.
    Ejected(Arc<Endpoint>),
}

/// One endpoint: one address and port of one pod, for one Service port.
///
/// The fields that a pick reads stand first, so that they share few cache lines.
#[derive(Debug)]
// Keeps the order of the fields. A pick reads the first ones of thousands of endpoints, and they
// lie beside the reference count.
#[repr(C)]
pub struct Endpoint {
    word: Word,
    latency: Latency,
    /// Identity of this endpoint in this process.
    pub id: EndpointId,
    /// When the endpoint was last let into rotation, in milliseconds since the process began.
    let_in: AtomicU64,
    ejected: AtomicBool,
    /// Set when the Pod object is deleted. Silent connections to the pod get 2 s then (contract
    /// 2.4).
    pod_gone: AtomicBool,
    /// No slice lists the endpoint.
    removed: AtomicBool,
    conditions: AtomicU8,
    /// Where to connect.
    pub address: SocketAddr,
    /// The pod, where the slice names one.
    pub pod: Option<Arc<PodRef>>,
    /// Label `pod-template-hash`. It tells a replay which endpoints are of the same generation
    /// (contract 3.6).
    pub template_hash: Option<Arc<str>>,
    /// When what is still in flight is cut. Later values only shorten it (contract 1.4).
    deadline: Mutex<Option<Instant>>,
    /// See [`Endpoint::force`]. Most endpoints of a cluster get nothing on a node, and have none.
    force: OnceLock<CancellationToken>,
    /// Counts for the drain receipt.
    pub tally: Tally,
    notices: mpsc::UnboundedSender<Notice>,
}

/// Counts of one endpoint's life, for its drain receipt.
#[derive(Debug, Default)]
pub struct Tally {
    /// Exchanges and connections that ended normally after the drain began.
    pub finished: AtomicU32,
    /// Requests that were lost here and sent to another endpoint.
    pub replayed: AtomicU32,
    last_replay_ms: AtomicU64,
    /// Exchanges and connections that were cut at the drain deadline.
    pub forced: AtomicU32,
    /// Idle connections that the drain closed.
    pub idle_closed: AtomicU32,
    /// Idle pooled connections now, over all workers.
    pub idle: AtomicU32,
    /// When something was last dispatched here: milliseconds since the process began, plus 1. 0
    /// means never.
    pub last_dispatch_ms: AtomicU64,
    /// How often something was dispatched here.
    pub dispatched: Dispatched,
}

/// Held by each worker until it has closed its idle connections to a drained endpoint. The last
/// drop sends [`Notice::Left`].
#[derive(Debug)]
pub struct Leaving(pub Arc<Endpoint>);

/// The right to dispatch to an endpoint. It is held for as long as the connection or the exchange
/// lives.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Endpoint {
    /// Makes an endpoint that is out of rotation until [`Endpoint::set_out`]`(false)`.
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
            let_in: AtomicU64::new(0),
            conditions: AtomicU8::new(0),
            ejected: AtomicBool::new(false),
            pod_gone: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            latency: Latency::default(),
            deadline: Mutex::new(None),
            force: OnceLock::new(),
            tally: Tally::default(),
            notices,
        })
    }

    /// The predicate of the drain contract (1.1): a lease, or `None` if the endpoint drains or is
    /// out of rotation.
    pub fn enter(self: &Arc<Self>) -> Option<Lease> {
        self.word.enter().then(|| Lease(self.clone()))
    }

    /// A lease for a connection that another process has dispatched to this endpoint; `None` if the
    /// endpoint has drained.
    pub fn adopt(self: &Arc<Self>) -> Option<Lease> {
        self.word.adopt().then(|| Lease(self.clone()))
    }

    /// Ends dispatch for good. After this has returned, no lease is granted. Idempotent.
    pub fn begin_drain(self: &Arc<Self>) {
        if self.word.begin_drain() == Drained::Report {
            self.report_drained();
        }
    }

    /// Takes the endpoint out of rotation, or lets it back in. No effect on an endpoint that
    /// drains.
    pub fn set_out(&self, out: bool) {
        if !out && !self.is_open() {
            self.note_let_in(Instant::now());
        }
        self.word.set_out(out);
    }

    pub(crate) fn note_let_in(&self, at: Instant) {
        self.let_in.store(millis(at), Ordering::Relaxed);
    }

    /// When the endpoint joined the rotation, as a key for sorting: milliseconds since the process
    /// began, then age.
    pub fn joined(&self) -> (u64, EndpointId) {
        (self.let_in.load(Ordering::Relaxed), self.id)
    }

    /// Whether a drain has begun. It stays true.
    pub fn is_draining(&self) -> bool {
        self.word.is_draining()
    }

    /// Whether the endpoint neither drains nor is out of rotation. Only then may idle connections
    /// to it be kept.
    pub fn is_open(&self) -> bool {
        self.word.is_open()
    }

    /// Leases that are held now: exchanges, TCP connections and connects under way.
    pub fn leases(&self) -> u64 {
        self.word.leases()
    }

    /// The conditions that discovery reported last.
    pub fn conditions(&self) -> Conditions {
        let bits = self.conditions.load(Ordering::Relaxed);
        Conditions {
            ready: bits & 1 != 0,
            serving: bits & 2 != 0,
            terminating: bits & 4 != 0,
        }
    }

    /// Stores the conditions that discovery reports.
    pub fn set_conditions(&self, c: Conditions) {
        let bits = u8::from(c.ready) | u8::from(c.serving) << 1 | u8::from(c.terminating) << 2;
        self.conditions.store(bits, Ordering::Relaxed);
    }

    /// Whether a connect has failed and no connect has succeeded since (contract 1.8).
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Ejects the endpoint because a connect of the data plane failed. No pick returns it until one
    /// connect has succeeded: a probe of the control side, or a connect of a worker.
    pub fn eject(self: &Arc<Self>) {
        if !self.ejected.swap(true, Ordering::AcqRel) {
            // The receiver is gone only when the process ends.
            let _ = self.notices.send(Notice::Ejected(self.clone()));
        }
    }

    /// Ends an ejection because a connect succeeded.
    pub fn readmit(&self) {
        if self.is_ejected() {
            self.note_let_in(Instant::now());
            self.ejected.store(false, Ordering::Release);
        }
    }

    /// Notes that the Pod object is deleted. It cannot be undone. Returns whether this was news.
    pub fn set_pod_gone(&self) -> bool {
        !self.pod_gone.swap(true, Ordering::Relaxed)
    }

    /// Whether the Pod object is deleted.
    pub fn pod_gone(&self) -> bool {
        self.pod_gone.load(Ordering::Relaxed)
    }

    /// Notes whether a slice lists the endpoint.
    pub fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Ordering::Relaxed);
    }

    /// Whether discovery reports that the endpoint leaves: it drains or terminates, no slice lists
    /// it, or its Pod is deleted. The rollout explains a loss on such an endpoint, and the
    /// application does not (contract 3.7). A readiness that ends explains nothing: it also ends
    /// when a request has killed the process.
    pub fn is_announced(&self) -> bool {
        self.is_draining()
            || self.conditions().terminating
            || self.pod_gone()
            || self.removed.load(Ordering::Relaxed)
    }

    /// Whether the endpoint drains, is out of rotation, terminates or does not accept connections.
    pub fn is_leaving(&self) -> bool {
        !self.is_open() || self.is_ejected() || self.conditions().terminating
    }

    /// Whether this endpoint joined so recently, and so much later than `other`, that its low load
    /// says nothing yet.
    pub fn is_newer_than(&self, other: &Self, now_ms: u64) -> bool {
        let (mine, others) = (
            self.let_in.load(Ordering::Relaxed),
            other.let_in.load(Ordering::Relaxed),
        );
        now_ms.saturating_sub(mine) < WARM_UP_MS && mine.saturating_sub(others) >= LATER_MS
    }

    /// Counts a request that was lost here and goes to another endpoint.
    pub fn count_replay(&self, now: Instant) {
        self.tally.replayed.fetch_add(1, Ordering::Relaxed);
        self.tally
            .last_replay_ms
            .store(millis(now), Ordering::Relaxed);
    }

    /// Whether a replay was counted within the last second.
    pub fn replayed_lately(&self, now: Instant) -> bool {
        millis(now).saturating_sub(self.tally.last_replay_ms.load(Ordering::Relaxed)) < 1_000
    }

    /// Notes when something was last dispatched here, for the deletion lag.
    pub fn note_dispatch(&self, now_ms: u64) {
        self.tally
            .last_dispatch_ms
            .store(now_ms + 1, Ordering::Relaxed);
    }

    /// Whether anything was ever dispatched here.
    pub fn was_used(&self) -> bool {
        self.leases() > 0 || self.tally.last_dispatch_ms.load(Ordering::Relaxed) > 0
    }

    /// The moving average of this endpoint's response times.
    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    /// Cancelled at the drain deadline. Each worker that uses the endpoint holds a child token.
    pub fn force(&self) -> &CancellationToken {
        self.force.get_or_init(CancellationToken::new)
    }

    /// When what is still in flight is cut; `None` while no drain has set a deadline.
    pub fn drain_deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the drain deadline or shortens it, and ignores a later one. Returns whether the
    /// deadline changed.
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
    /// The endpoint that this lease is for.
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

/// A new endpoint wins no pick by its low load for this long, in milliseconds.
const WARM_UP_MS: u64 = 5_000;
/// Endpoints that joined within this many milliseconds of each other are compared by load as usual.
const LATER_MS: u64 = 250;

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
        assert!(
            endpoint.enter().is_none(),
            "a new endpoint is out of rotation"
        );
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
    fn an_ejection_is_reported_once_until_it_ends() {
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

    /// 32 bits of milliseconds last for 49.7 days.
    #[test]
    fn join_and_replay_stamps_are_compared_across_49_days() {
        let wrap = Duration::from_millis(1 << 32);
        let (old, new) = (endpoint().0, endpoint().0);
        let begun = Instant::now();
        let (before, after) = (begun + wrap - WARM, begun + wrap + WARM);
        old.note_let_in(before);
        new.note_let_in(after);
        assert!(
            new.joined() > old.joined(),
            "a replay prefers the later one"
        );
        assert!(new.is_newer_than(&old, millis(after)));
        assert!(!old.is_newer_than(&new, millis(after)));
        // No relation of two joins changes when the clock passes the wrap.
        new.note_let_in(begun + Duration::from_secs(1));
        assert!(!new.is_newer_than(&old, millis(begun + wrap + Duration::from_secs(2))));
        old.count_replay(before);
        assert!(old.replayed_lately(before + Duration::from_millis(999)));
        for later in [after, begun + wrap + wrap, begun + 2 * wrap] {
            assert!(!old.replayed_lately(later));
        }
        old.count_replay(begun);
        assert!(
            !old.replayed_lately(begun + wrap),
            "a whole wrap is no moment"
        );
        old.note_dispatch(millis(after));
        let stamp = old.tally.last_dispatch_ms.load(Ordering::Relaxed);
        assert_eq!(stamp, millis(after) + 1);
    }

    const WARM: Duration = Duration::from_secs(1);

    #[test]
    fn a_drain_deadline_only_shortens() {
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

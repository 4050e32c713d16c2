#![allow(clippy::unwrap_used)] // A failed `unwrap` is a failed model.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.
//! A proof of the lease (contract 1.1). Loom runs every interleaving, and every stale read that the
//! memory model allows, of the code of `src/contract/lease.rs`. That file is compiled here against
//! loom's atomics. To show that the models can find a mistake, each likely mistake is a mutant
//! below, and each mutant must fail.

/// In the library this module holds std's atomics.
mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
}
#[path = "../src/contract/lease.rs"]
mod lease;

// This is std's, not loom's: loom's aborts the process at drop when a model panics, and mutants
// panic.
use std::sync::Arc;

use lease::{Drained, Word};
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::thread;

/// The lease, or a mutant of it.
trait Lease: Send + Sync + 'static {
    fn open() -> Self;
    fn enter(&self) -> bool;
    fn leave(&self) -> Drained;
    fn begin_drain(&self) -> Drained;
}

impl Lease for Word {
    fn open() -> Self {
        let word = Self::new_out();
        word.set_out(false);
        word
    }

    fn enter(&self) -> bool {
        Word::enter(self)
    }

    fn leave(&self) -> Drained {
        Word::leave(self)
    }

    fn begin_drain(&self) -> Drained {
        Word::begin_drain(self)
    }
}

/// An endpoint, with the work that is done on it. All fields but `word` use relaxed order, so that
/// only the lease's own orderings can make a read safe.
struct Endpoint<L> {
    word: L,
    /// For each worker: a request is in flight.
    in_use: [AtomicBool; 2],
    reports: AtomicUsize,
    begun: AtomicBool,
}

impl<L: Lease> Endpoint<L> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: L::open(),
            in_use: [AtomicBool::new(false), AtomicBool::new(false)],
            reports: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
        })
    }

    /// One dispatch, if the lease is granted.
    fn dispatch(&self, worker: usize) -> bool {
        let begun = self.begun.load(Ordering::Acquire);
        if !self.word.enter() {
            return false;
        }
        assert!(!begun, "a lease was granted after begin_drain had returned");
        self.work(worker);
        true
    }

    /// The work under a lease that is already held, and the end of the lease.
    fn work(&self, worker: usize) {
        self.in_use[worker].store(true, Ordering::Relaxed);
        assert_eq!(
            self.reports.load(Ordering::Acquire),
            0,
            "drained was reported to a holder of a lease"
        );
        self.in_use[worker].store(false, Ordering::Relaxed);
        let drained = self.word.leave();
        self.report(drained);
    }

    fn drain(&self) {
        let drained = self.word.begin_drain();
        self.report(drained);
        self.begun.store(true, Ordering::Release);
        assert!(
            !self.word.enter(),
            "a lease was granted after begin_drain had returned"
        );
    }

    fn report(&self, drained: Drained) {
        if drained == Drained::Report {
            let before = self.reports.fetch_add(1, Ordering::AcqRel);
            assert_eq!(before, 0, "drained was reported twice");
            for in_use in &self.in_use {
                assert!(
                    !in_use.load(Ordering::Relaxed),
                    "drained was reported while a request was in flight"
                );
            }
        }
    }

    fn assert_drained_once(&self) {
        assert_eq!(
            self.reports.load(Ordering::Acquire),
            1,
            "drained was not reported once"
        );
        assert!(!self.word.enter(), "a drained endpoint granted a lease");
    }
}

/// Runs every execution with up to `preemptions` preemptions (switches away from a thread that
/// could continue). Known bugs of this kind need two. Without a bound, the largest of these models
/// takes minutes.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

fn workers_against_a_drainer<L: Lease>() {
    model(3, || {
        let endpoint = Endpoint::<L>::new();
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let endpoint = endpoint.clone();
                thread::spawn(move || endpoint.dispatch(worker))
            })
            .collect();
        endpoint.drain();
        for worker in workers {
            worker.join().unwrap();
        }
        endpoint.assert_drained_once();
    });
}

fn last_leave_against_a_drainer<L: Lease>() {
    model(3, || {
        let endpoint = Endpoint::<L>::new();
        assert!(
            endpoint.word.enter() && endpoint.word.enter(),
            "an open endpoint refused"
        );
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let endpoint = endpoint.clone();
                thread::spawn(move || endpoint.work(worker))
            })
            .collect();
        endpoint.drain();
        for worker in workers {
            worker.join().unwrap();
        }
        endpoint.assert_drained_once();
    });
}

#[test]
fn no_lease_after_begin_drain_and_drained_once_after_the_last_one() {
    workers_against_a_drainer::<Word>();
}

#[test]
fn the_last_leave_or_the_drainer_reports_never_both() {
    last_leave_against_a_drainer::<Word>();
}

#[test]
fn two_drainers_report_once() {
    model(3, || {
        let endpoint = Endpoint::<Word>::new();
        let [worker, drainer] = [0, 1].map(|n| {
            let endpoint = endpoint.clone();
            thread::spawn(move || {
                if n == 0 {
                    _ = endpoint.dispatch(0)
                } else {
                    endpoint.drain()
                }
            })
        });
        endpoint.drain();
        worker.join().unwrap();
        drainer.join().unwrap();
        endpoint.assert_drained_once();
    });
}

/// A connection of another process is adopted while the endpoint drains: it is a lease like any other, or
/// none, and drained is reported once, after its end.
#[test]
fn an_adopted_lease_delays_the_report_or_is_refused() {
    model(3, || {
        let endpoint = Endpoint::<Word>::new();
        let [worker, adopter] = [0, 1].map(|n| {
            let endpoint = endpoint.clone();
            thread::spawn(move || match n {
                0 => _ = endpoint.dispatch(0),
                _ if endpoint.word.adopt() => endpoint.work(1),
                _ => assert!(endpoint.word.is_draining(), "an open endpoint refused"),
            })
        });
        endpoint.drain();
        worker.join().unwrap();
        adopter.join().unwrap();
        endpoint.assert_drained_once();
        assert!(!endpoint.word.adopt(), "a drained endpoint was adopted");
    });
}

/// OUT is set and cleared with readiness while another thread drains the endpoint. Neither bit is
/// lost, and no lease is lost.
#[test]
fn out_and_back_in_never_undoes_a_drain() {
    model(3, || {
        let endpoint = Endpoint::<Word>::new();
        let [worker, drainer] = [0, 1].map(|n| {
            let endpoint = endpoint.clone();
            thread::spawn(move || {
                if n == 0 {
                    _ = endpoint.dispatch(0)
                } else {
                    endpoint.drain()
                }
            })
        });
        endpoint.word.set_out(true);
        endpoint.word.set_out(false);
        worker.join().unwrap();
        drainer.join().unwrap();
        assert!(
            endpoint.word.is_draining() && !endpoint.word.is_open(),
            "a drain was undone"
        );
        endpoint.assert_drained_once();
    });
}

/// After `set_out(true)` has returned, no lease is granted. After `set_out(false)` has returned,
/// every lease is granted.
#[test]
fn out_is_in_force_when_set_and_gone_when_unset() {
    model(3, || {
        let word = Arc::new(Word::open());
        let is_out = Arc::new(AtomicBool::new(false));
        let worker = {
            let (word, is_out) = (word.clone(), is_out.clone());
            thread::spawn(move || {
                let published = is_out.load(Ordering::Acquire);
                let granted = word.enter();
                assert!(
                    !(published && granted),
                    "an endpoint that is out granted a lease"
                );
                if granted {
                    assert_eq!(
                        word.leave(),
                        Drained::No,
                        "drained was reported for an endpoint that does not drain"
                    );
                }
            })
        };
        word.set_out(true);
        is_out.store(true, Ordering::Release);
        assert!(!word.enter(), "an endpoint that is out granted a lease");
        worker.join().unwrap();
        assert_eq!(word.leases(), 0, "a lease was lost");
        let worker = {
            let (word, is_out) = (word.clone(), is_out.clone());
            thread::spawn(move || {
                let published = !is_out.load(Ordering::Acquire);
                let granted = word.enter();
                assert!(
                    granted || !published,
                    "an endpoint that is back in refused a lease"
                );
            })
        };
        word.set_out(false);
        is_out.store(false, Ordering::Release);
        assert!(word.enter(), "an endpoint that is back in refused a lease");
        worker.join().unwrap();
    });
}

/// The order in which a relist takes effect.
#[derive(Clone, Copy)]
enum Order {
    /// The snapshot first, then the drain of the leaving endpoint (contract 1.2).
    PublishThenDrain,
    DrainThenPublish,
    /// No drain: the snapshot alone is trusted.
    PublishOnly,
}

/// Two workers dispatch by the published snapshot while the control thread replaces an endpoint by
/// its successor. The snapshot is an index here. `ArcSwap` publishes with a release store, as this
/// does.
fn workers_against_a_relist(order: Order) {
    model(2, move || {
        let endpoints = Arc::new([Endpoint::<Word>::new(), Endpoint::<Word>::new()]);
        endpoints[1].word.set_out(true);
        let snapshot = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let (endpoints, snapshot) = (endpoints.clone(), snapshot.clone());
                thread::spawn(move || {
                    let seen = snapshot.load(Ordering::Acquire);
                    if endpoints[seen].dispatch(worker) {
                        return;
                    }
                    assert_eq!(seen, 0, "the endpoint of the new snapshot refused a lease");
                    let again = snapshot.load(Ordering::Acquire);
                    assert!(
                        endpoints[again].dispatch(worker),
                        "there was no endpoint at all"
                    );
                })
            })
            .collect();
        endpoints[1].word.set_out(false);
        match order {
            Order::PublishThenDrain => {
                snapshot.store(1, Ordering::Release);
                endpoints[0].drain();
            }
            Order::DrainThenPublish => {
                endpoints[0].drain();
                snapshot.store(1, Ordering::Release);
            }
            Order::PublishOnly => {
                snapshot.store(1, Ordering::Release);
                // The control thread considers the change done. A worker may still hold the old
                // snapshot.
                endpoints[0].begun.store(true, Ordering::Release);
            }
        }
        for worker in workers {
            worker.join().unwrap();
        }
        if !matches!(order, Order::PublishOnly) {
            endpoints[0].assert_drained_once();
        }
        assert!(endpoints[1].word.enter(), "the successor refused a lease");
    });
}

#[test]
fn a_relist_leaves_no_moment_without_an_endpoint_and_no_lease_on_the_leaver() {
    workers_against_a_relist(Order::PublishThenDrain);
}

#[test]
#[should_panic = "there was no endpoint at all"]
fn mutant_drains_before_it_publishes() {
    workers_against_a_relist(Order::DrainThenPublish);
}

#[test]
#[should_panic = "a lease was granted after begin_drain had returned"]
fn mutant_trusts_the_snapshot_alone() {
    workers_against_a_relist(Order::PublishOnly);
}

const DRAINING: u64 = 1 << 63;

fn left(before: u64) -> Drained {
    if before == DRAINING + 1 {
        Drained::Report
    } else {
        Drained::No
    }
}

fn begun(before: u64) -> Drained {
    if before == 0 {
        Drained::Report
    } else {
        Drained::No
    }
}

/// Mutant: counts itself in first, and out again if the drain had begun.
struct BacksOut(AtomicU64);

impl Lease for BacksOut {
    fn open() -> Self {
        Self(AtomicU64::new(0))
    }

    fn enter(&self) -> bool {
        let refused = self.0.fetch_add(1, Ordering::AcqRel) & DRAINING != 0;
        if refused {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
        !refused
    }

    fn leave(&self) -> Drained {
        left(self.0.fetch_sub(1, Ordering::AcqRel))
    }

    fn begin_drain(&self) -> Drained {
        begun(self.0.fetch_or(DRAINING, Ordering::AcqRel))
    }
}

/// Mutant: the same, but the last one to back out reports.
struct BacksOutAndReports(BacksOut);

impl Lease for BacksOutAndReports {
    fn open() -> Self {
        Self(BacksOut::open())
    }

    fn enter(&self) -> bool {
        let refused = self.0.0.fetch_add(1, Ordering::AcqRel) & DRAINING != 0;
        if refused && self.leave() == Drained::Report {
            panic!("drained was reported by a thread that never had a lease");
        }
        !refused
    }

    fn leave(&self) -> Drained {
        self.0.leave()
    }

    fn begin_drain(&self) -> Drained {
        self.0.begin_drain()
    }
}

/// Mutant: looks first, then counts.
struct LooksThenCounts(BacksOut);

impl Lease for LooksThenCounts {
    fn open() -> Self {
        Self(BacksOut::open())
    }

    fn enter(&self) -> bool {
        let open = self.0.0.load(Ordering::Acquire) & DRAINING == 0;
        if open {
            self.0.0.fetch_add(1, Ordering::AcqRel);
        }
        open
    }

    fn leave(&self) -> Drained {
        self.0.leave()
    }

    fn begin_drain(&self) -> Drained {
        self.0.begin_drain()
    }
}

/// The correct word, with one part wrong.
struct Flawed<const PART: u8>(AtomicU64);

const DRAIN_BY_STORE: u8 = 0;
const LEAVE_RELAXED: u8 = 1;

impl<const PART: u8> Lease for Flawed<PART> {
    fn open() -> Self {
        Self(AtomicU64::new(0))
    }

    fn enter(&self) -> bool {
        let enter = |word| (word & DRAINING == 0).then_some(word + 1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter)
            .is_ok()
    }

    fn leave(&self) -> Drained {
        let ordering = if PART == LEAVE_RELAXED {
            Ordering::Relaxed
        } else {
            Ordering::AcqRel
        };
        left(self.0.fetch_sub(1, ordering))
    }

    fn begin_drain(&self) -> Drained {
        if PART == DRAIN_BY_STORE {
            let before = self.0.load(Ordering::Acquire);
            self.0.store(before | DRAINING, Ordering::Release);
            return begun(before);
        }
        begun(self.0.fetch_or(DRAINING, Ordering::AcqRel))
    }
}

#[test]
#[should_panic = "drained was"]
fn mutant_backs_out() {
    workers_against_a_drainer::<BacksOut>();
}

#[test]
#[should_panic = "drained was reported"]
fn mutant_backs_out_and_reports() {
    workers_against_a_drainer::<BacksOutAndReports>();
}

#[test]
#[should_panic = "drained was reported twice"]
fn mutant_looks_then_counts() {
    workers_against_a_drainer::<LooksThenCounts>();
}

#[test]
#[should_panic = "a lease was granted after begin_drain had returned"]
fn mutant_drains_by_load_and_store() {
    workers_against_a_drainer::<Flawed<DRAIN_BY_STORE>>();
}

#[test]
#[should_panic = "drained was reported while a request was in flight"]
fn mutant_leaves_without_release() {
    last_leave_against_a_drainer::<Flawed<LEAVE_RELAXED>>();
}

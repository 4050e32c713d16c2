//! The pods that the gate holds, and the receipts of the last ones: how long, and by whom.
//!
//! Invariant: a hold that began is running or finished, and it finishes once, also if its caller hangs
//! up.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::contract::endpoint::Endpoint;
use crate::contract::name::ObjectName;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every instance has let go of the pod, and nothing was in flight.
    Clear,
    /// Half of the grace that was left is over.
    Grace,
    /// The pod is not deleted, so only its container is restarted. It was not waited for longer.
    Restart,
    /// The caller went before the answer.
    Gone,
    /// No pod of this node has the address.
    Unknown,
    /// Too many calls at once: this one was not held.
    Full,
    /// The control loop did not answer.
    Lost,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 7] = [
        Self::Clear,
        Self::Grace,
        Self::Restart,
        Self::Gone,
        Self::Unknown,
        Self::Full,
        Self::Lost,
    ];

    /// The word in metric labels, log fields and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Grace => "grace",
            Self::Restart => "restart",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
            Self::Full => "full",
            Self::Lost => "lost",
        }
    }
}

/// Who still has a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The address of its gate; `None`: this instance.
    pub peer: Option<SocketAddr>,
    /// What it says; `None`: it does not answer.
    pub has: Option<Has>,
}

/// What an instance has of a pod. Instances tell it each other in this form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Has {
    /// It may still dispatch to the pod: nothing else serves.
    pub open: bool,
    /// Exchanges and connections in flight.
    pub in_flight: u64,
}

impl Has {
    /// What this instance has of the pod with these endpoints.
    pub fn of<'a>(endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) -> Self {
        endpoints.fold(Self::default(), |has, endpoint| Self {
            open: has.open || endpoint.is_open(),
            in_flight: has.in_flight + endpoint.leases(),
        })
    }

    /// Whether nothing is left.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// A pod that is or was held.
#[derive(Debug, Clone)]
pub struct Hold {
    /// The pod.
    pub pod: ObjectName,
    /// When its call arrived.
    pub started_at: SystemTime,
    /// How long it was held, up to now.
    pub held: Duration,
    /// How it ended; `None`: it is held now.
    pub outcome: Option<Outcome>,
    /// Who had it last, and who did not answer.
    pub holders: Vec<Holder>,
}

/// Running holds, and the last [`KEPT`] finished ones.
#[derive(Default)]
pub struct Log(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    next: u64,
    running: BTreeMap<u64, (Instant, Arc<Hold>)>,
    finished: VecDeque<Arc<Hold>>,
}

/// A hold that runs. Dropped without [`Running::end`], its caller has hung up.
pub struct Running {
    log: Arc<Log>,
    id: u64,
    outcome: Outcome,
    /// The holders as they were noted last.
    noted: Vec<Holder>,
}

/// How many finished holds the log keeps.
pub const KEPT: usize = 1_000;

impl Log {
    /// Notes that a pod is held from now on.
    pub fn begin(self: &Arc<Self>, pod: ObjectName) -> Running {
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        let hold = Hold {
            pod,
            started_at: SystemTime::now(),
            held: Duration::ZERO,
            outcome: None,
            holders: Vec::new(),
        };
        inner.running.insert(id, (Instant::now(), Arc::new(hold)));
        Running {
            log: self.clone(),
            id,
            outcome: Outcome::Gone,
            noted: Vec::new(),
        }
    }

    /// The holds that run, then the finished ones, newest first.
    pub fn holds(&self) -> Vec<Hold> {
        // The gate waits for this lock, so the holds are copied without it.
        let (running, finished): (Vec<_>, Vec<_>) = {
            let inner = self.lock();
            let finished = inner.finished.iter().rev().cloned();
            (
                inner.running.values().cloned().collect(),
                finished.collect(),
            )
        };
        let running = running.into_iter().map(|(began, hold)| Hold {
            held: began.elapsed(),
            ..Hold::clone(&hold)
        });
        let finished = finished.iter().map(|hold| Hold::clone(hold));
        running.chain(finished).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Notes who has the pod now.
    pub fn note(&mut self, holders: Vec<Holder>) {
        if holders == self.noted {
            return;
        }
        self.noted.clone_from(&holders);
        if let Some((_, hold)) = self.log.lock().running.get_mut(&self.id) {
            Arc::make_mut(hold).holders = holders;
        }
    }

    /// Ends the hold.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut inner = self.log.lock();
        let Some((began, mut held)) = inner.running.remove(&self.id) else {
            return;
        };
        let hold = Arc::make_mut(&mut held);
        (hold.held, hold.outcome) = (began.elapsed(), Some(self.outcome));
        if inner.finished.len() == KEPT {
            inner.finished.pop_front();
        }
        inner.finished.push_back(held.clone());
        drop(inner);
        tracing::info!(
            pod = %held.pod,
            held_ms = u64::try_from(held.held.as_millis()).unwrap_or(u64::MAX),
            outcome = self.outcome.as_str(),
            by = held.by_whom(),
            "the gate lets a pod stop"
        );
    }
}

impl Hold {
    /// Who had the pod last, in words.
    pub fn by_whom(&self) -> String {
        let left = self
            .holders
            .iter()
            .filter(|it| it.has.is_none_or(|has| !has.is_nothing()));
        let words = left.map(Holder::words);
        words.collect::<Vec<_>>().join(", ")
    }
}

impl Holder {
    /// Who it is, and what it has.
    pub fn words(&self) -> String {
        let who = match self.peer {
            None => "this instance".to_owned(),
            Some(peer) => peer.to_string(),
        };
        match self.has {
            None => format!("{who} (does not answer)"),
            Some(Has {
                open: true,
                in_flight,
            }) => {
                format!("{who} (nothing else serves, {in_flight} in flight)")
            }
            Some(Has { in_flight, .. }) => format!("{who} ({in_flight} in flight)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_ends_once_and_its_last_holder_stays_in_the_receipt() {
        let log = Arc::<Log>::default();
        let mut hold = log.begin(ObjectName::new("web", "shop-1"));
        let has = Has {
            open: false,
            in_flight: 2,
        };
        hold.note(vec![
            Holder {
                peer: None,
                has: Some(has),
            },
            Holder {
                peer: Some("192.0.2.2:9902".parse().unwrap()),
                has: Some(Has::default()),
            },
        ]);
        assert_eq!((log.holds().len(), log.holds()[0].outcome), (1, None));
        hold.end(Outcome::Grace);
        let holds = log.holds();
        assert_eq!((holds.len(), holds[0].outcome), (1, Some(Outcome::Grace)));
        assert_eq!(holds[0].by_whom(), "this instance (2 in flight)");
        drop(log.begin(ObjectName::new("web", "shop-2")));
        assert_eq!(
            log.holds()[0].outcome,
            Some(Outcome::Gone),
            "nobody ended it"
        );
        for _ in 0..KEPT + 1 {
            log.begin(ObjectName::new("web", "shop-3"))
                .end(Outcome::Clear);
        }
        assert_eq!(log.holds().len(), KEPT);
    }
}

//! One call of the kubelet: how long its pod is held.
//!
//! Invariant: a hold ends, at the latest when half of the pod's remaining grace is over. What fails on
//! the way shortens the hold and never lengthens it.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::discovery::confirm::Confirm;
use crate::gate::ask::{Asker, Known, Who};
use crate::gate::link::PATIENCE;
use crate::gate::log::{Holder, Log, Outcome, Running};
use crate::gate::peers::{Peers, Round};
use crate::observe::metrics::Metrics;

/// What a hold needs.
pub(super) struct Gate {
    pub(super) asker: Asker,
    pub(super) peers: Rc<Peers>,
    /// Who can say whether a pod is deleted; `None`: nobody but the source.
    pub(super) confirm: Option<mpsc::Sender<Confirm>>,
    pub(super) log: Arc<Log>,
    pub(super) metrics: Arc<Metrics>,
    /// The grace of a pod whose deletion nobody can confirm.
    pub(super) grace: Duration,
    /// Calls that are held now.
    pub(super) held: Cell<u32>,
}

/// What is known of the reason for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The pod is deleted. With its deadline, if that is known.
    Deleted(Option<Instant>),
    /// It is not deleted: its container is restarted.
    Restart,
    /// Nobody can say.
    Unknown,
}

/// A place among the calls that are held.
struct Place(Rc<Gate>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
    }
}

/// Holds the pod of this node at this address. Cancellation-safe: a caller that hangs up ends the hold,
/// and the pod stays out of rotation.
pub(super) async fn hold(gate: Rc<Gate>, address: IpAddr) -> Outcome {
    if gate.held.get() >= MOST_HELD {
        return Outcome::Full;
    }
    gate.held.set(gate.held.get() + 1);
    let _place = Place(gate.clone());
    let began = Instant::now();
    let known = match look(&gate, address).await {
        Some(Some(known)) => known,
        Some(None) => return Outcome::Unknown,
        None => return Outcome::Lost,
    };
    let mut running = gate.log.begin(known.name.clone());
    let outcome = wait(&gate, address, known, began, &mut running).await;
    running.end(outcome);
    outcome
}

/// Takes the pod out of rotation, until it is ready again or certainly leaves.
async fn look(gate: &Gate, address: IpAddr) -> Option<Option<Known>> {
    let until = Instant::now() + gate.grace;
    gate.asker.ask_one(Who::Address(address), until).await
}

async fn wait(
    gate: &Rc<Gate>,
    address: IpAddr,
    mut known: Known,
    began: Instant,
    running: &mut Running,
) -> Outcome {
    let round = gate.peers.ask(&known.uid);
    let mut reason = match known.leaves {
        true => Reason::Deleted(known.deadline),
        false => Reason::Unknown,
    };
    let mut confirmed = (!known.leaves).then(|| confirm(gate, &known)).flatten();
    let mut next_look = began + LOOK_AGAIN;
    loop {
        note(&known, &round, running);
        let now = Instant::now();
        let has_heard = round.is_answered() || now >= began + PATIENCE;
        if has_heard && round.is_clear() && known.has().is_nothing() {
            return Outcome::Clear;
        }
        let (bound, outcome) = reason.bound(began, gate.grace);
        // An instance that has not answered yet is waited for in any case.
        if now >= bound && has_heard {
            return outcome;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK.max(EACH * gate.held.get())) => {}
            () = round.changed() => {}
            leaves = async { confirmed.as_mut()?.await.ok() }, if confirmed.is_some() => {
                confirmed = None;
                reason = match leaves {
                    Some(true) => Reason::Deleted(None),
                    Some(false) => Reason::Restart,
                    None => Reason::Unknown,
                };
                next_look = now;
            }
        }
        if Instant::now() < next_look {
            continue;
        }
        next_look = Instant::now() + LOOK_AGAIN;
        // Its endpoints may be others than before, and a short suspension goes on. If nobody answers,
        // or the pod is another one, what was known stands.
        if let Some(Some(now)) = look(gate, address).await
            && now.uid == known.uid
        {
            if now.leaves {
                reason = Reason::Deleted(now.deadline);
            }
            known = now;
        }
    }
}

impl Reason {
    /// When a hold that began at `began` ends at the latest, and how.
    fn bound(self, began: Instant, grace: Duration) -> (Instant, Outcome) {
        match self {
            Self::Deleted(Some(deadline)) => {
                // The deadline of a drain is a little after the end of the grace (contract 4).
                let left = deadline.saturating_duration_since(began + MARGIN);
                (began + left / 2, Outcome::Grace)
            }
            Self::Deleted(None) | Self::Unknown => (began + grace / 2, Outcome::Grace),
            Self::Restart => (began + RESTART, Outcome::Restart),
        }
    }
}

/// Asks the API server whether the pod is deleted. The answer comes, or the sender is dropped.
fn confirm(gate: &Gate, known: &Known) -> Option<oneshot::Receiver<bool>> {
    let (answer, answered) = oneshot::channel();
    let question = Confirm {
        pod: known.name.clone(),
        uid: known.uid.clone(),
        answer,
    };
    // With a full queue, the source will say it.
    gate.confirm.as_ref()?.try_send(question).ok()?;
    Some(answered)
}

fn note(known: &Known, round: &Round, running: &mut Running) {
    let has = known.has();
    let own = (!has.is_nothing()).then_some(Holder {
        peer: None,
        has: Some(has),
    });
    let holders: Vec<_> = own.into_iter().chain(round.holders()).collect();
    // The last ones that had something stay in the receipt.
    if !holders.is_empty() {
        running.note(holders);
    }
}

/// Calls that are held at the same time. A node runs a few hundred pods.
const MOST_HELD: u32 = 1_024;
/// How often it is looked whether something is in flight.
const LOOK: Duration = Duration::from_millis(20);
/// With many calls each is looked at less often, so that all together cost little.
const EACH: Duration = Duration::from_micros(250);
/// How often the control loop is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a container that is restarted is held at most: it may have failed.
const RESTART: Duration = Duration::from_secs(2);
/// How much later than the end of its grace a pod's drain deadline is.
const MARGIN: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_remaining_grace_bounds_a_hold() {
        let (now, s) = (Instant::now(), Duration::from_secs);
        let bound = |reason: Reason| reason.bound(now, s(30)).0 - now;
        assert_eq!(bound(Reason::Deleted(Some(now + s(63)))), s(30));
        assert_eq!(bound(Reason::Deleted(Some(now + s(1)))), s(0));
        assert_eq!(bound(Reason::Deleted(None)), s(15));
        assert_eq!(bound(Reason::Unknown), s(15));
        assert_eq!(bound(Reason::Restart), s(2));
    }
}

//! One instance of a cluster is elected, and writes for all: it holds a Lease
//! (<https://kubernetes.io/docs/concepts/architecture/leases/>).
//!
//! Invariant: this process counts as elected for less time after it began its last renewal than any
//! other waits before it takes the Lease. Clocks are not compared: another's Lease has expired when it
//! has not changed for its whole duration, as this process saw it.
//!
//! The rules are those of the Kubernetes components (client-go, `tools/leaderelection`), so their
//! tools read the Lease. One differs: who waits looks less often, and asks the API server's cache,
//! because each node of a large cluster may wait.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, GetParams, ObjectMeta, PostParams};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::api::said;
use crate::cluster::instance::instance;
use crate::contract::name::ObjectName;

/// Whether this process is elected. The default is that of a process that does not stand for election.
/// Drop resigns.
#[derive(Debug)]
pub struct Election {
    elected: watch::Receiver<bool>,
    resigned: DropGuard,
}

/// The other end of an [`Election`], for [`run`].
pub struct Candidacy {
    elected: watch::Sender<bool>,
    resigned: CancellationToken,
}

impl Election {
    /// An election and its other end.
    pub fn begin() -> (Self, Candidacy) {
        let (sender, elected) = watch::channel(false);
        let resigned = CancellationToken::new();
        let election = Self {
            elected,
            resigned: resigned.clone().drop_guard(),
        };
        let candidacy = Candidacy {
            elected: sender,
            resigned,
        };
        (election, candidacy)
    }

    /// Whether this process is elected now.
    pub fn is_elected(&self) -> bool {
        *self.elected.borrow()
    }

    /// Follows whether this process is elected.
    pub fn elected(&self) -> watch::Receiver<bool> {
        self.elected.clone()
    }

    /// Lets another be elected, and never stands again.
    pub fn resign(&self) {
        self.resigned.token().cancel();
    }
}

impl Default for Election {
    fn default() -> Self {
        Self::begin().0
    }
}

/// Stands for election until it has resigned. Then a Lease that is held is given back, so that another
/// is elected at once. `errors` counts failures by kind: `lease`. Cancellation keeps the Lease until it
/// expires.
pub async fn run(
    client: Client,
    lease: ObjectName,
    candidacy: Candidacy,
    errors: impl Fn(&'static str),
) {
    let Candidacy {
        elected,
        resigned: stop,
    } = candidacy;
    let mut candidate = Candidate::new(format!("{}_{:016x}", instance(), fastrand::u64(..)));
    let api: Api<Lease> = Api::namespaced(client, &lease.namespace);
    let mut failed = false;
    loop {
        let began = Instant::now();
        // An answer after that would come too late.
        let left = candidate.leads_until().filter(|until| *until > began);
        let bound = left.map_or(REQUEST, |until| REQUEST.min(until - began));
        let turn = tokio::time::timeout(bound, candidate.turn(&api, &lease.name));
        let turn = tokio::select! {
            turn = turn => turn,
            () = stop.cancelled() => break,
        };
        let error = match turn {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(match error {
                Error::Api(status) if status.code == 403 => format!(
                    "{}; grant get, create and update of leases in namespace {} as \
                     deploy/kustomize/ingress does",
                    status.message, lease.namespace
                ),
                other => said(&other),
            }),
            Err(_) => Some("the API server does not answer".to_owned()),
        };
        if let Some(error) = &error {
            errors("lease");
            if !std::mem::replace(&mut failed, true) {
                tracing::warn!(%lease, error, "cannot take part in the election of the one that writes statuses");
            }
        } else {
            failed = false;
        }
        let now = Instant::now();
        let leads = candidate.leads_until().is_some_and(|until| until > now);
        if elected.send_if_modified(|before| std::mem::replace(before, leads) != leads) {
            match leads {
                true => tracing::info!(%lease, "elected: this instance writes statuses"),
                false => {
                    tracing::warn!(%lease, "no longer elected: the Lease could not be renewed")
                }
            }
        }
        let pause = match (leads, &error) {
            (true, _) => RETRY,
            (false, None) => RETRY.mul_f64(1.0 + 3.0 * fastrand::f64()),
            (false, Some(_)) => RETRY.mul_f64(1.0 + 1.2 * fastrand::f64()),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
    }
    elected.send_replace(false);
    if let Some(lease) = candidate.released() {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let parameters = PostParams::default();
        let released = api.replace(&name, &parameters, &lease);
        let released = tokio::time::timeout(RELEASE, released).await;
        if !matches!(released, Ok(Ok(_))) {
            tracing::info!("the Lease is not given back; it expires");
        }
    }
}

/// One that stands for election.
struct Candidate {
    identity: String,
    /// The Lease as it was seen last, and when it was first seen so.
    seen: Option<(Lease, Instant)>,
    /// When the renewal began that was answered last, while the Lease is ours.
    renewed: Option<Instant>,
}

impl Candidate {
    fn new(identity: String) -> Self {
        Self {
            identity,
            seen: None,
            renewed: None,
        }
    }

    /// Until when the Lease is ours.
    fn leads_until(&self) -> Option<Instant> {
        Some(self.renewed? + RENEW)
    }

    /// Renews the Lease, or looks whether it can be taken, and takes it.
    async fn turn(&mut self, api: &Api<Lease>, name: &str) -> Result<(), Error> {
        let began = Instant::now();
        // Who holds it writes what it wrote last. Only where that is refused, it looks again.
        let is_ours = self.leads_until().is_some_and(|until| until > began);
        if !is_ours {
            self.renewed = None;
            match api.get_with(name, &GetParams::any()).await {
                Ok(found) => self.see(found, Instant::now()),
                Err(Error::Api(status)) if status.code == 404 => self.seen = None,
                Err(error) => return Err(error),
            }
        }
        let Some(wanted) = self.claim(name, Instant::now(), Timestamp::now()) else {
            return Ok(());
        };
        let parameters = PostParams::default();
        let written = match &self.seen {
            None => api.create(&parameters, &wanted).await,
            Some(_) => api.replace(name, &parameters, &wanted).await,
        };
        match written {
            Ok(written) => {
                self.see(written, Instant::now());
                self.renewed = Some(began);
                Ok(())
            }
            // Another was faster. Or this process wrote it, and did not get the answer.
            Err(Error::Api(status)) if status.code == 409 => {
                let found = api.get(name).await?;
                let is_ours = holder(&found) == Some(&*self.identity);
                self.renewed = self.renewed.filter(|_| is_ours);
                self.see(found, Instant::now());
                Ok(())
            }
            // Somebody has deleted it.
            Err(Error::Api(status)) if status.code == 404 => {
                self.seen = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes in the Lease as it is.
    fn see(&mut self, found: Lease, now: Instant) {
        let at = match &self.seen {
            Some((seen, at)) if seen.spec == found.spec => *at,
            _ => now,
        };
        self.seen = Some((found, at));
    }

    /// The Lease as this process would hold it. `None`: it is another's.
    fn claim(&self, name: &str, now: Instant, time: Timestamp) -> Option<Lease> {
        let time = Some(MicroTime(time));
        let mut lease = match &self.seen {
            None => Lease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: None,
            },
            Some((lease, _)) => lease.clone(),
        };
        let before = lease.spec.take().unwrap_or_default();
        let is_ours = before.holder_identity.as_ref() == Some(&self.identity);
        let is_free = before.holder_identity.as_ref().is_none_or(String::is_empty);
        if let Some((_, at)) = &self.seen
            && !is_ours
            && !is_free
            && *at + seconds(before.lease_duration_seconds) > now
        {
            return None;
        }
        let transitions = before.lease_transitions.unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| is_ours).or(time.clone()),
            renew_time: time,
            lease_transitions: Some(match (is_ours, &self.seen) {
                (false, Some(_)) => transitions.saturating_add(1),
                _ => transitions,
            }),
            ..before
        });
        Some(lease)
    }

    /// The Lease as it is given back. `None`: it is not ours.
    fn released(&self) -> Option<Lease> {
        self.renewed?;
        let (mut lease, _) = self.seen.clone()?;
        let spec = lease.spec.as_mut()?;
        (spec.holder_identity.as_ref() == Some(&self.identity)).then_some(())?;
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        Some(lease)
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn seconds(number: Option<i32>) -> Duration {
    Duration::from_secs(number.unwrap_or(0).try_into().unwrap_or(0))
}

/// How long others wait before they take a Lease that has not changed.
const DURATION: Duration = Duration::from_secs(15);
/// How long after its last renewal this process counts as elected. A write that begins then ends within
/// [`REQUEST`], before another can be elected.
const RENEW: Duration = Duration::from_secs(10);
/// The pause between renewals, and the shortest one between looks.
const RETRY: Duration = Duration::from_secs(2);
/// The longest request, also of what the elected one writes.
pub(super) const REQUEST: Duration = Duration::from_secs(5);
/// The longest wait for the Lease to be given back.
const RELEASE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(identity: &str) -> Candidate {
        Candidate::new(identity.to_owned())
    }

    fn claim(of: &Candidate, now: Instant, time: i64) -> Option<Lease> {
        of.claim("ebbtide", now, Timestamp::from_second(time).unwrap())
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_of_another_is_taken_once_it_has_not_changed_for_its_duration() {
        let start = Instant::now();
        let (mut first, mut second) = (candidate("a"), candidate("b"));
        let held = claim(&first, start, 100).unwrap();
        assert_eq!(holder(&held), Some("a"));
        assert_eq!(held.spec.as_ref().unwrap().lease_transitions, Some(0));
        first.see(held.clone(), start);
        // The clock of the other is an hour ahead, or behind: only the change counts.
        second.see(held.clone(), after(start, 100));
        assert_eq!(claim(&second, after(start, 114), 3_700), None);
        second.see(held.clone(), after(start, 114));
        assert!(claim(&second, after(start, 115), -3_500).is_some());
        let renewed = claim(&first, after(start, 110), 110).unwrap();
        second.see(renewed.clone(), after(start, 115));
        assert_eq!(claim(&second, after(start, 129), 0), None);
        let taken = claim(&second, after(start, 130), 130).unwrap();
        let (spec, before) = (taken.spec.unwrap(), renewed.spec.unwrap());
        assert_eq!(spec.holder_identity.as_deref(), Some("b"));
        assert_eq!(spec.lease_transitions, Some(1));
        assert_eq!(spec.acquire_time, spec.renew_time);
        assert!(before.acquire_time < before.renew_time);
    }

    #[test]
    fn a_lease_that_is_given_back_is_free_at_once() {
        let start = Instant::now();
        let (mut first, mut second) = (candidate("a"), candidate("b"));
        first.see(claim(&first, start, 100).unwrap(), start);
        assert_eq!(first.released(), None, "the API server has not taken it");
        first.renewed = Some(start);
        let released = first.released().unwrap();
        second.see(released, start);
        assert_eq!(holder(&claim(&second, start, 0).unwrap()), Some("b"));
        first.see(claim(&second, start, 0).unwrap(), start);
        assert_eq!(first.released(), None, "it is the other's");
    }

    #[test]
    fn a_lease_without_a_duration_is_free() {
        let start = Instant::now();
        let mut first = candidate("a");
        let mut lease = claim(&candidate("b"), start, 0).unwrap();
        lease.spec.as_mut().unwrap().lease_duration_seconds = None;
        first.see(lease, start);
        assert!(claim(&first, start, 0).is_some());
    }

    /// Otherwise two would write.
    #[test]
    fn who_cannot_renew_stops_before_another_begins() {
        assert!(RENEW + REQUEST <= DURATION);
    }
}

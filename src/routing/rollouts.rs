//! Rollouts as the clients of a Service experience them: a burst of drains, and its receipt.
//!
//! A burst begins with a drain of the Service. It ends when nothing has drained for [`QUIET`] and
//! an endpoint serves again, or after an hour. Its cause does not matter: a rolling update, a
//! rollback, a scale-down. The counts are the Service's own counters at the end minus those at the
//! beginning. So they are what all clients met in that time, and not only what the drains caused.
//!
//! Invariant: a Service has at most one open burst. [`crate::routing::drains::Log`] keeps the
//! bursts and says when drains begin and end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::contract::counters::{Gauge, ServiceMetrics};
use crate::contract::name::{ObjectName, PortKey};
use crate::contract::policy::Transport;
use crate::contract::reason::{CloseReason, DropReason};

/// The receipt of a rollout: a burst of drains of one Service.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// The Service whose endpoints drained.
    pub service: ObjectName,
    /// When the first drain began, by the wall clock.
    pub started_at: SystemTime,
    /// `started_at` plus `took`.
    pub ended_at: SystemTime,
    /// From the first drain's beginning to the last one's end, or to when something served again.
    pub took: Duration,
    /// Pods whose endpoints drained. A pod counts once.
    pub pods_gone: u32,
    /// Pods that joined the rotation since [`LOOK_BACK`] before the first drain.
    pub pods_come: u32,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were lost with an endpoint and sent to another one.
    pub replayed: u64,
    /// Requests and connections that waited for an endpoint.
    pub held: u64,
    /// Exchanges and connections that were cut at a drain deadline.
    pub forced: u64,
    /// Client connections that are open at the end.
    pub connections_kept: u64,
    /// Client connections that ended because an endpoint reset them, at a drain deadline, or
    /// because no endpoint was usable.
    pub connections_lost: u64,
    /// Requests that Ebbtide had to fail: its own 502, 503 and 504, and responses that it cut.
    pub failures: u64,
    /// UDP sessions that are open at the end.
    pub sessions_kept: u64,
    /// UDP sessions that went on at another endpoint.
    pub sessions_moved: u64,
    /// Datagrams that an endpoint refused, and that were sent to another one.
    pub datagrams_refused: u64,
    /// Datagrams that were dropped because no endpoint was usable.
    pub datagrams_lost: u64,
    /// Routes that led to the Service at the end, for example `HTTPRoute web/shop`.
    pub routes: Vec<Arc<str>>,
}

impl Rollout {
    /// Whether a client was there to notice the rollout.
    pub fn had_traffic(&self) -> bool {
        let answered = self.requests + self.replayed + self.held + self.failures;
        let connections = self.connections_kept + self.connections_lost + self.forced;
        answered + connections > 0 || self.had_sessions()
    }

    fn had_sessions(&self) -> bool {
        let datagrams = self.datagrams_refused + self.datagrams_lost;
        self.sessions_kept + self.sessions_moved + datagrams > 0
    }

    /// The receipt as one line for people.
    pub fn words(&self) -> String {
        let Self {
            pods_gone,
            pods_come,
            requests,
            replayed,
            held,
            forced,
            ..
        } = self;
        let Self {
            connections_kept,
            connections_lost,
            failures,
            ..
        } = self;
        let took = humantime::format_duration(Duration::from_millis(self.took.as_millis() as u64));
        let sessions = match self.had_sessions() {
            true => format!(
                "; {} UDP sessions kept, {} moved, {} datagrams refused, {} lost",
                self.sessions_kept,
                self.sessions_moved,
                self.datagrams_refused,
                self.datagrams_lost
            ),
            false => String::new(),
        };
        format!(
            "{pods_gone} pods gone, {pods_come} come in {took}: {requests} requests, \
             {failures} failed, {replayed} replayed, {held} held, {forced} cut at their deadline; \
             {connections_kept} client connections kept, {connections_lost} lost{sessions}"
        )
    }

    /// Logs a rollout that is over, in one line.
    pub fn log(&self) {
        tracing::info!(
            service = %self.service,
            pods_gone = self.pods_gone,
            pods_come = self.pods_come,
            took_ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            requests = self.requests,
            failures = self.failures,
            replayed = self.replayed,
            held = self.held,
            forced = self.forced,
            connections_kept = self.connections_kept,
            connections_lost = self.connections_lost,
            sessions_kept = self.sessions_kept,
            sessions_moved = self.sessions_moved,
            datagrams_refused = self.datagrams_refused,
            datagrams_lost = self.datagrams_lost,
            routes = (!self.routes.is_empty()).then(|| self.routes.join(", ")),
            "rollout over"
        );
    }
}

/// The open bursts, at most one for each Service, and the last [`KEPT`] receipts.
#[derive(Default)]
pub struct Rollouts {
    open: BTreeMap<ObjectName, Open>,
    /// No burst is over before this. It is computed again only when it has passed, so that a drain
    /// costs nothing for the other bursts.
    due: Option<Instant>,
    finished: VecDeque<Rollout>,
}

/// A burst that is not over.
struct Open {
    started_at: SystemTime,
    started: Instant,
    /// When a drain last began or ended. [`Rollouts::close`] moves it on while nothing serves.
    last: Instant,
    /// Drains that run.
    running: usize,
    /// The pods that drained, by name and UID, or by address if the pod is not known. It is a set,
    /// because a pod drains once for each port.
    gone: BTreeSet<String>,
    /// Each port that had a drain, with its counters when its first drain began.
    before: BTreeMap<(u16, Transport), (Arc<ServiceMetrics>, Counts)>,
    /// The sum over the drains that ended.
    forced: u64,
}

/// The counters of one Service port at one time.
#[derive(Default, Clone, Copy)]
struct Counts {
    requests: u64,
    replayed: u64,
    held: u64,
    lost: u64,
    failures: u64,
    sessions_moved: u64,
    datagrams_refused: u64,
    datagrams_lost: u64,
}

impl Counts {
    fn of(metrics: &ServiceMetrics) -> Self {
        let lost = [
            CloseReason::UpstreamReset,
            CloseReason::DrainDeadline,
            CloseReason::NoEndpoint,
        ];
        Self {
            requests: metrics.requests.iter().map(|counter| counter.get()).sum(),
            replayed: metrics.replayed_so_far(),
            held: metrics.held_so_far(),
            lost: lost
                .iter()
                .map(|reason| metrics.closed_so_far(*reason))
                .sum(),
            failures: metrics.failures.get(),
            sessions_moved: metrics.udp_sessions_moved.get(),
            datagrams_refused: metrics.datagrams_moved.get(),
            datagrams_lost: [DropReason::NoEndpoint, DropReason::HeldFull]
                .map(|reason| metrics.dropped_so_far(reason))
                .iter()
                .sum(),
        }
    }
}

impl Rollouts {
    /// Notes that a drain began. `pod` identifies the pod within the Service. The first drain of a
    /// Service begins its burst.
    pub fn drain_began(
        &mut self,
        key: &PortKey,
        pod: String,
        metrics: &Arc<ServiceMetrics>,
        now: Instant,
    ) {
        let open = self
            .open
            .entry(key.service.clone())
            .or_insert_with(|| Open {
                started_at: SystemTime::now(),
                started: now,
                last: now,
                running: 0,
                gone: BTreeSet::new(),
                before: BTreeMap::new(),
                forced: 0,
            });
        open.last = now;
        open.running += 1;
        let due = open.due();
        open.gone.insert(pod);
        open.before
            .entry(key.id())
            .or_insert_with(|| (metrics.clone(), Counts::of(metrics)));
        self.due = self.due.into_iter().chain([due]).min();
    }

    /// Notes that a drain ended. `forced` is how many exchanges and connections it cut.
    pub fn drain_ended(&mut self, service: &ObjectName, forced: u32, now: Instant) {
        if let Some(open) = self.open.get_mut(service) {
            open.last = now;
            open.running = open.running.saturating_sub(1);
            open.forced += u64::from(forced);
            self.due = self.due.into_iter().chain([open.due()]).min();
        }
    }

    /// When to call [`Rollouts::close`] next; `None` while there is no burst.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends the bursts that are over at `now` and returns their receipts. `come` returns how many
    /// pods of a Service have joined since an instant, or `None` while no endpoint of it is usable.
    /// `routes` returns the routes that lead to a Service.
    pub fn close(
        &mut self,
        now: Instant,
        come: impl Fn(&ObjectName, Instant) -> Option<u32>,
        routes: impl Fn(&ObjectName) -> Vec<Arc<str>>,
    ) -> Vec<Rollout> {
        let mut closed = Vec::new();
        self.open.retain(|service, open| {
            if open.due() > now {
                return true;
            }
            let since = open.started.checked_sub(LOOK_BACK).unwrap_or(open.started);
            let come = come(service, since);
            if come.is_none() && now < (open.last + LONGEST).min(open.started + AT_MOST) {
                // Nothing serves yet, so the rollout is not over for the clients. Look again after
                // `RECHECK`.
                open.last = open
                    .last
                    .max(now.checked_sub(QUIET - RECHECK).unwrap_or(now));
                return true;
            }
            closed.push(Rollout {
                routes: routes(service),
                ..open.receipt(service, come.unwrap_or(0))
            });
            false
        });
        self.due = self.open.values().map(Open::due).min();
        for rollout in &closed {
            if self.finished.len() == KEPT {
                self.finished.pop_front();
            }
            self.finished.push_back(rollout.clone());
        }
        closed
    }

    /// The last receipts, newest first.
    pub fn finished(&self) -> Vec<Rollout> {
        self.finished.iter().rev().cloned().collect()
    }
}

impl Open {
    /// When the burst may be over.
    fn due(&self) -> Instant {
        let pause = if self.running == 0 { QUIET } else { LONGEST };
        (self.last + pause).min(self.started + AT_MOST)
    }

    /// The receipt of this burst, as the counters are now, without the routes.
    fn receipt(&self, service: &ObjectName, come: u32) -> Rollout {
        let sum = |part: fn(&Counts) -> u64| -> u64 {
            self.before
                .values()
                .map(|(metrics, before)| part(&Counts::of(metrics)).saturating_sub(part(before)))
                .sum()
        };
        let took = self.last.saturating_duration_since(self.started);
        let open = |gauge: fn(&ServiceMetrics) -> &Gauge| -> u64 {
            let gauges = self.before.values().map(|(metrics, _)| gauge(metrics));
            gauges.map(|it| it.get().max(0).cast_unsigned()).sum()
        };
        Rollout {
            service: service.clone(),
            started_at: self.started_at,
            ended_at: self.started_at + took,
            took,
            pods_gone: u32::try_from(self.gone.len()).unwrap_or(u32::MAX),
            pods_come: come,
            requests: sum(|counts| counts.requests),
            replayed: sum(|counts| counts.replayed),
            held: sum(|counts| counts.held),
            forced: self.forced,
            connections_kept: open(|metrics| &metrics.connections_active),
            connections_lost: sum(|counts| counts.lost),
            failures: sum(|counts| counts.failures),
            sessions_kept: open(|metrics| &metrics.udp_sessions),
            sessions_moved: sum(|counts| counts.sessions_moved),
            datagrams_refused: sum(|counts| counts.datagrams_refused),
            datagrams_lost: sum(|counts| counts.datagrams_lost),
            routes: Vec::new(),
        }
    }
}

/// The longest pause between two drains of one rollout. It is longer than a pod usually takes to
/// become ready.
pub const QUIET: Duration = Duration::from_secs(15);
/// A burst whose drains do not end gets its receipt after this long without another drain that
/// begins or ends.
const LONGEST: Duration = Duration::from_secs(600);
/// The longest burst. Without this bound, drains that never pause would make the set of remembered
/// pod names grow without end.
const AT_MOST: Duration = Duration::from_secs(3_600);
/// How soon a burst is examined again while nothing serves.
const RECHECK: Duration = Duration::from_secs(1);
/// Pods that joined this long before the first drain belong to the rollout, because in a surge the
/// first new pod joins before the first old pod leaves.
pub const LOOK_BACK: Duration = Duration::from_secs(10);
/// How many receipts are kept.
pub const KEPT: usize = 100;

#[cfg(test)]
mod tests {

    use super::*;

    use crate::contract::counters::Counter;
    use crate::observe::metrics::Metrics;

    fn key(port: u16) -> PortKey {
        ObjectName::new("web", "shop").port(port)
    }

    fn none(_: &ObjectName) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn shop() -> ObjectName {
        ObjectName::new("web", "shop")
    }

    #[test]
    fn a_burst_gets_one_receipt_of_what_its_clients_met() {
        let registry = Metrics::new().unwrap();
        let (web, tls) = (registry.service(&key(80)), registry.service(&key(443)));
        web.answered(200);
        let (mut rollouts, start) = (Rollouts::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        rollouts.drain_began(&key(80), "a".into(), &web, start);
        rollouts.drain_began(&key(443), "a".into(), &tls, start);
        web.answered(200);
        web.answered(502);
        web.failures.inc();
        tls.closed(CloseReason::UpstreamReset);
        tls.closed(CloseReason::ClientClosed);
        web.connections_active.set(8);
        assert_eq!(rollouts.due(), Some(start + LONGEST), "the drains run");
        rollouts.drain_ended(&shop(), 0, after(2));
        rollouts.drain_ended(&shop(), 1, after(2));
        rollouts.drain_began(&key(80), "b".into(), &web, after(10));
        rollouts.drain_ended(&shop(), 0, after(12));
        assert!(
            rollouts.close(after(26), |_, _| Some(2), none).is_empty(),
            "the pause is too short"
        );
        assert!(
            rollouts.close(after(27), |_, _| None, none).is_empty(),
            "nothing serves yet"
        );
        let come = |service: &ObjectName, since| {
            assert_eq!(
                (service, since),
                (
                    &key(80).service,
                    start.checked_sub(LOOK_BACK).unwrap_or(start)
                )
            );
            Some(2)
        };
        let routes = |service: &ObjectName| vec![format!("HTTPRoute {service}").into()];
        let receipts = rollouts.close(after(28), come, routes);
        assert_eq!(receipts, rollouts.finished());
        assert_eq!(receipts[0].routes, ["HTTPRoute web/shop".into()]);
        assert_eq!(rollouts.due(), None);
        let expected = "2 pods gone, 2 come in 13s: 2 requests, 1 failed, 0 replayed, 0 held, \
                        1 cut at their deadline; 8 client connections kept, 1 lost";
        assert_eq!(receipts[0].words(), expected);
    }

    #[test]
    fn a_receipt_counts_udp_sessions_beside_connections_also_of_a_port_of_the_same_number() {
        let udp = shop().port_over(Transport::Udp, 80);
        let registry = Metrics::new().unwrap();
        let (web, game) = (registry.service(&key(80)), registry.service(&udp));
        let count = |times: u64, counter: &Counter| (0..times).for_each(|_| counter.inc());
        count(3, &game.udp_sessions_moved);
        let (mut rollouts, start) = (Rollouts::default(), Instant::now());
        rollouts.drain_began(&key(80), "a".into(), &web, start);
        rollouts.drain_began(&udp, "a".into(), &game, start);
        web.answered(200);
        count(5, &game.udp_sessions_moved);
        count(2, &game.datagrams_moved);
        game.dropped(DropReason::NoEndpoint);
        game.dropped(DropReason::NoSession);
        game.udp_sessions.set(7);
        for _ in 0..2 {
            rollouts.drain_ended(&shop(), 0, start);
        }
        let receipt = rollouts
            .close(start + QUIET, |_, _| Some(1), none)
            .remove(0);
        let expected = "1 pods gone, 1 come in 0s: 1 requests, 0 failed, 0 replayed, 0 held, \
                        0 cut at their deadline; 0 client connections kept, 0 lost; \
                        7 UDP sessions kept, 5 moved, 2 datagrams refused, 1 lost";
        assert_eq!(receipt.words(), expected);
        let silent = Rollout {
            requests: 0,
            ..receipt
        };
        assert!(silent.had_traffic(), "datagrams are traffic");
    }

    #[test]
    fn drains_without_a_pause_get_a_receipt_each_hour() {
        let metrics = Metrics::new().unwrap().service(&key(80));
        let (mut rollouts, start, mut gone) = (Rollouts::default(), Instant::now(), Vec::new());
        for n in 0..1_442 {
            let now = start + Duration::from_secs(5) * n;
            assert!(
                rollouts.due().is_none_or(|due| due >= now),
                "a due time lies in the past"
            );
            rollouts.drain_began(&key(80), n.to_string(), &metrics, now);
            rollouts.drain_ended(&shop(), 0, now);
            // In the second half of the time nothing serves.
            let come = |_: &ObjectName, _| (n < 720).then_some(1);
            gone.extend(
                rollouts
                    .close(now, come, none)
                    .iter()
                    .map(|receipt| receipt.pods_gone),
            );
        }
        assert_eq!(gone, [721, 721]);
    }

    #[test]
    fn a_burst_whose_drains_do_not_end_gets_a_receipt_and_a_bounded_number_is_kept() {
        let metrics = Metrics::new().unwrap().service(&key(80));
        let (mut rollouts, start) = (Rollouts::default(), Instant::now());
        for n in 0..KEPT as u32 + 2 {
            rollouts.drain_began(&key(80), n.to_string(), &metrics, start);
            assert_eq!(rollouts.close(start + LONGEST, |_, _| None, none).len(), 1);
        }
        assert_eq!(rollouts.finished().len(), KEPT);
    }
}

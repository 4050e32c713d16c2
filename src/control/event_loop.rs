//! The control loop: one thread that owns the world, the routing table, the listeners, and every
//! timer of a drain.
//!
//! Invariant: only this loop writes what the workers read. It never waits for a network or a disk:
//! sources, probes and pages run on other threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::cluster::event::{Event, Reason, Subject};
use crate::cluster::events::Events;
use crate::cluster::leader::Election;
use crate::cluster::status::Statuses;
use crate::config::settings::Config;
use crate::contract::clock::millis;
use crate::contract::endpoint::{Endpoint, EndpointId, Notice};
use crate::contract::name::ObjectName;
use crate::contract::snapshot::Published;
use crate::control::adopt::{Adoptions, Known};
use crate::control::certificates::Certificates;
use crate::control::command::Command;
use crate::control::gate::Gate;
use crate::control::gateways::Gateways;
use crate::control::handoff::Handoff;
use crate::control::listeners::Listeners;
use crate::control::probes::{Place, Probed, Probes};
use crate::control::routed::Routed;
use crate::control::shutdown::Phase;
use crate::control::statuses::Publisher;
use crate::control::unserved::Unserved;
use crate::discovery::source::{InUse, Message};
use crate::observe::health::Health;
use crate::proxy::shared::{Shared, WorkerCommand};
use crate::routing::change::Chores;
use crate::routing::drains;
use crate::routing::table::RoutingTable;
use crate::routing::world::objects::World;

/// The control loop with everything that it owns.
pub struct Control {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// Every Service port as it is now. The table writes it.
    pub snapshot: Arc<Published>,
    /// Running and finished drains.
    pub drains: Arc<drains::Log>,
    /// What `/livez` and `/readyz` read.
    pub health: Arc<Health>,
    /// The way to the workers.
    pub shared: Arc<Shared>,
    /// All objects of the source.
    pub world: World,
    /// The routing table.
    pub table: RoutingTable,
    /// Bound and wanted listeners.
    pub listeners: Listeners,
    /// The configuration with which the process started.
    pub started: Arc<Config>,
    /// What listeners show to clients of TLS.
    pub certificates: Certificates,
    /// What routes lead to.
    pub routed: Routed,
    /// When Gateways and their routes are planned again.
    pub gateways: Gateways,
    /// What is to be said of objects, for the elected writer.
    pub statuses: Statuses,
    /// Reports of endpoints. Unbounded, since an endpoint must never wait. An endpoint sends one
    /// notice for each change of its state, and each round takes them all.
    pub notices: mpsc::UnboundedReceiver<Notice>,
    /// Messages of the source. Bounded: a source that is faster than the loop waits.
    pub messages: mpsc::Receiver<Message>,
    /// Commands. Unbounded, since a signal handler must not wait; people send few.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// What the table uses, for an API server's source.
    pub in_use: watch::Sender<InUse>,
    /// Kubernetes Events to post.
    pub events: Events,
    /// The statuses of Ingress objects.
    pub publisher: Publisher,
    /// What of Ingress objects is not served.
    pub unserved: Unserved,
    /// Whether this instance writes statuses.
    pub election: Election,
    /// The talk with the process before or after this one.
    pub handoff: Handoff,
    /// What this process has taken over.
    pub adopted: Adoptions,
    /// The gate's end.
    pub gate: Gate,
}

/// Drain deadlines in their order.
type Deadlines = BTreeMap<(Instant, EndpointId), Arc<Endpoint>>;

impl Control {
    /// Runs until a shutdown is complete.
    ///
    /// One round waits until something arrives. Then it takes what waits of each kind, in a fixed
    /// order: all commands, all notices, all results of probes, the timers, and one message of the
    /// source. So a source that is never silent delays no shutdown and no drain, and nothing else
    /// can keep the source waiting.
    pub async fn run(mut self) {
        // Unbounded, since a probe must not wait. A probe reports once, when it ends.
        let (report, mut probed) = mpsc::unbounded_channel();
        let probes = match Probes::start(report) {
            Ok(probes) => probes,
            Err(error) => return tracing::error!(%error, "the probes thread cannot run"),
        };
        let mut deadlines = Deadlines::new();
        let mut phase = Phase::Running;
        let mut house = tokio::time::interval(HOUSEKEEPING);
        house.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut source_open = true;
        loop {
            self.health.beat();
            let alarm = tokio::time::sleep_until(self.next_wake(&deadlines, &phase).into());
            let (mut command, mut notice, mut result, mut message) = (None, None, None, None);
            let (mut question, mut made, mut clean_up) = (None, None, false);
            tokio::select! {
                biased;
                Some(it) = self.commands.recv() => command = Some(it),
                Some(it) = self.notices.recv() => notice = Some(it),
                Some(it) = probed.recv() => result = Some(it),
                _ = house.tick() => clean_up = true,
                it = self.gate.question() => question = Some(it),
                it = self.gateways.made() => made = Some(it),
                () = alarm => {}
                it = self.messages.recv(), if source_open => {
                    source_open = it.is_some();
                    message = it;
                }
            }
            let mut chores = Chores::default();
            while let Some(it) = command.take().or_else(|| self.commands.try_recv().ok()) {
                match it {
                    Command::Reload(config) => chores.append(self.reload(*config)),
                    Command::Adopt(proposal) => {
                        let is_running = matches!(phase, Phase::Running);
                        let now = Known {
                            listeners: &mut self.listeners,
                            snapshot: &self.snapshot,
                            shared: &self.shared,
                            drain: self.config.timeouts.drain,
                            is_running,
                        };
                        if let Some((at, ghost)) = self.adopted.adopt(*proposal, now) {
                            deadlines.insert((at, ghost.id), ghost);
                        }
                    }
                    Command::HandOver(heir) => {
                        tracing::info!(
                            "a process that replaces this one is ready: handing client connections over"
                        );
                        self.shared.heir.store(Some(Arc::new(heir)));
                        self.shared.post_all(|| WorkerCommand::HandOver);
                        phase.has_successor();
                    }
                    Command::Shutdown if matches!(phase, Phase::Running) => {
                        phase = self.begin_shutdown();
                    }
                    Command::Shutdown => return self.end_at_once(),
                }
            }
            if let Some(first) = notice.or_else(|| self.notices.try_recv().ok()) {
                chores.append(self.on_notices(first, &probes));
            }
            if let Some(first) = result.or_else(|| probed.try_recv().ok()) {
                chores.append(self.on_probed(first, &mut probed));
            }
            if let Some(first) = question {
                chores.append(self.on_questions(first));
            }
            if self
                .table
                .next_return()
                .is_some_and(|at| at <= Instant::now())
            {
                chores.append(self.table.end_suspensions(Instant::now()));
            }
            if clean_up {
                chores.append(self.clean_up());
            }
            if self
                .table
                .next_hand_back()
                .is_some_and(|at| at <= Instant::now())
            {
                chores.append(self.table.hand_back(&self.world, Instant::now()));
            }
            if self
                .routed
                .next_look()
                .is_some_and(|at| at <= Instant::now())
            {
                chores.append(self.part_from_routes());
            }
            let services = self.reroute_if_due();
            if !services.is_empty() {
                chores.append(self.take_in(services));
            }
            if let Some(made) = made {
                chores.append(self.put_in_force(made));
            }
            self.gateways.begin(&self.world);
            if self
                .unserved
                .next_look()
                .is_some_and(|at| at <= Instant::now())
            {
                self.say_what_is_unserved();
            }
            if let Some(message) = message.or_else(|| self.messages.try_recv().ok()) {
                chores.append(self.on_message(message));
            }
            let mut now = Instant::now();
            while let Some(entry) = deadlines.first_entry()
                && entry.key().0 <= now
            {
                let endpoint = entry.remove();
                chores.append(self.table.expire(&endpoint));
            }
            self.start_chores(chores, &probes, &mut deadlines);
            now = Instant::now();
            self.bind(now);
            if matches!(phase, Phase::Running) && self.listeners.are_tried() {
                self.handoff.take();
            }
            self.end_rollouts(now);
            if !self.advance(&mut phase, now) {
                return;
            }
        }
    }

    /// When the next round is due if nothing arrives.
    fn next_wake(&self, deadlines: &Deadlines, phase: &Phase) -> Instant {
        let times = [
            deadlines.keys().next().map(|(at, _)| *at),
            phase.next_look(),
            self.listeners.next_retry(),
            self.drains.rollouts_due(),
            self.table.next_hand_back(),
            self.routed.next_look(),
            self.gateways.next_look(),
            self.routed.pace.due(),
            self.unserved.next_look(),
            self.table.next_return(),
        ];
        let beat = Instant::now() + BEAT;
        times.into_iter().flatten().fold(beat, Instant::min)
    }

    fn begin_shutdown(&self) -> Phase {
        let successor = self.health.has_successor();
        let least = if successor { SEEK } else { Duration::ZERO };
        let lame_duck = self.config.timeouts.lame_duck.max(least);
        tracing::info!(?lame_duck, "shutting down");
        self.health.update(|health| health.shutting_down = true);
        self.shared.leaving.store(true, Ordering::Relaxed);
        self.election.resign();
        self.handoff.give();
        self.gate.leaving.cancel();
        Phase::LameDuck {
            until: Instant::now() + lame_duck,
            handed: None,
        }
    }

    /// The second command to shut down.
    fn end_at_once(&self) {
        let connections = self.shared.connections();
        let in_flight = self.snapshot.load().in_flight();
        tracing::warn!(connections, in_flight, "second signal: ending immediately");
    }

    /// Moves a shutdown on. Returns `false` when it is complete.
    fn advance(&mut self, phase: &mut Phase, now: Instant) -> bool {
        let (grace, snapshot) = (self.config.timeouts.shutdown, &self.snapshot);
        let (shared, health) = (&self.shared, &self.health);
        phase.advance(now, grace, shared, &mut self.listeners, health, snapshot)
    }

    /// Takes in all results that wait, and settles the table once for all of them.
    fn on_probed(&mut self, first: Probed, probed: &mut mpsc::UnboundedReceiver<Probed>) -> Chores {
        let (mut joins, mut readmitted) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(result) = next {
            match result {
                Probed::Join(id, connected) => joins.push((id, connected)),
                Probed::Readmitted(id) => readmitted.push(id),
            }
            next = probed.try_recv().ok();
        }
        let mut chores = Chores::default();
        if !readmitted.is_empty() {
            chores = self
                .table
                .answering_changed(&self.world, &readmitted, Instant::now());
        }
        if !joins.is_empty() {
            chores.append(self.table.probed(&joins));
        }
        chores
    }

    /// Forgets pods that ended and clients that went long ago, and lets go of Services that are no longer claimed.
    fn clean_up(&mut self) -> Chores {
        let now = Instant::now();
        let mut chores = self.table.hand_back(&self.world, now);
        self.table.forget_clients(now);
        let forgotten = self.world.sweep(now);
        if !forgotten.pods.is_empty() {
            chores.append(self.table.apply(&self.world, &forgotten, now));
        }
        self.report_use();
        chores
    }

    /// Starts what a change of the table asks for: work of the workers, listeners, probes, timers
    /// and warnings.
    fn start_chores(&mut self, chores: Chores, probes: &Probes, deadlines: &mut Deadlines) {
        if !chores.left.is_empty() {
            let left: Arc<[EndpointId]> = chores.left.into();
            self.shared.post_all(|| WorkerCommand::Left(left.clone()));
        }
        if !chores.listeners.is_empty() && self.health.is_synced() {
            self.want_listeners(chores.listeners);
        }
        for endpoint in chores.join {
            let connect = self.config.timeouts.connect;
            if let Some(place) = self.place(endpoint.id) {
                probes.until_joined(endpoint, place, connect);
            }
        }
        for endpoint in chores.deadlines {
            if let Some(at) = endpoint.drain_deadline() {
                deadlines.insert((at, endpoint.id), endpoint);
            }
        }
        for (service, warning) in chores.warnings {
            tracing::warn!("{service}: {warning}");
            self.post(&service, Reason::NotServed, warning);
        }
    }

    /// Whose endpoint this is; `None` if it is gone already.
    pub(super) fn place(&self, id: EndpointId) -> Option<Place> {
        let (key, hold) = self.table.place(id)?;
        Some(Place {
            service: key.service.clone(),
            hold: hold.clone(),
            transport: key.transport,
        })
    }

    /// Looks again which listeners are wanted of all Services, once the first table is in force.
    pub(super) fn rebind_all(&mut self) {
        if self.health.is_synced() {
            let all = self
                .listeners
                .services(&self.config, self.routed.doors(), &self.snapshot);
            self.want_listeners(all);
        }
    }

    /// Takes in which listeners of these Services are wanted. Where nothing is known
    /// about a Service, its ports stay as they are: the process that this one replaces may serve them.
    fn want_listeners(&mut self, mut services: BTreeSet<ObjectName>) {
        let missing = self.health.standing().missing;
        services.retain(|service| !missing.contains(&service.namespace));
        self.listeners
            .want(&self.config, self.routed.doors(), &self.snapshot, &services);
    }

    /// Binds the listeners that are due.
    fn bind(&mut self, now: Instant) {
        let ended = self.listeners.ended_gaps(now);
        if !ended.is_empty() {
            self.want_listeners(ended);
        }
        for (service, failure) in self.listeners.retry(now, &self.shared, &self.health) {
            // A listener with routes has no Service.
            if !service.namespace.is_empty() && !service.name.contains('/') {
                self.post(&service, Reason::PortNotBound, failure);
            }
        }
    }

    /// Reports the rollouts that are over.
    fn end_rollouts(&mut self, now: Instant) {
        if self.drains.rollouts_due().is_none_or(|due| due > now) {
            return;
        }
        let snapshot = self.snapshot.clone();
        let come =
            |service: &ObjectName, since: Instant| snapshot.pods_come(service, millis(since));
        let routes = |service: &ObjectName| self.routed.routes_to(service);
        for rollout in self.drains.close_rollouts(now, come, routes) {
            rollout.log();
            let reason = if rollout.failures == 0 {
                Reason::RolledOut
            } else {
                Reason::RolloutFailed
            };
            if rollout.had_traffic() {
                self.post(&rollout.service, reason, rollout.words());
            }
        }
    }

    /// Posts an Event about a Service.
    fn post(&self, service: &ObjectName, reason: Reason, note: String) {
        self.post_about(service, reason, None, note);
    }

    /// Posts an Event about a Service. `about` is for [`Event::about`].
    pub(super) fn post_about(
        &self,
        service: &ObjectName,
        reason: Reason,
        about: Option<String>,
        note: String,
    ) {
        let uid = self
            .world
            .service(service)
            .and_then(|service| service.uid.clone());
        self.events.post(Event {
            subject: Subject::Service(service.clone(), uid),
            reason,
            about,
            note,
        });
    }
}

/// How long a successor may take to say that it is ready. Until then clients are accepted and kept.
const SEEK: Duration = Duration::from_secs(5);
/// How often the loop forgets what is no longer needed.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// The loop turns at least this often, so that `/livez` can see whether it stands still.
const BEAT: Duration = Duration::from_secs(1);

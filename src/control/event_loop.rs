//! The control loop: one thread that owns the world, the routing table, the listeners, and every timer of a drain.
//!
//! Invariant: it is the only writer of what the workers read. Nothing in it waits for a network or a disk: sources,
//! probes and binds-to-be-retried are tasks and timers that report back here.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use crate::cluster::events::{Event, Events, Reason};
use crate::config::settings::Config;
use crate::contract::clock::millis;
use crate::contract::endpoint::{Endpoint, EndpointId, Leaving, Notice};
use crate::contract::name::ObjectName;
use crate::contract::reason::Outcome;
use crate::contract::snapshot::Snapshot;
use crate::control::listeners::Listeners;
use crate::control::probes::{Probed, Probes};
use crate::control::shutdown::Phase;
use crate::discovery::source::Message;
use crate::observe::health::Health;
use crate::proxy::shared::{Shared, WorkerCommand};
use crate::routing::chores::Chores;
use crate::routing::drains;
use crate::routing::table::RoutingTable;
use crate::routing::world::objects::{Touched, World};

/// What the outside tells the control loop.
#[derive(Debug)]
pub enum Command {
    /// A configuration read anew (SIGHUP).
    Reload(Box<Config>),
    /// Shut down; a second one ends at once.
    Shutdown,
}

pub struct Control {
    pub config: Arc<Config>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub drains: Arc<drains::Log>,
    pub health: Arc<Health>,
    pub shared: Arc<Shared>,
    pub world: World,
    pub table: RoutingTable,
    pub listeners: Listeners,
    pub notices: mpsc::UnboundedReceiver<Notice>,
    pub messages: mpsc::Receiver<Message>,
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// Tells an API server's source which namespaces the listeners' Services are in.
    pub named: watch::Sender<BTreeSet<String>>,
    pub events: Events,
}

impl Control {
    /// The namespaces of the Services that listeners name.
    pub fn named_namespaces(config: &Config) -> BTreeSet<String> {
        config
            .listeners
            .iter()
            .map(|listener| listener.service.namespace.clone())
            .collect()
    }

    /// Runs until a shutdown is complete. To be driven on a `LocalRuntime`.
    pub async fn run(mut self) {
        let (report, mut probed) = mpsc::unbounded_channel();
        let probes = Rc::new(Probes::new(report));
        let mut deadlines: BTreeMap<(Instant, EndpointId), Arc<Endpoint>> = BTreeMap::new();
        let mut phase = Phase::Running;
        let mut house = tokio::time::interval(HOUSEKEEPING);
        house.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut source_open = true;
        loop {
            let next_deadline = deadlines.keys().next().map(|(at, _)| *at);
            let next_phase = phase.next_look();
            let hand_back = self.table.next_hand_back();
            let rollouts = self.drains.rollouts_due();
            let times = [
                next_deadline,
                next_phase,
                self.listeners.next_retry(),
                rollouts,
                hand_back,
            ];
            let wake = times.into_iter().flatten().min();
            let alarm = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut chores = Chores::default();
            tokio::select! {
                biased;
                message = self.messages.recv(), if source_open => match message {
                    Some(message) => chores = self.on_message(message),
                    None => source_open = false,
                },
                Some(notice) = self.notices.recv() => chores = self.on_notices(notice, &probes),
                Some(first) = probed.recv() => {
                    let (mut results, mut readmitted) = (Vec::new(), Vec::new());
                    let mut next = Some(first);
                    while let Some(result) = next {
                        match result {
                            Probed::Join(id, connected) => results.push((id, connected)),
                            Probed::Readmitted(id) => readmitted.push(id),
                        }
                        next = probed.try_recv().ok();
                    }
                    if !readmitted.is_empty() {
                        chores = self.table.answering_changed(&self.world, &readmitted, Instant::now());
                    }
                    if !results.is_empty() {
                        chores.append(self.table.probed(&results));
                    }
                }
                Some(command) = self.commands.recv() => match command {
                    Command::Reload(config) => chores = self.reload(*config),
                    Command::Shutdown if matches!(phase, Phase::Running) => {
                        let lame_duck = self.config.timeouts.lame_duck;
                        tracing::info!(lame_duck = ?lame_duck, "shutting down");
                        self.health.update(|h| h.shutting_down = true);
                        phase = Phase::LameDuck(Instant::now() + lame_duck);
                    }
                    Command::Shutdown => {
                        let (connections, in_flight) = (self.shared.connections(), self.snapshot.load().in_flight());
                        tracing::warn!(connections, in_flight, "second signal: ending at once");
                        return;
                    }
                },
                _ = house.tick() => {
                    let now = Instant::now();
                    let forgotten = self.world.sweep(now);
                    if !forgotten.pods.is_empty() {
                        chores = self.table.apply(&self.world, &forgotten, now);
                    }
                    chores.append(self.hand_back());
                }
                () = alarm => if hand_back.is_some_and(|at| at <= Instant::now()) {
                    chores = self.hand_back();
                }
            }
            self.start_chores(chores, &probes, &mut deadlines);
            let now = Instant::now();
            while let Some(entry) = deadlines.first_entry()
                && entry.key().0 <= now
            {
                let endpoint = entry.remove();
                self.table.expire(&endpoint);
            }
            self.bind(now);
            self.end_rollouts(now);
            let (grace, snapshot) = (self.config.timeouts.shutdown, self.snapshot.load());
            if !phase.advance(
                now,
                grace,
                &self.shared,
                &mut self.listeners,
                &self.health,
                &snapshot,
            ) {
                return;
            }
        }
    }

    /// A message of the source: changes are in force when this returns.
    fn on_message(&mut self, message: Message) -> Chores {
        match message {
            Message::Changes { received, changes } => {
                let mut touched = Touched::default();
                for change in changes {
                    self.world.apply(change, received, &mut touched);
                }
                let chores = self.table.apply(&self.world, &touched, received);
                self.rebind();
                chores
            }
            Message::Synced => {
                self.health.update(|h| h.synced = true);
                self.rebind();
                Chores::default()
            }
            Message::Problems(problems) => {
                self.health.report(problems);
                Chores::default()
            }
        }
    }

    /// Many endpoints may leave or fail at once: the table is settled once for all of them.
    fn on_notices(&mut self, first: Notice, probes: &Rc<Probes>) -> Chores {
        let (mut left, mut ejected) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(notice) = next {
            match notice {
                Notice::Drained(endpoint) => {
                    // Its receipt counts what the workers close, so it waits for them.
                    let leaving = Arc::new(Leaving(endpoint));
                    self.shared
                        .post_all(|| WorkerCommand::Drained(leaving.clone()));
                }
                Notice::Left(endpoint) => {
                    let asked = endpoint
                        .pod
                        .as_ref()
                        .and_then(|pod| self.world.deletion_asked(&pod.uid));
                    if let Some((record, took)) = self.drains.end(endpoint.id, asked) {
                        record.log(took);
                        let forced = record
                            .ended
                            .is_some_and(|(_, outcome)| outcome == Outcome::Forced);
                        let reason = if forced {
                            Reason::DrainForced
                        } else {
                            Reason::Drained
                        };
                        self.post(&record.service.service, reason, record.words(took));
                    }
                    left.push(endpoint);
                }
                Notice::Ejected(endpoint) => {
                    tracing::info!(endpoint = %endpoint.address, "does not accept connections; ejected");
                    ejected.push(endpoint.id);
                    let hold = self.table.hold(endpoint.id).cloned();
                    let connect = self.config.timeouts.connect;
                    tokio::task::spawn_local(
                        probes.clone().until_readmitted(endpoint, hold, connect),
                    );
                }
            }
            next = self.notices.try_recv().ok();
        }
        if !left.is_empty() {
            self.table.drained(&left);
        }
        if ejected.is_empty() {
            return Chores::default();
        }
        // Without them, who is terminating may be the last resort, whose drain then waits.
        self.table
            .answering_changed(&self.world, &ejected, Instant::now())
    }

    fn start_chores(
        &mut self,
        chores: Chores,
        probes: &Rc<Probes>,
        deadlines: &mut BTreeMap<(Instant, EndpointId), Arc<Endpoint>>,
    ) {
        for endpoint in chores.join {
            tokio::task::spawn_local(
                probes
                    .clone()
                    .until_joined(endpoint, self.config.timeouts.connect),
            );
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

    /// Lets go of Services that are kube-proxy's again.
    fn hand_back(&mut self) -> Chores {
        let chores = self.table.hand_back(&self.world, Instant::now());
        self.rebind();
        chores
    }

    fn reload(&mut self, config: Config) -> Chores {
        let config = Arc::new(config);
        let old = std::mem::replace(&mut self.config, config.clone());
        let fixed = [
            ("discovery", old.discovery != config.discovery),
            ("admin", old.admin != config.admin),
            ("workers", old.workers != config.workers),
            (
                "limits.connections",
                old.limits.connections != config.limits.connections,
            ),
            ("accessLog", old.access_log != config.access_log),
        ];
        for (field, _) in fixed.iter().filter(|(_, changed)| *changed) {
            tracing::warn!(field, "takes effect only at a restart");
        }
        self.named.send_replace(Self::named_namespaces(&config));
        self.table.set_config(config.clone());
        self.shared
            .post_all(|| WorkerCommand::Config(config.clone()));
        let touched = Touched {
            services: self.world.service_names().cloned().collect(),
            ..Touched::default()
        };
        let chores = self.table.apply(&self.world, &touched, Instant::now());
        self.rebind();
        tracing::info!("configuration read anew");
        chores
    }

    /// Listeners as the configuration and the claimed Services want them, once the first table is in force.
    fn rebind(&mut self) {
        if self.health.state().synced {
            let snapshot = self.snapshot.load();
            self.listeners.want(&self.config, &snapshot);
            self.bind(Instant::now());
        }
    }

    /// Binds what is due.
    fn bind(&mut self, now: Instant) {
        for (service, failure) in self.listeners.retry(now, &self.shared, &self.health) {
            self.post(&service, Reason::PortNotBound, failure);
        }
    }

    /// Receipts of the rollouts that are over.
    fn end_rollouts(&mut self, now: Instant) {
        if self.drains.rollouts_due().is_none_or(|due| due > now) {
            return;
        }
        let snapshot = self.snapshot.load_full();
        let come =
            |service: &ObjectName, since: Instant| snapshot.pods_come(service, millis(since));
        for rollout in self.drains.close_rollouts(now, come) {
            rollout.log();
            let reason = if rollout.failures == 0 {
                Reason::RolledOut
            } else {
                Reason::RolloutFailed
            };
            self.post(&rollout.service, reason, rollout.words());
        }
    }

    fn post(&self, service: &ObjectName, reason: Reason, note: String) {
        let uid = self
            .world
            .service(service)
            .and_then(|service| service.uid.clone());
        self.events.post(Event {
            service: service.clone(),
            uid,
            reason,
            note,
        });
    }
}

const HOUSEKEEPING: Duration = Duration::from_secs(60);

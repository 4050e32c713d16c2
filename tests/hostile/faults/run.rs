//! One seed: the true state changes, its signals arrive badly, clients send requests, and the
//! contract is checked after every step. There is one thread, virtual time, and one seeded
//! generator for every choice, so the same seed is the same run.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::contract::endpoint::{Endpoint, EndpointId, Lease};
use ebbtide::contract::name::PortKey;
use ebbtide::contract::snapshot::{Port, Snapshot};
use ebbtide::discovery::object::{Change, Kind};
use ebbtide::proxy::balancer::{Avoid, Cost, Origin, pick};
use ebbtide::routing::world::objects::World;
use fastrand::Rng;

use super::reported::{Named, Reported};
use super::truth::{SLICES, Truth};
use crate::support::table::{GRACE, Rig, SECOND, apply, last_byte, name, service};

/// How signals arrive, and what happens to pods besides starting and ending.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// Each event is late by a time in this range.
    pub late_ms: RangeInclusiveMs,
    /// Events of one kind keep their order, as in a watch.
    pub ordered: bool,
    /// Each event may be repeated up to this many times.
    pub copies: u32,
    /// Odds, out of eight, that the slices are not written when a pod changes, so that they
    /// contradict the Pod object.
    pub stuck: u32,
    /// Odds, out of eight, that a new pod takes the address of a dead one.
    pub reuse: u32,
    /// New pods may have the name of a dead pod.
    pub namesakes: bool,
    pub flaps: bool,
    /// Slices are removed and return, endpoints move between them, and selectors switch.
    pub vanishing: bool,
    /// The source goes silent, and returns with a list.
    pub gaps: bool,
    /// Odds, out of eight, of processes that die before any signal reports it.
    pub sudden: u32,
}

type RangeInclusiveMs = (u64, u64);

#[derive(Debug, Default, Clone, Copy)]
pub struct Figures {
    pub events: u64,
    pub picks: u64,
    pub refused: u64,
    pub replays: u64,
    pub held: u64,
    pub cut: u64,
    pub drains: u64,
    /// A hash of everything that the run did.
    pub trace: u64,
}

struct Event {
    at: Instant,
    number: u64,
    kind: Kind,
    change: Change,
}

#[derive(Default)]
struct Request {
    repeatable: bool,
    held: bool,
    tried: Vec<EndpointId>,
    lost_at: Option<Arc<Endpoint>>,
}

/// A request in flight at a pod (its index in the truth).
struct Flight {
    lease: Lease,
    pod: usize,
    request: Request,
}

struct Run<'a> {
    row: &'a Row,
    rng: Rng,
    rig: Rig,
    truth: Truth,
    reported: Reported,
    pending: Vec<Event>,
    events: u64,
    /// The source is silent. What happens meanwhile is never reported as an event.
    silent: bool,
    /// The snapshots that slow workers still hold.
    stale: [Arc<Snapshot>; 2],
    flights: Vec<Flight>,
    held: Vec<Request>,
    /// The snapshot generation that the held requests have tried.
    tried_generation: u64,
    began: BTreeSet<EndpointId>,
    figures: Figures,
    trace: DefaultHasher,
}

/// Runs one seed. Panics where the contract is broken.
pub fn run(row: &Row, seed: u64) -> Figures {
    fastrand::seed(seed);
    let mut run = Run {
        row,
        rng: Rng::with_seed(seed),
        rig: Rig::new(World::for_api_server()),
        truth: Truth::default(),
        reported: Reported::default(),
        pending: Vec::new(),
        events: 0,
        silent: false,
        stale: Default::default(),
        flights: Vec::new(),
        held: Vec::new(),
        tried_generation: 0,
        began: BTreeSet::new(),
        figures: Figures::default(),
        trace: DefaultHasher::new(),
    };
    run.rig.change([apply(service("app"))]);
    for _ in 0..run.rng.usize(1..4) {
        run.new_pod();
    }
    for _ in 0..run.rng.u32(20..45) {
        run.step();
        run.look();
    }
    run.converge();
    run.end();
    run.figures.trace = run.trace.finish();
    run.figures
}

/// What happens to pods and the source.
impl Run<'_> {
    fn step(&mut self) {
        match self.rng.u32(0..24) {
            0 => self.new_pod(),
            1..=2 => self.change_readiness(),
            3..=4 => self.delete(),
            5 => self.die(),
            6 => self.object_goes(),
            7 if self.row.vanishing => self.slices_move(),
            8 if self.row.gaps => self.source_goes_or_returns(),
            9..=10 => self.probe(),
            11 => self.finish(),
            12 => {
                let worker = self.rng.usize(..self.stale.len());
                self.stale[worker] = Arc::new(self.rig.snapshot.load());
            }
            13..=18 => {
                let repeatable = self.rng.u32(..4) > 0;
                self.dispatch(Request {
                    repeatable,
                    ..Request::default()
                });
            }
            19 => self.dispatch_stale(),
            _ => {
                let time = self.rng.u64(1..700);
                self.pass(Duration::from_millis(time));
                if self.rng.u32(..4) > 0 {
                    self.probe();
                }
            }
        }
    }

    fn odds(&mut self, of_eight: u32) -> bool {
        self.rng.u32(..8) < of_eight
    }

    /// A random pod that `fits`.
    fn some_pod(&mut self, fits: impl Fn(&super::truth::Pod) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.truth.pods.len())
            .filter(|i| fits(&self.truth.pods[*i]))
            .collect();
        self.rng.choice(fitting)
    }

    fn new_pod(&mut self) {
        let dead: Vec<usize> = (0..self.truth.pods.len())
            .filter(|i| {
                let pod = &self.truth.pods[*i];
                let taken = self.truth.pods[i + 1..]
                    .iter()
                    .any(|other| other.address == pod.address);
                pod.deleted.is_some() && !pod.listens && !taken
            })
            .collect();
        let number = self.truth.pods.len() as u8;
        let (reuse, namesake) = (self.row.reuse, self.row.namesakes);
        let address = match self.rng.choice(&dead) {
            Some(dead) if self.odds(reuse) => self.truth.pods[*dead].address,
            _ => number + 1,
        };
        // As in a StatefulSet, the object of the old pod is removed before its name is used again.
        let free = |name: &String| {
            self.truth
                .pods
                .iter()
                .all(|pod| pod.name != *name || pod.gone)
        };
        let names = self
            .truth
            .pods
            .iter()
            .map(|pod| pod.name.clone())
            .filter(free)
            .collect::<Vec<_>>();
        let name = match self.rng.choice(names) {
            Some(name) if namesake && self.rng.bool() => name,
            _ => format!("pod-{number}"),
        };
        let slice = self.rng.usize(..SLICES.len());
        let index = self.truth.create(name, address, slice);
        self.report_pod(index);
        self.report_slice(slice);
        if self.rng.u32(..8) > 0 {
            self.truth.pods[index].ready = true;
            self.report_slice(slice);
        }
    }

    fn change_readiness(&mut self) {
        let flaps = self.row.flaps;
        let living =
            |pod: &super::truth::Pod| pod.deleted.is_none() && pod.listens && (flaps || !pod.ready);
        if let Some(index) = self.some_pod(living) {
            let pod = &mut self.truth.pods[index];
            pod.ready = !pod.ready;
            self.report_slice(self.truth.slice_of(index));
        }
    }

    fn delete(&mut self) {
        let Some(index) = self.some_pod(|pod| pod.deleted.is_none() && !pod.gone) else {
            return;
        };
        if self.row.sudden > 0 && self.odds(self.row.sudden) {
            self.process_ends(index);
        }
        self.truth.pods[index].deleted = Some(self.rig.now);
        self.report_pod(index);
        self.write_slice_of(index);
    }

    /// A process ends: at the SIGTERM of its pod's deletion, or without a cause.
    fn die(&mut self) {
        let sudden = self.row.sudden > 0;
        if let Some(index) = self.some_pod(|pod| pod.listens && (pod.deleted.is_some() || sudden)) {
            self.process_ends(index);
        }
    }

    fn process_ends(&mut self, index: usize) {
        self.truth.pods[index].listens = false;
        for lost in self
            .flights
            .extract_if(.., |flight| flight.pod == index)
            .collect::<Vec<_>>()
        {
            self.lose(lost);
        }
    }

    fn object_goes(&mut self) {
        if let Some(index) = self.some_pod(|pod| pod.deleted.is_some() && !pod.gone) {
            self.process_ends(index);
            self.truth.pods[index].gone = true;
            self.truth.pods[index].ready = false;
            self.report_pod(index);
            self.write_slice_of(index);
        }
    }

    fn slices_move(&mut self) {
        match self.rng.u32(..3) {
            0 => {
                let slice = self.rng.usize(..SLICES.len());
                self.truth.absent[slice] ^= true;
                self.report_slice(slice);
            }
            1 => {
                if let Some(index) = self.some_pod(|pod| !pod.gone) {
                    let mut slices = self.truth.move_pod(index);
                    // The removal may be written before the addition.
                    self.rng.shuffle(&mut slices);
                    slices
                        .into_iter()
                        .for_each(|slice| self.report_slice(slice));
                }
            }
            _ => {
                if let Some(index) = self.some_pod(|pod| !pod.gone) {
                    self.truth.pods[index].listed ^= true;
                    self.report_slice(self.truth.slice_of(index));
                }
            }
        }
    }

    fn source_goes_or_returns(&mut self) {
        if !self.silent {
            self.silent = true;
            if self.rng.bool() {
                // The signals on their way are lost with the source.
                self.pending.clear();
            }
            return;
        }
        self.silent = false;
        self.pending.clear();
        let mut kinds = [Kind::Pod, Kind::EndpointSlice, Kind::Service];
        self.rng.shuffle(&mut kinds);
        let mut at = self.rig.now;
        for kind in kinds {
            let change = self.truth.list(kind, at);
            self.enqueue(at, kind, change);
            // The lists of the kinds are from different moments. Changes between them are reported
            // after them.
            at += Duration::from_millis(self.rng.u64(0..40));
        }
    }

    fn probe(&mut self) {
        for id in self.rig.joining.keys().copied().collect::<Vec<_>>() {
            let answers = self.listens(&self.rig.joining[&id]);
            self.rig.probe(id, answers);
        }
        for id in self.rig.readmitting.keys().copied().collect::<Vec<_>>() {
            let answers = self.listens(&self.rig.readmitting[&id]);
            self.rig.try_again(id, answers);
        }
    }

    fn listens(&self, endpoint: &Endpoint) -> bool {
        self.truth.listener(last_byte(endpoint.address)).is_some()
    }

    fn finish(&mut self) {
        if !self.flights.is_empty() {
            let index = self.rng.usize(..self.flights.len());
            self.flights.swap_remove(index);
        }
    }
}

/// How signals arrive.
impl Run<'_> {
    fn report_pod(&mut self, index: usize) {
        let change = self.truth.report_pod(index, self.rig.now);
        self.report(Kind::Pod, change);
    }

    fn write_slice_of(&mut self, index: usize) {
        if !self.odds(self.row.stuck) {
            self.report_slice(self.truth.slice_of(index));
        }
    }

    fn report_slice(&mut self, slice: usize) {
        let change = self.truth.report_slice(slice);
        self.report(Kind::EndpointSlice, change);
    }

    fn report(&mut self, kind: Kind, change: Change) {
        if self.silent {
            return;
        }
        for copy in 0..=self.rng.u32(0..=self.row.copies) {
            let (from, to) = self.row.late_ms;
            let mut at = self.rig.now
                + Duration::from_millis(self.rng.u64(from..=to.max(from)) * u64::from(copy + 1));
            // Changes after a list are reported after it, however the other events are shuffled.
            let all = self.row.ordered && copy == 0;
            let before = |event: &&Event| {
                event.kind == kind && (all || matches!(event.change, Change::Replace { .. }))
            };
            at = at.max(
                self.pending
                    .iter()
                    .filter(before)
                    .map(|event| event.at)
                    .max()
                    .unwrap_or(at),
            );
            self.enqueue(at, kind, change.clone());
        }
    }

    fn enqueue(&mut self, at: Instant, kind: Kind, change: Change) {
        self.events += 1;
        self.pending.push(Event {
            at,
            number: self.events,
            kind,
            change,
        });
    }

    fn pass(&mut self, time: Duration) {
        let until = self.rig.now + time;
        while let Some(next) = self.next_event(until) {
            let event = self.pending.swap_remove(next);
            self.until(event.at);
            self.deliver(event.change);
            self.look();
        }
        self.until(until);
    }

    fn next_event(&self, until: Instant) -> Option<usize> {
        let due = self
            .pending
            .iter()
            .enumerate()
            .filter(|(_, event)| event.at <= until);
        due.min_by_key(|(_, event)| (event.at, event.number))
            .map(|(index, _)| index)
    }

    /// Lets time pass, from one drain deadline to the next.
    fn until(&mut self, until: Instant) {
        while let Some((at, _)) = self.rig.deadlines.first().copied()
            && at <= until
        {
            self.rig.pass(at.saturating_duration_since(self.rig.now));
            self.cut();
        }
        self.rig.pass(until.saturating_duration_since(self.rig.now));
        self.cut();
    }

    fn deliver(&mut self, change: Change) {
        self.figures.events += 1;
        self.reported.record(&change, self.rig.now);
        self.rig.change([change]);
        self.rig.take_notices();
    }

    /// The drain deadline of these exchanges has passed. Those that may be replayed are dispatched
    /// again.
    fn cut(&mut self) {
        let late = self
            .flights
            .extract_if(.., |flight| flight.lease.endpoint().force().is_cancelled());
        for flight in late.collect::<Vec<_>>() {
            self.figures.cut += 1;
            self.lose(flight);
        }
    }
}

/// What clients do.
impl Run<'_> {
    fn lose(&mut self, flight: Flight) {
        let Flight {
            lease, mut request, ..
        } = flight;
        request.tried.push(lease.endpoint().id);
        request.lost_at = Some(lease.endpoint().clone());
        drop(lease);
        self.rig.take_notices();
        if request.repeatable {
            self.figures.replays += 1;
            self.dispatch(request);
        }
    }

    /// Does what `dispatch.rs` does: pick, connect, and try the next endpoint if that fails.
    /// Without one, the request is held.
    fn dispatch(&mut self, request: Request) {
        for _ in 0..=self.truth.pods.len() {
            let port = self.port();
            let avoid = Avoid {
                tried: &request.tried,
                siblings_of: request.lost_at.as_deref(),
            };
            // So late that no endpoint counts as new, so the result does not depend on how long
            // this thread had to wait.
            let Some(lease) = pick(
                &port,
                Cost::Http,
                CLIENT,
                &avoid,
                self.rig.now + 3_600 * SECOND,
            ) else {
                self.nothing_to_pick();
                self.figures.held += u64::from(!request.held);
                self.held.push(Request {
                    held: true,
                    ..request
                });
                return;
            };
            self.figures.picks += 1;
            lease.endpoint().id.0.hash(&mut self.trace);
            self.picked(lease.endpoint());
            match self.truth.listener(last_byte(lease.endpoint().address)) {
                Some(pod) => {
                    self.flights.push(Flight {
                        lease,
                        pod,
                        request,
                    });
                    return;
                }
                None => {
                    self.figures.refused += 1;
                    lease.endpoint().eject();
                    drop(lease);
                    self.rig.take_notices();
                }
            }
        }
        panic!("an endpoint that refuses is picked again");
    }

    /// A slow worker picks from its old snapshot.
    fn dispatch_stale(&mut self) {
        for snapshot in self.stale.clone() {
            let Some(port) = snapshot.ports.get(&key()) else {
                continue;
            };
            if let Some(lease) = pick(
                port,
                Cost::Tcp,
                CLIENT,
                &Avoid::default(),
                self.rig.now + 3_600 * SECOND,
            ) {
                self.figures.picks += 1;
                self.picked(lease.endpoint());
                let now = self.port();
                let published = now
                    .usable
                    .iter()
                    .chain(now.last_resort.iter())
                    .any(|e| e.id == lease.endpoint().id);
                assert!(
                    published,
                    "a stale snapshot led to {:?}, which is no longer published",
                    lease.endpoint().id
                );
                if let Some(pod) = self.truth.listener(last_byte(lease.endpoint().address)) {
                    self.flights.push(Flight {
                        lease,
                        pod,
                        request: Request::default(),
                    });
                }
            }
        }
    }

    fn generation(&self) -> u64 {
        self.rig.snapshot.generation()
    }

    fn port(&self) -> Arc<Port> {
        self.rig.port_of("app").unwrap()
    }
}

fn key() -> PortKey {
    name("app").port(80)
}

fn named(endpoint: &Endpoint) -> Named {
    (
        last_byte(endpoint.address),
        endpoint
            .pod
            .as_ref()
            .map(|pod| pod.uid.clone())
            .unwrap_or_default(),
    )
}

/// What must hold.
impl Run<'_> {
    /// The endpoints that must serve: reported to the proxy, connected to, and not ejected by a
    /// refused connect.
    fn must_serve(&self) -> Vec<EndpointId> {
        let certain = self.reported.must_serve();
        let fit = |e: &&Arc<Endpoint>| {
            self.rig.connected.contains(&e.id)
                && !e.is_ejected()
                && !e.is_draining()
                && certain.contains(&named(e))
        };
        self.rig.known.values().filter(fit).map(|e| e.id).collect()
    }

    fn nothing_to_pick(&self) {
        let certain = self.must_serve();
        assert!(
            certain.is_empty(),
            "nothing is picked although {certain:?} serve"
        );
    }

    fn picked(&self, endpoint: &Arc<Endpoint>) {
        let (id, named) = (endpoint.id, named(endpoint));
        assert!(
            !self.began.contains(&id),
            "{id:?} was picked after its drain had begun"
        );
        if self.reported.may_serve(&named) {
            return;
        }
        assert!(
            self.reported.may_be_last_resort(&named),
            "{id:?} {named:?} was picked: not ready, or ended"
        );
        let certain = self.must_serve();
        assert!(
            certain.is_empty(),
            "{id:?} {named:?} was picked as the last resort although {certain:?} serve"
        );
        let late = endpoint
            .drain_deadline()
            .is_some_and(|at| at <= self.rig.now);
        assert!(!late, "{id:?} was picked past its drain deadline");
    }

    /// The checks after every step.
    fn look(&mut self) {
        self.rig.take_notices();
        if self.generation() != self.tried_generation {
            for request in std::mem::take(&mut self.held) {
                self.dispatch(request);
            }
            self.tried_generation = self.generation();
        }
        if self.rng.u32(..8) == 0 {
            self.rig.check();
        }
        for (id, endpoint) in &self.rig.known {
            if endpoint.is_draining() {
                self.began.insert(*id);
                assert!(
                    endpoint.enter().is_none(),
                    "{id:?} granted a lease after its drain began"
                );
            }
            assert!(
                endpoint.is_draining() || !self.began.contains(id),
                "{id:?} came back from its drain"
            );
            let over = endpoint.is_draining() && endpoint.leases() == 0;
            assert_eq!(
                self.rig.drained.contains(id),
                over,
                "{id:?}: drained is reported once, with the last lease"
            );
            self.look_at_deadline(*id, endpoint);
        }
    }

    fn look_at_deadline(&self, id: EndpointId, endpoint: &Endpoint) {
        let uid = named(endpoint).1;
        let ended_at = self.reported.ended.get(&uid);
        if endpoint.force().is_cancelled() {
            assert!(
                ended_at.is_some(),
                "{id:?} was cut, and no signal reported that its pod ends"
            );
            let deleted = self
                .truth
                .pods
                .iter()
                .find(|pod| pod.uid == uid)
                .and_then(|pod| pod.deleted);
            let earliest = deleted.expect("a pod that ended") + GRACE;
            assert!(
                self.rig.now >= earliest,
                "{id:?} was cut within its pod's grace period"
            );
        }
        // Once the end of the pod and its grace period are reported, there is a deadline.
        if let (Some(ended), Some(held)) = (ended_at, self.reported.held.get(&uid)) {
            let latest = *ended.max(held) + GRACE + 3 * SECOND;
            let cut = endpoint.force().is_cancelled() || endpoint.leases() == 0;
            assert!(
                self.rig.now < latest || cut,
                "{id:?} runs on past the end of its pod's grace period"
            );
        }
    }
}

/// No more faults: the last true state is reported, and the table must match it.
impl Run<'_> {
    fn converge(&mut self) {
        self.truth.absent = [false; SLICES.len()];
        if !self.truth.pods.iter().any(super::truth::Pod::serves) {
            let slice = self.rng.usize(..SLICES.len());
            let index =
                self.truth
                    .create("the-last".into(), self.truth.pods.len() as u8 + 1, slice);
            self.truth.pods[index].ready = true;
        }
        self.pass(10 * SECOND);
        assert!(self.pending.is_empty());
        let now = self.rig.now;
        let last = if self.silent || self.row.gaps {
            [Kind::EndpointSlice, Kind::Pod]
                .map(|kind| self.truth.list(kind, now))
                .into()
        } else {
            let mut last = self.truth.post_all(now);
            self.rng.shuffle(&mut last);
            last
        };
        for change in last {
            self.deliver(change);
            self.look();
        }
        for _ in 0..3 {
            self.probe();
            self.look();
        }
        self.rig.check();
        assert!(self.held.is_empty(), "a request is still held");
        let port = self.port();
        let usable: BTreeSet<Named> = port
            .usable
            .iter()
            .filter(|e| !e.is_ejected())
            .map(|e| named(e))
            .collect();
        for pod in &self.truth.pods {
            let named = (pod.address, pod.uid.clone());
            // A pod that is reported ready and does not listen is found out only if a client was
            // sent there.
            let unknown = pod.ready && pod.listed && pod.deleted.is_none() && !pod.listens;
            if !unknown {
                assert_eq!(
                    usable.contains(&named),
                    pod.serves(),
                    "{pod:?} in {usable:?}"
                );
            }
        }
        assert!(
            port.last_resort.is_empty(),
            "a last resort beside endpoints that serve"
        );
        // The exchanges in flight on ended pods end by their deadline.
        self.pass(GRACE + 4 * SECOND);
        self.look();
        self.flights.clear();
        self.look();
        let left = |e: &&Arc<Endpoint>| {
            self.reported.ended.contains_key(&named(e).1) && !self.rig.drained.contains(&e.id)
        };
        assert_eq!(
            self.rig.known.values().filter(left).count(),
            0,
            "an ended pod's endpoint was not drained"
        );
        assert!(
            self.port()
                .all
                .iter()
                .all(|e| self.reported.is_listed(&named(e)) || !e.is_draining())
        );
    }

    /// Everything is removed, and nothing of it may remain.
    fn end(&mut self) {
        self.figures.drains = self.rig.drained.len() as u64;
        let all = [Kind::Pod, Kind::EndpointSlice, Kind::Service];
        for kind in all {
            self.deliver(Change::Replace {
                kind,
                namespace: None,
                objects: Vec::new(),
            });
        }
        // Ten minutes later the control loop forgets the ended UIDs.
        self.rig.pass(601 * SECOND);
        let forgotten = self.rig.world.sweep(self.rig.now);
        self.rig.apply(&forgotten);
        self.rig.take_notices();
        assert_eq!(self.rig.drains.running(), 0, "a drain without an end");
        assert!(
            self.rig.table.is_empty(),
            "something of the removed objects remains"
        );
        let world = format!("{:?}", self.rig.world);
        assert!(
            !world.contains("pod-") && !world.contains("uid-"),
            "something of the removed objects remains in the world: {world}"
        );
    }
}

const CLIENT: Origin = Origin {
    client: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    scope: None,
};

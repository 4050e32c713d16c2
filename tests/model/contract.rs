//! The drain contract as a model, apart from the code. An old pod is deleted and a new one joins.
//! Proxies receive the signals late, twice and in any order, while requests are in every stage.
//! Each action is written down once. A [`Weaken`] marks the places where one line of the contract
//! can be taken away.

use crate::checker::Model;
use crate::lines;

pub const OLD: usize = 0;
pub const NEW: usize = 1;
const ENDPOINTS: [usize; 2] = [OLD, NEW];

/// Moments. In the program these are a pod's grace period, the 3 s added to it, and `hold_timeout`.
pub const GRACE: u8 = 2;
pub const SLACK: u8 = 1;
pub const HOLD: u8 = 2;
/// By then everything has ended.
pub const END: u8 = 8;
/// The deletion is requested at moment 0. By these moments each watch has reported the deletion,
/// and the removal of the pod.
const REPORTED_BY: u8 = 2;
const GONE_BY: u8 = 5;

/// The bounds of one exploration.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub name: &'static str,
    pub proxies: usize,
    /// For each request: its proxy, and whether it is idempotent.
    pub requests: &'static [(u8, bool)],
    /// No request comes after this moment.
    pub arrive_by: u8,
    /// How often each [`Signal`] may reach a proxy, in the order of [`SIGNALS`].
    pub copies: [u8; 6],
    pub deleted: bool,
    /// SIGKILL reaches the old pod. Otherwise its node is cut off, and only the drain deadline ends
    /// the pod's requests at a proxy.
    pub killed: bool,
    /// The latest moment at which the new pod is reported and at which it listens.
    pub new_by: u8,
    /// Whether the source of truth goes away for a while.
    pub gap: bool,
    /// Places in each proxy's queue of held requests.
    pub places: usize,
}

/// What a watch reports to a proxy. Reports of the old pod's slice overwrite each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Signal {
    /// Pod watch: `deletionTimestamp` is set.
    Deleting,
    /// Pod watch: the object is gone.
    Gone,
    /// Slice: the old pod terminates and serves.
    Terminating,
    /// The old pod is gone from the slices.
    Removed,
    /// Slice: the old pod is ready. This is stale as soon as the pod is deleted.
    ReadyOld,
    ReadyNew,
}

pub const SIGNALS: [Signal; 6] = [
    Signal::Deleting,
    Signal::Gone,
    Signal::Terminating,
    Signal::Removed,
    Signal::ReadyOld,
    Signal::ReadyNew,
];

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub now: u8,
    pub deleted_at: Option<u8>,
    /// The endpoint's process runs and accepts connections.
    pub up: [bool; 2],
    pub source: Source,
    pub proxies: [Proxy; 2],
    pub requests: [Request; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    Up,
    Down,
    Back,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Proxy {
    /// How often the proxy has received each signal.
    pub received: [u8; 6],
    pub step: Step,
    pub views: [View; 2],
}

/// The next action of the control loop.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Step {
    #[default]
    Idle,
    Publish,
    Drain,
}

/// One endpoint as one proxy sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct View {
    pub listed: bool,
    pub ready: bool,
    pub terminating: bool,
    pub joined: bool,
    pub ejected: bool,
    /// The place in the published snapshot.
    pub place: Place,
    pub out: bool,
    pub draining: bool,
    pub reports: u8,
    pub deadline: Option<u8>,
    pub expired: bool,
    /// The exchanges in flight are cut.
    pub forced: bool,
    /// A pooled connection exists.
    pub idle: bool,
    /// For the properties only: when the first signal that gives a deadline came, and whether a
    /// connect was refused.
    pub deadline_since: Option<u8>,
    pub refused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Place {
    #[default]
    Nowhere,
    Usable,
    LastResort,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    pub stage: Stage,
    /// The snapshot that the worker holds while it looks for an endpoint.
    pub seen: [Place; 2],
    /// The moment since which the request is held.
    pub since: Option<u8>,
    /// How many pods the request was written to.
    pub runs: u8,
    /// A byte of a response has reached the client.
    pub passed: bool,
    pub client_open: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    New,
    Looking,
    Held,
    /// The lease is entered, and the connection is not chosen yet.
    Leased(usize),
    Sent(usize),
    Begun(usize),
    Done(End),
    /// Done at an earlier moment. The outcome no longer distinguishes states.
    Past,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    Answered,
    /// The client sees that the response is not whole.
    Cut,
    /// The client does not see that the response is not whole.
    Truncated,
    /// The client gets 502.
    Lost,
    /// The hold time is over: the client gets 503.
    Expired,
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    Tick,
    Over,
    Delete,
    Die,
    StartNew,
    LoseSource,
    FindSource,
    Deliver(usize, Signal),
    Join(usize, usize),
    Publish(usize),
    Drain(usize),
    Report(usize, usize),
    Expire(usize, usize),
    Arrive(usize),
    Enter(usize, usize),
    Wait(usize),
    Wake(usize),
    HoldEnds(usize),
    Connect(usize),
    Begin(usize),
    Answer(usize),
    Lose(usize),
}

/// The line of the contract that is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weaken {
    Nothing,
    LeaseAfterDrain,
    ReportedOverALease,
    ReportedTwice,
    OnlyTheDrainerReports,
    DrainedFirst,
    IdleKept,
    CheckInUnasked,
    DeadlineExtended,
    DisappearanceCuts,
    DeadlineIgnored,
    CutImmediately,
    ForcedFirst,
    ClientClosed,
    NotReplayed,
    ReplayedAfterAByte,
    CleanEnd,
    ReadyReadmits,
    RemovalDrains,
    NeverReturns,
    PublishedUnproved,
    ConnectCosts,
    NotEjected,
    NoLastResort,
    LastResortPassedOver,
    DeferredForever,
    NotReadyUsed,
    QueueUnbounded,
    NoHold,
    HeldDropped,
    HeldForgotten,
    HeldForever,
    TableForgotten,
    PostReplayed,
    PostOnStale,
}

pub struct Contract {
    pub bounds: Bounds,
    pub weaken: Weaken,
    /// Check only this property. `None` means all.
    pub only: Option<&'static str>,
}

impl State {
    pub fn lease(&self, request: usize) -> Option<usize> {
        match self.requests[request].stage {
            Stage::Leased(endpoint) | Stage::Sent(endpoint) | Stage::Begun(endpoint) => {
                Some(endpoint)
            }
            _ => None,
        }
    }

    pub fn is_emitted(&self, signal: Signal) -> bool {
        match signal {
            Signal::Deleting | Signal::Terminating => self.deleted_at.is_some(),
            // The delay of the kubelet and of a controller is part of the signal's own delay.
            Signal::Gone => self.deleted_at.is_some(),
            Signal::Removed | Signal::ReadyOld | Signal::ReadyNew => true,
        }
    }
}

impl Request {
    fn new() -> Self {
        Self {
            stage: Stage::New,
            seen: [Place::Nowhere; 2],
            since: None,
            runs: 0,
            passed: false,
            client_open: true,
        }
    }
}

impl Proxy {
    pub fn has_received(&self, signal: Signal) -> bool {
        self.received[signal as usize] > 0
    }

    /// Whether the proxy has received a signal that the endpoint's pod terminates, however it used
    /// that signal.
    pub fn knows_end(&self, endpoint: usize) -> bool {
        endpoint == OLD
            && [Signal::Deleting, Signal::Gone, Signal::Terminating]
                .iter()
                .any(|s| self.has_received(*s))
    }

    /// The endpoint is in the published snapshot and would grant a lease.
    pub fn serves(&self, endpoint: usize) -> bool {
        let view = &self.views[endpoint];
        view.place != Place::Nowhere && !view.draining && !view.out && !view.ejected
    }
}

impl Contract {
    fn is(&self, weaken: Weaken) -> bool {
        self.weaken == weaken
    }

    /// Contract 1.7 to 1.9: the endpoint's place in the next snapshot.
    fn place(&self, proxy: &Proxy, endpoint: usize) -> Place {
        let view = &proxy.views[endpoint];
        let joined = |v: &View| v.joined || self.is(Weaken::PublishedUnproved);
        let usable = |v: &View| v.listed && v.ready && joined(v) && !v.terminating && !v.draining;
        let stays_away =
            self.is(Weaken::NeverReturns) && endpoint == OLD && proxy.has_received(Signal::Removed);
        let other = proxy.views.iter().any(|v| usable(v) && !v.ejected);
        let last = view.terminating && view.listed && !self.is(Weaken::NoLastResort)
            || self.is(Weaken::NotReadyUsed) && !view.listed && view.joined;
        let needed = !other || self.is(Weaken::DeferredForever);
        if usable(view) && !stays_away {
            Place::Usable
        } else if last && joined(view) && needed && !view.expired && !view.draining {
            Place::LastResort
        } else {
            Place::Nowhere
        }
    }

    fn is_candidate(&self, state: &State, request: usize, endpoint: usize) -> bool {
        let proxy = &state.proxies[self.proxy_of(request)];
        let seen = &state.requests[request].seen;
        let fit = |e: usize| !proxy.views[e].ejected;
        match seen[endpoint] {
            Place::Nowhere => false,
            Place::Usable => fit(endpoint),
            Place::LastResort => {
                let other = ENDPOINTS
                    .iter()
                    .any(|e| seen[*e] == Place::Usable && fit(*e));
                fit(endpoint) && !other && !self.is(Weaken::LastResortPassedOver)
            }
        }
    }

    pub fn proxy_of(&self, request: usize) -> usize {
        self.bounds.requests[request].0 as usize
    }

    pub fn is_idempotent(&self, request: usize) -> bool {
        self.bounds.requests[request].1
    }

    pub fn held(&self, state: &State, proxy: usize) -> usize {
        let waits = |r: &usize| {
            let Request { stage, since, .. } = &state.requests[*r];
            since.is_some() && matches!(stage, Stage::Held | Stage::Looking)
        };
        (0..self.bounds.requests.len())
            .filter(|r| self.proxy_of(*r) == proxy)
            .filter(waits)
            .count()
    }

    /// Offers the actions that must happen before time goes on (`urgent`), and those that may
    /// (`possible`).
    fn offer(
        &self,
        state: &State,
        mut urgent: impl FnMut(Action),
        mut possible: impl FnMut(Action),
    ) {
        let bounds = &self.bounds;
        let mut by = |moment: u8, action| {
            if state.now >= moment {
                urgent(action)
            } else {
                possible(action)
            }
        };
        match state.deleted_at {
            None if bounds.deleted => by(0, Action::Delete),
            Some(at) if state.up[OLD] => by(
                if bounds.killed { at + GRACE } else { u8::MAX },
                Action::Die,
            ),
            None | Some(_) => {}
        }
        if !state.up[NEW] {
            by(bounds.new_by, Action::StartNew);
        }
        match state.source {
            Source::Up if bounds.gap => by(u8::MAX, Action::LoseSource),
            Source::Down => by(3, Action::FindSource),
            Source::Up | Source::Back => {}
        }
        for p in 0..bounds.proxies {
            let proxy = &state.proxies[p];
            match proxy.step {
                Step::Publish => by(0, Action::Publish(p)),
                Step::Drain => by(0, Action::Drain(p)),
                Step::Idle => {
                    for signal in SIGNALS.into_iter().filter(|s| state.is_emitted(*s)) {
                        let received = proxy.received[signal as usize];
                        if state.source != Source::Down && received < bounds.copies[signal as usize]
                        {
                            let first = match signal {
                                Signal::Deleting | Signal::Terminating => REPORTED_BY,
                                Signal::Gone | Signal::Removed => GONE_BY,
                                Signal::ReadyOld if bounds.deleted => u8::MAX,
                                Signal::ReadyOld => GONE_BY,
                                Signal::ReadyNew => bounds.new_by,
                            };
                            by(
                                if received == 0 { first } else { u8::MAX },
                                Action::Deliver(p, signal),
                            );
                        }
                    }
                    for e in ENDPOINTS {
                        let view = &proxy.views[e];
                        if view.listed && view.ready && !view.joined && state.up[e] {
                            by(0, Action::Join(p, e));
                        }
                        let over = view.deadline.is_some_and(|at| state.now >= at) && !view.expired;
                        if over && !self.is(Weaken::DeadlineIgnored) {
                            by(0, Action::Expire(p, e));
                        }
                    }
                }
            }
            for e in ENDPOINTS {
                let view = &proxy.views[e];
                let leases = (0..bounds.requests.len())
                    .filter(|r| self.proxy_of(*r) == p && state.lease(*r) == Some(e))
                    .count();
                let free = leases == 0 || self.is(Weaken::ReportedOverALease);
                let most = if self.is(Weaken::ReportedTwice) { 2 } else { 1 };
                let missed = self.is(Weaken::OnlyTheDrainerReports);
                if view.draining && free && view.reports < most && !missed {
                    by(0, Action::Report(p, e));
                }
            }
        }
        for r in 0..bounds.requests.len() {
            self.offer_request(state, r, &mut by);
        }
    }

    fn offer_request(&self, state: &State, r: usize, by: &mut impl FnMut(u8, Action)) {
        let proxy = &state.proxies[self.proxy_of(r)];
        match state.requests[r].stage {
            Stage::New if state.now <= self.bounds.arrive_by => by(u8::MAX, Action::Arrive(r)),
            Stage::New | Stage::Done(_) | Stage::Past => {}
            Stage::Looking => {
                let mut none = true;
                for e in ENDPOINTS
                    .into_iter()
                    .filter(|e| self.is_candidate(state, r, *e))
                {
                    none = false;
                    by(0, Action::Enter(r, e));
                }
                if none {
                    by(0, Action::Wait(r));
                }
            }
            Stage::Held => {
                let passed_over = |e: &usize| {
                    self.is(Weaken::LastResortPassedOver)
                        && proxy.views[*e].place == Place::LastResort
                };
                let serves = ENDPOINTS
                    .iter()
                    .any(|e| proxy.serves(*e) && !passed_over(e));
                if serves && !self.is(Weaken::HeldForgotten) {
                    by(0, Action::Wake(r));
                }
                let over = state.requests[r]
                    .since
                    .is_some_and(|since| state.now >= since + HOLD);
                if over && !serves && !self.is(Weaken::HeldForever) {
                    by(0, Action::HoldEnds(r));
                }
            }
            Stage::Leased(_) => by(0, Action::Connect(r)),
            Stage::Sent(e) | Stage::Begun(e) => {
                if !state.up[e] || proxy.views[e].forced {
                    by(0, Action::Lose(r));
                } else if matches!(state.requests[r].stage, Stage::Sent(_)) {
                    by(END, Action::Begin(r));
                } else {
                    by(END, Action::Answer(r));
                }
            }
        }
    }

    fn deliver(&self, state: &mut State, p: usize, signal: Signal) {
        let deadline = state.now + GRACE + SLACK;
        let proxy = &mut state.proxies[p];
        let first = proxy.received[signal as usize] == 0;
        proxy.received[signal as usize] += 1;
        proxy.step = self.first_step();
        let view = &mut proxy.views[if signal == Signal::ReadyNew { NEW } else { OLD }];
        let sooner = view.deadline.map_or(deadline, |at| at.min(deadline));
        match signal {
            Signal::Deleting => {
                view.terminating = true;
                view.deadline = Some(if self.is(Weaken::DeadlineExtended) {
                    deadline
                } else {
                    sooner
                });
                view.deadline_since = view.deadline_since.or(Some(state.now));
                if self.is(Weaken::CutImmediately) {
                    view.deadline = Some(state.now);
                }
            }
            Signal::Gone => {
                view.terminating = true;
                view.deadline = Some(if self.is(Weaken::DisappearanceCuts) {
                    state.now
                } else {
                    sooner
                });
                view.deadline_since = view.deadline_since.or(Some(state.now));
            }
            Signal::Terminating => {
                (view.listed, view.ready, view.terminating) = (true, false, true)
            }
            Signal::Removed => {
                view.listed = false;
                if self.is(Weaken::RemovalDrains) {
                    view.terminating = true;
                }
            }
            Signal::ReadyOld | Signal::ReadyNew => {
                (view.listed, view.ready) = (true, true);
                if self.is(Weaken::ReadyReadmits) && signal == Signal::ReadyOld && first {
                    (view.terminating, view.draining) = (false, false);
                    (view.expired, view.forced) = (false, false);
                }
            }
        }
    }

    fn first_step(&self) -> Step {
        if self.is(Weaken::DrainedFirst) {
            Step::Drain
        } else {
            Step::Publish
        }
    }

    /// Contract 1.2.
    fn publish(&self, state: &mut State, p: usize) {
        let places = ENDPOINTS.map(|e| self.place(&state.proxies[p], e));
        for (view, place) in state.proxies[p].views.iter_mut().zip(places) {
            view.place = place;
            view.out &= place == Place::Nowhere;
        }
        state.proxies[p].step = if self.is(Weaken::DrainedFirst) {
            Step::Idle
        } else {
            Step::Drain
        };
    }

    /// Contract 1.1 and 1.3.
    fn drain(&self, state: &mut State, p: usize) {
        let places = ENDPOINTS.map(|e| self.place(&state.proxies[p], e));
        for e in ENDPOINTS {
            let view = &mut state.proxies[p].views[e];
            view.out = places[e] == Place::Nowhere;
            let leaves = view.terminating && view.out && !view.draining;
            view.draining |= leaves;
            view.forced |= view.expired;
            view.idle &= !view.out || self.is(Weaken::IdleKept);
            if leaves && self.is(Weaken::OnlyTheDrainerReports) {
                let busy = (0..self.bounds.requests.len())
                    .any(|r| self.proxy_of(r) == p && state.lease(r) == Some(e));
                state.proxies[p].views[e].reports += u8::from(!busy);
            }
            if leaves && self.is(Weaken::ClientClosed) {
                for r in 0..self.bounds.requests.len() {
                    if self.proxy_of(r) == p && state.lease(r) == Some(e) {
                        state.requests[r].client_open = false;
                    }
                }
            }
        }
        state.proxies[p].step = if self.is(Weaken::DrainedFirst) {
            Step::Publish
        } else {
            Step::Idle
        };
    }

    /// The lease is held: use a pooled connection or open a new one (contract 1.8, 3.1, 3.3 and
    /// 3.5).
    fn connect(&self, state: &mut State, r: usize, e: usize) {
        let first_step = self.first_step();
        let proxy = &mut state.proxies[self.proxy_of(r)];
        let view = &mut proxy.views[e];
        let request = &mut state.requests[r];
        let pooled = std::mem::take(&mut view.idle);
        if state.up[e] {
            request.stage = Stage::Sent(e);
            request.runs += 1;
        } else if pooled {
            // The pooled connection is stale. A POST finds that before it is sent, a GET after.
            // Both go out on a new connection.
            if self.is(Weaken::PostOnStale) && !self.is_idempotent(r) {
                request.stage = Stage::Done(End::Lost);
            }
        } else {
            view.refused = true;
            if !self.is(Weaken::NotEjected) {
                view.ejected = true;
                proxy.step = first_step;
            }
            request.stage = if self.is(Weaken::ConnectCosts) {
                Stage::Done(End::Lost)
            } else {
                Stage::Looking
            };
        }
    }

    /// Contract 1.6 and 3.2 to 3.4.
    fn lose(&self, state: &mut State, r: usize) {
        let again =
            self.is_idempotent(r) && !self.is(Weaken::NotReplayed) || self.is(Weaken::PostReplayed);
        let again = again && !state.requests[r].passed || self.is(Weaken::ReplayedAfterAByte);
        if again {
            self.look(state, r);
            return;
        }
        state.requests[r].stage = Stage::Done(match state.requests[r].passed {
            true if self.is(Weaken::CleanEnd) => End::Truncated,
            true => End::Cut,
            false => End::Lost,
        });
    }

    fn look(&self, state: &mut State, r: usize) {
        let views = &state.proxies[self.proxy_of(r)].views;
        state.requests[r].seen = [views[OLD].place, views[NEW].place];
        state.requests[r].stage = Stage::Looking;
    }

    /// No endpoint to dispatch to (contract 1.9).
    fn wait(&self, state: &mut State, r: usize) {
        let full = state.requests[r].since.is_none()
            && self.held(state, self.proxy_of(r)) >= self.bounds.places
            && !self.is(Weaken::QueueUnbounded);
        let request = &mut state.requests[r];
        if self.is(Weaken::NoHold) {
            request.stage = Stage::Done(End::Expired);
        } else if full {
            request.stage = Stage::Done(End::Full);
        } else {
            request.since = request.since.or(Some(state.now));
            request.stage = Stage::Held;
        }
    }
}

impl Model for Contract {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        let old = View {
            listed: true,
            ready: true,
            joined: true,
            place: Place::Usable,
            ..View::default()
        };
        let new = View {
            out: true,
            ..View::default()
        };
        let proxy = Proxy {
            views: [old, new],
            ..Proxy::default()
        };
        State {
            now: 0,
            deleted_at: None,
            up: [true, false],
            source: Source::Up,
            proxies: [proxy.clone(), proxy],
            requests: [Request::new(), Request::new()],
        }
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut waits = false;
        let mut possible = Vec::new();
        self.offer(
            state,
            |action| {
                waits = true;
                actions.push(action);
            },
            |action| possible.push(action),
        );
        actions.append(&mut possible);
        if !waits {
            actions.push(if state.now < END {
                Action::Tick
            } else {
                Action::Over
            });
        }
    }

    fn next(&self, before: &State, action: Action) -> State {
        let mut state = before.clone();
        for request in state
            .requests
            .iter_mut()
            .filter(|r| matches!(r.stage, Stage::Done(_)))
        {
            *request = Request {
                stage: Stage::Past,
                client_open: request.client_open,
                ..Request::new()
            };
        }
        match action {
            Action::Tick => state.now += 1,
            Action::Over => {}
            Action::Delete => state.deleted_at = Some(state.now),
            Action::Die => state.up[OLD] = false,
            Action::StartNew => state.up[NEW] = true,
            Action::LoseSource => {
                state.source = Source::Down;
                if self.is(Weaken::TableForgotten) {
                    for proxy in &mut state.proxies {
                        proxy.views.iter_mut().for_each(|view| view.listed = false);
                        proxy.step = Step::Publish;
                    }
                }
            }
            Action::FindSource => state.source = Source::Back,
            Action::Deliver(p, signal) => self.deliver(&mut state, p, signal),
            Action::Join(p, e) => {
                state.proxies[p].views[e].joined = true;
                state.proxies[p].step = self.first_step();
            }
            Action::Publish(p) => self.publish(&mut state, p),
            Action::Drain(p) => self.drain(&mut state, p),
            Action::Report(p, e) => state.proxies[p].views[e].reports += 1,
            Action::Expire(p, e) => {
                state.proxies[p].views[e].expired = true;
                state.proxies[p].views[e].forced = self.is(Weaken::ForcedFirst);
                state.proxies[p].step = self.first_step();
            }
            Action::Arrive(r) | Action::Wake(r) => {
                if action == Action::Wake(r) && self.is(Weaken::HeldDropped) {
                    state.requests[r].stage = Stage::Done(End::Expired);
                } else {
                    self.look(&mut state, r);
                }
            }
            Action::Enter(r, e) => {
                let view = &state.proxies[self.proxy_of(r)].views[e];
                if !view.draining && !view.out || self.is(Weaken::LeaseAfterDrain) {
                    state.requests[r].stage = Stage::Leased(e);
                    state.requests[r].since = None;
                } else {
                    state.requests[r].seen[e] = Place::Nowhere;
                }
            }
            Action::Wait(r) => self.wait(&mut state, r),
            Action::HoldEnds(r) => state.requests[r].stage = Stage::Done(End::Expired),
            Action::Connect(r) => {
                if let Stage::Leased(e) = state.requests[r].stage {
                    self.connect(&mut state, r, e);
                }
            }
            Action::Begin(r) => {
                if let Stage::Sent(e) = state.requests[r].stage {
                    state.requests[r].stage = Stage::Begun(e);
                    state.requests[r].passed = true;
                }
            }
            Action::Answer(r) => {
                if let Stage::Begun(e) = state.requests[r].stage {
                    let view = &mut state.proxies[self.proxy_of(r)].views[e];
                    view.idle |= !view.draining && !view.out || self.is(Weaken::CheckInUnasked);
                    state.requests[r].stage = Stage::Done(End::Answered);
                }
            }
            Action::Lose(r) => self.lose(&mut state, r),
        }
        state
    }

    fn broken(&self, before: &State, action: Action, after: &State) -> Option<&'static str> {
        let step = lines::Step {
            model: self,
            before,
            action,
            after,
        };
        let asked = lines::LINES
            .iter()
            .filter(|(name, _)| self.only.is_none_or(|only| only == *name));
        asked
            .into_iter()
            .find(|(_, breaks)| breaks(&step))
            .map(|(name, _)| *name)
    }
}

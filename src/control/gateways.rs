//! When the Gateway API's objects are planned again, and what the planner is told (`planner.rs`).
//!
//! Invariant: many changes that come together cost one plan, one plan is made at a time, and plans take
//! at most a part of a processor's time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::contract::authorities::{FoundAuthorities, Holder};
use crate::contract::name::ObjectName;
use crate::control::pace::Pace;
use crate::control::planner::{Made, News, Planner, Told};
use crate::discovery::gateway::GatewayKind;
use crate::routing::gateway::facts::ports_of;
use crate::routing::world::objects::World;

/// The planner, and what it does not know yet.
pub struct Gateways {
    planner: Place,
    /// Objects that have changed.
    changed: BTreeSet<(GatewayKind, ObjectName)>,
    /// What else is new.
    news: News,
    /// When the next plan is begun.
    pace: Pace,
    /// A plan is being made.
    is_planning: bool,
    /// Services that routes name: since when, and what the planner was told.
    services: BTreeMap<ObjectName, (Instant, Told)>,
    /// When Services are looked at that have not been read.
    unread: Option<Instant>,
    /// Whether a Service that is named is read some time later.
    in_use_is_watched: bool,
    made: mpsc::UnboundedReceiver<Made>,
    made_in: mpsc::UnboundedSender<Made>,
}

enum Place {
    /// There are no Gateways.
    Nowhere,
    /// It plans on the control thread, while nobody waits for that.
    Here(Box<Planner>),
    /// On its own.
    There(Sender<News>),
}

impl Gateways {
    /// Without a planner, nothing is planned.
    pub fn new(planner: Option<Planner>, in_use_is_watched: bool) -> Self {
        let (made_in, made) = mpsc::unbounded_channel();
        Self {
            planner: planner.map_or(Place::Nowhere, |it| Place::Here(Box::new(it))),
            changed: BTreeSet::new(),
            news: News::default(),
            pace: Pace::of(PAUSE),
            is_planning: false,
            services: BTreeMap::new(),
            unread: None,
            in_use_is_watched,
            made,
            made_in,
        }
    }

    /// Waits for a plan. Cancellation safe.
    pub(super) async fn made(&mut self) -> Made {
        match self.made.recv().await {
            Some(made) => made,
            // This holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// When there is something to do.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let times = [self.next_plan(), self.unread];
        times.into_iter().flatten().min()
    }

    fn next_plan(&self) -> Option<Instant> {
        let can_begin = !self.is_planning && matches!(self.planner, Place::There(_));
        self.pace.due().filter(|_| can_begin)
    }

    /// Takes in what is known of a Secret.
    pub(super) fn secret(
        &mut self,
        name: ObjectName,
        found: Result<(), String>,
        named: &BTreeSet<ObjectName>,
    ) {
        if matches!(self.planner, Place::Nowhere) {
            return;
        }
        if named.contains(&name) {
            self.pace.note(Instant::now());
        }
        self.news.secrets.insert(name, found);
    }

    /// Takes in what is known of an object with authorities; `None`: nobody looks at it any more.
    pub(super) fn authorities(
        &mut self,
        holder: Holder,
        found: Option<FoundAuthorities>,
        named: &BTreeSet<Holder>,
    ) {
        if matches!(self.planner, Place::Nowhere) {
            return;
        }
        if named.contains(&holder) {
            self.pace.note(Instant::now());
        }
        self.news.authorities.insert(holder, found);
    }

    /// Plans soon.
    pub(super) fn note(&mut self) {
        self.pace.note(Instant::now());
    }

    /// From here on, a Secret or an object with authorities of which nothing is known does not exist.
    pub(super) fn all_secrets_are_known(&mut self) {
        self.news.knows_all_secrets = true;
    }

    /// Takes in which objects and Services may have changed.
    pub(super) fn touched(
        &mut self,
        objects: &mut BTreeSet<(GatewayKind, ObjectName)>,
        services: &BTreeSet<ObjectName>,
        world: &World,
    ) {
        if !objects.is_empty() && !matches!(self.planner, Place::Nowhere) {
            self.changed.append(objects);
            self.pace.note(Instant::now());
        }
        if !self.services.is_empty() {
            services.iter().for_each(|name| self.look(name, world));
        }
    }

    /// Begins a plan, if one is due. What comes of it is given later, by [`Self::made`].
    pub(super) fn begin(&mut self, world: &World) {
        let now = Instant::now();
        if self.unread.is_some_and(|at| at <= now) {
            self.unread = None;
            let unread = self.services.iter().filter(|(_, (_, told))| told.is_none());
            let unread: Vec<_> = unread.map(|(name, _)| name.clone()).collect();
            unread.iter().for_each(|name| self.look(name, world));
        }
        if self.next_plan().is_some_and(|at| at <= now) {
            let news = self.news(world);
            if let Place::There(planner) = &self.planner {
                self.is_planning = planner.send(news).is_ok();
                if !self.is_planning {
                    tracing::error!(
                        "the planner thread has ended; changes of Gateways and their routes are not served"
                    );
                }
            }
        }
    }

    /// Makes a plan at once, if there is something new. The caller waits for it, and later ones are made
    /// by themselves.
    pub(super) fn plan_now(&mut self, world: &World) -> Option<Made> {
        self.pace.due()?;
        let news = self.news(world);
        match &mut self.planner {
            Place::Here(planner) => Some(planner.plan(news)),
            _ => None,
        }
    }

    /// What is told from now on is not told again.
    fn news(&mut self, world: &World) -> News {
        self.pace.begin();
        let objects = std::mem::take(&mut self.changed).into_iter();
        let objects = objects.map(|key| {
            let object = world.gateways().get(&key).cloned();
            (key, object)
        });
        self.news.objects = objects.collect();
        std::mem::take(&mut self.news)
    }

    /// Takes in which Services a plan names.
    pub(super) fn take(&mut self, made: &Made, world: &World) {
        self.is_planning = false;
        self.pace.took(made.began, made.took);
        for name in &made.differ {
            if made.plan.services.contains(name) {
                self.services.insert(name.clone(), (made.began, None));
                self.look(name, world);
            } else {
                self.services.remove(name);
            }
        }
    }

    /// Plans from now on a thread of their own. Called when what the source had at the start is in force.
    pub(super) fn move_away(&mut self) {
        let Place::Here(planner) = std::mem::replace(&mut self.planner, Place::Nowhere) else {
            return;
        };
        match planner.start(self.made_in.clone()) {
            Ok(news) => self.planner = Place::There(news),
            Err(error) => {
                tracing::error!(%error, "the planner thread cannot run; changes of Gateways and their routes are not served");
            }
        }
    }

    /// Tells of a Service that a route names, if there is something to tell.
    fn look(&mut self, name: &ObjectName, world: &World) {
        let Some((since, told)) = self.services.get_mut(name) else {
            return;
        };
        let until = *since + FIRST_LOOK;
        let now = match ports_of(world, name) {
            None if self.in_use_is_watched && Instant::now() < until => None,
            ports => Some(ports),
        };
        if now.is_none() {
            let at = until + PAUSE;
            self.unread = Some(self.unread.map_or(at, |before| before.min(at)));
        }
        if now != *told {
            told.clone_from(&now);
            self.news.services.insert(name.clone(), now);
            self.pace.note(Instant::now());
        }
    }
}

/// The least time from one plan to the next.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a Service that was just named may take to be read.
const FIRST_LOOK: Duration = Duration::from_secs(2);

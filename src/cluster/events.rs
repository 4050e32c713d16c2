//! Kubernetes Events on Services: what `kubectl describe service` shows of drains, rollouts and
//! faults.
//!
//! A cluster may have a thousand instances, and each Event is an object in the API server's store.
//! So the name of an Event that several instances would post is made from what it is about: the
//! first instance makes it, and the others are told that it exists. Receipts come from each
//! instance, at random times within `SPREAD`.
//!
//! Events are for people and may be lost, because the queue is bounded: an API server that does not
//! answer costs only Events. One kind is never lost: what a claimed Service loses
//! ([`Reason::NotServed`]). It waits in a queue of its own, in any order, and the pauses grow while
//! other instances are faster.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use tokio::sync::mpsc;

use crate::contract::name::ObjectName;
use crate::text;

/// An Event that is to be posted.
#[derive(Debug, Clone)]
pub struct Event {
    /// The Service that the Event is about.
    pub service: ObjectName,
    /// The Service's UID. `kubectl describe` selects Events by it.
    pub uid: Option<String>,
    /// What happened.
    pub reason: Reason,
    /// What it is about, besides the Service: a pod's UID. Then the first instance that posts it
    /// speaks for all.
    pub about: Option<String>,
    /// The text of the Event, one line.
    pub note: String,
}

/// What an Event reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A drain has ended.
    Drained,
    /// A drain has ended, and something was cut.
    DrainForced,
    /// A rollout is over. The text is its receipt.
    RolledOut,
    /// A rollout is over, and requests failed.
    RolloutFailed,
    /// A nodePort or a listener cannot be bound.
    PortNotBound,
    /// A field, slice or annotation of the Service is not served as it says.
    NotServed,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "EndpointDrained",
            Self::DrainForced => "EndpointDrainForced",
            Self::RolledOut => "RolloutReceipt",
            Self::RolloutFailed => "RolloutFailures",
            Self::PortNotBound => "PortNotBound",
            Self::NotServed => "NotServed",
        }
    }

    fn is_warning(self) -> bool {
        !matches!(self, Self::Drained | Self::RolledOut)
    }

    fn is_receipt(self) -> bool {
        matches!(self, Self::RolledOut | Self::RolloutFailed)
    }

    fn action(self) -> &'static str {
        match self {
            Self::Drained | Self::DrainForced | Self::RolledOut | Self::RolloutFailed => "Drain",
            Self::PortNotBound => "Listen",
            Self::NotServed => "Serve",
        }
    }
}

/// The queues of Events. They never wait. Without an API server they drop every Event.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<(mpsc::Sender<Event>, mpsc::UnboundedSender<Event>)>);

/// The other end of the queues, for [`run`].
pub struct Queue {
    events: mpsc::Receiver<Event>,
    /// Unbounded: a Service has a few warnings, and each is sent once.
    unserved: mpsc::UnboundedReceiver<Event>,
}

impl Events {
    /// The queues and their other end.
    pub fn queue() -> (Self, Queue) {
        let (sender, events) = mpsc::channel(QUEUED);
        let (slow, unserved) = mpsc::unbounded_channel();
        let queue = Queue { events, unserved };
        (Self(Some((sender, slow))), queue)
    }

    /// Queues an Event. A full queue drops it, unless it says what is not served.
    pub fn post(&self, event: Event) {
        let Some((queue, slow)) = &self.0 else {
            return;
        };
        if event.reason == Reason::NotServed {
            // The receiver is gone only when the process ends.
            let _ = slow.send(event);
        } else if queue.try_send(event).is_err() {
            tracing::debug!("an Event is dropped: the queue is full");
        }
    }
}

/// Posts Events until every [`Events`] is dropped. `errors` counts failures by kind: `event`.
/// Cancellation loses the Events that are queued.
pub async fn run(client: Client, mut queue: Queue, errors: impl Fn(&'static str)) {
    // The manifests set `POD_NAME`. A pod with the node's network has the node's host name.
    let instance = std::env::var("POD_NAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let instance = instance.unwrap_or_default().trim().to_owned();
    let mut poster = Poster {
        client,
        instance,
        allowance: Allowance::new(Instant::now()),
        failed: false,
        errors,
    };
    let mut waiting = Waiting::default();
    let mut pace = Pace::new(Instant::now());
    loop {
        let due = waiting
            .due()
            .into_iter()
            .chain(pace.at.filter(|_| waiting.has_unserved()))
            .min();
        let alarm = due.unwrap_or_else(Instant::now).into();
        tokio::select! {
            event = queue.events.recv() => match event {
                Some(event) if event.reason.is_receipt() => waiting.later(event),
                Some(event) => poster.post_allowed(&event).await,
                None => return,
            },
            Some(event) = queue.unserved.recv() => waiting.take_unserved(event, &poster.instance),
            () = tokio::time::sleep_until(alarm), if due.is_some() => {
                let now = Instant::now();
                while let Some(event) = waiting.next_due(now) {
                    poster.post_allowed(&event).await;
                }
                if pace.at.is_none_or(|at| at <= now)
                    && let Some((name, event)) = waiting.any_unserved()
                {
                    let posted = poster.post(&event).await;
                    if posted == Posted::Failed {
                        waiting.put_back(name, event);
                    }
                    pace.after(&posted, Instant::now());
                }
            }
        }
    }
}

/// What became of an Event.
#[derive(Debug, PartialEq, Eq)]
enum Posted {
    Created,
    /// Another instance, or this one, has posted it.
    Exists,
    /// The API server will never take it.
    Refused,
    Failed,
}

struct Poster<E> {
    client: Client,
    instance: String,
    allowance: Allowance,
    failed: bool,
    errors: E,
}

impl<E: Fn(&'static str)> Poster<E> {
    /// Posts an Event if the allowance is not used up.
    async fn post_allowed(&mut self, event: &Event) {
        if self.allowance.take(Instant::now()) {
            self.post(event).await;
        } else {
            tracing::debug!(service = %event.service, note = event.note, "an Event is dropped: more than the allowance");
        }
    }

    async fn post(&mut self, event: &Event) -> Posted {
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), &event.service.namespace);
        let object = object(event, &self.instance);
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => {
                self.failed = false;
                Posted::Created
            }
            Err(Error::Api(status)) if status.code == 409 => Posted::Exists,
            Err(error) => {
                (self.errors)("event");
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(error = text::chain(&error), "cannot post Events");
                }
                match error {
                    // Its namespace is gone, or the Event breaks a rule of the API.
                    Error::Api(status) if matches!(status.code, 404 | 422) => Posted::Refused,
                    _ => Posted::Failed,
                }
            }
        }
    }
}

/// Events that are not due yet.
#[derive(Default)]
struct Waiting {
    /// Receipts by their times, with a number that keeps equal times apart.
    receipts: BTreeMap<(Instant, u64), Event>,
    count: u64,
    /// What is not served, by the Events' names, so that each waits once.
    unserved: BTreeMap<String, Event>,
}

impl Waiting {
    /// Keeps a receipt for a random time. Too many are dropped.
    fn later(&mut self, event: Event) {
        if self.receipts.len() < QUEUED {
            self.count += 1;
            let at = Instant::now() + SPREAD.mul_f64(fastrand::f64());
            self.receipts.insert((at, self.count), event);
        }
    }

    /// When the first receipt is due.
    fn due(&self) -> Option<Instant> {
        self.receipts.keys().next().map(|(at, _)| *at)
    }

    fn next_due(&mut self, now: Instant) -> Option<Event> {
        let first = self.receipts.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn has_unserved(&self) -> bool {
        !self.unserved.is_empty()
    }

    fn take_unserved(&mut self, event: Event, instance: &str) {
        let name = object(&event, instance).metadata.name.unwrap_or_default();
        let key = format!("{}/{name}", event.service.namespace);
        self.unserved.insert(key, event);
    }

    fn put_back(&mut self, name: String, event: Event) {
        self.unserved.entry(name).or_insert(event);
    }

    /// Takes any of them, so that the instances of a cluster begin at different ones.
    fn any_unserved(&mut self) -> Option<(String, Event)> {
        let place = fastrand::usize(..self.unserved.len().max(1));
        let name = self.unserved.keys().nth(place)?.clone();
        self.unserved.remove_entry(&name)
    }
}

/// When the next Event about something that is not served is posted. The pause is random within its
/// upper half.
struct Pace {
    pause: Duration,
    at: Option<Instant>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        let at = Some(now + EVERY.mul_f64(fastrand::f64()));
        Self { pause: EVERY, at }
    }

    /// The pause doubles while other instances are faster, or the API server fails.
    fn after(&mut self, posted: &Posted, now: Instant) {
        self.pause = match posted {
            Posted::Created => EVERY,
            Posted::Exists | Posted::Refused | Posted::Failed => (self.pause * 2).min(SLOWEST),
        };
        self.at = Some(now + self.pause.mul_f64(0.5 + fastrand::f64() / 2.0));
    }
}

fn object(event: &Event, instance: &str) -> ApiEvent {
    let Event {
        service,
        uid,
        reason,
        about,
        note,
    } = event;
    let mut hasher = DefaultHasher::new();
    (reason.as_str(), uid).hash(&mut hasher);
    match (reason, about) {
        (Reason::NotServed, _) => note.hash(&mut hasher),
        (Reason::PortNotBound, _) => (note, instance).hash(&mut hasher),
        (_, Some(about)) => about.hash(&mut hasher),
        (_, None) => fastrand::u64(..).hash(&mut hasher),
    }
    let mut note = note.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    ApiEvent {
        metadata: ObjectMeta {
            // The API's own recorders make names in this way: the object's name, cut to leave room,
            // and something unique.
            name: Some(format!("{:.200}.{:016x}", service.name, hasher.finish())),
            namespace: Some(service.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        type_: Some(
            if reason.is_warning() {
                "Warning"
            } else {
                "Normal"
            }
            .to_owned(),
        ),
        reason: Some(reason.as_str().to_owned()),
        action: Some(reason.action().to_owned()),
        note: Some(note),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            uid: uid.clone(),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        // The API bounds the instance's length (128). The host's name may be longer.
        reporting_instance: Some(
            if instance.is_empty() {
                "ebbtide"
            } else {
                instance
            }
            .chars()
            .take(128)
            .collect(),
        ),
        ..ApiEvent::default()
    }
}

/// A token bucket: a burst, then one Event for each [`EVERY`].
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.left = (self.left
            + now.saturating_duration_since(self.at).as_secs_f64() / EVERY.as_secs_f64())
        .min(BURST);
        self.at = now;
        let some = self.left >= 1.0;
        if some {
            self.left -= 1.0;
        }
        some
    }
}

const CONTROLLER: &str = "ebbtide.dev/ebbtide";
/// Events that may wait to be posted.
const QUEUED: usize = 256;
/// Events that may be posted without a pause.
const BURST: f64 = 50.0;
/// The pause between Events after the burst, and between those about what is not served.
const EVERY: Duration = Duration::from_secs(1);
/// The longest pause between Events about what is not served.
const SLOWEST: Duration = Duration::from_secs(60);
/// Within this time, the instances of a cluster post their receipts of one rollout.
const SPREAD: Duration = Duration::from_secs(10);
/// Bytes of a text. The API refuses more than 1,024.
const LONGEST_NOTE: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: Reason, note: &str) -> Event {
        Event {
            service: ObjectName::new("web", "shop"),
            uid: Some("7".into()),
            reason,
            about: None,
            note: note.into(),
        }
    }

    fn of_pod(reason: Reason, pod: &str, note: &str) -> Event {
        let about = Some(pod.to_owned());
        Event {
            about,
            ..event(reason, note)
        }
    }

    #[test]
    fn an_event_of_all_instances_has_one_name_and_others_have_their_own() {
        let name = |reason, note, instance| {
            object(&event(reason, note), instance)
                .metadata
                .name
                .unwrap()
        };
        assert_eq!(
            name(Reason::NotServed, "a", "n1"),
            name(Reason::NotServed, "a", "n2")
        );
        assert_ne!(
            name(Reason::NotServed, "a", "n1"),
            name(Reason::NotServed, "b", "n1")
        );
        assert_eq!(
            name(Reason::PortNotBound, "a", "n1"),
            name(Reason::PortNotBound, "a", "n1")
        );
        assert_ne!(
            name(Reason::PortNotBound, "a", "n1"),
            name(Reason::PortNotBound, "a", "n2")
        );
        assert_ne!(
            name(Reason::RolledOut, "a", "n1"),
            name(Reason::RolledOut, "a", "n1"),
            "each instance has its own receipt"
        );
        let name = |reason, pod, instance: &str| {
            let event = of_pod(reason, pod, &format!("in 3 s, by {instance}"));
            object(&event, instance).metadata.name.unwrap()
        };
        let drained = name(Reason::Drained, "p1", "n1");
        assert_eq!(
            drained,
            name(Reason::Drained, "p1", "n2"),
            "one instance speaks for all"
        );
        assert_ne!(drained, name(Reason::Drained, "p2", "n1"));
        assert_ne!(drained, name(Reason::DrainForced, "p1", "n1"));
    }

    #[test]
    fn what_is_not_served_waits_once_and_is_never_dropped() {
        let (events, mut queue) = Events::queue();
        for n in 0..3 * QUEUED {
            events.post(event(Reason::NotServed, &format!("field {}", n / 2)));
        }
        let mut waiting = Waiting::default();
        while let Ok(event) = queue.unserved.try_recv() {
            waiting.take_unserved(event, "n1");
        }
        let mut notes = std::collections::BTreeSet::new();
        while let Some((_, event)) = waiting.any_unserved() {
            notes.insert(event.note);
        }
        assert_eq!(notes.len(), 3 * QUEUED / 2);
    }

    #[test]
    fn the_pause_grows_while_others_are_faster() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let mut pause = |posted| {
            pace.after(&posted, now);
            pace.at.unwrap() - now
        };
        assert!(pause(Posted::Created) <= EVERY);
        assert!(pause(Posted::Exists) > EVERY / 2);
        (0..8).for_each(|_| _ = pause(Posted::Exists));
        assert!(pause(Posted::Failed) >= SLOWEST / 2);
        assert!(pause(Posted::Created) <= EVERY);
    }

    #[test]
    fn receipts_wait_for_a_random_time_and_come_out_in_order() {
        let mut waiting = Waiting::default();
        (0..QUEUED + 10).for_each(|_| waiting.later(event(Reason::RolledOut, "")));
        assert!(waiting.next_due(Instant::now() - SPREAD).is_none());
        let end = Instant::now() + SPREAD;
        assert_eq!(std::iter::from_fn(|| waiting.next_due(end)).count(), QUEUED);
        assert_eq!(waiting.due(), None);
    }

    #[test]
    fn an_event_stays_within_the_api_s_bounds() {
        let object = object(
            &event(Reason::DrainForced, &"é".repeat(900)),
            &"n".repeat(300),
        );
        assert!(object.note.unwrap().len() <= 1_024);
        assert!(object.reporting_instance.unwrap().len() <= 128);
        assert_eq!(object.type_.as_deref(), Some("Warning"));
        assert_eq!(object.regarding.unwrap().uid.as_deref(), Some("7"));
    }

    #[test]
    fn a_burst_is_allowed_and_then_one_event_a_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let taken = |allowance: &mut Allowance, after: u64| {
            (0..100)
                .filter(|_| allowance.take(start + Duration::from_secs(after)))
                .count()
        };
        assert_eq!(taken(&mut allowance, 0), 50);
        assert_eq!(taken(&mut allowance, 3), 3);
        assert_eq!(taken(&mut allowance, 3_600), 50);
    }

    #[test]
    fn without_an_api_server_events_are_dropped_and_a_full_queue_does_not_wait() {
        Events::default().post(event(Reason::Drained, ""));
        let (events, queue) = Events::queue();
        for _ in 0..QUEUED + 10 {
            events.post(event(Reason::Drained, ""));
        }
        assert_eq!(queue.events.len(), QUEUED);
    }
}

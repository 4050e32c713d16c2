//! Kubernetes Events on Services, Ingress objects and nodes: what `kubectl describe` shows of drains, rollouts and
//! faults.
//!
//! A cluster may have a thousand instances, and each Event is an object in the API server's store.
//! So the name of an Event that several instances would post is made from what it is about
//! (`event.rs`): the first instance makes it, and the others are told that it exists. Receipts come
//! from each instance, at random times within `SPREAD`.
//!
//! Events are for people and may be lost, because the queue is bounded: an API server that does not
//! answer costs only Events. One kind is never lost: what a claimed Service loses
//! ([`Reason::NotServed`]). It waits in a queue of its own, in any order, and the pauses grow while
//! other instances are faster.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::Event as ApiEvent;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tokio::sync::mpsc;

use crate::cluster::event::{Event, Reason, object};
use crate::cluster::instance::instance;
use crate::text;

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
    let mut poster = Poster {
        client,
        instance: instance(),
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
            tracing::debug!(subject = %event.subject, note = event.note, "an Event is dropped: more than the allowance");
        }
    }

    async fn post(&mut self, event: &Event) -> Posted {
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), event.subject.namespace());
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
        let key = format!("{}/{name}", event.subject.namespace());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::event::tests::event;

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

//! Kubernetes Events on Services: what `kubectl describe service` shows of drains, rollouts and
//! faults.
//!
//! Events are for people and may be lost. The queue is bounded, so an API server that does not
//! answer costs only Events. Each instance posts a burst, then one a second. The name of an Event
//! that every instance of a cluster would post is made from its content, so that the cluster has it
//! once.

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

    fn action(self) -> &'static str {
        match self {
            Self::Drained | Self::DrainForced | Self::RolledOut | Self::RolloutFailed => "Drain",
            Self::PortNotBound => "Listen",
            Self::NotServed => "Serve",
        }
    }
}

/// The queue of Events. It never waits. Without an API server it drops every Event.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<mpsc::Sender<Event>>);

impl Events {
    /// A queue and its receiver, for [`run`].
    pub fn queue() -> (Self, mpsc::Receiver<Event>) {
        let (sender, queue) = mpsc::channel(QUEUED);
        (Self(Some(sender)), queue)
    }

    /// Queues an Event. A full queue drops it.
    pub fn post(&self, event: Event) {
        if let Some(queue) = &self.0
            && queue.try_send(event).is_err()
        {
            tracing::debug!("an Event is dropped: the queue is full");
        }
    }
}

/// Posts Events until every [`Events`] is dropped. `errors` counts failures by kind: `event`.
/// Cancellation loses the Events that are queued.
pub async fn run(client: Client, mut queue: mpsc::Receiver<Event>, errors: impl Fn(&'static str)) {
    // The manifests set `POD_NAME`. A pod with the node's network has the node's host name.
    let instance = std::env::var("POD_NAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let instance = instance.unwrap_or_default().trim().to_owned();
    let mut allowance = Allowance::new(Instant::now());
    let mut failed = false;
    while let Some(event) = queue.recv().await {
        if !allowance.take(Instant::now()) {
            tracing::debug!(service = %event.service, note = event.note, "an Event is dropped: more than the allowance");
            continue;
        }
        let api: Api<ApiEvent> = Api::namespaced(client.clone(), &event.service.namespace);
        match api
            .create(&PostParams::default(), &object(&event, &instance))
            .await
        {
            Ok(_) => failed = false,
            // Another instance, or this one, has posted the same Event.
            Err(Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                errors("event");
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(error = text::chain(&error), "cannot post Events");
                }
            }
        }
    }
}

fn object(event: &Event, instance: &str) -> ApiEvent {
    let Event {
        service,
        uid,
        reason,
        note,
    } = event;
    let mut hasher = DefaultHasher::new();
    (reason.as_str(), note, uid).hash(&mut hasher);
    match reason {
        Reason::NotServed => {}
        Reason::PortNotBound => instance.hash(&mut hasher),
        _ => fastrand::u64(..).hash(&mut hasher),
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
/// The pause between Events after the burst.
const EVERY: Duration = Duration::from_secs(1);
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
            note: note.into(),
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
            name(Reason::Drained, "a", "n1"),
            name(Reason::Drained, "a", "n1")
        );
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
        assert_eq!(queue.len(), QUEUED);
    }
}

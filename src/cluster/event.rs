//! One Event on a Service: what it says, and the object that the API server gets.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as ApiEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;

use crate::contract::name::ObjectName;

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

    pub(super) fn is_receipt(self) -> bool {
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

/// The object of an Event. If several instances would post it, they give it the same name.
pub(super) fn object(event: &Event, instance: &str) -> ApiEvent {
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

const CONTROLLER: &str = "ebbtide.dev/ebbtide";
/// Bytes of a text. The API refuses more than 1,024.
const LONGEST_NOTE: usize = 1_000;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cluster) fn event(reason: Reason, note: &str) -> Event {
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
}

//! One Event on a Service, an Ingress or a node: what it says, and the object that the API server gets.

use std::fmt;
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
    /// The object that the Event is about.
    pub subject: Subject,
    /// What happened.
    pub reason: Reason,
    /// What it is about, besides its object: a pod's UID. Then the first instance that posts it
    /// speaks for all.
    pub about: Option<String>,
    /// The text of the Event, one line.
    pub note: String,
}

/// What `kubectl describe` shows an Event with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A Service, with its UID. `kubectl describe` selects Events by it.
    Service(ObjectName, Option<String>),
    /// An Ingress, with its UID.
    Ingress(ObjectName, Option<String>),
    /// This node, by its name.
    Node(String),
}

impl Subject {
    /// The namespace of its Events. Those of an object without a namespace are in `default`.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Service(it, _) | Self::Ingress(it, _) => &it.namespace,
            Self::Node(_) => "default",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Service(it, _) | Self::Ingress(it, _) => &it.name,
            Self::Node(name) => name,
        }
    }

    fn reference(&self) -> ObjectReference {
        let (kind, namespace, uid) = match self {
            Self::Service(service, uid) => ("Service", Some(&service.namespace), uid.as_ref()),
            // The kubelet gives a node's name as its UID, too, and `kubectl describe` knows that.
            Self::Node(name) => ("Node", None, Some(name)),
            Self::Ingress(ingress, uid) => ("Ingress", Some(&ingress.namespace), uid.as_ref()),
        };
        let version = match self {
            Self::Service(..) | Self::Node(_) => "v1",
            Self::Ingress(..) => "networking.k8s.io/v1",
        };
        ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(kind.to_owned()),
            namespace: namespace.cloned(),
            name: Some(self.name().to_owned()),
            uid: uid.cloned(),
            ..ObjectReference::default()
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service, _) => write!(f, "{service}"),
            Self::Ingress(ingress, _) => write!(f, "Ingress {ingress}"),
            Self::Node(name) => write!(f, "node {name}"),
        }
    }
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
    /// A field, slice or annotation of the Service, or something of the Ingress, is not served as it says.
    NotServed,
    /// A firewall of the node keeps clients from the proxy.
    ClientsBlocked,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::Drained,
        Self::DrainForced,
        Self::RolledOut,
        Self::RolloutFailed,
        Self::PortNotBound,
        Self::NotServed,
        Self::ClientsBlocked,
    ];

    /// As the API has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "EndpointDrained",
            Self::DrainForced => "EndpointDrainForced",
            Self::RolledOut => "RolloutReceipt",
            Self::RolloutFailed => "RolloutFailures",
            Self::PortNotBound => "PortNotBound",
            Self::NotServed => "NotServed",
            Self::ClientsBlocked => "ClientsBlocked",
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
            Self::NotServed | Self::ClientsBlocked => "Serve",
        }
    }
}

/// The object of an Event. If several instances would post it, they give it the same name.
pub(super) fn object(event: &Event, instance: &str) -> ApiEvent {
    let Event {
        subject,
        reason,
        about,
        note,
    } = event;
    let mut hasher = DefaultHasher::new();
    reason.as_str().hash(&mut hasher);
    match subject {
        Subject::Service(_, uid) | Subject::Ingress(_, uid) => uid.hash(&mut hasher),
        Subject::Node(name) => name.hash(&mut hasher),
    }
    match (reason, about) {
        (Reason::NotServed, _) => note.hash(&mut hasher),
        // The node's, however much it says.
        (Reason::ClientsBlocked, _) => {}
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
            name: Some(format!("{:.200}.{:016x}", subject.name(), hasher.finish())),
            namespace: Some(subject.namespace().to_owned()),
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
        regarding: Some(subject.reference()),
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

/// What all Events of Ebbtide have in common.
pub const CONTROLLER: &str = "ebbtide.dev/ebbtide";
/// Bytes of a text. The API refuses more than 1,024.
const LONGEST_NOTE: usize = 1_000;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cluster) fn event(reason: Reason, note: &str) -> Event {
        Event {
            subject: Subject::Service(ObjectName::new("web", "shop"), Some("7".into())),
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
    fn an_event_of_a_node_is_where_kubectl_describe_looks_for_it() {
        let of = |node: &str, note| {
            let event = Event {
                subject: Subject::Node(node.into()),
                ..event(Reason::ClientsBlocked, note)
            };
            object(&event, "ebbtide-1")
        };
        let (first, again) = (of("n1", "1 of 2"), of("n1", "2 of 3"));
        let regarding = first.regarding.unwrap();
        assert_eq!(first.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(regarding.namespace, None);
        let (kind, uid) = (regarding.kind.unwrap(), regarding.uid.unwrap());
        assert_eq!((kind.as_str(), uid.as_str()), ("Node", "n1"));
        assert_eq!(first.metadata.name, again.metadata.name, "one a node");
        assert_ne!(first.metadata.name, of("n2", "1 of 2").metadata.name);
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

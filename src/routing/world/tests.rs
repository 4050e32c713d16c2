//! Tests of the world and the merge: one scene for each rule of contract 2.5 and 2.6, and a
//! property test of any order and repetition of events (contract 2.2).

use proptest::prelude::*;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::name::{ObjectName, PodRef};
use crate::contract::policy::Transport;
use crate::contract::reason::Trigger;
use crate::discovery::object::{
    Change, Deletion, IngressObject, Kind, Object, PodObject, ServiceObject, ServicePortObject,
    SliceEndpoint, SliceObject,
};
use crate::routing::world::merged::{Fate, MergedEndpoint, MergedService};
use crate::routing::world::objects::{Touched, World};

const SECOND: Duration = Duration::from_secs(1);

fn name(name: &str) -> ObjectName {
    ObjectName::new("web", name)
}

fn service(ports: &[(Option<&str>, u16)]) -> ServiceObject {
    let port = |&(name, port): &(Option<&str>, u16)| ServicePortObject {
        name: name.map(str::to_owned),
        port,
        node_port: None,
        target_port: None,
        app_protocol: None,
        transport: Transport::Tcp,
    };
    ServiceObject {
        name: name("app"),
        uid: None,
        claimed: true,
        external_name: false,
        headless: false,
        ports: ports.iter().map(port).collect(),
        ipv6_first: false,
        annotations: BTreeMap::new(),
        unserved: Vec::new(),
        addresses: Vec::new(),
        source_ranges: Vec::new(),
        traffic: Default::default(),
    }
}

fn slice(slice: &str, endpoints: Vec<SliceEndpoint>) -> SliceObject {
    SliceObject {
        udp_ports: Vec::new(),
        name: name(slice),
        service: Some("app".into()),
        ipv6: endpoints.first().is_some_and(|e| e.address.is_ipv6()),
        fqdn: false,
        created: 0,
        generation: 0,
        ports: vec![(String::new(), 8080)],
        endpoints,
    }
}

/// A ready endpoint; `pod` is `name`, `name/uid` or empty for none.
fn endpoint(address: &str, pod: &str) -> SliceEndpoint {
    let (name, uid) = pod.split_once('/').unwrap_or((pod, ""));
    SliceEndpoint {
        address: address.parse().unwrap(),
        pod: (!name.is_empty()).then(|| {
            Arc::new(PodRef {
                name: name.into(),
                uid: uid.into(),
            })
        }),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        hints: Default::default(),
    }
}

fn terminating(address: &str, pod: &str) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        terminating: true,
        ..endpoint(address, pod)
    }
}

fn not_ready(address: &str, pod: &str) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        serving: false,
        ..endpoint(address, pod)
    }
}

fn pod(pod: &str, uid: &str) -> PodObject {
    PodObject {
        name: name(pod),
        uid: uid.into(),
        template_hash: None,
        deletion: None,
        spec_grace: None,
    }
}

fn deleted(of: &str, uid: &str, grace: Option<u64>) -> PodObject {
    let deletion = Deletion {
        grace: grace.map(Duration::from_secs),
        remaining: None,
        age: None,
    };
    PodObject {
        deletion: Some(deletion),
        ..pod(of, uid)
    }
}

fn graceful(of: &str, uid: &str, grace: u64) -> PodObject {
    PodObject {
        spec_grace: Some(Duration::from_secs(grace)),
        ..pod(of, uid)
    }
}

impl World {
    fn put(&mut self, object: impl Into<Object>, at: Instant) -> Touched {
        let mut touched = Touched::default();
        self.apply(Change::Apply(object.into()), at, &mut touched);
        touched
    }

    fn remove(&mut self, kind: Kind, of: &str, at: Instant) -> Touched {
        let mut touched = Touched::default();
        self.apply(Change::Remove(kind, name(of)), at, &mut touched);
        touched
    }

    fn endpoints(&self) -> Vec<MergedEndpoint> {
        self.merge(&name("app")).unwrap().ports.remove(0).endpoints
    }

    fn addresses(&self) -> Vec<String> {
        self.endpoints()
            .iter()
            .map(|e| e.address.to_string())
            .collect()
    }

    fn only(&self) -> MergedEndpoint {
        let mut all = self.endpoints();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }
}

impl From<ServiceObject> for Object {
    fn from(service: ServiceObject) -> Self {
        Self::Service(service)
    }
}

impl From<SliceObject> for Object {
    fn from(slice: SliceObject) -> Self {
        Self::EndpointSlice(slice)
    }
}

impl From<PodObject> for Object {
    fn from(pod: PodObject) -> Self {
        Self::Pod(pod)
    }
}

fn world() -> (World, Instant) {
    let (mut world, now) = (World::default(), Instant::now());
    world.put(service(&[(None, 80)]), now);
    (world, now)
}

#[test]
fn an_endpoint_that_moves_between_slices_is_never_lost_in_either_order() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    world.put(slice("b", vec![endpoint("10.0.0.1", "p/1")]), now);
    assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
    world.put(slice("a", vec![]), now);
    assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
    world.remove(Kind::EndpointSlice, "b", now);
    assert!(world.addresses().is_empty());
}

#[test]
fn a_named_port_is_resolved_in_each_slice() {
    let (mut world, now) = world();
    world.put(service(&[(Some("http"), 80), (Some("admin"), 81)]), now);
    let ports = |list: &[(&str, u16)]| {
        list.iter()
            .map(|(n, p)| ((*n).to_owned(), *p))
            .collect::<Vec<_>>()
    };
    let one = SliceObject {
        ports: ports(&[("http", 8080), ("admin", 9)]),
        ..slice("a", vec![endpoint("10.0.0.1", "")])
    };
    let two = SliceObject {
        ports: ports(&[("http", 8081)]),
        ..slice("b", vec![endpoint("10.0.0.2", "")])
    };
    world.put(one, now);
    world.put(two, now);
    let merged = world.merge(&name("app")).unwrap();
    let of = |port: usize| {
        merged.ports[port]
            .endpoints
            .iter()
            .map(|e| e.address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(0), ["10.0.0.1:8080", "10.0.0.2:8081"]);
    assert_eq!(of(1), ["10.0.0.1:9"]);
}

#[test]
fn one_address_twice_for_one_pod_is_the_newer_slice_s() {
    let (mut world, now) = world();
    let at = |created, generation, e| SliceObject {
        created,
        generation,
        ..slice("z", vec![e])
    };
    let newer = |s: SliceObject, n: &str| SliceObject { name: name(n), ..s };
    world.put(newer(at(2, 1, not_ready("10.0.0.1", "p/1")), "b"), now);
    world.put(newer(at(1, 9, endpoint("10.0.0.1", "p/1")), "c"), now);
    assert!(!world.only().conditions.ready, "created counts first");
    world.put(newer(at(2, 2, endpoint("10.0.0.1", "p/1")), "a"), now);
    assert!(world.only().conditions.ready, "then the generation");
    world.put(newer(at(2, 2, not_ready("10.0.0.1", "p/1")), "d"), now);
    assert!(!world.only().conditions.ready, "then the name");
}

#[test]
fn one_address_of_two_pods_is_the_ready_one_s_even_in_the_older_slice() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "new/2")]), now);
    world.put(slice("b", vec![not_ready("10.0.0.1", "old/1")]), now);
    assert_eq!(world.only().pod.unwrap().uid, "2");
    // A slice that lags behind shows the old pod ready. Then the pod watch reports its end.
    world.put(slice("b", vec![endpoint("10.0.0.1", "old/1")]), now);
    assert_eq!(
        world.only().pod.unwrap().uid,
        "1",
        "both ready: the newer slice"
    );
    world.put(pod("old", "1"), now);
    world.remove(Kind::Pod, "old", now);
    assert_eq!(world.only().pod.unwrap().uid, "2");
}

#[test]
fn a_pod_of_both_families_counts_once_by_the_service_s_first() {
    let (mut world, now) = world();
    world.put(
        slice(
            "a",
            vec![endpoint("10.0.0.1", "p/1"), endpoint("10.0.0.2", "q/2")],
        ),
        now,
    );
    world.put(
        slice(
            "b",
            vec![endpoint("fd00::1", "p/1"), endpoint("fd00::9", "")],
        ),
        now,
    );
    assert_eq!(
        world.addresses(),
        ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::9]:8080"]
    );
    world.put(
        ServiceObject {
            ipv6_first: true,
            ..service(&[(None, 80)])
        },
        now,
    );
    assert_eq!(
        world.addresses(),
        ["10.0.0.2:8080", "[fd00::1]:8080", "[fd00::9]:8080"]
    );
}

#[test]
fn what_can_be_no_endpoint_is_dropped_with_a_warning() {
    let (mut world, now) = world();
    let special = ["169.254.1.1", "127.0.0.1", "10.0.0.1", "0.0.0.0"].map(|a| endpoint(a, ""));
    world.put(slice("a", special.to_vec()), now);
    world.put(
        SliceObject {
            fqdn: true,
            ..slice("f", vec![])
        },
        now,
    );
    assert_eq!(world.addresses(), ["10.0.0.1:8080", "127.0.0.1:8080"]);
    assert_eq!(
        world.merge(&name("app")).unwrap().warnings,
        [
            "EndpointSlice web/a: link-local addresses are dropped: 169.254.1.1",
            "EndpointSlice web/a: unspecified addresses are dropped: 0.0.0.0",
            "EndpointSlice web/f: addressType FQDN is refused; list the IP addresses instead",
        ]
    );
    let mut world = World::for_api_server();
    world.put(service(&[(None, 80)]), now);
    world.put(slice("a", special.to_vec()), now);
    assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
}

#[test]
fn an_external_name_is_refused_and_an_unknown_service_waits() {
    let (mut world, now) = world();
    world.put(
        ServiceObject {
            external_name: true,
            ..service(&[(None, 80)])
        },
        now,
    );
    let merged = world.merge(&name("app")).unwrap();
    assert!(merged.ports.is_empty() && merged.warnings[0].contains("ExternalName"));
    world.remove(Kind::Service, "app", now);
    let touched = world.put(slice("a", vec![endpoint("10.0.0.1", "")]), now);
    assert!(touched.services.contains(&name("app")) && world.merge(&name("app")).is_none());
    world.put(service(&[(None, 80)]), now);
    assert_eq!(world.addresses(), ["10.0.0.1:8080"]);
}

#[test]
fn a_slice_that_changes_its_service_touches_both_and_leaves_the_first() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "")]), now);
    let moved = SliceObject {
        service: Some("other".into()),
        ..slice("a", vec![endpoint("10.0.0.1", "")])
    };
    let touched = world.put(moved.clone(), now);
    assert_eq!(
        touched.services,
        BTreeSet::from([name("app"), name("other")])
    );
    assert!(world.addresses().is_empty());
    assert_eq!(
        world.put(moved, now),
        Touched::default(),
        "a repeated event touches nothing"
    );
}

#[test]
fn a_pod_absent_from_the_store_is_deleted_only_if_it_was_once_held() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    world.remove(Kind::Pod, "p", now);
    assert_eq!(world.only().fate, Fate::NoPod);
    let mut server = World::for_api_server();
    assert_eq!(server.fate("1"), Fate::NoPod);
    server.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    assert_eq!(
        server.fate("1"),
        Fate::Alive,
        "the pod watch reports each end"
    );
    world.put(pod("p", "1"), now);
    assert_eq!(world.only().fate, Fate::Alive);
    let touched = world.remove(Kind::Pod, "p", now);
    assert_eq!(touched.pods, BTreeSet::from(["1".to_owned()]));
    assert!(touched.addresses.contains_key(&name("app")));
    assert_eq!(world.only().fate, Fate::Deleted { deadline: None });
    assert!(world.only().conditions.terminating);
}

#[test]
fn the_deadline_is_the_first_event_s_plus_grace_plus_3s_and_only_shrinks() {
    let (mut world, now) = world();
    let deadline = |world: &World| match world.fate("1") {
        Fate::Terminating { deadline, .. } | Fate::Deleted { deadline } => {
            deadline.map(|d| (d - now).as_secs())
        }
        fate => panic!("{fate:?}"),
    };
    world.put(deleted("p", "1", Some(30)), now);
    assert_eq!(deadline(&world), Some(33));
    world.put(deleted("p", "1", Some(30)), now + SECOND);
    assert_eq!(deadline(&world), Some(33), "a repeated event");
    world.put(deleted("p", "1", Some(5)), now + SECOND);
    assert_eq!(deadline(&world), Some(9), "kubectl delete --grace-period=5");
    world.remove(Kind::Pod, "p", now + SECOND * 2);
    assert_eq!(
        deadline(&world),
        Some(9),
        "the object's removal does not shorten it"
    );
    assert!(matches!(world.fate("1"), Fate::Deleted { .. }));
}

#[test]
fn a_deadline_from_a_list_counts_from_what_remains() {
    let (mut world, now) = world();
    let deletion = Deletion {
        grace: Some(SECOND * 30),
        remaining: Some(SECOND * 12),
        age: Some(SECOND * 18),
    };
    world.put(
        PodObject {
            deletion: Some(deletion),
            ..pod("p", "1")
        },
        now,
    );
    let deadline = Some(now + SECOND * 15);
    assert_eq!(
        world.fate("1"),
        Fate::Terminating {
            deadline,
            trigger: Trigger::PodDeleted
        }
    );
}

#[test]
fn a_terminating_slice_uses_the_pod_s_own_grace_also_when_it_comes_later() {
    let (mut world, now) = world();
    world.put(slice("a", vec![terminating("10.0.0.1", "p/1")]), now);
    assert_eq!(world.only().fate, Fate::NoPod);
    assert!(world.only().conditions.terminating);
    world.put(graceful("p", "1", 7), now + SECOND);
    let fate = Fate::Terminating {
        deadline: Some(now + SECOND * 10),
        trigger: Trigger::SliceTerminating,
    };
    assert_eq!(world.only().fate, fate);
    world.put(deleted("p", "1", Some(60)), now + SECOND);
    assert_eq!(
        world.only().fate,
        fate,
        "the first signal stays the trigger, and the deadline does not become later"
    );
}

#[test]
fn termination_is_one_way() {
    let (mut world, now) = world();
    world.put(slice("a", vec![terminating("10.0.0.1", "p/1")]), now);
    world.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    assert!(
        world.only().conditions.terminating,
        "a slice cannot take the termination back"
    );
    world.put(deleted("q", "2", Some(1)), now);
    world.put(pod("q", "2"), now);
    assert!(
        matches!(world.fate("2"), Fate::Terminating { .. }),
        "a Pod object cannot take its deletion back"
    );
    world.remove(Kind::Pod, "q", now);
    world.put(pod("q", "2"), now);
    assert!(
        matches!(world.fate("2"), Fate::Deleted { .. }),
        "a manifest put back with its UID does not revive the pod"
    );
}

#[test]
fn a_pod_put_back_with_its_uid_is_a_warning_until_it_goes_again() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    world.put(pod("p", "1"), now);
    world.remove(Kind::Pod, "p", now);
    assert!(world.merge(&name("app")).unwrap().warnings.is_empty());
    assert!(
        world
            .put(pod("p", "1"), now)
            .services
            .contains(&name("app"))
    );
    let warnings = world.merge(&name("app")).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "Pod web/p is shown again after its deletion: metadata.uid 1 has ended, give the \
             Pod another one"
        ]
    );
    assert!(
        world
            .remove(Kind::Pod, "p", now)
            .services
            .contains(&name("app"))
    );
    assert!(world.merge(&name("app")).unwrap().warnings.is_empty());
}

#[test]
fn an_endpoint_without_a_pod_terminates_while_its_slice_says_so() {
    let (mut world, now) = world();
    world.put(slice("a", vec![terminating("10.0.0.1", "")]), now);
    assert!(world.only().conditions.terminating);
    world.put(slice("a", vec![endpoint("10.0.0.1", "")]), now);
    assert!(!world.only().conditions.terminating);
    assert_eq!(world.only().fate, Fate::NoPod);
}

#[test]
fn a_pod_replaced_under_its_name_is_deleted() {
    let (mut world, now) = world();
    world.put(
        slice(
            "a",
            vec![endpoint("10.0.0.1", "p/1"), endpoint("10.0.0.2", "p/2")],
        ),
        now,
    );
    world.put(pod("p", "1"), now);
    let touched = world.put(pod("p", "2"), now);
    assert_eq!(
        touched.pods,
        BTreeSet::from(["1".to_owned(), "2".to_owned()])
    );
    assert!(matches!(world.fate("1"), Fate::Deleted { .. }));
    assert_eq!(world.fate("2"), Fate::Alive);
}

#[test]
fn a_reference_without_uid_is_resolved_by_name() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p")]), now);
    assert_eq!(world.only().pod.unwrap().uid, "");
    let touched = world.put(pod("p", "1"), now);
    assert!(touched.services.contains(&name("app")));
    assert_eq!(
        (world.only().pod.unwrap().uid.as_str(), world.only().fate),
        ("1", Fate::Alive)
    );
    world.remove(Kind::Pod, "p", now);
    assert!(matches!(world.only().fate, Fate::Deleted { .. }));
    world.put(graceful("p", "2", 4), now);
    world.put(slice("a", vec![terminating("10.0.0.1", "p")]), now + SECOND);
    let fate = Fate::Terminating {
        deadline: Some(now + SECOND * 8),
        trigger: Trigger::SliceTerminating,
    };
    assert_eq!(
        (world.only().pod.unwrap().uid.as_str(), world.only().fate),
        ("2", fate)
    );
}

#[test]
fn pods_without_uid_are_told_apart_by_their_ends() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p")]), now);
    let uid = |world: &World| world.only().pod.unwrap().uid.clone();
    world.put(pod("p", ""), now);
    let first = uid(&world);
    world.put(deleted("p", "", Some(1)), now);
    assert_eq!(uid(&world), first);
    assert!(matches!(world.only().fate, Fate::Terminating { .. }));
    world.put(pod("p", ""), now);
    assert_ne!(
        uid(&world),
        first,
        "a manifest that takes the deletion back is another pod"
    );
    assert_eq!(world.only().fate, Fate::Alive);
    world.remove(Kind::Pod, "p", now);
    world.put(pod("p", ""), now);
    assert_eq!(
        world.only().fate,
        Fate::Alive,
        "a manifest put back after its removal is another pod"
    );
    assert!(matches!(world.fate(&first), Fate::Deleted { .. }));
}

#[test]
fn a_relist_swaps_one_kind_whole() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    world.put(slice("b", vec![endpoint("10.0.0.2", "q/2")]), now);
    world.put(pod("p", "1"), now);
    world.put(pod("q", "2"), now);
    let mut touched = Touched::default();
    let slices = vec![slice("b", vec![endpoint("10.0.0.2", "q/2")]).into()];
    world.apply(
        Change::Replace {
            kind: Kind::EndpointSlice,
            namespace: None,
            objects: slices,
        },
        now,
        &mut touched,
    );
    assert_eq!(world.addresses(), ["10.0.0.2:8080"]);
    assert!(touched.pods.is_empty());
    world.apply(
        Change::Replace {
            kind: Kind::Pod,
            namespace: None,
            objects: vec![pod("p", "1").into()],
        },
        now,
        &mut touched,
    );
    assert_eq!(touched.pods, BTreeSet::from(["2".to_owned()]));
    assert!(matches!(world.fate("2"), Fate::Deleted { .. }));
    assert_eq!(world.fate("1"), Fate::Alive);
}

#[test]
fn an_ended_uid_is_remembered_until_10_minutes_after_its_last_slice() {
    let (mut world, now) = world();
    world.put(slice("a", vec![endpoint("10.0.0.1", "p/1")]), now);
    world.put(pod("p", "1"), now);
    world.remove(Kind::Pod, "p", now);
    world.sweep(now + SECOND * 10_000);
    assert!(
        matches!(world.fate("1"), Fate::Deleted { .. }),
        "a slice still names the pod"
    );
    world.remove(Kind::EndpointSlice, "a", now + SECOND * 10_000);
    world.sweep(now + SECOND * 10_599);
    assert!(
        matches!(world.fate("1"), Fate::Deleted { .. }),
        "10 minutes are not over"
    );
    world.sweep(now + SECOND * 10_600);
    assert_eq!(world.fate("1"), Fate::NoPod);
    assert!(
        world.pods.slots.is_empty()
            && world.uids.is_empty()
            && world.naming.is_empty()
            && world.by_service.is_empty()
    );
}

/// Removes what depends on the order of events: the instants, and which signal was first.
fn timeless(mut merged: MergedService) -> MergedService {
    let zero = *EPOCH;
    for endpoint in merged.ports.iter_mut().flat_map(|p| &mut p.endpoints) {
        if let Fate::Terminating { deadline, trigger } = &mut endpoint.fate {
            (*deadline, *trigger) = (deadline.map(|_| zero), Trigger::Removed);
        } else if let Fate::Deleted { deadline } = &mut endpoint.fate {
            *deadline = deadline.map(|_| zero);
        }
    }
    merged
}

static EPOCH: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let address = (0..4u8, any::<bool>()).prop_map(|(n, v6)| {
        if v6 {
            format!("fd00::{n}")
        } else {
            format!("10.0.0.{n}")
        }
    });
    let pod = prop_oneof![
        Just(String::new()),
        (0..3u8).prop_map(|n| format!("p{n}")),
        (0..3u8, 0..3u8).prop_map(|(n, u)| format!("p{n}/{n}{u}"))
    ];
    (
        address,
        pod,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(a, pod, ready, serving, terminating)| SliceEndpoint {
            ready,
            serving,
            terminating,
            ..endpoint(&a, &pod)
        })
}

/// The events of each object, in the order in which its source sends them.
fn any_history() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let one_slice = |n: usize| {
        let version = (
            prop::collection::vec(any_endpoint(), 0..4),
            0..2i64,
            0..2i64,
            prop::bool::weighted(0.2),
        );
        let slice_name = format!("s{n}");
        prop::collection::vec(prop::option::weighted(0.85, version), 0..4).prop_map(
            move |versions| {
                let change = |v: Option<(Vec<SliceEndpoint>, i64, i64, bool)>| match v {
                    None => Change::Remove(Kind::EndpointSlice, name(&slice_name)),
                    Some((endpoints, created, generation, other)) => {
                        let service = Some(if other { "other" } else { "app" }.to_owned());
                        Change::Apply(
                            SliceObject {
                                created,
                                generation,
                                service,
                                ..slice(&slice_name, endpoints)
                            }
                            .into(),
                        )
                    }
                };
                versions.into_iter().map(change).collect::<Vec<_>>()
            },
        )
    };
    /// The UID, the deletion with its grace period, and the grace period of the spec.
    type Version = (Option<u8>, Option<Option<u64>>, Option<u64>);
    let one_pod = |n: usize| {
        let version = (
            prop::option::of(0..3u8),
            prop::option::of(prop::option::of(1..9u64)),
            prop::option::of(1..9u64),
        );
        prop::collection::vec(prop::option::weighted(0.8, version), 0..5).prop_map(
            move |versions| {
                let pod_name = format!("p{n}");
                let change = |v: Option<Version>| match v {
                    None => Change::Remove(Kind::Pod, name(&pod_name)),
                    Some((uid, deletion, grace)) => {
                        let uid = uid.map_or(String::new(), |u| format!("{n}{u}"));
                        let grace = grace.map(Duration::from_secs);
                        let of = match deletion {
                            Some(g) => deleted(&pod_name, &uid, g),
                            None => pod(&pod_name, &uid),
                        };
                        Change::Apply(
                            PodObject {
                                spec_grace: grace,
                                ..of
                            }
                            .into(),
                        )
                    }
                };
                versions.into_iter().map(change).collect::<Vec<_>>()
            },
        )
    };
    let services = any::<bool>().prop_map(|ipv6_first| {
        let first = service(&[(None, 80)]);
        let second = ServiceObject {
            ipv6_first,
            ..first.clone()
        };
        vec![
            Change::Apply(first.into()),
            Change::Remove(Kind::Service, name("app")),
            Change::Apply(second.into()),
        ]
    });
    let slices: Vec<_> = (0..3).map(one_slice).collect();
    let pods: Vec<_> = (0..3).map(one_pod).collect();
    (services, slices, pods).prop_map(|(services, slices, pods)| {
        std::iter::once(services)
            .chain(slices)
            .chain(pods)
            .collect::<Vec<_>>()
    })
}

fn nothing() -> MergedService {
    MergedService {
        authorities: None,
        object: service(&[]),
        ports: Vec::new(),
        warnings: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any order between the objects, with any event repeated, ends in the same table. The events
    /// of one object keep their order.
    #[test]
    fn order_and_repetition_do_not_matter(
        history in any_history(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 40),
        api_server in any::<bool>(),
    ) {
        let now = *EPOCH;
        let fresh = || World { api_server, ..World::default() };
        let mut touched = Touched::default();
        let mut canonical = fresh();
        for change in history.iter().flatten() {
            canonical.apply(change.clone(), now, &mut touched);
        }
        let mut shuffled = fresh();
        let mut queues: Vec<_> = history.iter().map(|events| events.iter()).collect();
        let picks = picks.iter().cycle();
        let mut at = now;
        let mut seen: Option<MergedService> = None;
        for (index, twice) in picks {
            queues.retain(|queue| queue.len() > 0);
            if queues.is_empty() {
                break;
            }
            let queue = index.index(queues.len());
            let change = queues[queue].next().unwrap();
            for _ in 0..=usize::from(*twice) {
                at += SECOND;
                let mut touched = Touched::default();
                shuffled.apply(change.clone(), at, &mut touched);
                let merged = shuffled.merge(&name("app"));
                // What `touched` does not name has not changed.
                if !touched.services.contains(&name("app")) {
                    let some = touched.addresses.get(&name("app")).cloned().unwrap_or_default();
                    let both = (merged.clone().unwrap_or_else(nothing), seen.unwrap_or_else(nothing));
                    prop_assert!(both.0.warnings == both.1.warnings && both.0.object == both.1.object);
                    for (now, before) in both.0.ports.iter().zip(&both.1.ports) {
                        let found = shuffled.merge_some(&name("app"), &now.port, &some);
                        let Some(found) = found.filter(|_| !before.ambiguous) else { continue };
                        let (here, elsewhere): (Vec<_>, Vec<_>) =
                            now.endpoints.iter().cloned().partition(|e| some.contains(&e.address.ip()));
                        let as_before = before.endpoints.iter().filter(|e| !some.contains(&e.address.ip()));
                        prop_assert_eq!(found, here);
                        prop_assert!(elsewhere.iter().eq(as_before), "{:?}: {:?}", change, some);
                        prop_assert!(!now.ambiguous);
                    }
                }
                seen = merged;
            }
        }
        prop_assert_eq!(
            canonical.merge(&name("app")).map(timeless),
            shuffled.merge(&name("app")).map(timeless)
        );
    }
}

#[test]
fn a_status_that_was_written_is_no_new_rule() {
    let mut world = World::default();
    let mut apply = |ingress: IngressObject| {
        let (change, mut touched) = (Object::Ingress(Box::new(ingress)), Touched::default());
        world.apply(Change::Apply(change), Instant::now(), &mut touched);
        (touched.routes, touched.ingresses.len())
    };
    let mut ingress = crate::routing::routes::tests::ingress("a", 0, None);
    assert_eq!(apply(ingress.clone()), (true, 1));
    ingress.published.addresses.push("192.0.2.1".to_owned());
    assert_eq!(apply(ingress.clone()), (false, 1));
    assert_eq!(apply(ingress.clone()), (false, 0));
    ingress.created = 7;
    ingress.published.addresses.clear();
    assert_eq!(apply(ingress), (true, 1));
}
